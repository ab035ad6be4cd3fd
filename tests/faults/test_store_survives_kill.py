"""A writer may die at any moment: what it acknowledged is there whole, what it did not is not half there."""

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time

import numpy as np
import pytest

from peira.experience.episode import Episode, episode_ids
from peira.experience.store import Store, StoreError

KILLS = 60
LENGTHS = (1, 7, 40)


def make_episode(run_id: str, number: int) -> Episode:
    length = LENGTHS[number % len(LENGTHS)]
    rng = np.random.default_rng(number)
    return Episode(
        id=episode_ids(run_id, number, 1, 1_700_000_000_000)[0],
        columns={
            "observation": rng.normal(size=(length, 17)).astype(np.float32),
            "action": rng.normal(size=(length, 6)).astype(np.float32),
            "reward": rng.normal(size=length).astype(np.float32),
            "terminated": np.arange(length) == length - 1,
            "truncated": np.zeros(length, bool),
            "behaviour_log_prob": rng.normal(size=length).astype(np.float32),
        },
        policy_version=number,
    )


def write_until_killed(path: str, run_id: str, acknowledgements, also_rewrite: bool) -> None:
    """Append episodes, tell their ids after the append has returned; in between, annotate and compact."""
    store = Store.open(path, mode="a")
    for number in range(0, 1_000_000, 3):
        episodes = [make_episode(run_id, number + extra) for extra in range(3)]
        store.append(episodes)
        acknowledgements.send([(episode.id, number + extra) for extra, episode in enumerate(episodes)])
        if also_rewrite:
            store.annotate("value", np.zeros(len(store), np.float32), replace=True)
            store.compact()


def write_and_be_killed(
    processes, path, run_id: str, seconds: float, also_rewrite: bool, after_the_first: bool
) -> dict[str, int]:
    """What a writer acknowledged before it was killed: numbers by episode id.

    It is killed `seconds` after its start, or after its first acknowledgement.
    """
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=write_until_killed, args=(str(path), run_id, sender, also_rewrite))
    child.start()
    sender.close()
    if after_the_first:
        assert receiver.poll(60), "the writer acknowledged nothing"
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the writer ended by itself"
    acknowledged: dict[str, int] = {}
    with contextlib.suppress(EOFError):
        while True:
            acknowledged.update(receiver.recv())
    return acknowledged


