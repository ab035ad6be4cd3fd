"""Fixture A, all 64 trajectories: the mean of every estimator is exact, its variance that of the table (M1).

Sums over trajectories with their probabilities under π_b take the place of samples, so an estimator is right to 1e-12
or wrong. The easy imitations are wrong in the second digit.
"""

import numpy as np
import pytest
from ope_fixtures import (
    HORIZON,
    WRONG_Q,
    A,
    discounted_finite_ratio,
    enumerate_trajectories,
    finite_values,
    population,
    state_occupancy,
    time_ratio,
)

from peira.evaluation.off_policy import marginal, sequential
from peira.evaluation.off_policy.weights import clip_ratio, cumulative_log_weights, weights

VALUE, BEHAVIOUR_VALUE = 2.54161104, 2.07569772
GAMMA = A.gamma
DISCOUNT = GAMMA ** np.arange(HORIZON)

LOG = enumerate_trajectories(A, HORIZON)
BLOCK = LOG.block(A)
W = weights(cumulative_log_weights(BLOCK))
RETURN = LOG.reward @ DISCOUNT
Q, V = finite_values(A, A.pi, HORIZON)
STATE_RATIO = LOG.at_state(time_ratio(A, HORIZON))
PAIR_RATIO = marginal.pair_ratio(BLOCK, STATE_RATIO)
DISCOUNTED = marginal.pair_ratio(BLOCK, LOG.at_state(discounted_finite_ratio(A, HORIZON)))


def values(table):
    """(Q̂, V̂) of the logged steps from a table [s, a] or [t, s, a]."""
    return LOG.at(table), LOG.at_state((A.pi * table).sum(-1))


EXACT, WRONG = values(Q), values(WRONG_Q)
ARBITRARY = [values(np.random.default_rng(seed).normal(0, 3, (HORIZON, 2, 2))) for seed in range(3)]


def variance(sample):
    """By the definition, from the probabilities."""
    return LOG.prob_b @ sample**2 - (LOG.prob_b @ sample) ** 2


def test_the_fixture():
    assert len(LOG.length) == 64
    assert LOG.prob_b.sum() == pytest.approx(1.0, abs=1e-14)
    assert LOG.prob.sum() == pytest.approx(1.0, abs=1e-14)
    assert A.mu @ V[0] == pytest.approx(VALUE, abs=1e-12)
    assert LOG.prob @ RETURN == pytest.approx(VALUE, abs=1e-12)
    assert A.mu @ finite_values(A, A.pi_b, HORIZON)[1][0] == pytest.approx(BEHAVIOUR_VALUE, abs=1e-12)
    assert LOG.prob @ RETURN**2 - VALUE**2 == pytest.approx(1.69274514, abs=1e-8)
    np.testing.assert_allclose(Q[0], [[2.391436, 2.068164], [1.7298, 3.842588]], atol=1e-12)
    np.testing.assert_allclose(Q[1], [[1.504, 1.206], [0.855, 2.972]], atol=1e-12)
    np.testing.assert_allclose(V, [[2.1651456, 3.4200304], [1.2954, 2.5486], [0.3, 1.6]], atol=1e-12)
    np.testing.assert_allclose(state_occupancy(A, A.pi, HORIZON)[:, 0], [0.7, 0.392, 0.40432], atol=1e-12)
    np.testing.assert_allclose(state_occupancy(A, A.pi_b, HORIZON)[:, 0], [0.7, 0.527, 0.50797], atol=1e-12)
    expected = [[1, 1], [0.7438330171, 1.2854122622], [0.7959525169, 1.2106578867]]
    np.testing.assert_allclose(time_ratio(A, HORIZON), expected, atol=1e-10)
    np.testing.assert_allclose(discounted_finite_ratio(A, HORIZON), [0.8704362217, 1.1827507598], atol=1e-10)
    np.testing.assert_allclose(LOG.prob_b @ DISCOUNTED, [0.96413058, 1.01816100, 1.02410434], atol=1e-8)


UNBIASED = {
    "tis": lambda q, v: sequential.tis(BLOCK, GAMMA),
    "pdis": lambda q, v: sequential.pdis(BLOCK, GAMMA),
    "dr": lambda q, v: sequential.dr(BLOCK, q, v, GAMMA),
    "switch at infinity": lambda q, v: sequential.switch(BLOCK, q, v, GAMMA, threshold=np.inf),
    "sam_is": lambda q, v: marginal.sam_is(BLOCK, PAIR_RATIO, GAMMA),
    "sm_is": lambda q, v: marginal.sm_is(BLOCK, STATE_RATIO, GAMMA),
    "sam_is, discounted": lambda q, v: marginal.sam_is(BLOCK, DISCOUNTED, GAMMA),
    "sam_dr": lambda q, v: marginal.sam_dr(BLOCK, PAIR_RATIO, q, v, GAMMA),
    "sm_dr": lambda q, v: marginal.sm_dr(BLOCK, STATE_RATIO, q, v, GAMMA),
    "drl": lambda q, v: marginal.drl(BLOCK, PAIR_RATIO, q, v, GAMMA),
    **{
        f"sam_sope {n}": lambda q, v, n=n: marginal.sam_sope(BLOCK, PAIR_RATIO, GAMMA, window=n)
        for n in range(HORIZON)
    },
    **{
        f"sm_sope {n}": lambda q, v, n=n: marginal.sm_sope(BLOCK, STATE_RATIO, GAMMA, window=n)
        for n in range(HORIZON)
    },
}


