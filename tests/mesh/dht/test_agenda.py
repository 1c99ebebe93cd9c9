"""What is due when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.dht.agenda import Agenda


def test_what_was_put_off_is_due_once_and_at_its_last_time() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.put("a", 1.0)
    agenda.put("b", 2.0)
    agenda.put("a", 3.0)
    assert (agenda.next(), agenda.take(2.5), agenda.next()) == (2.0, ["b"], 3.0)
    assert (agenda.take(3.0), agenda.next(), len(agenda)) == (["a"], None, 0)


def test_what_was_dropped_is_never_due() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.put("a", 1.0)
    agenda.drop("a")
    assert agenda.next() is None and agenda.take(9.0) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100) | st.none()), max_size=300), st.floats(0, 100))
def test_whatever_is_put_and_dropped_it_takes_what_is_due_in_order(
    steps: list[tuple[int, float | None]], now: float
) -> None:
    agenda: Agenda[int] = Agenda()
    due: dict[int, float] = {}
    for what, when in steps:
        if when is None:
            agenda.drop(what)
            due.pop(what, None)
        else:
            agenda.put(what, when)
            due[what] = when
        agenda.validate()
    assert agenda.next() == min(due.values(), default=None)
    taken = agenda.take(now)
    assert sorted(taken) == sorted(what for what, when in due.items() if when <= now)
    assert [due[what] for what in taken] == sorted(due[what] for what in taken)
