"""A deployed policy: γ fixed from labelled rows or a budget, the pmf that is drawn from, and its folder."""

import json
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions
from peira.learners import decision_policy, explorers
from peira.learners.decision_policy import DecisionPolicy, ExplorerConfig, Kind, load_policy
from peira.learners.explorer_budget import explore_mass
from peira.policies.oracles.make import make_oracle

KINDS = get_args(Kind)
SCHEMA = FeatureSchema(actions=tuple("abcdef"), numbers=("amount",))
SCORE = np.array([0.9, 0.88, 0.85, 0.8, 0.8, 0.5])


def choices(rows=400, seed=0):
    generator = np.random.default_rng(seed)
    order = generator.random((rows, 6)).argsort(1).astype(np.int32)
    action = np.where(np.arange(6) < generator.integers(1, 7, (rows, 1)), order, -1).astype(np.int32)
    return Choices(
        generator.standard_normal((rows, 1)).astype(np.float32),
        np.empty((rows, 0), np.int32),
        action,
        np.empty((rows, 6, 0), np.float32),
    )


class Table:
    """An oracle that knows the mean reward of every action, whatever the context."""

    def __init__(self, score=SCORE):
        self.schema, self.score = SCHEMA, score

    def fit(self, rows, weights=None):
        return self

    def calibrate(self, rows, method):
        return self

    def save(self, folder):
        raise NotImplementedError

    def predict(self, choices):
        return np.where(choices.eligible, self.score[choices.action], np.nan)


class Members(Table):
    def predict_members(self, choices):
        return np.stack(
            [self.predict(choices) + (SCORE.mean() - SCORE)[choices.action] * by for by in (0, 0.9, 1.1)]
        )


def deployed(kind="squarecb", oracle=None, labelled=100, **settings):
    return DecisionPolicy.deploy(
        oracle or Members(), ExplorerConfig(kind, **settings), choices(seed=1), labelled, id="p", version=3
    )


def logged(policy, rows=3000, seed=0):
    """Rows that the policy decided, with Bernoulli rewards of the table."""
    generator = np.random.default_rng(seed)
    asked = choices(rows, seed)
    decided = policy.decide(asked, generator)
    rate = SCORE[asked.action[np.arange(rows), decided.column]]
    return LoggedDecisions(
        choices=asked,
        column=decided.column,
        propensity=decided.propensity,
        reward=(generator.random(rows) < rate).astype(float),
        pmf=decided.pmf,
        generation=np.full(rows, policy.version),
        time=np.arange(rows, dtype=float),
        uniform=decided.uniform_slice,
        cluster=np.arange(rows),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_model_every_explorer_is_uniform(kind):
    policy = DecisionPolicy.deploy(None, ExplorerConfig(kind), choices(), 0, "p", 0)
    np.testing.assert_array_equal(policy.pmf(choices()), explorers.uniform(choices().eligible))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("regcb", "squarecb-elim")])
def test_a_model_that_learned_nothing_is_uniform(kind):
    class Fresh(Members):
        def predict_members(self, choices):
            return np.stack([self.predict(choices)] * 3)

    fresh = Fresh(np.full(6, 0.5))
    policy = DecisionPolicy.deploy(fresh, ExplorerConfig(kind), choices(), 0, "p", 0)
    np.testing.assert_allclose(policy.pmf(choices()), explorers.uniform(choices().eligible), rtol=1e-14)


def test_every_kind_is_its_explorer():
    asked, oracle = choices(), Members()
    eligible, scores, members = asked.eligible, oracle.predict(asked), oracle.predict_members(asked)
    low, high = explorers.member_intervals(members, 0.7)
    falcon = explorers.falcon_gamma(choices(seed=1).count.mean(), 64, class_size=1000.0)
    expected = {
        ("uniform",): explorers.uniform(eligible),
        ("greedy",): explorers.greedy(scores, eligible),
        ("epsilon", "epsilon", 0.2): explorers.epsilon_greedy(scores, eligible, 0.2),
        ("softmax", "temperature", 0.1): explorers.softmax(scores, eligible, 0.1),
        ("squarecb", "gamma", 70.0): explorers.squarecb(scores, eligible, 70.0),
        ("squarecb",): explorers.squarecb(scores, eligible, 100.0),
        ("fastcb", "gamma_scale", 2.0): explorers.fastcb(scores, eligible, 20.0),
        ("regcb", "coverage", 0.7): explorers.regcb_from_intervals(low, high, eligible, False),
        ("squarecb-elim", "coverage", 0.7): explorers.squarecb_elim(scores, low, high, eligible, 100.0),
        ("thompson",): explorers.thompson(members, eligible),
        ("falcon",): explorers.squarecb(scores, eligible, falcon),
    }
    assert {kind for kind, *_ in expected} == set(KINDS)
    for (kind, *setting), pmf in expected.items():
        policy = deployed(kind, **dict([setting] if setting else []))
        np.testing.assert_array_equal(policy.pmf(asked), pmf, err_msg=kind)
    optimistic = explorers.regcb_from_intervals(*explorers.member_intervals(members, 0.9), eligible, True)
    np.testing.assert_array_equal(deployed("regcb", optimistic=True).pmf(asked), optimistic)


