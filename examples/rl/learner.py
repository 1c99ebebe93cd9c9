"""Proximal policy optimisation: experience in, better weights out.

Source: Schulman et al., "Proximal Policy Optimization Algorithms" (2017). What makes it work in practice (orthogonal
initialisation, normalised advantages, clipped gradients, Adam's epsilon, annealing) is told by Huang et al., "The 37
Implementation Details of Proximal Policy Optimization" (2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from experience import Experience
from numpy.typing import NDArray
from policy import Array, Weights
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Settings:
    """What PPO can be told. The defaults learn CartPole in seconds and are a fair start elsewhere."""

    rollout_steps: int = 128  # per environment and update; more: steadier gradients, staler data
    epochs: int = 10  # passes over the experience of one update
    minibatch: int = 256  # transitions
    hidden: int = 64  # units in each of the two layers
    learning_rate: float = 1e-3  # at the start; falls to 0 over the run, as do the clip range and the entropy bonus
    clip: float = 0.2  # how far an action's probability ratio may move before it earns nothing more
    entropy_bonus: float = 0.01  # keeps the policy from settling too early
    gamma: float = 0.99  # discount per step; higher looks further ahead and learns more slowly
    gae_lambda: float = 0.95  # 0 trusts the value network, 1 only what was seen
    gradient_norm: float = 0.5  # longest step of either network


def advantages(
    experience: Experience, values: Array, next_values: Array, *, gamma: float, gae_lambda: float
) -> NDArray[np.float32]:
    """How much better each action was than the policy's average, (steps, environments).

    Generalised advantage estimation (Schulman et al. 2016, §3). The end of an episode cuts the sum either way, but only
    where it *terminated* is the future worth nothing. Where it was truncated it would have gone on, so the value of its
    last observation stands for the rewards that nobody waited for.

    values, next_values: the value network's estimates at `observations` and `next_observations`, (steps, environments).
    """
    goes_on = ~(experience.terminated | experience.truncated)
    errors = experience.rewards + gamma * next_values * ~experience.terminated - values
    result = np.empty_like(errors)
    after = np.zeros_like(errors[0])
    for t in reversed(range(len(errors))):
        result[t] = after = errors[t] + gamma * gae_lambda * goes_on[t] * after
    return result


class Learner:
    """A policy network, a value network and the optimiser of both."""

    def __init__(self, observation_size: int, actions: int, settings: Settings, seed: int) -> None:
        torch.manual_seed(seed)
        torch.set_num_threads(1)  # networks this small are slower on two: handing work over costs more than doing it
        self._settings = settings
        self.policy = _network(observation_size, settings.hidden, actions, last_gain=0.01)  # near uniform at first
        self.value = _network(observation_size, settings.hidden, 1, last_gain=1.0)
        parameters = [*self.policy.parameters(), *self.value.parameters()]
        self._optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate, eps=1e-5, fused=True)

    def weights(self) -> Weights:
        """The policy, for the rollout workers. Shares memory with the network: `put` it before the next update."""
        linear = [layer for layer in self.policy if isinstance(layer, nn.Linear)]
        return tuple((layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in linear)

    def state(self) -> dict[str, Any]:
        """All that the next update depends on."""
        networks = {"policy": self.policy.state_dict(), "value": self.value.state_dict()}
        return networks | {"optimiser": self._optimiser.state_dict(), "random": torch.get_rng_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.policy.load_state_dict(state["policy"])
        self.value.load_state_dict(state["value"])
        self._optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])

    def update(self, experience: Experience, remaining: float) -> None:
        """Learn from `experience`; `remaining` falls from 1 to 0 over the run and takes the step sizes with it."""
        settings = self._settings
        for group in self._optimiser.param_groups:
            group["lr"] = settings.learning_rate * remaining
        observations = torch.from_numpy(experience.observations)
        with torch.no_grad():
            values = self.value(observations).squeeze(-1).numpy()
            next_values = self.value(torch.from_numpy(experience.next_observations)).squeeze(-1).numpy()
        gained = advantages(experience, values, next_values, gamma=settings.gamma, gae_lambda=settings.gae_lambda)
        targets = torch.from_numpy(gained + values).flatten()
        normalised = torch.from_numpy((gained - gained.mean()) / (gained.std() + 1e-8)).flatten()
        observations = observations.flatten(0, 1)
        actions = torch.from_numpy(experience.actions).flatten()
        old_log_probs = torch.from_numpy(experience.log_probabilities).flatten()

        for _ in range(settings.epochs):
            for batch in torch.randperm(len(actions)).split(settings.minibatch):
                log_probs = self.policy(observations[batch]).log_softmax(dim=-1)
                policy_loss = _policy_loss(
                    log_probs.gather(1, actions[batch, None]).squeeze(1),
                    old_log_probs[batch],
                    normalised[batch],
                    settings.clip * remaining,
                )
                entropy = -(log_probs.exp() * log_probs).sum(dim=-1).mean()
                value_loss = (self.value(observations[batch]).squeeze(-1) - targets[batch]).square().mean()
                loss = policy_loss - settings.entropy_bonus * remaining * entropy + 0.5 * value_loss
                self._optimiser.zero_grad()
                loss.backward()
                # Each network alone: the value's gradients are far larger, and would shrink the policy's to nothing.
                nn.utils.clip_grad_norm_(self.policy.parameters(), settings.gradient_norm)
                nn.utils.clip_grad_norm_(self.value.parameters(), settings.gradient_norm)
                self._optimiser.step()


def _policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    ratio = (log_probs - old_log_probs).exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()


def _network(inputs: int, hidden: int, outputs: int, last_gain: float) -> nn.Sequential:
    sizes = [(inputs, hidden, math.sqrt(2)), (hidden, hidden, math.sqrt(2)), (hidden, outputs, last_gain)]
    layers: list[nn.Module] = []
    for size_in, size_out, gain in sizes:
        linear = nn.Linear(size_in, size_out)
        nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])
