"""M2, in part: with the same linear features minimax weights, minimax values and LSTDQ are one estimate.

Exact agreement is no sign of truth: the two features below leave 1.699 of a value of 10.378, three times over.
"""

import numpy as np
import pytest
from ope_fixtures import B, discounted_occupancy

from peira.evaluation.off_policy.dice import MQL, MWL, saddle_point
from peira.evaluation.off_policy.kernel_balance import minimax_values, minimax_weights
from peira.evaluation.off_policy.linear import Moments, feature_moments, lstdq, model_moments
from peira.evaluation.off_policy.tabular import TabularModel

GAMMA, TRUTH = B.gamma, 384 / 37


def moments_of(features, share):
    """Moments of features φ(s, a) [4, k] in fixture B, the pairs distributed as `share`."""
    of_pairs = model_moments(TabularModel(B.P, B.R, B.mu, share.reshape(2, 2)), B.pi)
    return Moments(
        gram=features.T @ of_pairs.gram @ features,
        onward=features.T @ of_pairs.onward @ features,
        reward=features.T @ of_pairs.reward,
        mean=features.T @ of_pairs.mean,
        ended=features.T @ of_pairs.ended,
        initial=features.T @ of_pairs.initial,
    )


def three_values(moments):
    of_weights = moments.reward @ minimax_weights(moments, GAMMA) / (1 - GAMMA)
    of_values = moments.initial @ minimax_values(moments, GAMMA)
    return of_weights, of_values, moments.initial @ lstdq(moments, GAMMA)


def test_two_features_agree_on_a_wrong_value():
    features = np.random.default_rng(0).normal(size=(4, 2))
    found = three_values(moments_of(features, discounted_occupancy(B, B.pi_b)))
    np.testing.assert_allclose(found, 1.6991961519, atol=1e-10)


def test_all_pairs_agree_on_the_truth():
    found = three_values(moments_of(np.eye(4), np.full(4, 0.25)))
    np.testing.assert_allclose(found, TRUTH, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_dependent_features_agree_too(seed):
    """Rank 2 or 3 in five columns: all three take the solution of least norm."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(4, 2 + seed % 2)) @ rng.normal(size=(2 + seed % 2, 5))
    moments = moments_of(features, rng.dirichlet(np.ones(4)))
    found = three_values(moments)
    np.testing.assert_allclose(found, found[0], rtol=1e-10)
    assert abs(found[0] - TRUTH) > 1e-3
    # The unregularised saddles are these estimates, read on the dual and on the primal side.
    assert saddle_point(moments, GAMMA, MWL).dual == pytest.approx(found[0], rel=1e-8)
    assert saddle_point(moments, GAMMA, MQL).primal == pytest.approx(found[0], rel=1e-8)


def test_rows_of_a_log_agree():
    rng = np.random.default_rng(0)
    rows, width = 500, 4
    feature, next_feature = rng.normal(size=(2, rows, width))
    ended = rng.random(rows) < 0.1
    moments = feature_moments(
        feature, next_feature, rng.normal(size=rows), ended, rng.normal(size=(50, width))
    )
    found = three_values(moments)
    np.testing.assert_allclose(found, found[0], rtol=1e-10)
