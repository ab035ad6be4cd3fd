"""From decisions as they were served, features in JSON, to arrays; and which features and actions a log has."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from jaxtyping import Float, Int

from peira.experience.decision_records import Joined, check_decisions, padded_lists
from peira.experience.decisions import PADDING, Choices, FeatureSchema, LoggedDecisions

MOST_VALUES = 1000
"""Values of a category that a schema inferred from a log lists, the most frequent ones; others are unknown to it."""
_ROWS_AT_ONCE = 65_536
_LARGEST = 3e38


def encode(joined: Joined | pa.Table, schema: FeatureSchema, *, sparse: bool = False) -> LoggedDecisions:
    """Joined decisions (or the table of their rows) as arrays, row for row.

    A feature of the schema that a row lacks is an error; with `sparse` it is 0, or the unknown category: so logs of
    Vowpal Wabbit mean it. Rows of one chain of retries share a cluster; rows weigh 1/sampling_rate. Raises ValueError,
    which names the event and the feature or action, as `FeatureSchema.encode` and `check_decisions` do.
    """
    rows = check_decisions(joined.rows if isinstance(joined, Joined) else joined)
    if "reward" not in rows.column_names or rows["reward"].null_count:
        raise ValueError(
            "reward: expected joined decisions, each with its reward; join them with outcomes first"
        )
    reward = rows["reward"].cast(pa.float64()).to_numpy()
    if not (finite := np.isfinite(reward)).all():
        row = int(np.argmin(finite))
        raise ValueError(
            f"decision {rows['event_id'][row].as_py()!r}: reward: expected a finite number, got {reward[row]}"
        )
    pmf = None if rows["pmf"].null_count else padded_lists(rows["pmf"], 0.0)
    rate = rows["sampling_rate"].to_numpy()
    return LoggedDecisions(
        choices=encode_choices(rows, schema, sparse=sparse),
        column=rows["chosen_index"].to_numpy().astype(np.int64),
        propensity=rows["propensity"].to_numpy(),
        reward=reward,
        pmf=pmf,
        generation=rows["policy_version"].to_numpy(),
        time=rows["timestamp"].to_numpy(),
        uniform=pc.equal(rows["slice"], "uniform").to_numpy(),
        cluster=chains(rows["event_id"], rows["parent_event_id"]),
        weight=None if (rate == 1).all() else 1.0 / rate,
    )


def encode_choices(decisions: pa.Table, schema: FeatureSchema, *, sparse: bool = False) -> Choices:
    """What decisions were made from, as arrays; see `encode`."""
    decisions = decisions.combine_chunks()
    names = decisions["actions"].combine_chunks().flatten()
    code = pc.index_in(names, value_set=pa.array(schema.actions, pa.string()))
    if code.null_count:
        _explain(decisions, schema, sparse)
    length = pc.list_value_length(decisions["actions"]).to_numpy()
    eligible = np.arange(length.max(initial=0)) < length[:, None]
    action = np.full(eligible.shape, PADDING, np.int32)
    action[eligible] = code.to_numpy()
    try:
        number, category = _context_arrays(decisions["context"], schema, sparse)
        feature = np.zeros((*eligible.shape, len(schema.action_numbers)), np.float32)
        if schema.action_numbers:
            feature[eligible] = _action_arrays(decisions["action_features"], length, schema, sparse)
    except (pa.ArrowInvalid, _Missing) as fault:
        # Whole columns are parsed at once; row by row it comes out which one is at fault.
        _explain(decisions, schema, sparse)
        told = " ".join(str(fault).split())
        raise ValueError(f"context, action_features: cannot be read as JSON objects: {told}") from fault
    return Choices(number, category, action, feature)


def infer_schema(decisions: pa.Table) -> FeatureSchema:
    """The features and actions that the decisions have: numbers, and texts with their `MOST_VALUES` values.

    Actions and values are in alphabetical order, or by number where all are numbers. Raises ValueError for a feature
    that is a number in some rows and text in others, and for one that is neither.
    """
    contexts = _objects(decisions["context"])
    kinds = _kinds(contexts, "context")
    values = _values(contexts, [name for name, kind in kinds.items() if kind == "text"])
    action_kinds = _kinds(_lists(decisions["action_features"]), "action")
    texts = [name for name, kind in action_kinds.items() if kind == "text"]
    if texts:
        raise ValueError(
            f"action feature {texts[0]!r}: expected numbers, got texts; make it one number a value"
        )
    return FeatureSchema(
        actions=in_order(pc.unique(decisions["actions"].combine_chunks().flatten()).to_pylist()),
        numbers=tuple(name for name, kind in kinds.items() if kind == "number"),
        categories=values,
        action_numbers=tuple(action_kinds),
    )


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """By number where all are whole numbers, else alphabetically."""
    return tuple(sorted(names, key=int if all(re.fullmatch(r"\d+", name) for name in names) else None))


def chains(event_id: pa.ChunkedArray, parent: pa.ChunkedArray) -> Int[np.ndarray, " rows"]:
    """The number of the chain of each row; a row belongs to its parent's. Numbered in the order of first rows."""
    both = (
        pa.chunked_array([*event_id.chunks, *parent.chunks], pa.string()).combine_chunks().dictionary_encode()
    )
    code = both.indices.fill_null(-1).to_numpy()
    own, above = code[: len(event_id)], code[len(event_id) :]
    root = np.arange(len(both.dictionary))
    root[own[above >= 0]] = above[above >= 0]
    # Each pass doubles how far up a row has looked; 64 passes are longer than any chain.
    for _ in range(64):
        further = root[root]
        if (further == root).all():
            break
        root = further
    return first_appearance(root[own])


