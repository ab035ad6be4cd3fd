"""What is logged is what was drawn from, and anyone can draw it again from the log."""

import json

import numpy as np
import pytest

from peira.experience.decision_encoding import encode
from peira.experience.decision_records import replayed_choice
from peira.experience.decisions import FeatureSchema
from peira.learners.decision_policy import DecisionPolicy, ExplorerConfig
from peira.serving.deployment import decide, install, policy_in_force, read_policy
from peira.serving.matured import joined
from peira.serving.options import Options
from peira.serving.requests import DecideRequest, RequestError

SCHEMA = FeatureSchema(actions=tuple("abcde"), numbers=("x",), action_numbers=("price",))


def request(event_id: str, actions: str = "abc", **changed) -> DecideRequest:
    fields = {
        "event_id": event_id,
        "named": True,
        "context": {"x": 1},
        "actions": tuple(actions),
        "features": tuple({"price": place} for place in range(len(actions))),
        "override": None,
        "parent": None,
        "attempt": 1,
    }
    return DecideRequest(**{**fields, **changed})


def trained(folder, uniform_slice: float = 0.1, version: int = 1) -> DecisionPolicy:
    """SquareCB on a ridge regression that has seen the price decide."""
    from peira.experience.decisions import LoggedDecisions
    from peira.policies.oracles.make import make_oracle

    rng = np.random.default_rng(0)
    choices = SCHEMA.encode(
        [{"x": float(of)} for of in rng.normal(size=400)],
        [list("abcde")] * 400,
        [[{"price": float(of)} for of in row] for row in rng.random((400, 5))],
    )
    column = rng.integers(5, size=400)
    rows = LoggedDecisions(
        choices=choices,
        column=column,
        propensity=np.full(400, 0.2),
        reward=(rng.random(400) < choices.feature[np.arange(400), column, 0]).astype(float),
        pmf=np.full((400, 5), 0.2),
        generation=np.zeros(400, np.int64),
        time=np.arange(400.0),
        uniform=np.ones(400, bool),
        cluster=np.arange(400),
    )
    explorer = ExplorerConfig(kind="squarecb", gamma=20.0, floor=0.05, uniform_slice=uniform_slice)
    policy = DecisionPolicy.deploy(
        make_oracle("ridge", SCHEMA, 0).fit(rows), explorer, choices, 400, "squarecb", version
    )
    policy.save(folder)
    return policy


def test_propensities_pass_the_audit_and_every_choice_is_drawn_again_from_the_log(tmp_path):
    """Mechanism test 4 of the specification, on what the service logs: eligible sets of 2 to 5 actions."""
    trained(tmp_path / "policy")
    deployed = read_policy(tmp_path / "policy", SCHEMA)
    rng = np.random.default_rng(1)
    sets = ["".join(rng.permutation(list("abcde"))[: rng.integers(2, 6)]) for _ in range(6000)]
    asked = [request(f"e{number}", actions) for number, actions in enumerate(sets)]
    rows = [
        row
        for start in range(0, 6000, 100)
        for row in decide(deployed, SCHEMA, asked[start : start + 100], 5, 1.0)
    ]
    found = joined(rows, [], Options())
    log = encode(found, SCHEMA)
    assert (replayed_choice(found.rows) == log.column).all()
    inverse = 1 / log.propensity
    assert abs(inverse.mean() - log.choices.count.mean()) < 4 * inverse.std() / np.sqrt(6000)
    for code in range(5):
        weighted = np.where(log.action == code, inverse, 0.0)
        eligible = (log.choices.action == code).any(1)
        assert abs(weighted.mean() - eligible.mean()) < 4 * weighted.std() / np.sqrt(6000)
    assert abs(log.uniform.mean() - 0.1) < 4 * 0.3 / np.sqrt(6000)
    assert np.allclose(log.propensity[log.uniform], 1 / log.choices.count[log.uniform])
    other = log.pmf[~log.uniform]
    expected = deployed.policy.pmf(log.choices.take(~log.uniform))
    np.testing.assert_allclose(other, expected, rtol=0, atol=1e-12)
    assert (np.abs(other - 1 / log.choices.count[~log.uniform, None]) > 0.05).any()


