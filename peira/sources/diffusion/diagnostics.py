"""How on-policy, how plausible and how varied generated windows are (``pgd.md`` 3): the curves over λ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from peira.sources.diffusion.windows import Channels
from peira.sources.synthetic import TargetPolicy, standard_scores, target_log_prob

Simulator = Callable[
    [Float[Tensor, "rows obs"], Float[Tensor, "rows act"]],
    tuple[Float[Tensor, "rows obs"], Float[Tensor, " rows"]],
]
"""What the world really answers: next observation and reward."""
_NEIGHBOURS, _ASKED = 4096, 512


def diagnose(
    channels: Channels,
    z: Float[Tensor, "windows time channels"],
    policy: TargetPolicy,
    *,
    real: Float[Tensor, "real time channels"],
    simulator: Simulator | None = None,
) -> dict[str, Any]:
    """Measures of z-scored windows, each over the steps before a window ended.

    log_pi, log_pi_by_step      mean of log π(a | s), in nats; of the policy given
    std_z                       deviation of (a − μ(s))/σ(s): 1 for actions of the policy, less once guidance collapses
    dynamics_error, …_by_step   mean over dimensions of (next observation − simulator's)², in squared deviations of the
                                data's channels; by the index of the step; with a simulator only
    reward_error                the same of rewards
    terminal_rate               share of transitions that terminate, and real_terminal_rate that of the real windows
    nearest_neighbour           mean distance from (s, a) to the nearest real one, both z-scored
    action_variance, state_variance   mean variance of z-scored channels; 1 for the data itself
    """
    raw = channels.raw(z)
    observation, action = channels.decision(z)
    done = raw[:, :-1, -1] > 0.5
    alive = done.long().cumsum(1) - done.long() == 0
    half = channels.bounds.half
    with torch.no_grad():
        log_pi = target_log_prob(policy, observation[:, :-1], action[:, :-1], half)
    scores = standard_scores(policy, observation[:, :-1][alive], action[:, :-1][alive], half)
    decided = z[:, :-1][alive][:, : channels.observation_size + channels.action_size]
    variance = decided.var(0)
    moving = ~channels.scores.constant[: channels.observation_size + channels.action_size]
    is_action = torch.arange(len(moving)) >= channels.observation_size
    found = {
        "log_pi": log_pi[alive].mean().item(),
        "log_pi_by_step": _by_step(log_pi, alive),
        "std_z": scores.std().item(),
        "terminal_rate": (done & alive).sum().item() / alive.sum().item(),
        "real_terminal_rate": _terminal_rate(channels, real),
        "nearest_neighbour": _nearest(channels, z, real),
        "action_variance": variance[moving & is_action].mean().item(),
        "state_variance": variance[moving & ~is_action].mean().item(),
    }
    if simulator is not None:
        error, reward_error = dynamics_error(channels, raw, observation, action, simulator)
        counted = alive & ~done
        found["dynamics_error"] = error[counted].mean().item()
        found["dynamics_error_by_step"] = _by_step(error, counted)
        found["reward_error"] = reward_error[alive].mean().item()
    return found


def dynamics_error(
    channels: Channels,
    raw: Float[Tensor, "windows time channels"],
    observation: Float[Tensor, "windows time obs"],
    action: Float[Tensor, "windows time act"],
    simulator: Simulator,
) -> tuple[Float[Tensor, "windows steps"], Float[Tensor, "windows steps"]]:
    """Squared error of each step's successor and reward against the simulator, in squared deviations of the data."""
    windows, steps = raw.shape[0], raw.shape[1] - 1
    following, reward = simulator(observation[:, :-1].flatten(0, 1), action[:, :-1].flatten(0, 1))
    deviation = channels.scores.deviation
    error = (observation[:, 1:].flatten(0, 1) - following) / deviation[: channels.observation_size]
    of_reward = (raw[:, :-1, -2].flatten() - reward) / deviation[-2]
    return error.square().mean(1).unflatten(0, (windows, steps)), of_reward.square().unflatten(
        0, (windows, steps)
    )


def over_strengths(
    channels: Channels,
    generated: Mapping[float, Float[Tensor, "windows time channels"]],
    policy: TargetPolicy,
    *,
    real: Float[Tensor, "real time channels"],
    simulator: Simulator | None = None,
) -> list[dict[str, Any]]:
    """`diagnose` for windows generated at each λ, lowest first, with λ as `strength`."""
    return [
        {"strength": strength, **diagnose(channels, z, policy, real=real, simulator=simulator)}
        for strength, z in sorted(generated.items())
    ]


def _by_step(value: Tensor, counted: Tensor) -> list[float]:
    return ((value * counted).sum(0) / counted.sum(0).clamp(min=1)).tolist()


def _terminal_rate(channels: Channels, z: Tensor) -> float:
    done = channels.raw(z)[:, :-1, -1] > 0.5
    alive = done.long().cumsum(1) - done.long() == 0
    return ((done & alive).sum() / alive.sum()).item()


def _nearest(channels: Channels, z: Tensor, real: Tensor) -> float:
    """Over rows spread evenly through both, no more than a distance matrix of 512 × 4096."""
    size = channels.observation_size + channels.action_size
    asked, known = z[..., :size].flatten(0, 1), real[..., :size].flatten(0, 1)
    asked, known = asked[:: max(1, len(asked) // _ASKED)], known[:: max(1, len(known) // _NEIGHBOURS)]
    return torch.cdist(asked, known).amin(1).mean().item()
