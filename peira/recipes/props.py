"""PROPS: gather what has been sampled too rarely, so that old and new steps together become on-policy.

Corrado & Hanna, "On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling", arXiv 2311.08290. A
finite batch never shows actions in the proportions of the policy that drew them, and steps kept from earlier policies
less so. Rather than reweight, PROPS changes what is sampled next: every m steps a behaviour policy is copied from the
target and pushed away from what the window already holds. The target update is plain PPO, without importance weights.

Departures from the released code, each for a reason given in ``props.md``: normalisers move between batches; truncated
episodes bootstrap; the behaviour update at a target boundary uses quantities of the new target; the window holds only
steps that the next target update will still see; Adam's moments are forgotten when φ restarts from θ; the mean action
is not squashed; eight environments side by side (`--num-envs 1` for the paper's one). The same loop with another
`sampler` is PPO-Buffer ("on-policy": retained batches, no correction) and ROS.

    peira run props --env Walker2d-v5 --steps 300000 --seed 0
    peira compare props ppo ppo-buffer --env Walker2d-v5 --steps 300000 --seeds 5 --out runs/walker

The figures to expect are in docs/props.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from peira.environments.control import make_control
from peira.environments.normalise import RewardScaler
from peira.experience.batch import RetainedBatches
from peira.policies.actor_critic import ActorCritic
from peira.policies.compiled import CompiledChoice
from peira.recipes import ppo
from peira.runs.run import Run
from peira.sources.props import OnPolicySampler, PropsSampler
from peira.sources.rollout import rollout
from peira.sources.ros import RobustOnPolicySampler


@dataclass(frozen=True)
class Config(ppo.Config):
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus."""
    sampler: Literal["props", "ros", "on-policy"] = "props"
    """Who acts: PROPS' behaviour policy, ROS' one, or the target itself."""
    retained: int = 2
    """b: target batches that an update learns from, the newest included."""
    window: Literal["batch", "ring"] = "batch"
    """Which steps the behaviour update sees: those that will stay (batch), or the first released code's rule (ring)."""
    behaviour_interval: int = 256
    """m: environment steps between behaviour updates."""
    behaviour_learning_rate: float = 1e-3
    """Adam's step size for the behaviour policy; not annealed."""
    behaviour_clip: float = 0.3
    """ε_B: an action's gradient stops when its probability ratio to the target falls below 1 − ε_B."""
    behaviour_kl_penalty: float = 0.1
    """λ: weight of KL(behaviour ‖ target), the mean over action dimensions."""
    behaviour_kl_stop: float = 0.05
    """δ_B: nats from the target at which a behaviour update stops."""
    behaviour_epochs: int = 16
    """E_B: passes over the window in a behaviour update."""
    behaviour_minibatches: int = 16
    """M_B: parts a pass is cut into."""
    ros_step_size: float = 0.1
    """α of ROS: how far its acting policy steps along the mean gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ppo.check_ranges(self, _RANGES)
        if self.behaviour_interval % self.num_envs or self.batch_steps % self.behaviour_interval:
            raise ValueError(
                f"behaviour_interval: expected a multiple of num_envs={self.num_envs} that divides "
                f"batch_steps={self.batch_steps}, got {self.behaviour_interval}"
            )


_RANGES = {
    **dict.fromkeys(
        ("retained", "behaviour_interval", "behaviour_epochs", "behaviour_minibatches"), (1, math.inf)
    ),
    **dict.fromkeys(("behaviour_learning_rate", "behaviour_kl_penalty", "behaviour_kl_stop"), (0, math.inf)),
    "behaviour_clip": (0, 1),
    "ros_step_size": (0, math.inf),
}

# The released PROPS runs, and what tuning gave PPO and PPO-Buffer on the same tasks: ``props.md`` 2.12.
_PAPER = {
    #            n     m     lr    lr_B  δ_B   λ    ε_B  M_B
    "Swimmer": (2048, 1024, 1e-3, 1e-5, 0.03, 0.1, 0.3, 16),
    "Hopper": (2048, 256, 1e-3, 1e-3, 0.05, 0.3, 0.3, 16),
    "HalfCheetah": (1024, 512, 1e-4, 1e-3, 0.05, 0.3, 0.3, 16),
    "Walker2d": (2048, 256, 1e-3, 1e-3, 0.1, 0.3, 0.3, 32),
    "Ant": (2048, 256, 1e-4, 1e-3, 0.03, 0.1, 0.05, 16),
    "Humanoid": (8192, 256, 1e-4, 1e-4, 0.1, 0.1, 0.3, 32),
}


def preset(env: str) -> Config:
    """The paper's settings where it has them; its discrete defaults for discrete control, TwoStep's for TwoStep."""
    if env == "peira/TwoStep-v0":
        return two_step()
    if paper := _PAPER.get(env.split("-")[0]):
        batch_steps, interval, rate, behaviour_rate, stop, penalty, clip, minibatches = paper
        return Config(
            env=env,
            batch_steps=batch_steps,
            learning_rate=rate,
            behaviour_interval=interval,
            behaviour_learning_rate=behaviour_rate,
            behaviour_kl_stop=stop,
            behaviour_kl_penalty=penalty,
            behaviour_clip=clip,
            behaviour_minibatches=minibatches,
        )
    return Config(
        env=env,
        batch_steps=1024,
        learning_rate=1e-3,
        behaviour_interval=128,
        behaviour_kl_stop=0.03,
        behaviour_minibatches=8,
    )


def two_step() -> Config:
    """A tabular policy, one environment, whole-window updates: ``props.md`` 7, R3."""
    return Config(
        env="peira/TwoStep-v0",
        steps=40_000,
        num_envs=1,
        batch_steps=200,
        epochs=1,
        minibatches=1,
        learning_rate=0.5,
        hidden=(),
        bias=False,
        normalise_observation=False,
        normalise_reward=False,
        entropy_coefficient=0.0,
        deterministic_evaluation=False,
        evaluations=200,
        evaluation_episodes=100,
        retained=1,
        behaviour_interval=5,
        behaviour_learning_rate=0.5,
        behaviour_minibatches=1,
        behaviour_kl_penalty=0.0,
        behaviour_kl_stop=1.0,
    )


def preset_buffer(env: str) -> Config:
    """PPO-Buffer under PROPS' settings for this environment: the matched comparison."""
    return replace(preset(env), sampler="on-policy")


