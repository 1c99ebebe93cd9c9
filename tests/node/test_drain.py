"""A node that goes waits for those who were given something of it a moment ago."""

from __future__ import annotations

from lattica.testing.execution import Universe
from lattica.testing.scenarios import execution

LARGE_BYTES = 300_000  # lies where it was made
ACTORS = 40  # what they ask for is drawn, and where they go with it


def _actor_elsewhere(act: execution.Play, script: execution.Script) -> execution.ActorHandle:
    """A handle of an actor of the driver's on n1."""
    node = act.land.node("n1")
    assert node is not None and node.far is not None
    for _ in range(ACTORS):
        act.create(script)
        act.universe.run(until=act.universe.now + 2)
        there = {hosted.actor for hosted in node.far.hosting.hosted.values()}
        for handle in script.handles:
            if handle._actor_id in there:
                return handle
    raise AssertionError("no actor lives on the other node")


def test_a_result_whose_caller_has_not_read_it_yet_is_handed_over_before_the_actors_node_goes() -> None:
    with Universe(3) as universe:
        act = execution.Play(universe, long=False)
        for name in ("n0", "n1"):
            act.land.start(name)
        universe.run(until=3)
        act.drive("n0")
        universe.run(until=4)
        script = act.scripts["n0"]
        driver, made = script.driver, list[tuple[execution.Plan, execution.ObjectRef] | None]()
        script.acting = False
        handle = _actor_elsewhere(act, script)
        driver.later(0, lambda: made.append(act.call(driver, handle)))
        driver.later(1, lambda: made.append(act.call(driver, handle)))  # there is a span now
        universe.run(until=universe.now + 1.001)
        assert made[-1] is not None
        plan, ref = made[-1]
        plan.size, plan.run_s, plan.boxed = LARGE_BYTES, 0.01, None
        script.refs[plan] = ref
        universe.run(until=universe.now + 0.005)
        driver.unit.stall(2.0)
        universe.run(until=universe.now + 0.5)
        assert plan.starts == 1
        node = act.land.node("n1")
        assert node is not None and node.drain is not None
        node.unit.loop.do(node.drain.begin, 0.0, "a test says so")
        act.drained = True
        universe.run(until=universe.now + 1.4)
        assert "n1" in act.land.living, "it does not wait for who sleeps"
        universe.run_until(lambda: "n1" not in act.land.living, within_s=5, missing=lambda: "n1 is still here")
        universe.run_until(lambda: script.check(plan), within_s=5, missing=lambda: "the value is not here")
        assert plan.outcome == "value"
