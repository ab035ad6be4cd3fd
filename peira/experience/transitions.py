"""A log as learners without an environment read it: transitions in memory, episode after episode."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peira.experience.episode import from_arrow, is_number
from peira.experience.exchange import format_of, read_batches
from peira.experience.schema import check_whole_episodes, episode_offsets, first_not_finite
from peira.experience.store import DIRECTORY, Store

_COLUMNS = ("episode_id", "step", "observation", "action", "reward", "terminated", "truncated")
_MAYBE = ("final_observation", "error", "source")


@dataclass(frozen=True)
class TransitionLog:
    """Transitions of continuous actions; the rows of an episode are adjacent and in the order of its steps.

    observation       what the action was chosen on
    action            in the environment's units
    next_observation  what the step led to; where an episode terminated its value does not matter
    terminated        the episode ended by its rules: nothing more was to be had
    truncated         it was cut (a time limit, the end of the recording); true at most on its last row
    first             first row of each episode, and the number of rows at the end
    left_out          episodes that were left out because their world failed
    """

    observation: Float[Tensor, "rows obs"]
    action: Float[Tensor, "rows act"]
    reward: Float[Tensor, " rows"]
    next_observation: Float[Tensor, "rows obs"]
    terminated: Bool[Tensor, " rows"]
    truncated: Bool[Tensor, " rows"]
    first: Int[Tensor, " bounds"]
    left_out: int = 0

    @property
    def rows(self) -> int:
        return len(self.reward)

    @property
    def episodes(self) -> int:
        return len(self.first) - 1

    @property
    def observation_size(self) -> int:
        return self.observation.shape[1]

    @property
    def action_size(self) -> int:
        return self.action.shape[1]

    @property
    def length(self) -> Int[Tensor, " episodes"]:
        """Steps of each episode."""
        return self.first.diff()

    def episode_of(self) -> Int[Tensor, " rows"]:
        """The number of the episode that each row belongs to."""
        return torch.repeat_interleave(torch.arange(self.episodes), self.length)

    def returns(self) -> Float[Tensor, " episodes"]:
        """Undiscounted sum of the rewards of each episode."""
        total = torch.zeros(self.episodes, dtype=torch.float64)
        return total.index_add_(0, self.episode_of(), self.reward.double()).to(self.reward.dtype)

    def of_episodes(self, numbers: Int[Tensor, " chosen"]) -> TransitionLog:
        """The episodes of these numbers, in this order."""
        chosen = [torch.arange(self.first[n], self.first[n + 1]) for n in numbers.tolist()]
        first = torch.zeros(len(numbers) + 1, dtype=torch.int64)
        first[1:] = self.length[numbers].cumsum(0)
        return replace(self.take(torch.cat(chosen)), first=first)

    def take(self, rows: Int[Tensor, " taken"]) -> TransitionLog:
        """These rows of every column; `first` stays, and holds only where whole episodes are taken."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        per_row = {n: v[rows] for n, v in columns.items() if n not in ("first", "left_out")}
        return replace(self, **per_row)


def read_transitions(path: str | os.PathLike) -> TransitionLog:
    """The transitions of a store, a run's folder, a Parquet or JSON-lines file, or a Minari data set.

    Raises ValueError where there is none of these, and as `from_table` does.
    """
    local = Path(path)
    named_store = os.fspath(path).rstrip("/").endswith(".lance")
    if named_store or "://" in os.fspath(path) or (local / DIRECTORY).exists():
        store = Store.open(
            path, mode="a"
        )  # Makes nothing; "r" would call a missing store a fault of the disk.
        if len(store) == 0:
            raise ValueError(f"log: there is no store in {path}; name the folder that holds {DIRECTORY}")
        names = store.schema.names
        return from_table(store.read(columns=[name for name in (*_COLUMNS, *_MAYBE) if name in names]))
    if not local.exists():
        raise ValueError(
            f"log: {path} does not exist; name a store, a run's folder, a file or a Minari data set"
        )
    wanted = {*_COLUMNS, *_MAYBE}
    tables = list(read_batches(local, format_of(local, None), keep=wanted.__contains__))
    if not tables:
        raise ValueError(f"log: {path} holds no step; give at least one episode")
    return from_table(pa.concat_tables(tables, promote_options="default"))


