"""A worker's first task of a lease runs with what was said of that lease, whatever was read first."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from lattica.actors.worker import Worker

TASK: Any = SimpleNamespace(object=b"o" * 16, name="task", attempt=0, seq=1)


class Desk:
    """A worker without a process: what it waits for was said, and not read."""

    def __init__(self, queued: int, *, unanswered: int) -> None:
        self.heard: list[str] = []
        self.worker = worker = Worker.__new__(Worker)
        worker.queue = deque([(None, TASK)] * queued)  # type: ignore[list-item]
        worker.page = SimpleNamespace(fresh=unanswered)  # type: ignore[assignment]
        worker.runtime = SimpleNamespace(reactor=SimpleNamespace(hear_node=self._node_is_heard))  # type: ignore[assignment]
        worker._flush = lambda: self.heard.append("flush")  # type: ignore[method-assign]
        self.caller_is_gone = False

    def _node_is_heard(self) -> None:
        self.heard.append("node")
        if self.caller_is_gone:
            self.worker.queue.clear()


def test_the_node_is_heard_before_a_task_begins_that_may_be_the_first_of_a_lease() -> None:
    desk = Desk(1, unanswered=0)
    assert desk.worker._take() is not None and desk.heard == ["node"]


def test_tasks_that_follow_within_a_lease_ask_nobody() -> None:
    desk = Desk(2, unanswered=1)
    assert desk.worker._take() is not None and desk.heard == []


def test_a_task_whose_caller_turns_out_to_be_gone_does_not_begin() -> None:
    desk = Desk(1, unanswered=0)
    desk.caller_is_gone = True
    assert desk.worker._take() is None and desk.heard == ["node", "flush"]
