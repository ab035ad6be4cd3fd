"""Propensities that were really drawn from average to what they must, and two usual mistakes do not.

On any log with full support the mean of 1/p is the mean number of eligible actions, and 1{a}/p averages to the share of
rows in which a is eligible, within 4 standard errors. The stored seed repeats every choice. A log of the pmf before the
floor fails, and so does one of probabilities in another order than the actions.
"""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from peira.experience.decision_audit import propensity_audit
from peira.experience.decision_formats import read_decisions, write_decisions
from peira.experience.decision_records import (
    DecisionRecord,
    decision_table,
    draw_column,
    replayed_choice,
    uniform_number,
    uniform_numbers,
)
from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions
from peira.learners.explorers import project_floor, squarecb

SCHEMA = FeatureSchema(actions=("a", "b", "c", "d", "e"))


def log(pmf: np.ndarray, eligible: np.ndarray, seed: int, **changes) -> LoggedDecisions:
    rows = len(pmf)
    column = draw_column(pmf, uniform_numbers(seed, np.arange(rows)))
    return LoggedDecisions(
        choices=Choices(
            np.zeros((rows, 0), np.float32),
            np.zeros((rows, 0), np.int32),
            np.where(eligible, np.arange(eligible.shape[1]), -1).astype(np.int32),
            np.zeros((*eligible.shape, 0), np.float32),
        ),
        column=column,
        propensity=pmf[np.arange(rows), column],
        reward=np.zeros(rows),
        pmf=pmf,
        generation=np.zeros(rows, np.int64),
        time=np.arange(rows, dtype=float),
        uniform=np.zeros(rows, bool),
        cluster=np.arange(rows),
    )


