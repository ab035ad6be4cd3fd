"""The gridworld's tables, its Gymnasium face and its exact value, against values worked out by hand."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from peira.environments import gridworld
from peira.environments.gridworld import GridWorld, best_action, exact_value, step_gridworld

LEFT, RIGHT, DOWN, UP = range(4)


def test_passes_gymnasiums_checker():
    check_env(gymnasium.make("peira/GridWorld-v0").unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    ("cell", "action", "reached", "reward", "terminated"),
    [
        ((0, 0), LEFT, (0, 0), -1, False),
        ((0, 0), RIGHT, (1, 0), -1, False),
        ((1, 0), UP, (1, 1), -10, False),
        ((1, 1), RIGHT, (2, 1), -1, False),
        ((0, 3), RIGHT, (1, 3), 1, False),
        ((1, 3), UP, (1, 3), -1, False),
        ((2, 3), LEFT, (1, 3), 1, False),
        ((3, 2), UP, (3, 3), 10, True),
        ((2, 3), RIGHT, (3, 3), 10, True),
        ((3, 3), DOWN, (3, 3), 0, True),
    ],
)
def test_a_step(cell, action, reached, reward, terminated):
    state, got_reward, got_terminated = step_gridworld(np.array([4 * cell[0] + cell[1]]), np.array([action]))
    assert (state[0], got_reward[0], got_terminated[0]) == (4 * reached[0] + reached[1], reward, terminated)


def test_the_class_walks_as_the_function_does():
    generator = np.random.default_rng(0)
    environment = GridWorld()
    environment.reset()
    state = np.array([gridworld.START])
    for action in generator.integers(4, size=60):
        state, reward, terminated = step_gridworld(state, np.array([action]))
        observation, got_reward, got_terminated, truncated, _ = environment.step(action)
        assert observation.argmax() == state[0]
        assert observation.sum() == 1
        assert (got_reward, got_terminated, truncated) == (reward[0], terminated[0], False)
        if got_terminated:
            environment.reset()
            state = np.array([gridworld.START])


def test_the_time_limit_truncates_after_100_steps():
    environment = gymnasium.make("peira/GridWorld-v0")
    environment.reset(seed=0)
    for step in range(1, 101):
        _, _, terminated, truncated, _ = environment.step(LEFT)
        assert not terminated
        assert truncated == (step == 100)


def test_an_action_outside_the_four_is_refused():
    environment = GridWorld()
    environment.reset()
    with pytest.raises(ValueError, match=r"action must be in 0\.\.3, got -1"):
        environment.step(-1)


def test_the_best_path_is_worth_seven():
    # Six moves, through the bonus cell: four at −1, +1, +10.
    greedy = np.eye(4)[best_action()]
    assert exact_value(greedy)[gridworld.START] == 7.0


def test_exact_value_of_one_and_two_steps():
    uniform = np.full((16, 4), 0.25)
    assert exact_value(uniform, horizon=1)[4] == (-1 - 1 - 1 - 10) / 4
    # Two of the four moves from (0, 0) are bumps; the others lead beside the trap.
    expected = -1 + 0.5 * (2 * (-1) + 2 * (-13 / 4)) / 4
    assert exact_value(uniform, horizon=2, gamma=0.5)[gridworld.START] == pytest.approx(expected, abs=1e-12)


def test_exact_value_agrees_with_simulation():
    generator = np.random.default_rng(1)
    policy = np.full((16, 4), 0.1)
    policy[np.arange(16), best_action()] = 0.7
    state = np.zeros(20_000, dtype=np.int64)
    total = np.zeros(20_000)
    cumulative = policy.cumsum(axis=1)
    for _ in range(gridworld.HORIZON):
        action = (generator.random((20_000, 1)) > cumulative[state]).sum(axis=1).clip(max=3)
        state, reward, _ = step_gridworld(state, action)
        total += reward
    standard_error = total.std() / np.sqrt(total.size)
    assert abs(total.mean() - exact_value(policy)[gridworld.START]) < 4 * standard_error
