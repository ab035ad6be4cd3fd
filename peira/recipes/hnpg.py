"""HNPG: on-policy natural policy gradient that uses a log twice, and is TRPO where the log is no use.

Zhou, Sekhari, Song, Sun, "Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees", arXiv 2311.08384.
The critic is fitted to bootstrapped targets on the log plus plain returns of fresh episodes; the natural gradient is
taken over logged states as well as fresh ones, with new actions of the policy there. Nothing rests on the log alone:
the Monte-Carlo term keeps the critic right where the policy goes. Probabilities of logged actions are not read.

Departures, each for a reason given in ``hnpg.md``: the line search checks the KL (the paper's equation 50, absent from
its code); w_on and w_off weight the sources in critic and actor alike; a lock's failures pay as in the paper, not as in
its code. `stationary` (one policy and critic for all steps, ordinary environments) is ours: the episodes that a batch
cuts off end in a value, as those cut by a time limit do; `returns_cut` is the share of returns that do. `trpo` is this
recipe with w_off = 0.

    peira run hnpg --env lock-h5 --log mixed --steps 150000
    peira run hnpg --env Pendulum-v1 --log runs/pendulum-log --steps 200000
    peira compare hnpg trpo --env lock-h5 --steps 150000 --seeds 5

On lock-h5 expect success above 0.5 after about 50 000 steps with any of the three logs, and 0 for TRPO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from peira.credit.gae import generalised_advantages
from peira.credit.hybrid_critic import FreshRows, HybridCritic, discounted_returns
from peira.environments.control import ControlEnv
from peira.environments.lock import AntiReward, LockVector
from peira.environments.normalise import RewardScaler
from peira.evaluation.lock import SUCCESS
from peira.experience.batch import Batch
from peira.experience.step_log import StepLog, StepRows
from peira.learners.natural_gradient import ActorRows, NaturalGradient
from peira.policies.stacked import StackedCategoricalPolicy, StackedGaussianPolicy, StackedPolicy
from peira.recipes.ppo import check_ranges
from peira.runs.hybrid_evaluation import judge_when_due
from peira.runs.run import Run
from peira.sources.hybrid import open_log, open_world
from peira.sources.rollout import rollout


@dataclass(frozen=True)
class Config:
    env: str = "lock-h5"
    """A lock (lock-hH, digits-lock-hH) or an environment id."""
    steps: int = 150_000
    """Budget of real environment steps."""
    seed: int = 0
    """Seed of everything random, a lock's codes and its log included."""
    log: str = "mixed"
    """A lock's log (eps, mid or mixed), or the path of any log; not read where w_off is 0."""
    log_trajectories: int = 50_000
    """Transitions of each step in a lock's log."""
    anti_reward: AntiReward = "on_fall"
    """When failing at a lock pays 0.1 with probability ½."""
    time_mode: Literal["per_step", "stationary"] = "per_step"
    """A policy and critic for each step of the episode (locks only), or one for all."""
    batch_steps: int = 1000
    """N: environment steps between updates; at a lock as many whole episodes as fit."""
    num_envs: int = 10
    """Environments side by side where the world is no lock."""
    w_on: float = 1.0
    """Weight of fresh data, in critic and actor; the paper's λ is w_on / w_off."""
    w_off: float = 1.0
    """Weight of the log, in critic and actor; 0 is TRPO."""
    critic_offline: Literal["td", "none"] = "td"
    """Whether the critic learns from the log."""
    actor_offline: Literal["resample", "logged_regression", "none"] = "resample"
    """What the actor does in logged states: act anew, regress on the logged actions (equation 2), or not see them."""
    discount: float = 1.0
    """γ."""
    gae_lambda: float = 0.97
    """τ of generalised advantage estimation."""
    max_kl: float = 0.01
    """Nats that a step may move the policy; the line search allows half as much again."""
    damping: float = 0.1
    """Multiple of the identity added to the Fisher matrix."""
    conjugate_gradients: int = 10
    """Iterations of conjugate gradients."""
    hidden: tuple[int, ...] = (16, 16)
    """Sizes of the policy's hidden layers."""
    critic_hidden: tuple[int, ...] = (64, 64)
    """Sizes of the critic's hidden layers."""
    critic_learning_rate: float = 3e-4
    """Adam's step size for the critic; its moments start anew at every update."""
    critic_steps: int = 30
    """Adam steps of a fit."""
    fits: int = 10
    """K: fits an update, each to the targets of the one before; stationary only."""
    critic_minibatch: int = 256
    """Rows of each source in a step of a fit; stationary only, per_step takes whole batches."""
    value_samples: int = 10
    """Actions drawn for V(s)."""
    normalise_reward: bool = False
    """Divide rewards by the running deviation of the return."""
    evaluations: int = 10
    """Evaluations of the policy over the budget."""
    evaluation_episodes: int = 200
    """Fresh episodes in each evaluation."""
    deterministic_evaluation: bool = False
    """Evaluate with the mean action rather than a sampled one; at a lock the success of both is in the metrics."""
    store: bool = True
    """Write every complete episode to experience.lance."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.w_on + self.w_off == 0:
            raise ValueError("w_on: is 0 and so is w_off; one of them must be above 0")
        if self.w_on == 0 and "none" in (self.critic_offline, self.actor_offline):
            raise ValueError(
                "w_on: is 0, so critic_offline and actor_offline may not be none; nothing is left to learn"
            )
        if self.batch_steps % self.num_envs:
            raise ValueError(
                f"batch_steps: expected a multiple of num_envs={self.num_envs}, got {self.batch_steps}"
            )
        if self.w_on == 0 and self.actor_offline == "logged_regression":
            raise ValueError(
                "w_on: logged_regression checks its steps on fresh rows; expected above 0, got 0"
            )
        if self.steps < self.batch_steps:
            raise ValueError(
                f"steps: a budget of {self.steps} holds no batch of batch_steps={self.batch_steps}; raise it or lower "
                "batch_steps"
            )


_POSITIVE = (
    "steps",
    "log_trajectories",
    "batch_steps",
    "num_envs",
    "conjugate_gradients",
    "critic_steps",
    "fits",
)
_RANGES = {
    **dict.fromkeys((*_POSITIVE, "critic_minibatch", "value_samples"), (1, math.inf)),
    **dict.fromkeys(("evaluations", "evaluation_episodes"), (1, math.inf)),
    **dict.fromkeys(("discount", "gae_lambda"), (0, 1)),
    **dict.fromkeys(("w_on", "w_off", "max_kl", "damping", "critic_learning_rate"), (0, math.inf)),
}


def preset(env: str) -> Config:
    """The paper's settings for locks; ours for environments without a fixed number of steps."""
    if "lock-h" in env:
        return Config(env=env)
    return Config(
        env=env,
        steps=200_000,
        time_mode="stationary",
        batch_steps=2000,
        discount=0.99,
        hidden=(64, 64),
        critic_learning_rate=1e-3,
        critic_steps=10,
        normalise_reward=True,
        evaluation_episodes=20,
        deterministic_evaluation=True,
    )


