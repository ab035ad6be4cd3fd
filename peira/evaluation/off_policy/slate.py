"""Slates: L actions chosen at once, one a position, with a reward at each position.

  log_ratio   [rows, positions]   log π(a_l | x, a_1 … a_{l−1}) − log p(a_l | x, a_1 … a_{l−1})
  reward      [rows, positions]
How much may a position's reward depend on? On the whole slate: SIPS. On the positions above (the user reads from the
top): RIPS and cascade-DR. On its own action: IIPS. On a sum over positions of which only the total is seen: the
pseudo-inverse. A slate is an episode of L steps without discount, so SIPS, RIPS and cascade-DR *are* TIS, PDIS and DR
with γ = 1.

Source: McInerney et al. 2020 (RIPS); Kiyohara et al. 2022 (cascade-DR); Swaminathan et al. 2017 (pseudo-inverse).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.bandit import ridge_reward
from peira.evaluation.off_policy.propensity import train_and_held_out
from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.weights import Block

Positions = Float[np.ndarray, "rows positions"]


def sips(log_ratio: Positions, reward: Positions, *, self_normalised: bool = False) -> Terms:
    """Standard IPS: mean of Π_l w_l · Σ_l r_l; self-normalised by the sum of Π_l w_l."""
    estimator = sequential.wis if self_normalised else sequential.tis
    return estimator(_block(log_ratio, reward), 1.0)


def iips(marginal_log_ratio: Positions, reward: Positions, *, self_normalised: bool = False) -> Terms:
    """Independent IPS: mean of Σ_l w_l r_l, self-normalised position by position.

    `marginal_log_ratio` is log π(a_l|x) − log p(a_l|x) of the action at position l whatever stands at the others.
    Unbiased where a position's reward depends on its own action only.
    """
    ratio = np.exp(marginal_log_ratio)
    if self_normalised:
        return Terms(np.zeros(len(reward)), ratio * reward, ratio)
    return Terms.mean((ratio * reward).sum(1))


def rips(log_ratio: Positions, reward: Positions, *, self_normalised: bool = False) -> Terms:
    """Reward-interaction IPS: mean of Σ_l (Π_{l' ≤ l} w_l') r_l, self-normalised position by position."""
    estimator = sequential.wpdis if self_normalised else sequential.pdis
    return estimator(_block(log_ratio, reward), 1.0)


def cascade_dr(
    log_ratio: Positions, reward: Positions, q: Positions, v: Positions, *, self_normalised: bool = False
) -> Terms:
    """Cascade-DR: mean of Σ_l [W_l (r_l − q_l) + W_{l−1} v_l], W_l = Π_{l' ≤ l} w_l'; self-normalised by position.

    `q` and `v` are those of `fit_cascade`: what the positions from l on yield, after the logged action at l and before
    it under the target.
    """
    estimator = sequential.wdr if self_normalised else sequential.dr
    return estimator(_block(log_ratio, reward), q, v, 1.0)


def fit_cascade(
    features: Float[np.ndarray, "rows features"],
    slate: Int[np.ndarray, "rows positions"],
    reward: Positions,
    target_probs: Float[np.ndarray, "rows positions actions"],
    *,
    fold: Int[np.ndarray, " rows"] | None = None,
    weight: Positions | None = None,
    ridge: float = 1.0,
) -> tuple[Positions, Positions]:
    """q_l(x, a_1 … a_l) and v_l(x, a_1 … a_{l−1}) = Σ_a π(a|x, a_1 … a_{l−1}) q_l, from the last position backwards.

    q_l regresses r_l + v_{l+1} on x and the one-hot actions above, by the ridge regression of `fit_reward` for each
    action at l; `target_probs[i, l]` are the target's probabilities given the logged actions above. `weight` is the
    weight of a row at a position: the products W_l of the ratios fit q where the target goes. Cross-fitted by `fold`,
    the whole recursion in each.
    """
    rows, positions, actions = target_probs.shape
    one_hot = np.eye(actions)[slate].reshape(rows, -1)
    q, v = np.empty_like(reward), np.empty_like(reward)
    for train, held_out in train_and_held_out(fold, rows):
        following = np.zeros(rows)
        for place in reversed(range(positions)):
            known = np.column_stack([features, one_hot[:, : place * actions]])
            of_train = None if weight is None else weight[train, place]
            target = (reward[:, place] + following)[train]
            of_action = ridge_reward(
                known[train], slate[train, place], target, known, actions, ridge=ridge, weight=of_train
            )
            following = (target_probs[:, place] * of_action).sum(1)
            q[held_out, place] = of_action[held_out, slate[held_out, place]]
            v[held_out, place] = following[held_out]
    return q, v


def pseudo_inverse_ratio(marginal_log_ratio: Positions) -> Float[np.ndarray, " rows"]:
    """1 − L + Σ_l π(a_l|x)/p(a_l|x): the pseudo-inverse weight where the log chose its positions independently.

    With `bandit.ipw` or `bandit.snipw` on Σ_l r_l unbiased where that sum is a sum of one term a position, whether or
    not the terms are seen; weights may be negative, and grow with L and not exponentially.
    """
    return 1.0 - marginal_log_ratio.shape[1] + np.exp(marginal_log_ratio).sum(1)


def general_pseudo_inverse_ratio(
    slate: Int[np.ndarray, "rows positions"],
    context: Int[np.ndarray, " rows"],
    target_marginal: Float[np.ndarray, "contexts positions actions"],
    second_moment: Float[np.ndarray, "contexts slots slots"],
) -> Float[np.ndarray, " rows"]:
    """1_πᵀ Γ⁺ 1_s, for any logging policy: 1_s marks the (position, action) slots of a slate, 1_π = E_π[1_s | x].

    `context` numbers the rows' x; Γ = E_{π_b}[1_s 1_sᵀ | x] is `slate_second_moment`. Raises ValueError where 1_π is
    outside of Γ's range: the target shows what the log never does, and no weights on its slates can make up for it.
    """
    contexts, positions, actions = target_marginal.shape
    shown = target_marginal.reshape(contexts, positions * actions)
    weights = np.linalg.pinv(second_moment, hermitian=True) @ shown[:, :, None]
    missing = np.abs((second_moment @ weights)[:, :, 0] - shown).max(1)
    if (missing > 1e-8).any():
        raise ValueError(
            f"in context {int(np.argmax(missing))} the candidate shows slates that no mixture of logged slates can "
            "stand for (support)"
        )
    slot = np.arange(positions) * actions + slate
    return weights[context[:, None], slot, 0].sum(1)


def slate_second_moment(
    slates: Int[np.ndarray, "slates positions"], probs: Float[np.ndarray, "contexts slates"], actions: int
) -> Float[np.ndarray, "contexts slots slots"]:
    """Γ = Σ_s p(s|x) 1_s 1_sᵀ over a list of all slates; slot = position · actions + action."""
    marks = np.eye(actions)[slates].reshape(len(slates), -1)
    return np.einsum("cs,si,sj->cij", probs, marks, marks, optimize=True)


def _block(log_ratio: Positions, reward: Positions) -> Block:
    return Block(reward, log_ratio, np.full(len(reward), reward.shape[1]))