def test_a_batch_decides_as_its_requests_would_one_by_one(tmp_path):
    trained(tmp_path / "policy")
    deployed = read_policy(tmp_path / "policy", SCHEMA)
    asked = [request(f"e{number}", "abcde"[: 1 + number % 5]) for number in range(40)]
    together = decide(deployed, SCHEMA, asked, 5, 1.0)
    alone = [decide(deployed, SCHEMA, [one], 5, 1.0)[0] for one in asked]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(json.loads(one.pmf), json.loads(other.pmf), rtol=0, atol=1e-12)
        assert one._replace(pmf="", propensity=0) == other._replace(pmf="", propensity=0)
        assert json.loads(one.pmf)[one.chosen_index] == one.propensity


def test_a_request_that_cannot_be_encoded_leaves_the_others_alone(tmp_path):
    deployed = policy_in_force(tmp_path, SCHEMA)
    bad = request("bad", features=None)
    first, second, third = decide(deployed, SCHEMA, [request("e1"), bad, request("e2", "de")], 5, 1.0)
    assert isinstance(second, RequestError) and second.status == 422
    assert str(second) == "action_features: expected those of 3 actions, got 0"
    assert (first.event_id, third.event_id) == ("e1", "e2") and third.action in "de"
    [only] = decide(deployed, SCHEMA, [bad], 5, 1.0)
    assert isinstance(only, RequestError)


def test_a_rule_of_the_caller_has_probability_one_and_is_not_learned_from(tmp_path):
    deployed = policy_in_force(tmp_path, SCHEMA)
    rows = decide(deployed, SCHEMA, [request(f"e{n}", override="b") for n in range(20)], 5, 1.0)
    assert {(row.action, row.propensity, row.pmf, row.override) for row in rows} == {
        ("b", 1.0, "[0.0,1.0,0.0]", 1)
    }
    found = joined(rows, [], Options())
    assert found.rows.num_rows == 0 and found.set_aside.num_rows == 20


def test_a_folder_without_policy_decides_uniformly(tmp_path):
    deployed = policy_in_force(tmp_path, SCHEMA)
    assert (deployed.policy.id, deployed.policy.version) == ("uniform", 0)
    assert decide(deployed, SCHEMA, [request("e")], 5, 1.0)[0].propensity == pytest.approx(1 / 3)


def test_a_damaged_policy_is_named(tmp_path):
    trained(tmp_path / "policy")
    text = (tmp_path / "policy" / "policy.json").read_text()
    (tmp_path / "policy" / "policy.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"policy: .*policy\.json cannot be read"):
        policy_in_force(tmp_path, SCHEMA)


def test_a_policy_of_another_schema_is_refused(tmp_path):
    trained(tmp_path / "policy")
    other = FeatureSchema(actions=tuple("abcde"), numbers=("y",), action_numbers=("price",))
    with pytest.raises(ValueError, match=rf"made for schema {SCHEMA.hash}, schema.json has {other.hash}"):
        policy_in_force(tmp_path, other)


def test_installing_keeps_what_was_in_force_and_survives_a_stop_in_between(tmp_path, monkeypatch):
    trained(tmp_path / "policy", version=1)
    for version in (2, 3, 4):
        trained(tmp_path / "candidates" / f"v{version}", version=version)
    install(tmp_path, tmp_path / "candidates" / "v2")
    install(tmp_path, tmp_path / "candidates" / "v3")
    assert policy_in_force(tmp_path, SCHEMA).policy.version == 3
    kept = sorted(path.name for path in (tmp_path / "policies").glob("0*"))
    assert kept == ["000001-policy", "000002-v2", "000003-v3"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("peira.serving.deployment._point", stop)
        install(tmp_path, tmp_path / "candidates" / "v4")
    assert policy_in_force(tmp_path, SCHEMA).policy.version == 3
    # A first swap moves the folder away before the link is made.
    (tmp_path / "policy").unlink()
    assert policy_in_force(tmp_path, SCHEMA).policy.version == 4
    assert (tmp_path / "policy").is_symlink()


def test_a_link_that_leads_nowhere_is_not_taken_for_a_fresh_folder(tmp_path):
    (tmp_path / "policy").symlink_to("gone")
    with pytest.raises(ValueError, match="leads nowhere"):
        policy_in_force(tmp_path, SCHEMA)
