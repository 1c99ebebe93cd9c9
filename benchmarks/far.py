"""Calls, tasks and objects between two nodes of a mesh, beside the same on one: real nodes on loopback, mutual TLS.

    python benchmarks/far.py                        five fresh drivers, medians
    python benchmarks/far.py --runs 1 --only calls  a look

Two nodes of one CPU each, with keys of their own; the driver attaches to the first. Driver and its node are kept on one
core, the other node and its worker on the other: so a local call, whose worker is kept on the other core too, and a far
one both wake a process on another core. What each process took of the CPU during the calls is printed beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the package beside this file, from whatever directory

CALLS, BURST, TASKS, OBJECT_MIB = 2_000, 10_000, 5_000, 100
PARTS = ("calls", "tasks", "objects")
GOALS = {
    "far / local, p50": ("at most", 6.0),
    "10,000 far calls, per second": ("at least", 20_000.0),
    "100 MiB between nodes, MB/s": ("at least", 400.0),
    "SPREAD over 2 nodes / one node": ("at least", 0.5),
}


def lattica(*words: str, data_dir: str, **environ: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-c", "from lattica.cli.main import main; main()", *words, "--data-dir", data_dir]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"lattica {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def two_nodes() -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """The data directory of the first, and both's process and peer id."""
    with tempfile.TemporaryDirectory(prefix="lattica-far-") as folder:
        folders = [f"{folder}/{k}" for k in range(2)]
        try:
            lattica("start", "--num-cpus", "1", "--listen", "127.0.0.1:0", data_dir=folders[0])
            ticket = lattica("ticket", data_dir=folders[0]).strip().splitlines()[-1]
            lattica("start", "--num-cpus", "1", "--listen", "127.0.0.1:0", data_dir=folders[1], LATTICA_TICKET=ticket)
            about = [json.loads(lattica("status", "--json", data_dir=each))["node"] for each in folders]
            yield folders[0], [(node["pid"], node["peer_id"]) for node in about]
        finally:
            for each in folders:
                if Path(each).exists():
                    lattica("stop", "--force", data_dir=each)


