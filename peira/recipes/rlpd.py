"""RLPD: an off-policy learner whose every batch is half log, half replay of its own steps.

Ball, Smith, Kostrikov, Levine, "Efficient Online Reinforcement Learning with Offline Data", arXiv 2302.02948: soft
actor–critic with layer normalisation in many critics, the least of two of them as the target, and many updates a step.
It is the baseline of HNPG (arXiv 2311.08384), whose small variant (Table 2) is the preset for locks; for other
environments the settings of RLPD's own code are. Everything rests on bootstrapping, on both sources.

Departures: rows of the two sources are drawn by index, so that any share of them will do; a lock's unbounded actions
are taken from [−1, 1], as a squashed actor needs bounds and these hold every logged action; the temperature learns at
the rate of the rest (Table 2: a tenth), and targets follow by half of its 0.01 at each update instead of each second.

    peira run rlpd --env lock-h5 --log mixed --steps 150000
    peira run rlpd --env Pendulum-v1 --log runs/pendulum-log --steps 20000
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from peira.environments.lock import AntiReward, LockVector
from peira.evaluation.lock import SUCCESS
from peira.experience.batch import Batch
from peira.experience.step_log import StepLog
from peira.experience.transitions import TransitionLog
from peira.learners.offline import OfflineLearner, Settings
from peira.policies.continuous import ContinuousPolicy
from peira.recipes.ppo import check_ranges
from peira.runs.hybrid_evaluation import judge_when_due
from peira.runs.run import Run
from peira.sources.hybrid import open_log, open_world
from peira.sources.rollout import rollout

LOCK_BOUND = 1.0


@dataclass(frozen=True)
class Config:
    env: str = "lock-h5"
    """A lock (lock-hH, digits-lock-hH) or an environment id."""
    steps: int = 150_000
    """Budget of real environment steps."""
    seed: int = 0
    """Seed of everything random, a lock's codes and its log included."""
    log: str = "mixed"
    """A lock's log (eps, mid or mixed), or the path of any log."""
    log_trajectories: int = 50_000
    """Transitions of each step in a lock's log."""
    anti_reward: AntiReward = "on_fall"
    """When failing at a lock pays 0.1 with probability ½."""
    num_envs: int = 10
    """Environments side by side; as many updates follow each step of all of them."""
    batch_steps: int = 1000
    """Environment steps between lines of the metrics."""
    warm_up: int = 1000
    """Environment steps before the first update."""
    offline_share: float = 0.5
    """Share of a batch that comes from the log."""
    capacity: int = 1_000_000
    """Steps of its own that replay holds."""
    critic_updates: int = 1
    """Steps of the critics for each environment step; the actor takes one."""
    batch: int = 128
    """Rows of a step."""
    critics: int = 2
    """Q networks."""
    critics_in_minimum: int = 2
    """Of how many, drawn anew, the least target counts."""
    critic_layer_norm: bool = False
    """Layer normalisation in the critics."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers of every network."""
    discount: float = 0.99
    """γ."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    polyak: float = 0.005
    """Share by which target critics follow at an update."""
    initial_temperature: float = 0.1
    """Weight of the entropy at the start."""
    entropy_per_action: float = -0.5
    """The entropy that the temperature is tuned to, in nats per action dimension."""
    entropy_in_target: bool = True
    """Count the entropy of the next action in the target."""
    evaluations: int = 10
    """Evaluations of the policy over the budget."""
    evaluation_episodes: int = 200
    """Fresh episodes in each evaluation."""
    deterministic_evaluation: bool = False
    """Evaluate with the mean action rather than a sampled one; at a lock the success of both is in the metrics."""
    store: bool = True
    """Write every complete episode to experience.lance."""
    compiled: bool = True
    """Compile updates to native code (needs a C++ compiler); the result differs in the last bits."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.steps < self.batch_steps:
            raise ValueError(
                f"steps: a budget of {self.steps} holds no batch of batch_steps={self.batch_steps}; raise it or lower "
                "batch_steps"
            )
        if self.batch_steps % self.num_envs:
            raise ValueError(
                f"batch_steps: expected a multiple of num_envs={self.num_envs}, got {self.batch_steps}"
            )
        self.learner_settings()

    def learner_settings(self) -> Settings:
        """The soft actor–critic among these settings; ValueError where they contradict one another."""
        return Settings(
            method="sac",
            hidden=self.hidden,
            critic_layer_norm=self.critic_layer_norm,
            batch=self.batch,
            discount=self.discount,
            polyak=self.polyak,
            learning_rate=self.learning_rate,
            critics=self.critics,
            critics_in_minimum=self.critics_in_minimum,
            critic_updates=self.critic_updates,
            fresh_batches=self.critic_updates > 1,
            initial_temperature=self.initial_temperature,
            entropy_per_action=self.entropy_per_action,
            entropy_in_target=self.entropy_in_target,
            actor_takes_mean=self.critics > 2,
        )


_RANGES = {
    **dict.fromkeys(("steps", "log_trajectories", "num_envs", "batch_steps", "capacity"), (1, math.inf)),
    **dict.fromkeys(("evaluations", "evaluation_episodes"), (1, math.inf)),
    "warm_up": (0, math.inf),
    "offline_share": (0, 1),
}


def preset(env: str) -> Config:
    """The small variant that HNPG's paper compares with for locks; elsewhere what RLPD's code does for state inputs."""
    if "lock-h" in env:
        return Config(env=env)
    return Config(
        env=env,
        steps=100_000,
        num_envs=1,
        warm_up=5000,
        critic_updates=20,
        batch=256,
        critics=10,
        critic_layer_norm=True,
        hidden=(256, 256),
        learning_rate=3e-4,
        initial_temperature=1.0,
        evaluation_episodes=20,
        deterministic_evaluation=True,
    )


