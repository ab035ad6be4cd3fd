"""Features that were served as JSON become arrays, many rows at once, as they would one by one."""

import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from decisions_for_tests import assert_same, record

from peira.experience.decision_encoding import MOST_VALUES, chains, encode, encode_choices, infer_schema
from peira.experience.decision_records import OUTCOME_COLUMNS, decision_table, join
from peira.experience.decisions import FeatureSchema

SCHEMA = FeatureSchema(
    actions=("none", "token", "3ds"),
    numbers=("amount",),
    categories={"issuer": ("beta", "alpha")},
    action_numbers=("fee",),
)
FEES = [{"fee": 0.1}, {"fee": 0.2}, {"fee": 3}]


def matured(*records) -> pa.Table:
    nothing = pa.table([[], [], [], []], OUTCOME_COLUMNS)
    return join(
        decision_table(records), nothing, now=1e9, window=1, default_reward=0.5, aggregation="first"
    ).rows


def test_rows_are_encoded_as_the_schema_encodes_them():
    rng = np.random.default_rng(0)
    contexts = [
        {
            "amount": float(rng.normal()),
            "issuer": rng.choice(["alpha", "beta", "new", "2021-01-01"]),
            "more": [1],
        }
        for _ in range(40)
    ]
    actions = [tuple(rng.permutation(SCHEMA.actions)[: rng.integers(1, 4)].tolist()) for _ in contexts]
    features = [[{"fee": float(rng.normal()), "x": "y"} for _ in of] for of in actions]
    records = [
        record(
            number,
            context=context,
            actions=of,
            action_features=features[number],
            pmf=[1 / len(of)] * len(of),
            chosen_index=len(of) - 1,
            propensity=1 / len(of),
        )
        for number, (context, of) in enumerate(zip(contexts, actions, strict=True))
    ]
    rows = encode(matured(*records), SCHEMA)
    expected = SCHEMA.encode(contexts, actions, features)
    assert_same(rows, replace(rows, choices=expected))
    assert (rows.propensity == 1 / expected.count).all()
    assert (rows.column == expected.count - 1).all()
    np.testing.assert_array_equal(rows.pmf, expected.eligible / expected.count[:, None])


def test_what_is_known_of_a_decision_is_kept():
    made = [
        record(0, action_features=FEES, slice="uniform", policy_version=4, sampling_rate=0.25),
        record(1, action_features=FEES, parent_event_id="e0", attempt=2),
        record(2, action_features=FEES),
    ]
    rows = encode(matured(*made), SCHEMA)
    assert rows.uniform.tolist() == [True, False, False]
    assert rows.generation.tolist() == [4, 3, 3]
    assert rows.weight.tolist() == [4, 1, 1]
    assert rows.cluster.tolist() == [0, 0, 1]
    assert rows.time.tolist() == [0, 1, 2]
    assert rows.reward.tolist() == [0.5] * 3
    assert encode(matured(made[1]), SCHEMA).weight is None


def test_a_pmf_is_known_for_all_rows_or_for_none():
    table = matured(record(0, action_features=FEES), record(1, action_features=FEES))
    at = table.column_names.index("pmf")
    some = table.set_column(at, "pmf", pa.array([None, [0.5, 0.3, 0.2]], pa.list_(pa.float64())))
    assert encode(some, SCHEMA).pmf is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context": {"issuer": "alpha"}}, "context feature 'amount': expected a number, got nothing"),
        ({"context": {"amount": "1", "issuer": "alpha"}}, "'amount': expected a number, got '1'"),
        ({"context": {"amount": True, "issuer": "alpha"}}, "'amount': expected a number, got True"),
        (
            {"context": {"amount": float("inf"), "issuer": "alpha"}},
            "'amount': expected a finite number, got inf",
        ),
        ({"context": {"amount": 1e39, "issuer": "alpha"}}, "'amount': expected a finite number, got 1e+39"),
        ({"context": {"amount": 1, "issuer": 3}}, "'issuer': expected a text, got 3"),
        ({"context": {"amount": 1, "issuer": None}}, "'issuer': expected a text, got nothing"),
        ({"context": [1]}, "context: expected an object, got '[1]'"),
        ({"actions": ("none", "token", "cash")}, "actions: 'cash' is not known"),
        ({"action_features": None}, "action_features: expected those of 3 actions, got 0"),
        (
            {"action_features": [{"fee": 1}, {}, {"fee": 1}]},
            "action feature 'fee': expected a number, got nothing",
        ),
        ({"action_features": [1, 2, 3]}, "action_features: expected a list of objects"),
    ],
)
def test_the_event_and_the_feature_at_fault_are_named(changes, said):
    fault_at = record(1, **{"action_features": FEES, **changes})
    with pytest.raises(ValueError) as fault:
        encode(matured(record(0, action_features=FEES), fault_at), SCHEMA)
    assert str(fault.value).startswith("decision 'e1': ")
    assert said in str(fault.value)


