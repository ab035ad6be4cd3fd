"""The hybrid fitted critic: bootstrapped TD error on a log, plain regression on fresh returns, in one least squares.

Equation 1 of ``hnpg.md``. Where the log covers a good policy the first term carries values back from it; where it does
not, or where the class cannot represent them, the second keeps the critic right on what the policy really does. Fresh
data are never bootstrapped. With w_on = 0 this is fitted Q evaluation, with w_off = 0 Monte-Carlo regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from peira.experience.scan import running_sum_backwards
from peira.experience.step_log import StepLog, StepRows
from peira.policies.stacked import StackedMLP, StackedPolicy


def both_sources(
    off_target: Float[Tensor, "*batch off"],
    on_return: Float[Tensor, "*batch on"],
    *,
    w_off: float,
    w_on: float,
) -> tuple[Float[Tensor, "*batch rows"], Float[Tensor, " rows"]]:
    """Equation 1,  w_off · mean (f − z)² [log] + w_on · mean (f − y)² [fresh],  as Σ weight · (f − target)², log first.

    The means are per source, so that the weights weigh sources, whatever their sizes; the paper's λ is w_on / w_off.
    `off_target` is z = r + γ f'(s', a'), `on_return` y an unbiased return.
    """
    off, on = off_target.shape[-1], on_return.shape[-1]
    weight = torch.cat([off_target.new_full((off,), w_off / off), on_return.new_full((on,), w_on / on)])
    return torch.cat([off_target, on_return], -1), weight


def bootstrapped_target(
    reward: Float[Tensor, "*batch"],
    terminated: Bool[Tensor, "*batch"],
    next_value: Float[Tensor, "*batch"],
    discount: float,
) -> Float[Tensor, "*batch"]:
    """z = r + γ · (1 − terminated) · f'(s', a')."""
    return reward + discount * next_value * ~terminated


def discounted_returns(
    reward: Float[Tensor, "time env"],
    terminated: Bool[Tensor, "time env"],
    truncated: Bool[Tensor, "time env"],
    cut_value: Float[Tensor, "time env"],
    discount: float,
) -> tuple[Float[Tensor, "time env"], Bool[Tensor, "time env"]]:
    """y_t = r_t + γ y_{t+1}, plain sums of rewards, and which of them end in a value rather than in a termination.

    Only where an episode was cut, by its time limit or by the end of the batch, does `cut_value`, V(s'_t), stand for
    the rest.
    """
    cut = truncated.clone()
    cut[-1] |= ~terminated[-1]
    cut &= ~terminated
    going = discount * (~(terminated | cut)).to(reward.dtype)
    returns = running_sum_backwards(reward + discount * cut_value * cut, going)
    return returns, running_sum_backwards(cut.to(reward.dtype), going / discount) > 0


@dataclass(frozen=True)
class FreshRows:
    """On-policy transitions with their returns, `[steps, rows, …]`."""

    observation: Float[Tensor, "steps rows obs"]
    action: Shaped[Tensor, "steps rows *act"]
    returns: Float[Tensor, "steps rows"]


