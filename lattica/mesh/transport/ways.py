"""TCP and QUIC as one transport: TCP wherever it works, since it carries many times what QUIC in Python does.

    Dial ──► TCP at once ─────────────────────────────┐ the first that proves to be the peer;
        └──► QUIC to the same addresses, 0.3 s later ─┘ the other is given up, or hung up

QUIC begins earlier where TCP has failed already, and 0.05 s later to addresses `relay/…`; bulk joins the QUIC
connection that carries the control plane, if one does. Connections have numbers of their own on both sides: here they
are told apart by the last bit.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec

from lattica.errors import ConfigError
from lattica.mesh import tls
from lattica.mesh.addresses import split_host
from lattica.mesh.effects import NOBODY_LISTENS, Dial
from lattica.mesh.identity import PeerId
from lattica.mesh.links import DATAGRAM_RANK, STREAM_RANK, Member
from lattica.mesh.transport.interface import Owner, Transport
from lattica.mesh.transport.quic import RELAY, Quic
from lattica.mesh.transport.tcp import Tcp
from lattica.mesh.wire import BULK, CONTROL, Frame, Received

log = logging.getLogger(__name__)
QUIC_AFTER_S = 0.3
"""The head start of TCP: three round trips of 100 ms, TLS included. More delays peers that TCP cannot reach, less
begins handshakes of 5 ms of CPU for nothing."""
RELAY_AFTER_S = 0.05
"""The same for a peer that can be reached by way of a relay, too: within one site TCP is up by then, and no relay is
asked for a channel that nobody needs."""
QUIC_BULK_AFTER_S = 3.0  # of bulk whose control plane goes by TCP: it can wait for a lost packet
PORTS_TRIED = 8  # until one is free for both
REFUSED_MAX = 4096  # peers remembered at whose addresses nobody listened
TCP, QUIC = 0, 1  # the last bit of a number
ALL = ("tcp", "quic")
REFUSED_S = 0.6
"""For QUIC, once a machine has said that nobody listens there: two round trips of the longest path on Earth. The next
dial should not wait for it, since the process may be starting again."""


class _Attempt:
    """A dial under way, on one side or both."""

    __slots__ = ("dial", "final", "reasons", "timer", "under_way")

    def __init__(self, dial: Dial) -> None:
        self.dial = dial
        self.under_way: set[int] = set()
        self.reasons: list[str] = []
        self.final = False
        self.timer: asyncio.TimerHandle | None = None


class Ways:
    """See the module; a `Transport`."""

    def __init__(
        self,
        owner: Owner,
        contexts: tls.Contexts,
        keys: tls.Keys,
        renew: Callable[[asyncio.StreamReader, Callable[[bytes], None]], Awaitable[None]] | None = None,
        *,
        only: Collection[str] = ALL,
    ) -> None:
        """contexts, keys: of our own certificates. renew: see `Tcp`. only: "tcp", "quic" or both."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.tcp = Tcp(_Side(self, TCP), contexts, renew) if "tcp" in only else None
        self.quic = Quic(_Side(self, QUIC), keys) if "quic" in only else None
        self._attempts: dict[int, _Attempt] = {}
        self._refused: dict[PeerId, None] = {}  # whom nobody answers for, as was said last time

    def __repr__(self) -> str:
        return f"<Ways: {self.tcp!r}, {self.quic!r}>"

    # -- the interface

    async def listen(self, address: str) -> Sequence[str]:
        """Accept connections at "host:port", by TCP and by UDP on one port."""
        if self.tcp is None or self.quic is None:
            side = self.tcp or self.quic
            assert side is not None, "there is at least one way"
            return await side.listen(address)
        host, port = split_host(address)
        for tried in range(1, PORTS_TRIED + 1):
            try:
                bound = await self.quic.listen(address)
            except ConfigError as error:
                if not _is_denied(error.__cause__):
                    raise
                alone = await self.tcp.listen(address)
                log.warning("UDP is withheld from this node (%s): TCP alone is used", error.__cause__)
                return alone
            free = split_host(bound[0])[1]
            try:
                return await self.tcp.listen(f"[{host}]:{free}" if ":" in host else f"{host}:{free}")
            except ConfigError:  # that port is free for UDP alone
                self.quic.stop_listening()
                if port or tried == PORTS_TRIED:
                    raise
        raise AssertionError("the last try returns or raises")

    async def listen_tls(self, address: str) -> Sequence[str]:
        """Accept connections at another address, by TCP alone. Raises ConfigError."""
        if self.tcp is None:
            raise ConfigError("this node uses no TCP", do_next="start it without a port for TLS")
        return await self.tcp.listen(address)

    def dial(self, dial: Dial) -> None:
        attempt = self._attempts[dial.attempt] = _Attempt(dial)
        relayed = any(address.startswith(RELAY) for address in dial.addresses)
        direct = tuple(address for address in dial.addresses if not address.startswith(RELAY))
        joins = dial.plane == BULK and self.quic is not None and self.quic.carries(dial.peer) is not None
        ready = self.tcp is not None and self.tcp.is_ready(dial.peer, dial.plane)
        if self.tcp is not None and (ready or (not joins and (direct or self.quic is None))):
            attempt.under_way.add(TCP)
            self.tcp.dial(msgspec.structs.replace(dial, addresses=direct))
        if self.quic is None or ready:
            return
        doubted = self._refused.pop(dial.peer, self) is None
        if joins or doubted or TCP not in attempt.under_way:
            self._begin_quic(attempt)
        else:
            after_s = QUIC_BULK_AFTER_S if dial.plane != CONTROL else RELAY_AFTER_S if relayed else QUIC_AFTER_S
            attempt.timer = self._loop.call_later(after_s, self._begin_quic, attempt)

    def write(self, number: int, frame: Frame) -> None:
        side = self.quic if number & 1 else self.tcp
        if side is not None:
            side.write(number >> 1, frame)

    def flush(self) -> None:
        if self.tcp is not None and self.tcp.dirty:
            self.tcp.flush()
        if self.quic is not None and self.quic.dirty:
            self.quic.flush()

    def hang_up(self, number: int) -> None:
        side = self._side(number)
        if side is not None:
            side.hang_up(number >> 1)

    def path(self, number: int) -> tuple[str, str]:
        side = self._side(number)
        return ("", "") if side is None else side.path(number >> 1)

    async def close(self) -> None:
        for attempt in self._attempts.values():
            if attempt.timer is not None:
                attempt.timer.cancel()
        self._attempts.clear()
        sides: list[Transport] = [side for side in (self.tcp, self.quic) if side is not None]
        await asyncio.gather(*(side.close() for side in sides))

    def _side(self, number: int) -> Tcp | Quic | None:
        return self.quic if number & 1 else self.tcp

    # -- dialing

    def _begin_quic(self, attempt: _Attempt) -> None:
        if attempt.timer is not None:
            attempt.timer.cancel()
            attempt.timer = None
        assert self.quic is not None, "it was not to be tried"
        attempt.under_way.add(QUIC)
        self.quic.dial(attempt.dial)

    def dialed(self, side: int, number: int, made: int, member: Member) -> None:
        """One side has connected: `made` is its number of the connection."""
        attempt = self._attempts.pop(number, None)
        if attempt is None:  # the other one was faster
            self.hang_up(made << 1 | side)
            if side == TCP:  # ... and is not better: dial again, now that it is known to work
                self._loop.call_soon(self._owner.better, member.peer)
            return
        if attempt.timer is not None:
            attempt.timer.cancel()
        if side == TCP and QUIC in attempt.under_way and self.quic is not None:
            self.quic.give_up(number)
        self._refused.pop(attempt.dial.peer, None)
        self._owner.dialed(number, made << 1 | side, member, RANKS[side])

    def failed(self, side: int, number: int, reason: str, final: bool) -> None:
        """One side's dial came to nothing. If the other may still succeed, nothing is said yet."""
        attempt = self._attempts.get(number)
        if attempt is None:
            return
        attempt.under_way.discard(side)
        attempt.reasons.append(reason)
        attempt.final = attempt.final or final
        waits = attempt.timer is not None and QUIC not in attempt.under_way
        if waits and not final and not self._nobody_there(attempt, reason):
            self._begin_quic(attempt)
        elif not attempt.under_way or final:
            self._give_up(attempt)
        elif side == TCP and self._nobody_there(attempt, reason):
            attempt.timer = self._loop.call_later(REFUSED_S, self._give_up, attempt)

    def _nobody_there(self, attempt: _Attempt, reason: str) -> bool:
        """The machine answers at every address, and no process: told at once, for others wait for that word. A
        firewall may say so as well, so the next dial of this peer is by QUIC too, whatever TCP says."""
        if not all(NOBODY_LISTENS in why for why in reason.split("; ")):
            return False
        if len(self._refused) >= REFUSED_MAX:
            self._refused.clear()
        self._refused[attempt.dial.peer] = None
        return True

    def _give_up(self, attempt: _Attempt) -> None:
        number = attempt.dial.attempt
        del self._attempts[number]
        if attempt.timer is not None:
            attempt.timer.cancel()
        if QUIC in attempt.under_way and self.quic is not None:
            self.quic.give_up(number)
        self._owner.dial_failed(number, "; ".join(attempt.reasons), attempt.final)