def contexts(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with gaps as payments have them, and eligible sets of 2 to 5 actions."""
    rng = np.random.default_rng(seed)
    eligible = rng.random((rows, 5)) < 0.7
    eligible[:, :2] |= eligible.sum(1)[:, None] < 2
    scores = np.clip(rng.normal(0.8, 0.03, (rows, 5)), 0, 1)
    return np.where(eligible, scores, np.nan), eligible


def as_logged(rows: LoggedDecisions, pmf: np.ndarray) -> LoggedDecisions:
    """The same choices with other probabilities written beside them."""
    return replace(rows, pmf=pmf, propensity=pmf[np.arange(len(rows)), rows.column])


@pytest.mark.parametrize("gamma", [0.0, 300.0, 2000.0])
@pytest.mark.parametrize("knows_pmf", [True, False])
def test_a_true_log_passes(gamma, knows_pmf):
    scores, eligible = contexts(100_000, 0)
    rows = log(project_floor(squarecb(scores, eligible, gamma), eligible, 0.05), eligible, seed=1)
    audit = propensity_audit(rows if knows_pmf else replace(rows, pmf=None), SCHEMA)
    assert audit.sound, str(audit)
    assert audit.inverse_propensity.expected == pytest.approx(eligible.sum(1).mean())
    assert audit.inverse_propensity.found == pytest.approx(eligible.sum(1).mean(), rel=0.03)
    assert len(audit.ranks) == (5 if knows_pmf else 0)


def test_five_actions_give_a_mean_of_five():
    rng = np.random.default_rng(2)
    pmf = rng.dirichlet(np.full(5, 2.0), 100_000)
    pmf = 0.9 * pmf + 0.1 / 5
    audit = propensity_audit(log(pmf, np.ones_like(pmf, bool), seed=3), SCHEMA)
    assert audit.sound
    assert audit.inverse_propensity.found == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("knows_pmf", [True, False])
def test_errors_of_true_logs_are_standard_errors(knows_pmf):
    inverse, actions, ranks = [], [], []
    for seed in range(200):
        scores, eligible = contexts(1000, seed)
        rows = log(project_floor(squarecb(scores, eligible, 100.0), eligible, 0.2), eligible, seed)
        audit = propensity_audit(rows if knows_pmf else replace(rows, pmf=None), SCHEMA)
        inverse.append(audit.inverse_propensity.z)
        actions += [of.z for of in audit.actions]
        ranks += [of.z for of in audit.ranks]
    # The standard deviation of n standard normal numbers is 1 ± 1/√(2n).
    for z in (inverse, actions, ranks)[: 3 if knows_pmf else 2]:
        assert np.mean(z) == pytest.approx(0, abs=4 / np.sqrt(len(z)))
        assert np.std(z) == pytest.approx(1, abs=3 / np.sqrt(2 * len(z)))
        assert np.max(np.abs(z)) < 4.5


def test_uniform_logging_leaves_1_over_p_no_error():
    _, eligible = contexts(500, 0)
    rows = log(eligible / eligible.sum(1, keepdims=True), eligible, seed=1)
    assert propensity_audit(rows, SCHEMA).inverse_propensity.z == 0
    off = propensity_audit(replace(rows, propensity=rows.propensity * 1.001), SCHEMA)
    assert off.inverse_propensity.z == -np.inf
    assert not off.sound


@pytest.mark.parametrize("knows_pmf", [True, False])
def test_the_pmf_before_the_floor_is_found_out(knows_pmf):
    scores, eligible = contexts(20_000, 4)
    before = squarecb(scores, eligible, 20_000.0)
    rows = log(project_floor(before, eligible, 0.05), eligible, seed=5)
    assert propensity_audit(rows, SCHEMA).sound
    wrong = as_logged(rows, before)
    audit = propensity_audit(wrong if knows_pmf else replace(wrong, pmf=None), SCHEMA)
    assert not audit.sound
    # What is logged is too small for what was chosen: 1/p averages to too much.
    assert audit.inverse_propensity.found > audit.inverse_propensity.expected
    if knows_pmf:
        assert [of.name for of in audit.faults if of.name.startswith("rank")]
        assert "before floors" in str(audit)


@pytest.mark.parametrize("knows_pmf", [True, False])
def test_probabilities_in_another_order_are_found_out(knows_pmf):
    scores, eligible = contexts(20_000, 6)
    eligible[:] = True
    scores = np.where(np.isnan(scores), 0.8, scores)
    rows = log(project_floor(squarecb(scores, eligible, 2000.0), eligible, 0.05), eligible, seed=7)
    wrong = as_logged(rows, np.sort(rows.pmf, axis=1)[:, ::-1])
    audit = propensity_audit(wrong if knows_pmf else replace(wrong, pmf=None), SCHEMA)
    assert not audit.sound


def test_a_right_propensity_beside_a_pmf_in_another_order_is_found_out_by_the_ranks():
    scores, _ = contexts(20_000, 6)
    scores, eligible = np.where(np.isnan(scores), 0.8, scores), np.ones_like(scores, bool)
    rows = log(project_floor(squarecb(scores, eligible, 2000.0), eligible, 0.05), eligible, seed=8)
    audit = propensity_audit(replace(rows, pmf=rows.pmf[:, ::-1]), SCHEMA)
    assert audit.inverse_propensity.sound
    assert [of for of in audit.ranks if not of.sound]


def test_dsjson_with_p_in_the_order_of_multi_is_found_out(tmp_path):
    # As served, the chosen action comes first in a, and p goes with a.
    scores, eligible = contexts(5000, 9)
    rows = log(project_floor(squarecb(scores, eligible, 2000.0), eligible, 0.1), eligible, seed=10)
    write_decisions(tmp_path / "right.dsjson", rows, SCHEMA)
    assert propensity_audit(read_decisions(tmp_path / "right.dsjson", SCHEMA)[0], SCHEMA).sound

    lines = []
    for line in (tmp_path / "right.dsjson").read_text().splitlines():
        event = json.loads(line)
        by_action = dict(zip(event["a"], event["p"], strict=True))
        event["p"] = [by_action[number] for number in sorted(by_action)]
        del event["_label_probability"]
        lines.append(json.dumps(event))
    (tmp_path / "wrong.dsjson").write_text("\n".join(lines))
    wrong, _ = read_decisions(tmp_path / "wrong.dsjson", SCHEMA)
    assert not propensity_audit(wrong, SCHEMA).sound


# -- replay ------------------------------------------------------------------------------------------------


def served(count: int, draws_from: np.ndarray, logs: np.ndarray, seed: int = 11) -> pa.Table:
    column = draw_column(draws_from, np.array([uniform_number(seed, f"e{row}") for row in range(count)]))
    return decision_table(
        DecisionRecord(
            event_id=f"e{row}",
            timestamp=float(row),
            policy_id="p",
            policy_version=0,
            context={},
            actions=SCHEMA.actions,
            pmf=logs[row].tolist(),
            chosen_index=int(column[row]),
            propensity=float(logs[row, column[row]]),
            seed=seed,
        )
        for row in range(count)
    )


def test_the_stored_seed_repeats_every_choice():
    pmf = np.random.default_rng(12).dirichlet(np.ones(5), 3000)
    decisions = served(3000, pmf, pmf)
    np.testing.assert_array_equal(replayed_choice(decisions), decisions["chosen_index"].to_numpy())


def test_the_wrong_pmf_does_not_repeat_them():
    rng = np.random.default_rng(13)
    before = rng.dirichlet(np.full(5, 0.3), 3000)
    after = project_floor(before, np.ones_like(before, bool), 0.3)
    decisions = served(3000, draws_from=after, logs=0.999 * before + 0.0002)
    agreed = replayed_choice(decisions) == decisions["chosen_index"].to_numpy()
    assert 0.3 < agreed.mean() < 0.95
