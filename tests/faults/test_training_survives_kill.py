"""A training run killed at any moments of its life ends as if nothing had happened."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from command_processes import TINY, TINY_PROPS, Commands, metrics, summary, until_killed_in

from peira.experience.store import Store

KILLS = 10
# EnvPool's simulators are rebuilt by resets and replayed actions; FrozenLake slips, so that its random state
# within an episode has to come back too.
RUNS = {
    "props on EnvPool": ["props", "--env", "Hopper-v5", "--steps", "1280", *TINY_PROPS],
    "ppo on Gymnasium": ["ppo", "--env", "FrozenLake-v1", "--steps", "1280", *TINY],
}
OFTEN = ["--batch-steps", "128", "--checkpoint-seconds", "0"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def undisturbed(commands):
    """The folder of each run that nothing disturbed, and the seconds it took."""
    made: dict[str, tuple[Path, float]] = {}

    def make(name: str) -> tuple[Path, float]:
        if name not in made:
            folder = commands.folder / f"undisturbed {name}"
            began = time.monotonic()
            ended = commands.run("run", *RUNS[name], *OFTEN, "--out", folder)
            assert ended.status == 0, ended.stderr
            made[name] = folder, time.monotonic() - began
        return made[name]

    return make


def episodes(folder: Path) -> list[dict]:
    """What the store holds, apart from ids, which name the run, and the time of writing."""
    store = Store.open(folder / "experience.lance")
    assert store.verify()["problems"] == []
    found = [
        {name: values.tolist() for name, values in sorted(episode.columns.items())}
        | {"version": episode.policy_version, "task": episode.task_id, "source": episode.source}
        for episode in store.episodes()
    ]
    for episode in found:
        episode.pop("created_at", None)
        episode.pop("policy_id", None)
    return sorted(found, key=json.dumps)


def assert_same(resumed: Path, reference: Path) -> None:
    assert summary(resumed)["policy_hash"] == summary(reference)["policy_hash"]
    assert metrics(resumed) == metrics(reference)
    assert episodes(resumed) == episodes(reference)
    without_time = [
        {name: value for name, value in summary(folder)["ledger"].items() if name != "wall_seconds"}
        for folder in (resumed, reference)
    ]
    assert without_time[0] == without_time[1]
    assert summary(resumed)["score"] == summary(reference)["score"]


@pytest.mark.parametrize("name", RUNS)
def test_ten_kills_at_random_moments_change_nothing(commands, undisturbed, name):
    reference, seconds = undisturbed(name)
    folder = commands.folder / f"killed {name}"
    start = ["run", *RUNS[name], *OFTEN, "--out", folder]
    chance, kills, progress = random.Random(name), 0, set()
    while kills < KILLS:
        going_on = ["run", "--resume", folder, "--checkpoint-seconds", "0"]
        command = commands.start(*(going_on if (folder / "config.yaml").exists() else start))
        wait_for_lines(folder, len(metrics_so_far(folder)) + chance.choice([0, 1, 1, 2]))
        time.sleep(chance.uniform(0.0, 0.1 * seconds))
        command.send(signal.SIGKILL)
        ended = command.wait()
        assert ended.status in (-signal.SIGKILL, 0), ended.stderr
        if ended.status == 0:  # It was quicker than its killer: begin its life anew.
            assert_same(folder, reference)
            shutil.rmtree(folder)
            continue
        kills += 1
        progress.add(len(metrics_so_far(folder)))
    assert len(progress) > 3, f"the kills came at the same few moments: {progress}"

    if (folder / "config.yaml").exists():
        start = ["run", "--resume", folder]
    ended = commands.run(*start)
    assert ended.status == 0, ended.stderr
    assert_same(folder, reference)


TINY_LOG = ["--log-trajectories", "200", "--evaluation-episodes", "20", "--checkpoint-seconds", "0"]
HYBRID = {
    "hnpg": ["--steps", "1000", "--batch-steps", "250", "--critic-steps", "3", *TINY_LOG],
    "rlpd": [
        "--steps",
        "80",
        "--batch-steps",
        "20",
        "--warm-up",
        "20",
        "--batch",
        "16",
        "--no-compiled",
        *TINY_LOG,
    ],
}


@pytest.mark.parametrize(
    ("recipe", "moment", "call"),
    [
        ("hnpg", "peira.credit.hybrid_critic:HybridCritic.sweep", 3),
        ("hnpg", "peira.learners.natural_gradient:NaturalGradient.update", 3),
        ("hnpg", "peira.runs.checkpoint:save_file", 3),
        ("rlpd", "peira.learners.offline:OfflineLearner.update", 3),
    ],
)
def test_a_kill_while_log_and_fresh_steps_are_learned_from_changes_nothing(commands, recipe, moment, call):
    start = ["run", recipe, "--env", "lock-h5", "--log", "mixed", *HYBRID[recipe]]
    reference, folder = (commands.folder / f"{of} {recipe} {moment}" for of in ("whole", "killed"))
    assert commands.run(*start, "--out", reference).status == 0
    ended = commands.run(*start, "--out", folder, first=until_killed_in(moment, call=call))
    assert ended.status == -signal.SIGKILL, ended.stderr
    assert not (folder / "summary.json").exists()
    ended = commands.run("run", "--resume", folder)
    assert ended.status == 0, ended.stderr
    assert_same(folder, reference)


def metrics_so_far(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_lines(folder: Path, wanted: int) -> None:
    """Until that many iterations are in the metrics, or the run is over: a busy machine is waited for."""
    deadline = time.monotonic() + 60
    while len(metrics_so_far(folder)) < wanted and not (folder / "summary.json").exists():
        assert time.monotonic() < deadline, f"{folder} did not come to iteration {wanted}"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("moment", "left_behind"),
    [
        # Each checkpoint syncs two files, its folder and the folder above: the 10th call is in the third.
        ("peira.runs.checkpoint:sync", ".3.part"),
        ("peira.runs.checkpoint:save_file", ".3.part"),
        ("peira.runs.checkpoint:drop_old", "3"),
    ],
)
def test_a_kill_while_a_checkpoint_is_written_falls_back_on_the_one_before(
    commands, undisturbed, moment, left_behind
):
    name = "ppo on Gymnasium"
    reference, _ = undisturbed(name)
    folder = commands.folder / f"killed in {moment}"
    calls = 10 if moment.endswith(":sync") else 3
    ended = commands.run(
        "run", *RUNS[name], *OFTEN, "--out", folder, first=until_killed_in(moment, call=calls)
    )
    assert ended.status == -signal.SIGKILL
    assert (folder / "checkpoints" / left_behind).exists()
    assert {"2"} <= {path.name for path in (folder / "checkpoints").iterdir()} <= {"1", "2", left_behind}

    ended = commands.run("run", "--resume", folder, "--checkpoint-seconds", "0")
    assert ended.status == 0, ended.stderr
    assert_same(folder, reference)


def test_a_kill_between_the_last_checkpoint_and_the_summary_leaves_only_the_summary_to_do(
    commands, undisturbed
):
    name = "props on EnvPool"
    reference, _ = undisturbed(name)
    folder = commands.folder / "killed before the summary"
    ended = commands.run(
        "run",
        *RUNS[name],
        *OFTEN,
        "--out",
        folder,
        first=until_killed_in("peira.runs.run:save_policy", call=1),
    )
    assert ended.status == -signal.SIGKILL
    newest = folder / "checkpoints" / "10" / "state.json"
    written = newest.stat().st_mtime_ns
    ended = commands.run("run", "--resume", folder)
    assert ended.status == 0, ended.stderr
    assert_same(folder, reference)
    assert (
        newest.stat().st_mtime_ns == written
    )  # The newest checkpoint is never taken away to be written anew.


@pytest.fixture
def stopped(commands, undisturbed, tmp_path) -> Path:
    """A run on Gymnasium that was killed in its seventh checkpoint."""
    folder = tmp_path / "stopped"
    first = until_killed_in("peira.runs.checkpoint:save_tree", call=7)
    ended = commands.run("run", *RUNS["ppo on Gymnasium"], *OFTEN, "--out", folder, first=first)
    assert ended.status == -signal.SIGKILL
    return folder


def test_a_half_written_line_of_metrics_is_written_again(commands, undisturbed, stopped):
    path = stopped / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 7
    path.write_text("".join(lines[:6]) + lines[6][: len(lines[6]) // 2])
    ended = commands.run("run", "--resume", stopped)
    assert ended.status == 0, ended.stderr
    assert_same(stopped, undisturbed("ppo on Gymnasium")[0])


def test_a_board_shows_no_iteration_twice(commands, stopped):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert commands.run("run", "--resume", stopped).status == 0
    board = EventAccumulator(str(stopped / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("real_steps")] == list(range(1, 11))


def test_a_run_killed_before_its_first_checkpoint_begins_again(commands, undisturbed):
    """What the store took in by then stays, and stays single."""
    name = "ppo on Gymnasium"
    folder = commands.folder / "killed before a checkpoint"
    eager = """
