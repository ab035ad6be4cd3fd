"""Inverse gap weighting by hand: K is the number of actions that are eligible here, and one of them is the best."""

import numpy as np
import pytest

from peira.learners.explorers import squarecb

SCORES = np.array([[0.9, 0.8, 0.5]])
ALL = np.ones((1, 3), dtype=bool)
WITHOUT_SECOND = np.array([[True, False, True]])
OF_ALL = [0.607143, 0.25, 0.142857]
OF_TWO = [0.8333, 0.0, 0.1667]


def imitation(gamma, eligible, count):
    """The formula with another K than the number of eligible actions."""
    pmf = np.where(eligible, 1 / (count + gamma * (SCORES.max() - SCORES[0])), 0.0)
    pmf[0] = 1 - pmf[1:].sum()
    return pmf


def test_three_eligible_actions():
    np.testing.assert_allclose(squarecb(SCORES, ALL, 10.0)[0], OF_ALL, atol=5e-7)


def test_without_the_second_action_k_is_2():
    np.testing.assert_allclose(squarecb(SCORES, WITHOUT_SECOND, 10.0)[0], OF_TWO, atol=5e-5)


def test_gamma_0_is_uniform():
    np.testing.assert_allclose(squarecb(SCORES, ALL, 0.0)[0], [1 / 3] * 3, rtol=1e-15)
    np.testing.assert_allclose(squarecb(SCORES, WITHOUT_SECOND, 0.0)[0], [0.5, 0.0, 0.5], rtol=1e-15)


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 10.0, 1e6, 1e300, np.inf])
def test_equal_scores_are_uniform_at_every_gamma(gamma):
    equal = np.full((1, 3), 0.7)
    np.testing.assert_allclose(squarecb(equal, ALL, gamma)[0], [1 / 3] * 3, rtol=1e-15)
    np.testing.assert_allclose(squarecb(equal, WITHOUT_SECOND, gamma)[0], [0.5, 0, 0.5], rtol=1e-15)


def test_the_number_of_all_actions_for_k_gives_other_probabilities():
    np.testing.assert_allclose(imitation(10.0, ALL[0], 3), OF_ALL, atol=5e-7)
    np.testing.assert_allclose(imitation(10.0, WITHOUT_SECOND[0], 2), OF_TWO, atol=5e-5)
    with_all = imitation(10.0, WITHOUT_SECOND[0], 3)
    assert abs(with_all - OF_TWO).max() > 0.02
    # And it is not uniform where nothing is known.
    np.testing.assert_allclose(imitation(0.0, WITHOUT_SECOND[0], 3), [2 / 3, 0, 1 / 3])


@pytest.mark.parametrize("off", [-1, 1])
def test_k_off_by_one_gives_other_probabilities(off):
    assert abs(imitation(10.0, ALL[0], 3 + off) - OF_ALL).max() > 0.02
