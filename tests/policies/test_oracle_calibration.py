"""Calibration maps, the undoing of unequal sampling, and the errors of predicted probabilities."""

import json

import numpy as np
import pytest
from oracle_logs import SCHEMA, draw_choices, draw_log, true_reward

from peira.policies.oracles.calibration import (
    Isotonic,
    Platt,
    brier,
    calibration_from_json,
    expected_calibration_error,
    fit_calibration,
    importance_weights,
    log_loss,
    prior_shift,
)
from peira.policies.oracles.make import make_oracle


def drawn(rows, seed=0):
    """Scores whose log-odds are twice too large and 0.7 too low, and outcomes."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0.5, 1.0, rows)
    truth = 1 / (1 + np.exp(-odds))
    score = 1 / (1 + np.exp(-(2 * odds - 0.7)))
    return score, truth, (generator.random(rows) < truth).astype(float)


def test_platt_finds_the_line_that_undoes_the_distortion():
    score, truth, reward = drawn(50_000)
    found = fit_calibration(score, reward, "platt")
    assert found.slope == pytest.approx(0.5, abs=0.02)
    assert found.intercept == pytest.approx(0.35, abs=0.03)
    np.testing.assert_allclose(found(score), truth, atol=0.02)


def test_isotonic_is_scikit_learns():
    isotonic = pytest.importorskip("sklearn.isotonic")
    score, _, reward = drawn(3_000)
    score = score.round(2)  # ties
    weight = np.random.default_rng(1).random(3_000)
    reference = isotonic.IsotonicRegression(out_of_bounds="clip").fit(score, reward, weight)
    found = fit_calibration(score, reward, "isotonic", weight)
    asked = np.append(score, [-0.1, 1.1])
    least = 1 / (weight.sum() + 2)
    np.testing.assert_allclose(found(asked), np.clip(reference.predict(asked), least, 1 - least), atol=1e-6)
    assert len(found.position) < 50


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_weights_of_rows_count_as_so_many_rows(method):
    score, _, reward = drawn(500)
    weight = np.arange(500) % 3
    repeated = np.repeat(np.arange(500), weight)
    weighted = fit_calibration(score, reward, method, weight.astype(float))
    plain = fit_calibration(score[repeated], reward[repeated], method)
    np.testing.assert_allclose(weighted(score), plain(score), atol=1e-6)


def test_isotonic_makes_ties_and_platt_does_not():
    score, _, reward = drawn(2_000)
    assert len(np.unique(fit_calibration(score, reward, "isotonic")(score))) < 1_000
    assert len(np.unique(fit_calibration(score, reward, "platt")(score))) == len(np.unique(score))


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_a_calibration_never_reverses_the_order_and_is_never_certain(method):
    score, _, reward = drawn(500)
    found = fit_calibration(score, 1.0 - reward, method)(np.linspace(0, 1, 50))
    assert (np.diff(found) >= 0).all() and np.ptp(found) < 0.1
    one_class = fit_calibration(score, np.ones(500), method)(score)
    assert (one_class < 1).all() and (one_class > 0.99).all()


@pytest.mark.parametrize("of", [Platt(0.7, -0.2), Isotonic((0.1, 0.4, 0.9), (0.2, 0.3, 0.8))])
def test_maps_come_back_from_json(of):
    again = calibration_from_json(json.loads(json.dumps(of.to_json())))
    score = np.random.default_rng(0).random(100)
    assert again == of and np.array_equal(again(score), of(score))
    with pytest.raises(ValueError, match="expected an isotonic or a Platt map"):
        calibration_from_json({"method": "isotonic", "position": [1.0], "value": []})


def test_isotonic_by_hand():
    # .2 and .4 go against the order and are pooled; the end is pulled in to 1 − 1/(4 + 2).
    found = fit_calibration(np.array([0.1, 0.2, 0.4, 0.9]), np.array([0.5, 1.0, 0.0, 1.0]), "isotonic")
    assert found.position == (0.1, 0.4, 0.9)
    assert found.value == (0.5, 0.5, pytest.approx(5 / 6))


def test_prior_shift_is_bayes_rule():
    truth = np.array([0.1, 0.5, 0.85, 0.9])
    # Of the failures every tenth was kept.
    kept = truth / (truth + 0.1 * (1 - truth))
    np.testing.assert_allclose(prior_shift(kept, 1.0, 0.1), truth)
    # The gap of .05 had shrunk to an eighth, and the first of .4 to less than that of .35.
    assert np.diff(kept)[2] < 0.05 / 5 and np.diff(kept)[0] / np.diff(kept)[1] > 4
    with pytest.raises(ValueError, match="rate_negative: expected a positive rate or weight, got 0"):
        prior_shift(kept, 1.0, 0.0)


@pytest.mark.parametrize("name", ["logistic", "ridge", "lightgbm"])
def test_gaps_are_undone_where_failures_were_left_out(name):
    rows, asked = draw_log(20_000), draw_choices(2_000, 7)
    kept = (rows.reward == 1) | (np.random.default_rng(3).random(20_000) < 0.2)
    few = rows.take(kept)
    truth = true_reward(asked)

    def error(scores):
        gap = np.nanmax(scores, 1, keepdims=True) - scores
        return np.nanmean(np.abs(gap - (np.nanmax(truth, 1, keepdims=True) - truth)))

    everything = error(make_oracle(name, SCHEMA).fit(rows).predict(asked))
    distorted = error(make_oracle(name, SCHEMA).fit(few).predict(asked))
    undone = error(make_oracle(name, SCHEMA, negative_rate=0.2).fit(few).predict(asked))
    weighted = error(make_oracle(name, SCHEMA).fit(few, np.where(few.reward == 1, 1.0, 5.0)).predict(asked))
    # Of the linear model the shift is no more a line: it is undone in part.
    part = 0.75 if name == "ridge" else 0.6
    assert undone < part * distorted and weighted < part * distorted
    assert undone < 2.0 * everything


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_calibrating_an_oracle_maps_it_onto_the_rows(method):
    rows, held_out, later = draw_log(4_000), draw_log(4_000, 10), draw_log(4_000, 20)
    # Overfitted, so that its scores are too far apart.
    oracle = make_oracle("lightgbm", SCHEMA, trees=300, leaves=60, least_rows=5).fit(rows)

    def error():
        score = oracle.predict(later.choices)[np.arange(4_000), later.column]
        return expected_calibration_error(score, later.reward)

    before = error()
    assert oracle.calibrate(held_out, method) is oracle
    assert error() < 0.4 * before
    once = oracle.predict(later.choices)
    # A second calibration replaces the first, and a fit forgets it.
    np.testing.assert_allclose(oracle.calibrate(held_out, method).predict(later.choices), once)
    assert oracle.fit(rows).calibration is None
    assert error() == before


def test_errors_by_hand():
    score, reward = np.array([0.2, 0.9, 0.9, 0.4]), np.array([0.0, 1.0, 0.0, 1.0])
    assert brier(score, reward) == pytest.approx((0.04 + 0.01 + 0.81 + 0.36) / 4)
    assert log_loss(score, reward) == pytest.approx(-np.log([0.8, 0.9, 0.1, 0.4]).mean())
    assert log_loss(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.0
    assert log_loss(np.array([0.0, 1.0]), np.array([1.0, 1.0])) == np.inf
    # Two bins, {.2, .4} and {.9, .9}: |.6 − 1| + |1.8 − 1| over 4 rows.
    assert expected_calibration_error(score, reward, bins=2) == pytest.approx(0.3)
    # Scores that are all the same are one bin.
    assert expected_calibration_error(np.full(4, 0.5), reward) == 0.0
    with pytest.raises(ValueError, match="got 0 rows and 10 bins"):
        expected_calibration_error(np.zeros(0), np.zeros(0))


def test_importance_weights_are_capped_inverses():
    np.testing.assert_allclose(importance_weights(np.array([1.0, 0.5, 0.001]), 100), [1, 2, 100])
    with pytest.raises(ValueError, match=r"propensity: expected numbers in \(0, 1\], got 0 in row 1"):
        importance_weights(np.array([1.0, 0.0]), 100)
    with pytest.raises(ValueError, match=r"cap: expected at least 1, got 0\.5"):
        importance_weights(np.array([1.0]), 0.5)


def test_a_calibration_needs_a_fit_and_rows():
    oracle = make_oracle("ridge", SCHEMA)
    with pytest.raises(ValueError, match="calibrate: the oracle has learned from no row"):
        oracle.calibrate(draw_log(10), "platt")
    oracle.fit(draw_log(100))
    with pytest.raises(ValueError, match="rows: a calibration needs some, got none"):
        oracle.calibrate(draw_log(10).take(slice(0, 0)), "platt")
    with pytest.raises(ValueError, match="method: expected isotonic or platt, got 'beta'"):
        fit_calibration(np.ones(2), np.ones(2), "beta")
