"""Work and pace are told apart, from run times alone."""

from __future__ import annotations

from random import Random

from lattica.scheduler.load import PACE_MAX
from lattica.scheduler.pace import FUNCTIONS_MAX, Pace, Work


def test_nothing_is_known_before_anything_ran() -> None:
    assert Work().expected_s(b"f") == 0 and Pace().pace == 1 and Pace().task_s == 0


def test_a_machine_that_runs_long_tasks_is_not_taken_for_a_slow_one() -> None:
    """Two machines alike. One gets nine in ten of the tasks of 10 s, the other nine in ten of those of 0.1 s."""
    rng, work, paces = Random(1), Work(), (Pace(), Pace())
    for _ in range(2000):
        function, seconds = rng.choice(((b"long", 10.0), (b"short", 0.1)))
        pace = paces[(function == b"short") ^ (rng.random() < 0.1)]
        run_s = rng.expovariate(1 / seconds)
        pace.ran(run_s, work.expected_s(function))
        work.ran(function, run_s, pace.pace)
    assert 0.6 < paces[0].pace / paces[1].pace < 1.6
    assert paces[0].task_s > 5 * paces[1].task_s


def test_twenty_machines_learn_who_is_fast_from_tasks_of_two_functions_sent_anywhere() -> None:
    rng = Random(2)
    speeds = [0.5 + 1.5 * n / 19 for n in range(20)]
    paces, submitters = [Pace() for _ in speeds], [Work() for _ in range(5)]
    for _ in range(20_000):
        work, n = rng.choice(submitters), rng.randrange(20)
        function, seconds = rng.choice(((b"one", 1.0), (b"other", 0.2)))
        run_s = rng.expovariate(1 / seconds) / speeds[n]
        paces[n].ran(run_s, work.expected_s(function))
        work.ran(function, run_s, paces[n].pace)
    scale = sum(pace.pace * speed for pace, speed in zip(paces, speeds)) / 20
    wrong = [abs(pace.pace * speed / scale - 1) for pace, speed in zip(paces, speeds)]
    assert sum(wrong) / 20 < 0.15 and 0.3 < scale < 3, f"scale {scale:.2f}, errors {wrong}"


def test_a_node_that_was_told_nonsense_says_at_most_the_largest_pace() -> None:
    pace = Pace()
    for _ in range(50):
        pace.ran(1000.0, 1e-6)
    assert pace.pace <= PACE_MAX


def test_functions_without_end_are_forgotten() -> None:
    work = Work()
    for n in range(2 * FUNCTIONS_MAX):
        work.ran(str(n).encode(), 1.0, 1.0)
    assert work.expected_s(b"0") == 0 and work.expected_s(str(2 * FUNCTIONS_MAX - 1).encode()) == 1
