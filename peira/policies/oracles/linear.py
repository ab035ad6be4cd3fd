"""Ridge and logistic regression of the reward, in batch and incrementally."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import special

from peira.experience.decisions import Choices, LoggedDecisions
from peira.policies.oracles.base import Oracle, Scores, Weights, check_rows, nothing_in
from peira.policies.oracles.design import BLOCK, CROSSES, Context, Design, Scale

NEWTON_STEPS = 50


@dataclass(eq=False)
class LinearOracle(Oracle):
    """A linear score of the features of `Design`.

    crosses, interactions  see `Design`; None: `Design.choose` takes the richest of at most 1,024 weights
    ridge                  penalty on the weights of the common part of a context
    cross_ridge            penalty on all other weights: values of categories, actions, and their crosses
    forgetting             what each row counts after one more `update`, in (0, 1]

    Penalties are those of standardised features. An action without rows, like a value of a category without rows,
    gets what its shared features say; where nothing is shared ("disjoint") that is the mean reward.
    """

    state_file: ClassVar[str] = "linear.safetensors"

    crosses: str | None = field(default=None, kw_only=True)
    interactions: bool | None = field(default=None, kw_only=True)
    ridge: float = field(default=1.0, kw_only=True)
    cross_ridge: float = field(default=3.0, kw_only=True)
    forgetting: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crosses not in (None, *CROSSES):
            raise ValueError(f"crosses: expected {', '.join(CROSSES)} or None, got {self.crosses!r}")
        for name in ("ridge", "cross_ridge"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name}: expected a positive penalty, got {getattr(self, name):g}")
        if not 0 < self.forgetting <= 1:
            raise ValueError(f"forgetting: expected a factor in (0, 1], got {self.forgetting:g}")
        self.design = Design.choose(self.schema, self.crosses, self.interactions)
        self._penalty = np.where(self.design.crossed, self.cross_ridge, self.ridge)
        self._state: dict[str, np.ndarray] = {}

    @property
    def trained(self) -> bool:
        return bool(self._state)

    def fit(self, rows: LoggedDecisions, weights: Weights = None) -> LinearOracle:
        check_rows(self.schema, rows, weights)
        self._state, self.calibration = {}, None
        return self.update(rows, weights)

    def update(self, rows: LoggedDecisions, weights: Weights = None) -> LinearOracle:
        """Learn from these rows on top of what was learned; the calibration stays. Raises what `fit` raises."""
        weights = check_rows(self.schema, rows, weights)
        if nothing_in(rows, weights):
            return self
        if not self.trained:
            self._begin(rows, weights)
        self._learn(rows, weights)
        return self

    def write(self, path: Path) -> None:
        save_file({name: np.ascontiguousarray(of) for name, of in self._state.items()}, path)

    def read(self, path: Path) -> None:
        self._state = load_file(path)

    @abstractmethod
    def _begin(self, rows: LoggedDecisions, weights: Weights) -> None:
        """The state before the first rows, which settle the units of the features."""

    @abstractmethod
    def _learn(self, rows: LoggedDecisions, weights: Weights) -> None: ...

    @property
    def _scale(self) -> Scale:
        return Scale(self._state["centre"], self._state["deviation"], self._state["size"])

    def _context(self, choices: Choices, rows: slice) -> Context:
        return self.design.context(choices.number[rows], choices.category[rows], self._scale)

    def _linear(self, choices: Choices) -> Scores:
        """θᵀX of every column; NaN where padded."""
        score = np.empty(choices.action.shape)
        for rows in _blocks(len(choices), BLOCK):
            score[rows] = self.design.scores(
                self._state["weights"],
                self._context(choices, rows),
                choices.action[rows],
                choices.feature[rows],
                self._scale,
            )
        return score


@dataclass(eq=False)
class RidgeOracle(LinearOracle):
    """Squared loss: θ = argmin Σ_i u_i (r_i − r̄ − θᵀX_i)² + Σ_p λ_p θ̃_p², by the normal equations in float64.

    θ̃ are the weights of standardised features and r̄ is the mean reward, so that without rows the score is r̄. `update`
    adds to Σ u X Xᵀ and Σ u r X and solves again: without forgetting it gives the `fit` on all rows at once (up to
    rounding, the means and deviations that the penalty refers to included), with forgetting f the fit with weights
    f^(number of later updates). Squared loss is what SquareCB's theory asks for. Penalties count in rows.
    """

    name: ClassVar[str] = "ridge"

    cross_ridge: float = field(default=10.0, kw_only=True)

    def _begin(self, rows: LoggedDecisions, weights: Weights) -> None:
        # Any units near the right ones will do: they only keep the sums well conditioned.
        design, some = self.design, rows.take(slice(0, 16 * BLOCK))
        scale = Scale.of(some.choices.number, some.chosen_feature)
        self._state = {
            "centre": scale.centre,
            "deviation": scale.deviation,
            "size": np.ones_like(scale.size),
            "gram": np.zeros((design.groups, design.weights, design.weights)),
            "cross": np.zeros((design.groups, design.weights)),
        }

    def _learn(self, rows: LoggedDecisions, weights: Weights) -> None:
        design, state = self.design, self._state
        gram, cross = state["gram"] * self.forgetting, state["cross"] * self.forgetting
        action, feature = rows.action, rows.chosen_feature
        target = rows.reward if weights is None else rows.reward * weights
        for part in _blocks(len(rows), design.learning_block):
            more = design.moments(
                self._context(rows.choices, part),
                action[part],
                feature[part],
                self._scale,
                target[part],
                None if weights is None else weights[part],
            )
            gram += more[0]
            cross += more[1]
        penalty = design.penalty(design.observed(gram), self._penalty)
        # The first weight is that of the 1.
        mean = cross[:, 0].sum() / gram[:, 0, 0].sum()
        solved = np.linalg.solve(gram + penalty, (cross - mean * gram[:, :, 0])[..., None])[..., 0]
        solved[:, 0] += mean
        self._state |= {"gram": gram, "cross": cross, "weights": solved}

    def _mean(self, choices: Choices) -> Scores:
        return self._linear(choices)


@dataclass(eq=False)
class LogisticOracle(LinearOracle):
    """Log loss: P(r = 1) = σ(l̄ + θᵀX), θ = argmin Σ_i u_i log loss_i + ½ Σ_p λ_p θ_p², by Newton's method.

    l̄ are the log-odds of the mean reward of the first rows, which also settle mean and deviation of the features.
    After a fit the posterior of θ is taken as Gaussian (Laplace): `update` minimises the log loss of the new rows plus
    ½ (θ − θ₀)ᵀH(θ − θ₀), with θ₀ the weights so far and H the curvature summed so far (f·its part from rows under
    forgetting f), by Newton steps from θ₀. That is the recursion of Spiegelhalter and Lauritzen 1990; it follows the
    fit on all rows closely, but is not equal to it. Penalties are inverse variances of a Gaussian prior of log-odds.

    Raises RuntimeError where Newton's method does not arrive.
    """

    name: ClassVar[str] = "logistic"

    def _begin(self, rows: LoggedDecisions, weights: Weights) -> None:
        design = self.design
        scale = Scale.of(rows.choices.number, rows.chosen_feature, weights)
        total = len(rows) if weights is None else weights.sum()
        positive = rows.reward.sum() if weights is None else rows.reward @ weights
        self._state = {
            "centre": scale.centre,
            "deviation": scale.deviation,
            "size": scale.size,
            "base": np.array(special.logit((positive + 0.5) / (total + 1.0))),
            "precision": np.tile(np.diag(self._penalty), (design.groups, 1, 1)),
            "weights": np.zeros((design.groups, design.weights)),
        }

    def _learn(self, rows: LoggedDecisions, weights: Weights) -> None:
        design, state, scale = self.design, self._state, self._scale
        prior = np.diag(self._penalty)
        precision = prior + self.forgetting * (state["precision"] - prior)
        action, feature = rows.action, rows.chosen_feature
        weight = np.ones(len(rows)) if weights is None else weights
        parts = _blocks(len(rows), design.learning_block)
        contexts = [self._context(rows.choices, part) for part in parts]

        def logits(theta: np.ndarray) -> np.ndarray:
            return state["base"] + np.concatenate(
                [
                    design.scores(theta, context, action[part, None], feature[part, None], scale)[:, 0]
                    for part, context in zip(parts, contexts, strict=True)
                ]
            )

        def loss(theta: np.ndarray, logit: np.ndarray) -> float:
            moved = theta - state["weights"]
            likelihood = weight @ (np.logaddexp(0.0, logit) - rows.reward * logit)
            return float(likelihood + 0.5 * np.einsum("gp,gpq,gq->", moved, precision, moved, optimize=True))

        theta = state["weights"]
        logit = logits(theta)
        value = loss(theta, logit)
        for _ in range(NEWTON_STEPS):
            probability = special.expit(logit)
            curvature = precision.copy()
            gradient = np.einsum("gpq,gq->gp", precision, state["weights"] - theta)
            for part, context in zip(parts, contexts, strict=True):
                more = design.moments(
                    context,
                    action[part],
                    feature[part],
                    scale,
                    (weight * (rows.reward - probability))[part],
                    (weight * probability * (1.0 - probability))[part],
                )
                curvature += more[0]
                gradient += more[1]
            step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
            decrement = float(np.sum(step * gradient))
            if decrement <= 1e-12 * (1.0 + weight.sum()):
                break
            # Newton's step is halved until the loss falls as far as its slope promises.
            size = 1.0
            while True:
                logit = logits(theta + size * step)
                lower = loss(theta + size * step, logit)
                if lower <= value - 0.1 * size * decrement or size < 1e-6:
                    break
                size /= 2
            theta, value = theta + size * step, lower
        else:
            raise RuntimeError(
                f"the logistic regression did not converge in {NEWTON_STEPS} steps; raise `ridge` and `cross_ridge`"
            )
        self._state |= {"precision": curvature, "weights": theta}

    def _mean(self, choices: Choices) -> Scores:
        score = self._linear(choices)
        score += self._state["base"]
        return special.expit(score, out=score)


def _blocks(rows: int, size: int) -> list[slice]:
    return [slice(low, low + size) for low in range(0, rows, size)]
