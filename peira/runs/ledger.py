"""The experience ledger: what a batch cost, where it came from, and how on-policy it was."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from peira.evaluation.sampling_error import fitted_parameters, sampling_error
from peira.experience.batch import SOURCE_CODES, Batch
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
    bounded = log_ratio.clamp(-20.0, 20.0)
    age = (policy.version - batch.policy_version).float()
    source = torch.where(age > 0, SOURCE_CODES[Source.REPLAYED], batch.source)
    columns = {
        "staleness": age.mean().item(),
        "effective_sample_size": effective_sample_size(log_ratio),
        "kl_behaviour_target": (bounded.expm1() - bounded).mean().item(),
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
