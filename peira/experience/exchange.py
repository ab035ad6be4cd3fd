"""Import and export: Parquet, JSON lines and Minari, without loss."""

import base64
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from peira.experience.schema import VOCABULARY, episode_offsets
from peira.experience.store import Store

FORMATS = ("parquet", "jsonl", "minari", "minari-arrow")
_ROWS_AT_ONCE = 65_536
_ROWS_A_FILE = 1_000_000
_SCHEMA_KEY = "peira_schema"


def import_into(store: Store, path: str | os.PathLike, format: str | None = None) -> int:
    """Append the episodes of a file or folder to the store and return their number.

    Episodes whose id the store has are left out, so an import that broke off can be repeated. Raises
    ValueError for an unknown format and for rows that are not legal steps.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"path: {path} does not exist; give a file or folder to import")
    chosen = format_of(path, format)
    tables = read_batches(path, chosen)
    # A Minari data set comes episode by episode.
    whole = tables if chosen.startswith("minari") else whole_episodes(tables)
    return sum(store.append(table, skip_existing=True) for table in whole)


def read_batches(
    path: str | os.PathLike, format: str, keep: Callable[[str], bool] | None = None
) -> Iterator[pa.Table]:
    """Rows of a file or folder as they lie there, some thousands at a time; Minari's episode by episode.

    `keep` says of a column's name whether it is wanted; Parquet does not read the others at all.
    """
    path = Path(path)
    if format == "parquet":
        yield from _parquet_batches(path, keep)
        return
    tables = _json_batches(path) if format == "jsonl" else _minari_format().read_minari(path)
    for table in tables:
        yield table if keep is None else table.select([name for name in table.column_names if keep(name)])


def export(store: Store, path: str | os.PathLike, format: str | None = None) -> int:
    """Write every row of the store to a new file or folder and return the number of episodes.

    `minari` writes HDF5, `minari-arrow` Arrow files. The target appears when it is complete.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"path: {path} exists; give a new name or remove it")
    chosen = format_of(path, format)
    partial = path.with_name(f"{path.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    path.parent.mkdir(parents=True, exist_ok=True)
    if chosen == "parquet":
        _write_parquet(store, partial, one_file=path.suffix == ".parquet")
    elif chosen == "jsonl":
        _write_json_lines(store, partial, zipped=path.suffix == ".gz")
    else:
        _minari_format().write_minari(
            store, partial, path.name, "arrow" if chosen == "minari-arrow" else "hdf5"
        )
    partial.rename(path)
    return sum(1 for _ in _first_steps(store))


def _first_steps(store: Store) -> Iterator[int]:
    for batch in store.batches(["step"]):
        yield from (step for step in batch["step"].to_pylist() if step == 0)


def format_of(path: Path, format: str | None, known: Sequence[str] = FORMATS) -> str:
    """`format` if it is given and known, else the one that the name or the folder tells.

    Raises ValueError, which lists those `known`, for an unknown format and where nothing tells.
    """
    if format is not None:
        if format not in known:
            raise ValueError(f"format: {format!r} is none of {', '.join(known)}")
        return format
    name = path.name
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")):
        return "jsonl"
    if path.is_dir():
        if any(path.rglob("*.parquet")) and not (path / "data").exists():
            return "parquet"
        return "minari"
    raise ValueError(f"format: cannot tell from the name {name!r}; say one of {', '.join(known)}")


def _minari_format() -> ModuleType:
    try:
        from peira.experience import minari_format
    except ModuleNotFoundError as error:
        raise ValueError(f"format: Minari needs {error.name}; pip install 'peira[data]'") from error
    return minari_format


def whole_episodes(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows regrouped into large tables that no episode straddles."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= _ROWS_AT_ONCE:
            merged = pa.concat_tables(waiting)
            last = int(episode_offsets(merged)[-2])
            waiting = [merged.slice(last)]
            if last:
                yield merged.slice(0, last)
    waiting = [part for part in waiting if part.num_rows]
    if waiting:
        yield pa.concat_tables(waiting)


# -- Parquet -----------------------------------------------------------------------------------------------


def _write_parquet(store: Store, target: Path, one_file: bool) -> None:
    if one_file:
        with pq.ParquetWriter(target, store.schema, compression="zstd") as writer:
            for batch in store.batches():
                writer.write_batch(batch)
        return
    target.mkdir()
    writer, rows, part = None, 0, 0
    for batch in store.batches():
        if writer is None:
            writer = pq.ParquetWriter(target / f"part-{part:05d}.parquet", store.schema, compression="zstd")
        writer.write_batch(batch)
        rows += batch.num_rows
        if rows >= _ROWS_A_FILE:
            writer.close()
            writer, rows, part = None, 0, part + 1
    if writer is not None:
        writer.close()


def _parquet_batches(path: Path, keep: Callable[[str], bool] | None) -> Iterator[pa.Table]:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"path: {path} holds no .parquet file; give a Parquet file or a folder of them")
    for file in files:
        try:
            with pq.ParquetFile(file) as source:
                schema = source.schema_arrow
                if keep is not None:
                    schema = pa.schema([field for field in schema if keep(field.name)], schema.metadata)
                for batch in source.iter_batches(batch_size=_ROWS_AT_ONCE, columns=schema.names):
                    yield pa.Table.from_batches([batch], schema)
        except pa.ArrowInvalid as error:
            raise ValueError(f"path: {file} is not Parquet: {str(error).splitlines()[0]}") from error


# -- JSON lines: a header with the exact types, then an object a step --------------------------------------


@contextmanager
def _text(path: Path, mode: str, zipped: bool) -> Iterator[Any]:
    # Only the outer stream names no file inside the archive, so equal stores give equal bytes.
    with path.open(mode + "b") as raw:
        stream = gzip.GzipFile("", mode + "b", fileobj=raw, mtime=0) if zipped else raw
        try:
            yield stream
        finally:
            stream.close()


def _write_json_lines(store: Store, target: Path, zipped: bool) -> None:
    schema = store.schema
    with _text(target, "w", zipped) as stream:
        header = {_SCHEMA_KEY: base64.b64encode(schema.serialize().to_pybytes()).decode()}
        stream.write(json.dumps(header).encode() + b"\n")
        for batch in store.batches():
            columns = {
                field.name: [_to_json(value, field.type) for value in batch[field.name].to_pylist()]
                for field in schema
            }
            for row in zip(*columns.values(), strict=True):
                entry = {name: value for name, value in zip(columns, row, strict=True) if value is not None}
                stream.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")


def _json_batches(path: Path) -> Iterator[pa.Table]:
    with _text(path, "r", path.suffix == ".gz") as stream:
        schema, rows = None, []
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"path: line {number} of {path} is not JSON: {error}") from error
            if not isinstance(entry, dict):
                raise ValueError(f"path: line {number} of {path} is no object; put one step on each line")
            if _SCHEMA_KEY in entry:
                schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(entry[_SCHEMA_KEY])))
                continue
            rows.append(entry)
            if len(rows) >= _ROWS_AT_ONCE and schema is not None:
                yield _from_rows(rows, schema)
                rows = []
        if rows:
            yield _from_rows(rows, schema if schema is not None else _schema_of(rows))


