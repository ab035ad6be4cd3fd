"""One episode in memory, its identity, and the way to Arrow and back."""

import base64
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from peira.experience.schema import TIMESTAMP_TYPE, VOCABULARY, episode_offsets, source_array

_MICROSECOND = np.dtype("datetime64[us]")


@dataclass(frozen=True)
class Episode:
    """The steps of one episode and where they come from.

    `columns` maps a column's name to one entry a step: a numpy array `[step, …]` (masked where the store
    holds null), a list for text, bytes and ragged entries, or a dict of these for a structured column. A
    provenance scalar holds for all steps; a column of the same name in `columns` (say a `policy_version` that
    changed half way) wins over it.
    """

    id: str
    columns: Mapping[str, Any]
    source: str | None = "real"
    task_id: str | None = None
    group_id: str | None = None
    instruction_id: str | None = None
    policy_id: str | None = None
    policy_version: int | None = None
    parent_episode_id: str | None = None
    created_at: datetime | None = field(default_factory=lambda: datetime.now(UTC))

    def __len__(self) -> int:
        return len(self.columns["reward"])

    @property
    def return_(self) -> float:
        """Undiscounted sum of the rewards that were given."""
        return float(np.ma.sum(np.ma.asarray(self.columns["reward"], np.float64)))

    @property
    def error(self) -> str | None:
        """Why the environment crashed, None if it did not."""
        errors = self.columns.get("error")
        return None if errors is None else errors[-1]

    def to_table(self) -> pa.Table:
        """The episode's rows."""
        length = len(self)
        rows: dict[str, tuple[pa.Array, dict | None]] = {
            "episode_id": (pa.repeat(self.id, length), None),
            "step": (pa.array(np.arange(length, dtype=np.int32)), None),
        }
        for name in _PROVENANCE:
            value = getattr(self, name)
            if value is None or name in self.columns:
                continue
            if name == "source":
                rows[name] = (source_array(value, length), None)
            else:
                rows[name] = (pa.repeat(pa.scalar(value, VOCABULARY[name]), length), None)
        for name, values in self.columns.items():
            rows[name] = to_arrow(values)
        order = [name for name in VOCABULARY if name in rows] + [
            name for name in rows if name not in VOCABULARY
        ]
        schema = pa.schema([pa.field(name, rows[name][0].type, metadata=rows[name][1]) for name in order])
        return pa.table([rows[name][0] for name in order], schema=schema)

    @classmethod
    def from_table(cls, table: pa.Table) -> "Episode":
        """The episode whose rows the table holds, in the order of their steps."""
        episodes = list(split_episodes(table))
        if len(episodes) != 1:
            raise ValueError(f"episode_id: expected the rows of 1 episode, came those of {len(episodes)}")
        return episodes[0]


_PROVENANCE = tuple(item.name for item in fields(Episode) if item.name not in ("id", "columns"))


def episodes_to_table(episodes: Iterable[Episode]) -> pa.Table:
    """Rows of several episodes; where an episode lacks a column that another has, its rows are null."""
    tables = [episode.to_table() for episode in episodes]
    if not tables:
        raise ValueError("episodes: expected at least one, came none")
    return pa.concat_tables(tables, promote_options="default")


def split_episodes(table: pa.Table) -> Iterator[Episode]:
    """Episodes of a table in which the rows of each are adjacent."""
    offsets = episode_offsets(table)
    for start, stop in itertools.pairwise(offsets):
        yield _episode(table.slice(start, stop - start))


def _episode(table: pa.Table) -> Episode:
    columns: dict[str, Any] = {}
    provenance: dict[str, Any] = dict.fromkeys(_PROVENANCE)
    for column_field, column in zip(table.schema, table.columns, strict=True):
        name = column_field.name
        if name in ("episode_id", "step") or column.null_count == len(column):
            continue
        values = column.combine_chunks()
        if name in _PROVENANCE and values.null_count == 0 and len(values.unique()) == 1:
            provenance[name] = values[0].as_py()
        else:
            columns[name] = from_arrow(values, column_field.metadata)
    return Episode(id=table["episode_id"][0].as_py(), columns=columns, **provenance)


