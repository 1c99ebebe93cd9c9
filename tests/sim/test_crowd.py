"""A large mesh keeps its promises: no false death, a death and a row known everywhere soon, few bytes when idle."""

from __future__ import annotations

import re

import pytest

from lattica.testing import crowd
from lattica.testing.crowd import Crowd, Figures, main, percentile


def test_a_hundred_and_twenty_peers_keep_all_promises_for_a_minute() -> None:
    """`make sim-long` has a thousand do so for ten."""
    figures = Crowd(seed=7, peers=120, seconds=60.0).run()
    assert figures.missed() == []
    assert len(figures.deaths) > 200 and len(figures.rows) > 500, "there was something to know"


def test_sixty_busy_peers_keep_them_too_and_know_each_other_s_load() -> None:
    figures = Crowd(seed=7, peers=60, seconds=30.0, busy=True).run()
    assert figures.missed() == []
    assert figures.load_age_s < 3.0


def test_the_same_seed_gives_the_same_figures() -> None:
    one, two = (Crowd(seed=3, peers=20, seconds=20.0).run() for _ in range(2))
    assert (one.steps, one.bytes_per_s, one.deaths, one.rows) == (two.steps, two.bytes_per_s, two.deaths, two.rows)


def test_each_promise_that_is_missed_is_named() -> None:
    figures = Figures(
        peers=2, seconds=1.0, busy=False, false_deaths=["p1 for p2 at 3.0 s"], deaths=[13.0], unknown_deaths=1,
        rows=[4.0], unknown_rows=2, idle_bytes_per_s=2000.0,
    )  # fmt: skip
    assert figures.missed() == [
        "1 false deaths: ['p1 for p2 at 3.0 s']",
        "1 deaths are not known",
        "a death is known after 13.0 s",
        "a row is known after 4.0 s",
        "2 rows are not known",
        "2,000 bytes a second",
    ]
    assert Figures(peers=2, seconds=1.0, busy=True, idle_bytes_per_s=19_000.0).missed() == []


def test_the_command_prints_the_figures_and_ends_with_1_if_a_promise_was_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--peers", "12", "--seconds", "20", "--busy"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("12 peers, 20 s, busy: 10.0 sessions each\n") and "MISSED" not in out
    assert re.search(r"a death is known +p50 [\d.]+ s, p99 [\d.]+ s", out) and "load known" in out
    monkeypatch.setattr(crowd, "ROW_KNOWN_S", 0.0)
    assert main(["--peers", "12", "--seconds", "20"]) == 1
    assert "  MISSED               a row is known after" in capsys.readouterr().out


def test_a_percentile_of_nothing_is_0() -> None:
    assert percentile([], 99) == 0.0 and percentile([1.0], 99) == 1.0
    assert percentile(list(map(float, range(100))), 50) == 50.0
