"""Tree oracles: what they learn, that weights on a class are undone, and what the trees of a forest are."""

from dataclasses import replace

import numpy as np
import pytest
from oracle_logs import SCHEMA, draw_choices, draw_log, greedy_regret, true_reward

from peira.policies.oracles.boosting import ForestOracle, LightGBMOracle


def gaps(scores):
    """Best score less each, over the eligible actions."""
    gap = np.nanmax(scores, 1, keepdims=True) - scores
    return gap[~np.isnan(gap)]


@pytest.mark.parametrize(
    "kind, loss", [(LightGBMOracle, "log"), (LightGBMOracle, "squared"), (ForestOracle, None)]
)
def test_what_holds_of_one_action_in_one_segment_is_learned(kind, loss):
    oracle = kind(SCHEMA, **({} if loss is None else {"loss": loss})).fit(draw_log(8_000))
    assert greedy_regret(oracle, draw_choices(1_000, 7)) < 0.012


def test_the_action_and_categories_are_no_numbers():
    # With codes as numbers one split parts 0 1 from 2 3; issuers and actions that alternate need a set.
    choices = draw_choices(4_000)
    choices = replace(choices, feature=np.zeros_like(choices.feature))
    rows = draw_log(4_000, choices=choices)
    odd = (rows.action % 2 == rows.choices.category[:, 0] % 2).astype(float)
    rows = replace(rows, reward=odd)
    oracle = LightGBMOracle(SCHEMA, trees=1, leaves=4, learning_rate=1.0).fit(rows)
    predicted = oracle.predict(choices)[np.arange(4_000), rows.column]
    np.testing.assert_allclose(predicted, odd, atol=0.15)


def test_gaps_are_undone_where_successes_weigh_less():
    rows, asked = draw_log(20_000), draw_choices(2_000, 7)
    plain = LightGBMOracle(SCHEMA).fit(rows).predict(asked)
    oracle = LightGBMOracle(SCHEMA, scale_pos_weight=0.1).fit(rows)
    learned = oracle._mean(asked)
    learned[~asked.eligible] = np.nan
    truth, size = gaps(true_reward(asked)), gaps(true_reward(asked)).mean()
    assert np.abs(gaps(oracle.predict(asked)) - truth).mean() < 1.2 * np.abs(gaps(plain) - truth).mean()
    # As learned, the gaps are off by a large part of what they are.
    assert np.abs(gaps(learned) - truth).mean() > 0.3 * size
    assert np.abs(gaps(oracle.predict(asked)) - truth).mean() < 0.25 * size


def test_rewards_between_0_and_1_are_means_not_classes():
    rows = draw_log(4_000)
    rows = replace(rows, reward=np.where(rows.reward > 0, 0.3, 0.1))
    for weight in (1.0, 4.0):
        oracle = LightGBMOracle(SCHEMA, scale_pos_weight=weight).fit(rows)
        predicted = oracle.predict(rows.choices)[np.arange(4_000), rows.column]
        assert abs(predicted.mean() - rows.reward.mean()) < 0.005
        assert predicted.min() > 0.05 and predicted.max() < 0.35


def test_the_trees_of_a_forest_are_estimates_whose_mean_is_the_prediction():
    rows, asked = draw_log(3_000), draw_choices(100, 7)
    oracle = ForestOracle(SCHEMA, trees=15, least_rows=50).fit(rows)
    members = oracle.predict_members(asked)
    assert members.shape == (15, *asked.action.shape)
    np.testing.assert_allclose(members.mean(0), oracle.predict(asked), atol=1e-7)
    assert np.nanmean(members.std(0)) > 0.01
    assert np.nanmean((members - true_reward(asked)) ** 2) < 0.02
    # The calibration of the forest is that of its trees.
    oracle.calibrate(draw_log(2_000, 5), "platt")
    np.testing.assert_allclose(
        oracle.predict_members(asked), oracle.calibration(np.clip(members, 0, 1)), rtol=1e-9
    )


def test_a_forest_before_the_first_row_and_on_very_few():
    asked = draw_choices(10)
    oracle = ForestOracle(SCHEMA, trees=4)
    assert (oracle.predict_members(asked)[:, asked.eligible] == 0.5).all()
    rows = draw_log(3)
    predicted = oracle.fit(rows).predict_members(asked)
    np.testing.assert_allclose(predicted[:, asked.eligible], rows.reward.mean(), atol=1e-6)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_one_class_alone_is_learned(reward):
    rows = draw_log(500)
    predicted = LightGBMOracle(SCHEMA).fit(replace(rows, reward=np.full(500, reward))).predict(rows.choices)
    np.testing.assert_allclose(predicted[rows.choices.eligible], reward, atol=1e-6)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="leaves: expected at least 2, got 1"):
        LightGBMOracle(SCHEMA, leaves=1)
    with pytest.raises(ValueError, match="learning_rate: expected a positive number, got 0"):
        LightGBMOracle(SCHEMA, learning_rate=0.0)
    with pytest.raises(ValueError, match="rate_positive: expected a positive rate or weight, got 0"):
        LightGBMOracle(SCHEMA, scale_pos_weight=0.0)
