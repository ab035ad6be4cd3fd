"""The two-step problem: its four outcomes, and the checker of Gymnasium."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from peira.environments.two_step import COMMON_ACTION_LOGIT, TwoStep, step_two_step


def test_passes_gymnasiums_checker():
    check_env(gymnasium.make("peira/TwoStep-v0").unwrapped, skip_render_check=True)


@pytest.mark.parametrize(("first", "second", "total"), [(0, 0, 2.0), (0, 1, 0.5), (1, 0, 1.0), (1, 1, 1.0)])
def test_the_four_episodes(first, second, total):
    environment = TwoStep()
    observation, _ = environment.reset(seed=0)
    np.testing.assert_array_equal(observation, np.eye(7, dtype=np.float32)[0])
    observation, reward, terminated, truncated, _ = environment.step(first)
    assert (observation.argmax(), reward, terminated, truncated) == (1 + first, 0.0, False, False)
    observation, reward, terminated, truncated, _ = environment.step(second)
    assert (observation.argmax(), reward, terminated) == (2 * (1 + first) + 1 + second, total, True)
    assert not truncated


def test_many_walkers_at_once():
    state, reward, terminated = step_two_step(np.array([0, 1, 2]), np.array([1, 0, 1]))
    np.testing.assert_array_equal(state, [2, 3, 6])
    np.testing.assert_array_equal(reward, [0.0, 2.0, 1.0])
    np.testing.assert_array_equal(terminated, [False, True, True])


def test_the_good_action_starts_rare():
    assert 1 / (1 + np.exp(COMMON_ACTION_LOGIT)) == pytest.approx(0.0198, abs=5e-5)


def test_stepping_on_after_the_end_is_refused():
    environment = TwoStep()
    environment.reset()
    environment.step(0)
    environment.step(0)
    with pytest.raises(RuntimeError, match="the episode is over; call reset"):
        environment.step(0)
