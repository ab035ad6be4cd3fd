"""GRPO: policy gradients for language agents whose baseline is the mean of a group of attempts at the same task.

Shao et al. 2024, as agents are trained with it: every token that the policy wrote in an episode gets the episode's
advantage, (R − mean) / deviation within the group; everything it read gets none. What was sampled is what is trained
on: token ids and log-probabilities come from the sampler, nothing is encoded twice. Where we depart from common code:
an episode whose world failed is left out of loss and statistics instead of counting as a failure; a group of equal
rewards contributes exactly nothing (and counts in the denominator unless `exclude_dead`).

    peira run grpo --env texthouse-brief --model runs/warm/policy --steps 40000
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peira.credit.group_relative import Deviation, Laid, group_advantages
from peira.environments.text import TextEnvs, make_text
from peira.experience.dialogue import TextEpisode
from peira.learners.grpo import Aggregation, clipped_loss, k3, token_weights, truncated_weights
from peira.learners.language import LanguageLearner
from peira.policies.lm.model import LanguagePolicy, is_tiny
from peira.recipes import sft
from peira.recipes.ppo import check_ranges
from peira.recipes.sft import TextConfig, acting, evaluate_when_due, language_policy, training_tasks
from peira.runs.run import Run
from peira.runs.text_ledger import group_columns, replayed_steps, token_columns
from peira.sources.text_rollout import Attempt, Attempts, expert_rollout, sound
from peira.tasks.order import TaskOrder


@dataclass(frozen=True)
class Config(TextConfig):
    steps: int = 40_000
    """Budget of real environment steps (actions); an iteration that might pass it does not begin."""
    groups: int = 16
    """P: tasks in an iteration."""
    group_size: int = 8
    """G: episodes of each of them."""
    minibatches: int = 2
    """Optimiser steps in an iteration; groups stay whole."""
    learning_rate: float = 3e-4
    """AdamW's step size, constant; 1e-6 suits a model of billions."""
    clip_low: float = 0.2
    """How far below 1 a probability ratio may fall before its gradient stops."""
    clip_high: float = 0.3
    """How far above 1 it may rise (clip-higher)."""
    dual_clip: float = 3.0
    """Bound of the loss of a bad token, in units of −A."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the initial policy (k3); 0 keeps no reference."""
    deviation: Deviation = "unbiased"
    """What advantages are divided by: the deviation with n − 1 (unbiased) or n (population), or none."""
    aggregation: Aggregation = "sequence"
    """Mean over each episode's tokens, then episodes (sequence), or over all tokens (token)."""
    success_only: bool = False
    """Advantages are the rewards themselves where positive, 0 elsewhere: the likelihood of successes, no baseline."""
    exclude_dead: bool = False
    """Leave groups of equal rewards out of the denominator, so that they don't scale the step down."""
    resample: int = 0
    """Further rounds of groups to find live ones in place of dead ones (dynamic sampling, Yu et al. 2025)."""
    importance_limit: float | None = None
    """Truncate the importance weights learner/sampler here; None for no such correction."""
    temperature: float = 1.0
    """Sampling temperature in training."""
    format_weight: float = 0.5
    """λ: taken off the reward of an episode that ended with what is no action."""
    parse_failure_ends: bool = True
    """Whether writing what is no action ends the episode."""
    max_gradient_norm: float = 1.0
    """Gradients are clipped to this norm."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    warm_start: int = 1536
    """Demonstrations that a model made from nothing imitates first; ignored for other models."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, _RANGES)
        if self.minibatches > self.groups:
            raise ValueError(
                f"minibatches: expected at most groups={self.groups}, got {self.minibatches}; groups stay whole"
            )
        if self.success_only and self.exclude_dead:
            raise ValueError(
                "exclude_dead: without a baseline no group is dead; leave it out or drop success_only"
            )


_RANGES = {
    **dict.fromkeys(("groups", "minibatches"), (1, math.inf)),
    "group_size": (2, math.inf),
    **dict.fromkeys(("learning_rate", "clip_low", "clip_high", "kl_coefficient", "resample"), (0, math.inf)),
    **dict.fromkeys(("format_weight", "max_gradient_norm", "weight_decay", "warm_start"), (0, math.inf)),
    "dual_clip": (1, math.inf),
    "importance_limit": (1, math.inf),
    "temperature": (1e-3, math.inf),
}

