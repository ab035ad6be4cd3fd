"""Estimators that weight steps by ratios of state distributions: their variance is polynomial in the horizon.

Two different ratios ρ, never to be mixed, of states or of pairs of state and action, ρ(s, a) = ρ(s) π(a|s)/π_b(a|s):
  time-indexed   ρ_t(s) = d_t^π(s) / d_t^b(s)
  discounted     ρ(s) = Σ_t γ^t d_t^π(s) / Σ_t γ^t d_t^b(s) (finite horizon), or (1 − γ) Σ_t γ^t d_t^π(s, a) / D(s, a)
                 without a horizon, D the distribution of the log: the `stationary_…` estimators
Estimators named sam_… take the ratio of pairs, those named sm_… that of states. `ratio`, q and v are padded with 0
after an episode's end. A discounted ratio needs values without time, and so (at a finite horizon) time in the state,
for its doubly robust forms. Fit ratios and values on other episodes than those that they weight (`fold`).

`fit_occupancy` and what builds on it is for states that are numbered 0, 1, …; rows lie one episode after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from peira.evaluation.off_policy.propensity import train_and_held_out
from peira.evaluation.off_policy.sequential import doubly_robust, next_value, temporal_difference
from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.weights import Block, Padded, weights, window_log_weights

Episode = Float[np.ndarray, " episodes"]


@dataclass(frozen=True)
class Occupancy:
    """Estimated d_t^π and d_t^b; the last column is the state of having ended, and each row sums to 1.

    A row of `target` is 0 where the target can no longer be followed, both are where no episode was present.
    """

    target: Float[np.ndarray, "steps states_and_end"]
    behaviour: Float[np.ndarray, "steps states_and_end"]

    def time_ratio(self) -> Float[np.ndarray, "steps states_and_end"]:
        """ρ_t(s); 0 for a state not seen at t, which no estimated mass has reached."""
        return _divide(self.target, self.behaviour)

    def discounted_ratio(self, gamma: float) -> Float[np.ndarray, " states_and_end"]:
        """Σ_t γ^t d_t^π(s) / Σ_t γ^t d_t^b(s); 0 for a state never seen."""
        discount = gamma ** np.arange(len(self.target))
        return _divide(discount @ self.target, discount @ self.behaviour)


def fit_occupancy(
    state: Int[np.ndarray, " rows"],
    log_ratio: Float[np.ndarray, " rows"],
    length: Int[np.ndarray, " episodes"],
    terminated: Bool[np.ndarray, " episodes"],
    *,
    states: int,
    steps: int,
) -> Occupancy:
    """State distributions over `steps` steps by the recursion of marginalised importance sampling.

    d̂_0 = that of the log; d̂_{t+1}(s') = Σ_i ρ̂_t(s_t) w_t 1{s_{t+1} = s'}, scaled to sum 1, with ρ̂_t = d̂_t / d̂_t^b. An
    episode that terminated stays in the state of having ended; one that was cut off is left out from there on (say it
    terminated to have the value up to the cut).

    Source: Xie, Ma and Wang 2019, "Towards Optimal Off-Policy Evaluation for RL with Marginalized Importance Sampling".
    """
    first = np.cumsum(length) - length
    target, behaviour = np.zeros((steps, states + 1)), np.zeros((steps, states + 1))

    def place(t: int) -> tuple[np.ndarray, np.ndarray]:
        """State at t, `states` for one that has ended, of the episodes that are present at t."""
        present = np.flatnonzero((length > t) | terminated)
        alive = length[present] > t
        where = np.full(len(present), states)
        where[alive] = state[first[present[alive]] + t]
        return present, where

    present, where = place(0)
    mass = np.ones(len(present))
    for t in range(steps):
        if len(present) == 0:
            break
        behaviour[t] = np.bincount(where, minlength=states + 1) / len(present)
        target[t] = np.bincount(where, weights=mass, minlength=states + 1)
        target[t] /= target[t].sum() or 1.0
        ratio = _divide(target[t], behaviour[t])[where]
        step_log_ratio = np.zeros(len(present))
        alive = where < states
        step_log_ratio[alive] = log_ratio[first[present[alive]] + t]
        # A common factor is lost in the scaling; without it an extreme ratio would overflow.
        moved = np.zeros(len(length))
        moved[present] = ratio * np.exp(step_log_ratio - step_log_ratio.max(initial=0.0))
        present, where = place(t + 1)
        mass = moved[present]
    return Occupancy(target, behaviour)


def fit_time_ratio(
    state: Int[np.ndarray, " rows"],
    log_ratio: Float[np.ndarray, " rows"],
    length: Int[np.ndarray, " episodes"],
    terminated: Bool[np.ndarray, " episodes"],
    *,
    states: int,
    fold: Int[np.ndarray, " episodes"] | None = None,
) -> Float[np.ndarray, " rows"]:
    """ρ̂_t(s_t) of every row, time-indexed, by `fit_occupancy` on the episodes of the other folds."""
    ratio, step = np.empty(len(state)), _step(length)
    for occupancy, _, row in _by_fold(state, log_ratio, length, terminated, states, fold):
        ratio[row] = occupancy.time_ratio()[step[row], state[row]]
    return ratio


def fit_discounted_ratio(
    state: Int[np.ndarray, " rows"],
    log_ratio: Float[np.ndarray, " rows"],
    length: Int[np.ndarray, " episodes"],
    terminated: Bool[np.ndarray, " episodes"],
    gamma: float,
    *,
    states: int,
    fold: Int[np.ndarray, " episodes"] | None = None,
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " episodes"]]:
    """Discounted ρ̂(s) of every row, and for each episode the ratio of having ended, as for `HorizonNormaliser`."""
    ratio, ended = np.empty(len(state)), np.empty(len(length))
    for occupancy, held_out, row in _by_fold(state, log_ratio, length, terminated, states, fold):
        of_state = occupancy.discounted_ratio(gamma)
        ratio[row], ended[held_out] = of_state[state[row]], of_state[states]
    return ratio, ended


def pair_ratio(block: Block, ratio: Padded) -> Padded:
    """ρ(s, a) = ρ(s) π(a|s)/π_b(a|s)."""
    return ratio * weights(block.log_ratio)


@dataclass(frozen=True)
class HorizonNormaliser:
    """One normaliser for all steps, the mean of Σ_t γ^t ρ / Σ_t γ^t over `horizon` steps: that of a discounted ratio.

    A step after an episode's end counts with `ended_ratio`, the discounted ratio of having ended (a number, or one for
    each episode): the mean of ρ is 1 over all steps, not over those of the living. It is not used where every episode
    has the whole horizon.
    """

    horizon: int
    ended_ratio: Episode | float

    def denominator(self, block: Block, ratio: Padded, gamma: float) -> Episode:
        """(Σ_{t < length} γ^t ρ_t + Σ_{length ≤ t < horizon} γ^t ended_ratio) / Σ_{t < horizon} γ^t."""
        mass = np.append(0.0, np.cumsum(gamma ** np.arange(self.horizon)))
        after = mass[-1] - mass[block.length]
        return (ratio @ block.discount(gamma) + self.ended_ratio * after) / mass[-1]


def sam_is(block: Block, ratio: Padded, gamma: float) -> Terms:
    """Mean of Σ_t γ^t ρ(s_t, a_t) r_t, either kind of ratio."""
    return Terms.mean((ratio * block.reward) @ block.discount(gamma))


def sm_is(block: Block, ratio: Padded, gamma: float) -> Terms:
    """Mean of Σ_t γ^t ρ(s_t) w_t r_t, either kind of ratio."""
    return sam_is(block, pair_ratio(block, ratio), gamma)


def sam_snis(block: Block, ratio: Padded, gamma: float, normaliser: HorizonNormaliser | None = None) -> Terms:
    """`sam_is` self-normalised: at each step by itself for a time-indexed ratio, by `normaliser` for a discounted one.

    A discounted ratio has mean 1 over all steps, not at each: step by step it would converge to a wrong value.
    """
    return _self_normalised(block, np.zeros(len(ratio)), ratio, block.reward, gamma, normaliser)


def sm_snis(block: Block, ratio: Padded, gamma: float, normaliser: HorizonNormaliser | None = None) -> Terms:
    """`sm_is` self-normalised, see `sam_snis`."""
    return sam_snis(block, pair_ratio(block, ratio), gamma, normaliser)


def sam_dr(
    block: Block, ratio: Padded, q: Padded, v: Padded, gamma: float, final_v: Episode | None = None
) -> Terms:
    """Mean of V̂(s_0) + Σ_t γ^t ρ(s_t, a_t) (r_t + γ V̂(s_{t+1}) − Q̂(s_t, a_t)).

    `final_v` is V̂ of the state after the last step where the episode was cut off, 0 where it terminated; left out for
    the value up to the end of the log's episodes.
    """
    residual = temporal_difference(block, q, next_value(v, block.length, final_v), gamma)
    return Terms.mean(v[:, 0] + (ratio * residual) @ block.discount(gamma))


def sm_dr(
    block: Block, ratio: Padded, q: Padded, v: Padded, gamma: float, final_v: Episode | None = None
) -> Terms:
    """`sam_dr` with ρ(s_t) w_t in the place of ρ(s_t, a_t)."""
    return sam_dr(block, pair_ratio(block, ratio), q, v, gamma, final_v)


def sam_sndr(
    block: Block,
    ratio: Padded,
    q: Padded,
    v: Padded,
    gamma: float,
    normaliser: HorizonNormaliser | None = None,
    final_v: Episode | None = None,
) -> Terms:
    """`sam_dr` with the ratio self-normalised, see `sam_snis`."""
    residual = temporal_difference(block, q, next_value(v, block.length, final_v), gamma)
    return _self_normalised(block, v[:, 0], ratio, residual, gamma, normaliser)


def sm_sndr(
    block: Block,
    ratio: Padded,
    q: Padded,
    v: Padded,
    gamma: float,
    normaliser: HorizonNormaliser | None = None,
    final_v: Episode | None = None,
) -> Terms:
    """`sm_dr` with the ratio self-normalised, see `sam_snis`."""
    return sam_sndr(block, pair_ratio(block, ratio), q, v, gamma, normaliser, final_v)


def drl(block: Block, ratio: Padded, q: Padded, v: Padded, gamma: float) -> Terms:
    """Double reinforcement learning: mean of Σ_t γ^t [ρ_t (r_t − Q̂_t) + ρ_{t−1} V̂_t], ρ_{−1} = 1.

    ρ_t is the time-indexed ratio of pairs. Unbiased with the true ρ or the true Q̂; with both, its variance is the least
    that is possible in a Markov decision process. Both must be cross-fitted.

    Source: Kallus and Uehara 2020.
    """
    return Terms.mean(doubly_robust(block, ratio, q, v, gamma))


def sam_sope(block: Block, ratio: Padded, gamma: float, *, window: int) -> Terms:
    """Marginal ratio up to n = `window` steps ago, products of action ratios from there: between SAM-IS and PDIS.

    Mean of Σ_t γ^t ω_t r_t; ω_t = ρ_{t−n}(s, a) Π_{u=t−n+1}^{t} w_u, and W_t while t < n. The ratio is time-indexed.
    n = 0 gives `sam_is`, n ≥ steps gives `pdis`. Raises ValueError for n < 0.

    Source: Yuan et al. 2021.
    """
    if window < 0:
        raise ValueError(f"expected a window of at least 0 steps, got {window}")
    window = min(window, block.steps)
    before = np.concatenate([np.ones((len(ratio), window)), ratio[:, : block.steps - window]], axis=1)
    weight = before * weights(window_log_weights(block, window))
    return Terms.mean((weight * block.reward) @ block.discount(gamma))


def sm_sope(block: Block, ratio: Padded, gamma: float, *, window: int) -> Terms:
    """`sam_sope` from the ratio of states: ω_t = ρ_{t−n}(s) Π_{u=t−n}^{t} w_u, with the action ratio at t − n."""
    return sam_sope(block, pair_ratio(block, ratio), gamma, window=window)


def stationary_is(block: Block, ratio: Padded, gamma: float, *, discounted_log: bool) -> Terms:
    """E_D[ρ(s, a) r] / (1 − γ), ρ = (1 − γ) Σ_t γ^t d_t^π / D: the value without a horizon. Needs γ < 1.

    D is the distribution of the logged pairs, each row counted γ^t times with `discounted_log`, once without; it must
    be the one that ρ was fitted for. Episodes differ in length, so that E_D is a ratio of sums over episodes.
    """
    return _over_rows(block, np.zeros(len(ratio)), ratio, block.reward, gamma, discounted_log, None)


def stationary_snis(
    block: Block,
    ratio: Padded,
    terminated: Bool[np.ndarray, " episodes"],
    gamma: float,
    *,
    discounted_log: bool,
) -> Terms:
    """`stationary_is` self-normalised: E_D[ρ r] / E_D[ρ (1 + 1{the step terminated} γ/(1 − γ))] / (1 − γ).

    The second factor is what an episode's end leaves out: discounted time goes on after it, and with the true ratio the
    denominator is 1 whether episodes end or not.
    """
    return _over_rows(block, np.zeros(len(ratio)), ratio, block.reward, gamma, discounted_log, terminated)


def stationary_dr(
    block: Block, ratio: Padded, q: Padded, v: Padded, final_v: Episode, gamma: float, *, discounted_log: bool
) -> Terms:
    """E[V̂(s_0)] + E_D[ρ(s, a) (r + γ V̂(s') − Q̂(s, a))] / (1 − γ): double reinforcement learning without a horizon.

    `final_v` is V̂ of the state after the last step where the episode was cut off, 0 where it terminated. D as in
    `stationary_is`. Source: Kallus and Uehara 2022.
    """
    residual = temporal_difference(block, q, next_value(v, block.length, final_v), gamma)
    return _over_rows(block, v[:, 0], ratio, residual, gamma, discounted_log, None)


def stationary_sndr(
    block: Block,
    ratio: Padded,
    q: Padded,
    v: Padded,
    final_v: Episode,
    terminated: Bool[np.ndarray, " episodes"],
    gamma: float,
    *,
    discounted_log: bool,
) -> Terms:
    """`stationary_dr` with the ratio self-normalised as in `stationary_snis`."""
    residual = temporal_difference(block, q, next_value(v, block.length, final_v), gamma)
    return _over_rows(block, v[:, 0], ratio, residual, gamma, discounted_log, terminated)


def _self_normalised(
    block: Block,
    plain: np.ndarray,
    ratio: np.ndarray,
    weighted: np.ndarray,
    gamma: float,
    normaliser: HorizonNormaliser | None,
) -> Terms:
    numerator = ratio * weighted * block.discount(gamma)
    if normaliser is None:
        # E_b of the ratio at the last step, summed over the ways to end, is the probability of having ended under π.
        last = np.take_along_axis(ratio, block.length[:, None] - 1, axis=1)
        return Terms(plain, numerator, np.where(block.alive, ratio, last))
    return Terms(
        plain, numerator.sum(axis=1, keepdims=True), normaliser.denominator(block, ratio, gamma)[:, None]
    )


def _over_rows(
    block: Block,
    plain: np.ndarray,
    ratio: np.ndarray,
    weighted: np.ndarray,
    gamma: float,
    discounted_log: bool,
    terminated: np.ndarray | None,
) -> Terms:
    if not gamma < 1:
        raise ValueError(f"a value without a horizon needs gamma below 1, got {gamma:g}")
    count = block.alive * block.discount(gamma if discounted_log else 1.0)
    numerator = (count * ratio * weighted).sum(axis=1) / (1 - gamma)
    if terminated is None:
        denominator = count.sum(axis=1)
    else:
        last = np.take_along_axis(count * ratio, block.length[:, None] - 1, axis=1)[:, 0]
        denominator = (count * ratio).sum(axis=1) + terminated * last * gamma / (1 - gamma)
    return Terms(plain, numerator[:, None], denominator[:, None])


def _by_fold(
    state: np.ndarray,
    log_ratio: np.ndarray,
    length: np.ndarray,
    terminated: np.ndarray,
    states: int,
    fold: np.ndarray | None,
) -> Iterator[tuple[Occupancy, np.ndarray, np.ndarray]]:
    """For each fold the occupancy fitted on the others, and the fold's episodes and rows."""
    for train, held_out in train_and_held_out(fold, len(length)):
        row = np.repeat(train, length)
        fitted = fit_occupancy(
            state[row],
            log_ratio[row],
            length[train],
            terminated[train],
            states=states,
            steps=int(length.max()),
        )
        yield fitted, held_out, np.repeat(held_out, length)


def _step(length: np.ndarray) -> np.ndarray:
    """Step within its episode of every row."""
    return np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
