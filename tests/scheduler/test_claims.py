"""Claims of names on the wire and in rows: golden bytes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lattica.errors import RemoteProtocolError
from lattica.mesh.identity import PeerId
from lattica.scheduler.claims import (
    BODY_MAX_BYTES,
    Claim,
    Claimed,
    Elsewhere,
    Holder,
    Refused,
    decode,
    encode,
    read_holder,
    write_holder,
)

ONE, NAME = b"1" * 16, b"trainer"
P = [PeerId(bytes([number]) * 32) for number in range(2)]


def holder(claim: bytes = ONE, body: bytes = b"actor") -> Holder:
    return Holder(claim, P[0], body)


MESSAGES = [
    (Claim(ONE, b"n", b"b"), "9401c410" + "31" * 16 + "c4016ec40162"),
    (Claimed(ONE, b"row"), "9302c410" + "31" * 16 + "c403726f77"),
    (Refused(ONE, "no", b"h"), "9403c410" + "31" * 16 + "a26e6fc40168"),
    (Refused(ONE, "no"), "9403c410" + "31" * 16 + "a26e6fc0"),
    (Elsewhere(ONE, P[1]), "9304c410" + "31" * 16 + "c420" + "01" * 32),
]


@pytest.mark.parametrize(("message", "golden"), MESSAGES)
def test_messages_have_their_golden_bytes_and_are_read_from_them(message: Any, golden: str) -> None:
    assert encode(message).hex() == golden
    assert decode(bytes.fromhex(golden)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91\x09",
        encode(Claim(b"short", NAME, b"")),
        encode(Claim(ONE, b"", b"")),
        encode(Claim(ONE, b"n" * 257, b"")),
        encode(Claim(ONE, NAME, bytes(BODY_MAX_BYTES + 1))),
        encode(Claimed(ONE, b"")),
        encode(Refused(ONE, "x" * 301)),
        encode(Elsewhere(ONE, PeerId(b"short"))),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(data)


@pytest.mark.parametrize("body", [b"", b"noise", write_holder(holder(b"short")), write_holder(holder(body=bytes(600)))])
def test_a_row_that_is_none_of_a_name_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_holder(body)
    assert read_holder(write_holder(holder())) == holder()
