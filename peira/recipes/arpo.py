"""ARPO: where a whole group of attempts failed, one of them is replaced by a stored success at the same task.

Lu et al. 2025 (arXiv 2505.16282), the *replay* ARPO. A group of equal rewards teaches GRPO nothing, and with rare
successes most groups are such. Successes are remembered per task, first in, first out; a dead group gets one of its own
task's back, and its advantages are computed anew. The buffer takes in fresh episodes only, after all groups were
handled, so that a success helps from the next iteration on and a replayed one is never stored again.

Where we depart from the official code: errors of a world are masked instead of counting as failures; trained tokens are
those that were sampled, not a second encoding of their text; the switch for replay is read (``arpo.md`` 6: theirs never
is), and `--no-replay` is exactly GRPO; entries may be limited in age and uses.

    peira run arpo --env texthouse-brief --model runs/warm/policy --tasks 64 --steps 40000
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from peira.environments.text import TextEnvs, make_text
from peira.experience.dialogue import TextEpisode
from peira.experience.success_replay import SuccessReplay
from peira.policies.lm.model import LanguagePolicy, is_tiny
from peira.recipes import grpo
from peira.recipes.grpo import (
    begin,
    both_ways_of_acting,
    gather,
    learn,
    reference_of,
    warm_start,
)
from peira.recipes.ppo import check_ranges
from peira.recipes.sft import evaluate_when_due, is_dom, training_tasks
from peira.runs.run import Run
from peira.runs.text_ledger import group_columns
from peira.sources.choice_rollout import ChoiceEpisode
from peira.sources.text_rollout import Attempt, Attempts
from peira.tasks.order import TaskOrder
from peira.tasks.pass_rate import PassCounts


@dataclass(frozen=True)
class Config(grpo.Config):
    tasks: int | None = 64
    """How many of the world's training tasks are used: replay helps a task that comes again."""
    replay: bool = True
    """Replay stored successes; without it this is GRPO."""
    mode: Literal["recompute", "behaviour"] = "recompute"
    """π_old of replayed tokens: the current policy (official), or the one that sampled them."""
    capacity: int = 8
    """K: successes remembered for each task."""
    max_age: int | None = None
    """Policy versions after which a stored success is no longer replayed."""
    max_uses: int | None = None
    """Replays after which it is no longer replayed."""
    preflight: int = 0
    """Attempts at each task before training, to choose those solved sometimes; 0 to train on all (paper: 16)."""
    preflight_least: int = 1
    """Successes in the pre-flight that a task needs to be trained on."""
    preflight_most: int | None = None
    """Successes above which a task is left out as too easy; None for no limit (official)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, dict.fromkeys(("capacity", "max_age", "max_uses"), (1, math.inf)))
        check_ranges(self, dict.fromkeys(("preflight", "preflight_least", "preflight_most"), (0, math.inf)))


def preset(env: str) -> Config:
    """The settings to begin from in this world."""
    return Config(env=env)


def preflight(config: Config, run: Run, envs: TextEnvs, attempts: Attempts) -> PassCounts:
    """Try every task `config.preflight` times with the policy as it is; its steps are real ones, and booked as such.

    Raises ValueError when fewer tasks than an iteration needs were solved often enough.
    """
    tasks = [task for task in training_tasks(config, envs) for _ in range(config.preflight)]
    seeds = torch.randint(2**62, (len(tasks),), generator=run.generator("preflight")).tolist()
    names = run.episode_ids(len(tasks))
    episodes = attempts([Attempt(*entry) for entry in zip(names, tasks, tasks, seeds, strict=True)])
    run.gathered_episodes(episodes)
    return PassCounts.of(episodes)


def run(config: Config, run: Run) -> LanguagePolicy:
    envs = make_text(config.env, config.num_envs)
    policy, learner = begin(config, run, envs)
    replay = SuccessReplay(
        config.capacity,
        max_age=config.max_age,
        max_uses=config.max_uses,
        kind=ChoiceEpisode if is_dom(config.model) else TextEpisode,
    )
    counts = PassCounts({}, {})
    resumed = run.keep(policy=policy, learner=learner, replay=replay, counts=counts)
    if not resumed and is_tiny(config.model):
        warm_start(config, run, envs, policy)
    practised, judged = both_ways_of_acting(config, envs, policy)
    tasks = training_tasks(config, envs)
    if config.preflight:
        if not resumed:
            counts.load_state_dict(preflight(config, run, envs, practised).state_dict())
        tasks = counts.selected(at_least=config.preflight_least, at_most=config.preflight_most)
        if len(tasks) < config.groups:
            raise ValueError(
                f"preflight: {len(tasks)} of {len(counts.attempts)} tasks were solved {config.preflight_least} to "
                f"{config.preflight_most or config.preflight} times in {config.preflight}, fewer than groups="
                f"{config.groups}; lower groups, raise tasks or preflight, or begin from a better model"
            )
    order = TaskOrder(tasks, config.groups)
    run.keep(order=order)
    reference = reference_of(config, run, policy)

    most = config.groups * config.group_size * envs.max_steps * (1 + config.resample)
    for _ in run.iterations(most):
        fresh = gather(config, run, practised, order)
        groups = fresh
        if config.preflight:
            run.log({"preflight_tasks": len(tasks)})
        if config.replay:
            splice = replay.splice(fresh, run.generator("replay"), version=policy.version)
            replay.store([episode for group in fresh for episode in group])
            groups = splice.groups
            ages = splice.ages
            run.log(
                {
                    "failed_groups": splice.dead_before,
                    "replayed_episodes": len(splice.injected),
                    "replayed_age": sum(ages) / len(ages) if ages else 0.0,
                    "stored_successes": len(replay),
                }
            )
        run.log(group_columns(fresh, groups, config.format_weight))
        learn(config, run, learner, groups, reference, stored_is_old=config.mode == "behaviour")
        evaluate_when_due(config, run, envs, judged)
    envs.close()
    return policy
