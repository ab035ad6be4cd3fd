"""Ridge and logistic oracles: their features by hand, their optima, and learning row by row or all at once."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from oracle_logs import SCHEMA, draw_choices, draw_log, greedy_regret, true_reward

from peira.environments.payment import PaymentWorld
from peira.experience.decisions import FeatureSchema
from peira.policies.oracles.design import Design, Scale
from peira.policies.oracles.linear import LogisticOracle, RidgeOracle

MANY = FeatureSchema(
    actions=("none", "token", "exemption"),
    numbers=("amount",),
    categories={"issuer": tuple(map(str, range(60)))},
    action_numbers=("price", "delay", "risk"),
)
PLAIN = FeatureSchema(actions=tuple("abcd"), numbers=("x", "y", "z"))
CASES = [
    (schema, crosses, interactions, varying)
    for schema, varying in ((SCHEMA, False), (SCHEMA, True), (MANY, True), (PLAIN, False))
    for crosses in ("none", "features", "pairs", "disjoint")
    for interactions in (False, True)
]


def features_by_hand(schema, crosses, interactions, scale, number, category, action, feature):
    """(group, X) of one row and action, from the words of `Design`."""
    u = (number - scale.centre) / scale.deviation
    phi = [1.0, *u]
    for code, known in zip(category, schema.categories.values(), strict=True):
        for value in range(len(known) + 1):
            phi += [float(code == value) * v for v in ([1.0, *u] if interactions else [1.0])]
    phi, g = np.array(phi), feature / scale.size
    one_hot = np.eye(len(schema.actions))[action]
    products = [g[j] * g[k] for j, k in combinations(range(len(g)), 2)]
    if crosses == "disjoint":
        return action, np.concatenate([phi, g])
    if crosses == "none":
        return 0, np.concatenate([phi, g, one_hot])
    terms = [1.0, *g, *(products if crosses == "pairs" else [])]
    return 0, np.concatenate([*(t * phi for t in terms), one_hot])


@pytest.mark.parametrize("schema, crosses, interactions, varying", CASES)
def test_scores_and_moments_are_those_of_the_features_by_hand(schema, crosses, interactions, varying):
    rows = draw_log(60, 3, schema, varying)
    choices, design = rows.choices, Design(schema, crosses, interactions)
    scale = Scale.of(choices.number, rows.chosen_feature)
    generator = np.random.default_rng(0)
    theta = generator.normal(size=(design.groups, design.weights))
    context = design.context(choices.number, choices.category, scale)
    scores = design.scores(theta, context, choices.action, choices.feature, scale)
    weight, target = generator.random(60), generator.normal(size=60)
    gram, cross = design.moments(context, rows.action, rows.chosen_feature, scale, target, weight)
    bare, _ = design.moments(context, rows.action, rows.chosen_feature, scale, target)
    expected_gram, expected_bare, expected_cross = (
        np.zeros_like(gram),
        np.zeros_like(gram),
        np.zeros_like(cross),
    )
    for row in range(60):
        for column, action in enumerate(choices.action[row]):
            if action < 0:
                assert np.isnan(scores[row, column])
                continue
            group, x = features_by_hand(
                schema,
                crosses,
                interactions,
                scale,
                choices.number[row],
                choices.category[row],
                action,
                choices.feature[row, column],
            )
            np.testing.assert_allclose(scores[row, column], theta[group] @ x, rtol=1e-9, atol=1e-9)
            if column == rows.column[row]:
                expected_gram[group] += weight[row] * np.outer(x, x)
                expected_bare[group] += np.outer(x, x)
                expected_cross[group] += target[row] * x
    np.testing.assert_allclose(gram, expected_gram, atol=1e-9)
    np.testing.assert_allclose(bare, expected_bare, atol=1e-9)
    np.testing.assert_allclose(cross, expected_cross, atol=1e-9)


def test_many_values_are_kept_sparse_and_few_are_not():
    few, many = draw_choices(10, schema=SCHEMA), draw_choices(10, schema=MANY)
    scale = Scale.of(few.number, few.feature[:, 0])
    assert isinstance(Design(SCHEMA, "none", True).context(few.number, few.category, scale), np.ndarray)
    scale = Scale.of(many.number, many.feature[:, 0])
    assert not isinstance(Design(MANY, "none", True).context(many.number, many.category, scale), np.ndarray)


def test_the_richest_design_that_stays_small_is_taken():
    assert Design.choose(SCHEMA, None, None).crosses == "features"
    assert Design.choose(PLAIN, None, None).crosses == "disjoint"
    wide = FeatureSchema(
        actions=("a", "b"), numbers=tuple("xyz"), categories={"id": tuple(map(str, range(900)))}
    )
    chosen = Design.choose(wide, None, None)
    assert (chosen.crosses, chosen.interactions) == ("disjoint", False)
    assert Design.choose(wide, "none", True).weights == 4 + 4 * 901 + 2


def test_ridge_is_the_least_squares_fit_with_the_penalty_as_extra_rows():
    rows, ridge = draw_log(200, schema=PLAIN), 7.0
    oracle = RidgeOracle(PLAIN, ridge=ridge, crosses="disjoint").fit(rows)
    number = rows.choices.number.astype(float)
    standard = (number - number.mean(0)) / number.std(0)
    everything = np.column_stack([np.ones(200), standard])
    mean, predicted = rows.reward.mean(), np.full((200, 4), np.nan)
    for action in range(4):
        own = rows.action == action
        design = np.vstack([everything[own], np.sqrt(ridge) * np.eye(4)])
        target = np.concatenate([rows.reward[own] - mean, np.zeros(4)])
        slope = np.linalg.lstsq(design, target, rcond=None)[0]
        predicted[:, action] = mean + everything @ slope
    expected = np.take_along_axis(predicted, rows.choices.action, 1)
    expected[~rows.choices.eligible] = np.nan
    np.testing.assert_allclose(oracle.predict(rows.choices), np.clip(expected, 0, 1), rtol=1e-9)


@pytest.mark.parametrize("crosses", ["none", "features", "pairs", "disjoint"])
@pytest.mark.parametrize("varying", [False, True])
def test_ridge_learned_in_parts_is_ridge_learned_at_once(crosses, varying):
    rows = draw_log(300, varying=varying)
    # The parts have other means and deviations than the whole.
    rows = rows.take(np.argsort(rows.choices.number[:, 0], kind="stable"))
    at_once = RidgeOracle(SCHEMA, crosses=crosses).fit(rows)
    in_parts = RidgeOracle(SCHEMA, crosses=crosses)
    for low, high in ((0, 1), (1, 2), (2, 120), (120, 120), (120, 300)):
        in_parts.update(rows.take(slice(low, high)))
    asked = draw_choices(100, 9, varying=varying)
    np.testing.assert_allclose(in_parts.predict(asked), at_once.predict(asked), rtol=1e-8)


def test_forgetting_weighs_rows_by_their_age():
    rows = draw_log(300)
    oracle = RidgeOracle(SCHEMA, forgetting=0.5)
    for low in (0, 100, 200):
        oracle.update(rows.take(slice(low, low + 100)))
    aged = RidgeOracle(SCHEMA).fit(rows, np.repeat([0.25, 0.5, 1.0], 100))
    np.testing.assert_allclose(oracle.predict(rows.choices), aged.predict(rows.choices), rtol=1e-8)
    assert not np.allclose(
        oracle.predict(rows.choices), RidgeOracle(SCHEMA).fit(rows).predict(rows.choices), equal_nan=True
    )


@pytest.mark.parametrize("kind", [RidgeOracle, LogisticOracle])
def test_a_weight_of_two_is_a_row_that_comes_twice(kind):
    rows = draw_log(200)
    weights = np.where(np.arange(200) % 3 == 0, 2.0, 1.0)
    twice = rows.take(np.repeat(np.arange(200), weights.astype(int)))
    weighted, repeated = kind(SCHEMA).fit(rows, weights), kind(SCHEMA).fit(twice)
    np.testing.assert_allclose(weighted.predict(rows.choices), repeated.predict(rows.choices), rtol=1e-6)


@pytest.mark.parametrize("kind", [RidgeOracle, LogisticOracle])
def test_the_units_of_features_do_not_matter(kind):
    rows = draw_log(400, varying=True)
    factor = np.array([1000.0, 0.01], np.float32)
    other = replace(
        rows.choices, number=rows.choices.number * factor + 50, feature=rows.choices.feature * factor
    )
    first, second = kind(SCHEMA).fit(rows), kind(SCHEMA).fit(replace(rows, choices=other))
    np.testing.assert_allclose(second.predict(other), first.predict(rows.choices), atol=1e-4)


@pytest.mark.parametrize("kind", [RidgeOracle, LogisticOracle])
def test_an_action_without_rows_gets_what_the_others_suggest(kind):
    rows = draw_log(2_000)
    rows = rows.take(rows.action != 3)
    asked = draw_choices(200, 5)
    disjoint = kind(SCHEMA, crosses="disjoint").fit(rows).predict(asked)
    np.testing.assert_allclose(disjoint[asked.action == 3], rows.reward.mean(), atol=2e-3)
    # With shared features it is what its features did in the other actions.
    shared = kind(SCHEMA, crosses="features").fit(rows).predict(asked)
    inside = asked.action == 3
    assert np.corrcoef(shared[inside], true_reward(asked)[inside])[0, 1] > 0.9


def test_logistic_is_at_the_minimum_of_its_loss():
    rows = draw_log(300, schema=PLAIN)
    oracle = LogisticOracle(PLAIN, ridge=2.0).fit(rows)
    number = rows.choices.number.astype(float)
    x = np.column_stack([np.ones(300), (number - number.mean(0)) / number.std(0)])
    base = np.log((rows.reward.sum() + 0.5) / (301 - rows.reward.sum() - 0.5))
    predicted = oracle.predict(rows.choices)[np.arange(300), rows.column]
    for action in range(4):
        own = rows.action == action
        # At the minimum Σ (r − p) x = λ θ, and θ follows from the predicted log-odds.
        theta = np.linalg.lstsq(x[own], np.log(predicted / (1 - predicted))[own] - base, rcond=None)[0]
        np.testing.assert_allclose(x[own].T @ (rows.reward - predicted)[own], 2.0 * theta, atol=1e-5)


def test_logistic_learned_in_parts_stays_close_to_learned_at_once():
    rows, asked = draw_log(2_000), draw_choices(500, 9)
    at_once, in_parts = LogisticOracle(SCHEMA).fit(rows), LogisticOracle(SCHEMA)
    for low in range(0, 2_000, 400):
        in_parts.update(rows.take(slice(low, low + 400)))
    first = LogisticOracle(SCHEMA).fit(rows.take(slice(0, 400))).predict(asked)
    reference = at_once.predict(asked)
    distance = np.sqrt(np.nanmean((in_parts.predict(asked) - reference) ** 2))
    assert distance < 0.015
    assert distance < 0.2 * np.sqrt(np.nanmean((first - reference) ** 2))


@pytest.mark.parametrize("kind", [RidgeOracle, LogisticOracle])
def test_with_forgetting_a_changed_world_is_learned(kind):
    rows = draw_log(2_000)
    changed = replace(rows, reward=1.0 - rows.reward)
    keeping, forgetting = kind(SCHEMA), kind(SCHEMA, forgetting=0.3)
    for oracle in (keeping, forgetting):
        oracle.update(rows).update(changed)
        oracle.update(changed)
    truth = 1 - true_reward(rows.choices)
    errors = [np.sqrt(np.nanmean((of.predict(rows.choices) - truth) ** 2)) for of in (keeping, forgetting)]
    assert errors[1] < 0.6 * errors[0]


def test_predictions_of_squared_loss_are_clipped():
    rows = draw_log(2_000)
    oracle = RidgeOracle(SCHEMA).fit(replace(rows, reward=(rows.choices.number[:, 0] > 3).astype(float)))
    far = replace(rows.choices, number=rows.choices.number * 10)
    predicted = oracle.predict(far)
    assert np.nanmin(predicted) == 0.0 and np.nanmax(predicted) == 1.0
    assert np.nanmax(oracle._linear(far)) > 1.5


@pytest.mark.parametrize("kind", [RidgeOracle, LogisticOracle])
def test_payments_are_learned(kind):
    world = PaymentWorld(0)
    generator = np.random.default_rng(0)
    choices = world.contexts(12_000, generator, 0)
    rows = draw_log(12_000, choices=choices)
    reward, _ = world.outcomes(choices, rows.column, generator, 0)
    oracle = kind(world.schema).fit(replace(rows, reward=reward))
    asked = world.contexts(5_000, generator, 0)
    expected = world.expected_reward(asked, 0)
    best = np.nanmax(expected, 1)
    taken = np.nanargmax(oracle.predict(asked), 1)
    regret = np.mean(best - expected[np.arange(5_000), taken])
    assert regret < 0.5 * np.mean(best - np.nanmean(expected, 1))


def test_what_holds_of_one_action_in_one_segment_is_learned():
    asked = draw_choices(1_000, 7)
    rows = draw_log(4_000)
    for kind in (RidgeOracle, LogisticOracle):
        assert greedy_regret(kind(SCHEMA).fit(rows), asked) < 0.01
        # Without crosses the best action is the same everywhere.
        assert greedy_regret(kind(SCHEMA, crosses="none").fit(rows), asked) > 0.03


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"ridge": 0.0}, "ridge: expected a positive penalty, got 0"),
        ({"cross_ridge": np.nan}, "cross_ridge: expected a positive penalty, got nan"),
        ({"forgetting": 1.5}, r"forgetting: expected a factor in \(0, 1\], got 1.5"),
    ],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        RidgeOracle(SCHEMA, **setting)