def to_arrow(values: Any) -> tuple[pa.Array, dict[str, str] | None]:
    """An Arrow array of one entry a step, and the field metadata that keeps the shape of an entry.

    Arrays with more than one axis become fixed-size lists; a masked entry becomes null.
    """
    if isinstance(values, pa.Array):
        return values, None
    if isinstance(values, Mapping):
        parts = {name: to_arrow(part) for name, part in values.items()}
        entries = [pa.field(name, part.type, metadata=shape) for name, (part, shape) in parts.items()]
        return pa.StructArray.from_arrays([part for part, _ in parts.values()], fields=entries), None
    if not isinstance(values, np.ndarray):
        return pa.array(values), None
    if values.dtype.kind == "M":
        return pa.array(values.astype(_MICROSECOND)).cast(TIMESTAMP_TYPE), None
    if values.ndim == 1:
        return pa.array(values), None
    rows, size = len(values), int(np.prod(values.shape[1:]))
    mask = None
    if isinstance(values, np.ma.MaskedArray):
        mask = pa.array(np.ma.getmaskarray(values).reshape(rows, -1).all(axis=1))
        values = values.data
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    shape = {"shape": json.dumps(list(values.shape[1:]))} if values.ndim > 2 else None
    return pa.FixedSizeListArray.from_arrays(flat, size, mask=mask), shape


def from_arrow(values: pa.Array, metadata: Mapping[bytes, bytes] | None = None) -> Any:
    """The inverse of `to_arrow`: numpy where an entry is a number or a block of numbers, a list otherwise."""
    type_ = values.type
    if pa.types.is_dictionary(type_):
        return values.cast(type_.value_type).to_pylist()
    if pa.types.is_struct(type_):
        parts = values.flatten()
        return {
            entry.name: from_arrow(part, entry.metadata) for entry, part in zip(type_, parts, strict=True)
        }
    if pa.types.is_timestamp(type_):
        return values.to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(type_) and is_number(type_.value_type):
        return _blocks(values, metadata)
    if not is_number(type_):
        return values.to_pylist()
    if values.null_count == 0:
        return values.to_numpy(zero_copy_only=False)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    filled = values.fill_null(False if pa.types.is_boolean(type_) else 0)
    return np.ma.MaskedArray(filled.to_numpy(zero_copy_only=False), mask=missing)


def _blocks(values: pa.FixedSizeListArray, metadata: Mapping[bytes, bytes] | None) -> np.ndarray:
    size = values.type.list_size
    shape = json.loads(metadata[b"shape"]) if metadata and b"shape" in metadata else [size]
    if values.null_count == 0:
        return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), *shape)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    filled = np.zeros((len(values), size), values.type.value_type.to_pandas_dtype())
    filled[~missing] = values.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    mask = np.broadcast_to(missing[:, None], filled.shape)
    return np.ma.MaskedArray(filled, mask=mask).reshape(len(values), *shape)


def is_number(type_: pa.DataType) -> bool:
    """Whether numpy holds one entry of this type as a scalar."""
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)


def episode_ids(run_id: str, count_from: int, n: int, timestamp_ms: int) -> list[str]:
    """`n` ULIDs that depend on nothing but the arguments, so that a resumed run makes the same ones again.

    48 bits of time, then 80 bits of blake2b(run id, counter).
    """
    key = hashlib.blake2b(run_id.encode(), digest_size=32).digest()
    head = timestamp_ms.to_bytes(6, "big")
    return [
        _ulid(head + hashlib.blake2b(counter.to_bytes(8, "big"), key=key, digest_size=10).digest())
        for counter in range(count_from, count_from + n)
    ]


_TO_CROCKFORD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789ABCDEFGHJKMNPQRSTVWXYZ")


def _ulid(value: bytes) -> str:
    # 26 letters hold 130 bits: two zero bits, then the 128 of the value. Thirty bits of padding fill 20
    # bytes.
    padded = (int.from_bytes(value, "big") << 30).to_bytes(20, "big")
    return base64.b32encode(padded)[:26].translate(_TO_CROCKFORD).decode()
