"""Rows of steps from tables of any origin, put together into whole episodes; their values are judged elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peira.evaluation.off_policy.tables import (
    Fields,
    flags,
    flat_lists,
    numbers,
    texts,
    vectors,
    whole_numbers,
)
from peira.experience.schema import SYNTHETIC

FIELDS = (
    "episode_id",
    "step",
    "observation",
    "action",
    "reward",
    "terminated",
    "truncated",
    "propensity",
    "behaviour_log_prob",
    "behaviour_probs",
    "action_set",
    "final_observation",
    "error",
    "source",
    "created_at",
)
"""What is read of a log: the columns of a step, and `behaviour_probs`, the chooser's probability of every action."""


class Steps(NamedTuple):
    """Rows in the order of episodes and steps, as `Log` describes them, and what is said of their probability.

    An empty row of `action_set` stands for all actions.
    """

    episode_id: pa.LargeStringArray
    offset: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    truncated: np.ndarray
    observation: np.ndarray | None
    final_observation: np.ndarray | None
    final_episode: np.ndarray | None
    propensity: np.ndarray | None
    behaviour_log_prob: np.ndarray | None
    behaviour_probs: np.ndarray | None
    action_set: np.ndarray | None
    created_at: np.ndarray | None
    left_out: int
    no_observation: str


