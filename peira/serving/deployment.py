"""The policy that decides: where it lies in the service's folder, how it decides a batch, how another takes its place.

DIR/schema.json        features and actions
DIR/policy             the policy in force, a link into policies/ (or a folder that DecisionPolicy.save wrote)
DIR/policies/000001-…  every policy that was put in force through the service
DIR/candidates/NAME    policies that may be proposed
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from peira.experience.decision_records import draw_column, uniform_number
from peira.experience.decision_steps import SCHEMA_FILE
from peira.experience.decisions import Choices, FeatureSchema
from peira.experience.disk import sync
from peira.learners import explorers
from peira.learners.decision_policy import DecisionPolicy, ExplorerConfig, load_policy
from peira.serving.database import StoredDecision
from peira.serving.requests import DecideRequest, RequestError

POLICY = "policy"
CANDIDATES = "candidates"
_POLICIES = "policies"


@dataclass(frozen=True)
class Deployed:
    """A policy as it was loaded.

    config_hash  16 hexadecimal digits that tell policies apart, models included
    kind, parameters  of the exploration, as logged; `parameters` is JSON
    stamp        changes when another policy is put in the place of this one; None for the policy of a fresh folder
    """

    policy: DecisionPolicy
    config_hash: str
    kind: str
    parameters: str
    stamp: tuple[int, ...] | None


def read_schema(folder: Path) -> FeatureSchema:
    """The schema of the service's folder; ValueError says how to make one where there is none."""
    path = folder / SCHEMA_FILE
    if not path.exists():
        raise ValueError(
            f"schema: {path} is not there; write one, such as "
            '{"actions": ["a", "b"], "numbers": ["amount"], "categories": {"country": ["NL", "DE"]}, '
            '"action_numbers": []}, or add --demo to see it work'
        )
    return FeatureSchema.from_json(path.read_text())


def policy_in_force(folder: Path, schema: FeatureSchema) -> Deployed:
    """The policy of the folder, or a uniform one of version 0 before there is any.

    Raises ValueError where its files are damaged, or it was made for another schema.
    """
    place = folder / POLICY
    if not place.is_dir():
        latest = max((folder / _POLICIES).glob("[0-9]*"), default=None)
        if latest is None and not place.is_symlink():
            policy = DecisionPolicy(None, ExplorerConfig(kind="uniform"), id="uniform", version=0)
            return _deployed(policy, policy.explorer.hash, None)
        if latest is None:
            raise ValueError(
                f"policy: {place} leads nowhere; put a policy there, or remove it to decide uniformly"
            )
        # A swap was cut short between its last two steps.
        _point(place, latest)
    return read_policy(place, schema)


def read_policy(place: Path, schema: FeatureSchema) -> Deployed:
    """The policy that was saved there; ValueError where its files are damaged, or it was made for another schema."""
    stamp = stamp_of(place)
    policy = load_policy(place)
    if policy.oracle is not None and policy.oracle.schema.hash != schema.hash:
        raise ValueError(
            f"policy: {place} was made for schema {policy.oracle.schema.hash}, {SCHEMA_FILE} has {schema.hash}; "
            "train it on this schema"
        )
    return _deployed(policy, json.loads((place / "policy.json").read_text())["digest"][:16], stamp)


def stamp_of(place: Path) -> tuple[int, ...] | None:
    """What changes when another policy is put there; None where there is none."""
    try:
        about = (place / "policy.json").stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_mtime_ns