import functools, peira.runs.run
peira.runs.run.BufferedWriter = functools.partial(peira.runs.run.BufferedWriter, flush_rows=1)
"""
    arguments = ["run", *RUNS[name], "--batch-steps", "128", "--checkpoint-seconds", "1000", "--out", folder]
    first = eager + until_killed_in("peira.runs.run:on_policy_columns", call=9)
    assert commands.run(*arguments, first=first).status == -signal.SIGKILL
    assert not any((folder / "checkpoints").glob("*"))
    assert len(metrics_so_far(folder)) == 8
    assert Store.open(folder / "experience.lance").verify()["episodes"] > 10
    ended = commands.run("run", "--resume", folder)
    assert ended.status == 0, ended.stderr
    assert_same(folder, undisturbed(name)[0])


def test_two_processes_never_work_on_one_run(commands, stopped):
    """One of them stops at the door, having touched nothing."""
    waiting = f"""
import os, time, peira.runs.run
true_finish = peira.runs.run.Run.finish
def finish(run, policy):
    open({str(stopped / "waiting")!r}, "w").close()
    while os.path.exists({str(stopped / "waiting")!r}):
        time.sleep(0.01)
    return true_finish(run, policy)
peira.runs.run.Run.finish = finish
"""
    first = commands.start("run", "--resume", stopped, first=waiting)
    while not (stopped / "waiting").exists():
        time.sleep(0.01)
    before = (stopped / "metrics.jsonl").read_text()
    ended = commands.run("run", "--resume", stopped)
    assert ended.status == 2
    assert ended.stderr == (
        f"peira: resume: another process is at work on the run in {stopped}; wait for it or stop it\n"
    )
    assert (stopped / "metrics.jsonl").read_text() == before
    (stopped / "waiting").unlink()
    assert first.wait().status == 0
