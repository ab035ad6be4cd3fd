"""What a policy earns at a combination lock, on fresh episodes that nobody learns from."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from peira.environments.lock import CombinationLock
from peira.evaluation.episodes import Evaluation

SUCCESS = 0.5
"""Opening the lock pays 1, failing at most 0.1: a return above this is a success."""


@torch.no_grad()
def evaluate_lock(
    lock: CombinationLock,
    act: Callable[[int, Float[Tensor, "episodes obs"]], Float[Tensor, "episodes action"]],
    episodes: int,
    seed: int,
) -> Evaluation:
    """`episodes` episodes with the chance of `seed`; `act(step, observation)` gives the actions."""
    rng = np.random.default_rng(seed)
    state = lock.start(episodes, rng)
    returns = np.zeros(episodes)
    for step in range(lock.horizon):
        observation = torch.from_numpy(lock.observe(state, step, rng))
        state, reward = lock.step(state, step, act(step, observation).numpy(), rng)
        returns += reward
    return Evaluation(returns, np.full(episodes, lock.horizon))


def success(evaluation: Evaluation) -> float:
    """Share of episodes that opened the lock."""
    return float((evaluation.returns > SUCCESS).mean())
