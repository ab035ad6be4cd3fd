"""The experience ledger of language agents: how on-policy a batch is, token by token, and what its groups can teach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from peira.credit.group_relative import Laid
from peira.experience.dialogue import TextEpisode, total_steps
from peira.experience.schema import Source
from peira.learners.grpo import k3
from peira.runs.ledger import effective_sample_size


def token_columns(
    batch: Laid,
    log_prob: Float[Tensor, " tokens"],
    sampled_log_prob: Float[Tensor, " tokens"],
    replayed: Bool[Tensor, " tokens"],
) -> dict[str, float]:
    """How near the batch is to what the policy would sample itself, before it learns from it.

    `log_prob` under that policy, `sampled_log_prob` when the tokens were sampled. staleness: policy versions since
    then, mean over tokens. effective_sample_size and kl_behaviour_target as in `on_policy_columns`, over tokens.
    """
    log_ratio = (log_prob - sampled_log_prob).clamp(-20.0, 20.0)
    newest = max(episode.policy_version for episode in batch.episodes)
    age = torch.tensor([float(newest - episode.policy_version) for episode in batch.episodes])
    weight = batch.lengths.float()
    share = replayed.float().mean().item()
    return {
        "staleness": ((age * weight).sum() / weight.sum()).item(),
        "effective_sample_size": effective_sample_size(log_ratio),
        "kl_behaviour_target": k3(sampled_log_prob, log_prob).mean().item(),
        "share_real": 1 - share,
        "share_replayed": share,
    }


def replayed_steps(batch: Laid) -> int:
    return total_steps([episode for episode in batch.episodes if episode.source == Source.REPLAYED])


def group_columns(
    fresh: Sequence[Sequence[TextEpisode]], learned: Sequence[Sequence[TextEpisode]], format_weight: float
) -> dict[str, float]:
    """What an iteration's fresh episodes came to, and the share of groups without signal before and after replay.

    All rates are of fresh episodes. reward_spread: deviation (n − 1) of rewards within a group, mean over groups.
    """
    before, after = Laid.of(fresh, format_weight), Laid.of(learned, format_weight)
    episodes, number = before.episodes, len(before.episodes)
    score = torch.tensor([episode.score for episode in episodes])
    solved = torch.zeros(len(fresh)).index_add(0, before.group, score) > 0.5 * len(fresh[0])
    return {
        "success": score[before.valid].mean().item() if before.valid.any() else 0.0,
        "fresh_episodes": number,
        "episode_steps": total_steps(episodes) / number,
        "dead_groups": before.dead.float().mean().item(),
        "dead_solved": (before.dead & solved).float().mean().item(),
        "dead_groups_after_replay": after.dead.float().mean().item(),
        "reward_spread": _mean_spread(before),
        "parse_failures": sum(episode.failed_to_parse for episode in episodes) / number,
        "context_overflows": sum(episode.ending == "context_overflow" for episode in episodes) / number,
        "environment_errors": sum(episode.error is not None for episode in episodes) / number,
    }


def _mean_spread(batch: Laid) -> float:
    inside = [(batch.group == number) & batch.valid for number in range(int(batch.group.max()) + 1)]
    spreads = [batch.reward[members].std().item() for members in inside if members.sum() > 1]
    return sum(spreads) / len(spreads) if spreads else 0.0
