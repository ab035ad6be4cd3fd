"""Two thousand steps: equal policies give the on-policy mean, unequal ones a number, never NaN (M7).

With p = 0.1 a step the probability of an episode is 10⁻²⁰⁰⁰. The easy imitation forms both products and divides them.
"""

import numpy as np
import pytest

from peira.evaluation.off_policy import marginal, sequential
from peira.evaluation.off_policy.distribution import sntis_distribution, tis_distribution
from peira.evaluation.off_policy.magic import magic
from peira.evaluation.off_policy.terms import total
from peira.evaluation.off_policy.weights import Block, cumulative_log_weights, effective_sample_size

EPISODES, STEPS, GAMMA = 50, 2_000, 0.999
RNG = np.random.default_rng(0)
REWARD, Q, V = (RNG.normal(1.0, 1.0, (EPISODES, STEPS)) for _ in range(3))
LENGTH = np.full(EPISODES, STEPS)


def estimates(block):
    zero = np.zeros_like(Q)
    ratio = np.exp(np.minimum(block.log_ratio, 300.0))
    return {
        "tis": sequential.tis(block, GAMMA),
        "wis": sequential.wis(block, GAMMA),
        "pdis": sequential.pdis(block, GAMMA),
        "wpdis": sequential.wpdis(block, GAMMA),
        "dr": sequential.dr(block, zero, zero, GAMMA),
        "wdr": sequential.wdr(block, zero, zero, GAMMA),
        "switch": sequential.switch(block, zero, zero, GAMMA, threshold=np.inf),
        "sam_is": marginal.sam_is(block, ratio, GAMMA),
        "sam_snis": marginal.sam_snis(block, ratio, GAMMA),
        "sope": marginal.sam_sope(block, ratio, GAMMA, window=STEPS),
    }


def test_equal_policies():
    probability = np.full((EPISODES, STEPS), 0.1)
    block = Block(REWARD, np.log(probability) - np.log(probability), LENGTH)
    on_policy = (REWARD @ GAMMA ** np.arange(STEPS)).mean()
    for name, terms in estimates(block).items():
        assert terms.value() == pytest.approx(on_policy, rel=1e-12), name
    np.testing.assert_allclose(effective_sample_size(cumulative_log_weights(block)), EPISODES)

    with np.errstate(invalid="ignore"):
        naive = np.prod(probability, axis=1) / np.prod(probability, axis=1)
    assert np.isnan(naive).all()


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("drift", [-2.0, 0.0, 2.0])
def test_unequal_policies_never_give_nan(spread, drift):
    log_ratio = np.random.default_rng(1).normal(drift, spread, (EPISODES, STEPS))
    log_ratio[3, 700] = -np.inf
    block = Block(REWARD, log_ratio, LENGTH)
    for name, terms in estimates(block).items():
        assert np.isfinite(terms.value()), name
        assert np.isfinite(terms.standard_error()), name
    blend = magic(sequential.wdr(block, Q, V, GAMMA), rng=np.random.default_rng(0))
    assert np.isfinite(blend.terms.value())
    assert np.isfinite(blend.terms.standard_error())
    log_weight = cumulative_log_weights(block)
    assert np.isfinite(effective_sample_size(log_weight)).all()
    returns = sequential.returns(block, GAMMA)
    assert np.isfinite(sntis_distribution(returns, log_weight[:, -1]).cvar(0.1))
    assert np.isfinite(tis_distribution(returns, log_weight[:, -1]).mean())


def test_self_normalised_estimates_stay_within_the_rewards():
    """Whatever the weights: a weighted mean of rewards at every step."""
    block = Block(REWARD, np.random.default_rng(2).normal(0, 3, (EPISODES, STEPS)), LENGTH)
    discount = GAMMA ** np.arange(STEPS)
    value = sequential.wpdis(block, GAMMA).value()
    assert REWARD.min(axis=0) @ discount < value < REWARD.max(axis=0) @ discount


def test_blocks_agree_where_weights_have_left_the_range_of_floats():
    rng = np.random.default_rng(4)
    length = np.sort(rng.integers(1, STEPS + 1, EPISODES))
    length[-1] = STEPS
    alive = np.arange(STEPS) < length[:, None]
    log_ratio = np.where(alive, rng.normal(0, 50, alive.shape), 0.0)
    assert np.abs(log_ratio.cumsum(axis=1)).max() > 1_000
    whole = sequential.wpdis(Block(REWARD * alive, log_ratio, length), GAMMA)
    blocks = []
    for rows in np.split(np.arange(EPISODES), 5):
        width = length[rows].max()
        narrow = Block((REWARD * alive)[rows, :width], log_ratio[rows, :width], length[rows])
        blocks.append(sequential.wpdis(narrow, GAMMA))
    assert total(blocks).value == pytest.approx(whole.value(), rel=1e-10)
    assert total(blocks).standard_error == pytest.approx(whole.standard_error(), rel=1e-10)
