"""Behaviour policies fitted to a log: closed forms, what cross-fitting keeps apart, and calibration."""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from peira.evaluation.off_policy.propensity import (
    MultinomialLogistic,
    calibrate,
    calibration_report,
    fit_gaussian_propensity,
    fit_propensity,
)

NOTHING = np.zeros((10, 0))


class Frequencies:
    """A classifier in scikit-learn's manner: the classes' frequencies, whatever the features."""

    def fit(self, X, y, sample_weight=None):
        weight = np.ones(len(y)) if sample_weight is None else sample_weight
        self.classes_, index = np.unique(y, return_inverse=True)
        self.frequency = np.bincount(index, weight) / weight.sum()
        return self

    def predict_proba(self, X):
        return np.tile(self.frequency, (len(X), 1))


class ClassMeans:
    """A regressor in scikit-learn's manner: the mean target, whatever the features."""

    def fit(self, X, y, sample_weight=None):
        self.mean = np.average(y, axis=0, weights=sample_weight)
        return self

    def predict(self, X):
        return np.tile(self.mean, (len(X), *[1] * np.ndim(self.mean)))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def softmax_log(rng, rows=4_000):
    features = rng.normal(size=(rows, 2)) * [1.0, 30.0]
    true = special.softmax(
        features @ np.array([[1.0, -1.0, 0.0], [0.0, 0.02, -0.03]]) + [0.0, 0.5, -0.5], axis=1
    )
    action = (true.cumsum(1) < rng.random((rows, 1))).sum(1)
    return features, action, true


def test_without_features_the_logistic_regression_gives_frequencies_with_one_even_observation():
    action = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    probs = fit_propensity(NOTHING, action, 4)
    # The fourth action was never taken: (0 + 1/4)/(10 + 1).
    np.testing.assert_allclose(probs, np.tile([5.25, 3.25, 2.25, 0.25], (10, 1)) / 11, atol=1e-8)


def test_logistic_regression_agrees_with_a_long_minimisation_of_its_objective(rng):
    features, action, _ = softmax_log(rng, 60)
    weight = rng.random(60)
    model = MultinomialLogistic(3, ridge=0.7).fit(features, action, weight)
    mean = np.average(features, axis=0, weights=weight)
    scaled = (features - mean) / np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weight))

    def objective(flat):
        intercept, slope = flat[:3], flat[3:].reshape(2, 3)
        log_probs = special.log_softmax(intercept + scaled @ slope, axis=1)
        even = special.log_softmax(intercept).mean()
        return -(weight * log_probs[np.arange(60), action]).sum() - even + 0.35 * (slope**2).sum()

    best = optimize.minimize(objective, np.zeros(9), method="BFGS", options={"gtol": 1e-7}).x
    expected = special.softmax(best[:3] + scaled @ best[3:].reshape(2, 3), axis=1)
    np.testing.assert_allclose(model.predict_proba(features), expected, atol=1e-6)


def test_a_true_softmax_policy_is_recovered(rng):
    features, action, true = softmax_log(rng)
    probs = fit_propensity(features, action, 3, fold=np.arange(len(action)) % 5)
    assert np.abs(probs - true).mean() < 0.02
    assert calibration_report(probs, action).expected_calibration_error < 0.02


def test_rows_are_predicted_by_the_other_folds_only():
    action = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    fold = np.repeat([0, 1], 4)
    probs = fit_propensity(NOTHING[:8], action, 2, fold=fold, classifier=Frequencies())
    np.testing.assert_array_equal(probs[:, 0], np.repeat([0.25, 0.75], 4))
    # In sample every row would get 1/2.
    np.testing.assert_array_equal(fit_propensity(NOTHING[:8], action, 2, classifier=Frequencies()), 0.5)


def test_an_action_that_only_one_fold_holds_is_refused():
    action, fold = np.array([0, 1, 1, 0, 0, 2]), np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(
        ValueError, match="action 2 in row 5 got probability 0: the other folds do not hold it"
    ):
        fit_propensity(NOTHING[:6], action, 3, fold=fold, classifier=Frequencies())


def test_actions_outside_their_sets_get_nothing_and_the_others_are_scaled():
    action = np.array([0, 1, 1, 2])
    action_set = np.ones((4, 3), dtype=bool)
    action_set[0, 1] = False
    probs = fit_propensity(NOTHING[:4], action, 3, classifier=Frequencies(), action_set=action_set)
    np.testing.assert_allclose(probs, [[0.5, 0, 0.5], *[[0.25, 0.5, 0.25]] * 3])
    action_set[3, 2] = False
    with pytest.raises(ValueError, match="expected actions out of their action sets, got action 2 in row 3"):
        fit_propensity(NOTHING[:4], action, 3, action_set=action_set)


@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_out_of_range_is_refused(action):
    with pytest.raises(ValueError, match=r"expected actions of 0 … 2, got"):
        fit_propensity(NOTHING[:2], np.array([1, action]), 3)


def test_folds_must_suffice():
    action = np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="cross-fitting needs at least 2 folds, got 1"):
        fit_propensity(NOTHING[:4], action, 2, fold=np.zeros(4, dtype=int))
    with pytest.raises(ValueError, match=r"calibration needs at least 3 folds .*, got 2"):
        fit_propensity(NOTHING[:4], action, 2, fold=action, calibration="isotonic")
    with pytest.raises(ValueError, match=r"calibration needs at least 3 folds .*, got 0"):
        fit_propensity(NOTHING[:4], action, 2, calibration="platt")


