"""Logs of Vowpal Wabbit: the decision service's JSON lines (dsjson) and the text format of cb_adf."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TextIO
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa

from peira.experience.decision_encoding import first_appearance
from peira.experience.decision_records import DECISION_COLUMNS
from peira.experience.decisions import FeatureSchema, LoggedDecisions

_START = datetime(1970, 1, 1, tzinfo=UTC)
_FLOAT32 = 1e-6
"""Vowpal Wabbit writes probabilities in single precision."""
_NOT_FEATURES = ("_multi", "_slots", "_tag", "_text")


class _Rows:
    """Decisions as they are read, a list a column."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {
            name: []
            for name in (
                "event_id",
                "timestamp",
                "model",
                "context",
                "actions",
                "action_features",
                "pmf",
                "chosen_index",
                "propensity",
                "sampling_rate",
                "learn",
                "reward",
            )
        }

    def add(self, **row: Any) -> None:
        for name, values in self.columns.items():
            values.append(row[name])

    def table(self) -> pa.Table:
        """DECISION_COLUMNS and `reward`, which is null where no outcome is known."""
        columns = dict(self.columns)
        count = len(columns["event_id"])
        model = columns.pop("model")
        if all(re.fullmatch(r"\d{1,18}", name) for name in model):
            version = np.array(model, np.int64)
        else:
            names = pa.array(model).dictionary_encode().indices.to_numpy()
            version = first_appearance(names) if count else np.zeros(0, np.int64)
        columns |= {
            "policy_id": model,
            "policy_version": version,
            "config_hash": [""] * count,
            "excluded": [None] * count,
            "seed": [None] * count,
            "counter": [None] * count,
            "explore_kind": [""] * count,
            "explore_parameters": ["{}"] * count,
            "override": [False] * count,
            "slice": ["normal"] * count,
            "parent_event_id": [None] * count,
            "attempt": [1] * count,
            "applied": columns["learn"],
        }
        return pa.table(columns, DECISION_COLUMNS.append(pa.field("reward", pa.float64())))


# -- dsjson ------------------------------------------------------------------------------------------------


def read_dsjson(path: Path) -> pa.Table:
    """Decisions of DECISION_COLUMNS with `reward` = −`_label_cost`, a line each.

    Probabilities `p` go with the ids `a` (from 1, in the order served), and are put in the order of `_multi`. An action
    is named by `_tag`, else by a feature `id`, else by its number. Features in a namespace are named namespace.feature;
    truth is 1 or 0; a text of an action becomes a feature text=value of 1. `sampling_rate` is 1 − `pdrop`; `_skipLearn`
    marks decisions that were not acted on. `policy_version` is `VWState.m` where that is always a whole number, else
    models are numbered as they appear. A line with a reward alone (`RewardValue`) gives it to the decision of its event
    if that has no label; a decision without any is left with reward null.

    Raises ValueError with the number of the line for what is no such log.
    """
    rows, later = _Rows(), {}
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("expected an object")
            if "c" in event:
                rows.add(**_decision(event, number))
            elif "RewardValue" in event and "EventId" in event:
                later.setdefault(event["EventId"], float(event["RewardValue"]))
            else:
                raise ValueError("expected a decision (with c) or a reward (with RewardValue and EventId)")
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as fault:
            told = f"has no {fault}" if isinstance(fault, KeyError) else str(fault).splitlines()[0]
            raise ValueError(f"path: line {number} of {path}: {told}") from fault
    reward = rows.columns["reward"]
    for row, event_id in enumerate(rows.columns["event_id"]):
        if reward[row] is None:
            reward[row] = later.get(event_id)
    return rows.table()


