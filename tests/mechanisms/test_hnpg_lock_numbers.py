"""The lock and its logs against the figures worked out for them in ``hnpg.md`` 2.5 and 8."""

import numpy as np
import pytest

from peira.environments.lock import CombinationLock, latent_probabilities

RIGHT = np.exp(10) / (np.exp(10) + 9)
EPISODES = 200_000


def drawn(horizon, anti_reward="on_fall", seed=0):
    return CombinationLock.drawn(horizon, np.random.default_rng(seed), anti_reward)


def played(lock, act, episodes=EPISODES):
    """Rewards [H, episodes]; `act(state, step, rng)` is told the latent state."""
    rng = np.random.default_rng(1)
    state, rewards = lock.start(episodes, rng), []
    for step in range(lock.horizon):
        state, reward = lock.step(state, step, act(state, step, rng), rng)
        rewards.append(reward)
    return np.stack(rewards)


def uniform(state, step, rng):
    return rng.random((len(state), 10))


def test_a_one_hot_action_is_almost_sure():
    probability = latent_probabilities(np.eye(10)[[3]])[0]
    assert probability[3] == pytest.approx(RIGHT, abs=1e-12)
    assert pytest.approx(0.999592, abs=5e-7) == RIGHT


@pytest.mark.parametrize("horizon", [5, 50])
def test_the_expert_opens_the_lock(horizon):
    lock = drawn(horizon)
    opened = (played(lock, lambda state, step, _: lock.expert(state, step)[0], 100_000)[-1] == 1).mean()
    assert opened == pytest.approx(RIGHT**horizon, abs=4 * np.sqrt(0.02 / 100_000))
    assert pytest.approx(0.998, abs=5e-4) == RIGHT**5
    assert pytest.approx(0.980, abs=5e-4) == RIGHT**50


@pytest.mark.parametrize(("horizon", "expected"), [(5, 0.370), (10, 0.388), (15, 0.393)])
def test_the_epsilon_greedy_log_succeeds_as_often_as_it_should(horizon, expected):
    log = drawn(horizon).log("eps", 50_000, np.random.default_rng(2))
    share = (log.reward[-50_000:] == 1).double().mean().item()
    epsilon = 1 / horizon
    assert ((1 - epsilon) * RIGHT + 0.1 * epsilon) ** horizon == pytest.approx(expected, abs=5e-4)
    assert share == pytest.approx(expected, abs=0.0075)


def test_the_other_logs_show_few_successes_and_none():
    lock = drawn(5)
    middle = lock.log("mid", 50_000, np.random.default_rng(3))
    assert (middle.reward[-50_000:] == 1).double().mean().item() == pytest.approx(0.045, abs=0.004)
    mixed = lock.log("mixed", 50_000, np.random.default_rng(3))
    # Every step starts from a good state, and a tenth of the uniform actions are right; but nothing leads on.
    assert (mixed.reward[-50_000:] == 1).double().mean().item() == pytest.approx(0.1, abs=0.006)
    assert not np.allclose(mixed.next_observation[:1000], mixed.observation[50_000:51_000])
    assert np.allclose(middle.next_observation[:1000], middle.observation[50_000:51_000])


@pytest.mark.parametrize(("horizon", "size"), [(5, 16), (10, 16), (15, 32), (30, 64), (50, 64)])
def test_observations_have_the_sizes_of_the_paper(horizon, size):
    assert drawn(horizon).observation_size == size


@pytest.mark.parametrize("act", [uniform, lambda state, step, rng: rng.standard_normal((len(state), 10))])
def test_acting_at_random_is_paid_the_same_under_both_rules_but_at_other_times(act):
    falls, ends = (played(drawn(5, rule), act) for rule in ("on_fall", "final_failure"))
    expected = 0.05 * (1 - 1e-5) + 1e-5
    assert expected == pytest.approx(0.05001, abs=1e-6)
    for rewards in (falls, ends):
        assert rewards.sum(0).mean() == pytest.approx(expected, abs=4 * 0.05 / np.sqrt(EPISODES))
    for step in range(5):
        paid = (falls[step] == 0.1).mean()
        due = 0.5 * 0.9 * 0.1**step
        assert paid == pytest.approx(due, abs=5 * np.sqrt(due / EPISODES))
    assert ends[:-1].max() == 0
    assert (ends[-1] == 0.1).mean() == pytest.approx(0.5, abs=0.006)


def test_without_a_lure_failing_pays_nothing():
    rewards = played(drawn(5, "none"), uniform)
    assert set(np.unique(rewards)) <= {0.0, 1.0}
