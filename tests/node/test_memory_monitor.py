"""Who is ended when memory runs out, by injected readings."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattica.node.memory_monitor import (
    DYING_S,
    GIB,
    INTERVAL_MAX_S,
    INTERVAL_MIN_S,
    KILL_EVERY_S,
    Candidate,
    MemoryMonitor,
    Reading,
    Work,
    choose_victim,
)
from lattica.node.memory_readings import MemoryReader, machine, private_bytes, resident_bytes

FULL = Reading(23 * GIB, 24 * GIB)
ROOMY = Reading(4 * GIB, 24 * GIB)


def worker(client: int, work: Work, since: float, size: int = 0) -> Candidate:
    return Candidate(client, 1000 + client, f"task{client}", work, since, size)


def test_the_youngest_retryable_task_goes_first_then_other_tasks_and_actors_last() -> None:
    workers = [
        worker(1, Work.ACTOR, since=90),
        worker(2, Work.TASK, since=50),
        worker(3, Work.RETRYABLE_TASK, since=10),
        worker(4, Work.RETRYABLE_TASK, since=20),
        worker(5, Work.TASK, since=60),
        worker(6, Work.ACTOR, since=80),
        worker(7, Work.IDLE, since=1),
    ]
    order = []
    while (victim := choose_victim(workers)) is not None:
        order.append(victim.client)
        workers.remove(victim)
    assert order == [4, 3, 7, 5, 2, 1, 6]


def test_nobody_is_ended_below_the_threshold() -> None:
    monitor = MemoryMonitor()
    assert not monitor.over(Reading(94 * GIB, 100 * GIB), now=0)
    assert monitor.over(Reading(95 * GIB, 100 * GIB), now=0)


def test_a_kill_says_how_full_it_was_and_who_had_most() -> None:
    monitor = MemoryMonitor()
    assert monitor.over(FULL, now=0)
    workers = [worker(1, Work.RETRYABLE_TASK, 5, size=GIB // 2), worker(2, Work.ACTOR, 1, size=16 * GIB)]
    kill = monitor.kill(workers, now=0)
    assert kill is not None and kill.client == 1
    assert kill.reason == (
        "out of memory: 95.8% of the machine's 24.0 GiB were in use (23.0 GiB; threshold 95%); "
        "the largest workers: task2 (pid 1002) 16.00 GiB, task1 (pid 1001) 0.50 GiB"
    )


def test_one_kill_a_second_until_memory_fell() -> None:
    monitor, workers = MemoryMonitor(), [worker(number, Work.TASK, number) for number in range(1, 6)]
    killed, now = [], 0.0
    while now < 3.0:
        if monitor.over(FULL if len(killed) < 2 else ROOMY, now):
            kill = monitor.kill(workers, now)
            assert kill is not None
            killed.append((now, kill.client))
            workers = [worker for worker in workers if worker.client != kill.client]
        now += INTERVAL_MIN_S
    assert killed == [(0.0, 5), (KILL_EVERY_S, 4)]


def test_a_victim_that_is_still_dying_saves_the_next_one_for_a_while() -> None:
    """A process with 100 GiB takes seconds to give them back; one in uninterruptible sleep may never."""
    monitor, workers = MemoryMonitor(), [worker(1, Work.TASK, 1), worker(2, Work.TASK, 2)]
    first = monitor.kill(workers, now=0.0) if monitor.over(FULL, now=0.0) else None
    assert first is not None and first.client == 2
    assert monitor.over(FULL, now=2.0) and monitor.kill(workers, now=2.0) is None
    second = monitor.kill(workers, now=DYING_S) if monitor.over(FULL, now=DYING_S) else None
    assert second is not None and second.client == 1


def test_with_nobody_to_end_nothing_is_ended() -> None:
    monitor = MemoryMonitor()
    assert monitor.over(FULL, now=0)
    assert monitor.kill([], now=0) is None


def test_it_looks_often_when_memory_is_short_and_seldom_when_it_is_not() -> None:
    monitor = MemoryMonitor()
    monitor.over(ROOMY, now=0)
    assert monitor.interval_s() == INTERVAL_MAX_S
    monitor.over(Reading(18 * GIB, 24 * GIB), now=0)
    assert INTERVAL_MIN_S < monitor.interval_s() < INTERVAL_MAX_S
    monitor.over(FULL, now=0)
    assert monitor.interval_s() == INTERVAL_MIN_S


def test_a_machine_that_says_nothing_is_not_full() -> None:
    assert not MemoryMonitor().over(machine(b""), now=0)


MEMINFO = "MemTotal:       25165824 kB\nMemFree:  100 kB\nMemAvailable:   12582912 kB\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    return tmp_path


def group(root: Path, path: str, **files: str) -> None:
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_cgroups_the_machine_counts(root: Path) -> None:
    assert MemoryReader(str(root)).read() == Reading(12 * GIB, 24 * GIB, "machine")


def test_a_v2_cgroup_that_is_fuller_counts_without_the_caches_it_can_drop(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/user.slice/job\n")
    group(
        root, "user.slice/job", memory__max=f"{4 * GIB}\n", memory__current=f"{5 * GIB}\n",
        memory__stat=f"anon 1\ninactive_file {GIB + GIB // 2}\n",
    )  # fmt: skip
    reader = MemoryReader(str(root))
    assert reader.read() == Reading(7 * GIB // 2, 4 * GIB, "cgroup")
    assert reader.total == 4 * GIB


def test_the_limit_of_a_cgroup_above_ours_counts_too(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/slice/job\n")
    group(root, "slice", memory__max=f"{2 * GIB}\n", memory__current=f"{2 * GIB}\n", memory__stat="inactive_file 0\n")
    group(root, "slice/job", memory__max="max\n", memory__current=f"{GIB}\n", memory__stat="inactive_file 0\n")
    assert MemoryReader(str(root)).read() == Reading(2 * GIB, 2 * GIB, "cgroup")


def test_a_v1_cgroup_counts_in_a_container_that_sees_another_path_than_its_own(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("5:cpu:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n")
    group(
        root, "memory", memory__limit_in_bytes=f"{GIB}", memory__usage_in_bytes=f"{GIB}",
        memory__stat=f"inactive_file 5\ntotal_inactive_file {GIB // 4}\n",
    )  # fmt: skip
    assert MemoryReader(str(root)).read() == Reading(3 * GIB // 4, GIB, "cgroup")


def test_a_v1_cgroup_without_limit_does_not_count(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("4:memory:/\n")
    group(root, "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes=f"{GIB}")
    assert MemoryReader(str(root)).read().where == "machine"


def test_a_cgroup_that_is_removed_while_we_look_counts_as_nothing(root: Path) -> None:
    (root / "proc/self/cgroup").write_text("0::/job\n")
    group(root, "job", memory__max=f"{GIB}\n", memory__current=f"{GIB}\n")
    reader = MemoryReader(str(root))
    (root / "sys/fs/cgroup/job/memory.max").unlink()
    assert reader.read().where == "machine"


def test_a_process_has_memory_of_its_own_and_a_dead_one_none() -> None:
    assert 0 < private_bytes(1) <= resident_bytes(1)
    assert private_bytes(2**22 + 1) == 0
