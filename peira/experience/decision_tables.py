"""Decisions as tables with a column a feature, as Parquet and CSV hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.json as pj
import pyarrow.parquet as pq

from peira.experience.decision_encoding import in_order
from peira.experience.decision_records import padded_lists
from peira.experience.decisions import PADDING, Choices, FeatureSchema, LoggedDecisions

Columns = Mapping[str, str | Sequence[str]]
FIELDS = (
    "action",
    "reward",
    "propensity",
    "actions",
    "pmf",
    "action_features",
    "time",
    "generation",
    "uniform",
    "cluster",
    "weight",
)
PREFIX = "context."
_LISTS = ("actions", "pmf", "action_features")
_SCHEMA_KEY = b"peira_decisions"
_SAME = 1e-6


def decisions_to_table(rows: LoggedDecisions, schema: FeatureSchema) -> pa.Table:
    """One row a decision: FIELDS by name, actions by their names, and a column `context.name` a feature.

    `actions`, `pmf` and `action_features` are lists in the order of the row's columns; an unknown category is null. The
    schema is in the table's metadata.
    """
    choices = rows.choices
    names = pa.array(schema.actions, pa.string())
    eligible = choices.eligible
    ends = np.concatenate([[0], np.cumsum(choices.count)]).astype(np.int32)
    columns: dict[str, Any] = {
        "action": names.take(pa.array(rows.action)),
        "reward": rows.reward,
        "propensity": rows.propensity,
        "actions": pa.ListArray.from_arrays(ends, names.take(pa.array(choices.action[eligible]))),
    }
    if rows.pmf is not None:
        columns["pmf"] = pa.ListArray.from_arrays(ends, pa.array(rows.pmf[eligible]))
    if schema.action_numbers:
        flat = pa.array(choices.feature[eligible].ravel())
        each = np.arange(0, len(flat) + 1, len(schema.action_numbers), dtype=np.int32)
        columns["action_features"] = pa.ListArray.from_arrays(ends, pa.ListArray.from_arrays(each, flat))
    columns |= {
        "time": rows.time,
        "generation": rows.generation,
        "uniform": rows.uniform,
        "cluster": rows.cluster,
    }
    if rows.weight is not None:
        columns["weight"] = rows.weight
    for place, name in enumerate(schema.numbers):
        columns[PREFIX + name] = choices.number[:, place]
    for place, (name, known) in enumerate(schema.categories.items()):
        code = choices.category[:, place] - 1
        columns[PREFIX + name] = pa.array(known, pa.string()).take(pa.array(code, mask=code < 0))
    return pa.table(columns).replace_schema_metadata({_SCHEMA_KEY: schema.to_json()})


def table_to_decisions(
    table: pa.Table, schema: FeatureSchema | None = None, columns: Columns | None = None, first_line: int = 1
) -> tuple[LoggedDecisions, FeatureSchema]:
    """What `decisions_to_table` made a table, or a foreign table whose columns are named in `columns`.

    `columns` maps fields to columns: {"reward": "approved"}; the field "features" to the columns of the features, or
    to the prefix that they share and that is taken off (`context.` by default). `action` and `reward` are needed, and
    `propensity` or `pmf`. Without `actions` all actions are eligible in every row; `pmf` is in the order of `actions`,
    else of the schema. Without `time` rows are numbered. The schema is the one given, else the table's own, else made
    of what the columns hold: numbers and truths are numbers, text is a category.

    Raises ValueError that names the field and the row, counted from `first_line`.
    """
    columns = dict(columns or {})
    _check_columns(columns, table.column_names)
    count = table.num_rows
    if not count:
        raise ValueError("log: holds no decision; give at least one")

    def of(field: str) -> pa.ChunkedArray | None:
        name = columns.get(field, field)
        return table[name] if name in table.column_names else None

    def refuse(wrong: np.ndarray, field: str, expected: str, values: Any) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            value = values[row].as_py() if isinstance(values, pa.ChunkedArray | pa.Array) else values[row]
            raise ValueError(
                f"{columns.get(field, field)}: expected {expected}, got {value} in line {first_line + row}"
            )

    for field in ("action", "reward"):
        if of(field) is None:
            raise ValueError(
                f"{field}: no such column; name it with columns={{'{field}': …}}; there are "
                f"{', '.join(table.column_names)}"
            )
    names = of("action").cast(pa.string())
    refuse(names.is_null().to_numpy(), "action", "the name of an action", names)
    listed = None if of("actions") is None else _lists(of("actions"), "actions")
    features = _features(table, columns)
    if schema is None and _SCHEMA_KEY in (table.schema.metadata or {}):
        schema = FeatureSchema.from_json(table.schema.metadata[_SCHEMA_KEY].decode())
    if schema is None:
        schema = _schema(names, listed, features, of("action_features"))
    code = _codes(names, schema, refuse)
    if listed is None:
        action = np.tile(np.arange(len(schema.actions), dtype=np.int32), (count, 1))
        length = np.full(count, len(schema.actions))
    else:
        refuse(listed.is_null().to_numpy(), "actions", "a list of actions", listed)
        length = pc.list_value_length(listed).to_numpy().astype(np.int64)
        action = np.full((count, int(length.max())), PADDING, np.int32)
        flat = pa.chunked_array([listed.combine_chunks().flatten()])
        rows_of = np.repeat(np.arange(count), length)
        action[np.arange(action.shape[1]) < length[:, None]] = _codes(flat, schema, refuse, rows_of)
    found = action == code[:, None]
    refuse(found.sum(1) != 1, "action", "one of its eligible actions, each listed once", names)
    column = found.argmax(1)
    reward = _numbers(of("reward"), "reward")
    refuse(~np.isfinite(reward), "reward", "a finite number", reward)
    pmf = None
    if of("pmf") is not None:
        lists = _lists(of("pmf"), "pmf")
        given = pc.fill_null(pc.list_value_length(lists), -1).to_numpy()
        refuse(given != length, "pmf", "as many probabilities as eligible actions", given)
        pmf = np.zeros(action.shape)
        laid = padded_lists(lists, 0.0)
        pmf[:, : laid.shape[1]] = laid
        total = pmf.sum(1)
        refuse(
            ~(np.abs(total - 1) <= _SAME) | (pmf < 0).any(1), "pmf", "probabilities with a sum of 1", total
        )
    said = None if pmf is None else pmf[np.arange(count), column]
    if of("propensity") is not None:
        propensity = _numbers(of("propensity"), "propensity")
        if said is not None:
            refuse(
                ~(np.abs(propensity - said) <= _SAME),
                "propensity",
                "the pmf of the chosen action",
                propensity,
            )
    elif said is not None:
        propensity = said
    else:
        raise ValueError(
            "propensity: no such column, nor pmf; name the probability of the logged action with "
            "columns={'propensity': …}"
        )
    refuse(
        ~((propensity > 0) & (propensity <= 1 + _SAME)),
        "propensity",
        "a probability above 0, at most 1",
        propensity,
    )
    feature = np.zeros((*action.shape, len(schema.action_numbers)), np.float32)
    if schema.action_numbers:
        if of("action_features") is None:
            raise ValueError("action_features: no such column, and the schema names features of actions")
        lists = _lists(of("action_features"), "action_features")
        given = pc.fill_null(pc.list_value_length(lists), -1).to_numpy()
        refuse(given != length, "action_features", "those of each eligible action", given)
        flat = lists.combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
        feature[action >= 0] = flat.reshape(int(length.sum()), -1)
    number, category = _encoded(features, schema, refuse, count)
    time = of("time")
    return LoggedDecisions(
        choices=Choices(number, category, action, feature),
        column=column,
        propensity=propensity,
        reward=reward,
        pmf=pmf,
        generation=np.zeros(count, np.int64)
        if of("generation") is None
        else _numbers(of("generation"), "generation").astype(np.int64),
        time=np.arange(count, dtype=np.float64) if time is None else _seconds(time),
        uniform=np.zeros(count, bool) if of("uniform") is None else _numbers(of("uniform"), "uniform") == 1,
        cluster=np.arange(count) if of("cluster") is None else _groups(of("cluster")),
        weight=None if of("weight") is None else _numbers(of("weight"), "weight"),
    ), schema


def _check_columns(columns: Columns, there: Sequence[str]) -> None:
    for field, names in columns.items():
        if field not in (*FIELDS, "features"):
            raise ValueError(f"columns: {field!r} is no field; there are {', '.join((*FIELDS, 'features'))}")
        if field == "features" and isinstance(names, str):
            continue
        for name in [names] if isinstance(names, str) else names:
            if name not in there:
                raise ValueError(
                    f"columns: {field}: there is no column {name!r}; there are {', '.join(there)}"
                )


def _features(table: pa.Table, columns: Columns) -> dict[str, pa.ChunkedArray]:
    named = columns.get("features", PREFIX)
    if isinstance(named, str):
        return {
            name.removeprefix(named): table[name]
            for name in table.column_names
            if name.startswith(named) and name != named
        }
    return {name: table[name] for name in named}


def _schema(
    names: pa.ChunkedArray,
    listed: pa.ChunkedArray | None,
    features: Mapping[str, pa.ChunkedArray],
    of_actions: pa.ChunkedArray | None,
) -> FeatureSchema:
    actions = set(pc.unique(names).to_pylist())
    if listed is not None:
        actions |= set(pc.unique(listed.combine_chunks().flatten()).to_pylist())
    texts = {name: column for name, column in features.items() if not _is_number(column.type)}
    width = 0
    if of_actions is not None:
        flat = _lists(of_actions, "action_features").combine_chunks().flatten()
        width = len(flat.flatten()) // max(len(flat), 1)
    return FeatureSchema(
        actions=in_order([str(name) for name in actions]),
        numbers=tuple(name for name in features if name not in texts),
        categories={
            name: in_order(pc.unique(column.cast(pa.string())).drop_null().to_pylist())
            for name, column in texts.items()
        },
        action_numbers=tuple(f"action_feature_{place}" for place in range(width)),
    )


def _codes(
    names: pa.ChunkedArray, schema: FeatureSchema, refuse: Any, rows_of: np.ndarray | None = None
) -> np.ndarray:
    code = pc.index_in(names.cast(pa.string()), value_set=pa.array(schema.actions, pa.string()))
    if code.null_count:
        wrong = code.is_null().to_numpy()
        row = int(np.argmax(wrong))
        at = row if rows_of is None else int(rows_of[row])
        told = np.zeros(at + 1, bool)
        told[at] = True
        refuse(told, "action", f"one of {', '.join(schema.actions[:12])}", [names[row].as_py()] * (at + 1))
    return code.to_numpy()


def _encoded(
    features: Mapping[str, pa.ChunkedArray], schema: FeatureSchema, refuse: Any, count: int
) -> tuple[np.ndarray, np.ndarray]:
    number = np.empty((count, len(schema.numbers)), np.float32)
    category = np.empty((count, len(schema.categories)), np.int32)
    for name in (*schema.numbers, *schema.categories):
        if name not in features:
            raise ValueError(f"feature {name!r}: no such column; there are {', '.join(features) or 'none'}")
    for place, name in enumerate(schema.numbers):
        values = _numbers(features[name], name)
        refuse(~(np.abs(values) <= 3e38), name, "a finite number", values)
        number[:, place] = values
    for place, (name, known) in enumerate(schema.categories.items()):
        code = pc.index_in(features[name].cast(pa.string()), value_set=pa.array(known, pa.string()))
        category[:, place] = pc.fill_null(code, -1).to_numpy() + 1
    return number, category


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)


def _numbers(column: pa.ChunkedArray, field: str) -> np.ndarray:
    """float64, NaN for null."""
    if not _is_number(column.type):
        raise ValueError(f"{field}: expected numbers, came {column.type}; give one number a row")
    return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()


def _seconds(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_timestamp(column.type):
        microseconds = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False).cast(pa.int64())
        return pc.fill_null(microseconds.cast(pa.float64()), np.nan).to_numpy() / 1e6
    return _numbers(column, "time")


def _groups(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64()).to_numpy()
    return column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def _lists(column: pa.ChunkedArray, field: str) -> pa.ChunkedArray:
    """Lists as they are, or from text: JSON, or entries with | between them."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.cast(pa.string()).combine_chunks()
        if pc.any(pc.starts_with(texts, "[")).as_py():
            lines = pc.binary_join_element_wise('{"v":', pc.fill_null(texts, "null"), "}", "").to_pylist()
            text = pa.py_buffer("\n".join(lines).encode())
            try:
                read = pj.read_json(
                    pa.BufferReader(text), pj.ReadOptions(use_threads=False, block_size=text.size + 1)
                )
            except pa.ArrowInvalid as fault:
                raise ValueError(
                    f"{field}: cannot be read as lists in JSON: {str(fault).splitlines()[0]}"
                ) from fault
            column = read["v"]
        else:
            column = pa.chunked_array([pc.split_pattern(texts, "|")])
    type_ = column.type
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)):
        raise ValueError(f"{field}: expected a list in each row, came {type_}")
    inner = pa.string() if field == "actions" else pa.float64()
    wanted = pa.list_(pa.list_(inner)) if field == "action_features" else pa.list_(inner)
    try:
        return column.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as fault:
        raise ValueError(f"{field}: expected {wanted}, came {type_}: {str(fault).splitlines()[0]}") from fault


