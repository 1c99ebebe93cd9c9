"""Memory and idle CPU of each process of one machine, with two workers up: driver, node, zygote and workers.

    python processes.py --fw lattica --out lattica.jsonl

Rows: "PSS <process>" for each (a number follows where several have one name), their sum, the count, and the idle CPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections import Counter

import numpy as np
from bench_util import Report, tree, tree_cpu_percent

SETTLE_S = 5.0  # after the last task, as in peers_bench
HOLD_S = 0.5  # two tasks of this length at once need two workers


def pss_mib(pid: int) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("Pss:"))


def command(pid: int) -> list[str]:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return [part.decode(errors="replace") for part in file.read().rstrip(b"\0").split(b"\0")]


def parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


def role(pid: int) -> str:
    """A short name for what a process does, from its command line; a fork that kept its parent's is a worker."""
    if pid == os.getpid():
        return "driver"
    words = command(pid)
    if words == command(parent(pid)):
        return "worker"
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1].removesuffix(".main").rpartition(".")[2]
    script = next((word for word in words if word.endswith(".py")), words[0])
    return os.path.basename(script.split()[0]).removesuffix(".py")


def measure(report: Report) -> None:
    sizes = {pid: (role(pid), pss_mib(pid)) for pid in tree()}
    several = {name for name, n in Counter(name for name, _ in sizes.values()).items() if n > 1}
    seen: Counter[str] = Counter()
    for name, size in sizes.values():
        seen[name] += 1
        report.add(f"PSS {name} {seen[name]}" if name in several else f"PSS {name}", size, "MiB")
    report.add("PSS sum", sum(size for _, size in sizes.values()), "MiB")
    report.add("processes", len(sizes), "procs", "driver included")
    report.add("CPU with two idle workers", tree_cpu_percent(5), "% core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fw", default="lattica")
    parser.add_argument("--init", default='{"num_cpus": 2}', help="keyword arguments of init, as JSON")
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    fw = importlib.import_module(args.fw)
    fw.init(**json.loads(args.init))

    @fw.remote
    def hold(array: np.ndarray) -> int:
        time.sleep(HOLD_S)
        return os.getpid()

    workers = set(fw.get([hold.remote(np.zeros(10)) for _ in range(2)]))
    assert len(workers) == 2, f"two tasks at once on two CPUs ran in {len(workers)} worker"
    time.sleep(SETTLE_S)
    measure(Report(args.fw, getattr(fw, "__version__", "?"), args.out))
    fw.shutdown()


if __name__ == "__main__":
    main()
