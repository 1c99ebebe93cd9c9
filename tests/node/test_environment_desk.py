"""Variants of a job on a node, and leases that wait for what must be installed first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.node import installation
from lattica.node.clients import Job
from lattica.node.environment_desk import AGAIN_S, EnvironmentDesk, behind_modules
from lattica.scheduler.environments import Environment, Installs, encode, key_of

JOB, DRIVER = 1, 2
PACKAGES = Environment({"A": "secret"}, installs=Installs("pip", ("numpy",)), timeout_s=60.0)


class Installer:
    """Stands for the process. made: all of them."""

    made: list[Installer]

    def __init__(
        self,
        loop: Any,
        wanted: bytes,
        timeout_s: float,
        said: Callable[[dict[str, Any]], None],
        ended: Callable[[str], None],
    ) -> None:
        self.pid, self.wanted, self.timeout_s, self.said, self.ended = 7, wanted, timeout_s, said, ended
        self.closed = ""
        self.made.append(self)

    def close(self, reason: str) -> None:
        self.closed = reason


class House:
    """A node with one job, whose driver hears, and whose lease desk is told."""

    def __init__(self) -> None:
        self.time, self.told, self.prepared = 0.0, list[Any](), list[tuple[Any, str]]()
        numbers = iter(range(10, 99))
        self.job = Job(JOB, DRIVER, 3, "/usr/bin/python3", ["/lib"], "/", "t.py", "space", True, 0.0, [])
        self.node: Any = SimpleNamespace(
            jobs={JOB: self.job},
            now=lambda: self.time,
            loop=SimpleNamespace(call_soon=lambda call, *args: call(*args)),
            pool=SimpleNamespace(lean=set()),
            job_desk=SimpleNamespace(next_number=lambda: next(numbers)),
            lease_desk=SimpleNamespace(prepared=lambda lease, reason: self.prepared.append((lease, reason))),
            settings=SimpleNamespace(hidden="[]"),
            tell=lambda client, message: self.told.append((client, message)),
            closing=False,
        )
        self.desk = EnvironmentDesk(self.node)
        self.client: Any = SimpleNamespace(job=JOB)

    def tell(self, environment: Environment) -> int:
        key = key_of(environment)
        self.desk.told(self.client, m.EnvironmentIs(key, encode(environment)))
        return self.desk.job_for(JOB, key)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    Installer.made = []
    monkeypatch.setattr(installation, "Installation", Installer)
    return House()


def test_an_environment_is_one_variant_whoever_asks_for_it_and_ends_with_its_job(house: House) -> None:
    one = house.tell(Environment({"A": "1"}))
    house.client.job = one
    assert house.tell(Environment({"A": "1"})) == one != house.tell(Environment({"A": "2"}))
    assert house.tell(Environment()) == JOB, "that of the job itself"
    assert house.node.jobs[one].environment.env_vars == {"A": "1"} and house.node.jobs[one].family == JOB
    assert house.desk.family(JOB) == house.desk.family(one) == [JOB, one, one + 1]
    assert house.node.pool.lean == {one, one + 1}, "their free workers go when they are idle"
    for number in (one, one + 1, JOB):
        house.desk.forgotten(number)
    assert not house.node.pool.lean and not house.desk._variants


def test_a_process_is_believed_neither_keys_nor_folders(house: House) -> None:
    with pytest.raises(RemoteProtocolError, match="key is another's"):
        house.desk.told(house.client, m.EnvironmentIs(b"k" * 16, encode(Environment({"A": "1"}))))
    stranger = Environment({"A": "1"}, shelf="/root/.ssh")
    with pytest.raises(RemoteProtocolError, match="no folder of a driver"):
        house.desk.told(house.client, m.EnvironmentIs(key_of(stranger), encode(stranger)))
    with pytest.raises(RemoteProtocolError, match="has not told of"):
        house.desk.job_for(JOB, b"k" * 16)


def test_leases_wait_until_it_is_installed_once_for_all(house: House, tmp_path: Path) -> None:
    job = house.node.jobs[house.tell(PACKAGES)]
    one, two = SimpleNamespace(), SimpleNamespace()
    assert house.desk.wait(one, job) and house.desk.wait(two, job) and house.desk.awaits(two)  # type: ignore[arg-type]
    (installer,) = Installer.made
    assert installer.timeout_s == 60.0 and b"secret" not in installer.wanted
    installer.said({"say": "installing numpy"})
    assert house.told == [(DRIVER, m.LogLines("lattica", 7, 2, ["installing numpy"]))]
    (tmp_path / "venv").mkdir()
    installer.said({"python": "/v/bin/python", "site": "/v/site", "folder": str(tmp_path / "venv")})
    assert not house.prepared, "its process has not ended"
    installer.ended("")
    assert house.prepared == [(one, ""), (two, "")] and not house.desk.awaits(one)  # type: ignore[arg-type]
    assert not house.desk.wait(one, job) and job.venv.python == "/v/bin/python"  # type: ignore[arg-type]
    other = house.node.jobs[house.tell(Environment({"B": "1"}, installs=PACKAGES.installs))]
    assert not house.desk.wait(one, other) and len(Installer.made) == 1, "variables are no matter for that"  # type: ignore[arg-type]
    house.desk.close()


def test_what_cannot_be_installed_fails_those_who_wait_and_is_tried_again_later(house: House) -> None:
    job = house.node.jobs[house.tell(PACKAGES)]
    lease: Any = SimpleNamespace()
    house.desk.wait(lease, job)
    Installer.made[0].said({"failed": "No matching distribution"})
    Installer.made[0].ended("")
    assert house.prepared == [(lease, "No matching distribution")]
    assert house.desk.wait(lease, job) and house.prepared[1:] == [(lease, "No matching distribution")]
    house.time += AGAIN_S
    assert house.desk.wait(lease, job) and len(Installer.made) == 2 and len(house.prepared) == 2
    Installer.made[1].ended("it took longer than setup_timeout_seconds=60")
    assert "longer than" in house.prepared[2][1]


def test_nobody_installs_for_a_job_that_is_over(house: House) -> None:
    house.job.environment = PACKAGES
    house.desk.begin(house.job)
    house.desk.begin(house.job)
    (installer,) = Installer.made
    house.desk.forgotten(JOB)
    assert installer.closed and not house.desk._venvs
    installer.ended("killed")
    assert house.prepared == []


def test_what_is_installed_stands_between_a_programs_modules_and_its_interpreters() -> None:
    found = ["/home/u", "/usr/lib/python3.11", "/usr/lib/python3/dist-packages", "/x/site-packages/"]
    assert behind_modules(found, "/v/site") == [*found[:2], "/v/site", *found[2:]]
    assert behind_modules(["/home/u"], "/v/site") == ["/home/u", "/v/site"]
