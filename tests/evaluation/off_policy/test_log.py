"""One log in every format is read to the same arrays, and what is wrong with it is said in one line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from peira.evaluation.off_policy import log as log_module
from peira.evaluation.off_policy import tables
from peira.evaluation.off_policy.log import Log, read_log
from peira.evaluation.off_policy.transitions import TERMINATED, TRUNCATED
from peira.experience import exchange
from peira.experience.episode import Episode, episodes_to_table
from peira.experience.store import Store

LENGTHS = [2, 3, 1]
IDS = ["b", "a", "c"]
"""Not in the order of the alphabet: the order of the log is kept."""


def steps(**changes) -> dict:
    """Columns of a log of three episodes: "b" terminates, "a" is cut, "c" terminates at once."""
    columns = {
        "episode_id": ["b", "b", "a", "a", "a", "c"],
        "step": [0, 1, 0, 1, 2, 0],
        "observation": [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0], [5.0, 6.0]],
        "action": [0, 1, 2, 1, 0, 1],
        "reward": [1.0, 0.5, -1.0, 2.0, 0.25, 3.0],
        "terminated": [False, True, False, False, False, True],
        "truncated": [False, False, False, False, True, False],
        "propensity": [0.5, 0.25, 0.125, 0.5, 0.25, 1.0],
        "final_observation": [None, None, None, None, [9.0, 8.0], None],
    }
    columns.update(changes)
    return {name: values for name, values in columns.items() if values is not None}


def shuffled(columns: dict, order: list[int]) -> dict:
    return {name: [values[row] for row in order] for name, values in columns.items()}


def jsonl(path: Path, columns: dict) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, columns: dict) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def assert_same(one: Log, other: Log) -> None:
    assert one.episode_id.to_pylist() == other.episode_id.to_pylist()
    assert one.actions == other.actions
    for name in (
        "offset",
        "action",
        "reward",
        "truncated",
        "log_propensity",
        "observation",
        "final_observation",
        "final_episode",
        "action_set",
        "behaviour_probs",
        "created_at",
    ):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def error_of(tmp_path: Path, columns: dict, **options) -> str:
    with pytest.raises(ValueError) as caught:
        read_log(parquet(tmp_path / "log.parquet", columns), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns_become_arrays(tmp_path):
    nowhere = pa.nulls(6)
    log = read_log(
        parquet(tmp_path / "log.parquet", steps(source=nowhere, error=nowhere, action_set=nowhere))
    )
    assert log.episode_id.to_pylist() == IDS
    assert log.action_set is None and log.left_out == 0
    assert (log.rows, log.episodes, log.actions, log.points) == (6, 3, 3, 7)
    np.testing.assert_array_equal(log.length, LENGTHS)
    np.testing.assert_array_equal(log.row_episode, [0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(log.step, [0, 1, 0, 1, 2, 0])
    np.testing.assert_array_equal(log.action, [0, 1, 2, 1, 0, 1])
    np.testing.assert_array_equal(log.reward, [1.0, 0.5, -1.0, 2.0, 0.25, 3.0])
    np.testing.assert_array_equal(log.truncated, [False, True, False])
    np.testing.assert_array_equal(log.terminated, [True, False, True])
    np.testing.assert_allclose(np.exp(log.log_propensity), [0.5, 0.25, 0.125, 0.5, 0.25, 1.0], rtol=1e-15)
    np.testing.assert_array_equal(log.observation[4], [4.0, 5.0])
    np.testing.assert_array_equal(log.final_observation, [[9.0, 8.0]])
    np.testing.assert_array_equal(log.final_episode, [1])
    np.testing.assert_array_equal(log.action_counts, [2, 3, 1])
    # 1 + ½·½, −1 + ½·2 + ¼·¼, 3.
    np.testing.assert_array_equal(log.returns(0.5), [1.25, 0.0625, 3.0])


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [0, 2, 1, 3, 5, 4], [2, 3, 4, 0, 1, 5]])
def test_rows_of_any_order_are_the_same_episodes(tmp_path, order):
    straight = read_log(parquet(tmp_path / "straight.parquet", steps()))
    log = read_log(parquet(tmp_path / "shuffled.parquet", shuffled(steps(), order)))
    of_name = {name: log.episode_id.to_pylist().index(name) for name in IDS}
    rows = np.concatenate([np.arange(log.offset[of_name[i]], log.offset[of_name[i] + 1]) for i in IDS])
    for name in ("action", "reward", "log_propensity", "observation"):
        np.testing.assert_array_equal(getattr(log, name)[rows], getattr(straight, name), err_msg=name)
    assert log.episode_id[int(log.final_episode[0])].as_py() == "a"
    np.testing.assert_array_equal(log.final_observation, [[9.0, 8.0]])


def test_final_observations_follow_their_episodes(tmp_path):
    rng = np.random.default_rng(3)
    length = rng.integers(1, 6, 30)
    rows, last = int(length.sum()), np.cumsum(length) - 1
    names = np.repeat([f"e{i}" for i in range(30)], length)
    truncated = np.zeros(rows, bool)
    truncated[last[::2]] = True
    terminated = np.zeros(rows, bool)
    terminated[last[1::2]] = True
    # Cut just as it ended: it ended.
    truncated[last[1]] = True
    # What a terminated episode led to is recorded as well, and of no use.
    final = pa.array(np.arange(rows), mask=~(truncated | terminated))
    table = pa.table(
        {
            "episode_id": names,
            "step": np.arange(rows) - np.repeat(last - length + 1, length),
            "observation": np.arange(rows),
            "action": np.zeros(rows, int),
            "reward": np.zeros(rows),
            "terminated": terminated,
            "truncated": truncated,
            "final_observation": final,
        }
    )
    expected = {f"e{i}": int(last[i]) for i in range(0, 30, 2)}
    for _ in range(3):
        pq.write_table(table.take(pa.array(rng.permutation(rows))), tmp_path / "log.parquet")
        log = read_log(tmp_path / "log.parquet")
        of = log.episode_id.take(pa.array(log.final_episode)).to_pylist()
        assert dict(zip(of, log.final_observation.tolist(), strict=True)) == expected
        assert (np.diff(log.final_episode) > 0).all()
        assert int(log.truncated.sum()) == 15


def test_every_format_gives_the_same_log(tmp_path):
    columns = steps()
    expected = read_log(parquet(tmp_path / "log.parquet", columns))
    table = pa.table(columns)

    folder = tmp_path / "parts"
    folder.mkdir()
    pq.write_table(table.slice(0, 3), folder / "part-0.parquet")
    pq.write_table(table.slice(3), folder / "part-1.parquet")
    assert_same(read_log(folder), expected)

    plain = jsonl(tmp_path / "log.jsonl", columns)
    assert_same(read_log(plain), expected)
    (tmp_path / "log.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert_same(read_log(tmp_path / "log.jsonl.gz"), expected)

    texts = {
        name: [None if value is None else json.dumps(value) for value in columns[name]]
        for name in ("observation", "final_observation")
    }
    csv.write_csv(pa.table({**columns, **texts}), tmp_path / "log.csv")
    assert_same(read_log(tmp_path / "log.csv"), expected)
    (tmp_path / "other.txt").write_bytes((tmp_path / "log.csv").read_bytes())
    assert_same(read_log(tmp_path / "other.txt", format="csv"), expected)


def stored(tmp_path: Path) -> Path:
    columns = steps()
    episodes, start = [], 0
    for name, length in zip(IDS, LENGTHS, strict=True):
        rows = slice(start, start + length)
        start += length
        own = {
            "observation": np.array(columns["observation"][rows]),
            "action": np.array(columns["action"][rows]),
            "reward": np.array(columns["reward"][rows], np.float32),
            "terminated": np.array(columns["terminated"][rows]),
            "truncated": np.array(columns["truncated"][rows]),
            "propensity": np.array(columns["propensity"][rows]),
        }
        if name == "a":
            final = np.ma.masked_all((length, 2))
            final[-1] = [9.0, 8.0]
            own["final_observation"] = final
        episodes.append(Episode(name, own))
    Store.open(tmp_path / "run", mode="a").append(episodes_to_table(episodes))
    return tmp_path / "run"


def test_stores_and_what_they_export_give_the_same_log(tmp_path):
    run = stored(tmp_path)
    expected = read_log(parquet(tmp_path / "log.parquet", steps()))
    log = read_log(run / "experience.lance")
    assert log.created_at is not None
    names = (
        "action",
        "reward",
        "log_propensity",
        "observation",
        "final_observation",
        "final_episode",
        "offset",
    )
    exported = []
    for name, format in (
        ("log.jsonl", None),
        ("whole.parquet", None),
        ("folder", "parquet"),
        ("mini", "minari"),
    ):
        exchange.export(Store.open(run), tmp_path / "out" / name, format)
        exported.append(read_log(tmp_path / "out" / name, format=format))
    for other in (read_log(run), read_log(run, format="lance"), *exported):
        for name in names:
            np.testing.assert_array_equal(getattr(other, name), getattr(expected, name), err_msg=name)
        np.testing.assert_array_equal(other.created_at, log.created_at)
    assert_same(read_log(run), log)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_a_data_set_that_minari_made(tmp_path, monkeypatch):
    import gymnasium as gym
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=rng.normal(size=(length + 1, 3)),
            actions=rng.normal(size=(length, 2)),
            rewards=rng.normal(size=length),
            terminations=np.zeros(length, bool),
            truncations=np.arange(length) == length - 1,
            infos={"log_prob": rng.normal(size=length + 1)},
        )
        for number, length in enumerate((4, 7))
    ]
    box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    actions = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    minari.create_dataset_from_buffers("foreign-v0", buffers, observation_space=box, action_space=actions)
    log = read_log(tmp_path / "root" / "foreign-v0", {"behaviour_log_prob": "info_log_prob"})
    np.testing.assert_array_equal(log.length, [4, 7])
    assert log.truncated.all()
    for episode, buffer in enumerate(buffers):
        rows = slice(log.offset[episode], log.offset[episode + 1])
        np.testing.assert_array_equal(log.observation[rows], buffer.observations[:-1])
        np.testing.assert_array_equal(log.final_observation[episode], buffer.observations[-1])
        np.testing.assert_array_equal(log.action[rows], buffer.actions)
        np.testing.assert_array_equal(log.reward[rows], buffer.rewards)
        np.testing.assert_array_equal(log.log_propensity[rows], buffer.infos["log_prob"][:-1])


def test_size_of_batches_does_not_matter(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    length = rng.integers(1, 9, 40)
    names = np.repeat([f"episode {i}" for i in range(40)], length)
    last = np.cumsum(length) - 1
    ends = np.zeros(len(names), bool)
    ends[last] = True
    order = rng.permutation(len(names))
    columns = {
        "episode_id": names[order],
        "step": (np.arange(len(names)) - np.repeat(last - length + 1, length))[order],
        "observation": rng.integers(0, 7, len(names))[order],
        "action": rng.integers(0, 4, len(names))[order],
        "reward": rng.normal(size=len(names))[order],
        "terminated": ends[order],
        "truncated": np.zeros(len(names), bool),
        "propensity": rng.uniform(0.1, 1, len(names))[order],
    }
    path = parquet(tmp_path / "log.parquet", columns)
    lines = jsonl(tmp_path / "log.jsonl", {name: values.tolist() for name, values in columns.items()})
    expected = read_log(path)
    calls = []
    for rows, size in ((7, 700), (64, 65_536)):
        monkeypatch.setattr(exchange, "_ROWS_AT_ONCE", rows)
        monkeypatch.setattr(tables, "_ROWS_AT_ONCE", rows)
        monkeypatch.setattr(tables, "_BYTES_AT_ONCE", size)
        assert_same(read_log(path, progress=lambda done, total: calls.append((done, total))), expected)
        assert_same(read_log(lines), expected)
    # Every batch of seven was told of, and all rows of both readings in the end.
    assert calls[:2] == [(7, len(names)), (14, len(names))]
    assert calls[-1] == (len(names), len(names))


def test_foreign_names_and_vectors_in_several_columns(tmp_path):
    columns = steps(observation=None, final_observation=None, propensity=None)
    columns["pscore"] = [0.5, 0.25, 0.125, 0.5, 0.25, 1.0]
    columns["user"] = columns.pop("episode_id")
    columns["x"] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    columns["y"] = [1, 2, 3, 4, 5, 6]
    path = tmp_path / "log.csv"
    csv.write_csv(pa.table(columns), path)
    mapping = {"propensity": "pscore", "episode_id": "user", "observation": ["x", "y"]}
    log = read_log(path, mapping)
    expected = read_log(parquet(tmp_path / "log.parquet", steps(final_observation=None)))
    assert_same(log, expected)

    numbered = {**columns, "observation_0": columns["x"], "observation_1": columns["y"]}
    csv.write_csv(pa.table(numbered), path)
    assert_same(read_log(path, {"propensity": "pscore", "episode_id": "user"}), expected)

    with pytest.raises(ValueError, match=r"^columns: 'pscore' is no field; choose among episode_id, step, "):
        read_log(path, {"pscore": "propensity"})
    with pytest.raises(ValueError, match=r"^propensity: there is no column 'p'; there are "):
        read_log(path, {**mapping, "propensity": "p"})


def test_numbers_of_states_stay_numbers(tmp_path):
    columns = steps(observation=[7, 5, 7, 9, 5, 7], final_observation=[None, None, None, None, 9, None])
    for log in (
        read_log(parquet(tmp_path / "log.parquet", columns)),
        read_log(jsonl(tmp_path / "log.jsonl", columns)),
    ):
        np.testing.assert_array_equal(log.observation, [7, 5, 7, 9, 5, 7])
        transitions = log.transitions()
        np.testing.assert_array_equal(transitions.observation, [1, 0, 1, 2, 0, 1, 2])
        np.testing.assert_array_equal(log.transitions(one_hot=True).observation[1], [1.0, 0.0, 0.0])
    # Where states are floating point because most final ones are absent, as some tools write them.
    final = pa.array([np.nan, np.nan, np.nan, np.nan, 9.0, np.nan], from_pandas=False)
    pq.write_table(pa.table({**columns, "final_observation": final}), tmp_path / "floating.parquet")
    np.testing.assert_array_equal(read_log(tmp_path / "floating.parquet").final_observation, [9])


def test_transitions_tell_apart_ends_cuts_and_what_was_recorded(tmp_path):
    log = read_log(parquet(tmp_path / "log.parquet", steps()))
    transitions = log.transitions(fold=np.array([0, 0, 1, 1, 1, 0]))
    np.testing.assert_array_equal(transitions.next_row, [1, TERMINATED, 3, 4, 6, TERMINATED])
    np.testing.assert_array_equal(transitions.observation[6], [9.0, 8.0])
    np.testing.assert_array_equal(transitions.step, [0, 1, 0, 1, 2, 0, 3])
    np.testing.assert_array_equal(transitions.point_fold, [0, 0, 1, 1, 1, 0, 1])
    cut = read_log(parquet(tmp_path / "cut.parquet", steps(final_observation=None)))
    np.testing.assert_array_equal(cut.transitions().next_row, [1, TERMINATED, 3, 4, TRUNCATED, TERMINATED])


def test_observations_can_be_left_out(tmp_path):
    log = read_log(parquet(tmp_path / "log.parquet", steps()), observations=False)
    assert log.observation is None and log.final_observation is None
    with pytest.raises(ValueError) as caught:
        log.transitions()
    assert str(caught.value) == (
        "observation: observations were not read; what is fitted needs numbers: a vector or the number of a state"
    )


def test_text_is_no_feature(tmp_path):
    columns = steps(observation=["a", "b", "c", "d", "e", "f"], final_observation=None)
    log = read_log(parquet(tmp_path / "log.parquet", columns))
    with pytest.raises(ValueError) as caught:
        log.transitions()
    assert str(caught.value) == (
        "observation: the column holds string, which is no number; what is fitted needs numbers: a vector or the "
        "number of a state"
    )


def test_blocks_of_numbers_are_laid_flat(tmp_path):
    blocks = [[[row, 1.5], [2.0, 3.0], [4.0, 5.0]] for row in range(6)]
    log = read_log(jsonl(tmp_path / "log.jsonl", steps(observation=blocks, final_observation=None)))
    np.testing.assert_array_equal(log.observation, np.array(blocks).reshape(6, 6))


def test_structures_are_laid_side_by_side(tmp_path):
    observation = [{"x": [float(row), 1.0], "n": row} for row in range(6)]
    log = read_log(parquet(tmp_path / "log.parquet", steps(observation=observation, final_observation=None)))
    np.testing.assert_array_equal(log.observation[3], [3.0, 1.0, 3.0])


def test_action_sets_are_numbers_or_flags_and_null_means_all(tmp_path):
    numbers = [[0, 1], [1], None, [1, 2], [0, 2], [1]]
    flags = [
        None if numbers_ is None else [action in numbers_ for action in range(3)] for numbers_ in numbers
    ]
    expected = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
    for kind in (numbers, flags):
        log = read_log(parquet(tmp_path / "log.parquet", steps(action_set=kind)))
        np.testing.assert_array_equal(log.action_set, expected)
    # An action that is offered and never taken is an action all the same.
    assert read_log(parquet(tmp_path / "log.parquet", steps(action_set=[[0, 4], *numbers[1:]]))).actions == 5
    assert read_log(parquet(tmp_path / "log.parquet", steps()), actions=7).actions == 7


def test_probabilities_of_all_actions_may_say_what_the_logged_one_had(tmp_path):
    chances = [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.375, 0.5, 0.125]]
    chances += [[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.0, 1.0, 0.0]]
    expected = read_log(parquet(tmp_path / "log.parquet", steps())).log_propensity
    log = read_log(parquet(tmp_path / "log.parquet", steps(propensity=None, behaviour_probs=chances)))
    np.testing.assert_allclose(log.log_propensity, expected, rtol=1e-14)
    np.testing.assert_array_equal(log.behaviour_probs, chances)
    both = steps(behaviour_log_prob=np.log(steps()["propensity"]), behaviour_probs=chances)
    np.testing.assert_allclose(
        read_log(parquet(tmp_path / "log.parquet", both)).log_propensity, expected, rtol=1e-14
    )


def test_continuous_actions_are_vectors_with_densities(tmp_path):
    columns = steps(action=[[0.5, 1.0]] * 6, propensity=[2.5] * 6)
    log = read_log(parquet(tmp_path / "log.parquet", columns))
    assert log.actions is None and log.action.shape == (6, 2)
    np.testing.assert_allclose(log.log_propensity, np.log(2.5))
    single = read_log(parquet(tmp_path / "log.parquet", steps(action=[0.5] * 6)))
    assert single.action.shape == (6, 1)


def test_every_row_of_a_bandit_is_an_episode(tmp_path):
    columns = {
        "action": [1, 0, 1],
        "reward": [0, 1, 1],
        "pscore": [0.5, 0.25, 0.5],
        "observation": [0.1, 0.2, 0.3],
    }
    path = tmp_path / "log.csv"
    csv.write_csv(pa.table(columns), path)
    log = read_log(path, {"propensity": "pscore"}, one_step=True)
    assert log.episode_id.to_pylist() == ["0", "1", "2"]
    np.testing.assert_array_equal(log.length, [1, 1, 1])
    assert log.terminated.all()
    named = {**columns, "episode_id": ["x", "y", "z"]}
    csv.write_csv(pa.table(named), path)
    assert read_log(path, one_step=True).episode_id.to_pylist() == ["x", "y", "z"]


def test_episodes_whose_world_failed_are_left_out_and_counted(tmp_path):
    columns = steps(error=[None, None, None, None, "timeout", None])
    columns["reward"][4] = None
    log = read_log(parquet(tmp_path / "log.parquet", columns))
    assert log.left_out == 1
    assert log.episode_id.to_pylist() == ["b", "c"]
    np.testing.assert_array_equal(log.offset, [0, 2, 3])
    np.testing.assert_array_equal(log.action, [0, 1, 1])
    assert log.final_observation is None
    columns["error"] = ["x"] * 6
    assert error_of(tmp_path, columns) == (
        "log: all of its 3 episodes ended in an error; give one that did not"
    )


def test_times_of_episodes(tmp_path):
    seconds = [10.5, 11.0, 20.0, 21.0, 22.0, 5.0]
    log = read_log(parquet(tmp_path / "log.parquet", steps(created_at=seconds)))
    np.testing.assert_array_equal(log.created_at, [10.5, 20.0, 5.0])
    times = pa.array([int(second * 1e6) for second in seconds], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({**steps(), "created_at": times}), tmp_path / "timed.parquet")
    np.testing.assert_array_equal(read_log(tmp_path / "timed.parquet").created_at, [10.5, 20.0, 5.0])
    text = [f"2026-01-31T12:00:{second:04.1f}Z" for second in seconds]
    log = read_log(jsonl(tmp_path / "log.jsonl", steps(created_at=text)))
    np.testing.assert_allclose(np.diff(log.created_at), [9.5, -15.0])


def test_names_that_look_like_dates_stay_names(tmp_path):
    names = ["2026-01-01", "2026-01-01", "2026-01-02", "2026-01-02", "2026-01-02", "2026-01-03"]
    log = read_log(jsonl(tmp_path / "log.jsonl", steps(episode_id=names)))
    assert log.episode_id.to_pylist() == ["2026-01-01", "2026-01-02", "2026-01-03"]
    numbers = read_log(parquet(tmp_path / "log.parquet", steps(episode_id=[7, 7, 3, 3, 3, 10])))
    assert numbers.episode_id.to_pylist() == ["7", "3", "10"]


def test_json_lines_of_mixed_types_and_missing_keys(tmp_path):
    rows = [dict(zip(steps(), row, strict=True)) for row in zip(*steps().values(), strict=True)]
    rows[1]["episode_id"] = "b"
    rows[0]["extra"], rows[1]["extra"] = "text", 3
    for row in rows:
        if row["final_observation"] is None:
            del row["final_observation"]
    path = tmp_path / "log.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert_same(read_log(path), read_log(parquet(tmp_path / "log.parquet", steps())))


# -- how it is laid out ------------------------------------------------------------------------------------


def random_log(lengths: np.ndarray, rng: np.random.Generator) -> Log:
    rows = int(np.sum(lengths))
    return Log.from_arrays(
        action=rng.integers(0, 3, rows),
        reward=rng.normal(size=rows),
        length=lengths,
        propensity=rng.uniform(0.2, 1, rows),
    )


@pytest.mark.parametrize("max_cells", [1, 40, 1 << 22])
def test_blocks_hold_every_episode_once_in_bounded_memory(max_cells):
    rng = np.random.default_rng(0)
    log = random_log(rng.integers(1, 30, 200), rng)
    log_ratio = rng.normal(size=log.rows)
    log_ratio[3] = -np.inf
    met = []
    for episodes, block in log.blocks(log_ratio, max_cells):
        assert block.reward.size <= max(max_cells, block.reward.shape[1])
        met.append(episodes)
        for place, episode in enumerate(episodes):
            rows = slice(log.offset[episode], log.offset[episode + 1])
            length = log.length[episode]
            np.testing.assert_array_equal(block.reward[place, :length], log.reward[rows])
            np.testing.assert_array_equal(block.log_ratio[place, :length], log_ratio[rows])
            assert not block.reward[place, length:].any() and not block.log_ratio[place, length:].any()
            assert block.length[place] == length
    np.testing.assert_array_equal(np.sort(np.concatenate(met)), np.arange(200))
    # With one huge budget there is one block, with none every episode is by itself.
    assert len(met) == {1: 200, 40: len(met), 1 << 22: 1}[max_cells]


def test_one_long_episode_does_not_pad_thousands_of_short_ones():
    log = random_log(np.array([1] * 5000 + [4000]), np.random.default_rng(0))
    cells = [block.reward.size for _, block in log.blocks(log.log_propensity, 10_000)]
    assert sum(cells) <= 9_000 + 5_000


def test_folds_hold_whole_episodes_and_do_not_depend_on_their_order():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 50)
    names = [f"e{i}" for i in range(50)]
    rows = int(lengths.sum())

    def folds(order: np.ndarray) -> dict[str, int]:
        log = Log.from_arrays(
            action=np.zeros(rows, np.int64),
            reward=np.zeros(rows),
            length=lengths[order],
            episode_id=[names[i] for i in order],
        )
        fold = log.split(3, np.random.default_rng(7))
        assert (np.diff(fold)[np.diff(log.row_episode) == 0] == 0).all()
        return dict(zip(log.episode_id.to_pylist(), fold[log.offset[:-1]].tolist(), strict=True))

    straight = folds(np.arange(50))
    assert straight == folds(rng.permutation(50))
    assert sorted(np.bincount(list(straight.values()))) == [16, 17, 17]
    with pytest.raises(ValueError, match=r"^folds: expected 2 to 50 \(the number of episodes\), got 51$"):
        random_log(np.ones(50, np.int64), rng).split(51, rng)


def test_arrays_make_the_log_that_a_file_makes(tmp_path):
    columns = steps()
    log = Log.from_arrays(
        action=np.array(columns["action"]),
        reward=np.array(columns["reward"]),
        length=np.array(LENGTHS),
        truncated=np.array([False, True, False]),
        propensity=np.array(columns["propensity"]),
        observation=np.array(columns["observation"]),
        final_observation=np.array([[9.0, 8.0]]),
        episode_id=IDS,
    )
    assert_same(log, read_log(parquet(tmp_path / "log.parquet", columns)))
    with pytest.raises(
        ValueError, match=r"^length: expected positive lengths that add up to the rows, got a sum of 5"
    ):
        Log.from_arrays(action=np.zeros(6, int), reward=np.zeros(6), length=np.array([2, 3]))
    ones = np.ones(3, int)
    with pytest.raises(
        ValueError, match=r"^episode_id: x comes more than once; give every episode a name of its own$"
    ):
        Log.from_arrays(action=ones, reward=np.zeros(3), length=ones, episode_id=["x", "y", "x"])
    with pytest.raises(
        ValueError, match=r"^final_observation: expected one for each of 1 truncated episodes, got 2$"
    ):
        Log.from_arrays(
            action=ones,
            reward=np.zeros(3),
            length=ones,
            truncated=np.array([True, False, False]),
            final_observation=np.zeros(2),
        )


def test_a_log_learns_of_actions_it_never_tried(tmp_path):
    log = read_log(parquet(tmp_path / "log.parquet", steps(action_set=[[0, 1], [1], None, [1], [0], [1]])))
    wider = log.with_actions(5)
    assert wider.actions == 5
    np.testing.assert_array_equal(wider.action_set[2], [1, 1, 1, 0, 0])
    with pytest.raises(ValueError, match=r"^actions: expected at least 3, what the log has, came 2$"):
        read_log(tmp_path / "log.parquet").with_actions(2)


# -- what is wrong with it ---------------------------------------------------------------------------------


def changed(name: str, row: int, value) -> dict:
    columns = steps()
    columns[name] = [value if place == row else old for place, old in enumerate(columns[name])]
    return columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            changed("reward", 3, float("nan")),
            "reward: expected a finite number, came nan in episode a, step 1; find its source",
        ),
        (
            changed("propensity", 2, 0.0),
            "propensity: expected a probability above 0 and at most 1, came 0 in episode a, step 0; an action that was "
            "chosen had a chance to be: log that chance, or leave the column out to estimate it",
        ),
        (
            changed("propensity", 1, 1.5),
            "propensity: expected a probability above 0 and at most 1, came 1.5 in episode b, step 1; an action that "
            "was chosen had a chance to be: log that chance, or leave the column out to estimate it",
        ),
        (
            changed("propensity", 5, None),
            "propensity: missing in episode c, step 0; every logged action needs it, or leave the whole column out to "
            "estimate it",
        ),
        (
            steps(propensity=None, behaviour_log_prob=[-0.5, -1.0, 0.5, -1.0, -1.0, -1.0]),
            "log_propensity: expected the finite logarithm of a probability or density, came 0.5 in episode a, step 0; "
            "a probability is above 0 and at most 1",
        ),
        (
            steps(behaviour_log_prob=list(np.log([0.5, 0.25, 0.125, 0.75, 0.25, 1.0]))),
            "propensity: 0.5 in episode a, step 1, where behaviour_log_prob says 0.75; leave one of the two columns "
            "out",
        ),
        (
            changed("action", 4, -1),
            "action: expected one of 0 … 2, came -1 in episode a, step 2; number the actions from 0 and say how many "
            "there are",
        ),
        (
            steps(action=["l", "r", "l", "r", "l", "r"]),
            "action: the column holds string, which is no number; number the actions 0, 1, …, or give vectors of "
            "numbers",
        ),
        (
            changed("step", 1, 2),
            "step: episode b goes from step 0 to step 2; give whole episodes without gaps",
        ),
        (
            shuffled(changed("step", 0, 1), [1, 0, 2, 3, 4, 5]),
            "step: episode b begins at step 1, expected 0; give whole episodes",
        ),
        (
            changed("step", 4, 1),
            "step: episode a has step 1 twice; give every step of an episode once",
        ),
        (
            changed("terminated", 1, False),
            "terminated, truncated: the last row (step 1) of episode b has neither; mark where it was cut as truncated",
        ),
        (
            changed("terminated", 2, True),
            "terminated, truncated: episode a goes on after it ended at step 0; give what follows its own episode_id",
        ),
        (
            changed("observation", 2, [1.0, 2.0, 3.0]),
            "observation: expected 2 numbers as in other rows, came 3 in episode a, step 0; give every row the same "
            "number of them",
        ),
        (
            changed("observation", 2, [1.0, float("inf")]),
            "observation: expected finite numbers, came [ 1., inf] in episode a, step 0; find their source",
        ),
        (
            steps(action_set=[[0], [0], [2], [1], [0], [1]]),
            "action_set: expected a set that holds the action that was chosen, came 1 in episode b, step 1; log both "
            "alike",
        ),
        (
            steps(action_set=[[0], [], [2], [1], [0], [1]]),
            "action_set: empty in episode b, step 1; leave it null if all can be chosen",
        ),
        (
            steps(behaviour_probs=[[0.5, 0.5, 0.0]] * 2 + [[0.5, 0.25, 0.125]] + [[0.25, 0.5, 0.25]] * 3),
            "behaviour_probs: expected probabilities that sum to 1, came a sum of 0.875 in episode a, step 0; give one "
            "for every action, with at least six digits",
        ),
        (
            steps(source=["real", "real", "dreamed", "dreamed", "dreamed", "real"]),
            "source: episode a, step 0 was dreamed, chosen by no known policy and in no real world; evaluate on what "
            "really happened",
        ),
        (
            steps(action=[0.5] * 6, behaviour_probs=[[0.5, 0.5]] * 6),
            "behaviour_probs: speaks of 2 actions, expected vectors; say how many there are",
        ),
        (
            steps(episode_id=["b", "b", None, "a", "a", "c"]),
            "episode_id: 1 rows have none; every row names its episode",
        ),
        (
            steps(reward=None),
            "reward: the log has no such column; name the one that holds it with columns={'reward': …}",
        ),
        (
            steps(reward=["1", "2", "3", "4", "5", "6"]),
            "reward: expected numbers, came string; give one number a row",
        ),
        (
            steps(terminated=None, truncated=None),
            "terminated: the log has no such column; name the one that holds it with columns={'terminated': …}",
        ),
    ],
    ids=lambda value: value.split(";")[0][:40] if isinstance(value, str) else "",
)
def test_bad_input_is_named_in_one_line(tmp_path, columns, message):
    assert error_of(tmp_path, columns) == message


def test_actions_beyond_their_number_are_out_of_range(tmp_path):
    assert error_of(tmp_path, steps(), actions=2) == (
        "action: expected one of 0 … 1, came 2 in episode a, step 0; number the actions from 0 and say how many there "
        "are"
    )
    assert error_of(tmp_path, steps(action_set=[[0, 5], None, None, None, None, None]), actions=3) == (
        "action_set: speaks of 6 actions, expected 3; say how many there are"
    )
    assert error_of(tmp_path, steps(action=[0.5] * 6), actions=3) == (
        "actions: the log's actions are vectors and have no number, came 3"
    )


def test_an_empty_log_is_refused(tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(steps()).slice(0, 0), path)
    with pytest.raises(ValueError) as caught:
        read_log(path)
    assert str(caught.value) == f"log: {path} holds no step; give at least one episode"
    (tmp_path / "log.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"holds no step; give at least one episode$"):
        read_log(tmp_path / "log.jsonl")


def test_one_episode_is_a_log(tmp_path):
    log = read_log(parquet(tmp_path / "log.parquet", shuffled(steps(), [0, 1])))
    assert log.episodes == 1
    np.testing.assert_array_equal(log.returns(1.0), [1.5])


def test_files_that_are_not_what_they_say(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^path: .*nothing.parquet does not exist; give a file or folder$"):
        read_log(tmp_path / "nothing.parquet")
    (tmp_path / "log.parquet").write_text("not Parquet")
    with pytest.raises(ValueError, match=r"^path: .*log.parquet is not Parquet: "):
        read_log(tmp_path / "log.parquet")
    (tmp_path / "log.jsonl").write_text('{"step": 0}\n{"step": \n')
    with pytest.raises(ValueError, match=r"^path: line 2 of .*log.jsonl is not JSON: "):
        read_log(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").write_text('{"step": 0}\n[1]\n')
    with pytest.raises(
        ValueError, match=r"^path: line 2 of .*log.jsonl is no object; put one step on each line$"
    ):
        read_log(tmp_path / "log.jsonl")
    jsonl(tmp_path / "log.jsonl", steps())
    with (tmp_path / "log.jsonl").open("a") as lines:
        lines.write("nonsense")
    monkeypatch.setattr(tables, "_BYTES_AT_ONCE", 300)
    with pytest.raises(ValueError, match=r"^path: line 7 of .*log.jsonl is not JSON: "):
        read_log(tmp_path / "log.jsonl")
    (tmp_path / "log.xyz").write_text("")
    with pytest.raises(
        ValueError, match=r"^format: cannot tell from the name 'log.xyz'; say one of lance, csv, parquet"
    ):
        read_log(tmp_path / "log.xyz")
    with pytest.raises(ValueError, match=r"^format: 'arff' is none of lance, csv, parquet"):
        read_log(tmp_path / "log.xyz", format="arff")


def test_a_lance_folder_without_a_store_is_bad_input(tmp_path):
    (tmp_path / "empty.lance").mkdir()
    with pytest.raises(ValueError, match=r"^path: .*empty.lance: no store here; give a folder that holds "):
        read_log(tmp_path / "empty.lance")


def test_large_weights_of_memory_are_not_held(tmp_path):
    """Reading keeps a few numbers a row: no Python object, no copy of the observations that are not wanted."""
    rows = 200_000
    columns = {
        "episode_id": pa.array(np.repeat([f"{i:026d}" for i in range(rows // 100)], 100)),
        "step": pa.array(np.tile(np.arange(100), rows // 100)),
        "observation": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 32, np.float32)), 32),
        "action": pa.array(np.zeros(rows, np.int64)),
        "reward": pa.array(np.ones(rows)),
        "terminated": pa.array(np.tile(np.arange(100) == 99, rows // 100)),
        "truncated": pa.array(np.zeros(rows, bool)),
        "propensity": pa.array(np.full(rows, 0.5)),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    log = read_log(tmp_path / "log.parquet", observations=False)
    held = (
        sum(value.nbytes for value in vars(log).values() if isinstance(value, np.ndarray))
        + log.episode_id.nbytes
    )
    assert log.rows == rows
    assert held < 26 * rows
    assert log_module.CELLS * 8 == 32 << 20
