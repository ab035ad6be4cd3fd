"""Weights on embeddings and clusters by enumeration, and OffCEM's model on rewards that are known."""

import itertools

import numpy as np
import pytest
import torch
from ope_fixtures import population

from peira.evaluation.off_policy.bandit import dr, fit_reward, ipw, snipw
from peira.evaluation.off_policy.large_actions import (
    cluster_ratio,
    embedding_ratio,
    fit_conjunct_effect,
    learned_embedding_ratio,
    select_dimensions,
)

BEHAVIOUR, TARGET, Q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7]), np.array([1.0, 0.0, 2.0])
ACTION = np.repeat([0, 1, 2], 2)
REWARD = Q[ACTION] + np.tile([1.0, -1.0], 3)
PROBABILITY = BEHAVIOUR[ACTION] / 2
OF_ROWS = np.tile(TARGET, (6, 1)), np.tile(BEHAVIOUR, (6, 1))
EMBEDDING_PROBS = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
EMBEDDING = np.array([0, 0, 1])
CLUSTER = EMBEDDING


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_mips_of_fixture_c():
    ratio = embedding_ratio(EMBEDDING[ACTION][:, None], [EMBEDDING_PROBS], *OF_ROWS)
    np.testing.assert_allclose(ratio, np.array([0.375, 0.375, 3.5])[ACTION], atol=1e-15)
    mean, variance = population(ipw(ratio, REWARD), PROBABILITY)
    # Actions 0 and 1 differ in q within their embedding: a bias of .0875.
    assert mean == pytest.approx(1.5875, abs=1e-12)
    assert variance == pytest.approx(9.9126562, abs=5e-8)
    w = np.array([0.375, 0.375, 3.5])
    assert variance == pytest.approx(BEHAVIOUR @ (w * Q - mean) ** 2 + BEHAVIOUR @ w**2, abs=1e-12)
    # With no difference within an embedding there is no bias, and less variance than with the actions' own ratios.
    equal = np.array([1.0, 1.0, 2.0])[ACTION]
    own = (TARGET / BEHAVIOUR)[ACTION]
    assert population(ipw(ratio, equal), PROBABILITY)[0] == pytest.approx(1.7, abs=1e-12)
    assert population(ipw(ratio, equal), PROBABILITY)[1] < population(ipw(own, equal), PROBABILITY)[1]


def test_self_normalised_mips_of_fixture_c():
    ratio = embedding_ratio(EMBEDDING[ACTION][:, None], [EMBEDDING_PROBS], *OF_ROWS)
    mean, variance = population(snipw(ratio, REWARD), PROBABILITY)
    w = np.array([0.375, 0.375, 3.5])
    assert mean == pytest.approx(1.5875, abs=1e-12)
    assert variance == pytest.approx(BEHAVIOUR @ (w * (Q - 1.5875)) ** 2 + BEHAVIOUR @ w**2, abs=1e-12)


def test_stochastic_embeddings_by_enumeration(rng):
    # Two dimensions, independent given the action; the reward depends on the embedding alone.
    probs = [rng.dirichlet(np.ones(2), size=3), rng.dirichlet(np.ones(3), size=3)]
    reward_of = rng.normal(size=(2, 3))
    action, first, second = np.array(list(itertools.product(range(3), range(2), range(3)))).T
    embedding = np.column_stack([first, second])
    given_action = probs[0][action, first] * probs[1][action, second]
    probability = BEHAVIOUR[action] * given_action
    truth = (TARGET[action] * given_action) @ reward_of[first, second]
    rows = np.tile(TARGET, (18, 1)), np.tile(BEHAVIOUR, (18, 1))
    joint = embedding_ratio(embedding, probs, *rows)
    assert population(ipw(joint, reward_of[first, second]), probability)[0] == pytest.approx(truth, abs=1e-12)
    # A product of marginals forgets that the action binds the dimensions together.
    independent = embedding_ratio(embedding, probs, *rows, dimensions="independent")
    product = np.prod(
        [(TARGET @ of)[e] / (BEHAVIOUR @ of)[e] for of, e in zip(probs, embedding.T, strict=True)], axis=0
    )
    np.testing.assert_allclose(independent, product, atol=1e-12)
    assert abs(population(ipw(independent, reward_of[first, second]), probability)[0] - truth) > 1e-3


