"""Pendulum-v1's exact dynamics from an observation, a scripted swing-up, and the policies that ``pgd.md`` 7C aims at.

The pendulum: θ is 0 upright, torque u within ±2, θ̈ = 3g/(2l) sin θ + 3/(ml²) u, g = 10, m = l = 1, steps of 0.05 s.
Unit torque is u / 2. The episode's reward is −Σ θ² + 0.1 θ̇² + 0.001 u².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from peira.environments.truncated_normal import draw, log_density
from peira.experience.assemble import EpisodeAssembler

ID = "Pendulum-v1"
GRAVITY, MASS, LENGTH, STEP = 10.0, 1.0, 1.0, 0.05
MOST_TORQUE, MOST_SPEED = 2.0, 8.0
HORIZON = 200
UPRIGHT_ENERGY = GRAVITY * LENGTH * MASS / 2
BEHAVIOUR_STD, BEHAVIOUR_UNIFORM = 0.5, 0.2
TARGET_STD = 0.2


def step_pendulum(
    observation: Float[np.ndarray, "rows 3"], action: Float[np.ndarray, "rows 1"]
) -> tuple[Float[np.ndarray, "rows 3"], Float[np.ndarray, " rows"]]:
    """(next observation, reward) as Gymnasium's simulator has them, its state set from cos θ, sin θ, θ̇; float64."""
    cos, sin, speed = np.asarray(observation, np.float64).T
    angle = np.arctan2(sin, cos)
    torque = np.clip(np.asarray(action, np.float64)[:, 0], -MOST_TORQUE, MOST_TORQUE)
    reward = -(np.square(angle) + 0.1 * np.square(speed) + 0.001 * np.square(torque))
    force = 3 * GRAVITY / (2 * LENGTH) * np.sin(angle) + 3 / (MASS * LENGTH**2) * torque
    speed = np.clip(speed + force * STEP, -MOST_SPEED, MOST_SPEED)
    angle = angle + speed * STEP
    return np.stack([np.cos(angle), np.sin(angle), speed], -1), reward


def swing_up(observation: Float[Tensor, "*batch 3"], gain: float = 1.0) -> Float[Tensor, "*batch 1"]:
    """Unit torque that pumps energy while the pendulum hangs and holds it upright: gain · controller, within ±1.

    Near the top (cos θ > 0.85) −(4 θ + θ̇), with sin θ for θ; elsewhere θ̇ (E_top − E), E = θ̇²/6 + 5 cos θ.
    Differentiable. Source: Åström and Furuta 2000 (energy shaping), with a proportional-derivative catch.
    """
    cos, sin, speed = observation.unbind(-1)
    energy = speed.square() * (MASS * LENGTH**2 / 6) + UPRIGHT_ENERGY * cos
    pump = speed * (UPRIGHT_ENERGY - energy)
    hold = -(4.0 * sin + speed)
    return (gain * torch.where(cos > 0.85, hold, pump)).clamp(-1, 1).unsqueeze(-1)


