"""What a peer says of itself, and nobody else can."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh.certificates import CHECKS
from lattica.mesh.dht.keys import peer_key, value_key
from lattica.mesh.dht.records import (
    CLOCKS_APART_S,
    NAME_MAX_BYTES,
    TTL_MAX_S,
    VALUE_MAX_BYTES,
    is_current,
    is_signed,
    read_record,
    write_record,
)
from lattica.mesh.identity import Identity
from lattica.testing.authority import FAKE_CHECKS
from tests.mesh.dht.examples import ANN, AT, BOB, MESH, contents, record

KINDS = list(contents())


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_read_as_it_was_written_and_its_writer_signed_it(kind: str) -> None:
    found = read_record(record(kind).data)
    assert (found.content, found.writer) == (contents()[kind], ANN.peer)
    assert is_signed(found, FAKE_CHECKS.signed, MESH)


def test_a_real_key_signs_as_a_simulated_one_does() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    identity = Identity(Ed25519PrivateKey.generate())
    content = msgspec.structs.replace(contents()["provider"], public_key=identity.public_key)
    found = write_record(content, identity.sign, MESH)
    assert found.writer == identity.peer and is_signed(found, CHECKS.signed, MESH)
    assert not is_signed(found, CHECKS.signed, b"n" * 32)


def test_a_record_of_another_mesh_is_not_signed_for_this_one() -> None:
    assert not is_signed(record(), FAKE_CHECKS.signed, b"n" * 32)


def test_a_record_that_another_signed_is_not_its_writers() -> None:
    forged = write_record(contents(ANN)["provider"], BOB.sign, MESH)
    assert not is_signed(forged, FAKE_CHECKS.signed, MESH)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_record_is_damaged_or_not_signed(kind: str) -> None:
    data = record(kind).data
    for place in range(len(data)):
        bent = bytearray(data)
        bent[place] ^= 1
        try:
            assert not is_signed(read_record(bytes(bent)), FAKE_CHECKS.signed, MESH), f"byte {place} does not count"
        except RemoteProtocolError:
            pass


def test_nobody_says_where_another_peer_is() -> None:
    with pytest.raises(RemoteProtocolError, match="not its writer's"):
        record("peer", key=peer_key(BOB.peer))


def test_nobody_puts_a_value_under_anothers_name_or_another_name() -> None:
    for changes in ({"key": value_key(BOB.peer, "step")}, {"name": "epoch"}):
        with pytest.raises(RemoteProtocolError, match="not its writer's"):
            record("value", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 4},
        {"key": b"short"},
        {"public_key": b"short"},
        {"boot": -1},
        {"seq": 1 << 63},
        {"expires": -1},
        {"addresses": ("a",) * 5},
        {"addresses": ("a" * 257,)},
        {"name": "n" * (NAME_MAX_BYTES + 1)},
        {"value": bytes(VALUE_MAX_BYTES + 1)},
        {"value": bytes(4096)},
    ],
    ids=str,
)
def test_a_record_beyond_its_limits_is_none(changes: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError):
        record("provider", **changes)


def test_a_record_counts_until_it_expires_and_may_not_want_to_live_for_ever() -> None:
    assert is_current(record(expires=AT + 1), AT)
    assert not is_current(record(expires=AT), AT)
    assert is_current(record(expires=AT + int(TTL_MAX_S + CLOCKS_APART_S)), AT)
    assert not is_current(record(expires=AT + int(TTL_MAX_S + CLOCKS_APART_S) + 1), AT)


def test_the_later_start_counts_and_then_the_later_record_of_it() -> None:
    orders = [record(boot=boot, seq=seq).order for boot, seq in ((1, 9), (2, 1), (2, 2))]
    assert orders == sorted(orders)


@given(st.binary(max_size=300))
def test_noise_is_no_record(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_record(data)


@given(st.sampled_from(KINDS), st.integers(0, 400), st.binary(max_size=9))
def test_a_bent_record_is_one_or_a_remote_protocol_error(kind: str, place: int, other: bytes) -> None:
    data = record(kind).data
    try:
        read_record(data[:place] + other + data[place + len(other) :])
    except RemoteProtocolError:
        pass
