"""A log held against the environment it is said to come from: what is refused, what is mended, what is said."""

from dataclasses import replace

import gymnasium
import numpy as np
import pyarrow as pa
import pytest
import torch
from gymnasium.spaces import Box

from peira.environments.pendulum_policies import pendulum_log
from peira.experience.store import Store
from peira.experience.transitions import from_table
from peira.sources.logged import mistaken_timeouts, read_log, time_limit, without_last_steps

PENDULUM = "Pendulum-v1"


class Boundless(gymnasium.Env):
    """Pendulum's spaces without bounds on the torque."""

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)
    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(-np.inf, np.inf, (1,), np.float32)


BOUNDLESS = "peira-tests/Boundless-v0"
if BOUNDLESS not in gymnasium.registry:
    gymnasium.register(BOUNDLESS, entry_point=Boundless)


def table_of(episodes: int = 2):
    return pendulum_log(episodes, np.random.default_rng(0), run_id="test")


def stored(tmp_path, table):
    Store.open(tmp_path / "log", mode="a").append(table)
    return tmp_path / "log"


def changed(table, name, values):
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(name), [values])


def with_actions(table, change):
    actions = np.stack(table["action"].to_pylist()).astype(np.float32)
    flat = pa.array(change(actions).reshape(-1))
    return changed(table, "action", pa.FixedSizeListArray.from_arrays(flat, 1))


def test_a_log_that_fits_comes_through_as_it_is(tmp_path):
    given = read_log(stored(tmp_path, table_of()), PENDULUM)
    assert (given.log.rows, given.log.episodes) == (400, 2)
    assert (given.low.tolist(), given.high.tolist(), given.remarks) == ([-2.0], [2.0], [])


def test_actions_outside_the_bounds_are_refused_or_clipped_when_told(tmp_path):
    def push(actions):
        actions[7] = 2.5
        actions[8] = 2.00005  # Rounded, not wrong.
        return actions

    path = stored(tmp_path, with_actions(table_of(), push))
    with pytest.raises(
        ValueError, match=r"action: 1 of 400 rows lie outside .* row 7: \[2.5\]; .* --clip-actions"
    ):
        read_log(path, PENDULUM)
    given = read_log(path, PENDULUM, clip_actions=True)
    assert given.log.action[7:9].tolist() == [[2.0], [2.0]]


def test_constant_channels_and_a_single_episode_are_remarked_on(tmp_path):
    path = stored(tmp_path, with_actions(table_of(1), lambda actions: np.full_like(actions, 0.5)))
    given = read_log(path, PENDULUM)
    assert given.remarks == [
        "action: the same in every row of the log in the places 0",
        "log: holds one episode; nothing can be said of how episodes differ",
    ]


def test_the_wrong_environment_is_named(tmp_path):
    path = stored(tmp_path, table_of())
    with pytest.raises(ValueError, match="observation: MountainCarContinuous-v0 has 2 numbers, the log 3"):
        read_log(path, "MountainCarContinuous-v0")
    with pytest.raises(ValueError, match="env: CartPole-v1 has 2 discrete actions"):
        read_log(path, "CartPole-v1")


def test_without_bounds_the_log_sets_them(tmp_path):
    given = read_log(stored(tmp_path, table_of()), BOUNDLESS)
    assert given.low.item() == given.log.action.min().item()
    assert given.remarks == [f"action: {BOUNDLESS} sets no bounds; the policy acts within those of the log"]


def test_where_nobody_sets_bounds_the_log_is_refused(tmp_path):
    path = stored(tmp_path, with_actions(table_of(), np.zeros_like))
    with pytest.raises(ValueError, match="sets no bounds, and the log has one value only in the places 0"):
        read_log(path, BOUNDLESS)


@pytest.fixture
def clocked(tmp_path):
    """A log whose clock was written down as an end."""
    table = table_of(3)
    ends = table["truncated"].to_numpy()
    table = changed(table, "terminated", pa.array(ends))
    table = changed(table, "truncated", pa.array(np.zeros_like(ends)))
    return stored(tmp_path, table.drop_columns(["final_observation"]))


def test_timeouts_mistaken_for_terminals_are_refused(clocked):
    message = "terminated: 3 of 3 episodes end as terminated at step 200, the time limit of Pendulum-v1"
    with pytest.raises(ValueError, match=message):
        read_log(clocked, PENDULUM)


def test_such_timeouts_are_mended_without_their_last_step(clocked):
    whole, given = from_table(table_of(3)), read_log(clocked, PENDULUM, timeouts="truncate")
    log = given.log
    assert log.first.tolist() == [0, 199, 398, 597]
    assert not log.terminated.any()
    assert log.truncated.nonzero().flatten().tolist() == [198, 397, 596]
    torch.testing.assert_close(log.next_observation[198], whole.observation[199])
    torch.testing.assert_close(log.observation[199], whole.observation[200])
    assert given.remarks[0].endswith("the time limit of Pendulum-v1; they were made truncations")


def test_such_timeouts_are_believed_when_told(clocked):
    assert read_log(clocked, PENDULUM, timeouts="keep").log.terminated.sum() == 3


def test_one_honest_end_in_the_last_step_stays():
    log = from_table(table_of(3))
    last = log.first[1:] - 1
    terminated, truncated = log.terminated.clone(), log.truncated.clone()
    terminated[last[0]], truncated[last[0]] = True, False
    log = replace(log, terminated=terminated, truncated=truncated)
    assert time_limit(PENDULUM) == 200
    assert len(mistaken_timeouts(log, 200)) == 0  # One of the three that reach the limit.
    terminated[last[1]], truncated[last[1]] = True, False
    log = replace(log, terminated=terminated, truncated=truncated)
    assert mistaken_timeouts(log, 200).tolist() == [0, 1]
    assert len(mistaken_timeouts(log, 1000)) == 0 and len(mistaken_timeouts(log, None)) == 0


def test_an_episode_of_one_step_vanishes_with_it():
    log = from_table(table_of(2))
    rows = torch.cat([torch.arange(0, 1), torch.arange(200, 203)])
    short = replace(log.take(rows), first=torch.tensor([0, 1, 4]))
    kept = without_last_steps(short, torch.tensor([0, 1]))
    assert kept.first.tolist() == [0, 2]
    torch.testing.assert_close(kept.observation, short.observation[1:3])
    assert kept.truncated.tolist() == [False, True]
