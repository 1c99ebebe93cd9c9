"""Tickets: pasted, cut, mistyped, too old, too new, and never shown by accident."""

from __future__ import annotations

import base64
import io
import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import AdmissionError, ConfigError
from lattica.mesh import tickets
from lattica.mesh.authority import Authority, make_root, new_secret, public_key_of
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import EVERYTHING, MEMBER, Role
from lattica.mesh.ticket_text import TextStream, read_text
from lattica.mesh.tickets import Ticket, make_ticket, parse_ticket
from tests.mesh.examples import SECRET, TICKET

NOW = 1_800_000_000.0
TEXT = TICKET.text()

addresses = st.lists(
    st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), max_size=40), max_size=3
)
some_tickets = st.builds(
    Ticket,
    root=st.binary(max_size=600),
    chain=st.lists(st.binary(max_size=600), min_size=2, max_size=3).map(tuple),
    secret=st.binary(min_size=32, max_size=32),
    peers=st.lists(st.tuples(st.binary(min_size=32, max_size=32).map(PeerId), addresses.map(tuple)), max_size=4).map(
        tuple
    ),
    roles=st.integers(0, 31).map(Role),
    expires=st.floats(0, 4e9),
    label=st.text(max_size=64),
)


def packed(payload: bytes, prefix: str = "lat1") -> str:
    """A ticket with this inside, and a checksum that matches."""
    data = payload + blake3(payload).digest(4)
    return prefix + base64.urlsafe_b64encode(data).decode().rstrip("=")


def read_ticket(given: str | None, environ: Mapping[str, str], stdin: TextStream) -> Ticket | None:
    """A command reads the text, and hands it to a node, which takes it apart."""
    text = read_text(given, environ, stdin)
    return None if text is None else parse_ticket(text)


def fields(**changed: Any) -> list[Any]:
    """What is inside `TICKET`."""
    raw = base64.urlsafe_b64decode(TEXT[4:] + "=" * (-len(TEXT[4:]) % 4))
    values = msgspec.msgpack.decode(raw[:-4])
    names = list(tickets._Payload.__struct_fields__)
    return [changed.get(name, value) for name, value in zip(names, values, strict=True)]


# -- made and read --------------------------------------------------------------------------------------------------


@given(some_tickets)
def test_a_ticket_is_read_back_from_its_text(ticket: Ticket) -> None:
    text = ticket.text()
    assert text.startswith("lat1")
    assert text.isascii() and not set(text) & set(" +/=\n")
    assert parse_ticket(text) == ticket


def test_a_ticket_that_a_mail_program_has_wrapped_is_whole() -> None:
    wrapped = "\n".join(TEXT[place : place + 40] for place in range(0, len(TEXT), 40))
    assert parse_ticket(f"  {wrapped}\r\n") == TICKET


def test_a_real_ticket_certifies_its_joiner_and_can_be_pasted() -> None:
    root = make_root(NOW)
    secret = new_secret()
    issuer = Authority(secret, root.root, root.certify_issuer(public_key_of(secret), NOW))
    second = Authority(SECRET, root.root, issuer.certify_issuer(public_key_of(SECRET), NOW))
    invite = second.invite(MEMBER, NOW)
    ticket = parse_ticket(make_ticket(invite, [(PeerId(b"p" * 32), ["tcp://192.0.2.7:9200"])] * 3, "attic").text())
    assert len(ticket.text()) < 3200
    assert ticket.mesh == root.id
    assert (ticket.roles, ticket.expires, ticket.label) == (MEMBER, invite.expires, "attic")
    assert ticket.authority().public_key == invite.public_key


def test_a_ticket_names_no_more_peers_and_addresses_than_fit() -> None:
    class Invite:
        root, chain, roles, expires = b"r" * 500, (b"c" * 500,) * 3, EVERYTHING, NOW

        def secret(self) -> bytes:
            return SECRET

    peers = [(PeerId(bytes([place]) * 32), ["a" * 60] * 40 + ["b" * 300]) for place in range(50)]
    ticket = make_ticket(Invite(), peers)  # type: ignore[arg-type]
    assert [len(ticket.peers), len(ticket.peers[0][1])] == [tickets.PEERS_MAX, tickets.ADDRESSES_MAX]
    with pytest.raises(ConfigError, match="shorten it to 64"):
        make_ticket(Invite(), [], "x" * 65)  # type: ignore[arg-type]