def _decision(event: Mapping[str, Any], number: int) -> dict[str, Any]:
    context = event["c"]
    if "_outcomes" in event or "_slots" in context:
        raise ValueError("a decision of several slots; one action a decision is read")
    served = event["a"]
    described = context.get("_multi") or [{} for _ in served]
    count = len(described)
    if sorted(served) != list(range(1, count + 1)):
        raise ValueError(f"a: expected the numbers 1 … {count} of _multi in some order, got {served}")
    names, features = zip(*(_action(of, place) for place, of in enumerate(described, 1)), strict=True)
    chosen = served[0]
    if "_label_Action" in event:
        chosen = event["_label_Action"]
        if event.get("_labelIndex", chosen - 1) != chosen - 1:
            raise ValueError(
                f"_labelIndex: expected {chosen - 1} (_label_Action − 1), got {event['_labelIndex']}"
            )
    pmf, propensity = None, event.get("_label_probability")
    if "p" in event:
        if len(event["p"]) != count:
            raise ValueError(f"p: expected {count} probabilities, one for each of a, got {len(event['p'])}")
        by_action = dict(zip(served, map(float, event["p"]), strict=True))
        pmf = [by_action[place] for place in range(1, count + 1)]
        said = by_action[chosen]
        if propensity is not None and abs(said - propensity) > _FLOAT32:
            raise ValueError(
                f"_label_probability: got {propensity}, where p says {said} of action {chosen}; p is in the order of a"
            )
        propensity = said
    if propensity is None:
        raise ValueError("p: missing, and _label_probability too; a decision needs its probability")
    dropped = event.get("pdrop", 0.0)
    if not 0 <= dropped < 1:
        raise ValueError(f"pdrop: expected a share from 0 to below 1, got {dropped}")
    cost = event.get("_label_cost")
    return {
        "event_id": str(event.get("EventId", number)),
        "timestamp": _seconds(event["Timestamp"]) if "Timestamp" in event else float(number - 1),
        "model": str(event.get("VWState", {}).get("m", "0")),
        "context": json.dumps(_flat(context, "", {})),
        "actions": names,
        "action_features": json.dumps(features),
        "pmf": pmf,
        "chosen_index": chosen - 1,
        "propensity": propensity,
        "sampling_rate": 1.0 - dropped,
        "learn": not event.get("_skipLearn", False),
        # 0.0 − x: a cost of 0 is a reward of 0, not of −0.
        "reward": None if cost is None else 0.0 - cost,
    }


def _action(described: Mapping[str, Any], place: int) -> tuple[str, dict[str, float]]:
    features = _flat(described, "", {})
    features.pop("i.constant", None)
    names = [described.get("_tag"), features.pop("i.id", None), features.get("id")]
    named = next((str(name) for name in names if name is not None), None)
    if named is None:
        called = next((feature for feature in features if feature.endswith(".id")), None)
        named = str(place) if called is None else str(features.pop(called))
    elif features.get("id") == named:
        del features["id"]
    return named, {
        **{feature: value for feature, value in features.items() if not isinstance(value, str)},
        **{f"{feature}={value}": 1.0 for feature, value in features.items() if isinstance(value, str)},
    }


def _flat(features: Mapping[str, Any], prefix: str, into: dict[str, Any]) -> dict[str, Any]:
    """Features by full name; objects within lists belong to what holds the list."""
    for name, value in features.items():
        if name in _NOT_FEATURES:
            continue
        if isinstance(value, dict):
            _flat(value, f"{prefix}{name}.", into)
        elif isinstance(value, list):
            for place, entry in enumerate(value):
                if isinstance(entry, dict):
                    _flat(entry, f"{prefix}{name}.", into)
                else:
                    into[f"{prefix}{name}.{place}"] = entry
        elif isinstance(value, bool):
            into[prefix + name] = float(value)
        elif value is not None:
            into[prefix + name] = value
    return into


def _seconds(timestamp: str) -> float:
    time = datetime.fromisoformat(timestamp)
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    return (time - _START) / timedelta(seconds=1)


