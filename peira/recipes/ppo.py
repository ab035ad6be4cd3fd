"""PPO: the on-policy baseline that every other control recipe is measured against.

Schulman et al. 2017 with the implementation details that matter (Andrychowicz et al. 2021; Huang et al. 2022):
orthogonal initialisation, normalised observations and scaled rewards, advantages standardised a minibatch, value
clipping, gradient clipping, learning rate annealed to 0. Where we depart from common code: normalisers move between
batches, not within one, so that one policy version sees one normalisation; truncated episodes bootstrap.

    peira run ppo --env Hopper-v5 --steps 200000 --seed 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from peira.environments.control import ControlEnv, make_control
from peira.environments.normalise import RewardScaler
from peira.evaluation.episodes import evaluate
from peira.experience.batch import Batch
from peira.learners.ppo import ppo_columns, ppo_loss, ppo_update
from peira.policies.actor_critic import ActorCritic, CategoricalActorCritic, GaussianActorCritic
from peira.policies.compiled import CompiledChoice
from peira.policies.files import load_policy
from peira.policies.gradient_step import GradientStep
from peira.runs.run import Run
from peira.sources.rollout import rollout


@dataclass(frozen=True)
class Config:
    env: str = "Hopper-v5"
    """Environment id."""
    steps: int = 200_000
    """Budget of real environment steps."""
    seed: int = 0
    """Seed of everything random."""
    num_envs: int = 8
    """Environments stepped side by side."""
    batch_steps: int = 2048
    """n: environment steps between updates of the policy."""
    epochs: int = 10
    """Passes over the batch in an update."""
    minibatches: int = 32
    """Parts a pass is cut into."""
    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    anneal: bool = True
    """Let the learning rate fall linearly to 0 over the budget."""
    discount: float = 0.99
    """γ."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation."""
    clip: float = 0.2
    """ε: how far a probability ratio may move before its gradient stops."""
    value_clip: float | None = 0.2
    """How far a value may move, in scaled reward, before its gradient stops; None for no limit."""
    value_coefficient: float = 0.5
    """Weight of the value loss."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    max_gradient_norm: float = 0.5
    """Gradients are clipped to this norm."""
    kl_stop: float | None = 0.03
    """Stop the update when the estimated KL from the old policy exceeds this many nats; None for never."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers of actor and critic; empty for linear ones."""
    bias: bool = True
    """Whether layers have a bias."""
    initial_policy: str | None = None
    """Folder of a saved policy to begin from, such as RUN/policy; None for a fresh one."""
    normalise_observation: bool = True
    """Standardise observations by running mean and variance."""
    normalise_reward: bool = True
    """Divide rewards by the running deviation of the return."""
    evaluations: int = 10
    """Evaluations of the target policy over the budget."""
    evaluation_episodes: int = 10
    """Fresh episodes in each evaluation."""
    deterministic_evaluation: bool = True
    """Evaluate with the most likely action rather than a sampled one."""
    store: bool = True
    """Write every complete episode to experience.lance."""
    compiled: bool = True
    """Compile updates to native code (needs a C++ compiler); the result differs in the last bits."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.hidden and min(self.hidden) < 1:
            raise ValueError(f"hidden: expected layers of at least 1, got {min(self.hidden)}")
        if self.steps < self.batch_steps:
            raise ValueError(
                f"steps: a budget of {self.steps} holds no batch of batch_steps={self.batch_steps}; raise it or lower "
                "batch_steps"
            )
        if self.batch_steps % self.num_envs:
            raise ValueError(
                f"batch_steps: expected a multiple of num_envs={self.num_envs}, got {self.batch_steps}"
            )
        if self.minibatches > self.batch_steps // 2:
            raise ValueError(
                f"minibatches: expected at most batch_steps/2={self.batch_steps // 2}, got {self.minibatches}"
            )


_RANGES = {
    **dict.fromkeys(("steps", "num_envs", "batch_steps", "epochs", "minibatches"), (1, math.inf)),
    **dict.fromkeys(("evaluations", "evaluation_episodes"), (1, math.inf)),
    **dict.fromkeys(("discount", "gae_lambda", "clip"), (0, 1)),
    **dict.fromkeys(("learning_rate", "value_clip", "value_coefficient", "kl_stop"), (0, math.inf)),
    **dict.fromkeys(("entropy_coefficient", "max_gradient_norm"), (0, math.inf)),
}


def check_ranges(config: object, ranges: dict[str, tuple[float, float]]) -> None:
    """Raise ValueError, naming field and value, for a setting outside its range; None stands for no limit."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
            raise ValueError(f"{name}: expected {expected}, got {value}")


