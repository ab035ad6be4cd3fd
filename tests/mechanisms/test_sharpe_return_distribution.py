"""Fixture A: the whole distribution of returns under the target, from weighted returns of the log (M10).

The estimators are given the probabilities of the 64 trajectories as counts, so F must be exact. Easy imitations: a
model of expected returns in the place of one of returns, and CVaR over whole atoms.
"""

import numpy as np
import pytest
from ope_fixtures import HORIZON, A, enumerate_trajectories, finite_values

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.distribution import (
    dm_distribution,
    sntis_distribution,
    tdr_distribution,
    tis_distribution,
)
from peira.evaluation.off_policy.weights import cumulative_log_weights

LOG = enumerate_trajectories(A, HORIZON)
BLOCK = LOG.block(A)
RETURN = sequential.returns(BLOCK, A.gamma)
LOG_WEIGHT = cumulative_log_weights(BLOCK)[:, -1]
COUNT = LOG.prob_b[None]
SUPPORT = np.unique(RETURN.round(10))

CDF = {
    0: 0.06486,
    0.81: 0.082896,
    0.9: 0.105936,
    1: 0.144996,
    1.62: 0.2361,
    1.71: 0.245316,
    1.8: 0.380356,
    1.81: 0.388672,
    1.9: 0.418912,
    2: 0.452032,
    2.52: 0.458176,
    2.61: 0.498688,
    2.62: 0.577312,
}
CVAR = {0.1: 0.3000276, 0.25: 0.9847368, 0.5: 1.4884592}
QUANTILE = {0.1: 0.9, 0.25: 1.8, 0.5: 2.62}
MEAN, VARIANCE = 2.54161104, 1.69274514


def conditional(prob):
    """P(G = z | s_0, a_0) [s, a, support] from the probabilities of the trajectories."""
    masses = np.zeros((2, 2, len(SUPPORT)))
    np.add.at(masses, (LOG.state[:, 0], LOG.action[:, 0], np.searchsorted(SUPPORT, RETURN - 1e-6)), prob)
    return masses / masses.sum(axis=-1, keepdims=True)


def of_episodes(masses):
    """(Ĝ at the logged first action, Ĝ under the target) of each trajectory."""
    first = LOG.state[:, 0]
    return masses[first, LOG.action[:, 0]], np.einsum("ia,iaz->iz", A.pi[first], masses[first])


EXACT = of_episodes(conditional(LOG.prob))
WRONG = of_episodes(np.random.default_rng(0).dirichlet(np.full(len(SUPPORT), 0.3), (2, 2)))

DISTRIBUTIONS = {
    "tis": tis_distribution(RETURN, LOG_WEIGHT, COUNT),
    "sntis": sntis_distribution(RETURN, LOG_WEIGHT, COUNT),
    "dm": dm_distribution(SUPPORT, EXACT[1], COUNT),
    "tdr": tdr_distribution(RETURN, LOG_WEIGHT, SUPPORT, *EXACT, COUNT),
    "tdr, wrong model": tdr_distribution(RETURN, LOG_WEIGHT, SUPPORT, *WRONG, COUNT),
}


@pytest.mark.parametrize("estimator", DISTRIBUTIONS)
def test_the_distribution_function(estimator):
    found = DISTRIBUTIONS[estimator]
    assert len(found.atom) == 27
    assert found.atom[-1] == pytest.approx(5.42, abs=1e-12)
    np.testing.assert_allclose(found.atom[:13], list(CDF), atol=1e-12)
    np.testing.assert_allclose(found.cdf()[0, :13], list(CDF.values()), atol=1e-15)
    assert found.cdf()[0, -1] == pytest.approx(1.0, abs=1e-15)
    assert found.missing[0] == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("estimator", DISTRIBUTIONS)
def test_what_follows_from_it(estimator):
    found = DISTRIBUTIONS[estimator]
    assert found.mean()[0] == pytest.approx(MEAN, abs=1e-12)
    assert found.variance()[0] == pytest.approx(VARIANCE, abs=1e-8)
    for level, value in CVAR.items():
        assert found.cvar(level)[0] == pytest.approx(value, abs=1e-10)
    for level, value in QUANTILE.items():
        assert found.quantile(level)[0] == pytest.approx(value, abs=1e-12)
    assert found.cvar(1.0)[0] == pytest.approx(MEAN, abs=1e-12)


def test_the_direct_method_without_the_right_model_is_wrong():
    assert abs(dm_distribution(SUPPORT, WRONG[1], COUNT).mean()[0] - MEAN) > 0.1


def test_the_imitation_that_takes_expected_returns_for_returns():
    """P(V(s_0) ≤ m): the mean is right, and the spread of returns is gone."""
    _, v = finite_values(A, A.pi, HORIZON)
    support = np.sort(v[0])
    imitation = dm_distribution(support, (v[0][LOG.state[:, 0], None] == support).astype(float), COUNT)
    assert imitation.mean()[0] == pytest.approx(MEAN, abs=1e-12)
    assert imitation.variance()[0] < 0.2 * VARIANCE
    assert imitation.cvar(0.1)[0] > CVAR[0.1] + 1.5


@pytest.mark.parametrize("level", CVAR)
def test_the_imitation_that_takes_whole_atoms_into_cvar(level):
    """The mean of all returns up to the first atom whose distribution function exceeds the level."""
    found = DISTRIBUTIONS["tis"]
    cdf = found.cdf()[0]
    last = int((cdf > level).argmax()) + 1
    whole = found.mass[0, :last] @ found.atom[:last] / cdf[last - 1]
    assert abs(whole - CVAR[level]) > 1e-2


def test_the_imitation_that_discounts_the_first_reward():
    late = sntis_distribution(A.gamma * RETURN, LOG_WEIGHT, COUNT)
    assert late.mean()[0] == pytest.approx(A.gamma * MEAN, abs=1e-12)
