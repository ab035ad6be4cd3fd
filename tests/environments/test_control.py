"""EnvPool and Gymnasium behave as one: same spaces, same rule at an episode's end, and exact resumption."""

import copy

import gymnasium
import numpy as np
import pytest
from envpool import make_gymnasium

from peira.environments.control import EnvironmentFault, EnvPoolControl, GymnasiumControl, make_control
from peira.runs.checkpoint import load_tree, save_tree


def envpool(id, num_envs, seed=0):
    return EnvPoolControl(id, num_envs, seed, threads=1)


def through_gymnasium(id, num_envs, seed=0):
    return GymnasiumControl(id, num_envs, seed)


BACKENDS = pytest.mark.parametrize("backend", [envpool, through_gymnasium])


def random_actions(env, steps, seed=0):
    """[steps, env, …], reaching beyond the bounds where there are any."""
    generator = np.random.default_rng(seed)
    if env.discrete:
        return generator.integers(env.action_size, size=(steps, env.num_envs))
    return generator.normal(0, 1, (steps, env.num_envs, env.action_size)).astype(np.float32)


def play(env, actions):
    """Everything that `step` returns, step by step, in a form that compares exactly."""
    played = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        played.append(copy.deepcopy([observation, reward, terminated, truncated, *info.values()]))
    return played


