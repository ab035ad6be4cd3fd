"""R1 in small: with the same steps, corrected sampling evaluates a gridworld policy far more accurately.

The full study, with the acceptance figures, is results/props/r1_gridworld.py. The bounds here leave room for
40 seeds. A step α that is too small, or a greedy rule that breaks ties the same way in every episode, fails.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

STUDY = Path(__file__).parents[2] / "results" / "props" / "r1_gridworld.py"
SEEDS, STEPS = 40, 951


@pytest.fixture(scope="module")
def study():
    specification = importlib.util.spec_from_file_location("r1_gridworld", STUDY)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_mean_squared_error_falls(study):
    errors = study.squared_errors(SEEDS, STEPS, seed=1)
    on_policy = errors[study.ON_POLICY].mean()
    assert errors["ROS α=1000"].mean() < 0.2 * on_policy
    assert errors[study.GREEDY].mean() < 0.1 * on_policy
    assert errors["ROS α=1000"].mean() < errors["ROS α=100"].mean() < 0.6 * on_policy
    assert errors["ROS α=10"].mean() > 0.4 * on_policy
    assert len(np.unique(errors[study.GREEDY])) > SEEDS / 4


def test_reweighted_value_by_hand(study):
    # Two one-step episodes in state 0 and an unfinished one; the shares of actions 0 and 1 are ½ and ½.
    policy = np.full((16, 4), 0.25)
    policy[0] = [0.6, 0.2, 0.1, 0.1]
    state, action = np.array([0, 0, 0]), np.array([0, 1, 1])
    reward, ended = np.array([1.0, 5.0, 100.0]), np.array([True, True, False])
    value = study.reweighted_value(policy, state, action, reward, ended)
    assert value == pytest.approx((1.2 * 1 + 0.4 * 5) / 1.6, rel=1e-12)
    assert study.monte_carlo_value(reward, ended) == 3.0
