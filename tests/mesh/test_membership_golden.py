"""What travels between releases has golden bytes, and those of earlier releases are still read."""

from __future__ import annotations

import json

import msgspec
import pytest

from lattica.mesh import renewal
from lattica.mesh.admission import Refusal
from lattica.mesh.authority import public_key_of
from lattica.mesh.certificates import verify_chain
from lattica.mesh.identity import peer_id_of
from lattica.mesh.papers import Paper
from lattica.mesh.roles import Role
from lattica.mesh.tickets import parse_ticket
from lattica.mesh.trust import IssuerNamed, IssuerRevoked, PeerRevoked, Says
from tests.mesh.examples import AT, CHAIN, GOLDEN, INVITE, ISSUER, PEER, TICKET, made

golden = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", made())
def test_what_is_written_has_its_golden_bytes(name: str) -> None:
    assert made()[name] == golden["made"][name], f"the format of {name} changed; older releases cannot read it"


def test_every_golden_example_is_still_made() -> None:
    assert made().keys() == golden["made"].keys()


def test_the_golden_ticket_is_read_as_what_it_was() -> None:
    assert parse_ticket(golden["made"]["ticket"]) == TICKET


def test_golden_statements_are_read_as_what_they_were() -> None:
    read = {}
    for name in ("PeerRevoked", "IssuerRevoked", "IssuerNamed"):
        paper = msgspec.msgpack.decode(bytes.fromhex(golden["made"][name]), type=Paper)
        assert (paper.version, paper.chain) == (1, CHAIN)
        at, read[name] = msgspec.msgpack.decode(paper.body, type=tuple[float, Says])
        assert at == AT
    assert list(read.values()) == [
        PeerRevoked(PEER, INVITE, "lost laptop"),
        IssuerRevoked(ISSUER, AT - 60, "stolen"),
        IssuerNamed([b"issuer", b"first"], PEER, "attic"),
    ]


def test_golden_answers_are_read_as_what_they_were() -> None:
    read = [renewal.read_answer(bytes.fromhex(golden["made"][f"renewal {name}"])) for name in ("granted", "refused")]
    assert read == [CHAIN, Refusal("it was revoked", True)]


def test_golden_certificates_prove_what_they_did() -> None:
    """Roles and invites lie in extensions of our own: a release that reads them otherwise would exile everybody."""
    chains = {name: [bytes.fromhex(der) for der in chain] for name, chain in golden["chains"].items()}
    (root,) = chains["root"]
    joiner = verify_chain(chains["by invite"], root, AT + 1)
    member = verify_chain(chains["certified"], root, AT + 1)
    assert joiner.peer == member.peer == peer_id_of(public_key_of(b"x" * 32))
    assert (joiner.roles, member.roles) == (Role.EXECUTE, Role.EXECUTE | Role.STORE)
    assert (joiner.via_invite, member.via_invite) == (True, False)
    assert joiner.invite == member.invite != b""
    assert [len(joiner.issuers), len(member.issuers)] == [2, 1]