@pytest.mark.parametrize("estimator", UNBIASED)
@pytest.mark.parametrize("model", [EXACT, WRONG, *ARBITRARY])
def test_the_mean_is_exact_whatever_the_value_model(estimator, model):
    terms = UNBIASED[estimator](*model)
    assert terms.numerator.shape[1] == 0
    assert LOG.prob_b @ terms.plain == pytest.approx(VALUE, abs=1e-12)


CONSISTENT = {
    "wis": lambda q, v: sequential.wis(BLOCK, GAMMA),
    "wpdis": lambda q, v: sequential.wpdis(BLOCK, GAMMA),
    "wdr": lambda q, v: sequential.wdr(BLOCK, q, v, GAMMA),
    "sam_snis": lambda q, v: marginal.sam_snis(BLOCK, PAIR_RATIO, GAMMA),
    "sm_snis": lambda q, v: marginal.sm_snis(BLOCK, STATE_RATIO, GAMMA),
    "sam_sndr": lambda q, v: marginal.sam_sndr(BLOCK, PAIR_RATIO, q, v, GAMMA),
    "sm_sndr": lambda q, v: marginal.sm_sndr(BLOCK, STATE_RATIO, q, v, GAMMA),
    "sam_snis, discounted": lambda q, v: marginal.sam_snis(
        BLOCK, DISCOUNTED, GAMMA, marginal.HorizonNormaliser(HORIZON, 0.0)
    ),
}


@pytest.mark.parametrize("estimator", CONSISTENT)
@pytest.mark.parametrize("model", [EXACT, WRONG, *ARBITRARY])
def test_self_normalised_forms_converge_to_the_value(estimator, model):
    terms = CONSISTENT[estimator](*model)
    assert terms.numerator.shape[1] > 0
    assert population(terms, LOG.prob_b)[0] == pytest.approx(VALUE, abs=1e-12)


def conditional_variance(v):
    """Var(r + γ V(s') | s, a) [t, s, a] with rewards that are certain."""
    following = np.concatenate([v[1:], np.zeros((1, 2))])
    mean = np.einsum("sau,tu->tsa", A.P, following)
    return GAMMA**2 * (np.einsum("sau,tu->tsa", A.P, following**2) - mean**2)


def efficiency_bound(weight):
    """Var V(s_0) + Σ_t γ^{2t} E_b[weight_t² Var(r + γV' | s, a)]."""
    first = A.mu @ V[0] ** 2 - VALUE**2
    return first + LOG.prob_b @ (weight**2 * LOG.at(conditional_variance(V))) @ DISCOUNT**2


def wis_variance():
    return LOG.prob_b @ (W[:, -1] * (RETURN - VALUE)) ** 2


def wpdis_variance():
    theta = LOG.prob_b @ (W * LOG.reward)
    return LOG.prob_b @ ((W * (LOG.reward - theta)) @ DISCOUNT) ** 2


def wdr_variance():
    q, v = WRONG
    previous, value = np.column_stack([np.ones(64), W[:, :-1]]), np.zeros(64)
    for t in range(HORIZON):
        for weight, of_model in ((W[:, t], LOG.reward[:, t] - q[:, t]), (previous[:, t], v[:, t])):
            value += GAMMA**t * weight * (of_model - LOG.prob_b @ (weight * of_model))
    # The first V̂ has weight 1, and its centred term is in the sum as it is.
    return LOG.prob_b @ value**2


