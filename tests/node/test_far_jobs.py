"""What a node says to others about work of theirs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lattica.codec import far
from lattica.node.far_jobs import FarJobs

JOB = b"j" * 16


def test_a_node_that_was_only_asked_lets_the_program_end_at_once() -> None:
    """It prepares what the job needs, and another node was faster: the driver would wait 3 s for its last lines."""
    said: list[Any] = []
    over: list[bytes] = []
    asker: Any = SimpleNamespace(link=SimpleNamespace(send=said.append), asked_jobs={JOB})
    desk: Any = SimpleNamespace(node=None, me=b"me", environments=SimpleNamespace(over=over.append))
    jobs = FarJobs(desk)
    jobs.job_over(asker, far.JobOver(JOB, True))
    jobs.job_over(asker, far.JobOver(JOB))
    assert [(type(one), one.job) for one in said] == [(far.JobGone, JOB)] and over == [JOB, JOB]
