"""What a node says to others about work of theirs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lattica.codec import far
from lattica.mesh.roles import MEMBER
from lattica.node.far_jobs import _MINOR, FarJobs

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


@pytest.mark.parametrize(
    ("minor", "origin", "refused"),
    [("3.99", b"them", True), (_MINOR, b"them", False), ("", b"them", False), ("3.99", b"me", False)],
)
def test_a_host_lends_no_worker_to_a_program_of_another_python_whatever_its_asker_believes(
    minor: str, origin: bytes, refused: bool
) -> None:
    """Its functions are bytecode of that version: ours end with SIGSEGV. Programs of this node run their own."""
    node = SimpleNamespace(jobs={1: None}, closing=False)
    peer = SimpleNamespace(credentials=SimpleNamespace(member=SimpleNamespace(roles=MEMBER)))
    desk: Any = SimpleNamespace(node=node, me=b"me", peer=peer, closing=False)
    jobs = FarJobs(desk)
    jobs._jobs[JOB], jobs._papers[1] = 1, far.JobIs(JOB, b"", origin, minor=minor)
    jobs._submissions[1] = SimpleNamespace(peer=b"me", expires=0.0)  # type: ignore[assignment]
    assert jobs.objection(JOB) == "", "its objects and calls are served"
    said = jobs.objection_to_run(JOB)
    assert bool(said) == refused and (not refused or (minor in said and _MINOR in said))
