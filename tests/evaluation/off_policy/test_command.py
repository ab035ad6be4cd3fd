"""`peira evaluate` on files: the report it writes, and one line for whatever is wrong."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ope_fixtures import A
from test_evaluate import HALF, STEPS, a_log

from peira.cli import command
from peira.evaluation.off_policy.command import sizes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A log and three candidates on disk."""
    place = tmp_path_factory.mktemp("evaluate")
    log = a_log(200)
    step = np.tile(np.arange(STEPS), log.episodes)
    ids = np.repeat(log.episode_id.to_pylist(), STEPS).tolist()
    columns = {
        "episode_id": ids,
        "step": step.astype(np.int32),
        "observation": log.observation,
        "action": log.action,
        "reward": log.reward,
        "terminated": step == STEPS - 1,
        "truncated": np.zeros(log.rows, bool),
        "propensity": np.exp(log.log_propensity),
    }
    pq.write_table(pa.table(columns), place / "log.parquet")
    foreign = {"pscore": "propensity", "clicked": "reward"}
    renamed = {**columns, **{new: columns[old] for new, old in foreign.items()}}
    for old in foreign.values():
        renamed.pop(old)
    pq.write_table(pa.table(renamed), place / "foreign.parquet")
    for name, table in (("new", A.pi), ("half", HALF), ("same", A.pi_b)):
        probs = table[log.observation].tolist()
        pq.write_table(
            pa.table({"episode_id": ids, "step": columns["step"], "action_probs": probs}),
            place / f"{name}.parquet",
        )
    pq.write_table(
        pa.table({"episode_id": ids[3:], "step": columns["step"][3:], "action_probs": probs[3:]}),
        place / "short.parquet",
    )
    (place / "truth.json").write_text(json.dumps({"new": 2.54161104, "half": 2.3, "same": 2.07569772}))
    return place


def words(folder, *more, log="log.parquet", candidates=("new", "half", "same")):
    files = [str(folder / f"{name}.parquet") for name in candidates]
    return ["evaluate", str(folder / log), "--candidates", *files, "--gamma", "0.9", *more]


def test_a_report_is_written_and_told(folder, tmp_path, capsys):
    out = tmp_path / "report"
    assert command(words(folder, "--estimators", "wpdis", "wdr", "--k", "1..3", "--out", str(out))) == 0
    told = capsys.readouterr()
    report = json.loads((out / "report.json").read_text())
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "report.html", "plots"}
    for name in ("new", "half", "same"):
        value = report["candidates"][name]["estimates"]["wdr"]["value"]
        assert f"{value:.4g}" in told.out
        assert name in (out / "report.md").read_text()
    assert list(report["portfolio"]["wdr"]) == ["1", "2", "3"]
    assert report["settings"]["confidence"] == 0.95
    assert report["command"].startswith("peira evaluate")
    assert str(out) in told.err


def test_json_is_one_object_and_the_file_is_the_same(folder, tmp_path, capsys):
    out = tmp_path / "report"
    assert command(words(folder, "--estimators", "pdis", "--json", "--out", str(out))) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "report.json").read_text())


def test_true_values_and_foreign_names(folder, tmp_path, capsys):
    out = tmp_path / "report"
    columns = ["--columns", "propensity=pscore", "reward=clicked"]
    truth = ["--truth", str(folder / "truth.json"), "--estimators", "wpdis"]
    assert command(words(folder, *columns, *truth, "--json", "--out", str(out), log="foreign.parquet")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["portfolio_values"] == "true"
    assert report["metrics"]["wpdis"]["regret"]["3"] == 0.0
    usual = tmp_path / "usual"
    assert command(words(folder, "--estimators", "wpdis", "--json", "--out", str(usual))) == 0
    again = json.loads(capsys.readouterr().out)
    for name in ("new", "half", "same"):
        one, other = (of["candidates"][name]["estimates"]["wpdis"] for of in (report, again))
        assert one["value"] == other["value"]


def test_a_report_can_be_made_anew_but_nothing_else_is_written_over(folder, tmp_path, capsys):
    out = tmp_path / "report"
    short = ["--estimators", "pdis", "--out", str(out)]
    assert command(words(folder, *short)) == 0
    assert command(words(folder, *short)) == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("…")
    capsys.readouterr()
    assert command(words(folder, "--estimators", "pdis", "--out", str(other))) == 2
    assert "out: " in capsys.readouterr().err
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ([], {"candidates": ()}, "candidates: name at least one table after --candidates"),
        ([], {"candidates": ("new", "nobody")}, "there is no"),
        (
            [],
            {"candidates": ("new", "short")},
            "candidate short: no row for episode e0000, step 0, 3 of 600 rows",
        ),
        (["--estimators", "dros"], {}, "estimators: 'dros' is not for 3-step episodes"),
        (["--k", "1-3"], {}, "--k: expected whole numbers such as 3, or a range such as 1..5, got '1-3'"),
        (["--columns", "reward"], {}, "--columns: expected field=column, got 'reward'"),
        (["--confidence", "2"], {}, "confidence: expected a number above 0 and below or at 1, got 2"),
        (["--interval", "bayes"], {}, "--interval: expected"),
        (["--horizont", "3"], {}, "did you mean '--horizon'?"),
        (["--threads", "0"], {}, "threads: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, capsys, more, options, message):
    out = tmp_path / "report"
    assert command(words(folder, *more, "--out", str(out), **options)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert not out.exists()


def test_without_a_log(capsys):
    assert command(["evaluate", "--candidates", "a.parquet"]) == 2
    assert "expected one log right after `peira evaluate`, got none" in capsys.readouterr().err


def test_help_lists_every_setting(capsys):
    assert command(["evaluate", "--help"]) == 0
    told = capsys.readouterr().out
    for flag in (
        "--candidates",
        "--gamma",
        "--estimators",
        "--interval",
        "--k",
        "--baseline",
        "--truth",
        "--json",
    ):
        assert flag in told


@pytest.mark.parametrize(
    ("words", "expected"), [(["3"], (3,)), (["1..4"], (1, 2, 3, 4)), (["1", "2..3", "2"], (1, 2, 3))]
)
def test_sizes(words, expected):
    assert sizes(words) == expected
