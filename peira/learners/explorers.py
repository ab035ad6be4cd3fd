"""How much to explore: from predicted rewards of the eligible actions to the probability of each, as pure functions.

Throughout, of n decisions with at most K actions each:
  eligible  [n, K] bool     which columns hold an action; K(x) is how many do, and it may differ from row to row
  scores    [n, K] float64  f̂, the predicted mean reward; what stands outside of `eligible` is not looked at
  pmf       [n, K] float64  0 outside of `eligible`; a row sums to 1 within the last bit
Scores are rewards, best is most; Vowpal Wabbit's are costs. Every function raises ValueError for a row without an
eligible action and for a score of an eligible action that is not finite. Source: ``adyen.md`` 2.2.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int

Cells = Float[np.ndarray, "rows columns"]
Mask = Bool[np.ndarray, "rows columns"]
Members = Float[np.ndarray, "members rows columns"]

HALVINGS = 20
"""Steps of the bisection for RegCB's bounds, as many as in Vowpal Wabbit."""


def uniform(eligible: Mask) -> Cells:
    """p = 1/K(x) for every eligible action."""
    return eligible / _counts(eligible)


def greedy(scores: Cells, eligible: Mask) -> Cells:
    """The action of the best score; where several share it, each with the same probability."""
    known = _known(scores, eligible)
    best = known == known.max(1, keepdims=True)
    return best / best.sum(1, keepdims=True)


def epsilon_greedy(scores: Cells, eligible: Mask, epsilon: float) -> Cells:
    """p_a = ε/K(x) + (1 − ε)·1{a is best}; several best ones share the 1 − ε. ValueError for ε outside [0, 1]."""
    _check_share("epsilon", epsilon)
    return _complete(epsilon * uniform(eligible) + (1 - epsilon) * greedy(scores, eligible))


def softmax(scores: Cells, eligible: Mask, temperature: float) -> Cells:
    """p_a ∝ exp(f̂_a/τ) with τ = `temperature` in units of the reward. ValueError for τ ≤ 0."""
    if not temperature > 0:
        raise ValueError(f"temperature: expected more than 0, got {temperature:g}; use greedy for 0")
    known = _known(scores, eligible)
    return _complete(np.exp((known - known.max(1, keepdims=True)) / temperature))


def squarecb(scores: Cells, eligible: Mask, gamma: float) -> Cells:
    """Inverse gap weighting: p_a = 1/(K(x) + γ(f̂_b − f̂_a)) for a ≠ b, the best; p_b is what remains, ≥ 1/K(x).

    γ = 0 is uniform, γ = ∞ greedy up to ties: an action that is level with the best keeps 1/K(x) at any γ, and b is the
    first of them. For any truth f*, regret ≤ 2K/γ + (γ/4)·E_p[(f̂ − f*)²]. ValueError for γ < 0. Source: Foster and
    Rakhlin 2020.
    """
    known = _known(scores, eligible)
    best = known.argmax(1)[:, None]
    gap = np.subtract(np.take_along_axis(known, best, 1), known, out=known)
    return _inverse_gap(gap, eligible, best, gamma)


def fastcb(scores: Cells, eligible: Mask, gamma: float) -> Cells:
    """SquareCB for small losses ℓ̂ = 1 − f̂: p_a = ℓ̂_b/(K(x)ℓ̂_b + γ(ℓ̂_a − ℓ̂_b)) for a ≠ b; p_b is what remains.

    Scores are clipped to [0, 1] first. Where ℓ̂_b = 0 the actions without loss share the row evenly. For γ ≥ 2K and any
    truth ℓ*, regret ≤ (5K/γ)E_p[ℓ*] + 7γ E_p[(ℓ̂ − ℓ*)²/(ℓ̂ + ℓ*)]. The same ratio on rewards is another algorithm:
    it does not explore less where the best loss is small. ValueError for γ < 0. Source: Foster and Krishnamurthy 2021.
    """
    loss = 1 - np.clip(_known(scores, eligible), 0, 1)
    loss[~eligible] = np.inf
    best = loss.argmin(1)[:, None]
    least = np.take_along_axis(loss, best, 1)
    # p_a = 1/(K + γ(ℓ̂_a/ℓ̂_b − 1)): inverse gap weighting of the relative gap.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        pmf = _inverse_gap((loss - least) / least, eligible, best, gamma)
    if (perfect := least[:, 0] == 0).any():
        pmf[perfect] = greedy(-loss[perfect], eligible[perfect])
    return pmf


