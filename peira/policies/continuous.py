"""Actors in bounded continuous spaces and their critics: stacks of ReLU layers over standardised observations.

What is public speaks the environment's units. Networks see standardised observations and actions in [−1, 1], "unit"
actions; the standardisation and the bounds are part of an actor and are saved with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LOG_STD_RANGE = (-20.0, 2.0)
_EDGE = 1 - 1e-6
"""Unit actions of a squashed density stay within ±this: at ±1 it has no finite logarithm."""


class ReLUStack(nn.Module):
    """Linear layers with ReLU between; `members` networks of one shape side by side, or one without that axis.

    Weights and biases are uniform ±1/√fan_in. `layer_norm` puts a layer normalisation before each ReLU (Ball et al.
    2023). A layer with one output is a product and a sum: matrix routines are slow on single columns. Where
    `half_products` is set, products between hidden layers and their gradients are taken in bfloat16 (8 bits of
    mantissa); parameters and all else stay in single precision. With AVX512-BF16 that takes half the time.
    """

    half_products = False

    def __init__(
        self,
        sizes: Sequence[int],
        members: int | None = None,
        *,
        layer_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.layer_norm = layer_norm
        stacked = () if members is None else (members,)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.gains, self.shifts = nn.ParameterList(), nn.ParameterList()
        row = (*stacked, *((1,) if stacked else ()))
        for fan_in, fan_out in pairwise(sizes):
            bound = 1 / math.sqrt(fan_in)
            for kept, shape in ((self.weights, (*stacked, fan_in, fan_out)), (self.biases, (*row, fan_out))):
                kept.append(nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator)))
        for width in sizes[1:-1] if layer_norm else ():
            self.gains.append(nn.Parameter(torch.ones(*row, width)))
            self.shifts.append(nn.Parameter(torch.zeros(*row, width)))

    def forward(
        self, x: Float[Tensor, "*batch inputs"], member: int | None = None
    ) -> Float[Tensor, "*stacked outputs"]:
        """What all members say of the same inputs, or the one named (nothing is computed of the others)."""

        def of(parameters: nn.ParameterList, layer: int) -> Tensor:
            return parameters[layer] if member is None else parameters[layer][member]

        last = len(self.weights) - 1
        for layer in range(last + 1):
            weight = of(self.weights, layer)
            single = weight.shape[-1] == 1
            if single:
                x = (x * weight.mT).sum(-1, keepdim=True)
            elif self.half_products and 0 < layer < last:
                x = (x.bfloat16() @ weight.bfloat16()).float()
            else:
                x = x @ weight
            x = x + of(self.biases, layer)
            if layer == last:
                break
            if self.layer_norm:
                x = F.layer_norm(x, x.shape[-1:]) * of(self.gains, layer) + of(self.shifts, layer)
            x = x.relu()
        return x


class ContinuousPolicy(nn.Module, ABC):
    """An actor for observations `[…, obs]` and actions within [low, high].

    Observations are standardised: (observation − offset) · scale, which `standardise` sets. `version` rises with every
    parameter update. Raises ValueError for bounds that are not finite or leave no room.
    """

    outputs_per_action = 1

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        low: Sequence[float],
        high: Sequence[float],
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.observation_size, self.action_size = observation_size, action_size
        self.hidden, self.layer_norm = tuple(hidden), layer_norm
        self.id, self.version = "", 0
        low, high = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
        room = (high - low).broadcast_to(action_size)
        if not (torch.isfinite(room).all() and (room > 0).all()):
            raise ValueError(
                f"low, high: expected finite bounds with room between them, got {low.tolist()} and {high.tolist()}; "
                "give the range in which the policy may act"
            )
        self.register_buffer("offset", torch.zeros(observation_size))
        self.register_buffer("scale", torch.ones(observation_size))
        self.register_buffer("centre", ((low + high) / 2).broadcast_to(action_size).float().clone())
        self.register_buffer("half_range", (room / 2).float().clone())
        sizes = (observation_size, *hidden, self.outputs_per_action * action_size)
        self.net = ReLUStack(sizes, layer_norm=layer_norm, generator=generator)

    def standardise(self, offset: Float[Tensor, " obs"], scale: Float[Tensor, " obs"]) -> None:
        """Read observations as (observation − offset) · scale from now on."""
        self.offset.copy_(offset)
        self.scale.copy_(scale)

    def standardised(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch obs"]:
        return (observation - self.offset) * self.scale

    def to_unit(self, action: Float[Tensor, "*batch act"]) -> Float[Tensor, "*batch act"]:
        """From the environment's units to [−1, 1]."""
        return (action - self.centre) / self.half_range

    def from_unit(self, unit: Float[Tensor, "*batch act"]) -> Float[Tensor, "*batch act"]:
        """From [−1, 1] to the environment's units."""
        return torch.addcmul(self.centre, unit, self.half_range)

    @abstractmethod
    def unit_mode(self, standardised: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch act"]:
        """The action to evaluate with, in [−1, 1], from standardised observations."""

    def mode(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch act"]:
        """The action to evaluate with; what a mean in pre-squashed units comes to where the policy has one."""
        return self.from_unit(self.unit_mode(self.standardised(observation)))

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "*shape act"]:
        """Standard normal numbers: the randomness of one choice for each place of `shape`."""
        return torch.randn(*shape, self.action_size, generator=generator)

    @abstractmethod
    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch act"]:
        """The action from π(· | observation) that this noise stands for."""

    def sample(
        self, observation: Float[Tensor, "*batch obs"], generator: torch.Generator
    ) -> Float[Tensor, "*batch act"]:
        """An action drawn from π(· | observation)."""
        return self.choose(observation, self.noise(observation.shape[:-1], generator))

    def act(
        self, observation: Float[Tensor, "*batch obs"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "*batch act"], Float[Tensor, "*batch"]]:
        """A sampled action and its log-density."""
        with torch.no_grad():
            action = self.sample(observation, generator)
            return action, self.log_prob(observation, action)

    @abstractmethod
    def log_prob(
        self, observation: Float[Tensor, "*batch obs"], action: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch"]:
        """log π(action | observation), a density in the environment's units, differentiable in both."""

    def description(self) -> dict:
        """What `load_policy` needs, besides the tensors, to build this policy again."""
        return {
            "class": type(self).__name__,
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "low": (self.centre - self.half_range).tolist(),
            "high": (self.centre + self.half_range).tolist(),
            "hidden": list(self.hidden),
            "layer_norm": self.layer_norm,
        }

    def get_extra_state(self) -> dict:
        return {"id": self.id, "version": self.version}

    def set_extra_state(self, state: dict) -> None:
        self.id, self.version = state["id"], state["version"]


class DeterministicActor(ContinuousPolicy):
    """a = tanh(net(s)) in units: TD3's actor (Fujimoto et al. 2018)."""

    def unit_mode(self, standardised: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch act"]:
        return self.net(standardised).tanh()

    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch act"]:
        return self.mode(observation)

    def log_prob(
        self, observation: Float[Tensor, "*batch obs"], action: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch"]:
        """Always raises ValueError: a deterministic policy has no density; use `mode`."""
        raise ValueError(
            "log_prob: a deterministic actor has no density; use its mode, or a Gaussian around it"
        )


class GaussianActor(ContinuousPolicy):
    """N(tanh(net(s)), diag exp(2 log_std)) in units, log_std one number a dimension, within [−20, 2]: IQL's actor.

    It is evaluated at its mean. Samples are not clipped; the environment clips what it executes.
    """

    def __init__(self, observation_size: int, action_size: int, **options):
        super().__init__(observation_size, action_size, **options)
        self.log_std = nn.Parameter(torch.zeros(action_size))

    def unit_mode(self, standardised: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch act"]:
        return self.net(standardised).tanh()

    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch act"]:
        mean = self.unit_mode(self.standardised(observation))
        return self.from_unit(torch.addcmul(mean, noise, self.log_std.clamp(*LOG_STD_RANGE).exp()))

    def unit_log_prob(
        self, standardised: Float[Tensor, "*batch obs"], unit: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch"]:
        """The log-density of unit actions."""
        return normal_log_prob(unit, self.unit_mode(standardised), self.log_std.clamp(*LOG_STD_RANGE))

    def log_prob(
        self, observation: Float[Tensor, "*batch obs"], action: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch"]:
        unit = self.unit_log_prob(self.standardised(observation), self.to_unit(action))
        return unit - self.half_range.log().sum()


class TanhGaussianActor(ContinuousPolicy):
    """a = tanh(u), u ~ N(mean(s), diag exp(2 log_std(s))) in units: SAC's actor (Haarnoja et al. 2018).

    log_std is kept within [−20, 2]. `mode` is tanh(mean). Unit actions stay within ±(1 − 1e-6).
    """

    outputs_per_action = 2

    def heads(
        self, standardised: Float[Tensor, "*batch obs"]
    ) -> tuple[Float[Tensor, "*batch act"], Float[Tensor, "*batch act"]]:
        """Mean and log standard deviation before squashing."""
        mean, log_std = self.net(standardised).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def unit_mode(self, standardised: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch act"]:
        return self.heads(standardised)[0].tanh()

    def unit_sample(
        self, standardised: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch act"]
    ) -> tuple[Float[Tensor, "*batch act"], Float[Tensor, "*batch"]]:
        """A unit action and its log-density, differentiable in the parameters (the reparametrised draw)."""
        mean, log_std = self.heads(standardised)
        raw = mean + noise * log_std.exp()
        return raw.tanh(), normal_log_prob(raw, mean, log_std) - log_tanh_slope(raw).sum(-1)

    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch act"]:
        unit, _ = self.unit_sample(self.standardised(observation), noise)
        return self.from_unit(unit.clamp(-_EDGE, _EDGE))

    def log_prob(
        self, observation: Float[Tensor, "*batch obs"], action: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch"]:
        mean, log_std = self.heads(self.standardised(observation))
        raw = self.to_unit(action).clamp(-_EDGE, _EDGE).atanh()
        return (
            normal_log_prob(raw, mean, log_std) - log_tanh_slope(raw).sum(-1)
        ) - self.half_range.log().sum()


class UniformActor(nn.Module):
    """Uniform over the box [low, high], whatever is observed: the policy of a "random" log."""

    def __init__(self, action_size: int, *, low: Sequence[float], high: Sequence[float]):
        super().__init__()
        self.action_size = action_size
        self.id, self.version = "", 0
        self.register_buffer("low", torch.tensor(low).broadcast_to(action_size).clone())
        self.register_buffer("high", torch.tensor(high).broadcast_to(action_size).clone())

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "*shape act"]:
        """Uniform numbers in [0, 1)."""
        return torch.rand(*shape, self.action_size, generator=generator)

    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch act"]:
        return torch.lerp(self.low, self.high, noise)

    def sample(
        self, observation: Float[Tensor, "*batch obs"], generator: torch.Generator
    ) -> Float[Tensor, "*batch act"]:
        """An action drawn from the box."""
        return self.choose(observation, self.noise(observation.shape[:-1], generator))

    def mode(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch act"]:
        """The middle of the box."""
        return ((self.low + self.high) / 2).expand(*observation.shape[:-1], -1)

    def log_prob(
        self, observation: Float[Tensor, "*batch obs"], action: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch"]:
        """−log of the box's volume, everywhere inside it."""
        return -(self.high - self.low).log().sum().expand(action.shape[:-1])

    def description(self) -> dict:
        """What `load_policy` needs to build this policy again."""
        bounds = {"low": self.low.tolist(), "high": self.high.tolist()}
        return {"class": "UniformActor", "action_size": self.action_size, **bounds}

    def get_extra_state(self) -> dict:
        return {"id": self.id, "version": self.version}

    def set_extra_state(self, state: dict) -> None:
        self.id, self.version = state["id"], state["version"]


class Critics(nn.Module):
    """`members` networks Q_i(s, a) side by side, on standardised observations and unit actions."""

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        members: int = 2,
        *,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        sizes = (observation_size + action_size, *hidden, 1)
        self.net = ReLUStack(sizes, members, layer_norm=layer_norm, generator=generator)

    def forward(
        self, observation: Float[Tensor, "rows obs"], action: Float[Tensor, "rows act"]
    ) -> Float[Tensor, "members rows"]:
        return self.net(torch.cat([observation, action], -1)).squeeze(-1)

    def first(
        self, observation: Float[Tensor, "rows obs"], action: Float[Tensor, "rows act"]
    ) -> Float[Tensor, " rows"]:
        """Q₁ alone."""
        return self.net(torch.cat([observation, action], -1), member=0).squeeze(-1)


class Value(nn.Module):
    """V(s) on standardised observations."""

    def __init__(
        self,
        observation_size: int,
        *,
        hidden: Sequence[int] = (256, 256),
        layer_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.net = ReLUStack((observation_size, *hidden, 1), layer_norm=layer_norm, generator=generator)

    def forward(self, observation: Float[Tensor, "rows obs"]) -> Float[Tensor, " rows"]:
        return self.net(observation).squeeze(-1)


def normal_log_prob(
    value: Float[Tensor, "*batch act"],
    mean: Float[Tensor, "*batch act"],
    log_std: Float[Tensor, "*#batch act"],
) -> Float[Tensor, "*batch"]:
    """Σ_j log N(value_j; mean_j, exp(log_std_j)²)."""
    z = (value - mean) * (-log_std).exp()
    return (-0.5 * z.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def log_tanh_slope(x: Float[Tensor, "*batch act"]) -> Float[Tensor, "*batch act"]:
    """log(1 − tanh² x) = 2 (log 2 − x − softplus(−2x)), without cancellation."""
    return 2 * (math.log(2) - x - F.softplus(-2 * x))
