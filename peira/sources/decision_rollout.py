"""Decisions as a policy makes them, period by period: in a simulated world, over a data set, or from a log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from peira.environments.decision_world import DecisionWorld, is_decision_world, make_decision_world
from peira.environments.logged_stream import LoggedStream, largest_acceptance
from peira.experience.decision_formats import read_decisions
from peira.experience.decisions import Choices, LoggedDecisions


@runtime_checkable
class DecidingPolicy(Protocol):
    """What decides: `pmf` gives probabilities, `decide` draws (column, pmf, propensity, uniform_slice)."""

    version: int

    def pmf(self, choices: Choices) -> Float[np.ndarray, "rows columns"]: ...

    def decide(self, choices: Choices, generator: np.random.Generator) -> Any: ...


def make_world(env: str, seed: int) -> DecisionWorld | LoggedStream:
    """A simulated world or a data set by name; otherwise the log of decisions in a file or folder of that name."""
    if not is_decision_world(env) and Path(env).exists():
        return LoggedStream(*read_decisions(env))
    return make_decision_world(env, seed)


def decide(
    world: DecisionWorld | LoggedStream,
    policy: DecidingPolicy,
    rows: int,
    at: int,
    rng: np.random.Generator,
    *,
    replayed: bool = False,
) -> tuple[LoggedDecisions, np.ndarray]:
    """Serve a period: rows as they are logged, and the delay of each outcome, in decisions.

    Rows of a log are taken as they are; or, replayed, those that the policy would have decided alike (rejection
    sampling, with the greatest acceptance that this period's probabilities allow).
    """
    if isinstance(world, LoggedStream):
        offered = world.rows.take(slice(at, at + rows))
        offered = replace(
            offered, time=np.full(len(offered), float(at)), generation=np.zeros(len(offered), np.int64)
        )
        if not replayed:
            return offered, np.zeros(len(offered))
        pmf = policy.pmf(offered.choices)
        # What was drawn may not decide who is accepted: without the log's pmf only a rate for any policy will do.
        known = offered.pmf is not None
        rate = largest_acceptance(offered, pmf) if known else world.safe_acceptance
        accepted = world.accept(pmf, rng, at, rate).rows
        version, time = np.full(len(accepted), policy.version), np.full(len(accepted), float(at))
        return replace(accepted, generation=version, time=time), np.zeros(len(accepted))
    choices = world.contexts(rows, rng, at)
    decided = policy.decide(choices, rng)
    reward, delay = world.outcomes(choices, decided.column, rng, at)
    logged = LoggedDecisions(
        choices=choices,
        column=decided.column,
        propensity=decided.propensity,
        reward=reward,
        pmf=decided.pmf,
        generation=np.full(len(choices), policy.version),
        time=np.arange(at, at + len(choices), dtype=np.float64),
        uniform=decided.uniform_slice,
        cluster=world.clusters(choices, at),
    )
    return logged, delay
