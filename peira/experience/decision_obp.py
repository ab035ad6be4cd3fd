"""Decisions as the dictionaries of logged feedback of the Open Bandit Pipeline, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from peira.experience.decisions import PADDING, Choices, FeatureSchema, LoggedDecisions

_SAME = 1e-6


def to_obp(rows: LoggedDecisions, schema: FeatureSchema) -> dict[str, Any]:
    """The dictionary of logged feedback of the Open Bandit Pipeline.

      n_rounds, n_actions, action [n] (codes), reward [n], pscore [n]
      context         [n, d] the numbers, then one flag for each known value of each category
      position        None: one action a round
      pi_b            [n, n_actions, 1] the pmf over all actions, 0 if not eligible; None if it is not known
      action_context  [n_actions, features of actions], or None if there are none
      action_set      [n, n_actions] which actions were eligible: OBP has no such key and ignores it

    Generation, time, slice, cluster and weight have no place in it. Raises ValueError where an action's features differ
    between rows: OBP has one row an action.
    """
    choices, count, actions = rows.choices, len(rows), len(schema.actions)
    eligible, at = choices.eligible, np.nonzero(choices.eligible)
    code = choices.action[eligible]
    flags = [
        choices.category[:, place, None] == np.arange(1, len(known) + 1)
        for place, known in enumerate(schema.categories.values())
    ]
    pi_b = None
    if rows.pmf is not None:
        pi_b = np.zeros((count, actions, 1))
        pi_b[at[0], code, 0] = rows.pmf[eligible]
    action_context = None
    if schema.action_numbers:
        action_context = np.zeros((actions, len(schema.action_numbers)), np.float32)
        action_context[code] = choices.feature[eligible]
        differ = (action_context[code] != choices.feature[eligible]).any(1)
        if differ.any():
            name = schema.actions[code[np.argmax(differ)]]
            raise ValueError(
                f"action_context: the features of {name!r} differ between rows; OBP has one row an action"
            )
    action_set = np.zeros((count, actions), bool)
    action_set[at[0], code] = True
    return {
        "n_rounds": count,
        "n_actions": actions,
        "context": np.concatenate([choices.number, *flags], axis=1, dtype=np.float64),
        "action": rows.action.astype(np.int64),
        "position": None,
        "reward": rows.reward,
        "pscore": rows.propensity,
        "pi_b": pi_b,
        "action_context": action_context,
        "action_set": action_set,
    }


def from_obp(
    feedback: Mapping[str, Any], schema: FeatureSchema | None = None
) -> tuple[LoggedDecisions, FeatureSchema]:
    """Decisions from a dictionary of logged feedback of OBP, in the layout of `to_obp`.

    Without a schema the context's columns are numbers x0, x1, …, the actions are named by their numbers, and the
    columns of `action_context` are a0, a1, …. Without `action_set` every action is eligible. Of `pi_b` with several
    positions the row's own is taken. Raises ValueError for a key that is missing, a shape that does not fit, an action
    out of range and a pscore that is no probability or is not what `pi_b` says.
    """
    for key in ("n_rounds", "n_actions", "context", "action", "reward", "pscore"):
        if feedback.get(key) is None:
            raise ValueError(
                f"{key}: missing; OBP's feedback has n_rounds, n_actions, context, action, reward, pscore"
            )
    count, actions = int(feedback["n_rounds"]), int(feedback["n_actions"])
    context = np.asarray(feedback["context"], np.float64)
    of_actions = feedback.get("action_context")
    of_actions = np.zeros((actions, 0)) if of_actions is None else np.asarray(of_actions, np.float64)
    if schema is None:
        schema = FeatureSchema(
            actions=tuple(map(str, range(actions))),
            numbers=tuple(f"x{place}" for place in range(context.shape[1])),
            action_numbers=tuple(f"a{place}" for place in range(of_actions.shape[1])),
        )
    width = len(schema.numbers) + sum(map(len, schema.categories.values()))
    expected = {
        "context": (count, width),
        "action": (count,),
        "reward": (count,),
        "pscore": (count,),
        "action_context": (len(schema.actions), len(schema.action_numbers)),
    }
    given = {**feedback, "context": context, "action_context": of_actions}
    for key, shape in expected.items():
        if np.shape(given[key]) != shape:
            raise ValueError(f"{key}: expected shape {shape}, got {np.shape(given[key])}")
    code = np.asarray(feedback["action"], np.int64)
    propensity = np.asarray(feedback["pscore"], np.float64)
    for key, legal, wanted in (
        ("action", (code >= 0) & (code < actions), f"0 … {actions - 1}"),
        ("pscore", (propensity > 0) & (propensity <= 1 + _SAME), "a probability above 0, at most 1"),
        ("reward", np.isfinite(np.asarray(feedback["reward"], np.float64)), "a finite number"),
    ):
        if not legal.all():
            row = int(np.argmin(legal))
            raise ValueError(f"{key}: expected {wanted}, got {np.asarray(feedback[key])[row]} in round {row}")
    sets = feedback.get("action_set")
    sets = np.ones((count, actions), bool) if sets is None else np.asarray(sets, bool)
    # The eligible actions first, in the order of their codes.
    action = np.argsort(~sets, axis=1, kind="stable").astype(np.int32)[:, : int(sets.sum(1).max(initial=0))]
    action = np.where(np.arange(action.shape[1]) < sets.sum(1)[:, None], action, PADDING).astype(np.int32)
    category, place = np.zeros((count, len(schema.categories)), np.int32), len(schema.numbers)
    for column, known in enumerate(schema.categories.values()):
        flags = context[:, place : place + len(known)]
        category[:, column] = np.where(flags.any(1), flags.argmax(1) + 1, 0) if len(known) else 0
        place += len(known)
    choices = Choices(
        number=context[:, : len(schema.numbers)].astype(np.float32),
        category=category,
        action=action,
        feature=np.where((action >= 0)[:, :, None], of_actions[action], 0.0).astype(np.float32),
    )
    column = choices.column_of(code)
    pmf = None
    if feedback.get("pi_b") is not None:
        pi_b = np.asarray(feedback["pi_b"], np.float64)
        if pi_b.shape[:2] != (count, actions) or pi_b.ndim != 3:
            raise ValueError(f"pi_b: expected shape ({count}, {actions}, positions), got {pi_b.shape}")
        position = feedback.get("position")
        position = np.zeros(count, np.int64) if position is None else np.asarray(position, np.int64)
        of_position = pi_b[np.arange(count), :, position]
        pmf = np.where(action >= 0, np.take_along_axis(of_position, np.maximum(action, 0), axis=1), 0.0)
        differ = ~(np.abs(pmf[np.arange(count), column] - propensity) <= _SAME)
        if differ.any():
            row = int(np.argmax(differ))
            raise ValueError(
                f"pscore: {propensity[row]} in round {row}, where pi_b says {pmf[row, column[row]]}"
            )
    return LoggedDecisions(
        choices=choices,
        column=column,
        propensity=propensity,
        reward=np.asarray(feedback["reward"], np.float64),
        pmf=pmf,
        generation=np.zeros(count, np.int64),
        time=np.arange(count, dtype=np.float64),
        uniform=np.zeros(count, bool),
        cluster=np.arange(count),
    ), schema
