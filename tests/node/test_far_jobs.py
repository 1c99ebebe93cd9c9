"""What a node says to others about work of theirs."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from lattica.codec import far
from lattica.mesh.roles import MEMBER
from lattica.node import far_jobs
from lattica.node.far_jobs import _MINOR, FarJobs
from lattica.scheduler.environments import Installs, encode, key_of_parts, variant_of

JOB = b"j" * 16
THEM = b"t" * 32


class _Host:
    """A node on which a job of THEM may begin. said: what its neighbour, which tells of the job, hears."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[Any] = []
        self.neighbour: Any = SimpleNamespace(
            peer=THEM,
            client=SimpleNamespace(name="them"),
            link=SimpleNamespace(send=self.said.append),
            told_jobs={},
            asked_jobs=set(),
        )
        self.freed: list[bytes] = []
        environments = SimpleNamespace(
            needed=lambda _: False,
            forgotten=self.freed.append,
            objection=lambda _: "",
            over=lambda _: None,
            is_coming=lambda _: False,
        )
        peer = SimpleNamespace(
            credentials=SimpleNamespace(root=None, trust=None, member=SimpleNamespace(roles=MEMBER)),
            sessions=SimpleNamespace(correction_s=0.0),
        )
        self.node: Any = SimpleNamespace(jobs={}, closing=False)
        desk: Any = SimpleNamespace(
            node=self.node,
            me=b"me",
            peer=peer,
            closing=False,
            environments=environments,
            neighbours={THEM: self.neighbour},
        )
        self.jobs = FarJobs(desk)
        numbers = count(1)

        def begin(paper: far.JobIs, *_: Any) -> int:
            number = self.jobs._jobs[paper.job] = next(numbers)
            self.node.jobs[number] = SimpleNamespace(number=number, ended=False)
            return number

        token = SimpleNamespace(job=JOB, peer=THEM, expires=1e12)
        monkeypatch.setattr(self.jobs, "_begin_job", begin)
        monkeypatch.setattr(far_jobs, "verify_token", lambda *_: token)

    def told(self) -> None:
        self.jobs.job_is(self.neighbour, far.JobIs(JOB, b"", THEM))

    def forget(self, number: int) -> None:
        del self.node.jobs[number]
        self.jobs.forgotten(number)


def test_a_job_whose_node_only_seemed_dead_begins_anew_while_its_last_workers_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its node was taken for dead, which ended it here. 40 ms later that says of it again, and takes it for known,
    while a worker of the first one still dies: what it asked for in a placement group was refused for ever (world
    `execution`, long seed 519)."""
    host = _Host(monkeypatch)
    host.told()
    host.node.jobs[1].ended = True
    assert host.jobs.objection(JOB), "nothing begins in a job that ends"
    host.told()
    assert (host.jobs.number(JOB), host.jobs.objection(JOB)) == (2, "")
    host.forget(1)
    assert (host.jobs.number(JOB), host.jobs.objection(JOB)) == (2, "")
    assert host.freed == [] and host.neighbour.asked_jobs == {JOB} and host.said == []
    host.forget(2)
    assert host.jobs.objection(JOB) and host.freed == [JOB]


def test_who_said_of_a_job_says_so_again_once_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a third node, whose link lasts while the job ends here because its own node seems dead."""
    host = _Host(monkeypatch)
    host.told()
    host.node.jobs[1].ended = True
    host.forget(1)
    assert host.said == [far.JobGone(JOB)]
    teller = _Host(monkeypatch)
    teller.neighbour.told_jobs[JOB] = 1e12
    teller.jobs.job_gone(teller.neighbour, far.JobGone(JOB))
    assert teller.neighbour.told_jobs == {}


def test_a_variant_is_believed_under_its_jobs_token_and_by_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id says what its workers have around them: nobody gives a worker of one to another by a wrong name."""
    host = _Host(monkeypatch)
    known: dict[bytes, int] = {}
    host.node.environments = SimpleNamespace(known=lambda _root, key: known.get(key))
    key = key_of_parts({"A": "b"}, [], None)
    variant = far.JobIs(variant_of(JOB, key), b"", THEM, env_vars={"A": "b"}, root=JOB)
    host.told()
    for wrong in (
        replace(variant, env_vars={"A": "c"}),
        replace(variant, job=b"x" * 16),
        replace(variant, installs=encode(Installs("pip", ("numpy",)))),
        replace(variant, job=variant_of(b"o" * 16, key), root=b"o" * 16),
    ):
        host.jobs.job_is(host.neighbour, wrong)
        assert not host.jobs.knows(wrong.job)
    host.jobs.job_is(host.neighbour, variant)
    assert host.jobs.number(variant.job) == 2
    mine = far.JobIs(variant_of(JOB, key_of_parts({"A": "c"}, [], None)), b"", THEM, env_vars={"A": "c"}, root=JOB)
    known[key_of_parts({"A": "c"}, [], None)] = 7
    host.jobs.job_is(host.neighbour, mine)
    assert host.jobs.number(mine.job) == 7, "this node has thought of it, too"


def test_who_said_of_a_variant_while_its_job_was_forgotten_says_so_of_both_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The word that the job is gone crosses the variant's on the way (world `execution`, long seed 45)."""
    host = _Host(monkeypatch)
    host.node.environments = SimpleNamespace(known=lambda *_: None)
    host.told()
    host.node.jobs[1].ended = True
    host.forget(1)
    key = key_of_parts({"A": "b"}, [], None)
    variant = far.JobIs(variant_of(JOB, key), b"", THEM, env_vars={"A": "b"}, root=JOB)
    host.jobs.job_is(host.neighbour, variant)
    assert not host.jobs.knows(variant.job) and host.said == [far.JobGone(JOB), far.JobGone(variant.job)]
    host.told()
    host.jobs.job_is(host.neighbour, variant)
    assert host.jobs.objection(variant.job) == ""


def test_who_asks_of_a_job_that_ends_hears_so_though_its_last_worker_is_still_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The link was lost before the job ended, and the new one came 30 ms later: it was told that the job goes on, and
    kept it for ever (world `execution`, long seed 535)."""
    origin = _Host(monkeypatch)
    mine = far.JobIs(JOB, b"", b"me")
    monkeypatch.setattr(far_jobs, "verify_token", lambda *_: SimpleNamespace(job=JOB, peer=b"me", expires=1e12))
    origin.jobs._jobs[JOB], origin.jobs._papers[1] = 1, mine
    origin.node.jobs[1] = SimpleNamespace(number=1, ended=False)
    origin.jobs.job_is(origin.neighbour, mine)
    assert origin.said == [] and origin.neighbour.told_jobs == {JOB: 0.0}
    origin.node.jobs[1].ended = True
    origin.jobs.job_is(origin.neighbour, mine)
    origin.jobs._seen_off[JOB] = set()
    origin.jobs.job_is(origin.neighbour, mine)
    assert origin.said == [far.JobOver(JOB), far.JobOver(JOB, True)]
    assert origin.jobs._seen_off == {JOB: {THEM}}, "its last lines are waited for"


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
