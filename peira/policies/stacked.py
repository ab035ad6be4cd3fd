"""Small tanh networks of one shape side by side, and policies made of them: one a step of the episode, or a single one.

Their parameters are the rows of one matrix, so that all of them go through every product together and one row is a flat
vector for conjugate gradients. Derivatives are written out: forward and reverse products with a fixed network cost what
their matrix products cost, with no graph to build again for each of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class StackedMLP:
    """Networks `sizes[0] → … → sizes[-1]` with tanh between; the parameters of each are one row of [nets, size].

    A row holds weight [in, out] and bias [out] of the first layer, then of the next.
    """

    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Parameters of one network."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.sizes))

    def initial(
        self, nets: int, generator: torch.Generator | None, dtype: torch.dtype = torch.float64
    ) -> Float[Tensor, "nets size"]:
        """Uniform ±1/√fan_in, as `nn.Linear` has it, the last layer's weights × 0.1 and its bias 0."""
        rows = []
        for fan_in, fan_out in pairwise(self.sizes):
            bound = 1 / math.sqrt(fan_in)
            layer = torch.empty(nets, (fan_in + 1) * fan_out, dtype=torch.float64)
            rows.append(layer.uniform_(-bound, bound, generator=generator))
        fan_out = self.sizes[-1]
        rows[-1][:, :-fan_out] *= 0.1
        rows[-1][:, -fan_out:] = 0.0
        return torch.cat(rows, 1).to(dtype)

    def layers(
        self, flat: Float[Tensor, "nets size"]
    ) -> list[tuple[Float[Tensor, "nets _ _"], Float[Tensor, "nets 1 _"]]]:
        """Views of weight and bias of every layer."""
        found, start = [], 0
        for fan_in, fan_out in pairwise(self.sizes):
            end = start + fan_in * fan_out
            weight = flat[:, start:end].unflatten(1, (fan_in, fan_out))
            start = end + fan_out
            found.append((weight, flat[:, None, end:start]))
        return found

    def forward(
        self, flat: Float[Tensor, "nets size"], inputs: Float[Tensor, "nets rows fan_in"]
    ) -> list[Float[Tensor, "nets rows _"]]:
        """Inputs, hidden layers after their tanh, and outputs."""
        activations = [inputs]
        *hidden, last = self.layers(flat)
        for weight, bias in hidden:
            activations.append(torch.baddbmm(bias, activations[-1], weight).tanh_())
        activations.append(torch.baddbmm(last[1], activations[-1], last[0]))
        return activations

    def tangent(
        self,
        flat: Float[Tensor, "nets size"],
        activations: Sequence[Float[Tensor, "nets rows _"]],
        direction: Float[Tensor, "nets size"],
    ) -> Float[Tensor, "nets rows outputs"]:
        """J v: how fast the outputs move where the parameters move along `direction`."""
        moved = None
        for place, ((weight, _), (weight_rate, bias_rate)) in enumerate(
            zip(self.layers(flat), self.layers(direction), strict=True)
        ):
            rate = torch.baddbmm(bias_rate, activations[place], weight_rate)
            moved = rate if moved is None else torch.baddbmm(rate, moved, weight)
            if place < len(self.sizes) - 2:
                after = activations[place + 1]
                moved = torch.addcmul(moved, moved * after, after, value=-1)
        return moved

    def pullback(
        self,
        flat: Float[Tensor, "nets size"],
        activations: Sequence[Float[Tensor, "nets rows _"]],
        cotangent: Float[Tensor, "nets rows outputs"],
    ) -> Float[Tensor, "nets size"]:
        """Jᵀ u, the sum over rows of u · ∂output/∂parameters."""
        found: list[Tensor] = []
        layers = self.layers(flat)
        for place in reversed(range(len(layers))):
            before = activations[place]
            found.append(cotangent.sum(1))
            found.append(torch.bmm(before.mT, cotangent).flatten(1))
            if place:
                cotangent = torch.bmm(cotangent, layers[place][0].mT)
                cotangent = torch.addcmul(cotangent, cotangent * before, before, value=-1)
        return torch.cat(found[::-1], 1)


