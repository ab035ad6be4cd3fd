"""Steps gathered by letting a policy act in parallel worlds."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from peira.environments.control import ControlEnv
from peira.environments.lock import LockVector
from peira.experience.batch import SOURCE_CODES, Batch
from peira.experience.schema import Source
from peira.policies.protocol import Acts


@torch.no_grad()
def rollout(
    env: ControlEnv | LockVector,
    policy: Acts,
    steps: int,
    generator: torch.Generator,
    *,
    gathered_for: int,
    choose: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Batch:
    """`steps` steps of every environment from where each one stands, actions sampled from `policy`.

    `gathered_for` is the version of the target policy that these steps are meant for. `choose` is a faster form of
    `policy.choose`, such as `CompiledChoice(policy)`. The loop only picks actions;
    their log-probabilities are computed in one pass afterwards, under the same parameters and normaliser.
    """
    shape = (steps, env.num_envs)
    observation = torch.empty(steps + 1, env.num_envs, env.observation_size)
    reward = torch.empty(shape)
    terminated = torch.zeros(shape, dtype=torch.bool)
    truncated = torch.zeros(shape, dtype=torch.bool)
    noise = policy.noise(shape, generator)
    choose = choose or policy.choose
    actions, endings = [], []
    observations, rewards, terminations, truncations = (
        tensor.numpy() for tensor in (observation, reward, terminated, truncated)
    )
    observations[0] = env.observation
    for time, (seen, chance) in enumerate(zip(observation[:-1].unbind(), noise.unbind(), strict=True)):
        action = choose(seen, chance)
        actions.append(action)
        (
            observations[time + 1],
            rewards[time],
            terminations[time],
            truncations[time],
            info,
        ) = env.step(action.numpy())
        if info:
            endings.append((time, info["_final_obs"], info["final_obs"]))
    next_observation = observation[1:].clone()
    for time, ended, final in endings:
        which = np.flatnonzero(ended)
        next_observation[time, which] = torch.from_numpy(final[which])
    action = torch.stack(actions)
    return Batch(
        observation=observation[:-1],
        action=action,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        next_observation=next_observation,
        behaviour_log_prob=policy.log_prob(observation[:-1], action),
        policy_version=torch.full(shape, gathered_for),
        source=torch.full(shape, SOURCE_CODES[Source.REAL]),
    )
