"""Logged decisions from files of any origin, and to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from peira.experience.decision_encoding import encode, infer_schema
from peira.experience.decision_obp import from_obp, to_obp
from peira.experience.decision_steps import (
    COLUMNS,
    decisions_to_steps,
    read_schema,
    steps_to_decisions,
    write_schema,
)
from peira.experience.decision_tables import (
    Columns,
    decisions_to_table,
    read_csv,
    read_parquet,
    table_to_decisions,
    write_csv,
)
from peira.experience.decision_vw import read_dsjson, read_vw_text, write_dsjson, write_vw_text
from peira.experience.decisions import FeatureSchema, LoggedDecisions
from peira.experience.store import DIRECTORY, Store

FORMATS = ("store", "parquet", "csv", "dsjson", "vw", "obp")
_SUFFIXES = {
    ".lance": "store",
    ".parquet": "parquet",
    ".csv": "csv",
    ".dsjson": "dsjson",
    ".json": "dsjson",
    ".jsonl": "dsjson",
    ".vw": "vw",
    ".npz": "obp",
}


def read_decisions(
    path: str | os.PathLike,
    schema: FeatureSchema | None = None,
    format: str | None = None,
    columns: Columns | None = None,
) -> tuple[LoggedDecisions, FeatureSchema]:
    """The decisions of a file or folder that have a reward and may be learned from, and the schema of their features.

      store    a Lance store or the folder of a run, with `schema.json` beside it
      parquet  joined records (DECISION_COLUMNS and `reward`), or a column a feature: see `table_to_decisions`
      csv      a column a feature, lists as JSON or with | between their entries
      dsjson   Vowpal Wabbit's decision service, a JSON object a line; see `read_dsjson`
      vw       Vowpal Wabbit's text for cb_adf; see `read_vw_text`
      obp      the Open Bandit Pipeline's dictionary as an .npz file; see `from_obp`

    The format is told by the name if it is not given (`.gz` may follow for text). Without a schema it is the file's
    own, or inferred from its rows. `columns` names the columns of a CSV or Parquet file. Raises ValueError in one line,
    with the line of the file where one is at fault.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"path: {path} does not exist; give a file or folder")
    chosen = _format(path, format)
    if columns is not None and chosen not in ("csv", "parquet"):
        raise ValueError(f"columns: {chosen} has none to name; leave it out, or give a CSV or Parquet file")
    if chosen == "store":
        schema = read_schema(path) if schema is None else schema
        store = Store.open(path)
        there = store.schema.names if len(store) else []
        steps = store.read(columns=[name for name in (*COLUMNS, "step") if name in there])
        return steps_to_decisions(steps, schema), schema
    if chosen == "obp":
        return _read_npz(path, schema)
    if chosen == "csv":
        # The header is line 1.
        return table_to_decisions(read_csv(path, schema, columns), schema, columns, first_line=2)
    if chosen == "parquet":
        table = read_parquet(path)
        if not {"context", "chosen_index", "reward"} <= set(table.column_names):
            return table_to_decisions(table, schema, columns)
        sparse = False
    else:
        table = read_dsjson(path) if chosen == "dsjson" else read_vw_text(path)
        sparse = True
    table = table.filter(pc.and_(table["learn"], table["reward"].is_valid()))
    if not table.num_rows:
        raise ValueError(f"log: {path} holds no decision with a reward; give at least one")
    schema = infer_schema(table) if schema is None else schema
    return encode(table, schema, sparse=sparse), schema


def write_decisions(
    path: str | os.PathLike,
    rows: LoggedDecisions,
    schema: FeatureSchema,
    format: str | None = None,
    event_ids: Sequence[str] | None = None,
    policy_id: str = "logged",
) -> None:
    """Write decisions as `read_decisions` reads them; a file appears when it is complete, a store grows.

    `event_ids` and `policy_id` go into a store, the ids into dsjson as well; without ids rows are named by their
    number. What a format has no place for is left out: see its writer. Raises ValueError for a path that exists (a
    store may, if its schema is the same), for rows of another schema and for an unknown format.
    """
    path = Path(path)
    chosen = _format(path, format)
    schema.check(rows.choices)
    ids = [str(row) for row in range(len(rows))] if event_ids is None else event_ids
    if len(ids) != len(rows):
        raise ValueError(f"event_ids: expected {len(rows)}, one a row, got {len(ids)}")
    if chosen == "store":
        _append(path, decisions_to_steps(rows, schema, event_ids=ids, policy_id=policy_id), schema)
        return
    if path.exists():
        raise ValueError(f"path: {path} exists; give a new name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: it says whether the text is packed.
    part = path.with_name(f".part.{path.name}")
    try:
        if chosen == "parquet":
            pq.write_table(decisions_to_table(rows, schema), part, compression="zstd")
        elif chosen == "csv":
            write_csv(part, rows, schema)
        elif chosen == "dsjson":
            write_dsjson(part, rows, schema, ids)
        elif chosen == "vw":
            write_vw_text(part, rows, schema)
        else:
            with part.open("wb") as stream:
                np.savez_compressed(
                    stream, **{k: v for k, v in to_obp(rows, schema).items() if v is not None}
                )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _append(path: Path, steps: pa.Table, schema: FeatureSchema) -> None:
    store = Store.open(path, mode="a")
    if len(store) and read_schema(path).hash != schema.hash:
        raise ValueError(f"schema: {path} holds decisions of another schema; write to a store of its own")
    write_schema(path, schema)
    store.append(steps)


def _read_npz(path: Path, schema: FeatureSchema | None) -> tuple[LoggedDecisions, FeatureSchema]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            feedback = {name: archive[name] for name in archive.files}
    except (ValueError, OSError) as fault:
        raise ValueError(
            f"path: {path} is no archive of plain numpy arrays: {str(fault).splitlines()[0]}"
        ) from fault
    return from_obp(feedback, schema)


def _format(path: Path, format: str | None) -> str:
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format: {format!r} is none of {', '.join(FORMATS)}")
        return format
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    if suffixes and suffixes[-1] in _SUFFIXES:
        return _SUFFIXES[suffixes[-1]]
    if path.is_dir():
        return "store" if (path / DIRECTORY).exists() else "parquet"
    raise ValueError(f"format: cannot tell from the name {path.name!r}; say one of {', '.join(FORMATS)}")
