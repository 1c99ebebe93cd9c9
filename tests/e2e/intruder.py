"""A task that wants its node's key, and what it tries. Every attempt returns what it got, which must be nothing."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lattica.codec import frames
from lattica.codec import messages as m

CLONE_NEWNS, CLONE_NEWUSER = 0x2_0000, 0x1000_0000
MNT_DETACH, MS_BIND, MS_MOVE, MS_REMOUNT, MS_REC = 2, 1 << 12, 1 << 13, 1 << 5, 1 << 14
OPEN_TREE, PIDFD_GETFD = 428, 438  # system calls
OPEN_TREE_CLONE = 1
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Target:
    """What an intruder may know: paths, the node's and the driver's process, and the file handle of the key's folder,
    as a friend outside told it."""

    data_dir: str
    socket: str
    node: int
    driver: int
    handle: bytes

    @property
    def key(self) -> str:
        return f"{self.data_dir}/identity/node.key"


class FileHandle(ctypes.Structure):
    """struct file_handle of open_by_handle_at(2)."""

    _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_ubyte * 128)]


def handle_of(path: str) -> bytes:
    """The file handle of `path`, by which some may open it without a path; empty where the file system has none."""
    handle, mount = FileHandle(128), ctypes.c_int()
    if libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0):
        return b""
    return bytes(handle)


def ok(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def in_child(act: Callable[[], bytes]) -> bytes:
    """What `act` gets in a process of its own, which may lose itself in namespaces."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, act()[:1000])
        except OSError:
            pass
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        got = file.read()
    os.waitpid(pid, 0)
    return got


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(4096)


# -- attempts --------------------------------------------------------------------------------------------------------


def by_its_path(target: Target) -> bytes:
    return read(target.key)


