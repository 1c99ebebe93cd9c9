"""Certificates of the mesh: X.509 with Ed25519 keys, and what a chain of them says about a peer.

    root ── issuer ─┬─ [issuer] ─┬─ member             certified by an issuer: 30 days, renewed before they end
                    │            └─ invite ── member   certified by itself, with a ticket: until the invite ends

Who may certify is X.509's business: OpenSSL checks signatures, times and path lengths (root any, an issuer of the root
2, an issuer of an issuer 1, an invite 0). What a member may do is ours: its roles are the intersection along the chain,
from an extension that OpenSSL does not know (`member_of`). Chains are DER, leaf first, without the root; times are unix
seconds, corrected by the caller. `notBefore` lies an hour back, so that a clock that is a little off exiles nobody.

`cryptography` and `OpenSSL` take 100 ms to import, so they are imported where they are used.
Source: RFC 5280 (§4.2.1.9 path lengths, §4.1.2.5 no well-defined end), RFC 8410 (Ed25519); ITU-T X.667 for our OIDs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from lattica.errors import AdmissionError
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, peer_id_of
from lattica.mesh.roles import EVERYTHING, Role, roles_of

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

DAY_S = 86400.0
BACKDATED_S = 3600.0
MEMBERSHIP_MAX_S = 90 * DAY_S
"""A membership that claims more is refused, whoever signed it: a stolen issuing key, which can backdate what it signs,
is good for so long after its revocation. Three times what is issued, so that later releases may issue longer ones."""
CHAIN_MAX = 4  # certificates without the root: member, invite, issuer, issuer
ISSUERS_MAX = 2  # of a chain
CERTIFICATE_MAX_BYTES = 2048  # ours have 480
NO_CA, INVITE_PATH, SUBISSUER_PATH, ISSUER_PATH = -1, 0, 1, 2
NO_END_S = 253_402_300_799.0  # the last second of 9999 (RFC 5280 §4.1.2.5)

_ARC = "2.25.63377389286546557551649911884806484140"
ROLES_OID = f"{_ARC}.1"  # OCTET STRING of 4 bytes, big-endian
INVITE_OID = f"{_ARC}.2"  # OCTET STRING of 32 bytes: the invite by which the member came
ROLES_BYTES = 4
OCTET_STRING = 4  # its tag in DER


@dataclass(frozen=True, slots=True)
class Member:
    """What a verified chain says about one peer."""

    peer: PeerId
    public_key: bytes
    roles: Role  # the intersection along the chain
    mesh: bytes  # BLAKE3-256 of the root's public key
    invite: bytes  # the invite it came by: BLAKE3-256 of that public key; b"" if none
    via_invite: bool  # the leaf is signed by that invite, not yet by an issuer
    issuers: tuple[tuple[bytes, float], ...]  # (issuer, when it signed what is below it), the nearest first
    expires: float  # the earliest end along the chain
    serial: int

    @property
    def certified(self) -> float:
        """When the issuer signed this membership, or the invite."""
        return self.issuers[0][1]


@dataclass(frozen=True, slots=True)
class Facts:
    """What one certificate says."""

    subject: str
    issuer: str
    public_key: bytes
    path_length: int  # how many that certify may stand below it; NO_CA: it may not certify
    roles: Role
    invite: bytes
    begins: float
    ends: float
    serial: int


class Checks(Protocol):
    """The cryptography that judgements rest on. `OpenSSL` is the real one; simulated worlds have one that costs little.

    at: when the chain must have been valid; None: it was verified before, so it is only read.
    """

    def member(self, chain: Sequence[bytes], root: bytes, at: float | None) -> Member:
        """What the chain proves. Raises AdmissionError if nothing."""

    def issuing_key(self, chain: Sequence[bytes], root: bytes, at: float | None) -> bytes:
        """The public key that this chain of an issuer entitles to certify; the root's own for an empty one."""

    def signed(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        """Whether this is that key's Ed25519 signature."""


# -- reading ---------------------------------------------------------------------------------------------------------


def member_of(chain: Sequence[Facts], root: Facts) -> Member:
    """The one reading of a chain: its shape, and the roles along it. Raises AdmissionError."""
    _require(0 < len(chain) <= CHAIN_MAX, "its chain of certificates is empty or too long")
    leaf, *above = chain
    _require(leaf.path_length == NO_CA, "its own certificate is one for certifying others")
    via_invite = bool(above) and above[0].path_length == INVITE_PATH
    issuers = above[via_invite:]
    _require(bool(issuers), "no issuer of the mesh has certified it")
    require_issuers(issuers, root)
    for one, other in pairwise(chain):
        _require(one.issuer == other.subject, "its certificates are not one chain")
    _require(via_invite or leaf.ends - leaf.begins <= MEMBERSHIP_MAX_S, "its membership is made for too long")
    roles = EVERYTHING
    for certificate in chain:
        roles &= certificate.roles
    signed = chain[via_invite:]  # what each of the issuers has signed begins here
    return Member(
        peer=peer_id_of(leaf.public_key),
        public_key=leaf.public_key,
        roles=roles,
        mesh=peer_id_of(root.public_key),
        invite=peer_id_of(above[0].public_key) if via_invite else leaf.invite,
        via_invite=via_invite,
        issuers=tuple(
            (bytes(peer_id_of(issuer.public_key)), below.begins + BACKDATED_S)
            for issuer, below in zip(issuers, signed, strict=False)
        ),
        expires=min(certificate.ends for certificate in chain),
        serial=leaf.serial,
    )


def require_issuers(issuers: Sequence[Facts], root: Facts) -> None:
    """These may certify members, the first by grace of the next, the last by that of the root."""
    _require(len(issuers) <= ISSUERS_MAX, "more issuers certify each other than may")
    for one, other in pairwise([*issuers, root]):
        _require(one.issuer == other.subject, "its certificates are not one chain of this mesh")
    for place, issuer in enumerate(issuers, SUBISSUER_PATH):
        _require(issuer.path_length >= place, "what certifies it may not certify others")


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise AdmissionError(reason)


def read_chain(chain: Sequence[bytes], root: bytes) -> Member:
    """What the chain says. Nothing is verified: for chains that TLS, or `verify_chain`, has verified before.

    Raises AdmissionError for what cannot be a member's chain under this root.
    """
    _require(len(chain) <= CHAIN_MAX, "its chain of certificates is too long")
    return member_of([read_certificate(der) for der in chain], read_certificate(root))


def verify_chain(chain: Sequence[bytes], root: bytes, at: float) -> Member:
    """What the chain proves about a member, if it was valid at `at`. Raises AdmissionError, also for expired ones."""
    member = read_chain(chain, root)
    _verify(chain, root, at)
    return member


def mesh_of(root: bytes) -> bytes:
    """The id of the mesh that has this root certificate."""
    return bytes(peer_id_of(read_certificate(root).public_key))


def read_certificate(der: bytes) -> Facts:
    """What a certificate says, unverified. Raises AdmissionError if it is none, or none of the kinds above."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.x509.oid import NameOID

    _require(len(der) <= CERTIFICATE_MAX_BYTES, f"a certificate is longer than {CERTIFICATE_MAX_BYTES} bytes")
    path_length, roles, invite = NO_CA, b"", b""
    try:
        found = _load(der)
        subject, issuer = (
            [str(name.value) for name in whole.get_attributes_for_oid(NameOID.COMMON_NAME)]
            for whole in (found.subject, found.issuer)
        )
        key = found.public_key()
        for extension in found.extensions:
            match extension.value:
                case x509.BasicConstraints(ca=True, path_length=length):
                    path_length = CHAIN_MAX if length is None else length
                case x509.UnrecognizedExtension(oid=oid, value=value) if oid.dotted_string == ROLES_OID:
                    roles = _octets(value, ROLES_BYTES)
                case x509.UnrecognizedExtension(oid=oid, value=value) if oid.dotted_string == INVITE_OID:
                    invite = _octets(value, PEER_ID_BYTES)
        begins, ends = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
        serial = found.serial_number
    except (ValueError, TypeError, x509.DuplicateExtension, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise AdmissionError("it is no certificate, or one of an unknown kind") from error
    if not isinstance(key, Ed25519PublicKey):
        raise AdmissionError("its key is not an Ed25519 key")
    _require(len(subject) == len(issuer) == 1, "a certificate names nobody")
    public_key = key.public_bytes_raw()
    return Facts(
        subject[0], issuer[0], public_key, path_length, roles_of(int.from_bytes(roles)), invite, begins, ends, serial
    )


def _octets(value: bytes, size: int) -> bytes:
    """The content of an OCTET STRING of that many bytes."""
    _require(value[:2] == bytes([OCTET_STRING, size]) and len(value) == 2 + size, "an extension of it is damaged")
    return value[2:]


# -- verifying -------------------------------------------------------------------------------------------------------


class OpenSSL:
    """`Checks` by OpenSSL and `cryptography`. A chain takes a millisecond, a signature 0.15."""

    def member(self, chain: Sequence[bytes], root: bytes, at: float | None) -> Member:
        return read_chain(chain, root) if at is None else verify_chain(chain, root, at)

    def issuing_key(self, chain: Sequence[bytes], root: bytes, at: float | None) -> bytes:
        _require(len(chain) <= ISSUERS_MAX, "more issuers certify each other than may")
        facts, top = [read_certificate(der) for der in chain], read_certificate(root)
        require_issuers(facts, top)
        if chain and at is not None:
            _verify(chain, root, at)
        return facts[0].public_key if facts else top.public_key

    def signed(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        """Whether this key has signed this (Ed25519)."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


CHECKS = OpenSSL()

VERIFICATION_WORDS = {
    7: "a signature in its chain is wrong",
    9: "its certificate is not valid yet: the clocks differ by more than an hour",
    10: "a certificate of its chain has expired",
    18: "its certificate is signed by itself",
    19: "its certificate is of another mesh",
    20: "its certificate is of another mesh, or of none",
    21: "its certificate is of another mesh, or of none",
    25: "its chain is longer than its issuer allows",
    79: "a certificate of its chain may not issue others",
}
"""X509_V_ERR_*, by OpenSSL's numbers, which do not change."""


def _verify(chain: Sequence[bytes], root: bytes, at: float) -> None:
    """OpenSSL's verification of the first of `chain` under `root`, as of then. Raises AdmissionError."""
    from OpenSSL import crypto

    _require(0 <= at < NO_END_S, "the time of its certificates is none")  # also refuses nan
    leaf, *others = (crypto.X509.from_cryptography(_load(der)) for der in chain)
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(_load(root)))
    store.set_time(datetime.fromtimestamp(at, UTC))
    try:
        crypto.X509StoreContext(store, leaf, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        number, words = error.errors[0], error.errors[-1]
        raise AdmissionError(VERIFICATION_WORDS.get(number, f"its certificate is not accepted: {words}")) from error


def _load(der: bytes) -> Certificate:
    from cryptography import x509

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what cryptography only warns of (a serial number below 1) is none of ours
        try:
            return x509.load_der_x509_certificate(der)
        except Warning as warning:
            raise ValueError(str(warning)) from warning
