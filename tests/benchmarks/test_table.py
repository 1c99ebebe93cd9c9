"""The benchmark's arithmetic: directions, verdicts, and a page whose other words stay as they were."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The scripts of benchmarks/ import one another as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__("table")


@pytest.fixture
def case(table: ModuleType) -> type:
    return table.Case


@pytest.mark.parametrize(("unit", "ours", "theirs"), [("1/s", 300.0, 10.0), ("us", 10.0, 300.0), ("MiB", 10.0, 300.0)])
def test_better_is_higher_for_rates_and_lower_for_times_and_memory(
    table: ModuleType, case: type, unit: str, ours: float, theirs: float
) -> None:
    line = table.Line(case("a case", ("row",), unit, target=30), ours, theirs, None)
    assert line.ratio == pytest.approx(30)
    assert line.met


def test_a_case_is_the_sum_of_its_rows_and_unknown_until_all_are_measured(case: type) -> None:
    start = case("start", ("import", "init"), "s")
    assert start.value({"import": 0.1, "init": 0.2}) == pytest.approx(0.3)
    assert start.value({"import": 0.1}) is None


def test_a_ratio_that_is_not_known_is_neither_met_nor_missed(table: ModuleType, case: type) -> None:
    assert table.Line(case("a case", ("row",), "s", target=8), 1.0, None, None).met is None


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.01234, "0.0123"), (1.0, "1"), (99.96, "100"), (123.4, "123"), (231_456.0, "231,000"), (None, "–")],
)
def test_values_are_shown_with_three_digits(table: ModuleType, value: float | None, words: str) -> None:
    assert table.shown(value) == words


def test_publishing_rewrites_only_what_stands_between_the_markers(table: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n")
    table.rewrite(page, "table", r"new \1")
    assert page.read_text() == "before\n<!-- table: begin -->\nnew \\1\n<!-- table: end -->\nafter\n"


def test_every_case_has_a_floor_that_is_known_and_a_name_of_its_own(table: ModuleType) -> None:
    cases = [case for part in __import__("cases").PARTS for case in part.cases]
    assert {case.floor for case in cases if case.floor} <= table.FLOORS.keys()
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.unit == table.FLOORS[case.floor].unit for case in cases if case.floor)
