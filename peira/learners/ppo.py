"""Proximal policy optimisation (Schulman et al. 2017): its loss, and one update on a batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from peira.credit.gae import generalised_advantages
from peira.experience.batch import Batch
from peira.policies.actor_critic import ActorCritic
from peira.policies.gradient_step import GradientStep

MEASURES = ("kl", "policy_loss", "value_loss", "entropy", "clip_fraction")


def clipped_surrogate(
    log_ratio: Float[Tensor, " rows"], advantage: Float[Tensor, " rows"], clip: float
) -> Float[Tensor, ""]:
    """−E min(r·A, clip(r, 1−ε, 1+ε)·A) with r = exp(log_ratio): equation 7 of the paper, as a loss."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def value_loss(
    value: Float[Tensor, " rows"],
    old_value: Float[Tensor, " rows"],
    returns: Float[Tensor, " rows"],
    clip: float | None,
) -> Float[Tensor, ""]:
    """½ E (V − R)², or with a clip ½ E max((V − R)², (V_clip − R)²), V_clip within ±clip of the old value."""
    error = (value - returns).square()
    if clip is not None:
        clipped = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (clipped - returns).square())
    return 0.5 * error.mean()


def kl_estimate(log_ratio: Float[Tensor, " rows"]) -> Float[Tensor, ""]:
    """E[(r − 1) − log r] for r = π_new/π_old on rows of π_old: estimates KL(π_old ‖ π_new) without negative values.

    The log-ratio is clamped to ±20. Source: Schulman, "Approximating KL divergence" (2020), estimator k3.
    """
    log_ratio = log_ratio.clamp(-20.0, 20.0)
    return (log_ratio.expm1() - log_ratio).mean()


def ppo_loss(
    policy: ActorCritic,
    observation: Float[Tensor, "rows obs"],
    action: Shaped[Tensor, "rows *action"],
    old_log_prob: Float[Tensor, " rows"],
    advantage: Float[Tensor, " rows"],
    returns: Float[Tensor, " rows"],
    old_value: Float[Tensor, " rows"],
    *,
    clip: float,
    value_clip: float | None,
    value_coefficient: float,
    entropy_coefficient: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " measures"]]:
    """Surrogate + value_coefficient · value loss − entropy_coefficient · entropy, and `MEASURES`.

    Advantages are standardised within the minibatch.
    """
    distribution = policy.distribution(observation)
    log_ratio = distribution.log_prob(action) - old_log_prob
    standardised = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = clipped_surrogate(log_ratio, standardised, clip)
    fit = value_loss(policy.value(observation), old_value, returns, value_clip)
    entropy = distribution.entropy().mean()
    clipped = ((log_ratio.exp() - 1).abs() > clip).float().mean()
    measures = torch.stack([kl_estimate(log_ratio), surrogate, fit, entropy, clipped])
    return surrogate + value_coefficient * fit - entropy_coefficient * entropy, measures


@torch.no_grad()
def ppo_columns(
    policy: ActorCritic, batch: Batch, reward: Float[Tensor, "time env"], *, discount: float, decay: float
) -> tuple[Tensor, ...]:
    """What `ppo_loss` reads, for every row of the batch, all of it computed anew under the policy as it is now.

    Rows gathered by other policies get no importance weight: ratios start at exactly 1 for rows of every age
    (``props.md`` 2.7). `reward` is the batch's reward as the learner sees it (scaled, or raw).
    """
    observation, action = batch.rows("observation"), batch.rows("action")
    value = policy.value(batch.observation)
    advantage, returns = generalised_advantages(
        reward,
        value,
        policy.value(batch.next_observation),
        batch.terminated,
        batch.truncated,
        discount=discount,
        decay=decay,
    )
    log_prob = policy.log_prob(observation, action)
    return observation, action, log_prob, advantage.flatten(), returns.flatten(), value.flatten()


def ppo_update(
    step: GradientStep,
    policy: ActorCritic,
    columns: tuple[Tensor, ...],
    *,
    epochs: int,
    minibatches: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """Epochs of minibatch steps until done or stopped by the KL; raises the policy's version."""
    measures = step.epochs(columns, epochs=epochs, minibatches=minibatches, generator=generator)
    policy.version += 1
    returns, old_value = columns[4], columns[5]
    explained = 1 - (returns - old_value).var() / (returns.var() + 1e-8)
    return {
        **dict(zip(MEASURES, measures.mean(0).tolist(), strict=True)),
        "kl": measures[-1, 0].item(),
        "update_steps": len(measures),
        "explained_variance": explained.item(),
    }
