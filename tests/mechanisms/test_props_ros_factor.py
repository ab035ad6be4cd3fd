"""ROS with a finite step buys a constant factor in sampling error, the one that the theory predicts.

In one softmax state, k · E[KL(π_D ‖ π)] → ½ tr(diag(1/π) Σ (I + 2αΣ)⁻¹) with Σ = diag(π) − ππᵀ, and
(|A| − 1)/2 without correction. Two easy imitations leave this curve: summing the gradient instead of
averaging it (the step grows with time: harmless in one state, where it ends in the greedy rule, destructive
for networks), and evaluating it at the acting policy φ instead of the target θ (worse than no correction).
"""

import numpy as np
import pytest

from peira.sources.ros import draw_action, robust_policy, running_mean_gradient

CHAINS, STEPS = 2000, 1000


def predicted_error(policy, alpha):
    covariance = np.diag(policy) - np.outer(policy, policy)
    corrected = covariance @ np.linalg.inv(np.eye(len(policy)) + 2 * alpha * covariance)
    return 0.5 * np.trace(np.diag(1 / policy) @ corrected)


def scaled_error(policy, alpha, *, summed=False, gradient_at_acting_policy=False, seed=0):
    """k · mean KL(π_D ‖ π) over chains, after k = STEPS draws in one state."""
    generator = np.random.default_rng(seed)
    target = np.tile(policy, (CHAINS, 1))
    gradient = np.zeros((CHAINS, 1, len(policy)))
    counts = np.zeros_like(target)
    state, chains = np.zeros(CHAINS, dtype=np.int64), np.arange(CHAINS)
    for step in range(STEPS):
        acting = robust_policy(target, gradient[:, 0] * (step if summed else 1), alpha)
        action = draw_action(acting, generator)
        counts[chains, action] += 1
        evaluated_at = acting if gradient_at_acting_policy else target
        gradient = running_mean_gradient(gradient, step, evaluated_at, state, action)
    empirical = counts / STEPS
    divergence = np.where(empirical > 0, empirical * np.log(np.maximum(empirical, 1e-300) / target), 0)
    return STEPS * divergence.sum(axis=1).mean()


@pytest.mark.parametrize(("alpha", "factor"), [(1.0, 1 / 2), (3.0, 1 / 4), (9.0, 1 / 10)])
def test_two_equal_actions(alpha, factor):
    policy = np.array([0.5, 0.5])
    assert predicted_error(policy, alpha) == pytest.approx(0.5 * factor, rel=1e-12)
    assert scaled_error(policy, alpha) == pytest.approx(0.5 * factor, rel=0.08)


def test_four_unequal_actions():
    policy = np.array([0.4, 0.3, 0.2, 0.1])
    assert predicted_error(policy, 10.0) == pytest.approx(0.200 * 3 / 2, rel=5e-3)
    assert scaled_error(policy, 10.0) == pytest.approx(0.200 * 3 / 2, rel=0.08)


@pytest.mark.parametrize("policy", [np.array([0.5, 0.5]), np.array([0.4, 0.3, 0.2, 0.1])])
def test_without_correction_the_error_is_half_the_free_parameters(policy):
    assert scaled_error(policy, 0.0) == pytest.approx((len(policy) - 1) / 2, rel=0.08)


@pytest.mark.parametrize("imitation", ["summed", "gradient_at_acting_policy"])
def test_an_imitation_misses_the_factor(imitation):
    error = scaled_error(np.array([0.5, 0.5]), 3.0, **{imitation: True})
    assert abs(error / (0.5 / 4) - 1) > 0.5