@pytest.mark.parametrize(
    ("mode", "how"), [("project", explorers.project_floor), ("mix", explorers.mix_floor)]
)
def test_the_floor_comes_after_the_explorer(mode, how):
    asked = choices()
    plain, floored = deployed(gamma=1e4), deployed(gamma=1e4, floor=0.05, floor_mode=mode)
    np.testing.assert_array_equal(floored.pmf(asked), how(plain.pmf(asked), asked.eligible, 0.05))


def test_what_is_logged_is_what_was_drawn_from():
    asked = choices(60_000)
    policy = deployed(explore_mass=0.2, floor=0.05, uniform_slice=0.1)
    decided = policy.decide(asked, np.random.default_rng(0))
    rows = np.arange(len(asked))
    np.testing.assert_array_equal(decided.propensity, decided.pmf[rows, decided.column])
    expected = np.where(decided.uniform_slice[:, None], explorers.uniform(asked.eligible), policy.pmf(asked))
    np.testing.assert_array_equal(decided.pmf, expected)
    assert abs(decided.uniform_slice.mean() - 0.1) < 4 * math.sqrt(0.1 * 0.9 / len(asked))
    # With full support the mean of 1/p is the mean number of eligible actions.
    inverse = 1 / decided.propensity
    assert abs(inverse.mean() - asked.count.mean()) < 4 * inverse.std() / math.sqrt(len(asked))
    # The probabilities before the floor and the slice fail that.
    before = (
        1 / replace(policy, explorer=replace(policy.explorer, floor=0.0)).pmf(asked)[rows, decided.column]
    )
    assert abs(before.mean() - asked.count.mean()) > 8 * before.std() / math.sqrt(len(asked))
    assert decided.members is None