def test_the_largest_ticket_that_is_made_can_be_read() -> None:
    peers = tuple((PeerId(bytes([place]) * 32), ("a" * 60,) * 4) for place in range(16))
    ticket = replace(TICKET, root=b"r" * 600, chain=(b"c" * 600,) * 3, peers=peers, label="x" * 64)
    assert parse_ticket(ticket.text()) == ticket


# -- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "lat", "latte", "ray://head:10001", "LAT1abc", "lat0" + TEXT[4:], "x" + TEXT])
def test_what_is_no_ticket_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)not a ticket.*begins with lat1"):
        parse_ticket(text)


@pytest.mark.parametrize("text", [TEXT[:-1], TEXT[:40], TEXT + "A", TEXT[:50] + TEXT[51:], "lat1", "lat1é", "lat1" * 9])
def test_a_cut_ticket_is_refused_as_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)cut or mistyped.*copy it whole"):
        parse_ticket(text)


@given(st.integers(4, len(TEXT) - 1), st.sampled_from("abcXYZ019-_"))
def test_a_mistyped_ticket_is_refused(place: int, letter: str) -> None:
    mistyped = TEXT[:place] + letter + TEXT[place + 1 :]
    try:
        assert parse_ticket(mistyped) == TICKET  # the same letter, or bits that base64 leaves unused
    except ConfigError as error:
        assert "mistyped" in str(error) or "newer" in str(error)


@pytest.mark.parametrize(
    "text", ["lat2" + TEXT[4:], "lat17" + TEXT[4:], packed(msgspec.msgpack.encode([2, "new", {}]))]
)
def test_a_ticket_of_a_later_release_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)made by a newer lattica.*upgrade"):
        parse_ticket(text)


def test_fields_that_a_later_release_appends_are_ignored() -> None:
    assert parse_ticket(packed(msgspec.msgpack.encode([*fields(), "more", 7]))) == TICKET


def test_roles_of_a_later_release_are_left_out() -> None:
    assert parse_ticket(packed(msgspec.msgpack.encode(fields(roles=1 << 20 | 1)))).roles == Role.EXECUTE


@pytest.mark.parametrize(
    "payload",
    [
        msgspec.msgpack.encode(values)
        for values in (
            fields(secret=b"short"),
            fields(root=b"r" * 2049),
            fields(chain=[b"one"]),
            fields(chain=[b"c"] * 4),
            fields(chain=[b"c" * 2049, b"d"]),
            fields(peers=[[b"short", []]]),
            fields(peers=[[b"p" * 32, []]] * 17),
            fields(peers=[[b"p" * 32, ["a"] * 17]]),
            fields(peers=[[b"p" * 32, ["a" * 256]]]),
            fields(peers=[[b"p" * 32, ["\x1b[2J"]]]),
            fields(roles=-1),
            fields(roles="all"),
            fields(expires=float("nan")),
            fields(expires=-1.0),
            fields(expires=1e300),
            fields(label="x" * 65),
            fields(version="1"),
            fields()[:5],
            [],
            {"version": 1},
        )
    ]
    + [b"\x91" * 5000, b"\xc1", b"\x98\x01\xa2\xff\xff"],
)
def test_a_ticket_with_impossible_content_is_refused(payload: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_ticket(packed(payload))


def test_a_ticket_that_does_not_fit_together_certifies_nobody() -> None:
    with pytest.raises(AdmissionError):
        TICKET.authority()
    with pytest.raises(AdmissionError):
        _ = TICKET.mesh


def test_an_expired_ticket_is_refused_with_the_date() -> None:
    tickets.require_unexpired(TICKET, TICKET.expires - 1)
    with pytest.raises(AdmissionError, match=r"(?s)expired on 2027-01-15 08:00 UTC.*ask for a new one"):
        tickets.require_unexpired(TICKET, TICKET.expires)


def test_a_ticket_has_a_longest_size() -> None:
    with pytest.raises(ConfigError, match="at most 16384"):
        parse_ticket("lat1" + "A" * 16384)


@given(st.one_of(st.text(max_size=200), st.text(max_size=200).map("lat1".__add__)))
def test_noise_is_no_ticket(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_ticket(text)


@given(st.binary(max_size=200))
def test_noise_with_a_right_checksum_is_no_ticket(payload: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_ticket(packed(payload))


@given(st.data())
def test_a_bent_payload_with_a_right_checksum_is_a_ticket_or_refused(data: st.DataObject) -> None:
    payload = bytearray(msgspec.msgpack.encode(fields()))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, 1 << 16)) % len(payload)] = data.draw(st.integers(0, 255))
    try:
        ticket = parse_ticket(packed(bytes(payload)))
    except ConfigError:
        return
    assert repr(ticket) and ticket.text()


