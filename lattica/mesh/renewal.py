"""The `renew` door: how a peer whose certificate has expired gets a new one, without a certificate to connect with.

    issuer -> peer     nonce                                       32 bytes, new for each connection
    peer -> issuer     a paper (`papers`) with the nonce as body   signed by the peer's key, with its old chain
    issuer -> peer     msgpack [chain, reason, final]

It runs over TLS in which the issuer alone has proved who it is. This one request is read there and nothing else: the
only exception to mutual authentication. The old chain is verified as of a time at which it was valid.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lattica.errors import AdmissionError, RemoteProtocolError
from lattica.mesh.admission import ASK_AN_ADMIN, ASK_FOR_TICKET, RENEWABLE_S, Refusal
from lattica.mesh.certificates import CERTIFICATE_MAX_BYTES, CHAIN_MAX, DAY_S, Member
from lattica.mesh.papers import DAMAGED, Signs, read_paper, signer_of, write_paper
from lattica.mesh.trust import REASON_MAX_CHARS, Trust, when

RENEWAL_MAX_BYTES = 16 << 10  # of a request and of an answer; ours have 2 KB
NONCE_BYTES = 32
PURPOSE = "renewal"


class _Answer(msgspec.Struct, array_like=True, frozen=True):
    chain: list[bytes]  # empty: refused
    reason: str = ""
    final: bool = False


def sign_renewal(nonce: bytes, *, signer: Signs, chain: Sequence[bytes], mesh: bytes) -> bytes:
    """The request of the peer that has this old chain."""
    return write_paper(PURPOSE, nonce, signer, chain, mesh)


def verify_renewal(request: bytes, nonce: bytes, root: bytes, trust: Trust, now: float) -> Member:
    """Who asks, as its old chain said; `admission.answer` answers it.

    Raises RemoteProtocolError if the request is damaged, AdmissionError if whoever asks is not a member that may renew:
    not of this mesh, revoked, expired more than RENEWABLE_S ago, or never certified by an issuer.
    """
    paper = read_paper(request, RENEWAL_MAX_BYTES, "a request to renew")
    if len(nonce) != NONCE_BYTES or paper.body != nonce:
        raise AdmissionError("the request to renew answers another question", do_next="ask again")
    if not paper.chain:
        raise AdmissionError("the request to renew shows no certificate")
    claimed = trust.checks.member(paper.chain, root, None)
    member = signer_of(paper, PURPOSE, root, trust.checks, min(claimed.expires - 1, now))
    assert member is not None, "a chain that is not empty is a member's"
    if member.via_invite and member.expires <= now:
        raise AdmissionError(
            f"its ticket expired on {when(member.expires)}, before an issuer certified it", do_next=ASK_FOR_TICKET
        )
    if member.expires + RENEWABLE_S <= now:
        raise AdmissionError(
            f"its certificate expired on {when(member.expires)}, more than {RENEWABLE_S / DAY_S:.0f} days ago",
            do_next=ASK_FOR_TICKET,
        )
    if reason := trust.revoked(member):
        raise AdmissionError(reason, do_next=ASK_AN_ADMIN)
    return member


def write_answer(answer: list[bytes] | Refusal) -> bytes:
    """What `admission.answer` said, as it travels."""
    said = _Answer([], answer.reason, answer.final) if isinstance(answer, Refusal) else _Answer(answer)
    return msgspec.msgpack.encode(said)


def read_answer(data: bytes) -> list[bytes] | Refusal:
    """What the issuer said; the chain is not verified here. Raises RemoteProtocolError if it is damaged."""
    if len(data) > RENEWAL_MAX_BYTES:
        raise RemoteProtocolError(f"an issuer's answer has {len(data)} bytes, and may have {RENEWAL_MAX_BYTES}")
    try:
        said = msgspec.msgpack.decode(data, type=_Answer)
    except DAMAGED as error:
        raise RemoteProtocolError(f"an issuer's answer cannot be read: {error}") from error
    if len(said.chain) > CHAIN_MAX or any(len(der) > CERTIFICATE_MAX_BYTES for der in said.chain):
        raise RemoteProtocolError("an issuer's answer is no chain")
    return said.chain or Refusal(said.reason[: 2 * REASON_MAX_CHARS], said.final)