def preset_trpo(env: str) -> Config:
    """The same without a log: TRPO with a critic of states and actions, fitted to returns."""
    return replace(preset(env), w_off=0.0)


def begin(config: Config, run: Run) -> tuple[LockVector | ControlEnv, StepLog | None]:
    """The world, and the log by steps or as one group; no log where nothing learns from it."""
    world = open_world(
        config.env,
        run.derived_seed("environment"),
        num_envs=config.num_envs,
        codes_seed=run.derived_seed("codes"),
        anti_reward=config.anti_reward,
        episodes_of=config.batch_steps,
    )
    per_step = config.time_mode == "per_step"
    if per_step and not isinstance(world, LockVector):
        raise ValueError(
            f"time_mode: per_step needs a world of a fixed number of steps (lock-h5), which {config.env} is not; "
            "expected stationary"
        )
    if config.w_off == 0 or (config.critic_offline, config.actor_offline) == ("none", "none"):
        return world, None
    log = open_log(
        config.log,
        config.env,
        world,
        trajectories=config.log_trajectories,
        seed=run.derived_seed("log"),
    )
    return world, log if per_step else log.pooled()


def learn(
    config: Config,
    run: Run,
    policy: StackedPolicy,
    critic: HybridCritic,
    scaler: RewardScaler,
    batch: Batch,
    log: StepLog | None,
) -> None:
    """One update of critic and policy from fresh steps and the log: steps 2 to 7 of section 2.2."""
    per_step = policy.steps > 1
    scale = scaler.scale if config.normalise_reward else Tensor.float
    if config.normalise_reward:
        scaler.update(batch.reward, batch.done)
    if log is not None:
        log = replace(log, reward=scale(log.reward))

    def by_step(column: Tensor) -> Tensor:
        return column if per_step else column.flatten(0, 1)[None]

    def values(observation: Tensor, generator: str) -> Tensor:
        return critic.value(policy, observation, run.generator(generator), config.value_samples)

    reward = scale(batch.reward).to(policy.flat.dtype)
    observation, action = by_step(batch.observation), by_step(batch.action)
    cut_value = torch.zeros_like(reward)
    if not per_step:
        cut_value = values(by_step(batch.next_observation), "cut values").view_as(reward)
    returns, cut = discounted_returns(reward, batch.terminated, batch.truncated, cut_value, config.discount)
    fresh = FreshRows(observation, action, by_step(returns))
    bootstraps = log if config.critic_offline == "td" else None
    generator = run.generator("critic")
    off = None if log is None else log.sample(observation.shape[1], run.generator("log"))
    if per_step:
        measures = critic.sweep(policy, fresh, bootstraps and off, generator)
    else:
        measures = critic.iterate(
            policy, fresh, bootstraps, generator, fits=config.fits, minibatch=config.critic_minibatch
        )

    value = values(observation, "values").view_as(reward)
    next_value = torch.cat([value[1:], torch.zeros_like(value[:1])])
    if not per_step:
        next_value = values(by_step(batch.next_observation), "next values").view_as(reward)
    advantage, _ = generalised_advantages(
        reward,
        value,
        next_value,
        batch.terminated,
        batch.truncated,
        discount=config.discount,
        decay=config.gae_lambda,
    )
    sources, weights = [], []
    if config.w_on > 0:
        sources.append(ActorRows.of(observation, action, by_step(advantage)))
        weights.append(config.w_on)
    if off is not None and config.actor_offline != "none":
        sources.append(in_logged_states(config, run, policy, critic, off))
        weights.append(config.w_off)
    natural = NaturalGradient(config.max_kl, config.damping, config.conjugate_gradients)
    fisher = "sampled" if off is not None and config.actor_offline == "logged_regression" else "exact"
    measures |= natural.update(policy, ActorRows.joined(sources, weights), fisher)
    run.log(measures | {"returns_cut": cut.double().mean().item()})


