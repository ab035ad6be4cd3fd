"""M3: what the DICE saddle determines and what it does not, on fixture B, where the ratio is known.

With α_ν = 0 the flow is a constraint: ζ is the ratio and the dual is the value whatever α_ζ is, while the primal is
arbitrary. With α_ν = 1 and α_R = 1 it is the other way round. The Lagrangian is right in both. An imitation that reads
one fixed side reports −14 or 1087 for a value of 10.38.
"""

from dataclasses import replace

import numpy as np
import pytest
from ope_fixtures import B, discounted_occupancy

from peira.evaluation.off_policy.dice import (
    ALGAE_DICE,
    BEST_DICE,
    DUAL_DICE,
    GEN_DICE,
    MQL,
    MWL,
    dual_dice_ratio,
    saddle_point,
)
from peira.evaluation.off_policy.linear import model_moments
from peira.evaluation.off_policy.tabular import TabularModel
from peira.evaluation.off_policy.tabular import discounted_occupancy as occupancy_of_model

VALUE = 10.378378378
UNIFORM = np.full((2, 2), 0.25)
BEHAVIOUR = discounted_occupancy(B, B.pi_b)
RATIO = {
    "uniform": (UNIFORM, [0.5189189, 1.2108108, 0.4540541, 1.8162162]),
    "behaviour": (BEHAVIOUR, [0.4101280, 1.4354481, 0.4801675, 1.9206700]),
}
FLOW_ENFORCED = [DUAL_DICE, ALGAE_DICE, BEST_DICE, MWL]


def model(share):
    return TabularModel(B.P, B.R, B.mu, share)


def saddle(share, family):
    return saddle_point(model_moments(model(share), B.pi), B.gamma, family)


def test_occupancies_are_the_fixtures():
    np.testing.assert_allclose(BEHAVIOUR.ravel(), [0.3163152053, 0.2108768036, 0.2364039956, 0.2364039956])
    of_target = occupancy_of_model(model(UNIFORM), B.pi, B.gamma)
    np.testing.assert_allclose(of_target.ravel(), [0.1297297, 0.3027027, 0.1135135, 0.4540541], atol=5e-8)


@pytest.mark.parametrize("family", [*FLOW_ENFORCED, GEN_DICE, MQL])
@pytest.mark.parametrize("log", RATIO)
def test_where_the_flow_is_enforced_zeta_is_the_ratio_and_the_dual_the_value(log, family):
    share, ratio = RATIO[log]
    found = saddle(share, family)
    np.testing.assert_allclose(found.zeta, ratio, atol=6e-8)
    assert found.dual == pytest.approx(VALUE, abs=1e-9)
    assert found.lagrangian == pytest.approx(VALUE, abs=1e-9)
    assert found.mean_ratio == pytest.approx(1, abs=1e-10)
    assert found.flow_residual == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("family", [DUAL_DICE, ALGAE_DICE, BEST_DICE])
@pytest.mark.parametrize("log", RATIO)
def test_alpha_zeta_moves_the_primal_and_not_zeta(log, family):
    share, _ = RATIO[log]
    strong, weak = saddle(share, family), saddle(share, replace(family, alpha_zeta=0.1))
    np.testing.assert_allclose(weak.zeta, strong.zeta, atol=1e-10)
    assert weak.dual == pytest.approx(strong.dual, abs=1e-9)
    assert abs(weak.primal - strong.primal) > 1


def test_the_primal_of_dual_dice_is_no_value():
    assert saddle(BEHAVIOUR, DUAL_DICE).primal == pytest.approx(-14.14, abs=5e-3)
    assert saddle(BEHAVIOUR, MQL).primal == pytest.approx(VALUE, abs=1e-9)


def test_a_regularised_nu_turns_the_sides_around():
    family = replace(MQL, alpha_nu=1)
    for share in (UNIFORM, BEHAVIOUR):
        found = saddle(share, family)
        assert found.primal == pytest.approx(VALUE, abs=1e-9)
        assert found.lagrangian == pytest.approx(VALUE, abs=1e-8)
        assert found.dual == pytest.approx(1087, abs=0.1)
        # The checks beside a fit tell of it.
        assert abs(found.mean_ratio - 1) > 1
        assert found.flow_residual > 1


def test_lambda_and_a_constant_in_nu_are_one_unknown():
    """8 equations of 9 are independent: the mass of ζ is implied by its flow."""
    moments = model_moments(model(BEHAVIOUR), B.pi)
    flow, mass = moments.flow(B.gamma), moments.mass(B.gamma)
    zeros = np.zeros((4, 4))
    equations = np.block(
        [
            [zeros, flow.T, np.zeros((4, 1))],
            [flow, -moments.gram, -mass[:, None]],
            [np.zeros((1, 4)), -mass[None], np.zeros((1, 1))],
        ]
    )
    assert np.linalg.matrix_rank(equations) == 8
    free, bound = saddle(BEHAVIOUR, ALGAE_DICE), saddle(BEHAVIOUR, BEST_DICE)
    np.testing.assert_allclose(free.zeta, bound.zeta, atol=1e-10)
    np.testing.assert_allclose(bound.nu - free.nu, -bound.lagrange / (1 - B.gamma), atol=1e-9)
    assert free.primal == pytest.approx(bound.primal, abs=1e-9)


@pytest.mark.parametrize("log", RATIO)
def test_dual_dice_with_counts_is_the_same_saddle(log):
    share, ratio = RATIO[log]
    found = dual_dice_ratio(model(share), B.pi, B.gamma)
    np.testing.assert_allclose(found.ravel(), ratio, rtol=1e-5)
    np.testing.assert_allclose(
        dual_dice_ratio(model(share), B.pi, B.gamma, epsilon=1e-13).ravel(), ratio, atol=6e-8
    )