def by_a_subprocess(target: Target) -> bytes:
    return subprocess.run(["cat", target.key], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def by_the_working_directory_of_the_zygote(target: Target) -> bytes:
    found = b""
    for pid in (os.getpid(), os.getppid()):
        try:
            found += read(f"/proc/{pid}/cwd/identity/node.key")
        except OSError:
            pass
    return found


def by_an_inherited_descriptor(target: Target) -> bytes:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            path, mode = os.readlink(f"/proc/self/fd/{name}"), os.stat(f"/proc/self/fd/{name}").st_mode
        except OSError:
            continue
        if target.data_dir in path or (stat.S_ISDIR(mode) and not path.startswith("/proc/")):
            found.append(path)
    return repr(found).encode() if found else b""


def by_the_root_of_a_process_outside(target: Target) -> bytes:
    found = b""
    for pid in (1, target.node, target.driver):
        for way in ("root" + target.key, "cwd/identity/node.key"):
            try:
                found += read(f"/proc/{pid}/{way}")
            except OSError:
                pass
    return found


def by_the_memory_of_the_node(target: Target) -> bytes:
    found = b""
    for name in ("mem", "maps", "environ", "auxv"):
        try:
            found += read(f"/proc/{target.node}/{name}") if name != "mem" else bytes([os.open(
                f"/proc/{target.node}/mem", os.O_RDONLY)])  # fmt: skip
        except OSError:
            pass
    return found


def by_reading_the_memory_of_the_driver(target: Target) -> bytes:
    class Iovec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    buffer = ctypes.create_string_buffer(16)
    here, there = Iovec(ctypes.addressof(buffer), 16), Iovec(id(None), 16)
    ok(libc.process_vm_readv(target.driver, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))
    return buffer.raw


def by_tracing(target: Target) -> bytes:
    found = b""
    for pid in (target.node, target.driver):
        if libc.ptrace(PTRACE_ATTACH, pid, None, None) == 0:
            os.waitpid(pid, 0)
            libc.ptrace(PTRACE_DETACH, pid, None, None)
            found += b"traced %d" % pid
    return found


def by_taking_descriptors_of_the_node(target: Target) -> bytes:
    pidfd = os.pidfd_open(target.node)
    try:
        taken = [fd for fd in range(3, 32) if libc.syscall(PIDFD_GETFD, pidfd, fd, 0) >= 0]
    finally:
        os.close(pidfd)
    return repr(taken).encode() if taken else b""


def by_unmounting(target: Target) -> bytes:
    folder, empty = os.fsencode(target.data_dir), os.fsencode(os.getcwd())

    def act() -> bytes:
        for way in (
            lambda: libc.umount2(folder, 0),
            lambda: libc.umount2(folder, MNT_DETACH),
            lambda: libc.mount(folder, empty, None, ctypes.c_ulong(MS_MOVE), None),
            lambda: libc.mount(None, folder, None, ctypes.c_ulong(MS_REMOUNT), b"size=1m"),
            lambda: libc.mount(b"/", empty, None, ctypes.c_ulong(MS_BIND), None),
        ):
            if way() == 0:
                return b"a mount was changed"
        return read(target.key)

    return in_child(act)


def by_new_namespaces(target: Target) -> bytes:
    """There a task has all capabilities; mounts that it got from outside must still hold together."""
    folder, empty = os.fsencode(target.data_dir), os.fsencode(os.getcwd())

    def act() -> bytes:
        ok(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
        for flags in (0, MNT_DETACH):
            libc.umount2(folder, flags)
        libc.mount(b"/", empty, None, ctypes.c_ulong(MS_BIND), None)
        bare = libc.syscall(OPEN_TREE, AT_FDCWD, b"/", OPEN_TREE_CLONE)  # "/" without what is mounted on it
        for path in (target.key, f"/proc/self/fd/{bare}{target.key}", os.fsdecode(empty) + target.key):
            try:
                return read(path)
            except OSError:
                pass
        return by_its_handle(target)

    return in_child(act)


def by_entering_the_namespaces_of_the_node(target: Target) -> bytes:
    def act() -> bytes:
        for pid in (target.node, target.driver, 1):
            pidfd = os.pidfd_open(pid)
            if libc.setns(pidfd, CLONE_NEWNS) == 0:
                return read(target.key)
            os.close(pidfd)
        fd = os.open(f"/proc/{target.node}/ns/mnt", os.O_RDONLY)
        ok(libc.setns(fd, CLONE_NEWNS))
        return read(target.key)

    return in_child(act)


def by_its_handle(target: Target) -> bytes:
    """A file handle opens the inode itself, whatever is mounted over its path; a folder's needs fewer rights."""
    if not target.handle:
        return b""
    handle = FileHandle.from_buffer_copy(target.handle)
    for way in (os.path.dirname(target.data_dir), "/", "/tmp"):
        mount = os.open(way, os.O_RDONLY | os.O_DIRECTORY)
        folder = libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY | os.O_DIRECTORY)
        os.close(mount)
        if folder >= 0:
            return os.read(os.open("node.key", os.O_RDONLY, dir_fd=folder), 4096)
    return b""


def by_the_raw_disk(target: Target) -> bytes:
    device = os.stat(os.path.dirname(target.data_dir)).st_dev
    ways = [f"/dev/block/{os.major(device)}:{os.minor(device)}", *map(str, Path("/dev").glob("[svx]d*"))]
    made = os.path.join(os.getcwd(), "disk")
    try:
        os.mknod(made, 0o600 | stat.S_IFBLK, device)
        ways.append(made)
    except OSError:
        pass
    for way in ways:
        try:
            if got := read(way):
                return got
        except OSError:
            pass
    return b""


def by_moving_the_folder_away(target: Target) -> bytes:
    os.rename(target.data_dir, target.data_dir + ".moved")
    return b"moved"


def by_asking_the_node_as_a_command(target: Target) -> bytes:
    with socket.socket(socket.AF_UNIX) as command:
        command.connect(target.socket)
        command.sendall(frames.encode([m.Hello(m.PROTOCOL, os.getpid(), "command", sys.executable)]))
        return command.recv(100)


def by_ending_the_node(target: Target) -> bytes:
    os.kill(target.node, 0)
    os.kill(target.node, signal.SIGCONT)
    return b"a signal reached it"


ATTEMPTS = {name: act for name, act in list(globals().items()) if name.startswith("by_")}


def break_in(target: Target) -> dict[str, bytes]:
    """What each attempt got."""
    got = {}
    for name, act in ATTEMPTS.items():
        try:
            got[name] = act(target)
        except OSError:
            got[name] = b""
    return got


# -- what a task may do ----------------------------------------------------------------------------------------------


def _double(number: int) -> int:
    return 2 * number


def work(folder: str) -> list[str]:
    """An honest task, which finds all that tasks find elsewhere; what it misses."""
    import multiprocessing
    import tempfile
    from multiprocessing import shared_memory

    import numpy as np

    missed = []

    def expect(name: str, fact: bool) -> None:
        if not fact:
            missed.append(name)

    one, two = Path(folder, "one"), Path(folder, "two")
    for made in (one, two):
        made.mkdir()
    (one / "file").write_text("mine")
    os.rename(one / "file", two / "file")  # between folders, which Landlock forbids unless it is asked not to
    os.link(two / "file", one / "link")
    os.symlink(two / "file", one / "symlink")
    os.mkfifo(one / "fifo")
    expect("files", (one / "symlink").read_text() == "mine")
    with tempfile.TemporaryFile() as file:
        expect("temporary files", file.write(b"x") == 1)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(one / "socket"))
        server.listen()
        client.connect(str(one / "socket"))
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        socket.create_connection(tcp.getsockname()).close()
    expect("subprocess", subprocess.run(["sh", "-c", "echo $((6*7))"], capture_output=True).stdout == b"42\n")
    sleeper = subprocess.Popen(["sleep", "60"])
    sleeper.terminate()
    expect("signals to children", sleeper.wait() == -signal.SIGTERM)
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            expect(f"multiprocessing by {method}", pool.map(_double, [1, 2, 3]) == [2, 4, 6])
    memory = shared_memory.SharedMemory(create=True, size=4096)
    memory.buf[0] = 7
    expect("shared memory", memory.buf[0] == 7)
    memory.close()
    memory.unlink()
    Path("/dev/shm/lattica-test").write_text("x")
    os.unlink("/dev/shm/lattica-test")
    expect("numpy", float(np.ones((64, 64)).dot(np.ones(64)).sum()) == 4096)
    expect("devices", len(read("/dev/urandom")) == 4096 and read("/dev/null") == b"")
    expect("its own memory", len(read("/proc/self/maps")) > 0 and len(read("/proc/self/environ")) > 0)
    return missed
