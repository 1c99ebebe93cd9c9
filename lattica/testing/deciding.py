"""Peers that decide without a leader: a `Resident` with the scheduler's cores of names, islands, restarts and fencing.

What a node will do around them is done here in few lines: rows and members go in, rows and messages come out, an actor
is an id that calls some peer each second under its life's token. The kinds of events are below, for judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lattica.errors import ConfigError, PermissionDeniedError
from lattica.ids import ActorId
from lattica.mesh.community import MemberChanged, Rows
from lattica.mesh.identity import PeerId
from lattica.mesh.membership import State
from lattica.mesh.table.kinds import ACTOR, NAME
from lattica.mesh.table.rows import Row, read_row
from lattica.scheduler import claims, islands, names, restarts, views
from lattica.scheduler.fencing import Fencing, Life
from lattica.scheduler.rendezvous import Standing
from lattica.testing.community import Resident, Town
from lattica.testing.host import Host

CALL_S = 1.0  # between calls of one actor
CLAIM_MESSAGES = claims.Claim | claims.Claimed | claims.Refused | claims.Elsewhere
VIEW_MESSAGES = views.Viewed | views.Ask | views.View


@dataclass(frozen=True, slots=True)
class Call:
    """A call of this actor's, under its token."""

    actor: ActorId
    life: Life


@dataclass(frozen=True, slots=True)
class Accepted:
    """A receiver let it through."""

    actor: ActorId
    life: Life


@dataclass(frozen=True, slots=True)
class Constructed:
    """A constructor ran for whoever claimed this name."""

    name: bytes
    claim: bytes


