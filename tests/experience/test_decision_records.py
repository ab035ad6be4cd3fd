"""Records of decisions and outcomes: what they refuse, how they draw, and how they join."""

import math
import time

import numpy as np
import pyarrow as pa
import pytest
from decisions_for_tests import drawn, record, served

from peira.experience.decision_records import (
    DECISION_COLUMNS,
    OUTCOME_COLUMNS,
    OutcomeRecord,
    check_decisions,
    decision_table,
    draw_column,
    join,
    outcome_table,
    replayed_choice,
    uniform_number,
    uniform_numbers,
)

# -- draws -------------------------------------------------------------------------------------------------


def test_a_draw_is_the_same_wherever_it_is_made():
    # printf 7:e0 | b2sum -l 64, and SplitMix64 from printf 7 | b2sum -l 64.
    assert uniform_number(7, "e0") == (0x0855B9FDBC39AADD >> 11) / 2**53
    assert uniform_number(7, "é") != uniform_number(7, "e")
    assert uniform_numbers(7, np.arange(2)).tolist() == [0.5187573647995881, 0.7237724488274258]


@pytest.mark.parametrize("kind", ["event", "counter"])
def test_draws_are_uniform_and_independent_between_seeds(kind):
    def draws(seed: int) -> np.ndarray:
        if kind == "counter":
            return uniform_numbers(seed, np.arange(50_000))
        return np.array([uniform_number(seed, f"e{row}") for row in range(50_000)])

    one, other = draws(1), draws(2)
    assert ((one >= 0) & (one < 1)).all()
    assert np.histogram(one, 20, (0, 1))[0] == pytest.approx(2500, abs=5 * math.sqrt(2500))
    for first, second in ((one, other), (one[1:], one[:-1])):
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(50_000)


def test_no_number_draws_an_action_without_probability():
    pmf = np.array([[0.0, 0.5, 0.0, 0.5, 0.0]] * 4)
    assert draw_column(pmf, np.array([0.0, 0.49, 0.5, np.nextafter(1, 0)])).tolist() == [1, 1, 3, 3]
    # Ten tenths add up to a little less than 1.
    short = np.full((1, 11), 0.1)
    short[0, 10] = 0
    assert np.cumsum(short)[-1] < 1
    assert draw_column(short, np.array([np.nextafter(1, 0)])).tolist() == [9]


# -- one record --------------------------------------------------------------------------------------------


def test_draws_have_the_frequencies_of_the_pmf():
    pmf = np.tile([0.0, 0.2, 0.0, 0.5, 0.3, 0.0], (200_000, 1))
    column = draw_column(pmf, np.random.default_rng(0).random(len(pmf)))
    frequency = np.bincount(column, minlength=6) / len(pmf)
    assert (frequency[pmf[0] == 0] == 0).all()
    assert (abs(frequency - pmf[0]) <= 4 * np.sqrt(pmf[0] * (1 - pmf[0]) / len(pmf))).all()


def test_draws_at_the_borders_never_pick_what_has_no_probability():
    below_one = np.nextafter(1, 0)
    thirds = np.array([0.0, 1 / 3, 1 / 3, 1 / 3 - 1e-12, 0.0])
    pmf = np.array([[0, 0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0, 0], thirds, thirds])
    column = draw_column(pmf, np.array([0.0, 0.5, below_one, 0.0]))
    np.testing.assert_array_equal(column, [1, 2, 3, 1])


@pytest.mark.parametrize("number", [-0.1, 1.0, np.nan])
def test_a_number_that_is_no_share_is_refused(number):
    with pytest.raises(ValueError, match=r"uniform: expected numbers in \[0, 1\).* in row 1"):
        draw_column(np.array([[1.0], [1.0]]), np.array([0.5, number]))


