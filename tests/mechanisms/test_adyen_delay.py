"""Outcomes that arrive later if they are bad: a trainer that takes every row with an outcome sees too many good ones.

A stationary stream of one decision a round, success known after 1 round and failure after 50, window H = 60, trained
every 20 rounds on the last 200: rows that are H old have the true rate, in every snapshot and exactly. All joined rows
have q(W − 1)/((W − 50) + 49q) instead of q: the youngest row has no outcome yet, the next 49 only their successes.
"""

import numpy as np
import pyarrow as pa
import pytest

from peira.experience.decision_records import DECISION_COLUMNS, OUTCOME_COLUMNS, Joined, join

SUCCESS_RATE = 0.8
SUCCESS_DELAY, FAILURE_DELAY, WINDOW, TRAIN_EVERY, ROWS = 1, 50, 60, 20, 200


@pytest.fixture(scope="module")
def stream() -> tuple[pa.Table, pa.Table, np.ndarray]:
    rounds = 6000
    reward = (np.random.default_rng(0).random(rounds) < SUCCESS_RATE).astype(float)
    time = np.arange(rounds, dtype=float)
    ids = pa.array(np.arange(rounds)).cast(pa.string())
    columns = {
        "event_id": ids,
        "timestamp": time,
        "actions": pa.array([["a"]] * rounds),
        "pmf": pa.array([[1.0]] * rounds),
        "chosen_index": pa.repeat(0, rounds),
        "propensity": np.ones(rounds),
        "attempt": pa.repeat(1, rounds),
        "sampling_rate": np.ones(rounds),
    }
    fixed = {"context": "{}", "slice": "normal", "override": False, "learn": True, "applied": True}
    for field in DECISION_COLUMNS:
        if field.name not in columns:
            nullable = field.name in ("action_features", "excluded", "counter", "parent_event_id")
            blank = fixed.get(field.name, "" if field.type == pa.string() else 0)
            columns[field.name] = pa.nulls(rounds, field.type) if nullable else pa.repeat(blank, rounds)
    decisions = pa.table({name: columns[name] for name in DECISION_COLUMNS.names}).cast(DECISION_COLUMNS)
    delay = np.where(reward == 1, SUCCESS_DELAY, FAILURE_DELAY)
    outcomes = pa.table([ids, reward, time + delay, pa.repeat("", rounds)], OUTCOME_COLUMNS)
    return decisions, outcomes, reward


def snapshots(stream: tuple, matured_only: bool) -> list[tuple[int, Joined]]:
    """What a trainer has every 20 rounds: the last 200 decisions, and the outcomes known by then."""
    decisions, outcomes, reward = stream
    taken = []
    for now in range(ROWS, len(reward), TRAIN_EVERY):
        last = slice(now + 1 - ROWS, now + 1)
        rows = (decisions.slice(last.start, ROWS), outcomes.slice(last.start, ROWS))
        joined = join(
            *rows, now=now, window=WINDOW, default_reward=0.0, aggregation="first", matured_only=matured_only
        )
        taken.append((now, joined))
    return taken


def rate(taken: list[tuple[int, Joined]]) -> float:
    return float(np.concatenate([joined.rows["reward"].to_numpy() for _, joined in taken]).mean())


def test_matured_rows_hold_the_true_rewards_of_every_decision_that_is_old_enough(stream):
    reward = stream[2]
    for now, joined in snapshots(stream, matured_only=True):
        decided = joined.rows["timestamp"].to_numpy().astype(int)
        np.testing.assert_array_equal(decided, np.arange(now + 1 - ROWS, now - WINDOW + 1))
        np.testing.assert_array_equal(joined.rows["reward"].to_numpy(), reward[decided])
        assert joined.censored.num_rows == WINDOW


def test_the_trainer_of_all_joined_rows_is_biased_upward_by_the_computed_amount(stream):
    partial = FAILURE_DELAY - SUCCESS_DELAY
    computed = (ROWS - 1) * SUCCESS_RATE / (ROWS - FAILURE_DELAY + partial * SUCCESS_RATE)
    assert computed - SUCCESS_RATE == pytest.approx(0.0414, abs=1e-4)

    matured, everything = snapshots(stream, matured_only=True), snapshots(stream, matured_only=False)
    # A round is in up to 10 snapshots: the error is that of 6,000 rounds, 0.8·0.2/6000 = 0.0052².
    assert rate(matured) == pytest.approx(SUCCESS_RATE, abs=4 * 0.0052)
    assert rate(everything) == pytest.approx(computed, abs=4 * 0.0052)
    # Against the same stream's own rate the sampling error falls away, and the bias remains.
    own = stream[2].mean()
    own_computed = (ROWS - 1) * own / (ROWS - FAILURE_DELAY + partial * own)
    assert rate(everything) - rate(matured) == pytest.approx(own_computed - own, abs=0.003)


def test_the_recent_rows_of_that_trainer_are_all_successes(stream):
    for now, joined in snapshots(stream, matured_only=False)[:20]:
        young = joined.rows["timestamp"].to_numpy() > now - FAILURE_DELAY
        assert young.any()
        assert joined.rows["reward"].to_numpy()[young].all()