def _from_rows(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = [_from_json(row.get(field.name), field.type) for row in rows]
        type_ = field.type
        if pa.types.is_dictionary(type_):
            columns.append(pa.array(values, type_.value_type).dictionary_encode().cast(type_))
        else:
            columns.append(pa.array(values, type_))
    return pa.table(columns, schema=schema)


def _schema_of(rows: list[dict[str, Any]]) -> pa.Schema:
    """Types of a log that came without a header: the step's own where known, vectors where lengths agree."""
    fields = []
    for name in dict.fromkeys(name for row in rows for name in row):
        type_ = VOCABULARY.get(name)
        if type_ is None:
            values = [row[name] for row in rows if row.get(name) is not None]
            type_ = pa.array(values).type
            lengths = {len(value) for value in values} if pa.types.is_list(type_) else set()
            if len(lengths) == 1 and (
                pa.types.is_floating(type_.value_type) or pa.types.is_integer(type_.value_type)
            ):
                type_ = pa.list_(pa.float32(), lengths.pop())
        fields.append(pa.field(name, type_))
    return pa.schema(fields)


def _to_json(value: Any, type_: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return base64.b64encode(value).decode()
    if pa.types.is_timestamp(type_):
        return value.isoformat()
    if pa.types.is_struct(type_):
        return {field.name: _to_json(value[field.name], field.type) for field in type_}
    if _is_list(type_) and not _is_plain(type_.value_type):
        return [_to_json(entry, type_.value_type) for entry in value]
    return value


def _from_json(value: Any, type_: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return base64.b64decode(value)
    if pa.types.is_timestamp(type_):
        return datetime.fromisoformat(value)
    if pa.types.is_struct(type_):
        return {field.name: _from_json(value.get(field.name), field.type) for field in type_}
    if _is_list(type_) and not _is_plain(type_.value_type):
        return [_from_json(entry, type_.value_type) for entry in value]
    return value


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _is_plain(type_: pa.DataType) -> bool:
    return (pa.types.is_primitive(type_) and not pa.types.is_timestamp(type_)) or pa.types.is_string(type_)