@pytest.fixture(scope="module")
def processes():
    """Processes that start in milliseconds, forked from one that has imported the store and not used it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["peira.experience.store", __name__])
    return context


def test_every_acknowledged_episode_is_whole_after_sixty_kills(tmp_path, processes):
    chance = random.Random(0)
    acknowledged: dict[str, tuple[str, int]] = {}
    for kill in range(KILLS):
        run_id = f"run {kill}"
        got = write_and_be_killed(
            processes, tmp_path, run_id, chance.uniform(0.0, 0.2), kill % 3 == 2, after_the_first=kill % 4 > 0
        )
        acknowledged.update({id_: (run_id, number) for id_, number in got.items()})
    assert len(acknowledged) > KILLS

    store = Store.open(tmp_path)
    report = store.verify()
    assert report["problems"] == []
    found = {episode.id: episode for episode in store.episodes()}
    for id_, (run_id, number) in acknowledged.items():
        expected = make_episode(run_id, number)
        for name, values in expected.columns.items():
            np.testing.assert_array_equal(found[id_].columns[name], values)
    # A writer may die between its commit and its acknowledgement: three episodes a kill at most.
    assert len(found) <= len(acknowledged) + 3 * KILLS

    survivor = Store.open(tmp_path, mode="a")
    survivor.append([make_episode("survivor", 0)])
    survivor.compact()
    assert survivor.verify()["problems"] == []
    assert survivor.verify()["episodes"] == len(found) + 1


def write_some(path: str, run_id: str, count: int, start, acknowledgements) -> None:
    store = Store.open(path, mode="a")
    start.wait()
    for number in range(count):
        store.append([make_episode(run_id, number)])
        if run_id == "run 0" and number % 5 == 4:
            store.annotate("value", np.zeros(len(store), np.float32), replace=True)
    acknowledgements.send(len(store))


def test_two_writers_at_once_both_have_all_their_episodes_there(tmp_path, processes):
    count, start = 15, processes.Barrier(3)
    receivers, children = [], []
    for run_id in ("run 0", "run 1"):
        receiver, sender = processes.Pipe(duplex=False)
        child = processes.Process(target=write_some, args=(str(tmp_path), run_id, count, start, sender))
        child.start()
        receivers.append(receiver)
        children.append(child)
    start.wait()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert all(receiver.poll() for receiver in receivers)

    store = Store.open(tmp_path)
    assert store.verify()["problems"] == []
    ids = {episode.id for episode in store.episodes()}
    expected = {make_episode(run_id, number).id for run_id in ("run 0", "run 1") for number in range(count)}
    assert ids == expected


def append_one(path: str, number: int, start) -> None:
    store = Store.open(path, mode="a")
    start.wait()
    store.append([make_episode("run", number)])


def test_of_writers_that_make_the_store_at_the_same_moment_none_loses_its_episode(tmp_path, processes):
    start = processes.Barrier(4)
    children = [processes.Process(target=append_one, args=(str(tmp_path), n, start)) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    report = Store.open(tmp_path).verify()
    assert (report["episodes"], report["problems"]) == (4, [])


def fill_the_disk(path: str, limit: int, outcome) -> None:
    """Append under a limit on the size of files, as on a full disk: the write itself fails, half way."""
    store = Store.open(path, mode="a")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        store.append([make_episode("too large", number) for number in range(300)])
        outcome.send("no error")
    except StoreError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store.append([make_episode("after", 0)])
        outcome.send(str(error))


@pytest.mark.parametrize("limit", [0, 100, 50_000])
def test_a_write_that_fails_half_way_is_a_clear_error_and_harms_nothing(tmp_path, processes, limit):
    Store.open(tmp_path, mode="a").append([make_episode("before", number) for number in range(5)])
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=fill_the_disk, args=(str(tmp_path), limit, sender))
    child.start()
    child.join(60)
    message = receiver.recv()
    assert str(tmp_path) in message
    assert "allowed size (ulimit -f)" in message
    assert "the episodes stored before are intact" in message
    assert "\n" not in message
    report = Store.open(tmp_path).verify()
    assert (report["episodes"], report["problems"]) == (6, [])


def test_a_full_disk_is_a_clear_error_and_what_was_stored_stays(tmp_path):
    """A file system of two megabytes, or where none may be mounted the same error from fsync."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        # Where this machine allows no mount, the call that makes rows safe says what a full disk says.
        errors = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        store = Store.open(disk, mode="a")
        store.append([make_episode("before", 0)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(errors))
            with pytest.raises(StoreError, match="the disk is full"):
                store.append([make_episode("refused", 0)])
        assert Store.open(disk).verify()["problems"] == []
        return
    try:
        store, stored, refused = Store.open(disk, mode="a"), 0, None
        while refused is None:
            try:
                stored += store.append([make_episode("run", stored + extra) for extra in range(150)])
            except StoreError as error:
                refused = error
        assert isinstance(refused, OSError)
        assert str(refused) == (
            f"{disk}/experience.lance: the disk is full, free some space and append again; "
            "the episodes stored before are intact"
        )
        assert stored > 0
        report = Store.open(disk).verify()
        assert (report["episodes"], report["problems"]) == (stored, [])
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        store.append([make_episode("run", stored + extra) for extra in range(150)])
        assert Store.open(disk).verify()["episodes"] == stored + 150
    finally:
        subprocess.run(["umount", str(disk)], check=True)
