"""What is decided without a leader, as a node takes part in it: who has a name, who restarts an actor, who is cut off.

    table, members, time ──► names · islands · restarts · fencing (`lattica.scheduler`) ──► rows, messages, desks

The cores decide, here they are told and obeyed: rows are written, messages sent, and the desks (`names_desk`,
`detached_desk`, `far_actors`) hear what it means for the actors here. What the table says of names and actors is read
in this file only.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import far
from lattica.errors import ConfigError, LatticaError, PermissionDeniedError, RemoteProtocolError
from lattica.files import write_private
from lattica.ids import ActorId, short
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.membership import State
from lattica.mesh.notices import VIEWS
from lattica.mesh.roles import Role
from lattica.mesh.table.kinds import ACTOR, KEY_MAX_BYTES, NAME, Kind
from lattica.mesh.table.rows import Row, read_row
from lattica.node.bearers import Bearer, holder_of, read_bearer
from lattica.scheduler import claims, islands, names, restarts, views
from lattica.scheduler.fencing import Fencing, Life
from lattica.scheduler.rendezvous import Standing, deciders, order

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour

log = logging.getLogger(__name__)
BEAT_S = 1.0
"""Between looks at who is silent and with whom there is a session, of which nobody tells."""
MEMBERS_S = 0.1  # in which changes of members are told together: a thousand may come at once
CUT_OFF_S = 5.0
"""On a smaller side, before calls of what does not answer fail: a busy machine is suspected for some seconds."""
WARN_MISSING = 5  # peers that an island names when it says that it is one


class Deciding:
    """See the module."""

    def __init__(self, desk: FarDesk, how: str) -> None:
        """how: this node has come into its mesh, as of `mesh_desk.admit`."""
        self._desk, self._peer, self._gossip = desk, desk.peer, desk.peer.gossip
        self._loop = asyncio.get_running_loop()
        self._replica = self._gossip.community.replica
        self.me = desk.me
        self._path = os.path.join(self._peer.credentials.folder, "mesh", "view")
        now = self._loop.time()
        self.islands = self._begin_islands(now, how)
        self.names = names.Names(self.me, now, self._holder_and_row)
        self.restarts = restarts.Restarts(self.me, now, desk.jobs.unix() - now, is_island=self.islands.is_island)
        self.fencing = Fencing()
        self.fencing.island(self.islands.is_island)
        self.records: dict[bytes, restarts.Record] = {}  # detached actors, by the table
        self._states: dict[PeerId, State] = {}
        self.living: frozenset[PeerId] = frozenset({self.me})
        self._deciders: list[PeerId] = []
        self._linked: set[PeerId] = set()
        self._island_since: float | None = now if self.islands.is_island else None
        self._todo: deque[Any] = deque()
        self._seen: deque[tuple[Kind, bytes, Row | None]] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._beats: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Deciding: {self.islands!r}, {self.names!r}, {self.restarts!r}>"

    def start(self) -> None:
        """All desks are there: hear what the table says, and whatever comes."""
        gossip = self._gossip
        gossip.watch(NAME, lambda row, before: self._row(NAME, row, before))
        gossip.watch(ACTOR, lambda row, before: self._row(ACTOR, row, before))
        gossip.watch_members(lambda _: self._members_soon())
        gossip.listen(VIEWS, self._viewed)
        self._seen += [(kind, row.key, row) for kind in (NAME, ACTOR) for row in self._replica.rows(kind)]
        self._keep_view()
        self._members()
        self._beat()

    def close(self) -> None:
        """The node ends."""
        for timer in (self._timer, self._looking, self._beats):
            if timer is not None:
                timer.cancel()

    def _begin_islands(self, now: float, how: str) -> islands.Islands:
        state, founder = None, how == "founded"
        try:
            with open(self._path, "rb") as file:
                state = file.read()
        except FileNotFoundError:
            alone = len(self._gossip.community.states()) <= 1
            founder = founder or (how == "returned" and alone)  # of an earlier release: nobody could tell it of a view
        except OSError as error:
            log.warning("the stable view cannot be read from disk: %s", error)
        try:
            return islands.Islands(self.me, now, state=state, founder=founder and state is None)
        except RemoteProtocolError as error:
            log.warning("%s: it is asked of others", error.message)
            return islands.Islands(self.me, now)

    # -- what is known

    @property
    def is_island(self) -> bool:
        """Whether this node is on a smaller side."""
        return self.islands.is_island

    def is_cut_off(self) -> bool:
        """Whether this node has been on a smaller side for so long that others are to hear of it."""
        since = self._island_since
        return since is not None and self.now() - since >= CUT_OFF_S

    def answers(self, peer: PeerId) -> bool:
        """Whether it lives and nobody suspects it."""
        return peer == self.me or self._gossip.community.membership.state(peer) is State.ALIVE

    def holder(self, name: bytes) -> claims.Holder | None:
        """Who has this name by our table, if what it stands for lives or will live again."""
        found = self._holder_and_row(name)
        return None if found is None else found[0]

    def names_borne(self) -> list[tuple[str, str]]:
        """(namespace, name) of all that are borne, by our table."""
        keys = [row.key for row in self._replica.rows(NAME) if self.holder(row.key) is not None]
        return [(namespace, name) for namespace, _, name in (key.decode().partition("\0") for key in keys)]

    def owner(self, holder: claims.Holder, bearer: Bearer) -> PeerId:
        """The node that supervises what the name stands for."""
        record = self.records.get(bearer.actor)
        return PeerId(holder.claimer) if record is None else PeerId(record.host)

    def is_over(self, record: restarts.Record) -> bool:
        """Whether its host is gone and nobody will restart it."""
        return record.restarts_left == 0 and record.host not in self.living

    def in_order(self, thing: bytes) -> list[PeerId]:
        """Other members that decide and answer, the one responsible for `thing` first."""
        return [peer for peer in order(thing, self._deciders) if peer != self.me and self.answers(peer)]

    def life_of(self, actor: bytes) -> far.Life | None:
        """The token of a detached actor's latest life that is known here; None for one that is not detached."""
        life = self.fencing.latest(ActorId(actor))
        return None if life is None else (life.epoch, life.incarnation, life.minority)

    def token_of(self, worker: int) -> tuple[bytes, far.Life | None]:
        """(the detached actor that this process of ours is, its life); (b"", None) for all others."""
        hosted = self._desk.hosting.hosted.get(worker)
        if hosted is not None:
            return (hosted.actor, hosted.life) if hosted.life is not None else (b"", None)
        ours = self._desk.node.actor_desk.supervisor.actor_of(worker)
        return self.token(ours.plan.actor) if ours is not None and ours.plan.detached else (b"", None)

    def token(self, actor: bytes) -> tuple[bytes, far.Life | None]:
        """(it, its life) of a detached actor that this node runs; a later life may run elsewhere."""
        record = self.restarts.runs(ActorId(actor))
        life = record.life if record is not None else None
        return (b"", None) if life is None else (actor, (life.epoch, life.incarnation, life.minority))

    def admit(self, actor: bytes, life: far.Life | None) -> str:
        """Why something of this life of an actor is refused; "" if it counts."""
        if life is None:
            return ""
        latest = self.fencing.admit(ActorId(actor), Life(*life))
        return "" if latest is None else f"it was superseded: life {latest.number()} of actor {short(actor)} is known"

    def _holder_and_row(self, name: bytes) -> tuple[claims.Holder, bytes] | None:
        row = self._replica.get(NAME, name)
        holder = None if row is None else holder_of(row)
        if row is None or holder is None or not self._is_borne(holder):
            return None
        return holder, row.data

    def _is_borne(self, holder: claims.Holder) -> bool:
        bearer = read_bearer(holder.body)
        record = self.records.get(bearer.actor) if bearer is not None else None
        if record is not None:
            return not self.is_over(record)
        return holder.claimer in self.living

    # -- wishes of the desks

    def now(self) -> float:
        """By which the cores count."""
        return self._loop.time()

    def do(self, effects: Iterable[Any]) -> None:
        """Carry out what a core wants, and tell the others what has come of it."""
        self._todo.extend(effects)
        if self._busy:
            return
        self._busy = True
        try:
            while self._todo or self._seen:
                if self._todo:
                    self._carry_out(self._todo.popleft())
                else:
                    self._heard(*self._seen.popleft())
        finally:
            self._busy = False
        self._schedule()

    def side(self) -> dict[str, Any]:
        """On which side of its mesh this node is."""
        missing = sorted(peer for peer in self.islands.members if not self.answers(peer))
        members = len(self.islands.members)
        return {
            "island": self.is_island,
            "members": members,
            "here": members - len(missing),
            "missing": [short_peer(peer) for peer in missing],
        }

    def adopt(self) -> dict[str, Any]:
        """An admin says that this side is the whole mesh. What it is now."""
        if Role.ADMIN not in self._peer.credentials.member.roles:
            raise PermissionDeniedError(
                "this node has not the role `admin`", do_next="run `lattica adopt` on a node that has it"
            )
        self.do(self.islands.adopt(self.now()))
        return {"island": self.is_island, "members": [short_peer(peer) for peer in sorted(self.islands.members)]}

    def write(self, kind: Kind, key: bytes, body: bytes, **how: Any) -> str:
        """Write a row. "" or why our table does not take it."""
        try:
            self._gossip.write(kind, key, body, **how)
        except (PermissionDeniedError, ConfigError) as error:
            return error.message
        return ""

    def supersede(self, actor: bytes, record: restarts.Record) -> bool:
        """Write the row of a life that begins here. Whether our table takes it."""
        if refusal := self.write(ACTOR, actor, restarts.write_record(record)):
            log.warning("actor %s cannot be restarted here: %s", short(actor), refusal)
            return False
        self.do(())
        return True

    def hand_over(self, actor: bytes, to: PeerId) -> bool:
        """This node goes, and that one is to run the actor: it costs no restart. Whether our table takes it."""
        record = self.restarts.running.get(ActorId(actor))
        if record is None:
            return False
        self.restarts.finished(ActorId(actor))
        left = record.restarts_left
        left = left if left == restarts.ENDLESS else left + 1
        return self.supersede(actor, msgspec.structs.replace(record, host=to, restarts_left=left))

    def bury(self, actor: bytes) -> None:
        """A detached actor is over: nobody is to restart it."""
        self.restarts.finished(ActorId(actor))
        if actor in self.records:
            self.write(ACTOR, actor, b"", gone=True)
            self.do(())

    # -- messages

    def claiming(self, neighbour: Neighbour, message: far.Claiming) -> None:
        """Of another node, about a name."""
        self.do(self.names.receive(neighbour.peer, claims.decode(message.data), self.now()))

    def who_has(self, neighbour: Neighbour, message: far.WhoHas) -> None:
        """It has not seen a row for this name."""
        found = self._holder_and_row(message.name) if 0 < len(message.name) <= KEY_MAX_BYTES else None
        neighbour.link.send(far.NameRow(message.number, found[1] if found is not None else b""))

    def take(self, peer: PeerId, row: bytes) -> None:
        """A row that another node has sent by itself. Raises RemoteProtocolError if it is a forgery."""
        self._gossip.take(peer, read_row(row))
        self.do(())

    def _viewed(self, peer: PeerId, body: bytes) -> None:
        self.do(self.islands.receive(peer, views.decode(body), self.now()))

    # -- what the cores want

    def _carry_out(self, effect: Any) -> None:
        desk = self._desk
        match effect:
            case claims.Send(to, message):
                desk.neighbour(to).link.send(far.Claiming(claims.encode(message)))
            case islands.Send(to, view):
                self._peer.send_notice(to, VIEWS, views.encode(view))
            case islands.Spread(view):
                for peer in sorted(self._linked):
                    self._peer.send_notice(peer, VIEWS, views.encode(view))
            case islands.StableViewChanged(number, members):
                log.info("the stable view has number %d and %d members", number, len(members))
                self._keep_view()
            case islands.IslandBegan() | islands.IslandEnded():
                self._island_changed(effect)
            case claims.Write(name, holder):
                refusal = self.write(NAME, name, claims.write_holder(holder), heir=holder.claimer)
                row = self._replica.get(NAME, name)
                refusal = refusal or ("" if row is not None else "the table holds another row of this name")
                data = row.data if row is not None and not refusal else b""
                self._todo.extend(self.names.written(name, data, refusal, self.now()))
            case claims.Merge(home, row):
                try:
                    self._gossip.take(home, read_row(row))
                except RemoteProtocolError as error:
                    log.warning("the row of a name from %s: %s", short_peer(home), error.message)
            case claims.Release(name, holder):
                self.write(NAME, name, claims.write_holder(holder), gone=True)
            case claims.NameClaimed(claim, _):
                desk.names.claimed(claim)
            case claims.NameTaken(claim, _, held):
                desk.names.taken(claim, held)
            case claims.NameFailed(claim, _, reason):
                desk.names.failed(claim, reason)
            case claims.NameLost(claim, _, by):
                desk.names.lost(claim, by)
            case restarts.Write(actor, record):
                if refusal := self.write(ACTOR, actor, restarts.write_record(record)):
                    log.warning("the row of actor %s is not taken: %s", short(actor), refusal)
                self.fencing.met(actor, record.life)
            case restarts.Restart(actor, record):
                desk.detached.restart(actor, record)
            case restarts.Fenced(actor, life, by):
                desk.detached.fenced(actor, life, by)

    def _island_changed(self, effect: islands.IslandBegan | islands.IslandEnded) -> None:
        if isinstance(effect, islands.IslandBegan):
            missing = ", ".join(short_peer(peer) for peer in effect.missing[:WARN_MISSING])
            more = f" and {len(effect.missing) - WARN_MISSING} more" if len(effect.missing) > WARN_MISSING else ""
            log.warning("this node is on a smaller side of its mesh: %s%s do not answer", missing, more)
        else:
            log.warning("this node is on the larger side of its mesh again")
        self._island_since = self.now() if self.is_island else None
        self.fencing.island(self.is_island)
        self._todo.extend(self.restarts.island(self.is_island, self.now()))
        self._desk.actors.look()

    def _keep_view(self) -> None:
        """On disk."""
        try:
            write_private(self._path, self.islands.state())
        except OSError as error:
            log.warning("the stable view cannot be kept on disk: %s", error)

    # -- what the table says

    def _row(self, kind: Kind, row: Row | None, before: Row | None) -> None:
        one = row or before
        if one is not None:
            self._seen.append((kind, one.key, row))
            if not self._busy:
                self._loop.call_soon(self.do, ())  # the mesh is in the middle of something

    def _heard(self, kind: Kind, key: bytes, row: Row | None) -> None:
        counts = row is not None and (row.content.gone or self._replica.is_visible(row))
        if kind is NAME:
            self._heard_name(key, row if counts else None)
        else:
            self._heard_actor(ActorId(key), row if counts else None)

    def _heard_name(self, name: bytes, row: Row | None) -> None:
        holder = None if row is None else holder_of(row)
        gone = row is not None and row.content.gone
        self._todo.extend(self.names.name_changed(name, holder, gone, self.now()))
        if holder is not None and not gone and holder.claimer == self.me:
            bearer = read_bearer(holder.body)
            if bearer is not None and not bearer.detached and not self._desk.names.knows(holder.claim):
                self._todo.append(claims.Release(name, holder))  # of an earlier run of this node

    def _heard_actor(self, actor: ActorId, row: Row | None) -> None:
        record = None
        if row is not None and not row.content.gone:
            try:
                record = restarts.read_record(row.body)
            except RemoteProtocolError as error:
                log.warning("%s", error.message)
        before = self.records.get(actor)
        if before is not None:
            self._desk.detached.superseded(before, record)
        if record is None:
            self.records.pop(actor, None)
        else:
            self.records[actor] = record
            self.fencing.met(actor, record.life)
            self._desk.hosting.fence(actor, record.life)
        self._todo.extend(self.restarts.record_changed(actor, record, self.now()))
        self._desk.actors.moved(actor, record)
        if record is not None and record.host == self.me and not record.restarts_left:
            self._desk.detached.is_it_here(actor)

    # -- members

    def _members_soon(self) -> None:
        if self._looking is None and not self._desk.is_closing:
            self._looking = self._loop.call_later(MEMBERS_S, self._members)

    def _members(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        community, trust, now = self._gossip.community, self._peer.credentials.trust, self.now()
        states = community.states()
        if states == self._states and self._deciders:
            return
        self._states = states
        standings = [self._standing(peer) for peer, state in states.items() if state in (State.ALIVE, State.SUSPECT)]
        if not any(one.peer == self.me for one in standings):
            standings.append(self._standing(self.me))
        self.living = frozenset(one.peer for one in standings)
        self._deciders = deciders(standings, Role.SUBMIT)
        stays = {one.peer for one in standings if not one.ephemeral}
        answering = {peer for peer, state in states.items() if state is State.ALIVE and peer in stays} | {self.me}
        left = [peer for peer, state in states.items() if state is State.LEFT]
        revoked = [peer for peer in self.islands.members if trust.is_revoked(peer)]
        effects: list[Any] = [*self.islands.members_changed(answering, left, revoked, now)]
        effects += self.restarts.members_changed(standings, now)
        effects += self.names.members_changed(standings, now)
        self.do(effects)
        self._desk.actors.look()
        self._desk.detached.members_changed()

    def _standing(self, peer: PeerId) -> Standing:
        member = self._replica.member(peer)
        roles = self._peer.credentials.member.roles if peer == self.me else member.roles if member else Role(0)
        info = self._gossip.community.node(peer)
        return Standing(peer, roles, info is not None and info.ephemeral)

    # -- time

    def _beat(self) -> None:
        self._beats = self._loop.call_later(BEAT_S, self._beat)
        self._members()
        linked, now = set(self._peer.sessions.peers()), self.now()
        new, self._linked = linked - self._linked, linked
        self.do([effect for peer in new for effect in self.islands.connected(peer, now)])

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        cores: Sequence[Any] = (self.islands, self.names, self.restarts)
        due = [at for core in cores if (at := core.next_deadline()) is not None]
        if due and not self._desk.is_closing:
            self._timer = self._loop.call_at(min(due), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self.now()
        cores: Sequence[Any] = (self.islands, self.names, self.restarts)
        for core in cores:
            due = core.next_deadline()
            if due is not None and due <= now:
                try:
                    self.do(core.tick(now))
                except LatticaError:
                    log.exception("%r", core)
        self._schedule()