@pytest.mark.parametrize("row", [[0.5, 0.4], [1.5, -0.5], [np.nan, 1.0]])
def test_a_pmf_that_is_none_is_refused(row):
    with pytest.raises(ValueError, match=r"pmf: expected probabilities that sum to 1.* in row 1"):
        draw_column(np.array([[0.5, 0.5], row]), np.array([0.5, 0.5]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"event_id": ""}, "event_id: expected a text"),
        ({"timestamp": math.nan}, "timestamp: expected a finite number"),
        ({"actions": (), "pmf": ()}, "actions: none is eligible"),
        ({"actions": ("none", "token", "none")}, "actions: 'none' comes twice"),
        ({"pmf": (0.5, 0.5)}, "pmf: expected 3 entries, one an action, got 2"),
        ({"pmf": (0.5, 0.3, 0.1)}, "pmf: expected a sum of 1, got 0.9; renormalise"),
        ({"pmf": (0.9, 0.3, -0.2)}, "pmf: expected probabilities, got -0.2"),
        ({"pmf": (math.nan, 0.3, 0.2)}, "pmf: expected probabilities, got nan"),
        ({"chosen_index": 3}, "chosen_index: expected 0 … 2, got 3"),
        ({"chosen_index": -1}, "chosen_index: expected 0 … 2, got -1"),
        ({"propensity": 0.5}, "propensity: expected 0.3 (above 0), the pmf of the chosen action, got 0.5"),
        ({"propensity": math.nan}, "propensity: expected 0.3"),
        ({"pmf": (0.7, 0.0, 0.3), "propensity": 0.0}, "propensity: expected 0 (above 0)"),
        ({"action_features": [{}]}, "action_features: expected 3 entries"),
        ({"override": True}, "override: expected propensity 1 and learn false, got 0.3 and true"),
        ({"slice": "blue"}, "slice: expected one of normal, uniform, holdout, got 'blue'"),
        ({"attempt": 2}, "attempt: expected 1 without"),
        ({"parent_event_id": "e9"}, "attempt: expected 1 without"),
        ({"sampling_rate": 0.0}, "sampling_rate: expected a share above 0"),
    ],
)
def test_a_decision_that_contradicts_itself_is_refused(changes, said):
    with pytest.raises(ValueError) as fault:
        record(**changes)
    assert said in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -0.01, 1.01])
def test_a_reward_out_of_range_is_refused(reward):
    with pytest.raises(ValueError, match=r"outcome of 'e': reward: expected a number in \[0, 1\], got"):
        OutcomeRecord("e", reward, 0.0)


def test_the_range_of_rewards_can_be_another():
    assert OutcomeRecord("e", -40.0, 0.0, reward_range=(-100.0, 100.0)).reward == -40


def test_rules_decide_with_probability_one_and_teach_nothing():
    made = record(pmf=(0, 1, 0), propensity=1.0, override=True, learn=False)
    assert check_decisions(decision_table([made])).num_rows == 1


def test_tables_hold_what_was_served_as_it_was():
    made = record(
        context={"é": [1], "x": 1e400},
        action_features=[{"fee": 1}, {}, {}],
        excluded={"x": "no token"},
        parent_event_id="e8",
        attempt=2,
    )
    row = decision_table([made]).to_pylist()[0]
    assert row["context"] == '{"é": [1], "x": Infinity}'
    assert row["action_features"] == '[{"fee": 1}, {}, {}]'
    assert row["excluded"] == '{"x": "no token"}'
    assert row["explore_parameters"] == '{"gamma": 2000.0, "floor": 0.01}'
    assert (row["policy_version"], row["parent_event_id"], row["counter"]) == (3, "e8", None)
    assert decision_table([made]).schema == DECISION_COLUMNS


# -- many at once ------------------------------------------------------------------------------------------


def altered(name: str, value, row: int = 1) -> pa.Table:
    table = served(4)
    values = table[name].to_pylist()
    values[row] = value
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("timestamp", math.inf, "timestamp: expected a finite number of seconds, got inf"),
        ("actions", [], "actions: expected at least one"),
        ("actions", ["a", "b", "a"], "actions: expected each one once, got ['a', 'b', 'a']"),
        ("pmf", [0.5, 0.5], "pmf: expected one probability an action, got [0.5, 0.5]"),
        ("pmf", [0.5, 0.3, 0.3], "pmf: expected a sum of 1, got 1.1"),
        ("pmf", [1.2, -0.2, 0.0], "pmf: expected probabilities"),
        ("pmf", [0.2, 0.2, 0.6], "propensity: expected the pmf of the chosen action"),
        ("propensity", 0.0, "propensity: expected a probability above 0, at most 1, got 0.0"),
        ("chosen_index", 3, "chosen_index: expected a place among its actions, got 3"),
        ("sampling_rate", 2.0, "sampling_rate: expected a share above 0 and at most 1, got 2.0"),
    ],
)
def test_the_first_row_at_fault_of_a_table_is_named(name, value, said):
    with pytest.raises(ValueError) as fault:
        check_decisions(altered(name, value))
    assert str(fault.value).startswith(f"decision 'e1': {said}")


def test_a_table_that_is_none_of_decisions_is_refused():
    with pytest.raises(ValueError, match="timestamp: missing; the table has event_id"):
        check_decisions(pa.table({"event_id": ["a"]}))
    with pytest.raises(ValueError, match="actions: 1 of 4 rows are null"):
        check_decisions(altered("actions", None))


def test_a_pmf_that_was_not_logged_is_no_fault():
    assert check_decisions(altered("pmf", None)).num_rows == 4
    assert check_decisions(served(0)).num_rows == 0


