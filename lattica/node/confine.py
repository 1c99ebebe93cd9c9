"""Tasks cannot read their node's key: its folders are hidden from workers, and the ways round that are closed.

    node     fingerprints(folders)  ──argv──►  zygote   confine(...), before it forks     hide_memory()

mounts        a mount namespace of our own, in a user namespace where we may not have one without. An empty read-only
              file system lies over each folder, wherever else it is mounted too, and /dev/null over raw disks.
capabilities  given up for good: in a user namespace all, else those that undo mounts or read past them (GIVEN_UP).
Landlock      last, for it forbids mounts: none may change, processes outside can be neither traced nor signalled, and
              no device files be made. Everything else stays allowed; what files may do is not its business here.

Each step that fails is reported, and the others are still taken: `Protection` says what holds. A folder is known by its
inode, not its name: a task may move the folder's parent, and the next zygote would hide what was put in its place.

What none of this stops is a program outside that does a task's bidding: cron, `systemd-run --user`, docker, the
start-up file of the user's shell. It makes a key hard to read for tasks of this user; it is no second user.

It costs the start of a zygote (160 ms) 1.3 ms as root, 6 ms as another user, half of them for the child that tries
first, and 7 ms of imports. Embedded nodes, which have no key, save all of it.
Sources: mount_namespaces(7), user_namespaces(7), landlock(7), open_by_handle_at(2).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import stat
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lattica.errors import ConfigError

PR_SET_DUMPABLE, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 23, 24, 38  # linux/prctl.h
CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000  # linux/sched.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 8, 1 << 12, 1 << 14, 1 << 19
EMPTY = "size=4k,nr_inodes=1,mode=0500"
"""Options of the file system over a folder: no room for anything, and its user may list it."""
GIVEN_UP = {
    "DAC_READ_SEARCH": 2,  # open_by_handle_at reads any inode of a file system, whatever is mounted over it
    "SYS_MODULE": 16,
    "SYS_RAWIO": 17,  # /dev/mem
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,  # umount, setns
    "SYS_BOOT": 22,  # kexec
    "MKNOD": 27,
    "PERFMON": 38,  # probes that read memory; and Landlock is not asked about /proc/<pid>/maps of who has it
    "BPF": 39,
    "CHECKPOINT_RESTORE": 40,
}
"""Capabilities that go round a mount, with their numbers in linux/capability.h. A task of root keeps all others."""
CAPABILITY_VERSION_3 = 0x2008_0522
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture since 5.13
RULESET_VERSION, RULE_PATH_BENEATH = 1, 1
MAKE_CHAR, MAKE_BLOCK, REFER = 1 << 6, 1 << 11, 1 << 13  # rights of linux/landlock.h
SCOPE_SIGNAL = 1 << 1
ABI_REFER, ABI_SCOPES = 2, 6
"""From the first on a file can be moved between folders inside a domain at all; from the second, signals be scoped.
Abstract sockets are left alone: NCCL passes GPU memory through them, between workers and a driver outside."""
DISKS = re.compile(r"(sg|ng|nvme)\d+(n\d+)?")  # character devices that read a disk too; those in /dev/bsg are such all
DISK_FOLDERS = ("/dev", "/dev/bsg", "/dev/mapper")

_libc = ctypes.CDLL(None, use_errno=True)


class Protection(NamedTuple):
    """What keeps tasks from the key. `mounts`: its folders are hidden, and stay so. `reason`: why not all holds."""

    mounts: bool
    landlock: bool
    reason: str


Fingerprint = tuple[str, int, int]  # real path, device, inode


# -- for the node ----------------------------------------------------------------------------------------------------


def fingerprints(folders: Iterable[str]) -> str:
    """JSON for `confine`: these folders as they are now."""
    found = []
    for folder in dict.fromkeys(map(os.path.realpath, folders)):
        status = os.stat(folder)
        found.append((folder, status.st_dev, status.st_ino))
    return json.dumps(found)


def hide_memory() -> None:
    """From now on no process of this user can read ours, and no crash puts it on disk."""
    _ok(_libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


# -- for the zygote --------------------------------------------------------------------------------------------------


def confine(folders: Sequence[Fingerprint]) -> Protection:
    """Hide these folders (of `fingerprints`) from this process and all that it will start. It must have one thread.

    Raises ConfigError if one of them was moved: its key could be read where it is now.
    """
    for folder in folders:
        if not os.path.isdir(folder[0]) or not _is(os.stat(folder[0]), folder):
            raise _moved(folder)
    mounts, landlock, problems = False, False, []
    try:
        _ok(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
        alone = _enter_namespace(folders)
        _cover(folders)
        _cover_disks()
        _return_to_directory()
        _give_up_capabilities(everything=alone)
        mounts = True
    except OSError as error:
        problems.append(f"mounts: {error.strerror}")
    try:
        _enter_domain()
        landlock = True
    except OSError as error:
        problems.append(f"Landlock: {error.strerror}")
    return Protection(mounts, landlock, "; ".join(problems))


def _enter_namespace(folders: Sequence[Fingerprint]) -> bool:
    """A mount namespace that hears of mounts outside and tells of none; whether a user namespace came with it.

    Whether the latter is allowed a child finds out: on some systems it is given without any rights in it, and there is
    no way back. Root goes into none: there it would lose its rights over networks, limits and others' files.
    """
    try:
        _ok(_libc.unshare(CLONE_NEWNS), "unshare")
    except PermissionError as error:
        if os.geteuid() == 0:
            raise OSError(error.errno, "root without CAP_SYS_ADMIN, as in most containers, has no mounts") from error
    else:
        # Not private: what is mounted later (homes, disks) shall be there, and what is unmounted be free.
        _mount(None, "/", None, MS_REC | MS_SLAVE)
        return False
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _enter_user_namespace()
            _mount("lattica", folders[0][0], "tmpfs", MS_RDONLY, EMPTY)
            code = 0
        except OSError as error:
            code = error.errno or 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, f"this system gives its users no user namespaces ({os.strerror(abs(code))})")
    try:
        _enter_user_namespace()
    except OSError as error:
        raise SystemExit(f"a user namespace came, and then failed: {error}") from error
    return True


def _enter_user_namespace() -> None:
    """Where we have the same ids. Mounts of the namespace outside are slaves there by themselves."""
    uid, gid = os.geteuid(), os.getegid()
    _ok(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _cover(folders: Sequence[Fingerprint]) -> None:
    """Put an empty file system over each, under all its names; inner ones first, while they can be reached."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        mountinfo = file.read()
    for folder in sorted(folders, key=lambda folder: len(folder[0]), reverse=True):
        for path in (folder[0], *aliases(folder[0], mountinfo)):
            try:
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                if path == folder[0]:
                    raise
                continue  # what hides it from us hides it from tasks
            try:
                if _is(os.fstat(fd), folder):
                    _mount(
                        "lattica", f"/proc/self/fd/{fd}", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, EMPTY
                    )
                elif path == folder[0]:
                    raise _moved(folder)
            finally:
                os.close(fd)
    for path, _, _ in folders:
        if os.path.exists(path) and os.listdir(path):
            raise OSError(0, f"{path} is not hidden by what was mounted over it")


