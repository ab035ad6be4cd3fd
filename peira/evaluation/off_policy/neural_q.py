"""Fitted Q evaluation by neural networks: all candidates and all folds in one stacked set, trained in one pass.

After the recipe of Fu et al. 2021 ("Benchmarks for Deep Off-Policy Evaluation"): AdamW, a Polyak-averaged target,
targets clipped to what rewards can add up to, standardised inputs. It departs from it where 10⁶ updates are too many:
the output is standardised by the mean and the deviation of the log's own returns instead of by 1 − γ alone, steps are
larger (those of the output's level ten times as large again), the target moves as fast as the number of updates asks,
and the averaged networks are the ones that are read out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from peira.evaluation.off_policy.fitted_q import FittedQ, checked_fit, fit_of_actions
from peira.evaluation.off_policy.propensity import standardisation
from peira.evaluation.off_policy.stacked import (
    Minibatches,
    Progress,
    held_out,
    stacked_parameters,
    stacked_relu,
    stacked_relu_on_actions,
    standardised_inputs,
    updates_with_progress,
)
from peira.evaluation.off_policy.transitions import (
    Transitions,
    bootstrapped_rows,
    check_discount,
    effective_horizon,
    logged_returns,
    q_bounds,
)


@dataclass(frozen=True)
class NeuralQ(FittedQ):
    """Values with the stacked networks (fold by fold, candidate by candidate) that gave them."""

    parameters: Sequence[Float[Tensor, "models _ _"]] = ()


@dataclass(frozen=True)
class FqeConfig:
    """How the networks are built and trained."""

    hidden: tuple[int, ...] = (64, 64)  # ReLU layers
    updates: int = 5_000
    batch: int = 256  # rows a fold
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    # Share of the network that flows into its target at every update. None: 7·H/updates for an effective horizon H, not
    # under 0.005. The error of what is bootstrapped falls as exp(−updates·polyak/H), here to 0.1 %; at γ = 0.99 a share
    # of 0.005 would need 140 000 updates for that.
    polyak: float | None = None
    samples: int = 10  # of continuous actions, for an expectation over the policy


def neural_q(
    transitions: Transitions,
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    *,
    generator: torch.Generator,
    horizon: int | None = None,
    config: FqeConfig = FqeConfig(),
    progress: Progress | None = None,
) -> NeuralQ:
    """Minimises E[(Q(s,a) − r − γ(1 − terminated) Σ_a' π(a'|s') Q̄(s',a'))²] for every candidate and fold at once.

    A network reads the state and gives the values of all actions. With a `horizon` T it reads the time as well, and
    nothing follows step T − 1. A candidate's result depends on `generator`, not on the other candidates.

    Raises ValueError as `check_discount` does, and for observations that are no vectors.
    """
    check_discount(transitions, gamma, horizon)
    x = _inputs(transitions, horizon)
    candidates, _, actions = probs.shape
    # One row of memory for all candidates: a minibatch gathers it once.
    policy = torch.from_numpy(np.ascontiguousarray(probs.swapaxes(0, 1), dtype=np.float32))
    taken = torch.from_numpy(transitions.action)

    def at_logged(parameters: Sequence[Tensor], rows: Int[Tensor, "folds batch"]) -> Tensor:
        q = stacked_relu(parameters, x[rows])
        index = taken[rows][:, None, :, None].expand(*q.shape[:-1], 1)
        return q.gather(-1, index).squeeze(-1)

    def expected(parameters: Sequence[Tensor], points: Int[Tensor, "folds batch"]) -> Tensor:
        return (stacked_relu(parameters, x[points]) * policy[points].transpose(1, 2)).sum(-1)

    sizes = (x.shape[1], *config.hidden, actions)
    networks = _train(
        transitions, gamma, horizon, config, sizes, candidates, at_logged, expected, generator, progress
    )
    q = np.empty(probs.shape)
    for fold, points, models in held_out(transitions, candidates):
        q[:, points.numpy()] = networks.in_rewards(
            stacked_relu(networks.of(models), x[points][None])[0], fold
        )
    if horizon is not None:
        q[:, transitions.step >= horizon] = 0.0
    return NeuralQ(
        **vars(fit_of_actions(transitions, q, probs, gamma, horizon)), parameters=networks.parameters
    )


def neural_q_continuous(
    transitions: Transitions,
    mean: Float[np.ndarray, "candidates points dims"],
    std: Float[np.ndarray, "candidates points dims"],
    gamma: float,
    *,
    generator: torch.Generator,
    horizon: int | None = None,
    config: FqeConfig = FqeConfig(),
    progress: Progress | None = None,
) -> NeuralQ:
    """`neural_q` for candidates that draw their actions from N(mean, std²), one dimension independent of another.

    The network reads (s, a). Expectations over the policy are means over `config.samples` actions, drawn anew for every
    minibatch from noise that the candidates share; over a single action where every std is 0.
    """
    check_discount(transitions, gamma, horizon)
    x = _inputs(transitions, horizon)
    candidates, points, dims = mean.shape
    samples = config.samples if std.any() else 1
    centre, scale = standardisation(transitions.action)
    logged = torch.from_numpy((transitions.action - centre) / scale).float()
    middle, spread = (
        torch.from_numpy(np.ascontiguousarray(of.swapaxes(0, 1), dtype=np.float32))
        for of in ((mean - centre) / scale, std / scale)
    )

    def at_logged(parameters: Sequence[Tensor], rows: Int[Tensor, "folds batch"]) -> Tensor:
        return stacked_relu(parameters, torch.cat([x[rows], logged[rows]], -1)).squeeze(-1)

    def expected(parameters: Sequence[Tensor], points: Int[Tensor, "folds batch"]) -> Tensor:
        noise = torch.randn(*points.shape, 1, samples, dims, generator=generator)
        action = middle[points].unsqueeze(3) + spread[points].unsqueeze(3) * noise
        return stacked_relu_on_actions(parameters, x[points], action.transpose(1, 2)).mean((-1, -2))

    sizes = (x.shape[1] + dims, *config.hidden, 1)
    networks = _train(
        transitions, gamma, horizon, config, sizes, candidates, at_logged, expected, generator, progress
    )
    q, v = np.empty((candidates, transitions.rows)), np.empty((candidates, points))
    for fold, at, models in held_out(transitions, candidates):
        v[:, at.numpy()] = networks.in_rewards(expected(networks.of(models), at[None])[0], fold)
        rows = at[at < transitions.rows]
        q[:, rows.numpy()] = networks.in_rewards(at_logged(networks.of(models), rows[None])[0], fold)
    if horizon is not None:
        v[:, transitions.step >= horizon] = 0.0
    return NeuralQ(**vars(checked_fit(transitions, q, v, gamma, horizon)), parameters=networks.parameters)


@dataclass(frozen=True)
class _Networks:
    """Trained networks; an output u of a fold's networks stands for Q = offset + scale·u, in numbers of the fold."""

    parameters: Sequence[Float[Tensor, "models _ _"]]
    offset: Float[np.ndarray, " folds"]
    scale: Float[np.ndarray, " folds"]

    def of(self, models: slice) -> list[Float[Tensor, "chosen _ _"]]:
        return [parameter[models] for parameter in self.parameters]

    def in_rewards(
        self, output: Float[Tensor, "members *points"], fold: int
    ) -> Float[np.ndarray, "members *points"]:
        return self.offset[fold] + self.scale[fold] * output.double().numpy()


def _inputs(transitions: Transitions, horizon: int | None) -> Float[Tensor, "points inputs"]:
    if transitions.observation.ndim != 2:
        raise ValueError("observation: expected vectors, got numbers; give one-hot vectors or use tabular_q")
    time = None if horizon is None else transitions.step / horizon
    return standardised_inputs(transitions.observation, time=time)


def _train(
    transitions: Transitions,
    gamma: float,
    horizon: int | None,
    config: FqeConfig,
    sizes: Sequence[int],
    members: int,
    at_logged: Callable[[Sequence[Tensor], Tensor], Tensor],
    expected: Callable[[Sequence[Tensor], Tensor], Tensor],
    generator: torch.Generator,
    progress: Progress | None,
) -> _Networks:
    """Networks that solve Q(s, a) = r + γ·`expected`(s') in the mean square over minibatches.

    `at_logged(parameters, rows)` and `expected(parameters, points)` give outputs [folds, members, batch].
    """
    used, follows = bootstrapped_rows(transitions, horizon)
    fold = transitions.point_fold[: transitions.rows]
    # All that depends on rewards comes from the rows that a fold's networks are trained on.
    trained = [used & (of_fold[fold] > 0) for of_fold in transitions.trains]
    returns = [logged_returns(transitions, gamma, horizon, rows)[rows] for rows in trained]
    offset = np.array([of_fold.mean() for of_fold in returns])
    scale = np.array([of_fold.std() or 1.0 for of_fold in returns])
    bounds = np.array([q_bounds(transitions, gamma, horizon, rows) for rows in trained])
    low, high = torch.from_numpy(((bounds.T - offset) / scale)[:, :, None, None]).float()
    gained = transitions.reward + gamma * follows * offset[:, None] - offset[:, None]
    gained = torch.from_numpy(gained / scale[:, None]).float()
    discount = torch.from_numpy(gamma * follows).float()
    following = torch.from_numpy(np.where(follows, transitions.next_row, 0))
    polyak = config.polyak
    if polyak is None:
        polyak = min(1.0, max(0.005, 7 * effective_horizon(transitions, gamma, horizon) / config.updates))

    parameters = stacked_parameters(sizes, transitions.folds, members, generator)
    target = [parameter.detach().clone() for parameter in parameters]
    # A candidate may be worth many deviations more or less than the log: a level of its own must not take long.
    levels = {"params": parameters[-1:], "lr": 10 * config.learning_rate}
    optimiser = torch.optim.AdamW(
        [{"params": parameters[:-1]}, levels],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    minibatches = Minibatches(transitions, used, config.batch, generator)
    for _ in updates_with_progress(config.updates, progress):
        rows = minibatches.draw()
        with torch.no_grad():
            after = expected(target, following[rows])
            goal = gained.gather(1, rows)[:, None] + discount[rows][:, None] * after
            goal = torch.clamp(goal, low, high)
        # Means over rows, summed over models: each model's gradient is that of its own loss.
        (at_logged(parameters, rows) - goal).square().mean(-1).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(target, parameters, polyak)
    return _Networks(target, offset, scale)