class StepsReader:
    """What was read so far: compact arrays a batch, put together and sorted at the end.

    Raises ValueError, in one line, for columns that are missing or hold something else, for synthetic steps, and where
    rows are no whole episodes.
    """

    def __init__(self, fields: Fields, one_step: bool, observations: bool):
        self.fields, self.one_step = fields, one_step
        self.rows = 0
        self.reason = "the log has no column of that name" if observations else "observations were not read"
        self.run_id: list[pa.Array] = []
        self.run_length: list[np.ndarray] = []
        self.run_time: list[np.ndarray] = []
        self.columns: dict[str, list[np.ndarray | None]] = {}
        self.finals: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, table: pa.Table) -> None:
        rows = table.num_rows
        ids = self._ids(table, rows)
        step = (
            np.zeros(rows, np.int64)
            if self.one_step
            else whole_numbers(self._required(table, "step"), "step")
        )

        def place(row: int) -> str:
            return f"episode {ids[row]}, step {step[row]}"

        changes = pc.not_equal(ids.slice(1), ids.slice(0, rows - 1)).to_numpy(zero_copy_only=False)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        self.run_id.append(ids.take(pa.array(starts)))
        self.run_length.append(np.diff(starts, append=rows))
        self.run_time.append(_seconds(self.fields.of(table, "created_at"), rows)[starts])
        self._refuse_synthetic(table, place)
        self._put("step", step)
        self._put("reward", numbers(self._required(table, "reward"), "reward"))
        self._put("action", _actions(self._required(table, "action"), place))
        for name in ("propensity", "behaviour_log_prob"):
            column = self.fields.of(table, name)
            self._put(name, None if column is None else numbers(column, name))
        column = self.fields.of(table, "behaviour_probs")
        self._put("behaviour_probs", None if column is None else vectors(column, "behaviour_probs", place))
        column = self.fields.of(table, "action_set")
        self._put("action_set", None if column is None else _action_sets(column, place))
        self._put_ends(table, rows)
        self._put_observations(table, place)
        self.rows += rows

    def steps(self) -> Steps:
        """Everything that was added, sorted; of no use afterwards."""
        encoded = pa.chunked_array(self.run_id).combine_chunks().dictionary_encode()
        episode_id, run_code = encoded.dictionary, encoded.indices.to_numpy()
        run_length, run_time = np.concatenate(self.run_length), np.concatenate(self.run_time)
        time = run_time[np.unique(run_code, return_index=True)[1]]
        self.code = np.repeat(run_code, run_length)
        self.order: np.ndarray | None = None
        self.offset = np.concatenate([[0], np.cumsum(np.bincount(self.code))])
        step = self._sorted("step")
        if (np.diff(self.code) < 0).any() or (step != self._expected_step()).any():
            self.order = np.lexsort((step, self.code))
            step, self.code = step[self.order], self.code[self.order]
        failed = np.zeros(len(episode_id), bool)
        if (error := self._sorted("error")) is not None:
            failed[self.code[error]] = True
        if failed.any():
            kept = np.flatnonzero(~failed[self.code])
            self.order = kept if self.order is None else self.order[kept]
            step = step[kept]
            self.code = (np.cumsum(~failed) - 1)[self.code[kept]]
            episode_id, time = episode_id.filter(pa.array(~failed)), time[~failed]
            if not len(episode_id):
                raise ValueError(
                    f"log: all of its {len(failed)} episodes ended in an error; give one that did not"
                )
            self.offset = np.concatenate([[0], np.cumsum(np.bincount(self.code))])
        self._check_steps(step, episode_id)
        del step
        truncated = self._truncated(episode_id)
        observation, final_observation, final_episode = self._observations(truncated)
        action = self._sorted("action")
        return Steps(
            episode_id=episode_id,
            offset=self.offset,
            action=action if action.dtype.kind == "i" else action.reshape(len(action), -1),
            reward=self._sorted("reward"),
            truncated=truncated,
            observation=observation,
            final_observation=final_observation,
            final_episode=final_episode,
            propensity=self._sorted("propensity"),
            behaviour_log_prob=self._sorted("behaviour_log_prob"),
            behaviour_probs=self._sorted("behaviour_probs"),
            action_set=self._sorted("action_set"),
            created_at=None if np.isnan(time).any() else time,
            left_out=int(failed.sum()),
            no_observation=self.reason,
        )

    # -- one batch -----------------------------------------------------------------------------------------

    def _put(self, name: str, values: np.ndarray | None) -> None:
        self.columns.setdefault(name, []).append(values)

    def _required(self, table: pa.Table, name: str) -> pa.Array:
        column = self.fields.of(table, name)
        if column is None:
            raise ValueError(
                f"{name}: the log has no such column; name the one that holds it with columns={{'{name}': …}}"
            )
        return column

    def _ids(self, table: pa.Table, rows: int) -> pa.LargeStringArray:
        column = self.fields.of(table, "episode_id")
        if column is None and self.one_step:
            return pa.array(np.arange(self.rows, self.rows + rows)).cast(pa.large_string())
        return texts(self._required(table, "episode_id"), "episode_id")

    def _refuse_synthetic(self, table: pa.Table, place: Callable[[int], str]) -> None:
        column = self.fields.of(table, "source")
        if column is None:
            return
        synthetic = pc.is_in(column.cast(pa.string()), value_set=pa.array(SYNTHETIC))
        synthetic = synthetic.to_numpy(zero_copy_only=False)
        if synthetic.any():
            row = int(np.argmax(synthetic))
            raise ValueError(
                f"source: {place(row)} was {column[row]}, chosen by no known policy and in no real world; "
                "evaluate on what really happened"
            )

    def _put_ends(self, table: pa.Table, rows: int) -> None:
        column = self.fields.of(table, "error")
        self._put("error", None if column is None else column.is_valid().to_numpy(zero_copy_only=False))
        if self.one_step:
            self._put("terminated", np.ones(rows, bool))
            self._put("truncated", np.zeros(rows, bool))
            return
        given = {name: self.fields.of(table, name) for name in ("terminated", "truncated")}
        if given["terminated"] is None and given["truncated"] is None:
            self._required(table, "terminated")
        for name, column in given.items():
            self._put(name, np.zeros(rows, bool) if column is None else flags(column, name))

    def _put_observations(self, table: pa.Table, place: Callable[[int], str]) -> None:
        column = self.fields.of(table, "observation")
        values = None if column is None else _features(column, "observation", place)
        if isinstance(values, str):
            self.reason, values = values, None
        self._put("observation", values)
        column = self.fields.of(table, "final_observation")
        if values is None or column is None:
            return
        # Not a number is how some tools write that there is none.
        valid = (
            pc.and_(column.is_valid(), pc.invert(pc.is_nan(column)))
            if _is_float(column)
            else column.is_valid()
        )
        there = np.flatnonzero(valid.fill_null(False).to_numpy(zero_copy_only=False))
        if len(there):
            final = _final_features(column.take(pa.array(there)), values, lambda row: place(int(there[row])))
            self.finals.append((self.rows + there, final))

    # -- all of it -----------------------------------------------------------------------------------------

    def _sorted(self, name: str) -> np.ndarray | None:
        """A column of all rows in the order of episodes and steps; None where no batch had it."""
        joined = _joined(name, self.columns.pop(name), self.run_rows)
        return joined if joined is None or self.order is None else joined[self.order]

    @cached_property
    def run_rows(self) -> list[int]:
        return [int(lengths.sum()) for lengths in self.run_length]

    def _expected_step(self) -> np.ndarray:
        return np.arange(len(self.code)) - self.offset[self.code]

    def _check_steps(self, step: np.ndarray, episode_id: pa.Array) -> None:
        wrong = step != self._expected_step()
        if not wrong.any():
            return
        row = int(np.argmax(wrong))
        name = f"episode {episode_id[int(self.code[row])]}"
        first = row == self.offset[self.code[row]]
        if not first and step[row] == step[row - 1]:
            raise ValueError(f"step: {name} has step {step[row]} twice; give every step of an episode once")
        if first:
            raise ValueError(f"step: {name} begins at step {step[row]}, expected 0; give whole episodes")
        raise ValueError(
            f"step: {name} goes from step {step[row - 1]} to step {step[row]}; give whole episodes without gaps"
        )

    def _truncated(self, episode_id: pa.Array) -> np.ndarray:
        terminated, cut = self._sorted("terminated"), self._sorted("truncated")
        ended, last = terminated | cut, self.offset[1:] - 1
        if not ended[last].all():
            episode = int(np.argmin(ended[last]))
            steps = int(self.offset[episode + 1] - self.offset[episode])
            raise ValueError(
                f"terminated, truncated: the last row (step {steps - 1}) of episode {episode_id[episode]} has neither; "
                "mark where it was cut as truncated"
            )
        ended[last] = False
        if ended.any():
            row = int(np.argmax(ended))
            episode = int(self.code[row])
            raise ValueError(
                f"terminated, truncated: episode {episode_id[episode]} goes on after it ended at step "
                f"{row - self.offset[episode]}; give what follows its own episode_id"
            )
        return (cut & ~terminated)[last]

    def _observations(
        self, truncated: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        lacking = sum(part is None for part in self.columns["observation"])
        if 0 < lacking < len(self.run_length):
            raise ValueError("observation: some steps have one and others none; give every step one")
        observation = self._sorted("observation")
        if observation is None or not self.finals:
            return observation, None, None
        row = np.concatenate([rows for rows, _ in self.finals])
        values = _joined("final_observation", [values for _, values in self.finals], [])
        values = values.reshape(len(values), *observation.shape[1:])
        if self.order is not None:
            position = np.full(self.rows, -1)
            position[self.order] = np.arange(len(self.order))
            row = position[row]
        chosen = np.flatnonzero(row >= 0)
        chosen = chosen[np.argsort(row[chosen])]
        episode = self.code[row[chosen]]
        matters = truncated[episode] & (row[chosen] == self.offset[episode + 1] - 1)
        chosen, episode = chosen[matters], episode[matters]
        return (observation, values[chosen], episode) if len(chosen) else (observation, None, None)


def _actions(column: pa.Array, place: Callable[[int], str]) -> np.ndarray:
    values = _features(column, "action", place)
    if isinstance(values, str):
        raise ValueError(f"action: {values}; number the actions 0, 1, …, or give vectors of numbers")
    return values


def _action_sets(column: pa.Array, place: Callable[[int], str]) -> np.ndarray:
    """Which actions each set holds; a null row holds none yet, and means all."""
    values, length = flat_lists(column, "action_set")
    rows = np.repeat(np.arange(len(length)), np.maximum(length, 0))
    if (length == 0).any():
        raise ValueError(
            f"action_set: empty in {place(int(np.argmax(length == 0)))}; leave it null if all can be chosen"
        )
    if pa.types.is_nested(column.type) and pa.types.is_boolean(column.type.value_type):
        starts = np.concatenate([[0], np.cumsum(np.maximum(length, 0))])
        rows, values = rows[values == 1], (np.arange(len(values)) - starts[rows])[values == 1]
    elif (wrong := (values < 0) | (values != np.round(values))).any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"action_set: expected numbers of actions from 0, came {values[at]:g} in {place(int(rows[at]))}; "
            "number the actions from 0"
        )
    sets = np.zeros((len(length), int(values.max(initial=-1)) + 1), bool)
    sets[rows, values.astype(np.int64)] = True
    return sets


