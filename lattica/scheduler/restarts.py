"""Detached actors go on after their node: who restarts them, and which of two lives ends when they meet.

An actor's row (`Record`) says where it runs and in which life. When its host is dead by the membership's verdict, the
first living member in rendezvous order of its id restarts it; the one of rank r waits r times RANK_S longer. An island
restarts nothing, but for actors of `partition="available"`, whose new life is then a minority one.

Two lives may meet: after a partition, or where two restarted at once by different views. The one of greater *standing*
goes on (`Life.standing`, then the host's id): the higher epoch, then any other before a minority one, then the later.
Both hosts see the same two records and need no word: the one that stands higher writes its record over the other's, the
other ends what it runs (`Fenced`). What the table happens to keep of two rows of one epoch decides nothing.

Rules of this file. `now` is the only time. Verdicts of one cut come some seconds apart, and tables are equal some
seconds after a heal or a start: until then (SETTLE_S) nothing is restarted. A minority life that nobody contradicts
once its side is whole again becomes a usual one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import xxhash

from lattica.errors import RemoteProtocolError
from lattica.ids import ActorId, short
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, short_peer
from lattica.mesh.papers import DAMAGED
from lattica.mesh.roles import Role
from lattica.scheduler.fencing import Life
from lattica.scheduler.rendezvous import Standing, deciders, rank

RANK_S = 2.0  # a restart's row is everywhere within 0.5 s, and a stalled process is noticed by its late timer
SETTLE_S = 5.0
"""Verdicts of one cut come up to 4 s apart, and tables are equal 5 s after a heal. Shorter: the first to be believed
dead is restarted by a side that does not know yet that it is the smaller one."""
BEGIN_S = 10.0  # instead of it for a process that has just begun: it believes eight seconds long that all others live
PROMOTE_S = 10.0  # after its side is whole
AGAIN_S = 10.0  # after the table did not take our row
LATE_S = 1.0  # a tick so late says that this process stood still: others may have acted
ENDLESS = -1  # of `restarts_left`
SPEC_MAX_BYTES = 7 << 10  # an actor's row has 8 KiB
NUMBER_MAX = (1 << 62) - 1
HOST_BITS = 16


class Record(msgspec.Struct, array_like=True, frozen=True):
    """The body of an actor's row. spec: what a restart needs, opaque here."""

    life: Life
    host: PeerId
    available: bool  # partition="available"
    restarts_left: int  # ENDLESS for any number
    spec: bytes

    @property
    def standing(self) -> tuple[tuple[int, bool, int], PeerId]:
        """Of two records of one actor the one that stands higher goes on."""
        return self.life.standing(), self.host


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def write_record(record: Record) -> bytes:
    """The body of an actor's row."""
    return _encode(record)


def read_record(body: bytes) -> Record:
    """Raises RemoteProtocolError."""
    try:
        record = _decode(body)
    except DAMAGED as error:
        raise RemoteProtocolError(f"the row of an actor cannot be read: {error}") from error
    numbers = record.life.epoch, record.life.incarnation
    holds = all(0 <= number <= NUMBER_MAX for number in numbers) and ENDLESS <= record.restarts_left < 1 << 31
    if not holds or len(record.host) != PEER_ID_BYTES or len(record.spec) > SPEC_MAX_BYTES:
        raise RemoteProtocolError("the row of an actor is beyond its limits")
    return record


@dataclass(frozen=True, slots=True)
class Write:
    """Write this as the actor's row, over whatever is there."""

    actor: ActorId
    record: Record


@dataclass(frozen=True, slots=True)
class Restart:
    """Write this as the actor's row, then run the actor; `failed` if the table does not take it."""

    actor: ActorId
    record: Record


@dataclass(frozen=True, slots=True)
class Fenced:
    """End what runs here of this actor. by: whose life goes on instead; None: somebody ended the actor."""

    actor: ActorId
    life: Life
    by: Record | None


Effect = Write | Restart | Fenced