def test_replay_repeats_draws_by_event_and_by_counter():
    by_event = drawn(50)
    pmf = np.tile([0.5, 0.3, 0.2], (50, 1))
    counted = []
    for number, chosen in enumerate(draw_column(pmf, uniform_numbers(9, np.arange(50))).tolist()):
        counted.append(
            record(1000 + number, seed=9, counter=number, chosen_index=chosen, propensity=pmf[0, chosen])
        )
    table = decision_table(by_event + counted)
    np.testing.assert_array_equal(replayed_choice(table), table["chosen_index"].to_numpy())
    assert replayed_choice(altered("seed", None)).tolist()[1] == -1
    # Another seed draws others.
    other = table.set_column(table.column_names.index("seed"), "seed", pa.repeat(8, 100))
    assert (replayed_choice(other) != table["chosen_index"].to_numpy()).any()


# -- the join ----------------------------------------------------------------------------------------------


def outcomes(*given: tuple) -> pa.Table:
    return outcome_table(
        OutcomeRecord(event, reward, at, *rest, reward_range=(-9, 9)) for event, reward, at, *rest in given
    )


def joined(decisions: pa.Table, told: pa.Table, **changes):
    settings = {"now": 100.0, "window": 10.0, "default_reward": 0.0, "aggregation": "first"}
    return join(decisions, told, **{**settings, **changes})


def column(table: pa.Table, name: str) -> list:
    return table[name].to_pylist()


def test_an_outcome_within_the_window_is_the_reward_and_its_lack_the_default():
    found = joined(served(3), outcomes(("e0", 1, 5.0), ("e2", 0.5, 12.0)), default_reward=-1.0)
    assert column(found.rows, "reward") == [1, -1, 0.5]
    assert column(found.rows, "imputed") == [False, True, False]
    assert column(found.rows, "outcome_time") == [5, None, 12]
    assert column(found.rows, "outcomes") == [1, 0, 1]
    assert found.rows.column_names[: len(DECISION_COLUMNS)] == DECISION_COLUMNS.names


def test_young_decisions_are_censored_and_no_failures():
    found = joined(served(3), outcomes(("e1", 1, 1.5)), now=11.0)
    # At 11, e0 and e1 are 11 and 10 old, e2 only 9.
    assert column(found.rows, "event_id") == ["e0", "e1"]
    assert column(found.censored, "event_id") == ["e2"]
    early = joined(served(3), outcomes(("e1", 1, 1.5)), now=2.0)
    assert early.rows.num_rows == 0
    hasty = joined(served(3), outcomes(("e1", 1, 1.5)), now=2.0, matured_only=False)
    assert column(hasty.rows, "reward") == [1]
    assert column(hasty.censored, "event_id") == ["e0", "e2"]


def test_late_outcomes_are_corrections_and_change_no_row():
    found = joined(served(2), outcomes(("e0", 1, 10.0), ("e1", 1, 11.5)))
    assert column(found.rows, "reward") == [1, 0]
    assert column(found.rows, "imputed") == [False, True]
    assert found.corrections.to_pylist() == [
        {
            "event_id": "e1",
            "reward": 1,
            "outcome_time": 11.5,
            "source": "",
            "decided_at": 1,
            "delay": 10.5,
            "reason": "late",
        }
    ]


def test_rows_of_a_trained_snapshot_are_not_given_again_and_their_outcomes_are_corrections():
    told = outcomes(("e0", 1, 2.0), ("e2", 1, 3.0))
    found = joined(served(4), told, trained_until=1.0)
    assert column(found.rows, "event_id") == ["e2", "e3"]
    assert column(found.corrections, "event_id") == ["e0"]
    assert column(found.corrections, "reason") == ["trained"]
    assert found.trained == 2
    assert found.censored.num_rows == 0


@pytest.mark.parametrize(("aggregation", "reward"), [("first", 0.25), ("max", 0.75), ("sum", 1.5)])
def test_several_outcomes_of_one_decision_are_aggregated(aggregation, reward):
    # Told in another order than they happened; the last is too late to count.
    told = outcomes(("e0", 0.75, 4.0), ("e0", 0.25, 2.0), ("e0", 0.5, 3.0), ("e0", 5.0, 20.0))
    found = joined(served(1), told, aggregation=aggregation)
    assert column(found.rows, "reward") == [reward]
    assert column(found.rows, "outcomes") == [3]
    assert column(found.rows, "outcome_time") == [2]


def test_outcomes_that_are_told_twice_count_once():
    once = ("e0", 0.5, 2.0, "bank")
    told = outcomes(once, once, ("e0", 0.5, 2.0, "shop"), once, ("nobody", 1, 1.0))
    found = joined(served(1), told, aggregation="sum")
    assert column(found.rows, "reward") == [1]
    assert found.repeated_outcomes == 2


