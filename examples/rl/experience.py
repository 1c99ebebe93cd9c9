"""What rollouts hand to the learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from policy import Array


class Experience(NamedTuple):
    """Transitions, as arrays that all begin with (steps, environments)."""

    observations: Array  # (steps, environments, size)
    actions: NDArray[np.int64]  # from 0, whatever the environment counts from
    log_probabilities: Array  # of the actions, when they were chosen
    rewards: Array
    next_observations: Array  # where each action led: at an episode's end its last, not the first of the next
    terminated: NDArray[np.bool_]  # the episode is over: no reward can follow
    truncated: NDArray[np.bool_]  # it was only cut off, as by a time limit
    episode_returns: Array  # undiscounted, of the episode that this step ended; NaN where none did

    @property
    def steps(self) -> int:
        return self.rewards.size

    @property
    def finished_returns(self) -> list[float]:
        """Returns of the episodes that ended, in the order of their ends."""
        finished: list[float] = self.episode_returns[~np.isnan(self.episode_returns)].tolist()
        return finished


def join(parts: Sequence[Experience]) -> Experience:
    """Put the environments of several workers side by side."""
    return Experience(*(np.concatenate(arrays, axis=1) for arrays in zip(*parts)))
