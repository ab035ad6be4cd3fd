"""An evaluation counts one whole episode of each environment, and changes nothing."""

import gymnasium
import numpy as np
import pytest
import torch

from peira.evaluation.episodes import Evaluation, evaluate
from peira.policies.actor_critic import CategoricalActorCritic
from peira.policies.files import policy_hash


def two_step_policy(first, second):
    """Chooses action 0 with these probabilities in the states 0 and 1 of TwoStep."""
    policy = CategoricalActorCritic(7, 2, hidden=(), bias=False, normalise=False)
    with torch.no_grad():
        policy.actor_head.weight.zero_()
        for state, probability in [(0, first), (1, second)]:
            policy.actor_head.weight[0, state] = torch.logit(torch.tensor(probability))
    return policy


class Ladder(gymnasium.Env):
    """The k-th copy made ends after k steps, by its rules or (even k) by the clock; every step pays 1."""

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)
    observation_space = gymnasium.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    made = 0

    def __init__(self):
        Ladder.made += 1
        self.length, self.steps = Ladder.made, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        ended = self.steps == self.length
        by_clock = self.length % 2 == 0
        return np.array([self.steps], np.float32), 1.0, ended and not by_clock, ended and by_clock, {}


@pytest.fixture
def ladder():
    gymnasium.register("peira-tests/Ladder-v0", entry_point=Ladder)
    Ladder.made = 0
    yield "peira-tests/Ladder-v0"
    del gymnasium.registry["peira-tests/Ladder-v0"]


def test_every_environment_gives_one_episode_however_long(ladder):
    policy = CategoricalActorCritic(1, 2, hidden=(4,))
    evaluation = evaluate(policy, ladder, 5, seed=0)
    lengths = np.arange(evaluation.lengths[0], evaluation.lengths[0] + 5)
    np.testing.assert_array_equal(evaluation.lengths, lengths)
    np.testing.assert_array_equal(evaluation.returns, lengths)
    assert evaluation.steps == lengths.sum()


@pytest.mark.parametrize("first,second,expected", [(0.9, 0.9, 2.0), (0.9, 0.1, 0.5), (0.1, 0.9, 1.0)])
def test_deterministic_evaluation_takes_the_likeliest_actions(first, second, expected):
    evaluation = evaluate(two_step_policy(first, second), "peira/TwoStep-v0", 4, seed=0)
    assert evaluation.returns.tolist() == [expected] * 4
    assert evaluation.lengths.tolist() == [2] * 4
    assert evaluation.steps == 8


def test_sampled_evaluation_has_the_return_of_the_stochastic_policy():
    policy = two_step_policy(0.6, 0.3)
    evaluation = evaluate(policy, "peira/TwoStep-v0", 400, seed=0, deterministic=False)
    expected = 0.6 * (0.3 * 2 + 0.7 * 0.5) + 0.4 * 1
    assert evaluation.mean == pytest.approx(expected, abs=4 * 0.6 / 20)
    assert set(evaluation.returns) == {0.5, 1.0, 2.0}


def test_the_same_seed_gives_the_same_episodes_and_nothing_is_learned():
    policy = CategoricalActorCritic(4, 2, hidden=(8,), generator=torch.Generator().manual_seed(0))
    before = policy_hash(policy)
    one, same = (evaluate(policy, "CartPole-v1", 6, seed=3, deterministic=False) for _ in range(2))
    np.testing.assert_array_equal(one.returns, same.returns)
    other = evaluate(policy, "CartPole-v1", 6, seed=1000, deterministic=False)
    assert not np.array_equal(one.returns, other.returns)
    assert policy_hash(policy) == before
    assert policy.version == 0


def test_interval_is_students_t_over_episodes():
    evaluation = Evaluation(np.array([1.0, 2.0, 3.0]), np.array([4, 5, 6]))
    # Standard error 1/√3, quantile 4.30265 at two degrees of freedom.
    assert evaluation.interval() == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    low, high = evaluation.interval(0.5)
    assert (low, high) == pytest.approx((2 - 0.81650 / 3**0.5, 2 + 0.81650 / 3**0.5), abs=1e-4)
    assert Evaluation(np.array([7.0]), np.array([3])).interval() is None