def _features(column: pa.Array, field: str, place: Callable[[int], str]) -> np.ndarray | str:
    """Whole numbers [rows], other numbers [rows, width]; parts of a structure side by side; or why there are none."""
    type_ = column.type
    if pa.types.is_integer(type_) or pa.types.is_boolean(type_):
        return whole_numbers(column, field)
    if pa.types.is_floating(type_):
        return numbers(column, field)[:, None]
    if pa.types.is_struct(type_):
        parts = [_features(part, field, place) for part in column.flatten()]
        if texts_among := [part for part in parts if isinstance(part, str)]:
            return texts_among[0]
        return np.column_stack(parts).astype(np.float64)
    if pa.types.is_nested(type_) or (pa.types.is_string(type_) and _looks_like_list(column)):
        return vectors(column, field, place)
    return f"the column holds {type_}, which is no number"


def _final_features(column: pa.Array, observation: np.ndarray, place: Callable[[int], str]) -> np.ndarray:
    # Among absent ones whole numbers may have become others.
    if observation.ndim == 1:
        return whole_numbers(column, "final_observation")
    values = _features(column, "final_observation", place)
    if isinstance(values, str) or values.shape[1:] != observation.shape[1:]:
        raise ValueError(
            f"final_observation: expected {observation.shape[1]} numbers like an observation, came {column.type}"
        )
    return values


