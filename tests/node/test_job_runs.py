"""Submitted jobs on a mesh in one process: who runs a script, who goes on with it, and who lets it be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import pytest

from lattica.errors import ConfigError, LatticaError, PermissionDeniedError
from lattica.mesh import community
from lattica.mesh.identity import peer_text
from lattica.mesh.table.kinds import JOB
from lattica.node import job_process, package_desk
from lattica.node.job_runs import JobRuns
from lattica.node.mesh_desk import MeshDesk
from lattica.node.packages import pack
from tests.node.test_mesh_desk import Machines, ask, joined, story, until

SIGTERM_STATUS, FAILED_STATUS = 15, 3 << 8


class FakeProcess:
    """A script that prints a line and runs until the test ends it."""

    living: ClassVar[list[FakeProcess]] = []

    def __init__(self, loop: Any, words: Any, folder: str, hidden: str, environ: Any, **hears: Any) -> None:
        self.pid, self.words, self.folder, self.environ, self.hears = 4711, words, folder, environ, hears
        assert os.path.exists(words[1]), "its files are there"
        self.living.append(self)
        hears["printed"](b"hello\n")

    def over(self, status: int) -> None:
        self.living.remove(self)
        self.hears["ended"](status)

    def end(self, *, kindly: bool) -> None:
        asyncio.get_running_loop().call_later(0.1 if kindly else 0.0, self.over, SIGTERM_STATUS)

    def close(self) -> None:
        if self in self.living:
            self.living.remove(self)


@pytest.fixture(autouse=True)
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(job_process, "JobProcess", FakeProcess)
    monkeypatch.setattr(FakeProcess, "living", [])
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    async def at_once(function: Callable[..., Any], *given: Any) -> Any:
        return function(*given)

    monkeypatch.setattr(package_desk.asyncio, "to_thread", at_once)


async def runs_of(machines: Machines, desk: MeshDesk) -> JobRuns:
    """What runs jobs at this node; it ends with the desk."""
    settings = SimpleNamespace(data_dir=str(machines.folder / desk.peer_id[:8]), hidden="[]")
    node: Any = SimpleNamespace(settings=settings, loop=asyncio.get_running_loop(), jobs={}, accept_driver=None)
    runs = JobRuns(node, desk)
    stop = desk.stop

    async def stop_both() -> None:
        runs.close()
        await stop()

    desk.stop = stop_both  # type: ignore[method-assign]
    return runs


def spec(machines: Machines, runs: JobRuns, **more: Any) -> dict[str, Any]:
    folder = machines.folder / "project"
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text("pass")
    packed = pack(str(folder))
    runs.packages.shelf.put(packed)
    return {"name": "train", "package": packed.cid, "script": "train.py", **more}


async def job(desk: MeshDesk) -> dict[str, Any]:
    [found] = await ask(desk, "job_list")
    return dict(found)


@story
async def test_a_script_runs_where_it_was_submitted_and_its_files_are_kept_elsewhere(machines: Machines) -> None:
    one = await machines.start("one")
    two = await joined(machines, "two", one)
    mine, other = await runs_of(machines, one), await runs_of(machines, two)
    begun = await ask(one, "job_submit", spec=spec(machines, mine, words=["--fast"], environ={"A": "b"}))
    await until(lambda: FakeProcess.living)
    [process] = FakeProcess.living
    assert process.words[2:] == ["--fast"] and process.environ["A"] == "b"
    await until(lambda: other.packages.shelf.cids())
    process.over(FAILED_STATUS)
    await until(lambda: other.runs() and next(iter(other.runs().values()))[1].state == "failed")
    told = await job(two)
    assert (told["job"], told["exit_code"], told["restarts"]) == (begun["job"], 3, 0)
    read = await ask(two, "job_logs", job="train")
    assert (read["data"], read["over"], read["trouble"]) == (b"hello\n", True, "")


@story
async def test_who_keeps_the_files_of_a_job_knows_of_it_before_gossip_tells(machines: Machines) -> None:
    """Its host may be lost right after it has said that it runs."""
    one = await machines.start("one")
    two = await joined(machines, "two", one)
    mine, other = await runs_of(machines, one), await runs_of(machines, two)
    await until(lambda: len(one.peer.gossip.community.states()) == 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(community, "FLOOD_S", 1000.0)
        begun = await ask(one, "job_submit", spec=spec(machines, mine))
    assert [key.hex() for key in other.runs()] == [begun["job"]] and other.packages.shelf.cids()


@story
async def test_a_job_goes_on_at_the_next_node_as_often_as_it_may(machines: Machines) -> None:
    one = await machines.start("one")
    two, three = await joined(machines, "two", one), await joined(machines, "three", one)
    desks = {desk.peer_id: desk for desk in (one, two, three)}
    runs = {desk.peer_id: await runs_of(machines, desk) for desk in desks.values()}
    await until(lambda: all(len(desk.peer.gossip.community.states()) == 3 for desk in desks.values()))
    await ask(one, "job_submit", spec=spec(machines, runs[one.peer_id], max_restarts=1), on="two")
    await until(lambda: len(runs[one.peer_id].runs()) == 1)
    await until(lambda: len(next(iter(runs[one.peer_id].runs().values()))[1].holders) == 3)
    await desks.pop(two.peer_id).stop()
    await until(lambda: len(FakeProcess.living) == 1, 20.0)
    await asyncio.sleep(5)
    assert len(FakeProcess.living) == 1, "one of the others, and not both"
    told = await job(one)
    assert told["restarts"] == 1 and told["node"] in desks
    await desks.pop(told["node"]).stop()
    [last] = desks.values()
    await until(lambda: next(iter(runs[last.peer_id].runs().values()))[1].state == "failed", 20.0)
    told = await job(last)
    assert told["how"].endswith("was lost") and not FakeProcess.living


@story
async def test_a_job_is_stopped_from_anywhere(machines: Machines) -> None:
    one = await machines.start("one")
    two = await joined(machines, "two", one)
    mine = await runs_of(machines, one)
    await runs_of(machines, two)
    begun = await ask(one, "job_submit", spec=spec(machines, mine))
    await until(lambda: FakeProcess.living)
    await until(lambda: two.peer.gossip.community.replica.root() == one.peer.gossip.community.replica.root())
    await ask(two, "job_stop", job=begun["job"][:6])
    await until(lambda: not FakeProcess.living)
    told = await job(one)
    assert (told["state"], told["how"], told["exit_code"]) == ("stopped", "somebody stopped it", 143)
    with pytest.raises(ConfigError, match="no job is called"):
        await ask(two, "job_stop", job="nobody")


@story
async def test_jobs_of_who_is_revoked_end(machines: Machines) -> None:
    one = await machines.start("one")
    two = await joined(machines, "two", one)
    await runs_of(machines, one)
    theirs = await runs_of(machines, two)
    await ask(two, "job_submit", spec=spec(machines, theirs), on=one.peer_id)
    await until(lambda: FakeProcess.living)
    await ask(one, "revoke", peer=two.peer_id, reason="stolen")
    await until(lambda: not FakeProcess.living)
    told = await job(one)
    assert told["state"] == "stopped" and told["submitter"] == peer_text(two.peer.id)


@story
async def test_a_job_of_who_is_revoked_goes_on_nowhere_when_its_host_dies_too(machines: Machines) -> None:
    """Or revoking somebody would start its scripts anew on every node after the next."""
    one = await machines.start("one")
    two, three = await joined(machines, "two", one), await joined(machines, "three", one)
    mine, theirs, hosts = [await runs_of(machines, desk) for desk in (one, two, three)]
    await until(lambda: all(len(desk.peer.gossip.community.states()) == 3 for desk in (one, two, three)))
    hosts._look_at_revoked = lambda: None  # type: ignore[method-assign]  # it dies before it hears
    await ask(two, "job_submit", spec=spec(machines, theirs, max_restarts=-1), on="three")
    await until(lambda: FakeProcess.living and mine.runs())
    await ask(one, "revoke", peer=two.peer_id, reason="stolen")
    await three.stop()
    await until(lambda: mine.peer.gossip.community.states()[three.peer.id].value == "left")
    await asyncio.sleep(10)
    assert not mine._live and not mine._due, "the one that is out may run its own, alone"


@story
async def test_rows_of_jobs_that_no_process_could_run_are_nobodys_business(machines: Machines) -> None:
    """Whoever may write a row may write nonsense; `job list` goes on, and nobody tries to run it."""
    one = await machines.start("one")
    mine = await runs_of(machines, one)
    me = bytes(mine.me)
    for number, wrong in enumerate(
        ({"submitter": b"x"}, {"holders": [b""]}, {"script": "../x"}, {"words": ["\0"]}, {"environ": {"=": ""}})
    ):
        good = {"name": "n", "submitter": me, "host": me, "package": "p", "script": "s"}
        row = msgspec.msgpack.encode(good | wrong)
        mine.peer.gossip.write(JOB, bytes([number]) * 9, row)
    assert await ask(one, "job_list") == [] and not mine.runs()


@story
async def test_what_cannot_be_run_is_refused(machines: Machines) -> None:
    one = await machines.start("one")
    mine = await runs_of(machines, one)
    good = spec(machines, mine)
    wrongs: list[dict[str, Any]] = [{"script": "../x.py"}, {"script": "/x.py"}, {"words": [1]}, {"words": ["x" * 5000]}]
    for wrong in (*wrongs, {"words": ["a\0b"]}, {"environ": {"A=B": "c"}}):
        with pytest.raises(ConfigError):
            await ask(one, "job_submit", spec=good | wrong)
    with pytest.raises(LatticaError, match="to be had from nobody"):
        await ask(one, "job_submit", spec=good | {"package": "b" + "a" * 58})
    mine.draining = True
    with pytest.raises(LatticaError, match="this node is going"):
        await ask(one, "job_submit", spec=good)
    assert not FakeProcess.living and not mine.runs()


@story
async def test_a_node_that_may_only_submit_runs_no_job_of_others(machines: Machines) -> None:
    one = await machines.start("one")
    two = await joined(machines, "two", one, roles="submit")
    mine, other = await runs_of(machines, one), await runs_of(machines, two)
    with pytest.raises(PermissionDeniedError, match="execute"):
        await ask(one, "job_submit", spec=spec(machines, mine), on="two")
    await ask(two, "job_submit", spec=spec(machines, other))
    await until(lambda: len(FakeProcess.living) == 1)
