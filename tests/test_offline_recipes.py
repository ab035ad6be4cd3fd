"""TD3+BC, BC and IQL as `peira run` runs them: no real step, evaluated when due, and resumed bit for bit."""

import json
import signal

import numpy as np
import pytest
from command_processes import Commands, metrics, summary, until_killed_in

from peira.environments.pendulum_policies import pendulum_log
from peira.experience.store import Store
from peira.policies.files import load_policy

SMALL = ["--env", "Pendulum-v1", "--updates", "60", "--chunk", "10", "--batch", "16", "--hidden", "8"]
SMALL += ["--evaluations", "3", "--evaluation-episodes", "2", "--no-compiled"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("offline"))


@pytest.fixture(scope="module")
def log(commands):
    store = Store.open(commands.folder / "log", mode="a")
    store.append(pendulum_log(4, np.random.default_rng(0), run_id="test"))
    return commands.folder / "log"


@pytest.mark.parametrize(
    ("recipe", "extra", "policy"),
    [
        ("td3bc", [], "DeterministicActor"),
        ("bc", ["--best", "0.5"], "DeterministicActor"),
        ("iql", [], "GaussianActor"),
    ],
)
def test_a_run_takes_no_real_step_and_is_judged_in_the_world(commands, log, recipe, extra, policy):
    folder = commands.folder / recipe
    ended = commands.run("run", recipe, *SMALL, *extra, "--log", log, "--out", folder)
    assert ended.status == 0, ended.stderr
    assert "60/60 updates" in ended.stderr
    found, rows = summary(folder), metrics(folder)
    ledger = found["ledger"]
    assert (found["steps"], found["updates"], ledger["real_steps"]) == (0, 60, 0)
    assert (ledger["logged_steps"], ledger["share_logged"], ledger["evaluation_steps"]) == (
        60 * 16,
        1.0,
        1200,
    )
    assert [row["updates"] for row in rows if "evaluation_return" in row] == [20, 40, 60]
    assert type(load_policy(folder / "policy")).__name__ == policy
    assert load_policy(folder / "policy").version == 60
    assert (folder / "curve.png").exists() and not (folder / "experience.lance").exists()
    if recipe == "bc":
        assert found["remarks"] == ["log: learned from 2 of 4 episodes, those of the highest returns"]


@pytest.mark.parametrize("recipe", ["td3bc", "iql"])
def test_a_killed_run_ends_as_one_that_was_never_killed(commands, log, recipe):
    whole, killed = commands.folder / f"whole {recipe}", commands.folder / f"killed {recipe}"
    order = ["run", recipe, *SMALL, "--log", log, "--checkpoint-seconds", "0"]
    assert commands.run(*order, "--out", whole).status == 0
    first = until_killed_in("peira.runs.checkpoint:save_tree", call=4)
    assert commands.run(*order, "--out", killed, first=first).status == -signal.SIGKILL
    assert len((killed / "metrics.jsonl").read_text().splitlines()) == 4
    ended = commands.run("run", "--resume", killed)
    assert ended.status == 0, ended.stderr
    assert summary(killed)["policy_hash"] == summary(whole)["policy_hash"]
    assert metrics(killed) == metrics(whole)
    assert summary(killed)["score"] == summary(whole)["score"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "log: this recipe learns from a log; name one by --log PATH"),
        (["--log", "nowhere"], "log: nowhere does not exist"),
        (["--updates", "15", "--log", "LOG"], "updates: expected a multiple of chunk=10, got 15"),
        (["--env", "CartPole-v1", "--log", "LOG"], "env: CartPole-v1 has 2 discrete actions"),
        (["--best", "2", "--log", "LOG"], "best: expected 1e-09 to 1, got 2"),
    ],
)
def test_bad_orders_are_refused_in_one_line(commands, log, arguments, line):
    given = [str(log) if word == "LOG" else word for word in arguments]
    ended = commands.run("run", "td3bc", *SMALL, *given, "--out", commands.folder / "refused")
    assert ended.status == 2
    assert line in ended.stderr.splitlines()[0]


def test_a_log_is_made_from_the_command_line(commands):
    path = commands.folder / "made"
    order = [
        "store",
        "make-log",
        path,
        "--env",
        "Pendulum-v1",
        "--policy",
        "scripted",
        "--steps",
        "400",
        "--json",
    ]
    ended = commands.run(*order)
    assert ended.status == 0, ended.stderr
    assert json.loads(ended.stdout)["steps"] == 400
    refused = commands.run(*order)
    assert refused.status == 2 and "holds 400 steps already" in refused.stderr
