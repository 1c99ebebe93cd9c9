"""Connections between the machines of a universe: bytes over a transport that the real peers use, and their faults.

    mesh = Wires(universe)
    peer = Peer(credentials, transport=lambda owner: mesh.transport(owner, unit, member))

As TCP has it: frames keep their order, a cut direction stalls until it is mended or somebody's patience ends, a machine
out of reach lets whoever dials wait, and one that is dark closes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lattica.errors import RemoteProtocolError
from lattica.mesh.effects import NOBODY_LISTENS, Dial
from lattica.mesh.links import Member
from lattica.mesh.transport.interface import Owner
from lattica.mesh.wire import Decoder, Frame
from lattica.testing.execution import NodeLoop, Unit, Universe

DIAL_S = 10.0  # until a dial of what does not answer is given up
PATIENCE_S = 15.0  # of a kernel with what nobody acknowledges
SLOW_S = (0.0, 0.2)  # more, one way, on a slow link


class Wires:
    """Who listens where, which directions are cut or slow."""

    def __init__(self, universe: Universe, delay_s: tuple[float, float] = (0.001, 0.02)) -> None:
        self.universe, self.delay_s = universe, delay_s
        self.listeners: dict[str, SimTransport] = {}
        self.cut: dict[tuple[str, str], None] = {}  # (from, to)
        self.slow: dict[tuple[str, str], None] = {}
        self.dark: dict[str, None] = {}  # machines without power
        self.ends: dict[WireEnd, None] = {}  # all that live, in order

    def transport(self, owner: Owner, unit: Unit, member: Member) -> SimTransport:
        """For one peer."""
        return SimTransport(self, owner, unit, member)

    def passes(self, sender: str, receiver: str) -> bool:
        """Whether what one says reaches the other."""
        return (sender, receiver) not in self.cut and sender not in self.dark and receiver not in self.dark

    def delay(self, sender: str, receiver: str) -> float:
        """Seconds on the way, at random."""
        rng = self.universe.rng
        least, most = self.delay_s
        delay_s = least + (most - least) * rng.random()
        return delay_s + rng.uniform(*SLOW_S) if (sender, receiver) in self.slow else delay_s

    def mended(self) -> None:
        """What was held up goes on."""
        for end in list(self.ends):
            end.go_on()

    def sever(self, one: str, other: str) -> int:
        """Break their connections: what is under way is lost, and each end hears so in its time."""
        broken = 0
        for end in list(self.ends):
            if {end.name, end.other.name} == {one, other}:
                end.lose("severed")
                broken += 1
        return broken


class WireEnd:
    """One end of a connection."""

    def __init__(self, transport: SimTransport, number: int) -> None:
        self.transport, self.number, self.name = transport, number, transport.name
        self.other: WireEnd = self
        self.decoder = Decoder()
        self.decoder.trust()
        self.unsent: list[bytes] = []
        self.held: list[tuple[Any, ...]] = []  # what a cut holds up, of this end's sending
        self.lost = False  # nothing of this end arrives any more
        self.epoch = 0
        self.arrives_at = 0.0
        transport.wires.ends[self] = None

    def flush(self) -> None:
        if self.unsent:
            data = b"".join(self.unsent)
            self.unsent.clear()
            self._send("arrived", data)

    def close(self, why: str) -> None:
        """Ours is gone; the other hears of it if it can."""
        self.transport.wires.ends.pop(self, None)
        self._send("ended", why)

    def lose(self, why: str) -> None:
        """What is under way from here is lost, and so is this end, in a moment."""
        self.lost = True
        self.held.clear()
        universe = self.transport.wires.universe
        universe.at(universe.now + universe.rng.uniform(0.0, 0.3), self.transport.unit, self.transport.ended, self, why)

    def go_on(self) -> None:
        if self.held and self.transport.wires.passes(self.name, self.other.name):
            held, self.held = self.held, []
            self.epoch += 1
            for what in held:
                self._send(*what)

    def _send(self, verb: str, what: object) -> None:
        wires = self.transport.wires
        universe = wires.universe
        if self.lost:
            return
        if self.held or not wires.passes(self.name, self.other.name):
            if not self.held:
                self.epoch += 1
                universe.at(universe.now + PATIENCE_S, self.transport.unit, self._impatient, self.epoch)
            self.held.append((verb, what))
            return
        self.arrives_at = max(self.arrives_at, universe.now + wires.delay(self.name, self.other.name))
        universe.at(self.arrives_at, self.other.transport.unit, self._arrives, verb, what)

    def _arrives(self, verb: str, what: object) -> None:
        if not self.lost:
            getattr(self.other.transport, verb)(self.other, what)

    def _impatient(self, epoch: int) -> None:
        if self.held and self.epoch == epoch:
            self.lost = True
            self.held.clear()
            self.transport.ended(self, "timed out")


class SimTransport:
    """A `Transport`."""

    def __init__(self, wires: Wires, owner: Owner, unit: Unit, member: Member) -> None:
        self.wires, self.unit, self.member, self.name = wires, unit, member, unit.name
        self._owner = owner
        self.loop: NodeLoop = unit.loop  # type: ignore[attr-defined]
        self._ends: dict[int, WireEnd] = {}
        self._written: dict[int, WireEnd] = {}  # since the last flush
        self._count = 0

    async def listen(self, address: str) -> Sequence[str]:
        self.wires.listeners[address] = self
        return [address]

    def dial(self, dial: Dial) -> None:
        universe, there = self.wires.universe, dial.addresses[0].partition(":")[0]
        if not (self.wires.passes(self.name, there) and self.wires.passes(there, self.name)):
            universe.at(universe.now + DIAL_S, self.unit, self._failed, dial, "it does not answer")
            return
        delay_s = self.wires.delay(self.name, there) + self.wires.delay(there, self.name)
        universe.at(universe.now + delay_s, self.unit, self._dialed, dial)

    def _dialed(self, dial: Dial) -> None:
        there = self.wires.listeners.get(dial.addresses[0])
        if there is None or not there.unit.alive or there.member.peer != dial.peer:
            self._failed(dial, NOBODY_LISTENS)
            return
        mine, theirs = self._new(), there._new()
        mine.other, theirs.other = theirs, mine
        universe = self.wires.universe
        universe.at(universe.now, there.unit, there._accepted, theirs, self.member)
        self.loop.do(self._owner.dialed, dial.attempt, mine.number, there.member)

    def _accepted(self, end: WireEnd, member: Member) -> None:
        if end.number in self._ends:
            self.loop.do(self._owner.accepted, end.number, member)

    def _failed(self, dial: Dial, why: str) -> None:
        self.loop.do(self._owner.dial_failed, dial.attempt, why, False)

    def _new(self) -> WireEnd:
        self._count += 1
        end = self._ends[self._count] = WireEnd(self, self._count)
        return end

    def write(self, number: int, frame: Frame) -> None:
        end = self._ends.get(number)
        if end is not None:
            end.unsent.append(b"".join(frame))
            self._written[number] = end

    def flush(self) -> None:
        if self._written:
            written, self._written = self._written, {}
            for number in sorted(written):  # peers are written to in the order of their hashes, now and then
                if number in self._ends:
                    written[number].flush()

    def hang_up(self, number: int) -> None:
        end = self._ends.pop(number, None)
        if end is not None:
            end.flush()
            end.close("the other side closed it")

    def path(self, number: int) -> tuple[str, str]:
        end = self._ends.get(number)
        return ("memory", end.other.name) if end is not None else ("", "")

    async def close(self) -> None:
        self.vanish()

    def vanish(self) -> None:
        """What a killed process does."""
        for address in [address for address, each in self.wires.listeners.items() if each is self]:
            del self.wires.listeners[address]
        for number in list(self._ends):
            end = self._ends.pop(number)
            end.close("reset")

    # -- from the other side

    def ended(self, end: WireEnd, why: str) -> None:
        self.wires.ends.pop(end, None)
        if self._ends.pop(end.number, None) is not None:
            self.loop.do(self._owner.closed, end.number, why)

    def arrived(self, end: WireEnd, data: bytes) -> None:
        if end.number not in self._ends:
            return
        try:
            frames = end.decoder.feed(data)
        except RemoteProtocolError as error:
            self.loop.do(self._owner.broken, end.number, str(error))
        else:
            if frames:
                self.loop.do(self._owner.received, end.number, frames)
