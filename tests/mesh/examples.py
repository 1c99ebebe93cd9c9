"""What of a membership travels between releases, with every field set, and the bytes that it must have.

python -m tests.mesh.examples      write tests/golden/membership.json anew: the diff is the change of the format

Chains are kept, not made again: their serial numbers are random, so those in the file stay as they were first written.
"""

from __future__ import annotations

import json
from pathlib import Path

from lattica.ids import JobId
from lattica.mesh import renewal, tokens
from lattica.mesh.admission import Refusal
from lattica.mesh.authority import Authority, make_certificate, make_root, public_key_of, root_facts
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import EVERYTHING, Role
from lattica.mesh.tickets import Ticket
from lattica.mesh.trust import IssuerNamed, IssuerRevoked, PeerRevoked, write_statement

GOLDEN = Path(__file__).parents[1] / "golden" / "membership.json"
SECRET = bytes(range(32))
CHAIN = [b"leaf", b"issuer"]
MESH, PEER, INVITE, ISSUER = b"m" * 32, b"p" * 32, b"i" * 32, b"s" * 32
AT = 1_800_000_000.5


class Key:
    """Signs with `SECRET`: Ed25519 signatures are the same each time."""

    def sign(self, data: bytes) -> bytes:
        root = make_certificate(root_facts(public_key_of(SECRET), AT), SECRET)
        return Authority(SECRET, root).sign(data)


TICKET = Ticket(
    root=b"root",
    chain=(b"invite", b"issuer"),
    secret=SECRET,
    peers=((PeerId(PEER), ("tcp://192.0.2.7:9200", "tcp://[2001:db8::7]:9200")),),
    roles=Role.EXECUTE | Role.RELAY,
    expires=AT,
    label="attic",
)


def made() -> dict[str, str]:
    """Name -> what this release writes."""
    says = {
        "PeerRevoked": PeerRevoked(PEER, INVITE, "lost laptop"),
        "IssuerRevoked": IssuerRevoked(ISSUER, AT - 60, "stolen"),
        "IssuerNamed": IssuerNamed([b"issuer", b"first"], PEER, "attic"),
    }
    statements = {name: write_statement(one, AT, Key(), CHAIN, MESH).hex() for name, one in says.items()}
    limits = {"gpu": 1.0, "cpu": 2.5}
    token = tokens.sign_token(JobId(b"j" * 16), limits, AT, AT + 3600, signer=Key(), chain=CHAIN, mesh=MESH)
    request = renewal.sign_renewal(b"n" * 32, signer=Key(), chain=CHAIN, mesh=MESH)
    return statements | {
        "ticket": TICKET.text(),
        "job token": token.hex(),
        "renewal": request.hex(),
        "renewal granted": renewal.write_answer(list(CHAIN)).hex(),
        "renewal refused": renewal.write_answer(Refusal("it was revoked", True)).hex(),
    }


def a_chain() -> dict[str, list[str]]:
    """A root, and the chain of a member that came by an invite of a second issuer."""
    root = make_root(AT)
    one = Authority(SECRET, root.root, root.certify_issuer(public_key_of(SECRET), AT))
    other = Authority(bytes(32), root.root, one.certify_issuer(public_key_of(bytes(32)), AT))
    invite = other.invite(EVERYTHING, AT)
    by_invite = invite.certify_member(public_key_of(b"x" * 32), Role.EXECUTE, AT)
    certified = one.certify_member(public_key_of(b"x" * 32), Role.EXECUTE | Role.STORE, AT, invite=invite.id)
    return {
        "root": [root.root.hex()],
        "by invite": [der.hex() for der in by_invite],
        "certified": [der.hex() for der in certified],
    }


if __name__ == "__main__":
    kept = json.loads(GOLDEN.read_text())["chains"] if GOLDEN.exists() else a_chain()
    GOLDEN.write_text(json.dumps({"made": made(), "chains": kept}, indent=1) + "\n")
