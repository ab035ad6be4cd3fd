"""Minari data sets, HDF5 or Arrow, in and out.

Minari has slots for observation, action, reward, terminated and truncated. Other numbers go to `infos` under
their own names; what Minari cannot hold (text, bytes, nulls) goes as an Arrow stream in base64 to the info
`peira_columns`, so that nothing is lost on the way back, and provenance is repeated in the episode's metadata
for people.
"""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from peira.experience.episode import Episode, episode_ids, episodes_to_table, from_arrow, is_number, to_arrow
from peira.experience.schema import Source
from peira.experience.store import Store

_SLOTS = ("observation", "action", "reward", "terminated", "truncated")
_RESIDUE = "peira_columns"
_SCHEMA = "peira_schema"
_FINAL_KNOWN = "peira_final_observation"
_DERIVED = ("episode_id", "step", "final_observation")


def write_minari(store: Store, target: Path, name: str, data_format: str) -> None:
    """Write the store as a Minari data set in the folder `target`, as `minari.load_dataset` expects it."""
    schema = store.schema
    storage = MinariStorage.new(
        _made(target / "data"),
        observation_space=_space(store, schema.field("observation")),
        action_space=_space(store, schema.field("action")),
        data_format=data_format,
        jpeg_encoding=False,
    )
    storage.update_metadata(
        {
            "dataset_id": name,
            "minari_version": minari.__version__,
            "description": "Exported from a Peira store",
            _SCHEMA: base64.b64encode(schema.serialize().to_pybytes()).decode(),
        }
    )
    plain = _plain_columns(store)
    ids = store.read(columns=["episode_id"])["episode_id"].unique()
    for index, episode_id in enumerate(ids.to_pylist()):
        rows = store.read(episode_ids=[episode_id]).combine_chunks()
        storage.update_episodes([_buffer(index, rows, plain)])
        storage.update_episode_metadata([_about(rows)], [index])


def read_minari(path: Path) -> Iterator[pa.Table]:
    """Rows of a Minari data set, episode by episode; exact if `write_minari` wrote it."""
    if not (path / "metadata.json").exists():
        path = path / "data"
    try:
        storage = MinariStorage.read(path)
    except ValueError as error:
        raise ValueError(f"path: {path} holds no Minari data set: {error}") from error
    indices = range(storage.total_episodes)
    about = storage.get_episode_metadata(indices)
    raw = storage.metadata.get(_SCHEMA)
    schema = None if raw is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(raw)))
    identity = str(storage.metadata.get("dataset_id", path))
    for index, episode, notes in zip(indices, storage.get_episodes(indices), about, strict=True):
        if schema is not None:
            yield _rows(episode, notes, schema)
        else:
            yield episodes_to_table([_foreign(episode, notes, identity, index)])


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _space(store: Store, field: pa.Field) -> gym.Space:
    type_ = field.type
    if pa.types.is_struct(type_):
        return gym.spaces.Dict({entry.name: _space_of_block(entry) for entry in type_})
    if pa.types.is_integer(type_):
        bounds = pc.min_max(store.read(columns=[field.name])[field.name]).as_py()
        start = min(bounds["min"], 0)
        return gym.spaces.Discrete(bounds["max"] - start + 1, start=start)
    if pa.types.is_string(type_):
        longest = pc.max(pc.utf8_length(store.read(columns=[field.name])[field.name])).as_py()
        return gym.spaces.Text(max_length=max(longest, 1))
    if pa.types.is_binary(type_):
        longest = pc.max(pc.binary_length(store.read(columns=[field.name])[field.name])).as_py()
        return gym.spaces.Box(0, 255, (max(longest, 1),), np.uint8)
    return _space_of_block(field)


def _space_of_block(field: pa.Field) -> gym.Space:
    type_ = field.type
    if not pa.types.is_fixed_size_list(type_) or not is_number(type_.value_type):
        raise ValueError(
            f"{field.name}: Minari has no space for {type_}; export to Parquet or JSON lines, which hold "
            f"any column"
        )
    dtype = np.dtype(type_.value_type.to_pandas_dtype())
    shape = from_arrow(pa.nulls(1, type_), field.metadata).shape[1:]
    if dtype.kind == "f":
        return gym.spaces.Box(-np.inf, np.inf, shape, dtype)
    limits = np.iinfo(dtype)
    return gym.spaces.Box(limits.min, limits.max, shape, dtype)


