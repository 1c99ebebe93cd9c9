"""Whatever sources do, an object that arrives is the right one; if none is left, the transfer knows why."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.objectstore import transfer as transfer_module
from lattica.objectstore.cid import BLOCK_BYTES, MANIFEST_VERSION, Manifest, cid_named, cid_of, cid_text, manifest_of
from lattica.objectstore.transfer import (
    AHEAD_BLOCKS,
    ASKED_TWICE,
    RUN_BLOCKS,
    Transfer,
    block_size,
    matches,
    read_manifest,
)

A, B, C = b"a", b"b", b"c"
ALL = b""


def manifest(blocks: int) -> Manifest:
    return Manifest(MANIFEST_VERSION, blocks * BLOCK_BYTES, BLOCK_BYTES, [bytes([n % 256]) * 32 for n in range(blocks)])


def wire(of: Manifest) -> list[Any]:
    return [of.version, of.total_bytes, of.block_bytes, list(of.digests)]


def having(blocks: int, *here: int) -> bytes:
    return bytes(block in here for block in range(blocks))


def test_one_source_is_asked_for_runs_in_order_and_not_for_more_than_it_may_owe() -> None:
    transfer = Transfer(manifest(50))
    transfer.source_has(A, ALL)
    runs = []
    while (run := transfer.ask(A)) is not None:
        runs.append(run)
    assert runs == [range(at, at + RUN_BLOCKS) for at in range(0, AHEAD_BLOCKS, RUN_BLOCKS)]
    assert transfer.arrived(A, 0, True) and transfer.ask(A) == range(AHEAD_BLOCKS, AHEAD_BLOCKS + RUN_BLOCKS)


def test_what_a_source_was_asked_for_before_it_said_what_it_has_is_not_asked_for_again() -> None:
    transfer = Transfer(manifest(8))
    transfer.source_has(A, b"")
    transfer.source_has(B, b"")
    assert transfer.arrived(B, 7, True)
    transfer.expect(A, [6, 7, 0, 1])
    transfer.validate()
    assert transfer.ask(B) == range(2, 6), "from where the last of them ends"
    transfer.lost(A, "it is gone")
    transfer.validate()
    assert transfer.ask(B) == range(6, 7) and transfer.ask(B) == range(2)


def test_of_several_sources_none_owes_more_than_half_its_share_of_the_rest() -> None:
    transfer = Transfer(manifest(60))
    for source in (A, B, C):
        transfer.source_has(source, ALL)
    owed = 0
    while (run := transfer.ask(A)) is not None:
        owed += len(run)
    assert owed == 12, "60 / (2 x 3), in whole runs"


def test_two_sources_are_asked_for_different_blocks() -> None:
    transfer = Transfer(manifest(2 * RUN_BLOCKS))
    transfer.source_has(A, ALL)
    transfer.source_has(B, ALL)
    assert transfer.ask(A) == range(RUN_BLOCKS)
    assert transfer.ask(B) == range(RUN_BLOCKS, 2 * RUN_BLOCKS)


def test_what_incomplete_sources_have_is_left_to_them_as_long_as_anything_is_rarer() -> None:
    transfer = Transfer(manifest(4))
    transfer.source_has(A, ALL)
    transfer.source_has(B, having(4, 0, 1))
    assert transfer.ask(A) == range(2, 4)
    assert transfer.ask(B) == range(2)


def test_an_incomplete_source_is_asked_for_what_it_has_and_for_more_when_it_has_more() -> None:
    transfer = Transfer(manifest(4))
    transfer.source_has(B, having(4, 2))
    assert transfer.known_of(B) == 1
    assert transfer.ask(B) == range(2, 3) and transfer.ask(B) is None
    transfer.source_has(B, having(4, 2, 3))
    assert transfer.ask(B) == range(3, 4)
    transfer.source_has(B, ALL)
    assert transfer.known_of(B) is None and transfer.ask(B) == range(2)
    transfer.validate()


def test_readers_that_begin_elsewhere_have_something_for_each_other() -> None:
    transfer = Transfer(manifest(10), start=18)
    transfer.source_has(A, ALL)
    assert transfer.ask(A) == range(8, 10)
    assert transfer.ask(A) == range(RUN_BLOCKS)


def test_what_a_lost_source_owed_is_asked_of_another() -> None:
    transfer = Transfer(manifest(4))
    transfer.source_has(A, ALL)
    assert transfer.ask(A) == range(4)
    transfer.arrived(A, 0, True)
    transfer.lost(A, "its machine is off")
    transfer.source_has(B, ALL)
    assert transfer.ask(B) == range(1, 4)
    assert transfer.failures == {A: "its machine is off"}


def test_at_the_end_the_last_blocks_of_the_slowest_are_asked_of_who_is_idle_but_not_of_everybody() -> None:
    """A slow source owes four blocks and all others are here. Quick ones are asked for them from the end, one at a
    time; nobody for what is under way twice already."""
    transfer = Transfer(manifest(4))
    transfer.source_has(A, ALL)
    transfer.source_has(B, ALL)
    assert transfer.ask(A) == range(4)
    assert transfer.ask(B) == range(3, 4) and transfer.ask(B) is None, "one at a time"
    assert transfer.arrived(B, 3, True) and not transfer.arrived(A, 3, True), "the second copy counts for nothing"
    assert transfer.ask(B) == range(2, 3)
    transfer.source_has(C, ALL)
    assert transfer.ask(C) == range(1, 2) and transfer.arrived(C, 1, True)
    assert transfer.ask(C) == range(1) and ASKED_TWICE == 2
    assert transfer.arrived(B, 2, True) and transfer.ask(B) is None
    transfer.validate()


def test_a_liar_is_never_asked_again_whatever_it_says() -> None:
    transfer = Transfer(manifest(4))
    transfer.source_has(A, ALL)
    transfer.ask(A)
    assert not transfer.arrived(A, 0, False)
    transfer.source_has(A, ALL)
    assert transfer.ask(A) is None and transfer.failures == {A: "it sent a wrong block 0"}
    assert not any(transfer.held)
    transfer.validate()


def test_a_source_that_speaks_of_another_number_of_blocks_is_wrong() -> None:
    with pytest.raises(RemoteProtocolError, match="which of 3 blocks it has, of 4"):
        Transfer(manifest(4)).source_has(A, bytes(3))


@pytest.mark.parametrize("size", [0, 1, 100, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES])
def test_the_manifest_of_every_size_is_read_and_named(size: int) -> None:
    data = bytes(size)
    of = manifest_of(data)
    assert cid_text(cid_named(of)) == cid_of(data)
    assert read_manifest(wire(of)) == read_manifest(wire(of), cid_named(of)) == of
    assert sum(block_size(of, block) for block in range(len(of.digests))) == size


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        [1, 5],
        [2, 5, BLOCK_BYTES, [bytes(32)]],
        [1, 5, 1000, [bytes(32)]],
        [1, -5, BLOCK_BYTES, []],
        [1, True, BLOCK_BYTES, [bytes(32)]],
        [1, "5", BLOCK_BYTES, [bytes(32)]],
        [1, 5, BLOCK_BYTES, []],
        [1, 5, BLOCK_BYTES, [bytes(31)]],
        [1, 5, BLOCK_BYTES, [bytes(32)] * 2],
        [1, 5, BLOCK_BYTES, ["d" * 32]],
        [1, 1 << 60, BLOCK_BYTES, []],
    ],
)
def test_what_is_no_manifest_is_refused(wrong: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="it sent a manifest"):
        read_manifest(wrong)


def test_the_manifest_of_other_content_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="other content"):
        read_manifest(wire(manifest_of(b"this")), cid_named(manifest_of(b"that")))


def test_a_block_in_pieces_matches_if_they_are_all_of_it() -> None:
    data = Random(1).randbytes(BLOCK_BYTES + 10)
    of = manifest_of(data)
    parts = [data[:7], memoryview(data)[7:1000], bytearray(data[1000:BLOCK_BYTES])]
    assert matches(of, 0, parts) and matches(of, 1, [data[BLOCK_BYTES:]])
    assert not matches(of, 0, parts[:2]) and not matches(of, 0, parts[::-1]) and not matches(of, 1, [data[:10]])


class World:
    """Sources that are honest, lie, die or are still fetching, and a reader who is told of it in any order."""

    def __init__(self, rng: Random, blocks: int, kinds: list[str]) -> None:
        self.rng, self.kinds = rng, {bytes([n]): kind for n, kind in enumerate(kinds)}
        self.data = rng.randbytes(blocks * BLOCK_BYTES - rng.randrange(BLOCK_BYTES))
        self.transfer = Transfer(manifest_of(self.data), rng.randrange(100))
        self.memory = bytearray(len(self.data))
        self.owed: dict[bytes, list[int]] = {source: [] for source in self.kinds}
        self.here = {source: having(blocks) for source in self.kinds}
        for source, kind in self.kinds.items():
            if kind == "partial":
                self.here[source] = bytes(rng.randrange(2) for _ in range(blocks))
            self.transfer.source_has(source, self.here[source] if kind == "partial" else ALL)

    def step(self, source: bytes) -> None:
        transfer, rng, kind = self.transfer, self.rng, self.kinds[source]
        if source not in transfer.sources:
            return
        what = rng.randrange(4)
        if what == 0:
            if (run := transfer.ask(source)) is not None:
                assert all(kind != "partial" or self.here[source][block] for block in run)
                self.owed[source].extend(run)
        elif what == 1 and kind == "partial":
            self.here[source] = bytes(each or not rng.randrange(3) for each in self.here[source])
            transfer.source_has(source, self.here[source])
        elif what == 2 and kind == "dies" and not rng.randrange(3):
            transfer.lost(source, "it died")
        elif self.owed[source]:
            block = self.owed[source].pop(0)
            begin, size = block * BLOCK_BYTES, block_size(transfer.manifest, block)
            sent = self.data[begin : begin + size]
            if kind == "lies" and not rng.randrange(3):
                sent = sent[:-1] + bytes([sent[-1] ^ 1]) if rng.randrange(2) else sent[:-1]
            ok = matches(transfer.manifest, block, [sent])
            if transfer.arrived(source, block, ok):
                self.memory[begin : begin + size] = sent


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.integers(1, 12),
    st.lists(st.sampled_from(["honest", "lies", "dies", "partial"]), min_size=1, max_size=5),
)
def test_any_loss_lie_and_order_ends_with_the_right_bytes_or_with_every_source_s_reason(
    seed: int, blocks: int, kinds: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("lattica.objectstore.cid", "lattica.objectstore.transfer"):
            patch.setattr(f"{module}.BLOCK_BYTES", 64)
        patch.setitem(globals(), "BLOCK_BYTES", 64)
        patch.setattr(transfer_module, "AHEAD_BLOCKS", 3)
        patch.setattr(transfer_module, "RUN_BLOCKS", 2)
        world = World(Random(seed), blocks, kinds)
        transfer, sources = world.transfer, list(world.kinds)
        for _ in range(20_000):
            if transfer.done or not transfer.sources:
                break
            world.step(world.rng.choice(sources))
            transfer.validate()
        assert transfer.done or len(transfer.failures) == len(kinds), f"stuck: {transfer!r}"
        for block, held in enumerate(transfer.held):
            place = slice(block * 64, (block + 1) * 64)
            assert world.memory[place] == (world.data[place] if held else bytes(len(world.data[place])))
        assert not transfer.done or world.memory == world.data
        assert transfer.done or not {"honest", "partial"} & set(kinds)
        assert all(world.kinds[source] == "lies" for source in transfer.liars)
