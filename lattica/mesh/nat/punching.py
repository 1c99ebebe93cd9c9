"""Two peers whose session is relayed become direct: who does what when.

    L -> H  Introduce(attempt, introduction)         H -> L  Introduced(attempt, introduction)
    L -> H  Prepare(attempt, round, method)          H -> L  Ready(attempt, round, readiness, took), or Later
    L -> H  Go(attempt, round, method, readiness)    both shoot; H when it hears this, L half a round trip later
    H -> L  Again(attempt)                           H knows more of itself now, or wants another attempt

L has the lower PeerId, and leads. Prepare and Ready only for rounds with fresh sockets, and for the first of a pair
that was direct: one side has moved, so both ask witnesses how their sockets are seen now. A round is a list of shots
(`salvos`); what the shots open is found by the peer's path table, for they are probes with its keys: the shell tells
`proven` with each direct route that the table has proven, and that ends the attempt. Fresh sockets on which the table
has no path are closed; the others are the shell's (`PathForgotten`).

    punch()              become direct: the shell calls it when a session is relayed
    again()              something has changed: the same, on either side
    said(message)        of the other side, over the session
    proven(route)        by the path table
    opened · received    fresh sockets, and how witnesses see them
    connected · accepted · refused     TCP connections, as asked with `ConnectTcp`

Who punches in vain pauses, longer each time (PAUSES_S). `situation` is set by the shell whenever it knows better.
Each round leaves an `Attempted`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import assert_never

import msgspec

from lattica.mesh.nat import datagrams, salvos
from lattica.mesh.nat.attempts import (
    Again,
    Attempted,
    BecameDirect,
    Effect,
    Go,
    Introduce,
    Introduced,
    Introduction,
    Later,
    Message,
    Prepare,
    Readiness,
    Ready,
    Situation,
    StaysRelayed,
    Tell,
)
from lattica.mesh.nat.candidates import CANDIDATES_MAX
from lattica.mesh.nat.datagrams import Keys, Kind, Probe
from lattica.mesh.nat.measuring import Witness
from lattica.mesh.nat.methods import ROUNDS, Method, choose, is_symmetric, may_open_tcp
from lattica.mesh.nat.rounds import OBSERVED_S, Budget, Round, is_renewed, needs_preparation
from lattica.mesh.nat.routes import CloseSocket, ConnectTcp, Direct, Endpoint, OpenSocket, Route, SendOver, is_sendable

ANSWER_S = 4.0  # for the other side's next message
TCP_S = 3.0  # a round of TCP: the second SYN comes after one second
TCP_AGAIN_S = 0.2  # after a refusal
TCP_TARGETS_MAX = 3
TCP_TRIES_MAX = 12
PAUSES_S = (30.0, 120.0, 600.0, 3600.0)
AGAINS_S = 60.0  # by the other side's wish there is another attempt so often, the first AGAINS_FREE at once
AGAINS_FREE = 4
FOLLOWED_MAX = 40
"""Rounds in a minute on the side that follows: one after the other takes as long. A leader could begin a new one with
each word, and have us send to whom it likes."""
ANEW_S = 0.2
SETTLED_S = 0.6  # after its beginning a round of simultaneous sending has succeeded, or it seldom will
TEXT_MAX = 80


class Puncher:
    """Of one peer. See the module.

    lower: our PeerId is the lower, so we lead. sockets: numbers nobody else uses. in_use: whether the path table has a
    path on this socket; the other side may have chosen one that we have not.
    """

    def __init__(
        self,
        keys: Keys,
        rng: Random,
        sockets: Iterator[int],
        budget: Budget,
        in_use: Callable[[int], bool],
        *,
        lower: bool,
    ) -> None:
        self.lower, self._in_use = lower, in_use
        self.situation: Situation | None = None
        self._keys, self._rng, self._sockets, self._budget = keys, rng, sockets, budget
        self._attempt = 0
        self._theirs: Introduction | None = None
        self._plan: list[tuple[Method, int]] = []  # rounds to come
        self._round: Round | None = None
        self._other: Readiness | None = None  # what the other side told of its fresh socket, before ours was ready
        self._since = 0.0
        self._rtt_s = 0.2
        self._asked_at = 0.0
        self._waits_until = float("inf")
        self._again_at = float("inf")
        self._failures = 0
        self._wanted: tuple[Method, ...] | None = None
        self._agains: list[float] = []  # when the other side wished for another attempt
        self._anew = False  # ... while one was under way
        self._followed: deque[float] = deque(maxlen=FOLLOWED_MAX)  # when we followed into a round
        self._connecting: dict[int, Endpoint] = {}
        self._was_direct = False  # since the last attempt: what both know of themselves may be true no more

    def __repr__(self) -> str:
        what = f"round {self._round.number} of {self._round.method.value}" if self._round else "idle"
        return f"<Puncher: {what}, {self._failures} failures>"

    @property
    def busy(self) -> bool:
        return self._round is not None or self._waits_until < float("inf")

    @property
    def _witnesses(self) -> Sequence[Witness]:
        return self.situation.witnesses if self.situation is not None else ()

    @property
    def _step(self) -> int:
        """Between ports of our sequential allocator."""
        return self.situation.introduction.behaviour.step if self.situation is not None else 0

    @property
    def tcp_targets(self) -> tuple[Endpoint, ...]:
        """Where the other side's listening port is seen, while both connect by TCP."""
        return self._theirs.tcp if self._tcp_round() and self._theirs is not None else ()

    @property
    def observes(self) -> bool:
        """Whether it waits for witnesses."""
        return self._round is not None and bool(self._round.observing)

    @property
    def sockets(self) -> tuple[int, ...]:
        """Fresh ones of the round that is under way."""
        return self._round.sockets if self._round is not None else ()

    # ---- verbs --------------------------------------------------------------------------------------------------

    def punch(self, now: float, methods: tuple[Method, ...] | None = None) -> list[Effect]:
        """Begin an attempt, if we lead and know ourselves. methods: these in place of those that were chosen; TCP for
        bulk after UDP went through."""
        if not self.lower or self.situation is None or self.busy:
            return []
        self._attempt += 1
        self._since = self._asked_at = now
        self._again_at, self._waits_until, self._wanted = float("inf"), now + ANSWER_S, methods
        return [Tell(Introduce(self._attempt, self.situation.introduction))]

    def again(self, now: float) -> list[Effect]:
        """We know more of ourselves, so another attempt is worth it, whoever leads."""
        if self.lower:
            return self._begin_anew(now)
        return [Tell(Again(self._attempt))] if self.situation is not None else []

    def said(self, message: Message, now: float) -> list[Effect]:
        """What is not of this attempt, or not to be said by the other side, changes nothing."""
        if self.situation is None or isinstance(message, Introduced | Ready | Later | Again) != self.lower:
            return []
        if not isinstance(message, Introduce | Again) and message.attempt != self._attempt:
            return []
        match message:
            case Introduce():
                return self._introduced_to(message, now)
            case Introduced():
                return self._introduced(message, now)
            case Prepare():
                return self._asked_to_prepare(message, now)
            case Ready():
                return self._other_is_ready(message, now)
            case Go():
                return self._told_to_go(message, now)
            case Later(_, again_s):
                soon = 1.0 <= again_s <= PAUSES_S[-1]  # also false for what is no number
                return self._stay("the other side is busy", again_s if soon else PAUSES_S[-1], now)
            case Again():
                return self._asked_again(now)
            case _:
                assert_never(message)

    def proven(self, route: Route, now: float) -> list[Effect]:
        """The path table has an answer by this route."""
        round_ = self._round
        self._was_direct = self._was_direct or isinstance(route, Direct)
        if not isinstance(route, Direct) or self._tcp_round() or self._wanted is not None:
            return []
        self._plan.clear()
        self._failures, self._again_at, self._waits_until = 0, float("inf"), float("inf")
        return self._succeed(route, now) if round_ is not None else []

    def awaits(self, socket: int) -> bool:
        """Whether `opened` for this socket is for us."""
        return self._round is not None and socket in self._round.opening

    def opened(self, socket: int, local: Endpoint, now: float) -> list[Effect]:
        round_ = self._round
        if round_ is None or socket not in round_.opening:
            return [CloseSocket(socket)]
        round_.opening.discard(socket)
        if not round_.opening:
            round_.observe(self._witnesses, self._rng, now)
        return self.tick(now)

    def received(self, route: Route, data: bytes, now: float) -> list[Effect]:
        """An ANSWER of a witness to an OBSERVE."""
        round_ = self._round
        if round_ is None or self.situation is None or not round_.observing:
            return []
        return self.tick(now) if round_.answered(self._witnesses, data) else []

    def connected(self, attempt: int, remote: Endpoint, now: float) -> list[Effect]:
        """A TCP connection that we asked for is there."""
        if self._connecting.pop(attempt, None) is None:
            return []
        return self._succeed(remote, now) if self._tcp_round() else []

    def accepted(self, port: int, remote: Endpoint, now: float) -> list[Effect]:
        """A TCP connection came in from one of the addresses that this peer told of."""
        theirs = {each.host for each in self._theirs.tcp} if self._theirs else set()
        return self._succeed(remote, now) if self._tcp_round() and remote.host in theirs else []

    def refused(self, attempt: int, now: float) -> list[Effect]:
        """The other gateway rejects what comes too early."""
        target = self._connecting.pop(attempt, None)
        if target is not None and (round_ := self._tcp_round()):
            round_.connects.append((now + TCP_AGAIN_S, target))
        return []

    def tick(self, now: float) -> list[Effect]:
        if now >= self._again_at:
            self._again_at = float("inf")
            return self.punch(now)
        if now >= self._waits_until:
            return self._give_up("the other side does not answer", now)
        round_ = self._round
        if round_ is None:
            return []
        effects = list[Effect](round_.ask(self._witnesses, now))
        if not round_.ready and round_.is_ready(now):
            round_.ready = True
            effects += self._ready(round_, now)
        effects += self._shoot(round_, now)
        if now >= round_.ends and self._round is round_:
            effects += self._end_round(round_, "nothing came through", now)
        return effects

    def next_deadline(self) -> float | None:
        times = [self._again_at, self._waits_until]
        if round_ := self._round:
            times += [round_.ends, *(at for at, _ in round_.questions[:1]), *(at for at, _ in round_.connects)]
            if not round_.ready:
                times.append(round_.prepared_at)
            if round_.shot < len(round_.shots):
                times.append(round_.begins + round_.shots[round_.shot].at_s)
        due = min(times)
        return None if due == float("inf") else due

    def validate(self) -> None:
        round_ = self._round
        assert round_ is None or len(round_.shots) <= salvos.GUESSES, f"{len(round_.shots)} shots"

    # ---- the exchange -------------------------------------------------------------------------------------------

    def _asked_again(self, now: float) -> list[Effect]:
        """The other side knows more. Not without bounds: it may say so as often as it likes."""
        self._agains = [at for at in self._agains if at > now - AGAINS_S]
        if len(self._agains) >= AGAINS_FREE:
            return []
        self._agains.append(now)
        return self._begin_anew(now)

    def _begin_anew(self, now: float) -> list[Effect]:
        """More is known on one side: what is under way was planned without it."""
        round_ = self._round
        if round_ is None:
            self._waits_until = float("inf")  # the other side knew too little of itself to answer
            return self.punch(now)
        self._anew = True
        if round_.method is Method.SIMULTANEOUS and round_.begins < float("inf"):
            round_.ends = min(round_.ends, max(now, round_.begins + SETTLED_S))
        return []

    def _introduced_to(self, message: Introduce, now: float) -> list[Effect]:
        """The other side leads a new attempt."""
        assert self.situation is not None
        effects = self._drop_round(now, "a new attempt") if self._round else []
        self._attempt, self._theirs, self._since = message.attempt, _sound(message.introduction), now
        self._wanted = None
        return [*effects, Tell(Introduced(message.attempt, self.situation.introduction))]

    def _introduced(self, message: Introduced, now: float) -> list[Effect]:
        assert self.situation is not None
        if self._waits_until == float("inf") or self._round is not None:
            return []
        self._rtt_s, self._theirs = max(now - self._asked_at, 0.001), _sound(message.introduction)
        ours, theirs = self.situation.introduction, self._theirs
        both = ours.birthday and theirs.birthday
        if self._wanted is None:
            methods = choose(ours.behaviour, theirs.behaviour, ours.candidates, theirs.candidates, birthday=both)
        else:
            hopeless = not may_open_tcp(ours.behaviour, theirs.behaviour)
            methods = tuple(method for method in self._wanted if method is not Method.TCP or not hopeless)
        self._plan = self._planned(methods)
        if not self._plan:
            words = f"{ours.behaviour.words} here, {theirs.behaviour.words} there: no method goes through"
            return self._give_up(words, now)
        return self._next_round(now)

    def _planned(self, methods: Sequence[Method]) -> list[tuple[Method, int]]:
        """The rounds in which these are tried; of a pair that was direct, each method first with what is seen now."""
        renewed = self._was_direct and self._wanted is None
        self._was_direct = self._was_direct and not renewed
        plan: list[tuple[Method, int]] = []
        for method in methods:
            if renewed and method is not Method.TCP:
                again = Method.SIMULTANEOUS if method is Method.DIAL else method
                plan.append((again, ROUNDS[again] + 1))
            plan += [(method, number) for number in range(1, ROUNDS[method] + 1)]
        return list(dict.fromkeys(plan))

    def _next_round(self, now: float) -> list[Effect]:
        """The next round of the plan; we lead."""
        self._waits_until = float("inf")
        if not self._plan:
            return self._give_up("every method was tried", now)
        method, number = self._plan.pop(0)
        if method is Method.BIRTHDAY and self._budget.is_busy(now):
            return self._stay("another birthday is under way", salvos.BIRTHDAY_S * self._rng.uniform(1.0, 2.0), now)
        if method is Method.BIRTHDAY and not self._budget.take(now):
            return [Attempted(method, number, False, 0.0, 0, "too many in this hour"), *self._next_round(now)]
        effects = self._prepare(method, number, now)
        if needs_preparation(method, number):
            self._asked_at, self._waits_until = now, now + ANSWER_S
            return [Tell(Prepare(self._attempt, number, method)), *effects]
        return [*effects, *self._go(Readiness(), now)]

    def _asked_to_prepare(self, message: Prepare, now: float) -> list[Effect]:
        effects = self._drop_round(now, "the other side went on") if self._round else []
        if not self._may_follow(now):
            return [*effects, Tell(Later(self._attempt, PAUSES_S[0]))]
        if message.method is Method.BIRTHDAY and self._budget.is_busy(now):
            again_s = salvos.BIRTHDAY_S * self._rng.uniform(1.0, 2.0)
            return [*effects, Tell(Later(self._attempt, again_s))]
        if message.method is Method.BIRTHDAY and not self._may_be_birthday(now):
            return [*effects, Tell(Later(self._attempt, PAUSES_S[-1]))]
        effects += self._prepare(message.method, message.round, now)
        if self._round is not None:
            self._round.asked_at = now
        return effects + self.tick(now)

    def _may_follow(self, now: float) -> bool:
        """Whether the other side has not begun too many rounds; one more is counted."""
        if len(self._followed) == FOLLOWED_MAX and now - self._followed[0] < 60.0:
            return False
        self._followed.append(now)
        return True

    def _may_be_birthday(self, now: float) -> bool:
        """On the side that follows: what it told of itself, and the hour's bound, hold here too."""
        return self.situation is not None and self.situation.introduction.birthday and self._budget.take(now)

    def _ready(self, round_: Round, now: float) -> list[Effect]:
        """Our sockets are open and observed, or it took too long."""
        if not round_.is_prepared:
            return []
        if not self.lower:
            round_.ends = now + ANSWER_S
            readiness = round_.readiness(self._step)
            return [Tell(Ready(self._attempt, round_.number, readiness, now - round_.asked_at))]
        return self._go(self._other, now) if self._other is not None else []

    def _other_is_ready(self, message: Ready, now: float) -> list[Effect]:
        round_ = self._round
        if round_ is None or round_.number != message.round or round_.begins < float("inf"):
            return []
        elapsed_s = now - self._asked_at
        took_s = message.took_s if 0.0 <= message.took_s <= elapsed_s else 0.0  # also what is no number
        self._rtt_s = max(elapsed_s - took_s, 0.001)
        self._waits_until = float("inf")
        self._other = message.readiness
        return self._go(message.readiness, now) if round_.ready else []

    def _go(self, other: Readiness, now: float) -> list[Effect]:
        """We lead: both begin when the other side hears it."""
        round_ = self._round
        assert round_ is not None
        self._other = None
        effects: list[Effect] = [Tell(Go(self._attempt, round_.number, round_.method, round_.readiness(self._step)))]
        self._begin(round_, other, now + self._rtt_s / 2)
        return effects

    def _told_to_go(self, message: Go, now: float) -> list[Effect]:
        if self._theirs is None:
            return []
        effects: list[Effect] = []
        round_ = self._round
        if round_ is None or (round_.method, round_.number) != (message.method, message.round):
            effects = self._drop_round(now, "the other side went on") if round_ else []
            if message.method is Method.BIRTHDAY or not self._may_follow(now):
                return effects  # we were not asked to prepare, or have refused
            effects += self._prepare(message.method, message.round, now, fresh=False)
            round_ = self._round
        assert round_ is not None
        self._begin(round_, message.readiness, now)
        return effects + self.tick(now)

    # ---- a round ------------------------------------------------------------------------------------------------

    def _prepare(self, method: Method, number: int, now: float, *, fresh: bool = True) -> list[Effect]:
        """Open the sockets that this round takes on our side."""
        assert self.situation is not None
        count, symmetric = 0, is_symmetric(self.situation.introduction.behaviour)
        if fresh and needs_preparation(method, number):
            count = {Method.BIRTHDAY: salvos.FAN if symmetric else 0, Method.PREDICTION: int(symmetric)}.get(method, 1)
        sockets = tuple(next(self._sockets) for _ in range(count))
        self._other = None
        round_ = self._round = Round(number, method, now, sockets, set(sockets), {}, [], {}, connects=[])
        round_.prepared_at = now + OBSERVED_S + 1.0 if sockets else now
        round_.ends = now + OBSERVED_S + ANSWER_S + 1.0
        if not sockets and fresh and is_renewed(method, number):
            round_.observe(self._witnesses, self._rng, now)
        round_.ready = not sockets and self.lower and not round_.observing
        asked = round_.ask(self._witnesses, now)  # of the main socket; of fresh ones once they are open
        return [*asked, *(OpenSocket(socket) for socket in sockets)]

    def _begin(self, round_: Round, other: Readiness, begins: float) -> None:
        """The round's shots, from `begins` on."""
        assert self.situation is not None and self._theirs is not None
        round_.ready, round_.begins = True, begins
        if other.endpoint is not None and not is_sendable(other.endpoint):
            other = Readiness()
        other = Readiness(other.endpoint, tuple(port for port in other.ports[: salvos.WINDOW] if 0 < port < 65536))
        round_.questions.clear()
        if round_.method is Method.TCP:
            round_.connects = [(begins, target) for target in self._theirs.tcp[:TCP_TARGETS_MAX]]
            round_.ends = begins + TCP_S
            return
        round_.shots = round_.salvo(self.situation.introduction, self._theirs, other, self._rng)
        birthday = round_.method is Method.BIRTHDAY
        round_.ends = begins + (salvos.BIRTHDAY_S if birthday else salvos.ROUND_S) + self._rtt_s

    def _shoot(self, round_: Round, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while round_.shot < len(round_.shots) and round_.begins + round_.shots[round_.shot].at_s <= now:
            shot = round_.shots[round_.shot]
            round_.shot += 1
            if shot.ttl:
                data = datagrams.write_punch(self._rng.randbytes(8))
            else:
                probe = Probe(self._rng.randbytes(8), Kind.PATH, max(int(now * 1e6), 0))
                data = datagrams.write_probe(self._keys.sending, probe)
            effects.append(SendOver(shot.route, data, shot.ttl))
        due = [target for at, target in round_.connects if at <= now]
        round_.connects = [each for each in round_.connects if each[0] > now]
        for target in due:
            if round_.connected < TCP_TRIES_MAX and self.situation is not None:
                round_.connected += 1
                number = self._rng.getrandbits(48)
                self._connecting[number] = target
                effects.append(ConnectTcp(number, self.situation.tcp_port, target))
        return effects

    def _tcp_round(self) -> Round | None:
        return self._round if self._round is not None and self._round.method is Method.TCP else None

    # ---- ends ---------------------------------------------------------------------------------------------------

    def _succeed(self, over: Direct | Endpoint, now: float) -> list[Effect]:
        round_ = self._round
        assert round_ is not None
        self._plan.clear()
        self._failures, self._waits_until, self._anew = 0, float("inf"), False
        record = Attempted(round_.method, round_.number, True, now - round_.since, round_.shot + round_.connected)
        return [*self._close(round_), record, BecameDirect(round_.method, over, now - self._since)]

    def _end_round(self, round_: Round, reason: str, now: float) -> list[Effect]:
        effects = self._drop_round(now, reason)
        if not self.lower:
            return effects
        return [*effects, *(self._stay("more is known now", ANEW_S, now) if self._anew else self._next_round(now))]

    def _drop_round(self, now: float, reason: str) -> list[Effect]:
        round_ = self._round
        assert round_ is not None
        shots = round_.shot + round_.connected
        record = Attempted(round_.method, round_.number, False, now - round_.since, shots, reason[:TEXT_MAX])
        return [*self._close(round_), record]

    def _close(self, round_: Round) -> list[Effect]:
        self._round = None
        self._connecting.clear()
        return [CloseSocket(socket) for socket in round_.sockets if not self._in_use(socket)]

    def _give_up(self, reason: str, now: float) -> list[Effect]:
        """Stay relayed, and try again some day."""
        again_s = PAUSES_S[min(self._failures, len(PAUSES_S) - 1)] * self._rng.uniform(0.8, 1.2)
        self._failures += 1
        return self._stay(reason, again_s, now)

    def _stay(self, reason: str, again_s: float, now: float) -> list[Effect]:
        effects = self._drop_round(now, reason) if self._round is not None else []
        self._plan.clear()
        if self._anew:
            again_s = min(again_s, ANEW_S)
        elif self._wanted is not None:
            again_s = float("inf")  # that was something beside, and is not tried for ever
        self._anew = False
        self._waits_until, self._again_at = float("inf"), now + again_s
        return [*effects, StaysRelayed(reason, again_s)]


def _sound(introduction: Introduction) -> Introduction:
    """Without the endpoints that are none."""
    candidates = tuple(each for each in introduction.candidates[:CANDIDATES_MAX] if is_sendable(each.endpoint))
    tcp = tuple(each for each in introduction.tcp[:TCP_TARGETS_MAX] if is_sendable(each))
    return msgspec.structs.replace(introduction, candidates=candidates, tcp=tcp)
