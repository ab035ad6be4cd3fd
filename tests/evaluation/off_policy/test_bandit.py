"""Bandit estimators where means and variances are finite sums, against their limits and their imitations."""

import math

import numpy as np
import pytest
from ope_fixtures import population
from scipy import optimize

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.bandit import (
    balanced_ratio,
    dm,
    dr,
    dros,
    fit_reward,
    inverse_variance,
    ipw,
    mixture_log_propensity,
    mrdr_weights,
    replay,
    sg_dr,
    sg_ipw,
    sndr,
    snipw,
    subgaussian_ratio,
    switch_dr,
)
from peira.evaluation.off_policy.propensity import MultinomialLogistic
from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.weights import Block

BEHAVIOUR, TARGET = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
Q, Q_HAT = np.array([1.0, 0.0, 2.0]), np.array([0.5, 0.5, 1.0])
# Noise of variance 1: every action once with reward q + 1, once with q − 1.
ACTION = np.repeat([0, 1, 2], 2)
REWARD = Q[ACTION] + np.tile([1.0, -1.0], 3)
PROBABILITY = BEHAVIOUR[ACTION] / 2
RATIO = (TARGET / BEHAVIOUR)[ACTION]
MODEL = Q_HAT[ACTION], np.full(6, TARGET @ Q_HAT)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("terms", "mean", "variance"),
    [
        (ipw(RATIO, REWARD), 1.5, 10.1733333333),
        (dr(RATIO, REWARD, *MODEL), 1.5, 4.6691666667),
        (snipw(RATIO, REWARD), 1.5, 3.5208333333),
        (ipw(RATIO, REWARD, clip=1.0), 0.5, 0.9233333333),
        (switch_dr(RATIO, REWARD, *MODEL, threshold=1.0), 0.8, 0.1891666667),
        (dros(RATIO, REWARD, *MODEL, shrinkage=1.0), 0.8816763, 0.1299025),
        (sg_ipw(RATIO, REWARD, strength=0.5), 0.7888888889, 2.1005185),
        (sg_dr(RATIO, REWARD, *MODEL, strength=0.5), 1.1244444444, 1.2020259),
    ],
    ids=["ipw", "dr", "snipw", "ipw_clip", "switch", "dros", "sg_ipw", "sg_dr"],
)
def test_fixture_c_by_enumeration(terms, mean, variance):
    found = population(terms, PROBABILITY)
    # The specification prints seven decimals; the next test has the rest.
    assert found == pytest.approx((mean, variance), abs=6e-8)


def test_fixture_c_to_machine_precision_from_sums_over_actions():
    def moments(of_action, weight):
        # A contribution is c_a + w_a ε with ε of variance 1.
        mean = BEHAVIOUR @ of_action
        return mean, BEHAVIOUR @ (of_action - mean) ** 2 + BEHAVIOUR @ weight**2

    w, v, residual = TARGET / BEHAVIOUR, TARGET @ Q_HAT, Q - Q_HAT
    value = TARGET @ Q
    clipped, switched = np.minimum(w, 1), np.where(w <= 1, w, 0)
    shrunk, soft = w / (w**2 + 1), w / (0.5 + 0.5 * w)
    expected = {
        "ipw": (ipw(RATIO, REWARD), moments(w * Q, w)),
        "dm": (dm(MODEL[1]), (v, 0.0)),
        "dr": (dr(RATIO, REWARD, *MODEL), moments(v + w * residual, w)),
        "snipw": (snipw(RATIO, REWARD), (value, moments(w * (Q - value), w)[1])),
        "clip": (ipw(RATIO, REWARD, clip=1.0), moments(clipped * Q, clipped)),
        "dr_clip": (dr(RATIO, REWARD, *MODEL, clip=1.0), moments(v + clipped * residual, clipped)),
        "switch": (
            switch_dr(RATIO, REWARD, *MODEL, threshold=1.0),
            moments(v + switched * residual, switched),
        ),
        "dros": (dros(RATIO, REWARD, *MODEL, shrinkage=1.0), moments(v + shrunk * residual, shrunk)),
        "sg_ipw": (sg_ipw(RATIO, REWARD, strength=0.5), moments(soft * Q, soft)),
        "sg_dr": (sg_dr(RATIO, REWARD, *MODEL, strength=0.5), moments(v + soft * residual, soft)),
        "sndr": (
            sndr(RATIO, REWARD, *MODEL),
            (value, moments(w * (residual - (value - v)), w)[1]),
        ),
    }
    for name, (terms, (mean, variance)) in expected.items():
        found = population(terms, PROBABILITY)
        assert found == pytest.approx((mean, variance), abs=1e-12), name
    assert expected["dm"][1][0] == pytest.approx(0.85, abs=1e-12)


