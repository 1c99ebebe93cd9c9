"""What is compared: one case per row of the published table, and the ratio that lattica promises.

A case names rows of `peers_bench.py` (or of `processes.py`) by their `name`; its value is their sum. Rates are better
higher, times and memory lower; the unit says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RATE_UNITS = {"1/s", "refs/s", "GB/s"}


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    target: how many times better than the peer, at least; None where nothing is promised.
    floor: what the machine itself would take, with the reason; None where nobody has found it yet.
    """

    name: str
    rows: tuple[str, ...]
    unit: str
    target: float | None = None
    floor: str | None = None
    note: str = ""

    @property
    def higher_is_better(self) -> bool:
        return self.unit in RATE_UNITS

    def value(self, medians: Mapping[str, float]) -> float | None:
        """The case's value from a side's medians; None unless every row was measured."""
        if any(row not in medians for row in self.rows):
            return None
        return sum(medians[row] for row in self.rows)

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times better `ours` is; a value too small to see counts as the smallest that is shown."""
        better, worse = (ours, theirs) if self.higher_is_better else (theirs, ours)
        return better / max(worse, 1e-9)


@dataclass(frozen=True, slots=True)
class Part:
    """Benches that run together in one process of each side, `processes` times, the sides in turn.

    script: the file that measures; only, skip: its prefixes of benches.
    """

    name: str
    processes: int
    script: str = "peers_bench.py"
    only: str = ""
    skip: str = ""
    cases: tuple[Case, ...] = field(default=())


START = Part(
    "start",
    processes=5,
    only="start",
    cases=(
        Case("start: import + init + first task", ("import", "init", "init to first task result"), "s", 8, "start"),
        Case("idle memory (PSS)", ("idle PSS sum",), "MiB", 5, "idle memory", "five seconds after the first task"),
        Case("idle processes", ("idle processes",), "procs", note="driver included"),
        Case("idle CPU", ("idle CPU",), "% core"),
        Case("shutdown", ("shutdown",), "s"),
    ),
)
PROCESSES = Part(
    "processes",
    processes=1,
    script="processes.py",
    cases=(Case("idle memory (PSS), two workers up", ("PSS sum",), "MiB", 5, "idle memory"),),
)
TASK_SYNC = Part(
    "task_sync",
    processes=5,
    only="task_sync",
    cases=(
        Case("task sync p50", ("task sync p50",), "us", 12, "round trip"),
        Case("task sync p99", ("task sync p99",), "us"),
    ),
)
ACTOR_SYNC = Part(
    "actor_sync",
    processes=5,
    only="actor_sync",
    cases=(
        Case("actor sync p50", ("actor sync p50",), "us", 8, "round trip"),
        Case("actor sync p99", ("actor sync p99",), "us"),
    ),
)
TASKS = Part(
    "task",
    processes=1,
    only="task",
    skip="task_sync",
    cases=(
        Case("5,000 tasks at once", ("tasks 5000 async",), "1/s", 30, "tasks in flight"),
        Case("submit 5,000 tasks", ("task submit only",), "1/s"),
        Case("task with 10,000 ref args", ("task 10k ref args",), "s", 8, "ref args"),
        Case("task with 10,000 plain args", ("task 10k plain args",), "s", 8, "plain args"),
        Case("tree of 31 nested tasks", ("nested tree depth 4 (31 tasks)",), "s"),
    ),
)
ACTORS = Part(
    "actor",
    processes=1,
    only="actor",
    skip="actor_sync",
    cases=(
        Case("10,000 actor calls in flight", ("actor 10k async",), "1/s", 15, "calls in flight"),
        Case("1,000 echoes in flight, 128 B", ("actor echo 128 B x1000",), "1/s", 12, "echo 128 B"),
        Case("1,000 echoes in flight, 256 KiB", ("actor echo 256 KiB x1000",), "1/s", 4, "echo 256 KiB"),
        Case("asyncio actor, 1,000 in flight", ("asyncio actor noop x1000",), "1/s", 15, "asyncio calls"),
        Case("asyncio actor, 1,000 × sleep 0.1 s", ("asyncio actor sleep 0.1s x1000",), "s", floor="sleep"),
        Case("actor creation, 8 at once", ("actor creation (8 at once)",), "1/s", 15, "actor creation"),
    ),
)
STORE = Part(
    "store",
    processes=1,
    only="store",
    skip="store_broadcast",
    cases=(
        Case("small put", ("put small",), "1/s", 20, "small put"),
        Case("small get", ("get small",), "1/s", 8, "small get"),
        Case("wait one by one on 1,000", ("wait 1000 refs one by one",), "refs/s", 10, "wait"),
        Case("wait for 1,000 ready refs", ("wait 1000 ready refs",), "ms"),
        Case("put 1 MiB", ("put 1 MiB array",), "GB/s", 2, "copy 1 MiB"),
        Case("put 100 MiB", ("put 100 MiB array",), "GB/s", 1, "copy 100 MiB"),
        Case("get 1 MiB", ("get 1 MiB array (own put)",), "us", 1, "load array"),
        Case("get 100 MiB", ("get 100 MiB array (own put)",), "us", 1, "load array"),
        Case("100 MiB from a task: submit to read", ("100 MiB from task: submit to read",), "ms"),
    ),
)
BROADCAST = Part(
    "broadcast",
    processes=5,  # the first of a process's three samples is cold, so each has two
    only="store_broadcast",
    cases=(
        Case("1 GiB put", ("1 GiB put",), "ms", 1, "put 1 GiB"),
        Case("1 GiB read by two workers", ("1 GiB read by 2 workers",), "ms", 1, "touch 1 GiB"),
    ),
)
PARTS = (START, PROCESSES, TASK_SYNC, ACTOR_SYNC, TASKS, ACTORS, STORE, BROADCAST)