def _plain_columns(store: Store) -> set[str]:
    """Columns of numbers that no row lacks: Minari wants the same infos in every episode."""
    return {
        field.name
        for field in store.schema
        if _holds_numbers(field.type) and store.read(columns=[field.name])[field.name].null_count == 0
    }


def _buffer(index: int, rows: pa.Table, plain: set[str]) -> EpisodeBuffer:
    length = rows.num_rows
    infos, residue = {}, []
    for field in rows.schema:
        if field.name in _DERIVED:
            continue
        if field.name in _SLOTS:
            if not _holds_numbers(field.type):
                residue.append(field.name)
        elif field.name in plain and not pa.types.is_struct(field.type):
            infos[field.name] = _padded(rows[field.name].combine_chunks())
        else:
            residue.append(field.name)
    infos[_RESIDUE] = _as_text(rows.select(residue), length + 1)
    reward = from_arrow(rows["reward"].combine_chunks())
    return EpisodeBuffer(
        id=index,
        observations=_observations(rows),
        actions=_slot(rows["action"].combine_chunks(), rows.schema.field("action").metadata),
        rewards=np.ma.filled(reward, np.nan) if isinstance(reward, np.ma.MaskedArray) else reward,
        terminations=rows["terminated"].to_numpy(),
        truncations=rows["truncated"].to_numpy(),
        infos=infos,
    )


def _about(rows: pa.Table) -> dict[str, Any]:
    notes = {"episode_id": rows["episode_id"][0].as_py(), _FINAL_KNOWN: bool(_has_final(rows))}
    for name in ("source", "policy_id", "policy_version", "task_id"):
        if name in rows.column_names and len(rows[name].unique()) == 1 and rows[name].null_count == 0:
            notes[name] = rows[name][0].as_py()
    return notes


def _has_final(rows: pa.Table) -> bool:
    return "final_observation" in rows.column_names and rows["final_observation"][-1].is_valid


def _observations(rows: pa.Table) -> Any:
    """One more than steps: last what the last step led to, NaN (or a repetition) if it was not recorded."""
    column, metadata = rows["observation"].combine_chunks(), rows.schema.field("observation").metadata
    if _has_final(rows):
        last = rows["final_observation"].combine_chunks().slice(rows.num_rows - 1)
        return _slot(pa.concat_arrays([column, last]), metadata)
    values = _slot(column, metadata)
    return _one_more(values)


def _one_more(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _one_more(part) for name, part in values.items()}
    if isinstance(values, list):
        return [*values, values[-1]]
    last = np.full_like(values[-1:], np.nan) if values.dtype.kind == "f" else values[-1:]
    return np.concatenate([values, last])


def _slot(column: pa.Array, metadata: dict[bytes, bytes] | None) -> Any:
    values = from_arrow(column, metadata)
    if pa.types.is_binary(column.type):
        width = max(max(map(len, values)), 1)
        return np.stack([np.frombuffer(value.ljust(width, b"\0"), np.uint8) for value in values])
    return values