def sensitivity_intervals(
    scores: Cells, eligible: Mask, sensitivity: Cells, labelled: int, *, mellowness: float = 0.1
) -> tuple[Cells, Cells]:
    """RegCB's bounds (low, high) on each reward in [0, 1], from how far one more row would move its prediction.

    With s = `sensitivity` ≥ 0, the change of f̂ per unit of importance weight, the upper bound is min(f̂ + s·w, 1) with
    w the largest weight such that w(Δ² − (Δ − s·w)²) ≤ δ, Δ = 2 − f̂ (the way to one beyond the most that can be) and
    δ = c₀ log(K(x)·t); the lower bound likewise with Δ = 1 + f̂. c₀ = `mellowness`, t = `labelled` rows learned from.
    The bounds are 0 and 1 while t = 0 and where s is infinite; NaN outside of `eligible`. A bisection of 20 steps as in
    Vowpal Wabbit, whose costs are 1 − f̂. ValueError for s or c₀ < 0. Source: Foster et al. 2018; section 7.1 of
    Krishnamurthy et al. 2017 for the bisection.
    """
    if not mellowness >= 0:
        raise ValueError(f"mellowness: expected at least 0, got {mellowness:g}")
    if (bad := eligible & ~(sensitivity >= 0)).any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"sensitivity: expected at least 0, got {sensitivity[row, column]} at row {row}, column {column}"
        )
    score = np.where(eligible, _known(scores, eligible), 0.0)
    unknown = np.isinf(sensitivity) | (labelled == 0)
    slope = np.where(eligible & ~unknown, sensitivity, 0.0)
    delta = mellowness * np.log(_counts(eligible) * max(labelled, 1))

    def reach(distance: Cells) -> Cells:
        """s·w = Δu with u in [0, 1]: the condition on w is u²(2 − u) ≤ δs/Δ³, whatever the scale of s."""
        with np.errstate(over="ignore"):
            allowed = delta * slope / distance**3
        low, high = np.zeros_like(distance), np.ones_like(distance)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            within = middle**2 * (2 - middle) <= allowed
            low, high = np.where(within, middle, low), np.where(within, high, middle)
        return distance * np.where(allowed >= 1, 1.0, low)

    upper = np.where(unknown, 1.0, np.clip(score + reach(2 - np.minimum(score, 1)), 0, 1))
    lower = np.where(unknown, 0.0, np.clip(score - reach(1 + np.maximum(score, 0)), 0, 1))
    return np.where(eligible, lower, np.nan), np.where(eligible, upper, np.nan)


