"""Sides that are two processes: verdicts, ratios, and that whatever goes wrong with one is told and has an end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The scripts of benchmarks/ import one another as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__("mesh_lines")


@pytest.fixture
def table(lines: ModuleType) -> ModuleType:
    return __import__("pair_table")


@pytest.fixture
def pairs(lines: ModuleType) -> ModuleType:
    return __import__("pairs")


def sitting(lines: ModuleType, table: ModuleType, ours: float | None, floor: float) -> Any:
    by_side = {
        "lattica": [lines.Measure("calls", ours, "1/s", {"lost": 2}), lines.Measure(lines.CALL_P50, 20.0, "us")],
        "plain TCP": [lines.Measure("calls", floor, "1/s"), lines.Measure(lines.CALL_P50, 10.0, "us")],
    }
    return table.Sitting("here", by_side, {"calls": 1_000}, share_of_floor=0.7)


@pytest.mark.parametrize(
    ("ours", "floor", "met"), [(1_000, 9_999, True), (700, 1_000, True), (699, 1_000, False), (None, 1, False)]
)
def test_a_promise_is_kept_by_its_figure_or_by_a_share_of_the_floor(
    lines: ModuleType, table: ModuleType, ours: float | None, floor: float, met: bool
) -> None:
    found = sitting(lines, table, ours, floor)
    assert found.met("calls") is met
    assert found.missed == ([] if met else ["calls"])
    assert found.met(lines.CALL_P50) is None, "nothing is promised"


def test_a_ratio_says_how_many_times_better_lattica_is(lines: ModuleType, table: ModuleType) -> None:
    found = sitting(lines, table, 500, 1_000)
    assert found.ratio("calls", "plain TCP") == found.ratio(lines.CALL_P50, "plain TCP") == "0.50×"


def test_what_failed_stands_beside_the_rate_and_below_the_table(lines: ModuleType, table: ModuleType) -> None:
    text = sitting(lines, table, 500, 1_000).as_text()
    assert "500 (2 failed)" in text
    assert "failed, lattica, calls: 2 × lost" in text


def test_runs_of_a_side_become_their_median_and_all_their_failures(lines: ModuleType, table: ModuleType) -> None:
    runs = [[lines.Measure("calls", value, "1/s", {"lost": 1})] for value in (10.0, None, 30.0, 20.0)]
    assert table.median_of(runs) == [lines.Measure("calls", 20.0, "1/s", {"lost": 4})]


def test_measures_are_read_from_among_a_scripts_other_words(lines: ModuleType) -> None:
    sent = lines.Measure("calls", 1.5, "1/s", {"lost": 1})
    assert list(lines.read_measures(f"hello\n{sent.to_json()}\n")) == [sent]


def start(place: str, command: Sequence[str], options: Mapping[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, **options)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise SystemExit('no port')", "exit code 1: no port"),
        ("import time; time.sleep(60)", "no ticket within 1 s"),
        (
            "open(ticket, 'w').close()\nif verb == 'load': raise SystemExit(7)\nimport time; time.sleep(60)",
            "exit code 7",
        ),
        ("open(ticket, 'w').close(); import time; time.sleep(60)", "no end after 1 s"),
        ("open(ticket, 'w').close()\nif verb == 'serve': import time; time.sleep(60)", "did not measure it"),
    ],
)
def test_a_side_that_goes_wrong_says_how_in_every_line_and_ends(
    pairs: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    monkeypatch.setattr(pairs, "TICKET_TIMEOUT_S", 1.0)
    monkeypatch.setattr(pairs, "LOAD_TIMEOUT_S", 1.0)
    file = tmp_path / "side.py"
    file.write_text(f"import sys\nverb, ticket = sys.argv[1], sys.argv[3]\n{script}\n")
    side = pairs.PairSide("side", Path(sys.executable), file)
    found = pairs.run_pair(side, start, "127.0.0.1:1")
    assert [each.name for each in found] == list(pairs.LINES)
    assert all(each.value is None and any(said in what for what in each.errors) for each in found), found


@pytest.mark.e2e
def test_what_a_side_measured_before_it_failed_counts(pairs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "side.py"
    file.write_text(
        "import json, sys, time\n"
        "open(sys.argv[3], 'w').close()\n"
        "if sys.argv[1] == 'serve': time.sleep(60)\n"
        f"print(json.dumps(dict(name={pairs.LINES[0]!r}, value=1, unit='us')))\n"
        "raise SystemExit(1)\n"
    )
    found = pairs.run_pair(pairs.PairSide("side", Path(sys.executable), file), start, "127.0.0.1:1")
    assert [each.value for each in found] == [1] + [None] * (len(pairs.LINES) - 1)
