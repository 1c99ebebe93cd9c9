"""Connections inside one process, for tests and examples: bytes go through the event loop, and nobody is verified.

network = MemoryNetwork()
one = Peer(credentials, transport=lambda owner: network.transport(owner, member))
network.sever()          # every connection breaks, and both ends hear of it
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.mesh.effects import NOBODY_LISTENS, Dial
from lattica.mesh.links import Member
from lattica.mesh.transport.interface import Owner
from lattica.mesh.wire import Decoder, Frame


class MemoryNetwork:
    """Who listens where. delay_s: one way, for every connection; on a virtual clock it costs nothing."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.listeners: dict[str, MemoryTransport] = {}
        self._transports: list[MemoryTransport] = []
        self._ports = count(1)
        self._under_way: deque[Callable[[], object]] = deque()

    def transport(self, owner: Owner, member: Member) -> MemoryTransport:
        """A transport whose other ends will see `member`."""
        made = MemoryTransport(self, owner, member)
        self._transports.append(made)
        return made

    def address(self, wanted: str) -> str:
        """The address that listening at `wanted` takes: port 0 becomes one that is free."""
        host, _, port = wanted.rpartition(":")
        return f"{host or 'memory'}:{next(self._ports) if port == '0' else port}"

    def later(self, loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
        """Call it when what is sent now arrives, after what was sent before: equal times have no order in a heap."""
        self._under_way.append(call)
        if self.delay_s:
            loop.call_later(self.delay_s, self._arrive)
        else:
            loop.call_soon(self._arrive)

    def _arrive(self) -> None:
        self._under_way.popleft()()

    def sever(self) -> int:
        """Break all connections, as a router that restarts does; how many."""
        broken = 0
        for transport in self._transports:
            broken += transport.sever()
        return broken // 2


class _End:
    def __init__(self, number: int, transport: MemoryTransport) -> None:
        self.number, self.transport = number, transport
        self.decoder = Decoder()
        self.decoder.trust()
        self.other: _End | None = None
        self.unsent: list[bytes] = []


class MemoryTransport:
    """A `Transport`."""

    def __init__(self, network: MemoryNetwork, owner: Owner, member: Member) -> None:
        self._network, self._owner, self.member = network, owner, member
        self._loop = asyncio.get_running_loop()
        self._ends: dict[int, _End] = {}
        self._numbers = count(1)
        self._listening: list[str] = []
        self._gone = False

    async def listen(self, address: str) -> Sequence[str]:
        bound = self._network.address(address)
        if bound in self._network.listeners:
            raise ConfigError(f"{bound} is taken", do_next="choose another address")
        self._network.listeners[bound] = self
        self._listening.append(bound)
        return [bound]

    def dial(self, dial: Dial) -> None:
        if not self._gone:
            self._later(self._dial, dial)

    def write(self, number: int, frame: Frame) -> None:
        end = self._ends.get(number)
        if end is not None:
            end.unsent.extend(bytes(buffer) for buffer in frame)

    def flush(self) -> None:
        for end in list(self._ends.values()):
            self._send(end)

    def hang_up(self, number: int) -> None:
        end = self._ends.pop(number, None)
        if end is not None:
            self._send(end)
            if end.other is not None:
                self._later(end.other.transport.ended, end.other, "the other side closed it")

    def path(self, number: int) -> tuple[str, str]:
        return ("memory", "") if number in self._ends else ("", "")

    async def close(self) -> None:
        for address in self._listening:
            self._network.listeners.pop(address, None)
        for number in list(self._ends):
            self.hang_up(number)

    def sever(self) -> int:
        """Break every connection of this transport; how many ends it had."""
        ends = list(self._ends.values())
        for end in ends:
            self.ended(end, "severed")
        return len(ends)

    def vanish(self) -> None:
        """What a killed process does: the other ends are closed, and nothing is heard or said here any more."""
        for address in self._listening:
            self._network.listeners.pop(address, None)
        for end in self._ends.values():
            if end.other is not None:
                self._later(end.other.transport.ended, end.other, "reset")
        self._ends.clear()
        self._gone = True

    def ended(self, end: _End, reason: str) -> None:
        """This end is no more."""
        if self._ends.pop(end.number, None) is not None:
            self._owner.closed(end.number, reason)

    def arrived(self, end: _End, data: bytes) -> None:
        """Bytes for this end."""
        if end.number not in self._ends:
            return
        try:
            frames = end.decoder.feed(data)
        except RemoteProtocolError as error:
            self._owner.broken(end.number, str(error))
            return
        if frames:
            self._owner.received(end.number, frames)

    def _dial(self, dial: Dial) -> None:
        for address in dial.addresses:
            there = self._network.listeners.get(address)
            if there is not None and there.member.peer == dial.peer:
                mine, theirs = _End(next(self._numbers), self), _End(next(there._numbers), there)
                mine.other, theirs.other = theirs, mine
                self._ends[mine.number], there._ends[theirs.number] = mine, theirs
                there._owner.accepted(theirs.number, self.member)
                self._owner.dialed(dial.attempt, mine.number, there.member)
                return
        self._owner.dial_failed(dial.attempt, NOBODY_LISTENS, False)

    def _send(self, end: _End) -> None:
        if end.unsent and end.other is not None:
            data = b"".join(end.unsent)
            end.unsent.clear()
            self._later(end.other.transport.arrived, end.other, data)

    def _later(self, call: Callable[..., object], *args: object) -> None:
        self._network.later(self._loop, partial(call, *args))
