"""Who gets the datagrams that are not QUIC's, by their first byte (`nat/datagrams`): PROBE and ANSWER go to whoever
traverses NATs, BIND, BOUND and RELAYED to whoever relays or is relayed. PUNCH has done its work by being sent.
"""

from __future__ import annotations

from collections.abc import Callable

from lattica.mesh.nat.datagrams import QUIC_BIT
from lattica.mesh.nat.routes import Route

Handler = Callable[[Route, bytes], None]


class Datagrams:
    """Of one path socket, whose `on_datagram` is `arrived`. A byte without a handler is dropped in silence: anybody
    can send anything."""

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}

    def __repr__(self) -> str:
        return f"<Datagrams: {', '.join(f'{byte:#04x}' for byte in sorted(self._handlers)) or 'all dropped'}>"

    def on(self, first_byte: int, handler: Handler) -> None:
        """From now on this handler, and no other, is called with (route, datagram) for each that begins so."""
        assert 0 <= first_byte < QUIC_BIT, f"datagrams that begin with {first_byte:#04x} are QUIC's"
        self._handlers[first_byte] = handler

    def arrived(self, route: Route, datagram: bytes) -> None:
        """A datagram of at least one byte came by this route."""
        handler = self._handlers.get(datagram[0])
        if handler is not None:
            handler(route, datagram)
