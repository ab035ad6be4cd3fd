"""Classification data as a bandit: what is paid is the label, in one shuffled pass."""

import sys

import numpy as np
import pytest

from peira.environments.decision_world import best_value, make_decision_world
from peira.environments.supervised_bandit import DATASETS, SupervisedWorld

GENERATOR = np.random.default_rng(0)


def test_the_label_is_the_action_that_pays():
    features = np.arange(12.0).reshape(6, 2)
    labels = np.array(["b", "a", "c", "b", "a", "b"])
    world = SupervisedWorld(features, labels, 0)
    assert world.schema.actions == ("a", "b", "c")
    assert world.schema.numbers == ("x0", "x1")
    choices = world.contexts(6, GENERATOR, 0)
    row = (choices.number[:, 0] / 2).astype(int)
    # One pass, shuffled.
    assert sorted(row) == list(range(6))
    assert list(row) != list(range(6))
    expected = world.expected_reward(choices, 0)
    np.testing.assert_array_equal(expected, labels[row][:, None] == np.array(["a", "b", "c"]))
    for column in range(3):
        reward, delay = world.outcomes(choices, np.full(6, column), GENERATOR, 0)
        np.testing.assert_array_equal(reward, expected[:, column])
        assert not delay.any()
    assert list(world.clusters(choices, 3)) == [3, 4, 5, 6, 7, 8]


def test_a_table_of_costs():
    costs = np.array([[0.0, 0.25], [1.0, 0.5]])
    world = SupervisedWorld(np.array([[5.0], [6.0]]), costs, 1, actions=["stay", "go"], names=["size"])
    assert (world.schema.actions, world.schema.numbers) == (("stay", "go"), ("size",))
    choices = world.contexts(2, GENERATOR, 0)
    np.testing.assert_array_equal(
        world.expected_reward(choices, 0), 1 - costs[choices.number[:, 0].astype(int) - 5]
    )


def test_the_stream_ends():
    world = SupervisedWorld(np.arange(5.0)[:, None], np.arange(5), 0)
    parts = [world.contexts(2, GENERATOR, at) for at in (0, 2, 4, 6)]
    assert [len(part) for part in parts] == [2, 2, 1, 0]
    np.testing.assert_array_equal(
        np.concatenate([part.number for part in parts]), world.contexts(99, GENERATOR, 0).number
    )


def test_rows_taken_out_need_their_rounds():
    world = SupervisedWorld(np.arange(5.0)[:, None], np.arange(5), 0)
    choices, rows = world.contexts(5, GENERATOR, 0), np.array([3, 1])
    np.testing.assert_array_equal(
        world.expected_reward(choices.take(rows), rows), world.expected_reward(choices, 0)[rows]
    )
    with pytest.raises(ValueError, match="not those of these rounds"):
        world.expected_reward(choices.take(rows), 0)
    with pytest.raises(ValueError, match="at: expected rounds of 0 to 4, got 1 to 5"):
        world.outcomes(choices, np.zeros(5, int), GENERATOR, 1)


@pytest.mark.parametrize(
    ("env", "rows", "features", "actions"),
    [("digits", 1797, 64, 10), ("wine", 178, 13, 3), ("breast-cancer", 569, 30, 2), ("iris", 150, 4, 3)],
)
def test_scikit_learns_data(env, rows, features, actions):
    assert env in DATASETS
    world = make_decision_world(env, 0)
    choices = world.contexts(9_999, GENERATOR, 0)
    assert (len(world), len(choices), choices.number.shape[1], len(world.schema.actions)) == (
        rows,
        rows,
        features,
        actions,
    )
    assert len(world.schema.numbers) == features
    assert choices.number.min() == 0
    assert choices.number.max() == 1
    np.testing.assert_array_equal(best_value(world.expected_reward(choices, 0)), 1.0)
    # The nearest neighbour's label is right far more often than any one label: context and reward belong together.
    paid = world.expected_reward(choices, 0)
    square = (choices.number**2).sum(1)
    far = square[:, None] + square - 2 * choices.number @ choices.number.T
    np.fill_diagonal(far, np.inf)
    assert (paid[far.argmin(1)] * paid).sum(1).mean() > 0.9
    assert paid.mean(0).max() < 0.7


def test_a_seed_is_an_order():
    orders = [make_decision_world("iris", seed).contexts(150, GENERATOR, 0).number for seed in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    np.testing.assert_array_equal(*(np.sort(order, axis=0) for order in orders[1:]))


def test_noise_and_imbalance_are_what_was_asked_for():
    plain, noisy = (make_decision_world(f"classification-5{of}", 3) for of in ("", "-noise-20"))
    choices = plain.contexts(10_000, GENERATOR, 0)
    np.testing.assert_array_equal(choices.number, noisy.contexts(10_000, GENERATOR, 0).number)
    before, after = (world.expected_reward(choices, 0) for world in (plain, noisy))
    np.testing.assert_allclose(before.mean(0), 0.2, atol=0.001)
    assert abs((before.argmax(1) != after.argmax(1)).mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 10_000)
    uneven = make_decision_world("classification-3-imbalance-9", 0)
    share = uneven.expected_reward(uneven.contexts(10_000, GENERATOR, 0), 0).mean(0)
    np.testing.assert_allclose(share, np.array([9, 3, 1]) / 13, atol=0.001)


def test_what_is_wrong_is_named(monkeypatch):
    features = np.ones((2, 1))
    with pytest.raises(ValueError, match="a row for each of 3 targets, got 2"):
        SupervisedWorld(features, np.arange(3), 0)
    with pytest.raises(ValueError, match="a row for each of 0 targets, got 0"):
        SupervisedWorld(np.ones((0, 1)), np.arange(0), 0)
    with pytest.raises(ValueError, match=r"costs in \[0, 1\], got 0 to 2"):
        SupervisedWorld(features, np.array([[0.0, 2.0], [0.0, 1.0]]), 0)
    with pytest.raises(ValueError, match="row 1 is not finite"):
        SupervisedWorld(np.array([[1.0], [np.nan]]), np.arange(2), 0)
    with pytest.raises(ValueError, match="actions: expected 2 names, got 1"):
        SupervisedWorld(features, np.arange(2), 0, actions=["one"])
    with pytest.raises(ValueError, match="expected one of digits"):
        SupervisedWorld.from_dataset("mnist", 0)
    with pytest.raises(ValueError, match="classes: expected 2 to 1024, got 1"):
        make_decision_world("classification-1", 0)
    with pytest.raises(ValueError, match=r"label_noise: expected a share in \[0, 1\), got 1"):
        make_decision_world("classification-3-noise-100", 0)
    with pytest.raises(ValueError, match="imbalance: expected a ratio of at least 1, got 0"):
        SupervisedWorld.from_classification(3, 0, imbalance=0.0)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r"iris needs scikit-learn: pip install 'peira\[decisions\]'"):
        make_decision_world("iris", 0)