def write_dsjson(path: Path, rows: LoggedDecisions, schema: FeatureSchema, event_ids: Sequence[str]) -> None:
    """One line a decision, as `read_dsjson` reads it: chosen action first in `a`, `p` in the order of `a`.

    Slices and clusters have no place in it. Raises ValueError for a feature that has the name of a namespace.
    """
    named = list(_named(schema))
    places = [_split(name) for name in (*schema.numbers, *schema.categories)]
    spaces = {space for space, _ in places if space}
    for space, name in places:
        if space is None and name in spaces:
            raise ValueError(f"feature {name!r}: other features are in a namespace of that name; rename it")
    action_places = [_split(name) for name in schema.action_numbers]
    with _opened(path, "wt") as stream:
        for row in range(len(rows)):
            columns = np.flatnonzero(rows.choices.action[row] >= 0)
            chosen = int(np.searchsorted(columns, rows.column[row]))
            a = list(range(1, len(columns) + 1))
            a[0], a[chosen] = a[chosen], a[0]
            values = _values(rows, row, named)
            c = _nested(zip(places, values, strict=True))
            c["_multi"] = [
                {
                    "_tag": schema.actions[code],
                    **_nested(zip(action_places, features, strict=True)),
                }
                for code, features in zip(
                    rows.choices.action[row, columns],
                    rows.choices.feature[row, columns].tolist(),
                    strict=True,
                )
            ]
            reward = float(rows.reward[row])
            event: dict[str, Any] = {
                "_label_cost": 0.0 - reward,
                "_label_probability": float(rows.propensity[row]),
                "_label_Action": chosen + 1,
                "_labelIndex": chosen,
                "o": [{"v": reward, "EventId": event_ids[row], "ActionTaken": False}],
                "Timestamp": _timestamp(rows.time[row]),
                "Version": "1",
                "EventId": event_ids[row],
                "a": a,
                "c": c,
            }
            if rows.pmf is not None:
                pmf = rows.pmf[row, columns].tolist()
                event["p"] = [pmf[place - 1] for place in a]
            event["VWState"] = {"m": str(int(rows.generation[row]))}
            if rows.weight is not None:
                event["pdrop"] = float(1 - 1 / rows.weight[row])
            event["_original_label_cost"] = 0.0 - reward
            stream.write(json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n")


def _timestamp(seconds: float) -> str:
    time = _START + timedelta(microseconds=round(float(seconds) * 1e6))
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _split(name: str) -> tuple[str | None, str]:
    space, dot, feature = name.partition(".")
    return (space, feature) if dot and space and feature else (None, name)


def _nested(values: Iterator[tuple[tuple[str | None, str], Any]]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for (space, name), value in values:
        if value is not None:
            (nested if space is None else nested.setdefault(space, {}))[name] = value
    return nested


def _named(schema: FeatureSchema) -> Iterator[Sequence[str | None]]:
    """The values of each category by code; of the unknown one there is none."""
    for known in schema.categories.values():
        yield (None, *known)


def _values(rows: LoggedDecisions, row: int, named: Sequence[Sequence[str | None]]) -> list[Any]:
    codes = rows.choices.category[row].tolist()
    return rows.choices.number[row].tolist() + [known[code] for known, code in zip(named, codes, strict=True)]


# -- text --------------------------------------------------------------------------------------------------


def read_vw_text(path: Path) -> pa.Table:
    """Decisions of DECISION_COLUMNS with `reward` = −cost, from blocks of lines with an empty line between.

    `shared |space feature:value …` (optional), then a line an action, the chosen one with the label
    `action:cost:probability`. An action is named by its tag, else by its place. A feature is named space.feature (the
    nameless space gives no prefix), without a value it is 1; in shared lines name=value is a category, in the lines of
    actions a feature of 1. Probabilities of the other actions are not there: `pmf` is null. A block's time is its
    number. Names are percent-decoded, as `write_vw_text` encodes them.

    Raises ValueError with the number of the line for what is no such block.
    """
    rows, block = _Rows(), []
    for number, line in _lines(path):
        if line.strip():
            block.append((number, line))
        elif block:
            _add_block(rows, block, path)
            block = []
    if block:
        _add_block(rows, block, path)
    return rows.table()


def _add_block(rows: _Rows, block: Sequence[tuple[int, str]], path: Path) -> None:
    shared: dict[str, Any] = {}
    names: list[str] = []
    features: list[dict[str, Any]] = []
    label = None
    event = len(rows.columns["event_id"])
    for at, (number, line) in enumerate(block):
        try:
            head, *spaces = line.rstrip("\r\n").split("|")
            if not spaces:
                raise ValueError("expected a | before the features")
            words = head.split()
            if at == 0 and words[:1] == ["shared"]:
                shared = _spaces(spaces, categories=True)
                continue
            # What touches the | is a tag, unless it is a label.
            tag = words.pop() if words and (words[-1].startswith("'") or _is_tag(words[-1], head)) else None
            if len(words) > 1:
                raise ValueError(f"expected one label action:cost:probability, got {' '.join(words)}")
            if words:
                if label is not None:
                    raise ValueError("a second label among one decision's actions")
                _, cost, probability = words[0].split(":")
                label = len(names), float(cost), float(probability)
            names.append(str(len(names) + 1) if tag is None else unquote(tag.removeprefix("'")))
            features.append(_spaces(spaces, categories=False))
        except ValueError as fault:
            raise ValueError(f"path: line {number} of {path}: {str(fault).splitlines()[0]}") from fault
    first = block[0][0]
    if not names:
        raise ValueError(f"path: line {first} of {path}: a decision without actions")
    if label is None:
        raise ValueError(
            f"path: line {first} of {path}: no action of the decision has a label action:cost:probability"
        )
    rows.add(
        event_id=str(event),
        timestamp=float(event),
        model="0",
        context=json.dumps(shared),
        actions=names,
        action_features=json.dumps(features),
        pmf=None,
        chosen_index=label[0],
        propensity=label[2],
        sampling_rate=1.0,
        learn=True,
        reward=0.0 - label[1],
    )


def _is_tag(word: str, head: str) -> bool:
    return ":" not in word and not head.endswith((" ", "\t"))


def _spaces(spaces: Sequence[str], *, categories: bool) -> dict[str, Any]:
    features: dict[str, Any] = {}
    for text in spaces:
        words = text.split()
        prefix, scale = "", 1.0
        if words and not text[0].isspace():
            space, _, factor = words.pop(0).partition(":")
            prefix, scale = f"{unquote(space)}.", float(factor) if factor else 1.0
        for word in words:
            name, colon, value = word.partition(":")
            if categories and "=" in name and not colon:
                name, _, value = name.partition("=")
                features[prefix + unquote(name)] = unquote(value)
            else:
                features[prefix + unquote(name)] = scale * (float(value) if colon else 1.0)
    return features


def write_vw_text(path: Path, rows: LoggedDecisions, schema: FeatureSchema) -> None:
    """Blocks that `read_vw_text` and `vw --cb_explore_adf` read; names with a blank, |, :, = or % are percent-encoded.

    What the format has no place for is left out: the pmf, generation, time, slice, cluster and weight.
    """
    names = [_word(name) for name in schema.actions]
    numbers = [_placed(name) for name in schema.numbers]
    action_numbers = [_placed(name) for name in schema.action_numbers]
    categories = [(*_placed(name), [None, *map(_word, known)]) for name, known in schema.categories.items()]
    with _opened(path, "wt") as stream:
        for row in range(len(rows)):
            words: dict[str, list[str]] = {}
            for (space, name), value in zip(numbers, rows.choices.number[row], strict=True):
                words.setdefault(space, []).append(f"{name}:{value}")
            for (space, name, known), code in zip(categories, rows.choices.category[row], strict=True):
                if code:
                    words.setdefault(space, []).append(f"{name}={known[code]}")
            lines = [f"shared {_text(words)}"]
            for column, code in enumerate(rows.choices.action[row]):
                if code < 0:
                    continue
                label = ""
                if column == rows.column[row]:
                    label = f"0:{0.0 - float(rows.reward[row])}:{float(rows.propensity[row])} "
                words = {}
                for (space, name), value in zip(
                    action_numbers, rows.choices.feature[row, column], strict=True
                ):
                    words.setdefault(space, []).append(f"{name}:{value}")
                lines.append(f"{label}'{names[code]}{_text(words)}")
            stream.write("\n".join(lines) + "\n\n")


def _text(words: Mapping[str, Sequence[str]]) -> str:
    return "".join(f"|{space} {' '.join(of)} " for space, of in words.items()).rstrip() or "|"


def _word(name: str) -> str:
    return quote(name, safe="/!#$&'()*+,;@[]<>^`{}~\"\\?.")


def _placed(name: str) -> tuple[str, str]:
    space, feature = _split(name)
    return "" if space is None else _word(space), _word(feature)


# -- files -------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with _opened(path, "rt") as stream:
        try:
            yield from enumerate(stream, 1)
        except UnicodeDecodeError as fault:
            raise ValueError(f"path: {path} is no text in UTF-8") from fault


def _opened(path: Path, mode: Literal["rt", "wt"]) -> TextIO:
    return (
        gzip.open(path, mode, encoding="utf-8") if path.suffix == ".gz" else path.open(mode, encoding="utf-8")
    )