Groups = list[list[TextEpisode]]


def preset(env: str) -> Config:
    """The settings to begin from in this world."""
    return Config(env=env)


def gather(config: Config, run: Run, attempts: Attempts, order: TaskOrder) -> Groups:
    """One iteration's groups; under `resample` dead ones make room for live ones of further rounds."""
    live: Groups = []
    dead: Groups = []
    for _ in range(1 + config.resample):
        tasks = order.draw(run.generator("tasks"))
        names = run.episode_ids(len(tasks) * config.group_size)
        seeds = torch.randint(2**62, (len(names),), generator=run.generator("sampling")).tolist()
        members = [task for task in tasks for _ in range(config.group_size)]
        groups = [names[place - place % config.group_size] for place in range(len(names))]
        episodes = attempts([Attempt(*entry) for entry in zip(names, members, groups, seeds, strict=True)])
        run.gathered_episodes(episodes)
        sound(episodes)
        for start in range(0, len(episodes), config.group_size):
            group = episodes[start : start + config.group_size]
            (live if _spread(group) else dead).append(group)
        if len(live) >= config.groups:
            break
    return (live + dead)[: config.groups]


def _spread(group: Sequence[TextEpisode]) -> bool:
    scores = [(episode.score, episode.failed_to_parse) for episode in group if episode.error is None]
    return len(set(scores)) > 1


def learn(
    config: Config,
    run: Run,
    learner: LanguageLearner,
    groups: Groups,
    reference: LanguageLearner | None,
    *,
    stored_is_old: bool = False,
) -> None:
    """Update the policy from these groups.

    π_old is the policy before the update, replayed episodes included; with `stored_is_old` it is, for replayed
    episodes, the policy that sampled them.
    """
    batch = Laid.of(groups, config.format_weight)
    if config.success_only:
        advantage = torch.where(batch.valid, batch.reward.clamp(min=0.0), 0.0)
    else:
        advantage = group_advantages(batch.reward, batch.group, batch.valid, deviation=config.deviation)
    counted = batch.valid & (
        ~batch.dead[batch.group] if config.exclude_dead else torch.ones_like(batch.valid)
    )
    tokens = [episode.tokens if episode.sampled_tokens else None for episode in batch.episodes]
    present = [place for place, entry in enumerate(tokens) if entry is not None]
    sequences = [tokens[place] for place in present]
    flat_advantage = advantage.repeat_interleave(batch.lengths)
    sampled = torch.from_numpy(np.concatenate([sequence.log_probs for sequence in sequences]))
    replayed = torch.tensor([e.source == "replayed" for e in batch.episodes]).repeat_interleave(batch.lengths)
    towards = reference.log_prob(sequences, temperature=config.temperature) if reference else None

    first = torch.cat([torch.zeros(1, dtype=torch.long), batch.lengths.cumsum(0)])
    parts = []
    for part in torch.arange(len(groups)).tensor_split(config.minibatches):
        inside = torch.isin(batch.group, part)
        if chosen := [place for place in present if inside[place]]:
            where = torch.cat([torch.arange(first[place], first[place + 1]) for place in chosen])
            weight = token_weights(batch.lengths, counted & inside, aggregation=config.aggregation)
            parts.append(([tokens[place] for place in chosen], where, weight))
    # Log-probabilities under the policy before the update; the first step computes its own part of them anyway.
    before = torch.full_like(sampled, torch.nan)
    for chosen, where, _ in parts[1:]:
        before[where] = learner.log_prob(chosen, temperature=config.temperature)

    norms, divergence = [], 0.0
    for number, (chosen, where, weight) in enumerate(parts):

        def loss(
            log_prob: Tensor,
            which: Tensor,
            where: Tensor = where,
            weight: Tensor = weight,
            is_first: bool = number == 0,
        ) -> Tensor:
            nonlocal divergence
            device, at = log_prob.device, where[which.cpu()]
            if is_first:
                before[at] = log_prob.detach().cpu()
            old = torch.where(replayed[at], sampled[at], before[at]) if stored_is_old else before[at]
            value = clipped_loss(
                log_prob,
                old.to(device),
                flat_advantage[at].to(device),
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                dual_clip=config.dual_clip,
            )
            if config.importance_limit is not None:
                limited = truncated_weights(before[at], sampled[at], config.importance_limit)
                value = value * torch.where(replayed[at], 1.0, limited).to(device)
            if towards is not None:
                distance = k3(log_prob, towards[at].to(device))
                divergence += (distance.detach() * weight[at].to(device)).sum().item()
                value = value + config.kl_coefficient * distance
            return (value * weight[at].to(device)).sum()

        norms.append(learner.step(chosen, loss, temperature=config.temperature))
    run.book(token_columns(batch, before, sampled, replayed), replayed_steps=replayed_steps(batch))
    run.log({"gradient_norm": sum(norms) / len(norms), "trained_tokens": int(batch.lengths.sum())})
    if towards is not None:
        run.log({"kl_reference": divergence / len(parts)})


