import numpy as np
import pyarrow as pa
import pytest
from episodes_for_tests import make_episode
from ulid import ULID

from peira.experience.episode import Episode, episode_ids, episodes_to_table, split_episodes


def test_an_episode_comes_back_from_arrow_with_the_same_bits():
    episode = make_episode(3, source="logged", policy_version=7)
    again = Episode.from_table(episode.to_table())
    for name, values in episode.columns.items():
        assert again.columns[name].dtype == values.dtype
        np.testing.assert_array_equal(again.columns[name], values)
    for name in ("id", "source", "policy_id", "policy_version", "task_id", "created_at", "group_id"):
        assert getattr(again, name) == getattr(episode, name)


def test_a_policy_version_that_changed_half_way_stays_one_a_step():
    episode = make_episode(0)
    versions = np.repeat([4, 5], 6)
    episode = Episode(
        id=episode.id, columns={**episode.columns, "policy_version": versions}, policy_version=4
    )
    again = Episode.from_table(episode.to_table())
    np.testing.assert_array_equal(again.columns["policy_version"], versions)
    assert again.policy_version is None


def test_blocks_of_many_axes_images_text_structs_and_missing_entries_survive():
    base = make_episode(0, length=4)
    columns = {
        **base.columns,
        "observation": np.arange(48, dtype=np.float32).reshape(4, 3, 4),
        "action": {"move": np.ones((4, 2), np.float32), "press": np.arange(4)},
        "image": [b"\x89PNG", b"", b"\xff", b"1"],
        "thought": ["a", None, "ü", ""],
        "final_observation": np.ma.MaskedArray(
            np.arange(48, dtype=np.float32).reshape(4, 3, 4),
            mask=np.broadcast_to(np.array([1, 1, 1, 0], bool)[:, None, None], (4, 3, 4)),
        ),
    }
    again = Episode.from_table(Episode(id=base.id, columns=columns).to_table())
    np.testing.assert_array_equal(again.columns["observation"], columns["observation"])
    np.testing.assert_array_equal(again.columns["action"]["move"], columns["action"]["move"])
    np.testing.assert_array_equal(again.columns["action"]["press"], columns["action"]["press"])
    assert again.columns["image"] == columns["image"]
    assert again.columns["thought"] == columns["thought"]
    final = again.columns["final_observation"]
    assert final.shape == (4, 3, 4)
    assert final.mask[:3].all()
    np.testing.assert_array_equal(final[3], columns["observation"][3])


def test_the_return_counts_only_rewards_that_were_given():
    episode = make_episode(0, length=3)
    reward = np.ma.MaskedArray(np.array([1, 2, 50], np.float32), mask=[False, False, True])
    crashed = Episode(id="x", columns={**episode.columns, "reward": reward, "error": [None, None, "boom"]})
    assert crashed.return_ == 3.0
    assert crashed.error == "boom"
    assert episode.error is None
    assert len(crashed) == 3


def test_ids_are_ulids_and_depend_on_run_counter_and_time_alone():
    ids = episode_ids("run", 5, 20, 1_700_000_000_123)
    assert ids == episode_ids("run", 0, 25, 1_700_000_000_123)[5:]
    assert len({*ids, *episode_ids("other", 5, 20, 1_700_000_000_123)}) == 40
    for text in ids:
        ulid = ULID.from_str(text)
        assert str(ulid) == text
        assert ulid.milliseconds == 1_700_000_000_123


def test_what_one_episode_lacks_is_null_beside_one_that_has_it():
    table = episodes_to_table([make_episode(0), make_episode(1, synthetic=True, source="dreamed")])
    assert table["behaviour_log_prob"].null_count == 12
    first, second = split_episodes(table)
    assert "behaviour_log_prob" in first.columns
    assert "behaviour_log_prob" not in second.columns


def test_rows_of_two_episodes_are_not_one():
    with pytest.raises(ValueError, match="expected the rows of 1 episode, came those of 2"):
        Episode.from_table(pa.concat_tables([make_episode(0).to_table(), make_episode(1).to_table()]))
