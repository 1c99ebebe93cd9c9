"""A world of protocol cores: one thread, one heap of events, one seed. Same seed, same world.

    world = World(seed=7, link=Link(delay_s=(0.001, 0.02), loss=0.1))
    world.add("node", lambda: NodeShell(...))
    world.add_host("peer", lambda host: PeerShell(host.disk, host.clock, host.rng))
    world.tell("node", "submit", task)        # a local wish: any verb of the core that returns effects
    world.after(0.5, world.crash, "node")
    world.run(until=10)

A participant is a core, or the few lines around one that turn its effects into messages:

    receive(sender, message, now)    tick(now)    next_deadline()    validate()

`Send` effects travel over links (`links.Link`); `Dial`, `Transmit` and `Hangup` make connections that may break
(`connections`); all others are recorded in `world.events` for the checkers. After each step the participant that moved
is validated, and so are the invariants that `watch` was given. Whatever fails carries the seed and the last steps as a
note. `trace_hash` is the same for the same seed, in every process.

Dials. Links lose, delay, duplicate and reorder. Directions between participants are cut, by pairs or between groups, or
clogged for a while. Participants crash, with or without the machine under them, start again with their disk, with an
older one or without, are paused (SIGSTOP) or suspended (a lid is closed), are copied, and have clocks that are wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, NoReturn, Protocol

from lattica.testing.connections import Connections
from lattica.testing.host import Disk, Host, HostClock
from lattica.testing.links import DATAGRAMS, FOREVER, SOCKET, Ends, Link, Obstacles, across, directions
from lattica.testing.messages import Closed, Messages, Send
from lattica.testing.trace import Trace

STEPS_MAX = 2_000_000  # about a minute of CPU; a world that needs more breeds events

__all__ = [
    "DATAGRAMS",
    "FOREVER",
    "SOCKET",
    "Closed",
    "Core",
    "Disk",
    "Gone",
    "Host",
    "HostClock",
    "Link",
    "Send",
    "World",
]


class Core(Protocol):
    """What the world drives. `receive` is called only where somebody uses `Send`; for dialed connections a core has
    the verbs of `connections` instead."""

    def tick(self, now: float) -> Sequence[object]: ...
    def next_deadline(self) -> float | None: ...
    def validate(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Gone:
    """Event: the participant's process has crashed, and with it whatever it waited for."""


@dataclass(slots=True)
class _Participant:
    factory: Callable[[Host], Core]
    core: Core
    host: Host
    boot: int = 1  # counts up at each restart
    alive: bool = True
    dark: bool = False  # its machine lost power
    paused: bool = False
    asleep: bool = False
    armed: float | None = None  # when the core wants its tick, by its own clock
    wakes_at: float | None = None  # world time of the one event on the heap that looks after that
    mail: deque[Callable[[], None]] = field(default_factory=deque)  # what waits while it is paused or asleep


