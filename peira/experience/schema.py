"""The columns of a step: their names, their Arrow types, and what makes a table of steps legal."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class Source(StrEnum):
    """The world a step comes from."""

    REAL = "real"
    REPLAYED = "replayed"
    DREAMED = "dreamed"
    GUIDED = "guided"
    HUMAN = "human"
    LOGGED = "logged"


_SOURCE_NAMES = pa.array([source.value for source in Source])
SYNTHETIC = (Source.DREAMED, Source.GUIDED)
SOURCE_TYPE = pa.dictionary(pa.int8(), pa.string())
TIMESTAMP_TYPE = pa.timestamp("us", tz="UTC")
ANNOTATION = {b"peira": b"annotation"}

REQUIRED = {
    "episode_id": pa.string(),
    "step": pa.int32(),
    "observation": None,
    "action": None,
    "reward": pa.float32(),
    "terminated": pa.bool_(),
    "truncated": pa.bool_(),
    "source": SOURCE_TYPE,
    "created_at": TIMESTAMP_TYPE,
}
# None: the type follows the log (an action set is whatever a logger recorded).
OPTIONAL = {
    "task_id": pa.string(),
    "group_id": pa.string(),
    "instruction_id": pa.string(),
    "behaviour_log_prob": pa.float32(),
    "action_tokens": pa.list_(pa.int64()),
    "action_set": None,
    "propensity": pa.float32(),
    "policy_id": pa.string(),
    "policy_version": pa.int64(),
    "intervention": pa.bool_(),
    "parent_episode_id": pa.string(),
    "final_observation": None,
    "error": pa.string(),
}
VOCABULARY = {**REQUIRED, **OPTIONAL}

# What else a column may hold: language policies keep a log-probability a token, foreign logs keep their
# doubles.
_ALSO_ALLOWED = {
    "reward": (pa.float64(),),
    "behaviour_log_prob": (pa.list_(pa.float32()), pa.float64()),
    "propensity": (pa.float64(),),
    "action_tokens": (pa.list_(pa.int32()),),
}
_FINITE = ("observation", "action", "reward", "behaviour_log_prob", "propensity", "final_observation")
_NO_POLICY_CHOSE_IT = ("behaviour_log_prob", "propensity")


def step_schema(
    observation: pa.DataType,
    action: pa.DataType,
    *,
    optional: Iterable[str] = (),
    extra: Mapping[str, pa.DataType] | None = None,
    reward: pa.DataType | None = None,
    behaviour_log_prob: pa.DataType | None = None,
) -> pa.Schema:
    """Schema of the steps of one run.

    `optional` names the columns of the vocabulary which this run has, `extra` adds columns of your own.
    Raises ValueError for a name that is not in the vocabulary.
    """
    optional = set(optional)
    unknown = optional - OPTIONAL.keys()
    if unknown:
        raise ValueError(
            f"optional: {sorted(unknown)[0]!r} is no column of a step; "
            f"choose among {', '.join(OPTIONAL)}, or give it a type in `extra`"
        )
    types = {
        **VOCABULARY,
        "observation": observation,
        "action": action,
        "final_observation": observation,
        "action_set": pa.list_(action),
    }
    if reward is not None:
        types["reward"] = reward
    if behaviour_log_prob is not None:
        types["behaviour_log_prob"] = behaviour_log_prob
    names = [name for name in VOCABULARY if name in REQUIRED or name in optional]
    fields = [pa.field(name, types[name]) for name in names]
    fields += [pa.field(name, type_) for name, type_ in (extra or {}).items()]
    return pa.schema(fields)


def source_array(source: str, length: int) -> pa.DictionaryArray:
    """`length` rows of one source, dictionary-encoded over all six names."""
    return encode_sources(np.full(length, list(Source).index(Source(source)), np.int8))


def encode_sources(indices: np.ndarray) -> pa.DictionaryArray:
    """Dictionary array from int8 positions in `Source`."""
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), _SOURCE_NAMES)


def validate(table: pa.Table) -> pa.Table:
    """The table, with `source` in its canonical encoding, if its rows are legal steps of whole episodes.

    Raises ValueError with one line that names the column, what came and what to do.
    """
    _check_columns(table)
    table = _canonical_sources(table)
    _check_provenance(table)
    _check_values(table)
    check_whole_episodes(table)
    return table


def episode_offsets(table: pa.Table) -> np.ndarray:
    """Row at which each run of equal episode ids starts, and the number of rows at the end."""
    ids = table["episode_id"].combine_chunks()
    if len(ids) == 0:
        return np.zeros(1, np.int64)
    changes = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.flatnonzero(changes) + 1, [len(ids)]])


def check_whole_episodes(table: pa.Table) -> None:
    """Raise ValueError unless every episode's rows are adjacent, count from step 0 and end."""
    if table.num_rows == 0:
        return
    offsets = episode_offsets(table)
    first, last = offsets[:-1], offsets[1:] - 1
    ids = table["episode_id"]
    if len(first) != pc.count_distinct(ids).as_py():
        seen = pc.value_counts(ids.combine_chunks().take(pa.array(first)))
        twice = next(entry["values"] for entry in seen.to_pylist() if entry["counts"] > 1)
        raise ValueError(
            f"episode_id: the rows of {twice} are not adjacent; put the rows of an episode one after another"
        )
    step = table["step"].to_numpy()
    expected = np.arange(table.num_rows) - np.repeat(first, np.diff(offsets))
    wrong = np.flatnonzero(step != expected)
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(
            f"step: row {row} of episode {ids[row]} says {step[row]}, expected {expected[row]}; "
            "append whole episodes whose steps count 0, 1, 2, …"
        )
    ended = _ended(table)
    unfinished = np.flatnonzero(~ended[last])
    if unfinished.size:
        row = int(last[unfinished[0]])
        raise ValueError(
            f"terminated, truncated: the last row (step {step[row]}) of episode {ids[row]} has neither "
            f"and no "
            "error; append an episode when it is over, or mark where it was cut as truncated"
        )
    over_early = ended.copy()
    over_early[last] = False
    if over_early.any():
        row = int(np.flatnonzero(over_early)[0])
        raise ValueError(
            f"terminated, truncated: episode {ids[row]} goes on after it ended at step {step[row]}; "
            "give what follows its own episode_id"
        )


