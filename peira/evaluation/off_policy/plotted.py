"""The numbers that each plot shows, one row a mark: the plots are drawn from them and the CSV files hold them."""

from __future__ import annotations

import csv
import io
from typing import Any

from peira.evaluation.off_policy.verdict import in_order, most_trusted, portfolio_baseline

Row = dict[str, Any]


def estimates(report: dict) -> list[Row]:
    """A row an estimate, candidates from best to worst by the most trusted estimator."""
    behaviour = report["log"]["behaviour"]
    behaviour_low, behaviour_high = behaviour["interval"] or (None, None)
    rows = []
    for name in in_order(report, most_trusted(report)):
        candidate = report["candidates"][name]
        for estimator, estimate in candidate["estimates"].items():
            low, high = estimate["interval"] or (None, None)
            rows.append(
                {
                    "candidate": name,
                    "estimator": estimator,
                    "value": estimate["value"],
                    "standard_error": estimate["standard_error"],
                    "low": low,
                    "high": high,
                    "effective_sample_size": estimate["effective_sample_size"],
                    "refused": estimate["refused"],
                    "warnings": "; ".join(estimate["warnings"]),
                    "true_value": candidate["truth"],
                    "behaviour_value": behaviour["value"],
                    "behaviour_low": behaviour_low,
                    "behaviour_high": behaviour_high,
                }
            )
    return rows


def portfolios(report: dict) -> list[Row]:
    """A row an estimator and k: the candidate that joins at k with its value, and what the first k are worth.

    The value of the k-th is true or estimated, as `portfolio_values` says of all the others. Empty where there is no
    k above 1: a single candidate is no portfolio.
    """
    rows = []
    for estimator, portfolio in report["portfolio"].items():
        ranked = report["ranking"][estimator]
        violation = (report["metrics"] or {}).get(estimator, {}).get("safety_violation", {})
        for k in sorted(portfolio, key=int):
            joining = ranked[int(k) - 1]
            candidate = report["candidates"][joining]
            true = report["portfolio_values"] == "true"
            rows.append(
                {
                    "estimator": estimator,
                    "k": int(k),
                    "candidate": joining,
                    "kth": candidate["truth"] if true else candidate["estimates"][estimator]["value"],
                    **portfolio[k],
                    "safety_violation": violation.get(k),
                    "baseline_value": portfolio_baseline(report, estimator),
                }
            )
    return rows if any(row["k"] > 1 for row in rows) else []


def return_distributions(report: dict) -> list[Row]:
    """A row a point of a distribution function F(m) = P(return ≤ m), the behaviour policy first: its logged returns."""
    logged = report["log"]["behaviour"]["returns"]
    rows = [
        {
            "policy": "behaviour",
            "candidate": None,
            "estimator": None,
            "return": value,
            "probability": probability,
        }
        for value, probability in zip(logged["returns"], logged["probability"], strict=True)
    ]
    given = []
    for name in in_order(report, most_trusted(report)):
        distribution = report["candidates"][name]["distribution"]
        if distribution is not None:
            given += [
                {
                    "policy": "candidate",
                    "candidate": name,
                    "estimator": distribution["estimator"],
                    "return": value,
                    "probability": probability,
                }
                for value, probability in zip(
                    distribution["returns"], distribution["probability"], strict=True
                )
            ]
    return rows + given if given else []


def weight_histograms(report: dict) -> list[Row]:
    """A row a bar: how many episodes have a final weight between 10^low and 10^high."""
    rows = []
    for name in in_order(report, most_trusted(report)):
        weights = report["candidates"][name]["weights"]
        if weights is not None:
            edges = weights["log10_edges"]
            rows += [
                {"candidate": name, "log10_low": low, "log10_high": high, "episodes": count}
                for low, high, count in zip(edges[:-1], edges[1:], weights["counts"], strict=True)
            ]
    return rows


def effective_sample_size(report: dict) -> list[Row]:
    """A row a candidate and step: how many episodes of the candidate's own the weighted log is worth there."""
    rows = []
    for name in in_order(report, most_trusted(report)):
        weights = report["candidates"][name]["weights"]
        if weights is not None:
            rows += [
                {"candidate": name, "step": step, "effective_sample_size": size}
                for step, size in zip(weights["steps"], weights["effective_sample_size_by_step"], strict=True)
            ]
    return rows


def true_against_estimated(report: dict) -> list[Row]:
    """A row an estimate of a candidate whose true value is known, with its rank by that estimator (1 is first)."""
    rows = []
    for estimator, ranked in report["ranking"].items():
        for rank, name in enumerate(ranked, start=1):
            candidate = report["candidates"][name]
            value = candidate["estimates"][estimator]["value"]
            if candidate["truth"] is not None and value is not None:
                rows.append(
                    {
                        "estimator": estimator,
                        "candidate": name,
                        "rank": rank,
                        "estimated": value,
                        "true": candidate["truth"],
                    }
                )
    return rows


def as_csv(rows: list[Row]) -> str:
    """Rows under one header line; an empty field is a null. Floats are written so that they read back the same."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    # Names of files need not be Unicode; what is not is written as its escape.
    return text.getvalue().encode(errors="backslashreplace").decode()
