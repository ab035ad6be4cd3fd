"""Minimax weights and values in closed form: MWL, MSWL, MQL and MVL.

Each asks one moment equation to hold for all functions g of a class: for weights w that the flow is right,
E_D[w (γ g(s', π) − g(s, a))] + (1 − γ) E g(s_0, π) = 0; for values Q that the Bellman error is uncorrelated with g,
E_D[g(s, a) (r + γ Q(s', π) − Q(s, a))] = 0. The worst g in the unit ball of the span of features φ leaves the norm of
the same equation in φ, quadratic in what is fitted, which is linear in φ too. With `gaussian_features` the span is the
space of a Gaussian kernel and the norms are its own; memory stays linear in the log.

With the same features for both, and nothing added, MWL = MQL = LSTDQ as values. Source: Uehara, Huang and Jiang 2020,
"Minimax Weight and Q-Function Learning for Off-Policy Evaluation".
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from peira.evaluation.off_policy import linear
from peira.evaluation.off_policy.fitted_q import FittedQ, fit_of_actions
from peira.evaluation.off_policy.linear import Moments
from peira.evaluation.off_policy.ratios import RatioFit, check_discounted, ratio_fit
from peira.evaluation.off_policy.transitions import Transitions


def minimax_weights(
    moments: Moments, gamma: float, *, ridge: float = 0.0, normalisation: float = 0.0
) -> Float[np.ndarray, "*models features"]:
    """ω of w = φ·ω: argmin ‖E_D[w (γφ' − φ)] + (1 − γ) E φ̄_0‖² + normalisation·(E_D[w m] − 1)² + ridge·‖ω‖².

    Of several minima the one of least norm. Raises ValueError for γ outside of (0, 1).
    """
    check_discounted(gamma)
    flow, mass = moments.flow(gamma).swapaxes(-1, -2), moments.mass(gamma)
    return _least_squares(
        [flow, np.sqrt(normalisation) * mass[..., None, :]],
        [-(1 - gamma) * moments.initial, np.full((*mass.shape[:-1], 1), np.sqrt(normalisation))],
        ridge,
    )


def minimax_values(
    moments: Moments, gamma: float, *, ridge: float = 0.0
) -> Float[np.ndarray, "*models features"]:
    """β of Q = φ·β: argmin ‖E_D[φ (r + γφ'·β − φ·β)]‖² + ridge·‖β‖²; of several minima the one of least norm."""
    return _least_squares([moments.flow(gamma)], [-moments.reward], ridge)


def mwl(
    transitions: Transitions,
    features: Float[np.ndarray, "points features"],
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    *,
    ridge: float = 0.1,
    normalisation: float = 1.0,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> RatioFit:
    """Minimax weights w(s, a), with coefficients of their own for each action.

    `ridge` is in units of (1 − γ)²/rows, as in `linear_dice`; a tenth did best on CartPole, for candidates near and far
    from the log. `weight` makes d^D a weighted distribution of rows.
    """
    moments = linear.action_moments(transitions, features, probs, rows=transitions.known, weight=_one(weight))
    omega = minimax_weights(
        moments, gamma, ridge=_ridge(ridge, gamma, transitions), normalisation=normalisation
    )
    logged = linear.at_actions(omega, transitions, features)[
        :, np.arange(transitions.rows), transitions.action
    ]
    return ratio_fit(transitions, probs, gamma, logged, weight=weight)


def mswl(
    transitions: Transitions,
    features: Float[np.ndarray, "points features"],
    action_ratio: Float[np.ndarray, "candidates rows"],
    gamma: float,
    *,
    ridge: float = 0.1,
    normalisation: float = 1.0,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> RatioFit:
    """Minimax weights w(s), a ratio of states; the fit's `ratio` is w(s)·π(a|s)/π_b(a|s).

    With known propensities this has less to learn than `mwl`, and actions may be continuous. `action_ratio` is
    π(a|s)/π_b(a|s) at the logged actions.
    """
    moments = linear.state_moments(
        transitions, features, action_ratio, rows=transitions.known, weight=_one(weight)
    )
    omega = minimax_weights(
        moments, gamma, ridge=_ridge(ridge, gamma, transitions), normalisation=normalisation
    )
    of_state = linear.at_actions(omega, transitions, features)[:, : transitions.rows, 0]
    return ratio_fit(transitions, None, gamma, of_state * action_ratio, weight=weight)


def mql(
    transitions: Transitions,
    features: Float[np.ndarray, "points features"],
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    *,
    ridge: float = 0.1,
) -> FittedQ:
    """Minimax values Q(s, a), with coefficients of their own for each action; no importance weight is needed."""
    check_discounted(gamma)
    moments = linear.action_moments(transitions, features, probs, rows=transitions.known)
    beta = minimax_values(moments, gamma, ridge=_ridge(ridge, gamma, transitions))
    return fit_of_actions(transitions, linear.at_actions(beta, transitions, features), probs, gamma, None)


def mvl(
    transitions: Transitions,
    features: Float[np.ndarray, "points features"],
    action_ratio: Float[np.ndarray, "candidates rows"],
    gamma: float,
    *,
    ridge: float = 0.1,
) -> Float[np.ndarray, "candidates points"]:
    """Minimax values V(s); its Bellman errors are weighed by π(a|s)/π_b(a|s), since the log's actions are π_b's."""
    check_discounted(gamma)
    moments = linear.state_moments(transitions, features, action_ratio, rows=transitions.known)
    beta = minimax_values(moments, gamma, ridge=_ridge(ridge, gamma, transitions))
    return linear.at_actions(beta, transitions, features)[..., 0]


def _least_squares(rows: list[np.ndarray], right: list[np.ndarray], ridge: float) -> np.ndarray:
    """argmin Σ ‖rows·x − right‖² + ridge·‖x‖² for each of many, without squaring the condition of the equations."""
    size = rows[0].shape[-1]
    if ridge > 0:
        rows = [*rows, np.broadcast_to(np.sqrt(ridge) * np.eye(size), (*rows[0].shape[:-2], size, size))]
        right = [*right, np.zeros((*rows[0].shape[:-2], size))]
    inverse = np.linalg.pinv(np.concatenate(rows, axis=-2), rtol=1e-12)
    return np.einsum("...ij,...j->...i", inverse, np.concatenate(right, axis=-1))


def _ridge(ridge: float, gamma: float, transitions: Transitions) -> float:
    return ridge * (1 - gamma) ** 2 / transitions.rows


def _one(weight: np.ndarray | None) -> np.ndarray | None:
    return None if weight is None else weight[None]
