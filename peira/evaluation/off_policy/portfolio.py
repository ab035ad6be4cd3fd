"""What choosing by an estimator is worth: the k candidates it ranks first, seen as a portfolio.

J is a candidate's true value (or its CVaR, or a quantile of its return: every function takes the numbers as given), Ĵ
what an estimator says, J̄ a safety threshold. The k chosen candidates are all deployed in the online test, the best of
them is kept: what the test wins is best@k − J(π_b), what it risks is the spread of the k values.

An estimate that is NaN ranks last: an estimator that fails must not be followed.

Source: Kiyohara et al., "Towards Assessing and Benchmarking Risk-Return Tradeoff of Off-Policy Evaluation" (ICLR 2024).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from peira.evaluation.statistics import (
    RESAMPLES,
    pointwise_bootstrap_interval,
    stratified_bootstrap_interval,
)

SHARPE_CAP = 100.0
"""The greatest SharpeRatio@k that is reported: equal values have no spread, and near copies hardly any."""

Values = Float[np.ndarray, " candidates"]
AtK = Float[np.ndarray, " candidates"]


class Portfolios(NamedTuple):
    """The portfolios of the first k = 1 … K candidates of a ranking, K the number of candidates.

      k                 their sizes
      kth               value of the candidate ranked k-th
      best, worst       greatest and least value among the k
      mean, std         their mean and standard deviation; std is NaN at k = 1 with ddof = 1
      sharpe_numerator  max(best − value of the baseline, 0)
      sharpe            sharpe_numerator / std, at most the cap; NaN at k = 1
      regret            greatest value of all candidates − best

    `sharpe` grows without limit when candidates are near copies of one another: show numerator and std beside it.
    """

    k: Int[np.ndarray, " candidates"]
    kth: AtK
    best: AtK
    worst: AtK
    mean: AtK
    std: AtK
    sharpe_numerator: AtK
    sharpe: AtK
    regret: AtK


class Aggregate(NamedTuple):
    """Means over data sets with their bootstrap limits, and the number of data sets where there was a value.

    The limits are NaN with fewer than two data sets, the mean with none.
    """

    mean: Float[np.ndarray, "*shape"]
    low: Float[np.ndarray, "*shape"]
    high: Float[np.ndarray, "*shape"]
    count: Int[np.ndarray, "*shape"]


class Disagreement(NamedTuple):
    """In how many of `trials` two metrics crown no estimator in common, and the Wilson interval of that share."""

    count: int
    trials: int
    share: float
    low: float
    high: float


def ranking(estimate: Values, prefer: Values | None = None) -> Int[np.ndarray, " candidates"]:
    """Indices of the candidates from the greatest estimate to the least; NaN last.

    Equal estimates keep the order in which the candidates came. With `prefer` the one of greater `prefer` goes first:
    the published toy examples resolve ties toward the better true value, which nobody knows in use.
    """
    ascending = np.where(np.isnan(estimate), -np.inf, estimate)
    # −∞ is an estimate as well, and better than none.
    keys = [-ascending, np.isnan(estimate)]
    return np.lexsort(keys if prefer is None else [-prefer, *keys])


def portfolios(
    value: Values,
    order: Int[np.ndarray, " candidates"],
    baseline: float,
    *,
    ddof: int = 1,
    cap: float = SHARPE_CAP,
) -> Portfolios:
    """SharpeRatio@k = max(best@k − J(π_b), 0) / std@k and its parts for every k, candidates taken in `order`.

    std@k = √(Σ (J − mean@k)² / (k − ddof)). The paper's text divides by k, its figures by k − 1: the default. The
    baseline is no member of the portfolio and no part of the spread. The ratio is undefined (NaN) at k = 1; without
    spread it is the cap where something is won and 0 where nothing is.

    With estimates as `value` these are the portfolios that the estimator promises.

    Raises ValueError for a value or baseline that is not finite, for an `order` that is no permutation, and for a ddof
    other than 0 or 1.
    """
    _check_finite("value", value)
    if not np.isfinite(baseline):
        raise ValueError(f"baseline: expected the finite value of a policy, got {baseline}")
    if not np.array_equal(np.sort(order), np.arange(len(value))):
        raise ValueError(f"order: expected each of 0 … {len(value) - 1} once, got {order.tolist()}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof: expected 1 (as in the published figures) or 0, got {ddof}")
    ranked = value[order]
    k = np.arange(1, len(value) + 1)
    best, mean = np.maximum.accumulate(ranked), np.cumsum(ranked) / k
    # Row k − 1 of the triangle holds the first k: differences from the mean, so that no digits cancel.
    squares = np.where(np.tri(len(value), dtype=bool), (ranked - mean[:, None]) ** 2, 0.0).sum(axis=1)
    # What rounding of the mean leaves of equal values is no spread.
    worst = np.minimum.accumulate(ranked)
    squares[best == worst] = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        std = np.sqrt(squares / (k - ddof))
        numerator = np.maximum(best - baseline, 0.0)
        sharpe = np.where(numerator > 0, np.minimum(numerator / std, cap), 0.0)
    sharpe[0] = np.nan
    return Portfolios(k, ranked, best, worst, mean, std, numerator, sharpe, value.max() - best)


def normalised_regret(value: Values, order: Int[np.ndarray, " candidates"]) -> AtK:
    """Regret@k / |max J| for k = 1 … K: what is lost by the best of the first k, in shares of the best there is.

    ∞ where the best value of all is 0 and not among the first k, 0 where it is.
    """
    regret = value.max() - np.maximum.accumulate(value[order])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(regret == 0, 0.0, regret / abs(value.max()))


def safety_violation_rate(value: Values, order: Int[np.ndarray, " candidates"], threshold: float) -> AtK:
    """Share of the first k candidates whose value is below the threshold, for k = 1 … K."""
    return np.cumsum(value[order] < threshold) / np.arange(1, len(value) + 1)


def mean_squared_error(estimate: Values, value: Values) -> float:
    """mean (Ĵ − J)² over candidates; NaN if any estimate is."""
    return float(np.mean((estimate - value) ** 2))


def normalised_mean_squared_error(estimate: Values, value: Values) -> float:
    """mean (Ĵ − J)² / mean J²; NaN where all values are 0."""
    scale = float(np.mean(value**2))
    return mean_squared_error(estimate, value) / scale if scale > 0 else float("nan")


def mean_relative_error(estimate: Values, value: Values) -> float:
    """mean |(Ĵ − J) / J|; ∞ where a value is 0 and its estimate is not. A value of 0 estimated as 0 has no error."""
    error = np.abs(estimate - value)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean(np.where(error == 0, 0.0, error / np.abs(value))))


def rank_correlation(estimate: Values, value: Values) -> float:
    """Spearman's ρ of estimates and values with average ranks for ties; NaN estimates share the last rank.

    NaN with fewer than two candidates or where all estimates or all values are equal.
    """
    _check_finite("value", value)
    filled = np.where(np.isnan(estimate), -np.inf, estimate)
    ranks = stats.rankdata(filled), stats.rankdata(value)
    if len(value) < 2 or any(np.ptp(of) == 0 for of in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def type_one_error(estimate: Values, value: Values, threshold: float) -> float:
    """#{J ≥ J̄ and not Ĵ ≥ J̄} / #{J ≥ J̄}: safe candidates that would be turned away; 0 where none is safe."""
    safe = value >= threshold
    return float(np.mean(~(estimate[safe] >= threshold))) if safe.any() else 0.0


