"""The bandit recipe from the command line: periods, store, gate, streams, and a kill that leaves no trace."""

import json
import signal

import numpy as np
import pytest
from command_processes import Commands, metrics, until_killed_in
from command_processes import summary as summary_of

from peira.evaluation.off_policy.log import read_log
from peira.experience.decision_formats import read_decisions
from peira.learners.decision_policy import load_policy

SMALL = ["bandit", "--env", "payment", "--period", "500", "--steps", "2000", "--oracle", "ridge"]
SMALL += ["--attribution-window", "100", "--evaluation-episodes", "200"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("bandit"))


@pytest.fixture(scope="module")
def ran(commands):
    folder = commands.folder / "ran"
    ended = commands.run("run", *SMALL, "--out", folder, "--json")
    assert ended.status == 0, ended.stderr
    return folder, json.loads(ended.stdout)


def test_a_run_reports_its_generations(ran):
    folder, summary = ran
    rows = metrics(folder)
    assert [row["real_steps"] for row in rows] == [500, 1000, 1500, 2000]
    for row in rows:
        assert {"regret", "value", "positive_rate", "gamma", "staleness", "effective_sample_size"} <= set(row)
        assert row["deployed"] == 1
        assert row["share_real"] == 1  # W = 1 forgets everything else.
    # γ = 10 √t of the rows with an outcome, and the rows that wait for one are not among them.
    assert [row["gamma"] for row in rows] == pytest.approx(10 * np.sqrt([400, 900, 1400, 1900]))
    assert "flip_rate" not in rows[0]
    assert 0 < rows[1]["flip_rate"] < 1
    assert summary["score"] == rows[-1]["evaluation_return"]
    assert summary["ledger"]["evaluation_steps"] == 4 * 200
    assert summary["remarks"] == ["4 generations are too few to see a trend or an oscillation"]
    assert (folder / "curve.png").exists()


def test_its_policy_and_its_log_can_be_read_back(ran):
    folder, _ = ran
    policy = load_policy(folder / "policy")
    rows, schema = read_decisions(folder)
    assert policy.oracle.schema == schema
    assert len(rows) == 1900
    assert sorted(np.unique(rows.generation)) == [0, 1, 2, 3]
    first = rows.take(rows.generation == 0)
    np.testing.assert_allclose(first.propensity, 1 / first.choices.count)
    later = rows.take(~rows.uniform & (rows.generation == 3))
    assert later.propensity.min() < 0.1
    np.testing.assert_allclose(rows.pmf.sum(1), 1)

    log = read_log(folder)
    np.testing.assert_allclose(np.exp(log.log_propensity), rows.propensity)
    np.testing.assert_array_equal(log.reward, rows.reward)
    assert log.action_set.sum(1).tolist() == rows.choices.count.tolist()


def test_a_killed_run_comes_to_the_same_policy(commands, ran):
    folder = commands.folder / "killed"
    ended = commands.run(
        *["run", *SMALL, "--checkpoint-seconds", "0", "--out", folder],
        first=until_killed_in("peira.recipes.bandit:succeed", call=3),
    )
    assert ended.status == -signal.SIGKILL
    assert len(metrics(folder)) == 2
    assert commands.run("run", "--resume", folder).status == 0
    straight, _ = ran
    for one, other in zip(metrics(folder), metrics(straight), strict=True):
        assert {**one, "wall_seconds": 0} == {**other, "wall_seconds": 0}
    assert summary_of(folder)["policy_hash"] == summary_of(straight)["policy_hash"]
    assert len(read_decisions(folder)[0]) == 1900


def test_the_gate_judges_on_rows_that_training_left_out(commands):
    folder = commands.folder / "gated"
    ended = commands.run("run", *SMALL, "--gate", "on", "--tolerance", "0", "--out", folder)
    assert ended.status == 0, ended.stderr
    rows = metrics(folder)
    assert all((row["gate_low"] > 0) == (row["deployed"] == 1) or row["deployed"] == 0 for row in rows)
    assert any(row["deployed"] == 0 for row in rows)  # 150 rows cannot show an improvement that is sure.


def test_a_window_keeps_older_periods(commands):
    folder = commands.folder / "window"
    ended = commands.run("run", *SMALL, "--window", "2", "--no-store", "--out", folder)
    assert ended.status == 0, ended.stderr
    rows = metrics(folder)
    assert [row["share_replayed"] for row in rows] == pytest.approx([0, 400 / 900, 0.5, 0.5])
    assert not (folder / "experience.lance").exists()


def test_a_data_set_is_judged_before_it_is_learned_from(commands):
    folder = commands.folder / "digits"
    ended = commands.run(
        "run", "bandit", "--env", "digits", "--explorer", "squarecb", "--out", folder, "--json"
    )
    assert ended.status == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert summary["score_episodes"] == 1700
    assert summary["ledger"]["evaluation_steps"] == 0
    rewards = read_decisions(folder)[0].reward
    assert summary["score"] == pytest.approx(rewards.mean())
    assert rewards[:100].mean() < 0.3 < summary["score"]  # The first period is uniform over ten digits.


def from_the_log(commands, log, folder, *more):
    ended = commands.run(
        *["run", "bandit", "--env", log, "--steps", "1500", "--period", "500", "--explorer", "epsilon"],
        *["--epsilon", "0.5", "--oracle", "ridge", "--out", folder, "--json", *more],
    )
    assert ended.status == 0, ended.stderr
    return json.loads(ended.stdout), read_decisions(folder)[0]


def test_a_log_is_learned_from_whole(commands, ran):
    summary, rows = from_the_log(commands, ran[0], commands.folder / "learned")
    assert len(rows) == summary["score_episodes"] == 1500
    log = read_decisions(ran[0])[0].take(slice(0, 1500))
    np.testing.assert_allclose(rows.propensity, log.propensity)
    np.testing.assert_array_equal(rows.reward, log.reward)
    # The score is an estimate for policies that did not draw these rows, near what such policies earn.
    assert 0.7 < summary["score"] < 0.95
    assert summary["score"] != pytest.approx(log.reward.mean(), abs=1e-6)
    assert metrics(commands.folder / "learned")[-1]["share_logged"] == pytest.approx(1 / 3)


def test_a_log_is_replayed_by_rejection(commands, ran):
    summary, rows = from_the_log(commands, ran[0], commands.folder / "replayed", "--from-log", "replay")
    assert 10 < len(rows) == summary["score_episodes"] < 1500
    assert summary["score"] == pytest.approx(rows.reward.mean())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--env paymen", "env: there is no decision world 'paymen'; did you mean 'payment'?"),
        ("--period 0", "period: expected at least 1, got 0"),
        ("--steps 100", "steps: a budget of 100 holds no period of 12000; raise it or lower period"),
        ("--env digits --steps 5000", "steps: digits holds 1797 decisions, got 5000"),
        ("--gate maybe", "--gate: expected on or off, got 'maybe'"),
        ("--explorer greedy --gamma 3", "explorer: gamma=3.0 means nothing to greedy; leave it out or take "),
        (
            "--explorer thompson --oracle ridge",
            "oracle: thompson needs the predictions of an ensemble, got ridge",
        ),
        (
            "--gamma 3 --explore-mass 0.1",
            "explorer: γ follows from gamma and from explore_mass; give one of them",
        ),
    ],
)
def test_one_line_says_what_is_wrong(commands, arguments, line):
    ended = commands.run("run", "bandit", *arguments.split())
    assert ended.status == 2, ended.stderr
    assert ended.stderr.startswith(f"peira: {line}"), ended.stderr
