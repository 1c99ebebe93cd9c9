"""What is said to gateways, byte for byte, and what is made of anything they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.mapping import natpmp, pcp
from lattica.mesh.mapping.pcp import Protocol
from lattica.mesh.nat.routes import Endpoint

NONCE = bytes(range(12))
OUTER = Endpoint("203.0.113.7", 7500)


def test_a_pcp_request_is_laid_out_as_in_figure_2_and_9_of_the_rfc() -> None:
    data = pcp.write_map("192.168.1.7", Protocol.UDP, 7411, NONCE, 3600, OUTER)
    assert data == bytes.fromhex(
        "02 01 0000 00000e10 00000000000000000000ffffc0a80107"  # version, MAP, -, lifetime, our address
        "000102030405060708090a0b 11 000000 1cf3 1d4c 00000000000000000000ffffcb007107"
    )
    assert pcp.write_announce("fd00::7") == bytes.fromhex("02 00 0000 00000000 fd000000000000000000000000000007")


def pcp_answer(opcode: int = pcp.MAP, result: int = 0, epoch_s: int = 9, outer: Endpoint = OUTER) -> bytes:
    asked = pcp.write_map("192.168.1.7", Protocol.UDP, 7411, NONCE, 3600, outer)
    head = bytes((2, opcode | 0x80, 0, result)) + (3600).to_bytes(4) + epoch_s.to_bytes(4) + bytes(12)
    return head + asked[24:]


def test_a_pcp_answer_is_read() -> None:
    assert pcp.read(pcp_answer()) == pcp.Answer(pcp.MAP, 0, 3600, 9, pcp.Mapping(NONCE, Protocol.UDP, 7411, OUTER))
    assert pcp.read(pcp_answer() + b"an option") == pcp.read(pcp_answer()), "options are not looked at"


def test_natpmp_is_laid_out_as_in_the_rfc() -> None:
    assert natpmp.write_address() == bytes.fromhex("00 00")
    assert natpmp.write_map(natpmp.MAP_TCP, 7411, 7500, 3600) == bytes.fromhex("00 02 0000 1cf3 1d4c 00000e10")
    assert natpmp.read(bytes.fromhex("00 80 0000 00000009 cb007107")) == natpmp.Answer(
        natpmp.ADDRESS, 0, 9, natpmp.Address("203.0.113.7")
    )
    assert natpmp.read(bytes.fromhex("00 81 0000 00000009 1cf3 1d4c 00000e10")) == natpmp.Answer(
        natpmp.MAP_UDP, 0, 9, natpmp.Mapping(7411, 7500, 3600)
    )
    assert natpmp.read(bytes.fromhex("00 81 0001 00000009")) == natpmp.Answer(natpmp.MAP_UDP, 1, 9)


@given(st.binary(max_size=1200))
def test_noise_is_an_answer_or_none(data: bytes) -> None:
    for read in (pcp.read, natpmp.read):
        assert read(data) is None or read(data) == read(bytes(data))


@given(st.data())
def test_bent_answers_are_answers_or_none(data: st.DataObject) -> None:
    """Cut off, or with one byte that is another: never an exception, never a port that is none."""
    answer = bytearray(
        data.draw(st.sampled_from([pcp_answer(), bytes.fromhex("0081 0000 00000009 1cf31d4c 00000e10")]))
    )
    answer[data.draw(st.integers(0, len(answer) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(answer[: data.draw(st.integers(0, len(answer)))])
    for found in (pcp.read(cut), natpmp.read(cut)):
        if isinstance(found, pcp.Answer) and found.mapping is not None:
            assert 0 <= found.mapping.outer.port <= 0xFFFF
        assert found is None or found.result >= 0


@pytest.mark.parametrize(
    ("before", "epoch", "elapsed", "forgotten"),
    [
        (100, 160, 60.0, False),
        (100, 159, 60.0, False),
        (100, 3, 60.0, True),  # it was started again
        (100, 100, 60.0, True),  # it was started again a while ago, and has come to the same number by chance
        (100, 400, 60.0, True),  # another gateway at the same address
        (1_000_000, 1_003_500, 3600.0, False),  # its clock is slow by three percent
    ],
)
def test_a_gateway_whose_epoch_does_not_go_on_has_forgotten(
    before: int, epoch: int, elapsed: float, forgotten: bool
) -> None:
    """RFC 6887 §8.5."""
    assert pcp.has_forgotten(before, epoch, elapsed) is forgotten


def test_a_natpmp_gateway_has_forgotten_when_it_counts_much_slower_than_we() -> None:
    """RFC 6886 §3.6."""
    assert not natpmp.has_forgotten(100, 159, 60.0)
    assert not natpmp.has_forgotten(100, 151, 60.0)
    assert natpmp.has_forgotten(100, 149, 60.0)
    assert not natpmp.has_forgotten(100, 169, 60.0)


def test_a_natpmp_gateway_that_counted_on_while_this_machine_slept_is_asked_anew() -> None:
    """A clock that stands still in sleep believes for half an hour in a mapping that has run out."""
    assert natpmp.has_forgotten(100, 3760, 60.0) and pcp.has_forgotten(100, 3760, 60.0)
