"""The DICE family: stationary ratios as saddle points of one regularised Lagrangian, solved in closed form.

Minimised over ν and λ, maximised over ζ, with ν(s', π) = Σ_a' π(a'|s') ν(s', a') and f(x) = x²/2:

  L = (1 − γ) E[ν(s_0, π)] + λ + E_D[ζ (α_R r + γ ν(s', π) − ν − λ m)] + α_ν E_D[f(ν)] − α_ζ E_D[f(ζ)].

Three numbers can be read off (Yang et al. 2020, "Off-Policy Evaluation via the Regularized Lagrangian"), here divided
by 1 − γ so that they estimate J: the primal (1 − γ) E[ν_0] + λ; the dual E_D[ζ r]; the Lagrangian, which is the primal
plus E_D[ζ (r + γν' − ν − λ m)]. With α_ν = 0 the flow of ζ is enforced, ζ is the ratio and the dual is right whatever
α_ζ and α_R are, the primal arbitrary; with α_ν = 1 and α_R = 1 it is the other way round. Reading the wrong side fails
silently, hence `mean_ratio` and `flow_residual` beside every fit.

Where an episode terminates ν' is the value of the absorbing state: −λ/(1 − γ), its own equation solved in place, which
is what makes m (see `ratios`) stand beside λ; 0 without λ.

ζ ≥ 0 is nowhere imposed. Where the log covers the policy and α_ν = 0 the solution is the ratio, which is positive;
elsewhere a negative ratio shows, as it should, that the fit is not one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from peira.evaluation.off_policy import linear, tabular
from peira.evaluation.off_policy.linear import Moments
from peira.evaluation.off_policy.ratios import RatioFit, check_discounted, ratio_fit, row_mass, row_shares
from peira.evaluation.off_policy.transitions import Transitions


@dataclass(frozen=True)
class Lagrangian:
    """Which regularisers a member of the family has, and whether λ holds ζ to a mass of 1 (λ is 0 otherwise)."""

    alpha_nu: float
    alpha_zeta: float
    alpha_reward: float
    normalised: bool


DUAL_DICE = Lagrangian(0, 1, 0, normalised=False)
GEN_DICE = Lagrangian(1, 0, 0, normalised=True)
ALGAE_DICE = Lagrangian(0, 1, 1, normalised=False)
BEST_DICE = Lagrangian(0, 1, 1, normalised=True)
MWL = Lagrangian(0, 0, 0, normalised=False)
MQL = Lagrangian(0, 0, 1, normalised=False)


@dataclass(frozen=True)
class SaddlePoint:
    """Where linear ν = φ·nu and ζ = φ·zeta meet, and what is read off there as values J; leading axes as the moments'.

    `mean_ratio` is E_D[ζ m], 1 for a true ratio; `flow_residual` is ‖E_D[ζ (γφ' − φ)] + (1 − γ) E φ̄_0‖, 0 for one.
    """

    nu: Float[np.ndarray, "*models features"]
    zeta: Float[np.ndarray, "*models features"]
    lagrange: Float[np.ndarray, "*models"]
    primal: Float[np.ndarray, "*models"]
    dual: Float[np.ndarray, "*models"]
    lagrangian: Float[np.ndarray, "*models"]
    mean_ratio: Float[np.ndarray, "*models"]
    flow_residual: Float[np.ndarray, "*models"]


@dataclass(frozen=True)
class DiceFit(RatioFit):
    """A ratio with the other two read-outs of its saddle; `value` is the dual."""

    primal: Float[np.ndarray, " candidates"]
    lagrangian: Float[np.ndarray, " candidates"]


def saddle_point(moments: Moments, gamma: float, family: Lagrangian, *, ridge: float = 0.0) -> SaddlePoint:
    """The saddle for ν and ζ linear in the same features; exact with `model_moments`.

    `ridge` adds ridge·(‖nu‖² − ‖zeta‖²)/2 to L, which bounds ν and so trades the flow for the size of ζ. Without it, of
    several solutions the one of least norm comes: λ and a constant in ν are not told apart at γ < 1, on which no
    read-out depends; and where pairs that the policy needs are missing from the log no ζ has the right flow, and what
    comes is a least-squares compromise that `flow_residual` tells of.

    Raises ValueError for γ outside of (0, 1).
    """
    check_discounted(gamma)
    flow, mass = moments.flow(gamma), moments.mass(gamma)
    initial, size = (1 - gamma) * moments.initial, moments.reward.shape[-1]
    unknowns = 2 * size + family.normalised
    matrix = np.zeros((*flow.shape[:-2], unknowns, unknowns))
    right = np.zeros((*flow.shape[:-2], unknowns))
    of_nu, of_zeta = slice(0, size), slice(size, 2 * size)
    # The gradients of L by ν, by ζ and by λ, each set to 0.
    matrix[..., of_nu, of_nu] = family.alpha_nu * moments.gram + ridge * np.eye(size)
    matrix[..., of_nu, of_zeta] = flow.swapaxes(-1, -2)
    matrix[..., of_zeta, of_nu] = flow
    matrix[..., of_zeta, of_zeta] = -family.alpha_zeta * moments.gram - ridge * np.eye(size)
    right[..., of_nu], right[..., of_zeta] = -initial, -family.alpha_reward * moments.reward
    if family.normalised:
        matrix[..., of_zeta, -1] = matrix[..., -1, of_zeta] = -mass
        right[..., -1] = -1.0
    if ridge > 0:
        found = np.linalg.solve(matrix, right[..., None])[..., 0]
    else:
        found = np.einsum("...ij,...j->...i", linear.regularised_inverse(matrix), right)
    nu, zeta = found[..., of_nu], found[..., of_zeta]
    lagrange = found[..., -1] if family.normalised else np.zeros(found.shape[:-1])
    primal = (initial * nu).sum(-1) + lagrange
    dual, mean_ratio = (moments.reward * zeta).sum(-1), (mass * zeta).sum(-1)
    outflow = np.einsum("...ij,...i->...j", flow, zeta)
    lagrangian = primal + dual + (outflow * nu).sum(-1) - lagrange * mean_ratio
    residual = np.linalg.norm(outflow + initial, axis=-1)
    values = (of / (1 - gamma) for of in (primal, dual, lagrangian))
    return SaddlePoint(nu, zeta, *(np.asarray(of) for of in (lagrange, *values, mean_ratio, residual)))


def dual_dice_ratio(
    model: tabular.TabularModel,
    policy: Float[np.ndarray, "... states actions"],
    gamma: float,
    *,
    epsilon: float = 1e-8,
) -> Float[np.ndarray, "... states actions"]:
    """DualDICE in a tabular model: (Bᵀ diag(d^D) B + εI)ν = (1 − γ) μπ and ζ = Bν, with B = I − γP^π.

    ε decides where the log has no counts, and moves ζ by about ε/((1 − γ)² d^D) elsewhere. The sign of ν is opposite to
    the Lagrangian's. Source: Nachum et al. 2019, section 5.
    """
    check_discounted(gamma)
    moments = linear.model_moments(model, policy)
    share = moments.mean[..., None]
    onward = np.divide(moments.onward, share, out=np.zeros_like(moments.onward), where=share > 0)
    backward = np.eye(share.shape[-2]) - gamma * onward
    normal = backward.swapaxes(-1, -2) @ (share * backward) + epsilon * np.eye(share.shape[-2])
    nu = np.linalg.solve(normal, (1 - gamma) * moments.initial[..., None])
    return (backward @ nu)[..., 0].reshape(np.broadcast_shapes(model.share.shape, policy.shape))


def tabular_dice(
    transitions: Transitions,
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    *,
    states: int,
    family: Lagrangian = BEST_DICE,
    prior: float = 0.0,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> DiceFit:
    """The exact saddle in the empirical model of numbered states (see `empirical_model` for `prior`).

    `weight` makes d^D a weighted distribution of rows. Raises ValueError for γ outside of (0, 1).
    """
    check_discounted(gamma)
    several = None if weight is None else weight[None]
    actions = probs.shape[-1]
    model = tabular.empirical_model(transitions, states=states, actions=actions, prior=prior, weight=several)
    policy = tabular.policy_table(transitions, probs, states)[:, None]
    saddle = saddle_point(linear.model_moments(model, policy), gamma, family)
    nu, zeta = (
        tabular.at_points(of.reshape(*of.shape[:2], states, actions), transitions)
        for of in (saddle.nu, saddle.zeta)
    )
    return read_out(transitions, probs, gamma, nu=nu, zeta=zeta, lagrange=saddle.lagrange, weight=weight)


def linear_dice(
    transitions: Transitions,
    features: Float[np.ndarray, "points features"],
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    *,
    family: Lagrangian = BEST_DICE,
    ridge: float = 1.0,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> DiceFit:
    """The saddle with ν and ζ linear in features of the state, with coefficients of their own for each action.

    `ridge` is in units of (1 − γ)²/rows: at 1 an imbalance in the flow of values of the size r/(1 − γ) counts as much
    as the variance that ζ brings. Raises ValueError for γ outside of (0, 1).
    """
    check_discounted(gamma)
    several = None if weight is None else weight[None]
    moments = linear.action_moments(transitions, features, probs, rows=transitions.known, weight=several)
    saddle = saddle_point(moments, gamma, family, ridge=ridge * (1 - gamma) ** 2 / transitions.rows)
    nu, zeta = (linear.at_actions(of, transitions, features) for of in (saddle.nu, saddle.zeta))
    return read_out(transitions, probs, gamma, nu=nu, zeta=zeta, lagrange=saddle.lagrange, weight=weight)


def read_out(
    transitions: Transitions,
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    *,
    nu: Float[np.ndarray, "candidates points actions"],
    zeta: Float[np.ndarray, "candidates points actions"],
    lagrange: Float[np.ndarray, "candidates folds"],
    weight: Float[np.ndarray, " rows"] | None = None,
) -> DiceFit:
    """The three values over the rows of the log, whichever way ν, ζ and the λ of each fold were found."""
    rows, fold = transitions.rows, transitions.point_fold
    logged = np.arange(rows), transitions.action
    fit = ratio_fit(transitions, probs, gamma, zeta[:, *logged], weight=weight)
    expected = np.einsum("cna,cna->cn", probs, nu)
    following = np.where(transitions.next_row >= 0, expected[:, np.maximum(transitions.next_row, 0)], 0.0)
    held_to_mass = lagrange[:, fold[:rows]] * row_mass(transitions, gamma)
    residual = transitions.reward + gamma * following - nu[:, *logged] - held_to_mass
    first = transitions.initial
    primal = expected[:, first].mean(1) + lagrange[:, fold[first]].mean(1) / (1 - gamma)
    gap = (fit.ratio * residual) @ row_shares(transitions, weight) / (1 - gamma)
    return DiceFit(**vars(fit), primal=primal, lagrangian=primal + gap)
