"""What is reported of a generation, and what is said of several."""

import numpy as np
import pytest
from test_decisions_gate import LOGGED, SCHEMA, a_log

from peira.evaluation.generations import Oscillation, flip_rate, log_columns, model_columns, verdict


def test_columns_of_a_log_are_what_they_are_called():
    rows = a_log(1000)
    found = log_columns(rows, SCHEMA, "issuer")
    counts = np.bincount(rows.action, minlength=3)
    assert found["positive_rate"] == rows.reward.mean()
    assert found["minority_share"] == min(rows.reward.mean(), 1 - rows.reward.mean())
    assert found["least_action_share"] == counts.min() / 1000
    assert found["effective_actions"] == pytest.approx(np.exp(-(LOGGED * np.log(LOGGED)).sum()))
    assert found["inverse_propensity_mean"] == pytest.approx(3.0, abs=0.2)
    assert found["mean_actions"] == 3
    cells = np.histogram2d(rows.choices.category[:, 0], rows.action, bins=[[1, 2, 3], [0, 1, 2, 3]])[0]
    assert found["least_cell_rows"] == cells.min()


def test_actions_that_were_never_eligible_do_not_count_as_starved():
    rows = a_log(100)
    rows.choices.action[:, 2] = -1
    rows = rows.take(rows.column < 2)
    assert log_columns(rows, SCHEMA)["least_action_share"] > 0.2


def test_a_model_is_judged_on_the_uniform_slice_apart():
    rows = a_log(400)
    scores = np.tile([0.6, 0.9, 0.3], (400, 1))
    assert "brier_uniform" not in model_columns(rows, scores)
    rows.uniform[:100] = True
    found = model_columns(rows, scores)
    predicted = scores[0, rows.column]
    assert found["brier_logged"] == pytest.approx(np.mean((predicted - rows.reward) ** 2))
    assert found["brier_uniform"] == pytest.approx(np.mean((predicted - rows.reward)[:100] ** 2))
    greedy = rows.column == 1
    assert found["greedy_predicted"] == pytest.approx(0.9)
    assert found["greedy_realised"] == rows.reward[greedy].mean()


def test_flips_are_changes_of_the_best_eligible_action():
    before = np.array([[0.2, 0.3, np.nan], [0.5, 0.4, 0.1], [0.1, 0.2, 0.3]])
    after = np.array([[0.4, 0.3, np.nan], [0.6, 0.4, 0.1], [0.1, 0.5, 0.4]])
    assert flip_rate(before, after) == pytest.approx(2 / 3)


def test_oscillation_of_a_zigzag_and_of_a_line():
    zigzag = Oscillation.of([0.8, 0.7] * 6)
    assert zigzag.autocorrelation < -0.8
    assert zigzag.trend_interval[0] < 0 < zigzag.trend_interval[1]
    line = Oscillation.of(0.8 - 0.01 * np.arange(12))
    assert line.trend == pytest.approx(-0.01)
    assert line.trend_interval[1] < 0
    assert Oscillation.of([0.5] * 4).autocorrelation == 0
    with pytest.raises(ValueError, match="at least 3 generations, got 2"):
        Oscillation.of([1, 2])


def rows_of(values, **columns):
    return [{"value": value, **columns} for value in values]


def noise(number, scale=0.001):
    return scale * np.random.default_rng(0).standard_normal(number)


@pytest.mark.parametrize(
    ("history", "said", "not_said"),
    [
        (rows_of([0.8] * 3), "too few", "stable"),
        (rows_of(0.8 + noise(12)), "stable", "worse"),
        (rows_of(0.85 - 0.004 * np.arange(12) + noise(12)), "worse than the one before", "improve"),
        (rows_of(0.75 + 0.004 * np.arange(12) + noise(12)), "still improve", "worse"),
        (rows_of([0.82, 0.78] * 6, flip_rate=0.3), "take turns", "stable"),
        (rows_of(0.8 + noise(12), flip_rate=0.3), "change from one model to the next", "take turns"),
        (
            rows_of(0.8 + noise(12), greedy_predicted=0.86, greedy_realised=0.82),
            "promise 4.0% more than",
            "stable",
        ),
        (
            rows_of(0.8 + noise(12), calibration_error_uniform=0.06, calibration_error_logged=0.01),
            "worse on uniform traffic",
            "stable",
        ),
        (rows_of(0.8 + noise(12), least_action_share=0.0005), "give it a floor", "stable"),
    ],
)
def test_the_verdict_names_what_is_there_and_nothing_else(history, said, not_said):
    text = " ".join(verdict(history))
    assert said in text
    assert not_said not in text
