"""Selection metrics against values worked out by hand."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from peira.evaluation.off_policy.portfolio import (
    area_under_error_curve,
    best_estimators,
    disagreement,
    mean_relative_error,
    mean_squared_error,
    normalised_mean_squared_error,
    normalised_regret,
    over_data_sets,
    portfolios,
    rank_correlation,
    ranking,
    safety_violation_rate,
    type_one_error,
    type_two_error,
    worst_errors,
)

VALUE = np.array([1.0, 4.0, 2.0, 8.0])
NAN = float("nan")


def test_ranking_is_stable_and_puts_failures_last():
    estimate = np.array([2.0, NAN, 3.0, -np.inf, 2.0, 3.0, NAN])
    np.testing.assert_array_equal(ranking(estimate), [2, 5, 0, 4, 3, 1, 6])
    prefer = np.array([0.0, 1.0, 5.0, 0.0, 1.0, 6.0, 2.0])
    np.testing.assert_array_equal(ranking(estimate, prefer), [5, 2, 4, 0, 3, 6, 1])


def test_portfolios_by_hand():
    # In the order 4, 1, 8, 2 with a baseline worth 3.
    of = portfolios(VALUE, np.array([1, 0, 3, 2]), 3.0)
    np.testing.assert_array_equal(of.k, [1, 2, 3, 4])
    np.testing.assert_array_equal(of.kth, [4.0, 1.0, 8.0, 2.0])
    np.testing.assert_array_equal(of.best, [4.0, 4.0, 8.0, 8.0])
    np.testing.assert_array_equal(of.worst, [4.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(of.mean, [4.0, 2.5, 13 / 3, 3.75])
    std = [NAN, math.sqrt(4.5), math.sqrt(74 / 3 / 2), math.sqrt(28.75 / 3)]
    np.testing.assert_allclose(of.std, std)
    np.testing.assert_array_equal(of.sharpe_numerator, [1.0, 1.0, 5.0, 5.0])
    np.testing.assert_allclose(of.sharpe, [NAN, 1 / std[1], 5 / std[2], 5 / std[3]])
    np.testing.assert_array_equal(of.regret, [4.0, 4.0, 0.0, 0.0])
    population = portfolios(VALUE, np.array([1, 0, 3, 2]), 3.0, ddof=0)
    np.testing.assert_allclose(population.std, [0.0, 1.5, math.sqrt(74 / 9), math.sqrt(28.75 / 4)])
    assert math.isnan(population.sharpe[0])


def test_portfolios_without_spread_or_gain():
    # Three times 0.1 does not add up to exactly 0.3.
    equal = portfolios(np.array([0.1, 0.1, 0.1]), np.arange(3), 0.0)
    np.testing.assert_array_equal(equal.std[1:], [0.0, 0.0])
    np.testing.assert_array_equal(equal.sharpe[1:], [100.0, 100.0])
    np.testing.assert_array_equal(portfolios(np.array([2.0, 2.0]), np.arange(2), 2.0).sharpe[1:], [0.0])
    # Below the baseline nothing is won, whatever the spread.
    np.testing.assert_array_equal(portfolios(VALUE, np.arange(4), 9.0).sharpe[1:], [0.0, 0.0, 0.0])
    near = portfolios(np.array([2.0, 2.0 + 1e-9]), np.arange(2), 0.0)
    assert near.sharpe[1] == 100.0
    assert portfolios(np.array([2.0, 2.0 + 1e-9]), np.arange(2), 0.0, cap=7.0).sharpe[1] == 7.0


def test_a_clone_of_the_best_raises_the_ratio():
    before = portfolios(np.array([8.0, 4.0]), np.arange(2), 3.0)
    after = portfolios(np.array([8.0, 8.0, 4.0]), np.arange(3), 3.0)
    assert after.sharpe[1] == 100.0 > before.sharpe[1]
    assert after.std[2] == pytest.approx(math.sqrt(16 / 3))
    assert after.sharpe[2] > before.sharpe[1]


def test_ratios_do_not_depend_on_the_unit_of_values():
    rng = np.random.default_rng(0)
    value = rng.normal(size=12)
    order = rng.permutation(12)
    one, other = portfolios(value, order, 0.1), portfolios(3 * value + 7, order, 3 * 0.1 + 7)
    np.testing.assert_allclose(one.sharpe, other.sharpe, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (np.array([1.0, NAN]), np.arange(2), 0.0),
            {},
            "value: expected the finite value of every candidate, got nan for candidate 1",
        ),
        ((VALUE, np.arange(4), NAN), {}, "baseline: expected the finite value of a policy, got nan"),
        (
            (VALUE, np.array([0, 1, 1, 2]), 0.0),
            {},
            "order: expected each of 0 … 3 once, got [0, 1, 1, 2]",
        ),
        (
            (VALUE, np.arange(4), 0.0),
            {"ddof": 2},
            "ddof: expected 1 (as in the published figures) or 0, got 2",
        ),
    ],
)
def test_portfolios_refuse_what_has_no_meaning(arguments, options, message):
    with pytest.raises(ValueError) as caught:
        portfolios(*arguments, **options)
    assert str(caught.value) == message


def test_regret_and_violations():
    order = np.array([1, 2, 3, 0])
    np.testing.assert_array_equal(normalised_regret(VALUE, order), [0.5, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(normalised_regret(-VALUE, order), [3.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(normalised_regret(np.array([0.0, -1.0]), np.array([1, 0])), [np.inf, 0.0])
    np.testing.assert_allclose(safety_violation_rate(VALUE, order, 3.0), [0.0, 0.5, 1 / 3, 0.5])
    # A value at the threshold is safe.
    assert safety_violation_rate(VALUE, order, 4.0)[0] == 0.0


def test_errors_of_estimates():
    estimate = np.array([2.0, 4.0, 0.0, 6.0])
    assert mean_squared_error(estimate, VALUE) == 9 / 4
    assert normalised_mean_squared_error(estimate, VALUE) == 9 / 85
    assert math.isnan(normalised_mean_squared_error(estimate, np.zeros(4)))
    assert mean_relative_error(estimate, VALUE) == (1 + 0 + 1 + 0.25) / 4
    assert mean_relative_error(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.0
    assert mean_relative_error(np.array([1.0, 1.0]), np.array([0.0, 1.0])) == np.inf
    assert math.isnan(mean_squared_error(np.array([NAN, 1.0]), np.array([0.0, 1.0])))


def test_rank_correlation_shares_ranks():
    estimate = np.array([1.0, 2.0, 2.0, 5.0, 3.0])
    value = np.array([2.0, 1.0, 3.0, 3.0, 5.0])
    assert rank_correlation(estimate, value) == pytest.approx(spearmanr(estimate, value).statistic, rel=1e-12)
    assert rank_correlation(value, value) == pytest.approx(1.0)
    # A failed estimate ranks below all others; it would be the best in ascending order of argsort.
    assert rank_correlation(np.array([NAN, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(1.0)
    assert math.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
    assert math.isnan(rank_correlation(np.ones(1), np.ones(1)))


def test_type_errors_treat_failures_as_rejected():
    estimate = np.array([NAN, 5.0, 5.0, NAN])
    # Safe are 4 and 8: the second would be turned away; unsafe are 1 and 2: one would be let in.
    assert type_one_error(estimate, VALUE, 4.0) == 0.5
    assert type_two_error(estimate, VALUE, 4.0) == 0.5
    assert type_one_error(estimate, VALUE, 9.0) == 0.0
    assert type_two_error(estimate, VALUE, 0.0) == 0.0


def test_robustness_over_trials():
    error = np.array([0.0, 1.0, 3.0, NAN])
    # F is ¼ up to 1, ½ up to 2: (¼ + ½)/2; and 1 − min(error, 2)/2 averages to the same.
    assert area_under_error_curve(error, 2.0) == pytest.approx(0.375)
    grid = np.linspace(0, 2, 200_001)
    assert area_under_error_curve(error, 2.0) == pytest.approx(
        np.mean([np.mean(np.nan_to_num(error, nan=np.inf) <= x) for x in grid[::100]]), abs=1e-3
    )
    assert worst_errors(np.array([1.0, 2.0, 3.0, 4.0]), 0.5) == 3.5
    # 1.2 of four: the whole 4 and a fifth of the 3.
    assert worst_errors(np.array([1.0, 2.0, 3.0, 4.0]), 0.3) == pytest.approx((4 + 0.2 * 3) / 1.2)
    assert worst_errors(error, 0.25) == np.inf
    with pytest.raises(ValueError, match=r"^share: expected a number in \(0, 1\], got 0$"):
        worst_errors(error, 0)
    with pytest.raises(ValueError, match=r"^limit: expected a positive finite number, got 0.0$"):
        area_under_error_curve(error, 0.0)


def test_means_over_data_sets():
    rng = np.random.default_rng(0)
    score = rng.normal(3.0, 1.0, (30, 2, 3))
    score[:, 0, 0] = NAN
    score[:10, 1, 2] = NAN
    score[1:, 1, 1] = NAN
    of = over_data_sets(score, rng=np.random.default_rng(1), resamples=2000)
    np.testing.assert_array_equal(of.count, [[0, 30, 30], [30, 1, 20]])
    np.testing.assert_allclose(of.mean[0, 1:], score[:, 0, 1:].mean(axis=0))
    assert of.mean[1, 2] == pytest.approx(score[10:, 1, 2].mean())
    assert of.mean[1, 1] == score[0, 1, 1]
    assert np.isnan(of.mean[0, 0])
    assert np.isnan(of.low[[0, 1], [0, 1]]).all()
    half = 1.96 * score[:, 1, 0].std(ddof=1) / math.sqrt(30)
    assert of.high[1, 0] - of.mean[1, 0] == pytest.approx(half, rel=0.15)
    assert of.mean[1, 0] - of.low[1, 0] == pytest.approx(half, rel=0.15)
    assert of.low[1, 2] < of.mean[1, 2] < of.high[1, 2]
    one = over_data_sets(score[:1], rng=rng)
    np.testing.assert_array_equal(one.mean[1], score[0, 1])
    assert np.isnan(one.low).all()


def test_best_estimators_share_ties():
    score = np.array([[1.0, 1.0 + 1e-13, 0.5, NAN], [NAN, NAN, NAN, NAN], [100.0, 1.0, 100.0, 2.0]])
    expected = [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    np.testing.assert_array_equal(best_estimators(score, higher_is_better=True), np.array(expected, bool))
    lowest = [[0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    np.testing.assert_array_equal(best_estimators(score, higher_is_better=False), np.array(lowest, bool))
    infinite = np.array([[np.inf, np.inf, 1.0]])
    np.testing.assert_array_equal(best_estimators(infinite, higher_is_better=True), [[True, True, False]])
    np.testing.assert_array_equal(best_estimators(infinite, higher_is_better=False), [[False, False, True]])


def test_disagreement_counts_disjoint_sets():
    # The prototype of the specification: 26 of 70 trials, Wilson interval [.27, .49].
    one = np.zeros((70, 3), bool)
    other = np.zeros((70, 3), bool)
    one[:, :2] = True
    other[:26, 2] = True
    other[26:, 1:] = True
    of = disagreement(one, other)
    assert (of.count, of.trials) == (26, 70)
    assert of.share == pytest.approx(26 / 70)
    assert (round(of.low, 2), round(of.high, 2)) == (0.27, 0.49)
