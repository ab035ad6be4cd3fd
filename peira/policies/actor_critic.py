"""Actor-critic policies over vector observations: Gaussian for continuous actions, categorical for discrete ones.

A policy reads raw observations: its normaliser is part of it, is saved with it, and moves only between batches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from peira.environments.normalise import ObservationNormaliser


def orthogonal_(layer: nn.Linear, gain: float, generator: torch.Generator | None) -> nn.Linear:
    """Orthogonal weights with the given gain and zero bias (Andrychowicz et al. 2021)."""
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def tanh_stack(sizes: Sequence[int], bias: bool, generator: torch.Generator | None) -> nn.Sequential:
    """Linear layers with a tanh after each; `sizes` runs from the input to the last hidden layer."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [orthogonal_(nn.Linear(fan_in, fan_out, bias=bias), math.sqrt(2), generator), nn.Tanh()]
    return nn.Sequential(*layers)


class ActorCritic(nn.Module, ABC):
    """An actor and a critic with separate tanh networks of the same shape.

    `hidden=()` gives a linear (on one-hot observations: tabular) policy. `version` rises with every parameter update.
    Weights are orthogonal with gain √2, the actor's head 0.01, the critic's 1.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        hidden: Sequence[int] = (64, 64),
        bias: bool = True,
        normalise: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.observation_size, self.action_size = observation_size, action_size
        self.hidden, self.bias = tuple(hidden), bias
        self.id, self.version = "", 0
        self.normaliser = ObservationNormaliser(observation_size) if normalise else None
        sizes = (observation_size, *hidden)
        self.actor_body = tanh_stack(sizes, bias, generator)
        self.actor_head = orthogonal_(nn.Linear(sizes[-1], action_size, bias=bias), 0.01, generator)
        self.critic_body = tanh_stack(sizes, bias, generator)
        self.critic_head = orthogonal_(nn.Linear(sizes[-1], 1, bias=bias), 1.0, generator)

    def normalised(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch obs"]:
        return observation if self.normaliser is None else self.normaliser(observation)

    def features(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch features"]:
        """Last hidden layer of the actor; the normalised observation itself where there is no hidden layer."""
        return self.actor_body(self.normalised(observation))

    @abstractmethod
    def distribution(self, observation: Float[Tensor, "*batch obs"]) -> Distribution:
        """π(· | observation)."""

    @abstractmethod
    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "*shape choices"]:
        """The randomness of one choice for each place of `shape`; drawn at once for a whole rollout."""

    @abstractmethod
    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch choices"]
    ) -> Shaped[Tensor, "*chosen"]:
        """The action from π(· | observation) that this noise stands for: a function without chance of its own."""

    def sample(
        self, observation: Float[Tensor, "*batch obs"], generator: torch.Generator
    ) -> Shaped[Tensor, "*chosen"]:
        """An action drawn from π(· | observation)."""
        return self.choose(observation, self.noise(observation.shape[:-1], generator))

    @abstractmethod
    def mode(self, observation: Float[Tensor, "*batch obs"]) -> Shaped[Tensor, "*action"]:
        """The most likely action: the mean, or the arg max."""

    def act(
        self, observation: Float[Tensor, "*batch obs"], generator: torch.Generator
    ) -> tuple[Shaped[Tensor, "*action"], Float[Tensor, "*batch"]]:
        """A sampled action and its log-probability (log-density, summed over action dimensions)."""
        with torch.no_grad():
            action = self.sample(observation, generator)
            return action, self.log_prob(observation, action)

    def log_prob(
        self, observation: Float[Tensor, "*batch obs"], action: Shaped[Tensor, "*action"]
    ) -> Float[Tensor, "*batch"]:
        """log π(action | observation), summed over action dimensions."""
        return self.distribution(observation).log_prob(action)

    def entropy(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch"]:
        """Entropy of π(· | observation) in nats."""
        return self.distribution(observation).entropy()

    def value(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch"]:
        """The critic's estimate of the discounted (scaled) return from here."""
        return self.critic_head(self.critic_body(self.normalised(observation))).squeeze(-1)

    def actor_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that decide actions, by name: everything but the critic."""
        return {n: p for n, p in self.named_parameters() if not n.startswith("critic_")}

    def description(self) -> dict:
        """What `load` needs, besides the tensors, to build this policy again."""
        return {
            "class": type(self).__name__,
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "hidden": list(self.hidden),
            "bias": self.bias,
            "normalise": self.normaliser is not None,
        }

    def get_extra_state(self) -> dict:
        return {"id": self.id, "version": self.version}

    def set_extra_state(self, state: dict) -> None:
        self.id, self.version = state["id"], state["version"]


class GaussianActorCritic(ActorCritic):
    """π(a | s) = N(mean(s), diag exp(2 log_std)): independent dimensions, a standard deviation that no state changes.

    The mean is not squashed. Actions are unclipped samples; the environment clips what it executes.
    """

    def __init__(self, observation_size: int, action_size: int, **options):
        super().__init__(observation_size, action_size, **options)
        self.log_std = nn.Parameter(torch.zeros(action_size))

    def distribution(self, observation: Float[Tensor, "*batch obs"]) -> Independent:
        mean = self.actor_head(self.features(observation))
        return Independent(
            Normal(mean, self.log_std.exp().expand_as(mean), validate_args=False), 1, validate_args=False
        )

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "*shape choices"]:
        return torch.randn(*shape, self.action_size, generator=generator)

    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch choices"]
    ) -> Float[Tensor, "*batch choices"]:
        return torch.addcmul(self.mode(observation), noise, self.log_std.exp())

    def mode(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch action"]:
        return self.actor_head(self.features(observation))


class CategoricalActorCritic(ActorCritic):
    """π(a | s) = softmax(logits(s))_a over `action_size` discrete actions."""

    def distribution(self, observation: Float[Tensor, "*batch obs"]) -> Categorical:
        return Categorical(logits=self.actor_head(self.features(observation)), validate_args=False)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "*shape choices"]:
        # Gumbel noise: the arg max of logits + noise is a draw from the softmax.
        return -torch.empty(*shape, self.action_size).exponential_(generator=generator).log_()

    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch choices"]
    ) -> Shaped[Tensor, "*batch"]:
        return (self.actor_head(self.features(observation)) + noise).argmax(-1)

    def mode(self, observation: Float[Tensor, "*batch obs"]) -> Shaped[Tensor, "*batch"]:
        return self.actor_head(self.features(observation)).argmax(-1)