def _is_denied(error: object) -> bool:
    """Whether UDP is withheld from us, as in some sandboxes: not that a port is taken, or an address is nobody's."""
    denied = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
    return isinstance(error, OSError) and error.errno in denied


RANKS = (STREAM_RANK, DATAGRAM_RANK)


class _Side:
    """The owner of one of the two: hands on what it says, with numbers of ours."""

    def __init__(self, ways: Ways, side: int) -> None:
        self._ways, self._side = ways, side
        self._owner = ways._owner

    def dialed(self, attempt: int, number: int, member: Member, rank: int = 0) -> None:
        self._ways.dialed(self._side, attempt, number, member)

    def dial_failed(self, attempt: int, reason: str, final: bool) -> None:
        self._ways.failed(self._side, attempt, reason, final)

    def accepted(self, number: int, member: Member, rank: int = 0) -> None:
        self._owner.accepted(number << 1 | self._side, member, RANKS[self._side])

    def received(self, number: int, frames: list[Received]) -> None:
        self._owner.received(number << 1 | self._side, frames)

    def broken(self, number: int, reason: str) -> None:
        self._owner.broken(number << 1 | self._side, reason)

    def closed(self, number: int, reason: str) -> None:
        self._owner.closed(number << 1 | self._side, reason)

    def refused(self, address: str, reason: str) -> None:
        self._owner.refused(address, reason)

    def better(self, peer: PeerId, plane: int = CONTROL) -> None:
        self._owner.better(peer, plane)