def preset_ros(env: str) -> Config:
    """ROS under PROPS' settings, its acting policy renewed at every step of the environments."""
    config = preset(env)
    return replace(config, sampler="ros", behaviour_interval=config.num_envs)


def sampler_for(
    config: Config, target: ActorCritic, run: Run
) -> OnPolicySampler | PropsSampler | RobustOnPolicySampler:
    """What decides actions while the target learns."""
    if config.sampler == "on-policy":
        return OnPolicySampler(target)
    if config.sampler == "ros":
        return RobustOnPolicySampler(config.ros_step_size)
    return PropsSampler(
        target,
        learning_rate=config.behaviour_learning_rate,
        clip=config.behaviour_clip,
        kl_penalty=config.behaviour_kl_penalty,
        kl_stop=config.behaviour_kl_stop,
        epochs=config.behaviour_epochs,
        minibatches=config.behaviour_minibatches,
        generator=run.generator("behaviour"),
        compiled=config.compiled,
    )


def run(config: Config, run: Run) -> ActorCritic:
    env = make_control(config.env, config.num_envs, run.derived_seed("environment"))
    target = ppo.actor_critic(config, env, run)
    step = ppo.ppo_step(config, target)
    scaler = RewardScaler(config.discount, config.num_envs)
    sampler = sampler_for(config, target, run)
    retained = RetainedBatches(config.retained, config.batch_steps, config.window)
    if not run.keep(env=env, policy=target, step=step, scaler=scaler, sampler=sampler, retained=retained):
        env.reset()

    interval = config.batch_steps if config.sampler == "on-policy" else config.behaviour_interval
    choose = None
    for _ in run.iterations(config.batch_steps):
        if config.anneal:
            step.learning_rate.fill_(config.learning_rate * (1 - run.real_steps / config.steps))
        retained.begin()
        behaviour_measures, new = [], 0
        for _ in range(config.batch_steps // interval):
            window = retained.window(interval)
            rows = (window.rows("observation"), window.rows("action")) if window else (torch.empty(0),) * 2
            behaviour_measures.append(sampler.update(target, *rows, new))
            if choose is None and config.compiled:
                choose = CompiledChoice(sampler.policy)
            fresh = rollout(
                env,
                sampler.policy,
                interval // config.num_envs,
                run.generator("actions"),
                gathered_for=target.version,
                choose=choose,
            )
            retained.extend(fresh)
            new = fresh.steps
            run.gathered(target, fresh)
        batch = retained.all()
        run.learns_from(target, batch)
        run.log(mean_of(behaviour_measures))

        latest = batch.between(-(config.batch_steps // config.num_envs))
        ppo.learn(config, run, target, step, scaler, batch, latest)
        ppo.evaluate_when_due(config, run, target)
    env.close()
    return target


def mean_of(measures: list[dict[str, float]]) -> dict[str, float]:
    """Each measure averaged over the updates that report it."""
    names = {name for one in measures for name in one}
    return {
        name: sum(values) / len(values)
        for name in sorted(names)
        if (values := [one[name] for one in measures if name in one])
    }
