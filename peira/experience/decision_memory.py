"""Decisions whose outcome is not known yet, and the periods of those whose outcome is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from peira.experience.decisions import Choices, LoggedDecisions


@dataclass
class DecisionMemory:
    """What a learner that is trained every period keeps of its decisions.

    window    W: periods that are kept
    waiting   decisions that are not older than the attribution window yet, with their (future) outcome
    arrival   [waiting] how long after the decision it comes
    labelled  rows with an outcome so far
    paid      what decisions paid, where the score is progressive
    periods   the last W periods, each the rows that matured in it
    history   the columns of every generation
    """

    window: int
    waiting: LoggedDecisions | None = None
    arrival: np.ndarray = field(default_factory=lambda: np.zeros(0))
    labelled: int = 0
    paid: list[float] = field(default_factory=list)
    periods: list[LoggedDecisions] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)

    def add(
        self, rows: LoggedDecisions, delay: np.ndarray, now: float, horizon: float, default: float
    ) -> LoggedDecisions:
        """Take in decisions just made; the ones that are H old now, with their outcome or the default reward.

        A row waits for H even where its outcome is there: outcomes of one kind that come faster would otherwise be
        overrepresented among the newest rows.
        """
        if self.waiting is not None:
            rows = LoggedDecisions.concatenate([self.waiting, rows])
        arrival = np.concatenate([self.arrival, delay])
        ripe = rows.time + horizon < now
        self.waiting, self.arrival = rows.take(~ripe), arrival[~ripe]
        matured = rows.take(ripe)
        matured = replace(matured, reward=np.where(arrival[ripe] <= horizon, matured.reward, default))
        self.periods = [*self.periods, matured][-self.window :]
        self.labelled += len(matured)
        return matured

    def state_dict(self) -> dict[str, Any]:
        return {
            "waiting": None if self.waiting is None else _packed(self.waiting),
            "arrival": self.arrival,
            "labelled": self.labelled,
            "paid": np.array(self.paid),
            "periods": [_packed(rows) for rows in self.periods],
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waiting = None if state["waiting"] is None else _unpacked(state["waiting"])
        self.arrival, self.history = state["arrival"], state["history"]
        self.labelled, self.paid = state["labelled"], state["paid"].tolist()
        self.periods = [_unpacked(rows) for rows in state["periods"]]


def _packed(rows: LoggedDecisions) -> dict[str, Any]:
    return {**{of.name: getattr(rows, of.name) for of in fields(rows)}, "choices": asdict(rows.choices)}


def _unpacked(state: dict[str, Any]) -> LoggedDecisions:
    return LoggedDecisions(**{**state, "choices": Choices(**state["choices"])})
