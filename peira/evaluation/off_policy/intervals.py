"""Intervals and lower bounds for what an estimator says, from the contributions of its episodes.

Exact under their assumptions: `student_t` (Gaussian contributions), `hoeffding`, `empirical_bernstein` (a range known
beforehand), `hcope` (contributions of at least 0). For large numbers of episodes: `delta` and `bootstrap`, on `Terms`,
so that the normalisers of self-normalised estimators vary with the episodes as they do in truth. Episodes are the
independent units in all of them. None knows of the error of fitted nuisances: cross-fit those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import special

from peira.evaluation.off_policy.terms import Sums, Terms, add, total

Blocks = Terms | Sequence[Terms] | Callable[[], Iterable[Terms]]
Side = Literal["both", "lower", "upper"]
Sample = Float[np.ndarray, " episodes"]

REPLICATES = 2_000
"""Bootstrap replicates: the 2.5 % tails are then known to ± 0.35 % (one standard error)."""

CHUNK = 2**23
"""Numbers that are held at a time while counts are drawn."""

NO_WEIGHT = "no episode has weight in a normaliser"


@dataclass(frozen=True)
class Interval:
    """Limits that hold the true value with probability `confidence`, or the `reason` why they may not.

    A one-sided bound is infinite on its other side. `valid` says that the method's assumptions held as far as can be
    seen; the limits of an interval that is not valid are there to be shown with the reason, or are NaN.
    """

    low: float
    high: float
    method: str
    confidence: float
    valid: bool = True
    reason: str | None = None


def student_t(sample: Sample, *, confidence: float = 0.95, side: Side = "both") -> Interval:
    """ȳ ± t s/√n, with t_{1−α/2, n−1} for both sides and t_{1−α, n−1} for one.

    For a self-normalised estimator give value + influence. Raises ValueError with fewer than 2 episodes.
    """
    mean, error = _mean_and_error(sample)
    margin = special.stdtrit(len(sample) - 1, 1 - _tail(confidence, side)) * error
    return _around(mean, margin, side, "student_t", confidence)


def hoeffding(
    sample: Sample, bounds: tuple[float, float] | None, *, confidence: float = 0.95, side: Side = "both"
) -> Interval:
    """ȳ ± R √(ln(1/τ)/(2n)), R the range of one contribution, τ = α/2 for both sides, α for one.

    `bounds` = (least, greatest) contribution that is possible, known beforehand: G's range times the greatest weight
    for importance weighting. None uses the sample's own range and gives an interval that is not valid. Raises
    ValueError where the sample leaves its bounds.

    Source: Hoeffding 1963, theorem 2.
    """
    extent, reason = _extent(sample, bounds)
    margin = extent * math.sqrt(-math.log(_tail(confidence, side)) / (2 * len(sample)))
    return _around(float(sample.mean()), margin, side, "hoeffding", confidence, reason)


def empirical_bernstein(
    sample: Sample, bounds: tuple[float, float] | None, *, confidence: float = 0.95, side: Side = "both"
) -> Interval:
    """ȳ ± √(2 s² ln(2/τ)/n) + 7R ln(2/τ)/(3(n − 1)), τ = α/2 for both sides, α for one.

    Narrower than `hoeffding` where the variance is small beside the range R. `bounds` and errors as there; also raises
    ValueError with fewer than 2 episodes.

    Source: Maurer and Pontil 2009, theorem 4.
    """
    extent, reason = _extent(sample, bounds)
    mean, error = _mean_and_error(sample)
    log_tail = math.log(2 / _tail(confidence, side))
    margin = math.sqrt(2 * log_tail) * error + 7 * extent * log_tail / (3 * (len(sample) - 1))
    return _around(mean, margin, side, "empirical_bernstein", confidence, reason)


def hcope(sample: Sample, *, rng: np.random.Generator, confidence: float = 0.95) -> Interval:
    """Lower bound for contributions of at least 0 whose greatest value is not known: they are cut at a threshold c.

    With Y = min(y, c):  Ȳ − √(2 s_Y² ln(2/δ)/n) − 7c ln(2/δ)/(3(n − 1)),  δ = 1 − confidence, never below 0. Cutting
    lowers the mean, so what bounds E[Y] from below bounds E[y]. c is the one that promises most on 5 % of the episodes
    drawn by `rng`; the bound is that of the other 95 %.

    Raises ValueError for a contribution below 0 (add a constant to every reward first, and subtract what it is worth
    from the bound) and with fewer than 4 episodes.

    Source: Thomas, Theocharous and Ghavamzadeh 2015, "High-Confidence Off-Policy Evaluation".
    """
    if len(sample) < 4:
        raise ValueError(f"expected at least 4 episodes to choose a threshold and bound, got {len(sample)}")
    if sample.min() < 0:
        raise ValueError(
            f"expected contributions of at least 0, got {sample.min():g}; add a constant to every reward first"
        )
    chosen_on = max(2, len(sample) // 20)
    shuffled = rng.permutation(sample)
    chosen, judged = np.sort(shuffled[:chosen_on]), shuffled[chosen_on:]
    log_tail = math.log(2 / _tail(confidence, "lower"))
    positive = chosen[chosen > 0]
    if not len(positive):
        return Interval(0.0, math.inf, "hcope", confidence)
    # A threshold above the greatest contribution only widens the bound.
    threshold = np.geomspace(positive[0] / chosen_on, positive[-1], 1_000)
    below = np.searchsorted(chosen, threshold, side="right")
    above = chosen_on - below
    mean = (np.append(0.0, np.cumsum(chosen))[below] + above * threshold) / chosen_on
    square = (np.append(0.0, np.cumsum(chosen**2))[below] + above * threshold**2) / chosen_on
    variance = np.maximum(square - mean**2, 0.0) * chosen_on / (chosen_on - 1)
    # The bound that these moments would give on as many episodes as will be judged.
    penalty = 7 * log_tail / (3 * (len(judged) - 1))
    promised = mean - np.sqrt(2 * variance * log_tail / len(judged)) - penalty * threshold
    best = threshold[np.argmax(promised)]
    cut = np.minimum(judged, best)
    low = cut.mean() - math.sqrt(2 * cut.var(ddof=1) * log_tail / len(judged)) - penalty * best
    return Interval(max(0.0, float(low)), math.inf, "hcope", confidence)


def delta(terms: Blocks, *, confidence: float = 0.95, side: Side = "both") -> Interval:
    """value ± z·std(influence)/√n: the delta method, which knows that normalisers were estimated as well.

    `terms`: one block of episodes, several, or what yields them anew when called. Not valid where a normaliser has no
    weight. Raises ValueError with fewer than 2 episodes.
    """
    value, error, influence = total(_again(terms))
    _check_episodes(influence)
    if math.isnan(value):
        return _undefined("delta", confidence, NO_WEIGHT)
    return _around(value, special.ndtri(1 - _tail(confidence, side)) * error, side, "delta", confidence)


def bootstrap(
    terms: Blocks,
    *,
    rng: np.random.Generator,
    method: Literal["percentile", "bca"] = "bca",
    confidence: float = 0.95,
    side: Side = "both",
    replicates: int = REPLICATES,
) -> Interval:
    """Percentile or BCa interval of replicates that draw whole episodes and form every normaliser anew.

    A replicate draws n episodes with replacement, that is, counts C of a multinomial; its value is
    (C·plain)/n + Σ_m (C·numerator)_m / (C·denominator)_m, for many replicates at once a product of matrices. BCa
    corrects the percentiles for bias, z₀ = Φ⁻¹(share of replicates below the value, ties half), and for skewness,
    a = Σ d³/(6(Σ d²)^{3/2}) with d_i = mean of the jackknife values − the value without episode i, which the sums give
    in closed form.

    `terms`: one block of episodes, several, or what yields them anew when called, which happens once for every 2²³/n
    replicates. Episodes are drawn by the rank of their influence, so that the limits depend neither on the order in
    which they come nor on their blocks. Not valid where the value, a replicate or a jackknife value does not exist
    because a normaliser has no weight left. Raises ValueError with fewer than 2 episodes.

    Source: Efron and Tibshirani 1993, chapters 13 and 14.
    """
    return bootstrap_together(
        [terms], rng=rng, method=method, confidence=confidence, side=side, replicates=replicates
    )[0]


def bootstrap_together(
    estimates: Sequence[Blocks],
    *,
    rng: np.random.Generator,
    method: Literal["percentile", "bca"] = "bca",
    confidence: float = 0.95,
    side: Side = "both",
    replicates: int = REPLICATES,
    ordered: bool = False,
) -> list[Interval]:
    """`bootstrap` of several estimates from the same episodes in the same order, all with the same draws.

    Drawing costs more than the values of an estimate without normalisers do. With `ordered` episodes are drawn by their
    place: the caller puts them into an order of their own, and rounding, which may swap ranks, changes nothing.

    Raises ValueError for estimates of different numbers of episodes.
    """
    again = [_again(terms) for terms in estimates]
    sums = [add(blocks()) for blocks in again]
    if len({of.episodes for of in sums}) > 1:
        raise ValueError(
            f"expected estimates of the same episodes, got {[of.episodes for of in sums]} episodes"
        )
    influence = np.stack([total(blocks).influence for blocks in again])
    _check_episodes(influence[0])
    # What is drawn are places in this order.
    order = np.arange(influence.shape[1]) if ordered else np.lexsort(influence[::-1])
    values = _replicate_values(again, sums, order, rng, replicates)
    return [
        _of_replicates(*of, method=method, confidence=confidence, side=side)
        for of in zip(values, again, sums, strict=True)
    ]


def _of_replicates(
    values: np.ndarray,
    again: Callable[[], Iterable[Terms]],
    sums: Sums,
    *,
    method: Literal["percentile", "bca"],
    confidence: float,
    side: Side,
) -> Interval:
    name, value = f"bootstrap_{method}", sums.value()
    if math.isnan(value):
        return _undefined(name, confidence, NO_WEIGHT)
    defined = values[~np.isnan(values)]
    lost = len(values) - len(defined)
    reason = f"{lost} of {len(values)} replicates have no weight in a normaliser" if lost else None
    if not len(defined):
        return _undefined(name, confidence, reason)

    tails = np.array([_tail(confidence, side), 1 - _tail(confidence, side)])
    if method == "bca":
        bias = special.ndtri((np.mean(defined < value) + np.mean(defined <= value)) / 2)
        if not np.isfinite(bias):
            return _undefined(name, confidence, "all replicates lie on one side of the value")
        jackknife = np.concatenate([_leave_one_out(block, sums) for block in again()])
        if np.isnan(jackknife).any():
            return _undefined(name, confidence, "one episode carries all of the weight in a normaliser")
        skewness = _acceleration(jackknife)
        shifted = bias + special.ndtri(tails)
        tails = special.ndtr(bias + shifted / (1 - skewness * shifted))
    low, high = (float(limit) for limit in np.quantile(defined, tails))
    return Interval(*_one_side(low, high, side), name, confidence, reason is None, reason)


def _replicate_values(
    again: Sequence[Callable[[], Iterable[Terms]]],
    sums: Sequence[Sums],
    order: np.ndarray,
    rng: np.random.Generator,
    replicates: int,
) -> np.ndarray:
    """Value of each estimate in each replicate; NaN where a normaliser has no weight."""
    episodes = len(order)
    chunk = max(1, CHUNK // episodes)
    values = np.empty((len(again), replicates))
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        drawn = order[rng.integers(episodes, size=(size, episodes), dtype=np.uint32)]
        drawn += np.arange(size)[:, None] * episodes
        count = np.bincount(drawn.ravel(), minlength=size * episodes).reshape(size, episodes).astype(float)
        for of, blocks, of_sums in zip(values, again, sums, strict=True):
            of[start : start + size] = _resampled(count, blocks(), of_sums)
    return values


def _resampled(count: np.ndarray, blocks: Iterable[Terms], sums: Sums) -> np.ndarray:
    replicates, ratios = len(count), len(sums.numerator)
    plain, first = np.zeros(replicates), 0
    numerator, denominator = np.zeros((2, replicates, ratios))
    for block in blocks:
        of_block = count[:, first : first + len(block.plain)]
        first += len(block.plain)
        factor, width = block.factor(sums.log_scale), block.numerator.shape[1]
        plain += of_block @ block.plain
        numerator[:, :width] += of_block @ block.numerator * factor[:width]
        weight = of_block @ block.denominator
        denominator[:, :width] += weight * factor[:width]
        if width < ratios:
            denominator[:, width:] += weight[:, -1:] * factor[width:]
    with np.errstate(invalid="ignore", divide="ignore"):
        return plain / sums.episodes + (numerator / denominator).sum(1)


def _leave_one_out(terms: Terms, sums: Sums) -> np.ndarray:
    """The value without each of the block's episodes; NaN where nothing of a normaliser would be left."""
    values = (sums.plain - terms.plain) / (sums.episodes - 1)
    ratios, width = len(sums.numerator), terms.numerator.shape[1]
    factor = terms.factor(sums.log_scale)
    # Chunks of columns, for episodes that are much shorter than the longest.
    step = max(1, CHUNK // len(values))
    for first in range(0, ratios, step):
        column = np.arange(first, min(first + step, ratios))
        own = column[column < width]
        numerator = np.tile(sums.numerator[column], (len(values), 1))
        numerator[:, : len(own)] -= terms.numerator[:, own] * factor[own]
        weight = terms.denominator[:, np.minimum(column, width - 1)] * factor[column]
        left = sums.denominator[column] - weight
        # What rounding leaves of a normaliser that one episode carries alone.
        left[np.abs(left) <= 1e-12 * np.abs(sums.denominator[column])] = np.nan
        values += (numerator / left).sum(1)
    return values


def _acceleration(jackknife: np.ndarray) -> float:
    difference = jackknife.mean() - jackknife
    square = float((difference**2).sum())
    return float((difference**3).sum()) / (6 * square**1.5) if square > 0 else 0.0


def _again(terms: Blocks) -> Callable[[], Iterable[Terms]]:
    if isinstance(terms, Terms):
        return lambda: (terms,)
    return terms if callable(terms) else lambda: terms


def _tail(confidence: float, side: Side) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence:g}")
    return (1 - confidence) / 2 if side == "both" else 1 - confidence


