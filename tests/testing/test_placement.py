"""Placement without a head beside a scheduler that knows everything, in small; the module prints the large figures."""

from __future__ import annotations

import pytest

from lattica.testing import placement
from lattica.testing.placement import AT_DATA_MIN, Figures, Setting, Task, omniscient, simulate

SMALL = Setting(nodes=40, busy_s=12.0, warm_s=6.0)


def test_one_in_a_hundred_tasks_takes_little_longer_than_where_everything_is_known() -> None:
    """Ten times fewer tasks than the goal's figure (1.3) is made of, and less time to learn who is fast."""
    figures = simulate(7, SMALL)
    assert figures.ratio <= 1.45, figures
    assert figures.asks <= 1.5, "tasks go round asking"


def test_tasks_with_large_inputs_run_where_these_lie() -> None:
    figures = simulate(8, Setting(nodes=30, busy_s=5.0, warm_s=2.0, inputs=0.1))
    assert figures.at_data >= AT_DATA_MIN, figures


def test_the_same_seed_is_the_same_world() -> None:
    tiny = Setting(nodes=5, busy_s=3.0, warm_s=1.0)
    assert simulate(3, tiny) == simulate(3, tiny) != simulate(4, tiny)


def test_the_omniscient_takes_the_fastest_free_cpu_and_the_first_in_its_queue() -> None:
    tasks = [Task(0.0, 2.0, 0, None), Task(0.1, 2.0, 0, None), Task(0.2, 1.0, 0, None)]
    assert omniscient([(1, 0.5), (1, 2.0)], tasks) == pytest.approx([1.0, 4.0, 0.8 + 0.5])


def test_the_command_prints_each_seeds_ratio_and_names_those_that_miss_the_goal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def played(seed: int, _: Setting) -> Figures:
        return Figures(100, 0.7, 4.0 if seed == 8 else 3.0, 0.5, 3.0, 1.2, 1.0)

    monkeypatch.setattr(placement, "simulate", played)
    assert placement.main(["--seed", "7", "--seeds", "3"]) == 1
    said = capsys.readouterr()
    assert "seed 8" in said.out and ": 1.33 times" in said.out and said.err.rstrip().endswith("by seed 8")
    assert placement.main(["--seed", "7"]) == 0
