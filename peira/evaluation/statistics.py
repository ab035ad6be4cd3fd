"""Statistics for comparing learners over few seeds: point estimates never travel without their interval.

The estimators are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (NeurIPS 2021), computed with scipy. Scores are `[seeds]` for one task or `[seeds, tasks]`.
Every interval is a percentile bootstrap interval. With a handful of seeds such intervals are too narrow
(two seeds can never cover more than their own range), so report the seeds beside them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real
from scipy import stats

Statistic = Callable[..., np.ndarray | np.floating]
"""Reduces one axis, called as `statistic(scores, axis=-1)`: `interquartile_mean`, `numpy.mean`, …"""

RESAMPLES = 10_000
"""Bootstrap resamples: each 2.5 % tail is then known to ± 0.16 % (one standard error)."""


class Estimate(NamedTuple):
    """A number and its bootstrap limits; the limits are None with fewer than two seeds."""

    estimate: float
    low: float | None
    high: float | None

    @property
    def interval(self) -> list[float] | None:
        """`[low, high]`, or None where there were too few seeds for one."""
        return None if self.low is None else [self.low, self.high]


class LogRankTest(NamedTuple):
    """The signed log-rank statistic (standard normal under equal hazards) and its two-sided p-value."""

    statistic: float
    p_value: float


def interquartile_mean(scores: Float[np.ndarray, "..."], axis: int | None = None) -> np.ndarray | np.floating:
    """Mean of the middle half of the scores: robust as the median, efficient almost as the mean.

    Drops the ⌊n/4⌋ lowest and the ⌊n/4⌋ highest of n scores and averages the rest. With fewer than four
    scores nothing is dropped and the result is the mean. `axis=None` pools all seeds and tasks.

    Source: Agarwal et al. 2021, section 4.3.
    """
    return stats.trim_mean(scores, 0.25, axis=axis)


def stratified_bootstrap_interval(
    scores: Float[np.ndarray, "seeds *tasks"],
    statistic: Statistic = interquartile_mean,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """Percentile interval of a statistic over seeds and tasks; seeds are redrawn within each task.

    Each resample draws `seeds` scores with replacement from every task by itself (the tasks are the strata,
    so they never change their weight), pools them and applies `statistic`; the interval holds the middle
    `confidence` share of the resampled values. Assumes that runs are independent of one another, and that
    the tasks are the ones of interest, not a sample of tasks.

    Returns None with fewer than two seeds: one run says nothing about the spread of runs.

    Source: Agarwal et al. 2021, section 4.1.
    """
    if len(scores) < 2:
        return None
    strata = scores.reshape(len(scores), -1).T
    return _bootstrap(
        tuple(strata),
        lambda *columns, axis: statistic(np.concatenate(columns, axis=axis), axis=axis),
        rng=rng,
        confidence=confidence,
        resamples=resamples,
    )


def pointwise_bootstrap_interval(
    curves: Float[np.ndarray, "seeds points"],
    statistic: Statistic = interquartile_mean,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = 2_000,
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]] | None:
    """Percentile interval at every point of a curve, whole curves redrawn over seeds.

    The limits hold for each point by itself, not for the curve as a whole. None with fewer than two seeds.
    """
    if len(curves) < 2:
        return None
    interval = stats.bootstrap(
        (curves,),
        statistic,
        axis=0,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=rng,
    ).confidence_interval
    return interval.low, interval.high


def paired_difference(
    a: Float[np.ndarray, " seeds"],
    b: Float[np.ndarray, " seeds"],
    statistic: Statistic = interquartile_mean,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """How much higher `a` scores than `b`: statistic(a) − statistic(b), with pairs of seeds redrawn together.

    `a[i]` and `b[i]` ran with the same seed, so what the seed brings to both cancels within a resample. For
    the interquartile mean this is the difference of the two means in the table, not the mean of the
    differences. The limits are None with fewer than two seeds. Raises ValueError for unequal lengths.
    """
    _check_paired(a, b)
    return _paired_estimate(
        a,
        b,
        lambda a, b, axis: statistic(a, axis=axis) - statistic(b, axis=axis),
        rng=rng,
        confidence=confidence,
        resamples=resamples,
    )


def ratio_interval(
    a: Float[np.ndarray, " seeds"],
    b: Float[np.ndarray, " seeds"],
    statistic: Statistic = interquartile_mean,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """How many times higher `a` scores than `b`: statistic(a) / statistic(b), with pairs redrawn together.

    A ratio of returns has a meaning only where 0 is a natural origin and everything lies above it. Raises
    ValueError if any score is not positive, or for unequal lengths. The limits are None with fewer than two
    seeds.
    """
    _check_paired(a, b)
    if (lowest := min(a.min(), b.min())) <= 0:
        raise ValueError(f"a ratio needs scores above 0, got {lowest:g}; use paired_difference instead")
    return _paired_estimate(
        a,
        b,
        lambda a, b, axis: statistic(a, axis=axis) / statistic(b, axis=axis),
        rng=rng,
        confidence=confidence,
        resamples=resamples,
    )


def probability_of_improvement(
    a: Float[np.ndarray, "seeds_a *tasks"],
    b: Float[np.ndarray, "seeds_b *tasks"],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Probability that a run of `a` scores higher than a run of `b` on a task drawn at random.

    P = (1/M) Σ_m U_m / (N_a N_b), with U_m the Mann–Whitney statistic on task m: the number of pairs of runs
    with a > b, ties counting one half. The interval redraws seeds within each task and algorithm; it is
    None with fewer than two seeds of either. It says how often, not by how much.

    Source: Agarwal et al. 2021, section 4.3.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"expected scores on the same tasks, got shapes {a.shape} and {b.shape}")
    strata = (*a.reshape(len(a), -1).T, *b.reshape(len(b), -1).T)
    tasks = len(strata) // 2

    def wins(*columns: np.ndarray, axis: int) -> np.ndarray | np.floating:
        # Only U is used: the asymptotic p-value is the one that costs nothing.
        pairs = zip(columns[:tasks], columns[tasks:], strict=True)
        tests = [stats.mannwhitneyu(of_a, of_b, axis=axis, method="asymptotic") for of_a, of_b in pairs]
        return np.mean([test.statistic for test in tests], axis=0) / (len(a) * len(b))

    estimate = float(wins(*strata, axis=-1))
    if min(len(a), len(b)) < 2:
        return Estimate(estimate, None, None)
    low, high = _bootstrap(strata, wins, rng=rng, confidence=confidence, resamples=resamples)
    return Estimate(estimate, low, high)


def area_under_curve(steps: Real[np.ndarray, " points"], returns: Real[np.ndarray, " points"]) -> float:
    """Mean return over a run: the trapezoid area under the learning curve divided by the range of steps.

    ∫ return d(step) / (step_last − step_first), so its unit is a return, whatever the budget. Raises
    ValueError with fewer than two points, with steps that do not rise, or with values that are not finite.
    """
    if len(steps) < 2:
        raise ValueError(
            f"a learning curve needs at least 2 evaluations, got {len(steps)}; evaluate more often"
        )
    if not (np.isfinite(returns).all() and np.isfinite(steps).all()):
        raise ValueError("expected finite steps and returns, got NaN or infinity")
    if not (np.diff(steps) > 0).all():
        raise ValueError(f"expected steps that rise from one evaluation to the next, got {steps.tolist()}")
    return float(np.trapezoid(returns, steps) / (steps[-1] - steps[0]))


def log_rank_test(
    time_a: Real[np.ndarray, " seeds_a"],
    observed_a: Bool[np.ndarray, " seeds_a"],
    time_b: Real[np.ndarray, " seeds_b"],
    observed_b: Bool[np.ndarray, " seeds_b"],
) -> LogRankTest:
    """Do the seeds of `a` and `b` need the same time to reach a goal, when some never reach it?

    `time` is the step at which a seed reached the goal, or the last step it was watched where `observed` is
    False (censored from the right). Z = Σ_t (d_at − d_t n_at / n_t) / √Σ_t V_t over the times t at which any
    seed reached the goal: n seeds still on their way, d reaching it at t, V the hypergeometric variance;
    positive where `a` is faster. Assumes that giving up watching had nothing to do with being slow. Raises
    ValueError if no seed reached the goal.

    Source: Mantel 1966, by `scipy.stats.logrank`.
    """
    if not (observed_a.any() or observed_b.any()):
        raise ValueError("expected at least one seed that reached the goal, got none; watch for longer")
    test = stats.logrank(
        stats.CensoredData(uncensored=time_a[observed_a], right=time_a[~observed_a]),
        stats.CensoredData(uncensored=time_b[observed_b], right=time_b[~observed_b]),
    )
    return LogRankTest(float(test.statistic), float(test.pvalue))


def _check_paired(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"expected one score of each for every seed, got {len(a)} and {len(b)} scores")


def _paired_estimate(
    a: np.ndarray,
    b: np.ndarray,
    statistic: Statistic,
    *,
    rng: np.random.Generator,
    confidence: float,
    resamples: int,
) -> Estimate:
    estimate = float(statistic(a, b, axis=-1))
    if len(a) < 2:
        return Estimate(estimate, None, None)
    low, high = _bootstrap(
        (a, b), statistic, rng=rng, confidence=confidence, resamples=resamples, paired=True
    )
    return Estimate(estimate, low, high)


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Statistic,
    *,
    rng: np.random.Generator,
    confidence: float,
    resamples: int,
    paired: bool = False,
) -> tuple[float, float]:
    interval = stats.bootstrap(
        samples,
        statistic,
        paired=paired,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=rng,
    ).confidence_interval
    return float(interval.low), float(interval.high)