def aliases(folder: str, mountinfo: str) -> list[str]:
    """Other paths of `folder`, if they lead there: what of its file system is mounted more than once.

    mountinfo: text of /proc/self/mountinfo, as proc(5) has it.
    """
    mounts = []  # (device, path in its file system, where it is mounted)
    for line in mountinfo.splitlines():
        _, _, device, root, point, *_ = line.split(" ")
        mounts.append((device, _unescape(root), _unescape(point)))
    over = [mount for mount in mounts if _within(folder, mount[2])]
    if not over:
        return []
    device, root, point = max(reversed(over), key=lambda mount: len(mount[2]))  # of two at one point, the later
    inside = _join(root, folder[len(point.rstrip("/")) :])
    others = [
        _join(where, inside[len(top.rstrip("/")) :])
        for of, top, where in mounts
        if of == device and _within(inside, top)
    ]
    return [path for path in dict.fromkeys(others) if path != folder]


def _cover_disks() -> None:
    """Raw disks hold the key's bytes. Those that we may read, as root may, are /dev/null from here on."""
    for folder in filter(os.path.isdir, DISK_FOLDERS):
        with os.scandir(folder) as entries:
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                reads_disk = folder == "/dev/bsg" or DISKS.fullmatch(entry.name) is not None
                if (stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and reads_disk)) and os.access(entry.path, os.R_OK):
                    _mount(os.devnull, entry.path, None, MS_BIND)


def _return_to_directory() -> None:
    """A working directory is a way round: it is the folder itself, not what lies over it."""
    try:
        os.chdir(os.getcwd())
    except OSError:
        os.chdir("/")


def _give_up_capabilities(*, everything: bool) -> None:
    """For good, over any exec too: with no_new_privs a program's own bits give none, and root's are bounded."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _ok(_libc.capget(header, data), "capget")
    effective, permitted, inheritable, *high = struct.unpack("=6I", data.raw)
    had = permitted | high[1] << 32
    for number in GIVEN_UP.values():
        if had and _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _ok(_libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "PR_CAPBSET_DROP")
    kept = 0 if everything else ~sum(1 << number for number in GIVEN_UP.values())
    low, up = kept & 0xFFFF_FFFF, kept >> 32 & 0xFFFF_FFFF
    left = effective & low, permitted & low, inheritable & low, high[0] & up, high[1] & up, high[2] & up
    _ok(_libc.capset(header, struct.pack("=6I", *left)), "capset")


def _enter_domain() -> None:
    abi = _libc.syscall(CREATE_RULESET, None, 0, RULESET_VERSION)
    _ok(abi, "the kernel has none, or has it switched off")
    if abi < ABI_REFER:
        raise OSError(0, "this kernel's would keep tasks from moving files between folders")
    scoped = SCOPE_SIGNAL if abi >= ABI_SCOPES else 0
    attributes = struct.pack("=QQQ", MAKE_CHAR | MAKE_BLOCK | REFER, 0, scoped)  # zeros are fine for older kernels
    ruleset = _ok(_libc.syscall(CREATE_RULESET, attributes, len(attributes), 0), "landlock_create_ruleset")
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", REFER, root)
        _ok(_libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0), "landlock_add_rule")
        _ok(_libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(root)
        os.close(ruleset)


# -- small things ----------------------------------------------------------------------------------------------------


def _ok(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what} ({os.strerror(code)})")
    return result


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _ok(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount over {target}")


def _is(status: os.stat_result, folder: Fingerprint) -> bool:
    return (status.st_dev, status.st_ino) == folder[1:]


def _moved(folder: Fingerprint) -> ConfigError:
    return ConfigError(
        f"{folder[0]} is not the folder that it was when the node began, and what was in it may be read elsewhere",
        do_next="put it back, and start the node again",
    )


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")  # as in `paths`, whose import takes 9 ms here


def _join(folder: str, rest: str) -> str:
    return folder.rstrip("/") + "/" + rest.strip("/") if rest.strip("/") else folder


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
