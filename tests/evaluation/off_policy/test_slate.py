"""Slate estimators by enumeration of all slates, each against what it assumes and against what it does not."""

import itertools

import numpy as np
import pytest
from ope_fixtures import population

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.bandit import ipw, snipw
from peira.evaluation.off_policy.slate import (
    cascade_dr,
    fit_cascade,
    general_pseudo_inverse_ratio,
    iips,
    pseudo_inverse_ratio,
    rips,
    sips,
    slate_second_moment,
)
from peira.evaluation.off_policy.weights import Block

SLATES = np.array(list(itertools.product([0, 1], repeat=2)))
UNIFORM = np.full(4, 0.25)
TARGET = np.array([[0.9, 0.1], [0.2, 0.8]])
RATIO = np.column_stack([TARGET[0][SLATES[:, 0]], TARGET[1][SLATES[:, 1]]]) / 0.5
LOG_RATIO = np.log(RATIO)
ADDITIVE = np.column_stack([np.array([1.0, 0.0])[SLATES[:, 0]], np.array([0.0, 3.0])[SLATES[:, 1]]])
BOTH = (SLATES == 1).all(1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_fixture_d_additive_rewards():
    total = ADDITIVE.sum(1)
    pseudo_inverse = population(ipw(pseudo_inverse_ratio(LOG_RATIO), total), UNIFORM)
    assert pseudo_inverse == pytest.approx((3.3, 13.95), abs=1e-12)
    assert population(sips(LOG_RATIO, ADDITIVE), UNIFORM) == pytest.approx((3.3, 22.6476), abs=1e-12)


def test_fixture_d_with_an_interaction():
    total = ADDITIVE.sum(1) + 2.0 * BOTH
    assert population(ipw(pseudo_inverse_ratio(LOG_RATIO), total), UNIFORM)[0] == pytest.approx(
        3.70, abs=1e-12
    )
    second = ADDITIVE + np.column_stack([np.zeros(4), 2.0 * BOTH])
    assert population(sips(LOG_RATIO, second), UNIFORM)[0] == pytest.approx(3.46, abs=1e-12)
    # The second position's reward depends on the first: a cascade can see that, independent positions cannot.
    assert population(rips(LOG_RATIO, second), UNIFORM)[0] == pytest.approx(3.46, abs=1e-12)
    assert population(iips(LOG_RATIO, second), UNIFORM)[0] == pytest.approx(4.1, abs=1e-12)
    # Put at the first position, it depends on what comes after, and RIPS is wrong as well.
    first = ADDITIVE + np.column_stack([2.0 * BOTH, np.zeros(4)])
    assert population(sips(LOG_RATIO, first), UNIFORM)[0] == pytest.approx(3.46, abs=1e-12)
    assert population(rips(LOG_RATIO, first), UNIFORM)[0] == pytest.approx(3.40, abs=1e-12)


def test_fewer_ratios_have_less_variance_where_all_are_right():
    of = [population(estimator(LOG_RATIO, ADDITIVE), UNIFORM) for estimator in (sips, rips, iips)]
    assert [mean for mean, _ in of] == pytest.approx([3.3] * 3, abs=1e-12)
    assert of[0][1] > of[1][1] > of[2][1]


def test_self_normalised_forms():
    names = (sips, rips, iips)
    for estimator in names:
        terms = estimator(LOG_RATIO, ADDITIVE, self_normalised=True)
        assert population(terms, UNIFORM)[0] == pytest.approx(3.3, abs=1e-12), estimator
        # A constant at a position is estimated without error, whatever was logged.
        constant = estimator(LOG_RATIO[:2], np.ones((2, 2)), self_normalised=True)
        assert constant.value() == pytest.approx(2.0, abs=1e-12)
        assert estimator(LOG_RATIO[:2], np.ones((2, 2))).value() != pytest.approx(2.0, abs=0.1)
    assert [
        estimator(LOG_RATIO, ADDITIVE, self_normalised=True).numerator.shape[1] for estimator in names
    ] == [1, 2, 2]


@pytest.mark.parametrize("self_normalised", [False, True])
def test_cascade_dr_is_sequential_dr_without_discount(self_normalised, rng):
    log_ratio, reward, q, v = rng.normal(size=(4, 30, 5))
    found = cascade_dr(log_ratio, reward, q, v, self_normalised=self_normalised)
    block = Block(reward, log_ratio, np.full(30, 5))
    estimator = sequential.wdr if self_normalised else sequential.dr
    assert found.value() == estimator(block, q, v, 1.0).value()
    if self_normalised:
        return
    # Σ_l [W_l (r_l − q_l) + W_{l−1} v_l], written out.
    weight = np.exp(log_ratio).cumprod(1)
    before = np.column_stack([np.ones(30), weight[:, :-1]])
    np.testing.assert_allclose(found.plain, (weight * (reward - q) + before * v).sum(1), atol=1e-9)


def test_cascade_dr_with_any_model_is_unbiased(rng):
    reward = ADDITIVE + np.column_stack([np.zeros(4), 2.0 * BOTH])
    table_1, table_2 = rng.normal(size=2) * 5, rng.normal(size=(2, 2)) * 5
    q = np.column_stack([table_1[SLATES[:, 0]], table_2[SLATES[:, 0], SLATES[:, 1]]])
    v = np.column_stack([np.full(4, TARGET[0] @ table_1), (table_2 @ TARGET[1])[SLATES[:, 0]]])
    assert population(cascade_dr(LOG_RATIO, reward, q, v), UNIFORM)[0] == pytest.approx(3.46, abs=1e-12)


def test_fitted_cascade_is_the_backward_recursion():
    reward = ADDITIVE + np.column_stack([np.zeros(4), 2.0 * BOTH])
    # Every slate twice: more rows than the 3 coefficients of a position and action.
    rows = np.tile(np.arange(4), 2)
    target = np.tile(TARGET, (8, 1, 1))
    q, v = fit_cascade(np.zeros((8, 0)), SLATES[rows], reward[rows], target, ridge=1e-10)
    # q_2 = r_2; v_2(a_1 = 0) = 2.4, v_2(a_1 = 1) = 2.4 + 1.6; q_1 = r_1 + v_2; v_1 = the value.
    np.testing.assert_allclose(q[:4], np.column_stack([[3.4, 3.4, 4.0, 4.0], reward[:, 1]]), atol=1e-7)
    np.testing.assert_allclose(v[:4], np.column_stack([np.full(4, 3.46), [2.4, 2.4, 4.0, 4.0]]), atol=1e-7)
    # With the exact model nothing is left to vary.
    assert population(cascade_dr(LOG_RATIO, reward, q[:4], v[:4]), UNIFORM) == pytest.approx(
        (3.46, 0.0), abs=1e-7
    )
    assert population(rips(LOG_RATIO, reward), UNIFORM)[1] > 10


def test_cascade_models_are_cross_fitted_as_a_whole(rng):
    slate, reward = rng.integers(3, size=(60, 3)), rng.normal(size=(60, 3))
    target, fold = rng.dirichlet(np.ones(3), size=(60, 3)), np.repeat([0, 1], 30)
    features = rng.normal(size=(60, 2))
    q, v = fit_cascade(features, slate, reward, target, fold=fold)
    moved = fit_cascade(
        features, slate, np.where(fold[:, None] == 0, reward + 9.0, reward), target, fold=fold
    )
    np.testing.assert_array_equal(moved[0][:30], q[:30])
    np.testing.assert_array_equal(moved[1][:30], v[:30])
    assert (moved[0][30:] != q[30:]).all()
    # Weight 0 hides rows that are wrong from the fit of their position.
    weight = np.ones((60, 3))
    weight[:10] = 0.0
    hidden = fit_cascade(features[10:], slate[10:], reward[10:], target[10:], fold=fold[10:])
    spoilt = np.where(np.arange(60)[:, None] < 10, 1e3, reward)
    kept = fit_cascade(features, slate, spoilt, target, fold=fold, weight=weight)
    np.testing.assert_allclose(kept[0][10:], hidden[0], atol=1e-9)


def test_general_pseudo_inverse_is_the_closed_form_for_product_logging():
    second_moment = slate_second_moment(SLATES, UNIFORM[None], 2)
    # p(l, a) = 1/2 on the diagonal, 1/4 across positions, 0 within.
    expected = np.kron(np.ones((2, 2)) - np.eye(2), np.full((2, 2), 0.25)) + np.eye(4) / 2
    np.testing.assert_allclose(second_moment[0], expected, atol=1e-15)
    found = general_pseudo_inverse_ratio(SLATES, np.zeros(4, dtype=int), TARGET[None], second_moment)
    np.testing.assert_allclose(found, pseudo_inverse_ratio(LOG_RATIO), atol=1e-12)


def test_general_pseudo_inverse_for_slates_without_repetition(rng):
    # Rankings of 3 items in 2 positions, logged with two different policies in two contexts.
    slates = np.array(list(itertools.permutations(range(3), 2)))
    behaviour, target = rng.dirichlet(np.ones(6), size=2), rng.dirichlet(np.ones(6), size=2)
    marks = np.eye(3)[slates]
    marginal = np.einsum("cs,sla->cla", target, marks)
    second_moment = slate_second_moment(slates, behaviour, 3)
    rows, context = np.tile(slates, (2, 1)), np.repeat([0, 1], 6)
    ratio = general_pseudo_inverse_ratio(rows, context, marginal, second_moment)
    value_of_slot = rng.normal(size=(2, 2, 3))
    reward = value_of_slot[context, 0, rows[:, 0]] + value_of_slot[context, 1, rows[:, 1]]
    probability = behaviour.ravel() / 2
    truth = (target * reward.reshape(2, 6)).sum() / 2
    assert population(ipw(ratio, reward), probability)[0] == pytest.approx(truth, abs=1e-12)
    assert population(snipw(ratio, reward), probability)[0] == pytest.approx(truth, abs=1e-12)
    # The closed form takes positions for independent, which a ranking's are not.
    logged = np.einsum("cs,sla->cla", behaviour, marks)
    position = np.arange(2)
    closed = pseudo_inverse_ratio(np.log((marginal / logged)[context[:, None], position, rows]))
    assert abs(population(ipw(closed, reward), probability)[0] - truth) > 0.01


def test_a_slate_that_the_log_never_shows_is_refused():
    second_moment = slate_second_moment(SLATES, np.array([[0.5, 0.5, 0.0, 0.0]]), 2)
    with pytest.raises(
        ValueError, match="in context 0 the candidate shows slates that no mixture of logged slates"
    ):
        general_pseudo_inverse_ratio(SLATES[:2], np.zeros(2, dtype=int), TARGET[None], second_moment)
