"""The estimators against loops over single episodes that follow the formulas word by word."""

import numpy as np
import pytest

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.weights import Block

GAMMA = 0.9


@pytest.fixture
def log():
    """Ragged episodes with a value model whose V̂ has nothing to do with its Q̂."""
    rng = np.random.default_rng(1)
    length = np.array([4, 1, 3, 2, 4, 2])
    alive = np.arange(4) < length[:, None]
    log_ratio, reward, q, v = (np.where(alive, rng.normal(0, 0.7, alive.shape), 0.0) for _ in range(4))
    log_ratio[2, 1] = -np.inf
    return Block(reward, log_ratio, length), q, v


def episodes(log):
    """(rewards, ratios, q, v) of each episode, cut to its length."""
    block, q, v = log
    for i, steps in enumerate(block.length):
        yield block.reward[i, :steps], np.exp(block.log_ratio[i, :steps]), q[i, :steps], v[i, :steps]


def returned(reward):
    return sum(GAMMA**t * r for t, r in enumerate(reward))


def carried(ratio, t):
    """W_t, of the last step there is."""
    return np.prod(ratio[: t + 1])


def recursive_dr(episode):
    value = 0.0
    for r, w, q, v in reversed(list(zip(*episode, strict=True))):
        value = v + w * (r + GAMMA * value - q)
    return value


def switched(episode, threshold):
    reward, ratio, q, v = episode
    value, weight = 0.0, 1.0
    for t in range(len(reward)):
        if weight * ratio[t] > threshold:
            return value + GAMMA**t * weight * v[t]
        value += GAMMA**t * (weight * v[t] + weight * ratio[t] * (reward[t] - q[t]))
        weight *= ratio[t]
    return value


def test_means_of_one_number_an_episode(log):
    block, q, v = log
    for terms, expected in [
        (sequential.on_policy(block, GAMMA), lambda e: returned(e[0])),
        (sequential.tis(block, GAMMA), lambda e: np.prod(e[1]) * returned(e[0])),
        (
            sequential.pdis(block, GAMMA),
            lambda e: sum(GAMMA**t * carried(e[1], t) * r for t, r in enumerate(e[0])),
        ),
        (sequential.dm(v), lambda e: e[3][0]),
        (sequential.dr(block, q, v, GAMMA), recursive_dr),
        (sequential.switch(block, q, v, GAMMA, threshold=0.8), lambda e: switched(e, 0.8)),
    ]:
        np.testing.assert_allclose(terms.plain, [expected(episode) for episode in episodes(log)], atol=1e-14)
        assert terms.numerator.shape == (6, 0)


def test_the_threshold_of_switch_matters_here(log):
    assert (
        len({round(sequential.switch(*log, GAMMA, threshold=c).value(), 9) for c in (0.0, 0.8, 1.5, 1e9)})
        == 4
    )


def test_a_weight_of_just_the_threshold_is_kept(log):
    block, q, v = log
    equal = Block(block.reward, np.zeros_like(block.log_ratio), block.length)
    kept = sequential.switch(equal, q, v, GAMMA, threshold=1.0)
    np.testing.assert_array_equal(kept.plain, sequential.dr(equal, q, v, GAMMA).plain)
    assert abs(kept.value() - sequential.dm(v).value()) > 1e-3


def test_wis(log):
    weight = np.array([np.prod(ratio) for _, ratio, _, _ in episodes(log)])
    value = np.array([returned(reward) for reward, _, _, _ in episodes(log)])
    terms = sequential.wis(log[0], GAMMA)
    estimate = weight @ value / weight.sum()
    assert terms.value() == pytest.approx(estimate, abs=1e-14)
    np.testing.assert_allclose(terms.influence(), weight * (value - estimate) / weight.mean(), atol=1e-13)


def test_wpdis_normalises_over_all_episodes(log):
    expected = 0.0
    for t in range(4):
        weight = [carried(ratio, t) for _, ratio, _, _ in episodes(log)]
        reward = [r[t] if t < len(r) else 0.0 for r, _, _, _ in episodes(log)]
        expected += GAMMA**t * np.dot(weight, reward) / np.sum(weight)
    assert sequential.wpdis(log[0], GAMMA).value() == pytest.approx(expected, abs=1e-14)


def test_wdr_normalises_both_weights(log):
    block, q, v = log
    expected = v[:, 0].mean()
    for t in range(4):
        weight = np.array([carried(ratio, t) for _, ratio, _, _ in episodes(log)])
        share = weight / weight.sum()
        expected += GAMMA**t * share @ (block.reward[:, t] - q[:, t])
        if t < 3:
            expected += GAMMA ** (t + 1) * share @ v[:, t + 1]
    assert sequential.wdr(block, q, v, GAMMA).value() == pytest.approx(expected, abs=1e-14)


def test_the_next_value_is_that_of_the_next_step():
    v = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]])
    length = np.array([3, 2])
    np.testing.assert_array_equal(sequential.next_value(v, length), [[2.0, 3.0, 0.0], [5.0, 0.0, 0.0]])
    final = sequential.next_value(v, length, np.array([7.0, 8.0]))
    np.testing.assert_array_equal(final, [[2.0, 3.0, 7.0], [5.0, 8.0, 0.0]])
    np.testing.assert_array_equal(v[0], [1.0, 2.0, 3.0])


def test_rewards_and_values_after_the_end_count_nothing(log):
    """Padding by one more step changes no estimate."""
    block, q, v = log
    pad = np.zeros((6, 1))
    longer = Block(np.hstack([block.reward, pad]), np.hstack([block.log_ratio, pad]), block.length)
    for estimator in (sequential.tis, sequential.wis, sequential.pdis, sequential.wpdis):
        assert estimator(longer, GAMMA).value() == pytest.approx(estimator(block, GAMMA).value(), abs=1e-14)
    for estimator in (sequential.dr, sequential.wdr):
        padded = estimator(longer, np.hstack([q, pad]), np.hstack([v, pad]), GAMMA)
        assert padded.value() == pytest.approx(estimator(block, q, v, GAMMA).value(), abs=1e-14)
