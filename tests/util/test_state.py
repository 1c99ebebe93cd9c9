"""What runs, by Ray's names: rows that are dicts and have attributes, chosen by filters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lattica.errors import ConfigError
from lattica.util import state

ACTORS = [
    {"actor": f"{n:02x}", "class_name": kind, "state": life, "job": 1, "name": "", "namespace": "n", "pid": n,
     "restarts": 0, "how": ""}
    for n, (kind, life) in enumerate([("A", "PENDING"), ("A", "ALIVE"), ("B", "ALIVE"), ("B", "DEAD")])
]  # fmt: skip


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = SimpleNamespace(node_id=b"\x01" * 16, state={"actors": ACTORS}.__getitem__)
    monkeypatch.setattr(state.current, "get", lambda: runtime)


def test_rows_are_dicts_and_have_attributes() -> None:
    first = state.list_actors()[0]
    assert first.state == first["state"] == "PENDING_CREATION" and first.job_id == "00000001"
    assert first.node_id == "01" * 16
    with pytest.raises(AttributeError, match="nothing is known of 'colour'"):
        first.colour


def test_filters_choose_by_words_of_any_case_and_limit_ends_the_list() -> None:
    assert [one.actor_id for one in state.list_actors(filters=[("state", "=", "alive")])] == ["01", "02"]
    chosen = state.list_actors(filters=[("state", "=", "ALIVE"), ("class_name", "!=", "A")])
    assert [one.actor_id for one in chosen] == ["02"]
    assert len(state.list_actors(limit=3)) == 3
    for wrong in ([("state", ">", "ALIVE")], [("colour", "=", "red")], [("state", "=")]):
        with pytest.raises(ConfigError):
            state.list_actors(filters=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        state.list_actors(limit=0)


def test_one_is_found_by_its_id_and_none_is_none() -> None:
    found = state.get_actor("03")
    assert found is not None and found.state == "DEAD" and state.get_actor("ff") is None


def test_actors_are_counted_by_class_and_state() -> None:
    cluster = state.summarize_actors()["cluster"]
    assert cluster["total_actors"] == 4
    assert cluster["summary"]["B"]["state_counts"] == {"ALIVE": 1, "DEAD": 1}
