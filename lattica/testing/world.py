"""A world of protocol cores: one thread, one heap of events, one seed. Same seed, same world.

    world = World(seed=7, link=Link(delay_s=(0.001, 0.02), loss=0.1))
    world.add("node", lambda: NodeShell(...))
    world.add("driver", lambda: DriverShell(...))
    world.tell("driver", "submit", task)      # a local wish: any verb of the core that returns effects
    world.after(0.5, world.crash, "node")
    world.run(until=10)

A participant is a core, or the few lines around one that turn its effects into messages:

    receive(sender, message, now)    tick(now)    next_deadline()    validate()

`Send` effects travel over links; all others are recorded in `world.events` for the checkers. After each step the
participant that moved is validated, and so are the invariants that `watch` was given. Whatever fails carries the seed
and the last steps as a note.

Dials. A `Link` loses, delays, duplicates and reorders, as datagrams do; with `connection=True` it is a socket between
processes: in order, nothing lost while both live, what a dead process had written still arrives and then `Closed` does,
and a restarted process gets nothing meant for its predecessor. On top: crash, restart, pause (a stopped process: its
mail waits), cuts in one or both directions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, Protocol

TRACE_STEPS = 40  # the last steps shown with a failure: enough to see a race, few enough to read
STEPS_MAX = 2_000_000  # about a minute of CPU; a world that needs more breeds events


class Core(Protocol):
    def receive(self, sender: str, message: Any, now: float) -> Sequence[object]: ...
    def tick(self, now: float) -> Sequence[object]: ...
    def next_deadline(self) -> float | None: ...
    def validate(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Send:
    """Effect: a message for another participant."""

    to: str
    message: object


@dataclass(frozen=True, slots=True)
class Closed:
    """Message from a participant that is no more, to all with whom it had a connection; the last one from it."""


@dataclass(frozen=True, slots=True)
class Link:
    """How messages travel. Probabilities are per message, delays uniform in seconds.

    loss up: retries are exercised; above 0.5 most protocols only retry. delay_s wide: reorders, unless `connection`.
    """

    delay_s: tuple[float, float] = (0.000_05, 0.001)
    loss: float = 0.0
    duplicates: float = 0.0
    connection: bool = False


SOCKET = Link(connection=True)
DATAGRAMS = Link(delay_s=(0.01, 0.2), loss=0.1, duplicates=0.05)


@dataclass(slots=True)
class _Participant:
    factory: Callable[[], Core]
    core: Core
    boot: int = 1  # counts up at each restart
    alive: bool = True
    paused: bool = False
    armed: float | None = None  # one tick per deadline, or idle participants would breed ticks
    mail: deque[Callable[[], None]] = field(default_factory=deque)  # what waits while it is paused


class World:
    """See the module. Times are seconds of world time, from 0."""

    def __init__(self, seed: int, *, link: Link = SOCKET) -> None:
        self.seed, self.rng, self.now, self.link = seed, Random(seed), 0.0, link
        self.links: dict[tuple[str, str], Link] = {}  # (sender, receiver) -> where it differs from `link`
        self.events: list[tuple[float, str, object]] = []  # (when, who, effect that is no Send)
        self.tally: dict[str, int] = {"steps": 0, "sent": 0, "lost": 0, "duplicated": 0, "crashes": 0}
        self.trace: deque[str] = deque(maxlen=TRACE_STEPS)
        self._participants: dict[str, _Participant] = {}
        self._invariants: list[Callable[[], None]] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()  # breaks ties, so that equal times never compare messages
        self._cut: set[tuple[str, str]] = set()
        self._arrives: dict[tuple[str, str], float] = {}  # connections: when the last message sent so far is there

    # ---- who is there -------------------------------------------------------------------------------------------

    def add(self, name: str, factory: Callable[[], Core]) -> None:
        """A participant from now on; `factory` is called again for each restart."""
        assert name not in self._participants, f"there is a {name} already"
        self._participants[name] = _Participant(factory, factory())
        self._arm(name)

    def connect(self, one: str, other: str) -> None:
        """They have a connection, even if nothing is sent over it: the end of one is told to the other."""
        self._arrives.setdefault((one, other), 0.0)
        for dead, living in ((one, other), (other, one)):
            if not self.is_alive(dead):
                self._transmit(dead, living, Closed())

    def core(self, name: str) -> Any:
        return self._participants[name].core

    def is_alive(self, name: str) -> bool:
        return name in self._participants and self._participants[name].alive

    @property
    def living(self) -> list[str]:
        return [name for name, participant in self._participants.items() if participant.alive]

    # ---- what happens -------------------------------------------------------------------------------------------

    def tell(self, name: str, verb: str, *args: object) -> None:
        """Call a verb of a living participant now, as its own machine would, and carry out the effects."""
        self._deliver(name, self._participants[name].boot, verb, *args)

    def after(self, delay_s: float, do: Callable[..., object], *args: object) -> None:
        """Call anything later: workload and faults alike."""
        self._at(self.now + delay_s, lambda: self._guarded(lambda: do(*args)))

    def watch(self, invariant: Callable[[], None]) -> None:
        """Assert this after every step."""
        self._invariants.append(invariant)

    def run(self, until: float) -> None:
        """Let the world go on until this time; `now` is then exactly that."""
        while self._queue and self._queue[0][0] <= until:
            due, _, event = heappop(self._queue)
            self.now = due
            self.tally["steps"] += 1
            assert self.tally["steps"] <= STEPS_MAX, f"{STEPS_MAX} steps by {self.now:g} s: something breeds events"
            event()
        self.now = until

    def run_until(self, condition: Callable[[], object], *, within_s: float, missing: Callable[[], str]) -> None:
        """Let the world go on until a condition holds: liveness. If it does not in time, `missing` says what is."""
        limit = self.now + within_s
        while not condition():
            if not self._queue or self._queue[0][0] > limit:
                failure = AssertionError(f"not there {within_s:g} s after {limit - within_s:g} s: {missing()}")
                self._annotate(failure)
                raise failure
            self.run(self._queue[0][0])

    # ---- faults -------------------------------------------------------------------------------------------------

    def crash(self, name: str) -> None:
        """End it at once. Its connections close after what it had sent; mail and ticks for it are lost."""
        participant = self._participants[name]
        if not participant.alive:
            return
        participant.alive = False
        participant.paused = False
        participant.mail.clear()
        self.tally["crashes"] += 1
        self._note(f"{name} crashed")
        for other in self.living:
            if self._link(name, other).connection and {(name, other), (other, name)} & self._arrives.keys():
                self._transmit(name, other, Closed())

    def restart(self, name: str) -> None:
        """Start a fresh core under the same name; it remembers nothing but what its factory gives it."""
        participant = self._participants[name]
        assert not participant.alive, f"{name} is alive"
        participant.core, participant.alive, participant.armed = participant.factory(), True, None
        participant.boot += 1
        self._note(f"{name} started again")
        self._arm(name)

    def pause(self, name: str) -> None:
        """Stop the process (SIGSTOP): it lives, its mail and timers wait."""
        self._participants[name].paused = True
        self._note(f"{name} paused")

    def resume(self, name: str) -> None:
        participant = self._participants[name]
        if not participant.paused:
            return
        participant.paused = False
        self._note(f"{name} resumed")
        while participant.mail and not participant.paused:
            participant.mail.popleft()()

    def cut(self, sender: str, receiver: str, *, both: bool = True) -> None:
        """Messages between the two are lost until `heal`. For datagrams: a socket does not lose."""
        assert not self._link(sender, receiver).connection, "a connection is not cut, it closes: crash one end"
        self._cut |= {(sender, receiver), (receiver, sender)} if both else {(sender, receiver)}

    def heal(self) -> None:
        """End loss, duplicates and cuts, and let the paused go on; the dead stay dead. Then demand liveness."""
        self._cut.clear()
        whole = {"loss": 0.0, "duplicates": 0.0}
        self.link = Link(self.link.delay_s, connection=self.link.connection, **whole)
        self.links = {
            ends: Link(link.delay_s, connection=link.connection, **whole) for ends, link in self.links.items()
        }
        for name in self.living:
            if self._participants[name].paused:
                self.resume(name)

    # ---- the machinery ------------------------------------------------------------------------------------------

    def _deliver(self, name: str, boot: int, verb: str, *args: object) -> None:
        participant = self._participants[name]
        if not participant.alive or participant.boot != boot:
            return
        if participant.paused:
            participant.mail.append(lambda: self._deliver(name, boot, verb, *args))
            return
        self._note(f"{name}.{verb}({', '.join(map(repr, args))})")
        self._guarded(lambda: self._perform(name, getattr(participant.core, verb)(*args, self.now)), name)
        self._arm(name)

    def _perform(self, name: str, effects: Sequence[object]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._send(name, effect.to, effect.message)
            else:
                self.events.append((self.now, name, effect))

    def _guarded(self, step: Callable[[], object], name: str = "") -> None:
        try:
            step()
            if name and self.is_alive(name):
                self._participants[name].core.validate()
            for invariant in self._invariants:
                invariant()
        except Exception as failure:
            self._annotate(failure)
            raise

    def _send(self, sender: str, receiver: str, message: object) -> None:
        link = self._link(sender, receiver)
        self.tally["sent"] += 1
        if link.connection:
            self._transmit(sender, receiver, message)
        elif (sender, receiver) in self._cut or self.rng.random() < link.loss:
            self.tally["lost"] += 1
        else:
            copies = 2 if self.rng.random() < link.duplicates else 1
            self.tally["duplicated"] += copies - 1
            for _ in range(copies):
                self._transmit(sender, receiver, message)

    def _transmit(self, sender: str, receiver: str, message: object) -> None:
        link, ends = self._link(sender, receiver), (sender, receiver)
        due = self.now + self.rng.uniform(*link.delay_s)
        if link.connection:
            due = self._arrives[ends] = max(due, self._arrives.get(ends, 0.0))
        target = self._participants.get(receiver)
        boot_sent = target.boot if target else 1

        def arrive() -> None:
            there = self._participants.get(receiver)
            if there:  # datagrams find whoever listens now; a connection is to one process
                self._deliver(receiver, boot_sent if link.connection else there.boot, "receive", sender, message)

        self._at(due, arrive)

    def _arm(self, name: str) -> None:
        participant = self._participants[name]
        due = participant.core.next_deadline()
        if due is None:
            participant.armed = None
        elif due != participant.armed:
            participant.armed = due
            self._at(max(due, self.now), lambda: self._tick(name, participant.boot, due))

    def _tick(self, name: str, boot: int, due: float) -> None:
        participant = self._participants[name]
        if participant.armed == due and participant.boot == boot:  # else a later wish replaced it
            participant.armed = None
            self._deliver(name, boot, "tick")
            again = participant.armed
            assert again is None or again > due, f"{name}.tick at {due} left its deadline where it was"

    def _link(self, sender: str, receiver: str) -> Link:
        return self.links.get((sender, receiver), self.link)

    def _at(self, due: float, event: Callable[[], None]) -> None:
        heappush(self._queue, (due, next(self._order), event))

    def _note(self, what: str) -> None:
        self.trace.append(f"{self.now:12.6f}  {what:.200}")

    def _annotate(self, failure: Exception) -> None:
        if not getattr(failure, "__notes__", None):  # the innermost step has said it already
            failure.add_note("\n".join([f"replay with seed {self.seed}; the last steps were:", *self.trace]))
