"""Who founds, returns, joins and is left alone."""

from __future__ import annotations

from lattica.launch.plan import Plan, Seen, plan_up, surplus


def test_of_new_hosts_the_first_founds_and_the_others_join() -> None:
    assert plan_up([Seen("a"), Seen("b"), Seen("c")]) == Plan("", "a", (), (), ("b", "c"), {})


def test_what_runs_stays_and_what_was_in_the_mesh_returns_without_a_ticket() -> None:
    hosts = [Seen("new"), Seen("a", True, "m", True), Seen("killed", False, "m")]
    assert plan_up(hosts) == Plan("m", None, ("a",), ("killed",), ("new",), {})


def test_a_mesh_that_sleeps_is_woken_by_a_member_that_can_admit_the_others() -> None:
    """A new host was put at the top of the file, and the first member is no issuer: neither may found another mesh."""
    hosts = [Seen("new"), Seen("plain", False, "m"), Seen("issuer", False, "m", True)]
    assert plan_up(hosts) == Plan("m", "issuer", (), ("plain",), ("new",), {})


def test_without_an_issuer_any_member_wakes_the_mesh() -> None:
    assert plan_up([Seen("new"), Seen("a", False, "m"), Seen("b", False, "m")]).first == "a"


def test_who_is_in_another_mesh_is_left_alone() -> None:
    hosts = [Seen("odd", False, "other", True), Seen("a", True, "m"), Seen("b", True, "m"), Seen("far", True, "other")]
    assert plan_up(hosts) == Plan("m", None, ("a", "b"), (), (), {"odd": "other", "far": "other"})


def test_the_mesh_of_the_anchor_is_the_clusters_even_against_more() -> None:
    hosts = [Seen("node-0", True, "mine"), Seen("node-1", False, "old"), Seen("node-2", False, "old")]
    assert plan_up(hosts, "node-0") == Plan("mine", None, ("node-0",), (), (), {"node-1": "old", "node-2": "old"})


def test_an_anchor_without_a_mesh_enters_that_of_the_others() -> None:
    hosts = [Seen("node-0"), Seen("node-1", False, "old"), Seen("node-2", False, "old", True)]
    assert plan_up(hosts, "node-0") == Plan("old", "node-2", (), ("node-1",), ("node-0",), {})


def test_nothing_is_planned_for_nobody() -> None:
    assert plan_up([]) == Plan("", None, (), (), (), {})


def test_surplus_is_what_the_file_does_not_name() -> None:
    assert surplus(["c", "a", "b"], {"a"}) == ["b", "c"]
