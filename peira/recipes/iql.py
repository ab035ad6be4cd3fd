"""IQL: the best of what the log did, without ever asking what an action it lacks would be worth.

Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit Q-Learning", arXiv 2110.06169. V is an
expectile of Q over logged actions, Q bootstraps from V, and the actor imitates logged actions by exp(β · advantage).
Constants are those of ``pgd.md`` 2.7: τ 0.7, β 3, weights up to 100, a Gaussian actor whose deviation no state changes,
evaluated at its mean. Where we depart: all networks step at once from what the others were (as in Unifloral), at a
constant learning rate.

    peira run iql --env Hopper-v5 --log runs/hopper-medium --updates 100000

Evaluation returns should reach those of the better episodes of a medium log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peira.learners.offline import Settings
from peira.policies.continuous import ContinuousPolicy
from peira.recipes.ppo import check_ranges
from peira.recipes.td3bc import BUDGET_RANGES, check, check_budget, learn_offline
from peira.runs.run import Run
from peira.sources.logged import read_log


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
    batch: int = 256
    """Rows of an update."""
    discount: float = 0.99
    """γ."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    polyak: float = 0.005
    """Share by which the critics' targets move at each update."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers."""
    critic_layer_norm: bool = False
    """Layer normalisation in Q and V."""
    expectile: float = 0.7
    """τ."""
    inverse_temperature: float = 3.0
    """β."""
    most_weight: float = 100.0
    """Limit of exp(β · advantage)."""
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
        check_ranges(self, BUDGET_RANGES)
        check_budget(self)
        settings(self)


def preset(env: str) -> Config:
    """The paper's constants for locomotion."""
    return Config(env=env)


def settings(config: Config) -> Settings:
    """What the learner does under this configuration."""
    return Settings(
        method="iql",
        hidden=config.hidden,
        critic_layer_norm=config.critic_layer_norm,
        batch=config.batch,
        discount=config.discount,
        polyak=config.polyak,
        learning_rate=config.learning_rate,
        critic_updates=1,
        expectile=config.expectile,
        inverse_temperature=config.inverse_temperature,
        most_weight=config.most_weight,
        products=config.products,
    )


def run(config: Config, run: Run) -> ContinuousPolicy:
    check(config)
    given = read_log(config.log, config.env, clip_actions=config.clip_actions, timeouts=config.timeouts)
    return learn_offline(config, run, settings(config), given)
