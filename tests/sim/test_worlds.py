"""Every simulated world holds for many seeds. One that fails prints its seed: `make sim SEED=n` replays it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lattica.testing import sim
from lattica.testing.sim import main, scenario, world_names
from lattica.testing.world import World

TOOK = r" in [0-9.]+ s;"
SEEDS = range(1, 51)  # a race of one in twenty turns up in 92 of 100 such runs; CI sweeps more (.ci/run)
SEEDS_OF = {  # of years, and of many peers, fewer
    "membership": range(1, 6),
    "community": range(1, 9),
    "deciding": range(1, 6),
    "execution": range(1, 3),
    "leases": range(1, 31),
    "dht": range(1, 2),
    "nats": range(3, 4),
    "pubsub": range(1, 11),
}
FAILED_ONCE: dict[str, tuple[int, ...]] = {  # seeds that ever found a bug, kept
    "sessions": (1023,),
    "community": (88, 192),
    "execution": (1068,),
    "dht": (4, 39, 106, 148),
}


SEEDS_AT_ONCE = 10
"""In one test: few enough that the workers of a run end at about the same time."""


LARGE = [["dht", "execution"], ["nats"]]
TWICE = [*LARGE, [name for name in world_names() if not any(name in names for names in LARGE)]]


def first_seed(name: str) -> int:
    """Played twice, to see that the world is the same; the others once."""
    return SEEDS_OF.get(name, SEEDS)[0]


def batches() -> Iterator[Any]:
    for name in world_names():
        seeds = [*SEEDS_OF.get(name, SEEDS), *FAILED_ONCE.get(name, ())][1:]
        for first in range(0, len(seeds), SEEDS_AT_ONCE):
            batch = seeds[first : first + SEEDS_AT_ONCE]
            yield pytest.param(name, batch, id=f"{name} from {batch[0]}")


@pytest.mark.parametrize(("name", "seeds"), list(batches()))
def test_a_world_holds_for_many_seeds(name: str, seeds: list[int]) -> None:
    play = scenario(name)[1]
    for seed in seeds:
        play(seed, False)


@pytest.mark.parametrize("names", TWICE, ids="-".join)
def test_worlds_are_the_same_in_another_process_that_hashes_strings_differently(names: list[str]) -> None:
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    (seed,) = {first_seed(name) for name in names}
    command = [sys.executable, "-m", "lattica.testing.sim", "--seed", str(seed)]
    command += [word for name in names for word in ("--world", name)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as elsewhere:
        here = [sim.play(name, seed, False) for name in names]
        assert not (failed := [played.failure for played in here if played.failure]), failed[0]
        lines = elsewhere.communicate()[0].splitlines()
    assert [re.sub(TOOK, "", line) for line in lines] == [re.sub(TOOK, "", str(played)) for played in here]
    assert elsewhere.returncode == 0


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


def test_a_sweep_plays_each_seed_in_several_processes_and_sums_them_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1-6", "--jobs", "2", "--world", "submission"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("submission   seeds 1-6: all held; ") and re.search(r"[\d,]+ steps, [\d,]+ a second$", line)


def test_a_sweep_names_the_seeds_that_failed_and_shows_how_the_first_ones_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(seed: int, long: bool) -> World:
        assert seed % 2, "the roof is gone"
        return World(seed)

    monkeypatch.setattr(sim, "scenario", lambda name: ("", broken))
    monkeypatch.setattr(sim, "PROGRESS_S", -1.0)
    assert main(["--seeds", "1-20", "--world", world_names()[0]]) == 1
    out = capsys.readouterr().out
    assert out.count("the roof is gone") == 2 * sim.FAILURES_SHOWN, "in the source line and in the message"
    assert f"{world_names()[0]:12} 20 of 20 seeds, 10 failed" in out
    assert "10 FAILED: 2, 4, 6, 8, 10, 12, 14, 16, 18, 20;" in out


def test_a_long_world_that_fails_is_replayed_as_a_long_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(seed: int, long: bool) -> World:
        assert not long, "too long"
        return World(seed)

    monkeypatch.setattr(sim, "scenario", lambda name: ("", broken))
    assert main(["--seed", "4", "--long", "--world", world_names()[0]]) == 1
    out = capsys.readouterr().out
    assert f"--seeds 4-4 --long --world {world_names()[0]}" in out and f"seeds 4-{3 + sim.LONG_SEEDS}: " in out


@pytest.mark.parametrize("text", ["a-b", "5-1", ""])
def test_a_range_of_seeds_that_is_none_is_refused_with_an_example(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--seeds", text])
    assert "write" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LATTICA_LONG_SIM"), reason="long worlds: set LATTICA_LONG_SIM=1")
@pytest.mark.parametrize("name", world_names())
def test_a_long_world_holds(name: str) -> None:
    for seed in range(1, 6):
        scenario(name)[1](seed, True)
