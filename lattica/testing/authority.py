"""Certificates for simulated worlds: who certifies whom is the real code, a signature is a hash that anybody can make.

    root = fake_root("mesh", now)
    issuer = root.issuer("a", now)
    key = FakeKey("peer 1")
    chain = issuer.certify_member(key.public_key, MEMBER, now)
    FAKE_CHECKS.member(chain, root.root, now).roles

A chain costs some 20 µs here, and a millisecond for real. Keys come from names, so the same world has the same keys.
Nothing here keeps a forger out: worlds with forgers take the real checks (`certificates.CHECKS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import count, pairwise

import msgspec

from lattica.errors import AdmissionError
from lattica.mesh.authority import SECRET_BYTES, Authority, root_facts
from lattica.mesh.certificates import CHAIN_MAX, ISSUERS_MAX, Facts, Member, member_of, require_issuers
from lattica.mesh.identity import PeerId, peer_id_of
from lattica.mesh.papers import DAMAGED, SIGNATURE_BYTES


class FakeKey:
    """A peer's key in place of an `Identity`."""

    def __init__(self, name: str) -> None:
        self.secret = _hash(name.encode())
        self.public_key = _hash(self.secret)
        self.peer: PeerId = peer_id_of(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """64 bytes that `FakeChecks.signed` accepts."""
        return _signature(self.public_key, data)


class FakeAuthority(Authority):
    """As `Authority`. The keys of its invites are numbered, so that the same world makes the same ones."""

    def __init__(self, secret: bytes, root: bytes, chain: Sequence[bytes] = ()) -> None:
        super().__init__(secret, root, chain)
        self._numbers = count(1)

    def issuer(self, name: str, now: float) -> FakeAuthority:
        """An issuer that this one certifies."""
        key = FakeKey(name)
        return FakeAuthority(key.secret, self.root, self.certify_issuer(key.public_key, now))

    def sign(self, data: bytes) -> bytes:
        return _signature(self.public_key, data)

    def _make(self, facts: Facts) -> bytes:
        return _certificate(facts, self.public_key)

    def _read(self, certificate: bytes) -> Facts:
        return _read(certificate)[0]

    def _new_secret(self) -> bytes:
        return _hash(self._secret + b"%d" % next(self._numbers))

    def _public_key_of(self, secret: bytes) -> bytes:
        return _hash(secret)


def fake_root(name: str, now: float) -> FakeAuthority:
    """A new mesh."""
    key = FakeKey(name)
    return FakeAuthority(key.secret, _certificate(root_facts(key.public_key, now), key.public_key))


class FakeChecks:
    """`certificates.Checks` over such certificates."""

    def member(self, chain: Sequence[bytes], root: bytes, at: float | None) -> Member:
        facts, top = self._facts(chain, root, at)
        return member_of(facts, top)

    def issuing_key(self, chain: Sequence[bytes], root: bytes, at: float | None) -> bytes:
        facts, top = self._facts(chain[: ISSUERS_MAX + 1], root, at)
        require_issuers(facts, top)
        return facts[0].public_key if facts else top.public_key

    def signed(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        return signature == _signature(public_key, data)

    def _facts(self, chain: Sequence[bytes], root: bytes, at: float | None) -> tuple[list[Facts], Facts]:
        read = [_read(certificate) for certificate in (*chain[: CHAIN_MAX + 1], root)]
        for (facts, data, signature), (issuer, _, _) in pairwise(read):
            if at is None:
                break
            if signature != _signature(issuer.public_key, data):
                raise AdmissionError("a signature in its chain is wrong")
            if not facts.begins <= at < facts.ends:
                raise AdmissionError("a certificate of its chain has expired, or is not valid yet")
        return [facts for facts, _, _ in read[:-1]], read[-1][0]


FAKE_CHECKS = FakeChecks()


def _certificate(facts: Facts, signer: bytes) -> bytes:
    data = msgspec.msgpack.encode(facts)
    return msgspec.msgpack.encode((data, _signature(signer, data)))


def _read(certificate: bytes) -> tuple[Facts, bytes, bytes]:
    """(what it says, the bytes of that, their signature)"""
    try:
        data, signature = msgspec.msgpack.decode(certificate, type=tuple[bytes, bytes])
        return msgspec.msgpack.decode(data, type=Facts), data, signature
    except DAMAGED as error:
        raise AdmissionError("it is no certificate of a simulated world") from error


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=SECRET_BYTES).digest()


def _signature(public_key: bytes, data: bytes) -> bytes:
    return blake2b(data, key=public_key, digest_size=SIGNATURE_BYTES).digest()
