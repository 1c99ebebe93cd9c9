"""How much memory is in use, read from /proc/meminfo and from the cgroup that this process lives in (v2 or v1).

Files are read whole and unbuffered: /proc answers one read with one consistent picture.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from lattica.node.memory_monitor import Reading, fullest

NO_LIMIT_BYTES = 1 << 60  # cgroup v1 says "no limit" as the largest multiple of a page
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STORE_SHARE = 0.30
"""Part of the memory that objects may take by default; Ray's."""


@dataclass(frozen=True, slots=True)
class _CgroupFiles:
    """Names of one version's files, and of the caches in its `memory.stat` that the kernel can drop at once."""

    limit: str
    usage: str
    inactive_file: bytes


V2 = _CgroupFiles("memory.max", "memory.current", b"inactive_file")
V1 = _CgroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file")


class MemoryReader:
    """Reads what counts: the machine, and each cgroup above us that has a limit. Which those are is found out once."""

    def __init__(self, root: str = "/") -> None:
        """root: where /proc and /sys lie, for tests."""
        self._meminfo = os.path.join(root, "proc/meminfo")
        self._limited = [(folder, files) for folder, files in _cgroups(root) if _limit(folder, files) is not None]

    def read(self) -> Reading:
        """The fuller of machine and cgroups, by share."""
        return fullest(self._readings())

    def room(self, kept: float) -> int:
        """Bytes that can still be taken while a share of `kept` stays free in the machine and in each cgroup."""
        return min(int(reading.total * (1 - kept)) - reading.used for reading in self._readings())

    def _readings(self) -> list[Reading]:
        """Machine and cgroups. A file that is gone counts as empty: a cgroup can be moved or removed."""
        readings = [machine(_read(self._meminfo))]
        for folder, files in self._limited:
            limit = _limit(folder, files)
            if limit is not None:
                readings.append(Reading(_usage(folder, files), limit, "cgroup"))
        return readings

    @property
    def total(self) -> int:
        """Bytes that this machine or container may use: the smallest of what there is and what is allowed."""
        limits = [_limit(folder, files) for folder, files in self._limited]
        return min([machine(_read(self._meminfo)).total, *(limit for limit in limits if limit)])


def machine(meminfo: bytes) -> Reading:
    """The machine's memory from the text of /proc/meminfo. What the kernel counts as available is not in use."""
    total, available = _field(meminfo, b"MemTotal:") << 10, _field(meminfo, b"MemAvailable:") << 10
    return Reading(max(total - available, 0), total)


def private_bytes(pid: int) -> int:
    """Memory of the process's own, without files and shared memory (the arena is everybody's); 0 if it is gone."""
    fields = _read(f"/proc/{pid}/statm").split()
    return (int(fields[1]) - int(fields[2])) * PAGE_BYTES if len(fields) > 2 else 0


def resident_bytes(pid: int) -> int:
    """All memory that the process has mapped and touched (RSS), shared or not; 0 if it is gone."""
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE_BYTES if len(fields) > 2 else 0


def cpu_seconds(pid: int) -> float:
    """CPU time that the process has used, user's and system's; 0 if it is gone."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S if len(fields) > 12 else 0.0


def machine_cpu_seconds() -> float:
    """CPU time that the machine has spent on anything, all cores together, since it was started."""
    fields = [int(number) for number in _read("/proc/stat").split(b"\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_S if len(fields) == 8 else 0.0  # all but idle and iowait


def _cgroups(root: str) -> list[tuple[str, _CgroupFiles]]:
    """The memory cgroup of this process and those above it. In a container its path may be that of the host's tree."""
    found: list[tuple[str, _CgroupFiles]] = []
    for line in _read(os.path.join(root, "proc/self/cgroup")).decode(errors="surrogateescape").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top, files = os.path.join(root, "sys/fs/cgroup"), V2
        elif "memory" in controllers.split(","):
            top, files = os.path.join(root, "sys/fs/cgroup/memory"), V1
        else:
            continue
        names = [name for name in path.split("/") if name not in ("", "..")]
        for depth in range(len(names), -1, -1):
            folder = os.path.join(top, *names[:depth])
            if os.path.exists(os.path.join(folder, files.usage)):
                found.append((folder, files))
    return found


def _limit(folder: str, files: _CgroupFiles) -> int | None:
    text = _read(os.path.join(folder, files.limit)).strip()
    return int(text) if text.isdigit() and 0 < int(text) < NO_LIMIT_BYTES else None


def _usage(folder: str, files: _CgroupFiles) -> int:
    usage = _read(os.path.join(folder, files.usage)).strip()
    cached = _field(_read(os.path.join(folder, "memory.stat")), files.inactive_file)
    return max(int(usage) - cached, 0) if usage.isdigit() else 0


def _field(text: bytes, name: bytes) -> int:
    """The number after `name` at the beginning of a line; 0 if there is none."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name:
            return int(words[1])
    return 0


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = os.read(fd, 64 << 10)
    except OSError:
        return b""
    finally:
        os.close(fd)
    return data
