"""Two floors that cannot be confused: the nearest pmf above the floor, and a mixture with the uniform one.

`floor` is u, the share; each of K actions keeps u/K: .1 of three is u = .3, .05 of four is u = .2.
"""

import numpy as np
import pytest

from peira.learners.explorers import mix_floor, project_floor

THREE, FOUR = [0.8921, 0.0993, 0.0086], [0.6, 0.3, 0.1, 0.0]


def floored(how, pmf, floor):
    return how(np.array([pmf]), np.ones((1, len(pmf)), dtype=bool), floor)[0]


@pytest.mark.parametrize(
    ("pmf", "least", "expected"),
    [(THREE, 0.1, [0.8, 0.1, 0.1]), (FOUR, 0.05, [0.5833, 0.2833, 0.0833, 0.05])],
)
def test_projection(pmf, least, expected):
    found = floored(project_floor, pmf, least * len(pmf))
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert found.sum() == 1.0


def test_projection_has_these_fractions():
    np.testing.assert_allclose(
        floored(project_floor, FOUR, 0.2), [7 / 12, 17 / 60, 1 / 12, 1 / 20], rtol=1e-14
    )


def test_mixing_gives_other_numbers():
    mixed = floored(mix_floor, THREE, 0.3)
    np.testing.assert_allclose(mixed, [0.7245, 0.1695, 0.1060], atol=5e-5)
    assert mixed.sum() == 1.0
    for pmf, floor in ((THREE, 0.3), (FOUR, 0.2)):
        assert abs(floored(mix_floor, pmf, floor) - floored(project_floor, pmf, floor)).max() > 0.03


def test_projection_is_the_nearest_pmf_above_the_floor():
    generator = np.random.default_rng(0)
    for pmf in generator.dirichlet(np.full(5, 0.4), size=50):
        found = floored(project_floor, pmf, 0.3)
        others = 0.06 + 0.7 * generator.dirichlet(np.ones(5), size=200)
        assert (found >= 0.06 - 1e-15).all()
        assert ((found - pmf) ** 2).sum() <= ((others - pmf) ** 2).sum(1).min()
        # Towards each of the others the distance does not fall.
        assert ((others - found) @ (found - pmf) >= -1e-12).all()
