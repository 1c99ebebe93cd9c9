"""The machine's key and what it is called by: an Ed25519 key on disk, and the hash of its public half.

    <data directory>/identity/node.key     PKCS #8 in PEM, mode 0600; whoever has it is this peer
    <data directory>/identity/boot         how often this peer began: decimal, only ever grows

Only the node reads this, and only one that has a data directory; the caller holds that directory's lock. `cryptography`
takes 60 ms and 10 MiB to import, so it is imported where it is used.
"""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING, NewType, NoReturn

from lattica.errors import ConfigError
from lattica.files import read_private, write_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PeerId = NewType("PeerId", bytes)
"""BLAKE3-256 of the raw public key."""
PEER_ID_BYTES = 32
PEER_ID_CHARS = 52  # of its text form: 256 bits in base32, without padding
SHORT_CHARS = 8  # 40 bits: no two peers of one mesh look alike by chance
KEY_FILE_MAX_BYTES = 4096  # ours has 119
BOOT_MAX = (1 << 63) - 1  # fits a signed 64-bit field of any reader


def peer_id_of(public_key: bytes) -> PeerId:
    """The id of the peer that has this raw Ed25519 public key (32 bytes)."""
    from blake3 import blake3

    return PeerId(blake3(public_key).digest())


def peer_text(peer: PeerId) -> str:
    """The id as people see and paste it: 52 characters of a–z and 2–7."""
    return base64.b32encode(peer).decode().rstrip("=").lower()


def short_peer(peer: PeerId) -> str:
    """Enough of it for a line of output."""
    return peer_text(peer)[:SHORT_CHARS]


def parse_peer(text: str) -> PeerId:
    """The id that `peer_text` wrote. Raises ConfigError if it is none."""
    try:
        peer = base64.b32decode(text.strip().upper() + "====")
    except (binascii.Error, ValueError):
        peer = b""
    if len(peer) != PEER_ID_BYTES or peer_text(PeerId(peer)) != text.strip().lower():
        raise ConfigError(f"{text!r:.80} is no peer id", do_next=f"paste all {PEER_ID_CHARS} characters of one")
    return PeerId(peer)


class Identity:
    """Who this node is. The key leaves this object only as signatures, or by `private_key` for a TLS context."""

    __slots__ = ("_key", "peer", "public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes_raw()
        self.peer = peer_id_of(self.public_key)

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) of `data`."""
        return self._key.sign(data)

    def private_key(self) -> Ed25519PrivateKey:
        """The key itself, for certificates."""
        return self._key

    def __repr__(self) -> str:
        return f"<Identity {short_peer(self.peer)}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity never leaves its node")


def load_or_create(folder: str) -> Identity:
    """The identity kept in `folder`; a new one, on disk before this returns, if there is none.

    Raises ConfigError if the file is damaged, not ours or open to others: a new key would be another peer, so the user
    decides.
    """
    path = os.path.join(folder, "node.key")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.chmod(folder, 0o700)
        data = read_private(path, KEY_FILE_MAX_BYTES, "the node's key", "move it away: the node gets a new one")
        return _create(path) if data is None else Identity(_parse(path, data))
    except OSError as error:
        raise ConfigError(
            f"the node's key {path} cannot be read or written: {error.strerror}",
            do_next="see to it that you own that folder and that the disk has room",
        ) from error


def _parse(path: str, data: bytes) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"the node's key {path} is damaged",
            do_next="restore it from a backup, or move it away: the node gets a new one and must join its meshes again",
        )
    return key


def _create(path: str) -> Identity:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Identity(key)


def next_boot(folder: str, unix_s: float) -> int:
    """The number of this boot, on disk before this returns, above all earlier ones.

    unix_s: the wall clock; a node restored from a backup, or without its disk, goes on above what it once said.
    Raises ConfigError if the stored number is damaged.
    """
    path = os.path.join(folder, "boot")
    boot = max(_stored_boot(path) + 1, int(unix_s))
    try:
        write_private(path, b"%d\n" % boot)
    except OSError as error:
        raise ConfigError(
            f"the boot number {path} cannot be written: {error.strerror}", do_next="see to it that the disk has room"
        ) from error
    return boot


def _stored_boot(path: str) -> int:
    try:
        with open(path, "rb") as file:
            text = file.read(32).strip()
    except FileNotFoundError:
        return 0
    if not text.isdigit() or int(text) >= BOOT_MAX:
        raise ConfigError(f"the boot number {path} is damaged", do_next=f"remove {path}: the clock gives a new one")
    return int(text)
