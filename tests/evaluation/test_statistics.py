"""Comparison statistics against values worked out by hand."""

import math

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy.stats import norm

from peira.evaluation.statistics import (
    Estimate,
    area_under_curve,
    interquartile_mean,
    log_rank_test,
    paired_difference,
    pointwise_bootstrap_interval,
    probability_of_improvement,
    ratio_interval,
    stratified_bootstrap_interval,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_interquartile_mean_drops_a_quarter_at_either_end():
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0])) == (2 + 3 + 4 + 5) / 4
    # ⌊5/4⌋ = 1 at either end, not 1.25.
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 6.0, 900.0])) == 3.0


def test_interquartile_mean_of_fewer_than_four_scores_is_the_mean():
    assert interquartile_mean(np.array([0.0, 3.0, 9.0])) == 4.0
    assert interquartile_mean(np.array([7.0])) == 7.0


def test_interquartile_mean_pools_seeds_and_tasks():
    scores = np.array([[0.0, 100.0], [1.0, 2.0]])
    assert interquartile_mean(scores) == 1.5
    np.testing.assert_array_equal(interquartile_mean(scores, axis=0), [0.5, 51.0])


def test_interval_of_two_seeds_is_worked_out_by_hand(rng):
    # The mean of a resample is 0, ½, 1 with probability ¼, ½, ¼.
    scores = np.array([0.0, 1.0])
    assert stratified_bootstrap_interval(scores, np.mean, rng=rng) == (0.0, 1.0)
    assert stratified_bootstrap_interval(scores, np.mean, confidence=0.4, rng=rng) == (0.5, 0.5)


def test_interval_redraws_within_tasks_only(rng):
    # All spread is between the tasks, none between seeds; an unstratified bootstrap would spread over 0 … 10.
    scores = np.array([[0.0, 10.0], [0.0, 10.0], [0.0, 10.0]])
    assert stratified_bootstrap_interval(scores, np.mean, rng=rng) == (5.0, 5.0)


def test_interval_of_many_seeds_agrees_with_normal_theory(rng):
    scores = rng.normal(size=400)
    low, high = stratified_bootstrap_interval(scores, np.mean, rng=rng)
    margin = norm.ppf(0.975) * scores.std() / math.sqrt(400)
    assert low == pytest.approx(scores.mean() - margin, abs=0.01)
    assert high == pytest.approx(scores.mean() + margin, abs=0.01)


def test_same_generator_state_gives_the_same_interval():
    scores = np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    first = stratified_bootstrap_interval(scores, rng=np.random.default_rng(7))
    assert first == stratified_bootstrap_interval(scores, rng=np.random.default_rng(7))


def test_one_seed_gives_no_interval(rng):
    one, two = np.array([1.0]), np.array([1.0, 2.0])
    assert stratified_bootstrap_interval(one, rng=rng) is None
    assert pointwise_bootstrap_interval(np.array([[1.0, 2.0]]), rng=rng) is None
    assert paired_difference(one, np.array([0.5]), rng=rng) == Estimate(0.5, None, None)
    assert ratio_interval(one, np.array([0.5]), rng=rng) == Estimate(2.0, None, None)
    improvement = probability_of_improvement(one, two, rng=rng)
    assert improvement == Estimate(0.25, None, None)
    assert improvement.interval is None


def test_pointwise_interval_treats_every_point_by_itself(rng):
    low, high = pointwise_bootstrap_interval(np.array([[0.0, 5.0, 1.0], [1.0, 5.0, 0.0]]), np.mean, rng=rng)
    np.testing.assert_array_equal(low, [0.0, 5.0, 0.0])
    np.testing.assert_array_equal(high, [1.0, 5.0, 1.0])


def test_paired_difference_cancels_what_the_seed_brings(rng):
    b = np.array([0.0, 1000.0, -300.0, 42.0, 7.0])
    difference = paired_difference(b + 1, b, rng=rng)
    assert difference == pytest.approx((1.0, 1.0, 1.0))
    # The same scores with the pairs broken leave the whole spread between the seeds in the interval.
    broken = paired_difference(b[::-1] + 1, b, rng=rng)
    assert broken.estimate == pytest.approx(1.0)
    assert broken.low < -100 < 100 < broken.high


def test_paired_difference_of_two_seeds_is_worked_out_by_hand(rng):
    # The pairs' differences are 1 and 3: a resample's mean is 1, 2, 3 with probability ¼, ½, ¼.
    difference = paired_difference(np.array([5.0, 4.0]), np.array([4.0, 1.0]), np.mean, rng=rng)
    assert difference == Estimate(2.0, 1.0, 3.0)
    assert difference.interval == [1.0, 3.0]


