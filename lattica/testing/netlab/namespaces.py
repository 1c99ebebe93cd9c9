"""Network namespaces of this machine: being in one, running its tools there, and the processes that live there.

A thread enters a namespace by setns(2): sockets it makes and processes it starts meanwhile belong there for good, other
threads are not touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from .errors import LabError

NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # sched.h
KILL_TIMEOUT_S = 5.0  # until a killed process is gone; one in an uninterruptible wait may take longer than any limit

Process = tuple[int, int | None]
"""(pid, start time in clock ticks): a pid alone may by now be another's."""

_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextlib.contextmanager
def in_netns(ns: str | None) -> Iterator[None]:
    """The calling thread, and what it starts, is in this namespace for the block; None: where it is."""
    if ns is None:
        yield
        return
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(NETNS / ns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(back)
    finally:
        os.close(back)


# ---- tools ----------------------------------------------------------------------------------------------------------


def tool(ns: str | None, words: Sequence[str], text: str | None = None, check: bool = True) -> str:
    """Run a program in a namespace, `text` on its stdin; what it printed. Raises LabError with the text, numbered."""
    with in_netns(ns):
        done = subprocess.run(words, input=text, text=True, capture_output=True, check=False)
    if check and done.returncode:
        numbered = "\n".join(f"{i:3} {line}" for i, line in enumerate((text or "").splitlines(), 1))
        raise LabError(
            f"{' '.join(words)} in {ns or 'this namespace'} failed: {done.stderr.strip()}\n{numbered}".rstrip()
        )
    return done.stdout


def ip(ns: str | None, lines: Sequence[str], check: bool = True) -> None:
    """Commands of ip(8), one a line, by one process; check=False goes on after one that failed."""
    if lines:
        words = ["ip", "-batch", "-"] if check else ["ip", "-force", "-batch", "-"]
        tool(ns, words, "\n".join(lines) + "\n", check)


def nft(ns: str | None, text: str, check: bool = True) -> None:
    """Apply a ruleset in one transaction."""
    tool(ns, ["nft", "-f", "-"], text, check)


def sysctl(ns: str, values: Mapping[str, int]) -> None:
    """Settings below /proc/sys/net; those that this kernel does not have are left out."""
    with in_netns(ns):
        for name, value in values.items():
            with contextlib.suppress(FileNotFoundError):
                Path("/proc/sys/net", *name.split("/")).write_text(str(value))


def flush_conntrack(ns: str) -> None:
    """Empty the namespace's table of connections: CTNETLINK's delete without a filter (nfnetlink_conntrack.h)."""
    netfilter, delete, request_and_ack, error_at = 12, (1 << 8) | 2, 1 | 4, 16
    with in_netns(ns):
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netfilter)
    with link:
        link.settimeout(5)
        body = struct.pack("=BBH", 0, 0, 0)  # nfgenmsg: any family
        link.send(struct.pack("=IHHII", 16 + len(body), delete, request_and_ack, 1, 0) + body)
        code: int = struct.unpack_from("=i", link.recv(4096), error_at)[0]
        if code:
            raise OSError(-code, os.strerror(-code))


# ---- processes ------------------------------------------------------------------------------------------------------


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of this process; None if there is none."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stat(pid: int) -> list[str]:
    """The fields of proc(5)'s stat from the third on: the name before them may hold spaces and parentheses."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def lives(process: Process) -> bool:
    """Whether that very process runs still, not another that got its number."""
    pid, start = process
    fields = _stat(pid)
    return bool(fields) and int(fields[19]) == start and fields[0] not in "ZX"


def kill(processes: Iterable[Process]) -> None:
    """SIGKILL to those that are still the same processes, and wait for their end. Never this process."""
    left = [process for process in processes if lives(process) and process[0] != os.getpid()]
    for pid, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while (left := [process for process in left if lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.005)


def processes_in(namespaces: Iterable[str]) -> list[Process]:
    """Every process of these namespaces, of whoever started it."""
    inodes = set()
    for ns in namespaces:
        with contextlib.suppress(OSError):
            inodes.add(os.stat(NETNS / ns).st_ino)
    found: list[Process] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}/ns/net").st_ino in inodes:
                    found.append((int(name), start_time(int(name))))
    return found
