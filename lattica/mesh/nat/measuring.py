"""The questions that tell what this machine is behind, asked of ordinary peers: at least two, at different addresses.

    us, from fresh sockets -> witness   OBSERVE · OTHER_PORT · OTHER_PEER · LATER          (`answering` is their side)
    witness -> us                       ANSWER(seen)

Fresh sockets, because a filter has to be met by one that has sent to nobody else. All questions but those about the
lifetime are asked at once, again until answered, ASKS_S after the beginning; then come hairpins. The lifetime is
measured LIFETIME_AFTER_S later, in passing: for each of LIFETIMES_S a socket or two fall idle for so long.

    measure(witnesses, own addresses)     now, and again when something is different
    network_changed()                     measure again soon, with the same witnesses
    opened(socket, local)                 as asked by `OpenSocket`
    received(route, data)                 an ANSWER of one of KINDS, or any datagram whose key id is `hairpin_id`

    use(witnesses)                        others are asked from now on; what is known stays

and `Measured` tells what was found, again when the lifetime is known too, and when the main socket is seen elsewhere:
every WATCH_S a witness is asked, which also keeps its mapping alive. `Glimpsed` tells a round trip after the beginning
what needs no silence to be known: all but the filtering, so that punching may begin; and that when it is known, before
hairpins are tried; and that UDP seems to be blocked, if nobody answers for BLOCKED_S. See `behaviour` for what follows
from what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

import msgspec

from lattica.mesh.identity import PeerId
from lattica.mesh.nat import datagrams
from lattica.mesh.nat.answering import KINDS
from lattica.mesh.nat.behaviour import (
    Behaviour,
    Dependence,
    Sighting,
    allocation_of,
    filtering_of,
    is_double,
    is_translated,
    mapping_of,
)
from lattica.mesh.nat.datagrams import ID_BYTES, SECRET_BYTES, Key, Keys, Kind, Probe
from lattica.mesh.nat.routes import MAIN, NOWHERE, CloseSocket, Direct, Endpoint, OpenSocket, Route, SendOver

__all__ = ["KINDS", "Measured", "Measurement", "Witness"]

ASKS_S = (0.0, 0.25, 0.55, 0.9, 1.3)  # at 10 % loss of questions and answers together, one in 100,000 stays open
ANSWERED_S = 1.9  # after the beginning everything is answered that will be: the longest round trip of a world is 0.4 s
OPENED_S = 2.0  # for the shell to open the sockets
BLOCKED_S = 0.9  # of silence, in answer to three questions each: so much is glimpsed
BLOCKED_AGAIN_S = (30.0, 60.0, 120.0, 300.0, 600.0)
"""After which it is measured again: it may have been an outage."""
HAIRPINS_S = (0.0, 0.15, 0.3)
HAIRPINNED_S = 0.6
WITNESSES_MAX = 3
ALLOCATED = 5  # sockets that are seen by the first witness: enough ports to tell whether they follow each other
SETTLE_S = 1.0  # after the network changed: more changes come together
WATCH_S = 20.0  # between questions how the main socket is seen: less than the shortest mapping we have met
WATCHED_S = 2.6
WATCHES_LOST = 3  # unanswered in a row: then everything is measured again
LIFETIME_AFTER_S = 30.0
LIFETIMES_S = (10, 20, 30, 45, 60, 90, 120)  # keep-alives more than a minute apart save nothing
LIFETIME_SOCKETS = 2  # of each: a lost datagram would say that the mapping died
LATERS_S = (0.0, 0.1)


class Witness(msgspec.Struct, frozen=True):
    """A peer that answers. other: its second port, to which we may send; None if it is not known. six: its endpoint in
    IPv6. has_others: it can have another peer answer."""

    peer: PeerId
    keys: Keys
    endpoint: Endpoint
    other: Endpoint | None = None
    six: Endpoint | None = None
    has_others: bool = True


class Measured(msgspec.Struct, frozen=True):
    """observed: as what others see the main socket, the likeliest first."""

    behaviour: Behaviour
    observed: tuple[Endpoint, ...]


class Glimpsed(msgspec.Struct, frozen=True):
    """What is known so far; whether a filter lets answers through shows by silence, which takes longer."""

    behaviour: Behaviour
    observed: tuple[Endpoint, ...]


Effect = SendOver | OpenSocket | CloseSocket | Measured | Glimpsed


class _Question(msgspec.Struct):
    socket: int
    to: Endpoint
    kind: Kind
    keys: Keys
    times: tuple[float, ...]  # when to ask, monotonic seconds
    argument: int = 0
    asked: int = 0
    seen: Endpoint | None = None  # the answer


class Measurement:
    """sockets: numbers nobody else uses. See the module for the verbs."""

    def __init__(self, rng: Random, sockets: Iterator[int]) -> None:
        self._rng, self._sockets = rng, sockets
        self._self_key = Key(rng.randbytes(ID_BYTES), rng.randbytes(SECRET_BYTES))
        self.hairpin_id = self._self_key.id
        self.behaviour = Behaviour()
        self.told_outer = ""  # what the gateway says of its outer address
        self.mapped = False  # it mapped a port for us
        self._witnesses: tuple[Witness, ...] = ()
        self._own: tuple[str, ...] = ()
        self._again_at = float("inf")
        self._lifetimes_at = float("inf")
        self._questions: dict[bytes, _Question] = {}
        self._roles: dict[int, Callable[[Endpoint, float], list[Effect]]] = {}  # sockets that are being opened
        self._local: dict[int, Endpoint] = {}
        self._phase = ""
        self._phase_ends = float("inf")
        self._allocating: list[int] = []
        self._filtering: list[int] = []
        self._hairpinned = self._glimpsed = False
        self._blocked = 0  # how often in a row nobody answered
        self._blocked_at = float("inf")  # when the silence of all looks like blocked UDP
        self._observed: tuple[Endpoint, ...] = ()
        self._watch_at = float("inf")
        self._watch: bytes | None = None  # the transaction of the question
        self._watches = self._watches_lost = 0

    def __repr__(self) -> str:
        return f"<Measurement: {self.behaviour.words}, {self._phase or 'idle'}, {len(self._questions)} questions>"

    # ---- verbs --------------------------------------------------------------------------------------------------

    def measure(self, witnesses: Sequence[Witness], own: Sequence[str], now: float) -> list[Effect]:
        """own: addresses of this machine's interfaces. Raises nothing: with too few witnesses less is known."""
        effects = self._stop()
        self._witnesses, self._own = _apart(witnesses), tuple(own)
        if not self._witnesses:
            return effects
        self._begin("asking", now + OPENED_S)
        self._hairpinned = self._glimpsed = False
        self._allocating = [next(self._sockets) for _ in range(ALLOCATED)]
        self._filtering = [next(self._sockets) for _ in self._witnesses[:2]]
        self._roles[self._allocating[0]] = self._ask_everybody
        for socket in self._allocating[1:]:
            self._roles[socket] = self._asker(socket, self._witnesses[0], Kind.OBSERVE)
        for socket, witness in zip(self._filtering, self._witnesses):
            kinds = [Kind.OBSERVE, Kind.OTHER_PORT, *([Kind.OTHER_PEER] if witness.has_others else [])]
            self._roles[socket] = self._asker(socket, witness, *kinds)
        for witness in self._witnesses:
            self._ask(MAIN, witness.endpoint, Kind.OBSERVE, witness.keys, now)
            if witness.six is not None:
                self._ask(MAIN, witness.six, Kind.OBSERVE, witness.keys, now)
        return [*effects, *(OpenSocket(socket) for socket in self._roles), *self.tick(now)]

    def use(self, witnesses: Sequence[Witness], now: float) -> list[Effect]:
        """Some witnesses are gone, or others are better. What is under way begins anew."""
        if self._phase:
            return self.measure(witnesses, self._own, now)
        if self._watch is not None:
            self._questions.pop(self._watch, None)
            self._watch, self._watch_at = None, now + WATCH_S / 4
        self._witnesses = _apart(witnesses)
        self._watches_lost = 0
        if not self._witnesses:
            self._watch_at = self._lifetimes_at = float("inf")
        elif self.behaviour.udp and self._watch_at == float("inf"):
            self._watch_at = now + WATCH_S / 4
        return []

    def network_changed(self, now: float, own: Sequence[str] | None = None) -> list[Effect]:
        """An address of ours (then `own` are those that there are now), or how others see us, has changed."""
        self._again_at = now + SETTLE_S
        if own is not None:
            self._own = tuple(own)
        return []

    def awaits(self, socket: int) -> bool:
        """Whether `opened` for this socket is for us."""
        return socket in self._roles

    def opened(self, socket: int, local: Endpoint, now: float) -> list[Effect]:
        role = self._roles.pop(socket, None)
        if role is None:
            return []  # it was asked for by an earlier measurement, which closed it
        self._local[socket] = local
        effects = role(local, now)
        if not self._roles and self._phase == "asking":
            self._phase_ends, self._blocked_at = now + ANSWERED_S, now + BLOCKED_S
        return effects + self.tick(now)

    def received(self, route: Route, data: bytes, now: float) -> list[Effect]:
        if datagrams.key_id(data) == self.hairpin_id:
            self._hairpinned |= datagrams.read_probe(self._self_key, data) is not None
            return self.tick(now)
        for witness in self._witnesses:
            answer = datagrams.read_answer(witness.keys.receiving, data)
            question = self._questions.get(answer.transaction) if answer else None
            if answer is None or question is None or question.keys is not witness.keys:
                continue
            if isinstance(route, Direct) and route.socket == question.socket and question.seen is None:
                question.seen, question.times = answer.seen, ()
                watched = self._watched(answer.seen, now) if answer.transaction == self._watch else []
                return watched + self.tick(now)
        return []

    def tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if now >= self._again_at:
            self._again_at = float("inf")
            return self.measure(self._witnesses, self._own, now)
        for transaction, question in list(self._questions.items()):
            while question.times and question.times[0] <= now:
                question.times = question.times[1:]
                effects.append(self._asked(transaction, question, now))
        if now >= self._lifetimes_at:
            self._lifetimes_at = float("inf")
            effects += self._begin_lifetimes(now)
        if now >= self._watch_at:
            effects += self._look_again(now)
        return effects + self._advance(now)

    def next_deadline(self) -> float | None:
        times = [question.times[0] for question in self._questions.values() if question.times]
        due = min([*times, self._blocked_at, self._again_at, self._lifetimes_at, self._phase_ends, self._watch_at])
        return None if due == float("inf") else due

    def validate(self) -> None:
        assert len(self._questions) <= 64, f"{len(self._questions)} questions"
        assert len(self._local) + len(self._roles) <= max(ALLOCATED + 2, LIFETIME_SOCKETS * len(LIFETIMES_S))

    # ---- phases -------------------------------------------------------------------------------------------------

    def _begin(self, phase: str, ends: float) -> None:
        self._phase, self._phase_ends, self._blocked_at = phase, ends, float("inf")

    def _stop(self) -> list[Effect]:
        """Forget what is under way."""
        sockets = [*self._local, *self._roles]
        self._questions.clear()
        self._local.clear()
        self._roles.clear()
        self._lifetimes_at = self._watch_at = float("inf")
        self._watch = None
        self._begin("", float("inf"))
        return [CloseSocket(socket) for socket in sockets]

    def _advance(self, now: float) -> list[Effect]:
        if self._phase == "asking" and not self._glimpsed and self._all_seen():
            self._glimpsed = True
            behaviour, observed = self._found(None)
            return [Glimpsed(behaviour, observed), *self._advance(now)]
        if self._phase == "asking" and now >= self._blocked_at:
            self._blocked_at = float("inf")
            if not any(question.seen for question in self._questions.values()):
                return [Glimpsed(Behaviour(udp=False), ()), *self._advance(now)]
        match self._phase:
            case "asking" if now >= self._phase_ends or self._all_known():
                return self._begin_hairpins(now)
            case "hairpins" if now >= self._phase_ends or self._hairpinned:
                return self._conclude(now)
            case "lifetimes" if now >= self._phase_ends:
                return self._conclude_lifetimes()
        return []

    def _all_known(self) -> bool:
        """Whether no question is open whose answer could change anything."""
        if self._roles:
            return False
        strangers = {Kind.OTHER_PEER, Kind.OTHER_PORT}
        if any(question.kind is Kind.OTHER_PEER and question.seen for question in self._questions.values()):
            strangers = set()
        return (
            all(question.seen for question in self._questions.values() if question.kind not in strangers)
            and not strangers
        )

    def _all_seen(self) -> bool:
        """Whether every question was answered that any NAT lets through."""
        asked = [question for question in self._questions.values() if question.kind is Kind.OBSERVE]
        four = [question for question in asked if not question.to.is_ipv6]
        return not self._roles and bool(four) and all(question.seen for question in four)

    def _begin_hairpins(self, now: float) -> list[Effect]:
        """Two of our sockets, each to where the other is seen."""
        behaviour, observed = self._found(self._filtering_found())
        glimpsed: list[Effect] = [Glimpsed(behaviour, observed)] if behaviour.udp else []
        self._begin("hairpins", now + HAIRPINNED_S)
        one, other = self._allocating[1:3]
        seen = {sighting.socket: sighting.seen for sighting in self._sightings(Kind.OBSERVE)}
        if one not in seen or other not in seen or not self._translated():
            return glimpsed + self._conclude(now)
        keys = Keys(self._self_key, self._self_key)
        for socket, to in ((one, seen[other]), (other, seen[one])):
            times = tuple(now + after for after in HAIRPINS_S)
            self._questions[self._rng.randbytes(8)] = _Question(socket, to, Kind.HAIRPIN, keys, times)
        return glimpsed + self.tick(now)

    def _found(self, filtering: Dependence | None) -> tuple[Behaviour, tuple[Endpoint, ...]]:
        """What follows from the answers; and where the main socket is seen."""
        sightings = [each for each in self._sightings(Kind.OBSERVE) if not each.seen.is_ipv6]
        first = [sighting for sighting in sightings if sighting.socket == self._allocating[0]]
        fresh = [
            each for each in sightings if each.socket in self._allocating and each.by == self._witnesses[0].endpoint
        ]
        mapping, translated = mapping_of(first), self._translated()
        allocation, step = allocation_of(fresh if mapping is Dependence.INDEPENDENT else first)
        main = [sighting for sighting in self._sightings(Kind.OBSERVE) if sighting.socket == MAIN]
        behaviour = Behaviour(
            udp=bool(self._sightings(Kind.OBSERVE)),
            translated=translated,
            mapping=mapping,
            filtering=filtering,
            allocation=allocation if translated else None,
            step=step if translated else 0,
            lifetime_s=self.behaviour.lifetime_s,
            hairpin=self._hairpinned if translated else None,
            double=is_double(self.told_outer, [sighting.seen.host for sighting in sightings]),
            mapped=self.mapped,
            ipv6=any(sighting.seen.is_ipv6 for sighting in main),
        )
        return behaviour, tuple(dict.fromkeys(sighting.seen for sighting in main))

    def _conclude(self, now: float) -> list[Effect]:
        self.behaviour, self._observed = self._found(self._filtering_found())
        effects = self._stop()
        if self.behaviour.filtering is not Dependence.INDEPENDENT and self.behaviour.udp:
            self._lifetimes_at = now + LIFETIME_AFTER_S
        if self.behaviour.udp:
            self._watch_at, self._watches_lost, self._blocked = now + WATCH_S, 0, 0
        else:
            self._again_at = now + BLOCKED_AGAIN_S[min(self._blocked, len(BLOCKED_AGAIN_S) - 1)]
            self._blocked += 1
        return [*effects, Measured(self.behaviour, self._observed)]

    def _begin_lifetimes(self, now: float) -> list[Effect]:
        self._begin("lifetimes", now + LIFETIMES_S[-1] + 2 * ANSWERED_S)
        for index, after_s in enumerate(LIFETIMES_S):
            for turn in range(LIFETIME_SOCKETS):
                witness = self._witnesses[(index + turn) % len(self._witnesses)]
                socket = next(self._sockets)
                self._roles[socket] = self._sleeper(socket, witness, after_s)
        return [OpenSocket(socket) for socket in self._roles]

    def _conclude_lifetimes(self) -> list[Effect]:
        watch_at = self._watch_at
        lived: dict[int, bool] = {}
        for question in self._questions.values():
            if question.kind is Kind.LATER:
                lived[question.argument] = lived.get(question.argument, False) or question.seen is not None
        longest = LIFETIMES_S[0] / 2
        for after_s in LIFETIMES_S:
            if not lived.get(after_s):
                break
            longest = float(after_s)
        self.behaviour = msgspec.structs.replace(self.behaviour, lifetime_s=longest)
        effects = self._stop()
        self._watch_at = watch_at
        return [*effects, Measured(self.behaviour, self._observed)]

    # ---- in between ---------------------------------------------------------------------------------------------

    def _look_again(self, now: float) -> list[Effect]:
        """Ask one witness after the other how the main socket is seen; or the last one did not answer."""
        if self._watch is not None:
            self._questions.pop(self._watch, None)
            self._watch, self._watches_lost = None, self._watches_lost + 1
            if self._watches_lost >= WATCHES_LOST:
                self._watch_at = float("inf")
                return self.network_changed(now)
            self._watch_at = now + WATCH_S / 4
            return []
        self._watches += 1
        witness = self._witnesses[self._watches % len(self._witnesses)]
        self._watch = self._ask(MAIN, witness.endpoint, Kind.OBSERVE, witness.keys, now)
        self._watch_at = now + WATCHED_S
        question = self._questions[self._watch]
        question.times = question.times[1:]
        return [self._asked(self._watch, question, now)]

    def _watched(self, seen: Endpoint, now: float) -> list[Effect]:
        assert self._watch is not None
        del self._questions[self._watch]
        self._watch, self._watches_lost, self._watch_at = None, 0, now + WATCH_S
        if self._observed and seen.host not in {each.host for each in self._observed}:
            return self.network_changed(now)
        if seen in self._observed or self.behaviour.mapping is not Dependence.INDEPENDENT:
            return []
        self._observed = (seen, *(each for each in self._observed if each.is_ipv6))
        return [Measured(self.behaviour, self._observed)]

    # ---- questions ----------------------------------------------------------------------------------------------

    def _ask_everybody(self, local: Endpoint, now: float) -> list[Effect]:
        """How one socket looks from each place: the mapping."""
        for witness in self._witnesses:
            for place in (witness.endpoint, witness.other):
                if place is not None:
                    self._ask(self._allocating[0], place, Kind.OBSERVE, witness.keys, now)
        return []

    def _asker(self, socket: int, witness: Witness, *kinds: Kind) -> Callable[[Endpoint, float], list[Effect]]:
        def ask(local: Endpoint, now: float) -> list[Effect]:
            for kind in kinds:
                self._ask(socket, witness.endpoint, kind, witness.keys, now)
            return []

        return ask

    def _sleeper(self, socket: int, witness: Witness, after_s: int) -> Callable[[Endpoint, float], list[Effect]]:
        """Traffic both ways, since that is what a NAT believes in; then, a second later, silence."""

        def ask(local: Endpoint, now: float) -> list[Effect]:
            self._ask(socket, witness.endpoint, Kind.OBSERVE, witness.keys, now, times=ASKS_S[:2])
            later = tuple(ASKS_S[2] + after for after in LATERS_S)
            self._ask(socket, witness.endpoint, Kind.LATER, witness.keys, now, times=later, argument=after_s)
            return []

        return ask

    def _ask(
        self,
        socket: int,
        to: Endpoint,
        kind: Kind,
        keys: Keys,
        now: float,
        *,
        times: tuple[float, ...] = ASKS_S,
        argument: int = 0,
    ) -> bytes:
        """The transaction."""
        transaction = self._rng.randbytes(8)
        moments = tuple(now + after for after in times)
        self._questions[transaction] = _Question(socket, to, kind, keys, moments, argument)
        return transaction

    def _asked(self, transaction: bytes, question: _Question, now: float) -> Effect:
        probe = Probe(transaction, question.kind, max(int(now * 1e6), 0), question.argument)
        data = datagrams.write_probe(question.keys.sending, probe)
        return SendOver(Direct(question.to, question.socket), data)

    def _sightings(self, kind: Kind) -> list[Sighting]:
        """What was answered."""
        return [
            Sighting(question.socket, self._local.get(question.socket, NOWHERE), question.to, question.seen)
            for question in self._questions.values()
            if question.kind is kind and question.seen is not None
        ]

    def _translated(self) -> bool | None:
        return is_translated([each for each in self._sightings(Kind.OBSERVE) if not each.seen.is_ipv6], self._own)

    def _filtering_found(self) -> Dependence | None:
        """By the sockets that have sent to one witness only, where that witness lives."""
        alive = {each.socket for each in self._sightings(Kind.OBSERVE)} & set(self._filtering)
        asked = {kind: [each for each in self._questions.values() if each.kind is kind and each.socket in alive]
                 for kind in (Kind.OTHER_PEER, Kind.OTHER_PORT)}  # fmt: skip
        found = {kind: any(each.seen for each in questions) if questions else None for kind, questions in asked.items()}
        if found[Kind.OTHER_PEER] is None and found[Kind.OTHER_PORT] and self._translated() is False:
            return None  # no witness knew anybody who could have shown whether there is a firewall
        return filtering_of(other_peer=found[Kind.OTHER_PEER], other_port=found[Kind.OTHER_PORT])


def _apart(witnesses: Sequence[Witness]) -> tuple[Witness, ...]:
    """One at each address, as many as are asked."""
    hosts: dict[str, Witness] = {}
    for witness in witnesses:
        hosts.setdefault(witness.endpoint.host, witness)
    return tuple(list(hosts.values())[:WITNESSES_MAX])