def test_independent_dimensions_are_right_where_policies_choose_them_independently(rng):
    # Actions are pairs; both policies choose the halves independently.
    halves = [(rng.dirichlet(np.ones(2)), rng.dirichlet(np.ones(3))) for _ in range(2)]
    (target, behaviour) = (np.outer(*of).ravel() for of in halves)
    embedding = np.array(list(itertools.product(range(2), range(3))))
    probs = [np.eye(2)[embedding[:, 0]], np.eye(3)[embedding[:, 1]]]
    rows = np.tile(target, (6, 1)), np.tile(behaviour, (6, 1))
    for dimensions in ("joint", "independent"):
        found = embedding_ratio(embedding, probs, *rows, dimensions=dimensions)
        np.testing.assert_allclose(found, target / behaviour, atol=1e-12)


def test_an_embedding_that_the_log_cannot_show_is_refused():
    with pytest.raises(ValueError, match=r"the embedding \[1\] of row 1 has probability 0 under the log"):
        embedding_ratio(
            np.array([[0], [1]]), [EMBEDDING_PROBS], np.tile(TARGET, (2, 1)), np.tile([0.6, 0.4, 0.0], (2, 1))
        )


def test_learned_embedding_ratio_approaches_the_known_one(rng):
    rows = 20_000
    features = rng.integers(2, size=rows)
    behaviour = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]])[features]
    target = np.array([[0.1, 0.2, 0.7, 0.0], [0.4, 0.3, 0.2, 0.1]])[features]
    action = (behaviour.cumsum(1) < rng.random((rows, 1))).sum(1)
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])
    embedding = (rng.random(rows) < probs[action, 1]).astype(int)[:, None]
    known = embedding_ratio(embedding, [probs], target, behaviour)
    learned = learned_embedding_ratio(
        features[:, None].astype(float), embedding, action, target, behaviour, fold=np.arange(rows) % 3
    )
    np.testing.assert_allclose(learned, known, rtol=0.06)
    own = (target / np.where(behaviour > 0, behaviour, 1.0))[np.arange(rows), action]
    assert np.abs(own - known).max() > 1


def test_a_classifier_that_knows_no_possible_action_is_refused():
    class OnlyTheLast:
        def fit(self, X, y, sample_weight=None):
            self.classes_ = np.array([2])
            return self

        def predict_proba(self, X):
            return np.ones((len(X), 1))

    behaviour = np.array([[0.5, 0.3, 0.2], [0.5, 0.5, 0.0]])
    with pytest.raises(ValueError, match="no action that the log's policy takes in row 1 got a probability"):
        learned_embedding_ratio(
            np.zeros((2, 0)),
            np.zeros((2, 1), dtype=int),
            np.array([2, 0]),
            behaviour,
            behaviour,
            classifier=OnlyTheLast(),
        )


def test_slope_drops_the_dimension_that_only_adds_variance(rng):
    # The reward depends on dimension 0; dimension 1 names the action, whose ratios are wild.
    actions = 40
    behaviour, target = (
        rng.dirichlet(np.full(actions, 0.5)) * 0.9 + 0.1 / actions,
        rng.dirichlet(np.ones(actions)),
    )
    group = np.arange(actions) % 2
    action = rng.choice(actions, p=behaviour, size=400)
    reward = group[action] + 0.1 * rng.normal(size=400)
    probs = [np.eye(2)[group], np.eye(actions)]
    embedding = np.column_stack([group[action], action])
    rows = np.tile(target, (400, 1)), np.tile(behaviour, (400, 1))

    def ratio_of(subset):
        return embedding_ratio(embedding[:, list(subset)], [probs[d] for d in subset], *rows)

    for search in ("exact", "greedy"):
        assert select_dimensions(ratio_of, reward, 2, search=search) == (0,)


