import minari
import numpy as np
import pyarrow as pa
import pytest
import torch
from episodes_for_tests import START, make_episode
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer

from peira.experience.episode import Episode, episodes_to_table
from peira.experience.exchange import export
from peira.experience.store import Store
from peira.experience.transitions import concatenate, from_table, read_transitions


def cut_episode(number: int, length: int, **columns) -> Episode:
    """An episode that a clock ended, with what its last step led to."""
    base = make_episode(number, length=length)
    final = np.ma.MaskedArray(np.full((length, 5), 7.0 + number, np.float32), mask=np.ones((length, 5), bool))
    final.mask[-1] = False
    clock = {"terminated": np.zeros(length, bool), "truncated": np.arange(length) == length - 1}
    columns = {**base.columns, **clock, "final_observation": final, **columns}
    return Episode(id=base.id, columns={n: v for n, v in columns.items() if v is not None}, created_at=START)


def changed(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


@pytest.fixture
def table() -> pa.Table:
    return episodes_to_table([make_episode(0, length=4), cut_episode(1, 3)])


def test_next_observations_stop_at_the_end_of_an_episode(table):
    log = from_table(table)
    assert (log.rows, log.episodes, log.observation_size, log.action_size) == (7, 2, 5, 2)
    assert log.first.tolist() == [0, 4, 7]
    assert log.episode_of().tolist() == [0, 0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(log.next_observation[[0, 1, 2, 4, 5]], log.observation[[1, 2, 3, 5, 6]])
    assert log.next_observation[6].tolist() == [8.0] * 5
    assert torch.equal(log.next_observation[3], log.observation[3])  # Nothing of the next episode leaks.
    assert log.terminated.tolist() == [False, False, False, True, False, False, False]
    assert log.truncated.tolist() == [False] * 6 + [True]
    reward = table["reward"].to_numpy()
    np.testing.assert_allclose(log.returns(), [reward[:4].sum(), reward[4:].sum()], rtol=1e-6)


@pytest.mark.parametrize("target", ["log.parquet", "log.jsonl", "log-v0"])
def test_every_format_gives_the_same_transitions(tmp_path, table, target):
    store = Store.open(tmp_path / "run", mode="a")
    store.append(table)
    export(store, tmp_path / target, "minari" if target == "log-v0" else None)
    direct = from_table(table)
    for path in (tmp_path / "run", tmp_path / "run" / "experience.lance", tmp_path / target):
        log = read_transitions(path)
        for name in ("observation", "action", "reward", "terminated", "truncated", "first"):
            torch.testing.assert_close(getattr(log, name), getattr(direct, name), rtol=0, atol=0)
        alive = ~direct.terminated
        torch.testing.assert_close(log.next_observation[alive], direct.next_observation[alive])


def test_a_minari_data_set_of_somebody_else_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=rng.normal(size=(7, 3)).astype(np.float32),
            actions=rng.normal(size=(6, 1)).astype(np.float32),
            rewards=rng.normal(size=6),
            terminations=np.zeros(6, bool),
            truncations=np.arange(6) == 5,
        )
        for number in range(2)
    ]
    spaces = {"observation_space": Box(-9, 9, (3,)), "action_space": Box(-9, 9, (1,))}
    minari.create_dataset_from_buffers("somebody/walks-v0", buffers, **spaces)
    log = read_transitions(tmp_path / "somebody" / "walks-v0")
    assert (log.rows, log.episodes, log.observation_size, log.action_size) == (12, 2, 3, 1)
    assert log.truncated.nonzero().flatten().tolist() == [5, 11]
    assert not log.terminated.any()
    np.testing.assert_array_equal(log.next_observation[:6], buffers[0].observations[1:])


def test_structured_observations_are_laid_side_by_side_in_alphabetical_order():
    base = make_episode(0, length=3)
    goal = np.arange(6, dtype=np.float32).reshape(3, 2)
    parts = {"state": np.full((3, 1), 9, np.float32), "goal": goal}
    episode = Episode(id=base.id, columns={**base.columns, "observation": parts}, created_at=START)
    log = from_table(episodes_to_table([episode]))
    assert log.observation.tolist() == [[0, 1, 9], [2, 3, 9], [4, 5, 9]]


def test_episodes_can_be_chosen_and_joined(table):
    log = from_table(table)
    turned = log.of_episodes(torch.tensor([1, 0]))
    assert turned.first.tolist() == [0, 3, 7]
    torch.testing.assert_close(turned.action, torch.cat([log.action[4:], log.action[:4]]))
    again = concatenate([turned.of_episodes(torch.tensor([1])), turned.of_episodes(torch.tensor([0]))])
    assert again.first.tolist() == log.first.tolist()
    torch.testing.assert_close(again.next_observation, log.next_observation)


def test_episodes_whose_world_failed_are_left_out(table):
    bad = cut_episode(2, 3, error=[None, None, "boom"], final_observation=None)
    columns = {**bad.columns, "truncated": np.zeros(3, bool)}
    columns["reward"] = np.ma.MaskedArray(columns["reward"], mask=[False, False, True])
    failed = Episode(id=bad.id, columns=columns, created_at=START)
    both = pa.concat_tables([table, episodes_to_table([failed])], promote_options="default")
    log = from_table(both)
    assert (log.episodes, log.left_out) == (2, 1)
    with pytest.raises(ValueError, match="error: the world of all 1 episodes failed"):
        from_table(episodes_to_table([failed]))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.arange(3), "action: expected vectors of floating-point numbers, got int64"),
        (["left", "right", "left"], "action: expected vectors of floating-point numbers, got string"),
        (
            np.ones((3, 2), np.int64),
            "action: expected vectors of floating-point numbers, got fixed_size_list",
        ),
    ],
)
def test_discrete_actions_are_refused(action, message):
    with pytest.raises(ValueError, match=message):
        from_table(episodes_to_table([cut_episode(0, 3, action=action)]))


def test_a_truncated_episode_needs_what_its_last_step_led_to():
    with pytest.raises(
        ValueError, match=r"final_observation: episode .* was truncated .*\(1 of 1 episodes\)"
    ):
        from_table(episodes_to_table([cut_episode(0, 3, final_observation=None)]))


@pytest.mark.parametrize("name", ["observation", "reward", "action"])
def test_numbers_that_are_not_finite_are_named(name):
    values = np.array(make_episode(0, length=3).columns[name])
    values[1] = np.nan
    with pytest.raises(
        ValueError, match=f"{name}: expected finite numbers, got .* step 1; find their source"
    ):
        from_table(episodes_to_table([cut_episode(0, 3, **{name: values})]))


def test_bad_logs_are_refused(tmp_path, table):
    with pytest.raises(ValueError, match="does not exist"):
        read_transitions(tmp_path / "nothing")
    with pytest.raises(ValueError, match="there is no store"):
        read_transitions(tmp_path / "nothing.lance")
    with pytest.raises(ValueError, match="reward: the log has no such column"):
        from_table(table.drop_columns(["reward"]))
    with pytest.raises(ValueError, match="observation: expected vectors of numbers, got string"):
        from_table(changed(table, "observation", pa.array(["a"] * 7)))
    with pytest.raises(ValueError, match="reward: 1 of 7 rows are null"):
        from_table(changed(table, "reward", pa.array([None, *[1.0] * 6], pa.float32())))
    with pytest.raises(ValueError, match="holds no step"):
        from_table(table.slice(0, 0))