def type_two_error(estimate: Values, value: Values, threshold: float) -> float:
    """#{J < J̄ and Ĵ ≥ J̄} / #{J < J̄}: unsafe candidates that would be let in; 0 where all are safe."""
    unsafe = value < threshold
    return float(np.mean(estimate[unsafe] >= threshold)) if unsafe.any() else 0.0


def area_under_error_curve(squared_error: Float[np.ndarray, " trials"], limit: float) -> float:
    """∫₀^limit F(x) dx / limit, F the distribution function of the squared errors: 1 if there is no error at all.

    How robust an estimator is over hyper-parameters, candidates and seeds; NaN errors count as ∞. It is
    mean (1 − min(error, limit)/limit). Raises ValueError for a limit that is not positive.

    Source: Saito et al. 2021, "Evaluating the Robustness of Off-Policy Evaluation" (AU-CDF).
    """
    if not 0 < limit < np.inf:
        raise ValueError(f"limit: expected a positive finite number, got {limit}")
    error = np.where(np.isnan(squared_error), np.inf, squared_error)
    return float(np.mean(1 - np.minimum(error, limit) / limit))


def worst_errors(squared_error: Float[np.ndarray, " trials"], share: float = 0.3) -> float:
    """Mean of the `share` greatest squared errors (the CVaR of the error), the last one counted in part.

    (1/share) ∫_{1−share}^1 F⁻¹(u) du. NaN errors count as ∞. Raises ValueError unless 0 < share ≤ 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {share}")
    error = np.sort(np.where(np.isnan(squared_error), np.inf, squared_error))[::-1]
    mass = np.clip(share * len(error) - np.arange(len(error)), 0.0, 1.0)
    return float((error[mass > 0] * mass[mass > 0]).sum() / (share * len(error)))


def over_data_sets(
    score: Float[np.ndarray, "data_sets *shape"],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Aggregate:
    """Mean of a metric over data sets with a percentile bootstrap interval, data sets redrawn, entry by entry.

    Compute a metric for each data set first: behaviour policies differ from one to the next. NaN (a SharpeRatio@1, an
    estimator that failed) is left out of the mean of its entry, and `count` says how many data sets remained.
    """
    flat = score.reshape(len(score), -1)
    there = ~np.isnan(flat)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = np.where(there, flat, 0.0).sum(axis=0) / count
    low, high = np.full(flat.shape[1], np.nan), np.full(flat.shape[1], np.nan)
    options = {"rng": rng, "confidence": confidence, "resamples": resamples}
    whole = there.all(axis=0)
    if (
        whole.any()
        and (limits := pointwise_bootstrap_interval(flat[:, whole], np.mean, **options)) is not None
    ):
        low[whole], high[whole] = limits
    for column in np.flatnonzero(~whole & (count > 1)):
        kept = flat[there[:, column], column]
        low[column], high[column] = stratified_bootstrap_interval(kept, np.mean, **options)
    shape = score.shape[1:]
    return Aggregate(mean.reshape(shape), low.reshape(shape), high.reshape(shape), count.reshape(shape))


def best_estimators(
    score: Float[np.ndarray, "*trials estimators"], *, higher_is_better: bool, tolerance: float = 1e-9
) -> Bool[np.ndarray, "*trials estimators"]:
    """Which estimators share the best score of their trial; NaN is never best.

    Scores within `tolerance` × max(1, |best|) of the best are ties: estimators which choose the same candidates have
    the same score but for rounding, and who of them comes first in a list is no result.
    """
    signed = np.where(np.isnan(score), -np.inf, score if higher_is_better else -score)
    best = signed.max(axis=-1, keepdims=True)
    margin = tolerance * np.maximum(1.0, np.abs(best))
    with np.errstate(invalid="ignore"):
        return ~np.isnan(score) & ((signed >= best - margin) | (signed == best))


def disagreement(
    best_by_one: Bool[np.ndarray, "trials estimators"],
    best_by_other: Bool[np.ndarray, "trials estimators"],
    *,
    confidence: float = 0.95,
) -> Disagreement:
    """How often two metrics have no best estimator in common, ties shared."""
    trials = len(best_by_one)
    count = int((~(best_by_one & best_by_other).any(axis=1)).sum())
    interval = stats.binomtest(count, trials).proportion_ci(confidence, method="wilson")
    return Disagreement(count, trials, count / trials, float(interval.low), float(interval.high))


def _check_finite(name: str, value: np.ndarray) -> None:
    if not np.isfinite(value).all():
        at = int(np.argmin(np.isfinite(value)))
        raise ValueError(
            f"{name}: expected the finite value of every candidate, got {value[at]} for candidate {at}"
        )