def assert_identical(one, other):
    assert len(one) == len(other)
    for mine, yours in zip(one, other, strict=True):
        for a, b in zip(mine, yours, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("id", ["HalfCheetah-v5", "Hopper-v5", "CartPole-v1", "Pendulum-v1"])
def test_spaces_agree(id):
    one, other = envpool(id, 2), through_gymnasium(id, 2)
    assert one.single_observation_space == other.single_observation_space
    assert one.single_action_space == other.single_action_space
    assert one.action_space == other.action_space
    assert (one.observation_size, one.action_size) == (other.observation_size, other.action_size)
    for env in (one, other):
        observation, _ = env.reset()
        assert env.observation_space.contains(observation)
        assert env.action_space.contains(env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert (observation.dtype, reward.dtype) == (np.float32, np.float32)
        assert (terminated.dtype, truncated.dtype) == (bool, bool)
        assert env.observation_space.contains(observation)
        env.close()


def test_each_environment_comes_from_the_faster_backend_that_has_it():
    assert isinstance(make_control("HalfCheetah-v5", 1, 0), EnvPoolControl)
    assert isinstance(make_control("peira/TwoStep-v0", 1, 0), GymnasiumControl)


@BACKENDS
def test_where_an_episode_ends_the_next_begins_and_its_true_end_is_handed_out(backend):
    env = backend("CartPole-v1", 8)
    env.reset()
    ended = 0
    before = env.observation.copy()
    for action in random_actions(env, 120):
        observation, reward, terminated, truncated, info = env.step(action)
        outside = np.zeros(8, bool)
        done = terminated | truncated
        if info:
            final = info["final_obs"]
            outside = (np.abs(final[:, 0]) > 2.4) | (np.abs(final[:, 2]) > 12 * np.pi / 180)
            np.testing.assert_array_equal(info["_final_obs"], done)
            assert (np.abs(observation[done]) <= 0.05).all()
            np.testing.assert_array_equal(observation[~done], final[~done])
            # The last position follows from the one before: x' = x + 0.02 v.
            np.testing.assert_allclose(final[:, 0], before[:, 0] + 0.02 * before[:, 1], atol=1e-5)
        np.testing.assert_array_equal(terminated, outside)
        np.testing.assert_array_equal(info.get("_final_obs", np.zeros(8, bool)), done)
        assert not truncated.any()
        assert (reward == 1).all()
        ended += done.sum()
        before = observation.copy()
    assert ended > 20


@BACKENDS
@pytest.mark.parametrize("id,limit", [("Pendulum-v1", 200), ("HalfCheetah-v5", 1000)])
def test_the_time_limit_truncates_and_does_not_terminate(backend, id, limit):
    env = backend(id, 2)
    env.reset()
    actions = np.zeros((2, env.action_size), np.float32)
    for step in range(1, limit + 2):
        observation, _, terminated, truncated, info = env.step(actions)
        assert not terminated.any()
        assert truncated.tolist() == [step == limit] * 2
        if step == limit:
            assert info["_final_obs"].all()
            assert (observation != info["final_obs"]).any(axis=1).all()


@BACKENDS
def test_actions_are_clipped_to_the_space_before_they_are_executed(backend):
    beyond, within = backend("Pendulum-v1", 2), backend("Pendulum-v1", 2)
    beyond.reset()
    within.reset()
    actions = np.array([[100.0], [-7.0]], np.float32)
    given = actions.copy()
    assert_identical(play(beyond, [actions] * 5), play(within, [actions.clip(-2, 2)] * 5))
    np.testing.assert_array_equal(actions, given)


@BACKENDS
def test_copies_differ_and_a_seed_gives_the_same_again(backend):
    env = backend("CartPole-v1", 3, seed=5)
    first, _ = env.reset()
    assert len(np.unique(first[:, 0])) == 3
    actions = random_actions(env, 60)
    played = play(env, actions)
    np.testing.assert_array_equal(env.reset()[0], first)
    assert_identical(play(env, actions), played)
    assert not np.array_equal(env.reset(seed=6)[0], first)
    other, _ = backend("CartPole-v1", 3, seed=6).reset()
    np.testing.assert_array_equal(env.reset(seed=6)[0], other)


STATEFUL = [
    (make_control, "Hopper-v5"),
    (make_control, "CartPole-v1"),
    (make_control, "peira/TwoStep-v0"),
    (make_control, "FrozenLake-v1"),
    (through_gymnasium, "Hopper-v5"),
    (through_gymnasium, "CartPole-v1"),
]


@pytest.mark.parametrize("backend,id", STATEFUL)
@pytest.mark.parametrize("steps", [0, 1, 73])
def test_a_saved_state_goes_on_bit_for_bit(backend, id, steps, tmp_path):
    env = backend(id, 3, seed=4)
    env.reset()
    actions = random_actions(env, steps + 60)
    play(env, actions[:steps])
    save_tree(env.state_dict(), tmp_path / "state")
    expected = play(env, actions[steps:])

    resumed = backend(id, 3, seed=0)
    resumed.load_state_dict(load_tree(tmp_path / "state"))
    again = resumed.state_dict()
    assert_identical(play(resumed, actions[steps:]), expected)

    twice = backend(id, 3, seed=0)
    twice.load_state_dict(again)
    assert_identical(play(twice, actions[steps:]), expected)


def test_a_state_holds_no_more_actions_than_the_running_episodes_need():
    env = make_control("peira/TwoStep-v0", 2, 0)
    env.reset()
    play(env, random_actions(env, 101))
    assert len(env.state_dict()["actions"]) == 1


def test_a_simulator_that_does_not_come_back_to_the_same_point_is_noticed():
    env = make_control("CartPole-v1", 2, 0)
    env.reset()
    play(env, random_actions(env, 9))
    state = env.state_dict()
    state["observation"][0, 0] += 1e-3
    with pytest.raises(RuntimeError, match="CartPole-v1 did not come back to the state it was saved in"):
        make_control("CartPole-v1", 2, 0).load_state_dict(state)


class Faulty(gymnasium.Env):
    """Ends every third step; returns a bad value at the fifth."""

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, field, bad):
        self.field, self.bad, self.steps = field, bad, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        bad = self.field == "first observation" and self.steps >= 3
        return np.array([self.bad if bad else 0, 0], np.float32), {}

    def step(self, action):
        self.steps += 1
        bad = self.steps == 5
        observation = np.array([0, self.bad if bad and self.field == "observation" else 0], np.float32)
        reward = self.bad if bad and self.field == "reward" else 1.0
        return observation, reward, self.steps % 3 == 0, False, {}


@pytest.fixture
def faulty():
    """Registers the environment under an id that is forgotten again."""
    gymnasium.register("peira-tests/Faulty-v0", entry_point=Faulty)

    def make(field, bad):
        gymnasium.registry["peira-tests/Faulty-v0"].kwargs = {"field": field, "bad": bad}
        env = make_control("peira-tests/Faulty-v0", 2, 0)
        env.reset()
        return env

    yield make
    del gymnasium.registry["peira-tests/Faulty-v0"]


@pytest.mark.parametrize("field", ["observation", "reward"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_no_number_stops_at_once_and_is_named(faulty, field, bad):
    env = faulty(field, bad)
    played = play(env, np.zeros((4, 2), np.int64))
    assert len(played) == 4
    expected = (
        rf"environment peira-tests/Faulty-v0 returned an? {field} that is not finite at step 4 of copy 0: "
        r".*; nothing was learned from it"
    )
    with pytest.raises(EnvironmentFault, match=expected):
        env.step(np.zeros(2, np.int64))


def test_a_first_observation_that_is_no_number_is_named(faulty):
    env = faulty("first observation", np.nan)
    play(env, np.zeros((2, 2), np.int64))
    with pytest.raises(EnvironmentFault, match="observation that is not finite at step 3"):
        env.step(np.zeros(2, np.int64))


@pytest.mark.parametrize(
    "id,message",
    [
        ("Hoper-v5", r"env: there is no environment 'Hoper-v5'; did you mean 'Hopper-v5'\?"),
        ("Qwertyuiop", r"env: there is no environment 'Qwertyuiop'"),
    ],
)
def test_an_environment_that_does_not_exist_is_named_with_the_nearest(id, message):
    with pytest.raises(ValueError, match=message):
        make_control(id, 1, 0)


class Unfit(gymnasium.Env):
    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


@pytest.mark.parametrize(
    "observation,action,message",
    [
        (
            gymnasium.spaces.Box(0, 1, (2,)),
            gymnasium.spaces.MultiDiscrete([2, 2]),
            "control policies act in Box",
        ),
        (gymnasium.spaces.Box(0, 1, (3, 3)), gymnasium.spaces.Discrete(2), r"arrays of shape \(3, 3\)"),
    ],
)
def test_spaces_that_control_policies_cannot_serve_are_refused(observation, action, message):
    options = {"observation_space": observation, "action_space": action}
    gymnasium.register("peira-tests/Unfit-v0", entry_point=Unfit, kwargs=options)
    try:
        with pytest.raises(ValueError, match=f"env: peira-tests/Unfit-v0 .*{message}"):
            make_control("peira-tests/Unfit-v0", 1, 0)
    finally:
        del gymnasium.registry["peira-tests/Unfit-v0"]


def test_no_environment_at_all_is_refused():
    with pytest.raises(ValueError, match="num_envs: expected at least 1, got 0"):
        make_control("CartPole-v1", 0, 0)


@pytest.mark.parametrize("id", ["Hopper-v5", "HalfCheetah-v5", "CartPole-v1", "MountainCarContinuous-v0"])
def test_envpool_is_stepped_as_its_own_step_would(id):
    env = make_control(id, 4, 5)
    env.reset()
    pool = make_gymnasium(id, num_envs=4, seed=5)
    pool.reset()
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(1100):  # Past every time limit.
        if env.discrete:
            action = rng.integers(0, env.action_size, 4)
        else:
            action = rng.uniform(-1, 1, (4, env.action_size)).astype(np.float32)
        _, reward, terminated, truncated, info = env.step(action)
        kind = pool.action_space.dtype
        observation, *theirs = pool.step(action.astype(kind))[:4]
        seen = info["final_obs"] if info else env.observation
        np.testing.assert_array_equal(seen, observation.astype(np.float32))
        for ours, expected in zip((reward, terminated, truncated), theirs, strict=True):
            np.testing.assert_array_equal(ours, expected.astype(ours.dtype))
        done = np.flatnonzero(terminated | truncated)
        ended += len(done)
        if len(done):
            pool.reset(done.astype(np.int32))
    assert ended >= 4
