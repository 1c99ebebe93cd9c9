"""Whether bytes are compressed on their way to one peer: where zstd at level 1 is quicker than the link is.

Sending `n` bytes raw takes n / link; compressed, n / speed + n / (ratio x link), and as much again to undo at twice to
four times the speed. The link's rate is taken from acknowledgements while bulk keeps it busy; ratio and speed from
samples of what is really sent, taken again every SAMPLE_EVERY_BYTES, since the next tensor may be noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lattica.errors import RemoteProtocolError
from lattica.mesh.wire import Buffer

LEAST_BYTES = 1024  # shorter ones gain less than a packet
SAMPLE_EVERY_BYTES = 16 << 20  # of raw bytes sent: 1 % of the time goes into samples at the most
SAMPLE_BYTES = 64 << 10
GAIN = 0.8  # compress when it takes at most this part of the time: estimates are rough, and it costs CPU
RATE_WINDOW_S = 0.05  # acknowledged bytes are summed up over this before they count as a rate
NO_LIMIT = float("inf")  # bytes per second of a link that was never seen busy
LEVEL = 1


class Packer:
    """Decides for one peer. clock: seconds, for measuring zstd itself; in simulated worlds a constant."""

    __slots__ = ("_clock", "_compress", "_rate", "_ratio", "_since_sample", "_speed", "_window")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._compress: Callable[[bytes], bytes] | None = None
        self._rate, self._ratio, self._speed = NO_LIMIT, 1.0, 400e6
        self._since_sample = SAMPLE_EVERY_BYTES
        self._window = (0.0, 0)  # when it began, bytes acknowledged in it

    def __repr__(self) -> str:
        return f"<Packer: link {self._rate / 1e6:.0f} MB/s, zstd {self._speed / 1e6:.0f} MB/s, ratio {self._ratio:.2f}>"

    def acknowledged(self, count: int, busy: bool, now: float) -> None:
        """The other side has `count` more bytes of bulk. busy: more were waiting, so the link was the limit."""
        began, total = self._window
        if not count:
            return  # a new connection, or news of the other plane: says nothing of the link
        if not busy or not began:
            self._window = now, 0
            return
        total += count
        if now - began < RATE_WINDOW_S:
            self._window = began, total
            return
        rate = total / (now - began)
        self._rate = rate if self._rate == NO_LIMIT else 0.7 * self._rate + 0.3 * rate
        self._window = now, 0

    @property
    def pays(self) -> bool:
        """Whether compressing is quicker, as far as is known."""
        if self._rate == NO_LIMIT or self._ratio <= 1.0:
            return False
        return 1 / self._speed + 1 / (self._ratio * self._rate) < GAIN / self._rate

    def pack(self, parts: Sequence[Buffer], size: int) -> bytes | None:
        """The compressed bytes; None if they go as they are."""
        if size < LEAST_BYTES or self._rate == NO_LIMIT:
            return None
        self._since_sample += size
        if self._since_sample >= SAMPLE_EVERY_BYTES:
            self._sample(parts)
        if not self.pays:
            return None
        packed = self._zstd(b"".join(parts))
        return packed if len(packed) < size else None

    def _sample(self, parts: Sequence[Buffer]) -> None:
        self._since_sample = 0
        sample = b"".join(parts)[:SAMPLE_BYTES]
        began = self._clock()
        packed = self._zstd(sample)
        took_s = self._clock() - began
        self._ratio = len(sample) / max(len(packed), 1)
        if took_s > 0:
            self._speed = len(sample) / took_s

    def _zstd(self, data: bytes) -> bytes:
        if self._compress is None:
            from zstandard import ZstdCompressor

            self._compress = ZstdCompressor(level=LEVEL, write_content_size=True).compress
        return self._compress(data)


def unpack(data: Buffer, size: int) -> bytes:
    """The original, of exactly `size` bytes. Raises RemoteProtocolError; never makes more than was announced."""
    from zstandard import ZstdDecompressor, ZstdError, get_frame_parameters

    try:
        if get_frame_parameters(data).content_size != size:
            raise RemoteProtocolError(f"a compressed body does not hold the {size} bytes it announced")
        raw = ZstdDecompressor().decompress(data, max_output_size=size)
    except ZstdError as error:
        raise RemoteProtocolError(f"a compressed body of {len(data)} bytes is damaged: {error}") from error
    if len(raw) != size:
        raise RemoteProtocolError(f"a compressed body has {len(raw)} bytes, and said {size}")
    return raw
