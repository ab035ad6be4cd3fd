"""A log and the environment it is said to come from, held against each other before anybody learns from it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

import gymnasium
import torch
from jaxtyping import Float
from torch import Tensor

from peira.environments.control import ControlEnv, make_control
from peira.experience.transitions import TransitionLog, read_transitions

_ROUNDING = 1e-4
"""How far outside its bounds, as a share of their range, an action counts as rounded rather than wrong."""


@dataclass(frozen=True)
class LogOfWorld:
    """Transitions that fit the environment, the bounds within which a policy may act, and what people should know."""

    log: TransitionLog
    low: Float[Tensor, " act"]
    high: Float[Tensor, " act"]
    remarks: list[str]


def read_log(
    path: str | os.PathLike,
    env_id: str,
    *,
    clip_actions: bool = False,
    timeouts: Literal["refuse", "truncate", "keep"] = "refuse",
) -> LogOfWorld:
    """The log at `path` (`read_transitions`), checked against the environment `env_id`.

    `clip_actions` takes actions outside the bounds for what the environment executed, their clipped form. `timeouts` is
    what to do with episodes that end as terminated exactly at the environment's time limit, where most that reach it do
    so: a clock was then logged as an end, and values would stop there. "truncate" makes truncations of them, without
    their last step (what it led to was not kept); "keep" believes the log.

    Raises ValueError, which names field, value and remedy, for a discrete environment, sizes that differ, actions
    outside the bounds, and such timeouts. Constant channels, unbounded actions and a single episode are remarked on.
    """
    log = read_transitions(path)
    env = make_control(env_id, 1, 0)
    try:
        _check_sizes(log, env)
        low, high, remarks = _bounds(log, env)
    finally:
        env.close()
    log = _within(log, low, high, env_id, clip_actions)
    log, said = _timeouts(log, time_limit(env_id), env_id, timeouts)
    remarks += said
    for name in ("observation", "action"):
        values = getattr(log, name)
        constant = (values.amax(0) == values.amin(0)).nonzero().flatten().tolist()
        if constant:
            remarks.append(f"{name}: the same in every row of the log in the places {_listed(constant)}")
    if log.episodes == 1:
        remarks.append("log: holds one episode; nothing can be said of how episodes differ")
    if log.left_out:
        remarks.append(f"log: {log.left_out} episodes were left out because their world failed")
    return LogOfWorld(log, low, high, remarks)


def time_limit(env_id: str) -> int | None:
    """Steps after which the environment cuts an episode; None where Gymnasium knows of no limit."""
    spec = gymnasium.registry.get(env_id)
    return None if spec is None else spec.max_episode_steps


def mistaken_timeouts(log: TransitionLog, limit: int | None) -> Tensor:
    """Numbers of episodes that end at the limit as terminated, if they are most of those that reach it; else none.

    An episode that happens to terminate in its last possible step is rare, and stays.
    """
    if limit is None:
        return torch.zeros(0, dtype=torch.int64)
    last = log.first[1:] - 1
    at_limit = log.length == limit
    mistaken = at_limit & log.terminated[last] & ~log.truncated[last]
    return (mistaken & (2 * mistaken.sum() > at_limit.sum())).nonzero().flatten()


def without_last_steps(log: TransitionLog, episodes: Tensor) -> TransitionLog:
    """These episodes cut before their last step, and truncated there; one of a single step vanishes."""
    kept = torch.ones(log.rows, dtype=torch.bool)
    last = log.first[episodes + 1] - 1
    kept[last] = False
    cut = last[log.length[episodes] > 1] - 1
    truncated = log.truncated.clone()
    truncated[cut] = True
    length = log.length.clone()
    length[episodes] -= 1
    first = torch.cat([torch.zeros(1, dtype=torch.int64), length[length > 0].cumsum(0)])
    return replace(replace(log, truncated=truncated).take(kept.nonzero().flatten()), first=first)


def _check_sizes(log: TransitionLog, env: ControlEnv) -> None:
    if env.discrete:
        raise ValueError(
            f"env: {env.id} has {env.action_size} discrete actions; this method acts in continuous spaces only"
        )
    for name in ("observation", "action"):
        expected, found = (getattr(which, f"{name}_size") for which in (env, log))
        if expected != found:
            raise ValueError(
                f"{name}: {env.id} has {expected} numbers, the log {found}; name the environment the log comes from"
            )


def _bounds(log: TransitionLog, env: ControlEnv) -> tuple[Tensor, Tensor, list[str]]:
    space = env.single_action_space
    low, high = torch.from_numpy(space.low).flatten(), torch.from_numpy(space.high).flatten()
    open_ = ~(torch.isfinite(low) & torch.isfinite(high))
    if not open_.any():
        return low, high, []
    seen = log.action.amin(0), log.action.amax(0)
    alike = (open_ & (seen[0] == seen[1])).nonzero().flatten().tolist()
    if alike:
        raise ValueError(
            f"action: {env.id} sets no bounds, and the log has one value only in the places {_listed(alike)}, so that "
            "it sets none either; wrap the environment to a bounded space"
        )
    low, high = torch.where(open_, seen[0], low), torch.where(open_, seen[1], high)
    remark = f"action: {env.id} sets no bounds; the policy acts within those of the log"
    return low, high, [remark]


def _within(log: TransitionLog, low: Tensor, high: Tensor, env_id: str, clip: bool) -> TransitionLog:
    clipped = torch.minimum(torch.maximum(log.action, low), high)
    beyond = ((log.action - clipped).abs() > _ROUNDING * (high - low)).any(1)
    if beyond.any() and not clip:
        row = int(beyond.nonzero()[0])
        raise ValueError(
            f"action: {int(beyond.sum())} of {log.rows} rows lie outside the bounds {low.tolist()} to {high.tolist()} "
            f"of {env_id}, the first in row {row}: {[round(value, 4) for value in log.action[row].tolist()]}; if the "
            "environment clipped what it executed add --clip-actions, else rescale the log"
        )
    return replace(log, action=clipped)


def _timeouts(
    log: TransitionLog, limit: int | None, env_id: str, how: str
) -> tuple[TransitionLog, list[str]]:
    mistaken = mistaken_timeouts(log, limit)
    if not len(mistaken) or how == "keep":
        return log, []
    about = f"{len(mistaken)} of {log.episodes} episodes end as terminated at step {limit}, the time limit of {env_id}"
    if how == "refuse":
        raise ValueError(
            f"terminated: {about}: a clock was logged as an end; log them as truncated, or add --timeouts truncate "
            "(--timeouts keep if they did terminate)"
        )
    return without_last_steps(log, mistaken), [f"terminated: {about}; they were made truncations"]


def _listed(places: list[int]) -> str:
    return ", ".join(map(str, places[:8])) + (", …" if len(places) > 8 else "")
