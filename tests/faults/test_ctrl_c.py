"""Ctrl-C and SIGTERM: the iteration is finished, a checkpoint written, and the way to go on is said."""

import signal
from pathlib import Path

import pytest
from command_processes import TINY, Command, Commands, metrics, summary, wait_for

# So long that no signal comes too late; checkpoints are only those that the signal causes.
LONG = ["run", "ppo", "--env", "CartPole-v1", "--steps", "1000000", "--batch-steps", "256", *TINY]
SHORT = ["run", "ppo", "--env", "CartPole-v1", "--steps", "2048", "--batch-steps", "256", *TINY]
# In a run's iteration 4, before it is over, the process sends itself the signal: always the same moment.
AT_ITERATION_4 = """
import os, peira.runs.run
true_columns = peira.runs.run.on_policy_columns
count = []
def columns(policy, batch):
    count.append(None)
    if len(count) == 4:
        {act}
    return true_columns(policy, batch)
peira.runs.run.on_policy_columns = columns
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("stopped"))


@pytest.fixture(scope="module")
def undisturbed(commands) -> Path:
    folder = commands.folder / "undisturbed"
    assert commands.run(*SHORT, "--out", folder).status == 0
    return folder


def iterations_with_checkpoint(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint_and_going_on_changes_nothing(
    commands, undisturbed, kind, tmp_path
):
    folder = tmp_path / "run"
    act = f"os.kill(os.getpid(), {int(kind)})"
    ended = commands.run(*SHORT, "--out", folder, first=AT_ITERATION_4.format(act=act))
    assert ended.status == 130
    assert ended.stdout == ""
    assert ended.stderr == (
        "stopping after this iteration; a checkpoint will be written\n"
        "peira: interrupted\n"
        f"go on with: peira run --resume {folder}\n"
    )
    assert len(metrics(folder)) == 4
    assert iterations_with_checkpoint(folder) == ["4"]
    assert not (folder / "summary.json").exists()

    ended = commands.run("run", "--resume", folder)
    assert ended.status == 0, ended.stderr
    assert summary(folder)["policy_hash"] == summary(undisturbed)["policy_hash"]
    assert metrics(folder) == metrics(undisturbed)


def test_a_signal_at_any_moment_from_outside_is_heard(commands, tmp_path):
    folder = tmp_path / "run"
    command = commands.start(*LONG, "--out", folder)
    wait_for(folder / "metrics.jsonl", 3)
    command.send(signal.SIGINT)
    ended = command.wait()
    assert ended.status == 130
    assert ended.stderr.endswith(f"peira: interrupted\ngo on with: peira run --resume {folder}\n")
    done = len(metrics(folder))
    assert iterations_with_checkpoint(folder) == [str(done)]

    # A resumed run can be stopped the same way.
    command = commands.start("run", "--resume", folder)
    wait_for(folder / "metrics.jsonl", done + 2)
    command.send(signal.SIGTERM)
    assert command.wait().status == 130
    assert len(metrics(folder)) > done


def test_a_second_ctrl_c_does_not_wait_for_the_iteration(commands, undisturbed, tmp_path):
    folder = tmp_path / "run"
    act = "os.kill(os.getpid(), 2); os.kill(os.getpid(), 2)"
    ended = commands.run(
        *SHORT, "--out", folder, "--checkpoint-seconds", "0", first=AT_ITERATION_4.format(act=act)
    )
    assert ended.status == 130
    assert len(metrics(folder)) == 3
    assert iterations_with_checkpoint(folder) == ["2", "3"]
    assert commands.run("run", "--resume", folder).status == 0
    assert summary(folder)["policy_hash"] == summary(undisturbed)["policy_hash"]


def test_ctrl_c_before_the_first_iteration_leaves_a_run_that_can_go_on(commands, undisturbed, tmp_path):
    folder = tmp_path / "a folder with spaces"
    first = """
import os, peira.recipes.ppo
true_step = peira.recipes.ppo.ppo_step
def ppo_step(*arguments):
    os.kill(os.getpid(), 2)
    return true_step(*arguments)
peira.recipes.ppo.ppo_step = ppo_step
"""
    ended = commands.run(*SHORT, "--out", folder, first=first)
    assert ended.status == 130
    assert ended.stderr == f"peira: interrupted\ngo on with: peira run --resume '{folder}'\n"
    assert commands.run("run", "--resume", folder).status == 0
    assert metrics(folder) == metrics(undisturbed)


def stop_comparison(commands: Commands, out: Path) -> Command:
    return commands.start("compare", "ppo", "ros", *LONG[2:], "--seeds", "1", "--jobs", "1", "--out", out)


def test_ctrl_c_stops_a_comparison_and_its_runs_with_checkpoints(commands, tmp_path):
    out = tmp_path / "comparison"
    command = stop_comparison(commands, out)
    run = out / "runs" / "ppo" / "seed-0"
    wait_for(run / "metrics.jsonl", 2)
    command.send(signal.SIGINT)
    ended = command.wait()
    assert ended.status == 130
    assert ended.stderr.endswith(f"peira: interrupted\ngo on with the same command and --out {out}\n")
    assert iterations_with_checkpoint(run) == [str(len(metrics(run)))]
