"""Names of content never change: they are compared with committed ones, and with a CID put together by hand."""

from __future__ import annotations

import json
import os
import threading
from base64 import b32decode
from pathlib import Path

import msgpack
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from lattica.objectstore import cid as cid_module
from lattica.objectstore.cid import BLOCK_BYTES, cid_of, manifest_of

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "cids.json").read_text())


def official_input(size: int) -> bytes:
    """The input of BLAKE3's own test vectors: 0, 1, ... 250, and again from 0."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def bytes_of(cid: str) -> bytes:
    assert cid[0] == "b" and cid == cid.lower()
    return b32decode(cid[1:].upper() + "=" * (-len(cid[1:]) % 8))


@pytest.mark.parametrize(("size", "cid"), [(int(size), cid) for size, cid in GOLDEN.items()])
def test_a_cid_is_what_it_was_in_every_release(size: int, cid: str) -> None:
    assert cid_of(official_input(size)) == cid
    assert len(cid) == (59 if size <= BLOCK_BYTES else 61)


def test_a_small_value_is_named_by_the_blake3_of_its_bytes() -> None:
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"  # from BLAKE3's test vectors
    assert bytes_of(cid_of(b"")) == bytes.fromhex("01551e20" + empty)
    data = official_input(BLOCK_BYTES)
    assert bytes_of(cid_of(data)) == bytes.fromhex("01551e20") + blake3(data).digest()


def test_a_large_value_is_named_by_its_manifest() -> None:
    data = official_input(2 * BLOCK_BYTES + 5)
    digests = [blake3(data[at : at + BLOCK_BYTES]).digest() for at in range(0, len(data), BLOCK_BYTES)]
    manifest = msgpack.packb([1, len(data), BLOCK_BYTES, digests])
    assert len(digests) == 3
    assert bytes_of(cid_of(data)) == bytes.fromhex("0181041e20") + blake3(manifest).digest()


@given(st.integers(0, 40), st.integers(1, 5))
def test_threads_change_nothing(blocks: int, threads: int) -> None:
    data = official_input(blocks * 1000 + 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cid_module, "BLOCK_BYTES", 1000)
        one = manifest_of(data)
        patch.setattr(cid_module, "THREADS_FROM_BYTES", 0)
        patch.setattr(os, "sched_getaffinity", lambda _: set(range(threads)))
        assert manifest_of(data) == one
        assert len(one.digests) == blocks + 1
    assert threading.active_count() == 1


@pytest.mark.parametrize("count", [1, 600_000])
def test_whatever_lends_equal_bytes_has_an_equal_name(count: int) -> None:
    array = np.arange(count, dtype=np.uint32)
    data = array.tobytes()
    assert cid_of(data) == cid_of(bytearray(data)) == cid_of(memoryview(data)) == cid_of(memoryview(array))
