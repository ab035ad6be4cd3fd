"""What callers send: read from JSON, checked field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from ulid import ULID

LONGEST_NAME = 128
"""Characters of an event id, of an action's name and of a source."""
LARGEST_ATTEMPT = 1_000_000


class RequestError(Exception):
    """A request that is refused: an HTTP status, and one line that says what was expected, what came, what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class DecideRequest:
    """A decision that is asked for.

    event_id  the caller's, or a new one; `named` says whether the caller gave it
    context   features as they came, also those that the schema does not know
    actions   the eligible ones
    features  of each action, where the caller gave any
    override  the action that a rule of the caller's has taken already; None where the policy is to choose
    parent    event id of the decision that this one tries again, with `attempt` 2, 3, …
    """

    event_id: str
    named: bool
    context: Mapping[str, Any]
    actions: tuple[str, ...]
    features: tuple[Mapping[str, Any], ...] | None
    override: str | None
    parent: str | None
    attempt: int


@dataclass(frozen=True, slots=True)
class OutcomeRequest:
    """What came of a decision.

    reward  in [0, 1]; None for a decision that was not acted on
    time    seconds since 1970 when it happened; None for when it arrives
    key     tells two outcomes of one event apart; the same key again is the same outcome
    """

    event_id: str
    reward: float | None
    time: float | None
    source: str
    key: str


@dataclass(frozen=True, slots=True)
class SwapRequest:
    """A candidate that asks to take over; its gate reads decisions made at or after `since`."""

    candidate: str
    since: float | None
    force: bool


def read_decide(body: bytes, most_actions: int) -> DecideRequest:
    """The request that `POST /decide` carries; RequestError 400 for what is no JSON object, 422 for a wrong field."""
    fields = _object(body, ("context", "actions"), ("event_id", "override", "parent_event_id", "attempt"))
    event_id, override, parent = (fields.get(name) for name in ("event_id", "override", "parent_event_id"))
    attempt = fields.get("attempt", 1 if parent is None else 2)
    if type(attempt) is not int or not 1 <= attempt <= LARGEST_ATTEMPT:
        raise RequestError(422, f"attempt: expected a whole number from 1, got {_shown(attempt)}")
    if (attempt > 1) != (parent is not None):
        raise RequestError(
            422, f"attempt: expected 1 without and 2 or more with a parent_event_id, got {attempt}"
        )
    actions, features = _actions(fields["actions"], most_actions)
    if override is not None and override not in actions:
        raise RequestError(422, f"override: expected one of the actions, got {_shown(override)}")
    return DecideRequest(
        event_id=str(ULID()) if event_id is None else _name(event_id, "event_id"),
        named=event_id is not None,
        context=_flat(fields["context"], "context"),
        actions=actions,
        features=features,
        override=override,
        parent=None if parent is None else _name(parent, "parent_event_id"),
        attempt=attempt,
    )


def read_outcome(body: bytes) -> OutcomeRequest:
    """The request that `POST /outcome` carries; RequestError as in `read_decide`."""
    fields = _object(body, ("event_id",), ("reward", "applied", "time", "source", "outcome_id"))
    event_id = _name(fields["event_id"], "event_id")
    reward, applied, time = fields.get("reward"), fields.get("applied", True), fields.get("time")
    source = _name(fields.get("source", "caller"), "source")
    if not isinstance(applied, bool):
        raise RequestError(422, f"applied: expected true or false, got {_shown(applied)}")
    if time is not None:
        time = _time(time, "time")
    if not applied:
        if reward is not None:
            raise RequestError(
                422, f"reward: expected none for a decision that was not applied, got {_shown(reward)}"
            )
        return OutcomeRequest(event_id, None, time, source, "")
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0 <= reward <= 1:
        raise RequestError(422, f"reward: expected a number from 0 to 1, got {_shown(reward)}")
    # What is the same in all it says is the same outcome sent again, unless the caller tells them apart.
    given = fields.get("outcome_id")
    key = f"={float(reward)!r} {time!r} {source}" if given is None else f"#{_name(given, 'outcome_id')}"
    return OutcomeRequest(event_id, float(reward), time, source, key)


def read_swap(body: bytes) -> SwapRequest:
    """The request that `POST /policy` carries; RequestError as in `read_decide`."""
    fields = _object(body, ("candidate",), ("since", "force"))
    force, since = fields.get("force", False), fields.get("since")
    if not isinstance(force, bool):
        raise RequestError(422, f"force: expected true or false, got {_shown(force)}")
    candidate = _name(fields["candidate"], "candidate")
    if "/" in candidate or candidate.startswith("."):
        raise RequestError(422, f"candidate: expected the name of a folder in candidates/, got {candidate!r}")
    return SwapRequest(candidate, None if since is None else _time(since, "since"), force)


def _object(body: bytes, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as fault:
        raise _not_json(body, fault) from None
    if not isinstance(fields, dict):
        raise RequestError(400, f"body: expected a JSON object, got {_shown(fields)}")
    for name in required:
        if fields.get(name) is None:
            raise RequestError(422, f"{name}: expected a value, got nothing")
    for name in fields:
        if name not in required and name not in optional:
            known = ", ".join((*required, *optional))
            raise RequestError(422, f"{name[:LONGEST_NAME]!r}: there is no such field; there are {known}")
    return fields


def _not_json(body: bytes, fault: orjson.JSONDecodeError) -> RequestError:
    """Python's own reader takes NaN and Infinity, which JSON lacks: their field can then be named."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        read = None
    if found := _not_finite(read, "") if isinstance(read, dict) else None:
        name, value = found
        return RequestError(422, f"{name}: expected a finite number, got {value}")
    return RequestError(400, f"body: expected JSON, got something else: {fault}")


