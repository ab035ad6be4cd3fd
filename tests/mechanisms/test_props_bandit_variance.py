"""Correcting the actions removes the variance that sampling them adds, and exactly that.

K arms with means μ_a and deviations σ_a: k Var(mean reward) → Σπ(μ_a − v)² + Σπσ_a² on-policy, and → Σπσ_a²
under the greedy under-sampled rule. An imitation that gathers other actions without keeping their shares
(more exploration, say) lowers neither term and biases the mean.
"""

import numpy as np
import pytest

from peira.sources.ros import draw_action, running_mean_gradient, under_sampled_policy

MEAN, DEVIATION, POLICY = np.array([0.0, 1.0]), np.array([0.5, 0.5]), np.array([0.5, 0.5])
VALUE = POLICY @ MEAN
CHAINS, STEPS = 8000, 200


def mean_rewards(acting_policy, seed=0):
    generator = np.random.default_rng(seed)
    target = np.tile(POLICY, (CHAINS, 1))
    gradient = np.zeros((CHAINS, 1, 2))
    state, total = np.zeros(CHAINS, dtype=np.int64), np.zeros(CHAINS)
    for step in range(STEPS):
        action = draw_action(acting_policy(target, gradient[:, 0], step), generator)
        gradient = running_mean_gradient(gradient, step, target, state, action)
        total += MEAN[action] + DEVIATION[action] * generator.standard_normal(CHAINS)
    return total / STEPS


def test_variance_on_policy_and_under_sampled_first():
    from_rewards = POLICY @ DEVIATION**2
    from_actions = POLICY @ (MEAN - VALUE) ** 2
    on_policy, corrected = mean_rewards(lambda target, *_: target), mean_rewards(under_sampled_policy)
    assert STEPS * on_policy.var() == pytest.approx(from_actions + from_rewards, rel=0.06)
    assert STEPS * corrected.var() == pytest.approx(from_rewards, rel=0.06)
    assert corrected.var() / on_policy.var() == pytest.approx(0.5, rel=0.08)
    for estimate in (on_policy, corrected):
        assert abs(estimate.mean() - VALUE) < 4 * estimate.std() / np.sqrt(CHAINS)


def test_exploring_more_is_no_substitute():
    explored = mean_rewards(lambda target, *_: 0.5 * target + 0.5 * np.array([0.2, 0.8]))
    assert abs(explored.mean() - VALUE) > 20 * explored.std() / np.sqrt(CHAINS)
    assert STEPS * explored.var() > 1.5 * (POLICY @ DEVIATION**2)
