"""Tickets: all that a machine needs to join a mesh, in one string to paste.

    `ticket_text`: lat1 + base64url of a payload and its checksum

    payload   msgpack [version, root certificate, [the invite's, its issuer's, ...], the invite's secret,
                       [[peer, [address, ...]], ...], roles, expires, label]

Whoever has a ticket can join until it expires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from lattica.errors import AdmissionError, ConfigError
from lattica.mesh.authority import SECRET_BYTES, Authority
from lattica.mesh.certificates import CERTIFICATE_MAX_BYTES, CHAIN_MAX, NO_END_S, mesh_of
from lattica.mesh.identity import PEER_ID_BYTES, PeerId
from lattica.mesh.papers import DAMAGED
from lattica.mesh.roles import Role, roles_of, roles_text
from lattica.mesh.ticket_text import ASK, VERSION, pack, require_version, unpack
from lattica.mesh.trust import when

PEERS_MAX = 16  # to begin with; more make the ticket long and no safer
ADDRESSES_MAX = 16  # of a peer
ADDRESS_MAX_CHARS = 255
LABEL_MAX_CHARS = 64


class _Version(msgspec.Struct, array_like=True, frozen=True):
    version: int


class _Payload(msgspec.Struct, array_like=True, frozen=True):
    version: int
    root: bytes
    chain: list[bytes]
    secret: bytes
    peers: list[tuple[bytes, list[str]]]
    roles: int
    expires: float
    label: str

    def __repr__(self) -> str:
        return "<_Payload>"  # never its secret


@dataclass(frozen=True, slots=True)
class Ticket:
    """What is inside one. Its secret is in no repr and in no error."""

    root: bytes
    chain: tuple[bytes, ...]  # of the invite: its own certificate first
    secret: bytes = field(repr=False)  # the invite's private key
    peers: tuple[tuple[PeerId, tuple[str, ...]], ...]  # some of the mesh, with their addresses
    roles: Role
    expires: float
    label: str = ""

    def __repr__(self) -> str:
        return f"<Ticket: {roles_text(self.roles)}, {len(self.peers)} peers, until {when(self.expires)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ticket travels as its text alone")

    @property
    def mesh(self) -> bytes:
        """The id of the mesh it is for. Raises AdmissionError if its root is no certificate."""
        return mesh_of(self.root)

    def authority(self) -> Authority:
        """The invite, which certifies its joiner. Raises AdmissionError if the ticket does not fit together."""
        return Authority(self.secret, self.root, self.chain)

    def text(self) -> str:
        """The string to paste."""
        payload = _Payload(
            VERSION,
            self.root,
            list(self.chain),
            self.secret,
            [(peer, list(addresses)) for peer, addresses in self.peers],
            self.roles.value,
            self.expires,
            self.label,
        )
        return pack(msgspec.msgpack.encode(payload))


def make_ticket(invite: Authority, peers: Sequence[tuple[PeerId, Sequence[str]]], label: str = "") -> Ticket:
    """The ticket for an invite. peers: whom to ask first, best first; what is too many or too long is left out.

    Raises ConfigError if the label is too long.
    """
    if len(label) > LABEL_MAX_CHARS:
        raise ConfigError(f"a label of {len(label)} characters", do_next=f"shorten it to {LABEL_MAX_CHARS}")
    some = tuple(
        (peer, tuple(address for address in addresses if len(address) <= ADDRESS_MAX_CHARS)[:ADDRESSES_MAX])
        for peer, addresses in peers[:PEERS_MAX]
    )
    return Ticket(invite.root, invite.chain, invite.secret(), some, invite.roles, invite.expires, label)


def parse_ticket(text: str) -> Ticket:
    """The ticket that was pasted. Raises ConfigError if it is none, cut, mistyped, or of a later release."""
    return _read(unpack(text))


def _read(data: bytes) -> Ticket:
    """From what the checksum covers; whoever wrote it may still have written anything."""
    try:
        version = msgspec.msgpack.decode(data, type=_Version).version
        payload = msgspec.msgpack.decode(data, type=_Payload) if version == VERSION else None
    except DAMAGED:
        version, payload = VERSION, None
    require_version(version)
    if payload is None or not _holds(payload):
        raise ConfigError("the ticket is damaged", do_next=ASK)
    return Ticket(
        root=payload.root,
        chain=tuple(payload.chain),
        secret=payload.secret,
        peers=tuple((PeerId(peer), tuple(texts)) for peer, texts in payload.peers),
        roles=roles_of(payload.roles),
        expires=payload.expires,
        label=payload.label,
    )


def _holds(payload: _Payload) -> bool:
    return (
        len(payload.secret) == SECRET_BYTES
        and 2 <= len(payload.chain) < CHAIN_MAX
        and all(len(der) <= CERTIFICATE_MAX_BYTES for der in (payload.root, *payload.chain))
        and len(payload.peers) <= PEERS_MAX
        and all(len(peer) == PEER_ID_BYTES and _are_addresses(texts) for peer, texts in payload.peers)
        and payload.roles >= 0
        and 0 <= payload.expires <= NO_END_S
        and len(payload.label) <= LABEL_MAX_CHARS
    )


def _are_addresses(texts: Sequence[str]) -> bool:
    return len(texts) <= ADDRESSES_MAX and all(len(text) <= ADDRESS_MAX_CHARS and text.isprintable() for text in texts)


def require_unexpired(ticket: Ticket, now: float) -> None:
    """Raises AdmissionError if nobody can join with it any more."""
    if ticket.expires <= now:
        raise AdmissionError(f"the ticket expired on {when(ticket.expires)}", do_next=ASK)
