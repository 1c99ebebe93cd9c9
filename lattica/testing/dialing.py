"""From `Dial` to a connection, or to the reason why there is none: happy eyeballs, TCP's handshake, then TLS's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lattica.mesh.effects import Dial

if TYPE_CHECKING:
    from lattica.testing.connections import Connections
    from lattica.testing.world import World

CONNECT_S = 10.0  # as lattica's transports wait
STAGGER_S = 0.25  # RFC 8305 §5: how long one address is waited for before the next is tried as well
KNOCK_AGAIN_S = 1.0  # RFC 6298 §2: the first retransmission of a SYN


class _Attempt:
    __slots__ = ("addresses", "boot", "deadline", "done", "failures", "name", "number", "peer", "tried")

    def __init__(self, name: str, boot: int, dial: Dial, deadline: float) -> None:
        self.name, self.boot, self.deadline = name, boot, deadline
        self.number, self.peer, self.addresses = dial.attempt, dial.peer, dial.addresses
        self.tried = self.failures = 0
        self.done = False


class Dialing:
    """All dials under way."""

    def __init__(self, world: World, connections: Connections) -> None:
        self._world, self._connections = world, connections
        self._listeners: dict[str, str] = {}
        world.perform_by(Dial, self._dial)

    def listen(self, address: str, name: str) -> None:
        """As `Connections.listen`."""
        self._listeners[address] = name

    def unlisten(self, address: str) -> None:
        """As `Connections.unlisten`."""
        self._listeners.pop(address, None)

    def _later(self, delay_s: float, do: Callable[..., None], *args: object) -> None:
        self._world.at(self._world.now + delay_s, do, *args)

    def _dial(self, name: str, dial: Dial) -> None:
        world = self._world
        world.count("dials")
        attempt = _Attempt(name, world.boot_of(name), dial, world.now + CONNECT_S)
        if dial.addresses:
            self._later(0, self._try, attempt, 0)
        else:
            self._later(0, self._fail, attempt, "there is no address to dial")

    def _try(self, attempt: _Attempt, tried: int) -> None:
        """Knock at the next address, unless that was done meanwhile."""
        if attempt.done or attempt.tried != tried or tried == len(attempt.addresses):
            return
        attempt.tried += 1
        address, one_way = attempt.addresses[tried], self._connections.one_way_s
        self._later(STAGGER_S, self._try, attempt, attempt.tried)
        target = self._listeners.get(address)
        if target is None:
            self._later(2 * one_way(attempt.name, attempt.name), self._missed, attempt, "nobody is there")
        else:
            self._later(one_way(attempt.name, target), self._knock, attempt, address)

    def _knock(self, attempt: _Attempt, address: str) -> None:
        """A SYN arrives. A dead process's kernel refuses it; from a host that is out of reach nothing comes."""
        world, name, target, net = self._world, attempt.name, self._listeners.get(address), self._connections
        if attempt.done or not world.is_boot(name, attempt.boot):
            return
        if target is None or net.blocked(name, target) or net.blocked(target, name) or world.is_paused(target):
            if world.now >= attempt.deadline:
                self._missed(attempt, "timed out")
            else:
                world.at(min(world.now + KNOCK_AGAIN_S, attempt.deadline), self._knock, attempt, address)
            return
        back_s = net.one_way_s(target, name)
        if not world.is_alive(target):
            self._later(back_s, self._missed, attempt, "refused")
            return
        attempt.done = True
        tls_s = net.one_way_s(name, target) + net.one_way_s(target, name)
        self._later(back_s + tls_s, self._shake, attempt, target, world.boot_of(target))

    def _missed(self, attempt: _Attempt, why: str) -> None:
        """One address came to nothing."""
        attempt.failures += 1
        if attempt.failures == len(attempt.addresses) and not attempt.done:
            self._fail(attempt, why)
        else:
            self._try(attempt, attempt.tried)

    def _shake(self, attempt: _Attempt, target: str, boot: int) -> None:
        """The dialer has seen the certificate of the other side, and sends its own."""
        world, net, name = self._world, self._connections, attempt.name
        if not world.is_boot(name, attempt.boot):
            return
        if not world.is_boot(target, boot) or net.apart(target, name):
            self._fail(attempt, "closed during the handshake")
            return
        theirs = net.credential(target)
        if net.verify is not None and (why := net.verify(theirs, world.host(name).clock.unix_s())):
            self._fail(attempt, why, final=True)
            return
        who = getattr(theirs, "peer", theirs)
        if attempt.peer and attempt.peer != who:
            attempt.done = False
            self._missed(attempt, f"another peer answers: {who!r:.60}")
            return
        number = net.join(name, target)
        world.deliver(name, attempt.boot, "dialed", (attempt.number, number, theirs))

    def _fail(self, attempt: _Attempt, why: str, *, final: bool = False) -> None:
        attempt.done = True
        options = {"final": True} if final else None
        self._world.deliver(attempt.name, attempt.boot, "dial_failed", (attempt.number, why), options)
