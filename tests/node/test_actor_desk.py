"""What the desk of actors does on the word of its supervisor, and what comes in between."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lattica.actors.supervision import Plan
from lattica.node.actor_desk import ActorDesk

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
