"""What the learner must know of an environment, and whether this example can play it at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gymnasium
from gymnasium.spaces import Box, Discrete


@dataclass(frozen=True, slots=True)
class Environment:
    """Sizes of the networks' two ends, and the mean return at which the environment's authors call it solved."""

    observation_size: int  # numbers in one observation, flattened
    actions: int
    target: float | None


class UnsuitableEnvironmentError(Exception):
    """There is no such environment here, or not one for this example; the message says what to try instead."""


def inspect(env_id: str) -> Environment:
    """Make the environment once, to learn its sizes before any worker starts.

    Raises UnsuitableEnvironmentError where it cannot be made, or its spaces are not Box and Discrete.
    """
    try:
        env = gymnasium.make(env_id)
    except (gymnasium.error.Error, ImportError) as error:
        raise UnsuitableEnvironmentError(
            f"gymnasium cannot make {env_id!r}: {error}\n"
            'This lists all it knows: python -c "import gymnasium; gymnasium.pprint_registry()"'
        ) from error
    observations, actions = env.observation_space, env.action_space
    env.close()
    if not isinstance(actions, Discrete):
        raise UnsuitableEnvironmentError(
            f"{env_id} takes actions from {actions}, but this example chooses one of a fixed number (Discrete). "
            "Try CartPole-v1 or Acrobot-v1."
        )
    if not isinstance(observations, Box):
        raise UnsuitableEnvironmentError(
            f"{env_id} shows observations from {observations}, but this example reads arrays of numbers (Box). "
            "Try CartPole-v1 or Acrobot-v1."
        )
    assert env.spec is not None, "gymnasium.make gives every environment its spec"
    return Environment(math.prod(observations.shape), int(actions.n), env.spec.reward_threshold)