def test_the_same_generator_makes_the_same_decisions_and_the_slice_is_every_policy_s():
    first, again = (deployed().decide(choices(), np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.column, again.column)
    other = deployed("greedy").decide(choices(), np.random.default_rng(5))
    np.testing.assert_array_equal(first.uniform_slice, other.uniform_slice)
    slice_ = first.uniform_slice
    assert slice_.any()
    np.testing.assert_array_equal(first.column[slice_], other.column[slice_])


def test_votes_are_marked_as_an_estimate():
    assert deployed("thompson").decide(choices(), np.random.default_rng(0)).members == 3


@pytest.mark.parametrize("name", ["ridge", "logistic", "lightgbm", "mlp"])
def test_a_deployed_policy_stays_as_it_is_when_its_oracle_is_fitted_again(name):
    if name == "lightgbm":
        pytest.importorskip("lightgbm")
    rows = logged(DecisionPolicy(None, ExplorerConfig(), id="p", version=0))
    oracle = make_oracle(name, SCHEMA).fit(rows.take(slice(0, 1000)))
    policy = DecisionPolicy.deploy(oracle, ExplorerConfig(gamma=100.0), rows.choices, 1000, "p", 0)
    before = policy.pmf(choices())
    oracle.fit(rows)
    np.testing.assert_array_equal(policy.pmf(choices()), before)
    later = DecisionPolicy.deploy(oracle, ExplorerConfig(gamma=100.0), rows.choices, 3000, "p", 1)
    assert abs(later.pmf(choices()) - before).max() > 0.01


def test_gamma_counts_labelled_rows_also_after_a_reload(tmp_path):
    oracle = make_oracle("ridge", SCHEMA)
    config = ExplorerConfig("squarecb")
    policy = DecisionPolicy.deploy(oracle, config, choices(), 400, "p", 0)
    assert policy.gamma == 200
    # Decisions make no difference.
    policy.decide(choices(), np.random.default_rng(0))
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.labelled == 400
    later = DecisionPolicy.deploy(oracle, config, choices(), loaded.labelled + 500, "p", 1)
    assert later.gamma == 300


def test_falcon_s_gamma_changes_at_the_ends_of_its_epochs_only():
    gammas = [deployed("falcon", labelled=labelled).gamma for labelled in (0, 1, 2, 3, 64, 127, 128)]
    assert gammas[:2] == [0, 0] and gammas[2] == gammas[3] < gammas[4] == gammas[5] < gammas[6]
    known = [deployed("falcon", labelled=labelled, horizon=10_000).gamma for labelled in (199, 200, 1999)]
    assert known[0] == 0 < known[1] == known[2]
    assert deployed("falcon", falcon_scale=1 / 3).gamma == pytest.approx(10 * deployed("falcon").gamma)


def test_a_budget_is_met_on_the_window_floors_included():
    window = choices(seed=1)
    policy = deployed("squarecb", Table(np.linspace(0.9, 0.8, 6)), explore_mass=0.1, floor=0.02)
    scores = policy.oracle.predict(window)
    assert explore_mass(policy.pmf(window), scores, window.eligible) == pytest.approx(0.1, rel=1e-5)
    assert policy.reached == pytest.approx(0.1, rel=1e-5)
    assert deployed("fastcb", explore_cost=0.001).reached == pytest.approx(0.001, rel=1e-5)
    assert deployed("squarecb-elim", explore_mass=0.1).reached == pytest.approx(0.1, rel=1e-5)


def test_a_budget_out_of_reach_gives_the_nearest_and_says_so():
    """Levels of a tree: two actions share the best score, half of their mass cannot be taken away."""
    policy = deployed("squarecb", Table(np.array([0.9, 0.9, 0.9, 0.5, 0.5, 0.5])), explore_mass=0.01)
    scores, window = policy.oracle.predict(choices(seed=1)), choices(seed=1)
    least = explore_mass(explorers.squarecb(scores, window.eligible, math.inf), scores, window.eligible)
    assert least > 0.1
    assert policy.reached == pytest.approx(1.01 * least, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ucb"}, r"kind is one of uniform, greedy, .*, got 'ucb'"),
        ({"floor_mode": "clip"}, "floor_mode is one of project, mix, got 'clip'"),
        ({"gamma": 5.0, "explore_mass": 0.1}, "γ follows from gamma and from explore_mass; give one of them"),
        ({"explore_cost": 0.1, "explore_mass": 0.1}, "γ follows from explore_mass and from explore_cost"),
        ({"gamma": 5.0, "gamma_scale": 3.0}, "γ follows from gamma and from gamma_scale"),
        (
            {"kind": "epsilon", "gamma": 5.0},
            "gamma=5.0 means nothing to epsilon; leave it out or take squarecb or",
        ),
        ({"kind": "falcon", "explore_mass": 0.1}, "explore_mass=0.1 means nothing to falcon"),
        ({"epsilon": 0.1}, "epsilon=0.1 means nothing to squarecb; leave it out or take epsilon"),
        ({"kind": "epsilon", "epsilon": 1.5}, r"epsilon: expected a share in \[0, 1\], got 1.5"),
        ({"explore_mass": 1.0}, r"explore_mass: expected a share in \(0, 1\), got 1"),
        ({"explore_cost": 0.0}, "explore_cost: expected a finite number above 0, got 0"),
        ({"gamma": -1.0}, "gamma: expected at least 0, got -1"),
        ({"gamma": math.nan}, "gamma: expected at least 0, got nan"),
        ({"kind": "softmax", "temperature": 0.0}, "temperature: expected a finite number above 0, got 0"),
        ({"floor": 2.0}, r"floor: expected a share in \[0, 1\], got 2"),
        ({"uniform_slice": -0.1}, "uniform_slice: expected a share"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"explorer: {message}"):
        ExplorerConfig(**settings)


@pytest.mark.parametrize("kind", ["thompson", "regcb", "squarecb-elim"])
def test_explorers_of_members_refuse_a_single_model(kind):
    with pytest.raises(
        ValueError, match=f"{kind} needs an oracle of several members, got Table; take the oracle"
    ):
        deployed(kind, Table())


def test_a_policy_needs_its_gamma_and_no_other():
    with pytest.raises(
        ValueError, match=r"gamma: squarecb needs a γ; make the policy with DecisionPolicy.deploy"
    ):
        DecisionPolicy(Table(), ExplorerConfig(), id="p", version=0)
    with pytest.raises(ValueError, match="gamma: greedy has no γ, got 3"):
        DecisionPolicy(Table(), ExplorerConfig("greedy"), id="p", version=0, gamma=3.0)
    with pytest.raises(ValueError, match="gamma: expected at least 0, got -1"):
        DecisionPolicy(Table(), ExplorerConfig(), id="p", version=0, gamma=-1.0)
    with pytest.raises(ValueError, match="labelled: expected at least 0 rows, got -1"):
        deployed(labelled=-1)
    for explorer in (ExplorerConfig(explore_mass=0.1), ExplorerConfig("falcon")):
        with pytest.raises(ValueError, match="window: expected the decisions to choose γ on, got none"):
            DecisionPolicy.deploy(Table(), explorer, choices(0), 5, "p", 0)
    assert DecisionPolicy.deploy(Table(), ExplorerConfig(), choices(0), 4, "p", 0).gamma == 20


def test_configurations_have_a_hash_each():
    assert ExplorerConfig().hash == ExplorerConfig("squarecb").hash != ExplorerConfig(floor=0.01).hash
    assert len(ExplorerConfig().hash) == 16


@pytest.fixture
def saved(tmp_path):
    """A policy on a fitted ridge, and its folder."""
    rows = logged(DecisionPolicy(None, ExplorerConfig(), id="p", version=0))
    oracle = make_oracle("ridge", SCHEMA).fit(rows)
    policy = DecisionPolicy.deploy(
        oracle, ExplorerConfig(explore_mass=0.1, floor=0.02), rows.choices, len(rows), "pay", 7
    )
    policy.save(tmp_path / "policy")
    return policy, tmp_path / "policy"


def test_a_policy_comes_back_as_it_was(saved):
    policy, folder = saved
    loaded = load_policy(folder)
    np.testing.assert_array_equal(loaded.pmf(choices()), policy.pmf(choices()))
    for name in ("explorer", "id", "version", "gamma", "labelled", "reached"):
        assert getattr(loaded, name) == getattr(policy, name)
    about = json.loads((folder / "policy.json").read_text())
    assert about["schema"] == SCHEMA.hash and about["config_hash"] == policy.explorer.hash
    assert {path.suffix for path in folder.rglob("*.*")} <= {".json", ".safetensors", ".txt"}
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]


def test_a_policy_without_a_model_comes_back_too(tmp_path):
    policy = DecisionPolicy(None, ExplorerConfig("thompson", uniform_slice=0.5), id="p", version=0)
    policy.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy") == policy


@pytest.mark.parametrize("kind", ["thompson", "regcb", "squarecb-elim"])
def test_explorers_of_members_on_a_real_ensemble(kind, tmp_path):
    rows = logged(DecisionPolicy(None, ExplorerConfig(), id="p", version=0), rows=300)
    oracle = make_oracle("ensemble", SCHEMA, members=3)
    fresh = DecisionPolicy.deploy(oracle, ExplorerConfig(kind), rows.choices, 0, "p", 0)
    np.testing.assert_allclose(fresh.pmf(rows.choices), explorers.uniform(rows.choices.eligible), rtol=1e-14)
    policy = DecisionPolicy.deploy(oracle.fit(rows), ExplorerConfig(kind), rows.choices, len(rows), "p", 1)
    assert abs(policy.pmf(rows.choices) - fresh.pmf(rows.choices)).max() > 0.3
    policy.save(tmp_path / "policy")
    decided, again = (
        of.decide(choices(), np.random.default_rng(0)) for of in (policy, load_policy(tmp_path / "policy"))
    )
    np.testing.assert_array_equal(again.pmf, decided.pmf)
    assert again.members == decided.members == (3 if kind == "thompson" else None)


def test_saving_again_replaces_the_folder(saved):
    policy, folder = saved
    (folder.parent / ".policy.part").mkdir()
    (folder.parent / ".policy.part" / "left").write_text("by a process that was killed")
    replace(policy, version=8).save(folder)
    assert load_policy(folder).version == 8
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]


