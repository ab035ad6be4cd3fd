"""`peira evaluate` on files: the report it writes, and one line for whatever is wrong."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ope_fixtures import A
from test_evaluate import HALF, STEPS, a_log

from peira.cli import command
from peira.evaluation.off_policy.command import sizes


@pytest.fixture(scope="module", autouse=True)
def threads():
    """The command sets how many this process has: given back, or all tests after it would spin on two."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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


class Told(NamedTuple):
    """What one command said and wrote; tests share it, for the plots of a report take longest."""

    out: Path
    status: int
    printed: str
    beside: str
    report: dict


def told(out, line):
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as beside,
    ):
        status = command([*line, "--out", str(out)])
    return Told(
        out, status, printed.getvalue(), beside.getvalue(), json.loads((out / "report.json").read_text())
    )


@pytest.fixture(scope="module")
def first(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "report"
    return told(out, words(folder, "--estimators", "wpdis", "wdr", "--k", "1..3"))


@pytest.fixture(scope="module")
def anew(folder, first):
    """Into the same folder, from a log with other names, with true values, as JSON."""
    more = ["--columns", "propensity=pscore", "reward=clicked", "--truth", str(folder / "truth.json")]
    return told(first.out, words(folder, "--estimators", "wpdis", *more, "--json", log="foreign.parquet"))


def test_a_report_is_written_and_told(first):
    assert first.status == 0
    assert {path.name for path in first.out.iterdir()} == {"report.json", "report.md", "report.html", "plots"}
    for name in ("new", "half", "same"):
        value = first.report["candidates"][name]["estimates"]["wdr"]["value"]
        assert f"{value:.4g}" in first.printed
        assert name in (first.out / "report.md").read_text()
    assert list(first.report["portfolio"]["wdr"]) == ["1", "2", "3"]
    assert first.report["settings"]["confidence"] == 0.95
    assert first.report["command"].startswith("peira evaluate")
    assert str(first.out) in first.beside


def test_json_is_one_object_and_the_file_is_the_same(anew):
    assert anew.status == 0
    assert json.loads(anew.printed) == anew.report


def test_true_values_and_foreign_names(first, anew):
    assert anew.report["portfolio_values"] == "true"
    assert anew.report["metrics"]["wpdis"]["regret"]["3"] == 0.0
    for name in ("new", "half", "same"):
        one, other = (of.report["candidates"][name]["estimates"]["wpdis"] for of in (first, anew))
        assert one["value"] == other["value"]


def test_a_report_can_be_made_anew_but_nothing_else_is_written_over(folder, first, anew, tmp_path, capsys):
    assert anew.out == first.out
    assert anew.report != first.report
    assert "wdr" not in (anew.out / "report.md").read_text()
    (tmp_path / "thesis.tex").write_text("…")
    assert command(words(folder, "--estimators", "pdis", "--out", str(tmp_path))) == 2
    assert "out: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


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
