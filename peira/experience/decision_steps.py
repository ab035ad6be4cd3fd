"""Decisions in the columns of the store, one step an episode, and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from peira.experience.decision_encoding import chains
from peira.experience.decision_records import padded_lists
from peira.experience.decisions import PADDING, Choices, FeatureSchema, LoggedDecisions
from peira.experience.disk import write_whole
from peira.experience.schema import TIMESTAMP_TYPE, source_array, step_schema

SCHEMA_FILE = "schema.json"


def decisions_to_steps(
    rows: LoggedDecisions,
    schema: FeatureSchema,
    *,
    event_ids: Sequence[str],
    policy_id: str,
    source: str = "logged",
    started_ms: int = 0,
    parent_event_ids: Sequence[str | None] | None = None,
) -> pa.Table:
    """Steps that `peira.experience.schema.validate` accepts, one episode a decision, named by its event.

    `observation` holds the numbers, then the codes of the categories (a single 0 if there is neither); `action` and
    `action_set` codes of actions, the set in the order of the row's columns; `behaviour_probs` (if the pmf is known)
    one probability for every action of the schema; `action_features` (if the schema has some) those of the set.
    `created_at` is `started_ms` (milliseconds since 1970) plus the row's time in seconds, to the microsecond.
    `parent_episode_id` is the first row of the same cluster, or what `parent_event_ids` says, for rows whose cluster
    began before these.

    Raises ValueError where there are not as many ids as rows, for rows of another schema, and for codes of a category
    that float32 cannot hold.
    """
    count, choices = len(rows), rows.choices
    schema.check(choices)
    for name, given in (("event_ids", event_ids), ("parent_event_ids", parent_event_ids)):
        if given is not None and len(given) != count:
            raise ValueError(f"{name}: expected {count}, one a row, got {len(given)}")
    if any(len(known) > 1 << 24 for known in schema.categories.values()):
        raise ValueError(
            "schema: a category has more than 16,777,216 values; the observation holds its code as float32"
        )
    seen = np.concatenate([choices.number, choices.category.astype(np.float32)], axis=1)
    if not seen.shape[1]:
        seen = np.zeros((count, 1), np.float32)
    ids = pa.array(event_ids, pa.string())
    if parent_event_ids is None:
        _, first, cluster = np.unique(rows.cluster, return_index=True, return_inverse=True)
        parent = first[cluster]
        parents = ids.take(pa.array(parent, mask=parent == np.arange(count)))
    else:
        parents = pa.array(parent_event_ids, pa.string())
    microseconds = started_ms * 1000 + np.rint(rows.time * 1e6).astype(np.int64)
    eligible = choices.eligible
    sets = np.concatenate([[0], np.cumsum(choices.count)]).astype(np.int32)
    columns = {
        "episode_id": ids,
        "step": pa.array(np.zeros(count, np.int32)),
        "observation": _vectors(seen),
        "action": pa.array(rows.action.astype(np.int64)),
        "reward": pa.array(rows.reward),
        "terminated": pa.array(np.ones(count, bool)),
        "truncated": pa.array(np.zeros(count, bool)),
        "source": source_array(source, count),
        "created_at": pa.array(microseconds, TIMESTAMP_TYPE),
        "action_set": pa.ListArray.from_arrays(sets, pa.array(choices.action[eligible].astype(np.int64))),
        "propensity": pa.array(rows.propensity),
        "policy_id": pa.repeat(policy_id, count),
        "policy_version": pa.array(rows.generation.astype(np.int64)),
        "parent_episode_id": parents,
        "uniform_slice": pa.array(rows.uniform),
    }
    if rows.pmf is not None:
        probs = np.zeros((count, len(schema.actions)))
        probs[np.nonzero(eligible)[0], choices.action[eligible]] = rows.pmf[eligible]
        columns["behaviour_probs"] = _vectors(probs)
    if rows.weight is not None:
        columns["weight"] = pa.array(rows.weight)
    if schema.action_numbers:
        width = len(schema.action_numbers)
        flat = pa.array(choices.feature[eligible].ravel())
        each = pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, width, dtype=np.int32), flat)
        columns["action_features"] = pa.ListArray.from_arrays(sets, each)
    described = step_schema(
        columns["observation"].type,
        pa.int64(),
        optional=("action_set", "propensity", "policy_id", "policy_version", "parent_episode_id"),
        extra={name: of.type for name, of in columns.items() if name in _OWN},
        reward=pa.float64(),
    )
    return pa.table({name: columns[name] for name in described.names})


_OWN = ("uniform_slice", "behaviour_probs", "weight", "action_features")
COLUMNS = (
    "episode_id",
    "observation",
    "action",
    "reward",
    "created_at",
    "action_set",
    "propensity",
    "policy_version",
    "parent_episode_id",
    *_OWN,
)
"""What `steps_to_decisions` reads, where it is there."""


def steps_to_decisions(steps: pa.Table, schema: FeatureSchema, *, started_ms: int = 0) -> LoggedDecisions:
    """What `decisions_to_steps` made into steps: the same rows, clusters numbered in the order of their first rows.

    Raises ValueError for steps of another schema, for episodes of more than one step, and where a column is missing.
    """
    optional = (*_OWN, "parent_episode_id")
    for name in COLUMNS:
        if name not in steps.column_names and name not in optional:
            raise ValueError(f"{name}: the steps have no such column; they are no decisions")
    count = steps.num_rows
    if "step" in steps.column_names and pc.any(pc.greater(steps["step"], 0)).as_py():
        raise ValueError("step: some episode has more than one step; a decision is an episode of one")
    seen = steps["observation"].type
    expected = max(1, len(schema.numbers) + len(schema.categories))
    if not pa.types.is_fixed_size_list(seen) or seen.list_size != expected:
        raise ValueError(f"observation: expected {expected} features as in the schema, came {seen}")
    observation = steps["observation"].combine_chunks().flatten().to_numpy().reshape(count, expected)
    numbers, categories = len(schema.numbers), len(schema.categories)
    action = padded_lists(steps["action_set"], PADDING).astype(np.int32)
    eligible = action >= 0
    if action.size and action.max() >= len(schema.actions):
        raise ValueError(f"action_set: expected codes below {len(schema.actions)}, came {action.max()}")
    feature = np.zeros((*action.shape, len(schema.action_numbers)), np.float32)
    if schema.action_numbers:
        if "action_features" not in steps.column_names:
            raise ValueError("action_features: the steps have no such column, and the schema names some")
        flat = steps["action_features"].combine_chunks().flatten().flatten().to_numpy()
        feature[eligible] = flat.reshape(-1, len(schema.action_numbers))
    choices = Choices(
        number=observation[:, :numbers].astype(np.float32),
        category=observation[:, numbers : numbers + categories].astype(np.int32),
        action=action,
        feature=feature,
    )
    pmf = None
    if "behaviour_probs" in steps.column_names and not steps["behaviour_probs"].null_count:
        width = steps.schema.field("behaviour_probs").type.list_size
        if width != len(schema.actions):
            raise ValueError(f"behaviour_probs: expected {len(schema.actions)} actions, came {width}")
        probs = steps["behaviour_probs"].combine_chunks().flatten().to_numpy().reshape(count, width)
        pmf = np.where(eligible, np.take_along_axis(probs, np.maximum(action, 0), axis=1), 0.0)
    ids = steps["episode_id"]
    parents = pa.chunked_array([pa.nulls(count, pa.string())])
    if "parent_episode_id" in steps.column_names:
        parents = steps["parent_episode_id"]
    microseconds = steps["created_at"].cast(pa.int64()).to_numpy() - started_ms * 1000
    weight = None
    if "weight" in steps.column_names:
        weight = pc.fill_null(steps["weight"], 1.0).to_numpy()
    uniform = np.zeros(count, bool)
    if "uniform_slice" in steps.column_names:
        uniform = pc.fill_null(steps["uniform_slice"], False).to_numpy()
    return LoggedDecisions(
        choices=choices,
        column=choices.column_of(steps["action"].to_numpy()),
        propensity=steps["propensity"].to_numpy().astype(np.float64),
        reward=steps["reward"].to_numpy().astype(np.float64),
        pmf=pmf,
        generation=steps["policy_version"].to_numpy(),
        time=microseconds / 1e6,
        uniform=uniform,
        cluster=chains(ids, parents),
        weight=weight,
    )


def write_schema(folder: str | os.PathLike, schema: FeatureSchema) -> Path:
    """Write the schema beside the store of a folder, whole or not at all, and return its path."""
    path = _beside(folder) / SCHEMA_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, schema.to_json() + "\n")
    return path


def read_schema(folder: str | os.PathLike) -> FeatureSchema:
    """The schema that `write_schema` wrote beside a store; ValueError where there is none."""
    path = _beside(folder) / SCHEMA_FILE
    if not path.is_file():
        raise ValueError(
            f"schema: {path} does not exist; write_schema puts it beside the store, or give the schema"
        )
    return FeatureSchema.from_json(path.read_text())


def _beside(folder: str | os.PathLike) -> Path:
    path = Path(folder)
    return path.parent if path.name.endswith(".lance") else path


def _vectors(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