def _holds_numbers(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return all(_is_block(entry.type) for entry in type_)
    return is_number(type_) or _is_block(type_)


def _is_block(type_: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(type_) and is_number(type_.value_type) and type_.list_size > 0


def _padded(column: pa.Array) -> Any:
    """An info a step plus the one after the last, which holds no meaning."""
    values = from_arrow(column)
    values = np.concatenate([values, np.zeros_like(values[:1])])
    # Minari's Arrow format cannot read back a one-dimensional array, a list of scalars it can.
    return list(values) if values.ndim == 1 else values


def _as_text(rows: pa.Table, count: int) -> list[str]:
    """The rows as an Arrow stream in base64, cut into `count` pieces."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(rows)
    text = base64.b64encode(sink.getvalue().to_pybytes()).decode()
    width = -(-len(text) // count)
    return [text[start * width : (start + 1) * width] for start in range(count)]


def _from_text(pieces: Any) -> pa.Table:
    text = "".join(piece.decode() if isinstance(piece, bytes) else piece for piece in pieces)
    return pa.ipc.open_stream(pa.py_buffer(base64.b64decode(text))).read_all()


def _rows(episode: dict[str, Any], notes: dict[str, Any], schema: pa.Schema) -> pa.Table:
    length = len(episode["rewards"])
    infos = episode["infos"] or {}
    residue = _from_text(infos[_RESIDUE])
    slots = {
        "observation": episode["observations"],
        "action": episode["actions"],
        "reward": episode["rewards"],
        "terminated": episode["terminations"],
        "truncated": episode["truncations"],
    }
    columns = []
    for field in schema:
        if field.name == "episode_id":
            column = pa.repeat(str(notes["episode_id"]), length)
        elif field.name == "step":
            column = pa.array(np.arange(length, dtype=np.int32))
        elif field.name in residue.column_names:
            column = residue[field.name].combine_chunks()
        elif field.name == "final_observation":
            column = _final(slots["observation"], field.type, length, bool(notes.get(_FINAL_KNOWN)))
        elif field.name in slots:
            column = _typed(_cut(slots[field.name], 0, length), field)
        else:
            column = _typed(_cut(infos[field.name], 0, length), field)
        columns.append(column)
    table = pa.table(columns, schema=schema)
    if "error" in schema.names:
        crashed = table["error"].is_valid()
        reward = pc.if_else(crashed, pa.scalar(None, schema.field("reward").type), table["reward"])
        table = table.set_column(schema.get_field_index("reward"), schema.field("reward"), reward)
    return table


def _cut(values: Any, start: int, stop: int) -> Any:
    if isinstance(values, dict):
        return {name: _cut(part, start, stop) for name, part in values.items()}
    return values[start:stop]


def _typed(values: Any, field: pa.Field) -> pa.Array:
    if isinstance(values, dict):
        parts = [_typed(values[entry.name], entry) for entry in field.type]
        return pa.StructArray.from_arrays(parts, fields=list(field.type))
    if pa.types.is_fixed_size_list(field.type):
        flat = np.ascontiguousarray(values, field.type.value_type.to_pandas_dtype()).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type)
    return pa.array(np.asarray(values)).cast(field.type)


def _final(observations: Any, type_: pa.DataType, length: int, known: bool) -> pa.Array:
    nothing = pa.nulls(length, type_)
    if not known:
        return nothing
    last = _typed(_cut(observations, length, length + 1), pa.field("final_observation", type_))
    return pa.concat_arrays([nothing.slice(1), last])


def _foreign(episode: dict[str, Any], notes: dict[str, Any], identity: str, index: int) -> Episode:
    """An episode of somebody else's data set: infos become columns `info_…`, aligned with the observation."""
    length = len(episode["rewards"])
    columns: dict[str, Any] = {
        "observation": _cut(_unpacked(episode["observations"]), 0, length),
        "action": _unpacked(episode["actions"]),
        "reward": np.asarray(episode["rewards"]),
        "terminated": np.asarray(episode["terminations"], bool),
        "truncated": np.asarray(episode["truncations"], bool),
    }
    if not (columns["terminated"][-1] or columns["truncated"][-1]):
        columns["truncated"] = np.append(columns["truncated"][:-1], True)
    columns["final_observation"] = _only_last(
        _cut(_unpacked(episode["observations"]), length, length + 1), length
    )
    for name, values in (episode["infos"] or {}).items():
        values = _unpacked(values)
        columns[f"info_{name}"] = _cut(values, 0, length)
        columns[f"final_info_{name}"] = _only_last(_cut(values, length, length + 1), length)
    if columns["reward"].dtype.kind != "f":
        columns["reward"] = columns["reward"].astype(np.float64)
    if "seed" in notes:
        columns["info_seed"] = np.full(length, int(notes["seed"]))
    return Episode(
        id=episode_ids(f"minari:{identity}", index, 1, 0)[0],
        columns={name: values for name, values in columns.items() if values is not None},
        source=Source.LOGGED.value,
        policy_id=identity,
        created_at=datetime.now(UTC),
    )


def _unpacked(values: Any) -> Any:
    """Minari's nested observations as dicts of arrays; text as a list."""
    if isinstance(values, dict):
        return {name: _unpacked(part) for name, part in values.items()}
    if isinstance(values, tuple):
        return {str(position): _unpacked(part) for position, part in enumerate(values)}
    values = np.asarray(values)
    if values.dtype.kind in "OSU":
        return [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]
    return values


def _only_last(values: Any, length: int) -> Any:
    """The one entry on the last of `length` rows, null before; None if there is no such entry."""
    if isinstance(values, dict):
        array, _ = to_arrow(values)
        return pa.concat_arrays([pa.nulls(length - len(array), array.type), array]) if len(array) else None
    if len(values) == 0:
        return None
    if isinstance(values, list):
        return [None] * (length - 1) + values
    spread = np.zeros((length, *values.shape[1:]), values.dtype)
    spread[-1] = values[0]
    absent = np.ones(spread.shape, bool)
    absent[-1] = False
    return np.ma.MaskedArray(spread, mask=absent)
