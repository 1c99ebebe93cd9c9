"""Playing: the policy in some environments, and what came of it."""

from __future__ import annotations

import gymnasium
import numpy as np
from experience import Experience
from numpy.typing import NDArray
from policy import Array, Weights, log_probabilities, logits


class Rollout:
    """Plays `envs` copies of an environment; episodes go on from one call to the next."""

    def __init__(self, env_id: str, envs: int, seed: np.random.SeedSequence) -> None:
        # SAME_STEP: the step that ends an episode also begins the next, with the last observation in `final_obs`, so
        # each step is a true transition. In gymnasium's default mode the first step after an episode is not.
        same_step = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        self._envs = gymnasium.make_vec(env_id, envs, vectorization_mode="sync", vector_kwargs=same_step)
        self._first_action = int(self._envs.single_action_space.start)
        self._rng = np.random.default_rng(seed)
        observations, _ = self._envs.reset(seed=[int(s) for s in seed.generate_state(envs)])
        self._observations = _flat(observations)
        self._returns = np.zeros(envs)

    def sample(self, weights: Weights, steps: int) -> Experience:
        """Take `steps` steps in every environment, with actions drawn from the policy that `weights` describe."""
        envs, size = self._observations.shape
        choices = weights[-1][1].size
        # The argmax of logits plus Gumbel noise is a draw from their softmax; noise can be drawn ahead, all at once.
        noise = self._rng.gumbel(size=(steps, envs, choices)).astype(np.float32)
        scores = np.empty((steps, envs, choices), np.float32)
        observations, next_observations = np.empty((2, steps, envs, size), np.float32)
        actions = np.empty((steps, envs), np.int64)
        rewards = np.empty((steps, envs), np.float32)
        terminated, truncated = np.empty((2, steps, envs), np.bool_)
        episode_returns = np.full((steps, envs), np.nan, np.float32)

        for t in range(steps):
            observations[t] = self._observations
            scores[t] = logits(weights, self._observations)
            actions[t] = (scores[t] + noise[t]).argmax(axis=-1)
            begun, rewards[t], terminated[t], truncated[t], info = self._envs.step(actions[t] + self._first_action)
            self._observations = next_observations[t] = _flat(begun)
            self._returns += rewards[t]
            for env in np.flatnonzero(terminated[t] | truncated[t]):
                next_observations[t, env] = np.ravel(info["final_obs"][env])
                episode_returns[t, env] = self._returns[env]
                self._returns[env] = 0.0

        return Experience(
            observations,
            actions,
            log_probabilities(scores, actions),
            rewards,
            next_observations,
            terminated,
            truncated,
            episode_returns,
        )


def _flat(observations: NDArray[np.generic]) -> Array:
    return observations.reshape(len(observations), -1).astype(np.float32)
