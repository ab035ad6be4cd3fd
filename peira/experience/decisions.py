"""Decisions among eligible actions, many at once: what was seen, what could be done, what was done, what came of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

PADDING = -1
UNKNOWN = 0
"""Code of a value of a category that the schema does not list; the listed ones follow from 1."""


@dataclass(frozen=True)
class FeatureSchema:
    """Which features contexts and actions have, and which actions there are.

      numbers         names of the numeric features of a context
      categories      names of its categorical features, each with the values known; any other value has code 0
      actions         names of all actions; the code of an action is its place here
      action_numbers  names of the numeric features of an action

    Raises ValueError for a name that comes twice and where there is no action.
    """

    actions: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    action_numbers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.actions:
            raise ValueError("schema: names no action; give at least one")
        for what, names in (
            ("actions", self.actions),
            ("features", (*self.numbers, *self.categories)),
            ("action_numbers", self.action_numbers),
            *self.categories.items(),
        ):
            if len(set(names)) < len(names):
                twice = next(name for name in names if list(names).count(name) > 1)
                raise ValueError(f"schema: {twice!r} comes twice among {what}; name each once")

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits that tell schemas apart."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @cached_property
    def _action_codes(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.actions)}

    @cached_property
    def _category_codes(self) -> dict[str, dict[str, int]]:
        return {name: {v: at for at, v in enumerate(known, 1)} for name, known in self.categories.items()}

    def to_json(self) -> str:
        """Its parts in their own order: the order of categories is that of columns."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FeatureSchema:
        """The schema that `to_json` wrote; ValueError for anything else."""
        try:
            read = json.loads(text)
            return cls(
                actions=tuple(read["actions"]),
                numbers=tuple(read["numbers"]),
                categories={name: tuple(values) for name, values in read["categories"].items()},
                action_numbers=tuple(read["action_numbers"]),
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as fault:
            raise ValueError(f"schema: expected the JSON of a feature schema, got {text[:80]!r}") from fault

    def encode(
        self,
        contexts: Sequence[Mapping[str, Any]],
        actions: Sequence[Sequence[str]],
        action_features: Sequence[Sequence[Mapping[str, float]]] | None = None,
    ) -> Choices:
        """Arrays of named features; ValueError names the feature that is missing or of another type, or the action.

        `actions` are the eligible ones of each context, in any order, and keep it; `action_features` go with them.
        """
        code, values = self._action_codes, self._category_codes
        width = max(map(len, actions), default=0)
        number = np.empty((len(contexts), len(self.numbers)), np.float32)
        category = np.empty((len(contexts), len(values)), np.int32)
        action = np.full((len(contexts), width), PADDING, np.int32)
        feature = np.zeros((len(contexts), width, len(self.action_numbers)), np.float32)
        for row, (context, eligible) in enumerate(zip(contexts, actions, strict=True)):
            number[row] = [_number(context, name, "context") for name in self.numbers]
            category[row] = [values[name].get(_category(context, name), UNKNOWN) for name in values]
            try:
                action[row, : len(eligible)] = [code[name] for name in eligible]
            except (KeyError, TypeError):
                unknown = next(name for name in eligible if not isinstance(name, str) or name not in code)
                raise ValueError(
                    f"actions: {unknown!r} is not known; the policy has {', '.join(self.actions[:12])}"
                    f"{', …' if len(self.actions) > 12 else ''}"
                ) from None
            if len(set(eligible)) < len(eligible):
                twice = next(name for name in eligible if list(eligible).count(name) > 1)
                raise ValueError(f"actions: {twice!r} comes twice; name each eligible action once")
            if not eligible:
                raise ValueError("actions: none is eligible; name at least one")
            if self.action_numbers:
                given = [] if action_features is None else action_features[row]
                if len(given) != len(eligible):
                    raise ValueError(
                        f"action_features: expected those of {len(eligible)} actions, got {len(given)}"
                    )
                feature[row, : len(eligible)] = [
                    [_number(of, name, "action") for name in self.action_numbers] for of in given
                ]
        return Choices(number, category, action, feature)

    def check(self, choices: Choices) -> None:
        """Raise ValueError unless the arrays are as wide as this schema, and their codes within it."""
        for name, array, names in (
            ("number", choices.number, self.numbers),
            ("category", choices.category, self.categories),
            ("feature", choices.feature, self.action_numbers),
        ):
            if array.shape[-1] != len(names):
                raise ValueError(
                    f"{name}: expected {len(names)} columns as in the schema, got {array.shape[-1]}"
                )
        if choices.action.max(initial=PADDING) >= len(self.actions):
            raise ValueError(f"action: expected codes below {len(self.actions)}, got {choices.action.max()}")
        for place, (name, known) in enumerate(self.categories.items()):
            if choices.category[:, place].max(initial=UNKNOWN) > len(known):
                raise ValueError(
                    f"category {name!r}: expected codes up to {len(known)}, the number of its values"
                )


def _number(features: Mapping[str, Any], name: str, of: str) -> float:
    value = features.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        came = "nothing" if value is None else f"{value!r}"
        raise ValueError(f"{of} feature {name!r}: expected a number, got {came}")
    # What float32 cannot hold would reach the model as an infinity.
    if not abs(value) <= 3e38:
        raise ValueError(f"{of} feature {name!r}: expected a finite number, got {value}")
    return float(value)


def _category(features: Mapping[str, Any], name: str) -> str:
    value = features.get(name)
    if not isinstance(value, str):
        came = "nothing" if value is None else f"{value!r}"
        raise ValueError(f"context feature {name!r}: expected a text, got {came}")
    return value


@dataclass(frozen=True)
class Choices:
    """What n decisions are made from; actions are padded to the same number of columns.

    number    [n, numbers] float32        numeric features of the context
    category  [n, categories] int32       codes of its categorical ones
    action    [n, columns] int32          codes of the eligible actions; −1 fills up
    feature   [n, columns, features] float32  numeric features of the actions; 0 where padded
    """

    number: Float[np.ndarray, "rows numbers"]
    category: Int[np.ndarray, "rows categories"]
    action: Int[np.ndarray, "rows columns"]
    feature: Float[np.ndarray, "rows columns features"]

    def __len__(self) -> int:
        return len(self.action)

    @property
    def eligible(self) -> Bool[np.ndarray, "rows columns"]:
        return self.action >= 0

    @property
    def count(self) -> Int[np.ndarray, " rows"]:
        """K(x): how many actions are eligible."""
        return self.eligible.sum(1)

    def take(self, rows: np.ndarray | slice) -> Choices:
        """Those of some rows (numbers of rows, a mask or a slice)."""
        return Choices(self.number[rows], self.category[rows], self.action[rows], self.feature[rows])

    def column_of(self, action: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """The column in which each row's action (a code) stands; ValueError where it is not eligible."""
        found = self.action == action[:, None]
        if not (inside := found.any(1)).all():
            row = int(np.argmin(inside))
            raise ValueError(f"action: {action[row]} of row {row} is not among its eligible actions")
        # Without any row there is no column either, and no first one among them.
        return found.argmax(1) if len(found) else np.zeros(0, np.int64)

    @staticmethod
    def concatenate(parts: Sequence[Choices]) -> Choices:
        """One after another, padded to the widest."""
        width = max(part.action.shape[1] for part in parts)

        def padded(of: np.ndarray, fill: float) -> np.ndarray:
            missing = [(0, 0), (0, width - of.shape[1]), *[(0, 0)] * (of.ndim - 2)]
            return np.pad(of, missing, constant_values=fill)

        return Choices(
            np.concatenate([part.number for part in parts]),
            np.concatenate([part.category for part in parts]),
            np.concatenate([padded(part.action, PADDING) for part in parts]),
            np.concatenate([padded(part.feature, 0) for part in parts]),
        )


@dataclass(frozen=True)
class LoggedDecisions:
    """Decisions that were made, with their outcomes; one row a decision.

    choices     what each was made from
    column      [n] the column of `choices` that was chosen
    propensity  [n] its probability when it was chosen, after floors, caps and overrides
    reward      [n] float64
    pmf         [n, columns] the probability of every eligible action, 0 where padded; None where it was not logged
    generation  [n] version of the policy that chose
    time        [n] when it was decided: seconds, or rounds in a simulation
    uniform     [n] whether the row belongs to the slice of traffic that is always drawn uniformly
    cluster     [n] the same number for rows that are not independent (retries of a payment, one shopper)
    weight      [n] how many decisions the row stands for, 1/(share that was logged); None where all were logged
    """

    choices: Choices
    column: Int[np.ndarray, " rows"]
    propensity: Float[np.ndarray, " rows"]
    reward: Float[np.ndarray, " rows"]
    pmf: Float[np.ndarray, "rows columns"] | None
    generation: Int[np.ndarray, " rows"]
    time: Float[np.ndarray, " rows"]
    uniform: Bool[np.ndarray, " rows"]
    cluster: Int[np.ndarray, " rows"]
    weight: Float[np.ndarray, " rows"] | None = None

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def action(self) -> Int[np.ndarray, " rows"]:
        """Code of the chosen action."""
        return self.choices.action[np.arange(len(self)), self.column]

    @property
    def chosen_feature(self) -> Float[np.ndarray, "rows features"]:
        return self.choices.feature[np.arange(len(self)), self.column]

    def take(self, rows: np.ndarray | slice) -> LoggedDecisions:
        """Those of some rows (numbers of rows, a mask or a slice)."""
        own = {name: getattr(self, name) for name in ("column", "propensity", "reward", "generation")}
        own |= {name: getattr(self, name) for name in ("time", "uniform", "cluster")}
        return replace(
            self,
            choices=self.choices.take(rows),
            pmf=None if self.pmf is None else self.pmf[rows],
            weight=None if self.weight is None else self.weight[rows],
            **{name: of[rows] for name, of in own.items()},
        )

    @staticmethod
    def concatenate(parts: Sequence[LoggedDecisions]) -> LoggedDecisions:
        """One after another; the pmf is kept where all have it."""
        choices = Choices.concatenate([part.choices for part in parts])
        width = choices.action.shape[1]
        pmf = None
        if all(part.pmf is not None for part in parts):
            pmf = np.concatenate(
                [np.pad(part.pmf, [(0, 0), (0, width - part.pmf.shape[1])]) for part in parts]
            )
        names = ("column", "propensity", "reward", "generation", "time", "uniform", "cluster")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        weight = None
        if any(part.weight is not None for part in parts):
            weight = np.concatenate(
                [np.ones(len(part)) if part.weight is None else part.weight for part in parts]
            )
        return LoggedDecisions(choices=choices, pmf=pmf, weight=weight, **joined)
