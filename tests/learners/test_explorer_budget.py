"""γ from a budget: the mass or cost asked for is met, and what cannot be reached is found out and said."""

import math

import numpy as np
import pytest

from peira.learners.explorer_budget import explore_cost, explore_mass, gamma_for_cost, gamma_for_mass
from peira.learners.explorers import fastcb, project_floor, squarecb

ROWS, COLUMNS = 3000, 8


def payments(*, tied=False, seed=0):
    """Approval rates with gaps of hundredths; with `tied`, every second row has two level best actions."""
    generator = np.random.default_rng(seed)
    shape = (ROWS, COLUMNS)
    eligible = generator.random(shape).argsort(1) < generator.integers(3, COLUMNS + 1, (ROWS, 1))
    scores = 0.83 + 0.02 * generator.standard_normal(shape)
    if tied:
        place = np.argsort(np.where(eligible, -scores, np.inf), axis=1)[::2, :2]
        scores[np.arange(0, ROWS, 2)[:, None], place] = 0.95
    return np.where(eligible, scores, np.nan), eligible


def explorer(scores, eligible, rule=squarecb):
    return lambda gamma: rule(scores, eligible, gamma)


def test_mass_and_cost_by_hand():
    scores, eligible = (
        np.array([[0.9, 0.8, 0.5], [0.2, np.nan, 0.6]]),
        np.array([[1, 1, 1], [1, 0, 1]], dtype=bool),
    )
    pmf = np.array([[0.6, 0.3, 0.1], [0.25, 0, 0.75]])
    assert explore_mass(pmf, scores, eligible) == pytest.approx((0.4 + 0.25) / 2)
    assert explore_cost(pmf, scores, eligible) == pytest.approx((0.3 * 0.1 + 0.1 * 0.4 + 0.25 * 0.4) / 2)


@pytest.mark.parametrize("rule", [squarecb, fastcb])
def test_mass_and_cost_fall_as_gamma_rises(rule):
    scores, eligible = payments(tied=True)
    pmfs = [rule(scores, eligible, gamma) for gamma in 10.0 ** np.arange(-2, 9)]
    for spent in (explore_mass, explore_cost):
        assert (np.diff([spent(pmf, scores, eligible) for pmf in pmfs]) < 0).all()


def test_gamma_of_one_row_in_closed_form():
    # Mass 1/(2 + .1γ) = .05 and cost .1/(2 + .1γ) = .004.
    scores, eligible = np.array([[0.8, 0.7]]), np.array([[True, True]])
    found = gamma_for_mass(explorer(scores, eligible), scores, eligible, 0.05)
    assert found == pytest.approx((180.0, 0.05), rel=1e-5)
    found = gamma_for_cost(explorer(scores, eligible), scores, eligible, 0.004)
    assert found == pytest.approx((230.0, 0.004), rel=1e-5)


@pytest.mark.parametrize("rule", [squarecb, fastcb])
@pytest.mark.parametrize("floor", [0.0, 0.02])
def test_the_budget_is_met(rule, floor):
    scores, eligible = payments()

    def floored(gamma):
        return project_floor(rule(scores, eligible, gamma), eligible, floor)

    for mass in (0.03, 0.1, 0.5):
        gamma, reached = gamma_for_mass(floored, scores, eligible, mass)
        assert reached == pytest.approx(mass, rel=1e-5)
        assert explore_mass(floored(gamma), scores, eligible) == reached
    for cost in (0.001, 0.01):
        gamma, reached = gamma_for_cost(floored, scores, eligible, cost)
        assert reached == pytest.approx(cost, rel=1e-5)
        assert explore_cost(floored(gamma), scores, eligible) == reached


def test_gaps_of_payments_need_a_gamma_of_thousands():
    scores, eligible = payments()
    assert 1e3 < gamma_for_mass(explorer(scores, eligible), scores, eligible, 0.05).gamma < 3e4


def test_ties_leave_a_mass_that_no_gamma_takes_away():
    scores, eligible = payments(tied=True)
    least = explore_mass(squarecb(scores, eligible, math.inf), scores, eligible)
    # Half of the rows keep 1/K(x).
    assert least == pytest.approx((1 / eligible[::2].sum(1)).sum() / ROWS)
    asked = explorer(scores, eligible), scores, eligible
    with pytest.raises(
        ValueError, match=rf"explore_mass: 0.05 cannot be reached .* {least:.6g} at the least"
    ):
        gamma_for_mass(*asked, 0.05)
    gamma, reached = gamma_for_mass(*asked, 0.05, nearest=True)
    assert reached == pytest.approx(1.01 * least, rel=1e-5)
    # The rows without ties still explore.
    assert 1 < gamma < 1e7
    # What ties keep costs nothing.
    assert gamma_for_cost(*asked, 1e-4).reached == pytest.approx(1e-4, rel=1e-5)


@pytest.mark.parametrize("solve", [gamma_for_mass, gamma_for_cost])
def test_more_than_uniform_cannot_be_reached(solve):
    scores, eligible = payments()
    asked = explorer(scores, eligible), scores, eligible
    with pytest.raises(ValueError, match=r"0.95 cannot be reached .* at the most"):
        solve(*asked, 0.95)
    gamma, reached = solve(*asked, 0.95, nearest=True)
    spent = explore_mass if solve is gamma_for_mass else explore_cost
    assert gamma == 0 and reached == spent(squarecb(scores, eligible, 0.0), scores, eligible)


def test_a_model_that_knows_nothing_is_uniform_at_any_budget():
    _, eligible = payments()
    level = np.where(eligible, 0.5, np.nan)
    asked = explorer(level, eligible), level, eligible
    uniform_mass = 1 - (1 / eligible.sum(1)).mean()
    assert gamma_for_mass(*asked, 0.05, nearest=True) == pytest.approx((0.0, uniform_mass))
    assert gamma_for_cost(*asked, 0.01, nearest=True) == (0.0, 0.0)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("solve", [gamma_for_mass, gamma_for_cost])
def test_a_budget_that_is_none_is_refused(solve, budget):
    scores, eligible = payments()
    with pytest.raises(ValueError, match=r"explore_(mass|cost): expected"):
        solve(explorer(scores, eligible), scores, eligible, budget)


def test_an_empty_window_is_refused():
    scores, eligible = np.empty((0, 3)), np.empty((0, 3), dtype=bool)
    with pytest.raises(ValueError, match="explore_mass: needs decisions"):
        gamma_for_mass(explorer(scores, eligible), scores, eligible, 0.05)
