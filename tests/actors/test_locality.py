"""Where a task's arguments lie, as its process sees it, and what is taken of whom only data is wanted from."""

from __future__ import annotations

from typing import Any

import pytest

from lattica.actors import values
from lattica.actors.records import Record, data_alone
from lattica.actors.refs import Hold, InPlace, ObjectRef, Releases
from lattica.actors.tasks import ELSEWHERE, HERE, INPUTS_MAX, NEAR_BYTES, inputs_of, place_of
from lattica.codec import messages as m

MIB = 1 << 20


def ref(size: int, offset: int = -1, at: int = ELSEWHERE) -> Any:
    found = ObjectRef(None, id=size.to_bytes(16, "big"))  # type: ignore[arg-type]
    hold = Hold(Releases(), found.id, offset, size)
    hold.at = at
    found._value = InPlace(hold)
    return found


def small() -> Any:
    found = ObjectRef(None, id=b"s" * 16)  # type: ignore[arg-type]
    found._value = b"small"
    return found


def test_small_arguments_are_no_reason_to_go_anywhere() -> None:
    assert place_of([]) is None
    assert place_of([small(), ref(NEAR_BYTES - 1, at=7)]) is None


@pytest.mark.parametrize(
    ("refs", "place"),
    [
        ([ref(MIB, at=7)], 7),
        ([ref(MIB, at=7), ref(2 * MIB, 4096)], HERE),
        ([ref(MIB, at=7), ref(MIB + 1, at=7), ref(2 * MIB, 4096), small()], 7),
        ([ref(MIB)], ELSEWHERE),
        ([ref(MIB // 2, at=7), ref(MIB // 2 + 1, at=8)], 8),
    ],
)
def test_most_of_large_arguments_decide(refs: list[Any], place: int) -> None:
    assert place_of(refs) == place


def test_large_arguments_by_value_lie_here() -> None:
    args = Hold(Releases(), b"a" * 16, 64, 3 * MIB)
    assert place_of([ref(MIB, at=7)], args) == HERE
    assert inputs_of([ref(MIB, at=7), small()], args) == [(b"a" * 16, 3 * MIB), (MIB.to_bytes(16, "big"), MIB)]


def test_a_node_is_told_of_the_largest() -> None:
    inputs = inputs_of([ref(MIB + each) for each in range(20)])
    assert [size for _, size in inputs] == [MIB + 19 - each for each in range(INPUTS_MAX)]


class Runtime:
    def failure(self, error: BaseException) -> Any:
        return m.Failed(values.dumps_error(error), [], True)  # type: ignore[arg-type]


def taken(*given: m.Value, refs: int = 1) -> list[m.Value]:
    record = Record(b"", [], [], [ref(each + 1) for each in range(refs)], refs, 0, False)
    return data_alone(Runtime(), record, list(given), "f")  # type: ignore[arg-type]


GOOD = values.dumps_data([1]).join()


@pytest.mark.parametrize(
    "value", [GOOD, m.WithRefs(GOOD, []), m.Failed(GOOD), m.InArena((1).to_bytes(16, "big"), 0, 10)]
)
def test_where_data_is_asked_for_data_is_taken(value: Any) -> None:
    assert taken(value) == [value]


@pytest.mark.parametrize(
    "answer",
    [
        [values.NONE],
        [m.WithRefs(values.NONE, [])],
        [m.Failed(values.NONE)],
        [m.Failed(b"")],
        [b""],
        [b"\x02bytes"],
        [],
        [GOOD, GOOD],
        [m.InArena(b"another's", 0, 10)],
    ],
)
def test_what_is_no_data_or_was_not_asked_for_is_a_failure_of_ours(answer: list[Any]) -> None:
    (failed,) = taken(*answer)
    assert isinstance(failed, m.Failed)
    assert failed.system


def test_one_failure_stands_for_several_results() -> None:
    assert taken(m.Failed(GOOD), refs=3) == [m.Failed(GOOD)]
    assert isinstance(taken(GOOD, values.NONE, refs=2)[0], m.Failed)
