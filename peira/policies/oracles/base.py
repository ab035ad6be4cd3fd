"""What all oracles share: rows and choices are checked, predictions corrected, calibrated and clipped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions
from peira.policies.oracles.calibration import (
    Calibration,
    Method,
    check_rates,
    fit_calibration,
    prior_shift,
)
from peira.policies.oracles.files import save_oracle

Weights = Float[np.ndarray, " rows"] | None
Scores = Float[np.ndarray, "rows columns"]


@dataclass(eq=False)
class Oracle(ABC):
    """A reward oracle over a schema.

    `negative_rate` is the share of the failures that was kept when the rows were drawn; `predict` undoes it by
    `prior_shift`, which is right for rewards of 0 and 1.
    """

    name: ClassVar[str]
    state_file: ClassVar[str]

    schema: FeatureSchema
    negative_rate: float = field(default=1.0, kw_only=True)
    calibration: Calibration | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_rates(1.0, self.negative_rate)

    @property
    @abstractmethod
    def trained(self) -> bool:
        """Whether it has learned from any row."""

    @abstractmethod
    def fit(self, rows: LoggedDecisions, weights: Weights = None) -> Oracle:
        """Learn from these rows alone, forgetting any others and the calibration.

        `weights` [n] ≥ 0 multiply the rows' losses, on top of `rows.weight`; none is what the method asks for (see
        `importance_weights`).
        Raises ValueError for rewards outside of [0, 1], for weights that are not finite and ≥ 0, and for rows of
        another schema.
        """

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write what was learned to a file, in full: read again it predicts the same bits and learns on alike."""

    @abstractmethod
    def read(self, path: Path) -> None:
        """Take what `write` wrote."""

    @abstractmethod
    def _mean(self, choices: Choices) -> Scores:
        """The model's own mean reward; anything outside of the eligible."""

    def predict(self, choices: Choices) -> Scores:
        """f̂ [n, K] float64: the mean reward of every eligible action, NaN elsewhere; 0.5 before the first row.

        Clipped to [0, 1]: a model of squared loss oversteps them, and `fastcb` takes 1 − f̂ for a loss. Actions
        without rows get what the others suggest, never NaN. Raises ValueError for choices of another schema.
        """
        check_choices(self.schema, choices)
        if not self.trained:
            return np.where(choices.eligible, 0.5, np.nan)
        return self._finish(self._mean(choices), choices, self.calibration)

    def calibrate(self, rows: LoggedDecisions, method: Method) -> Oracle:
        """Map predictions onto the rewards of `rows`, which it must not have learned from; `fit` undoes it.

        See `fit_calibration` for the two methods. Raises ValueError where there is no row, and before any `fit`.
        """
        if not self.trained:
            raise ValueError("calibrate: the oracle has learned from no row; fit it first")
        weight = check_rows(self.schema, rows, None)
        raw = self._finish(self._mean(rows.choices), rows.choices, calibration=None)
        score = raw[np.arange(len(rows)), rows.column]
        self.calibration = fit_calibration(score, rows.reward, method, weight)
        return self

    def save(self, folder: Path) -> None:
        """Write it to a folder, which is made if need be; `load_oracle` reads it."""
        save_oracle(self, folder)

    def settings(self) -> dict[str, Any]:
        """What it was made with, the schema apart."""
        return {of.name: getattr(self, of.name) for of in fields(self) if of.init and of.name != "schema"}

    @property
    def _rate_positive(self) -> float:
        """The weight of successes in the fit, against 1 of failures."""
        return 1.0

    def _finish(
        self, mean: Float[np.ndarray, "*shape"], choices: Choices, calibration: Calibration | None
    ) -> Float[np.ndarray, "*shape"]:
        mean = np.clip(mean, 0.0, 1.0, out=mean)
        if self._rate_positive != self.negative_rate:
            mean = prior_shift(mean, self._rate_positive, self.negative_rate)
        if calibration is not None:
            mean = calibration(mean)
        np.copyto(mean, np.nan, where=~choices.eligible)
        return mean


def nothing_in(rows: LoggedDecisions, weights: Weights) -> bool:
    """Whether there is nothing to learn from: no row, or none that counts."""
    return not len(rows) or (weights is not None and not weights.any())


def check_choices(schema: FeatureSchema, choices: Choices) -> None:
    """ValueError where shapes and codes show that choices are of another schema, and for numbers not finite."""
    for what, came, expected in (
        ("numbers", choices.number.shape[1], len(schema.numbers)),
        ("categories", choices.category.shape[1], len(schema.categories)),
        ("action_numbers", choices.feature.shape[2], len(schema.action_numbers)),
    ):
        if came != expected:
            raise ValueError(
                f"choices: {came} {what}, but the oracle's schema {schema.hash} has {expected}; "
                "encode them with the oracle's schema"
            )
    # A sum is many times faster than a look at every number; it may overflow where all are finite.
    for what, of in (("number", choices.number), ("feature", choices.feature)):
        with np.errstate(all="ignore"):
            suspect = not np.isfinite(of.sum())
        if suspect and not (finite := np.isfinite(of)).all():
            row = int(np.argwhere(~finite)[0][0])
            raise ValueError(
                f"choices: expected finite numbers in `{what}`, got {of[row].tolist()} in row {row}"
            )
    if choices.action.size and (code := int(choices.action.max())) >= len(schema.actions):
        raise ValueError(
            f"choices: action code {code}, but the oracle's schema {schema.hash} has {len(schema.actions)} actions; "
            "encode them with the oracle's schema"
        )
    if not len(choices):
        return
    for at, (name, known) in enumerate(schema.categories.items()):
        low, high = int(choices.category[:, at].min()), int(choices.category[:, at].max())
        if low < 0 or high > len(known):
            raise ValueError(
                f"choices: code {low if low < 0 else high} of category {name!r}, but the oracle's schema "
                f"{schema.hash} has codes 0 … {len(known)}; encode them with the oracle's schema"
            )


def check_rows(schema: FeatureSchema, rows: LoggedDecisions, weights: Weights) -> Weights:
    """What each row counts, `weights` times the rows' own; None where each counts 1.

    Raises ValueError for rows of another schema, rewards outside of [0, 1] and weights that are not finite and ≥ 0.
    """
    check_choices(schema, rows.choices)
    if not (inside := (rows.reward >= 0) & (rows.reward <= 1)).all():
        row = int(np.argmin(inside))
        raise ValueError(
            f"reward: expected numbers in [0, 1], got {rows.reward[row]:g} in row {row}; scale them"
        )
    if weights is not None and len(weights) != len(rows):
        raise ValueError(f"weights: expected one a row, got {len(weights)} for {len(rows)} rows")
    if weights is None or rows.weight is None:
        product = rows.weight if weights is None else weights
    else:
        product = weights * rows.weight
    if product is not None and not (fine := (product >= 0) & (product < np.inf)).all():
        row = int(np.argmin(fine))
        raise ValueError(f"weights: expected finite numbers of at least 0, got {product[row]:g} in row {row}")
    return product