def cpu_s(pid: int) -> float:
    """What it has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(only: str, about: list[tuple[int, str]]) -> dict[str, Any]:
    """In a driver of its own: figures by name. about: of each node, its process and peer id."""
    import numpy as np

    import lattica

    pids = [pid for pid, _ in about]
    cores = sorted(os.sched_getaffinity(0))
    near, other = cores[0], cores[-1]
    os.sched_setaffinity(0, {near})
    os.sched_setaffinity(pids[0], {near})
    os.sched_setaffinity(pids[1], {other})
    lattica.init("auto", log_to_driver=False)
    here, there = (id for _, id in about)

    @lattica.remote(num_cpus=0)
    class Actor:
        def pin(self, core: int) -> int:
            os.sched_setaffinity(0, {core})
            return os.getpid()

        def nothing(self) -> None:
            pass

        def make(self, mib: int) -> Any:
            return np.random.default_rng(0).integers(0, 256, mib << 20, np.uint8)

        def take(self, data: Any) -> int:
            return len(data)

    from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At

    found: dict[str, Any] = {}
    places = {"local": here, "far": there}
    actors: dict[str, Any] = {
        name: Actor.options(scheduling_strategy=At(node, False)).remote()  # type: ignore[attr-defined]
        for name, node in places.items()
    }
    workers = {name: lattica.get(actor.pin.remote(other)) for name, actor in actors.items()}
    for name, actor in actors.items():
        if "calls" not in only:
            break
        for _ in range(300):
            lattica.get(actor.nothing.remote())
        took = []
        watched = {"driver": os.getpid(), "node": pids[0], "other node": pids[1], "worker": workers[name]}
        before = {who: cpu_s(pid) for who, pid in watched.items()}
        for _ in range(CALLS):
            began = time.perf_counter()
            lattica.get(actor.nothing.remote())
            took.append(time.perf_counter() - began)
        found[f"{name}, one call at a time, p50 us"] = statistics.median(took) * 1e6
        for who, pid in watched.items():
            found[f"{name}: CPU of {who}, us a call"] = (cpu_s(pid) - before[who]) / CALLS * 1e6
        began = time.perf_counter()
        lattica.get([actor.nothing.remote() for _ in range(BURST)])
        found[f"10,000 {name} calls, per second"] = BURST / (time.perf_counter() - began)
    if "objects" in only:
        for what in ("first", "again"):
            data = np.random.default_rng(1).integers(0, 256, OBJECT_MIB << 20, np.uint8)
            ref = lattica.put(data)
            began = time.perf_counter()
            assert lattica.get(actors["far"].take.remote(ref)) == data.nbytes
            found[f"{OBJECT_MIB} MiB there, {what}, MB/s"] = data.nbytes / (time.perf_counter() - began) / 1e6
            made = actors["far"].make.remote(OBJECT_MIB)
            lattica.wait([made])
            began = time.perf_counter()
            assert len(lattica.get(made)) == data.nbytes
            found[f"{OBJECT_MIB} MiB back, {what}, MB/s"] = data.nbytes / (time.perf_counter() - began) / 1e6
            del ref, made, data
    if "tasks" in only:
        for pid in (os.getpid(), *pids):
            os.sched_setaffinity(pid, set(cores))

        @lattica.remote
        def task() -> None:
            pass

        for name, strategy in (("one node", At(here, False)), ("SPREAD over 2 nodes", "SPREAD")):
            one = task.options(scheduling_strategy=strategy)
            lattica.get([one.remote() for _ in range(500)])
            before = {
                who: cpu_s(pid) for who, pid in (("driver", os.getpid()), ("node", pids[0]), ("other node", pids[1]))
            }
            began = time.perf_counter()
            lattica.get([one.remote() for _ in range(TASKS)])
            wall = time.perf_counter() - began
            found[f"5,000 tasks, {name}, per second"] = TASKS / wall
            for who, pid in (("driver", os.getpid()), ("node", pids[0]), ("other node", pids[1])):
                found[f"tasks, {name}: CPU of {who}, of the time"] = (cpu_s(pid) - before[who]) / wall
    lattica.shutdown()
    return found


def derived(medians: dict[str, float]) -> dict[str, float]:
    """The figures that have a goal."""
    given = {
        "far / local, p50": ("far, one call at a time, p50 us", "local, one call at a time, p50 us"),
        "SPREAD over 2 nodes / one node": (
            "5,000 tasks, SPREAD over 2 nodes, per second",
            "5,000 tasks, one node, per second",
        ),
    }
    found = {name: medians[a] / medians[b] for name, (a, b) in given.items() if a in medians and b in medians}
    objects = [value for name, value in medians.items() if name.startswith(f"{OBJECT_MIB} MiB")]
    if objects:
        found["100 MiB between nodes, MB/s"] = statistics.median(objects)
    if "10,000 far calls, per second" in medians:
        found["10,000 far calls, per second"] = medians["10,000 far calls, per second"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Work between two nodes, beside the same on one.")
    parser.add_argument("--runs", type=int, default=5, help="fresh drivers (default 5)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # this is one of the drivers: JSON list of the nodes
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.only, json.loads(options.inside))))
        return
    runs: list[dict[str, float]] = []
    with two_nodes() as (data_dir, about):
        environ = os.environ | {"LATTICA_DATA_DIR": data_dir}
        command = [sys.executable, __file__, "--only", options.only, "--inside", json.dumps(about)]
        for run in range(options.runs):
            print(f"run {run + 1} of {options.runs}", file=sys.stderr)
            done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, timeout=300)
            if done.returncode:
                raise SystemExit(f"run {run + 1} failed")
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    for name, value in medians.items():
        print(f"  {name:<48} {value:12,.2f}")
    print()
    for name, value in derived(medians).items():
        word, goal = GOALS[name]
        met = value <= goal if word == "at most" else value >= goal
        print(f"  {name:<48} {value:12,.2f}   {word} {goal:g}: {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