def _not_finite(value: Any, name: str) -> tuple[str, float] | None:
    """Name and value of the first number that is not finite, a few levels deep."""
    if isinstance(value, float) and not math.isfinite(value):
        return name, value
    if isinstance(value, dict | list) and name.count(".") < 4:
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for at, of in inside:
            if found := _not_finite(of, f"{name}.{at}" if name else str(at)):
                return found
    return None


def _actions(given: Any, most: int) -> tuple[tuple[str, ...], tuple[Mapping[str, Any], ...] | None]:
    if not isinstance(given, list):
        raise RequestError(422, f"actions: expected a list, got {_shown(given)}")
    if not given:
        raise RequestError(422, "actions: none is eligible; name at least one")
    if len(given) > most:
        raise RequestError(422, f"actions: expected at most {most}, got {len(given)}")
    if not any(isinstance(action, dict) for action in given):
        return _each_once(tuple(_name(action, "actions") for action in given)), None
    names, features = [], []
    for action in given:
        if not isinstance(action, dict) or not action.keys() <= {"id", "features"} or "id" not in action:
            raise RequestError(
                422, f'actions: expected all as {{"id": …, "features": {{…}}}}, got {_shown(action)}'
            )
        names.append(_name(action["id"], "actions"))
        features.append(_flat(action.get("features", {}), f"features of action {action['id']!r}"))
    return _each_once(tuple(names)), tuple(features)


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(422, f"actions: {twice!r} comes twice; name each eligible action once")
    return names


def _name(value: Any, field: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
        raise RequestError(
            422, f"{field}: expected a printable text of 1 to {LONGEST_NAME} characters, got {_shown(value)}"
        )
    return value


def _time(value: Any, field: str) -> float:
    # Up to the year 9999, the last that a time stamp can tell.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 253_402_300_799:
        raise RequestError(422, f"{field}: expected seconds since 1970, got {_shown(value)}")
    return float(value)


def _flat(features: Any, of: str) -> Mapping[str, Any]:
    if not isinstance(features, dict):
        raise RequestError(422, f"{of}: expected an object of features, got {_shown(features)}")
    for name, value in features.items():
        if isinstance(value, dict | list):
            raise RequestError(
                422, f"{of} feature {name[:LONGEST_NAME]!r}: expected a number or a text, got {_shown(value)}"
            )
    return features


def _shown(value: Any) -> str:
    """A value as an error tells it: short, and in one line."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
