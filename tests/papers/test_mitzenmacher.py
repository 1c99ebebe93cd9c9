"""Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001, and
"How Useful Is Old Information?", IEEE TPDS 11(1), 2000.

One test for each claim that placement relies on: two choices are much better than one, and the best of all is worse
than either where what is known is old.
"""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random


def mean_time_s(choices: int, *, load: float, old_s: float, seed: int, servers: int = 100, tasks: int = 8_000) -> float:
    """Tasks arrive at `servers` alike; each looks at the queues of `choices` of them, as they were at the last board.

    The model of both papers: Poisson arrivals, exponential service of mean 1, first in, first out. old_s: between two
    boards (0: the truth).
    """
    rng, now, board_at = Random(seed), 0.0, 0.0
    free_at, queues, board = [0.0] * servers, [0] * servers, [0] * servers
    ends: list[tuple[float, int]] = []
    took = 0.0
    for _ in range(tasks):
        now += rng.expovariate(load * servers)
        while ends and ends[0][0] <= now:
            queues[heappop(ends)[1]] -= 1
        if now >= board_at:
            board, board_at = (list(queues), now + old_s) if old_s else (queues, 0.0)
        looked = rng.sample(range(servers), choices)
        chosen = min(looked, key=lambda server: board[server])
        free_at[chosen] = max(free_at[chosen], now) + rng.expovariate(1.0)
        queues[chosen] += 1
        heappush(ends, (free_at[chosen], chosen))
        took += free_at[chosen] - now
    return took / tasks


def test_two_choices_are_far_better_than_one_and_a_third_adds_little() -> None:
    """2001, the model: "Each customer chooses some constant d servers independently and uniformly at random from the n
    servers and waits for service at the one with the fewest customers". Its result in our words: from one choice to
    two the time falls exponentially, from two to three by a constant factor.
    """
    one, two, three = (mean_time_s(choices, load=0.9, old_s=0.0, seed=1) for choices in (1, 2, 3))
    assert two < one / 2, f"{one:.2f} with one choice, {two:.2f} with two"
    assert one - two > 2 * (two - three) > 0


def test_with_old_information_the_best_of_all_is_worse_than_chance_and_the_best_of_two_is_not() -> None:
    """2000, abstract: "having incoming tasks choose the least loaded of two randomly chosen processors is extremely
    effective over a large range of possible system parameters"; "having tasks go to the apparently least loaded server
    can significantly hurt performance".
    """
    for seed in (1, 2):
        chance, two, all_of_them = (mean_time_s(n, load=0.8, old_s=4.0, seed=seed) for n in (1, 2, 100))
        assert two < chance < all_of_them, f"seed {seed}: {chance:.2f}, {two:.2f}, {all_of_them:.2f}"
