"""The experience ledger: what a batch cost, where it came from, and how on-policy it was."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from peira.evaluation.sampling_error import fitted_parameters, sampling_error
from peira.experience.batch import SOURCE_CODES, Batch
from peira.experience.decisions import LoggedDecisions
from peira.experience.schema import Source
from peira.policies.actor_critic import ActorCritic

COSTS = (
    "real_steps",
    "dreamed_steps",
    "replayed_steps",
    "guided_steps",
    "human_steps",
    "logged_steps",
    "tokens",
    "judge_calls",
    "evaluation_steps",
)


def effective_sample_size(log_weight: Float[Tensor, " rows"]) -> float:
    """(Σw)² / (n Σw²) for w = exp(log_weight): the share of n rows that as many on-policy rows would be worth."""
    weight = (log_weight - log_weight.max()).exp().double()
    return (weight.sum().square() / (len(weight) * weight.square().sum())).item()


def kl_behaviour_target(log_ratio: Float[Tensor, " rows"]) -> float:
    """E[(r − 1) − log r], r = π/behaviour: an estimate of KL(behaviour ‖ π) in nats; log r is kept within ±20."""
    bounded = log_ratio.clamp(-20.0, 20.0)
    return (bounded.expm1() - bounded).mean().item()


def decision_columns(
    target_prob: Float[np.ndarray, " rows"],
    rows: LoggedDecisions,
    generation: int,
    replayed: int,
    source: str = Source.REAL,
) -> dict[str, float]:
    """How on-policy logged decisions are for a candidate that is to be the given generation.

    `target_prob` is its probability of each logged action; `replayed` is how many of the rows an earlier generation was
    trained on, the others are of `source`. The columns are those of `on_policy_columns`.
    """
    log_ratio = torch.from_numpy(np.log(np.maximum(target_prob, 1e-300) / rows.propensity))
    return {
        "staleness": float((generation - 1 - rows.generation).mean()),
        "effective_sample_size": effective_sample_size(log_ratio),
        "kl_behaviour_target": kl_behaviour_target(log_ratio),
        f"share_{source}": 1 - replayed / len(rows),
        "share_replayed": replayed / len(rows),
    }


def on_policy_columns(policy: ActorCritic, batch: Batch) -> dict[str, float]:
    """How near a batch is to what `policy` would gather itself, before the policy learns from it.

    staleness: mean number of policy versions since each row was gathered. effective_sample_size: of the importance
    weights π/behaviour, as a share of the rows. kl_behaviour_target: E[(r − 1) − log r] over the rows, r = π/behaviour,
    which estimates KL(behaviour ‖ π) in nats. sampling_error: KL between the policy fitted to the rows and π, in nats;
    absent where there are fewer rows than fitted parameters. share_…: of each source, with rows that a
    policy version before this one was already given counted as replayed.
    """
    with torch.no_grad():
        log_ratio = (policy.log_prob(batch.observation, batch.action) - batch.behaviour_log_prob).flatten()
    age = (policy.version - batch.policy_version).float()
    source = torch.where(age > 0, SOURCE_CODES[Source.REPLAYED], batch.source)
    columns = {
        "staleness": age.mean().item(),
        "effective_sample_size": effective_sample_size(log_ratio),
        "kl_behaviour_target": kl_behaviour_target(log_ratio),
    }
    for name, code in SOURCE_CODES.items():
        share = (source == code).float().mean().item()
        if share > 0 or name in (Source.REAL, Source.REPLAYED):
            columns[f"share_{name}"] = share
    observation, action = batch.rows("observation"), batch.rows("action")
    if len(observation) >= fitted_parameters(policy):
        error = sampling_error(policy, observation, action)
        columns["sampling_error"] = error.value
        columns["sampling_error_reference"] = error.reference_level
    return columns
