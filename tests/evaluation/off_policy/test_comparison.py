"""Many logs with known truth: tables of every metric for every estimator, formed within each log."""

import math

import numpy as np
import pytest
from test_evaluate import CANDIDATES, HALF, a_log, policy

from peira.evaluation.off_policy.comparison import HIGHER_IS_BETTER, compare_estimators, markdown, scores
from peira.evaluation.off_policy.evaluate import evaluate

TRUTH = {"new": 2.54161104, "half": 2.3, "behaviour": 2.07569772}


@pytest.fixture(scope="module")
def reports():
    """Four logs, an estimator that can be had on each and one that never can."""
    logs = [a_log(number, observation=None) for number in (40, 60, 80, 100)]
    tables = {"new": CANDIDATES["new"], "half": policy(HALF)}
    states = [a_log(number).observation for number in (40, 60, 80, 100)]
    return [
        evaluate(
            log,
            {name: of(state) for name, of in tables.items()},
            gamma=0.9,
            estimators=("pdis", "wpdis", "dm"),
            interval="delta",
            truth=TRUTH,
        )
        for log, state in zip(logs, states, strict=True)
    ]


def test_scores_are_those_of_each_log(reports):
    names, found = scores(reports, 2)
    assert names == ["pdis", "wpdis", "dm"]
    assert set(found) == set(HIGHER_IS_BETTER)
    for row, report in enumerate(reports):
        assert found["nmse"][row, 1] == report["metrics"]["wpdis"]["nmse"]
        assert found["sharpe_ratio@k"][row, 1] == report["portfolio"]["wpdis"]["2"]["sharpe"]
        assert found["regret@1"][row, 0] == report["metrics"]["pdis"]["regret"]["1"]
    assert np.isnan(found["nmse"][:, 2]).all()


def test_means_go_over_logs_and_ties_are_shared(reports):
    comparison = compare_estimators(reports, rng=np.random.default_rng(0), k=2)
    _, found = scores(reports, 2)
    entry = comparison["metrics"]["nmse"]["pdis"]
    assert entry["mean"] == pytest.approx(found["nmse"][:, 0].mean())
    assert entry["interval"][0] <= entry["mean"] <= entry["interval"][1]
    assert entry["logs"] == 4
    # With two candidates every portfolio of two is the same one, whoever ranked them.
    assert comparison["best"]["best@k"]["pdis"] == comparison["best"]["best@k"]["wpdis"] == 1.0
    assert comparison["disagreement"]["best@k, worst@k"]["share"] == 0.0
    assert comparison["metrics"]["nmse"]["dm"]["logs"] == 0


def test_the_table_has_a_row_an_estimator_and_marks_the_best(reports):
    table = markdown(
        compare_estimators(reports, rng=np.random.default_rng(0), k=2), ["nmse", "sharpe_ratio@k"]
    )
    lines = table.splitlines()
    assert lines[0] == "| estimator | nmse | sharpe_ratio@2 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| pdis", "| wpdis", "| dm"]
    assert "**" in table
    assert lines[4].endswith("| – | – |")


def test_what_cannot_be_compared(reports):
    with pytest.raises(ValueError, match="reports: expected at least one, got none"):
        scores([], 2)
    without = {**reports[0], "metrics": None}
    with pytest.raises(ValueError, match="reports: number 1 was made without truth"):
        scores([reports[0], without], 2)
    other = {**reports[0], "settings": {**reports[0]["settings"], "estimators": ["pdis"]}}
    with pytest.raises(ValueError, match="reports: number 1 has the estimators pdis"):
        scores([reports[0], other], 2)
    with pytest.raises(ValueError, match="k: report 0 holds no portfolio of 3"):
        scores(reports, 3)
    assert math.isfinite(reports[0]["metrics"]["pdis"]["nmse"])