class GaussianAround:
    """N(mode(s), std²) in every dimension: a density around any rule of action, differentiable in the action.

    `mode` maps observations to actions; `std` is in the environment's units. Samples are not clipped.
    """

    def __init__(self, mode: Callable[[Tensor], Tensor], std: float, action_size: int):
        self.mode, self.std, self.action_size = mode, std, action_size

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Float[Tensor, "*shape act"]:
        return torch.randn(*shape, self.action_size, generator=generator)

    def choose(
        self, observation: Float[Tensor, "*batch obs"], noise: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch act"]:
        return self.mode(observation) + self.std * noise

    def sample(
        self, observation: Float[Tensor, "*batch obs"], generator: torch.Generator
    ) -> Float[Tensor, "*batch act"]:
        return self.choose(observation, self.noise(observation.shape[:-1], generator))

    def log_prob(
        self, observation: Float[Tensor, "*batch obs"], action: Float[Tensor, "*batch act"]
    ) -> Float[Tensor, "*batch"]:
        return torch.distributions.Normal(self.mode(observation), self.std).log_prob(action).sum(-1)


def swing_up_target(gain: float) -> GaussianAround:
    """The behaviour's mean with another gain (1.5 and 0.5 in ``pgd.md`` 7C), and a deviation of 0.2 unit torque."""
    return GaussianAround(
        lambda observation: MOST_TORQUE * swing_up(observation, gain), TARGET_STD * MOST_TORQUE, 1
    )


def learned_target(mode: Callable[[Tensor], Tensor]) -> GaussianAround:
    """The third target: the same deviation around what a learned actor does (its `mode`)."""
    return GaussianAround(mode, TARGET_STD * MOST_TORQUE, 1)


def behave(
    observation: Float[np.ndarray, "rows 3"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "rows 1"], Float[np.ndarray, " rows"]]:
    """Torques of the behaviour policy, and their log-densities in torque.

    With probability 0.2 uniform, else the swing-up plus N(0, 0.5²) of unit torque. The noise is cut off at the bounds
    rather than clipped there, so that every executed torque has a density.
    """
    mean = swing_up(torch.from_numpy(observation)).numpy()[:, 0].astype(np.float64)
    uniform = rng.random(len(mean)) < BEHAVIOUR_UNIFORM
    unit = np.where(uniform, rng.uniform(-1, 1, len(mean)), draw(mean, BEHAVIOUR_STD, 1.0, rng))
    return MOST_TORQUE * unit[:, None], _log_density(unit, mean)


def behaviour_log_prob(
    observation: Float[np.ndarray, "rows 3"], action: Float[np.ndarray, "rows 1"]
) -> Float[np.ndarray, " rows"]:
    """The log-density in torque under `behave` of torques within the bounds."""
    mean = swing_up(torch.from_numpy(observation)).numpy()[:, 0].astype(np.float64)
    return _log_density(np.asarray(action, np.float64)[:, 0] / MOST_TORQUE, mean)


def _log_density(unit: Float[np.ndarray, " rows"], mean: Float[np.ndarray, " rows"]) -> np.ndarray:
    noisy = (1 - BEHAVIOUR_UNIFORM) * np.exp(log_density(unit, mean, BEHAVIOUR_STD, 1.0))
    return np.log(noisy + BEHAVIOUR_UNIFORM / 2) - np.log(MOST_TORQUE)


def pendulum_log(episodes: int, rng: np.random.Generator, *, run_id: str, started_ms: int = 0) -> pa.Table:
    """Steps of the behaviour policy, 200 an episode and then cut by the clock, with propensities; all at once.

    Episodes begin as Gymnasium's do: θ within ±π, θ̇ within ±1, uniform.
    """
    angle, speed = rng.uniform(-np.pi, np.pi, episodes), rng.uniform(-1, 1, episodes)
    seen = np.stack([np.cos(angle), np.sin(angle), speed], -1).astype(np.float32)
    kept: dict[str, list] = {name: [] for name in ("observation", "action", "reward", "behaviour_log_prob")}
    kept["final_observation"] = []
    for _ in range(HORIZON):
        action, _ = behave(seen, rng)
        action = action.astype(np.float32)
        following, reward = step_pendulum(seen, action)
        values = seen, action, reward, behaviour_log_prob(seen, action), following
        for name, value in zip(kept, values, strict=True):
            kept[name].append(value.astype(np.float32))
        seen = following.astype(np.float32)
    columns = {name: np.stack(values) for name, values in kept.items()}
    truncated = np.zeros((HORIZON, episodes), bool)
    truncated[-1] = True
    columns |= {"terminated": np.zeros_like(truncated), "truncated": truncated}
    return EpisodeAssembler(episodes, run_id, started_ms).add(
        columns, source="logged", policy_id="pendulum-swing-up", policy_version=0, task_id=ID
    )
