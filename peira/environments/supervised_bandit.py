"""Classification data as a bandit: the label is the action that pays, and only the chosen action's pay is told."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from jaxtyping import Float, Int, Shaped

from peira.environments.decision_world import Rounds, rounds_of
from peira.experience.decisions import Choices, FeatureSchema

DATASETS = {
    "digits": "load_digits",
    "wine": "load_wine",
    "breast-cancer": "load_breast_cancer",
    "iris": "load_iris",
}
"""Names for `from_dataset`, with the function of `sklearn.datasets` that gives the data."""

CLASSIFICATION_ROWS = 10_000
CLASSIFICATION_FEATURES = 20
CLASSIFICATION_INFORMATIVE = 10


class SupervisedWorld:
    """One pass over a table in an order that `seed` shuffles: a row a round, every action eligible, no delay.

    Context = features, actions = labels, reward = 1{a = y}; or 1 − cost, given a table of costs. The reward is no
    random draw, so `expected_reward` is the reward itself.

      features  [rows, features] finite numbers
      target    [rows] labels of any type that sorts, the actions being the distinct ones in their order;
                or [rows, actions] costs in [0, 1]
      actions   their names; the labels, or "0", "1", … by default
      names     of the features; "x0", "x1", … by default

    What a round pays is looked up by its number: rows taken out of a call's contexts need the array of their rounds as
    `at`, and a ValueError says so. Raises ValueError for a table without rows, of unequal lengths or not finite, and
    for costs outside [0, 1]. Source: Dudík et al. 2014, section 5.1 (the reduction from classification).
    """

    def __init__(
        self,
        features: Shaped[np.ndarray, "rows features"],
        target: Shaped[np.ndarray, " others"] | Shaped[np.ndarray, "others actions"],
        seed: int,
        *,
        actions: Sequence[str] = (),
        names: Sequence[str] = (),
    ) -> None:
        if not len(features) or len(features) != len(target):
            raise ValueError(
                f"features: expected a row for each of {len(target)} targets, got {len(features)}"
            )
        self._features = features.astype(np.float32)
        if not np.isfinite(self._features).all():
            row = int(np.argmin(np.isfinite(self._features).all(1)))
            raise ValueError(
                f"features: row {row} is not finite in float32; fill in or rescale what it misses"
            )
        if target.ndim == 1:
            known, code = np.unique(target, return_inverse=True)
            self._reward = (code[:, None] == np.arange(len(known))).astype(np.float64)
        elif ((target >= 0) & (target <= 1)).all():
            known, self._reward = np.arange(target.shape[1]), 1.0 - target
        else:
            raise ValueError(
                f"target: expected costs in [0, 1], got {target.min():g} to {target.max():g}; rescale them"
            )
        self._order = np.random.default_rng(seed).permutation(len(features))
        self.schema = FeatureSchema(
            actions=tuple(actions) or tuple(str(label) for label in known),
            numbers=tuple(names) or tuple(f"x{place}" for place in range(features.shape[1])),
        )
        if len(self.schema.actions) != len(known):
            raise ValueError(f"actions: expected {len(known)} names, got {len(self.schema.actions)}")

    @classmethod
    def from_dataset(cls, name: str, seed: int) -> SupervisedWorld:
        """One of scikit-learn's data sets by name (`DATASETS`), every feature scaled to [0, 1] over the whole table.

        Raises ValueError for another name, and where scikit-learn is missing.
        """
        if name not in DATASETS:
            raise ValueError(f"name: expected one of {', '.join(DATASETS)}, got {name!r}")
        table = getattr(_sklearn_datasets(name), DATASETS[name])()
        low, high = table.data.min(0), table.data.max(0)
        # A pixel that is the same in all images stays at 0.
        features = (table.data - low) / np.where(high > low, high - low, 1.0)
        labels = np.array([str(label) for label in table.target_names])[table.target]
        return cls(features, labels, seed, names=[str(feature) for feature in table.feature_names])

    @classmethod
    def from_classification(
        cls, classes: int, seed: int, *, label_noise: float = 0.0, imbalance: float = 1.0
    ) -> SupervisedWorld:
        """10,000 rows of scikit-learn's make_classification: 20 features, 10 of them informative, a cluster a class.

          classes      at least 2; as many as 2^10
          label_noise  share of rows whose label is replaced by another one, uniformly drawn, in [0, 1)
          imbalance    how many times the commonest class is as common as the rarest; the others lie between in a
                       geometric series; at least 1

        `seed` draws the data and the order. Raises ValueError for what is out of range, and where scikit-learn is
        missing.
        """
        if not 2 <= classes <= 2**CLASSIFICATION_INFORMATIVE:
            raise ValueError(f"classes: expected 2 to {2**CLASSIFICATION_INFORMATIVE}, got {classes}")
        if not 0 <= label_noise < 1:
            raise ValueError(f"label_noise: expected a share in [0, 1), got {label_noise:g}")
        if not 1 <= imbalance < np.inf:
            raise ValueError(f"imbalance: expected a ratio of at least 1, got {imbalance:g}")
        share = imbalance ** -(np.arange(classes) / (classes - 1))
        features, code = _sklearn_datasets("classification").make_classification(
            n_samples=CLASSIFICATION_ROWS,
            n_features=CLASSIFICATION_FEATURES,
            n_informative=CLASSIFICATION_INFORMATIVE,
            n_classes=classes,
            n_clusters_per_class=1,
            weights=share / share.sum(),
            flip_y=0.0,
            random_state=seed,
        )
        generator = np.random.default_rng(seed)
        wrong = generator.random(len(code)) < label_noise
        code = np.where(wrong, (code + generator.integers(1, classes, len(code))) % classes, code)
        # As costs, which leave a class that happens to have no row among the actions.
        return cls(features, (code[:, None] != np.arange(classes)).astype(np.float64), seed)

    def contexts(self, rows: int, generator: np.random.Generator, at: int) -> Choices:
        """The rows of the rounds `at` to `at + rows`, as far as there are any; nothing is drawn."""
        order = self._order[at : at + rows]
        actions = len(self.schema.actions)
        return Choices(
            number=self._features[order],
            category=np.zeros((len(order), 0), np.int32),
            action=np.tile(np.arange(actions, dtype=np.int32), (len(order), 1)),
            feature=np.zeros((len(order), actions, 0), np.float32),
        )

    def expected_reward(self, choices: Choices, at: Rounds) -> Float[np.ndarray, "rows columns"]:
        """What every action pays."""
        reward = self._reward[self._rows(choices, at)]
        expected = np.take_along_axis(reward, np.maximum(choices.action, 0), axis=1)
        expected[~choices.eligible] = np.nan
        return expected

    def outcomes(
        self, choices: Choices, column: Int[np.ndarray, " rows"], generator: np.random.Generator, at: Rounds
    ) -> tuple[Float[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
        """`(reward, delay)`: what the chosen columns pay, at once; nothing is drawn."""
        row = np.arange(len(choices))
        return self._reward[self._rows(choices, at), choices.action[row, column]], np.zeros(
            len(choices), np.int64
        )

    def clusters(self, choices: Choices, at: Rounds) -> Int[np.ndarray, " rows"]:
        """Every row by itself."""
        return rounds_of(at, len(choices))

    def __len__(self) -> int:
        return len(self._order)

    def _rows(self, choices: Choices, at: Rounds) -> Int[np.ndarray, " rows"]:
        rounds = rounds_of(at, len(choices))
        if len(rounds) and not (rounds.min() >= 0 and rounds.max() < len(self)):
            raise ValueError(
                f"at: expected rounds of 0 to {len(self) - 1}, got {rounds.min()} to {rounds.max()}"
            )
        rows = self._order[rounds]
        if not np.array_equal(choices.number, self._features[rows]):
            raise ValueError(
                "at: the choices are not those of these rounds; give the round of every row as an array"
            )
        return rows


def _sklearn_datasets(env: str) -> ModuleType:
    try:
        from sklearn import datasets
    except ModuleNotFoundError as missing:
        raise ValueError(f"env: {env} needs scikit-learn: pip install 'peira[decisions]'") from missing
    return datasets
