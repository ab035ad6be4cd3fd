"""TD3+BC, with ReBRAC's switches, and (filtered) behaviour cloning: learning from a log without acting.

Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement Learning", arXiv 2106.06860. The actor climbs the
critic, held to the logged actions by a squared error; λ_Q = 2.5 / mean|Q| makes the two commensurable. Constants and
the order within an update are those of ``pgd.md`` 2.7: an update is one step of the actor and two of the critics, as
much as two updates of the paper's own code. ReBRAC (arXiv 2305.09836) is layer normalisation in the critics, a third
hidden layer, and penalties of its own for actor and critic. The recipe bc only imitates; with `--best 0.1` the episodes
of the highest returns (%BC).

Where we depart: a channel that is constant in the log is shifted but not scaled; ReBRAC's normalisation comes before
the ReLU, its actor climbs Q₁ rather than the smaller Q, and at the end of an episode no next action is invented.

    peira store make-log runs/hopper-medium --env Hopper-v5 --policy medium --steps 100000
    peira run td3bc --env Hopper-v5 --log runs/hopper-medium --updates 100000
    peira run bc --env Hopper-v5 --log runs/hopper-medium --best 0.1

Evaluation returns of td3bc should rise above the mean return of a medium log, which `peira store stats` shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peira.evaluation.episodes import evaluate
from peira.learners.offline import OfflineLearner, Settings, best_episodes, standardisation
from peira.policies.continuous import ContinuousPolicy
from peira.recipes.ppo import check_ranges
from peira.runs.run import Run
from peira.sources.logged import LogOfWorld, read_log


@dataclass(frozen=True)
class Config:
    env: str = "Hopper-v5"
    """Environment the log comes from; the policy is evaluated there."""
    log: str = ""
    """A store, a run's folder, a Parquet or JSON-lines file, or a Minari data set."""
    updates: int = 100_000
    """Budget of updates; no real step is taken to learn."""
    seed: int = 0
    """Seed of everything random."""
    method: Literal["td3", "bc"] = "td3"
    """td3: TD3+BC; bc: imitate only."""
    best: float = 1.0
    """Share of the episodes, those of the highest returns, that are learned from."""
    batch: int = 256
    """Rows of a step."""
    discount: float = 0.99
    """γ."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    polyak: float = 0.005
    """Share by which targets move at each update."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers."""
    q_weight: float = 2.5
    """α: λ_Q = α / mean|Q|."""
    cloning_weight: float = 1.0
    """Weight of the squared error in the actor's loss; ReBRAC's β₁ times the number of action dimensions."""
    critic_cloning: float = 0.0
    """Weight of the squared error taken off the next value; ReBRAC's β₂ times the number of action dimensions."""
    critic_layer_norm: bool = False
    """Layer normalisation in the critics."""
    actor_layer_norm: bool = False
    """Layer normalisation in the actor."""
    products: Literal["float32", "bfloat16"] = "float32"
    """Precision of products between hidden layers while learning; bfloat16 is faster where the processor has it."""
    clip_actions: bool = False
    """Logged actions outside the bounds are taken as the environment executed them: clipped."""
    timeouts: Literal["refuse", "truncate", "keep"] = "refuse"
    """What to do with ends that were the clock's but were logged as terminated."""
    chunk: int = 500
    """Updates between lines of the metrics."""
    evaluations: int = 10
    """Evaluations of the policy over the budget."""
    evaluation_episodes: int = 10
    """Fresh episodes in each evaluation."""
    compiled: bool = True
    """Compile updates to native code (needs a C++ compiler); the result differs in the last bits."""

    def __post_init__(self) -> None:
        check_ranges(self, {**BUDGET_RANGES, "best": (1e-9, 1)})
        check_budget(self)
        settings(self)


BUDGET_RANGES = dict.fromkeys(("updates", "chunk", "evaluations", "evaluation_episodes"), (1, math.inf))


def check_budget(config: object) -> None:
    """ValueError unless the updates are whole chunks."""
    if config.updates % config.chunk:
        raise ValueError(
            f"updates: expected a multiple of chunk={config.chunk}, got {config.updates}; change one of them"
        )


def check(config: object) -> None:
    """What is known to be wrong before anything is made: ValueError where no log is named or none is there."""
    if not config.log:
        raise ValueError(
            "log: this recipe learns from a log; name one by --log PATH (`peira store make-log` makes some)"
        )
    if "://" not in config.log and not Path(config.log).exists():
        raise ValueError(
            f"log: {config.log} does not exist; name a store, a run's folder, a file or a Minari data set"
        )


def preset(env: str) -> Config:
    """TD3+BC's constants."""
    return Config(env=env)


def preset_rebrac(env: str) -> Config:
    """ReBRAC: three hidden layers, normalised critics, batches of 1024; β₁ 0.001 and β₂ 0.01 of three actions."""
    return Config(
        env=env,
        hidden=(256, 256, 256),
        critic_layer_norm=True,
        batch=1024,
        learning_rate=1e-3,
        q_weight=1.0,
        cloning_weight=0.003,
        critic_cloning=0.03,
    )


def preset_bc(env: str) -> Config:
    """Behaviour cloning."""
    return Config(env=env, method="bc")


def settings(config: Config) -> Settings:
    """What the learner does under this configuration."""
    return Settings(
        method=config.method,
        hidden=config.hidden,
        actor_layer_norm=config.actor_layer_norm,
        critic_layer_norm=config.critic_layer_norm,
        batch=config.batch,
        discount=config.discount,
        polyak=config.polyak,
        learning_rate=config.learning_rate,
        critic_updates=2 if config.method == "td3" else 1,
        q_weight=config.q_weight,
        cloning_weight=config.cloning_weight,
        critic_cloning=config.critic_cloning,
        products=config.products,
    )


def learn_offline(config: object, run: Run, settings: Settings, given: LogOfWorld) -> ContinuousPolicy:
    """Updates on rows drawn from the log, evaluated in the real environment when due; the actor that came out."""
    log = given.log
    learner = OfflineLearner(
        settings,
        log.observation_size,
        log.action_size,
        low=given.low.tolist(),
        high=given.high.tolist(),
        seeds=[run.derived_seed("learner")],
        compiled=config.compiled,
    )
    learner.standardise(*standardisation(log.observation))
    run.keep(learner=learner)
    run.remark(given.remarks)
    policy = learner.policies[0]
    packed = learner.pack(log)
    for _ in run.iterations(config.chunk, budget="updates"):
        rows = learner.draw_rows(config.chunk, [(0, log.rows, settings.batch)])
        measures = learner.update(packed, rows)
        run.costs["updates"] += config.chunk
        run.costs["logged_steps"] += rows.numel()
        run.book({"share_logged": 1.0}, replayed_steps=0)
        run.log(dict(zip(learner.measures, measures.mean((0, 1)).tolist(), strict=True)))
        if run.evaluation_due:
            run.evaluated(evaluate(policy, config.env, config.evaluation_episodes, run.evaluation_seed))
    return policy


def run(config: Config, run: Run) -> ContinuousPolicy:
    check(config)
    given = read_log(config.log, config.env, clip_actions=config.clip_actions, timeouts=config.timeouts)
    if config.best < 1:
        kept = best_episodes(given.log, config.best)
        remark = f"log: learned from {kept.episodes} of {given.log.episodes} episodes, those of the highest returns"
        given = LogOfWorld(kept, given.low, given.high, [*given.remarks, remark])
    return learn_offline(config, run, settings(config), given)