def test_standard_errors_on_a_log_in_the_exact_proportions():
    # 20 rows in which every action and reward is as frequent as its probability.
    rows = np.repeat(np.arange(6), np.rint(PROBABILITY * 20).astype(int))
    terms = snipw(RATIO[rows], REWARD[rows])
    assert terms.value() == pytest.approx(1.5, abs=1e-12)
    variance = BEHAVIOUR @ (TARGET / BEHAVIOUR) ** 2 + BEHAVIOUR @ ((TARGET / BEHAVIOUR) * (Q - 1.5)) ** 2
    assert terms.standard_error() == pytest.approx(math.sqrt(variance / 19), abs=1e-12)


def test_dr_is_unbiased_whatever_the_model_and_not_with_the_value_under_the_wrong_policy():
    for wrong in (np.array([9.0, -4.0, 3.0]), np.zeros(3), np.array([1e3, 0.0, 1.0])):
        terms = dr(RATIO, REWARD, wrong[ACTION], np.full(6, TARGET @ wrong))
        assert population(terms, PROBABILITY)[0] == pytest.approx(1.5, abs=1e-9)
    wrong = np.array([9.0, -4.0, 3.0])
    imitation = dr(RATIO, REWARD, wrong[ACTION], np.full(6, BEHAVIOUR @ wrong))
    assert abs(population(imitation, PROBABILITY)[0] - 1.5) > 1


def same(a: Terms, b: Terms) -> bool:
    return a.value() == pytest.approx(b.value(), abs=1e-12) and a.influence() == pytest.approx(
        b.influence(), abs=1e-12
    )


def test_limits_of_the_hyper_parameters(rng):
    ratio, reward, q = rng.exponential(size=50), rng.normal(size=50), rng.normal(size=50)
    ratio[:5] = 0.0
    logged = ratio, reward, q, q + 1
    assert same(switch_dr(*logged, threshold=0.0), dm(q + 1))
    assert same(switch_dr(*logged, threshold=np.inf), dr(*logged))
    assert same(dros(*logged, shrinkage=0.0), dm(q + 1))
    assert same(dros(*logged, shrinkage=np.inf), dr(*logged))
    assert same(sg_ipw(ratio, reward, strength=0.0), ipw(ratio, reward))
    assert same(sg_dr(*logged, strength=0.0), dr(*logged))
    assert same(ipw(ratio, reward, clip=0.0), Terms.mean(np.zeros(50)))
    assert same(dr(ratio, reward, np.zeros(50), np.zeros(50)), ipw(ratio, reward))
    assert same(sndr(ratio, reward, np.zeros(50), np.zeros(50)), snipw(ratio, reward))
    np.testing.assert_array_equal(subgaussian_ratio(ratio, 1.0), ratio > 0)
    # Between the limits the weights shrink towards 0 and never beyond √λ / 2.
    assert dros(np.array([1e9]), np.ones(1), np.zeros(1), np.zeros(1), shrinkage=4.0).value() < 1e-8