def first_appearance(code: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """The same groups, numbered 0, 1, … in the order in which they first appear."""
    _, first, group = np.unique(code, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[group]


class _Missing(Exception):
    """Some row lacks a feature, or holds another type."""


def _context_arrays(
    texts: pa.ChunkedArray, schema: FeatureSchema, sparse: bool
) -> tuple[Float[np.ndarray, "rows numbers"], Int[np.ndarray, "rows categories"]]:
    number = np.empty((len(texts), len(schema.numbers)), np.float32)
    category = np.empty((len(texts), len(schema.categories)), np.int32)
    wanted = dict.fromkeys(schema.numbers, pa.float64()) | dict.fromkeys(schema.categories, pa.string())
    at = 0
    for table in _parsed(_objects(texts), pa.schema(list(wanted.items()))):
        rows = slice(at, at := at + table.num_rows)
        for place, name in enumerate(schema.numbers):
            number[rows, place] = _numbers(table[name], sparse)
        for place, (name, known) in enumerate(schema.categories.items()):
            if table[name].null_count and not sparse:
                raise _Missing
            code = pc.index_in(table[name], value_set=pa.array(known, pa.string()))
            category[rows, place] = pc.fill_null(code, -1).to_numpy() + 1
    if at != len(texts):
        raise _Missing
    return number, category


def _action_arrays(
    texts: pa.ChunkedArray, length: np.ndarray, schema: FeatureSchema, sparse: bool
) -> Float[np.ndarray, "actions features"]:
    feature = np.zeros((int(length.sum()), len(schema.action_numbers)), np.float32)
    of_row = np.repeat(np.arange(len(length)), length)
    of_one = pa.struct([(name, pa.float64()) for name in schema.action_numbers])
    row = 0
    for table in _parsed(_lists(texts), pa.schema([("f", pa.list_(of_one))])):
        lists = table["f"].combine_chunks()
        given = pc.fill_null(pc.list_value_length(lists), -1).to_numpy()
        there = given >= 0
        if not (sparse or there.all()) or (given != length[row : row + len(given)])[there].any():
            raise _Missing
        flat = lists.flatten()
        here = np.flatnonzero(np.isin(of_row, row + np.flatnonzero(there)))
        for place, name in enumerate(schema.action_numbers):
            feature[here, place] = _numbers(pc.struct_field(flat, name), sparse)
        row += len(given)
    if row != len(length):
        raise _Missing
    return feature


def _numbers(column: pa.ChunkedArray | pa.Array, sparse: bool) -> np.ndarray:
    if column.null_count and not sparse:
        raise _Missing
    values = pc.fill_null(column, 0.0).to_numpy()
    if not (np.abs(values) <= _LARGEST).all():
        raise _Missing
    return values


def _objects(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(texts, "{}")


def _lists(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists as objects that hold them: a line of JSON must be an object."""
    return pc.binary_join_element_wise('{"f":', pc.fill_null(texts, "null"), "}", "")


def _parsed(texts: pa.ChunkedArray, explicit: pa.Schema | None = None) -> Iterator[pa.Table]:
    """JSON objects as columns, some thousands of rows at a time; with `explicit` only these, of these types."""
    options = None
    if explicit is not None:
        options = pj.ParseOptions(explicit_schema=explicit, unexpected_field_behavior="ignore")
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        # A line feed cannot be part of a JSON text's strings, only lie between them.
        block = pc.replace_substring(texts.slice(start, _ROWS_AT_ONCE), "\n", " ")
        text = pc.binary_join(pa.ListArray.from_arrays([0, len(block)], block.combine_chunks()), "\n")[
            0
        ].as_buffer()
        yield pj.read_json(
            io.BytesIO(text), pj.ReadOptions(use_threads=False, block_size=text.size + 1), options
        )


def _kinds(texts: pa.ChunkedArray, of: str) -> dict[str, str]:
    """Whether each feature is a number or a text, in the order in which they appear."""
    kinds: dict[str, str] = {}
    try:
        for table in _parsed(texts):
            if of == "action":
                if pa.types.is_null(table.schema.field("f").type):
                    continue
                table = pa.Table.from_struct_array(table["f"].combine_chunks().flatten())
            for feature in table.schema:
                kind = _kind(feature.type, f"{of} feature {feature.name!r}")
                if kind and kinds.setdefault(feature.name, kind) != kind:
                    raise ValueError(_mixed(of, feature.name, "number", "text"))
    except pa.ArrowInvalid as fault:
        told = str(fault).splitlines()[0]
        mixed = re.search(r"Column\(/(.*?)\) changed from (\w+) to (\w+)", told)
        if mixed is None:
            raise ValueError(f"{of}: cannot be read as JSON objects: {told}") from fault
        raise ValueError(_mixed(of, mixed[1].removeprefix("f/[]/"), mixed[2], mixed[3])) from fault
    return kinds


def _mixed(of: str, name: str, one: str, other: str) -> str:
    return f"{of} feature {name!r}: a {one} in some rows and a {other} in others; make it one of them"


def _kind(type_: pa.DataType, name: str) -> str | None:
    """None for a feature that is null in all rows."""
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return "number"
    # Text that looks like dates in all rows is taken for dates.
    if pa.types.is_string(type_) or pa.types.is_temporal(type_):
        return "text"
    if pa.types.is_null(type_):
        return None
    raise ValueError(f"{name}: expected a number or a text, got {type_}; make it one, or several features")


def _values(texts: pa.ChunkedArray, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The most frequent values of each text."""
    if not names:
        return {}
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for table in _parsed(texts, pa.schema([(name, pa.string()) for name in names])):
        for name in names:
            found = table[name].drop_null().value_counts()
            counts[name].update(
                dict(zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True))
            )
    return {
        name: in_order([value for value, _ in of.most_common(MOST_VALUES)]) for name, of in counts.items()
    }


def _explain(decisions: pa.Table, schema: FeatureSchema, sparse: bool) -> None:
    """Raise the ValueError of the first row that cannot be encoded, if there is one."""
    for event, context, actions, features in zip(
        *(decisions[name].to_pylist() for name in ("event_id", "context", "actions", "action_features")),
        strict=True,
    ):
        try:
            one = _object(context, "context", dict)
            per_action = None if features is None else _object(features, "action_features", list)
            if sparse:
                one = {
                    **dict.fromkeys(schema.numbers, 0.0),
                    **dict.fromkeys(schema.categories, ""),
                    **_given(one),
                }
                blank = dict.fromkeys(schema.action_numbers, 0.0)
                per_action = [blank] * len(actions) if per_action is None else per_action
                per_action = [{**blank, **_given(of)} for of in per_action]
            schema.encode([one], [actions], None if per_action is None else [per_action])
        except ValueError as fault:
            raise ValueError(f"decision {event!r}: {fault}") from fault


def _given(features: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in features.items() if value is not None}


def _object(text: str, name: str, of: type) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as fault:
        raise ValueError(f"{name}: expected JSON, got {text[:80]!r}") from fault
    if not isinstance(value, of) or (of is list and not all(isinstance(entry, dict) for entry in value)):
        raise ValueError(
            f"{name}: expected {'an object' if of is dict else 'a list of objects'}, got {text[:80]!r}"
        )
    return value
