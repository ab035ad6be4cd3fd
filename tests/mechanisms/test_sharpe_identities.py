"""What must be equal is equal: equal policies, empty models, ends of blends and windows, one step and the bandit (M2).

The logs are random, ragged and small, so nothing is equal by chance; one wrong index breaks several of these.
"""

import numpy as np
import pytest

from peira.evaluation.off_policy import bandit, marginal, sequential
from peira.evaluation.off_policy.distribution import sntis_distribution, tis_distribution
from peira.evaluation.off_policy.magic import magic
from peira.evaluation.off_policy.weights import Block, cumulative_log_weights

EPISODES, STEPS, GAMMA = 30, 6, 0.95


@pytest.fixture
def log():
    rng = np.random.default_rng(3)
    length = rng.integers(1, STEPS + 1, EPISODES)
    length[0] = STEPS
    alive = np.arange(STEPS) < length[:, None]
    reward, log_ratio, q, v = (np.where(alive, rng.normal(0, 0.6, alive.shape), 0.0) for _ in range(4))
    return Block(reward, log_ratio, length), q, v


def same(one, other):
    """Both estimate the same, episode by episode."""
    assert one.value() == pytest.approx(other.value(), abs=1e-12)
    np.testing.assert_allclose(one.influence(), other.influence(), atol=1e-11)


def test_equal_policies_give_the_on_policy_mean(log):
    block, _, _ = log
    equal = Block(block.reward, np.zeros_like(block.log_ratio), block.length)
    ones = block.alive.astype(float)
    for estimator in (sequential.tis, sequential.wis, sequential.pdis, sequential.wpdis):
        same(estimator(equal, GAMMA), sequential.on_policy(block, GAMMA))
    for estimator in (marginal.sam_is, marginal.sm_is, marginal.sam_snis, marginal.sm_snis):
        same(estimator(equal, ones, GAMMA), sequential.on_policy(block, GAMMA))
    for estimator in (marginal.sam_sope, marginal.sm_sope):
        same(estimator(equal, ones, GAMMA, window=2), sequential.on_policy(block, GAMMA))
    returns = sequential.returns(block, GAMMA)
    for estimator in (tis_distribution, sntis_distribution):
        assert estimator(returns, np.zeros(EPISODES)).mean() == pytest.approx(returns.mean(), abs=1e-12)


def test_without_a_model_doubly_robust_is_weighting(log):
    block, _, _ = log
    zero, ratio = np.zeros_like(block.reward), np.exp(0.3 * block.log_ratio) * block.alive
    same(sequential.dr(block, zero, zero, GAMMA), sequential.pdis(block, GAMMA))
    same(sequential.wdr(block, zero, zero, GAMMA), sequential.wpdis(block, GAMMA))
    same(marginal.sam_dr(block, ratio, zero, zero, GAMMA), marginal.sam_is(block, ratio, GAMMA))
    same(marginal.sm_dr(block, ratio, zero, zero, GAMMA), marginal.sm_is(block, ratio, GAMMA))
    same(marginal.drl(block, ratio, zero, zero, GAMMA), marginal.sam_is(block, ratio, GAMMA))
    same(marginal.sm_sndr(block, ratio, zero, zero, GAMMA), marginal.sm_snis(block, ratio, GAMMA))


def test_drl_is_the_marginal_doubly_robust_estimator(log):
    block, q, v = log
    ratio = np.exp(0.3 * block.log_ratio) * block.alive
    same(marginal.drl(block, ratio, q, v, GAMMA), marginal.sam_dr(block, ratio, q, v, GAMMA))


def test_cumulative_weights_as_marginal_ratio_are_dr(log):
    block, q, v = log
    ratio = np.exp(cumulative_log_weights(block)) * block.alive
    same(marginal.sam_is(block, ratio, GAMMA), sequential.pdis(block, GAMMA))
    same(marginal.sam_snis(block, ratio, GAMMA), sequential.wpdis(block, GAMMA))
    same(marginal.sam_dr(block, ratio, q, v, GAMMA), sequential.dr(block, q, v, GAMMA))
    same(marginal.sam_sndr(block, ratio, q, v, GAMMA), sequential.wdr(block, q, v, GAMMA))


def test_sope_runs_from_the_marginal_estimator_to_pdis(log):
    block, _, _ = log
    ratio = np.exp(0.3 * block.log_ratio) * block.alive
    same(marginal.sam_sope(block, ratio, GAMMA, window=0), marginal.sam_is(block, ratio, GAMMA))
    same(marginal.sm_sope(block, ratio, GAMMA, window=0), marginal.sm_is(block, ratio, GAMMA))
    for window in (STEPS, STEPS + 3):
        same(marginal.sam_sope(block, ratio, GAMMA, window=window), sequential.pdis(block, GAMMA))
        same(marginal.sm_sope(block, ratio, GAMMA, window=window), sequential.pdis(block, GAMMA))
    # The last step of the longest window but one still begins with a marginal ratio.
    inner = marginal.sm_sope(block, ratio, GAMMA, window=STEPS - 1)
    assert abs(inner.value() - sequential.pdis(block, GAMMA).value()) > 1e-6


def test_switch_runs_from_the_direct_method_to_dr(log):
    block, q, v = log
    same(sequential.switch(block, q, v, GAMMA, threshold=0.0), sequential.dm(v))
    same(sequential.switch(block, q, v, GAMMA, threshold=np.inf), sequential.dr(block, q, v, GAMMA))


def test_magic_runs_from_the_direct_method_to_wdr(log):
    block, q, v = log
    wdr = sequential.wdr(block, q, v, GAMMA)
    blend = magic(wdr, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(blend.last_step, np.arange(-1, STEPS))
    assert blend.member[0] == pytest.approx(sequential.dm(v).value(), abs=1e-13)
    assert blend.member[-1] == pytest.approx(wdr.value(), abs=1e-13)
    assert blend.terms.value() == pytest.approx(blend.share @ blend.member, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.7, 1.0, 2.0])
def test_one_step_is_the_bandit(log, threshold):
    block, q, v = log
    one = Block(block.reward[:, :1], block.log_ratio[:, :1], np.ones(EPISODES, dtype=int))
    q, v, reward = q[:, :1], v[:, :1], block.reward[:, 0]
    ratio, q_logged, q_target = np.exp(one.log_ratio[:, 0]), q[:, 0], v[:, 0]
    for estimator in (sequential.tis, sequential.pdis):
        same(estimator(one, GAMMA), bandit.ipw(ratio, reward))
    for estimator in (sequential.wis, sequential.wpdis):
        same(estimator(one, GAMMA), bandit.snipw(ratio, reward))
    same(sequential.dm(v), bandit.dm(q_target))
    same(sequential.dr(one, q, v, GAMMA), bandit.dr(ratio, reward, q_logged, q_target))
    same(sequential.wdr(one, q, v, GAMMA), bandit.sndr(ratio, reward, q_logged, q_target))
    same(
        sequential.switch(one, q, v, GAMMA, threshold=threshold),
        bandit.switch_dr(ratio, reward, q_logged, q_target, threshold=threshold),
    )