TABLE = {
    "tis": (sequential.tis(BLOCK, GAMMA), 18.3661, lambda: variance(W[:, -1] * RETURN)),
    "wis": (sequential.wis(BLOCK, GAMMA), 4.4695, wis_variance),
    "pdis": (sequential.pdis(BLOCK, GAMMA), 10.2432, lambda: variance((W * LOG.reward) @ DISCOUNT)),
    "wpdis": (sequential.wpdis(BLOCK, GAMMA), 3.5522, wpdis_variance),
    "sam_is": (
        marginal.sam_is(BLOCK, PAIR_RATIO, GAMMA),
        5.3634,
        lambda: variance((PAIR_RATIO * LOG.reward) @ DISCOUNT),
    ),
    "sam_is, discounted": (
        marginal.sam_is(BLOCK, DISCOUNTED, GAMMA),
        5.4072564373,
        lambda: variance((DISCOUNTED * LOG.reward) @ DISCOUNT),
    ),
    "sope 1": (
        marginal.sam_sope(BLOCK, PAIR_RATIO, GAMMA, window=1),
        8.3223,
        # W_0, ρ_0 w_1, ρ_1 w_2
        lambda: variance(
            (np.column_stack([W[:, 0], PAIR_RATIO[:, :-1] * LOG.at(A.pi / A.pi_b)[:, 1:]]) * LOG.reward)
            @ DISCOUNT
        ),
    ),
    "sope 2": (
        marginal.sam_sope(BLOCK, PAIR_RATIO, GAMMA, window=2),
        10.2432,
        lambda: variance((W * LOG.reward) @ DISCOUNT),
    ),
    "dr, exact": (sequential.dr(BLOCK, *EXACT, GAMMA), 1.09864, lambda: efficiency_bound(W)),
    "drl, exact": (
        marginal.drl(BLOCK, PAIR_RATIO, *EXACT, GAMMA),
        1.00614,
        lambda: efficiency_bound(PAIR_RATIO),
    ),
    "dr, wrong": (
        sequential.dr(BLOCK, *WRONG, GAMMA),
        12.0773,
        lambda: variance(
            (W * (LOG.reward - WRONG[0]) + np.column_stack([np.ones(64), W[:, :-1]]) * WRONG[1]) @ DISCOUNT
        ),
    ),
    "drl, wrong": (
        marginal.drl(BLOCK, PAIR_RATIO, *WRONG, GAMMA),
        8.1080,
        lambda: variance(
            WRONG[1][:, 0]
            + (
                PAIR_RATIO
                * (LOG.reward - WRONG[0] + GAMMA * np.column_stack([WRONG[1][:, 1:], np.zeros(64)]))
            )
            @ DISCOUNT
        ),
    ),
    "wdr, wrong": (sequential.wdr(BLOCK, *WRONG, GAMMA), 7.4974, wdr_variance),
    "dm, wrong": (sequential.dm(WRONG[1]), 0.0635, lambda: variance(WRONG[1][:, 0])),
    "clipped at 1": (
        sequential.pdis(clip_ratio(BLOCK, 1.0)[0], GAMMA),
        1.2512,
        lambda: variance((np.minimum(LOG.at(A.pi / A.pi_b), 1.0).cumprod(axis=1) * LOG.reward) @ DISCOUNT),
    ),
}


@pytest.mark.parametrize("estimator", TABLE)
def test_the_variance_of_one_episode(estimator):
    terms, rounded, independent = TABLE[estimator]
    found = population(terms, LOG.prob_b)[1]
    digits = len(str(rounded).split(".")[1])
    assert found == pytest.approx(rounded, abs=0.6 * 10**-digits)
    assert found == pytest.approx(independent(), abs=1e-8)


@pytest.mark.parametrize(("estimator", "biased"), [("dm, wrong", 0.685), ("clipped at 1", 1.216449)])
def test_what_is_biased_says_the_wrong_number(estimator, biased):
    assert population(TABLE[estimator][0], LOG.prob_b)[0] == pytest.approx(biased, abs=1e-6)


def mean(per_step):
    return LOG.prob_b @ per_step @ DISCOUNT


def test_imitation_that_drops_the_last_reward():
    dropped = LOG.reward * [1, 1, 0]
    assert mean(W * dropped) == pytest.approx(1.671, abs=1e-3)


def test_imitation_that_puts_the_next_value_one_column_off():
    """A zero before the last column instead of after it, with exact ratios and exact values."""
    q, v = EXACT
    for following, expected in [((1, 2, None), VALUE), ((1, None, 2), 2.4546)]:
        shifted = np.column_stack([np.zeros(64) if t is None else v[:, t] for t in following])
        found = LOG.prob_b @ v[:, 0] + mean(PAIR_RATIO * (LOG.reward + GAMMA * shifted - q))
        assert found == pytest.approx(expected, abs=5e-5)


def test_imitation_that_takes_the_ratio_of_states_without_that_of_actions():
    assert mean(STATE_RATIO * LOG.reward) == pytest.approx(2.1579, abs=5e-5)


def test_imitation_of_drl_without_discount():
    q, v = EXACT
    previous = np.column_stack([np.ones(64), PAIR_RATIO[:, :-1]])
    undiscounted = LOG.prob_b @ (PAIR_RATIO * (LOG.reward - q) + previous * v).sum(axis=1)
    assert undiscounted == pytest.approx(2.8548, abs=5e-5)


def test_a_discounted_ratio_normalised_step_by_step_converges_elsewhere():
    terms = marginal.sam_snis(BLOCK, DISCOUNTED, GAMMA)
    assert population(terms, LOG.prob_b)[0] == pytest.approx(2.5327, abs=5e-5)


def test_a_discounted_ratio_with_a_value_model_without_time_is_not_doubly_robust():
    terms = marginal.sam_dr(BLOCK, DISCOUNTED, *WRONG, GAMMA)
    assert population(terms, LOG.prob_b)[0] == pytest.approx(2.5328870781, abs=1e-10)
