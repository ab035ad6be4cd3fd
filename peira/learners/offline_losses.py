"""Losses of learning continuous control from transitions that anyone may have gathered.

Rows are transitions; actions are in [−1, 1]. Where a figure is called fixed no gradient goes through it.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def smoothed_action(
    action: Float[Tensor, "rows act"], noise: Float[Tensor, "rows act"], std: float, clip: float
) -> Float[Tensor, "rows act"]:
    """clip(a + clip(std · noise, ±clip), ±1): TD3's target policy smoothing (Fujimoto et al. 2018, equation 14)."""
    return (action + (noise * std).clamp(-clip, clip)).clamp(-1, 1)


def bootstrapped_target(
    reward: Float[Tensor, " rows"],
    goes_on: Float[Tensor, " rows"],
    next_value: Float[Tensor, " rows"],
    discount: float,
) -> Float[Tensor, " rows"]:
    """r + γ · goes_on · V(s'), goes_on 0 where the episode terminated and 1 elsewhere, also where it was cut."""
    return reward + discount * goes_on * next_value


def critic_loss(q: Float[Tensor, "members rows"], target: Float[Tensor, " rows"]) -> Float[Tensor, ""]:
    """Mean of (Q_i − target)² over rows and members; the target is fixed."""
    return (q - target.detach()).square().mean()


def cloning_error(
    action: Float[Tensor, "rows act"], logged: Float[Tensor, "rows act"]
) -> Float[Tensor, " rows"]:
    """Mean of (a − logged)² over dimensions."""
    return (action - logged).square().mean(-1)


def td3_bc_actor_loss(
    q: Float[Tensor, " rows"], cloning: Float[Tensor, " rows"], q_weight: float, cloning_weight: float
) -> Float[Tensor, ""]:
    """−λ_Q E Q + cloning_weight · E cloning, λ_Q = q_weight / E|Q| fixed (Fujimoto and Gu 2021; ``pgd.md`` 2.7).

    TD3+BC: q_weight 2.5, cloning_weight 1. ReBRAC (Tarasov et al. 2023): 1, and its actor coefficient β₁ times the
    number of action dimensions, because it sums over them.
    """
    scale = q_weight / (q.detach().abs().mean() + 1e-7)
    return cloning_weight * cloning.mean() - scale * q.mean()


def expectile_loss(
    value: Float[Tensor, " rows"], target: Float[Tensor, " rows"], expectile: float
) -> Float[Tensor, ""]:
    """E |τ − 1[u < 0]| u², u = target − V; the target is fixed (Kostrikov et al. 2021, equation 5)."""
    u = target.detach() - value
    return ((u < 0).to(u.dtype) - expectile).abs().mul(u.square()).mean()


def advantage_weight(
    target: Float[Tensor, " rows"], value: Float[Tensor, " rows"], inverse_temperature: float, most: float
) -> Float[Tensor, " rows"]:
    """min(exp(β (Q − V)), most), fixed (Kostrikov et al. 2021, equation 7; ``pgd.md`` 2.7)."""
    return ((target - value).detach() * inverse_temperature).exp().clamp(max=most)


def weighted_likelihood_loss(
    log_prob: Float[Tensor, " rows"], weight: Float[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """−E weight · log π(a | s)."""
    return -(weight * log_prob).mean()


def sac_actor_loss(
    log_prob: Float[Tensor, " rows"], q: Float[Tensor, " rows"], temperature: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """E temperature · log π(a | s) − Q(s, a) for actions drawn now; the temperature is fixed (Haarnoja et al. 2018)."""
    return (temperature.detach() * log_prob - q).mean()


def temperature_loss(
    log_temperature: Float[Tensor, ""], log_prob: Float[Tensor, " rows"], target_entropy: float
) -> Float[Tensor, ""]:
    """−log_temperature · (E log π + target entropy), log π fixed: rises while the entropy is below its target."""
    return -log_temperature * (log_prob.detach().mean() + target_entropy)
