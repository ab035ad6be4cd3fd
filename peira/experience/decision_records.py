"""Decisions as they were served and outcomes as they arrived: their columns, their checks, and their join."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int

SUM_TOLERANCE = 1e-6
"""How far logged probabilities may miss a sum of 1."""
_SAME = 1e-9


def uniform_number(seed: int, event_id: str) -> float:
    """The number in [0, 1) that draws the action of one event: the same for the same seed and event, anywhere.

    The first 53 bits of blake2b("seed:event_id"), so that any process can repeat the draw from the record alone.
    """
    digest = hashlib.blake2b(f"{seed}:{event_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def uniform_numbers(seed: int, counter: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Numbers in [0, 1) that draw the actions of events numbered by a counter (≥ 0), all at once.

    53 bits of SplitMix64 (Steele, Lea and Flood 2014) at position `counter` of the stream that `seed` starts.
    """
    start = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    state = (np.asarray(counter).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64(int.from_bytes(start, "big"))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def draw_column(
    pmf: Float[np.ndarray, "rows columns"], uniform: Float[np.ndarray, " rows"]
) -> Int[np.ndarray, " rows"]:
    """The column that a number in [0, 1) picks from each row's cumulative sums; never one of probability 0.

    The probabilities must be those that are logged: rounded afterwards they draw another action. A number beyond a last
    sum that rounding left under 1 picks the last action that has probability. Raises ValueError for a number outside
    [0, 1), a negative probability, and a row that does not sum to 1 within `SUM_TOLERANCE`.
    """
    if (bad := ~((uniform >= 0) & (uniform < 1))).any():
        raise ValueError(f"uniform: expected numbers in [0, 1), got {uniform[bad][0]} in row {bad.argmax()}")
    sums = np.cumsum(pmf, axis=1)
    if (bad := ~(np.abs(sums[:, -1] - 1) <= SUM_TOLERANCE) | (pmf < 0).any(1)).any():
        row = int(bad.argmax())
        raise ValueError(f"pmf: expected probabilities that sum to 1, got {pmf[row].tolist()} in row {row}")
    beyond = sums > uniform[:, None]
    last = pmf.shape[1] - 1 - (pmf[:, ::-1] > 0).argmax(1)
    return np.where(beyond[:, -1], beyond.argmax(1), last)


DECISION_COLUMNS = pa.schema(
    [
        ("event_id", pa.string()),
        ("timestamp", pa.float64()),
        ("policy_id", pa.string()),
        ("policy_version", pa.int64()),
        ("config_hash", pa.string()),
        ("context", pa.string()),
        ("actions", pa.list_(pa.string())),
        ("action_features", pa.string()),
        ("excluded", pa.string()),
        ("pmf", pa.list_(pa.float64())),
        ("chosen_index", pa.int32()),
        ("propensity", pa.float64()),
        ("seed", pa.int64()),
        ("counter", pa.int64()),
        ("explore_kind", pa.string()),
        ("explore_parameters", pa.string()),
        ("override", pa.bool_()),
        ("slice", pa.string()),
        ("parent_event_id", pa.string()),
        ("attempt", pa.int32()),
        ("sampling_rate", pa.float64()),
        ("learn", pa.bool_()),
        ("applied", pa.bool_()),
    ]
)
"""A row a decision. `context`, `action_features` (a list in the order of `actions`), `excluded` and
`explore_parameters` are JSON texts, as served. Null: `action_features`, `excluded`, `parent_event_id` where there are
none; `pmf` and `seed` where a foreign log has none; `counter` where the event id was the counter."""

OUTCOME_COLUMNS = pa.schema(
    [
        ("event_id", pa.string()),
        ("reward", pa.float64()),
        ("outcome_time", pa.float64()),
        ("source", pa.string()),
    ]
)

SLICES = ("normal", "uniform", "holdout")
_MAY_BE_NULL = ("action_features", "excluded", "pmf", "seed", "counter", "parent_event_id")


@dataclass(frozen=True)
class DecisionRecord:
    """One decision, to be written before it is answered.

      event_id            unique; the outcome names it
      timestamp           seconds since 1970, or rounds in a simulation
      policy_id, policy_version, config_hash   what decided
      context             features as they were served
      actions             the eligible ones, in the order that everything else here follows
      pmf                 the probability of each, after floors, caps and overrides
      chosen_index        place of the chosen one
      propensity          pmf[chosen_index]
      seed                of `uniform_number(seed, event_id)`, which drew it
      counter             then `uniform_numbers(seed, counter)` drew it instead
      explore_kind, explore_parameters   squarecb, {"gamma": 2000, "floor": .01}
      action_features     one mapping an action
      excluded            actions that were not eligible, each with the reason
      override            a rule or a timeout decided: propensity 1, and nothing is to be learned from it
      slice               normal, uniform or holdout
      parent_event_id     of the event that this one tries again; then `attempt` is 2 or more
      sampling_rate       the share of decisions of this kind that are logged; rows count 1/sampling_rate
      learn               whether a model may be trained on it
      applied             False for a decision that was computed and not acted on: it has no outcome

    Raises ValueError, in one line, for what contradicts itself.
    """

    event_id: str
    timestamp: float
    policy_id: str
    policy_version: int
    context: Mapping[str, Any]
    actions: Sequence[str]
    pmf: Sequence[float]
    chosen_index: int
    propensity: float
    seed: int
    config_hash: str = ""
    counter: int | None = None
    explore_kind: str = ""
    explore_parameters: Mapping[str, Any] = field(default_factory=dict)
    action_features: Sequence[Mapping[str, Any]] | None = None
    excluded: Mapping[str, str] | None = None
    override: bool = False
    slice: str = "normal"
    parent_event_id: str | None = None
    attempt: int = 1
    sampling_rate: float = 1.0
    learn: bool = True
    applied: bool = True

    def __post_init__(self) -> None:
        of = f"decision {self.event_id!r}"
        _check_event(self.event_id, self.timestamp, "timestamp")
        count = len(self.actions)
        if not count:
            raise ValueError(f"{of}: actions: none is eligible; name at least one")
        if len(set(self.actions)) < count:
            twice = next(name for name in self.actions if list(self.actions).count(name) > 1)
            raise ValueError(f"{of}: actions: {twice!r} comes twice; name each eligible action once")
        for name, given in (("pmf", self.pmf), ("action_features", self.action_features)):
            if given is not None and len(given) != count:
                raise ValueError(f"{of}: {name}: expected {count} entries, one an action, got {len(given)}")
        # A comparison with NaN is False, so each of these asks for what is wanted.
        for probability in self.pmf:
            if not 0 <= probability <= 1 + SUM_TOLERANCE:
                raise ValueError(f"{of}: pmf: expected probabilities, got {probability}; log the final ones")
        if not abs(math.fsum(self.pmf) - 1) <= SUM_TOLERANCE:
            raise ValueError(
                f"{of}: pmf: expected a sum of 1, got {math.fsum(self.pmf):.9g}; renormalise before the draw"
            )
        if not 0 <= self.chosen_index < count:
            raise ValueError(f"{of}: chosen_index: expected 0 … {count - 1}, got {self.chosen_index}")
        chosen = self.pmf[self.chosen_index]
        if not abs(self.propensity - chosen) <= _SAME or not chosen > 0:
            raise ValueError(
                f"{of}: propensity: expected {chosen:.9g} (above 0), the pmf of the chosen action, got "
                f"{self.propensity:.9g}; log the pmf that was drawn from, in the order of actions"
            )
        if self.override and (self.learn or self.propensity != 1):
            raise ValueError(
                f"{of}: override: expected propensity 1 and learn false, got {self.propensity:.9g} and "
                f"{str(self.learn).lower()}; a rule decided, not the policy"
            )
        if self.slice not in SLICES:
            raise ValueError(f"{of}: slice: expected one of {', '.join(SLICES)}, got {self.slice!r}")
        if self.attempt < 1 or (self.attempt > 1) != (self.parent_event_id is not None):
            raise ValueError(
                f"{of}: attempt: expected 1 without and 2 or more with a parent_event_id, got {self.attempt} with "
                f"{self.parent_event_id!r}"
            )
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(
                f"{of}: sampling_rate: expected a share above 0 and at most 1, got {self.sampling_rate}"
            )


@dataclass(frozen=True)
class OutcomeRecord:
    """What came of one decision: its reward, when (on the clock of the decision's timestamp), and who says so.

    Raises ValueError for a reward that is no number within `reward_range`.
    """

    event_id: str
    reward: float
    outcome_time: float
    source: str = ""
    reward_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _check_event(self.event_id, self.outcome_time, "outcome_time")
        low, high = self.reward_range
        if not low <= self.reward <= high:
            raise ValueError(
                f"outcome of {self.event_id!r}: reward: expected a number in [{low:g}, {high:g}], got {self.reward}"
            )


def _check_event(event_id: str, time: float, of_time: str) -> None:
    if not event_id or not isinstance(event_id, str):
        raise ValueError(f"event_id: expected a text that names one event, got {event_id!r}")
    if not math.isfinite(time):
        raise ValueError(f"event {event_id!r}: {of_time}: expected a finite number of seconds, got {time}")


def decision_table(records: Iterable[DecisionRecord]) -> pa.Table:
    """Decisions as a table of DECISION_COLUMNS, contexts and features as JSON texts."""
    records = list(records)

    def column(name: str) -> list[Any]:
        values = [getattr(record, name) for record in records]
        if name in ("context", "action_features", "excluded", "explore_parameters"):
            return [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        return values

    return pa.table({name: column(name) for name in DECISION_COLUMNS.names}, DECISION_COLUMNS)


def outcome_table(records: Iterable[OutcomeRecord]) -> pa.Table:
    """Outcomes as a table of OUTCOME_COLUMNS."""
    records = list(records)
    columns = {name: [getattr(record, name) for record in records] for name in OUTCOME_COLUMNS.names}
    return pa.table(columns, OUTCOME_COLUMNS)


def check_decisions(decisions: pa.Table) -> pa.Table:
    """The decisions with DECISION_COLUMNS first and of their types, if every row is sound; all rows at once.

    Raises ValueError as `DecisionRecord` does, for the first row at fault.
    """
    decisions = _typed(decisions, DECISION_COLUMNS, _MAY_BE_NULL)
    ids = decisions["event_id"]

    def refuse(wrong: np.ndarray, field: str, expected: str, seen: Sequence[Any] | None = None) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            value = decisions[field][row].as_py() if seen is None else seen[row]
            raise ValueError(f"decision {ids[row].as_py()!r}: {field}: expected {expected}, got {value}")

    time = decisions["timestamp"].to_numpy()
    refuse(~np.isfinite(time), "timestamp", "a finite number of seconds")
    count = pc.list_value_length(decisions["actions"]).to_numpy()
    refuse(count == 0, "actions", "at least one that is eligible")
    names = decisions["actions"].combine_chunks().flatten().dictionary_encode().indices.to_numpy()
    row = np.repeat(np.arange(len(count)), count)
    order = np.lexsort((names, row))
    again = (np.diff(names[order]) == 0) & (np.diff(row[order]) == 0)
    refuse(np.bincount(row[order][1:][again], minlength=len(count)) > 0, "actions", "each one once")
    chosen = decisions["chosen_index"].to_numpy()
    refuse((chosen < 0) | (chosen >= count), "chosen_index", "a place among its actions")
    propensity = decisions["propensity"].to_numpy()
    refuse(
        ~((propensity > 0) & (propensity <= 1 + SUM_TOLERANCE)),
        "propensity",
        "a probability above 0, at most 1",
    )
    rate = decisions["sampling_rate"].to_numpy()
    refuse(~((rate > 0) & (rate <= 1)), "sampling_rate", "a share above 0 and at most 1")
    logged = decisions["pmf"].is_valid().to_numpy()
    length = pc.fill_null(pc.list_value_length(decisions["pmf"]), 0).to_numpy()
    refuse(logged & (length != count), "pmf", "one probability an action")
    pmf = decisions["pmf"].combine_chunks().flatten().to_numpy()
    of = np.repeat(np.arange(len(count)), length)
    refuse(
        np.bincount(of[~((pmf >= 0) & (pmf <= 1 + SUM_TOLERANCE))], minlength=len(count)) > 0,
        "pmf",
        "probabilities",
    )
    total = np.bincount(of, pmf, len(count))
    refuse(logged & (np.abs(total - 1) > SUM_TOLERANCE), "pmf", "a sum of 1", total)
    start = np.cumsum(length) - length
    said = pmf[np.minimum(start + chosen, max(len(pmf) - 1, 0))] if len(pmf) else propensity
    refuse(
        logged & (np.abs(said - propensity) > _SAME),
        "propensity",
        "the pmf of the chosen action, in the order of actions",
    )
    return decisions


def replayed_choice(decisions: pa.Table) -> Int[np.ndarray, " rows"]:
    """The place of the action that the logged seed, event id or counter, and pmf draw; −1 without seed or pmf.

    It is `chosen_index` in every row of a log whose pmf is the one that was drawn from. Where a rule decided, the pmf
    has one action, which any number draws.
    """
    choice = np.full(decisions.num_rows, -1)
    known = pc.and_(decisions["seed"].is_valid(), decisions["pmf"].is_valid()).to_numpy()
    if not known.any():
        return choice
    kept = decisions.filter(pa.array(known))
    seed = kept["seed"].to_numpy()
    counted = kept["counter"].is_valid().to_numpy()
    uniform = np.empty(len(seed))
    ids = kept["event_id"].filter(pa.array(~counted)).to_pylist()
    uniform[~counted] = [uniform_number(s, i) for s, i in zip(seed[~counted].tolist(), ids, strict=True)]
    counter = kept["counter"].fill_null(0).to_numpy()
    for one in np.unique(seed[counted]):
        rows = counted & (seed == one)
        uniform[rows] = uniform_numbers(int(one), counter[rows])
    choice[known] = draw_column(padded_lists(kept["pmf"], 0.0), uniform)
    return choice


def padded_lists(column: pa.ChunkedArray, fill: float) -> np.ndarray:
    """Lists of numbers as rows of a matrix, filled up to the longest."""
    length = pc.list_value_length(column).to_numpy()
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    laid = np.full((len(length), int(length.max(initial=0))), fill, values.dtype)
    laid[np.arange(laid.shape[1]) < length[:, None]] = values
    return laid


# -- the join ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Joined:
    """Decisions with what came of them; every decision and every outcome that was given is in one place or counted.

    rows                decisions to learn from, with `reward`, `outcome_time` (null if imputed), `outcomes` (how many
                        were aggregated), `imputed` (no outcome within the window: the default reward) and
                        `before_decision` (an outcome is older than its decision: a clock is wrong)
    set_aside           the same of decisions that rules made (`learn` false) or that were not acted on; these last
                        have no reward
    censored            decisions that are too young to say
    corrections         outcomes that change no row, with `decided_at`, `delay` and the `reason`: late (after the
                        window), trained (its row is in a snapshot) or not applied
    unknown             outcomes of no decision here
    repeated_outcomes   outcomes that were given more than once, word for word; one of each is used
    repeated_decisions  decisions whose event id came before; the first is used
    not_yet             outcomes of a time after `now`
    trained             decisions that a snapshot holds
    """

    rows: pa.Table
    set_aside: pa.Table
    censored: pa.Table
    corrections: pa.Table
    unknown: pa.Table
    repeated_outcomes: int
    repeated_decisions: int
    not_yet: int
    trained: int


def join(
    decisions: pa.Table,
    outcomes: pa.Table,
    *,
    now: float,
    window: float,
    default_reward: float,
    aggregation: Literal["first", "max", "sum"],
    matured_only: bool = True,
    trained_until: float = -math.inf,
) -> Joined:
    """Each decision with its reward, as known at the time `now`.

    An outcome counts up to `window` after its decision, in the unit of the timestamps. A decision enters `rows` when it
    is `window` old, with its outcomes or else the default reward: that takes every row with the same completeness.
    Without `matured_only` it enters as soon as it has an outcome, which is biased wherever one outcome is faster than
    another: of the youngest rows only the fast ones are there.

    Decisions up to the time `trained_until` are in a snapshot that was trained on and stay as they are there: outcomes
    given for them (give those that came since) are corrections. Raises ValueError for tables of other columns, for
    rewards or times that are not finite, and for an aggregation that is none of the three.
    """
    if aggregation not in ("first", "max", "sum"):
        raise ValueError(f"aggregation: expected first, max or sum, got {aggregation!r}")
    if not window >= 0:
        raise ValueError(f"window: expected a time of at least 0, got {window}")
    given = decisions.num_rows
    decisions = _first_of_each(_typed(decisions, DECISION_COLUMNS, _MAY_BE_NULL))
    outcomes = _typed(outcomes, OUTCOME_COLUMNS, ("source",))
    for name in ("reward", "outcome_time"):
        values = outcomes[name].to_numpy()
        if not (finite := np.isfinite(values)).all():
            row = int(np.argmin(finite))
            raise ValueError(
                f"outcome of {outcomes['event_id'][row].as_py()!r}: {name}: expected a finite number, got {values[row]}"
            )
    decided = decisions["timestamp"].to_numpy()
    applied = decisions["applied"].to_numpy()
    row = pc.index_in(outcomes["event_id"], value_set=decisions["event_id"].combine_chunks())
    row = row.fill_null(-1).to_numpy().astype(np.int64)
    time, reward = outcomes["outcome_time"].to_numpy(), outcomes["reward"].to_numpy()
    known, arrived = row >= 0, time <= now
    first = _first_of_repeated(row, time, reward, outcomes["source"])
    delay = np.where(known, time - decided[row] if len(decided) else 0.0, 0.0)
    late = delay > window
    in_snapshot = known & (decided[row] <= trained_until) if len(decided) else known
    unapplied = known & ~applied[row] if len(decided) else known
    here = known & arrived & first
    corrects = here & (late | in_snapshot | unapplied)

    used = np.flatnonzero(here & ~corrects)
    used = used[np.lexsort((time[used], row[used]))]
    count = np.bincount(row[used], minlength=len(decided))
    some = np.flatnonzero(count)
    starts = (np.cumsum(count) - count)[some]
    total = np.full(len(decided), float(default_reward))
    first_time = np.full(len(decided), np.nan)
    if len(some):
        if aggregation == "first":
            total[some] = reward[used][starts]
        else:
            combine = np.add if aggregation == "sum" else np.maximum
            total[some] = combine.reduceat(reward[used], starts)
        first_time[some] = time[used][starts]
    early = np.bincount(row[used], delay[used] < 0, len(decided)) > 0

    in_time = now - decided >= window
    if not matured_only:
        in_time |= count > 0
    fresh = decided > trained_until
    learned = decisions["learn"].to_numpy()
    table = decisions.append_column("reward", pa.array(total, mask=~applied))
    for name, values in (
        ("outcome_time", pa.array(first_time, mask=count == 0)),
        ("outcomes", pa.array(count, pa.int32())),
        ("imputed", pa.array((count == 0) & applied)),
        ("before_decision", pa.array(early)),
    ):
        table = table.append_column(name, values)
    corrections = outcomes.filter(pa.array(corrects))
    reason = np.select([unapplied[corrects], late[corrects]], ["not applied", "late"], "trained")
    at = decided[row[corrects]] if len(decided) else np.empty(0)
    for name, values in (("decided_at", at), ("delay", delay[corrects]), ("reason", reason.astype(object))):
        type_ = pa.string() if name == "reason" else pa.float64()
        corrections = corrections.append_column(name, pa.array(values, type_))
    return Joined(
        rows=table.filter(pa.array(in_time & fresh & learned & applied)),
        set_aside=table.filter(pa.array(in_time & fresh & ~(learned & applied))),
        censored=decisions.filter(pa.array(fresh & ~in_time)),
        corrections=corrections,
        unknown=outcomes.filter(pa.array(~known & arrived & first)),
        repeated_outcomes=int((~first).sum()),
        repeated_decisions=given - decisions.num_rows,
        not_yet=int((~arrived & first).sum()),
        trained=int((~fresh).sum()),
    )


def _typed(table: pa.Table, columns: pa.Schema, may_be_null: Sequence[str]) -> pa.Table:
    """The table's columns of this schema, first and cast to its types, then all others."""
    for name in columns.names:
        if name not in table.column_names:
            raise ValueError(f"{name}: missing; the table has {', '.join(table.column_names)}")
        if name not in may_be_null and table[name].null_count:
            raise ValueError(
                f"{name}: {table[name].null_count} of {table.num_rows} rows are null; every row has one"
            )
    others = [name for name in table.column_names if name not in columns.names]
    try:
        typed = table.select(columns.names).cast(columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as fault:
        raise ValueError(f"table: {str(fault).splitlines()[0]}; expected {columns.names}") from fault
    for name in others:
        typed = typed.append_column(name, table[name])
    return typed


def _first_of_each(decisions: pa.Table) -> pa.Table:
    code = decisions["event_id"].combine_chunks().dictionary_encode()
    if len(code.dictionary) == decisions.num_rows:
        return decisions
    _, first = np.unique(code.indices.to_numpy(), return_index=True)
    return decisions.take(pa.array(np.sort(first)))


def _first_of_repeated(
    row: np.ndarray, time: np.ndarray, reward: np.ndarray, source: pa.ChunkedArray
) -> np.ndarray:
    """False for an outcome that is, word for word, one that came before it; those of unknown events are all first."""
    first = np.ones(len(row), bool)
    several = np.flatnonzero((np.bincount(row[row >= 0], minlength=1) > 1)[row] & (row >= 0))
    if len(several):
        who = source.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
        keys = [of[several] for of in (who, reward, time, row)]
        order = np.lexsort(keys)
        same = np.all([np.diff(key[order]) == 0 for key in keys], axis=0)
        first[several[order[1:][same]]] = False
    return first
