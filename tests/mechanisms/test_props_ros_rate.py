"""Choosing the most under-sampled action changes the *rate* of the sampling error, not only its constant.

For one state visited k times the counts stay within |A| of k π, so that KL(π_D ‖ π) falls like 1/k²;
on-policy sampling, and ROS with a finite step, fall like 1/k. An imitation that merely favours rare actions
(entropy, an exploration bonus) drifts away from k π linearly.
"""

import numpy as np
import pytest

from peira.sources.ros import draw_action, robust_policy, running_mean_gradient, under_sampled_policy

CHAINS, STEPS = 32, 10_000
POLICIES = [np.array([0.5, 0.5]), np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.7, 0.2, 0.07, 0.02, 0.01])]


def walk(policy, acting_policy, seed=0):
    """Yields (k, counts [chains, actions]) after every one of STEPS draws in one state."""
    generator = np.random.default_rng(seed)
    target = np.tile(policy, (CHAINS, 1))
    gradient = np.zeros((CHAINS, 1, len(policy)))
    counts = np.zeros_like(target)
    state, chains = np.zeros(CHAINS, dtype=np.int64), np.arange(CHAINS)
    for step in range(STEPS):
        action = draw_action(acting_policy(target, gradient[:, 0], step), generator)
        gradient = running_mean_gradient(gradient, step, target, state, action)
        counts[chains, action] += 1
        yield step + 1, counts


def divergence(counts, policy):
    empirical = counts / counts.sum(axis=1, keepdims=True)
    terms = np.where(empirical > 0, empirical * np.log(np.maximum(empirical, 1e-300) / policy), 0)
    return terms.sum(axis=1).mean()


@pytest.mark.parametrize("policy", POLICIES, ids=len)
def test_counts_stay_within_the_number_of_actions(policy):
    early, late = [], []
    for k, counts in walk(policy, under_sampled_policy):
        assert np.abs(counts - k * policy).max() < len(policy)
        if 500 <= k < 1_000:
            early.append(k * divergence(counts, policy))
        elif 5_000 <= k < 5_500:
            late.append(k * divergence(counts, policy))
    # k · KL ∝ 1/k; averaged over many k, since at some the counts can fit exactly.
    assert np.mean(late) / np.mean(early) == pytest.approx(
        np.mean(1 / np.arange(5_000, 5_500)) / np.mean(1 / np.arange(500, 1_000)), rel=0.1
    )
    assert np.mean(late) < 0.02 * (len(policy) - 1) / 2


def test_an_infinite_step_of_ros_is_the_same_rule():
    policy = POLICIES[1]
    for k, counts in walk(policy, lambda target, gradient, step: robust_policy(target, gradient, 1e12)):
        assert np.abs(counts - k * policy).max() < len(policy)


def test_on_policy_sampling_keeps_its_constant():
    policy = POLICIES[1]
    errors = [k * divergence(counts, policy) for k, counts in walk(policy, lambda target, *_: target)]
    late = np.mean(errors[STEPS // 10 :])
    assert late == pytest.approx((len(policy) - 1) / 2, rel=0.25)


def test_a_bonus_for_rare_actions_leaves_the_policy():
    policy = POLICIES[1]
    *_, (k, counts) = walk(policy, lambda target, *_: 0.9 * target + 0.1 / len(policy))
    assert np.abs(counts.mean(axis=0) - k * policy).max() > 30 * len(policy)
