"""Minimax weights and values: against exact ratios, and against the double sums over kernels they stand for."""

from dataclasses import replace

import numpy as np
import pytest
from ope_fixtures import B, discounted_occupancy, exact_log, stationary_q

from peira.evaluation.off_policy import linear
from peira.evaluation.off_policy.features import gaussian_features
from peira.evaluation.off_policy.kernel_balance import minimax_values, minimax_weights, mql, mswl, mvl, mwl
from peira.evaluation.off_policy.transitions import TERMINATED, TRUNCATED, Transitions

GAMMA = 0.9
VALUE = 384 / 37


@pytest.fixture(scope="module")
def exact():
    """First steps of fixture B, each transition exactly as frequent as in the world, and what is needed with them."""
    trajectories = exact_log(B, 2)
    next_row = np.arange(1, trajectories.state.size + 1)
    next_row[1::2] = TRUNCATED
    columns = (of.ravel() for of in (trajectories.state, trajectories.action, trajectories.reward))
    log = Transitions(*columns, next_row)
    action_ratio = (B.pi / B.pi_b)[log.observation, log.action][None]
    return log, np.eye(2)[log.observation], B.pi[log.observation][None], action_ratio


def noisy_log(rows=60, seed=0):
    """Random vectors; every third row ends an episode."""
    rng = np.random.default_rng(seed)
    next_row = np.arange(1, rows + 1)
    next_row[2::3] = TERMINATED
    log = Transitions(rng.normal(size=(rows, 2)), rng.integers(2, size=rows), rng.normal(size=rows), next_row)
    return log, rng.dirichlet(np.ones(2), size=rows)[None]


def test_tables_give_the_exact_ratios_and_values(exact):
    log, features, probs, action_ratio = exact
    occupancy = discounted_occupancy(B, B.pi)
    pairs = occupancy / (B.mu[:, None] * B.pi_b)
    states = (occupancy.sum(1) / B.mu)[:, None] * B.pi / B.pi_b
    for normalisation in (0.0, 1.0):
        settings = {"ridge": 0.0, "normalisation": normalisation}
        by_pair = mwl(log, features, probs, GAMMA, **settings)
        by_state = mswl(log, features, action_ratio, GAMMA, **settings)
        for fit, expected in ((by_pair, pairs), (by_state, states)):
            np.testing.assert_allclose(fit.ratio[0], expected[log.observation, log.action], atol=1e-9)
            assert fit.value[0] == pytest.approx(VALUE, abs=1e-8)
            assert fit.mean_ratio[0] == pytest.approx(1, abs=1e-9)
            assert fit.flow_residual[0] < 1e-9
    q = stationary_q(B, B.pi)
    np.testing.assert_allclose(
        mql(log, features, probs, GAMMA, ridge=0.0).q[0], q[log.observation], atol=1e-8
    )
    v = mvl(log, features, action_ratio, GAMMA, ridge=0.0)[0]
    np.testing.assert_allclose(v, (B.pi * q).sum(1)[log.observation], atol=1e-8)


def test_values_of_states_need_the_ratio_of_actions(exact):
    log, features, _, action_ratio = exact
    without = mvl(log, features, np.ones_like(action_ratio), GAMMA, ridge=0.0)[0]
    behaviour = (B.pi_b * stationary_q(B, B.pi_b)).sum(1)
    np.testing.assert_allclose(without, behaviour[log.observation], atol=1e-8)


def kernel_features(log):
    """Features whose products are the Gaussian kernel exactly: every point is a landmark."""
    rng = np.random.default_rng(0)
    return gaussian_features(log.observation, log.points, rng=rng, bandwidth=0.7)


def pair_kernel(log, x, a, y, b):
    """k((x, a), (y, b)) = exp(−‖x − y‖²/2h²) 1{a = b} on standardised states."""
    standard = (log.observation - log.observation.mean(0)) / log.observation.std(0)
    distance = ((standard[x][:, None] - standard[y][None]) ** 2).sum(-1)
    return np.exp(-distance / (2 * 0.7**2)) * (a[:, None] == b[None])


def averaged_kernel(log, probs, x, y, b):
    """E over a ~ π(·|x) of the kernel, for pairs (y, b)."""
    return sum(
        probs[0, x, action][:, None] * pair_kernel(log, x, np.full(len(x), action), y, b)
        for action in range(2)
    )


