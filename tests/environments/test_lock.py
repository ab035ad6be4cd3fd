"""The lock in its three forms: many episodes at once, one behind Gymnasium, and through images."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from peira.environments import digits_lock, lock
from peira.environments.digits_lock import make_lock, probe_accuracy
from peira.environments.lock import DEAD, CombinationLock, LockVector, lock_horizon


def rng(seed=0):
    return np.random.default_rng(seed)


def expert(vector):
    return vector.lock.expert(vector._state, vector._step)[0]


def test_episodes_begin_anew_after_the_last_step():
    vector = LockVector(CombinationLock.drawn(3, rng()), 50, seed=1)
    vector.reset()
    for step in range(6):
        assert vector._step == step % 3
        observation, reward, terminated, truncated, info = vector.step(expert(vector))
        ended = step % 3 == 2
        assert terminated.all() == ended
        assert terminated.any() == ended
        assert not truncated.any()
        assert bool(info) == ended
        assert (reward > 0.5).mean() == pytest.approx(float(ended), abs=0.05)
        if ended:
            assert info["_final_obs"].all()
            assert not np.allclose(info["final_obs"], observation)
    assert vector.good.tolist() == pytest.approx([1, 1, 1], abs=0.05)


def test_observations_say_state_and_step():
    one = CombinationLock.drawn(5, rng())
    state = np.array([0, 1, DEAD])
    seen = one.observe(state, 3, rng()) @ one._mixing / one.observation_size
    assert np.abs(seen[:, :3] - np.eye(3)).max() < 0.5
    assert np.abs(seen[:, 3:8] - np.eye(5)[3]).max() < 0.5
    # Noise is on the first H + 3 numbers; step H shows beyond them.
    np.testing.assert_allclose(seen[:, 8:], 0, atol=1e-5)
    last = one.observe(state, 5, rng()) @ one._mixing / one.observation_size
    np.testing.assert_allclose(last[:, 8], 1, atol=1e-5)
    assert one.observe(np.zeros(4000, int), 0, rng()).dtype == np.float32


def test_the_dead_stay_dead_and_unpaid():
    one = CombinationLock.drawn(4, rng())
    state, rewards = np.full(1000, DEAD), []
    for step in range(4):
        state, reward = one.step(state, step, rng(step).random((1000, 10)), rng(step))
        rewards.append(reward.sum())
    assert (state == DEAD).all()
    assert rewards == [0, 0, 0, 0]


def test_large_actions_overflow_nothing():
    latent = CombinationLock.drawn(4, rng()).latent_action(np.eye(10)[[2, 7]] * 1e6, rng())
    assert latent.tolist() == [2, 7]


def test_a_saved_lock_goes_on_bit_for_bit():
    vector = LockVector(CombinationLock.drawn(5, rng()), 8, seed=3)
    vector.reset()
    for _ in range(3):
        vector.step(expert(vector))
    state = vector.state_dict()
    again = LockVector(vector.lock, 8, seed=99)
    again.load_state_dict(state)
    for _ in range(6):
        action = rng(1).random((8, 10))
        for ours, theirs in zip(vector.step(action)[:3], again.step(action)[:3], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(vector.good, again.good)


def test_gymnasium_plays_it():
    env = gymnasium.make("peira/Lock-H5-v0")
    check_env(env.unwrapped, skip_render_check=True)
    one = env.unwrapped.lock
    returns = []
    for episode in range(50):
        env.reset(seed=episode)
        total, ended, step = 0.0, False, 0
        while not ended:
            action = one.expert(env.unwrapped._state, step)[0][0].astype(np.float32)
            _, reward, ended, truncated, _ = env.step(action)
            total, step = total + reward, step + 1
            assert not truncated
        assert step == 5
        returns.append(total)
    assert np.mean(returns) > 0.95
    with pytest.raises(RuntimeError, match="call reset"):
        env.unwrapped.step(np.zeros(10))
    other = gymnasium.make("peira/Lock-H5-v0", codes_seed=1).unwrapped.lock
    assert (other.codes != one.codes).any()


@pytest.mark.parametrize("kind", lock.LOG_KINDS)
def test_logs_hold_as_many_rows_of_each_step(kind):
    one = CombinationLock.drawn(4, rng())
    log = one.log(kind, 300, rng(2))
    assert log.steps == 4
    assert log.first.tolist() == [0, 300, 600, 900, 1200]
    assert log.terminated.view(4, 300)[-1].all()
    assert not log.terminated.view(4, 300)[:-1].any()
    assert log.action.min() >= 0
    assert log.action.max() <= 1
    again = one.log(kind, 300, rng(2))
    assert (log.observation == again.observation).all()


def test_what_is_no_lock_is_said():
    assert lock_horizon("Pendulum-v1") is None
    assert lock_horizon("lock-h12") == 12
    assert make_lock("Pendulum-v1", 0, "on_fall") is None
    for name in ("lock-h1", "lock-h0", "lock-h-3", "lock-h101", "lock-hfive", "digits-lock-h1"):
        with pytest.raises(ValueError, match=r"env: expected .*lock-hH with H from 2 to 100"):
            make_lock(name, 0, "on_fall")


# Through images --------------------------------------------------------------------------------------------------


def test_images_tell_step_and_state_but_not_always():
    pytest.importorskip("sklearn")
    train, test = probe_accuracy(make_lock("digits-lock-h10", 0, "on_fall"), 6000, rng())
    assert 0.7 < test < train < 0.95


def test_evaluation_shows_images_that_training_does_not():
    pytest.importorskip("sklearn")
    train, held_out = digits_lock._images()
    shown, kept = (np.concatenate(part) for part in (train, held_out))
    assert len(shown) + len(kept) == 1797
    assert len(shown) / 1797 == pytest.approx(0.7, abs=0.01)
    one = make_lock("digits-lock-h12", 0, "on_fall")
    state = np.zeros(2000, int)
    seen, unseen = one.observe(state, 11, rng()), one.unseen().observe(state, 11, rng())
    assert seen.shape == (2000, 64)
    assert seen.dtype == np.float32
    assert np.abs(seen - unseen).mean() > 0.1
    assert (one.unseen().codes == one.codes).all()
    # Ten steps apart the first image is of the same digit, and the third tells them apart.
    assert np.abs(one.observe(state, 1, rng()).mean(0) - seen.mean(0)).max() > 0.1
