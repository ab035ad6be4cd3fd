"""Finite state spaces: the model of a log (or of a known world), and what a policy is worth in it by linear algebra.

Every array may carry leading axes (candidates, folds), which broadcast: `policy[:, None]` against models of folds gives
results [candidates, folds, …]. A termination is missing probability: Σ_s' P(s'|s,a) is the chance to go on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from peira.evaluation.off_policy.transitions import Transitions, informative_rows


@dataclass(frozen=True)
class TabularModel:
    """Transitions, expected rewards, first states, and the share d^D(s, a) of each pair in the log (0: never seen)."""

    transition: Float[np.ndarray, "*models states actions states"]
    reward: Float[np.ndarray, "*models states actions"]
    initial: Float[np.ndarray, "*models states"]
    share: Float[np.ndarray, "*models states actions"]


def empirical_model(
    transitions: Transitions,
    *,
    states: int,
    actions: int,
    prior: float = 0.0,
    weight: Float[np.ndarray, "weights rows"] | None = None,
    horizon: int | None = None,
) -> TabularModel:
    """Maximum-likelihood model for each fold, from all other folds; leading axes [weights or 1, folds].

    P̂(s'|s,a) = (N(s,a,s') + prior/states)/(N(s,a) + prior), R̂(s,a) = (Σr + prior·r̄)/(N(s,a) + prior): `prior` counts
    transitions to a uniform state with the log's mean reward. Without it a pair that was never seen has reward 0 and no
    successor, which is also LSTDQ's solution of least norm. `weight` counts a row otherwise than once; which rows count
    at all is said in `informative_rows`.

    Raises ValueError for states or actions outside of what was declared.
    """
    rows, folds = transitions.rows, transitions.folds
    state, action = state_numbers(transitions, states), transitions.action
    if action.dtype.kind not in "iu" or action.min() < 0 or action.max() >= actions:
        raise ValueError(
            f"action: expected numbers from 0 to {actions - 1}, got {action.min()} to {action.max()}"
        )
    with_reward, with_successor = informative_rows(transitions, horizon)
    weight = np.ones((1, rows)) if weight is None else weight
    cell = (transitions.point_fold[:rows] * states + state[:rows]) * actions + action

    def counted(cell: np.ndarray, amount: np.ndarray, *shape: int) -> np.ndarray:
        """Sums of `amount` in each cell, for each fold over the folds it is trained on."""
        sums = np.stack([np.bincount(cell, of, minlength=folds * int(np.prod(shape))) for of in amount])
        # Summed, not subtracted from a total: what no other fold has seen stays exactly 0.
        of_others = transitions.trains @ sums.reshape(len(amount), folds, -1)
        return of_others.reshape(len(amount), folds, *shape)

    def of_pairs(rows: np.ndarray, amount: np.ndarray) -> np.ndarray:
        return counted(cell[rows], amount[:, rows], states, actions)

    seen, known = of_pairs(with_reward, weight), of_pairs(with_successor, weight)
    total = seen.sum(axis=(-2, -1), keepdims=True)
    reward_sum = of_pairs(with_reward, weight * transitions.reward)
    mean_reward = reward_sum.sum(axis=(-2, -1), keepdims=True) / total
    onward = np.flatnonzero(with_successor & ~transitions.terminated)
    arrival = cell[onward] * states + state[transitions.next_row[onward]]
    moves = counted(arrival, weight[:, onward], states, actions, states)
    first = transitions.initial
    begun = counted(transitions.point_fold[first] * states + state[first], np.ones((1, len(first))), states)
    return TabularModel(
        transition=_ratio(moves + prior / states, (known + prior)[..., None]),
        reward=_ratio(reward_sum + prior * mean_reward, seen + prior),
        initial=np.broadcast_to(begun / begun.sum(-1, keepdims=True), (*seen.shape[:2], states)),
        share=seen / total,
    )


def policy_table(
    transitions: Transitions, probs: Float[np.ndarray, "candidates points actions"], states: int
) -> Float[np.ndarray, "candidates states actions"]:
    """π(a|s) of each candidate: the mean of its probabilities over the points in s; uniform where there is no point."""
    state, points = state_numbers(transitions, states), transitions.points
    visits = np.bincount(state, minlength=states)[:, None]
    indicator = sparse.csr_array((np.ones(points), (state, np.arange(points))), shape=(states, points))
    summed = np.stack([indicator @ of_candidate for of_candidate in probs])
    return np.where(visits > 0, summed / np.maximum(visits, 1), 1 / probs.shape[-1])


def stationary_q(
    model: TabularModel, policy: Float[np.ndarray, "... states actions"], gamma: float
) -> Float[np.ndarray, "... states actions"]:
    """Q^π = R + γ P V^π with V^π = (I − γ P_π)⁻¹ R_π.

    Raises ValueError at γ = 1 where some state never terminates.
    """
    onward = np.einsum("...sa,...sat->...st", policy, model.transition)
    gained = np.einsum("...sa,...sa->...s", policy, model.reward)
    value = _solve(np.eye(onward.shape[-1]) - gamma * onward, gained)
    return model.reward + gamma * np.einsum("...sat,...t->...sa", model.transition, value)


def finite_horizon_q(
    model: TabularModel, policy: Float[np.ndarray, "... states actions"], gamma: float, horizon: int
) -> Float[np.ndarray, "horizon ... states actions"]:
    """Q_t(s, a) for t = 0, …, T − 1, backwards: Q_t = R + γ P V_{t+1}, V_T = 0."""
    q = [model.reward + np.zeros_like(policy)]
    for _ in range(horizon - 1):
        value = (policy * q[-1]).sum(-1)
        q.append(model.reward + gamma * np.einsum("...sat,...t->...sa", model.transition, value))
    return np.stack(q[::-1])


def discounted_occupancy(
    model: TabularModel, policy: Float[np.ndarray, "... states actions"], gamma: float
) -> Float[np.ndarray, "... states actions"]:
    """d_γ^π(s, a) = (1 − γ) Σ_t γᵗ P(s_t = s, a_t = a): sums to 1, less what has terminated."""
    onward = np.einsum("...sa,...sat->...ts", policy, model.transition)
    initial = (1 - gamma) * np.broadcast_to(model.initial, onward.shape[:-1])
    return _solve(np.eye(onward.shape[-1]) - gamma * onward, initial)[..., None] * policy


def at_points(
    table: Float[np.ndarray, "candidates folds states *values"], transitions: Transitions
) -> Float[np.ndarray, "candidates points *values"]:
    """The entry for each point's state, from the model that did not see the point's fold."""
    return table[:, transitions.point_fold, transitions.observation]


def state_numbers(transitions: Transitions, states: int) -> Int[np.ndarray, " points"]:
    """The observations, which must be numbers of states."""
    state = transitions.observation
    if state.ndim != 1 or state.min() < 0 or state.max() >= states:
        raise ValueError(
            f"observation: expected numbers of states from 0 to {states - 1}, got shape {state.shape} with values from "
            f"{state.min()} to {state.max()}"
        )
    return state


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.solve(matrix, vector[..., None])[..., 0]
    except np.linalg.LinAlgError:
        raise ValueError(
            "gamma: at 1 every state must lead to termination under the policy; use γ < 1 or a horizon"
        ) from None