def _ended(table: pa.Table) -> np.ndarray:
    ended = table["terminated"].to_numpy() | table["truncated"].to_numpy()
    if "error" in table.column_names:
        ended = ended | table["error"].is_valid().to_numpy()
    return ended


def _check_columns(table: pa.Table) -> None:
    names = table.column_names
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repeated}: comes more than once; name each column once")
    for name in REQUIRED:
        if name not in names:
            raise ValueError(
                f"{name}: missing; a step has {', '.join(REQUIRED)} (see peira.experience.schema.step_schema)"
            )
    for field in table.schema:
        expected = VOCABULARY.get(field.name)
        allowed = () if expected is None else (expected, *_ALSO_ALLOWED.get(field.name, ()))
        dictionary_of_names = field.name == "source" and _is_text(field.type)
        if allowed and field.type not in allowed and not dictionary_of_names:
            raise ValueError(
                f"{field.name}: expected {' or '.join(map(str, allowed))}, came {field.type}; "
                "cast the column before appending"
            )
    for name in REQUIRED:
        column = table[name]
        nulls = column.null_count
        if name == "reward" and "error" in table.column_names:
            nulls = pc.sum(pc.and_(column.is_null(), table["error"].is_null())).as_py() or 0
        if nulls:
            raise ValueError(
                f"{name}: {nulls} of {table.num_rows} rows are null; every step has one "
                "(only the reward of a step that ended in `error` may be null)"
            )


def _is_text(type_: pa.DataType) -> bool:
    value_type = type_.value_type if pa.types.is_dictionary(type_) else type_
    return pa.types.is_string(value_type) or pa.types.is_large_string(value_type)


def _canonical_sources(table: pa.Table) -> pa.Table:
    names = _SOURCE_NAMES
    column = table["source"]
    indices = [
        chunk.indices
        if pa.types.is_dictionary(chunk.type) and chunk.dictionary.equals(names) and chunk.type == SOURCE_TYPE
        else pc.index_in(chunk.cast(pa.string()), value_set=names).cast(pa.int8())
        for chunk in column.chunks
    ]
    merged = pa.chunked_array(indices, type=pa.int8()).combine_chunks()
    if merged.null_count:
        row = int(np.flatnonzero(merged.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(
            f"source: {column[row].as_py()!r} in row {row} is none of {', '.join(Source)}; "
            "say which world the step comes from"
        )
    canonical = pa.DictionaryArray.from_arrays(merged, names)
    return table.set_column(table.column_names.index("source"), "source", canonical)


def _check_provenance(table: pa.Table) -> None:
    claims = [name for name in _NO_POLICY_CHOSE_IT if name in table.column_names]
    if not claims or table.num_rows == 0:
        return
    position = table["source"].chunk(0).indices.to_numpy()
    synthetic = np.isin(position, [list(Source).index(source) for source in SYNTHETIC])
    if not synthetic.any():
        return
    for name in claims:
        wrong = synthetic & table[name].is_valid().to_numpy()
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{name}: row {row} was {table['source'][row].as_py()} yet carries "
                f"{table[name][row].as_py()}; "
                f"no known policy chose a synthetic step, so leave its {name} null"
            )


def _check_values(table: pa.Table) -> None:
    for name in _FINITE:
        if name in table.column_names:
            row = first_not_finite(table[name])
            if row is not None:
                raise ValueError(
                    f"{name}: row {row} (episode {table['episode_id'][row]}, step {table['step'][row]}) "
                    f"holds "
                    f"{table[name][row].as_py()}; steps hold finite numbers, find out what produced it"
                )


def first_not_finite(column: pa.ChunkedArray) -> int | None:
    """First row with a NaN or an infinity; nulls, integers and text pass."""
    start = 0
    for chunk in column.chunks:
        row = _first_not_finite(chunk)
        if row is not None:
            return start + row
        start += len(chunk)
    return None


def _first_not_finite(values: pa.Array) -> int | None:
    if pa.types.is_floating(values.type):
        if values.null_count:
            values = values.fill_null(0.0)
        finite = np.isfinite(values.to_numpy())
        return None if finite.all() else int(np.argmin(finite))
    if pa.types.is_fixed_size_list(values.type) and values.type.list_size:
        if values.null_count:
            kept = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
            row = _first_not_finite(values.drop_null())
            return None if row is None else int(kept[row])
        row = _first_not_finite(values.flatten())
        return None if row is None else row // values.type.list_size
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        row = _first_not_finite(values.flatten())
        return None if row is None else pc.list_parent_indices(values)[row].as_py()
    if pa.types.is_struct(values.type):
        rows = [_first_not_finite(part) for part in values.flatten()]
        return min((row for row in rows if row is not None), default=None)
    return None
