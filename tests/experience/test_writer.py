import threading
import time

import pytest
from episodes_for_tests import make_episode

from peira.experience.store import Store
from peira.experience.writer import BufferedWriter


class SlowStore:
    """Counts appends and holds each until it is released."""

    def __init__(self):
        self.release = threading.Event()
        self.appended = []

    def append(self, table):
        assert self.release.wait(10)
        self.appended.append(table.num_rows)


def test_many_small_tables_become_one_append_and_flush_makes_them_safe(tmp_path):
    store = Store.open(tmp_path, mode="a")
    with BufferedWriter(store, flush_rows=1000, flush_seconds=60) as writer:
        for number in range(20):
            writer.append([make_episode(number)])
        writer.flush()
        reader = Store.open(tmp_path)
        assert len(reader) == 240
        assert reader.version <= 3
        assert reader.verify()["problems"] == []


def test_rows_do_not_wait_longer_than_the_clock_allows(tmp_path):
    store = SlowStore()
    store.release.set()
    with BufferedWriter(store, flush_rows=1000, flush_seconds=0.05) as writer:
        writer.append([make_episode(0)])
        deadline = time.monotonic() + 5
        while not store.appended and time.monotonic() < deadline:
            time.sleep(0.01)
        assert store.appended == [12]


def test_a_full_queue_blocks_the_caller_and_drops_nothing():
    store = SlowStore()
    writer = BufferedWriter(store, max_rows=36, flush_rows=12)
    handed = []

    def hand_over():
        for number in range(10):
            writer.append(make_episode(number).to_table())
            handed.append(number)

    thread = threading.Thread(target=hand_over)
    thread.start()
    time.sleep(0.2)
    assert len(handed) == 3
    store.release.set()
    thread.join(5)
    writer.close()
    assert sum(store.appended) == 120


def test_an_error_in_the_thread_is_raised_by_the_next_call(tmp_path):
    store = Store.open(tmp_path, mode="a")
    store.append([make_episode(0)])
    writer = BufferedWriter(store, flush_rows=1)
    writer.append([make_episode(1, source="dreamed")])
    with pytest.raises(ValueError, match="no known policy chose a synthetic step"):
        writer.flush()
    with pytest.raises(ValueError, match="no known policy chose a synthetic step"):
        writer.append([make_episode(2)])
    with pytest.raises(ValueError, match="no known policy chose a synthetic step"):
        writer.close()
    assert not writer._thread.is_alive()


def test_a_closed_writer_takes_nothing_more(tmp_path):
    writer = BufferedWriter(Store.open(tmp_path, mode="a"))
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.append([make_episode(0)])


def test_a_flush_size_beyond_the_queue_is_refused(tmp_path):
    with pytest.raises(ValueError, match="flush_rows: expected 1 to max_rows=10, came 11"):
        BufferedWriter(Store.open(tmp_path, mode="a"), max_rows=10, flush_rows=11)
