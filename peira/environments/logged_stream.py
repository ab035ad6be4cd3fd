"""Logged decisions as a world for a learner that keeps changing: a row counts where it would have chosen the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions

ROUNDING = 1e-9
"""How far above 1 an acceptance probability may lie when c is the exact limit."""


def largest_acceptance(rows: LoggedDecisions, pmf: Float[np.ndarray, "rows columns"]) -> float:
    """The largest c that `replay` takes: min p/π over the actions with π > 0; 0 where one of them was never possible.

    Over all eligible actions where the log has its whole pmf: then it follows from the contexts and the policies alone,
    and may be chosen anew for every batch. Where the log does not have it, over the logged actions: a c that follows
    from what happened to be drawn favours what made it large, so settle it beforehand (`LoggedStream.safe_acceptance`).
    """
    chosen = pmf[np.arange(len(rows)), rows.column]
    limits = [_ratio(rows.propensity, chosen)]
    if rows.pmf is not None:
        limits.append(_ratio(rows.pmf, pmf))
    # No c is above 1: some action has π ≥ p.
    return float(min(1.0, *(limit.min(initial=1.0) for limit in limits)))


def _ratio(propensity: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.divide(propensity, target, out=np.full(target.shape, np.inf), where=target > 0)


def replay(
    rows: LoggedDecisions, pmf: Float[np.ndarray, "rows columns"], generator: np.random.Generator, c: float
) -> Int[np.ndarray, " accepted"]:
    """Numbers of the rows that are accepted, row i with probability c·π(a_i|x_i)/p(a_i|x_i).

    P(a accepted | x) = p(a|x) · c·π(a|x)/p(a|x) = c·π(a|x): of every context the share c is accepted, and the accepted
    actions are distributed as π, as if it had been run. `pmf` is π(·|x) in the columns of `rows.choices`, 0 where
    padded; π may depend on earlier rows that were accepted, not on this one. One uniform number is drawn for each row.

    This holds only while c·π/p ≤ 1, so a c that is too large is refused; where the log has its whole pmf, for what it
    might have chosen as well, and an action with π > 0 that the log could not choose is refused at any c. The rate of
    acceptance is c: a policy that is far from the logging one, or a log with rare actions, leaves few rows.

    Raises ValueError for a c that is too large or not in (0, 1], a `pmf` that is none, and a propensity outside (0, 1].
    Source: Dudík, Erhan, Langford and Li 2012 ("Sample-efficient nonstationary policy evaluation").
    """
    _check(rows, pmf)
    limit = largest_acceptance(rows, pmf)
    if limit == 0:
        raise ValueError(
            "pmf: gives probability to an action that the log never could take; no c allows that"
        )
    if not 0 < c <= 1:
        raise ValueError(f"c: expected a number in (0, 1], got {c}")
    if c > limit * (1 + ROUNDING):
        raise ValueError(
            f"c: {c:g} makes an acceptance probability c·π/p larger than 1; give at most {limit:.4g}"
        )
    chosen = pmf[np.arange(len(rows)), rows.column]
    return np.flatnonzero(generator.random(len(rows)) < c * chosen / rows.propensity)


def _check(rows: LoggedDecisions, pmf: np.ndarray) -> None:
    if pmf.shape != rows.choices.action.shape:
        raise ValueError(
            f"pmf: expected the shape {rows.choices.action.shape} of the actions, got {pmf.shape}"
        )
    # Written so that NaN fails.
    wrong = ~((pmf >= 0).all(1) & (np.abs(pmf.sum(1) - 1) < 1e-6) & ~(pmf * ~rows.choices.eligible).any(1))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"pmf: row {row} is no distribution over its eligible actions: {pmf[row].tolist()}")
    wrong = ~((rows.propensity > 0) & (rows.propensity <= 1 + ROUNDING))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"propensity: expected a number in (0, 1], got {rows.propensity[row]} in row {row}")


@dataclass(frozen=True)
class Replayed:
    """What a policy would have gathered.

    rows        the accepted decisions, with the policy's own pmf and propensity in place of the log's
    accepted    [accepted] their rounds in the stream
    acceptance  accepted rows / rows offered
    """

    rows: LoggedDecisions
    accepted: Int[np.ndarray, " accepted"]
    acceptance: float


class LoggedStream:
    """A log of decisions in the order of time, to be replayed: round t is its t-th row.

    What an action that was not taken would have brought is unknown, so this is no `DecisionWorld`: there is no
    `expected_reward`, and a learner does not choose. It gives its pmf over a period's contexts to `accept` and learns
    from the rows that come back. Raises ValueError for a log without rows.
    """

    def __init__(self, rows: LoggedDecisions, schema: FeatureSchema) -> None:
        if not len(rows):
            raise ValueError("log: holds no decision; give a log with at least one")
        self.rows = rows.take(np.argsort(rows.time, kind="stable"))
        self.schema = schema

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def safe_acceptance(self) -> float:
        """A c that every policy can be replayed with: the smallest positive logged probability (π ≤ 1, so p/π ≥ p)."""
        pmf = self.rows.pmf
        smallest = self.rows.propensity.min()
        return float(smallest if pmf is None else min(smallest, pmf[pmf > 0].min()))

    def contexts(self, rows: int, at: int) -> Choices:
        """Those of the rounds `at` to `at + rows`, as far as there are any."""
        return self.rows.choices.take(slice(at, at + rows))

    def accept(
        self, pmf: Float[np.ndarray, "rows columns"], generator: np.random.Generator, at: int, c: float
    ) -> Replayed:
        """The rows from round `at` on, one for each row of `pmf`, that `replay` accepts.

        Raises what `replay` raises, and ValueError for a `pmf` of more rows than the stream still has.
        """
        if at + len(pmf) > len(self):
            raise ValueError(
                f"pmf: expected at most the {len(self) - at} rows left from round {at}, got {len(pmf)}"
            )
        offered = self.rows.take(slice(at, at + len(pmf)))
        accepted = replay(offered, pmf, generator, c)
        kept, own = offered.take(accepted), pmf[accepted]
        rows = replace(kept, pmf=own, propensity=own[np.arange(len(kept)), kept.column])
        return Replayed(rows, at + accepted, len(accepted) / max(len(offered), 1))
