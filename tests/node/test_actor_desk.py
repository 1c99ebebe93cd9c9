"""What the desk of actors does on the word of its supervisor, and what comes in between."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lattica.actors.supervision import Plan
from lattica.codec import messages as m
from lattica.node.actor_desk import ActorDesk
from lattica.node.names_desk import name_key
from lattica.node.seeds import read_paper
from lattica.testing.execution import Universe
from lattica.testing.scenarios import execution

ACTOR = b"an actor, 12"


def test_no_worker_is_sought_for_an_actor_of_which_a_later_life_is_met_when_its_row_is_written() -> None:
    """Writing the row of the next incarnation, the node sees what the table says by now."""
    node: Any = SimpleNamespace(clients={}, group_desk=None, store=SimpleNamespace(let_go=lambda _: None))
    desk = ActorDesk(node)

    def needs_worker(plan: Plan, incarnation: int) -> None:
        desk.fence(plan.actor, f"a later life than {incarnation} was met", goes_on=True)

    node.far = SimpleNamespace(detached=SimpleNamespace(needs_worker=needs_worker))
    desk.adopt(Plan(ACTOR, 1, b"", {}, "Model", detached=True, max_restarts=-1), 2)
    assert not desk.supervisor.actors and not desk._needs


def asked(unknown: int) -> list[Any]:
    """What a client hears that asks for an actor `unknown` looks before the node reads that it was made."""
    told: list[Any] = []
    later: list[Any] = []
    client: Any = SimpleNamespace(number=3, kind="worker", send=told.append)
    node: Any = SimpleNamespace(
        clients={3: client}, far=None, closing=False, tell=lambda _, message: told.append(message),
        loop=SimpleNamespace(call_later=lambda _s, do, *args: later.append(lambda: do(*args))),
    )  # fmt: skip
    desk = ActorDesk(node)
    desk.connect(client, m.ActorConnect(ACTOR))
    for look in range(100):
        if look == unknown:
            desk.supervisor.create(1, 1, Plan(ACTOR, 1, b"", {}, "Model"))
        if later:
            later.pop()()
    return told if not desk.supervisor.actors else [*told, 3 in desk.supervisor.actors[ACTOR].callers]


def test_a_worker_that_asks_for_an_actor_before_its_node_has_read_that_it_was_made_waits_for_it() -> None:
    """A driver says to its node that it wants an actor, and to a worker that it shall call that: who is read first?"""
    assert asked(0) == asked(5) == [True]
    (down,) = asked(1000)
    assert isinstance(down, m.ActorDown) and not down.restarting and "nobody held it any more" in down.how


def test_nothing_stays_of_a_detached_actor_whose_name_was_released_by_another_node() -> None:
    with Universe(1) as universe:
        act = execution.Play(universe, long=False)
        for name in ("n0", "n1"):
            act.land.start(name)
        universe.run(until=3)
        act.drive("n0")
        universe.run(until=4)
        act.scripts["n0"].acting = False
        while not any(actor.detached for actor in act.actors.values()):
            act.create(act.scripts["n0"])
        universe.run(until=8)
        actor = next(id for id, actor in act.actors.items() if actor.detached)
        node, other = act.land.node("n0"), act.land.node("n1")
        assert node is not None and other is not None and node.far is not None and other.far is not None
        job, deciding = node.actor_desk.supervisor.actors[actor].plan.job, other.far.deciding
        paper = read_paper(deciding.records[actor].spec)
        assert job in node.jobs and paper is not None

        def release() -> None:
            key = name_key(paper.namespace, paper.name)
            deciding.do(deciding.names.release(key, paper.claim, deciding.now()))

        other.unit.loop.do(release)
        universe.run(until=12)
        assert actor not in node.actor_desk.supervisor.actors and job not in node.jobs
        assert actor not in node.far.detached._seeds