def begin(config: Config, run: Run, envs: TextEnvs) -> tuple[LanguagePolicy, LanguageLearner]:
    """Policy and learner at the start: a model made from nothing imitates the expert first."""
    policy = language_policy(config, envs, run)
    learner = LanguageLearner(
        policy,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_gradient_norm=config.max_gradient_norm,
        micro_tokens=config.micro_tokens,
    )
    return policy, learner


def warm_start(config: Config, run: Run, envs: TextEnvs, policy: LanguagePolicy) -> None:
    """Imitate `warm_start` demonstrations, in updates of 16, three for each of them; booked as human steps."""
    settings = sft.Config()
    learner = LanguageLearner(policy, learning_rate=settings.learning_rate)
    tasks = training_tasks(config, envs)
    demonstrations = sft.Demonstrations()
    updates = max(1, 3 * config.warm_start // settings.batch)
    for start in range(0, config.warm_start, config.num_envs):
        number = min(config.num_envs, config.warm_start - start)
        chosen = torch.randint(len(tasks), (number,), generator=run.generator("demonstrations")).tolist()
        wanted = [
            Attempt(name, tasks[place], "", 0)
            for name, place in zip(run.episode_ids(number), chosen, strict=True)
        ]
        shown = expert_rollout(envs, policy.renderer, wanted, system=envs.manual if config.system else None)
        run.gathered_episodes(shown, cost="human_steps")
        demonstrations.add([episode for episode in shown if episode.ending == "finished"])
    for update in range(updates):
        rate = min(1.0, (update + 1) / settings.warmup, (updates - update) / updates)
        learner.learning_rate = settings.learning_rate * rate
        sft.imitate(learner, demonstrations.tokens, run.generator("demonstrations"), batch=settings.batch)


def both_ways_of_acting(config: Config, envs: TextEnvs, policy: LanguagePolicy) -> tuple[Attempts, Attempts]:
    """The policy in training, and as it is judged."""
    settings = {"parse_failure_ends": config.parse_failure_ends}
    practised = acting(config, envs, policy, temperature=config.temperature, **settings)
    if config.evaluation_temperature == config.temperature:
        return practised, practised
    return practised, acting(config, envs, policy, temperature=config.evaluation_temperature, **settings)


def reference_of(config: Config, run: Run, policy: LanguagePolicy) -> LanguageLearner | None:
    """A frozen copy of the initial policy, where the KL to it is asked for; a resumed run gets the same one back."""
    if not config.kl_coefficient:
        return None
    frozen = copy.deepcopy(policy)
    run.keep(reference=frozen)
    return LanguageLearner(frozen, learning_rate=0.0, micro_tokens=config.micro_tokens)


def run(config: Config, run: Run) -> LanguagePolicy:
    envs = make_text(config.env, config.num_envs)
    policy, learner = begin(config, run, envs)
    order = TaskOrder(training_tasks(config, envs), config.groups)
    if not run.keep(policy=policy, learner=learner, order=order) and is_tiny(config.model):
        warm_start(config, run, envs, policy)
    reference = reference_of(config, run, policy)
    practised, judged = both_ways_of_acting(config, envs, policy)

    most = config.groups * config.group_size * envs.max_steps * (1 + config.resample)
    for _ in run.iterations(most):
        groups = gather(config, run, practised, order)
        run.log(group_columns(groups, groups, config.format_weight))
        learn(config, run, learner, groups, reference)
        evaluate_when_due(config, run, envs, judged)
    envs.close()
    return policy