def test_slope_keeps_a_dimension_whose_loss_would_show():
    # Rewards differ within dimension 1, and thousands of rows leave no doubt.
    action = np.repeat(np.arange(3), [5_000, 3_000, 2_000])
    probs = [np.eye(3), np.ones((3, 1))]
    embedding = np.column_stack([action, np.zeros_like(action)])
    rows = np.tile(TARGET, (10_000, 1)), np.tile(BEHAVIOUR, (10_000, 1))

    def ratio_of(subset):
        return embedding_ratio(embedding[:, list(subset)], [probs[d] for d in subset], *rows)

    # The constant dimension gives the logged mean .9 for a true 1.5; it may go, dimension 0 may not.
    for search in ("exact", "greedy"):
        assert select_dimensions(ratio_of, Q[action], 2, search=search) in {(0,), (0, 1)}


@pytest.mark.parametrize(
    ("search", "seen"),
    [
        ("exact", {(0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)}),
        ("greedy", {(0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (2,)}),
    ],
)
def test_greedy_search_looks_only_below_the_narrowest_subset(search, seen):
    # Mean 1 whatever the subset: all accepted. (0, 2) is the narrowest pair, (2,) the narrowest of all.
    spread = {(0, 1, 2): 0.9, (0, 1): 0.5, (0, 2): 0.3, (1, 2): 0.7, (0,): 0.25, (1,): 0.01, (2,): 0.1}
    sign = np.tile([1.0, -1.0], 10)
    asked = set()

    def ratio_of(subset):
        asked.add(subset)
        return 1 + spread[subset] * sign

    found = select_dimensions(ratio_of, np.ones(20), 3, search=search)
    assert asked == seen
    assert found == ((1,) if search == "exact" else (2,))


def test_offcem_of_fixture_c():
    ratio = cluster_ratio(CLUSTER, ACTION, *OF_ROWS)
    np.testing.assert_allclose(ratio, np.array([0.375, 0.375, 3.5])[ACTION], atol=1e-15)
    # Right differences within the cluster, wrong levels.
    for effect, variance in ((np.array([6.0, 5.0, -1.0]), 27.065), (Q, 2.5625)):
        terms = dr(ratio, REWARD, effect[ACTION], np.full(6, TARGET @ effect))
        assert population(terms, PROBABILITY) == pytest.approx((1.5, variance), abs=1e-12)
    # Wrong differences are as biased as no model at all.
    wrong = np.array([5.0, 5.0, -1.0])
    terms = dr(ratio, REWARD, wrong[ACTION], np.full(6, TARGET @ wrong))
    assert population(terms, PROBABILITY)[0] == pytest.approx(1.5875, abs=1e-12)


def test_clusters_may_depend_on_the_context():
    cluster = np.array([[0, 0, 1], [0, 1, 1]])
    probs = np.tile(TARGET, (2, 1)), np.tile(BEHAVIOUR, (2, 1))
    found = cluster_ratio(cluster, np.array([1, 1]), *probs)
    np.testing.assert_allclose(found, [0.3 / 0.8, 0.9 / 0.5], atol=1e-15)
    with pytest.raises(ValueError, match="the cluster of action 2 in row 0 has probability 0 under the log"):
        cluster_ratio(CLUSTER, np.array([2]), TARGET[None], np.array([[0.5, 0.5, 0.0]]))


def test_conjunct_effect_by_hand():
    # One context. Pairs within cluster {0, 1}: (1, 5), (3, 5); action 2 alone.
    action, reward = np.array([0, 0, 1, 2]), np.array([1.0, 3.0, 5.0, 9.0])
    found = fit_conjunct_effect(
        np.zeros((4, 0)), np.zeros(4, dtype=int), action, reward, CLUSTER, 3, ridge=1e-9
    )
    # The difference is 3 by all pairs; the cluster's mean 3 is kept: 2a + (a + 3) = 9.
    np.testing.assert_allclose(found, np.tile([2.0, 5.0, 9.0], (4, 1)), atol=1e-6)


def logged(rng, rows=3_000, users=20):
    """Contexts that recur; the reward is a level of the cluster, curved in x, and an effect of the action, linear."""
    context = rng.integers(users, size=rows)
    x = rng.normal(size=(users, 1))[context]
    action, cluster = rng.integers(6, size=rows), np.array([0, 0, 0, 1, 1, 1])
    effect = np.array([1.0, 0.0, -1.0, 2.0, 0.0, -2.0]) * (1 + x)
    level = 20 * np.sin(3 * x) * np.array([1.0, -1.0])[cluster]
    q = effect + level
    return x, context, action, q[np.arange(rows), action], cluster, q, effect


def differences(of):
    """Within the clusters {0, 1, 2} and {3, 4, 5}."""
    return np.column_stack([of[:, 1:3] - of[:, :1], of[:, 4:] - of[:, 3:4]])


def test_differences_within_clusters_are_learned_although_the_level_cannot_be(rng):
    x, context, action, reward, cluster, q, effect = logged(rng)
    fold = context % 2
    found = fit_conjunct_effect(x, context, action, reward, cluster, 6, fold=fold, ridge=1e-6)
    np.testing.assert_allclose(differences(found), differences(effect), atol=1e-6)
    assert np.abs(found - q).max() > 5
    # A model of the reward itself has to fit the level, and gets the differences wrong.
    plain = fit_reward(x, action, reward, 6, fold=fold, ridge=1e-6)
    assert np.abs(differences(plain) - differences(effect)).max() > 1


def test_the_networks_learn_differences_too(rng):
    """Where a model of the reward itself gets them wrong, as above; the generator alone decides how."""
    x, context, action, reward, cluster, q, effect = logged(rng, rows=600, users=8)

    def fitted():
        generator = torch.Generator().manual_seed(0)
        return fit_conjunct_effect(x, context, action, reward, cluster, 6, generator=generator)

    found = fitted()
    assert np.abs(differences(found) - differences(effect)).mean() < 0.3
    assert np.abs(found - q).mean() < 3
    plain = fit_reward(x, action, reward, 6, ridge=1e-6)
    assert np.abs(differences(plain) - differences(effect)).mean() > 1
    np.testing.assert_array_equal(fitted(), found)


def test_the_penalty_shrinks_differences():
    """With 20 rows an action and nothing else to learn the default takes 0.5 % of them; 1 would take 5 %."""
    action, cluster = np.repeat(np.arange(4), 20), np.array([0, 0, 1, 1])
    reward = np.array([1.0, 0.0, 0.0, 2.0])[action]
    nothing, alike = np.zeros((80, 0)), np.zeros(80, dtype=int)

    def difference(**ridge):
        found = fit_conjunct_effect(nothing, alike, action, reward, cluster, 4, **ridge)
        return found[0, 0] - found[0, 1], found[0, 3] - found[0, 2]

    # Rows weigh 10 an action against the other of its cluster: d = 20/(20 + ridge) of the difference.
    np.testing.assert_allclose(difference(ridge=1.0), np.array([1.0, 2.0]) * 20 / 21, rtol=1e-9)
    np.testing.assert_allclose(difference(), np.array([1.0, 2.0]) * 20 / 20.1, rtol=1e-9)


def test_a_fit_without_pairs_is_refused():
    context, action = np.arange(4), np.array([0, 1, 2, 0])
    with pytest.raises(ValueError, match="no context holds two different actions of one cluster"):
        fit_conjunct_effect(np.zeros((4, 1)), context, action, np.ones(4), CLUSTER, 3)
    # Equal actions of one context say nothing of differences either.
    with pytest.raises(ValueError, match="no context holds two different actions of one cluster"):
        fit_conjunct_effect(np.zeros((4, 1)), context // 2, np.array([0, 0, 2, 2]), np.ones(4), CLUSTER, 3)
