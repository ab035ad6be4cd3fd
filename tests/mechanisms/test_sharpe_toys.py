"""The two published toy examples: estimators that accuracy cannot tell apart, and SharpeRatio@k can.

The numbers are those of the paper's figures. The plausible imitations (ranks by argsort, regret as a difference of
sums, the standard deviation that the paper's text writes down) give others.
"""

import numpy as np
import pytest

from peira.evaluation.off_policy.portfolio import (
    mean_squared_error,
    portfolios,
    rank_correlation,
    ranking,
    safety_violation_rate,
    type_one_error,
    type_two_error,
)

VALUE = np.array([1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0])
X = np.where(np.isin(VALUE, [9, 10]), 2.0, VALUE)
Y = np.where(np.isin(VALUE, [3, 4]), 11.0, VALUE)
"""X takes two good candidates for bad ones, Y two bad ones for good."""
BASELINE = 8.0
SHARPE_X = [1.414, 1.512, 1.521, 1.480, 1.414, 1.337, 1.314, 1.363, 1.185]
SHARPE_Y = [0.707, 0.811, 0.904, 1.023, 1.142, 1.247, 1.324, 1.363, 1.185]

VALUE_2 = np.arange(1.0, 20.0)
W = np.where(VALUE_2 <= 10, VALUE_2 - 0.5, 20 - VALUE_2)
Z = np.array([5.0, 11, 14, 17, 15, 3, 10, 4, 1, 19, 12, 7, 2, 18, 13, 8, 9, 6, 16])
"""W is right about the worse half and upside down about the better one, Z is scattered."""


def toy_portfolios(estimate: np.ndarray, ddof: int = 1):
    return portfolios(VALUE, ranking(estimate, prefer=VALUE), BASELINE, ddof=ddof)


@pytest.mark.parametrize("estimate", [X, Y])
def test_accuracy_does_not_tell_x_from_y(estimate):
    assert mean_squared_error(estimate, VALUE) == pytest.approx(11.3, abs=1e-12)
    assert round(rank_correlation(estimate, VALUE), 3) == 0.413
    assert toy_portfolios(estimate).regret[2] == 0.0


def test_sharpe_ratios_of_toy_1():
    np.testing.assert_array_equal(toy_portfolios(X).sharpe[1:].round(3), SHARPE_X)
    np.testing.assert_array_equal(toy_portfolios(Y).sharpe[1:].round(3), SHARPE_Y)


@pytest.mark.parametrize(("estimate", "type_one", "type_two"), [(X, 0.5, 0.0), (Y, 0.0, 1 / 3)])
def test_safety_of_toy_1(estimate, type_one, type_two):
    assert type_one_error(estimate, VALUE, BASELINE) == type_one
    assert type_two_error(estimate, VALUE, BASELINE) == pytest.approx(type_two)
    assert safety_violation_rate(VALUE, ranking(estimate, prefer=VALUE), BASELINE)[3] == 0.5


def test_accuracy_hardly_tells_w_from_z():
    for estimate, error, correlation in ((W, 60.1, 0.079), (Z, 58.6, 0.023)):
        assert round(mean_squared_error(estimate, VALUE_2), 1) == error
        assert round(rank_correlation(estimate, VALUE_2), 3) == correlation
        assert portfolios(VALUE_2, ranking(estimate), 5.0).regret[0] == 9.0


@pytest.mark.parametrize(
    ("baseline", "of_w", "of_z"), [(5.0, 8.485, 3.182), (10.0, 1.414, 1.414), (15.0, 0.0, 0.0)]
)
def test_who_is_better_depends_on_the_baseline(baseline, of_w, of_z):
    assert round(portfolios(VALUE_2, ranking(W), baseline).sharpe[1], 3) == of_w
    assert round(portfolios(VALUE_2, ranking(Z), baseline).sharpe[1], 3) == of_z


def test_against_a_strong_baseline_the_scattered_estimator_wins_first():
    w = portfolios(VALUE_2, ranking(W), 15.0).sharpe.round(3)
    z = portfolios(VALUE_2, ranking(Z), 15.0).sharpe.round(3)
    assert z[3] == 0.630 and not z[1:3].any()
    assert w[11] == 0.277 and not w[1:11].any()


@pytest.mark.parametrize("estimate", [X, Y])
def test_ranks_by_argsort_give_another_correlation(estimate):
    by_argsort = np.corrcoef(np.argsort(-estimate), np.argsort(-VALUE))[0, 1]
    assert round(by_argsort, 3) == 0.406 != round(rank_correlation(estimate, VALUE), 3)


@pytest.mark.parametrize(("estimate", "difference"), [(X, 4.0), (Y, 12.0)])
def test_regret_as_a_difference_of_sums_is_no_regret(estimate, difference):
    chosen = ranking(estimate, prefer=VALUE)[:3]
    assert np.sort(VALUE)[-3:].sum() - VALUE[chosen].sum() == difference != toy_portfolios(estimate).regret[2]


def test_the_deviation_of_the_paper_s_text_misses_its_figures():
    population = toy_portfolios(X, ddof=0).sharpe[1:].round(3)
    assert population[0] == 2.0
    assert not np.isclose(population, SHARPE_X, atol=5e-4).any()