class StackedPolicy(nn.Module, ABC):
    """π_h(a | s) for each step h of an episode, or with `steps` = 1 one policy for all of them.

    Everything about rows reads `[steps, rows, …]`: row h is seen by the policy of step h. With one step any leading
    shape does, and the policy acts like any other (`noise`, `choose`, `mode`, `sample`, `log_prob`). Parameters
    are one row of `flat` a step, float64 unless `dtype` says otherwise: conjugate gradients on few rows need it.
    No gradient is recorded. `version` rises with every parameter update.
    """

    discrete: ClassVar[bool]

    def __init__(
        self,
        steps: int,
        observation_size: int,
        action_size: int,
        *,
        hidden: Sequence[int] = (16, 16),
        generator: torch.Generator | None = None,
        dtype: torch.dtype | str = torch.float64,
    ):
        super().__init__()
        self.steps, self.observation_size, self.action_size = steps, observation_size, action_size
        self.hidden = tuple(hidden)
        self.net = StackedMLP((observation_size, *hidden, action_size))
        self.id, self.version = "", 0
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.flat = nn.Parameter(self._initial(generator, dtype), requires_grad=False)

    def _initial(self, generator: torch.Generator | None, dtype: torch.dtype) -> Float[Tensor, "steps size"]:
        return self.net.initial(self.steps, generator, dtype)

    # As mathematics: explicit parameters, rows by step --------------------------------------------------------------

    def activations(
        self, observation: Float[Tensor, "steps rows obs"], flat: Float[Tensor, "steps size"] | None = None
    ) -> list[Float[Tensor, "steps rows _"]]:
        """Every layer of the networks at these observations; the last entry is the head: means, or logits."""
        flat = self.flat if flat is None else flat
        return self.net.forward(flat[:, : self.net.size], observation.to(flat.dtype))

    @abstractmethod
    def log_prob_at(
        self,
        flat: Float[Tensor, "steps size"],
        head: Float[Tensor, "steps rows out"],
        action: Shaped[Tensor, "steps rows *action"],
    ) -> Float[Tensor, "steps rows"]:
        """log π(action) where the networks of `flat` put out `head`."""

    @abstractmethod
    def kl(
        self,
        old_flat: Float[Tensor, "steps size"],
        old_head: Float[Tensor, "steps rows out"],
        flat: Float[Tensor, "steps size"],
        head: Float[Tensor, "steps rows out"],
    ) -> Float[Tensor, "steps rows"]:
        """KL(π_old ‖ π) in nats at each row, exact."""

    @abstractmethod
    def score(
        self,
        activations: Sequence[Float[Tensor, "steps rows _"]],
        action: Shaped[Tensor, "steps rows *action"],
        coefficient: Float[Tensor, "steps rows"],
    ) -> Float[Tensor, "steps size"]:
        """Σ_i c_i ∇ log π(a_i | s_i), a row a step."""

    @abstractmethod
    def score_product(
        self,
        activations: Sequence[Float[Tensor, "steps rows _"]],
        action: Shaped[Tensor, "steps rows *action"],
        direction: Float[Tensor, "steps size"],
    ) -> Float[Tensor, "steps rows"]:
        """∇ log π(a_i | s_i) · v of every row."""

    @abstractmethod
    def fisher(
        self,
        activations: Sequence[Float[Tensor, "steps rows _"]],
        weight: Float[Tensor, "steps rows"],
        direction: Float[Tensor, "steps size"],
    ) -> Float[Tensor, "steps size"]:
        """Σ_i w_i F(s_i) v with the exact F(s) = E_{a∼π}[∇ log π ∇ log πᵀ] = Jᵀ F_head J, the Hessian of KL at π."""

    # As something that acts -----------------------------------------------------------------------------------------

    @abstractmethod
    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "*shape choices"]:
        """The randomness of one choice for each place of `shape`."""

    @abstractmethod
    def chosen(
        self, step: int, head: Float[Tensor, "*batch out"], noise: Float[Tensor, "*batch out"]
    ) -> Shaped[Tensor, "*chosen"]:
        """The action that this noise stands for where the networks of one step put out `head`."""

    @abstractmethod
    def drawn(
        self, head: Float[Tensor, "*batch steps rows out"], generator: torch.Generator
    ) -> Shaped[Tensor, "*chosen"]:
        """Actions in the learner's precision, drawn for rows by step."""

    def head(self, observation: Float[Tensor, "*batch obs"], step: int = 0) -> Float[Tensor, "*batch out"]:
        """Means or logits of the policy of this step."""
        rows = observation.reshape(1, -1, self.observation_size)
        found = self.activations(rows, self.flat[step : step + 1])[-1]
        return found.view(*observation.shape[:-1], -1)

    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch out"], step: int = 0
    ) -> Shaped[Tensor, "*chosen"]:
        return self.chosen(step, self.head(observation, step), noise)

    def in_turn(self, *, mode: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
        """A `choose` whose first call asks the policy of step 0, the next one that of step 1, and so on in a circle.

        With `mode` it takes the most likely action and leaves the noise alone.
        """
        called = -1

        def choose(observation: Tensor, noise: Tensor) -> Tensor:
            nonlocal called
            called = (called + 1) % self.steps
            return self.mode(observation, called) if mode else self.choose(observation, noise, called)

        return choose

    def act_at(
        self, step: int, observation: Float[Tensor, "rows obs"], generator: torch.Generator | None
    ) -> Shaped[Tensor, "*chosen"]:
        """Actions of the policy of this step, drawn, or the most likely ones where there is no generator."""
        own = step % self.steps
        if generator is None:
            return self.mode(observation, own)
        return self.choose(observation, self.noise(observation.shape[:1], generator), own)

    @abstractmethod
    def mode(self, observation: Float[Tensor, "*batch obs"], step: int = 0) -> Shaped[Tensor, "*chosen"]:
        """The most likely action."""

    def sample(
        self, observation: Float[Tensor, "*batch obs"], generator: torch.Generator
    ) -> Shaped[Tensor, "*chosen"]:
        return self.choose(observation, self.noise(observation.shape[:-1], generator))

    def log_prob(
        self, observation: Float[Tensor, "*batch obs"], action: Shaped[Tensor, "*chosen"]
    ) -> Float[Tensor, "*batch"]:
        """log π(action | observation), in the observation's precision; `[steps, rows, …]` where there are several."""
        if self.steps == 1:
            lead = observation.shape[:-1]
            observation = observation.reshape(1, -1, self.observation_size)
            action = action.reshape(1, -1, *action.shape[len(lead) :])
        else:
            lead = observation.shape[:2]
        found = self.log_prob_at(self.flat, self.activations(observation)[-1], action)
        return found.view(lead).to(observation.dtype)

    def description(self) -> dict:
        """What is needed, besides the tensors, to build this policy again."""
        return {
            "class": type(self).__name__,
            "steps": self.steps,
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "hidden": list(self.hidden),
            "dtype": str(self.flat.dtype).removeprefix("torch."),
        }

    def get_extra_state(self) -> dict:
        return {"id": self.id, "version": self.version}

    def set_extra_state(self, state: dict) -> None:
        self.id, self.version = state["id"], state["version"]


class StackedGaussianPolicy(StackedPolicy):
    """N(mean_h(s), diag exp(2 log_std_h)): unsquashed, a standard deviation that no state changes, 1 at first.

    A row of `flat` is the network's parameters, then log_std.
    """

    discrete = False

    def _initial(self, generator: torch.Generator | None, dtype: torch.dtype) -> Float[Tensor, "steps size"]:
        net = super()._initial(generator, dtype)
        return torch.cat([net, torch.zeros(self.steps, self.action_size, dtype=net.dtype)], 1)

    def log_std(self, flat: Float[Tensor, "steps size"]) -> Float[Tensor, "steps 1 action"]:
        return flat[:, None, self.net.size :]

    def log_prob_at(self, flat, head, action):
        log_std = self.log_std(flat)
        scaled = (action.to(head.dtype) - head) * (-log_std).exp()
        return -0.5 * scaled.square().sum(-1) - log_std.sum(-1) - 0.5 * LOG_TWO_PI * self.action_size

    def kl(self, old_flat, old_head, flat, head):
        old, new = self.log_std(old_flat), self.log_std(flat)
        apart = (old_head - head).square() + (2 * old).exp()
        return (new - old + 0.5 * apart * (-2 * new).exp() - 0.5).sum(-1)

    def score(self, activations, action, coefficient):
        precision = (-2 * self.log_std(self.flat)).exp()
        apart = action.to(precision.dtype) - activations[-1]
        weighted = apart * coefficient[..., None]
        of_net = self.net.pullback(self.flat[:, : self.net.size], activations, weighted * precision)
        of_std = (weighted * apart * precision - coefficient[..., None]).sum(1)
        return torch.cat([of_net, of_std], 1)

    def score_product(self, activations, action, direction):
        precision = (-2 * self.log_std(self.flat)).exp()
        apart = action.to(precision.dtype) - activations[-1]
        size = self.net.size
        moved = self.net.tangent(self.flat[:, :size], activations, direction[:, :size])
        of_std = (apart.square() * precision - 1) * direction[:, None, size:]
        return (apart * precision * moved + of_std).sum(-1)

    def fisher(self, activations, weight, direction):
        size = self.net.size
        net = self.flat[:, :size]
        precision = (-2 * self.log_std(self.flat)).exp()
        moved = self.net.tangent(net, activations, direction[:, :size])
        of_net = self.net.pullback(net, activations, moved * (weight[..., None] * precision))
        return torch.cat([of_net, 2 * weight.sum(1, keepdim=True) * direction[:, size:]], 1)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "*shape choices"]:
        return torch.randn(*shape, self.action_size, generator=generator)

    def chosen(self, step, head, noise):
        return torch.addcmul(head, noise.to(head.dtype), self.flat[step, self.net.size :].exp()).float()

    def drawn(self, head, generator):
        noise = torch.randn(head.shape, generator=generator, dtype=head.dtype)
        return torch.addcmul(head, noise, self.log_std(self.flat).exp())

    def mode(self, observation: Float[Tensor, "*batch obs"], step: int = 0) -> Float[Tensor, "*batch action"]:
        return self.head(observation, step).float()


