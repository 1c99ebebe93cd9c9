"""A node's load fits beside a probe, and noise becomes a protocol error, never anything else."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh import soft_state
from lattica.scheduler.load import DATA_MAX_BYTES, UNITS_MAX, Load, decode, encode

names = st.text(min_size=1, max_size=40)
loads = st.builds(
    Load,
    taken=st.dictionaries(names | st.sampled_from(["CPU", "GPU", "memory"]), st.integers(1, UNITS_MAX), max_size=20),
    queued=st.integers(0, 10**7),
    task_s=st.floats(0, 1e9),
    pace=st.floats(0, 1e3),
    draining=st.booleans(),
)


def test_a_load_may_be_as_long_as_the_mesh_carries_of_one_peer() -> None:
    assert DATA_MAX_BYTES == soft_state.DATA_MAX_BYTES


def test_the_bytes_of_a_load_are_these() -> None:
    load = Load({"CPU": 25_000, "GPU": 10_000, "tpu": 10_000}, 3, 0.25, 1.5, True)
    assert encode(load).hex() == "9503ce0003d090cd05dcc38300cd61a801cd2710a3747075cd2710"
    assert decode(encode(load)) == load


def test_an_idle_node_with_thirty_resources_needs_eight_bytes() -> None:
    assert len(encode(Load())) == 8


def test_a_dozen_busy_resources_fit() -> None:
    taken = {"CPU": 160_000, "GPU": 80_000, "memory": 2**53} | {f"res-{n}": 10_000 for n in range(9)}
    assert decode(encode(Load(taken))).taken == taken


@given(loads)
def test_whatever_a_node_says_fits_and_its_cpus_are_always_among_it(load: Load) -> None:
    data = encode(load)
    assert len(data) <= DATA_MAX_BYTES
    heard = decode(data)
    assert heard.taken.items() <= load.taken.items()
    assert heard.taken.get("CPU") == load.taken.get("CPU") and heard.draining == load.draining


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read(data: bytes) -> None:
    try:
        decode(data)
    except RemoteProtocolError:
        pass


@given(loads, st.integers(0, 127), st.integers(0, 255))
def test_a_bent_byte_is_refused_or_read(load: Load, at: int, byte: int) -> None:
    data = bytearray(encode(load))
    data[at % len(data)] = byte
    try:
        decode(bytes(data))
    except RemoteProtocolError:
        pass


def test_negative_amounts_and_wild_paces_are_refused() -> None:
    for wrong in (
        [-1, 0, 1000, False, {}],
        [0, 0, 0, False, {}],
        [0, 0, 10**9, False, {}],
        [0, 0, 1000, False, {0: -5}],
    ):
        with pytest.raises(RemoteProtocolError):
            decode(msgpack.packb(wrong))


def test_fields_and_short_names_of_a_later_release_are_ignored() -> None:
    assert decode(msgpack.packb([1, 0, 1000, False, {0: 5, 77: 9}, "new"])) == Load({"CPU": 5}, 1)
