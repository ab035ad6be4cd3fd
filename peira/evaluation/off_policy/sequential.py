"""Estimators that weight whole episodes or their steps by products of importance ratios, as pure functions of arrays.

J(π) = E_π[Σ_t γ^t r_t], the first reward undiscounted, from `Block`s of episodes that π_b chose. W_t is the product of
the ratios up to and with t, W_{−1} = 1. Throughout, padded with 0 after an episode's end:
  q   [episodes, steps]   Q̂(s_t, a_t), a value model of the target at the logged pair
  v   [episodes, steps]   V̂(s_t) = Σ_a π(a|s_t) Q̂(s_t, a)
The weighted ones need π ≪ π_b and true propensities and vary exponentially in the horizon; DM needs Q̂ right; DR needs
one of the two. Episodes that were cut off give the value up to the cut. For actions of a continuous deterministic
target see `continuous.kernel_log_ratio`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.weights import (
    Block,
    Padded,
    cumulative_log_weights,
    previous_weights,
    shifted_weights,
    weights,
)


def returns(block: Block, gamma: float) -> Float[np.ndarray, " episodes"]:
    """G_i = Σ_t γ^t r_t."""
    return block.reward @ block.discount(gamma)


def on_policy(block: Block, gamma: float) -> Terms:
    """Mean return of the episodes as they are: the value of the policy that made them."""
    return Terms.mean(returns(block, gamma))


def tis(block: Block, gamma: float) -> Terms:
    """Trajectory-wise importance sampling: mean of W_{T_i−1} G_i. Unbiased. Precup et al. 2000."""
    return Terms.mean(weights(cumulative_log_weights(block)[:, -1]) * returns(block, gamma))


def wis(block: Block, gamma: float) -> Terms:
    """Self-normalised TIS: Σ W G / Σ W. Consistent, never outside the range of the returns. Precup et al. 2000."""
    weight, log_scale = shifted_weights(cumulative_log_weights(block)[:, -1:])
    return Terms(np.zeros(len(weight)), weight * returns(block, gamma)[:, None], weight, log_scale)


def pdis(block: Block, gamma: float) -> Terms:
    """Per-decision importance sampling: mean of Σ_t γ^t W_t r_t. Unbiased. Precup et al. 2000."""
    return Terms.mean((weights(cumulative_log_weights(block)) * block.reward) @ block.discount(gamma))


def wpdis(block: Block, gamma: float) -> Terms:
    """Self-normalised PDIS: Σ_t γ^t Σ_i W_it r_it / Σ_i W_it over all episodes, ended or not. Consistent.

    Source: Precup et al. 2000; the normaliser of Thomas 2015, with the weight of an ended episode carried forward.
    """
    weight, log_scale = shifted_weights(cumulative_log_weights(block))
    return Terms(np.zeros(len(weight)), weight * block.reward * block.discount(gamma), weight, log_scale)


def dm(v: Padded) -> Terms:
    """Direct method: mean of V̂(s_0). No weights: what is wrong with Q̂ does not show."""
    return Terms.mean(v[:, 0])


def dr(block: Block, q: Padded, v: Padded, gamma: float) -> Terms:
    """Doubly robust: mean of Σ_t γ^t [W_t (r_t − Q̂_t) + W_{t−1} V̂_t]. Unbiased with true weights, whatever Q̂.

    Source: Jiang and Li 2016.
    """
    return Terms.mean(doubly_robust(block, weights(cumulative_log_weights(block)), q, v, gamma))


def wdr(block: Block, q: Padded, v: Padded, gamma: float) -> Terms:
    """Self-normalised DR: W_t / mean W_t and W_{t−1} / mean W_{t−1} in the place of W_t and W_{t−1}. Consistent.

    The terms with the same normaliser are taken together, γ^t W_t (r_t − Q̂_t + γ V̂_{t+1}), and V̂(s_0) by itself.

    Source: Thomas and Brunskill 2016.
    """
    weight, log_scale = shifted_weights(cumulative_log_weights(block))
    residual = temporal_difference(block, q, next_value(v, block.length), gamma)
    return Terms(v[:, 0], weight * residual * block.discount(gamma), weight, log_scale)


def switch(block: Block, q: Padded, v: Padded, gamma: float, *, threshold: float) -> Terms:
    """DR up to the step before W_t first exceeds `threshold`, the model from there on. Biased where Q̂ is wrong.

    Mean of Σ_t γ^t [m_t W_t (r_t − Q̂_t) + m_{t−1} W_{t−1} V̂_t], m_t = 1 while max_{u ≤ t} W_u ≤ threshold, m_{−1} = 1.
    0 gives DM, ∞ gives DR; one step gives the bandit's Switch-DR.

    Source: Wang et al. 2017, carried over to sequences.
    """
    log_weight = cumulative_log_weights(block)
    with np.errstate(divide="ignore"):
        kept = np.maximum.accumulate(log_weight, axis=1) <= np.log(threshold)
    return Terms.mean(doubly_robust(block, np.where(kept, weights(log_weight), 0.0), q, v, gamma))


def next_value(
    v: Padded, length: Int[np.ndarray, " episodes"], final_v: Float[np.ndarray, " episodes"] | None = None
) -> Padded:
    """V̂(s_{t+1}); after the last step `final_v`, 0 if left out (the episode ended, or its value counts to the cut)."""
    following = np.concatenate([v[:, 1:], np.zeros((len(v), 1))], axis=1)
    if final_v is not None:
        following[np.arange(len(v)), length - 1] = final_v
    return following


def temporal_difference(block: Block, q: Padded, following_v: Padded, gamma: float) -> Padded:
    """r_t + γ V̂(s_{t+1}) − Q̂(s_t, a_t)."""
    return block.reward + gamma * following_v - q


def doubly_robust(
    block: Block, weight: Padded, q: Padded, v: Padded, gamma: float
) -> Float[np.ndarray, " episodes"]:
    """Σ_t γ^t [ω_t (r_t − Q̂_t) + ω_{t−1} V̂_t] for weights ω of any kind, ω_{−1} = 1."""
    return (weight * (block.reward - q) + previous_weights(weight) * v) @ block.discount(gamma)