def test_one_step_of_the_sequential_code_is_the_bandit_code(rng):
    log_ratio, reward = rng.normal(size=40), rng.normal(size=40)
    log_ratio[0] = -np.inf
    q, v = rng.normal(size=40), rng.normal(size=40)
    block = Block(reward[:, None], log_ratio[:, None], np.ones(40, dtype=int))
    ratio, models = np.exp(log_ratio), (q[:, None], v[:, None])
    assert same(sequential.tis(block, 0.9), ipw(ratio, reward))
    assert same(sequential.pdis(block, 0.9), ipw(ratio, reward))
    assert same(sequential.wis(block, 0.9), snipw(ratio, reward))
    assert same(sequential.wpdis(block, 0.9), snipw(ratio, reward))
    assert same(sequential.dm(models[1]), dm(v))
    assert same(sequential.dr(block, *models, 0.9), dr(ratio, reward, q, v))
    assert same(sequential.wdr(block, *models, 0.9), sndr(ratio, reward, q, v))
    assert same(
        sequential.switch(block, *models, 0.9, threshold=1.5), switch_dr(ratio, reward, q, v, threshold=1.5)
    )


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_hyper_parameters_out_of_range_are_refused(strength):
    with pytest.raises(ValueError, match=r"expected a strength in \[0, 1\]"):
        sg_ipw(RATIO, REWARD, strength=strength)
    with pytest.raises(ValueError, match="expected a shrinkage of at least 0, got -1"):
        dros(RATIO, REWARD, *MODEL, shrinkage=-1.0)


def test_replay_is_the_mean_reward_of_the_rows_that_match():
    terms = replay(np.array([1.0, 0.0, 1.0, 0.0]), np.full(4, 0.5), np.array([3.0, 9.0, 5.0, 7.0]))
    assert terms.value() == 4.0


def test_replay_refuses_what_it_is_not_right_for():
    ones = np.ones(2)
    with pytest.raises(ValueError, match="replay needs a deterministic candidate"):
        replay(np.array([1.0, 0.5]), ones, ones)
    with pytest.raises(ValueError, match=r"replay needs uniform logging, got propensities of 0\.2 to 0\.8"):
        replay(ones, np.array([0.2, 0.8]), ones)
    # Two contexts, equally frequent, rewards 0 and 1 of the target's action: most matching rows are of the first.
    match, reward = np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0, 0.0])
    probability = np.array([0.8, 0.2, 0.2, 0.8]) / 2
    assert population(snipw(match, reward), probability)[0] == pytest.approx(0.2)
    assert population(snipw(match / np.array([0.8, 0.2, 0.2, 0.8]), reward), probability)[0] == pytest.approx(
        0.5
    )


def test_mrdr_weights_minimise_the_variance_of_dr_and_even_weights_do_not():
    # Contexts 0, 1, 2 that the model cannot tell apart; the target takes action 0, the log with these probabilities.
    propensity, q = np.array([0.9, 0.5, 0.1]), np.array([1.0, 2.0, 6.0])
    context, action = np.repeat([0, 1, 2], 2), np.tile([0, 1], 3)
    of_logged = np.where(action == 0, propensity[context], 1 - propensity[context])
    probability, reward = of_logged / 3, np.where(action == 0, q[context], 0.0)
    target_prob = (action == 0).astype(float)

    def variance(level):
        return population(
            dr(target_prob / of_logged, reward, np.full(6, level), np.full(6, level)), probability
        )[1]

    def fitted(weight):
        # Rows as frequent as they are probable.
        return fit_reward(np.zeros((6, 0)), action, reward, 2, weight=weight * probability, ridge=1e-12)[0, 0]

    best = optimize.minimize_scalar(variance, bracket=(0.0, 5.0), tol=1e-12).x
    level = fitted(mrdr_weights(target_prob, of_logged) + 1e-15)
    assert level == pytest.approx(best, abs=1e-6)
    assert variance(fitted(np.ones(6))) > 1.5 * variance(level)


