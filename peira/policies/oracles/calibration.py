"""Predicted success made to mean what it says: isotonic and Platt maps, undoing of unequal sampling, and its errors.

Explorers allot by the gaps between scores, so that a model whose scores are stretched or shifted explores too little
or too much however well it ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

Method = Literal["isotonic", "platt"]
Row = Float[np.ndarray, " rows"]


@dataclass(frozen=True)
class Isotonic:
    """A rising piecewise linear map through `knots`, constant beyond the first and the last.

    Where the fitted map is flat, scores that differed become equal: inverse gap weighting then gives those actions
    1/K each whatever γ is. `Platt` keeps them apart.
    """

    position: tuple[float, ...]
    value: tuple[float, ...]

    def __call__(self, score: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        return np.interp(score, self.position, self.value)

    def to_json(self) -> dict[str, Any]:
        return {"method": "isotonic", "position": list(self.position), "value": list(self.value)}


@dataclass(frozen=True)
class Platt:
    """score → σ(slope·logit(score) + intercept), strictly rising where slope > 0."""

    slope: float
    intercept: float

    def __call__(self, score: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        return special.expit(self.slope * _log_odds(score) + self.intercept)

    def to_json(self) -> dict[str, Any]:
        return {"method": "platt", "slope": self.slope, "intercept": self.intercept}


Calibration = Isotonic | Platt


def calibration_from_json(read: dict[str, Any]) -> Calibration:
    """The map whose `to_json` this is; ValueError for anything else."""
    try:
        if read["method"] == "platt":
            return Platt(float(read["slope"]), float(read["intercept"]))
        if read["method"] == "isotonic" and len(read["position"]) == len(read["value"]) > 0:
            return Isotonic(tuple(map(float, read["position"])), tuple(map(float, read["value"])))
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"calibration: expected an isotonic or a Platt map, got {str(read)[:80]}")


def fit_calibration(score: Row, reward: Row, method: str, weight: Row | None = None) -> Calibration:
    """The map from predicted to observed reward, fitted on rows that the model did not learn from.

    score   [n] predictions of the actions that were taken, in [0, 1]
    reward  [n] in [0, 1]
    weight  [n] what each row counts; None: 1, and n is their sum

    "isotonic" is the rising step function of least squares, its ends pulled in to 1/(n + 2) and 1 − 1/(n + 2), with
    the steps joined by lines; it needs hundreds of rows. "platt" is logistic regression on the log-odds with Platt's
    smoothed targets (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2); a slope below 0 becomes 0, so that neither reverses the order.

    Raises ValueError for no row and for another method. Sources: Zadrozny and Elkan 2002; Platt 1999.
    """
    mass = np.ones(len(reward)) if weight is None else weight
    score, reward, mass = score[mass > 0], reward[mass > 0], mass[mass > 0]
    if not len(mass):
        raise ValueError("rows: a calibration needs some, got none")
    if method == "isotonic":
        return _isotonic(score, reward, mass)
    if method == "platt":
        return _platt(score, reward, mass)
    raise ValueError(f"method: expected isotonic or platt, got {method!r}")


def prior_shift(
    score: Float[np.ndarray, "*shape"], rate_positive: float, rate_negative: float
) -> Float[np.ndarray, "*shape"]:
    """Probabilities of all rows from those learned where the two outcomes were kept, or weighted, unequally.

    With rate_positive the share of the successes that was kept (or their weight) and rate_negative that of the
    failures, odds = learned odds · rate_negative/rate_positive:
      p = s·rate_negative / (s·rate_negative + (1 − s)·rate_positive)
    exact for the model that learned the unequal sample exactly. Without it the gaps between actions are distorted,
    and not by a common factor. Source: Elkan 2001.

    Raises ValueError for rates that are not positive.
    """
    check_rates(rate_positive, rate_negative)
    return score * rate_negative / (score * rate_negative + (1.0 - score) * rate_positive)


def check_rates(rate_positive: float, rate_negative: float) -> None:
    """ValueError for rates that are not positive and finite."""
    for name, rate in (("rate_positive", rate_positive), ("rate_negative", rate_negative)):
        if not 0 < rate < np.inf:
            raise ValueError(f"{name}: expected a positive rate or weight, got {rate:g}")


def importance_weights(propensity: Row, cap: float) -> Row:
    """min(1/p, cap): weights of rows by which a fit counts every eligible action evenly.

    The oracles are fitted without weights by default: capped weights did not help on logs of their own exploration.
    Raises ValueError for a propensity outside of (0, 1] and for a cap below 1.
    """
    if not cap >= 1:
        raise ValueError(f"cap: expected at least 1, got {cap:g}")
    if not ((propensity > 0) & (propensity <= 1)).all():
        row = int(np.argmin((propensity > 0) & (propensity <= 1)))
        raise ValueError(f"propensity: expected numbers in (0, 1], got {propensity[row]:g} in row {row}")
    return np.minimum(1.0 / propensity, cap)


def brier(score: Row, reward: Row) -> float:
    """Mean squared error of predicted probabilities."""
    return float(np.mean((score - reward) ** 2))


def log_loss(score: Row, reward: Row) -> float:
    """−mean[r log s + (1 − r) log(1 − s)], in nats; ∞ if what was predicted with certainty did not happen."""
    return float(-np.mean(special.xlogy(reward, score) + special.xlog1py(1.0 - reward, -score)))


def expected_calibration_error(score: Row, reward: Row, bins: int = 10) -> float:
    """Σ_bins (share of the rows)·|mean score − mean reward|, the bins of equal numbers of rows, equal scores together.

    Of equal numbers, not of equal width: success rates crowd near 1. Of n rows of perfect scores it is still about
    √(2·bins·p(1 − p)/(πn)). Raises ValueError for fewer than one bin and for no row.
    """
    if bins < 1 or not len(score):
        raise ValueError(f"expected rows and at least 1 bin, got {len(score)} rows and {bins} bins")
    edges = np.quantile(score, np.linspace(0, 1, bins + 1)[1:-1])
    index = np.searchsorted(edges, score, side="right")
    return float(np.abs(np.bincount(index, score - reward, minlength=bins)).sum() / len(score))


def _isotonic(score: np.ndarray, reward: np.ndarray, mass: np.ndarray) -> Isotonic:
    # Equal scores are one point: a step inside of them would depend on the order of the rows.
    position, index = np.unique(score, return_inverse=True)
    total = np.bincount(index, mass)
    step = optimize.isotonic_regression(np.bincount(index, mass * reward) / total, weights=total).x
    least = 1.0 / (mass.sum() + 2)
    step = np.clip(step, least, 1.0 - least)
    # The ends of each flat stretch say it all.
    rises = np.diff(step) != 0
    knot = np.r_[True, rises] | np.r_[rises, True]
    return Isotonic(tuple(position[knot].tolist()), tuple(step[knot].tolist()))


def _platt(score: np.ndarray, reward: np.ndarray, mass: np.ndarray) -> Platt:
    total, positive = mass.sum(), mass @ reward
    high, low = (positive + 1) / (positive + 2), 1 / (total - positive + 2)
    target = reward * high + (1 - reward) * low
    odds = _log_odds(score)

    def loss(of: np.ndarray) -> tuple[float, np.ndarray]:
        logit = of[0] * odds + of[1]
        error = mass * (special.expit(logit) - target)
        value = mass @ (np.logaddexp(0, logit) - target * logit)
        return value / total, np.array([error @ odds, error.sum()]) / total

    found = optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-9})
    slope, intercept = found.x
    if slope <= 0:
        return Platt(0.0, float(special.logit(mass @ target / total)))
    return Platt(float(slope), float(intercept))


def _log_odds(score: np.ndarray) -> np.ndarray:
    return special.logit(np.clip(score, 1e-15, 1 - 1e-15))
