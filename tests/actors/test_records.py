"""How a task or call ends: values for its refs, another try, or a failure; whatever comes in between, exactly once."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lattica.actors import records
from lattica.actors.records import Record
from lattica.codec import messages as m
from lattica.errors import TaskCancelledError, TaskError

FAILED = m.Failed(b"what it raised")


class FakeRuntime:
    """What `records` asks of a runtime. `error`: what the failure turns out to be, or raises when it is read."""

    def __init__(self, error: BaseException | Callable[[], BaseException]) -> None:
        self.error = error
        self.lock = threading.RLock()
        self.settled: list[tuple[Any, Any]] = []
        self.flushes = 0
        self.after_dispatch: deque[Callable[[], None]] = deque()
        self.objects = self.reactor = self.lineage = self

    def keep(self, record: Record) -> None:
        pass

    def settle(self, ref: Any, value: Any) -> None:
        self.settled.append((ref, value))

    def from_wire(self, value: Any, via: int, data: bool, attempt: int) -> Any:
        return "from wire", value

    def load_failure(self, failed: m.Failed) -> BaseException:
        return self.error() if callable(self.error) else self.error

    def failure(self, error: BaseException) -> m.Failed:
        return m.Failed(str(error).encode(), [], True)

    def flush(self) -> None:
        self.flushes += 1

    def changed(self) -> None:
        pass

    def run_callbacks(self) -> None:
        while self.after_dispatch:
            self.after_dispatch.popleft()()


class Work(Record, eq=False):
    """A record that counts how often it was sent again."""

    reruns: int = 0

    def rerun(self) -> bool:
        self.spend_retry()
        self.reruns += 1
        return True


def work_of(retry: Any = False, retries: int = 3, refs: int = 1) -> Work:
    return Work(b"args", [], [], [f"ref {n}" for n in range(refs)], refs, retries, retry)  # type: ignore[misc]


@pytest.fixture
def runtime() -> Any:
    return FakeRuntime(TaskError("f", "", KeyError("k")))


def test_a_result_settles_its_ref_and_lets_the_arguments_go(runtime: Any) -> None:
    work = work_of()
    records.finish(runtime, work, [b"value"])
    assert runtime.settled == [("ref 0", b"value")] and (work.refs, work.args) == ([], b"")


def test_several_results_settle_their_refs_in_order(runtime: Any) -> None:
    records.finish(runtime, work_of(refs=2), [b"one", b"two"])
    assert runtime.settled == [("ref 0", ("from wire", b"one")), ("ref 1", ("from wire", b"two"))]


def test_one_failure_is_the_failure_of_every_ref(runtime: Any) -> None:
    records.finish(runtime, work_of(refs=3), [FAILED])
    assert runtime.settled == [(f"ref {n}", FAILED) for n in range(3)]


@pytest.mark.parametrize("kinds", [True, (KeyError,), (ValueError, LookupError)])
def test_a_failure_that_may_be_retried_is_tried_again_and_spends_a_retry(runtime: Any, kinds: Any) -> None:
    work = work_of(kinds)
    records.finish(runtime, work, [FAILED])
    assert work.reruns == 0, "user code runs outside the lock"
    runtime.run_callbacks()
    assert (work.reruns, work.retries_left, work.attempt, runtime.settled) == (1, 2, 1, [])


def test_retries_without_limit_are_not_counted_down(runtime: Any) -> None:
    work = work_of(True, retries=-1)
    records.finish(runtime, work, [FAILED])
    runtime.run_callbacks()
    assert (work.reruns, work.retries_left) == (1, -1)


@pytest.mark.parametrize(
    "work",
    [work_of(False), work_of(True, retries=0), work_of((ValueError,))],
    ids=["not asked for", "spent", "another class"],
)
def test_a_failure_that_may_not_be_retried_is_the_result(runtime: Any, work: Work) -> None:
    records.finish(runtime, work, [FAILED])
    runtime.run_callbacks()
    assert work.reruns == 0 and runtime.settled == [("ref 0", FAILED)]


def test_a_failure_that_cannot_be_read_is_the_result() -> None:
    def unreadable() -> BaseException:
        raise ImportError("no such module")

    runtime: Any = FakeRuntime(unreadable)
    work = work_of((KeyError,))
    records.finish(runtime, work, [FAILED])
    runtime.run_callbacks()
    assert work.reruns == 0 and runtime.settled == [("ref 0", FAILED)]


def test_a_cancel_that_comes_before_the_next_try_prevents_it(runtime: Any) -> None:
    """The failure has arrived, the retry waits for its turn without the lock, and the user cancels: once is enough."""
    work = work_of(True)
    records.finish(runtime, work, [FAILED])
    work.canceled = True
    records.fail(runtime, work, TaskCancelledError(name="f"))
    runtime.run_callbacks()
    assert work.reruns == 0 and len(runtime.settled) == 1 and runtime.settled[0][1].system


def test_a_canceled_task_is_not_retried(runtime: Any) -> None:
    work = work_of(True)
    work.canceled = True
    records.finish(runtime, work, [FAILED])
    assert not runtime.after_dispatch and runtime.settled == [("ref 0", FAILED)]


def test_a_record_says_where_the_user_made_it() -> None:
    work = work_of()
    work.refs = [SimpleNamespace()]  # type: ignore[list-item]
    assert work.made_at == ""
    code = compile("\n\nask(0)\nask(\n    1\n)\n", "train.py", "exec")
    made = []
    runtime = SimpleNamespace(on_submit=None)
    exec(code, {"ask": lambda _: work.begin(runtime, sys._getframe(1), 1) and made.append(work.made_at)})
    assert made == ["train.py:3", "train.py:4"]