def _around(
    centre: float, margin: float, side: Side, method: str, confidence: float, reason: str | None = None
) -> Interval:
    limits = _one_side(float(centre - margin), float(centre + margin), side)
    return Interval(*limits, method, confidence, reason is None, reason)


def _one_side(low: float, high: float, side: Side) -> tuple[float, float]:
    return -math.inf if side == "upper" else low, math.inf if side == "lower" else high


def _undefined(method: str, confidence: float, reason: str) -> Interval:
    return Interval(math.nan, math.nan, method, confidence, False, reason)


def _mean_and_error(sample: Sample) -> tuple[float, float]:
    _check_episodes(sample)
    return float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(sample))


def _check_episodes(sample: Sample) -> None:
    if len(sample) < 2:
        raise ValueError(f"an interval needs at least 2 episodes, got {len(sample)}")


def _extent(sample: Sample, bounds: tuple[float, float] | None) -> tuple[float, str | None]:
    if bounds is None:
        return float(np.ptp(sample)), "the range of a contribution is not known; the sample's own was used"
    low, high = bounds
    if sample.min() < low or sample.max() > high:
        raise ValueError(
            f"expected contributions in [{low:g}, {high:g}], got {sample.min():g} to {sample.max():g}; correct `bounds`"
        )
    return high - low, None
