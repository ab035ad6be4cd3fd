"""Tables of numbers in foreign files: what is read of them, batch by batch, and how columns become arrays.

Unlike an import into the store this keeps no column as it came. Numbers are what is wanted, fast, under whatever name
a file has them, and with no more than a batch in memory.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from peira.experience.exchange import FORMATS, format_of, read_batches
from peira.experience.store import DIRECTORY, Store, StoreError

Progress = Callable[[int, int | None], None]
"""Called with the rows read so far and the number of all rows, None where the file does not say."""
Names = Mapping[str, str | Sequence[str]]
"""The column of a file, or the columns that make up a vector, for a field that has another name there."""

TABLE_FORMATS = ("lance", "csv", *FORMATS)
_ROWS_AT_ONCE = 65_536
_BYTES_AT_ONCE = 16 << 20


class Fields:
    """Which columns of a file hold which fields.

    A field is the column of its own name, or of the name that `columns` gives. A vector may lie in several columns:
    those that `columns` lists, or NAME_0, NAME_1, …. Fields `skipped` are not read even where they are. Raises
    ValueError for a field that is not `known`.
    """

    def __init__(self, known: Sequence[str], columns: Names | None = None, skipped: Sequence[str] = ()):
        for name in columns or {}:
            if name not in known:
                raise ValueError(f"columns: {name!r} is no field; choose among {', '.join(known)}")
        self.known = [name for name in known if name not in skipped]
        self.columns = {name: column for name, column in (columns or {}).items() if name not in skipped}

    def field_of(self, column: str) -> str | None:
        """The field that this column of a file belongs to, wholly or in part."""
        for field, names in self.columns.items():
            if column == names or (not isinstance(names, str) and column in names):
                return field
        stem = re.sub(r"_\d+$", "", column)
        return next(
            (field for field in (column, stem) if field in self.known and field not in self.columns), None
        )

    def of(self, table: pa.Table, field: str) -> pa.Array | None:
        """The field's values in the rows of the table, vectors as lists; None where there is no such column.

        Raises ValueError where a column that was asked for by name is missing.
        """
        names = self.columns.get(field)
        if names is None:
            if field in table.column_names:
                return _whole(table[field])
            numbered = [name for name in table.column_names if re.fullmatch(rf"{re.escape(field)}_\d+", name)]
            if not numbered:
                return None
            names = [f"{field}_{position}" for position in range(len(numbered))]
        for name in [names] if isinstance(names, str) else names:
            if name not in table.column_names:
                raise ValueError(
                    f"{field}: there is no column {name!r}; there are {', '.join(table.column_names)}"
                )
        if isinstance(names, str):
            return _whole(table[names])
        parts = [numbers(_whole(table[name]), name) for name in names]
        flat = np.stack(parts, axis=1).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), len(names))


def table_batches(
    path: str | os.PathLike, fields: Fields, format: str | None = None, progress: Progress | None = None
) -> Iterator[pa.Table]:
    """Rows of a Lance dataset, a Parquet file or folder, JSON lines, CSV or a Minari data set, in batches.

    A Lance dataset is named by its own folder, by the folder of the run that wrote it, or by a URL. Only columns that
    belong to `fields` are kept. Raises ValueError where there is no such file and for what is not of its format.
    """
    name = os.fspath(path)
    if "://" not in name and not Path(name).exists():
        raise ValueError(f"path: {name} does not exist; give a file or folder")
    format = _format(name, format)
    done, total = 0, _total(name, format) if progress is not None else None
    for table in _gathered(_batches(name, format, fields)):
        yield table
        done += table.num_rows
        if progress is not None:
            progress(done, total)


def numbers(column: pa.Array, field: str) -> Float[np.ndarray, " rows"]:
    """One number a row, NaN for null. Raises ValueError where the column holds anything else."""
    if not _is_number(column.type) and not pa.types.is_null(column.type):
        raise ValueError(f"{field}: expected numbers, came {column.type}; give one number a row")
    return column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)


def whole_numbers(column: pa.Array, field: str) -> Int[np.ndarray, " rows"]:
    """One whole number a row. Raises ValueError where the column holds anything else, or nothing in some row."""
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        if column.null_count:
            raise ValueError(f"{field}: {column.null_count} rows are empty; give every row its number")
        return column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    values = numbers(column, field)
    if not (np.isfinite(values) & (values == np.round(values))).all():
        value = values[np.argmin(np.isfinite(values) & (values == np.round(values)))]
        raise ValueError(f"{field}: expected whole numbers, came {value}")
    return values.astype(np.int64)


def flags(column: pa.Array, field: str) -> Bool[np.ndarray, " rows"]:
    """True or False a row, from booleans or from 0 and 1; null is False."""
    if pa.types.is_boolean(column.type):
        return column.fill_null(False).to_numpy(zero_copy_only=False)
    values = np.nan_to_num(numbers(column, field))
    if not np.isin(values, (0.0, 1.0)).all():
        raise ValueError(f"{field}: expected true or false, came {values[~np.isin(values, (0.0, 1.0))][0]:g}")
    return values == 1.0


def texts(column: pa.Array, field: str) -> pa.LargeStringArray:
    """One name a row; numbers are spelled out. Raises ValueError where a row has none."""
    if column.null_count:
        raise ValueError(f"{field}: {column.null_count} rows have none; every row names its episode")
    return column.cast(pa.large_string())


def flat_lists(column: pa.Array, field: str) -> tuple[np.ndarray, Int[np.ndarray, " rows"]]:
    """The numbers of all lists, one list after another, and the length of each; a null row has length −1.

    Lists of lists are laid flat. Text is read as a list in JSON, as CSV has it. Raises ValueError for anything else.
    """
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _from_json_text(column, field)
    if pa.types.is_null(column.type):
        return np.empty(0), np.full(len(column), -1)
    if not _is_list(column.type):
        raise ValueError(f"{field}: expected a list of numbers in each row, came {column.type}")
    absent = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(column.type):
        length = np.full(len(column), column.type.list_size)
        inner = column.drop_null().flatten()
    else:
        length = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        inner = column.flatten()
    length = np.where(absent, 0, length)
    if _is_list(inner.type):
        values, inner_length = flat_lists(inner, field)
        ends = np.concatenate([[0], np.cumsum(np.maximum(inner_length, 0))])
        stops = np.cumsum(length)
        length = ends[stops] - ends[stops - length]
    elif _is_number(inner.type):
        kind = (
            pa.int64() if pa.types.is_integer(inner.type) or pa.types.is_boolean(inner.type) else pa.float64()
        )
        if inner.null_count:
            kind = pa.float64()
        values = inner.cast(kind).to_numpy(zero_copy_only=False)
    elif len(inner) == 0:
        values = np.empty(0)
    else:
        raise ValueError(f"{field}: expected a list of numbers in each row, came {column.type}")
    return values, np.where(absent, -1, length)


def vectors(column: pa.Array, field: str, place: Callable[[int], str]) -> Float[np.ndarray, "rows width"]:
    """Lists of one length, or single numbers, as rows of a matrix; NaN where a row has none.

    Raises ValueError where lengths differ, and for what is no number.
    """
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return numbers(column, field)[:, None]
    values, length = flat_lists(column, field)
    absent = length < 0
    width = int(np.bincount(length[~absent]).argmax()) if not absent.all() else 0
    if not (absent | (length == width)).all():
        row = int(np.argmin(absent | (length == width)))
        raise ValueError(
            f"{field}: expected {width} numbers as in other rows, came {length[row]} in {place(row)}; "
            "give every row the same number of them"
        )
    if not absent.any():
        return values.astype(np.float64).reshape(len(length), width)
    laid = np.full((len(length), width), np.nan)
    laid[~absent] = values.reshape(-1, width)
    return laid


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    merged = column.combine_chunks()
    if isinstance(merged, pa.ChunkedArray):
        merged = pa.concat_arrays(merged.chunks) if merged.num_chunks else pa.array([], merged.type)
    return merged.dictionary_decode() if pa.types.is_dictionary(merged.type) else merged


def _from_json_text(column: pa.Array, field: str) -> pa.Array:
    lines = pc.binary_join_element_wise('{"v":', pc.fill_null(column.cast(pa.string()), "null"), "}", "")
    try:
        text = "\n".join(lines.to_pylist()).encode()
        options = pa.json.ReadOptions(block_size=len(text) + 1)
        return _whole(pa.json.read_json(io.BytesIO(text), options)["v"]) if len(column) else pa.nulls(0)
    except (pa.ArrowInvalid, KeyError) as error:
        first = next(value for value in column.to_pylist() if value is not None)
        raise ValueError(f"{field}: expected lists such as [0.25, 0.75], came {first!r}") from error


# -- files -------------------------------------------------------------------------------------------------


def _format(name: str, format: str | None) -> str:
    if format is None and (
        "://" in name or name.rstrip("/").endswith(".lance") or Path(name, DIRECTORY).exists()
    ):
        return "lance"
    if format is None and name.endswith((".csv", ".csv.gz")):
        return "csv"
    return format_of(Path(name), format, TABLE_FORMATS)


def _total(name: str, format: str) -> int | None:
    if format == "lance":
        return len(Store.open(name))
    if format == "parquet":
        files = Path(name).rglob("*.parquet") if Path(name).is_dir() else [name]
        return sum(pq.read_metadata(file).num_rows for file in files)
    return None


def _batches(name: str, format: str, fields: Fields) -> Iterator[pa.Table]:
    def keep(column: str) -> bool:
        return fields.field_of(column) is not None

    if format == "lance":
        try:
            store = Store.open(name)
        except StoreError as missing:
            raise ValueError(f"path: {missing}") from missing
        # What nothing was ever appended to has no columns yet.
        kept = [column for column in store.schema.names if keep(column)] if len(store) else []
        yield from (pa.Table.from_batches([batch]) for batch in (store.batches(kept) if kept else ()))
    elif format == "jsonl":
        yield from _json_batches(Path(name), fields, keep)
    elif format == "csv":
        yield from _csv_batches(name, fields, keep)
    else:
        yield from read_batches(name, format, keep)


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of some thousands: what is done once a table should not be done once an episode."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in tables:
        if waiting and (rows + table.num_rows > _ROWS_AT_ONCE or table.schema != waiting[0].schema):
            yield pa.concat_tables(waiting)
            waiting, rows = [], 0
        waiting.append(table)
        rows += table.num_rows
    if waiting:
        yield pa.concat_tables(waiting)


def _json_batches(path: Path, fields: Fields, keep: Callable[[str], bool]) -> Iterator[pa.Table]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        line, rest = 1, b""
        while chunk := stream.read(_BYTES_AT_ONCE):
            head, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                rest += chunk
                continue
            block, rest = rest + head + newline, tail
            yield from _json_block(block, line, path, fields, keep)
            line += block.count(b"\n")
        yield from _json_block(rest, line, path, fields, keep)


def _json_block(
    block: bytes, line: int, path: Path, fields: Fields, keep: Callable[[str], bool]
) -> Iterator[pa.Table]:
    if line == 1 and block.lstrip().startswith(b'{"peira_schema"'):
        # The types that an exported store puts in front: numbers need none.
        block, line = block.lstrip().partition(b"\n")[2], 2
    if not block.strip():
        return
    try:
        options = pa.json.ReadOptions(block_size=len(block) + 1)
        explicit = pa.json.ParseOptions(explicit_schema=_texts_of(block, fields))
        table = pa.json.read_json(io.BytesIO(block), options, explicit)
    except (pa.ArrowInvalid, ValueError):
        # Either a line is at fault, and Python's reader says which, or types are mixed, which it does not mind.
        table = _json_slowly(block, line, path, keep)
    yield table.select([name for name in table.column_names if keep(name)])


def _texts_of(block: bytes, fields: Fields) -> pa.Schema:
    """Names stay text: Arrow would take those that look like dates for dates."""
    first = json.loads(block.lstrip().partition(b"\n")[0])
    named = [
        name
        for name, value in first.items()
        if isinstance(value, str) and fields.field_of(name) == "episode_id"
    ]
    return pa.schema([pa.field(name, pa.string()) for name in named])


def _json_slowly(block: bytes, line: int, path: Path, keep: Callable[[str], bool]) -> pa.Table:
    rows = []
    for number, text in enumerate(block.split(b"\n"), start=line):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ValueError(f"path: line {number} of {path} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"path: line {number} of {path} is no object; put one step on each line")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row if keep(name))
    try:
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(
            f"path: a column of {path} mixes types between lines {line} and {line + len(rows)}: {first_line}"
        ) from error


def _csv_batches(name: str, fields: Fields, keep: Callable[[str], bool]) -> Iterator[pa.Table]:
    read = pa.csv.ReadOptions(block_size=_BYTES_AT_ONCE)
    try:
        with pa.csv.open_csv(name, read) as first:
            schema = first.schema
        types = {field.name: type_ for field in schema if (type_ := _csv_type(field, fields)) is not None}
        kept = [column for column in schema.names if keep(column)]
        convert = pa.csv.ConvertOptions(column_types=types, include_columns=kept, strings_can_be_null=True)
        with pa.csv.open_csv(name, read, convert_options=convert) as source:
            yield from (pa.Table.from_batches([batch]) for batch in source)
    except pa.ArrowInvalid as error:
        raise ValueError(f"path: {name} cannot be read as CSV: {str(error).splitlines()[0]}") from error


def _csv_type(field: pa.Field, fields: Fields) -> pa.DataType | None:
    """The type of a column that may look like another in the first rows; None leaves it as it looks there."""
    of = fields.field_of(field.name)
    if of == "episode_id":
        return pa.string()
    if pa.types.is_null(field.type) and of in ("reward", "propensity", "behaviour_log_prob"):
        return pa.float64()
    alone = fields.columns.get(of, of) == field.name
    whole = alone and of in ("step", "terminated", "truncated", "action", "observation", "final_observation")
    if pa.types.is_integer(field.type) and not whole:
        return pa.float64()
    return None
