"""A benchmark of estimators: every metric for every estimator over many logs whose true values are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from peira.evaluation.off_policy.portfolio import best_estimators, disagreement, over_data_sets

HIGHER_IS_BETTER = {
    "nmse": False,
    "rank_correlation": True,
    "regret@1": False,
    "regret@k": False,
    "type_i": False,
    "type_ii": False,
    "safety_violation@k": False,
    "best@k": True,
    "worst@k": True,
    "mean@k": True,
    "std@k": False,
    "sharpe_ratio@k": True,
}
"""The metrics, and which way is up; std@k is a risk."""

PORTFOLIO = ("best", "worst", "mean", "std")


def scores(
    reports: Sequence[Mapping[str, Any]], k: int
) -> tuple[list[str], dict[str, Float[np.ndarray, "data_sets estimators"]]]:
    """The estimators' names and, for every metric, its value on each log; NaN where an estimator gave none.

    `reports` are what `evaluate` returns with `truth`, one for each log; metrics are formed within a log and never over
    pooled ones, whose baselines differ. Raises ValueError for reports without truth, of different estimators, or with
    fewer than k candidates, and for none.
    """
    if not reports:
        raise ValueError("reports: expected at least one, got none")
    names = list(reports[0]["settings"]["estimators"])
    found = {metric: np.full((len(reports), len(names)), math.nan) for metric in HIGHER_IS_BETTER}
    for row, report in enumerate(reports):
        if report["metrics"] is None:
            raise ValueError(f"reports: number {row} was made without truth, which every metric needs")
        if list(report["settings"]["estimators"]) != names:
            raise ValueError(
                f"reports: number {row} has the estimators {', '.join(report['settings']['estimators'])}, "
                f"the first has {', '.join(names)}"
            )
        for column, name in enumerate(names):
            metrics, members = report["metrics"].get(name), report["portfolio"][name]
            if metrics is None:
                continue
            if str(k) not in members:
                raise ValueError(f"k: report {row} holds no portfolio of {k}; evaluate it with that k")
            values = {
                **{metric: metrics[metric] for metric in ("nmse", "rank_correlation", "type_i", "type_ii")},
                "regret@1": metrics["regret"].get("1", math.nan),
                "regret@k": metrics["regret"][str(k)],
                "safety_violation@k": metrics["safety_violation"][str(k)],
                "sharpe_ratio@k": members[str(k)]["sharpe"],
                **{f"{part}@k": members[str(k)][part] for part in PORTFOLIO},
            }
            for metric, value in values.items():
                found[metric][row, column] = value
    return names, found


def compare_estimators(
    reports: Sequence[Mapping[str, Any]],
    *,
    rng: np.random.Generator,
    k: int = 4,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Tables of every metric for every estimator over many logs.

    metrics        metric → estimator → mean over logs, with a bootstrap interval over logs and the number of logs
    best           metric → estimator → share of logs where it is among the best; ties are shared
    disagreement   "metric, metric" → share of logs where no estimator is best by both, with Wilson's interval

    Raises ValueError as `scores` does.
    """
    names, found = scores(reports, k)
    metrics, best = {}, {}
    for metric, higher in HIGHER_IS_BETTER.items():
        over = over_data_sets(found[metric], rng=rng, confidence=confidence)
        metrics[metric] = {
            name: {
                "mean": float(over.mean[column]),
                "interval": [float(over.low[column]), float(over.high[column])],
                "logs": int(over.count[column]),
            }
            for column, name in enumerate(names)
        }
        best[metric] = best_estimators(found[metric], higher_is_better=higher)
    return {
        "k": k,
        "logs": len(reports),
        "metrics": metrics,
        "best": {
            metric: dict(zip(names, of.mean(axis=0).tolist(), strict=True)) for metric, of in best.items()
        },
        "disagreement": {
            f"{one}, {other}": disagreement(best[one], best[other], confidence=confidence)._asdict()
            for one, other in combinations(best, 2)
        },
    }


def markdown(comparison: Mapping[str, Any], metrics: Sequence[str] | None = None) -> str:
    """The comparison as a table: a row an estimator, a column a metric; in bold whoever is best in most logs."""
    chosen = list(comparison["metrics"]) if metrics is None else list(metrics)
    names = list(comparison["metrics"][chosen[0]])
    k = comparison["k"]
    head = [metric.replace("@k", f"@{k}") for metric in chosen]
    lines = ["| estimator | " + " | ".join(head) + " |", "|---|" + "---:|" * len(chosen)]
    for name in names:
        cells = []
        for metric in chosen:
            entry, shares = comparison["metrics"][metric][name], comparison["best"][metric]
            low, high = entry["interval"]
            text = f"{entry['mean']:.3g} [{low:.3g}, {high:.3g}]" if entry["logs"] else "–"
            cells.append(f"**{text}**" if shares[name] == max(shares.values()) > 0 else text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