def test_mixture_propensity_by_hand_and_its_smaller_variance():
    loggers = np.array([[0.9, 0.1], [0.2, 0.8]])
    logger = np.array([0, 0, 0, 1])
    action = np.array([0, 0, 1, 1])
    found = np.exp(mixture_log_propensity(np.log(loggers[:, action].T), logger))
    np.testing.assert_allclose(found, [0.725, 0.725, 0.275, 0.275], atol=1e-15)

    target, q = np.array([0.3, 0.7]), np.array([2.0, 1.0])
    share = np.array([0.75, 0.25])
    probability = (share[:, None] * loggers).ravel()
    logger, action = np.repeat([0, 1], 2), np.tile([0, 1], 2)
    mixture = share @ loggers
    naive = population(ipw((target / loggers).ravel(), q[action]), probability)
    balanced = population(ipw((target / mixture)[action], q[action]), probability)
    assert naive[0] == pytest.approx(target @ q, abs=1e-12)
    assert balanced[0] == pytest.approx(target @ q, abs=1e-12)
    assert balanced[1] < 0.25 * naive[1]


def test_loggers_weighted_by_their_precision(rng):
    logger = np.repeat([3, 7], [40, 60])
    q_target = rng.normal(size=100)
    residual = np.where(logger == 3, 5.0, 0.5) * rng.normal(size=100)
    terms = inverse_variance(dr(np.ones(100), residual, np.zeros(100), q_target), logger)
    y = [(q_target + residual)[logger == name] for name in (3, 7)]
    precision = np.array([len(of) / of.var(ddof=1) for of in y])
    expected = precision @ [of.mean() for of in y] / precision.sum()
    assert terms.value() == pytest.approx(expected, abs=1e-12)
    assert terms.standard_error() == pytest.approx(precision.sum() ** -0.5, rel=0.05)
    # The weights of the strata put on the residual only, as Open Bandit Pipeline does.
    stratum = np.where(logger == 3, precision[0] / 40, precision[1] / 60) * 100 / precision.sum()
    assert abs((q_target + stratum * residual).mean() - expected) > 0.01


def test_strata_that_cannot_be_weighted_are_refused():
    logger = np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match="got a self-normalised one"):
        inverse_variance(snipw(np.ones(4), np.ones(4)), logger)
    with pytest.raises(ValueError, match="needs 2 rows of every logger, got 1 of logger 1"):
        inverse_variance(Terms.mean(np.arange(3.0)), logger[:3])
    with pytest.raises(ValueError, match="the rows of logger 1 do not vary"):
        inverse_variance(Terms.mean(np.array([1.0, 2.0, 5.0, 5.0])), logger)


def test_reward_model_on_one_hot_contexts_gives_cell_means():
    context = np.array([0, 0, 0, 1, 1, 1])
    action = np.array([0, 0, 1, 0, 1, 1])
    reward = np.array([1.0, 3.0, 7.0, 4.0, 0.0, 5.0])
    q = fit_reward(np.eye(2)[context], action, reward, 2, ridge=1e-10)
    np.testing.assert_allclose(q[[0, 3]], [[2.0, 7.0], [4.0, 2.5]], atol=1e-8)


def test_reward_model_shrinks_rare_actions_towards_the_mean_reward():
    q = fit_reward(np.zeros((4, 0)), np.array([0, 0, 0, 1]), np.array([1.0, 2.0, 3.0, 6.0]), 3, ridge=2.0)
    # Mean 3; action 0 is 3 − 3·1/(3 + 2), action 1 is 3 + 3/(1 + 2), action 2 was never taken.
    np.testing.assert_allclose(q, np.tile([2.4, 4.0, 3.0], (4, 1)), atol=1e-12)


def test_reward_model_never_sees_the_rows_it_speaks_of(rng):
    features, action = rng.normal(size=(60, 2)), rng.integers(3, size=60)
    reward, fold = rng.normal(size=60), np.repeat([0, 1, 2], 20)
    q = fit_reward(features, action, reward, 3, fold=fold)
    for name in range(3):
        changed = np.where(fold == name, reward + 100.0, reward)
        moved = fit_reward(features, action, changed, 3, fold=fold)
        np.testing.assert_array_equal(moved[fold == name], q[fold == name])
        assert (moved[fold != name] != q[fold != name]).all()


def test_reward_model_weights_count_rows(rng):
    features, action, reward = rng.normal(size=(30, 2)), rng.integers(2, size=30), rng.normal(size=30)
    count = rng.integers(1, 4, size=30)
    rows = np.repeat(np.arange(30), count)
    first = np.unique(rows, return_index=True)[1]
    repeated = fit_reward(features[rows], action[rows], reward[rows], 2)[first]
    weighted = fit_reward(features, action, reward, 2, weight=count.astype(float))
    np.testing.assert_allclose(weighted, repeated, atol=1e-10)


