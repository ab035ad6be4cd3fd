"""The recipe on a small log: every source in front of both learners, killed and taken up again, and bad input."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from offline_runs import pendulum_like_log, started

from peira.experience.schema import validate
from peira.experience.store import Store
from peira.recipes import pgd
from peira.runs import checkpoint
from peira.sources.guided_diffusion import TrajectoryDiffusion


def config_for(log, **options):
    settings = {
        "updates": 40,
        "chunk": 10,
        "refresh": 20,
        "windows": 24,
        "length": 8,
        "features": 8,
        "blocks": 2,
        "fit_updates": 20,
        "fit_batch": 16,
        "denoising_steps": 6,
        "hidden": (8,),
        "batch": 32,
        "synthetic": 30,
        "horizon": 3,
        "evaluations": 1,
        "evaluation_episodes": 2,
        "compiled": False,
    }
    return pgd.Config(log=str(log), **{**settings, **options})


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return pendulum_like_log(tmp_path_factory.mktemp("log") / "log.parquet")


def ran(folder, config):
    run = started(folder, "pgd", config)
    policy = pgd.run(config, run)
    run.finish(policy)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return policy, metrics, run


@pytest.mark.parametrize(
    ("data", "learner"),
    [*((data, "td3bc") for data in ("real", "unguided", "guided", "synther", "ensemble")), ("guided", "iql")],
)
def test_every_source_feeds_either_learner(tmp_path, log, data, learner):
    policy, metrics, run = ran(tmp_path / "run", config_for(log, data=data, learner=learner))
    assert policy.version == 40
    assert "evaluation_return" in metrics[-1]
    learned = [row for row in metrics if "actor_loss" in row]
    assert [row["updates"] for row in learned] == [10, 20, 30, 40]
    share = {"real": None, "guided": "share_guided"}.get(data, "share_dreamed")
    for row in learned if data != "guided" else learned[2:]:
        assert row["share_logged"] == pytest.approx(1.0 if data == "real" else 2 / 32)
        assert share is None or row[share] == pytest.approx(30 / 32)
    assert run.costs["real_steps"] == 0
    assert run.costs["logged_steps"] == (40 * 32 if data == "real" else 40 * 2)


def test_synthetic_sets_are_stored_with_what_guided_them_and_no_propensity(tmp_path, log):
    _, metrics, _ = ran(tmp_path / "run", config_for(log, lifetime=2))
    table = Store.open(tmp_path / "run" / "experience.lance").read()
    validate(table)
    source = np.array(table["source"].to_pylist())
    version = np.array(table["policy_version"].to_pylist(), float)
    # The first set is unguided; the second was guided by the actor after 20 updates.
    assert set(source) == {"dreamed", "guided"}
    assert np.isnan(version[source == "dreamed"]).all()
    assert set(version[source == "guided"]) == {20}
    assert set(table["synthetic_strength"].to_pylist()) == {0.0, 2.0}
    assert not {"propensity", "behaviour_log_prob"} & set(table.column_names)
    assert metrics[-1]["staleness"] == 20.0
    assert metrics[-1]["share_dreamed"] == pytest.approx(15 / 32)
    claimed = table.append_column("propensity", pa.array(np.full(len(table), 0.5, np.float32)))
    with pytest.raises(ValueError, match=r"propensity: row 0 was dreamed yet carries 0\.5"):
        validate(claimed)


KILLED_RUNS = """
import json, os, signal, sys
import torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from offline_runs import started
from peira.recipes import pgd
from peira.sources import guided_diffusion
from test_pgd_recipe import config_for
torch.set_num_threads(1)
guided_diffusion.PART = 8
config = config_for(sys.argv[2], **json.loads(sys.argv[3]))

def run(folder, iteration):
    # Killed at the end of this iteration; the checkpoint of the one before stays.
    run = started(Path(folder), "pgd", config)
    write = run._write_metrics
    def write_or_die():
        if run.iteration == iteration:
            os.kill(os.getpid(), signal.SIGKILL)
        write()
    run._write_metrics = write_or_die
    pgd.run(config, run)
    run.close()

def forked(folder, iteration):
    # Nothing of Lance has run in the process that is forked.
    if (child := os.fork()) == 0:
        try:
            run(folder, iteration)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