def _is_float(column: pa.Array) -> bool:
    return pa.types.is_floating(column.type)


def _looks_like_list(column: pa.Array) -> bool:
    return bool(pc.all(pc.starts_with(column, "[")).as_py())


def _seconds(column: pa.Array | None, rows: int) -> np.ndarray:
    if column is None:
        return np.full(rows, np.nan)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            column = column.cast(pa.timestamp("us", "UTC"))
        except pa.ArrowInvalid as error:
            raise ValueError(f"created_at: expected times such as 2026-01-31T12:00:00Z: {error}") from error
    if pa.types.is_timestamp(column.type):
        return numbers(column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()), "created_at") / 1e6
    return numbers(column, "created_at")


def _joined(name: str, parts: list[np.ndarray | None], rows: list[int]) -> np.ndarray | None:
    """The parts of a column one after another; where a part is absent, missing values or empty sets."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    if any(part.ndim != there[0].ndim for part in there):
        # Vectors of one number that happened to be whole in some batch.
        there = [part.reshape(len(part), -1) for part in there]
        parts = [None if part is None else part.reshape(len(part), -1) for part in parts]
    widths = {part.shape[1:] for part in there}
    if len(widths) > 1 and name == "action_set":
        widest = max(widths)[0]
        parts = [
            None if part is None else np.pad(part, ((0, 0), (0, widest - part.shape[1]))) for part in parts
        ]
    elif len(widths) > 1:
        sizes = sorted(shape[0] for shape in widths)
        raise ValueError(f"{name}: expected as many numbers in every row, came {sizes[0]} and {sizes[-1]}")
    if len(there) < len(parts):
        shape = next(part for part in parts if part is not None).shape[1:]
        empty = False if name in ("action_set", "error") else np.nan
        parts = [
            np.full((count, *shape), empty) if part is None else part
            for part, count in zip(parts, rows, strict=True)
        ]
    return np.concatenate(parts)