class Decider(Resident):
    """See the module."""

    def __init__(self, host: Host, town: Town, *, rows: Sequence[Row], view: Sequence[PeerId] | None) -> None:
        """view: the stable view at its first start; empty for one that joins, None for a founder."""
        self._seen: list[Row] = []
        self._members_moved = False
        self._is_ready = False
        self._states: dict[PeerId, State] = {}
        super().__init__(host, town, rows=rows)
        now, me = host.clock.now(), self.key.peer
        state = host.disk.read("view")
        if state is None and view and host.boot == 1:
            state = views.write_state(views.View(2, tuple(sorted(view))), ())
        is_founder = view is None and state is None and host.boot == 1
        self.islands = islands.Islands(me, now, state=state, founder=is_founder)
        self.names = names.Names(me, now, self._holder)
        self.restarts = restarts.Restarts(me, now, host.clock.unix_s() - now, is_island=self.islands.is_island)
        self.fencing = Fencing()
        self.fencing.island(self.islands.is_island)
        host.disk.write("view", self.islands.state())
        self._call_at = now + CALL_S * host.rng.random()
        self._is_ready = True
        self._seen += [row for kind in (NAME, ACTOR) for row in self.community.replica.rows(kind)]
        self._members_moved = True
        self._began = [*self._began, *self._after(now)]

    # -- verbs of its machine

    def claim(self, name: bytes, available: bool, now: float) -> Sequence[object]:
        """Some process here wants to be the one under this name. The claim is the actor's id, too."""
        claim = self.host.rng.randbytes(claims.CLAIM_BYTES)
        return self._do(self.names.claim(claim, name, b"available" if available else b"", now), now)

    def stop(self, name: bytes, now: float) -> Sequence[object]:
        """End the actor of this name, if it runs here, and give the name back."""
        found = self._holder(name)
        if found is None or ActorId(found[0].claim) not in self.restarts.running:
            return ()
        claim = found[0].claim
        return [*self._end(ActorId(claim), now), *self._do(self.names.release(name, claim, now), now)]

    def crash_actor(self, number: int, now: float) -> Sequence[object]:
        """The process of one of the actors here dies."""
        running = sorted(self.restarts.running)
        return self._do(self.restarts.ended(running[number % len(running)], now), now) if running else ()

    def adopt(self, now: float) -> Sequence[object]:
        """An admin takes this side for the whole."""
        return self._do(self.islands.adopt(now), now)

    # -- the world's verbs

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        peer = self.town.peer(sender)
        if isinstance(message, Call):
            if self.fencing.admit(message.actor, message.life) is None:
                return [Accepted(message.actor, message.life)]
            return ()
        if isinstance(message, CLAIM_MESSAGES):
            return self._do(self.names.receive(peer, claims.decode(claims.encode(message)), now), now)
        if isinstance(message, VIEW_MESSAGES):
            return self._do(self.islands.receive(peer, views.decode(views.encode(message)), now), now)
        return super().receive(sender, message, now)

    def tick(self, now: float) -> Sequence[object]:
        out = [*super().tick(now)]
        self._members_moved = True  # silence has no event of its own
        out += self._after(now)
        for core in (self.islands, self.names, self.restarts):
            due = core.next_deadline()
            if due is not None and due <= now:
                out += self._do(core.tick(now), now)
        if self._call_at <= now:
            self._call_at = now + CALL_S
            others = [peer for peer in self.town.members if peer != self.key.peer]
            for actor, record in sorted(self.restarts.running.items()):
                out.append(self._packet(self.host.rng.choice(others), Call(actor, record.life), 64))
        return out

    def next_deadline(self) -> float | None:
        due = [super().next_deadline(), self._call_at if self.restarts.running else None]
        due += [core.next_deadline() for core in (self.islands, self.names, self.restarts)]
        return min((at for at in due if at is not None), default=None)

    def validate(self) -> None:
        super().validate()
        for core in (self.islands, self.names, self.restarts, self.fencing):
            core.validate()

    # -- what the community says

    def _carry_out(self, effects: Sequence[Any], now: float) -> list[object]:
        out = super()._carry_out(effects, now)
        self._members_moved = self._members_moved or any(isinstance(effect, MemberChanged) for effect in effects)
        return out + self._after(now) if self._is_ready else out

    def _link(self, peer: PeerId, now: float) -> list[object]:
        out = [] if peer in self.linked or not self._is_ready else self._do(self.islands.connected(peer, now), now)
        return super()._link(peer, now) + out

    def _noticed(self, row: Row) -> list[object]:
        if row.kind in (NAME.number, ACTOR.number):
            self._seen.append(row)
        return []

    def _after(self, now: float) -> list[object]:
        """Tell our cores what the community has learned."""
        out: list[object] = []
        while self._seen:
            row = self._seen.pop(0)
            if row.kind == NAME.number:
                holder = claims.read_holder(row.body)
                out += self._do(self.names.name_changed(row.key, holder, row.content.gone, now), now)
            else:
                actor = ActorId(row.key)
                record = None if row.content.gone else restarts.read_record(row.body)
                if record is not None:
                    self.fencing.met(actor, record.life)
                out += self._do(self.restarts.record_changed(actor, record, now), now)
        if self._members_moved:
            self._members_moved = False
            out += self._members(now)
        return out

    def _members(self, now: float) -> list[object]:
        states = self.community.states()
        if states == self._states:
            return []
        self._states = states
        answering = {peer for peer, state in states.items() if state is State.ALIVE} | {self.key.peer}
        left = {peer for peer, state in states.items() if state is State.LEFT}
        living = [peer for peer, state in states.items() if state in (State.ALIVE, State.SUSPECT)]
        standings = [Standing(peer, self.town.members[peer].roles) for peer in living]
        out = self._do(self.islands.members_changed(answering, left, (), now), now)
        out += self._do(self.restarts.members_changed(standings, now), now)
        return out + self._do(self.names.members_changed(standings, now), now)

    # -- what our cores want

    def _do(self, effects: Iterable[Any], now: float) -> list[object]:
        out: list[object] = []
        for effect in effects:
            match effect:
                case claims.Send(to, message) | islands.Send(to, message):
                    out.append(self._packet(to, message, 64))
                case islands.Spread(message):
                    out += [self._packet(peer, message, 64) for peer in self.linked]
                case islands.StableViewChanged():
                    self.host.disk.write("view", self.islands.state())
                    out.append(effect)
                case islands.IslandBegan() | islands.IslandEnded():
                    self.fencing.island(self.islands.is_island)
                    out += [effect, *self._do(self.restarts.island(self.islands.is_island, now), now)]
                case claims.Write(name, holder):
                    wrote = self._write(NAME, name, claims.write_holder(holder), now, heir=holder.claimer)
                    found = self._holder(name)
                    row, refusal = (found[1], "") if wrote is not None and found is not None else (b"", "not ours")
                    out += [*(wrote or ()), *self._do(self.names.written(name, row, refusal, now), now)]
                case claims.Merge(home, row):
                    out += self._carry_out(self.community.receive(home, Rows((read_row(row),), True), now), now)
                case claims.Release(name, holder):
                    out += self._write(NAME, name, claims.write_holder(holder), now, gone=True) or ()
                case claims.NameClaimed(claim, name):
                    out += [effect, Constructed(name, claim)]
                    found = self._holder(name)
                    available = found is not None and found[0].body == b"available"
                    begun = self.restarts.begin(
                        ActorId(claim), name, now, available=available, restarts=restarts.ENDLESS
                    )
                    out += self._do(begun, now)
                case claims.NameLost(claim, _, _):
                    out += [effect, *self._end(ActorId(claim), now)]
                case restarts.Write(actor, record):
                    out += self._write(ACTOR, actor, restarts.write_record(record), now) or ()
                case restarts.Restart(actor, record):
                    wrote = self._write(ACTOR, actor, restarts.write_record(record), now)
                    if wrote is None:
                        out += self._do(self.restarts.failed(actor, now), now)
                        continue
                    body = b"available" if record.available else b""
                    out += [effect, *wrote, *self._do(self.names.hold(record.spec, actor, body, now), now)]
                case _:
                    out.append(effect)
        return out

    def _write(self, *args: Any, **how: Any) -> list[object] | None:
        """Of `Resident.write`; None if the table does not take it."""
        try:
            return [*self.write(*args, **how)]
        except (PermissionDeniedError, ConfigError):
            return None

    def _end(self, actor: ActorId, now: float) -> list[object]:
        """The actor is over: nobody is to restart it."""
        self.restarts.finished(actor)
        return self._write(ACTOR, actor, b"", now, gone=True) or []

    def _holder(self, name: bytes) -> tuple[claims.Holder, bytes] | None:
        row = self.community.replica.get(NAME, name)
        return None if row is None else (claims.read_holder(row.body), row.data)
