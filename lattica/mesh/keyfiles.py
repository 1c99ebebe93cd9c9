"""Files of a node's membership: whole or absent, and with their certificates in PEM where they hold a key."""

from __future__ import annotations

from lattica.errors import ConfigError
from lattica.files import read_private, write_private
from lattica.mesh.authority import Authority
from lattica.mesh.certificates import CHAIN_MAX

KEY_FILE_MAX_BYTES = 16 << 10  # ours have 2 KB
_RESTORE = "restore it from a backup, or `lattica leave` and join again"
_KEY_BEGIN, _KEY_END = b"-----BEGIN PRIVATE KEY-----", b"-----END PRIVATE KEY-----\n"


def write_kept(path: str, data: bytes) -> None:
    """`write_private`. Raises ConfigError if that cannot be."""
    try:
        write_private(path, data)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: str, error: OSError) -> ConfigError:
    """What to raise for it."""
    return ConfigError(
        f"{path} cannot be written: {error.strerror}",
        do_next="see to it that you own its folder and that the disk has room",
    )


def damaged(path: str, do_next: str = _RESTORE) -> ConfigError:
    """What to raise for a file of ours that cannot be read."""
    return ConfigError(f"{path} is damaged", do_next=do_next)


def read_kept(path: str, max_bytes: int, what: str, remedy: str) -> bytes | None:
    """`read_private`. Raises ConfigError for whatever is wrong."""
    try:
        return read_private(path, max_bytes, what, remedy)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", do_next="see to it that you own it") from error


def key_file(preface: str, authority: Authority) -> bytes:
    """The file of a key that certifies, with its chain, or the root's certificate. preface: words for people."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509 import load_der_x509_certificate

    key = Ed25519PrivateKey.from_private_bytes(authority.secret())
    parts = [preface.encode(), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())]
    for certificate in authority.chain or (authority.root,):
        parts.append(load_der_x509_certificate(certificate).public_bytes(Encoding.PEM))
    return b"".join(parts)


def read_key_file(path: str, what: str, remedy: str, restore: str = _RESTORE) -> tuple[bytes, list[bytes]] | None:
    """(secret, certificates in DER); None if there is no such file. restore: what to do if it is damaged."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    data = read_kept(path, KEY_FILE_MAX_BYTES, what, remedy)
    if data is None:
        return None
    begin = data.find(_KEY_BEGIN)
    end = data.find(_KEY_END) + len(_KEY_END)
    try:
        key = load_pem_private_key(data[begin:end], password=None)
        certificates = [one.public_bytes(Encoding.DER) for one in load_pem_x509_certificates(data[end:])]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key, certificates = None, []
    if not isinstance(key, Ed25519PrivateKey) or not certificates or len(certificates) >= CHAIN_MAX:
        raise damaged(path, restore)  # without a cause: the parser's error may quote the key
    return key.private_bytes_raw(), certificates
