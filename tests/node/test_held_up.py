"""A program that waits for what actors hold is told so, once; one that waits behind tasks is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lattica.codec import messages as m
from lattica.node.clients import DRIVER
from lattica.node.held_up import HeldUp, why
from lattica.node.proxies import Proxy
from lattica.scheduler.resources import ResourceSet

ONE, TWO = ResourceSet.of({"CPU": 1}), ResourceSet.of({"CPU": 2, "memory": 1 << 30})


def test_what_actors_leave_is_enough_or_it_is_said_who_holds_how_much() -> None:
    assert why("f", ONE, TWO, [("Learner", ONE)]) == ""
    assert why("f", ONE, TWO, [("Learner", ResourceSet({})), ("Actor", ResourceSet({}))]) == ""
    said = why("f", ONE, TWO, [("Learner", ONE), ("Actor", ONE), ("Idle", ResourceSet({}))])
    assert said.startswith("f waits for 1 CPU: actors hold 2 of the 2 of this machine")
    assert "(1 Learner, 1 Actor)" in said
    assert why("", ResourceSet.of({"memory": 2}), TWO, [("A", ResourceSet.of({"memory": 1 << 30}))])


def held_up(*, arrived: float, actor: bool, far: bool = False) -> tuple[HeldUp, list[Any]]:
    told: list[Any] = []
    driver = SimpleNamespace(number=1, kind=DRIVER, wire=Proxy("x", lambda *_: None) if far else None, send=told.append)
    request = SimpleNamespace(name="f", job=7, resources=ONE, arrived=arrived, within=b"")
    lease = SimpleNamespace(worker=2, request=SimpleNamespace(name="Learner", resources=TWO))
    node: Any = SimpleNamespace(
        now=lambda: 100.0,
        book=SimpleNamespace(leases={1: lease}, queued=lambda: [request, request]),
        actor_desk=SimpleNamespace(supervisor=SimpleNamespace(actor_of=lambda worker: b"a" if actor else None)),
        jobs={7: SimpleNamespace(driver=1)},
        clients={1: driver},
        resources=SimpleNamespace(total=TWO),
    )
    return HeldUp(node), told


def test_a_driver_is_told_once_and_only_of_what_has_waited_for_actors() -> None:
    for arrived, actor, far, times in (
        (90.0, True, False, 1),
        (99.0, True, False, 0),
        (90.0, False, False, 0),
        (90.0, True, True, 0),
    ):
        desk, told = held_up(arrived=arrived, actor=actor, far=far)
        desk.look(5.0)
        desk.look(5.0)
        assert len(told) == times, (arrived, actor, far)
        assert all(isinstance(line, m.LogLines) and "f waits for 1 CPU" in line.lines[0] for line in told)
