"""Logged decisions that are old enough to have their reward: joined, compared for the gate, moved into the store."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
import pyarrow as pa

from peira.evaluation.decisions import GateDecision, gate
from peira.experience.decision_encoding import encode
from peira.experience.decision_records import DECISION_COLUMNS, OUTCOME_COLUMNS, Joined, join
from peira.experience.decision_steps import decisions_to_steps
from peira.experience.decisions import FeatureSchema, LoggedDecisions
from peira.experience.store import Store
from peira.serving.database import ArrivedOutcome, Database, StoredDecision, open_database
from peira.serving.deployment import CANDIDATES, policy_in_force, read_policy, read_schema
from peira.serving.options import Options

_JSON_LISTS = ("actions", "pmf")


def joined(
    decisions: Sequence[StoredDecision], outcomes: Sequence[ArrivedOutcome], options: Options
) -> Joined:
    """Matured decisions with their rewards; the outcomes are those that came in time."""
    columns = dict(zip(StoredDecision._fields, zip(*decisions, strict=True), strict=True))
    rows = len(decisions)
    for name in _JSON_LISTS:
        columns[name] = list(map(orjson.loads, columns[name]))
    override = [bool(of) for of in columns["override"]]
    columns |= {
        "override": override,
        "learn": [not of for of in override],
        "applied": [bool(of) for of in columns["applied"]],
        "excluded": [None] * rows,
        "counter": [None] * rows,
        "sampling_rate": [1.0] * rows,
    }
    return join(
        pa.table({name: columns[name] for name in DECISION_COLUMNS.names}, DECISION_COLUMNS),
        pa.table(
            {name: [getattr(of, name) for of in outcomes] for name in OUTCOME_COLUMNS.names}, OUTCOME_COLUMNS
        ),
        now=math.inf,  # The database says which decisions are old enough, and which outcomes came in time.
        window=options.window,
        default_reward=options.default_reward,
        aggregation=options.aggregation,
    )


def matured_rows(
    database: Database, schema: FeatureSchema, options: Options, *, since: float = 0.0, limit: int
) -> LoggedDecisions | None:
    """The newest matured decisions made since then, at most `limit`, in the order of the log; None without any."""
    decisions, outcomes = database.matured(time.time() - options.window, since, limit)
    if not decisions:
        return None
    found = joined(decisions, outcomes, options)
    return encode(found, schema) if found.rows.num_rows else None


def judge(folder: Path, options: Options, candidate: str, since: float) -> GateDecision:
    """What the deployment gate says of DIR/candidates/NAME beside the policy in force, on decisions made since then.

    Raises ValueError where the candidate cannot be read or was made for another schema, and DatabaseError.
    """
    schema = read_schema(folder)
    proposed = read_policy(folder / CANDIDATES / candidate, schema).policy
    incumbent = policy_in_force(folder, schema).policy
    database = open_database(options.database, folder)
    try:
        rows = matured_rows(database, schema, options, since=since, limit=options.gate_rows)
    finally:
        database.close()
    if rows is None:
        return GateDecision(False, ["there is no matured decision to compare on"], {"rows": 0})
    try:
        return gate(
            proposed, incumbent, rows, schema, tolerance=options.tolerance, confidence=options.confidence
        )
    except ValueError as fault:
        return GateDecision(False, [f"{len(rows)} matured decisions: {fault}"], {"rows": len(rows)})


def compact(folder: Path, options: Options) -> int:
    """Move matured decisions with their rewards to DIR/experience.lance, and return how many.

    They are claimed in the database, appended, and said to be written: after a crash anywhere in between, the next
    call appends what is missing of the same claim. Outcomes that come after the claim are corrections; no row of the
    store changes. Decisions that were moved `keep_days` ago are deleted from the database. 0 where another process
    is at it. Raises DatabaseError, and StoreError where the disk refuses.
    """
    schema = read_schema(folder)
    with (folder / ".compaction.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        database = open_database(options.database, folder)
        try:
            return _compact(database, folder, schema, options)
        finally:
            database.close()


def _compact(database: Database, folder: Path, schema: FeatureSchema, options: Options) -> int:
    moved = 0
    now = time.time()
    store = Store.open(folder, mode="a")
    while claim := database.claim(now - options.window, str(folder.resolve())):
        rows = joined(claim.decisions, claim.outcomes, options).rows
        if rows.num_rows:
            moved += store.append(_steps(rows, schema), skip_existing=True)
        database.written(claim.number)
    database.drop(now - options.window - options.keep_days * 86_400)
    return moved


def _steps(rows: pa.Table, schema: FeatureSchema) -> pa.Table:
    steps = decisions_to_steps(
        encode(rows, schema),
        schema,
        event_ids=rows["event_id"].to_pylist(),
        policy_id="",
        parent_event_ids=rows["parent_event_id"].to_pylist(),
    )
    # Decisions of several policies mature together.
    return steps.set_column(steps.column_names.index("policy_id"), "policy_id", rows["policy_id"])