def test_a_disk_that_fills_up_leaves_the_older_policy(saved, monkeypatch):
    policy, folder = saved

    def full(oracle, to):
        to.mkdir()
        (to / "oracle.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decision_policy, "save_oracle", full)
    with pytest.raises(OSError, match="No space left"):
        replace(policy, version=8).save(folder)
    assert load_policy(folder).version == 7
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]


def rewritten(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def flipped(path):
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)


DAMAGE = {
    "no folder": lambda folder: (folder / "policy.json").unlink(),
    "half a policy.json": lambda folder: (folder / "policy.json").write_bytes(
        (folder / "policy.json").read_bytes()[:200]
    ),
    "not text": lambda folder: (folder / "policy.json").write_bytes(b"\xff\xfe\x00"),
    "not an object": lambda folder: (folder / "policy.json").write_text("[]"),
    "another object": lambda folder: (folder / "policy.json").write_text("{}"),
    "γ changed": lambda folder: rewritten(folder / "policy.json", '"labelled": 3000', '"labelled": 3001'),
    "no oracle": lambda folder: (folder / "oracle" / "oracle.json").unlink(),
    "oracle changed": lambda folder: flipped(
        max((folder / "oracle").iterdir(), key=lambda path: path.stat().st_size)
    ),
    "a file too many": lambda folder: (folder / "oracle" / "other.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(saved, damage):
    _, folder = saved
    DAMAGE[damage](folder)
    with pytest.raises(ValueError, match="policy: ") as refused:
        load_policy(folder)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
