"""The deployment gate: which candidates may go to an online test under a stated risk limit, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peira.evaluation.off_policy.candidates import Candidate, Policy
from peira.evaluation.off_policy.evaluate import evaluate
from peira.evaluation.off_policy.log import Log
from peira.evaluation.off_policy.verdict import most_trusted


@dataclass(frozen=True)
class Decision:
    """What the gate says.

    admitted   names of at most k candidates, the one with the greatest lower bound first
    reasons    a sentence for every candidate, admitted or not
    limit      the value that a lower bound had to reach
    estimator  the one that was believed; None where none gave an interval
    report     what `evaluate` said, for whoever wants to see more
    """

    admitted: list[str]
    reasons: dict[str, str]
    limit: float
    estimator: str | None
    report: dict[str, Any]


def gate(
    candidates: Mapping[str, Policy | Candidate | str | os.PathLike],
    log: Log | str | os.PathLike,
    k: int,
    *,
    tolerated_loss: float = 0.0,
    limit: float | None = None,
    tail: tuple[float, float] | None = None,
    confidence: float = 0.95,
    estimator: str | None = None,
    **settings: Any,
) -> Decision:
    """Admit the candidates whose value is at least the limit with the given (one-sided) confidence, at most k of them.

    The limit is `limit`, or what the log's policy earned less `tolerated_loss` of its absolute value (0.05: 5 %).
    `tail` = (α, least) also wants the mean of the worst α of returns, CVaR_α, to be at least `least`. `estimator`: the
    one to believe; by default the most trusted one of the report. An estimate beside a finding that forbids lower
    bounds (few effective episodes, a dominating episode, weights whose mean is far from 1, …) admits nobody. The
    candidates that stay behind the first k are named as such. With m candidates each bound holds by itself: ask for a
    confidence of 1 − (1 − confidence)/m to be sure of all. `settings` are those of `evaluate`.

    Raises ValueError for k below 1, a confidence outside of (0.5, 1), an α that the report does not hold, and as
    `evaluate` does.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0.5 and 1, got {confidence:g}")
    # The lower end of a two-sided interval of confidence 1 − 2δ is a lower bound of confidence 1 − δ.
    report = evaluate(log, candidates, confidence=1 - 2 * (1 - confidence), **settings)
    own = report["log"]["behaviour"]["value"]
    if limit is None:
        limit = own - tolerated_loss * abs(own)
    believed = most_trusted(report) if estimator is None else estimator
    bounds: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name, entry in report["candidates"].items():
        reason = _against(entry, believed, tail)
        if reason is None:
            low = entry["estimates"][believed]["interval"][0]
            if low >= limit:
                bounds[name] = low
                continue
            reason = f"worth at least {low:.4g} at confidence {confidence:g}, which is below {limit:.4g}"
        reasons[name] = f"not admitted: {reason}"
    order = sorted(bounds, key=lambda name: -bounds[name])
    for place, name in enumerate(order):
        worth = (
            f"worth at least {bounds[name]:.4g} at confidence {confidence:g} by {believed}, limit {limit:.4g}"
        )
        reasons[name] = f"admitted: {worth}" if place < k else f"not among the first {k}: {worth}"
    return Decision(order[:k], {name: reasons[name] for name in candidates}, limit, believed, report)


def _against(entry: Mapping[str, Any], believed: str | None, tail: tuple[float, float] | None) -> str | None:
    """What forbids to speak of a lower bound, or the tail that is too bad; None for nothing."""
    if believed is None:
        against = next(iter(entry["estimates"].values()))
        return against["no_bound"] or "no estimate has an interval"
    estimate = entry["estimates"][believed]
    if estimate["value"] is None:
        return f"there is no estimate: {estimate['refused']}"
    if estimate["interval"] is None:
        return "there is no interval"
    if estimate["no_bound"] is not None:
        return estimate["no_bound"]
    if tail is None:
        return None
    share, least = tail
    found = entry["distribution"]
    if found is None:
        return "the distribution of its returns is not known"
    if f"{share:g}" not in found["cvar"]:
        raise ValueError(f"tail: expected one of {', '.join(found['cvar'])}, got {share:g}")
    worst = found["cvar"][f"{share:g}"]
    return (
        None
        if worst >= least
        else f"the worst {share:.0%} of its episodes earn {worst:.4g}, below {least:.4g}"
    )
