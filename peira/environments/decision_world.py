"""Worlds of single decisions: contexts come, one eligible action is taken in each, its reward arrives later.

A world keeps nothing between calls. What happens is a function of its seed, of the generator handed in and of the
round, so that a run resumed with the same generator goes on exactly as it would have.
"""

from __future__ import annotations

import difflib
import re
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from peira.experience.decisions import Choices, FeatureSchema

Rounds = int | Int[np.ndarray, " rows"]
"""The round of the first of consecutive rows, or the round of every row."""


@runtime_checkable
class DecisionWorld(Protocol):
    """What a bandit learner runs in; a round is one decision, and rounds are the unit of time."""

    @property
    def schema(self) -> FeatureSchema: ...

    def contexts(self, rows: int, generator: np.random.Generator, at: int) -> Choices:
        """The next contexts with their eligible actions, from round `at` on; fewer where the stream ends."""
        ...

    def expected_reward(self, choices: Choices, at: Rounds) -> Float[np.ndarray, "rows columns"]:
        """f*(x, a) of every eligible action; NaN where padded."""
        ...

    def outcomes(
        self, choices: Choices, column: Int[np.ndarray, " rows"], generator: np.random.Generator, at: Rounds
    ) -> tuple[Float[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
        """`(reward, delay)` of the chosen columns: rewards in [0, 1], delays in rounds after the decision."""
        ...

    def clusters(self, choices: Choices, at: Rounds) -> Int[np.ndarray, " rows"]:
        """The same number for rows that are not independent of one another, such as attempts of one payment."""
        ...


def rounds_of(at: Rounds, rows: int) -> Int[np.ndarray, " rows"]:
    """The round of every row; ValueError where `at` is an array of another length."""
    if isinstance(at, np.ndarray):
        if len(at) != rows:
            raise ValueError(f"at: expected the rounds of {rows} rows, got {len(at)}")
        return at
    return np.arange(at, at + rows)


def best_value(expected: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, " rows"]:
    """max_a f*(x, a) of every row, of what `expected_reward` gave."""
    return np.nanmax(expected, axis=1)


def uniform_value(expected: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, " rows"]:
    """(1/K(x)) Σ_a f*(x, a) over the eligible actions of every row."""
    return np.nanmean(expected, axis=1)


def regret(
    expected: Float[np.ndarray, "rows columns"], pmf: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, " rows"]:
    """max_a f*(x, a) − Σ_a π(a|x) f*(x, a) of every row; `pmf` is 0 where padded."""
    return best_value(expected) - np.nansum(pmf * expected, axis=1)


CLASSIFICATION = re.compile(r"classification-(\d+)(?:-noise-(\d+))?(?:-imbalance-(\d+))?")


def is_decision_world(env: str) -> bool:
    """Whether `make_decision_world` knows this name."""
    # These modules import this one.
    from peira.environments.payment import WORLDS
    from peira.environments.supervised_bandit import DATASETS

    return env in WORLDS or env in DATASETS or CLASSIFICATION.fullmatch(env) is not None


def make_decision_world(env: str, seed: int) -> DecisionWorld:
    """The world of this name. `seed` chooses the world itself, not a run in it: runs in one world differ by the
    generator that they hand to its methods.

      payment         the payment simulator; `seed` draws its coefficients. See `peira.environments.payment.WORLDS`
                      for payment-drift, -season, -outage, -delay, -retries and -novel
      digits, wine, breast-cancer, iris    scikit-learn's data as a bandit, one pass; `seed` chooses the order
      classification-K[-noise-P][-imbalance-R]    scikit-learn's make_classification, 10,000 rows of K classes, P % of
                      them with a wrong label, the commonest class R times as common as the rarest; `seed` draws them

    Raises ValueError, with the nearest name, when there is none such, and where scikit-learn is missing.
    """
    from peira.environments.payment import WORLDS, PaymentWorld
    from peira.environments.supervised_bandit import DATASETS, SupervisedWorld

    if env in WORLDS:
        return PaymentWorld(seed, WORLDS[env])
    if env in DATASETS:
        return SupervisedWorld.from_dataset(env, seed)
    if spec := CLASSIFICATION.fullmatch(env):
        classes, noise, imbalance = spec.groups()
        return SupervisedWorld.from_classification(
            int(classes), seed, label_noise=int(noise or 0) / 100, imbalance=float(imbalance or 1)
        )
    names = (*WORLDS, *DATASETS, "classification-10")
    nearest = difflib.get_close_matches(env, names, n=1, cutoff=0.4)
    offer = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(names)}"
    raise ValueError(f"env: there is no decision world {env!r}; {offer}")
