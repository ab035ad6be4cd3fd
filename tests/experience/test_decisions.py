"""The vocabulary of decisions: named features and actions as arrays, and logs that are cut and put together."""

import numpy as np
import pytest
from decisions_for_tests import SCHEMA, assert_same, logged

from peira.experience.decisions import PADDING, UNKNOWN, Choices, FeatureSchema, LoggedDecisions

CONTEXT = {"amount": 1.5, "shopper.age": 30, "issuer": "alpha", "card.kind": "debit"}
FEES = [{"fee": 0.1, "latency": 2}, {"fee": 0.2, "latency": 3}]


def test_named_features_become_arrays_in_the_order_of_the_schema():
    choices = SCHEMA.encode([CONTEXT], [["3ds", "none"]], [FEES])
    np.testing.assert_array_equal(choices.number, np.array([[1.5, 30]], np.float32))
    assert choices.category.tolist() == [[2, 1]]
    assert choices.action.tolist() == [[2, 0]]
    np.testing.assert_array_equal(choices.feature, np.array([[[0.1, 2], [0.2, 3]]], np.float32))


def test_rows_with_fewer_actions_are_padded():
    choices = FeatureSchema(actions=("a", "b", "c")).encode([{}, {}], [["c"], ["a", "b"]])
    assert choices.action.tolist() == [[2, PADDING], [0, 1]]
    assert choices.count.tolist() == [1, 2]
    assert choices.eligible.tolist() == [[True, False], [True, True]]


def test_a_value_that_the_schema_does_not_list_is_the_unknown_one():
    choices = SCHEMA.encode([{**CONTEXT, "issuer": "new"}], [["none"]], [[FEES[0]]])
    assert choices.category[0, 0] == UNKNOWN


@pytest.mark.parametrize(
    ("changes", "actions", "features", "said"),
    [
        ({"amount": None}, ["none"], FEES[:1], "context feature 'amount': expected a number, got nothing"),
        ({"amount": "1"}, ["none"], FEES[:1], "context feature 'amount': expected a number, got '1'"),
        ({"amount": True}, ["none"], FEES[:1], "context feature 'amount': expected a number, got True"),
        ({"amount": float("nan")}, ["none"], FEES[:1], "'amount': expected a finite number, got nan"),
        ({"amount": 1e39}, ["none"], FEES[:1], "'amount': expected a finite number, got 1e+39"),
        ({"amount": 10**400}, ["none"], FEES[:1], "'amount': expected a finite number, got 1000"),
        ({"issuer": 3}, ["none"], FEES[:1], "context feature 'issuer': expected a text, got 3"),
        ({}, [], [], "actions: none is eligible"),
        ({}, ["none", "none"], FEES, "actions: 'none' comes twice"),
        ({}, ["cash"], FEES[:1], "actions: 'cash' is not known; the policy has none, token"),
        ({}, [["none"]], FEES[:1], "actions: ['none'] is not known"),
        ({}, ["none", "token"], FEES[:1], "action_features: expected those of 2 actions, got 1"),
        ({}, ["none"], None, "action_features: expected those of 1 actions, got 0"),
        ({}, ["none"], [{"fee": 1}], "action feature 'latency': expected a number, got nothing"),
    ],
)
def test_what_is_wrong_with_features_or_actions_is_said(changes, actions, features, said):
    with pytest.raises(ValueError) as fault:
        SCHEMA.encode([{**CONTEXT, **changes}], [actions], None if features is None else [features])
    assert said in str(fault.value)


def test_a_schema_comes_back_from_json_with_its_columns_in_order():
    back = FeatureSchema.from_json(SCHEMA.to_json())
    assert back == SCHEMA
    assert back.hash == SCHEMA.hash
    # Not alphabetical: the order of categories is that of the arrays' columns.
    assert list(back.categories) == ["issuer", "card.kind"]
    other = FeatureSchema(
        SCHEMA.actions, SCHEMA.numbers, dict(reversed(SCHEMA.categories.items())), SCHEMA.action_numbers
    )
    assert other.hash != SCHEMA.hash


@pytest.mark.parametrize("text", ["", "[]", "3", '{"actions": ["a"]}', '{"actions": 3, "numbers": []}'])
def test_json_of_something_else_is_no_schema(text):
    with pytest.raises(ValueError, match="schema: expected the JSON of a feature schema"):
        FeatureSchema.from_json(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"actions": ()}, "schema: names no action"),
        ({"actions": ("a", "a")}, "schema: 'a' comes twice among actions"),
        ({"numbers": ("x",), "categories": {"x": ("y",)}}, "schema: 'x' comes twice among features"),
        ({"categories": {"x": ("y", "y")}}, "schema: 'y' comes twice among x"),
    ],
)
def test_a_schema_names_everything_once(given, said):
    with pytest.raises(ValueError, match=said):
        FeatureSchema(**{"actions": ("a",), **given})


def test_the_column_of_an_action_is_where_it_stands():
    choices = logged(50).choices
    column = choices.count - 1
    assert (choices.column_of(choices.action[np.arange(50), column]) == column).all()
    with pytest.raises(ValueError, match="action: 7 of row 0 is not among its eligible actions"):
        choices.column_of(np.full(50, 7))


def test_logs_are_cut_and_put_together():
    rows = logged(60, weighted=True)
    parts = [rows.take(slice(0, 20)), rows.take(np.arange(20, 50)), rows.take(np.arange(60) >= 50)]
    assert_same(LoggedDecisions.concatenate(parts), rows)
    assert len(parts[2]) == 10


def test_logs_of_other_widths_and_of_less_are_put_together():
    narrow = logged(
        20, schema=FeatureSchema(SCHEMA.actions[:3], SCHEMA.numbers, SCHEMA.categories, ("fee", "latency"))
    )
    wide, weighted = logged(20, seed=1), logged(20, seed=2, weighted=True, with_pmf=False)
    both = LoggedDecisions.concatenate([narrow, wide])
    assert both.choices.action.shape == (40, 5)
    assert (both.choices.action[:20, 3:] == PADDING).all()
    np.testing.assert_allclose(both.pmf.sum(1), 1)
    assert both.weight is None
    assert (both.action == np.concatenate([narrow.action, wide.action])).all()
    some = LoggedDecisions.concatenate([wide, weighted])
    assert some.pmf is None
    np.testing.assert_array_equal(some.weight, np.concatenate([np.ones(20), weighted.weight]))


def test_what_was_chosen_is_read_from_its_column():
    rows = logged(30)
    for row in range(30):
        assert rows.action[row] == rows.choices.action[row, rows.column[row]]
        assert (rows.chosen_feature[row] == rows.choices.feature[row, rows.column[row]]).all()
    assert isinstance(rows.choices.take(slice(3)), Choices)