whole, killed, *iterations = sys.argv[4:]
statuses = [forked(whole, None), *(forked(killed, int(i)) for i in iterations), forked(killed, None)]
print(json.dumps(statuses))
"""


def test_a_run_killed_while_fitting_generating_and_refreshing_ends_bit_for_bit_the_same(tmp_path, log):
    options = {"learner": "iql", "negative_behaviour": 0.1, "tune_strength": True, "lifetime": 2}
    kills = (2, 6, 12)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED_RUNS, Path(__file__).parent, log, json.dumps(options), whole, killed]
        + [str(iteration) for iteration in kills],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, *[-signal.SIGKILL] * len(kills), 0], done.stderr
    expected, found = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, killed)
    )
    phases = ["fit" if "fit_loss" in r else "learn" if "actor_loss" in r else "make" for r in expected]
    # Fitting, cloning the behaviour, the parts of the first set, learning, tuning and the parts of the second set.
    assert phases == ["fit"] * 2 + ["make"] * 2 + ["make"] * 3 + ["learn"] * 2 + ["make"] * 4 + ["learn"] * 2
    for row in (*expected, *found):
        del row["wall_seconds"]
    assert found == expected
    ended = [checkpoint.load_tree(checkpoint.newest(folder / "checkpoints")) for folder in (whole, killed)]
    for tree in ended:
        for each in tree["parts"]["buffer"]["sets"]:
            del each["policy_id"]  # It names the run.
    for name in ("parts", "generators", "costs", "iteration"):
        assert alike(ended[0][name], ended[1][name]), name
    stored = [
        Store.open(folder / "experience.lance").read(columns=["observation", "action", "policy_version"])
        for folder in (whole, killed)
    ]
    assert stored[0].equals(stored[1])


def alike(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return torch.equal(torch.as_tensor(a), torch.as_tensor(b)) if hasattr(a, "shape") else a == b


def test_a_model_fitted_before_is_used_again(tmp_path, log):
    _, metrics, _ = ran(tmp_path / "a", config_for(log, updates=20))
    folder = tmp_path / "a" / "diffusion"
    _, again, _ = ran(tmp_path / "b", config_for(log, updates=20, model=str(folder)))
    assert not any("fit_loss" in row for row in again)
    first, second = (
        Store.open(tmp_path / which / "experience.lance").read(columns=["synthetic_generator_id", "action"])
        for which in "ab"
    )
    assert first.equals(second)
    assert again[-1]["actor_loss"] == metrics[-1]["actor_loss"]
    with pytest.raises(ValueError, match="model: a diffusion model has no part in data synther"):
        config_for(log, data="synther", model=str(folder))
    other = TrajectoryDiffusion.load(folder)
    other.channels.bounds.low -= 1.0
    other.save(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"model: .* was fitted to 3 observations and actions within \[-3\.0\]"
    ):
        ran(tmp_path / "c", config_for(log, model=str(tmp_path / "other")))


def test_another_seed_is_another_run(tmp_path, log):
    first, _, _ = ran(tmp_path / "a", config_for(log, data="real", updates=10))
    second, _, _ = ran(tmp_path / "b", config_for(log, data="real", updates=10, seed=1))
    assert not torch.equal(first.net.weights[0], second.net.weights[0])


def test_discrete_environments_and_logs_are_refused(tmp_path, log):
    with pytest.raises(ValueError, match="env: CartPole-v1 has 2 discrete actions"):
        ran(tmp_path / "a", config_for(log, env="CartPole-v1"))
    table = pq.read_table(log)
    place = table.column_names.index("action")
    discrete = table.set_column(place, "action", pa.array(np.zeros(len(table), np.int64)))
    pq.write_table(discrete, tmp_path / "discrete.parquet")
    with pytest.raises(ValueError, match="action: expected vectors of floating-point numbers, got int64"):
        ran(tmp_path / "b", config_for(tmp_path / "discrete.parquet"))


def test_actions_outside_the_bounds_are_refused_or_clipped(tmp_path, log):
    table = pq.read_table(log)
    values = table["action"].combine_chunks().flatten().to_numpy() * 1.5
    place = table.column_names.index("action")
    wide = table.set_column(place, "action", pa.FixedSizeListArray.from_arrays(pa.array(values), 1))
    pq.write_table(wide, tmp_path / "wide.parquet")
    with pytest.raises(
        ValueError, match=r"action: \d+ of 360 rows lie outside the bounds .* add --clip-actions"
    ):
        ran(tmp_path / "a", config_for(tmp_path / "wide.parquet"))
    _, metrics, _ = ran(tmp_path / "b", config_for(tmp_path / "wide.parquet", clip_actions=True, updates=20))
    assert np.isfinite(metrics[-1]["actor_loss"])


def test_one_episode_and_a_constant_channel_are_said_and_learned_from(tmp_path):
    path = pendulum_like_log(tmp_path / "one.parquet", episodes=1, steps=60)
    table = pq.read_table(path)
    zero = np.zeros(60, np.float32)
    table = table.set_column(table.column_names.index("reward"), "reward", pa.array(zero))
    pq.write_table(table, path)
    _, metrics, run = ran(tmp_path / "run", config_for(path, updates=20))
    assert any("none is held out" in line for line in run._remarks)
    assert not any("fit_validation_loss" in row for row in metrics)
    made = Store.open(tmp_path / "run" / "experience.lance").read(columns=["reward"])
    assert set(made["reward"].to_pylist()) == {0.0}


def test_windows_longer_than_any_episode_are_refused(tmp_path, log):
    with pytest.raises(ValueError, match="length: no episode has 40 steps, the longest has 30"):
        ran(tmp_path / "run", config_for(log, length=40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"updates": 45}, "updates: expected a multiple of chunk=10, got 45"),
        ({"refresh": 25}, "refresh: expected a multiple of chunk=10, got 25"),
        ({"synthetic": 33}, "synthetic: expected at most batch=32, got 33"),
        ({"strength": 0.0}, "strength: guided data need a strength above 0"),
        ({"tune_strength": True}, r"tune_strength: a deterministic actor \(td3bc\) has no spread to tune to"),
        ({"length": 1}, "length: expected at least 2, got 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(log, options, message):
    with pytest.raises(ValueError, match=message):
        config_for(log, **options)


def test_a_log_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="log: this recipe learns from a log; name one by --log PATH"):
        ran(tmp_path / "run", dataclasses.replace(config_for("x"), log=""))
