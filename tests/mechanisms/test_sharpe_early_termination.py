"""Self-normalisation counts episodes that have ended, with the weight they had at their end (M4).

Fixture A′: action 1 in state 1 ends the episode, and the target takes it more often than the log's policy did. To
normalise over the living alone, as widely used code does, converges to a wrong value, by 18 % or more.
"""

import numpy as np
import pytest
from ope_fixtures import (
    A_PRIME,
    HORIZON,
    Trajectories,
    enumerate_trajectories,
    exact_log,
    finite_values,
    population,
    state_occupancy,
    time_ratio,
)

from peira.evaluation.off_policy import marginal, sequential
from peira.evaluation.off_policy.terms import total
from peira.evaluation.off_policy.weights import cumulative_log_weights, weights

VALUE, BEHAVIOUR_VALUE = 1.77466416, 1.73450952
GAMMA = A_PRIME.gamma
DISCOUNT = GAMMA ** np.arange(HORIZON)

LOG = enumerate_trajectories(A_PRIME, HORIZON)
BLOCK = LOG.block(A_PRIME)
W = weights(cumulative_log_weights(BLOCK))
WRONG = np.random.default_rng(0).normal(0, 3, (HORIZON, 2, 2))
WRONG_Q, WRONG_V = LOG.at(WRONG), LOG.at_state((A_PRIME.pi * WRONG).sum(-1))
STATE_RATIO = LOG.at_state(time_ratio(A_PRIME, HORIZON))
PAIR_RATIO = marginal.pair_ratio(BLOCK, STATE_RATIO)

ESTIMATORS = {
    "tis": sequential.tis(BLOCK, GAMMA),
    "wis": sequential.wis(BLOCK, GAMMA),
    "pdis": sequential.pdis(BLOCK, GAMMA),
    "wpdis": sequential.wpdis(BLOCK, GAMMA),
    "dr": sequential.dr(BLOCK, WRONG_Q, WRONG_V, GAMMA),
    "wdr": sequential.wdr(BLOCK, WRONG_Q, WRONG_V, GAMMA),
    "sam_is": marginal.sam_is(BLOCK, PAIR_RATIO, GAMMA),
    "sam_snis": marginal.sam_snis(BLOCK, PAIR_RATIO, GAMMA),
    "sm_snis": marginal.sm_snis(BLOCK, STATE_RATIO, GAMMA),
    "sam_sndr": marginal.sam_sndr(BLOCK, PAIR_RATIO, WRONG_Q, WRONG_V, GAMMA),
    "drl": marginal.drl(BLOCK, PAIR_RATIO, WRONG_Q, WRONG_V, GAMMA),
    "sope": marginal.sm_sope(BLOCK, STATE_RATIO, GAMMA, window=1),
}


def test_the_fixture():
    assert A_PRIME.mu @ finite_values(A_PRIME, A_PRIME.pi, HORIZON)[1][0] == pytest.approx(VALUE, abs=1e-12)
    assert LOG.prob @ LOG.reward @ DISCOUNT == pytest.approx(VALUE, abs=1e-12)
    assert LOG.prob_b @ LOG.reward @ DISCOUNT == pytest.approx(BEHAVIOUR_VALUE, abs=1e-12)
    np.testing.assert_allclose(
        state_occupancy(A_PRIME, A_PRIME.pi_b, HORIZON).sum(1), [1, 0.85, 0.6585], atol=1e-12
    )
    np.testing.assert_allclose(LOG.prob_b @ (W * LOG.alive), [1, 0.76, 0.3888], atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_is_exact(estimator):
    assert population(ESTIMATORS[estimator], LOG.prob_b)[0] == pytest.approx(VALUE, abs=1e-12)


def alive_only(weight, *, alive_fraction):
    """Means over the living of self-normalised rewards, with or without the fraction that lives."""
    living = LOG.prob_b @ LOG.alive if alive_fraction else np.ones(HORIZON)
    normaliser = LOG.prob_b @ (weight * LOG.alive)
    return living * (LOG.prob_b @ (weight * LOG.reward)) / normaliser @ DISCOUNT


@pytest.mark.parametrize(("alive_fraction", "converges_to"), [(True, 2.096732), (False, 2.540016)])
def test_the_imitation_that_normalises_over_the_living(alive_fraction, converges_to):
    assert alive_only(W, alive_fraction=alive_fraction) == pytest.approx(converges_to, abs=1e-6)
    assert abs(alive_only(PAIR_RATIO, alive_fraction=alive_fraction) - VALUE) > 0.3


def test_a_discounted_ratio_counts_what_comes_after_the_end():
    of_states = (DISCOUNT @ state_occupancy(A_PRIME, A_PRIME.pi, HORIZON)) / (
        DISCOUNT @ state_occupancy(A_PRIME, A_PRIME.pi_b, HORIZON)
    )
    dead = [
        DISCOUNT @ (1 - state_occupancy(A_PRIME, policy, HORIZON).sum(1))
        for policy in (A_PRIME.pi, A_PRIME.pi_b)
    ]
    ratio = LOG.at_state(of_states)
    for ended_ratio, right in [(dead[0] / dead[1], True), (0.0, False)]:
        terms = marginal.sm_snis(BLOCK, ratio, GAMMA, marginal.HorizonNormaliser(HORIZON, ended_ratio))
        value = population(terms, LOG.prob_b)[0]
        assert (abs(value - VALUE) < 1e-12) == right
        assert abs(value - VALUE) < 1e-12 or abs(value - VALUE) > 0.3


def test_a_log_cut_into_blocks_of_equal_length_is_exact_too():
    """Episodes of one step are in a block of one column, and still count in the later normalisers."""
    log = exact_log(A_PRIME, HORIZON)
    blocks = []
    for steps in range(1, HORIZON + 1):
        rows = log.length == steps
        narrow = {name: of[rows, :steps] if of.ndim == 2 else of[rows] for name, of in vars(log).items()}
        blocks.append(sequential.wpdis(Trajectories(**narrow).block(A_PRIME), GAMMA))
    assert [terms.numerator.shape[1] for terms in blocks] == [1, 2, 3]
    over_blocks = total(blocks)
    variance = population(ESTIMATORS["wpdis"], LOG.prob_b)[1]
    assert over_blocks.value == pytest.approx(VALUE, abs=1e-10)
    assert over_blocks.standard_error == pytest.approx(np.sqrt(variance / (len(log.length) - 1)), rel=1e-10)
