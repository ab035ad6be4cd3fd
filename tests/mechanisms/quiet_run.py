"""The least that a recipe needs of a run: seeds, a count of steps, and nothing written anywhere."""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete


class QuietRun:
    evaluation_due = False

    def __init__(self, config):
        self.config, self.real_steps = config, 0
        self._generators = {}

    def generator(self, name):
        return self._generators.setdefault(name, torch.Generator().manual_seed(self.derived_seed(name)))

    def derived_seed(self, name):
        return sum(name.encode()) + self.config.seed

    def keep(self, **parts):
        return False

    def iterations(self, batch_steps):
        for iteration in range(self.config.steps // batch_steps):
            yield iteration + 1

    def gathered(self, policy, batch):
        self.real_steps += batch.steps

    def learns_from(self, policy, batch):
        pass

    def log(self, measures):
        pass


class Counter(gymnasium.Env):
    """Shows how many steps were taken since it was made, so that an observation names its row.

    Rewards are 1, 2, 3, 1, …; every 11th step terminates an episode and every 7th truncates one.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)
    observation_space = Box(0.0, np.inf, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        reward = float(1 + (self.steps - 1) % 3)
        return self._observation(), reward, self.steps % 11 == 0, self.steps % 7 == 0, {}

    def _observation(self):
        return np.array([self.steps], np.float32)


COUNTER = "peira-tests/Counter-v0"
if COUNTER not in gymnasium.registry:
    gymnasium.register(COUNTER, entry_point=Counter)
