"""Hiding folders from a process for good. What cannot be undone is done in a child."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import struct
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lattica.codec.messages import Confined
from lattica.errors import ConfigError
from lattica.node import confine
from lattica.node.confine import CLONE_NEWNS, MS_BIND, MS_REC, Fingerprint, Protection, aliases
from lattica.node.zygotes import Zygote, Zygotes

MS_SHARED = 1 << 20
PR_GET_DUMPABLE = 3
libc = ctypes.CDLL(None, use_errno=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts of the test's own need root")


def in_child(act: Callable[[], Any]) -> Any:
    """What `act` returns in a process of its own; its assertions fail here."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = {"value": act()}
        except BaseException:
            said = {"error": traceback.format_exc()}
        try:
            os.write(write, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        said = json.loads(file.read())
    os.waitpid(pid, 0)
    assert "error" not in said, said["error"]
    return said["value"]


def seen(folder: Path) -> list[Fingerprint]:
    return [(path, device, inode) for path, device, inode in json.loads(confine.fingerprints([str(folder)]))]


def confined(folder: Path) -> Protection:
    """In a child: hide the folder, or skip where the machine does not let us."""
    return confine.confine(seen(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a key, on a machine that can hide it."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "key").write_text("secret")
    _, landlock_works, reason = protection = Protection(*in_child(lambda: list(confined(folder))))
    if not (protection.mounts and landlock_works):
        pytest.skip(reason)
    return folder


# -- what is hidden --------------------------------------------------------------------------------------------------


def test_a_hidden_folder_is_empty_and_stays_so(folder: Path) -> None:
    def act() -> None:
        confined(folder)
        assert os.listdir(folder) == []
        for way in (
            lambda: (folder / "key").read_text(),
            lambda: (folder / "new").write_text("x"),
            lambda: folder.rename(folder.with_name("other")),
            lambda: folder.rmdir(),
            lambda: confine._ok(libc.umount2(os.fsencode(folder), 2), "umount"),
        ):
            with pytest.raises(OSError):
                way()

    in_child(act)
    assert (folder / "key").read_text() == "secret", "others see what they saw"


def test_who_stands_in_a_hidden_folder_is_led_out_and_others_stay_where_they_are(folder: Path, tmp_path: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()

    def after(start: Path) -> str:
        os.chdir(start)
        confined(folder)
        assert not os.path.exists("key") and not os.path.exists("../key")
        return os.getcwd()

    assert in_child(lambda: after(inner)) == "/"
    assert in_child(lambda: after(folder)) == str(folder)
    assert in_child(lambda: after(tmp_path)) == str(tmp_path)


def test_a_folder_in_a_hidden_folder_is_no_hindrance(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()

    def act() -> list[bool | str]:
        return list(confine.confine([*seen(folder), *seen(inner)]))

    assert in_child(act)[0] is True


def test_a_folder_that_is_another_one_by_now_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    before = seen(folder)
    folder.rename(tmp_path / "moved")
    for _ in range(2):  # gone, then replaced
        with pytest.raises(ConfigError, match="not the folder that it was"):
            confine.confine(before)
        folder.mkdir(exist_ok=True)


@needs_root
def test_a_folder_is_hidden_under_its_other_names_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bound here").mkdir()

    def act() -> None:
        confine._ok(libc.unshare(CLONE_NEWNS), "unshare")
        confine._mount(None, "/", None, MS_REC | confine.MS_SLAVE)
        confine._mount(str(tmp_path), str(tmp_path / "bound here"), None, MS_BIND)
        assert (tmp_path / "bound here/data/key").exists()
        assert confined(folder).mounts
        assert os.listdir(tmp_path / "bound here/data") == []

    in_child(act)


@needs_root
def test_what_is_mounted_later_is_there_and_what_is_unmounted_is_free(folder: Path, tmp_path: Path) -> None:
    """A disk that is plugged in, a home that is mounted at first use: workers live for long, and are to see them."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def act() -> None:
        confine._ok(libc.unshare(CLONE_NEWNS), "unshare")
        confine._mount(None, "/", None, MS_REC | MS_SHARED)
        (ready, told), (go, tell) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            confined(folder)
            os.write(told, b"confined")
            os.read(go, 1)
            os.write(told, b"mounted" if (disk / "file").exists() else b"missed")
            os._exit(0)
        os.read(ready, 99)
        confine._mount("disk", str(disk), "tmpfs", 0)
        (disk / "file").touch()
        os.write(tell, b"x")
        assert os.read(ready, 99) == b"mounted"
        os.waitpid(pid, 0)

    in_child(act)


@needs_root
def test_raw_disks_are_empty(folder: Path) -> None:
    def disks() -> list[str]:
        return [entry.name for entry in os.scandir("/dev") if stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode)]

    def act() -> list[str]:
        confined(folder)
        with pytest.raises(OSError):
            os.mknod(folder.with_name("disk"), stat.S_IFBLK, os.makedev(7, 0))
        return disks()

    assert in_child(act) == []


# -- what is given up ------------------------------------------------------------------------------------------------


def test_capabilities_that_go_round_a_mount_are_gone_and_do_not_come_back(folder: Path) -> None:
    def act() -> list[str]:
        confined(folder)
        status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
        assert "NoNewPrivs:\t1" in status
        masks = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("CapEff", "CapPrm"))]
        return [name for name, number in confine.GIVEN_UP.items() if any(mask >> number & 1 for mask in masks)]

    assert in_child(act) == []


@needs_root
def test_root_keeps_its_power_over_the_files_and_networks_of_others(folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("x")
    os.chown(theirs, 12345, 12345)
    theirs.chmod(0)

    def act() -> None:
        confined(folder)
        theirs.write_text("y")
        os.chown(theirs, 0, 0)
        os.setuid(12345)

    in_child(act)


def test_a_process_that_hides_its_memory_says_so_to_the_kernel() -> None:
    def act() -> int:
        confine.hide_memory()
        return libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)

    assert in_child(act) == 0


# -- what a machine does not grant -----------------------------------------------------------------------------------


class Libc:
    """The real one, but for some functions."""

    def __init__(self, **replaced: Callable[..., int]) -> None:
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(libc, name)


def refuse(*_: object) -> int:
    ctypes.set_errno(errno.EPERM)
    return -1


def test_without_namespaces_the_reason_is_told_and_landlock_still_used(folder: Path) -> None:
    def act() -> list[Any]:
        confine._libc = Libc(unshare=refuse)  # type: ignore[assignment]
        protection = confined(folder)
        assert (folder / "key").read_text() == "secret"
        return list(protection)

    mounts, landlock, reason = in_child(act)
    assert (mounts, landlock) == (False, True)
    assert reason.startswith("mounts: ") and ("CAP_SYS_ADMIN" in reason or "no user namespaces" in reason)


def test_a_namespace_without_rights_in_it_is_found_out_by_a_child(folder: Path) -> None:
    """Ubuntu gives any program a user namespace, and forbids it there to set ids or to mount."""

    def act() -> list[Any]:
        before = os.getuid(), os.readlink("/proc/self/ns/user"), os.readlink("/proc/self/ns/mnt")
        confine._libc = Libc(unshare=lambda flags: refuse() if flags == CLONE_NEWNS else 0, mount=refuse)  # type: ignore[assignment]
        confine.os.geteuid = lambda: 12345
        protection = confined(folder)
        assert before == (os.getuid(), os.readlink("/proc/self/ns/user"), os.readlink("/proc/self/ns/mnt"))
        return list(protection)

    mounts, _, reason = in_child(act)
    assert not mounts and "no user namespaces" in reason


def test_without_landlock_the_reason_is_told_and_mounts_still_hide(folder: Path) -> None:
    def act(code: int) -> list[Any]:
        def missing(number: int, *_: object) -> int:
            ctypes.set_errno(code)
            return -1

        confine._libc = Libc(syscall=missing)  # type: ignore[assignment]
        protection = confined(folder)
        assert os.listdir(folder) == []
        return list(protection)

    for code in (errno.ENOSYS, errno.EOPNOTSUPP):
        mounts, landlock, reason = in_child(lambda code=code: act(code))
        assert (mounts, landlock) == (True, False)
        assert reason.startswith("Landlock: ") and os.strerror(code) in reason


class Kernel:
    """Landlock of some version: notes what it was asked for."""

    def __init__(self, abi: int) -> None:
        self.abi = abi
        self.handled = self.scoped = self.allowed = 0
        self.entered = False

    def syscall(self, number: int, *given: Any) -> int:
        if number == confine.CREATE_RULESET and given[0] is None:
            return self.abi
        if number == confine.CREATE_RULESET:
            self.handled, _, self.scoped = struct.unpack("=QQQ", given[0])
            return os.open("/", os.O_PATH)
        if number == confine.ADD_RULE:
            self.allowed |= struct.unpack("=Qi", given[2])[0]
        self.entered |= number == confine.RESTRICT_SELF
        return 0


@pytest.mark.parametrize(("abi", "signals"), [(2, False), (5, False), (6, True), (7, True), (99, True)])
def test_a_kernel_is_asked_for_no_more_than_it_knows(abi: int, signals: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(abi)
    monkeypatch.setattr(confine, "_libc", kernel)
    confine._enter_domain()
    assert kernel.entered and kernel.scoped == (confine.SCOPE_SIGNAL if signals else 0)
    assert kernel.allowed == confine.REFER and kernel.handled & kernel.allowed, "files move between folders"


def test_a_kernel_whose_landlock_would_break_moves_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(1)
    monkeypatch.setattr(confine, "_libc", kernel)
    with pytest.raises(OSError, match="moving files"):
        confine._enter_domain()
    assert not kernel.entered


# -- names of a folder -----------------------------------------------------------------------------------------------


def mountinfo(*mounts: tuple[str, str, str]) -> str:
    return "".join(f"{n} 1 {device} {root} {point} rw - ext4 x rw\n" for n, (device, root, point) in enumerate(mounts))


@pytest.mark.parametrize(
    ("mounts", "others"),
    [
        ([("8:1", "/", "/")], []),
        ([("8:1", "/", "/"), ("8:1", "/", "/mnt/disk")], ["/mnt/disk/home/u/data"]),
        ([("8:1", "/", "/"), ("8:1", "/home", "/mnt/a\\040b")], ["/mnt/a b/u/data"]),
        ([("8:1", "/", "/"), ("8:1", "/home/u/data", "/srv")], ["/srv"]),
        ([("8:1", "/", "/"), ("8:1", "/home/u/data2", "/srv"), ("8:1", "/etc", "/srv2")], []),
        ([("8:1", "/", "/"), ("8:2", "/", "/home"), ("8:1", "/", "/x"), ("8:2", "/u", "/y")], ["/y/data"]),
        ([("8:2", "/@", "/"), ("8:2", "/@home", "/home"), ("8:2", "/", "/top")], ["/top/@home/u/data"]),
        ([("8:1", "/", "/"), ("8:2", "/", "/home"), ("8:3", "/z", "/home"), ("8:3", "/", "/w")], ["/w/z/u/data"]),
        ([], []),
    ],
)  # fmt: skip
def test_a_folder_has_the_names_of_every_mount_of_its_file_system(
    mounts: list[tuple[str, str, str]], others: list[str]
) -> None:
    assert aliases("/home/u/data", mountinfo(*mounts)) == others


def test_a_fingerprint_is_of_the_folder_itself_and_each_is_taken_once(tmp_path: Path) -> None:
    os.symlink(tmp_path, tmp_path / "alias")
    [(path, _, inode)] = json.loads(confine.fingerprints([str(tmp_path), str(tmp_path / "alias")]))
    assert (path, inode) == (str(tmp_path), tmp_path.stat().st_ino)


# -- what the node hears of it ---------------------------------------------------------------------------------------


def zygotes(*said: Confined | None, hidden: str = '[["/data", 1, 2]]') -> Zygotes:
    def nothing(*_: object) -> None: ...

    made = Zygotes(None, "[]", nothing, nothing, nothing, hidden)  # type: ignore[arg-type]
    for number, confined in enumerate(said):
        python = f"python{number}"
        made._zygotes[python] = Zygote(python, None, 1, -1, -1, confined=confined)  # type: ignore[arg-type]
    return made


WHOLE, HALF = Confined(True, True), Confined(True, False, "Landlock: none")


def test_a_node_is_as_protected_as_its_worst_zygote() -> None:
    assert zygotes(WHOLE, WHOLE).protection() == {"mounts": True, "landlock": True, "reason": ""}
    worst = zygotes(WHOLE, HALF).protection()
    assert worst == {"mounts": True, "landlock": False, "reason": "workers of python1: Landlock: none"}
    silent = zygotes(WHOLE, None).protection()
    assert not silent["mounts"] and "python1" in silent["reason"]
    assert zygotes().protection()["reason"] and zygotes(hidden="[]").protection()["reason"]
    made = zygotes(WHOLE)
    made._received(made._zygotes["python0"], [HALF])
    del made._zygotes["python0"]
    assert made.protection() == {"mounts": True, "landlock": False, "reason": "workers of python0: Landlock: none"}


def test_a_node_knows_which_paths_its_workers_cannot_see() -> None:
    made = zygotes(WHOLE)
    assert made.hider_of("/data/program") == made.hider_of("/data") == "/data"
    assert made.hider_of("/database") == "" and zygotes(Confined(False, True)).hider_of("/data") == ""


def test_who_waits_for_what_zygotes_say_hears_once_when_all_have() -> None:
    calls: list[None] = []
    made = zygotes(None, WHOLE)
    made.when_confined(lambda: calls.append(None))
    assert not calls
    made._received(made._zygotes["python0"], [WHOLE])
    made._received(made._zygotes["python0"], [WHOLE])
    assert len(calls) == 1
