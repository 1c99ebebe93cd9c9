"""`timeline()`: what ran, on whichever worker, also on those that are gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lattica
from tests.e2e.conftest import eventually

pytestmark = pytest.mark.usefixtures("two_cpus")


@lattica.remote
def fails(number: int) -> int:
    return 1 // number


@lattica.remote
class Waiter:
    async def nap(self) -> None: ...


@lattica.remote(max_concurrency=2)
class Pair:
    def meet(self) -> None: ...


def ran(name: str) -> list[dict[str, Any]]:
    return [event for event in lattica.timeline() or [] if event["name"] == name and event["ph"] in ("X", "b")]


def test_tasks_and_calls_of_every_kind_are_told_with_how_they_ended(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        lattica.get(fails.options(name="halves", max_retries=0).remote(0))
    done = fails.options(name="halves").remote(1)
    waiter, pair = Waiter.remote(), Pair.remote()
    lattica.get([done, waiter.nap.remote(), *(pair.meet.remote() for _ in range(3))])
    assert eventually(lambda: len(ran("halves")) == 2)
    assert sorted(event["args"]["failed"] for event in ran("halves")) == [False, True]
    assert done.hex() in {event["args"]["task_id"] for event in ran("halves")}
    assert eventually(lambda: len(ran("Pair.meet")) == 3 and len(ran("Waiter.nap")) == 1)
    lattica.timeline(str(tmp_path / "trace.json"))
    assert {"Waiter.__init__", "Pair.__init__"} <= {
        event["name"] for event in json.loads((tmp_path / "trace.json").read_text())
    }


def test_what_a_killed_actor_had_done_is_still_told() -> None:
    waiter = Waiter.options(name="short-lived").remote()
    before = len(ran("Waiter.nap"))
    lattica.get([waiter.nap.remote() for _ in range(5)])
    assert eventually(lambda: len(ran("Waiter.nap")) == before + 5), "they are stored once their replies are sent"
    lattica.kill(waiter)
    assert eventually(lambda: lattica.session.current.get().state("actors")[-1]["state"] == "DEAD")
    assert len(ran("Waiter.nap")) == before + 5
