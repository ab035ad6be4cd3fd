"""Logged states move the policy only through what actions are worth there, never through what the log did.

Where nothing depends on the action, rows with new actions pull nowhere on average; the same surrogate on an expert's
logged actions pulls towards the expert.
"""

from types import SimpleNamespace

import torch

from peira.experience.step_log import StepRows
from peira.policies.stacked import StackedGaussianPolicy
from peira.recipes import hnpg

ROWS = 20_000


class OnlyStatesMatter:
    """A critic whose every action is worth 1 above what it says of the state."""

    def __call__(self, observation, action):
        return torch.ones(observation.shape[:2]).double()

    def value(self, policy, observation, generator, samples):
        return torch.zeros(observation.shape[:2]).double()


def pull(actor_offline):
    """Norm of the surrogate's gradient over logged states, in units of 1 / √rows."""
    generator = torch.Generator().manual_seed(0)
    policy = StackedGaussianPolicy(1, 4, 2, generator=generator)
    observation = torch.randn(1, ROWS, 4, generator=generator)
    off = StepRows(
        observation,
        torch.ones(1, ROWS, 2),
        torch.zeros(1, ROWS),
        observation,
        torch.zeros(1, ROWS, dtype=torch.bool),
    )
    config = hnpg.Config(actor_offline=actor_offline)
    run = SimpleNamespace(generator=lambda name: generator)
    rows = hnpg.in_logged_states(config, run, policy, OnlyStatesMatter(), off)
    gradient = policy.score(policy.activations(rows.observation), rows.action, rows.weight * rows.advantage)
    return gradient.norm().item() * ROWS**0.5, rows


def test_new_actions_pull_nowhere_and_logged_ones_towards_the_log():
    drawn_anew, rows = pull("resample")
    assert rows.in_surrogate.all()
    assert drawn_anew < 10
    logged, rows = pull("logged_regression")
    assert logged > 100
    # Which is why those rows have no part in the surrogate.
    assert not rows.in_surrogate.any()
