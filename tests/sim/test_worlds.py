"""Every simulated world holds for many seeds. One that fails prints its seed: `make sim SEED=n` replays it."""

from __future__ import annotations

import os

import pytest

from lattica.testing import sim
from lattica.testing.sim import main, scenario, world_names

SEEDS = range(1, 51)  # a race of one in twenty turns up in 92 of 100 such runs
FAILED_ONCE: dict[str, tuple[int, ...]] = {}  # seeds that ever found a bug, kept


@pytest.mark.parametrize("name", world_names())
def test_a_world_holds_for_many_seeds(name: str) -> None:
    play = scenario(name)[1]
    for seed in (*FAILED_ONCE.get(name, ()), *SEEDS):
        play(seed, False)


@pytest.mark.parametrize("name", world_names())
def test_a_world_is_the_same_for_the_same_seed(name: str) -> None:
    play = scenario(name)[1]
    one, two = play(7, False), play(7, False)
    assert (one.tally, one.now, list(one.trace)) == (two.tally, two.now, list(two.trace))


def test_the_command_lists_each_world_with_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == world_names() and all(len(line) > 30 for line in lines)


def test_the_command_plays_a_world_and_sums_it_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--world", world_names()[0]]) == 0
    assert f"{world_names()[0]:12} seed 3:" in capsys.readouterr().out


def test_a_world_that_fails_ends_the_command_with_1_and_says_how_to_replay_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(seed: int, long: bool) -> None:
        raise AssertionError("the roof is gone")

    monkeypatch.setattr(sim, "scenario", lambda name: ("", broken))
    assert main(["--seed", "9", "--world", world_names()[0]]) == 1
    out = capsys.readouterr().out
    assert "the roof is gone" in out and f"make sim SEED=9 ARGS='--world {world_names()[0]}'" in out


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LATTICA_LONG_SIM"), reason="long worlds: set LATTICA_LONG_SIM=1")
@pytest.mark.parametrize("name", world_names())
def test_a_long_world_holds(name: str) -> None:
    for seed in range(1, 6):
        scenario(name)[1](seed, True)