# -- secrets --------------------------------------------------------------------------------------------------------


def test_a_ticket_never_shows_its_secret(tmp_path: Path) -> None:
    hidden = (SECRET.hex(), repr(SECRET), TEXT[60:80])
    said = [repr(TICKET), str(TICKET)]
    for text in (TEXT[:-1], TEXT[4:], TEXT[100:], "lat9" + TEXT[4:]):
        with pytest.raises(ConfigError) as refused:
            read_ticket(text, {}, io.StringIO())
        said += [str(refused.value), repr(refused.value.__cause__)]
    assert not [word for word in hidden for text in said if word in text]
    with pytest.raises(TypeError, match="as its text alone"):
        pickle.dumps(TICKET)


# -- where it is read from ------------------------------------------------------------------------------------------


def test_a_ticket_is_read_from_an_argument_a_file_stdin_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "ticket").write_text(TEXT + "\n")
    path = str(tmp_path / "ticket")
    nothing = io.StringIO()
    assert read_ticket(TEXT, {}, nothing) == TICKET
    assert read_ticket(path, {}, nothing) == TICKET
    assert read_ticket("-", {}, io.StringIO(TEXT + "\n")) == TICKET
    assert read_ticket(None, {"LATTICA_TICKET": TEXT}, nothing) == TICKET
    assert read_ticket(None, {"LATTICA_TICKET": path}, nothing) == TICKET
    assert read_ticket(None, {}, nothing) is None
    assert read_ticket(None, {"LATTICA_TICKET": " "}, nothing) is None


def test_an_argument_comes_before_the_environment() -> None:
    other = replace(TICKET, label="other")
    assert read_ticket(TEXT, {"LATTICA_TICKET": other.text()}, io.StringIO()) == TICKET


def test_the_environment_does_not_mean_stdin() -> None:
    with pytest.raises(ConfigError, match="neither a ticket nor a file"):
        read_ticket(None, {"LATTICA_TICKET": "-"}, io.StringIO(TEXT))


def test_a_path_without_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)ticket\.txt' is neither a ticket nor a file with one: No such file"):
        read_ticket("ticket.txt", {}, io.StringIO())
    for text in ("nothing", "", " ", "a\0b", "x" * 5000):
        with pytest.raises(ConfigError):
            read_ticket(text, {}, io.StringIO())


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigError, match=r"not a file with a ticket|neither a ticket nor a file"):
            read_ticket(str(path), {}, io.StringIO())


def test_a_file_and_stdin_are_read_no_further_than_a_ticket_is_long(tmp_path: Path) -> None:
    class Endless:
        def read(self, size: int, /) -> str:
            return "lat1" + "A" * (size - 4)

    (tmp_path / "log").write_text("lat1" + "A" * 100_000)
    for text in ("-", str(tmp_path / "log")):
        with pytest.raises(ConfigError, match="at most 16384"):
            read_ticket(text, {}, Endless())


def test_stdin_that_is_no_text_is_no_ticket() -> None:
    with pytest.raises(ConfigError, match="not a ticket"):
        read_ticket("-", {}, io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf-8"))
