"""Folders as bytes and back: equal where they are equal, bounded, and safe to unpack from anybody."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.node import packages
from lattica.node.packages import Packed, Shelf, pack, pack_module, unpack


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "__init__.py").write_text("")
    (folder / "models" / "net.py").write_text("SIZE = 3\n")
    (folder / "train.py").write_text("import models.net\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "latest.py").symlink_to("train.py")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "data").mkdir()
    (folder / "data" / "big.bin").write_bytes(bytes(5000))
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_a_folder_comes_back_without_what_no_package_has(project: Path, tmp_path: Path) -> None:
    unpack(pack(str(project)).data, str(tmp_path / "there"))
    there = tmp_path / "there"
    assert names(there) == {"models/__init__.py", "models/net.py", "train.py", "run.sh", "latest.py", "data/big.bin"}
    assert (there / "models/net.py").read_text() == "SIZE = 3\n" and (there / "latest.py").is_symlink()
    assert (there / "run.sh").stat().st_mode & 0o100 and not (there / "train.py").stat().st_mode & 0o100


def test_equal_folders_are_one_package_whenever_and_by_whomever_they_are_packed(project: Path, tmp_path: Path) -> None:
    first = pack(str(project))
    unpack(first.data, str(tmp_path / "copy"))
    os.utime(project / "train.py", (1, 1))
    assert pack(str(project)).cid == first.cid == pack(str(tmp_path / "copy")).cid
    (project / "train.py").write_text("pass")
    assert pack(str(project)).cid != first.cid


def test_what_is_excluded_stays_here(project: Path, tmp_path: Path) -> None:
    unpack(pack(str(project), ["data", "*.sh"]).data, str(tmp_path / "there"))
    assert names(tmp_path / "there") == {"models/__init__.py", "models/net.py", "train.py", "latest.py"}


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["data/"], {"data/big.bin"}),
        (["/train.py", "*.bin", "!big.bin"], {"train.py"}),
        (["models/**"], {"models/__init__.py", "models/net.py"}),
        (["net.py"], {"models/net.py"}),
        (["*", "!/train.py"], {"models/__init__.py", "models/net.py", "run.sh", "latest.py", "data/big.bin"}),
    ],
)
def test_excludes_are_patterns_as_in_gitignore(
    project: Path, tmp_path: Path, patterns: list[str], left: set[str]
) -> None:
    unpack(pack(str(project), patterns).data, str(tmp_path / "there"))
    assert names(tmp_path / "there") == names(project) - {".git/config"} - left


def test_what_ignore_files_name_stays_here(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".gitignore").write_text("*.bin\nnet.py\n")
    (project / "models" / ".gitignore").write_text("!net.py\n")
    (project / ".latticaignore").write_text("run.sh\n")
    unpack(pack(str(project)).data, str(tmp_path / "there"))
    left = {".git/config", "data/big.bin", "run.sh"}
    assert names(tmp_path / "there") == names(project) - left, "the deeper file says that net.py goes along"
    monkeypatch.setenv(packages.INCLUDE_VARIABLE, "1")
    unpack(pack(str(project)).data, str(tmp_path / "all"))
    assert names(tmp_path / "all") == names(project) - {".git/config", "run.sh"}


def test_a_wheel_and_a_zip_file_are_packed_as_what_is_in_them(tmp_path: Path) -> None:
    for name in ("thing-1.0-py3-none-any.whl", "thing.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("thing/__init__.py", "X = 1\n")
    wheel, folder = pack_module(str(tmp_path / "thing-1.0-py3-none-any.whl")), pack(str(tmp_path / "thing.zip"))
    unpack(wheel.data, str(tmp_path / "there"))
    assert names(tmp_path / "there") == {"thing/__init__.py"} and wheel.cid == folder.cid
    (tmp_path / "no.whl").write_text("none")
    with pytest.raises(ConfigError, match="cannot be read"):
        pack_module(str(tmp_path / "no.whl"))


def test_the_modules_beside_a_script_are_its_python_files(project: Path, tmp_path: Path) -> None:
    unpack(pack(str(project), scripts=True).data, str(tmp_path / "there"))
    assert names(tmp_path / "there") == {"models/__init__.py", "models/net.py", "train.py"}


def test_a_module_is_packed_under_its_name(project: Path, tmp_path: Path) -> None:
    unpack(pack_module(str(project / "train.py")).data, str(tmp_path / "one"))
    assert names(tmp_path / "one") == {"train.py"}
    unpack(pack_module(str(project / "models")).data, str(tmp_path / "two"))
    assert names(tmp_path / "two") == {"models/__init__.py", "models/net.py"}


def test_a_folder_that_is_too_large_names_what_is_large(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PACKAGE_MAX_BYTES", 4000)
    said = r"(?s)data/big.bin .*exclude what the script does not need"
    with pytest.raises(ConfigError, match=said):
        pack(str(project))
    monkeypatch.setattr(packages, "FILES_MAX", 2)
    with pytest.raises(ConfigError, match="more than 2 files"):
        pack(str(project), ["data"])
    with pytest.raises(ConfigError, match="is no folder"):
        pack(str(project / "train.py"))


def test_a_link_to_a_folder_elsewhere_is_refused_and_to_a_file_copied(project: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"w")
    (project / "weights.bin").symlink_to(tmp_path / "weights.bin")
    unpack(pack(str(project)).data, str(tmp_path / "there"))
    assert not (tmp_path / "there/weights.bin").is_symlink() and (tmp_path / "there/weights.bin").read_bytes() == b"w"
    (project / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="elsewhere is a link to a folder outside"):
        pack(str(project))


def tarred(*entries: tuple[str, str, bytes]) -> bytes:
    """(name, target of a link or "", bytes)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, link, data in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            if link:
                entry.type, entry.linkname = tarfile.SYMTYPE, link
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(out.getvalue())


