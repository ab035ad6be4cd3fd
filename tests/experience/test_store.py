import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from episodes_for_tests import START, make_episode

from peira.experience.episode import Episode, episodes_to_table
from peira.experience.store import Store, StoreError


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path, mode="a")
    store.append([make_episode(n, policy_version=n, task_id=f"task'{n % 2}") for n in range(4)])
    store.append([make_episode(4, policy_version=4, source="human")])
    store.append([make_episode(5, synthetic=True, policy_version=5, source="dreamed")])
    return store


def ids_of(table: pa.Table) -> list[str]:
    return table["episode_id"].unique().to_pylist()


def test_what_was_appended_is_read_back_bit_for_bit(store):
    expected = make_episode(2, policy_version=2, task_id="task'0")
    (episode,) = store.episodes(episode_ids=[expected.id])
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(episode.columns[name], values)
    assert episode.created_at == expected.created_at
    assert (episode.policy_version, episode.source, episode.task_id) == (2, "real", "task'0")


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ({"source": "human"}, [4]),
        ({"source": ["human", "dreamed"]}, [4, 5]),
        ({"policy_version": 3}, [3]),
        ({"policy_version": range(1, 3)}, [1, 2]),
        ({"task_id": "task'1"}, [1, 3]),
        ({"since": START + timedelta(hours=4)}, [4, 5]),
        ({"until": START + timedelta(hours=1)}, [0]),
        (
            {"since": START + timedelta(hours=1), "until": START + timedelta(hours=3), "source": "real"},
            [1, 2],
        ),
        ({"episode_ids": []}, []),
        ({}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_each_filter_finds_its_episodes_in_order(store, filters, numbers):
    expected = [make_episode(n).id for n in numbers]
    assert ids_of(store.read(**filters)) == expected
    assert [episode.id for episode in store.episodes(**filters)] == expected


def test_columns_limit_and_random_access(store):
    assert store.read(columns=["step"], limit=3)["step"].to_pylist() == [0, 1, 2]
    assert store.take([25, 0, 25], columns=["step"])["step"].to_pylist() == [1, 0, 1]
    assert len(list(store.episodes(limit=2))) == 2
    with pytest.raises(ValueError, match="columns: 'advantage' is not in"):
        store.read(columns=["advantage"])
    with pytest.raises(ValueError, match="source: 'imagined' is none of"):
        store.read(source="imagined")
    with pytest.raises(ValueError, match="has no time zone"):
        store.read(since=START.replace(tzinfo=None))


def test_an_append_can_be_repeated_without_doubling(store, tmp_path):
    again = [make_episode(0, policy_version=0, task_id="task'0"), make_episode(9)]
    assert store.append(again, skip_existing=True) == 1
    assert Store.open(tmp_path, mode="a").append(again, skip_existing=True) == 0
    assert len(store) == 7 * 12
    assert store.verify()["problems"] == []


def test_a_column_of_another_type_or_name_is_refused_and_nothing_is_written(store):
    version = store.version
    table = make_episode(9).to_table()
    wide = table.set_column(
        table.column_names.index("observation"),
        "observation",
        pa.nulls(12, pa.list_(pa.float32(), 7)).fill_null([0] * 7),
    )
    with pytest.raises(ValueError, match=r"observation: expected fixed_size_list<item: float>\[5\] as in"):
        store.append(wide)
    with pytest.raises(ValueError, match=r"colour: .* has no such column"):
        store.append(table.append_column("colour", pa.array(["red"] * 12)))
    assert store.refresh().version == version


def test_a_column_of_the_vocabulary_that_comes_late_is_null_for_the_rows_before(store):
    episode = make_episode(9)
    columns = {**episode.columns, "error": [None] * 11 + ["simulator diverged"]}
    store.append([Episode(id=episode.id, columns=columns)])
    errors = store.read(columns=["error"])["error"]
    assert errors.null_count == 7 * 12 - 1
    assert errors[-1].as_py() == "simulator diverged"
    assert store.verify()["problems"] == []


def test_a_store_opened_to_read_does_not_write_and_a_missing_one_is_named(store, tmp_path):
    with pytest.raises(StoreError, match="opened to read; open it with mode='a'"):
        Store.open(tmp_path).append([make_episode(9)])
    with pytest.raises(StoreError, match="no store here"):
        Store.open(tmp_path / "nothing")
    with pytest.raises(StoreError, match="holds no experience yet"):
        Store.open(tmp_path / "nothing", mode="a").read()
    with pytest.raises(ValueError, match="mode: expected 'r' or 'a', came 'w'"):
        Store.open(tmp_path, mode="w")


def test_a_reader_sees_its_snapshot_until_it_refreshes(store, tmp_path):
    reader = Store.open(tmp_path / "experience.lance")
    store.append([make_episode(9)])
    assert len(reader) == 6 * 12
    assert len(reader.refresh()) == 7 * 12
    assert [entry["steps"] for entry in reader.versions][-2:] == [6 * 12, 7 * 12]


def test_annotations_come_beside_what_happened_and_never_over_it(store):
    advantage = np.arange(72, dtype=np.float32)
    assert store.annotate("advantage", advantage) == 72
    np.testing.assert_array_equal(store.read(columns=["advantage"])["advantage"].to_numpy(), advantage)
    assert store.annotations == ["advantage"]
    for name in ("reward", "propensity"):
        with pytest.raises(ValueError, match=f"{name}: this column says what happened"):
            store.annotate(name, advantage)
    with pytest.raises(ValueError, match="advantage: 72 rows have a value already"):
        store.annotate("advantage", advantage)
    with pytest.raises(ValueError, match="advantage: expected float as annotated before, came double"):
        store.annotate("advantage", advantage.astype(np.float64), replace=True)
    store.annotate("advantage", -advantage, replace=True)
    np.testing.assert_array_equal(store.read(columns=["advantage"])["advantage"].to_numpy(), -advantage)
    with pytest.raises(ValueError, match="expected one entry for each of 72 rows, came 3"):
        store.annotate("other", np.zeros(3))


def test_an_annotation_by_key_fills_its_rows_and_later_those_of_new_episodes(store):
    keys = store.read(source="human", columns=["episode_id", "step"])
    judged = keys.append_column("judge_label", pa.array(["good"] * 12)).take(pa.array(range(11, -1, -1)))
    assert store.annotate("judge_label", judged) == 12
    assert store.read(source="real", columns=["judge_label"])["judge_label"].null_count == 48
    assert set(store.read(source="human", columns=["judge_label"])["judge_label"].to_pylist()) == {"good"}

    store.append([make_episode(9, source="human")])
    new = store.read(episode_ids=[make_episode(9).id], columns=["episode_id", "step"])
    store.annotate("judge_label", new.append_column("judge_label", pa.array(["bad"] * 12)))
    labels = store.read(source="human", columns=["judge_label"])["judge_label"].to_pylist()
    assert labels == ["good"] * 12 + ["bad"] * 12

    strange = pa.table({"episode_id": ["nobody"], "step": [0], "judge_label": ["good"]})
    with pytest.raises(ValueError, match="nobody, 0 is not in"):
        store.annotate("judge_label", strange)
    with pytest.raises(ValueError, match="a row comes twice"):
        store.annotate("judge_label", pa.concat_tables([judged, judged]), replace=True)
    assert store.verify()["problems"] == []


def test_an_annotation_survives_an_append_by_another_writer_at_the_same_time(store, tmp_path):
    other = Store.open(tmp_path, mode="a")
    store.annotate("value", np.ones(72, np.float32))
    other.append([make_episode(9)])
    values = Store.open(tmp_path).read(columns=["value"])["value"]
    assert (len(values), values.null_count) == (84, 12)


def test_nearest_is_exact_respects_filters_and_skips_rows_without_a_vector(store):
    rng = np.random.default_rng(0)
    keys = store.read(columns=["episode_id", "step", "source"])
    vectors = rng.normal(size=(72, 8)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 8)
    store.annotate("embedding", keys.append_column("embedding", column).slice(0, 60))
    query = rng.normal(size=8)
    found = store.nearest("embedding", query, 5)
    distance = ((vectors[:60] - query) ** 2).sum(1)
    np.testing.assert_allclose(found["_distance"].to_numpy(), np.sort(distance)[:5], rtol=1e-5)
    human = store.nearest("embedding", query, 100, source="human")
    assert set(human["source"].to_pylist()) == {"human"}
    assert store.nearest("embedding", query, 100).num_rows == 60
    with pytest.raises(ValueError, match=r"query: expected shape \(8,\)"):
        store.nearest("embedding", np.zeros(3), 1)
    with pytest.raises(ValueError, match="reward: expected a column of fixed-size vectors, came float"):
        store.nearest("reward", np.zeros(3), 1)


def test_an_index_is_made_only_for_a_large_store_and_finds_the_same_neighbours(tmp_path):
    store = Store.open(tmp_path, mode="a")
    store.append([make_episode(n, length=100) for n in range(30)])
    assert not store.create_index("observation")
    query = np.zeros(5)
    exact = store.nearest("observation", query, 10, columns=["episode_id", "step"])
    assert store.create_index("observation", threshold=1000)
    indexed = store.nearest("observation", query, 10, columns=["episode_id", "step"])
    same = len({*exact["_distance"].to_pylist()} & {*indexed["_distance"].to_pylist()})
    assert same >= 8
    store.append([make_episode(99)])
    store.compact()
    nearest = store.nearest(
        "observation", make_episode(99).columns["observation"][3], 1, columns=["episode_id"]
    )
    assert nearest["episode_id"][0].as_py() == make_episode(99).id


def test_compaction_keeps_every_row_its_order_and_readers_that_are_open(store, tmp_path):
    store.annotate("advantage", np.arange(72, dtype=np.float32))
    before = store.read()
    reader, writer = Store.open(tmp_path), Store.open(tmp_path, mode="a")
    report = store.compact()
    assert report["files_added"] == 1
    assert store.read().to_pylist() == before.to_pylist()
    assert reader.read().to_pylist() == before.to_pylist()
    writer.append([make_episode(9)])
    assert len(store.refresh()) == 84
    assert len(store.versions) > 2
    assert store.compact(keep=timedelta(0))["versions_removed"] > 2
    assert len(store.versions) == 1
    assert Store.open(tmp_path).verify()["problems"] == []


def test_stats_count_by_provenance(store):
    stats = store.stats()
    assert (stats["episodes"], stats["steps"]) == (6, 72)
    assert stats["by_source"]["real"] == {"episodes": 4, "steps": 48}
    assert stats["by_policy_version"]["5"] == {"episodes": 1, "steps": 12}
    assert stats["by_task_id"]["task'1"] == {"episodes": 2, "steps": 24}
    returns = [episode.return_ for episode in store.episodes()]
    assert stats["return_quantiles"]["0.0"] == pytest.approx(min(returns))
    assert stats["return_quantiles"]["0.5"] == pytest.approx(np.median(returns))
    assert stats["bytes"] > 0


def test_verify_names_an_episode_that_came_twice_and_what_others_wrote_wrong(store, tmp_path):
    import lance

    store.append([make_episode(4, policy_version=4, source="human")])
    half = make_episode(20).to_table().slice(3, 5)
    guided = make_episode(21, source="guided").to_table()
    broken = pa.concat_tables([half, guided], promote_options="default")
    names = store.schema.names
    lance.write_dataset(
        broken.select([name for name in names if name in broken.column_names]), store.path, mode="append"
    )
    problems = Store.open(tmp_path).verify()["problems"]
    assert f"episode {make_episode(4).id}: its id or a step comes twice" in problems
    assert f"episode {make_episode(20).id}: its steps are not 0, 1, 2, … without a gap" in problems
    assert f"episode {make_episode(20).id}: it does not end in terminated, truncated or an error" in problems
    assert any(problem.startswith("behaviour_log_prob: synthetic row") for problem in problems)


def test_a_manifest_cut_short_by_a_power_failure_is_dropped_by_the_next_writer(store, tmp_path):
    newest = min(Path(store.path, "_versions").glob("*.manifest"))
    newest.write_bytes(newest.read_bytes()[:40])
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(tmp_path)
    repaired = Store.open(tmp_path, mode="a")
    assert len(repaired) == 5 * 12
    assert repaired.append([make_episode(9)]) == 1
    assert Store.open(tmp_path).verify()["problems"] == []


def test_every_append_is_on_disk_before_it_returns(tmp_path):
    """The order that makes an append safe: rows, then the manifest that names them, each with its folder."""
    import os

    store = Store.open(tmp_path, mode="a")
    store.append([make_episode(0)])
    synced, fsync = [], os.fsync
    os.fsync = lambda descriptor: (
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink())),
        fsync(descriptor),
    )
    try:
        store.append([make_episode(1)])
    finally:
        os.fsync = fsync
    assert [Path(name).suffix or Path(name).name for name in synced] == [
        ".lance",
        "data",
        ".manifest",
        "_versions",
    ]


def test_the_store_starts_without_torch():
    code = "import sys, peira.experience.writer, peira.experience.assemble; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_images_as_encoded_bytes_survive(tmp_path):
    episode = make_episode(0, length=3)
    frames = [b"\x89PNG\r\n\x00", b"", bytes(range(256))]
    store = Store.open(tmp_path, mode="a")
    store.append(
        episodes_to_table([Episode(id=episode.id, columns={**episode.columns, "observation": frames})])
    )
    assert next(store.episodes()).columns["observation"] == frames