class World:
    """See the module. Times are seconds of world time, from 0."""

    def __init__(self, seed: int, *, link: Link = SOCKET, steps_max: int = STEPS_MAX) -> None:
        """link: between all participants, where `links` says nothing else. steps_max: then the world fails."""
        self.seed, self.rng, self.now, self.link, self.steps_max = seed, Random(seed), 0.0, link, steps_max
        self.links: dict[Ends, Link] = {}  # (sender, receiver) -> where it differs from `link`
        self.obstacles = Obstacles()
        self.events: list[tuple[float, str, object]] = []  # (when, who, effect that the world does not carry out)
        self.tally: dict[str, int] = {"steps": 0, "sent": 0, "lost": 0, "duplicated": 0, "crashes": 0}
        self._trace = Trace()
        self._participants: dict[str, _Participant] = {}
        self._invariants: list[Callable[[], None]] = []
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()  # breaks ties, so that equal times never compare messages
        self._performers: dict[type, Callable[[str, Any], None]] = {}
        self._messages = Messages(self)
        self.connections = Connections(self)

    def __repr__(self) -> str:
        return f"<World {self.seed}: {self.now:g} s, {len(self._participants)} participants, {len(self._queue)} due>"

    # ---- who is there -------------------------------------------------------------------------------------------

    def add(self, name: str, factory: Callable[[], Core]) -> None:
        """A participant from now on; `factory` is called again for each restart."""
        self.add_host(name, lambda host: factory())

    def add_host(
        self,
        name: str,
        factory: Callable[[Host], Core],
        *,
        disk: Disk | None = None,
        offset_s: float = 0.0,
        drift: float = 0.0,
        uptime_s: float = 0.0,
    ) -> Host:
        """A participant on a machine of its own: the factory gets a `Host`, with a disk that outlives the process,
        clocks and dice. `now` is then that host's. disk: what it begins with, as a copy; the rest: `HostClock`."""
        assert name not in self._participants, f"there is a {name} already"
        clock = HostClock(self, offset_s=offset_s, drift=drift, uptime_s=uptime_s)
        host = Host(name, self.seed, disk.copy() if disk else Disk(), clock)
        self._participants[name] = _Participant(factory, factory(host), host)
        self._arm(name)
        return host

    def clone(self, name: str, copy: str, factory: Callable[[Host], Core] | None = None) -> Host:
        """Start a second participant from a copy of the first one's disk, as it is now: its directory was copied."""
        original = self._participants[name]
        return self.add_host(copy, factory or original.factory, disk=original.host.disk)

    def connect(self, one: str, other: str) -> None:
        """They have a connection, even if nothing is sent over it: the end of one is told to the other. For socket
        links; connections that are dialed tell by themselves."""
        self._messages.connect(one, other)

    def listen(self, address: str, name: str) -> None:
        """Who dials this address reaches this participant."""
        self.connections.listen(address, name)

    def core(self, name: str) -> Any:
        return self._participants[name].core

    def host(self, name: str) -> Host:
        return self._participants[name].host

    def has(self, name: str) -> bool:
        """Whether it was ever added."""
        return name in self._participants

    def boot_of(self, name: str) -> int:
        """How often it was started."""
        return self._participants[name].boot

    def is_boot(self, name: str, boot: int) -> bool:
        """Whether that process of this participant lives."""
        participant = self._participants[name]
        return participant.alive and participant.boot == boot

    def is_alive(self, name: str) -> bool:
        return name in self._participants and self._participants[name].alive

    def is_paused(self, name: str) -> bool:
        return self._participants[name].paused

    def is_up(self, name: str) -> bool:
        """Whether its machine answers, even if nobody lives there."""
        participant = self._participants[name]
        return not participant.dark and not participant.asleep

    @property
    def living(self) -> list[str]:
        return [name for name, participant in self._participants.items() if participant.alive]

    # ---- what happens -------------------------------------------------------------------------------------------

    def tell(self, name: str, verb: str, *args: object) -> None:
        """Call a verb of a living participant now, as its own machine would, and carry out the effects."""
        self.deliver(name, self._participants[name].boot, verb, args)

    def after(self, delay_s: float, do: Callable[..., object], *args: object) -> None:
        """Call anything later: workload and faults alike."""
        self.at(self.now + delay_s, self._guarded, do, args)

    def watch(self, invariant: Callable[[], None]) -> None:
        """Assert this after every step."""
        self._invariants.append(invariant)

    def run(self, until: float) -> None:
        """Let the world go on until this time; `now` is then exactly that."""
        queue, tally, steps_max = self._queue, self.tally, self.steps_max
        while queue and queue[0][0] <= until:
            self.now, _, event, args = heappop(queue)
            tally["steps"] += 1
            if tally["steps"] > steps_max:
                self._fail(f"{steps_max} steps by {self.now:g} s: something breeds events")
            event(*args)
        self.now = until

    def run_until(self, condition: Callable[[], object], *, within_s: float, missing: Callable[[], str]) -> None:
        """Let the world go on until a condition holds: liveness. If it does not in time, `missing` says what is."""
        limit = self.now + within_s
        while not condition():
            if not self._queue or self._queue[0][0] > limit:
                self._fail(f"not there {within_s:g} s after {limit - within_s:g} s: {missing()}")
            self.run(self._queue[0][0])

    @property
    def trace(self) -> list[str]:
        """The last steps, a line each, oldest first."""
        return self._trace.lines()

    def trace_hash(self) -> str:
        """Of everything that happened so far; equal for equal seeds, in every process."""
        return self._trace.digest()

    # ---- faults -------------------------------------------------------------------------------------------------

    def crash(self, name: str, *, power: bool = False) -> None:
        """End it at once. Its connections close after what it had sent; mail and ticks for it are lost.

        power: its machine goes dark with it, so that its connections do not close: the others hear nothing until they
        write, and then only in time.
        """
        participant = self._participants[name]
        if not participant.alive:
            return
        participant.alive = participant.paused = participant.asleep = False
        participant.dark = power
        participant.mail.clear()
        if not participant.host.clock.running:
            participant.host.clock.go_on()
        self.tally["crashes"] += 1
        self.note(name, "lost power" if power else "crashed")
        self.events.append((self.now, name, Gone()))
        if not power:
            self._messages.crashed(name)
        self.connections.crashed(name, dark=power)

    def restart(self, name: str, *, disk: Disk | None = None) -> None:
        """Start a fresh core under the same name; it remembers nothing but what its factory gives it.

        disk: what its host has from now on, as a copy: an older snapshot, or `Disk()` for a lost one; else it is as the
        last process left it.
        """
        participant = self._participants[name]
        assert not participant.alive, f"{name} is alive"
        if disk is not None:
            participant.host.disk = disk.copy()
        participant.host.next_boot()
        participant.boot += 1
        participant.core, participant.alive, participant.dark = participant.factory(participant.host), True, False
        participant.armed = participant.wakes_at = None
        self.note(name, "started again")
        self._arm(name)
        self.connections.resume()

    def snapshot(self, name: str) -> Disk:
        """A copy of its disk, for a later `restart`."""
        return self._participants[name].host.disk.copy()

    def pause(self, name: str) -> None:
        """Stop the process (SIGSTOP): it lives, its mail and timers wait."""
        self._participants[name].paused = True
        self.note(name, "paused")

    def resume(self, name: str) -> None:
        participant = self._participants[name]
        if not participant.paused:
            return
        participant.paused = False
        self.note(name, "resumed")
        self._read_mail(participant)

    def suspend(self, name: str) -> None:
        """Close the lid: its monotonic clock stands still, datagrams for it are lost, what comes over connections waits
        until those who write lose patience."""
        participant = self._participants[name]
        if participant.asleep or not participant.alive:
            return
        participant.asleep, participant.wakes_at = True, None
        participant.host.clock.stop()
        self.note(name, "suspended")

    def wake(self, name: str) -> None:
        """Open the lid again: its wall clock has jumped."""
        participant = self._participants[name]
        if not participant.asleep:
            return
        participant.asleep = False
        participant.host.clock.go_on()
        self.note(name, "woke")
        self._read_mail(participant)
        self._rearm(participant)
        self.connections.resume()

    def set_clock(self, name: str, *, offset_s: float | None = None, drift: float | None = None) -> None:
        """Set its wall clock ahead, or let both its clocks run too fast from now on."""
        participant = self._participants[name]
        participant.host.clock.set(offset_s=offset_s, drift=drift)
        self.note(name, f"has its clock {offset_s} s ahead, {drift} too fast")
        self._rearm(participant)

    def cut(self, sender: str, receiver: str, *, both: bool = True) -> None:
        """Datagrams between the two are lost until `mend` or `heal`; dialed connections stall, and time out."""
        assert not self._messages.link(sender, receiver).connection, "a connection is not cut, it closes: crash one end"
        self.note(sender, f"is cut from {receiver}, {'both ways' if both else 'one way'}")
        self.obstacles.cut(directions(sender, receiver, both=both), self.now)

    def partition(self, *groups: Iterable[str], both: bool = True) -> None:
        """Cut the groups from one another; not both: only what goes from a group to a later one."""
        for sender, receiver in across(groups, both=both):
            self.cut(sender, receiver, both=False)

    def mend(self, sender: str, receiver: str, *, both: bool = True) -> None:
        """Undo one cut."""
        for ends in directions(sender, receiver, both=both):
            self.obstacles.cut_since.pop(ends, None)
        self.note(sender, f"is joined with {receiver}, {'both ways' if both else 'one way'}")
        self.connections.resume()

    def clog(self, sender: str, receiver: str, for_s: float = FOREVER, *, both: bool = False) -> None:
        """What is sent waits so long (FOREVER: until `heal`), and then arrives all at once, in order."""
        self.note(sender, f"is clogged towards {receiver} for {for_s:g} s, {'both ways' if both else 'one way'}")
        for ends in directions(sender, receiver, both=both):
            until = max(self.now + for_s, self.obstacles.clogged_until.get(ends, 0.0))
            self.obstacles.clogged_until[ends] = until
            if until < FOREVER:
                self.at(until, self._messages.unclog, ends)

    def heal(self) -> None:
        """End loss, duplicates, cuts and clogs, and let the paused and the suspended go on; the dead stay dead, broken
        connections broken, clocks wrong. Then demand liveness."""
        self.note("the world", "heals")
        for ends in self.obstacles.clear():
            self._messages.release(ends)
        self.link = self.link.healed()
        self.links = {ends: link.healed() for ends, link in self.links.items()}
        for name in self.living:
            self.resume(name)
            self.wake(name)
        self.connections.healed()

    # ---- for those that carry effects out -----------------------------------------------------------------------

    def perform_by(self, kind: type, perform: Callable[[str, Any], None]) -> None:
        """Effects of exactly this type are carried out by `perform(name, effect)` instead of being recorded."""
        self._performers[kind] = perform

    def at(self, due: float, event: Callable[..., None], *args: object) -> None:
        """Call at this time, unguarded: for the machinery. Others use `after`."""
        heappush(self._queue, (due, next(self._order), event, args))

    def note(self, who: str, what: str) -> None:
        """A line in the trace, for what no verb shows."""
        self._trace.note((self.now, who, what, None))

    def count(self, what: str) -> None:
        """One more of these in the tally."""
        self.tally[what] = self.tally.get(what, 0) + 1

    def deliver(
        self, name: str, boot: int, verb: str, args: tuple[object, ...], options: dict[str, Any] | None = None
    ) -> None:
        """Call a verb of that process, if it still lives. options: further arguments by name, after `now`."""
        participant = self._participants[name]
        if participant.boot != boot or not participant.alive:
            return
        if participant.paused or participant.asleep:
            participant.mail.append(lambda: self.deliver(name, boot, verb, args, options))
            return
        self._trace.note((self.now, name, verb, args))
        core, clock = participant.core, participant.host.clock
        try:
            now = self.now if clock.exact else clock.now()
            call = getattr(core, verb)
            for effect in call(*args, now) if options is None else call(*args, now, **options):
                performer = self._performers.get(type(effect))
                if performer is not None:
                    performer(name, effect)
                else:
                    self.events.append((self.now, name, effect))
                    self._trace.count((name, effect))
            if participant.alive:
                participant.core.validate()
            for invariant in self._invariants:
                invariant()
        except Exception as failure:
            self._annotate(failure)
            raise
        self._arm(name)

    # ---- the machinery ------------------------------------------------------------------------------------------

    def _guarded(self, do: Callable[..., object], args: tuple[object, ...]) -> None:
        try:
            do(*args)
            for invariant in self._invariants:
                invariant()
        except Exception as failure:
            self._annotate(failure)
            raise

    def _read_mail(self, participant: _Participant) -> None:
        while participant.mail and not participant.paused and not participant.asleep:
            participant.mail.popleft()()

    # -- timers

    def _arm(self, name: str) -> None:
        """See that the core is ticked when it wants to be, with one event on the heap."""
        participant = self._participants[name]
        due = participant.armed = participant.core.next_deadline()
        if due is not None:
            self._await(participant, due)

    def _await(self, participant: _Participant, due: float) -> None:
        clock = participant.host.clock
        at = due if clock.exact else clock.reached_at(due)
        if at < self.now:
            at = self.now
        if (participant.wakes_at is None or at < participant.wakes_at) and at < FOREVER:
            participant.wakes_at = at
            heappush(self._queue, (at, next(self._order), self._look, (participant, participant.boot, at)))

    def _rearm(self, participant: _Participant) -> None:
        """Its clock has changed, so what is on the heap may be too late."""
        participant.wakes_at = None
        if participant.alive:
            self._arm(participant.host.name)

    def _look(self, participant: _Participant, boot: int, at: float) -> None:
        """Tick it if that is due. A deadline that moved on is looked after again, one that came nearer was."""
        if participant.wakes_at != at or participant.boot != boot or not participant.alive:
            return
        participant.wakes_at = None
        due, name = participant.armed, participant.host.name
        if due is None:
            return
        if due > participant.host.clock.now():
            self._await(participant, due)
            return
        participant.armed = None
        self.deliver(name, boot, "tick", ())
        again = participant.armed
        if again is not None and again <= due:
            self._fail(f"{name}.tick at {due} left its deadline where it was")

    # -- words

    def _fail(self, what: str) -> NoReturn:
        failure = AssertionError(what)
        self._annotate(failure)
        raise failure

    def _annotate(self, failure: Exception) -> None:
        if not getattr(failure, "__notes__", None):  # the innermost step has said it already
            failure.add_note("\n".join([f"replay with seed {self.seed}; the last steps were:", *self.trace]))