class HybridCritic(nn.Module):
    """f_h(s, a) for each step h, or with `steps` = 1 one for all, fitted to two sources (HPE).

    Tanh networks on (s, a); on s with an output an action where actions are discrete. `fit_steps` of Adam with a fresh
    state each time, from the parameters of the time before.
    """

    def __init__(
        self,
        steps: int,
        observation_size: int,
        action_size: int,
        *,
        discrete: bool,
        hidden: Sequence[int] = (64, 64),
        w_on: float = 1.0,
        w_off: float = 1.0,
        discount: float = 1.0,
        learning_rate: float = 3e-4,
        fit_steps: int = 30,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        sizes = (
            (observation_size, *hidden, action_size)
            if discrete
            else (observation_size + action_size, *hidden, 1)
        )
        self.net, self.discrete, self.steps = StackedMLP(sizes), discrete, steps
        self.w_on, self.w_off, self.discount = w_on, w_off, discount
        self.learning_rate, self.fit_steps = learning_rate, fit_steps
        self.flat = nn.Parameter(self.net.initial(steps, generator, dtype), requires_grad=False)

    def forward(
        self, observation: Float[Tensor, "steps rows obs"], action: Shaped[Tensor, "steps rows *act"]
    ) -> Float[Tensor, "steps rows"]:
        """f_h(s, a) of the rows of each step."""
        return self._read(self.net.forward(self.flat, self._inputs(observation, action))[-1], action)

    def value(
        self,
        policy: StackedPolicy,
        observation: Float[Tensor, "steps rows obs"],
        generator: torch.Generator,
        samples: int = 10,
    ) -> Float[Tensor, "steps rows"]:
        """V_h(s) = E_{a∼π_h} f_h(s, a): exact over discrete actions, else the mean over `samples` drawn ones."""
        head = policy.activations(observation)[-1]
        if self.discrete:
            found = self.net.forward(self.flat, observation.to(head.dtype))[-1]
            return (head.softmax(-1) * found).sum(-1)
        steps, rows = observation.shape[:2]
        drawn = policy.drawn(head.expand(samples, *head.shape), generator).transpose(0, 1)
        seen = observation[:, None].expand(steps, samples, rows, -1)
        return self(seen.flatten(1, 2), drawn.flatten(1, 2)).view(steps, samples, rows).mean(1)

    def sweep(
        self, policy: StackedPolicy, on: FreshRows, off: StepRows | None, generator: torch.Generator
    ) -> dict[str, float]:
        """Fit step H−1, then H−2, …, 0: each bootstraps on the network of the step after it as it has just become.

        One action a' is drawn in each s'. `off` may be None only where w_off is 0. Source: ``hnpg.md`` 2.2, step 4.
        """
        on_inputs = self._inputs(on.observation, on.action)
        measures: list[dict[str, Tensor]] = []
        if off is not None:
            off_inputs = self._inputs(off.observation, off.action)
            # Row h: what step h − 1 led to, as the policy and the network of step h see it.
            ahead = off.next_observation.roll(1, 0)
            next_action = policy.drawn(policy.activations(ahead)[-1], generator)
            ahead_inputs = self._inputs(ahead, next_action)
            following = torch.zeros_like(off.reward[:1], dtype=self.flat.dtype)
        for step in reversed(range(self.steps)):
            one = slice(step, step + 1)
            fresh = _Source(on_inputs[one], on.action[one], on.returns[one])
            logged = None
            if off is not None:
                target = self._target(off.reward[one], off.terminated[one], following)
                logged = _Source(off_inputs[one], off.action[one], target)
            measures.append(self._fit(one, fresh, logged))
            if off is not None:
                read = self.net.forward(self.flat[one], ahead_inputs[one])[-1]
                following = self._read(read, next_action[one])
        return {name: torch.stack([of[name] for of in measures]).mean().item() for name in measures[0]}

    def iterate(
        self,
        policy: StackedPolicy,
        on: FreshRows,
        log: StepLog | None,
        generator: torch.Generator,
        *,
        fits: int,
        minibatch: int,
    ) -> dict[str, float]:
        """One f for all steps: f_k fitted to targets of a frozen f_{k−1} for k = 1..K, and the mean of the newer half.

        Each fit takes `fit_steps` steps on minibatches of each source, one Adam for all of them. The mean is over
        parameters, which for networks that lie as close together as these stands for the mean of the functions.
        `log` may be None only where w_off is 0. Source: ``hnpg.md`` 2.4.
        """
        flat, mean = self.flat.clone(), torch.zeros_like(self.flat)
        adam = self._adam(flat)
        whole = _Source(self._inputs(on.observation, on.action), on.action, on.returns)
        before = self._mean_square(self.flat, whole)
        newer = fits - fits // 2
        for fit in range(fits):
            frozen, off_losses = flat.clone(), []
            for _ in range(self.fit_steps):
                rows = torch.randint(on.returns.shape[1], (minibatch,), generator=generator)
                fresh = _Source(whole.inputs[:, rows], whole.action[:, rows], whole.target[:, rows])
                logged = None
                if log is not None:
                    logged = self._logged(policy, frozen, log.sample(minibatch, generator), generator)
                    off_losses.append(self._mean_square(flat, logged))
                self._descend(adam, flat, self._joined(fresh, logged))
            if fit >= fits - newer:
                mean += flat / newer
        self.flat.copy_(mean)
        measures = {"critic_loss/on_before": before, "critic_loss/on": self._mean_square(mean, whole)}
        if log is not None:
            measures["critic_loss/off"] = torch.stack(off_losses).mean()
        return {name: value.item() for name, value in measures.items()}

    def _logged(
        self, policy: StackedPolicy, frozen: Tensor, drawn: StepRows, generator: torch.Generator
    ) -> _Source:
        """Logged rows with the targets that a frozen network gives them."""
        next_action = policy.drawn(policy.activations(drawn.next_observation)[-1], generator)
        read = self.net.forward(frozen, self._inputs(drawn.next_observation, next_action))[-1]
        target = self._target(drawn.reward, drawn.terminated, self._read(read, next_action))
        return _Source(self._inputs(drawn.observation, drawn.action), drawn.action, target)

    def _target(self, reward: Tensor, terminated: Tensor, next_value: Tensor) -> Tensor:
        return bootstrapped_target(reward.to(next_value.dtype), terminated, next_value, self.discount)

    def _fit(self, nets: slice, on: _Source, off: _Source | None) -> dict[str, Tensor]:
        """`fit_steps` full-batch steps for these networks; mean squared errors before and after, by source."""
        flat = self.flat[nets].clone()
        measures = {"critic_loss/on_before": self._mean_square(flat, on)}
        adam, rows = self._adam(flat), self._joined(on, off)
        for _ in range(self.fit_steps):
            self._descend(adam, flat, rows)
        self.flat[nets] = flat
        measures["critic_loss/on"] = self._mean_square(flat, on)
        if off is not None:
            measures["critic_loss/off"] = self._mean_square(flat, off)
        return measures

    def _joined(self, on: _Source, off: _Source | None) -> _Weighted:
        """Both sources as one weighted least squares; one of weight 0 stays out of the products too."""
        if off is None or self.w_on == 0:
            only, weight = (on, self.w_on) if off is None else (off, self.w_off)
            rows = only.target.shape[-1]
            return _Weighted(*only, weight=only.target.new_full((rows,), weight / rows))
        target, weight = both_sources(off.target, on.target, w_off=self.w_off, w_on=self.w_on)
        return _Weighted(
            torch.cat([off.inputs, on.inputs], 1), torch.cat([off.action, on.action], 1), target, weight
        )

    def _adam(self, flat: Tensor) -> torch.optim.Adam:
        return torch.optim.Adam([flat], lr=self.learning_rate, fused=True)

    def _descend(self, adam: torch.optim.Adam, flat: Tensor, rows: _Weighted) -> None:
        activations = self.net.forward(flat, rows.inputs)
        slope = 2 * rows.weight * (self._read(activations[-1], rows.action) - rows.target)
        if self.discrete:
            cotangent = torch.zeros_like(activations[-1])
            cotangent.scatter_(-1, rows.action[..., None].long(), slope[..., None])
        else:
            cotangent = slope[..., None]
        flat.grad = self.net.pullback(flat, activations, cotangent)
        adam.step()

    def _mean_square(self, flat: Tensor, source: _Source) -> Float[Tensor, ""]:
        read = self._read(self.net.forward(flat, source.inputs)[-1], source.action)
        return (read - source.target).square().mean()

    def _inputs(self, observation: Tensor, action: Tensor) -> Float[Tensor, "steps rows fan_in"]:
        observation = observation.to(self.flat.dtype)
        return observation if self.discrete else torch.cat([observation, action.to(self.flat.dtype)], -1)

    def _read(self, output: Tensor, action: Tensor) -> Float[Tensor, "steps rows"]:
        """f(s, a) from what the networks put out."""
        if self.discrete:
            return output.gather(-1, action[..., None].long()).squeeze(-1)
        return output.squeeze(-1)


class _Source(NamedTuple):
    """Rows of one source: inputs of the networks, actions, and what f(s, a) should be."""

    inputs: Tensor
    action: Tensor
    target: Tensor


class _Weighted(NamedTuple):
    inputs: Tensor
    action: Tensor
    target: Tensor
    weight: Tensor