def from_table(table: pa.Table) -> TransitionLog:
    """The transitions of a table of steps, whole episodes one after another.

    Structured observations are laid side by side, their parts in alphabetical order as Gymnasium flattens them.
    Episodes whose world failed (`error`) are left out. Raises ValueError, which names the column, for discrete actions,
    observations that are not numbers, numbers that are not finite, episodes that are not whole, and truncated episodes
    of which nobody recorded what the last step led to.
    """
    for name in _COLUMNS:
        if name not in table.column_names:
            raise ValueError(f"{name}: the log has no such column; a log of steps has {', '.join(_COLUMNS)}")
    if table.num_rows == 0:
        raise ValueError("log: holds no step; give at least one episode")
    check_whole_episodes(table)
    table, left_out = _without_failures(table)
    for name in _COLUMNS:
        if table[name].null_count:
            raise ValueError(
                f"{name}: {table[name].null_count} of {table.num_rows} rows are null; every step has one"
            )
    for name in ("observation", "action", "reward", "final_observation"):
        if name in table.column_names and (row := first_not_finite(table[name])) is not None:
            raise ValueError(
                f"{name}: expected finite numbers, got {table[name][row].as_py()} in episode "
                f"{table['episode_id'][row]}, step {table['step'][row]}; find their source"
            )
    offsets = episode_offsets(table)
    observation = _vectors(table, "observation")
    terminated, truncated = (np.array(table[name].to_numpy(), bool) for name in ("terminated", "truncated"))
    return TransitionLog(
        observation=torch.from_numpy(observation),
        action=torch.from_numpy(_actions(table)),
        reward=torch.from_numpy(np.array(table["reward"].to_numpy(), np.float32)),
        next_observation=torch.from_numpy(_next_observation(table, observation, terminated, offsets)),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated),
        first=torch.from_numpy(offsets.astype(np.int64)),
        left_out=left_out,
    )


def concatenate(logs: Iterable[TransitionLog]) -> TransitionLog:
    """The episodes of several logs, one log after another."""
    logs = list(logs)
    starts = np.cumsum([0, *(log.rows for log in logs)])
    columns = {
        field.name: torch.cat([getattr(log, field.name) for log in logs])
        for field in fields(TransitionLog)
        if field.name not in ("first", "left_out")
    }
    bounds = [log.first[:-1] + int(start) for log, start in zip(logs, starts, strict=False)]
    first = torch.cat([*bounds, torch.tensor([int(starts[-1])])])
    return TransitionLog(**columns, first=first, left_out=sum(log.left_out for log in logs))


def _without_failures(table: pa.Table) -> tuple[pa.Table, int]:
    if "error" not in table.column_names or table["error"].null_count == table.num_rows:
        return table, 0
    offsets = episode_offsets(table)
    failed = table["error"].is_valid().to_numpy()[offsets[1:] - 1]
    if failed.all():
        raise ValueError(f"error: the world of all {len(failed)} episodes failed; give a log with others")
    rows = np.repeat(~failed, np.diff(offsets))
    return table.filter(pa.array(rows)), int(failed.sum())


def _actions(table: pa.Table) -> np.ndarray:
    type_ = table.schema.field("action").type
    entry = type_.value_type if pa.types.is_fixed_size_list(type_) else type_
    if not pa.types.is_floating(entry):
        raise ValueError(
            f"action: expected vectors of floating-point numbers, got {type_}: continuous policies learn from "
            "continuous actions only"
        )
    return _flat(table["action"].combine_chunks(), table.schema.field("action"))


def _vectors(table: pa.Table, name: str) -> np.ndarray:
    field = table.schema.field(name)
    return _flat(table[name].combine_chunks(), field)


def _flat(values: pa.Array, field: pa.Field) -> np.ndarray:
    """float32 [rows, size]; a row that is null is 0."""
    type_ = field.type
    if pa.types.is_struct(type_):
        parts = zip(type_, values.flatten(), strict=True)
        return np.concatenate(
            [_flat(part, entry) for entry, part in sorted(parts, key=lambda pair: pair[0].name)], axis=1
        )
    block = pa.types.is_fixed_size_list(type_) and is_number(type_.value_type)
    if not block and not pa.types.is_floating(type_):
        raise ValueError(f"{field.name}: expected vectors of numbers, got {type_}; encode what is none")
    numbers = from_arrow(values, field.metadata)
    if isinstance(numbers, np.ma.MaskedArray):
        numbers = numbers.filled(0)
    return np.array(numbers, np.float32).reshape(len(values), -1)


def _next_observation(
    table: pa.Table, observation: np.ndarray, terminated: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    following = np.concatenate([observation[1:], observation[-1:]])
    last = offsets[1:] - 1
    following[last] = observation[last]
    known = np.zeros(len(last), bool)
    if "final_observation" in table.column_names:
        known = table["final_observation"].is_valid().to_numpy()[last]
        final = table.select(["final_observation"]).take(pa.array(last[known]))
        if known.any():
            following[last[known]] = _vectors(final, "final_observation")
    missing = np.flatnonzero(~known & ~terminated[last])
    if missing.size:
        raise ValueError(
            f"final_observation: episode {table['episode_id'][int(last[missing[0]])]} was truncated and nobody "
            f"recorded what its last step led to ({missing.size} of {len(last)} episodes); record it, or drop their "
            "last steps"
        )
    return following
