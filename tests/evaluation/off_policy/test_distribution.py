import numpy as np
import pytest

from peira.evaluation.off_policy.distribution import (
    dm_distribution,
    sntis_distribution,
    tdr_distribution,
    tis_distribution,
)

RETURNS = np.array([3.0, 1.0, 2.0, 1.0])
LOG_WEIGHT = np.log([1.0, 0.5, 1.5, 0.2])


def test_tis_reports_the_mass_that_is_missing():
    found = tis_distribution(RETURNS, LOG_WEIGHT)
    np.testing.assert_array_equal(found.atom, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(found.mass, [0.175, 0.375, 0.25])
    np.testing.assert_allclose(found.cdf(), [0.175, 0.55, 0.8])
    assert found.missing == pytest.approx(0.2)
    assert found.mean() == pytest.approx(0.175 + 0.75 + 0.75)
    assert found.variance() == pytest.approx(0.175 + 1.5 + 2.25 - 1.675**2)
    assert found.quantile(0.8) == 3.0
    assert np.isnan(found.quantile(0.81))
    assert np.isnan(found.cvar(0.81))


def test_tis_cuts_what_is_above_one_off_the_greatest_returns():
    found = tis_distribution(RETURNS, LOG_WEIGHT + np.log(2))
    np.testing.assert_allclose(found.mass, [0.35, 0.65, 0.0])
    assert found.missing == pytest.approx(-0.6)


def test_sntis_ends_at_one_whatever_the_scale():
    for scale in (0.0, 2_000.0, -2_000.0):
        found = sntis_distribution(RETURNS, LOG_WEIGHT + scale)
        np.testing.assert_allclose(found.mass, np.array([0.7, 1.5, 1.0]) / 3.2)
        assert found.missing == pytest.approx(0.0, abs=1e-15)


def test_no_weight_gives_no_numbers():
    found = sntis_distribution(RETURNS, np.full(4, -np.inf))
    assert np.isnan(
        [found.mean(), found.variance(), found.quantile(0.5), found.cvar(0.5), found.missing]
    ).all()


def test_equal_weights_give_the_sample():
    sample = np.random.default_rng(0).normal(size=101)
    found = sntis_distribution(sample, np.zeros(101))
    assert found.mean() == pytest.approx(sample.mean())
    assert found.variance() == pytest.approx(sample.var())
    for level in (0.05, 0.5, 1.0):
        assert found.quantile(level) == np.quantile(sample, level, method="inverted_cdf")


def test_cvar_takes_the_last_atom_in_part():
    found = sntis_distribution(np.array([0.0, 1.0, 5.0]), np.log([0.2, 0.5, 0.3]))
    assert found.cvar(0.1) == 0.0
    assert found.cvar(0.4) == pytest.approx(0.2 * 1.0 / 0.4)
    assert found.cvar(0.8) == pytest.approx((0.5 * 1.0 + 0.1 * 5.0) / 0.8)
    assert found.cvar(1.0) == pytest.approx(found.mean())


def test_a_level_reached_but_for_rounding_is_reached():
    found = sntis_distribution(np.arange(10.0), np.zeros(10))
    # 0.1 added eight times is below 0.8.
    assert [found.quantile(k / 10) for k in range(1, 11)] == list(range(10))


def test_returns_apart_by_rounding_are_one_atom():
    found = tis_distribution(np.array([0.1 + 0.2, 0.3, 1.0]), np.zeros(3))
    np.testing.assert_allclose(found.mass, [2 / 3, 1 / 3])


def test_a_model_at_rounded_returns_cancels():
    """Otherwise the running maximum would keep mass that stands for 10⁻¹⁶ of a return."""
    returns, weight = np.array([0.1 + 0.2, 0.3, 1.0]), np.log([4.0, 0.1, 0.1])
    model = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = tdr_distribution(returns, weight, np.array([0.3, 1.0]), model, model)
    np.testing.assert_allclose(found.mass, [2 / 3, 1 / 3], atol=1e-15)


def test_the_direct_method_averages_the_model():
    target = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    found = dm_distribution(np.array([1.0, 2.0, 3.0]), target)
    np.testing.assert_allclose(found.mass, [0.25, 0.35, 0.4])


@pytest.mark.parametrize(
    ("returns", "taken", "raw", "expected"),
    [
        ([1.0, 2.0], [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [0.9, 0.3, 1.0], [0.9, 0.9, 1.0]),
        ([2.0, 3.0], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [-0.7, 0.2, 1.0], [0.0, 0.2, 1.0]),
        ([1.0, 1.0], [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
    ],
)
def test_tdr_becomes_a_distribution_function(returns, taken, raw, expected):
    """By hand: cumulated (w/n at G) + mean(target − w taken) at 1, 2, 3; then its greatest value so far in [0, 1]."""
    weight, taken, target = np.array([1.6, 0.2]), np.array(taken), np.tile([0.1, 0.1, 0.8], (2, 1))
    at = np.array(returns)[:, None] == [1.0, 2.0, 3.0]
    np.testing.assert_allclose(np.cumsum((weight @ at + (target - weight[:, None] * taken).sum(0)) / 2), raw)
    found = tdr_distribution(np.array(returns), np.log(weight), np.array([1.0, 2.0, 3.0]), taken, target)
    np.testing.assert_allclose(found.cdf(), expected)
    assert found.missing == pytest.approx(0.0, abs=1e-15)


ESTIMATORS = {
    "tis": lambda r, w, s, a, b, c: tis_distribution(r, w, c),
    "sntis": lambda r, w, s, a, b, c: sntis_distribution(r, w, c),
    "dm": lambda r, w, s, a, b, c: dm_distribution(s, b, c),
    "tdr": tdr_distribution,
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_replicates_are_what_repeated_episodes_give(estimator):
    rng = np.random.default_rng(0)
    returns, log_weight, support = np.arange(20) % 6.0, rng.normal(size=20), np.arange(6.0)
    taken, target = rng.dirichlet(np.ones(6), 20), rng.dirichlet(np.ones(6), 20)
    count = rng.multinomial(20, np.full(20, 1 / 20), size=7)
    found = ESTIMATORS[estimator](returns, log_weight, support, taken, target, count.astype(float))
    assert found.mass.shape == (7, 6)
    for r in range(7):
        rows = np.repeat(np.arange(20), count[r])
        one = ESTIMATORS[estimator](returns[rows], log_weight[rows], support, taken[rows], target[rows], None)
        at = np.searchsorted(one.atom, found.atom, side="right")
        np.testing.assert_allclose(found.cdf()[r], np.append(0.0, one.cdf())[at], atol=1e-14)
        assert found.mean()[r] == pytest.approx(one.mean())
        assert found.variance()[r] == pytest.approx(one.variance())
        assert found.cvar(0.3)[r] == pytest.approx(one.cvar(0.3), nan_ok=True)
        assert found.quantile(0.3)[r] == pytest.approx(one.quantile(0.3), nan_ok=True)
        assert found.missing[r] == pytest.approx(one.missing, abs=1e-14)


@pytest.mark.parametrize("level", [0.0, -0.1, 1.1])
def test_levels_out_of_range_are_refused(level):
    found = tis_distribution(RETURNS, LOG_WEIGHT)
    for functional in (found.quantile, found.cvar):
        with pytest.raises(ValueError, match=rf"expected a level in \(0, 1\], got {level:g}"):
            functional(level)