def test_isotonic_calibration_by_hand():
    held_out = np.array([0.1, 0.1, 0.3, 0.6, 0.8, 0.8])
    taken = np.array([0, 0, 1, 0, 1, 1])
    asked = np.array([0.1, 0.2, 0.45, 0.7, 0.95])
    # Frequencies 0, 1, 0, 1 at .1, .3, .6, .8; the middle two pool to 1/2; the ends stay 1/8 away from 0 and 1.
    expected = np.interp(asked, [0.1, 0.3, 0.6, 0.8], [0.0, 0.5, 0.5, 1.0]).clip(1 / 8, 7 / 8)
    of_one = np.column_stack([1 - asked, asked])
    found = calibrate(of_one, np.column_stack([1 - held_out, held_out]), taken, "isotonic")
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-12)


def test_platt_calibration_undoes_a_scaled_logit(rng):
    logit = rng.normal(size=20_000) * 1.5 - 0.5
    taken = (rng.random(20_000) < special.expit(logit)).astype(int)
    confident = special.expit(3 * logit + 1)
    found = calibrate(*[np.column_stack([1 - confident, confident])] * 2, taken, "platt")
    assert np.abs(found[:, 1] - special.expit(logit)).max() < 0.03
    assert np.abs(confident - special.expit(logit)).max() > 0.2


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_calibration_repairs_an_overconfident_classifier_on_rows_it_did_not_see(method, rng):
    class Overconfident(MultinomialLogistic):
        def predict_proba(self, X):
            return special.softmax(4 * np.log(super().predict_proba(X)), axis=1)

    features, action, true = softmax_log(rng)
    fold = np.arange(len(action)) % 4
    raw = fit_propensity(features, action, 3, fold=fold, classifier=Overconfident(3))
    repaired = fit_propensity(features, action, 3, fold=fold, classifier=Overconfident(3), calibration=method)
    before, after = calibration_report(raw, action), calibration_report(repaired, action)
    assert before.expected_calibration_error > 0.1
    assert after.expected_calibration_error < 0.03
    assert after.log_loss < before.log_loss
    assert np.abs(repaired - true).mean() < 0.25 * np.abs(raw - true).mean()
    np.testing.assert_allclose(repaired.sum(1), 1.0)


def test_calibration_report_by_hand():
    probs = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.55, 0.25, 0.2]])
    report = calibration_report(probs, np.array([0, 2, 1]), bins=2)
    # .5 lies on the edge and counts to the upper bin: upper (.5, .8, .55), lower (.3, .2, .1, .1, .25, .2).
    np.testing.assert_array_equal(report.count, [6, 3])
    np.testing.assert_allclose(report.predicted, [1.15 / 6, 1.85 / 3])
    np.testing.assert_allclose(report.observed, [1 / 6, 2 / 3])
    assert report.expected_calibration_error == pytest.approx((0.15 + 0.15) / 9, abs=1e-12)
    assert report.log_loss == pytest.approx(-math.log(0.5 * 0.8 * 0.25) / 3, abs=1e-12)


def test_a_certain_prediction_belongs_to_the_last_bin_and_an_impossible_action_costs_everything():
    report = calibration_report(np.array([[1.0, 0.0]]), np.array([1]), bins=4)
    np.testing.assert_array_equal(report.low, [0.0, 0.75])
    assert (report.expected_calibration_error, report.log_loss) == (1.0, math.inf)


def test_gaussian_propensity_is_a_joint_density_of_the_logged_action(rng):
    features = rng.normal(size=(2_000, 2))
    true = np.column_stack([features[:, 0] * 2 + 1, features[:, 1] - features[:, 0]])
    action = true + rng.normal(size=(2_000, 2)) * [0.5, 2.0]
    fitted = fit_gaussian_propensity(features, action, fold=np.arange(2_000) % 4)
    assert np.abs(fitted.mean - true).mean() < 0.08
    np.testing.assert_allclose(fitted.std, np.tile([0.5, 2.0], (2_000, 1)), rtol=0.05)
    # One density a row: the sum over dimensions, once.
    expected = stats.multivariate_normal.logpdf(action - true, cov=np.diag([0.25, 4.0]))
    assert np.abs(fitted.log_density - expected).mean() < 0.1


def test_gaussian_spread_comes_from_rows_that_were_held_out():
    action = np.array([[0.0], [2.0], [1.0], [5.0]])
    fitted = fit_gaussian_propensity(NOTHING[:4], action, fold=np.array([0, 0, 1, 1]), regressor=ClassMeans())
    np.testing.assert_array_equal(fitted.mean[:, 0], [3.0, 3.0, 1.0, 1.0])
    # Fold 0 uses the residuals 0 and 4 of fold 1, fold 1 those −3 and −1 of fold 0; in training they are ±2 and ±1.
    np.testing.assert_allclose(fitted.std[:, 0], np.sqrt([8.0, 8.0, 5.0, 5.0]))


def test_gaussian_default_is_ridge_with_a_free_intercept():
    features = np.array([[-1.0], [1.0]])
    action = np.array([[10.0], [14.0]])
    fitted = fit_gaussian_propensity(features, action, ridge=2.0)
    # Slope Σxy/(Σx² + 2) = 4/4 around the mean 12.
    np.testing.assert_allclose(fitted.mean[:, 0], [11.0, 13.0])


def test_a_deterministic_continuous_log_has_no_density(rng):
    features = rng.normal(size=(30, 1))
    with pytest.raises(ValueError, match=r"function of the features in dimension 0 \(no spread\)"):
        fit_gaussian_propensity(features, 3 * features + 7, ridge=0.0)
