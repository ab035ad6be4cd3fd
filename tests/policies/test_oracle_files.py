"""Every oracle: what it predicts before and after learning, what it refuses, and that files hold all of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from oracle_logs import NAMES, SCHEMA, SMALL, draw_choices, draw_log

from peira.experience.decisions import FeatureSchema
from peira.policies.oracles.files import check_schema, load_oracle, save_oracle
from peira.policies.oracles.make import ORACLES, make_oracle
from peira.policies.oracles.protocol import RewardOracle


def make(name, schema=SCHEMA, seed=0, **settings):
    return make_oracle(name, schema, seed, **SMALL.get(name, {}), **settings)


def test_every_oracle_is_tested():
    assert set(NAMES) == set(ORACLES)


@pytest.mark.parametrize("name", NAMES)
def test_before_the_first_row_every_action_is_as_good(name):
    asked = draw_choices(50)
    oracle = make(name)
    assert isinstance(oracle, RewardOracle) and not oracle.trained
    expected = np.where(asked.eligible, 0.5, np.nan)
    assert np.array_equal(oracle.predict(asked), expected, equal_nan=True)
    rows = draw_log(60)
    assert np.array_equal(oracle.fit(rows, np.zeros(60)).predict(asked), expected, equal_nan=True)
    assert not np.array_equal(oracle.fit(rows).predict(asked), expected, equal_nan=True)
    assert np.array_equal(oracle.fit(rows.take(slice(0, 0))).predict(asked), expected, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 3, 400])
def test_predictions_are_probabilities_of_the_eligible_and_nothing_else(name, rows):
    asked = draw_choices(300, 4)
    predicted = make(name).fit(draw_log(rows)).predict(asked)
    assert predicted.dtype == np.float64 and predicted.shape == asked.action.shape
    assert np.array_equal(np.isnan(predicted), ~asked.eligible)
    assert ((predicted >= 0) & (predicted <= 1))[asked.eligible].all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "schema",
    [
        FeatureSchema(actions=("a", "b", "c")),
        FeatureSchema(actions=("a", "b"), categories={"shop": ("x",)}),
        FeatureSchema(actions=("a", "b"), numbers=("x",), action_numbers=("price",)),
    ],
)
def test_features_of_one_kind_or_none_suffice(name, schema):
    rows = draw_log(300, schema=schema)
    rows = replace(rows, reward=(rows.action == 1).astype(float))
    steps = {"epochs": 30, "hidden": 16} if name in ("mlp", "ensemble") else {}
    predicted = make_oracle(name, schema, **steps).fit(rows).predict(rows.choices)
    of_one, of_zero = (predicted[rows.choices.action == action].mean() for action in (1, 0))
    assert of_one > of_zero + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_columns_in_which_actions_stand_do_not_matter(name):
    rows, asked = draw_log(400), draw_choices(100, 4)
    oracle = make(name).fit(rows)
    turned = replace(asked, action=asked.action[:, ::-1].copy(), feature=asked.feature[:, ::-1].copy())
    np.testing.assert_allclose(oracle.predict(turned)[:, ::-1], oracle.predict(asked), rtol=1e-5)
    one = oracle.predict(asked.take(slice(5, 6)))
    np.testing.assert_allclose(one, oracle.predict(asked)[5:6], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [None, "isotonic", "platt"])
def test_from_its_files_an_oracle_predicts_the_same_bits(name, method, tmp_path):
    rows, asked = draw_log(400), draw_choices(300, 4)
    oracle = make(name, seed=3, negative_rate=0.5).fit(rows, np.linspace(0.5, 2, 400))
    if method is not None:
        oracle.calibrate(draw_log(300, 8), method)
    oracle.save(tmp_path / "oracle")
    again = load_oracle(tmp_path / "oracle", SCHEMA)
    assert type(again) is type(oracle) and again.schema == SCHEMA and again.settings() == oracle.settings()
    assert np.array_equal(again.predict(asked), oracle.predict(asked), equal_nan=True)
    if hasattr(oracle, "predict_members"):
        assert np.array_equal(again.predict_members(asked), oracle.predict_members(asked), equal_nan=True)
    # What is made of the same rows and seed is the same as well.
    assert np.array_equal(again.fit(rows).predict(asked), oracle.fit(rows).predict(asked), equal_nan=True)
    # Nothing that runs when it is read.
    suffixes = {path.suffix for path in (tmp_path / "oracle").iterdir()}
    assert suffixes <= {".json", ".safetensors", ".txt"}


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_without_rows_comes_back_too(name, tmp_path):
    asked = draw_choices(5)
    save_oracle(make(name), tmp_path)
    again = load_oracle(tmp_path)
    assert np.array_equal(again.predict(asked), np.where(asked.eligible, 0.5, np.nan), equal_nan=True)


@pytest.mark.parametrize("name", ["ridge", "logistic"])
def test_learning_goes_on_from_files(name, tmp_path):
    rows = draw_log(400)
    oracle = make(name, forgetting=0.8).update(rows.take(slice(0, 250)))
    oracle.save(tmp_path)
    rest = rows.take(slice(250, None))
    expected = oracle.update(rest).predict(rows.choices)
    assert np.array_equal(load_oracle(tmp_path).update(rest).predict(rows.choices), expected, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_stand_for_several_count_so_often(name):
    rows = draw_log(400)
    heavy = replace(rows, weight=np.linspace(0.1, 3, 400))
    asked = draw_choices(100, 4)
    own = make(name).fit(heavy).predict(asked)
    assert np.array_equal(own, make(name).fit(rows, heavy.weight).predict(asked), equal_nan=True)
    assert not np.allclose(own, make(name).fit(rows).predict(asked), equal_nan=True)


def test_another_schema_is_refused_with_both_hashes(tmp_path):
    make("ridge").fit(draw_log(50)).save(tmp_path)
    for other, field in (
        (replace(SCHEMA, actions=("none", "token", "exemption", "all")), "actions"),
        (replace(SCHEMA, numbers=("age", "amount")), "numbers"),
        (replace(SCHEMA, categories=dict(reversed(SCHEMA.categories.items()))), "categories"),
        (replace(SCHEMA, action_numbers=("is_token", "fee")), "action_numbers"),
    ):
        expected = rf"made for {SCHEMA.hash}, but the choices are of {other.hash} \(their {field} differ\)"
        with pytest.raises(ValueError, match=expected):
            load_oracle(tmp_path, other)
    check_schema(SCHEMA, FeatureSchema.from_json(SCHEMA.to_json()))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"number": np.zeros((5, 3), np.float32)}, f"3 numbers, but the oracle's schema {SCHEMA.hash} has 2"),
        ({"category": np.zeros((5, 1), np.int32)}, "1 categories, but the oracle's schema"),
        ({"feature": np.zeros((5, 4, 1), np.float32)}, "1 action_numbers, but the oracle's schema"),
        ({"action": np.full((5, 4), 4, np.int32)}, "action code 4, but the oracle's schema"),
        ({"category": np.full((5, 2), 3, np.int32)}, "code 3 of category 'card', but the oracle's schema"),
        ({"category": np.full((5, 2), -1, np.int32)}, "code -1 of category 'issuer'"),
        (
            {"number": np.full((5, 2), np.nan, np.float32)},
            "finite numbers in `number`, got .nan, nan. in row 0",
        ),
        ({"feature": np.full((5, 4, 2), np.inf, np.float32)}, "finite numbers in `feature`"),
    ],
)
def test_choices_of_another_schema_are_refused(change, message):
    oracle, choices = make("ridge").fit(draw_log(50)), replace(draw_choices(5), **change)
    with pytest.raises(ValueError, match=message):
        oracle.predict(choices)
    rows = draw_log(5)
    with pytest.raises(ValueError, match=message):
        oracle.fit(replace(rows, choices=choices))


def test_large_numbers_are_finite():
    choices = draw_choices(5)
    large = replace(choices, number=np.full((5, 2), 3e38, np.float32))
    assert np.isfinite(make("lightgbm").fit(draw_log(100)).predict(large)[large.eligible]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "reward, weights, message",
    [
        (
            np.array([0.0, 1.5, 1.0]),
            None,
            r"reward: expected numbers in \[0, 1\], got 1.5 in row 1; scale them",
        ),
        (np.array([0.0, np.nan, 1.0]), None, r"reward: expected numbers in \[0, 1\], got nan in row 1"),
        (
            np.ones(3),
            np.array([1.0, 1.0, -1.0]),
            "weights: expected finite numbers of at least 0, got -1 in row 2",
        ),
        (np.ones(3), np.array([1.0, np.inf, 1.0]), "weights: expected finite numbers of at least 0, got inf"),
        (np.ones(3), np.ones(2), "weights: expected one a row, got 2 for 3 rows"),
    ],
)
def test_bad_rows_are_refused_and_what_was_learned_stays(name, reward, weights, message):
    oracle, asked = make(name).fit(draw_log(100)), draw_choices(10)
    before = oracle.predict(asked)
    with pytest.raises(ValueError, match=message):
        oracle.fit(replace(draw_log(3), reward=reward), weights)
    assert np.array_equal(oracle.predict(asked), before, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_refused(name, tmp_path):
    make(name).fit(draw_log(100)).save(tmp_path)
    state = tmp_path / make(name).state_file
    content = state.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        content[:-60] + bytes([content[-60] ^ 1]) + content[-59:],
        b"",
    ):
        state.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged \(SHA-256"):
            load_oracle(tmp_path)
    state.unlink()
    with pytest.raises(ValueError, match=r"is damaged \(SHA-256 no file"):
        load_oracle(tmp_path)


def test_a_damaged_description_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no oracle.json"):
        load_oracle(tmp_path)
    make("ridge").fit(draw_log(100)).save(tmp_path)
    description = tmp_path / "oracle.json"
    whole = description.read_text()
    for text in (whole[:100], "[]", "{}", "\x00"):
        description.write_text(text)
        with pytest.raises(ValueError, match=r"oracle.json is damaged"):
            load_oracle(tmp_path)
    about = json.loads(whole)
    description.write_text(json.dumps(about | {"schema": about["schema"].replace("issuer", "acquirer")}))
    with pytest.raises(ValueError, match=rf"has hash .*, but {SCHEMA.hash} was recorded"):
        load_oracle(tmp_path)
    description.write_text(json.dumps(about | {"oracle": "oak"}))
    with pytest.raises(ValueError, match="oracle: 'oak' is not known; choose from ridge, logistic"):
        load_oracle(tmp_path)


def test_unknown_names_and_settings_are_named():
    with pytest.raises(ValueError, match="oracle: 'tree' is not known; choose from ridge"):
        make_oracle("tree", SCHEMA)
    with pytest.raises(ValueError, match="oracle: ridge has no setting 'trees'; it has cross_ridge"):
        make_oracle("ridge", SCHEMA, trees=3)
    with pytest.raises(ValueError, match="rate_negative: expected a positive rate or weight, got 0"):
        make_oracle("mlp", SCHEMA, negative_rate=0.0)
    with pytest.raises(
        ValueError, match="crosses: expected none, features, pairs, disjoint or None, got 'all'"
    ):
        make_oracle("ridge", SCHEMA, crosses="all")


def test_without_lightgbm_the_error_says_what_to_install(monkeypatch):
    import importlib

    def missing(name):
        raise ModuleNotFoundError("No module named 'lightgbm'", name="lightgbm")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"lightgbm needs lightgbm, .* pip install 'peira\[decisions\]'"):
        make_oracle("lightgbm", SCHEMA)
