"""What a node says to others about work of theirs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lattica.codec import far
from lattica.node.far_desk import FarDesk

JOB = b"j" * 16


def test_a_node_that_was_only_asked_lets_the_program_end_at_once() -> None:
    """It prepares what the job needs, and another node was faster: the driver would wait 3 s for its last lines."""
    said: list[Any] = []
    over: list[bytes] = []
    asker: Any = SimpleNamespace(link=SimpleNamespace(send=said.append), asked_jobs={JOB})
    desk: Any = SimpleNamespace(_jobs={}, _papers={}, me=b"me", environments=SimpleNamespace(over=over.append))
    FarDesk._job_over(desk, asker, far.JobOver(JOB, True))
    FarDesk._job_over(desk, asker, far.JobOver(JOB))
    assert [(type(one), one.job) for one in said] == [(far.JobGone, JOB)] and over == [JOB, JOB]
