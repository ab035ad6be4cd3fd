"""Generalised advantage estimation over time-ordered batches of parallel worlds."""

from jaxtyping import Bool, Float
from torch import Tensor

from peira.experience.scan import running_sum_backwards


def generalised_advantages(
    reward: Float[Tensor, "time env"],
    value: Float[Tensor, "time env"],
    next_value: Float[Tensor, "time env"],
    terminated: Bool[Tensor, "time env"],
    truncated: Bool[Tensor, "time env"],
    *,
    discount: float,
    decay: float,
) -> tuple[Float[Tensor, "time env"], Float[Tensor, "time env"]]:
    """Advantages and the returns (advantage + value) that the critic is fitted to.

    δ_t = r_t + γ V(s'_t)·(1 − terminated_t) − V(s_t);  A_t = δ_t + γ λ·(1 − terminated_t)(1 − truncated_t)·A_{t+1}.
    `next_value` is V of what step t led to, so that a truncated episode still bootstraps; the newest row's sum stops
    there. γ is `discount`, λ is `decay`. Source: Schulman et al. 2016, equations 11–16.
    """
    delta = reward + discount * next_value * ~terminated - value
    carried = discount * decay * (~(terminated | truncated)).to(delta.dtype)
    advantage = running_sum_backwards(delta, carried)
    return advantage, advantage + value
