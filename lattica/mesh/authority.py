"""Keys that certify: the root, issuers and invites, and the certificates they make.

The secret of each is an Ed25519 private key of its own, never the one that a peer is known by. Nobody certifies more
than it has itself: roles are cut to those of the certificate above, and so is the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

from lattica.errors import AdmissionError
from lattica.mesh.certificates import (
    BACKDATED_S,
    CHAIN_MAX,
    DAY_S,
    INVITE_OID,
    INVITE_PATH,
    ISSUER_PATH,
    NO_CA,
    NO_END_S,
    OCTET_STRING,
    ROLES_BYTES,
    ROLES_OID,
    SUBISSUER_PATH,
    Facts,
    read_certificate,
)
from lattica.mesh.identity import peer_id_of, peer_text
from lattica.mesh.roles import EVERYTHING, Role

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509 import ExtensionType, Name, UnrecognizedExtension

SECRET_BYTES = 32  # of an Ed25519 private key
MEMBERSHIP_S = 30 * DAY_S
"""Longer: who was certified by a stolen key stays longer. Shorter: a machine that was off for a holiday comes back only
through the `renew` door."""
INVITE_S = 7 * DAY_S
INVITE_MAX_S = 366 * DAY_S
ISSUER_S = 20 * 365.25 * DAY_S  # issuers end by revocation


class Authority:
    """A key that may certify others, with the chain that entitles it: the root's (empty), an issuer's or an invite's.

    secret: the raw private key, 32 bytes. It leaves this object by `secret` alone, for a file or a ticket.
    Raises AdmissionError if the chain is not this key's.
    """

    def __init__(self, secret: bytes, root: bytes, chain: Sequence[bytes] = ()) -> None:
        self.root, self.chain = root, tuple(chain)
        self._secret = secret
        self._facts = self._read(chain[0] if chain else root)
        self.public_key = self._facts.public_key
        self.id = bytes(peer_id_of(self.public_key))
        if self._public_key_of(secret) != self.public_key or self._facts.path_length == NO_CA:
            raise AdmissionError("the certificate is not one of this key for certifying others")

    def __repr__(self) -> str:
        return f"<Authority {self._facts.subject[:16]}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key that certifies never leaves its node")

    def secret(self) -> bytes:
        """The raw private key."""
        return self._secret

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) of `data`."""
        return _private_key(self._secret).sign(data)

    @property
    def roles(self) -> Role:
        """The most that it can give."""
        return self._facts.roles

    @property
    def expires(self) -> float:
        return self._facts.ends

    @property
    def may_issue_issuers(self) -> bool:
        """An issuer certified by an issuer may not, nor may an invite."""
        return not self.chain or self._facts.path_length >= ISSUER_PATH

    def certify_member(self, public_key: bytes, roles: Role, now: float, *, invite: bytes = b"") -> list[bytes]:
        """The chain of a member with this key. invite: by which it came. Signed by an invite it ends with that."""
        by_invite = self._facts.path_length == INVITE_PATH
        ends = self._facts.ends if by_invite else now + MEMBERSHIP_S
        subject = f"peer {peer_text(peer_id_of(public_key))}"
        return self._certify(subject, public_key, now, ends, NO_CA, roles & self.roles, invite)

    def certify_issuer(self, public_key: bytes, now: float) -> list[bytes]:
        """The chain of an issuer with this key. Raises AdmissionError if this key may not make issuers."""
        if not self.may_issue_issuers:
            raise AdmissionError(
                "this key may not certify issuers",
                do_next="ask on the node that founded the mesh, or use the recovery file",
            )
        subject = f"issuer {peer_text(peer_id_of(public_key))}"
        path = SUBISSUER_PATH if self.chain else ISSUER_PATH
        return self._certify(subject, public_key, now, now + ISSUER_S, path, self.roles)

    def invite(self, roles: Role, now: float, ttl_s: float = INVITE_S) -> Authority:
        """A fresh key that certifies members with at most these roles, for `ttl_s` seconds."""
        secret = self._new_secret()
        public_key = self._public_key_of(secret)
        subject = f"invite {peer_text(peer_id_of(public_key))}"
        ends = now + min(ttl_s, INVITE_MAX_S)
        chain = self._certify(subject, public_key, now, ends, INVITE_PATH, roles & self.roles)
        return type(self)(secret, self.root, chain)

    def _certify(
        self, subject: str, public_key: bytes, now: float, ends: float, path: int, roles: Role, invite: bytes = b""
    ) -> list[bytes]:
        if self._facts.ends <= now:
            raise AdmissionError(f"{self._facts.subject[:15]} certifies nobody any more: its certificate has expired")
        mine = Facts(
            subject=subject,
            issuer=self._facts.subject,
            public_key=public_key,
            path_length=path,
            roles=roles,
            invite=invite,
            begins=now - BACKDATED_S,
            ends=min(ends, self._facts.ends),
            serial=0,
        )
        return [self._make(mine), *self.chain]

    # What simulated worlds do at less cost.

    def _make(self, facts: Facts) -> bytes:
        return make_certificate(facts, self._secret)

    def _read(self, certificate: bytes) -> Facts:
        return read_certificate(certificate)

    def _new_secret(self) -> bytes:
        return new_secret()

    def _public_key_of(self, secret: bytes) -> bytes:
        return public_key_of(secret)


def make_root(now: float) -> Authority:
    """A new mesh: its root key, which certifies the first issuer and is then put away."""
    secret = new_secret()
    return Authority(secret, make_certificate(root_facts(public_key_of(secret), now), secret))


def root_facts(public_key: bytes, now: float) -> Facts:
    """What the certificate of a mesh's root says."""
    name = f"mesh {peer_text(peer_id_of(public_key))}"
    return Facts(
        subject=name,
        issuer=name,
        public_key=public_key,
        path_length=CHAIN_MAX,
        roles=EVERYTHING,
        invite=b"",
        begins=now - BACKDATED_S,
        ends=NO_END_S,
        serial=0,
    )


def new_secret() -> bytes:
    """A new Ed25519 private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key_of(secret: bytes) -> bytes:
    """The public half of it."""
    return _private_key(secret).public_key().public_bytes_raw()


def _private_key(secret: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if len(secret) != SECRET_BYTES:
        raise AdmissionError("a private key has not the length of one")
    return Ed25519PrivateKey.from_private_bytes(secret)


def make_certificate(facts: Facts, secret: bytes) -> bytes:
    """The certificate that says this, signed with `secret`, in DER. Its serial number is a random one."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding

    certifies = facts.path_length != NO_CA
    key = _private_key(secret)
    public_key = Ed25519PublicKey.from_public_bytes(facts.public_key)
    extensions: list[tuple[ExtensionType, bool]] = [
        (x509.BasicConstraints(certifies, facts.path_length if certifies else None), True),
        (x509.KeyUsage(not certifies, False, False, False, False, certifies, False, False, False), True),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False),
        (_extension(ROLES_OID, facts.roles.value.to_bytes(ROLES_BYTES)), False),
    ]
    if facts.invite:
        extensions.append((_extension(INVITE_OID, facts.invite), False))
    builder = (
        x509.CertificateBuilder()
        .issuer_name(_name(facts.issuer))
        .subject_name(_name(facts.subject))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(facts.begins), UTC))
        .not_valid_after(datetime.fromtimestamp(int(facts.ends), UTC))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, None).public_bytes(Encoding.DER)


def _name(text: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _extension(oid: str, octets: bytes) -> UnrecognizedExtension:
    from cryptography import x509

    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), bytes([OCTET_STRING, len(octets)]) + octets)
