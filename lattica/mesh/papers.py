"""Papers: bytes that a peer has signed, beside the chain that says who signed. They travel and are kept for long.

    msgpack  [version, body, [certificates, leaf first], signature]

Statements, job tokens and requests to renew are papers. Each kind has a `purpose` of its own that is signed with it, so
that none can pass for another; so are the mesh and the chain. An empty chain is the root's. A paper has one encoding
only: who did not sign it cannot make a second one of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from lattica.errors import AdmissionError, RemoteProtocolError
from lattica.mesh.certificates import CERTIFICATE_MAX_BYTES, CHAIN_MAX, Checks, Member
from lattica.mesh.identity import peer_id_of

VERSION = 1
SIGNATURE_BYTES = 64
DAMAGED = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: bad text is a ValueError, deep nesting the last."""


class Signs(Protocol):
    """An `Identity`, an `Authority`, or a simulated key."""

    def sign(self, data: bytes) -> bytes: ...


class Paper(msgspec.Struct, array_like=True, frozen=True):
    """One, as read: nothing in it is proved."""

    version: int
    body: bytes
    chain: list[bytes]
    signature: bytes


def write_paper(purpose: str, body: bytes, signer: Signs, chain: Sequence[bytes], mesh: bytes) -> bytes:
    """Sign `body`. chain: of the signer; empty for the root. mesh: the id of the mesh that it is for."""
    signature = signer.sign(_signed(purpose, body, chain, mesh))
    return msgspec.msgpack.encode(Paper(VERSION, body, list(chain), signature))


def read_paper(data: bytes, max_bytes: int, what: str) -> Paper:
    """Raises RemoteProtocolError if it is none of at most `max_bytes`. what: its name in the message."""
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"{what} has {len(data)} bytes, and may have {max_bytes}")
    try:
        paper = msgspec.msgpack.decode(data, type=Paper)
    except DAMAGED as error:
        raise RemoteProtocolError(f"{what} cannot be read: {error}") from error
    sizes_hold = len(paper.signature) == SIGNATURE_BYTES and len(paper.chain) <= CHAIN_MAX
    if not sizes_hold or any(len(der) > CERTIFICATE_MAX_BYTES for der in paper.chain):
        raise RemoteProtocolError(f"{what} holds something that is too long")
    if paper.version != VERSION or msgspec.msgpack.encode(paper) != data:
        raise RemoteProtocolError(f"{what} is not written as this release writes it (version {paper.version})")
    return paper


def signer_of(paper: Paper, purpose: str, root: bytes, checks: Checks, at: float | None) -> Member | None:
    """Who signed it, a member at the time `at` (None: it was verified before); None for the root.

    Raises AdmissionError if nobody of this mesh did.
    """
    root_key = checks.issuing_key([], root, None)
    member = checks.member(paper.chain, root, at) if paper.chain else None
    if at is not None:
        data = _signed(purpose, paper.body, paper.chain, peer_id_of(root_key))
        if not checks.signed(member.public_key if member else root_key, paper.signature, data):
            raise AdmissionError("its signature is wrong")
    return member


def _signed(purpose: str, body: bytes, chain: Sequence[bytes], mesh: bytes) -> bytes:
    from blake3 import blake3

    return (
        f"lattica {purpose} {VERSION}\0".encode() + mesh + blake3(msgspec.msgpack.encode(list(chain))).digest() + body
    )
