"""Q^π of candidates from a log: tabular, linear (LSTDQ) and by neural networks, cross-fitted.

Every fit evaluates the policy it is given, as a distribution: what follows is worth Σ_a' π(a'|s') Q(s', a'), never
max_a' Q. What terminates is worth 0 afterwards; what is truncated bootstraps where a final observation was recorded,
and is left out otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from peira.evaluation.off_policy import linear, tabular
from peira.evaluation.off_policy.transitions import (
    Transitions,
    bootstrapped_rows,
    check_discount,
    informative_rows,
    q_bounds,
)


@dataclass(frozen=True)
class FittedQ:
    """What a fit says of every candidate, each point predicted by the model that did not see its fold.

    logged     [candidates, rows] Q̂ at the logged actions
    v          [candidates, points] V̂ = Σ_a π(a|s) Q̂(s, a), or the mean over sampled actions
    td_error   [candidates] mean |r + γV̂(s') − Q̂(s, a)| over the rows of which it is known what follows
    low, high  [candidates] the range of Q̂ at the log's rows, to be read against
    bounds     the least and the greatest that rewards within the log's can add up to (`q_bounds`)
    q          [candidates, points, actions] Q̂ of every action; None where actions are continuous

    The first points are the log's rows.
    """

    logged: Float[np.ndarray, "candidates rows"]
    v: Float[np.ndarray, "candidates points"]
    td_error: Float[np.ndarray, " candidates"]
    low: Float[np.ndarray, " candidates"]
    high: Float[np.ndarray, " candidates"]
    bounds: tuple[float, float]
    q: Float[np.ndarray, "candidates points actions"] | None = None


def tabular_q(
    transitions: Transitions,
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    *,
    states: int,
    horizon: int | None = None,
    prior: float = 0.0,
    weight: Float[np.ndarray, "weights rows"] | None = None,
) -> FittedQ:
    """Exact evaluation in the empirical model: LSTDQ with one-hot pairs (s, a), with `prior` smoothed.

    With a `horizon` the values are those of the steps left, backwards from Q_{T−1} = R. See `empirical_model` for the
    rest; raises ValueError as it and `check_discount` do.
    """
    check_discount(transitions, gamma, horizon)
    model = tabular.empirical_model(
        transitions, states=states, actions=probs.shape[-1], prior=prior, weight=weight, horizon=horizon
    )
    policy = tabular.policy_table(transitions, probs, states)[:, None]
    if horizon is None:
        q = tabular.at_points(tabular.stationary_q(model, policy, gamma), transitions)
    else:
        table = tabular.finite_horizon_q(model, policy, gamma, horizon)
        # Final observations at step T have no value left.
        table = np.concatenate([table, np.zeros_like(table[:1])])
        fold, state = transitions.point_fold, transitions.observation
        q = np.moveaxis(table[transitions.step, :, fold, state], 0, 1)
    return fit_of_actions(transitions, q, probs, gamma, horizon)


def linear_q(
    transitions: Transitions,
    features: Float[np.ndarray, "points features"],
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    *,
    horizon: int | None = None,
    ridge: float = 0.0,
    weight: Float[np.ndarray, "weights rows"] | None = None,
) -> FittedQ:
    """LSTDQ on features of the state, with weights of its own for each action; put in a column of ones for intercepts.

    With a `horizon` T, T sweeps of ridge regression backwards from Q_{T−1} = r (dynamics that do not depend on the
    step). `weight`: `sequential_mrdr_weights`, for example. Raises ValueError as `check_discount` does.
    """
    check_discount(transitions, gamma, horizon)
    with_reward, with_successor = informative_rows(transitions, horizon)
    rewarded = linear.action_moments(transitions, features, probs, rows=with_reward, weight=weight)
    if horizon is None:
        q = linear.at_actions(linear.lstdq(rewarded, gamma, ridge=ridge), transitions, features)
        return fit_of_actions(transitions, q, probs, gamma, horizon)
    followed = linear.action_moments(transitions, features, probs, rows=with_successor, weight=weight)
    to_go = linear.fitted_q_sweeps(rewarded, followed, gamma, horizon, ridge=ridge)
    q = np.zeros(probs.shape)
    for step, beta in enumerate(to_go[::-1]):
        points = np.flatnonzero(transitions.step == step)
        q[:, points] = linear.at_actions(beta, transitions, features, points)
    return fit_of_actions(transitions, q, probs, gamma, horizon)


def sequential_mrdr_weights(
    transitions: Transitions,
    log_ratio: Float[np.ndarray, "candidates rows"],
    log_propensity: Float[np.ndarray, " rows"],
    gamma: float,
) -> Float[np.ndarray, "candidates rows"]:
    """γ^{2t} W_{t−1}² π(1 − p)/p²: rows weighed as they add to the variance of the doubly robust estimator.

    W_{t−1} is the product of the ratios before step t. Scaled so that a candidate's greatest weight is 1.

    Source: Farajtabar et al. 2018, "More Robust Doubly Robust Off-policy Evaluation".
    """
    step, finite = transitions.step[: transitions.rows], np.isfinite(log_ratio)
    # Log-ratios of −∞ (actions the candidate never takes) are counted apart: a difference of sums would be NaN.
    before, excluded = (
        _sum_before(of, transitions) for of in (np.where(finite, log_ratio, 0.0), (~finite).astype(float))
    )
    log_weight = 2 * (step * np.log(gamma) + before) + log_ratio - log_propensity
    with np.errstate(divide="ignore"):
        log_weight = np.where(excluded > 0, -np.inf, log_weight + np.log1p(-np.exp(log_propensity)))
    greatest = log_weight.max(axis=1, keepdims=True)
    if not np.isfinite(greatest).all():
        raise ValueError(
            "expected a row that the candidate could have come to, with a propensity below 1, got none"
        )
    return np.exp(log_weight - greatest)


def _sum_before(of: np.ndarray, transitions: Transitions) -> np.ndarray:
    """Sums over the earlier rows of the same episode: [candidates, rows]."""
    exclusive = of.cumsum(axis=1) - of
    return exclusive - exclusive[:, np.arange(transitions.rows) - transitions.step[: transitions.rows]]


def fit_of_actions(
    transitions: Transitions,
    q: Float[np.ndarray, "candidates points actions"],
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    horizon: int | None,
) -> FittedQ:
    """The fit whose values of discrete actions are `q`."""
    logged = q[:, np.arange(transitions.rows), transitions.action]
    return checked_fit(transitions, logged, np.einsum("cna,cna->cn", probs, q), gamma, horizon, q=q)


def checked_fit(
    transitions: Transitions,
    logged: Float[np.ndarray, "candidates rows"],
    v: Float[np.ndarray, "candidates points"],
    gamma: float,
    horizon: int | None,
    *,
    q: Float[np.ndarray, "candidates points actions"] | None = None,
) -> FittedQ:
    """The values with what can be checked of them: their Bellman errors, and their range against `q_bounds`."""
    used, follows = bootstrapped_rows(transitions, horizon)
    following = np.where(follows, v[:, np.where(follows, transitions.next_row, 0)], 0.0)
    error = np.abs(transitions.reward + gamma * following - logged)[:, used]
    bounds = q_bounds(transitions, gamma, horizon)
    return FittedQ(logged, v, error.mean(1), logged.min(1), logged.max(1), bounds, q)
