"""Trees over pairs of a context and an action (LightGBM): gradient boosting, and a forest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightgbm
import numpy as np
from jaxtyping import Float

from peira.experience.decisions import Choices, LoggedDecisions
from peira.policies.oracles.base import Oracle, Scores, Weights, check_choices, check_rows, nothing_in
from peira.policies.oracles.calibration import check_rates

PAIRS = 262_144


@dataclass(eq=False)
class TreeOracle(Oracle):
    """Trees over [numbers, categories, action, action features]; categories and the action split natively.

    trees, leaves, least_rows  LightGBM's num_iterations, num_leaves, min_data_in_leaf
    num_threads                1: what many services and runs on one machine need; one decision gains nothing from more

    Trees give many actions the very same score: see `Isotonic` for what explorers make of ties. Deterministic for a
    seed and a number of threads.
    """

    state_file: ClassVar[str] = "model.txt"

    seed: int = field(default=0, kw_only=True)
    trees: int = field(default=100, kw_only=True)
    leaves: int = field(default=15, kw_only=True)
    least_rows: int = field(default=50, kw_only=True)
    num_threads: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("trees", 1), ("leaves", 2), ("least_rows", 1), ("num_threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        self._booster: lightgbm.Booster | None = None

    @property
    def trained(self) -> bool:
        return self._booster is not None

    def fit(self, rows: LoggedDecisions, weights: Weights = None) -> TreeOracle:
        weights = check_rows(self.schema, rows, weights)
        self._booster, self.calibration = None, None
        if nothing_in(rows, weights):
            return self
        pairs = self._pairs(rows.choices, np.arange(len(rows)), rows.column)
        self._booster = self._grow(pairs, rows.reward, weights)
        return self

    def write(self, path: Path) -> None:
        self._booster.save_model(path)

    def read(self, path: Path) -> None:
        self._booster = lightgbm.Booster(model_file=path)

    @abstractmethod
    def _grow(self, pairs: np.ndarray, reward: np.ndarray, weights: Weights) -> lightgbm.Booster:
        """The trees of these pairs."""

    def _train(
        self, pairs: np.ndarray, target: np.ndarray, weights: Weights, kind: dict[str, Any]
    ) -> lightgbm.Booster:
        numbers = len(self.schema.numbers)
        codes = list(range(numbers, numbers + len(self.schema.categories) + 1))
        parameters = {
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.least_rows,
            "seed": self.seed,
            "num_threads": self.num_threads,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        rows = lightgbm.Dataset(pairs, target, weight=weights, categorical_feature=codes)
        return lightgbm.train(parameters | kind, rows, self.trees)

    def _mean(self, choices: Choices) -> Scores:
        mean = np.zeros(choices.action.shape)
        for rows, columns in _blocks(choices):
            mean[rows, columns] = self._booster.predict(
                self._pairs(choices, rows, columns), num_threads=self.num_threads
            )
        return mean

    def _pairs(
        self, choices: Choices, row: np.ndarray, column: np.ndarray
    ) -> Float[np.ndarray, "pairs features"]:
        """One float32 row a pair, in one piece: LightGBM reads it in place."""
        numbers, categories = choices.number.shape[1], choices.category.shape[1]
        pairs = np.empty((len(row), numbers + categories + 1 + choices.feature.shape[2]), np.float32)
        pairs[:, :numbers] = choices.number[row]
        pairs[:, numbers : numbers + categories] = choices.category[row]
        pairs[:, numbers + categories] = choices.action[row, column]
        pairs[:, numbers + categories + 1 :] = choices.feature[row, column]
        return pairs


@dataclass(eq=False)
class LightGBMOracle(TreeOracle):
    """Gradient boosting.

    learning_rate     of each tree
    loss              "log": cross-entropy, for any reward in [0, 1]; "squared"
    scale_pos_weight  weight of successes in the loss; `predict` undoes what it does to the probabilities
    """

    name: ClassVar[str] = "lightgbm"

    learning_rate: float = field(default=0.1, kw_only=True)
    loss: str = field(default="log", kw_only=True)
    scale_pos_weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates(self.scale_pos_weight, 1.0)
        if self.loss not in ("log", "squared"):
            raise ValueError(f"loss: expected log or squared, got {self.loss!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a positive number, got {self.learning_rate:g}")

    @property
    def _rate_positive(self) -> float:
        return self.scale_pos_weight

    def _grow(self, pairs: np.ndarray, reward: np.ndarray, weights: Weights) -> lightgbm.Booster:
        if self.scale_pos_weight != 1.0:
            # A reward r is a share r of success and a share 1 − r of failure.
            mass = reward * self.scale_pos_weight + (1.0 - reward)
            reward = reward * self.scale_pos_weight / mass
            weights = mass if weights is None else mass * weights
        objective = "cross_entropy" if self.loss == "log" else "regression"
        return self._train(
            pairs, reward, weights, {"objective": objective, "learning_rate": self.learning_rate}
        )


@dataclass(eq=False)
class ForestOracle(TreeOracle):
    """A random forest of squared loss: each tree, on a sample of the rows and of the features, is an estimate.

    That is what Thompson sampling by trees needs; the trees of a boosted model are only corrections of one another.
    """

    name: ClassVar[str] = "forest"

    leaves: int = field(default=63, kw_only=True)
    least_rows: int = field(default=10, kw_only=True)

    def predict_members(self, choices: Choices) -> Float[np.ndarray, "members rows columns"]:
        """What every tree predicts, [trees, n, K]; 0.5 before the first row.

        Corrected, calibrated and clipped like `predict`, whose value is their mean before that.
        """
        if not self.trained:
            return np.tile(self.predict(choices), (self.trees, 1, 1))
        check_choices(self.schema, choices)
        # One call for the leaves of all trees; a call for each tree would take as many times as long for one decision.
        members = np.zeros((len(self._leaf), *choices.action.shape))
        for rows, columns in _blocks(choices):
            pairs = self._pairs(choices, rows, columns)
            leaf = self._booster.predict(pairs, pred_leaf=True, num_threads=self.num_threads)
            members[:, rows, columns] = np.take_along_axis(self._leaf, leaf.T.astype(np.int64), axis=1)
        return self._finish(members, choices, self.calibration)

    def read(self, path: Path) -> None:
        super().read(path)
        self._tabulate(self._booster)

    def _grow(self, pairs: np.ndarray, reward: np.ndarray, weights: Weights) -> lightgbm.Booster:
        mean = np.average(reward, weights=weights)
        # LightGBM's forest lets a tree without a split predict 0: deviations from the mean are learned instead.
        kind = {
            "objective": "regression",
            "boost_from_average": False,
            "boosting": "rf",
            "bagging_freq": 1,
            "bagging_fraction": 0.632,  # the share of distinct rows in a bootstrap sample
            "feature_fraction_bynode": 0.7,
        }
        # Of a single row its samples would be empty.
        some = np.arange(max(len(pairs), 2)) % len(pairs)
        weights = None if weights is None else weights[some]
        booster = self._train(pairs[some], reward[some] - mean, weights, kind)
        for number, tree in enumerate(_leaves(booster)):
            for leaf, value in enumerate(tree):
                booster.set_leaf_output(number, leaf, value + mean)
        self._tabulate(booster)
        return booster

    def _tabulate(self, booster: lightgbm.Booster) -> None:
        """`_leaf` [trees, leaves]: what each leaf predicts; 0 where a tree has fewer."""
        trees = _leaves(booster)
        self._leaf = np.zeros((len(trees), max(map(len, trees))))
        for own, tree in zip(self._leaf, trees, strict=True):
            own[: len(tree)] = tree


def _leaves(booster: lightgbm.Booster) -> list[np.ndarray]:
    """The values of each tree's leaves, of which the text of the model has one line a tree."""
    lines = [line for line in booster.model_to_string().splitlines() if line.startswith("leaf_value=")]
    return [np.array(line.removeprefix("leaf_value=").split(), float) for line in lines]


def _blocks(choices: Choices) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of the eligible pairs, so many at a time."""
    row, column = np.nonzero(choices.eligible)
    return [(row[low : low + PAIRS], column[low : low + PAIRS]) for low in range(0, len(row), PAIRS)]
