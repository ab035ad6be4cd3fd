"""From blocks of steps `[time, env, …]` to whole episodes: rows leave when their episode is over."""

import time
from typing import Any

import numpy as np
import pyarrow as pa

from peira.experience.episode import episode_ids, to_arrow
from peira.experience.schema import TIMESTAMP_TYPE, VOCABULARY, Source, encode_sources, source_array

# These columns say something of an episode's last step only, which never waits for a later block.
_OF_THE_LAST_STEP = ("final_observation", "error")
_SOURCE_POSITION = {source.value: position for position, source in enumerate(Source)}


class EpisodeAssembler:
    """Collects blocks of `num_envs` parallel streams and gives out the rows of episodes once they are
    complete.

    Episode ids depend on `run_id`, `started_ms` and the number of episodes before, so a resumed run makes the
    same ones. Episodes that are not over stay here.
    """

    def __init__(self, num_envs: int, run_id: str, started_ms: int):
        self.num_envs = num_envs
        self.run_id = run_id
        self.started_ms = started_ms
        self.episodes_completed = 0
        self._blocks: list[_Block] = []
        self._constants: dict[str, tuple[str, pa.Array]] = {}

    def add(self, columns: dict[str, np.ndarray], **provenance: Any) -> pa.Table:
        """Rows of every episode that this block completes, env by env; an empty table if it completes none.

        `columns` maps names to `[time, env, …]` arrays: `observation`, `action`, `reward`, `terminated`,
        `truncated` and any other column of a step. `final_observation` is dense like `observation` (what each
        step led to); it is kept where an episode was truncated and is null elsewhere. `error` holds text
        where an environment crashed, None elsewhere, and ends the episode; the reward of that step becomes
        null. `provenance` (`source`, `policy_id`, `policy_version`, `task_id`, …) holds for all steps of this
        block.
        """
        shape = np.shape(columns["reward"])
        if len(shape) != 2 or shape[1] != self.num_envs:
            raise ValueError(
                f"reward: expected shape [time, {self.num_envs}], came {list(shape)}; pass blocks whole"
            )
        for name, values in columns.items():
            if np.shape(values)[:2] != shape:
                raise ValueError(
                    f"{name}: expected shape [{shape[0]}, {shape[1]}, …], came {list(np.shape(values))}"
                )
        done = columns["terminated"] | columns["truncated"]
        errors = columns.get("error")
        if errors is not None:
            done = done | (errors != None)  # noqa: E711 - elementwise
        provenance = {
            "source": Source.REAL.value,
            "created_at": time.time_ns() // 1000,
            **{name: value for name, value in provenance.items() if value is not None},
        }
        kept = {name: np.array(values) for name, values in columns.items() if name not in _OF_THE_LAST_STEP}
        self._blocks.append(_Block(kept, provenance, np.zeros(self.num_envs, np.int64)))
        if not done.any():
            return pa.table({})

        # Per env: the rows up to its last end in this block leave, and all that waited for it.
        last = np.where(done.any(axis=0), len(done) - 1 - done[::-1].argmax(axis=0), -1)
        leaving = []
        for block in self._blocks:
            stop = last + 1 if block is self._blocks[-1] else np.where(last >= 0, block.length, 0)
            if (stop > block.start).any():
                leaving.append((block, block.take_until(stop)))
        self._blocks = [block for block in self._blocks if (block.start < block.length).any()]
        return self._table(leaving, columns)

    def _table(self, leaving: list[tuple["_Block", np.ndarray]], newest: dict[str, np.ndarray]) -> pa.Table:
        # Rows come out env by env and, within an env, oldest first. Small integers sort by radix.
        env = np.concatenate([rows % self.num_envs for _, rows in leaving]).astype(np.uint16)
        count = len(env)
        order = np.argsort(env, kind="stable")
        gathered = {name: _gather(name, leaving, order) for name in leaving[-1][0].columns}
        ended = gathered["terminated"] | gathered["truncated"]
        arrays: dict[str, tuple[pa.Array, dict | None]] = {}
        newest_rows = leaving[-1][1]
        newest_places = np.flatnonzero(order >= count - len(newest_rows))
        if "error" in newest:
            errors = np.full(count, None, object)
            errors[newest_places] = newest["error"].reshape(-1)[newest_rows]
            crashed = errors != None  # noqa: E711 - elementwise
            ended = ended | crashed
            arrays["error"] = pa.array(errors, pa.string()), None
            if crashed.any():
                gathered["reward"] = np.ma.MaskedArray(gathered["reward"], mask=crashed)
        if "final_observation" in newest:
            arrays["final_observation"] = _final_observation(newest, newest_rows, newest_places, count)

        ends = np.flatnonzero(ended)
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        ids = episode_ids(self.run_id, self.episodes_completed, len(ends), self.started_ms)
        self.episodes_completed += len(ends)
        arrays["episode_id"] = _repeat(ids, lengths.tolist()), None
        arrays["step"] = pa.array((np.arange(count) - np.repeat(starts, lengths)).astype(np.int32)), None
        for name, values in gathered.items():
            arrays[name] = to_arrow(values)
        block_of_row = np.repeat(np.arange(len(leaving)), [len(rows) for _, rows in leaving])[order]
        for name in leaving[-1][0].provenance:
            if name not in arrays:
                values = [block.provenance.get(name) for block, _ in leaving]
                arrays[name] = self._provenance(name, values, block_of_row), None
        names = [name for name in VOCABULARY if name in arrays]
        names += [name for name in arrays if name not in VOCABULARY]
        schema = pa.schema([pa.field(name, arrays[name][0].type, metadata=arrays[name][1]) for name in names])
        return pa.table([arrays[name][0] for name in names], schema=schema)

    def _provenance(self, name: str, values: list[Any], block_of_row: np.ndarray) -> pa.Array:
        """One value a block, spread over the rows. What all blocks share is a slice of an array made once."""
        type_ = pa.int64() if name == "created_at" else VOCABULARY.get(name)
        if isinstance(values[0], str) and values.count(values[0]) == len(values):
            value, held = self._constants.get(name, (None, ()))
            if value != values[0] or len(held) < len(block_of_row):
                length = 2 * len(block_of_row)
                held = source_array(values[0], length) if name == "source" else pa.repeat(values[0], length)
                self._constants[name] = values[0], held
            return held.slice(0, len(block_of_row))
        if name == "source":
            return encode_sources(
                np.array([_SOURCE_POSITION[value] for value in values], np.int8)[block_of_row]
            )
        if isinstance(values[0], int) and None not in values:
            spread = pa.array(np.array(values)[block_of_row])
        else:
            spread = pa.array(values, type_).take(pa.array(block_of_row))
        return spread.view(TIMESTAMP_TYPE) if name == "created_at" else spread

    def state_dict(self) -> dict[str, Any]:
        """Counters and waiting steps as numbers, strings, lists and arrays."""
        return {
            "num_envs": self.num_envs,
            "run_id": self.run_id,
            "started_ms": self.started_ms,
            "episodes_completed": self.episodes_completed,
            "blocks": [block.state_dict() for block in self._blocks],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; ids and waiting steps go on from there."""
        if state["num_envs"] != self.num_envs:
            raise ValueError(
                f"num_envs: expected {self.num_envs}, came {state['num_envs']}; resume with the same envs"
            )
        self.run_id = state["run_id"]
        self.started_ms = state["started_ms"]
        self.episodes_completed = state["episodes_completed"]
        self._blocks = [_Block.from_state(block) for block in state["blocks"]]


def _gather(name: str, leaving: list[tuple["_Block", np.ndarray]], order: np.ndarray) -> np.ndarray:
    parts = [block.flat(name).take(rows, axis=0) for block, rows in leaving]
    return parts[0] if len(parts) == 1 else np.concatenate(parts).take(order, axis=0)


def _repeat(texts: list[str], counts: list[int]) -> pa.Array:
    """Each text `count` times over, all being equally long; several times faster than a take from Arrow."""
    data = "".join([text * count for text, count in zip(texts, counts, strict=True)]).encode()
    width = len(texts[0].encode())
    offsets = np.arange(0, len(data) + width, width, dtype=np.int32)
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def _final_observation(
    newest: dict[str, np.ndarray], rows: np.ndarray, places: np.ndarray, count: int
) -> tuple[pa.Array, dict | None]:
    """Null but for truncated rows, all of which are in the newest block: whoever is over waits no longer."""
    dense = newest["final_observation"]
    cut = newest["truncated"].reshape(-1)[rows] & ~newest["terminated"].reshape(-1)[rows]
    values = np.zeros((count, *dense.shape[2:]), dense.dtype)
    values[places[cut]] = dense.reshape(-1, *dense.shape[2:])[rows[cut]]
    absent = np.ones(count, bool)
    absent[places[cut]] = False
    if dense.ndim == 2:
        return pa.array(values, mask=absent), None
    array, shape = to_arrow(values)
    return pa.FixedSizeListArray.from_arrays(array.values, array.type.list_size, mask=pa.array(absent)), shape


class _Block:
    """A block whose rows before `start[env]` have left."""

    def __init__(self, columns: dict[str, np.ndarray], provenance: dict[str, Any], start: np.ndarray):
        self.columns = columns
        self.provenance = provenance
        self.start = start
        self.length = len(columns["reward"])

    def flat(self, name: str) -> np.ndarray:
        values = self.columns[name]
        return values.reshape(-1, *values.shape[2:])

    def take_until(self, stop: np.ndarray) -> np.ndarray:
        """Flat positions, env by env, of the rows from `start` up to `stop`, which leave."""
        counts = np.maximum(stop - self.start, 0)
        first = np.cumsum(counts) - counts
        at = np.arange(counts.sum()) + np.repeat(self.start - first, counts)
        self.start = self.start + counts
        return at * len(stop) + np.repeat(np.arange(len(stop)), counts)

    def state_dict(self) -> dict[str, Any]:
        return {
            "columns": {
                name: values.tolist() if values.dtype.kind in "OU" else values
                for name, values in self.columns.items()
            },
            "provenance": self.provenance,
            "start": self.start,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "_Block":
        columns = {
            name: np.array(values, object) if isinstance(values, list) else np.array(values)
            for name, values in state["columns"].items()
        }
        return cls(columns, state["provenance"], np.array(state["start"]))
