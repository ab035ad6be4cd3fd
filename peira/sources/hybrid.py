"""A world to act in and a log of it: what a learner from both begins with."""

from __future__ import annotations

import numpy as np

from peira.environments.control import ControlEnv, make_control
from peira.environments.digits_lock import make_lock
from peira.environments.lock import LOG_KINDS, AntiReward, LockVector
from peira.experience.step_log import StepLog
from peira.experience.transitions import read_transitions


def open_world(
    env: str,
    seed: int,
    *,
    num_envs: int,
    codes_seed: int,
    anti_reward: AntiReward,
    episodes_of: int | None = None,
) -> LockVector | ControlEnv:
    """`num_envs` environments, or episodes at a lock; with `episodes_of` as many as whole ones fit in so many steps.

    Raises ValueError where no episode fits.
    """
    lock = make_lock(env, codes_seed, anti_reward)
    if lock is None:
        return make_control(env, num_envs, seed)
    if episodes_of is not None:
        num_envs = episodes_of // lock.horizon
    if num_envs < 1:
        raise ValueError(f"batch_steps: an episode of {env} has {lock.horizon} steps, got {episodes_of}")
    return LockVector(lock, num_envs, seed)


def open_log(name: str, env: str, world: LockVector | ControlEnv, *, trajectories: int, seed: int) -> StepLog:
    """A lock's log of this kind with `trajectories` transitions a step, or the log at the path `name`; by steps.

    Raises ValueError where there is none, and for one that does not fit the world or whose actions it cannot execute.
    """
    locked = isinstance(world, LockVector)
    if locked and name in LOG_KINDS:
        return world.lock.log(name, trajectories, np.random.default_rng(seed))
    if name in LOG_KINDS:
        raise ValueError(f"log: {name!r} is a lock's; for {env} name the path of a log")
    if world.discrete:
        raise ValueError(
            f"log: the actions of {env} are numbers of choices, and logs are read of continuous ones only; "
            "set w_off to 0 (recipe trpo) to learn without"
        )
    log = StepLog.by_step(read_transitions(name), world.lock.horizon if locked else None)
    for column, wanted in (("observation", world.observation_size), ("action", world.action_size)):
        if (found := getattr(log, column).shape[1]) != wanted:
            raise ValueError(f"log: a row's {column} has {found} numbers, got by {env} are {wanted}")
    space, action = world.single_action_space, log.action.numpy()
    outside = ((action < space.low - 1e-5) | (action > space.high + 1e-5)).any(1)
    if outside.any():
        raise ValueError(
            f"log: action {action[outside][0].tolist()} is outside the bounds of {env}, as are "
            f"{outside.mean():.1%} of the rows; give actions as they were executed"
        )
    return log
