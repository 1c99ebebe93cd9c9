"""Tickets: all that a machine needs to join a mesh, in one string to paste.

    lat1 + base64url, without padding, of a payload and 4 bytes of its BLAKE3 (so that a cut ticket is known as one)

    payload   msgpack [version, root certificate, [the invite's, its issuer's, ...], the invite's secret,
                       [[peer, [address, ...]], ...], roles, expires, label]

Whoever has a ticket can join until it expires, so it is read from the environment, a file or stdin as well: arguments
can be seen by every user of a machine. Blanks and line ends in it are ignored, as mail programs add them.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import msgspec

from lattica.errors import AdmissionError, ConfigError
from lattica.mesh.authority import SECRET_BYTES, Authority
from lattica.mesh.certificates import CERTIFICATE_MAX_BYTES, CHAIN_MAX, NO_END_S, mesh_of
from lattica.mesh.identity import PEER_ID_BYTES, PeerId
from lattica.mesh.papers import DAMAGED
from lattica.mesh.roles import Role, roles_of, roles_text
from lattica.mesh.trust import when

VERSION = 1
PREFIX = f"lat{VERSION}"
VARIABLE = "LATTICA_TICKET"
TICKET_MAX_CHARS = 16 << 10  # ours have 2,000 to 3,000
PEERS_MAX = 16  # to begin with; more make the ticket long and no safer
ADDRESSES_MAX = 16  # of a peer
ADDRESS_MAX_CHARS = 255
LABEL_MAX_CHARS = 64
CHECKSUM_BYTES = 4  # one mistyped ticket in 4 billion passes for a whole one, and then fails as a wrong one
_ASK = "ask for a new one: `lattica ticket` on a node of the mesh"


class TextStream(Protocol):
    def read(self, size: int, /) -> str: ...


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
        data = msgspec.msgpack.encode(payload)
        return PREFIX + base64.urlsafe_b64encode(data + _checksum(data)).decode().rstrip("=")


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
    joined = "".join(text[: TICKET_MAX_CHARS + 1].split())
    found = re.match(r"lat(\d{1,4})", joined)  # the base64 of an array of up to 15 begins with a letter
    if found is None:
        raise ConfigError("that is not a ticket", do_next=f"paste all of it: a ticket begins with {PREFIX}")
    _require_version(int(found[1]))
    if len(text) > TICKET_MAX_CHARS:
        raise ConfigError(f"a ticket has at most {TICKET_MAX_CHARS} characters", do_next="paste the ticket alone")
    try:
        raw = joined[len(PREFIX) :].encode("ascii")
        packed = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        packed = b""
    data, checksum = packed[:-CHECKSUM_BYTES], packed[-CHECKSUM_BYTES:]
    if not data or _checksum(data) != checksum:
        raise ConfigError(
            "the ticket was cut or mistyped: its checksum does not match", do_next=f"copy it whole, or {_ASK}"
        )
    return _read(data)


def _read(data: bytes) -> Ticket:
    """From what the checksum covers; whoever wrote it may still have written anything."""
    try:
        version = msgspec.msgpack.decode(data, type=_Version).version
        payload = msgspec.msgpack.decode(data, type=_Payload) if version == VERSION else None
    except DAMAGED:
        version, payload = VERSION, None
    _require_version(version)
    if payload is None or not _holds(payload):
        raise ConfigError("the ticket is damaged", do_next=_ASK)
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


def _require_version(version: int) -> None:
    if version > VERSION:
        raise ConfigError(
            f"the ticket is of version {version}: it was made by a newer lattica",
            do_next="upgrade lattica here (`pip install -U lattica-mesh`), or ask for a ticket made by this release",
        )
    if version < VERSION:
        raise ConfigError("that is not a ticket", do_next=f"paste all of it: a ticket begins with {PREFIX}")


def require_unexpired(ticket: Ticket, now: float) -> None:
    """Raises AdmissionError if nobody can join with it any more."""
    if ticket.expires <= now:
        raise AdmissionError(f"the ticket expired on {when(ticket.expires)}", do_next=_ASK)


def read_ticket(given: str | None, environ: Mapping[str, str], stdin: TextStream) -> Ticket | None:
    """The ticket that the user means: `given` is one, a file with one, or "-" for stdin; without it, LATTICA_TICKET is
    one or a file with one. None if there is neither.

    Raises ConfigError, which never quotes what may be a secret.
    """
    where = given if given is not None else environ.get(VARIABLE, "").strip() or None
    if where is None:
        return None
    if given == "-":
        return parse_ticket(_read_stream(stdin))
    if re.match(r"\s*lat\d", where) or not where.strip():
        return parse_ticket(where)
    return parse_ticket(_read_file(where))


def _read_stream(stdin: TextStream) -> str:
    try:
        return stdin.read(TICKET_MAX_CHARS + 1)
    except UnicodeDecodeError:
        return ""  # and that is not a ticket


def _read_file(path: str) -> str:
    # A ticket whose beginning was cut off is no path, and must not be shown; base64 has neither of these two.
    name = f"{path!r:.80}" if "/" in path or "." in path else "what was given"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(
                    f"{name} is not a file with a ticket", do_next="give the ticket, a file with it, or -"
                )
            return file.read(TICKET_MAX_CHARS + 1).decode("ascii", "replace")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        why = error.strerror if isinstance(error, OSError) else "it cannot be a path"
        raise ConfigError(
            f"{name} is neither a ticket nor a file with one: {why}",
            do_next=f"paste all of it, from {PREFIX} on; give a file with it, or - and the ticket on stdin",
        ) from None  # its cause would quote the path


def _checksum(data: bytes) -> bytes:
    from blake3 import blake3

    return blake3(data).digest(CHECKSUM_BYTES)