def test_paired_difference_refuses_unpaired_scores(rng):
    with pytest.raises((ValueError, TypeCheckError), match=r"got 3 and 2 scores|'seeds'"):
        paired_difference(np.zeros(3), np.zeros(2), rng=rng)


def test_ratio_of_proportional_scores_is_exact(rng):
    b = np.array([1.0, 10.0, 3.0, 70.0])
    assert ratio_interval(2 * b, b, rng=rng) == pytest.approx((2.0, 2.0, 2.0))


def test_ratio_of_two_seeds_is_worked_out_by_hand(rng):
    # Resampled ratios: 4/1 (¼), (4+2)/(1+2) = 2 (½), 2/2 = 1 (¼).
    assert ratio_interval(np.array([4.0, 2.0]), np.array([1.0, 2.0]), np.mean, rng=rng) == (2.0, 1.0, 4.0)


def test_ratio_refuses_scores_that_are_not_positive(rng):
    with pytest.raises(ValueError, match="needs scores above 0, got -1; use paired_difference"):
        ratio_interval(np.array([1.0, 2.0]), np.array([5.0, -1.0]), rng=rng)


def test_probability_of_improvement_counts_ties_as_half(rng):
    # 1 beats {0}; 2 ties twice and beats {0}; 3 beats all: (1 + 2 + 3) / 9.
    improvement = probability_of_improvement(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.0]), rng=rng)
    assert improvement.estimate == pytest.approx(6 / 9)
    assert 0 <= improvement.low < 6 / 9 < improvement.high <= 1


def test_probability_of_improvement_averages_over_tasks(rng):
    # Always better on the first task, never on the second, however the seeds are redrawn.
    a = np.array([[9.0, 0.0], [8.0, 0.5]])
    b = np.array([[1.0, 3.0], [2.0, 4.0], [3.0, 5.0]])
    assert probability_of_improvement(a, b, rng=rng) == (0.5, 0.5, 0.5)


def test_probability_of_improvement_refuses_other_tasks(rng):
    with pytest.raises((ValueError, TypeCheckError), match=r"got shapes \(2, 3\) and \(2, 2\)|\*tasks"):
        probability_of_improvement(np.zeros((2, 3)), np.zeros((2, 2)), rng=rng)


def test_area_under_curve_is_the_mean_return():
    # Trapezoids of 1 · (0+2)/2 and 2 · (2+4)/2 over a range of 3.
    assert area_under_curve(np.array([0, 1, 3]), np.array([0.0, 2.0, 4.0])) == pytest.approx(7 / 3)
    assert area_under_curve(np.array([2048, 4096]), np.array([5.0, 5.0])) == 5.0


@pytest.mark.parametrize(
    ("steps", "returns", "message"),
    [
        ([10], [1.0], "at least 2 evaluations, got 1"),
        ([10, 10], [1.0, 2.0], r"steps that rise .* got \[10, 10\]"),
        ([10, 20], [1.0, math.nan], "finite steps and returns"),
    ],
)
def test_area_under_curve_refuses_what_is_no_curve(steps, returns, message):
    with pytest.raises(ValueError, match=message):
        area_under_curve(np.array(steps), np.array(returns))


def test_log_rank_is_worked_out_by_hand():
    # Expected events of a: 2/4 at t=1 and 1/3 at t=2; variances 1/4 and 2/9. Z = (2 − 5/6) / √(17/36).
    everyone = np.array([True, True])
    test = log_rank_test(np.array([1, 2]), everyone, np.array([3, 4]), everyone)
    z = (2 - 5 / 6) / math.sqrt(17 / 36)
    assert test.statistic == pytest.approx(z)
    assert test.p_value == pytest.approx(2 * norm.sf(z))


def test_log_rank_uses_censored_seeds_until_they_are_lost():
    # b's first seed is lost at t=1.5: at t=1 two of four are a's, at t=2 one of two, at t=4 none.
    test = log_rank_test(
        np.array([1, 2]), np.array([True, True]), np.array([1.5, 4.0]), np.array([False, True])
    )
    assert test.statistic == pytest.approx((2 - 1 / 2 - 1 / 2) / math.sqrt(1 / 4 + 1 / 4))


def test_log_rank_refuses_a_goal_that_nobody_reached():
    nobody = np.array([False, False])
    with pytest.raises(ValueError, match="at least one seed that reached the goal"):
        log_rank_test(np.array([1, 2]), nobody, np.array([3, 4]), nobody)