def member_intervals(member_scores: Members, coverage: float) -> tuple[Cells, Cells]:
    """Bounds (low, high) on each reward: the central `coverage` of what the members of an ensemble predict.

    Quantiles (1 ∓ coverage)/2 with linear interpolation. ValueError for a coverage outside (0, 1].
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage: expected a share in (0, 1], got {coverage:g}")
    low, high = np.quantile(member_scores, [(1 - coverage) / 2, (1 + coverage) / 2], axis=0)
    return low, high


def survivors(low: Cells, high: Cells, eligible: Mask) -> Mask:
    """Eligible actions that can still be best: high_a ≥ max over eligible b of low_b. ValueError where high < low."""
    if (bad := eligible & ~(low <= high)).any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"interval: expected low ≤ high, got {low[row, column]} and {high[row, column]} "
            f"at row {row}, column {column}"
        )
    bar = _known(low, eligible).max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return eligible & (high >= bar)


def regcb_from_intervals(low: Cells, high: Cells, eligible: Mask, optimistic: bool) -> Cells:
    """RegCB: uniform over the `survivors`, or, optimistic, the action of the highest upper bound (ties share evenly).

    The optimistic one leaves every other action without support: its logs cannot evaluate another policy unless a floor
    is added. Source: Foster et al. 2018, with Vowpal Wabbit's rules for ties.
    """
    alive = survivors(low, high, eligible)
    return greedy(high, eligible) if optimistic else uniform(alive)


def regcb(
    scores: Cells,
    eligible: Mask,
    sensitivity: Cells,
    labelled: int,
    *,
    mellowness: float = 0.1,
    optimistic: bool = False,
) -> Cells:
    """`regcb_from_intervals` on `sensitivity_intervals`."""
    low, high = sensitivity_intervals(scores, eligible, sensitivity, labelled, mellowness=mellowness)
    return regcb_from_intervals(low, high, eligible, optimistic)


def squarecb_elim(scores: Cells, low: Cells, high: Cells, eligible: Mask, gamma: float) -> Cells:
    """`squarecb` among the `survivors`, K being their number.

    Vowpal Wabbit 9.11 counts a survivor only when its score is a new best, so that its probabilities can leave [0, 1];
    here all are counted.
    """
    return squarecb(scores, survivors(low, high, eligible), gamma)


def thompson(member_scores: Members, eligible: Mask) -> Cells:
    """The share of M members that think an action best; a member with several best ones splits its vote.

    Exact for the rule "draw a member, do what it thinks best"; of the posterior that the members stand for it is a
    Monte-Carlo estimate with M draws, and is to be logged as one. Multiples of 1/M: an action without a vote has
    probability 0 unless a floor is added.
    """
    if not len(member_scores):
        raise ValueError("member_scores: expected at least 1 member, got 0")
    votes = np.zeros(eligible.shape)
    for scores in member_scores:
        votes += greedy(scores, eligible)
    return _complete(votes)


def mix_floor(pmf: Cells, eligible: Mask, floor: float) -> Cells:
    """p ← (1 − u)p + u/K(x) with u = `floor` in [0, 1], the share of decisions that become uniform."""
    _check_share("floor", floor)
    return _complete((1 - floor) * pmf + floor * uniform(eligible))


def project_floor(pmf: Cells, eligible: Mask, floor: float) -> Cells:
    """The nearest pmf in which every eligible action has at least u/K(x), with u = `floor` in [0, 1].

    p_a ← max(p_a − τ, u/K) with the one τ that makes the row sum to 1: with the row sorted to fall, it is
    τ_ρ = ((K − ρ − 1)u/K + Σ_{i ≤ ρ} p_i − 1)/(ρ + 1) of the last place ρ (from 0) at which p_ρ > τ_ρ + u/K. As Vowpal
    Wabbit's ``--epsilon`` with ``--squarecb``: the least is u/K(x), not u.
    """
    _check_share("floor", floor)
    count = _counts(eligible)
    least = floor / count
    falling = -np.sort(-np.where(eligible, pmf, -np.inf), axis=1)
    place = np.arange(pmf.shape[1])
    inside = place < count
    taken = np.where(inside, falling, 0.0)
    tau = ((count - place - 1) * least + np.cumsum(taken, axis=1) - 1) / (place + 1)
    above = inside & (falling > tau + least)
    # Nothing stands out where u = 1, up to rounding: the row is uniform, and τ of its first place gives that.
    last = pmf.shape[1] - 1 - above[:, ::-1].argmax(1)
    last = np.where(above.any(1), last, 0)[:, None]
    return _complete(np.where(eligible, np.maximum(pmf - np.take_along_axis(tau, last, 1), least), 0.0))


def vw_gamma(labelled: int, scale: float = 10.0, exponent: float = 0.5) -> float:
    """γ = scale·t^exponent, t = `labelled` rows learned from, not decisions made. ValueError for t < 0.

    Vowpal Wabbit's rule (``--gamma_scale``, ``--gamma_exponent``).
    """
    if labelled < 0:
        raise ValueError(f"labelled: expected at least 0 rows, got {labelled}")
    return scale * float(labelled) ** exponent


def falcon_epochs(rounds: int, horizon: int | None = None) -> Int[np.ndarray, " epochs"]:
    """Ends τ_1 < τ_2 < … of FALCON's epochs up to `rounds`: τ_m = 2^m, or ⌈2T^(1 − 2^−m)⌉ with T = `horizon` known.

    The model is fitted at these rounds only, and with it γ. The second form needs log log T fits. Source: Simchi-Levi
    and Xu 2020.
    """
    ends: list[int] = []
    while True:
        m = len(ends) + 1
        end = 2**m if horizon is None else math.ceil(2 * horizon ** (1 - 2.0**-m))
        if end > rounds or (ends and end == ends[-1]):
            return np.array(ends, dtype=np.int64)
        ends.append(end)


def falcon_gamma(
    actions: float, previous_end: int, *, class_size: float, delta: float = 0.05, scale: float = 1 / 30
) -> float:
    """γ_m = scale·√(K τ_{m−1}/log(|F| τ_{m−1}/δ)), τ_{m−1} = `previous_end`; 0 (uniform) where it is 0.

    |F| = `class_size` is the number of functions that the model chooses among, 1 − δ the confidence of the bound. Meant
    for gaps of order 1: for gaps of a few hundredths it stays nearly uniform. Source: Simchi-Levi and Xu 2020.
    """
    if not (class_size >= 1 and 0 < delta < 1):
        raise ValueError(
            f"falcon: expected class_size ≥ 1 and delta in (0, 1), got {class_size:g}, {delta:g}"
        )
    if previous_end == 0:
        return 0.0
    # log of a quotient as a difference: |F| of a neural network is beyond float64 once it is multiplied.
    logarithm = math.log(class_size) + math.log(previous_end) - math.log(delta)
    return scale * math.sqrt(actions * previous_end / logarithm)


def _inverse_gap(gap: Cells, eligible: Mask, best: Int[np.ndarray, "rows 1"], gamma: float) -> Cells:
    """1/(K + γ·gap), the rest to `best`; `gap` ≥ 0, infinite outside of `eligible`, and is overwritten."""
    if not gamma >= 0:
        raise ValueError(f"gamma: expected at least 0, got {gamma:g}")
    count = _counts(eligible)
    if gamma == 0:
        pmf = eligible / count
    elif math.isinf(gamma):
        # ∞·0 is taken as the limit, 0.
        pmf = (gap == 0) / count
    else:
        with np.errstate(over="ignore"):
            pmf = np.multiply(gap, gamma, out=gap)
        pmf += count
        np.divide(1.0, pmf, out=pmf)
    np.put_along_axis(pmf, best, 0.0, 1)
    np.put_along_axis(pmf, best, 1.0 - pmf.sum(1, keepdims=True), 1)
    return pmf


def _complete(weights: Cells) -> Cells:
    """Rows divided by their sums; what rounding leaves goes to the largest, so that the sum is 1 to the last bit."""
    pmf = weights / weights.sum(1, keepdims=True)
    largest = pmf.argmax(1)[:, None]
    rest = 1.0 - pmf.sum(1, keepdims=True)
    np.put_along_axis(pmf, largest, np.take_along_axis(pmf, largest, 1) + rest, 1)
    return pmf


def _counts(eligible: Mask) -> Int[np.ndarray, "rows 1"]:
    count = eligible.sum(1, keepdims=True)
    if not count.all():
        row = int(np.argmin(count))
        raise ValueError(f"eligible: no action of row {row} is; leave out rows without one")
    return count


def _known(scores: Cells, eligible: Mask) -> Cells:
    """A copy of the scores with −∞ outside of `eligible`; ValueError for one inside that is not finite."""
    _counts(eligible)
    known = np.where(eligible, scores, -np.inf)
    if not (finite := np.isfinite(known) | ~eligible).all():
        row, column = np.argwhere(~finite)[0]
        raise ValueError(
            f"scores: expected finite numbers for eligible actions, got {scores[row, column]} "
            f"at row {row}, column {column}"
        )
    return known


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name}: expected a share in [0, 1], got {share:g}")