def preset(env: str) -> Config:
    """The settings to begin from in this environment."""
    return Config(env=env)


def actor_critic(config: Config, env: ControlEnv, run: Run) -> ActorCritic:
    """A fresh policy for this environment's actions, or the one that `initial_policy` names.

    Raises ValueError when the saved policy does not fit the environment and settings.
    """
    kind = CategoricalActorCritic if env.discrete else GaussianActorCritic
    policy = kind(
        env.observation_size,
        env.action_size,
        hidden=config.hidden,
        bias=config.bias,
        normalise=config.normalise_observation,
        generator=run.generator("policy"),
    )
    if config.initial_policy is not None:
        saved = load_policy(config.initial_policy)
        if saved.description() != policy.description():
            raise ValueError(
                f"initial_policy: {config.initial_policy} holds {saved.description()}; {config.env} with these "
                f"settings needs {policy.description()}"
            )
        policy.load_state_dict({**saved.state_dict(), "_extra_state": policy.get_extra_state()})
    return policy


def ppo_step(config: Config, policy: ActorCritic) -> GradientStep:
    """The gradient step of PPO's loss under these settings."""
    loss = partial(
        ppo_loss,
        clip=config.clip,
        value_clip=config.value_clip,
        value_coefficient=config.value_coefficient,
        entropy_coefficient=config.entropy_coefficient,
    )
    return GradientStep(
        policy,
        loss,
        learning_rate=config.learning_rate,
        max_gradient_norm=config.max_gradient_norm,
        kl_stop=config.kl_stop,
        compiled=config.compiled,
    )


def learn(
    config: Config,
    run: Run,
    policy: ActorCritic,
    step: GradientStep,
    scaler: RewardScaler,
    batch: Batch,
    latest: Batch,
) -> None:
    """Update the policy from `batch`, of which the normalisers have not seen the `latest` steps yet.

    Steps of every age are read with the statistics of today (``props.md`` 2.8), and weighted alike (2.7).
    """
    if config.normalise_observation:
        policy.normaliser.update(latest.rows("observation"))
    reward = batch.reward
    if config.normalise_reward:
        scaler.update(latest.reward, latest.done)
        reward = scaler.scale(batch.reward)
    columns = ppo_columns(policy, batch, reward, discount=config.discount, decay=config.gae_lambda)
    measures = ppo_update(
        step,
        policy,
        columns,
        epochs=config.epochs,
        minibatches=config.minibatches,
        generator=run.generator("minibatches"),
    )
    run.log(measures)


def evaluate_when_due(config: Config, run: Run, policy: ActorCritic) -> None:
    """Judge the policy on fresh episodes, `config.evaluations` times over the budget."""
    if run.evaluation_due:
        evaluation = evaluate(
            policy,
            config.env,
            config.evaluation_episodes,
            run.evaluation_seed,
            deterministic=config.deterministic_evaluation,
        )
        run.evaluated(evaluation)


def run(config: Config, run: Run) -> ActorCritic:
    env = make_control(config.env, config.num_envs, run.derived_seed("environment"))
    policy = actor_critic(config, env, run)
    step = ppo_step(config, policy)
    scaler = RewardScaler(config.discount, config.num_envs)
    if not run.keep(env=env, policy=policy, step=step, scaler=scaler):
        env.reset()

    choose = CompiledChoice(policy) if config.compiled else None
    for _ in run.iterations(config.batch_steps):
        if config.anneal:
            step.learning_rate.fill_(config.learning_rate * (1 - run.real_steps / config.steps))
        batch = rollout(
            env,
            policy,
            config.batch_steps // config.num_envs,
            run.generator("actions"),
            gathered_for=policy.version,
            choose=choose,
        )
        run.gathered(policy, batch)
        run.learns_from(policy, batch)

        learn(config, run, policy, step, scaler, batch, latest=batch)
        evaluate_when_due(config, run, policy)
    env.close()
    return policy
