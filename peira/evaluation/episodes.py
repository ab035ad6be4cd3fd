"""What a policy earns on fresh, real episodes that nobody learns from."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from peira.environments.control import make_control
from peira.policies.protocol import Acts


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of complete episodes."""

    returns: np.ndarray
    lengths: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def steps(self) -> int:
        return int(self.lengths.sum())

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Student's t interval of the mean return over episodes; None for fewer than two."""
        if len(self.returns) < 2:
            return None
        error = stats.sem(self.returns)
        half = error * stats.t.ppf(0.5 + confidence / 2, len(self.returns) - 1)
        return self.mean - float(half), self.mean + float(half)


@torch.no_grad()
def evaluate(
    policy: Acts, env_id: str, episodes: int, seed: int, *, deterministic: bool = True
) -> Evaluation:
    """One episode in each of `episodes` environments seeded seed, seed + 1, …: no episode counts for being short.

    `deterministic` acts with the mean (most likely) action, otherwise samples. The normaliser does not move.
    """
    env = make_control(env_id, episodes, seed)
    generator = torch.Generator().manual_seed(seed)
    observation, _ = env.reset()
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    running = np.ones(episodes, bool)
    while running.any():
        seen = torch.from_numpy(observation)
        action = policy.mode(seen) if deterministic else policy.sample(seen, generator)
        observation, reward, terminated, truncated, _ = env.step(action.numpy())
        returns[running] += reward[running]
        lengths[running] += 1
        running &= ~(terminated | truncated)
    env.close()
    return Evaluation(returns, lengths)