def install(folder: Path, candidate: Path) -> None:
    """Put a saved policy in force: a copy of it is safe on disk before anything points to it."""
    policies = folder / _POLICIES
    policies.mkdir(exist_ok=True)
    with (policies / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Another service of this folder may be at it.
        _install(folder, policies, candidate)


def _install(folder: Path, policies: Path, candidate: Path) -> None:
    number = max((int(of.name[:6]) for of in policies.glob("[0-9]*")), default=0)
    place = folder / POLICY
    if place.is_dir() and not place.is_symlink():
        number += 1
        place.rename(policies / f"{number:06d}-{POLICY}")
    part = policies / f".{candidate.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(candidate, part)
    for path in (*part.rglob("*"), part):
        sync(path)
    kept = policies / f"{number + 1:06d}-{candidate.name}"
    part.rename(kept)
    sync(policies)
    _point(place, kept)


def _point(place: Path, kept: Path) -> None:
    part = place.with_name(f".{place.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(kept, place.parent), target_is_directory=True)
    part.replace(place)
    sync(place.parent)


def _deployed(policy: DecisionPolicy, config_hash: str, stamp: tuple[int, ...] | None) -> Deployed:
    explorer, default = asdict(policy.explorer), asdict(ExplorerConfig())
    parameters = {name: of for name, of in explorer.items() if name != "kind" and of != default[name]}
    parameters |= {"uniform_slice": explorer["uniform_slice"]}
    if policy.gamma is not None:
        parameters["gamma"] = policy.gamma
    return Deployed(policy, config_hash, policy.explorer.kind, _text(parameters), stamp)


def decide(
    deployed: Deployed, schema: FeatureSchema, requests: Sequence[DecideRequest], seed: int, now: float
) -> list[StoredDecision | RequestError]:
    """Decisions to be recorded, drawn by `uniform_number(seed, event_id)`, or why a request has none (422)."""
    refused: dict[int, RequestError] = {}
    try:
        choices = _encode(schema, requests)
    except ValueError:
        # Of a batch that cannot be encoded, each by itself: only those at fault are refused.
        parts = []
        for place, request in enumerate(requests):
            try:
                parts.append(_encode(schema, [request]))
            except ValueError as fault:
                refused[place] = RequestError(422, str(fault))
        choices = Choices.concatenate(parts) if parts else None
    sound = [request for place, request in enumerate(requests) if place not in refused]
    rows = iter(_decided(deployed, choices, sound, seed, now) if choices is not None else [])
    return [refused[place] if place in refused else next(rows) for place in range(len(requests))]


def _encode(schema: FeatureSchema, requests: Sequence[DecideRequest]) -> Choices:
    features = [request.features or () for request in requests] if schema.action_numbers else None
    return schema.encode(
        [request.context for request in requests], [request.actions for request in requests], features
    )


def _decided(
    deployed: Deployed, choices: Choices, requests: Sequence[DecideRequest], seed: int, now: float
) -> list[StoredDecision]:
    policy = deployed.policy
    pmf = policy.pmf(choices)
    # Who is in the slice is drawn without a look at the context, by a number of its own.
    share = policy.explorer.uniform_slice
    drawn = [uniform_number(seed, f"slice {of.event_id}") < share for of in requests]
    ruled = np.array([of.override is not None for of in requests])
    in_slice = np.array(drawn) & ~ruled
    pmf[in_slice] = explorers.uniform(choices.eligible[in_slice])
    for row in np.flatnonzero(ruled):
        pmf[row] = 0.0
        pmf[row, requests[row].actions.index(requests[row].override)] = 1.0
    column = draw_column(pmf, np.array([uniform_number(seed, of.event_id) for of in requests]))
    rows = []
    for request, probabilities, chosen, uniform, rule in zip(
        requests, pmf.tolist(), column.tolist(), in_slice.tolist(), ruled.tolist(), strict=True
    ):
        rows.append(
            StoredDecision(
                event_id=request.event_id,
                timestamp=now,
                policy_id=policy.id,
                policy_version=policy.version,
                config_hash=deployed.config_hash,
                context=_text(request.context),
                actions=_text(request.actions),
                action_features=None if request.features is None else _text(request.features),
                pmf=_text(probabilities[: len(request.actions)]),
                chosen_index=chosen,
                propensity=probabilities[chosen],
                seed=seed,
                explore_kind="override" if rule else "uniform" if uniform else deployed.kind,
                explore_parameters="{}" if rule else deployed.parameters,
                override=int(rule),
                slice="uniform" if uniform else "normal",
                parent_event_id=request.parent,
                attempt=request.attempt,
            )
        )
    return rows


def _text(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON, the same for the same content."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