class MixedReplay:
    """The log and the newest steps of our own, as the rows of one matrix that updates draw from by index."""

    def __init__(self, log: Tensor, capacity: int):
        self.logged = len(log)
        self.rows = torch.cat([log, log.new_zeros(capacity, log.shape[1])])
        self.written = 0

    @property
    def own(self) -> int:
        return min(self.written, len(self.rows) - self.logged)

    def add(self, rows: Tensor) -> None:
        """Write rows over the oldest ones of our own."""
        place = (self.written + torch.arange(len(rows))) % (len(self.rows) - self.logged)
        self.rows[self.logged + place] = rows
        self.written += len(rows)

    def ranges(self, batch: int, offline: int) -> list[tuple[int, int, int]]:
        """Where a batch with so many logged rows comes from: (first row, end, how many)."""
        return [(0, self.logged, offline), (self.logged, self.logged + self.own, batch - offline)]

    def state_dict(self) -> dict:
        return {"own": self.rows[self.logged : self.logged + self.own], "written": self.written}

    def load_state_dict(self, state: dict) -> None:
        self.rows[self.logged : self.logged + len(state["own"])] = state["own"]
        self.written = state["written"]


def single_rows(columns: Batch | StepLog) -> TransitionLog:
    """Transitions that do not follow one another, as a log of episodes of one row."""
    fresh = isinstance(columns, Batch)
    names = ("observation", "action", "reward", "next_observation", "terminated")
    found = {name: columns.rows(name) if fresh else getattr(columns, name) for name in names}
    return TransitionLog(
        **found,
        truncated=~found["terminated"],
        first=torch.arange(len(found["reward"]) + 1),
    )


def squared_error(config: Config, learner: OfflineLearner, rows: Tensor, generator: torch.Generator) -> float:
    """Mean squared TD error of the critics on packed rows, with what they themselves say of the next step."""
    policy, critics = learner.policies[0], learner.critics[0]
    obs, act = learner.observation_size, learner.action_size
    seen, action, following, reward, goes_on = rows[:, : 2 * obs + act + 2].split([obs, act, obs, 1, 1], 1)
    with torch.no_grad():
        next_action, _ = policy.unit_sample(following, policy.noise((len(rows),), generator))
        target = reward[:, 0] + config.discount * goes_on[:, 0] * critics(following, next_action).amin(0)
        return (critics(seen, action) - target).square().mean().item()


def opened(batch: Batch) -> float:
    """Share of the episodes that ended in this batch that opened the lock: only that pays more than one lure."""
    return ((batch.reward > SUCCESS) & batch.terminated).sum().item() / max(batch.terminated.sum().item(), 1)


def act(
    policy: ContinuousPolicy, step: int, observation: Tensor, generator: torch.Generator | None
) -> Tensor:
    """By the one policy of all steps: a draw, or what it takes its mean to be."""
    return policy.mode(observation) if generator is None else policy.sample(observation, generator)


def run(config: Config, run: Run) -> ContinuousPolicy:
    world = open_world(
        config.env,
        run.derived_seed("environment"),
        num_envs=config.num_envs,
        codes_seed=run.derived_seed("codes"),
        anti_reward=config.anti_reward,
    )
    locked = isinstance(world, LockVector)
    log = open_log(
        config.log, config.env, world, trajectories=config.log_trajectories, seed=run.derived_seed("log")
    )
    space = world.single_action_space
    learner = OfflineLearner(
        config.learner_settings(),
        world.observation_size,
        world.action_size,
        low=[-LOCK_BOUND] * world.action_size if locked else space.low.tolist(),
        high=[LOCK_BOUND] * world.action_size if locked else space.high.tolist(),
        seeds=[run.derived_seed("learner")],
        compiled=config.compiled,
    )
    policy = learner.policies[0]
    replay = MixedReplay(learner.pack(single_rows(log)), min(config.capacity, config.steps))
    if not run.keep(world=world, learner=learner, replay=replay):
        world.reset()

    offline = round(config.batch * config.offline_share)
    share, drawn = offline / config.batch, config.critic_updates * config.num_envs
    for _ in run.iterations(config.batch_steps):
        gathered, measures, replayed = [], [], 0
        for _ in range(config.batch_steps // config.num_envs):
            fresh = rollout(world, policy, 1, run.generator("actions"), gathered_for=policy.version)
            gathered.append(fresh)
            replay.add(learner.pack(single_rows(fresh)))
            if run.real_steps + len(gathered) * config.num_envs <= config.warm_up:
                continue
            ranges = replay.ranges(config.batch, offline)
            measures.append(learner.update(replay.rows, learner.draw_rows(config.num_envs, ranges)))
            run.costs["logged_steps"] += drawn * offline
            replayed += drawn * (config.batch - offline)
        batch = Batch.concatenate(gathered)
        run.gathered(policy, batch)
        run.book({"share_logged": share, "share_replayed": 1 - share}, replayed_steps=replayed)
        if measures:
            run.log(dict(zip(learner.measures, torch.cat(measures).mean((0, 1)).tolist(), strict=True)))
        chance = run.generator("errors")
        own = learner.pack(single_rows(batch))
        logged = replay.rows[torch.randint(replay.logged, (len(own),), generator=chance)]
        run.log({"critic_loss/on": squared_error(config, learner, own, chance)})
        run.log({"critic_loss/off": squared_error(config, learner, logged, chance)})
        if locked:
            run.log({"success": opened(batch)})
        judge_when_due(run, policy, world, partial(act, policy))
    world.close()
    return policy