class LeastSquares:
    """A regressor in scikit-learn's manner."""

    def fit(self, X, y, sample_weight=None):
        root = np.ones(len(y)) if sample_weight is None else np.sqrt(sample_weight)
        self.beta = np.linalg.lstsq(X * root[:, None], y * root, rcond=None)[0]
        return self

    def predict(self, X):
        return X @ self.beta


def test_a_regressor_learns_of_features_and_one_hot_actions(rng):
    features, action = rng.normal(size=(40, 2)), rng.integers(3, size=40)
    true = (features @ [1.0, -2.0])[:, None] + np.array([5.0, 0.0, -1.0])
    q = fit_reward(
        features, action, true[np.arange(40), action], 3, fold=np.arange(40) % 2, regressor=LeastSquares()
    )
    np.testing.assert_allclose(q, true, atol=1e-10)
    # Weight 0 hides the rows that are wrong.
    spoilt = np.where(np.arange(40) < 5, 99.0, true[np.arange(40), action])
    weight = (np.arange(40) >= 5).astype(float)
    q = fit_reward(features, action, spoilt, 3, regressor=LeastSquares(), weight=weight)
    np.testing.assert_allclose(q, true, atol=1e-10)


def test_balanced_ratio_needs_no_propensity(rng):
    features = rng.normal(size=(6_000, 1))
    logits = features * [1.0, 0.0, -1.0]
    behaviour = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = behaviour[:, ::-1].copy()
    action = (behaviour.cumsum(1) < rng.random((6_000, 1))).sum(1)
    rows, fold = np.arange(6_000), np.arange(6_000) % 4
    true = (target / behaviour)[rows, action]
    found = balanced_ratio(features, action, target, fold=fold)
    kept = true < 5
    assert np.abs(found - true)[kept].mean() < 0.1
    reward = features[:, 0] * (action == 0) + (action == 2)
    value = (target[:, 0] * features[:, 0] + target[:, 2]).mean()
    assert snipw(found, reward).value() == pytest.approx(value, abs=0.04)
    # The logged mean is far from it.
    assert abs(reward.mean() - value) > 0.3


def test_balanced_ratio_without_features_is_the_ratio_of_frequencies():
    action = np.repeat([0, 1, 2], [5_000, 3_000, 2_000])
    found = balanced_ratio(np.zeros((10_000, 0)), action, np.tile(TARGET, (10_000, 1)))
    np.testing.assert_allclose(found, (TARGET / BEHAVIOUR)[action], rtol=2e-3)


def test_calibration_repairs_an_overconfident_classifier(rng):
    class Overconfident(MultinomialLogistic):
        def predict_proba(self, X):
            odds = super().predict_proba(X) ** 3
            return odds / odds.sum(1, keepdims=True)

    action = rng.choice(3, p=BEHAVIOUR, size=9_000)
    logged = np.zeros((9_000, 0)), action, np.tile(TARGET, (9_000, 1))
    fold, true = rng.integers(3, size=9_000), (TARGET / BEHAVIOUR)[action]
    raw = balanced_ratio(*logged, fold=fold, classifier=Overconfident(2))
    repaired = balanced_ratio(*logged, fold=fold, classifier=Overconfident(2), calibration="isotonic")
    assert raw.max() > 20
    np.testing.assert_allclose(repaired, true, rtol=0.15)


def test_a_certain_classifier_is_refused():
    class Certain:
        def fit(self, X, y, sample_weight=None):
            self.classes_ = np.array([0, 1])
            return self

        def predict_proba(self, X):
            return np.tile([0.0, 1.0], (len(X), 1))

    with pytest.raises(ValueError, match="certain that a logged pair was made by the target; calibrate it"):
        balanced_ratio(np.zeros((2, 0)), np.array([0, 1]), np.full((2, 2), 0.5), classifier=Certain())
