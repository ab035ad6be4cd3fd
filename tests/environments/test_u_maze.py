import gymnasium
import numpy as np
import pytest

from peira.environments.control import make_control
from peira.environments.u_maze import (
    GOAL,
    HORIZON,
    ID,
    START,
    free_points,
    in_wall,
    starts,
    steer,
    step_u_maze,
    u_maze_log,
)
from peira.experience.schema import validate
from peira.experience.transitions import from_table


def at(*position: float, velocity=(0.0, 0.0)) -> np.ndarray:
    return np.array([[*position, *velocity]])


def test_walls_are_where_the_drawing_has_them():
    free = np.array([(0.5, 0.5), (0.5, 2.5), (2.5, 1.5), (2.5, 0.5)])
    walls = np.array([(0.5, 1.5), (1.9, 1.5), (-0.1, 0.5), (3.1, 1.0)])
    assert not in_wall(free).any()
    assert in_wall(walls).all()


def test_a_step_by_hand():
    state, reward = step_u_maze(at(1.0, 0.5, velocity=(0.2, 0.0)), np.array([[1.0, -7.0]]))
    # ẋ = 0.9·0.2 + 0.1, x = 1 + 0.5·0.28; the force downwards is cut to −1.
    np.testing.assert_allclose(state, [[1.14, 0.45, 0.28, -0.1]])
    assert reward.tolist() == [0.0]


def test_a_wall_stops_one_coordinate_and_lets_the_other_slide():
    state, _ = step_u_maze(at(1.0, 0.95, velocity=(0.5, 1.0)), np.zeros((1, 2)))
    np.testing.assert_allclose(state, [[1.225, 0.95, 0.45, 0.0]])


def test_no_walker_ever_enters_a_wall():
    rng = np.random.default_rng(0)
    state = np.concatenate([free_points(500, rng), np.zeros((500, 2))], 1)
    assert not in_wall(state[:, :2]).any()
    heading = rng.uniform(-1, 1, (500, 2))
    for _ in range(100):
        state, _ = step_u_maze(state, np.sign(heading) * rng.random((500, 2)))
        assert not in_wall(state[:, :2]).any()
        heading = np.where(rng.random((500, 1)) < 0.1, rng.uniform(-1, 1, (500, 2)), heading)


def test_the_wandering_rule_finds_every_goal():
    rng = np.random.default_rng(0)
    goal = free_points(300, rng)
    state = np.concatenate([free_points(300, rng), np.zeros((300, 2))], 1)
    nearest = np.full(300, np.inf)
    for _ in range(HORIZON):
        state, _ = step_u_maze(state, steer(state, goal))
        nearest = np.minimum(nearest, np.linalg.norm(state[:, :2] - goal, axis=1))
    assert nearest.max() < 0.3
    state, paid = starts(20, rng), np.zeros(20)
    for _ in range(HORIZON):
        state, reward = step_u_maze(state, steer(state, np.tile(GOAL, (20, 1))))
        paid += reward
    assert paid.min() > 100


def test_gymnasium_and_the_vectorised_rule_agree():
    env = gymnasium.make(ID)
    seen, _ = env.reset(seed=3)
    assert np.abs(seen[:2] - START).max() <= 0.1
    state, rng = env.unwrapped._state, np.random.default_rng(0)
    for step in range(HORIZON):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        state, reward = step_u_maze(state, action[None].astype(np.float64))
        seen, paid, terminated, truncated, _ = env.step(action)
        np.testing.assert_array_equal(seen, state[0].astype(np.float32))
        assert (paid, terminated, truncated) == (reward[0], False, step == HORIZON - 1)


def test_control_makes_it_by_its_name():
    env = make_control(ID, 2, 0)
    assert (env.observation_size, env.action_size, env.discrete) == (4, 2, False)
    env.close()


def test_the_log_is_legal_and_passes_the_door_both_ways():
    table = u_maze_log(20, np.random.default_rng(0), run_id="test")
    validate(table)
    log = from_table(table)
    assert (log.rows, log.episodes) == (20 * HORIZON, 20)
    assert log.action.abs().max() <= 1
    height = log.observation[:, 1].reshape(20, HORIZON).numpy()
    ups, downs = (
        ((height[:, :-40] < 1) & (height[:, 40:] > 2)),
        ((height[:, :-40] > 2) & (height[:, 40:] < 1)),
    )
    assert ups.any() and downs.any()
    following, reward = step_u_maze(log.observation.numpy().astype(float), log.action.numpy().astype(float))
    np.testing.assert_allclose(log.next_observation, following, atol=1e-5)
    assert reward.sum() == pytest.approx(log.reward.sum().item(), abs=2)
    assert np.isfinite(table["behaviour_log_prob"].to_numpy()).all()
