"""The machine's key."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import ConfigError
from lattica.mesh import identity
from lattica.mesh.identity import PeerId


def test_an_identity_is_made_once_and_found_again(tmp_path: Path) -> None:
    made = identity.load_or_create(str(tmp_path / "identity"))
    found = identity.load_or_create(str(tmp_path / "identity"))
    assert found.peer == made.peer
    Ed25519PublicKey.from_public_bytes(made.public_key).verify(found.sign(b"words"), b"words")


def test_the_key_is_kept_to_its_owner(tmp_path: Path) -> None:
    identity.load_or_create(str(tmp_path / "identity"))
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "identity" / "node.key").stat().st_mode & 0o777 == 0o600


def test_a_peer_id_is_the_blake3_hash_of_the_public_key() -> None:
    """Golden, the published test vector of the empty input: a peer's name must never change."""
    assert identity.peer_id_of(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert identity.peer_text(identity.peer_id_of(b"")) == "v4jutopv7gq2nicajxvdnxgjjgn4wjojvxarfn6mtkj4vza7gjra"


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_is_read_back_from_its_text(raw: bytes) -> None:
    text = identity.peer_text(PeerId(raw))
    assert len(text) == identity.PEER_ID_CHARS
    assert text.startswith(identity.short_peer(PeerId(raw)))
    assert identity.parse_peer(text) == raw == identity.parse_peer(f" {text.upper()}\n")


@pytest.mark.parametrize("text", ["", "abc", "a" * 51, "a" * 53, "1" * 52, "é" * 52, "a" * 51 + "b"])
def test_what_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no peer id"):
        identity.parse_peer(text)


def test_a_key_that_others_may_read_is_refused_with_the_command_that_mends_it(tmp_path: Path) -> None:
    identity.load_or_create(str(tmp_path))
    (tmp_path / "node.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        identity.load_or_create(str(tmp_path))


def test_a_damaged_key_is_refused_and_never_replaced(tmp_path: Path) -> None:
    identity.load_or_create(str(tmp_path))
    whole = (tmp_path / "node.key").read_bytes()
    for damaged in (b"", whole[:60], whole.replace(b"M", b"N", 1), b"\0" * 200):
        (tmp_path / "node.key").write_bytes(damaged)
        with pytest.raises(ConfigError, match="restore it from a backup") as refused:
            identity.load_or_create(str(tmp_path))
        assert refused.value.__cause__ is None, "an error of the parser may quote the key"
        assert (tmp_path / "node.key").read_bytes() == damaged


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "node.key").write_bytes(other)
    (tmp_path / "node.key").chmod(0o600)
    with pytest.raises(ConfigError, match="damaged"):
        identity.load_or_create(str(tmp_path))


def test_a_symlink_in_the_place_of_the_key_is_refused(tmp_path: Path) -> None:
    identity.load_or_create(str(tmp_path / "mine"))
    (tmp_path / "other").mkdir()
    os.symlink(tmp_path / "mine" / "node.key", tmp_path / "other" / "node.key")
    with pytest.raises(ConfigError, match="cannot be read"):
        identity.load_or_create(str(tmp_path / "other"))


def test_an_identity_shows_its_name_and_never_its_key(tmp_path: Path) -> None:
    me = identity.load_or_create(str(tmp_path))
    assert repr(me) == f"<Identity {identity.short_peer(me.peer)}>"
    assert me.private_key().private_bytes_raw().hex() not in f"{me!r} {me}"
    with pytest.raises(TypeError, match="never leaves"):
        pickle.dumps(me)


def test_boot_numbers_grow_whatever_the_clock_says(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert [identity.next_boot(folder, unix_s) for unix_s in (1000.9, 900.0, 5.0, 2000.0)] == [1000, 1001, 1002, 2000]


def test_a_node_that_lost_its_disk_goes_on_above_what_it_once_said(tmp_path: Path) -> None:
    before = identity.next_boot(str(tmp_path), 1000.0)
    (tmp_path / "boot").unlink()
    assert identity.next_boot(str(tmp_path), 1001.0) > before


@pytest.mark.parametrize("text", ["", "x", "-5", "9" * 19])
def test_a_damaged_boot_number_is_refused_with_the_way_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "boot").write_text(text)
    with pytest.raises(ConfigError, match="remove"):
        identity.next_boot(str(tmp_path), 1000.0)


def test_importing_the_module_loads_no_cryptography() -> None:
    code = "import sys, lattica.mesh.identity; print({'cryptography', 'blake3'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
