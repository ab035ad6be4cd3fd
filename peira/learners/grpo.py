"""GRPO: a clipped policy gradient on group-relative advantages, over the tokens that the policy sampled.

Everything here is laid flat: one entry for every sampled token of every episode, in order, with the weight that it has
in the loss. How tokens were padded or packed to compute their log-probabilities makes no difference.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Aggregation = Literal["sequence", "token"]


def clipped_loss(
    log_prob: Float[Tensor, "*tokens"],
    old_log_prob: Float[Tensor, "*tokens"],
    advantage: Float[Tensor, "*tokens"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    dual_clip: float = 3.0,
) -> Float[Tensor, "*tokens"]:
    """PPO's clipped loss of each token, with its own upper limit and a bound for bad tokens.

    ρ = π/π_old; u = max(−Aρ, −A·clip(ρ, 1 − clip_low, 1 + clip_high)); u where A ≥ 0, min(u, −A·dual_clip) where A < 0.
    The limits are put to log ρ before exp, so that no ratio overflows (``arpo.md`` 2.6; clip-higher: Yu et al. 2025;
    dual clip: Ye et al. 2020).
    """
    log_ratio = log_prob - old_log_prob
    limited = log_ratio.clamp(math.log1p(-clip_low), math.log1p(clip_high)).exp()
    # Beyond the dual clip the loss is bounded, whatever the ratio.
    free = log_ratio.clamp(max=20.0).exp()
    loss = torch.maximum(-advantage * free, -advantage * limited)
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)


def k3(log_prob: Float[Tensor, " tokens"], reference: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """KL(π ‖ reference) estimated from samples of π: r − 1 − log r with r = reference/π, never negative (Schulman)."""
    log_ratio = (reference - log_prob).clamp(-20.0, 20.0)
    return log_ratio.expm1() - log_ratio


def token_weights(
    lengths: Int[Tensor, " episodes"],
    counted: Bool[Tensor, " episodes"],
    *,
    aggregation: Aggregation,
) -> Float[Tensor, " tokens"]:
    """Weight of every token in the loss; the weights of the counted episodes sum to 1, those of others are 0.

    "sequence": the mean over an episode's tokens, then over episodes (Shao et al. 2024). "token": the mean over all
    tokens, so that long episodes weigh more (Yu et al. 2025).
    """
    counted = counted & (lengths > 0)
    kept = torch.where(counted, lengths, torch.zeros_like(lengths)).double()
    if aggregation == "sequence":
        each = torch.where(counted, 1 / (lengths.clamp(min=1).double() * counted.sum().clamp(min=1)), 0.0)
    else:
        each = torch.where(counted, 1 / kept.sum().clamp(min=1), 0.0)
    return each.float().repeat_interleave(lengths)


def truncated_weights(
    log_prob: Float[Tensor, " tokens"], sampled_log_prob: Float[Tensor, " tokens"], limit: float
) -> Float[Tensor, " tokens"]:
    """min(π_learner/π_sampler, limit), for a sampler whose arithmetic differs from the learner's (Yao et al. 2025)."""
    return (log_prob - sampled_log_prob).clamp(max=math.log(limit)).exp()
