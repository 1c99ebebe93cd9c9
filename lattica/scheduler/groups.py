"""One placement group, at the peer whose job owns it: plan, reserve everywhere, then commit everywhere.

    told     create · receive (answers of `reservations`) · doubt · node_gone · remove · tick
    answers  Send · Ready · Stuck

Rules of this file. Nothing is committed before everything is reserved; one refusal aborts what is only reserved, and
the group is planned anew after a pause that grows and is drawn, or two groups that each hold half would meet for ever.
Where it does not fit as far as nodes say, they are asked all the same: who refuses leaves for it what becomes free, and
is believed until all have refused. What is committed stays while lost bundles (a dead node, an expired reservation) are
placed again. A question without an answer is asked ASKS_MAX times, then it counts as refused and is aborted: the node
may have heard it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from random import Random

from lattica.errors import ConfigError
from lattica.mesh.identity import PeerId
from lattica.scheduler.bundles import BUNDLES_MAX, Pattern, Plan, Wishes, plan
from lattica.scheduler.demand import Demand, NodeView
from lattica.scheduler.placement import Infeasible, Waiting
from lattica.scheduler.reservations import (
    KEEP_S,
    Abort,
    Commit,
    Committed,
    Denied,
    Expired,
    Reserve,
    Reserved,
    Send,
    ToOwner,
)
from lattica.scheduler.resources import ResourceSet

ANSWER_S = 1.0  # until a question is asked again: ASKS_MAX of them end well before a reservation does
ASKS_MAX = 3
PAUSE_FIRST_S, PAUSE_LAST_S = 0.1, 5.0  # before it is planned again, doubling; times 0.5 to 1.5, drawn
BUSY_PAUSE_S = 1.0  # instead of the last, where a node has refused: it makes room for that long, and a little more
RENEW_S = KEEP_S / 3


@dataclass(frozen=True, slots=True)
class Ready:
    """Effect: every bundle has a node that keeps it. Again after bundles were placed anew."""

    placed: Mapping[int, PeerId]


@dataclass(frozen=True, slots=True)
class Stuck:
    """Effect: it cannot be placed now; it is tried again. Told when the reason changes."""

    reason: str
    infeasible: bool


Effect = Send | Ready | Stuck


class _State(Enum):
    ASKED = auto()
    RESERVED = auto()
    COMMITTING = auto()
    COMMITTED = auto()


@dataclass(slots=True)
class _Part:
    """The bundles on one node, by one attempt."""

    peer: PeerId
    bundles: tuple[int, ...]
    due: float
    state: _State = _State.ASKED
    asks: int = 1
    token: int = 0
    pressing: bool = False  # it is known not to fit at once


class Group:
    """See the module. view: kept current by the shell."""

    def __init__(
        self,
        id: bytes,
        bundles: Sequence[ResourceSet],
        pattern: Pattern,
        view: Mapping[PeerId, NodeView],
        rng: Random,
        demand: Demand | None = None,
        wishes: Wishes | None = None,
    ) -> None:
        """Raises ConfigError for none or too many bundles, or an empty one."""
        if not 0 < len(bundles) <= BUNDLES_MAX or not all(bundles):
            raise ConfigError(f"a placement group has 1 to {BUNDLES_MAX} bundles, and each asks for something")
        self.id, self._bundles, self._pattern = id, tuple(bundles), pattern
        self._view, self._rng, self._demand, self._wishes = view, rng, demand, wishes
        self._parts: dict[int, _Part] = {}
        self._attempts = count(1)
        self._again_at: float | None = None
        self._pause_s = PAUSE_FIRST_S
        self._reason = ""
        self._refused: set[PeerId] = set()  # when asked to make room
        self.ready = self.removed = False

    def __repr__(self) -> str:
        kept = len(self.placed)
        state = "removed" if self.removed else "ready" if self.ready else self._reason or "being placed"
        return f"<Group {self.id.hex()[:4]}: {kept} of {len(self._bundles)} bundles, {state}>"

    @property
    def placed(self) -> Plan:
        """Bundles that are committed, and where."""
        parts = [part for part in self._parts.values() if part.state is _State.COMMITTED]
        return {number: part.peer for part in parts for number in part.bundles}

    def create(self, now: float) -> list[Effect]:
        """Begin to place its bundles."""
        return self._plan(now)

    def receive(self, sender: PeerId, message: ToOwner, now: float) -> list[Effect]:
        part = self._parts.get(message.attempt)
        if part is None or part.peer != sender:  # of an attempt that was given up
            return [Send(sender, Abort(self.id, message.attempt))] if isinstance(message, Reserved | Committed) else []
        match message:
            case Reserved(token=token):
                if part.state is not _State.ASKED:
                    return []
                part.state, part.token, part.due = _State.RESERVED, token, float("inf")
                return self._commit_all(now)
            case Committed():
                if part.state not in (_State.COMMITTING, _State.COMMITTED):
                    return []
                part.state, part.asks, part.due = _State.COMMITTED, 0, now + RENEW_S
                return self._maybe_ready()
            case Denied(reason=reason):
                if part.state is not _State.ASKED:
                    return []
                del self._parts[message.attempt]
                if part.pressing:
                    self._refused.add(sender)
                    self._pause_s = min(self._pause_s, BUSY_PAUSE_S)
                return self._start_over(reason, now)
            case Expired():
                del self._parts[message.attempt]
                return self._start_over("a reservation had expired", now)

    def node_gone(self, peer: PeerId, now: float) -> list[Effect]:
        """Dead, revoked or left: its bundles are placed again."""
        lost = [number for number, part in self._parts.items() if part.peer == peer]
        for number in lost:
            del self._parts[number]
        return self._start_over("a node has gone", now) if lost else []

    def doubt(self, peer: PeerId, now: float) -> None:
        """The connection with it was lost: at the next tick it is asked whether it keeps what it had."""
        for part in self._parts.values():
            if part.peer == peer and part.state is _State.COMMITTED:
                part.due = min(part.due, now)

    def remove(self, now: float) -> list[Effect]:
        """Give all of them back; it is over."""
        aborts = [self._abort(number) for number in list(self._parts)]
        self.removed, self.ready, self._again_at = True, False, None
        return [*aborts]

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for number, part in list(self._parts.items()):
            if part.due > now or number not in self._parts:
                continue
            if part.asks >= ASKS_MAX:
                effects.append(self._abort(number))
                effects += self._start_over("a node does not answer", now)
            else:
                part.asks += 1
                part.due = now + ANSWER_S
                effects.append(Send(part.peer, self._question(number, part)))
        if self._again_at is not None and self._again_at <= now:
            effects += self._plan(now)
        return effects

    def next_deadline(self) -> float | None:
        if self.removed:
            return None
        dues = [part.due for part in self._parts.values() if part.due != float("inf")]
        return min(dues + ([self._again_at] if self._again_at is not None else []), default=None)

    def validate(self) -> None:
        numbers = [number for part in self._parts.values() for number in part.bundles]
        assert len(numbers) == len(set(numbers)), "a bundle is at two nodes"
        assert not self.ready or len(self.placed) == len(self._bundles), "ready, but a bundle has no node"
        if self._pattern is Pattern.STRICT_SPREAD:
            peers = [part.peer for part in self._parts.values()]
            assert len(peers) == len(set(peers)) == len(numbers), "STRICT_SPREAD with two bundles on a node"
        if self._pattern is Pattern.STRICT_PACK:
            assert len({part.peer for part in self._parts.values()}) <= 1, "STRICT_PACK on two nodes"
        assert self.removed or self._parts or self._again_at is not None, "nothing is going on, and nothing will be"

    # -- inside

    def _plan(self, now: float) -> list[Effect]:
        self._again_at = None
        kept = {number: part.peer for part in self._parts.values() for number in part.bundles}
        found = plan(self._bundles, self._pattern, self._view, now, kept, self._demand, wishes=self._wishes)
        pressing = isinstance(found, Waiting)
        if pressing:
            hoped = self._plan_among(self._view.keys() - self._refused, kept, now)
            if not isinstance(hoped, dict) and self._refused:
                self._refused.clear()
                hoped = self._plan_among(self._view.keys(), kept, now)
            if isinstance(hoped, dict):
                found = hoped
        if isinstance(found, Waiting | Infeasible):
            self._again_at = now + self._pause()
            if found.reason == self._reason:
                return []
            self._reason = found.reason
            return [Stuck(found.reason, isinstance(found, Infeasible))]
        effects: list[Effect] = []
        for peer in dict.fromkeys(found.values()):
            numbers = tuple(sorted(number for number, at in found.items() if at == peer))
            attempt = next(self._attempts)
            part = self._parts[attempt] = _Part(peer, numbers, now + ANSWER_S, pressing=pressing)
            effects.append(Send(peer, self._question(attempt, part)))
        return effects

    def _plan_among(self, pressed: Collection[PeerId], kept: Plan, now: float) -> Plan | Waiting | Infeasible:
        """With nodes that shall make room."""
        return plan(self._bundles, self._pattern, self._view, now, kept, self._demand, pressed, self._wishes)

    def _question(self, attempt: int, part: _Part) -> Reserve | Commit:
        if part.state is _State.ASKED:
            return Reserve(self.id, attempt, tuple((number, self._bundles[number]) for number in part.bundles))
        return Commit(self.id, attempt, part.token)  # of a committed one: renews it

    def _commit_all(self, now: float) -> list[Effect]:
        if sum(len(part.bundles) for part in self._parts.values()) < len(self._bundles):
            return []
        if any(part.state is _State.ASKED for part in self._parts.values()):
            return []
        effects: list[Effect] = []
        for number, part in self._parts.items():
            if part.state is _State.RESERVED:
                part.state, part.asks, part.due = _State.COMMITTING, 1, now + ANSWER_S
                effects.append(Send(part.peer, self._question(number, part)))
        return effects

    def _maybe_ready(self) -> list[Effect]:
        if self.ready or len(self.placed) < len(self._bundles):
            return []
        self.ready, self._reason, self._pause_s = True, "", PAUSE_FIRST_S
        self._refused.clear()
        return [Ready(self.placed)]

    def _start_over(self, reason: str, now: float) -> list[Effect]:
        """Some bundles have no node: let go what is only reserved, and plan again a little later."""
        self.ready = False
        loose = [number for number, part in self._parts.items() if part.state in (_State.ASKED, _State.RESERVED)]
        aborts: list[Effect] = [self._abort(number) for number in loose]
        if self._again_at is None:
            self._again_at = now + self._pause()
        if reason == self._reason:
            return aborts
        self._reason = reason
        return [*aborts, Stuck(reason, False)]

    def _abort(self, number: int) -> Send:
        return Send(self._parts.pop(number).peer, Abort(self.id, number))

    def _pause(self) -> float:
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, PAUSE_LAST_S)
        return pause_s * self._rng.uniform(0.5, 1.5)