def test_sparse_logs_lack_what_is_zero():
    rows = encode_choices(
        matured(record(0, context={}), record(1, context={"amount": 2})), SCHEMA, sparse=True
    )
    assert rows.number.tolist() == [[0], [2]]
    assert rows.category.tolist() == [[0], [0]]
    assert not rows.feature.any()
    some = encode_choices(
        matured(record(0), record(1, action_features=[{"fee": 1}, {}, {"fee": 2}]), record(2)),
        SCHEMA,
        sparse=True,
    )
    assert some.feature[:, :, 0].tolist() == [[0, 0, 0], [1, 0, 2], [0, 0, 0]]
    with pytest.raises(ValueError, match="'amount': expected a number, got 'x'"):
        encode_choices(matured(record(0, context={"amount": "x"})), SCHEMA, sparse=True)


def test_decisions_without_a_reward_are_not_encoded():
    with pytest.raises(ValueError, match="reward: expected joined decisions"):
        encode(decision_table([record(0)]), SCHEMA)
    table = matured(record(0, action_features=FEES))
    at = table.column_names.index("reward")
    with pytest.raises(ValueError, match="decision 'e0': reward: expected a finite number, got nan"):
        encode(table.set_column(at, "reward", pa.array([np.nan])), SCHEMA)


def test_there_may_be_no_decision():
    rows = encode(matured(), SCHEMA)
    assert (len(rows), rows.choices.feature.shape) == (0, (0, 0, 1))


def test_retries_of_retries_are_one_cluster_wherever_they_lie():
    ids = pa.chunked_array([["c", "x", "b", "a", "y", "z"]])
    parents = pa.chunked_array([pa.array(["b", None, "a", None, "far", "far"])])
    # y and z try again an event that is not here.
    assert chains(ids, parents).tolist() == [0, 1, 0, 0, 2, 2]
    loop = pa.chunked_array([["a", "b", "c"]]), pa.chunked_array([["b", "c", "a"]])
    assert len(chains(*loop)) == 3


# -- inference ---------------------------------------------------------------------------------------------


def test_a_schema_is_inferred_from_what_was_served():
    table = decision_table(
        [
            record(0, context={"amount": 1, "day": "2021-01-01", "never": None}, action_features=FEES),
            record(1, context={"amount": 2.5, "issuer": "b"}),
            record(2, context={"issuer": "a", "day": "2020-01-01"}, actions=("z", "none", "y")),
        ]
    )
    schema = infer_schema(table)
    assert schema.actions == ("3ds", "none", "token", "y", "z")
    assert schema.numbers == ("amount",)
    assert schema.categories == {"day": ("2020-01-01", "2021-01-01"), "issuer": ("a", "b")}
    assert schema.action_numbers == ("fee",)


def test_numbered_actions_are_in_the_order_of_their_numbers():
    table = decision_table([record(0, actions=("10", "9", "1"))])
    assert infer_schema(table).actions == ("1", "9", "10")


def test_the_most_frequent_values_of_a_category_are_listed():
    values = [f"v{number:05d}" for number in range(MOST_VALUES + 5)] + ["v00003", "common"] * 3
    table = decision_table([record(n, context={"issuer": of}) for n, of in enumerate(values)])
    known = infer_schema(table).categories["issuer"]
    assert len(known) == MOST_VALUES
    assert {"common", "v00003"} < set(known)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"x": 1}, {"x": "a"}, "context feature 'x': a number in some rows and a string in others"),
        ({"x": True}, {}, "context feature 'x': expected a number or a text, got bool"),
        ({"x": {"y": 1}}, {}, "context feature 'x': expected a number or a text, got struct"),
        ({"x": [1]}, {}, "context feature 'x': expected a number or a text, got list"),
        ([1], {}, "context: cannot be read as JSON objects"),
    ],
)
def test_features_that_are_neither_numbers_nor_texts_are_refused(one, other, said):
    with pytest.raises(ValueError) as fault:
        infer_schema(decision_table([record(0, context=one), record(1, context=other)]))
    assert said in str(fault.value)


def test_texts_of_actions_are_refused():
    table = decision_table([record(0, action_features=[{"kind": "a"}, {}, {}])])
    with pytest.raises(ValueError, match="action feature 'kind': expected numbers, got texts"):
        infer_schema(table)


def test_a_hundred_thousand_rows_are_encoded_in_seconds():
    table = matured(record(0, action_features=FEES, context={"amount": 1.5, "issuer": "alpha"}))
    table = table.take(pa.array(np.zeros(100_000, np.int64)))
    start = time.process_time()
    encode(table, SCHEMA)
    assert time.process_time() - start < 3