class Restarts:
    """See the module. `now + wall` is this machine's unix time, corrected."""

    def __init__(self, me: PeerId, now: float, wall: float, *, is_island: bool = False) -> None:
        self.me = me
        self._wall = wall
        self._is_island = is_island
        self._living: frozenset[PeerId] = frozenset({me})
        self._deciders: list[PeerId] = []
        self._dead_since: dict[PeerId, float] = {}
        self._records: dict[ActorId, Record] = {}  # by the table
        self._on: dict[PeerId, set[ActorId]] = {}  # host -> actors
        self._running: dict[ActorId, Record] = {}  # here
        self._ended: dict[ActorId, float] = {}  # it ran here, and should
        self._due: dict[ActorId, float] = {}
        self._settled_at = now + BEGIN_S
        self._whole_since = now

    def __repr__(self) -> str:
        return f"<Restarts of {short_peer(self.me)}: {len(self._running)} run here, {len(self._due)} to restart>"

    @property
    def running(self) -> dict[ActorId, Record]:
        """What runs here, or is being started."""
        return dict(self._running)

    def runs(self, actor: ActorId) -> Record | None:
        """Its record, if it runs here or is being started."""
        return self._running.get(actor)

    # -- wishes of this machine

    def begin(self, actor: ActorId, spec: bytes, now: float, *, available: bool, restarts: int) -> list[Effect]:
        """A new detached actor runs here."""
        life = Life(1, self._incarnation(0, now))
        record = self._running[actor] = Record(life, self.me, available, restarts, spec)
        return [Write(actor, record)]

    def ended(self, actor: ActorId, now: float) -> list[Effect]:
        """Its process here is gone, and it should not be."""
        if self._running.pop(actor, None) is not None:
            self._ended[actor] = now
            self._plan(actor, now)
        return []

    def failed(self, actor: ActorId, now: float) -> list[Effect]:
        """The table did not take our row, or the actor could not be started."""
        self._running.pop(actor, None)
        self._plan(actor, now)
        if actor in self._due:
            self._due[actor] = max(self._due[actor], now + AGAIN_S)
        return []

    def finished(self, actor: ActorId) -> None:
        """It has ended as it should; write the tombstone of its row after this."""
        self._running.pop(actor, None)

    # -- what happens

    def record_changed(self, actor: ActorId, record: Record | None, now: float) -> list[Effect]:
        """What our table says of this actor now; None: it has ended, or expired."""
        before = self._records.pop(actor, None)
        if before is not None:
            on = self._on[before.host]
            on.discard(actor)
            if not on:
                del self._on[before.host]
        if record is not None:
            self._records[actor] = record
            self._on.setdefault(record.host, set()).add(actor)
            if record.host not in self._living:
                self._dead_since.setdefault(record.host, now)
        mine = self._running.get(actor)
        effects: list[Effect] = []
        if mine is not None and record is not None and (record.life, record.host) == (mine.life, self.me):
            self._running[actor] = record
        elif mine is not None and record is not None and record.standing < mine.standing:
            effects.append(Write(actor, mine))
        elif mine is not None:
            del self._running[actor]
            effects.append(Fenced(actor, mine.life, record))
        self._plan(actor, now)
        return effects

    def members_changed(self, living: Iterable[Standing], now: float) -> list[Effect]:
        """Who lives by the membership's verdict, this peer among them: neither dead, left nor revoked."""
        standings = list(living)
        before, self._living = self._living, frozenset(member.peer for member in standings)
        self._deciders = deciders(standings, Role.SUBMIT)
        for peer in self._living - before:
            if self._dead_since.pop(peer, None) is not None:  # and with it, what its side has decided meanwhile
                self._settled_at = max(self._settled_at, now + SETTLE_S)
        for peer in before - self._living:
            self._dead_since[peer] = now
        self._plan_all(now)
        return []

    def island(self, is_island: bool, now: float) -> list[Effect]:
        """Whether this peer is on a smaller side has changed."""
        self._is_island, self._whole_since = is_island, now
        self._settled_at = max(self._settled_at, now + SETTLE_S)
        self._plan_all(now)
        return []

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        due = self.next_deadline()
        if due is not None and now - due > LATE_S:
            self._settled_at = max(self._settled_at, now + SETTLE_S)
            self._whole_since = now
            self._plan_all(now)
        effects: list[Effect] = []
        for actor in sorted(actor for actor, at in self._due.items() if at <= now):
            del self._due[actor]
            record = self._running[actor] = self._next(self._records[actor], now)
            effects.append(Restart(actor, record))
        for actor, record in self._promotable():
            if self._whole_since + PROMOTE_S <= now:
                life = Life(record.life.epoch + 1, record.life.incarnation)
                record = self._running[actor] = msgspec.structs.replace(record, life=life)
                effects.append(Write(actor, record))
        return effects

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        due = min(self._due.values(), default=None)
        if not self._promotable():
            return due
        promoted_at = self._whole_since + PROMOTE_S
        return promoted_at if due is None else min(due, promoted_at)

    def validate(self) -> None:
        """Assert what always holds."""
        assert not self._running.keys() & self._due.keys(), "an actor that runs here is to be restarted"
        for actor in self._due:
            record = self._records[actor]
            dead = record.host not in self._living or record.host == self.me
            assert dead, f"actor {short(actor)} is to be restarted, and its host {short_peer(record.host)} lives"
            assert record.available or not self._is_island, f"an island would restart actor {short(actor)}"

    # -- inside

    def _plan_all(self, now: float) -> None:
        for actor in list(self._due):
            self._plan(actor, now)
        for host in [host for host in self._on if host not in self._living or host == self.me]:
            for actor in self._on[host]:
                self._plan(actor, now)

    def _plan(self, actor: ActorId, now: float) -> None:
        """When we restart it, as things are."""
        self._due.pop(actor, None)
        record = self._records.get(actor)
        if record is None or record.host != self.me:
            self._ended.pop(actor, None)
        if record is None or actor in self._running or not record.restarts_left:
            return
        if self._is_island and not record.available:
            return
        if record.host == self.me:  # this node began again, or the actor's process ended
            self._due[actor] = max(self._ended.get(actor, 0.0), self._settled_at)
        elif record.host not in self._living and self.me in self._deciders:
            since = max(self._dead_since.setdefault(record.host, now) + SETTLE_S, self._settled_at)
            self._due[actor] = since + RANK_S * rank(actor, self.me, self._deciders)

    def _next(self, last: Record, now: float) -> Record:
        """The record of the next life, here."""
        epoch = min(last.life.epoch + (not self._is_island), NUMBER_MAX)
        life = Life(epoch, self._incarnation(last.life.incarnation, now), self._is_island)
        left = last.restarts_left if last.restarts_left == ENDLESS else last.restarts_left - 1
        return Record(life, self.me, last.available, left, last.spec)

    def _incarnation(self, last: int, now: float) -> int:
        at = max(int((now + self._wall) * 1000), (last >> HOST_BITS) + 1)
        return min(at << HOST_BITS | xxhash.xxh3_64_intdigest(self.me) & ((1 << HOST_BITS) - 1), NUMBER_MAX)

    def _promotable(self) -> list[tuple[ActorId, Record]]:
        """Minority lives here, once this side is whole again."""
        if self._is_island:
            return []
        return [(actor, record) for actor, record in self._running.items() if record.life.minority]
