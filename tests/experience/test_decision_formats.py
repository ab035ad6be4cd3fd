"""Logs of decisions in files of other systems: read as they mean it, written so that they read back the same."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from decisions_for_tests import SCHEMA, assert_same, logged, record

from peira.experience.decision_formats import FORMATS, from_obp, read_decisions, to_obp, write_decisions
from peira.experience.decision_records import OUTCOME_COLUMNS, decision_table, join
from peira.experience.decision_steps import decisions_to_steps, read_schema, steps_to_decisions, write_schema
from peira.experience.decisions import FeatureSchema
from peira.experience.schema import validate
from peira.experience.store import Store

LOST = {
    "parquet": (),
    "csv": (),
    "csv.gz": (),
    "lance": (),
    "dsjson": ("uniform", "cluster"),
    "dsjson.gz": ("uniform", "cluster"),
    "vw": ("pmf", "generation", "time", "uniform", "cluster", "weight"),
    "npz": ("generation", "time", "uniform", "cluster", "weight"),
}


@pytest.mark.parametrize("suffix", LOST)
@pytest.mark.parametrize("with_pmf", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_every_format_gives_back_what_was_written(tmp_path, suffix, with_pmf, weighted):
    # OBP has no order of actions of its own.
    rows = logged(200, with_pmf=with_pmf, weighted=weighted, ordered=suffix == "npz")
    path = tmp_path / f"log.{suffix}"
    write_decisions(path, rows, SCHEMA)
    back, schema = read_decisions(path, SCHEMA)
    assert schema is SCHEMA
    assert_same(rows, back, LOST[suffix])


@pytest.mark.parametrize("suffix", ["parquet", "lance"])
def test_the_native_formats_know_their_schema(tmp_path, suffix):
    write_decisions(tmp_path / f"log.{suffix}", logged(20), SCHEMA)
    _, schema = read_decisions(tmp_path / f"log.{suffix}")
    assert schema.hash == SCHEMA.hash


@pytest.mark.parametrize("suffix", ["csv", "dsjson", "vw"])
def test_the_schema_of_other_formats_is_inferred(tmp_path, suffix):
    rows = logged(300)
    write_decisions(tmp_path / f"log.{suffix}", rows, SCHEMA)
    back, schema = read_decisions(tmp_path / f"log.{suffix}")
    assert set(schema.actions) == set(SCHEMA.actions)
    assert set(schema.numbers) == set(SCHEMA.numbers)
    assert {name: set(of) for name, of in schema.categories.items()} == {
        name: set(of) for name, of in SCHEMA.categories.items()
    }
    assert len(schema.action_numbers) == 2
    names = np.array(schema.actions)[back.action]
    assert (names == np.array(SCHEMA.actions)[rows.action]).all()
    np.testing.assert_array_equal(back.propensity, rows.propensity)


def test_a_file_appears_whole_and_is_not_written_over(tmp_path):
    rows = logged(5)
    with pytest.raises(TypeError):
        write_decisions(tmp_path / "log.dsjson", rows, SCHEMA, event_ids=["a", "b", "c", "d", object()])
    assert list(tmp_path.iterdir()) == []
    write_decisions(tmp_path / "log.csv", rows, SCHEMA)
    with pytest.raises(ValueError, match=r"log\.csv exists; give a new name"):
        write_decisions(tmp_path / "log.csv", rows, SCHEMA)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (FeatureSchema(SCHEMA.actions), "number: expected 0 columns as in the schema, got 2"),
        (replace(SCHEMA, actions=("a", "b")), "action: expected codes below 2, got 4"),
        (replace(SCHEMA, action_numbers=()), "feature: expected 0 columns as in the schema, got 2"),
        (
            replace(SCHEMA, categories={"issuer": ("a", "b"), "card.kind": ("x",)}),
            "category 'card.kind': expected codes up to 1",
        ),
    ],
)
def test_rows_of_another_schema_are_not_written(tmp_path, schema, said):
    with pytest.raises(ValueError, match=said):
        write_decisions(tmp_path / "log.parquet", logged(50), schema)
    with pytest.raises(ValueError, match=said):
        decisions_to_steps(logged(50), schema, event_ids=ids(50), policy_id="p")


def test_formats_that_are_not_there_are_refused(tmp_path):
    (tmp_path / "log.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"format: cannot tell from the name 'log\.txt'; say one of store, parquet"
    ):
        read_decisions(tmp_path / "log.txt")
    with pytest.raises(ValueError, match=f"format: 'xml' is none of {', '.join(FORMATS)}"):
        read_decisions(tmp_path / "log.txt", format="xml")
    with pytest.raises(ValueError, match="does not exist"):
        read_decisions(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="columns: vw has none to name"):
        read_decisions(tmp_path / "log.txt", format="vw", columns={"reward": "r"})
    with pytest.raises(ValueError, match="event_ids: expected 5, one a row, got 1"):
        write_decisions(tmp_path / "log.vw", logged(5), SCHEMA, event_ids=["a"])


# -- records -----------------------------------------------------------------------------------------------


def test_joined_records_are_read_from_parquet(tmp_path):
    context = {"amount": 1.5, "issuer": "alpha"}
    told = pa.table([["e1"], [1.0], [1.5], [""]], OUTCOME_COLUMNS)
    records = [record(n, context=context) for n in range(3)]
    records.append(record(3, context=context, pmf=(0, 1, 0), propensity=1.0, override=True, learn=False))
    joined = join(decision_table(records), told, now=99, window=5, default_reward=0, aggregation="first")
    pq.write_table(pa.concat_tables([joined.rows, joined.set_aside]), tmp_path / "rows.parquet")
    rows, schema = read_decisions(tmp_path / "rows.parquet")
    assert schema.actions == ("3ds", "none", "token")
    assert rows.reward.tolist() == [0, 1, 0]


# -- the store ---------------------------------------------------------------------------------------------


def ids(count: int) -> list[str]:
    return [f"e{row}" for row in range(count)]


@pytest.mark.parametrize("with_pmf", [True, False])
def test_steps_are_legal_and_come_back(with_pmf):
    rows = logged(100, with_pmf=with_pmf, weighted=with_pmf)
    steps = decisions_to_steps(rows, SCHEMA, event_ids=ids(100), policy_id="p", source="real")
    assert validate(steps).num_rows == 100
    assert_same(rows, steps_to_decisions(steps, SCHEMA))
    assert len(steps_to_decisions(steps.slice(0, 0), SCHEMA)) == 0
    # What is absent is absent.
    assert ("behaviour_probs" in steps.column_names, "weight" in steps.column_names) == (with_pmf, with_pmf)
    assert set(steps["source"].to_pylist()) == {"real"}


def test_decisions_without_features_have_an_observation():
    schema = FeatureSchema(actions=("a", "b"), categories={})
    rows = logged(10, schema=FeatureSchema(("a", "b"), (), {"c": ("x",)}))
    plain = rows.choices
    rows = replace(rows, choices=replace(plain, category=np.zeros((10, 0), np.int32)))
    steps = decisions_to_steps(rows, schema, event_ids=ids(10), policy_id="p")
    assert steps["observation"].to_pylist() == [[0.0]] * 10
    assert_same(rows, steps_to_decisions(validate(steps), schema))


def test_rounds_of_a_simulation_begin_where_it_began():
    rows = logged(10).take(slice(0, 10))
    rows = replace(rows, time=np.arange(10.0))
    steps = decisions_to_steps(rows, SCHEMA, event_ids=ids(10), policy_id="p", started_ms=1_700_000_000_123)
    assert steps["created_at"][2].as_py().isoformat() == "2023-11-14T22:13:22.123000+00:00"
    assert_same(rows, steps_to_decisions(steps, SCHEMA, started_ms=1_700_000_000_123))


def test_retries_name_the_first_row_of_their_cluster_or_what_is_given():
    rows = logged(4)
    rows = replace(rows, cluster=np.array([5, 2, 5, 2]))
    steps = decisions_to_steps(rows, SCHEMA, event_ids=ids(4), policy_id="p")
    assert steps["parent_episode_id"].to_pylist() == [None, None, "e0", "e1"]
    given = decisions_to_steps(
        rows, SCHEMA, event_ids=ids(4), policy_id="p", parent_event_ids=["before", None, "before", "e1"]
    )
    assert steps_to_decisions(given, SCHEMA).cluster.tolist() == [0, 1, 0, 1]


def test_a_store_grows_and_keeps_its_schema(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    rows = logged(60)
    write_decisions(run, rows.take(slice(0, 40)), SCHEMA, format="store", event_ids=ids(60)[:40])
    write_decisions(run, rows.take(slice(40, 60)), SCHEMA, format="store", event_ids=ids(60)[40:])
    assert (run / "schema.json").exists()
    back, schema = read_decisions(run)
    assert schema.hash == SCHEMA.hash
    assert_same(rows, back, ("cluster",))
    with pytest.raises(ValueError, match=r"schema: .* holds decisions of another schema"):
        write_decisions(run, rows, replace(SCHEMA, actions=(*SCHEMA.actions, "new")), format="store")
    (run / "schema.json").unlink()
    with pytest.raises(ValueError, match=r"schema: .*schema\.json does not exist; write_schema puts it"):
        read_decisions(run)
    write_schema(run, SCHEMA)
    assert read_schema(run / "experience.lance").hash == SCHEMA.hash


def test_steps_of_something_else_are_refused():
    steps = decisions_to_steps(logged(10), SCHEMA, event_ids=ids(10), policy_id="p")
    with pytest.raises(ValueError, match="observation: expected 1 features as in the schema, came"):
        steps_to_decisions(steps, FeatureSchema(SCHEMA.actions))
    with pytest.raises(ValueError, match="action_set: expected codes below 2, came 4"):
        steps_to_decisions(steps, FeatureSchema(("a", "b"), SCHEMA.numbers, SCHEMA.categories))
    with pytest.raises(ValueError, match="propensity: the steps have no such column; they are no decisions"):
        steps_to_decisions(steps.drop_columns(["propensity"]), SCHEMA)
    second = steps.set_column(1, "step", pa.array([0, 1] * 5, pa.int32()))
    with pytest.raises(ValueError, match="step: some episode has more than one step"):
        steps_to_decisions(second, SCHEMA)
    with pytest.raises(ValueError, match="event_ids: expected 10, one a row, got 3"):
        decisions_to_steps(logged(10), SCHEMA, event_ids=ids(3), policy_id="p")


def test_evaluation_reads_the_store_as_it_was_logged(tmp_path):
    from peira.evaluation.off_policy.log import read_log

    rows = logged(300)
    write_decisions(tmp_path / "log.lance", rows, SCHEMA, event_ids=ids(300))
    log = read_log(tmp_path / "log.lance")
    assert (log.actions, log.rows, log.episodes) == (5, 300, 300)
    np.testing.assert_array_equal(log.action, rows.action)
    np.testing.assert_array_equal(log.reward, rows.reward)
    np.testing.assert_allclose(np.exp(log.log_propensity), rows.propensity, rtol=1e-12)
    eligible, action = rows.choices.eligible, rows.choices.action
    at = np.nonzero(eligible)[0], action[eligible]
    sets, probs = np.zeros((300, 5), bool), np.zeros((300, 5))
    sets[at], probs[at] = True, rows.pmf[eligible]
    np.testing.assert_array_equal(log.action_set, sets)
    np.testing.assert_array_equal(log.behaviour_probs, probs)
    np.testing.assert_array_equal(log.observation[:, :2], rows.choices.number)
    np.testing.assert_array_equal(log.observation[:, 2:], rows.choices.category)
    np.testing.assert_allclose(log.created_at, rows.time)
    assert len(Store.open(tmp_path / "log.lance")) == 300


# -- dsjson ------------------------------------------------------------------------------------------------


def coffee(**changes) -> dict:
    """An event as the decision service writes it: the third drink of the menu was served, with probability .85."""
    event = {
        "_label_cost": -1.0,
        "_label_probability": 0.85,
        "_label_Action": 3,
        "_labelIndex": 2,
        "o": [{"v": 1.0, "EventId": "e1", "ActionTaken": False}],
        "Timestamp": "2021-02-04T16:31:29.2460000Z",
        "Version": "1",
        "EventId": "e1",
        "a": [3, 1, 2],
        "c": {
            "loyal": True,
            "FromUrl": [{"timeofday": "Evening", "age": 31}],
            "scores": [4, 5.5],
            "_multi": [
                {"_tag": "mocha", "i": {"constant": 1, "id": "mocha"}, "j": [{"type": "hot", "price": 3}]},
                {"_tag": "brew", "i": {"constant": 1, "id": "brew"}, "j": [{"type": "cold", "price": 2.5}]},
                {"_tag": "latte", "i": {"constant": 1, "id": "latte"}, "j": [{"type": "hot"}]},
            ],
        },
        "p": [0.85, 0.1, 0.05],
        "VWState": {"m": "ff07/550c"},
        "_original_label_cost": -1.0,
    }
    event.update(changes)
    return {name: value for name, value in event.items() if value is not None}


def write_lines(path, *events) -> None:
    path.write_text("\n".join(of if isinstance(of, str) else json.dumps(of) for of in events) + "\n")


def test_every_field_of_dsjson_is_read_as_it_is_meant(tmp_path):
    other = coffee(EventId="e2", VWState={"m": "aa/bb"}, pdrop=0.75, _label_cost=0.5)
    write_lines(tmp_path / "log.json", coffee(), "", other)
    rows, schema = read_decisions(tmp_path / "log.json")
    assert schema.actions == ("brew", "latte", "mocha")
    assert schema.numbers == ("loyal", "FromUrl.age", "scores.0", "scores.1")
    assert schema.categories == {"FromUrl.timeofday": ("Evening",)}
    assert set(schema.action_numbers) == {"j.price", "j.type=hot", "j.type=cold"}
    assert rows.choices.number.tolist() == [[1, 31, 4, 5.5]] * 2
    # The order is that of the menu, not the one served: p goes with a.
    assert rows.choices.action.tolist() == [[2, 0, 1]] * 2
    assert rows.pmf.tolist() == [[0.1, 0.05, 0.85]] * 2
    assert rows.column.tolist() == [2, 2]
    assert rows.propensity.tolist() == [0.85, 0.85]
    assert rows.reward.tolist() == [1, -0.5]
    assert rows.generation.tolist() == [0, 1]
    assert rows.weight.tolist() == [1, 4]
    assert rows.time[0] == 1612456289.246
    price = rows.choices.feature[0, :, schema.action_numbers.index("j.price")]
    assert price.tolist() == [3, 2.5, 0]
    hot = rows.choices.feature[0, :, schema.action_numbers.index("j.type=hot")]
    assert hot.tolist() == [1, 0, 1]


def test_what_teaches_nothing_is_left_out(tmp_path):
    unlabelled = {"_label_cost": None, "_label_probability": None, "_label_Action": None, "_labelIndex": None}
    write_lines(
        tmp_path / "log.dsjson",
        coffee(),
        coffee(EventId="skipped", _skipLearn=True),
        coffee(EventId="waiting", **unlabelled),
        coffee(EventId="later", **unlabelled),
        {"RewardValue": 0.25, "EnqueuedTimeUtc": "2021-02-04T17:00:00Z", "EventId": "later"},
        {"RewardValue": 0.5, "EnqueuedTimeUtc": "2021-02-04T17:00:00Z", "EventId": "nobody"},
    )
    rows, _ = read_decisions(tmp_path / "log.dsjson")
    assert rows.reward.tolist() == [1, 0.25]
    assert rows.column.tolist() == [2, 2]


def test_whole_numbers_of_models_are_generations(tmp_path):
    write_lines(tmp_path / "log.json", coffee(VWState={"m": "12"}), coffee(VWState={"m": "7"}, EventId="e2"))
    assert read_decisions(tmp_path / "log.json")[0].generation.tolist() == [12, 7]


@pytest.mark.parametrize(
    ("multi", "names"),
    [
        ([{"i": {"id": "x"}}, {"i": {"id": "y"}}, {"i": {"id": "z"}}], ("x", "y", "z")),
        ([{"TAction": {"id": "x"}}, {"TAction": {"id": "y"}}, {"TAction": {"id": "z"}}], ("x", "y", "z")),
        ([{"id": 5}, {"id": 6}, {"id": 7}], ("5", "6", "7")),
        ([{"T": {"a": 1}}, {"T": {"a": 2}}, {"T": {"a": 3}}], ("1", "2", "3")),
        (None, ("1", "2", "3")),
    ],
)
def test_actions_are_named_by_what_names_them(tmp_path, multi, names):
    write_lines(tmp_path / "log.json", coffee(c={"_multi": multi} if multi else {}))
    rows, schema = read_decisions(tmp_path / "log.json")
    assert tuple(schema.actions[code] for code in rows.choices.action[0]) == names


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{nonsense", "Expecting property name"),
        ("[1]", "expected an object"),
        ({"x": 1}, "expected a decision (with c) or a reward"),
        (coffee(a=[3, 1, 1]), "a: expected the numbers 1 … 3 of _multi in some order, got [3, 1, 1]"),
        (coffee(a=[0, 1, 2]), "a: expected the numbers 1 … 3"),
        (coffee(a=None), "has no 'a'"),
        (coffee(_labelIndex=3), "_labelIndex: expected 2 (_label_Action − 1), got 3"),
        (coffee(p=[0.9, 0.1]), "p: expected 3 probabilities, one for each of a, got 2"),
        # In the order of _multi instead.
        (coffee(p=[0.1, 0.05, 0.85]), "_label_probability: got 0.85, where p says 0.1 of action 3"),
        (coffee(p=None, _label_probability=None), "p: missing, and _label_probability too"),
        (coffee(pdrop=1.0), "pdrop: expected a share from 0 to below 1, got 1.0"),
        (coffee(_label_cost="x"), "unsupported operand"),
        (coffee(Timestamp="yesterday"), "Invalid isoformat string"),
        (coffee(_outcomes=[]), "a decision of several slots"),
    ],
)
def test_the_line_at_fault_is_named(tmp_path, line, said):
    write_lines(tmp_path / "log.json", coffee(), line)
    with pytest.raises(ValueError) as fault:
        read_decisions(tmp_path / "log.json")
    assert str(fault.value).startswith(f"path: line 2 of {tmp_path / 'log.json'}: ")
    assert said in str(fault.value)
    assert "\n" not in str(fault.value)


def test_probabilities_that_are_none_are_refused_by_event(tmp_path):
    write_lines(tmp_path / "log.json", coffee(p=[0.85, 0.1, 0.5]))
    with pytest.raises(ValueError, match=r"decision 'e1': pmf: expected a sum of 1, got 1\.45"):
        read_decisions(tmp_path / "log.json")


def test_a_written_event_has_the_chosen_action_first_and_p_beside_a(tmp_path):
    rows = logged(50)
    write_decisions(tmp_path / "log.dsjson.gz", rows, SCHEMA, event_ids=ids(50))
    lines = gzip.decompress((tmp_path / "log.dsjson.gz").read_bytes()).splitlines()
    for row, line in enumerate(lines):
        event = json.loads(line)
        chosen = rows.column[row]
        assert event["a"][0] == event["_label_Action"] == event["_labelIndex"] + 1 == chosen + 1
        assert event["p"] == [rows.pmf[row, place - 1] for place in event["a"]]
        assert event["p"][0] == event["_label_probability"] == rows.propensity[row]
        assert event["_label_cost"] == -rows.reward[row] == event["_original_label_cost"]
        assert str(event["_label_cost"]) != "-0.0"
        assert event["EventId"] == event["o"][0]["EventId"] == f"e{row}"
        assert event["c"]["shopper"]["age"] == rows.choices.number[row, 1]
        assert [of["_tag"] for of in event["c"]["_multi"]] == [
            SCHEMA.actions[code] for code in rows.choices.action[row] if code >= 0
        ]


def test_a_feature_with_the_name_of_a_namespace_is_refused(tmp_path):
    schema = FeatureSchema(("a", "b"), ("shopper", "shopper.age"), {"c": ("x",)})
    with pytest.raises(ValueError, match="feature 'shopper': other features are in a namespace of that name"):
        write_decisions(tmp_path / "log.dsjson", logged(3, schema=schema), schema)


# -- VW text -----------------------------------------------------------------------------------------------


def test_text_is_read_as_vowpal_wabbit_reads_it(tmp_path):
    (tmp_path / "log.vw").write_text(
        "shared |User:2 age:15 vip color=red | plain\n"
        "|Action price:3 size=big\n"
        "0:-0.5:0.25 two|Action price:4\n"
        "\n"
        "\n"
        "| a:1\n"
        "2:1:0.5 | b\n"
    )
    rows, schema = read_decisions(tmp_path / "log.vw")
    assert schema.actions == ("1", "2", "two")
    assert schema.numbers == ("User.age", "User.vip", "plain")
    assert schema.categories == {"User.color": ("red",)}
    assert rows.choices.number.tolist() == [[30, 2, 1], [0, 0, 0]]
    assert rows.choices.category.tolist() == [[1], [0]]
    assert [[schema.actions[code] for code in of] for of in rows.choices.action] == [["1", "two"], ["1", "2"]]
    assert rows.reward.tolist() == [0.5, -1]
    assert rows.propensity.tolist() == [0.25, 0.5]
    assert rows.pmf is None
    features = dict(zip(schema.action_numbers, rows.choices.feature[0].T.tolist(), strict=True))
    assert features == {"Action.price": [3, 4], "Action.size=big": [1, 0], "a": [0, 0], "b": [0, 0]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0:1:0.5 | a\n0:1:0.5 | b\n", "line 2 of {}: a second label"),
        ("| a\n| b\n", "line 1 of {}: no action of the decision has a label"),
        ("shared | a\n", "line 1 of {}: a decision without actions"),
        ("\n| a\nx\n", "line 3 of {}: expected a | before the features"),
        ("0:1 | a\n", "line 1 of {}: not enough values to unpack"),
        ("0:1:x | a\n", "line 1 of {}: could not convert string to float: 'x'"),
        ("0:1:0.5 7 | a\n", "line 1 of {}: expected one label"),
        ("0:1:0.5 | a:b\n", "line 1 of {}: could not convert string to float: 'b'"),
    ],
)
def test_the_line_of_text_at_fault_is_named(tmp_path, text, said):
    path = tmp_path / "log.vw"
    path.write_text(text)
    with pytest.raises(ValueError) as fault:
        read_decisions(path)
    assert said.format(path) in str(fault.value)


@pytest.mark.parametrize("suffix", ["vw", "dsjson"])
def test_vowpal_wabbit_reads_what_was_written(tmp_path, suffix):
    vowpalwabbit = pytest.importorskip("vowpalwabbit")
    rows = logged(200)
    path = tmp_path / f"log.{suffix}"
    write_decisions(path, rows, SCHEMA)
    options = "--cb_adf --cb_type ips --quiet" + (" --dsjson --chain_hash" if suffix == "dsjson" else "")
    workspace = vowpalwabbit.Workspace(options)
    blocks = path.read_text().strip().split("\n\n" if suffix == "vw" else "\n")
    for row, block in enumerate(blocks):
        examples = workspace.parse(block)
        labels = [example.get_label(vowpalwabbit.LabelType.CONTEXTUAL_BANDIT) for example in examples]
        labelled = [
            place for place, label in enumerate(labels) if label.costs and label.costs[0].probability > 0
        ]
        # The shared example comes first.
        assert labelled == [rows.column[row] + 1]
        cost = labels[labelled[0]].costs[0]
        assert cost.cost == -rows.reward[row]
        assert cost.probability == pytest.approx(rows.propensity[row], abs=1e-6)
        assert len(examples) == rows.choices.count[row] + 1
        workspace.finish_example(examples)
    workspace.finish()


# -- CSV ---------------------------------------------------------------------------------------------------

CSV = """who,approved,did,allowed,chance,x_amount,x_country,when,shop
a,1,3ds,3ds|none,0.25,10.5,NL,2021-02-04T16:31:29.5,s1
b,0,none,none|3ds|token,0.5,3,,2021-02-04T16:31:30,s2
c,1,token,token|none,0.75,0,NA,2021-02-04T16:31:31,s1
"""
MAP = {"reward": "approved", "action": "did", "actions": "allowed", "propensity": "chance", "features": "x_"}


def test_columns_of_a_foreign_csv_are_named(tmp_path):
    (tmp_path / "log.csv").write_text(CSV)
    rows, schema = read_decisions(tmp_path / "log.csv", columns={**MAP, "time": "when", "cluster": "shop"})
    assert schema.actions == ("3ds", "none", "token")
    assert (schema.numbers, schema.categories) == (("amount",), {"country": ("NA", "NL")})
    assert rows.choices.action.tolist() == [[0, 1, -1], [1, 0, 2], [2, 1, -1]]
    assert rows.column.tolist() == [0, 0, 0]
    assert rows.choices.number.tolist() == [[10.5], [3], [0]]
    assert rows.choices.category.tolist() == [[2], [0], [1]]
    assert rows.reward.tolist() == [1, 0, 1]
    assert rows.propensity.tolist() == [0.25, 0.5, 0.75]
    assert rows.time.tolist() == [1612456289.5, 1612456290, 1612456291]
    assert rows.cluster.tolist() == [0, 1, 0]
    assert rows.pmf is None


def test_features_may_be_listed_and_all_actions_eligible(tmp_path):
    (tmp_path / "log.csv").write_text(CSV)
    columns = {**MAP, "features": ["shop"]}
    del columns["actions"]
    rows, schema = read_decisions(tmp_path / "log.csv", columns=columns)
    assert schema.categories == {"shop": ("s1", "s2")}
    assert rows.choices.action.tolist() == [[0, 1, 2]] * 3
    assert rows.column.tolist() == [0, 1, 2]
    assert rows.time.tolist() == [0, 1, 2]


def test_a_csv_may_have_a_pmf_in_json(tmp_path):
    (tmp_path / "log.csv").write_text(
        'action,actions,pmf,reward\n2,"[2, 10]","[0.25, 0.75]",1\n10,"[9, 10, 2]","[0.5, 0.25, 0.25]",0\n'
    )
    rows, schema = read_decisions(tmp_path / "log.csv")
    assert schema.actions == ("2", "9", "10")
    assert rows.pmf.tolist() == [[0.25, 0.75, 0], [0.5, 0.25, 0.25]]
    assert rows.propensity.tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("b,0,", "b,,", "approved: expected a finite number, got nan in line 3"),
        (
            "b,0,none,",
            "b,0,cash,",
            "did: expected one of its eligible actions, each listed once, got cash in line 3",
        ),
        (
            "none|3ds|token",
            "3ds|token",
            "did: expected one of its eligible actions, each listed once, got none in line",
        ),
        ("none|3ds|token", "none|none", "each listed once, got none in line 3"),
        (",0.5,3,", ",0,3,", "chance: expected a probability above 0, at most 1, got 0.0 in line 3"),
        (",0.5,3,", ",,3,", "chance: expected a probability above 0, at most 1, got nan in line 3"),
        (",0.5,3,", ",0.5,,", "amount: expected a finite number, got nan in line 3"),
        (",0.5,3,", ",half,3,", "propensity: expected numbers, came string"),
        ("b,0,none", "b,0", "cannot be read as CSV: CSV parse error: Row #3: Expected 9 columns, got 8"),
    ],
)
def test_the_line_of_csv_at_fault_is_named(tmp_path, old, new, said):
    assert CSV.count(old) == 1
    (tmp_path / "log.csv").write_text(CSV.replace(old, new))
    with pytest.raises(ValueError) as fault:
        read_decisions(tmp_path / "log.csv", columns=MAP)
    assert said in str(fault.value)


def test_columns_that_are_missing_are_named(tmp_path):
    (tmp_path / "log.csv").write_text(CSV)
    with pytest.raises(ValueError, match="action: no such column; name it with columns="):
        read_decisions(tmp_path / "log.csv")
    with pytest.raises(ValueError, match="columns: reward: there is no column 'r'; there are who, approved"):
        read_decisions(tmp_path / "log.csv", columns={**MAP, "reward": "r"})
    with pytest.raises(ValueError, match="columns: 'rewards' is no field; there are action, reward"):
        read_decisions(tmp_path / "log.csv", columns={"rewards": "approved"})
    without = {name: of for name, of in MAP.items() if name != "propensity"}
    with pytest.raises(ValueError, match="propensity: no such column, nor pmf"):
        read_decisions(tmp_path / "log.csv", columns=without)
    schema = FeatureSchema(("3ds", "none", "token"), ("height",))
    with pytest.raises(ValueError, match="feature 'height': no such column; there are amount, country"):
        read_decisions(tmp_path / "log.csv", schema, columns=MAP)


def test_an_action_that_the_schema_lacks_is_named_with_its_line(tmp_path):
    (tmp_path / "log.csv").write_text(CSV)
    with pytest.raises(ValueError, match="expected one of 3ds, none, got token in line 4"):
        read_decisions(tmp_path / "log.csv", FeatureSchema(("3ds", "none")), columns={**MAP, "features": []})


# -- OBP ---------------------------------------------------------------------------------------------------


def feedback(**changes) -> dict:
    rng = np.random.default_rng(0)
    pi_b = rng.dirichlet(np.ones(3), 4)[:, :, None]
    action = np.array([0, 1, 2, 1])
    given = {
        "n_rounds": 4,
        "n_actions": 3,
        "context": rng.normal(size=(4, 2)),
        "action_context": rng.normal(size=(3, 2)),
        "action": action,
        "position": None,
        "reward": np.array([1, 0, 1, 0]),
        "pi_b": pi_b,
        "pscore": pi_b[np.arange(4), action, 0],
    }
    return {**given, **changes}


def test_obps_dictionary_is_read_with_every_action_eligible():
    given = feedback()
    rows, schema = from_obp(given)
    assert schema == FeatureSchema(("0", "1", "2"), ("x0", "x1"), {}, ("a0", "a1"))
    assert rows.choices.action.tolist() == [[0, 1, 2]] * 4
    np.testing.assert_array_equal(rows.pmf, given["pi_b"][:, :, 0])
    np.testing.assert_array_equal(rows.choices.number, given["context"].astype(np.float32))
    np.testing.assert_array_equal(rows.choices.feature[2], given["action_context"].astype(np.float32))
    np.testing.assert_array_equal(rows.propensity, given["pscore"])


def test_the_position_of_a_round_says_which_probabilities_were_its_own():
    first = feedback()
    both = np.concatenate([first["pi_b"], np.full((4, 3, 1), 1 / 3)], axis=2)
    position = np.array([0, 1, 1, 0])
    pscore = both[np.arange(4), first["action"], position]
    rows, _ = from_obp(feedback(pi_b=both, position=position, pscore=pscore))
    np.testing.assert_array_equal(rows.pmf[1], np.full(3, 1 / 3))
    np.testing.assert_array_equal(rows.pmf[3], first["pi_b"][3, :, 0])


def test_obps_dictionary_is_written_with_a_mask_for_its_fixed_actions():
    rows = logged(50)
    given = to_obp(rows, SCHEMA)
    assert (given["n_rounds"], given["n_actions"]) == (50, 5)
    assert given["pi_b"].shape == (50, 5, 1)
    np.testing.assert_allclose(given["pi_b"].sum(1), 1)
    assert (given["pi_b"][~given["action_set"]] == 0).all()
    np.testing.assert_array_equal(given["pi_b"][np.arange(50), given["action"], 0], given["pscore"])
    # Two numbers, and flags for 2 and 3 values.
    assert given["context"].shape == (50, 7)
    assert given["action_context"].shape == (5, 2)


def test_features_of_actions_that_vary_have_no_place_in_obp():
    rows = logged(50)
    feature = rows.choices.feature + np.arange(50, dtype=np.float32)[:, None, None]
    with pytest.raises(ValueError, match=r"action_context: the features of '.*' differ between rows"):
        to_obp(replace(rows, choices=replace(rows.choices, feature=feature)), SCHEMA)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pscore": None}, "pscore: missing; OBP's feedback has"),
        ({"context": np.zeros((3, 2))}, r"context: expected shape \(4, 2\), got \(3, 2\)"),
        ({"action": np.array([0, 1, 3, 1])}, "action: expected 0 … 2, got 3 in round 2"),
        (
            {"pscore": np.array([0.5, 0.0, 1, 1])},
            "pscore: expected a probability above 0, at most 1, got 0.0 in round 1",
        ),
        ({"pscore": np.full(4, 0.5)}, "pscore: 0.5 in round 0, where pi_b says"),
        ({"reward": np.array([0, np.nan, 1, 1])}, "reward: expected a finite number, got nan in round 1"),
        ({"pi_b": np.ones((4, 3))}, r"pi_b: expected shape \(4, 3, positions\), got \(4, 3\)"),
    ],
)
def test_what_is_wrong_with_obps_dictionary_is_said(changes, said):
    with pytest.raises(ValueError, match=said):
        from_obp(feedback(**changes))


def test_an_archive_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "log.npz", context=np.array([{}], object))
    with pytest.raises(ValueError, match=r"log\.npz is no archive of plain numpy arrays"):
        read_decisions(tmp_path / "log.npz")