# -- files -------------------------------------------------------------------------------------------------


def write_csv(path: Path, rows: LoggedDecisions, schema: FeatureSchema) -> None:
    """`decisions_to_table` as CSV; lists are JSON."""
    table = decisions_to_table(rows, schema)
    for name in _LISTS:
        if name in table.column_names:
            texts = [json.dumps(entry) for entry in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    # By its name the stream knows whether to pack.
    with pa.output_stream(path) as stream:
        pcsv.write_csv(table, stream)


def read_csv(path: Path, schema: FeatureSchema | None, columns: Columns | None) -> pa.Table:
    """The rows of a CSV file; the action and the categories of the schema are read as text, empty cells as null."""
    columns = dict(columns or {})
    texts = {columns.get(field, field) for field in ("action", *_LISTS)}
    if schema is not None:
        named = columns.get("features", PREFIX)
        prefix = named if isinstance(named, str) else ""
        texts |= {prefix + name for name in schema.categories}
    options = pcsv.ConvertOptions(
        column_types=dict.fromkeys(texts, pa.string()), null_values=[""], strings_can_be_null=True
    )
    try:
        return pcsv.read_csv(path, pcsv.ReadOptions(use_threads=False), convert_options=options)
    except pa.ArrowInvalid as fault:
        raise ValueError(f"path: {path} cannot be read as CSV: {str(fault).splitlines()[0]}") from fault


def read_parquet(path: Path) -> pa.Table:
    """The rows of a Parquet file, or of all in a folder."""
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as fault:
        raise ValueError(f"path: {path} is not Parquet: {str(fault).splitlines()[0]}") from fault