def test_outcomes_of_no_decision_are_reported():
    found = joined(served(2), outcomes(("e9", 1, 1.0), ("e0", 1, 1.0)))
    assert column(found.unknown, "event_id") == ["e9"]
    assert found.unknown.schema == OUTCOME_COLUMNS


def test_outcomes_of_a_later_time_are_not_known_yet():
    told = outcomes(("e0", 1, 50.0), ("e9", 1, 50.0))
    found = joined(served(1), told, now=40.0, window=100.0)
    assert (found.rows.num_rows, found.not_yet, found.unknown.num_rows) == (0, 2, 0)
    assert joined(served(1), told, now=120.0, window=100.0).not_yet == 0


def test_an_outcome_before_its_decision_is_kept_and_flagged():
    found = joined(served(3), outcomes(("e2", 1, 1.0), ("e1", 1, 1.0)))
    assert column(found.rows, "reward") == [0, 1, 1]
    assert column(found.rows, "before_decision") == [False, False, True]


def test_decisions_of_rules_are_set_aside_and_those_not_acted_on_have_no_reward():
    ruled = record(1, pmf=(0, 1, 0), propensity=1.0, override=True, learn=False)
    table = decision_table([record(0), ruled, record(2, applied=False)])
    found = joined(table, outcomes(("e0", 1, 1.0), ("e1", 1, 1.0), ("e2", 1, 2.0)))
    assert column(found.rows, "event_id") == ["e0"]
    assert column(found.set_aside, "event_id") == ["e1", "e2"]
    assert column(found.set_aside, "reward") == [1, None]
    assert column(found.corrections, "reason") == ["not applied"]


def test_a_decision_that_is_written_twice_counts_once():
    again = decision_table([record(1, policy_version=99)])
    found = joined(pa.concat_tables([served(2), again]), outcomes(("e0", 1, 1.0)))
    assert column(found.rows, "event_id") == ["e0", "e1"]
    assert column(found.rows, "policy_version") == [3, 3]
    assert found.repeated_decisions == 1


def test_every_decision_and_every_outcome_is_in_one_place():
    rng = np.random.default_rng(0)
    records = [
        record(number, timestamp=float(rng.random() * 100), applied=rng.random() < 0.9)
        for number in range(300)
    ]
    given = [(f"e{rng.integers(330)}", round(rng.random(), 1), float(rng.integers(130))) for _ in range(900)]
    found = joined(decision_table(records), outcomes(*given), trained_until=20.0, window=30.0)
    assert found.rows.num_rows + found.set_aside.num_rows + found.censored.num_rows + found.trained == 300
    assert 0 < found.censored.num_rows < 300
    used = sum(column(found.rows, "outcomes")) + sum(column(found.set_aside, "outcomes"))
    censored = {row["event_id"]: row["timestamp"] for row in found.censored.to_pylist()}
    waiting = {of for of in given if of[0] in censored and of[2] <= min(100, censored[of[0]] + 30)}
    rest = found.corrections.num_rows + found.unknown.num_rows + found.repeated_outcomes + found.not_yet
    unapplied = {of.event_id for of in records if not of.applied}
    assert used + rest + len({of for of in waiting if of[0] not in unapplied}) == 900


def test_a_join_without_outcomes_or_without_decisions_is_none_the_less():
    nothing = outcomes()
    assert column(joined(served(2), nothing).rows, "imputed") == [True, True]
    found = joined(served(0), outcomes(("e0", 1, 1.0)))
    assert (found.rows.num_rows, found.unknown.num_rows) == (0, 1)
    # Everything has matured at the end of time.
    assert joined(served(2), nothing, now=math.inf).rows.num_rows == 2


def test_bad_settings_and_rewards_are_refused():
    with pytest.raises(ValueError, match="aggregation: expected first, max or sum, got 'last'"):
        joined(served(1), outcomes(), aggregation="last")
    with pytest.raises(ValueError, match="window: expected a time of at least 0, got nan"):
        joined(served(1), outcomes(), window=math.nan)
    broken = pa.table([["e0"], [math.nan], [1.0], [""]], OUTCOME_COLUMNS)
    with pytest.raises(ValueError, match="outcome of 'e0': reward: expected a finite number, got nan"):
        joined(served(1), broken)


def test_a_hundred_thousand_rows_join_in_a_second():
    row = served(1)
    count = 100_000
    decisions = row.take(pa.array(np.zeros(count, np.int64)))
    ids = pa.array(np.arange(count)).cast(pa.string())
    decisions = decisions.set_column(0, "event_id", ids)
    told = pa.table([ids, np.ones(count), np.ones(count), pa.repeat("", count)], OUTCOME_COLUMNS)
    start = time.process_time()
    assert joined(decisions, told).rows.num_rows == count
    assert time.process_time() - start < 2