def test_the_weights_minimise_the_double_sum_over_kernels():
    log, probs = noisy_log()
    rows, a, first = np.arange(log.rows), log.action, log.initial
    goes_on = rows[~log.terminated]
    onward = log.next_row[goes_on]
    features = kernel_features(log)
    moments = linear.action_moments(log, features, probs, rows=log.known)

    k = pair_kernel(log, rows, a, rows, a)
    k_next = np.zeros((log.rows, log.rows))
    k_next[goes_on] = averaged_kernel(log, probs, onward, rows, a)
    k_both = np.zeros((log.rows, log.rows))
    k_both[np.ix_(goes_on, goes_on)] = sum(
        probs[0, onward, b][None] * averaged_kernel(log, probs, onward, onward, np.full(len(onward), b))
        for b in range(2)
    )
    k_first = averaged_kernel(log, probs, first, rows, a).T
    k_next_first = np.zeros((log.rows, len(first)))
    k_first_first = np.zeros((len(first), len(first)))
    for b in range(2):
        with_b = averaged_kernel(log, probs, first, onward, np.full(len(onward), b)).T
        k_next_first[goes_on] += probs[0, onward, b][:, None] * with_b
        k_first_first += probs[0, first, b][None] * averaged_kernel(
            log, probs, first, first, np.full(len(first), b)
        )

    def double_sum(w):
        n, n_first = log.rows, len(first)
        quadratic = GAMMA**2 * k_both - GAMMA * k_next - GAMMA * k_next.T + k
        cross = w @ (GAMMA * k_next_first - k_first).sum(1)
        constant = (1 - GAMMA) ** 2 * k_first_first.mean()
        return w @ quadratic @ w / n**2 + 2 * (1 - GAMMA) / (n * n_first) * cross + constant

    def weights_of(omega):
        return linear.at_actions(omega, log, features)[0, rows, a]

    rng = np.random.default_rng(1)
    for omega in rng.normal(size=(3, 1, 1, moments.reward.shape[-1])):
        flow = np.einsum("cfij,cfi->cfj", moments.flow(GAMMA), omega) + (1 - GAMMA) * moments.initial
        assert (flow**2).sum() == pytest.approx(double_sum(weights_of(omega)), rel=1e-6)
    ridge = 1e-4

    def objective(omega):
        w = weights_of(omega)
        mass = w @ (1 + GAMMA / (1 - GAMMA) * log.terminated) / log.rows
        return double_sum(w) + 0.5 * (mass - 1) ** 2 + ridge * (omega**2).sum()

    best = minimax_weights(moments, GAMMA, ridge=ridge, normalisation=0.5)
    for step in rng.normal(size=(20, *best.shape)):
        assert objective(best + 1e-3 * step) > objective(best)


def test_the_values_minimise_the_double_sum_over_kernels():
    log, probs = noisy_log()
    rows, a, features = np.arange(log.rows), log.action, kernel_features(log)
    moments = linear.action_moments(log, features, probs, rows=log.known)
    k, ridge = pair_kernel(log, rows, a, rows, a), 1e-4

    def objective(beta):
        q = linear.at_actions(beta, log, features)[0]
        v = np.where(log.terminated, 0.0, (probs[0] * q).sum(1)[np.maximum(log.next_row, 0)])
        error = log.reward + GAMMA * v - q[rows, a]
        return error @ k @ error / log.rows**2 + ridge * (beta**2).sum()

    best = minimax_values(moments, GAMMA, ridge=ridge)
    for step in np.random.default_rng(1).normal(size=(20, *best.shape)):
        assert objective(best + 1e-3 * step) > objective(best)


def test_normalisation_draws_the_mean_to_one(exact):
    """One constant feature cannot have the right flow; what is added must pull its mean up to 1, not push it away."""
    log, features, probs, _ = exact
    poor = features @ np.array([[1.0], [3.0]])
    means = [
        mwl(log, poor, probs, GAMMA, ridge=0.0, normalisation=strength).mean_ratio[0]
        for strength in (0.0, 0.1, 100.0)
    ]
    assert abs(means[0] - 1) > abs(means[1] - 1) > abs(means[2] - 1)
    assert means[2] == pytest.approx(1, abs=1e-3)


def test_gaussian_features_are_the_kernel():
    observation = np.random.default_rng(0).normal(size=(40, 3))
    standard = (observation - observation.mean(0)) / observation.std(0)
    kernel = np.exp(-((standard[:, None] - standard[None]) ** 2).sum(-1) / 2)
    every = gaussian_features(observation, 40, rng=np.random.default_rng(1), bandwidth=1.0)
    np.testing.assert_allclose(every @ every.T, kernel, atol=1e-9)
    few = gaussian_features(observation, 10, rng=np.random.default_rng(1), bandwidth=1.0)
    assert few.shape == (40, 10)
    exact_entries = np.isclose(few @ few.T, kernel, atol=1e-9).sum()
    assert exact_entries >= 40 * 10
    chosen = np.random.default_rng(1).choice(40, 10, replace=False)
    np.testing.assert_allclose((few @ few.T)[chosen], kernel[chosen], atol=1e-9)
    repeated = gaussian_features(np.repeat(observation[:5], 8, axis=0), 40, rng=np.random.default_rng(1))
    assert repeated.shape == (40, 5)


def test_continuous_actions_have_ratios_of_states():
    """One decision: a ~ N(0, 1) logged, N(½s, ¼) asked; the ratio of states is 1, the value E r under the candidate."""
    rng = np.random.default_rng(0)
    state, action = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 1))
    reward = -((action - state) ** 2)[:, 0]
    log = Transitions(state, action, reward, np.full(4000, TERMINATED))
    log_ratio = np.log(2) - 2 * (action - 0.5 * state) ** 2 + 0.5 * action**2
    features = np.column_stack([np.ones(4000), gaussian_features(state, 10, rng=rng)])
    fit = mswl(log, features, np.exp(log_ratio).T, GAMMA)
    # At a discount of 0.9 the first step is a tenth of all time, and the rest is spent behind the end.
    assert fit.mean_ratio[0] == pytest.approx(1, abs=0.02)
    assert fit.value[0] == pytest.approx(-0.5, abs=0.06)


def test_folds_are_predicted_without_their_own_rewards():
    log, probs = noisy_log()
    log = replace(log, fold=np.arange(log.rows) // 3 % 2)
    features = kernel_features(log)[:, -10:]
    other = replace(log, reward=np.where(log.fold == 0, 9.0, log.reward))
    before, after = (mql(of, features, probs, GAMMA).logged[0] for of in (log, other))
    own = log.fold == 0
    assert np.array_equal(before[own], after[own])
    assert np.abs(before[~own] - after[~own]).max() > 0.1