def in_logged_states(
    config: Config, run: Run, policy: StackedPolicy, critic: HybridCritic, off: StepRows
) -> ActorRows:
    """Logged states with A = f(s, a) − V(s), of actions drawn anew from the policy or of the logged ones.

    A surrogate of ratios is right only for new actions: at the start π/π_old is 1 for them, whoever wrote the log.
    """
    generator = run.generator("logged states")
    regress = config.actor_offline == "logged_regression"
    action = off.action if regress else policy.drawn(policy.activations(off.observation)[-1], generator)
    value = critic.value(policy, off.observation, generator, config.value_samples)
    return ActorRows.of(
        off.observation, action, critic(off.observation, action) - value, logged_actions=regress
    )


def book(config: Config, run: Run, policy: StackedPolicy, batch: Batch, log: StepLog | None) -> None:
    """The ledger's columns: fresh rows are of the policy itself; logged ones have no known probability to compare."""
    logged = 0 if log is None else batch.steps
    run.costs["logged_steps"] += logged
    share = logged / (logged + batch.steps)
    columns = {"staleness": 0.0, "effective_sample_size": 1.0, "kl_behaviour_target": 0.0}
    run.book({**columns, "share_real": 1 - share, "share_logged": share}, replayed_steps=0)
    if isinstance(policy, StackedGaussianPolicy):
        run.log({"std": policy.log_std(policy.flat).exp().mean().item()})


def run(config: Config, run: Run) -> StackedPolicy:
    world, log = begin(config, run)
    locked = isinstance(world, LockVector)
    steps = world.lock.horizon if config.time_mode == "per_step" else 1
    length = world.lock.horizon if locked else config.batch_steps // world.num_envs
    kind = StackedCategoricalPolicy if world.discrete else StackedGaussianPolicy
    sizes = (steps, world.observation_size, world.action_size)
    # Few rows a step need float64 (``hnpg.md`` 2.7); thousands for one policy do not, and are twice as fast without.
    dtype = torch.float64 if steps > 1 else torch.float32
    policy = kind(*sizes, hidden=config.hidden, generator=run.generator("policy"), dtype=dtype)
    critic = HybridCritic(
        *sizes,
        discrete=world.discrete,
        hidden=config.critic_hidden,
        w_on=config.w_on,
        w_off=config.w_off,
        discount=config.discount,
        learning_rate=config.critic_learning_rate,
        fit_steps=config.critic_steps,
        generator=run.generator("critic network"),
        dtype=dtype,
    )
    scaler = RewardScaler(config.discount, world.num_envs)
    if not run.keep(world=world, policy=policy, critic=critic, scaler=scaler):
        world.reset()

    for _ in run.iterations(length * world.num_envs):
        batch = rollout(
            world,
            policy,
            length,
            run.generator("actions"),
            gathered_for=policy.version,
            choose=policy.in_turn(),
        )
        run.gathered(policy, batch)
        if locked:
            opened = (batch.reward.sum(0) > SUCCESS).double().mean().item()
            run.log(
                {"success": opened, **{f"good/{h}": share for h, share in enumerate(world.good.tolist())}}
            )
        book(config, run, policy, batch, log)
        learn(config, run, policy, critic, scaler, batch, log)
        judge_when_due(run, policy, world, policy.act_at)
    world.close()
    return policy
