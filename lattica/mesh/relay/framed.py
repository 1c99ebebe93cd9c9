"""Channel datagrams over TCP and TLS, for those whose UDP is blocked: `u16 length · datagram`, big-endian.

The connection is a mesh's: both sides show certificates. By the application protocol in its handshake (ALPN,
`tls.RELAY_ALPN`) the port that it comes to tells it from a session's, so a relay needs one port for both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lattica.mesh.addresses import split_host
from lattica.mesh.nat.routes import NOWHERE, Endpoint
from lattica.mesh.relay.channels import DATAGRAM_MAX_BYTES
from lattica.mesh.transport.tls_connection import TlsConnection

LENGTH_BYTES = 2
BACKLOG_BYTES = 64 << 10
"""That wait in one connection for the kernel, at the relay: beyond it they wait in the fair queue."""
CLOSE_S = 5.0  # for the last words
BACKLOG_MAX_BYTES = 1 << 20  # at who sends: beyond it datagrams are lost, as on any link that is too slow


class Framed:
    """One such connection, on either side. It is what `TlsConnection.reader` gets decrypted bytes into."""

    def __init__(self, connection: TlsConnection, arrived: Callable[[Framed, bytes], None]) -> None:
        """arrived: hears each datagram."""
        self.drained: Callable[[Framed], None] = lambda framed: None  # what waited has gone
        self.ended: Callable[[Framed], None] = lambda framed: None
        self.over = False
        self.heard_at = connection.now()
        self.remote = _endpoint(connection.remote)
        self._connection, self._arrived = connection, arrived
        self._rest = b""
        connection.reader = self
        connection.drained = self._was_drained
        connection.write_ahead(BACKLOG_BYTES)

    def __repr__(self) -> str:
        return f"<Framed to {self.remote}>"

    def __str__(self) -> str:
        return f"tls:{self.remote}"

    @property
    def is_full(self) -> bool:
        """More should not be sent for now; `drained` says when."""
        return self._connection.paused

    def send(self, datagrams: Sequence[bytes]) -> None:
        """Send these, unless the other side does not read."""
        if self.over or self._connection.backlog > BACKLOG_MAX_BYTES:
            return
        parts = [part for one in datagrams for part in (len(one).to_bytes(LENGTH_BYTES, "big"), one)]
        self._connection.write((b"".join(parts),))
        self._connection.flush()

    def close(self, within_s: float = CLOSE_S) -> None:
        """It is not needed any more: end it properly, or at all, if the other side does not read for so long."""
        self._connection.finish()
        if within_s:
            asyncio.get_running_loop().call_later(within_s, self._connection.abort)
        elif self._connection.backlog:
            self._connection.abort()

    # -- what the connection says

    def feed_data(self, data: bytes) -> None:
        self.heard_at = self._connection.now()
        rest = self._rest + data if self._rest else data
        start, size = 0, len(rest)
        while size - start >= LENGTH_BYTES:
            length = int.from_bytes(rest[start : start + LENGTH_BYTES], "big")
            if not 0 < length <= DATAGRAM_MAX_BYTES:
                self._connection.abort()  # it speaks something else
                return
            if size - start - LENGTH_BYTES < length:
                break
            start += LENGTH_BYTES + length
            self._arrived(self, rest[start - length : start])
        self._rest = rest[start:]

    def feed_eof(self) -> None:
        if not self.over:
            self.over = True
            self.ended(self)

    def _was_drained(self) -> None:
        if not self.over:
            self.drained(self)


def _endpoint(text: str) -> Endpoint:
    """Where the other side is, as its datagrams are told to come from there."""
    try:
        return Endpoint(*split_host(text))
    except ValueError:
        return NOWHERE
