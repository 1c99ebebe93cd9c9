"""One TCP connection with TLS 1.3, driven by hand over memory BIOs.

asyncio's and uvloop's own TLS drop the alert of a handshake that fails, so the other side would never hear why; and
they choose the context before the ClientHello is there. Here the server looks at the name first (`tls.server_name`),
and whatever OpenSSL has to say is sent before the connection is closed. OpenSSL decrypts into the decoder's memory.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

from lattica.errors import RemoteProtocolError
from lattica.mesh import tls
from lattica.mesh.addresses import host_text
from lattica.mesh.wire import Buffer, Decoder, Frame, Received

READ_BYTES = 256 << 10  # of ciphertext at once
RECORD_BYTES = 16 << 10  # of TLS, at most
TURN_BYTES = 1 << 20
"""Of ciphertext in one turn of the event loop: uvloop would read 32 buffers before whoever waits for what is in the
first of them, or for another connection, has a turn."""
JOIN_BELOW_BYTES = 8 << 10  # buffers shorter than this are joined: a TLS record costs more than copying them
ENCRYPT_BYTES = 512 << 10  # at once: what is encrypted lies in memory twice until the kernel has it, and in its caches
WRITE_AHEAD_BYTES = 1 << 20  # encrypted and not taken by the kernel; more waits here, as references
QUEUE_MAX_BYTES = 34 << 20
"""Of frames that the other side does not read: twice what a session may have unacknowledged. More has only one who
acknowledges what it did not read, or asks for answers and does not take them."""
CLOSED = "the other side closed it"


class Reader(Protocol):
    """Who gets decrypted bytes in place of the decoder; `asyncio.StreamReader` is one."""

    def feed_data(self, data: bytes) -> None: ...
    def feed_eof(self) -> None: ...


class TlsConnection(asyncio.BufferedProtocol):
    """See the module. `up` is done when the handshake is, with the SSL object, or fails with what went wrong."""

    def __init__(
        self,
        number: int,
        context: Callable[[str], ssl.SSLContext] | ssl.SSLContext,
        received: Callable[[TlsConnection, list[Received]], None],
        broken: Callable[[TlsConnection, str], None],
        lost: Callable[[TlsConnection, str], None],
    ) -> None:
        """context: of a client; or, as a server, from the name that the client asked for."""
        self.number = number
        self.decoder = Decoder()
        self.remote = ""
        self.server_name = ""
        self._loop = asyncio.get_running_loop()
        self.up: asyncio.Future[ssl.SSLObject] = self._loop.create_future()
        self.reader: Reader | None = None  # where bytes go instead of the decoder
        self.drained: Callable[[], None] = lambda: None  # what waited for the other side to read is gone
        self.held = True  # decrypted bytes wait until the owner knows this connection
        self._context, self._received, self._broken, self._lost = context, received, broken, lost
        self._transport: asyncio.Transport | None = None
        self._tls: ssl.SSLObject | None = None
        self._decrypt: Callable[[int, memoryview], int]  # the SSL object's own, from when there is one
        self._encrypt: Callable[[Buffer], int]
        self._is_up = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._space = memoryview(bytearray(READ_BYTES))
        self._hello = b""
        self._queue: deque[Buffer] = deque()
        self._small: list[Buffer] = []
        self._queued = 0  # bytes in both
        self._turn = 0  # bytes read since reading last paused
        self._paused = self._ended = self._ending = self._over = False

    def __repr__(self) -> str:
        return f"<TlsConnection {self.number} to {self.remote}>"

    # -- what the loop says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is of no class of asyncio's
        transport.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.remote = host_text(*transport.get_extra_info("peername")[:2])
        if isinstance(self._context, ssl.SSLContext):
            self._begin(self._context.wrap_bio(self._incoming, self._outgoing, server_hostname=tls.MESH_NAME))
            self._handshake()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        data = self._space[:nbytes]
        if self._tls is None and not self._choose(data):
            return
        self._incoming.write(data)
        if self._is_up or self._over:
            self.decrypt()
        else:
            self._handshake()
        self._turn += nbytes
        if self._turn >= TURN_BYTES and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()
        if not self._paused:
            self.drained()

    # -- what the owner says

    @property
    def alpn(self) -> str:
        """The application protocol that both sides named in the handshake; "" if none."""
        return self._tls.selected_alpn_protocol() or "" if self._tls is not None else ""

    def now(self) -> float:
        """By the loop's clock."""
        return self._loop.time()

    @property
    def paused(self) -> bool:
        """The other side does not read, and what is written waits; `drained` tells when that is over."""
        return self._paused

    @property
    def backlog(self) -> int:
        """Bytes that the kernel has not taken."""
        unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return self._queued + unsent

    def write_ahead(self, most: int) -> None:
        """Pause when so many encrypted bytes wait for the kernel."""
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=most)

    def write(self, frame: Frame) -> None:
        """Queue a frame; `flush` sends."""
        for buffer in frame:
            size = len(buffer)
            self._queued += size
            if size < JOIN_BELOW_BYTES:
                self._small.append(buffer)
            else:
                if self._small:
                    self._join()
                self._queue.append(buffer)

    def flush(self) -> None:
        """Send what is queued, as far as the kernel takes it."""
        if self._small:
            self._join()
        self._send()
        if self._queued > QUEUE_MAX_BYTES and not self._ending:
            self._ending = True
            self._queue.clear()
            self._queued = 0
            self._broken(self, f"it did not read {QUEUE_MAX_BYTES} bytes that it was sent")

    def finish(self) -> None:
        """Close when everything is written."""
        self._ending = True
        self.flush()

    def say(self, data: bytes) -> None:
        """Send these bytes as they are."""
        self.write((data,))
        self.flush()

    def abort_soon(self) -> None:
        """Close after what OpenSSL has said, or in a moment if the other side does not take it."""
        self._ending = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def release(self) -> None:
        """The owner knows this connection: hand on what has come meanwhile."""
        self.held = False
        self.decrypt()

    def decrypt(self) -> None:
        """Decrypt what is there, and hand on the frames."""
        if self.held or self._tls is None or self._over:
            return
        frames: list[Received] = []
        decoder, more = self.decoder, True
        try:
            while more:
                if self.reader is not None:
                    window = memoryview(bytearray(RECORD_BYTES))
                    count, more = self._read(window, 1)
                    self.reader.feed_data(bytes(window[:count]))
                else:
                    count, more = self._read(decoder.window(), decoder.missing)
                    frames = frames + decoder.advance(count) if frames else decoder.advance(count)
        except RemoteProtocolError as error:
            if frames:
                self._received(self, frames)
            self._broken(self, str(error).partition("\n")[0])
            return
        except ssl.SSLError as error:
            self._say()
            self._fail(error)
            return
        if frames:
            self._received(self, frames)
        if self._outgoing.pending:  # what OpenSSL answers
            self._say()
        if self._ended and self._transport is not None:
            self._transport.close()

    def _read(self, window: memoryview, least: int) -> tuple[int, bool]:
        """Decrypt into the window, record by record, until at least so many bytes are there. How many, and whether
        more may be had. Raises ssl.SSLError."""
        decrypt, size, filled = self._decrypt, len(window), 0
        try:
            while True:
                count = decrypt(size - filled, window[filled:] if filled else window)
                filled += count
                if not count:
                    self._ended = True
                    return filled, False
                if filled >= least:  # a window that is not full took the whole record
                    return filled, filled == size or self._incoming.pending > 0
        except ssl.SSLWantReadError:
            return filled, False

    # -- inside

    def _read_on(self) -> None:
        """Whoever waited had a turn."""
        self._turn = 0
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _choose(self, data: memoryview) -> bool:
        """As a server: begin with the context for the name in the ClientHello, once that is whole."""
        self._hello += bytes(data)
        try:
            name = tls.server_name(self._hello)
        except ssl.SSLError as error:
            self._fail(error)
            return False
        if name is None:
            if len(self._hello) > tls.CLIENT_HELLO_MAX_BYTES:
                self._fail(ssl.SSLError("what it sent is no TLS"))
            return False
        assert not isinstance(self._context, ssl.SSLContext)
        self.server_name = name
        self._begin(self._context(name).wrap_bio(self._incoming, self._outgoing, server_side=True))
        self._incoming.write(self._hello[: -len(data)])
        self._hello = b""
        return True

    def _begin(self, connection: ssl.SSLObject) -> None:
        self._tls = connection
        self._decrypt, self._encrypt = tls.record_layer(connection)

    def _handshake(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._say()
            return
        except ssl.SSLError as error:
            self._say()  # the alert: it tells the other side why
            self._fail(error)
            return
        self._say()
        self._is_up = True
        if not self.up.done():
            self.up.set_result(self._tls)

    def _fail(self, error: Exception) -> None:
        """No further: tell whoever waits, and close after what was said."""
        if not self.up.done():
            self.up.set_exception(error)
            self.up.exception()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if self._over:
            return
        self._over = True
        self._queue.clear()
        if not self.up.done():
            self.up.set_exception(error or ConnectionResetError(CLOSED))
            self.up.exception()
        if self.reader is not None:
            self.reader.feed_eof()
        self._lost(self, tls.words(error) if error is not None else CLOSED)

    def _join(self) -> None:
        small, self._small = self._small, []
        self._queue.append(small[0] if len(small) == 1 else b"".join(small))

    def _send(self) -> None:
        if self._over or self._tls is None or self._transport is None or self._transport.is_closing():
            self._queue.clear()
            return
        while self._queue and not self._paused:
            size = 0
            while self._queue and size < ENCRYPT_BYTES:
                buffer = self._queue.popleft()
                self._encrypt(buffer)
                size += len(buffer)
            self._queued -= size
            self._transport.write(self._outgoing.read())
        if self._ending and not self._queue:
            self._goodbye()

    def _say(self) -> None:
        """Hand to the kernel what OpenSSL wants to say."""
        if self._outgoing.pending and self._transport is not None:
            self._transport.write(self._outgoing.read())

    def _goodbye(self) -> None:
        """End our half properly: a cut that nobody announced can be told from an end."""
        try:
            cast("Any", self._tls).unwrap()
        except (ssl.SSLError, OSError):
            pass  # the other side has not answered, and need not
        self._say()
        if self._transport is not None:
            self._transport.close()
