"""What this peer knows of all others: the table, who lives, what is free, kept the same everywhere.

    A -> B  Probe(nonce, root, ...)    B -> A  its answer          pings, and the tables' fingerprints with them
    A -> B  Rows(...)                  what is new, to all with whom there is a session
    A -> B  Fingerprints, Items ...    where the tables differ (`table/reconcile`)
    A -> C  Ask · C -> A Heard         (`membership`)

It composes the replica, the membership and the soft state, which know nothing of each other: rows become members and
accusations, a death becomes a row. Every message may be lost; what a flood misses is found by the next probe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

import msgspec

from lattica.mesh import membership as m
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, short_peer
from lattica.mesh.letters import (
    SUMMON_HOPS,
    Accused,
    BootRaised,
    Effect,
    Message,
    News,
    NodeInfo,
    Probe,
    RowChanged,
    RowGone,
    RowRefused,
    Rows,
    Send,
    Summon,
)
from lattica.mesh.membership import Keep, MemberChanged, Membership, Release, State, Try
from lattica.mesh.papers import DAMAGED
from lattica.mesh.soft_state import SoftState
from lattica.mesh.table.kinds import ACCUSATION, CERTIFICATE, CLEARANCE, EVIDENCE, NODE, Kind
from lattica.mesh.table.reconcile import WANT_MAX, Reconciler, Want
from lattica.mesh.table.replica import Merged, Replica
from lattica.mesh.table.rows import Row, place_of

FLOOD_S = 0.05  # rows that come together within it leave together
ROWS_BYTES = 48 << 10  # of one message
COMPARE_S = 0.5  # between comparisons that this peer begins: one takes a few round trips
FANOUT = 12
"""Sessions that a new row is sent to at once: as many as a peer keeps in a large mesh. Others find it by comparing."""
NEWS_S = 0.5  # between messages of soft state, while there is any that is new
NEWS_TO = 3  # sessions that they go to: 80 of 100 sayings a second are new to others in a busy mesh of 200
SUMMON_TO = 2  # sessions that one is passed on to, where it is not known who has one with the summoned
SUMMON_AGAIN_S = 2.0  # the same one is passed on only once in it
SUMMONS_MAX = 1024  # remembered
MISSING_S = 0.5  # between questions for certificates: what does not help must not be asked for ever
LONG_BYTES = 1 << 10
"""A longer row, like a certificate, is flooded to FANOUT_LONG sessions only; who needs it asks (`Want`)."""
FANOUT_LONG = 3
FLOODED_MAX = 32  # rows of one comparison that are flooded; more are found by others' comparisons, begun at once
RENEW_SHARE = 3  # a node row is renewed at a third of its life


_info = msgspec.msgpack.Decoder(NodeInfo)
_accused = msgspec.msgpack.Decoder(Accused)
_encode = msgspec.msgpack.Encoder().encode


class Community:
    """See the module. `now + wall_offset` is this machine's unix time, corrected."""

    def __init__(self, replica: Replica, chain: Sequence[bytes], info: NodeInfo, rng: Random, now: float, wall: float):
        """chain: our membership. info: what our node row says. wall: unix time at `now` = 0."""
        self.replica, self.me = replica, replica.me
        self.membership = Membership(self.me, rng, now)
        self.soft = SoftState(self.me, replica.boot)
        self.wall_offset = wall
        self.info = info
        self._chain, self._rng = list(chain), rng
        self._reconciler = Reconciler(replica.ranges, replica.at)
        self._linked: dict[PeerId, None] = {}  # with whom there is a session
        self._compare_at = now  # when the next comparison may begin
        self._differ: dict[PeerId, None] = {}  # whose table was another one when none might
        self._differ_at = now  # when the next of them is asked whether it still is
        self._news: dict[int, PeerId | None] = {}  # places of rows to flood -> from whom
        self._flood_at: float | None = None
        self._compare_all = False  # the flood is too long: let all compare
        self._written: dict[int, tuple[Kind, bytes, bytes, bytes]] = {}  # rows of this boot that must stay, with heirs
        self._missing_at = self._news_at = now
        self._summons: dict[tuple[PeerId, PeerId], float] = {}
        self._renew_at = now + NODE.ttl_s / RENEW_SHARE * rng.uniform(0.8, 1.0)

    def __repr__(self) -> str:
        return f"<Community of {short_peer(self.me)}: {self.membership!r}, {self.replica!r}>"

    def unix(self, now: float) -> float:
        """The wall clock, as far as it is known."""
        return now + self.wall_offset

    # -- what is known

    def node(self, peer: PeerId) -> NodeInfo | None:
        """What a member's row says of it; None if it is no member, or hidden."""
        row = self.replica.get(NODE, bytes(peer))
        return _node_info(row) if row is not None else None

    def states(self) -> dict[PeerId, State]:
        """All members."""
        found = ((peer, self.membership.state(peer)) for peer in self.membership.members())
        return {peer: state for peer, state in found if state is not None}

    # -- wishes of this machine

    def load(self, rows: Iterable[Row], now: float) -> list[Effect]:
        """Begin with the table as it was on our disk."""
        effects: list[Effect] = []
        self.replica.load(rows, self.unix(now))
        highest = max((row.content.boot for row in self.replica.all() if row.writer == self.me), default=0)
        if highest >= self.replica.boot:
            effects.append(BootRaised(self.replica.raise_boot(highest)))
        for row in sorted(self.replica.all(), key=lambda row: row.kind != NODE.number):
            effects += self._apply(row, None, now)
        return effects

    def announce(self, now: float) -> list[Effect]:
        """Say that this node is here, and who it is."""
        effects = self.write(CERTIFICATE, bytes(self.me), _encode(self._chain), now)
        return effects + self._write_node(now)

    def write(self, kind: Kind, key: bytes, body: bytes, now: float, **how: object) -> list[Effect]:
        """Write a row and tell everybody. how: of `Replica.write`, whose errors are raised."""
        merged = self.replica.write(kind, key, body, self.unix(now), **how)  # type: ignore[arg-type]
        if how.get("gone"):
            self._written.pop(place_of(kind.number, key), None)
        elif kind is not ACCUSATION and "ttl_s" not in how:  # that one is meant to end
            heir = how.get("heir", b"")
            assert isinstance(heir, bytes)
            self._written[place_of(kind.number, key)] = kind, key, body, heir
        return self._take(merged, None, now)

    def add_statement(self, statement: bytes, now: float) -> list[Effect]:
        """Tell everybody what an admin has said."""
        return self._take(self.replica.add_statement(statement), None, now)

    def renew_certificate(self, chain: Sequence[bytes], now: float) -> list[Effect]:
        """Our membership is a new one."""
        self._chain = list(chain)
        return self.write(CERTIFICATE, bytes(self.me), _encode(self._chain), now)

    def describe(self, info: NodeInfo, now: float) -> list[Effect]:
        """Our node row says this from now on."""
        self.info = info
        return self._write_node(now)

    def leave(self, now: float) -> list[Effect]:
        """Say that this node goes: nobody waits for it. Flooded at once."""
        effects = self.describe(msgspec.structs.replace(self.info, left=True), now)
        return effects + self._flood(now)

    def summon(self, peer: PeerId, now: float) -> list[Effect]:
        """Ask a member that cannot be dialed from here to dial us."""
        return self._pass_on(Summon(self.me, peer, SUMMON_HOPS), None, now)

    def trust_changed(self, now: float) -> list[Effect]:
        """Somebody was revoked: look at all members again."""
        peers = {*self.membership.members(), *(row.writer for row in self.replica.rows(NODE))}
        return [effect for peer in sorted(peers) for effect in self._weigh(peer, now)]

    # -- what the sessions say

    def connected(self, peer: PeerId, now: float) -> list[Effect]:
        """There is a session with this peer."""
        self._linked[peer] = None
        effects = self._from_membership(self.membership.heard(peer, now), now)
        return [*effects, self._probe(peer, 0, False, now)]

    def disconnected(self, peer: PeerId) -> None:
        """There is none any more."""
        self._linked.pop(peer, None)
        self._differ.pop(peer, None)

    def refused(self, peer: PeerId, now: float) -> list[Effect]:
        """Its machine answered that nobody listens."""
        return self._from_membership(self.membership.refused(peer, now), now)

    def receive(self, sender: PeerId, message: Message, now: float) -> list[Effect]:
        """A message, from whom the transport authenticated."""
        match message:
            case Probe(nonce, answer, root, sayings):
                self.soft.hear(sayings, now)
                told = m.Pong(nonce) if answer else m.Ping(nonce)
                effects = self._from_membership(self.membership.receive(sender, told, now), now)
                if answer and root != self.replica.root():
                    effects += self._compare(sender, now)
                return effects
            case News(sayings):
                self.soft.hear(sayings, now)
                return []
            case Summon(caller, to, _):
                if to == self.me:
                    return [Try(caller)] if self.membership.state(caller) is State.ALIVE else []
                return self._pass_on(message, sender, now)
            case m.Ask() | m.Heard():
                return self._from_membership(self.membership.receive(sender, message, now), now)
            case Rows(rows, flood):
                effects = self._from_membership(self.membership.heard(sender, now), now)
                merged = self.replica.merge(rows, self.unix(now))
                effects += [RowRefused(sender, row, why) for row, why in merged.refused]
                if merged.unknown and self._missing_at <= now:
                    self._missing_at = now + MISSING_S
                    effects.append(Send(sender, self._missing(merged, rows)))
                return effects + self._take(merged, sender, now, flood=flood)
            case _:
                effects = self._from_membership(self.membership.heard(sender, now), now)
                replies, places = self._reconciler.answer(message)
                effects += self._send_rows(sender, places)
                return effects + [Send(sender, reply) for reply in replies]

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        effects: list[Effect] = []
        if self._flood_at is not None and self._flood_at <= now:
            effects += self._flood(now)
        if self._differ and self._differ_at <= now:
            peer = next(iter(self._differ))
            del self._differ[peer]
            self._differ_at = now + COMPARE_S
            effects.append(self._probe(peer, 0, False, now))  # the answer tells whether it still differs
        if self._news_at <= now and self.soft.has_news and self._linked:
            effects += self._tell_news(now)
        due = self.membership.next_deadline()
        if due is not None and due <= now:
            effects += self._from_membership(self.membership.tick(now), now)
        expiry = self.replica.next_expiry()
        if expiry is not None and expiry <= self.unix(now):
            for row in self.replica.expire(self.unix(now)):
                effects += self._expired(row, now)
        if self._renew_at <= now:
            self._renew_at = now + NODE.ttl_s / RENEW_SHARE
            effects += self._renew(now)
        return effects

    def next_deadline(self) -> float:
        """When to call `tick`."""
        due = self._renew_at
        if self.soft.has_news and self._linked:
            due = min(due, self._news_at)
        if self._differ:
            due = min(due, self._differ_at)
        for at in (self._flood_at, self.membership.next_deadline()):
            if at is not None and at < due:
                due = at
        expiry = self.replica.next_expiry()
        return due if expiry is None else min(due, expiry - self.wall_offset + 1e-3)

    def validate(self) -> None:
        """Assert what always holds."""
        self.membership.validate()

    # -- inside

    def _write_node(self, now: float) -> list[Effect]:
        return self.write(NODE, bytes(self.me), _encode(self.info), now)

    def _take(self, merged: Merged, sender: PeerId | None, now: float, *, flood: bool = True) -> list[Effect]:
        """Rows were merged: tell the membership, the readers and the others."""
        effects: list[Effect] = []
        if flood or len(merged.fresh) <= FLOODED_MAX:
            for row in merged.fresh:
                self._news[row.place] = sender
        elif merged.fresh:
            self._compare_all = True
        if merged.fresh and self._flood_at is None:
            self._flood_at = now + FLOOD_S
        effects += [RowGone(row) for row in merged.dropped]
        for row, before in merged.changed:
            effects += self._apply(row, before, now)
        if merged.elsewhere >= self.replica.boot:  # an earlier copy of us, or a twin: what we say must win
            effects.append(BootRaised(self.replica.raise_boot(merged.elsewhere)))
            for place in list(self._written):
                effects += self._write_again(place, now)
        return effects

    def _apply(self, row: Row, before: Row | None, now: float) -> list[Effect]:
        effects: list[Effect] = [RowChanged(row, before)]
        if row.kind == NODE.number:
            if self.replica.is_visible(row) or row.writer == self.me:  # in quarantine we go on hearing of others
                info = _node_info(row)
                told = self.membership.node(row.writer, row.dot, info.left, now)
            else:
                told = self.membership.forget(row.writer, now)
            effects += self._from_membership(told, now)
            for accuser in list(self._accusers(row.writer)) if before is None else ():
                effects += self._apply(accuser, accuser, now)[1:]
        elif row.kind in (EVIDENCE.number, CLEARANCE.number):
            effects += self._weigh(PeerId(row.key[:PEER_ID_BYTES]), now)
        elif row.kind == ACCUSATION.number and self.replica.is_visible(row):
            suspect = PeerId(row.key[:PEER_ID_BYTES])
            dot = _accusation(row)
            if dot is not None:
                effects += self._from_membership(self.membership.accused(suspect, dot, row.writer, now), now)
        return effects

    def _weigh(self, peer: PeerId, now: float) -> list[Effect]:
        """Whether this writer's rows count has changed, perhaps."""
        if peer == self.me:
            return []
        if self.replica.distrusts(peer):
            self.soft.forget(peer)
            told = self.membership.disregard(peer, now) + self.membership.forget(peer, now)
            return self._from_membership(told, now)
        row = self.replica.get(NODE, bytes(peer))
        if row is None or self.membership.state(peer) is not None:
            return []
        return self._apply(row, None, now)[1:]

    def _expired(self, row: Row, now: float) -> list[Effect]:
        if row.place in self._written and row.writer == self.me and (again := self._write_again(row.place, now)):
            return again  # this machine was asleep when it should have renewed it
        gone: list[Effect] = [RowGone(row)]
        if row.kind == NODE.number:
            gone += self._from_membership(self.membership.forget(row.writer, now), now)
        return gone

    def _renew(self, now: float) -> list[Effect]:
        """Write again what would expire otherwise."""
        effects: list[Effect] = []
        for place, (kind, *_) in list(self._written.items()):
            row = self.replica.at(place)
            if row is None or row.content.expires - self.unix(now) < kind.ttl_s * (1 - 0.9 / RENEW_SHARE):
                effects += self._write_again(place, now)
        return effects

    def _write_again(self, place: int, now: float) -> list[Effect]:
        """A row of ours. One of a kind with several writers only while it is ours: others may have followed us, or have
        taken the key since it expired."""
        kind, key, body, heir = self._written[place]
        row = self.replica.at(place)
        if kind.is_multi and (row is None or row.writer != self.me or row.content.gone):
            del self._written[place]
            return []
        return self.write(kind, key, body, now, **({"heir": heir} if kind.is_multi else {}))

    def _accusers(self, suspect: PeerId) -> Iterable[Row]:
        """Accusations that came before the row of the accused."""
        return [row for row in self.replica.rows(ACCUSATION) if row.key.startswith(suspect)]

    def _from_membership(self, told: Sequence[m.Effect], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for effect in told:
            match effect:
                case m.Tell(peer, m.Ping(nonce)):
                    effects.append(self._probe(peer, nonce, False, now))
                case m.Tell(peer, m.Pong(nonce)):
                    effects.append(self._probe(peer, nonce, True, now))
                case m.Tell(peer, message):
                    assert isinstance(message, m.Ask | m.Heard), f"{message!r} has its own form"
                    effects.append(Send(peer, message))
                case m.Accuse(peer, dot):
                    key = bytes(peer) + bytes(self.me)
                    effects += self.write(ACCUSATION, key, _encode(Accused(*dot)), now)
                case m.Refute():
                    effects += self._write_node(now)
                case _:
                    effects.append(effect)
        return effects

    def _probe(self, peer: PeerId, nonce: int, answer: bool, now: float) -> Send:
        return Send(peer, Probe(nonce, answer, self.replica.root(), self.soft.pick(now)))

    def _compare(self, peer: PeerId, now: float) -> list[Effect]:
        """One at a time: to compare with ten at once would bring what is missing ten times."""
        if self._compare_at > now:
            if peer in self._linked:
                self._differ[peer] = None
                self._differ_at = max(self._differ_at, self._compare_at)
            return []
        self._compare_at = now + COMPARE_S
        self._differ.pop(peer, None)
        return [Send(peer, self._reconciler.begin())]

    def _missing(self, merged: Merged, rows: Sequence[Row]) -> Want:
        """The certificates that we lack, and the rows that wait for them."""
        places = {place_of(CERTIFICATE.number, writer) for writer in sorted(merged.unknown)[: WANT_MAX // 2]}
        waiting = [row.place for row in rows if row.writer in merged.unknown]
        places.update(waiting[: WANT_MAX - len(places)])
        return Want(b"".join(place.to_bytes(8, "big") for place in sorted(places)))

    def _flood(self, now: float) -> list[Effect]:
        """Send what is new to all with whom there is a session, but for who sent it."""
        news, self._news, self._flood_at = self._news, {}, None
        effects: list[Effect] = []
        found = [(row, sender) for place, sender in news.items() if (row := self.replica.at(place)) is not None]
        if self._compare_all:
            self._compare_all = False
            effects += [self._probe(peer, 0, False, now) for peer in self._fan()]
        if not found:
            return effects
        fan = self._fan()
        told_long = set(fan if len(fan) <= FANOUT_LONG else self._rng.sample(fan, FANOUT_LONG))
        short = [(row, sender) for row, sender in found if len(row.data) <= LONG_BYTES]
        for peer in fan:
            rows = [row for row, sender in (found if peer in told_long else short) if sender != peer]
            effects += [Send(peer, message) for message in _in_messages(rows, flood=True)]
        return effects

    def _pass_on(self, summon: Summon, sender: PeerId | None, now: float) -> list[Effect]:
        """Towards who has a session with the summoned: those who watch it do."""
        ends = summon.caller, summon.to
        if summon.hops <= 0 or self._summons.get(ends, now) > now:
            return []
        if len(self._summons) >= SUMMONS_MAX:
            self._summons = {pair: until for pair, until in self._summons.items() if until > now}
        if len(self._summons) < SUMMONS_MAX:
            self._summons[ends] = now + SUMMON_AGAIN_S
        if summon.to in self._linked:
            chosen = [summon.to]
        else:
            others = [peer for peer in self._linked if peer not in (sender, summon.caller)]
            watchers = set(self.membership.neighbours(summon.to))
            near = [peer for peer in others if peer in watchers]
            chosen = (near or self._rng.sample(others, min(len(others), SUMMON_TO)))[:SUMMON_TO]
        onward = Summon(summon.caller, summon.to, summon.hops - 1)
        return [Send(peer, onward) for peer in chosen]

    def _tell_news(self, now: float) -> list[Effect]:
        self._news_at = now + NEWS_S
        effects: list[Effect] = []
        for peer in self._rng.sample(list(self._linked), min(NEWS_TO, len(self._linked))):
            if sayings := self.soft.pick(now):
                effects.append(Send(peer, News(sayings)))
        return effects

    def _fan(self) -> list[PeerId]:
        """Whom to send what is new: those who watch us, and others as they come."""
        linked = self._linked
        if len(linked) <= FANOUT:
            return list(linked)
        chosen = [peer for peer in self.membership.neighbours(self.me) if peer in linked]
        others = [peer for peer in linked if peer not in chosen]
        return chosen + self._rng.sample(others, max(FANOUT - len(chosen), 0))

    def _send_rows(self, peer: PeerId, places: Sequence[int]) -> list[Effect]:
        rows = [row for place in places if (row := self.replica.at(place)) is not None]
        return [Send(peer, message) for message in _in_messages(rows, flood=False)]


def _in_messages(rows: Sequence[Row], *, flood: bool) -> list[Rows]:
    found: list[Rows] = []
    batch: list[Row] = []
    size = 0
    for row in rows:
        if batch and size + len(row.data) > ROWS_BYTES:
            found.append(Rows(tuple(batch), flood))
            batch, size = [], 0
        batch.append(row)
        size += len(row.data)
    if batch:
        found.append(Rows(tuple(batch), flood))
    return found


def _node_info(row: Row) -> NodeInfo:
    """What it says; nothing, if it cannot be read."""
    try:
        return _info.decode(row.body)
    except DAMAGED:
        return NodeInfo()


def _accusation(row: Row) -> tuple[int, int] | None:
    try:
        accused = _accused.decode(row.body)
        return accused.boot, accused.counter
    except DAMAGED:
        return None


__all__ = [
    "BootRaised", "Community", "Effect", "Keep", "MemberChanged", "Message", "News", "NodeInfo", "Probe", "Release",
    "RowChanged", "RowGone", "RowRefused", "Rows", "Send", "Summon", "Try",
]  # fmt: skip
