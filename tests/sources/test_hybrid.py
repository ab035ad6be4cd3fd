"""A world and its log: what does not fit is said in one line before anything is learned."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peira.environments.lock import LockVector
from peira.experience.episode import to_arrow
from peira.sources.hybrid import open_log, open_world


def world(env, **options):
    return open_world(env, 0, num_envs=4, codes_seed=0, anti_reward="on_fall", **options)


def written(folder, action, observation_size=3, steps=3):
    """Two episodes, in which every action is `action`."""
    rows = 2 * steps
    ended = np.arange(1, rows + 1) % steps == 0
    observation = np.zeros((rows, observation_size), np.float32)
    table = pa.table(
        {
            "episode_id": [str(row // steps) for row in range(rows)],
            "step": pa.array(np.arange(rows) % steps, pa.int32()),
            "observation": to_arrow(observation)[0],
            "action": to_arrow(np.full((rows, 1), action, np.float32))[0],
            "reward": pa.array(np.zeros(rows), pa.float32()),
            "terminated": ended,
            "truncated": np.zeros(rows, bool),
            "source": pa.array(["logged"] * rows).dictionary_encode(),
            "created_at": pa.array([0] * rows, pa.timestamp("us", tz="UTC")),
        }
    )
    path = folder / "log.parquet"
    pq.write_table(table, path)
    return str(path)


def opened(name, env):
    return open_log(name, env, world(env), trajectories=10, seed=0)


def test_a_lock_holds_as_many_episodes_as_fit_in_a_batch():
    vector = world("lock-h5", episodes_of=1004)
    assert isinstance(vector, LockVector)
    assert vector.num_envs == 200
    assert world("lock-h5").num_envs == 4
    assert world("Pendulum-v1").observation_size == 3
    with pytest.raises(ValueError, match="batch_steps: an episode of lock-h5 has 5 steps, got 4"):
        world("lock-h5", episodes_of=4)


def test_logs_come_from_the_lock_or_from_a_path(tmp_path):
    assert opened("mixed", "lock-h5").rows == 50
    assert opened(written(tmp_path, 0.5), "Pendulum-v1").rows == 6


def test_a_log_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="log: 'mixed' is a lock's; for Pendulum-v1 name the path"):
        opened("mixed", "Pendulum-v1")
    with pytest.raises(ValueError, match="log: the actions of CartPole-v1 are numbers of choices"):
        opened("anything", "CartPole-v1")
    with pytest.raises(
        ValueError, match=r"log: action \[2.5\] is outside the bounds of Pendulum-v1, as are 100.0%"
    ):
        opened(written(tmp_path, 2.5), "Pendulum-v1")
    with pytest.raises(ValueError, match="log: a row's observation has 4 numbers, got by Pendulum-v1 are 3"):
        opened(written(tmp_path, 0.5, observation_size=4), "Pendulum-v1")
    with pytest.raises(ValueError, match=r"log: .*no/such/log"):
        opened("no/such/log", "Pendulum-v1")
