"""The bytes on the shared UDP socket: what was written is read, all else is nothing, and saying so is cheap."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.nat import datagrams
from lattica.mesh.nat.datagrams import (
    ANSWER,
    BIND,
    BOUND,
    PROBE,
    PUNCH_MAX_BYTES,
    RELAYED,
    SIGNED_BYTES,
    Answer,
    Bind,
    Bound,
    Keys,
    Kind,
    Probe,
)
from lattica.mesh.nat.routes import ENDPOINT_BYTES, Endpoint, is_private, pack, unpack

SHARED = bytes(range(32))
LOWER, HIGHER = Keys.derive(SHARED, lower=True), Keys.derive(SHARED, lower=False)

u64 = st.integers(0, (1 << 64) - 1)
u16 = st.integers(0, 0xFFFF)
u8 = st.integers(0, 255)
eight = st.binary(min_size=8, max_size=8)
hosts = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None)).map(str)
endpoints = st.builds(Endpoint, hosts, u16)
probes = st.builds(Probe, eight, u8, u64, u16)
answers = st.builds(Answer, eight, u8, u64, endpoints)


@given(endpoints)
def test_an_endpoint_comes_back_as_it_was_packed(endpoint: Endpoint) -> None:
    assert len(pack(endpoint)) == ENDPOINT_BYTES
    assert unpack(pack(endpoint)) == endpoint


@given(st.binary(min_size=ENDPOINT_BYTES, max_size=ENDPOINT_BYTES))
def test_noise_of_the_right_length_is_an_endpoint(data: bytes) -> None:
    ipaddress.ip_address(unpack(data).host)


@given(probes)
def test_a_probe_is_read_by_the_other_side_only(probe: Probe) -> None:
    data = datagrams.write_probe(LOWER.sending, probe)
    assert len(data) == SIGNED_BYTES and data[0] == PROBE and not datagrams.is_quic(data)
    assert datagrams.key_id(data) == HIGHER.receiving.id
    assert datagrams.read_probe(HIGHER.receiving, data) == probe
    assert datagrams.read_probe(LOWER.receiving, data) is None, "thrown back at its sender, it is a probe of its peer"
    assert datagrams.read_answer(HIGHER.receiving, data) is None


@given(answers)
def test_an_answer_is_read_as_written_and_no_longer_than_a_probe(answer: Answer) -> None:
    data = datagrams.write_answer(HIGHER.sending, answer)
    assert len(data) == SIGNED_BYTES and data[0] == ANSWER and not datagrams.is_quic(data)
    assert datagrams.read_answer(LOWER.receiving, data) == answer
    assert datagrams.read_probe(LOWER.receiving, data) is None


@given(u64, u64, endpoints)
def test_bind_and_bound_are_as_long_as_each_other(channel: int, counter: int, seen: Endpoint) -> None:
    bind, bound = Bind(channel, counter), Bound(channel, counter, seen)
    asked, answered = datagrams.write_bind(SHARED, bind), datagrams.write_bound(SHARED, bound)
    assert len(asked) == len(answered) == SIGNED_BYTES and (asked[0], answered[0]) == (BIND, BOUND)
    assert datagrams.channel_of(asked) == datagrams.channel_of(answered) == channel
    assert datagrams.read_bind(SHARED, asked) == bind and datagrams.read_bound(SHARED, answered) == bound
    assert datagrams.read_bind(SHARED, answered) is None and datagrams.read_bound(SHARED, asked) is None
    assert datagrams.key_id(asked) == b""


@given(u64, st.binary(max_size=2000))
def test_relayed_packets_are_nine_bytes_longer_than_their_payload(channel: int, payload: bytes) -> None:
    data = datagrams.write_relayed(channel, payload)
    assert len(data) == len(payload) + 9 and data[0] == RELAYED and not datagrams.is_quic(data)
    assert datagrams.channel_of(data) == channel and datagrams.relayed_payload(data) == payload


@given(probes, st.integers(0, SIGNED_BYTES * 8 - 1))
def test_a_probe_with_one_bit_bent_is_nothing(probe: Probe, bit: int) -> None:
    data = bytearray(datagrams.write_probe(LOWER.sending, probe))
    data[bit // 8] ^= 1 << bit % 8
    assert datagrams.read_probe(HIGHER.receiving, bytes(data)) is None


@given(st.one_of(st.binary(max_size=100), st.binary(min_size=64, max_size=64)), st.integers(0, 255))
def test_noise_is_nothing_to_every_reader(noise: bytes, first: int) -> None:
    for data in (noise, bytes([first]) + noise[1:]):
        assert datagrams.read_probe(LOWER.receiving, data) is None
        assert datagrams.read_answer(LOWER.receiving, data) is None
        assert datagrams.read_bind(SHARED, data) is None
        assert datagrams.read_bound(SHARED, data) is None
        assert len(datagrams.key_id(data)) in (0, 8)
        assert datagrams.channel_of(data) is None or BIND <= data[0] <= RELAYED


@given(probes, st.integers(-SIGNED_BYTES, 20).filter(bool))
def test_a_probe_of_another_length_is_nothing(probe: Probe, longer: int) -> None:
    data = datagrams.write_probe(LOWER.sending, probe)
    data = data[:longer] if longer < 0 else data + bytes(longer)
    assert datagrams.key_id(data) == b"" and datagrams.read_probe(HIGHER.receiving, data) is None


def test_a_punch_is_short_and_never_looks_like_quic() -> None:
    assert len(datagrams.write_punch(bytes(15))) == PUNCH_MAX_BYTES
    assert not datagrams.is_quic(datagrams.write_punch(b"\xff"))
    assert datagrams.is_quic(b"\xc0") and datagrams.is_quic(b"\x40") and not datagrams.is_quic(b"")


def test_two_peers_have_four_different_ids_and_secrets_in_two_keys() -> None:
    assert LOWER.sending == HIGHER.receiving and LOWER.receiving == HIGHER.sending
    assert LOWER.sending.id != LOWER.receiving.id and LOWER.sending.secret != LOWER.receiving.secret
    assert Keys.derive(bytes(32), lower=True).sending.id != LOWER.sending.id


def test_the_bytes_on_the_wire_stay_as_they_are() -> None:
    probe = datagrams.write_probe(LOWER.sending, Probe(b"12345678", Kind.LATER, 1_000_000, 40))
    answer = datagrams.write_answer(LOWER.sending, Answer(b"12345678", Kind.PATH, 7, Endpoint("192.0.2.7", 7411)))
    assert probe.hex() == GOLDEN_PROBE and answer.hex() == GOLDEN_ANSWER


def test_private_addresses_are_those_that_only_somebody_near_can_use() -> None:
    private = (
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.1",
        "192.168.1.1",
        "100.64.0.9",
        "169.254.1.1",
        "fd00::1",
        "fe80::1",
    )
    public = ("198.51.100.2", "203.0.113.9", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1")
    assert all(map(is_private, private)) and not any(map(is_private, public))


GOLDEN_PROBE = (
    "01a3b18eb7fe495075313233343536373805002800000000000f424000000000"
    "00000000000000000000000000000000862dfc64498c89581ff12eeaa2d12adb"
)
GOLDEN_ANSWER = (
    "02a3b18eb7fe4950753132333435363738010000000000000007000000000000"
    "00000000ffffc00002071cf300000000749674f99375eebc76c8475d9e760089"
)
