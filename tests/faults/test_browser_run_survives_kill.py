"""A training run on web pages that is killed between two actions goes on, and its store holds whole episodes only."""

import json
import signal

import pytest
from command_processes import Commands, until_killed_in

from peira.experience.store import Store

RUN = ["arpo", "--env", "miniwob/click-test-2", "--model", "dom:", "--num-envs", "4", "--tasks", "4"]
RUN += [
    "--groups",
    "2",
    "--group-size",
    "4",
    "--steps",
    "400",
    "--evaluations",
    "1",
    "--evaluation-episodes",
    "4",
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("browser"))


def test_a_kill_in_the_midst_of_episodes(commands):
    folder = commands.folder / "run"
    death = until_killed_in("peira.sources.choice_rollout:choose", call=20)
    killed = commands.run("run", *RUN, "--checkpoint-seconds", "0", "--out", folder, first=death)
    assert killed.status == -signal.SIGKILL
    ended = commands.run("run", "--resume", folder, "--json")
    assert ended.status == 0, ended.stderr
    summary = json.loads(ended.stdout)
    store = Store.open(folder / "experience.lance")
    assert store.verify()["problems"] == []
    rows = store.read()
    assert len(rows) >= summary["ledger"]["real_steps"]
    assert len(set(rows["episode_id"].to_pylist())) > 20