@pytest.mark.parametrize(
    "data",
    [
        tarred(("../out", "", b"x")),
        tarred(("/etc/out", "", b"x")),
        tarred(("a/../../out", "", b"x")),
        tarred(("link", "/etc", b"")),
        tarred(("link", "..", b"")),
        tarred(("sub/link", "../../out", b"")),
        tarred(("here", ".", b""), ("here/file", "", b"x")),
        b"no package",
        gzip.compress(b"no tar"),
        gzip.compress(bytes(1024))[:-9],
    ],
    ids=range(10),  # the bytes are others in each process
)
def test_what_leads_out_of_the_folder_or_is_no_package_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(data, str(tmp_path / "a" / "there"))
    assert not (tmp_path / "out").exists() and not (tmp_path / "a" / "out").exists()


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PACKED_MAX_BYTES", 1 << 20)
    with pytest.raises(RemoteProtocolError, match="larger than any of ours"):
        unpack(gzip.compress(bytes(2 << 20)), str(tmp_path / "there"))


def test_a_shelf_gives_what_it_was_given_and_nothing_that_was_changed(project: Path, tmp_path: Path) -> None:
    shelf, packed = Shelf(str(tmp_path / "shelf")), pack(str(project))
    assert shelf.get(packed.cid) is None
    shelf.put(packed)
    assert shelf.get(packed.cid) == packed.data
    (tmp_path / "shelf" / packed.cid).write_bytes(b"other bytes")
    assert shelf.get(packed.cid) is None and shelf.cids() == []
    with pytest.raises(RemoteProtocolError):
        shelf.get("../../etc/passwd")


def test_a_full_shelf_lets_the_longest_unread_go_but_not_what_is_needed(project: Path, tmp_path: Path) -> None:
    def another(number: int) -> Packed:
        (project / "data" / "big.bin").write_bytes(os.urandom(5000))
        return pack(str(project))

    made = [another(number) for number in range(4)]
    shelf = Shelf(str(tmp_path / "shelf"), max_bytes=3 * len(made[0].data) + 500)
    for count, one in enumerate(made):
        shelf.put(one, keep=[made[0].cid])
        os.utime(tmp_path / "shelf" / one.cid, (count, count))
    assert set(shelf.cids()) == {made[0].cid, made[2].cid, made[3].cid}
