"""With tables instead of networks the natural gradient is multiplicative weights: HAC on the latent lock.

At the last step the right latent action is worth 1 and each wrong one 0.05 on average, so that after t rounds
π(right | good, H − 1) = 1 / (1 + 9 e^{−0.95 η t}) exactly.
"""

import numpy as np
import pytest
import torch

from peira.environments.lock import LATENT_ACTIONS, CombinationLock
from peira.learners.natural_gradient import ActorRows, NaturalGradient
from peira.policies.stacked import StackedCategoricalPolicy

HORIZON, ROUNDS, ETA = 5, 5, 1.0
GOOD = 2
LARGE = 1e6


def action_values(lock, policy):
    """f_h(s, a) of both good states [H, 2, 10] by the backward sweep with exact expectations; dead is worth 0."""
    right = np.eye(LATENT_ACTIONS)[lock.codes].transpose(1, 0, 2)
    value, found = np.zeros(GOOD), np.zeros((lock.horizon, GOOD, LATENT_ACTIONS))
    for step in reversed(range(lock.horizon)):
        ahead = 1.0 if step == lock.horizon - 1 else value.mean()
        found[step] = right[step] * ahead + (1 - right[step]) * 0.05
        value = (policy[step] * found[step]).sum(1)
    return found


def multiplicative_weights(lock):
    policy = np.full((lock.horizon, GOOD, LATENT_ACTIONS), 1 / LATENT_ACTIONS)
    for _ in range(ROUNDS):
        policy = policy * np.exp(ETA * action_values(lock, policy))
        policy /= policy.sum(-1, keepdims=True)
    return policy


def natural_gradients(lock, fisher):
    """The same by the natural gradient of equation 2 over every (state, action), with a row of its own for each.

    fisher="exact": weighted as the policy would show them; "sampled": as the mixed log does, uniformly.
    """
    policy = StackedCategoricalPolicy(lock.horizon, GOOD, LATENT_ACTIONS, hidden=())
    policy.flat.zero_()
    state = torch.eye(GOOD).double().repeat_interleave(LATENT_ACTIONS, 0).expand(lock.horizon, -1, -1)
    action = torch.arange(LATENT_ACTIONS).repeat(lock.horizon, GOOD)
    natural = NaturalGradient(damping=0.0, iterations=100)

    def table():
        return policy.activations(torch.eye(GOOD).double().expand(lock.horizon, -1, -1))[-1].softmax(-1)

    for _ in range(ROUNDS):
        probability = table()
        value = torch.from_numpy(action_values(lock, probability.numpy()))
        centred = (value - (probability * value).sum(-1, keepdim=True)).flatten(1)
        weight = probability.flatten(1) / GOOD
        if fisher == "sampled":
            weight = torch.full_like(weight, 1 / weight.shape[1])
        rows = ActorRows(
            state, action, LARGE * centred, weight, torch.ones(action.shape[1], dtype=torch.bool)
        )
        policy.flat += ETA / LARGE * natural.direction(policy, rows, fisher).solution
    return table().numpy()


@pytest.fixture
def lock():
    return CombinationLock.drawn(HORIZON, np.random.default_rng(0))


def test_the_last_step_follows_the_closed_form(lock):
    policy = multiplicative_weights(lock)
    right = policy[-1, np.arange(GOOD), lock.codes[:, -1]]
    assert right == pytest.approx(1 / (1 + 9 * np.exp(-0.95 * ETA * ROUNDS)), abs=1e-12)
    assert right == pytest.approx(0.9278, abs=5e-5)


@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_natural_gradients_go_through_the_same_policies(lock, fisher):
    np.testing.assert_allclose(natural_gradients(lock, fisher), multiplicative_weights(lock), atol=1e-6)


def test_plain_gradients_do_not(lock, monkeypatch):
    monkeypatch.setattr(
        "peira.learners.natural_gradient.conjugate_gradients", lambda product, target, **_: target
    )
    assert np.abs(natural_gradients(lock, "exact") - multiplicative_weights(lock)).max() > 0.1