class StackedCategoricalPolicy(StackedPolicy):
    """softmax(logits_h(s)) over `action_size` discrete actions."""

    discrete = True

    def log_prob_at(self, flat, head, action):
        return head.log_softmax(-1).gather(-1, action[..., None].long()).squeeze(-1)

    def kl(self, old_flat, old_head, flat, head):
        old = old_head.log_softmax(-1)
        return (old.exp() * (old - head.log_softmax(-1))).sum(-1)

    def _centred(self, head: Tensor, action: Tensor) -> Float[Tensor, "steps rows choices"]:
        """∇ log π(a) with respect to the logits: 1[a] − π."""
        return torch.zeros_like(head).scatter_(-1, action[..., None].long(), 1.0) - head.softmax(-1)

    def score(self, activations, action, coefficient):
        cotangent = self._centred(activations[-1], action) * coefficient[..., None]
        return self.net.pullback(self.flat, activations, cotangent)

    def score_product(self, activations, action, direction):
        moved = self.net.tangent(self.flat, activations, direction)
        return (self._centred(activations[-1], action) * moved).sum(-1)

    def fisher(self, activations, weight, direction):
        probability = activations[-1].softmax(-1)
        moved = probability * self.net.tangent(self.flat, activations, direction)
        moved = moved - probability * moved.sum(-1, keepdim=True)
        return self.net.pullback(self.flat, activations, moved * weight[..., None])

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "*shape choices"]:
        # Gumbel noise: the arg max of logits + noise is a draw from the softmax.
        return -torch.empty(*shape, self.action_size).exponential_(generator=generator).log_()

    def chosen(self, step, head, noise):
        return (head + noise).argmax(-1)

    def drawn(self, head, generator):
        return (head + self.noise(head.shape[:-1], generator)).argmax(-1)

    def mode(self, observation: Float[Tensor, "*batch obs"], step: int = 0) -> Shaped[Tensor, "*batch"]:
        return self.head(observation, step).argmax(-1)
