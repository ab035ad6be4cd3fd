import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from episodes_for_tests import START, make_episode

from peira.experience.episode import Episode
from peira.experience.exchange import export, import_into
from peira.experience.store import Store

TARGETS = {
    "parquet": "log.parquet",
    "parquet folder": "log",
    "jsonl": "log.jsonl",
    "jsonl.gz": "log.jsonl.gz",
    "minari": "log-v0",
    "minari-arrow": "log-v0",
}


def rich_store(path) -> Store:
    """Every kind of column: nulls, text, bytes, structs, blocks of two axes, annotations, awkward floats."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(3):
        length = 5 + number
        base = make_episode(number, length=length, source="human" if number else "real")
        final = np.zeros((length, 2, 3), np.float32)
        final[-1] = rng.normal(size=(2, 3))
        mask = np.ones_like(final, bool)
        mask[-1] = False
        columns = {
            **base.columns,
            "observation": rng.normal(size=(length, 2, 3)).astype(np.float32),
            "terminated": np.zeros(length, bool),
            "truncated": np.arange(length) == length - 1,
            "policy_version": np.arange(length) // 3 + 2**53,
            "raw_action": np.array([[-0.0, 1e-45, np.pi]] * length, np.float32),
            "image": [bytes([number, t, 0, 255]) for t in range(length)],
            "thought": [None if t % 2 else f'"{t}"\nü' for t in range(length)],
            "tool": {"name": ["a"] * length, "cost": rng.normal(size=length)},
            "tokens": [list(range(t)) for t in range(length)],
        }
        if number == 1:
            columns["final_observation"] = np.ma.MaskedArray(final, mask=mask)
        if number == 2:
            reward = np.ma.MaskedArray(base.columns["reward"], mask=np.arange(length) == length - 1)
            columns |= {"error": [None] * (length - 1) + ["boom"], "reward": reward}
            columns["truncated"] = np.zeros(length, bool)
        episodes.append(
            Episode(id=base.id, columns=columns, source=base.source, task_id="t", created_at=START)
        )
    store = Store.open(path, mode="a")
    store.append(episodes)
    store.annotate("advantage", np.array([np.nan, *rng.normal(size=len(store) - 1)], np.float32))
    return store


def bits(table: pa.Table) -> dict[str, list]:
    """Columns as values that compare by bits, so that -0.0 and NaN count."""

    def of(value):
        if isinstance(value, float):
            return np.float64(value).tobytes()
        if isinstance(value, list):
            return [of(entry) for entry in value]
        if isinstance(value, dict):
            return {name: of(entry) for name, entry in value.items()}
        return value

    return {name: [of(value) for value in table[name].to_pylist()] for name in table.column_names}


@pytest.mark.parametrize("format", TARGETS)
def test_a_round_trip_loses_nothing(tmp_path, format):
    store = rich_store(tmp_path / "a")
    target = tmp_path / TARGETS[format]
    assert export(store, target, format.removesuffix(".gz").removesuffix(" folder")) == 3
    assert not list(tmp_path.glob("*.partial"))
    again = Store.open(tmp_path / "b", mode="a")
    assert import_into(again, target, "parquet" if format == "parquet folder" else None) == 3
    assert dict(zip(again.schema.names, again.schema.types, strict=True)) == dict(
        zip(store.schema.names, store.schema.types, strict=True)
    )
    assert again.annotations == ["advantage"]
    assert bits(again.read(columns=store.schema.names)) == bits(store.read())
    for field in store.schema:
        assert again.schema.field(field.name).metadata == field.metadata
    assert import_into(again, target, "parquet" if format == "parquet folder" else None) == 0
    assert again.verify()["problems"] == []


@pytest.mark.parametrize("data_format", ["minari", "minari-arrow"])
def test_minari_itself_reads_what_was_exported(tmp_path, data_format, monkeypatch):
    import minari

    store = rich_store(tmp_path / "a")
    export(store, tmp_path / "root" / "peira-v0", data_format)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    dataset = minari.load_dataset("peira-v0")
    expected = list(store.episodes())
    for index, episode in enumerate(dataset.iterate_episodes()):
        np.testing.assert_array_equal(episode.observations[:-1], expected[index].columns["observation"])
        np.testing.assert_array_equal(episode.actions, expected[index].columns["action"])
        np.testing.assert_array_equal(episode.infos["raw_action"][:-1], expected[index].columns["raw_action"])
    assert np.isnan(dataset[0].observations[-1]).all()
    np.testing.assert_array_equal(dataset[1].observations[-1], expected[1].columns["final_observation"][-1])
    assert next(iter(dataset.storage.get_episode_metadata([1])))["source"] == "human"


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_a_data_set_made_by_minari_comes_in_whole(tmp_path, data_format, monkeypatch):
    import gymnasium as gym
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            id=n,
            seed=n,
            observations=rng.normal(size=(8, 3)),
            actions=rng.normal(size=(7, 2)).astype(np.float32),
            rewards=rng.normal(size=7),
            terminations=np.arange(7) == 6,
            truncations=np.zeros(7, bool),
            infos={"qpos": rng.normal(size=(8, 4)), "success": [bool(t % 2) for t in range(8)]},
        )
        for n in range(2)
    ]
    minari.create_dataset_from_buffers(
        "foreign-v0",
        buffers,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (3,), np.float64),
        action_space=gym.spaces.Box(-1, 1, (2,), np.float32),
        data_format=data_format,
    )
    store = Store.open(tmp_path / "store", mode="a")
    assert import_into(store, tmp_path / "root" / "foreign-v0") == 2
    for buffer, episode in zip(buffers, store.episodes(), strict=True):
        assert episode.source == "logged"
        np.testing.assert_array_equal(episode.columns["observation"], buffer.observations[:-1])
        np.testing.assert_array_equal(episode.columns["final_observation"][-1], buffer.observations[-1])
        np.testing.assert_array_equal(episode.columns["action"], buffer.actions)
        np.testing.assert_array_equal(episode.columns["reward"], buffer.rewards)
        assert episode.columns["observation"].dtype == np.float64
        np.testing.assert_array_equal(episode.columns["info_qpos"], buffer.infos["qpos"][:-1])
        np.testing.assert_array_equal(episode.columns["final_info_qpos"][-1], buffer.infos["qpos"][-1])
        np.testing.assert_array_equal(episode.columns["info_success"], buffer.infos["success"][:-1])
    assert import_into(store, tmp_path / "root" / "foreign-v0") == 0


def test_plain_json_lines_of_another_logger_come_in(tmp_path):
    rows = [
        {
            "episode_id": "e",
            "step": t,
            "observation": [0.5, t],
            "action": t % 2,
            "reward": 1.0,
            "terminated": t == 2,
            "truncated": False,
            "source": "logged",
            "propensity": 0.25,
            "created_at": "2026-01-02T03:04:05+00:00",
        }
        for t in range(3)
    ]
    with gzip.open(tmp_path / "log.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    store = Store.open(tmp_path, mode="a")
    assert import_into(store, tmp_path / "log.jsonl.gz") == 1
    assert store.schema.field("observation").type == pa.list_(pa.float32(), 2)
    assert store.schema.field("action").type == pa.int64()
    assert store.read(columns=["propensity"])["propensity"].to_pylist() == [0.25] * 3


def test_what_cannot_be_read_is_said_in_one_line(tmp_path):
    store = Store.open(tmp_path, mode="a")
    (tmp_path / "bad.jsonl").write_text('{"step": 0}\n{"step"\n')
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"line 2 of .* is not JSON"):
        import_into(store, tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match=r"bad\.parquet is not Parquet"):
        import_into(store, tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="holds no Minari data set"):
        import_into(store, tmp_path / "empty")
    with pytest.raises(ValueError, match="does not exist"):
        import_into(store, tmp_path / "nothing.parquet")
    with pytest.raises(ValueError, match="format: 'rlds' is none of parquet, jsonl, minari"):
        import_into(store, tmp_path / "empty", "rlds")


def test_a_missing_minari_names_the_extra_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "minari", None)
    monkeypatch.delitem(sys.modules, "peira.experience.minari_format", raising=False)
    monkeypatch.delattr("peira.experience.minari_format", raising=False)
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"Minari needs minari.*; pip install 'peira\[data\]'"):
        import_into(Store.open(tmp_path / "store", mode="a"), tmp_path / "data", "minari")


def test_an_export_overwrites_nothing(tmp_path):
    store = rich_store(tmp_path / "a")
    (tmp_path / "log.parquet").write_text("mine")
    with pytest.raises(ValueError, match=r"log\.parquet exists; give a new name"):
        export(store, tmp_path / "log.parquet")
