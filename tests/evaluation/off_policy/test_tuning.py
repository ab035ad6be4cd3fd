"""SLOPE by hand, and the surrogate of the mean squared error against the true one."""

import math

import numpy as np
import pytest
from scipy import stats

from peira.evaluation.off_policy.bandit import ipw
from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.tuning import accepted_in_order, half_width, mse_surrogate, slope

VALUE, WIDTH = np.array([1.55, 1.50, 1.30, 0.80]), np.array([0.40, 0.25, 0.12, 0.05])


def test_fixture_f():
    assert slope(VALUE, WIDTH) == 2
    assert accepted_in_order(VALUE, WIDTH) == 3
    c = math.sqrt(6) - 1
    assert 0.12 + c * 0.40 == pytest.approx(0.6998, abs=5e-5)
    assert 0.12 + c * 0.25 == pytest.approx(0.4824, abs=5e-5)
    assert 0.05 + c * 0.40 == pytest.approx(0.6298, abs=5e-5)


def test_candidates_may_come_in_any_order():
    order = np.array([3, 1, 0, 2])
    assert slope(VALUE[order], WIDTH[order]) == 3


def test_all_accepted_gives_the_narrowest_and_the_first_is_never_refused():
    assert slope(np.array([1.0, 1.0, 1.1]), np.array([0.1, 0.3, 0.2])) == 0
    assert slope(np.array([1.0, 50.0]), np.array([0.2, 0.1])) == 0
    assert slope(np.array([7.0]), np.array([0.2])) == 0


def test_every_accepted_candidate_has_a_say():
    # The third agrees with the second and not with the first; overlap with the last accepted alone would let it in.
    value, width = np.array([0.0, 0.9, 1.0]), np.array([0.6, 0.1, 0.01])
    assert abs(value[2] - value[1]) <= 0.01 + 1.45 * 0.1
    assert slope(value, width) == 1


def test_a_refused_candidate_ends_the_search():
    # The fourth would agree with the first two again.
    assert slope(np.array([0.0, 0.1, 5.0, 0.1]), np.array([0.4, 0.3, 0.2, 0.1])) == 1


def test_half_width_is_one_sided_student():
    sample = np.array([1.0, 2.0, 4.0, 9.0])
    expected = stats.t.ppf(0.9, 3) * sample.std(ddof=1) / 2
    assert half_width(Terms.mean(sample)) == pytest.approx(expected, abs=1e-12)


def test_mse_surrogate_by_hand():
    ratio, modified = np.array([0.5, 1.0, 4.0]), np.array([0.5, 1.0, 2.0])
    residual = np.array([1.0, 0.0, 0.5])
    sample = modified * residual
    bias = 1.0 / 3
    found = mse_surrogate(sample, ratio, modified, residual)
    assert found == pytest.approx(0.25 / 3 + bias**2, abs=1e-12)
    log_tail = math.log(2 / 0.05)
    bound = bias + math.sqrt(2 * (17.25 / 3) * log_tail / 3) + 2 * 4 * log_tail / 9
    found = mse_surrogate(sample, ratio, modified, residual, bias_tail=0.05)
    assert found == pytest.approx(0.25 / 3 + bound**2, abs=1e-12)


def test_mse_surrogate_is_the_mean_squared_error_on_a_log_in_the_exact_proportions():
    # 20 rows of fixture C; clipped at 1 its mean is .5 for a true 1.5, with variance .9233333 a row.
    action = np.repeat([0, 1, 2], [10, 6, 4])
    reward = np.array([1.0, 0.0, 2.0])[action] + np.tile([1.0, -1.0], 10)
    ratio = np.array([0.1, 0.2, 0.7])[action] / np.array([0.5, 0.3, 0.2])[action]
    clipped = ipw(ratio, reward, clip=1.0).plain
    found = mse_surrogate(clipped, ratio, np.minimum(ratio, 1.0), reward)
    assert found == pytest.approx(0.9233333333 / 19 + 1.0, abs=1e-9)
    whole = mse_surrogate(ratio * reward, ratio, ratio, reward)
    assert whole == pytest.approx(10.1733333333 / 19, abs=1e-9)
    # Variance alone would choose the clipped one.
    assert whole < found
