"""Compression where it is quicker than the link, and never a byte more than was announced."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zstandard import ZstdCompressor

from lattica.errors import RemoteProtocolError
from lattica.mesh.compression import LEAST_BYTES, SAMPLE_EVERY_BYTES, Packer, unpack

TEXT = b"the quick brown fox " * 3000
NOISE = Random(7).randbytes(60_000)


def clock(step_s: float) -> Callable[[], float]:
    times: Iterator[float] = (step_s * index for index in count())
    return lambda: next(times)


def packer(rate: float, zstd: float) -> Packer:
    """One whose link takes `rate` bytes per second, and whose zstd takes `zstd`."""
    made = Packer(clock(65536 / zstd))
    made.acknowledged(1, True, 1.0)  # begins the window
    made.acknowledged(int(rate), True, 2.0)
    return made


def test_a_link_that_was_never_busy_is_not_compressed_for() -> None:
    made = Packer(clock(1e-4))
    made.acknowledged(100_000, False, 1.0)
    assert made.pack([TEXT], len(TEXT)) is None and not made.pays


def test_on_a_slow_link_text_is_compressed_and_comes_back() -> None:
    made = packer(rate=1e6, zstd=400e6)
    packed = made.pack([TEXT[:100], TEXT[100:]], len(TEXT))
    assert packed is not None and len(packed) < len(TEXT) / 10 and unpack(packed, len(TEXT)) == TEXT
    assert made.pays and "link 1 MB/s" in repr(made)


def test_on_a_fast_link_it_is_not() -> None:
    assert packer(rate=2e9, zstd=400e6).pack([TEXT], len(TEXT)) is None


def test_noise_is_sent_as_it_is() -> None:
    made = packer(rate=1e6, zstd=400e6)
    assert made.pack([NOISE], len(NOISE)) is None and not made.pays


def test_what_changes_its_nature_is_noticed() -> None:
    made = packer(rate=1e6, zstd=400e6)
    assert made.pack([NOISE], len(NOISE)) is None
    assert made.pack([TEXT], len(TEXT)) is None, "samples are not taken each time"
    assert made.pack([bytes(SAMPLE_EVERY_BYTES)], SAMPLE_EVERY_BYTES) is not None


def test_short_bodies_are_left_alone() -> None:
    assert packer(rate=1e6, zstd=400e6).pack([b"x" * (LEAST_BYTES - 1)], LEAST_BYTES - 1) is None


def test_the_rate_of_the_link_follows_what_is_acknowledged_while_it_is_busy() -> None:
    made = packer(rate=1e6, zstd=400e6)
    for second in range(3, 40):
        made.acknowledged(0, True, float(second))
        made.acknowledged(100_000_000, True, float(second))
    assert "link 100 MB/s" in repr(made) or "link 99 MB/s" in repr(made)


@given(st.binary(max_size=5000))
def test_what_was_packed_is_unpacked(data: bytes) -> None:
    packed = ZstdCompressor(level=1, write_content_size=True).compress(data)
    assert unpack(packed, len(data)) == data


@given(st.binary(max_size=200), st.integers(0, 5000))
def test_noise_is_refused_with_words(data: bytes, size: int) -> None:
    try:
        assert len(unpack(data, size)) == size
    except RemoteProtocolError as error:
        assert "a compressed body" in str(error)


@given(st.binary(min_size=100, max_size=3000), st.integers(0, 1 << 30), st.integers(1, 255))
def test_a_bent_body_is_refused_or_has_the_size_it_announced(data: bytes, where: int, bits: int) -> None:
    packed = bytearray(ZstdCompressor(level=1, write_content_size=True).compress(data * 3))
    packed[where % len(packed)] ^= bits
    try:
        assert len(unpack(packed, len(data) * 3)) == len(data) * 3
    except RemoteProtocolError:
        pass


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    bomb = ZstdCompressor(level=19, write_content_size=True).compress(bytes(64 << 20))
    unsized = ZstdCompressor(level=1, write_content_size=False).compress(bytes(1 << 20))
    assert len(bomb) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="does not hold the 1000 bytes it announced"):
            unpack(bomb, 1000)
        with pytest.raises(RemoteProtocolError):
            unpack(unsized, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
