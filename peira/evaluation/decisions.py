"""May a candidate take over a stream of decisions: compared off-policy, on the same rows, with who decides now.

Rows come from policies whose probabilities were logged; candidate and incumbent are judged on the same rows, so that
what both share cancels. Source of the conditions: ``adyen.md`` 2.7 (Vangara and Egg 2024, arXiv 2412.00569; Egg 2025,
arXiv 2501.10470).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from peira.evaluation.off_policy import bandit
from peira.evaluation.off_policy.intervals import bootstrap_together, delta
from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.tuning import mse_surrogate
from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions
from peira.policies.oracles.make import make_oracle

Row = Float[np.ndarray, " rows"]
COMPARED = ("ips", "snips", "dr", "sndr")
"""Estimators of the difference; the lower bound of `dr` decides."""
THRESHOLDS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Among these the estimated mean squared error chooses the τ of Switch-DR, the λ of DRos and the clip of IPS."""
SMALLEST_SEGMENT = 30


@runtime_checkable
class ActsOnChoices(Protocol):
    """A policy that gives the probability of every eligible action."""

    def pmf(self, choices: Choices) -> Float[np.ndarray, "rows columns"]: ...


@dataclass(frozen=True)
class GateDecision:
    """What the gate says.

    passed   whether the candidate may be deployed
    reasons  everything that speaks against it; where nothing does, the bound that let it through
    report   estimates of both policies and of their difference, and what the conditions were judged by
    """

    passed: bool
    reasons: list[str]
    report: dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """What an estimator of a policy's value needs of n rows.

    ratio     [n] w = π(a|x)/p(a|x) of the logged action
    q_target  [n] Σ_a π(a|x) q̂(x, a)
    """

    ratio: Row
    q_target: Row


def gate(
    candidate: ActsOnChoices,
    incumbent: ActsOnChoices,
    rows: LoggedDecisions,
    schema: FeatureSchema,
    *,
    tolerance: float = 0.0,
    confidence: float = 0.975,
    least_effective: int = 200,
    weight_cap: float = 1000.0,
    guarded: Sequence[str] = (),
    folds: int = 2,
    replicates: int = 1000,
    seed: int = 0,
) -> GateDecision:
    """Compare on rows that neither policy was trained or tuned on; the candidate passes when all of this holds.

    - The lower bound of V(candidate) − V(incumbent) by DR, at this one-sided confidence (0.975: the lower end of the
      95 % interval), is above −tolerance. A tolerance of 0 asks for an improvement, a greater one for not being worse
      by more.
    - The effective number of rows (Σw)²/Σw² is at least `least_effective`, and no weight exceeds `weight_cap`.
    - The candidate puts no probability on actions that the logging policy could not have taken.
    - The mean of w is within 3 standard errors of 1.
    - SNIPS and DR agree in the sign of the difference, or both see less than the tolerance.
    - In no segment (each known value of the `guarded` categories, Bonferroni over all) is the candidate
      significantly worse than by the tolerance.

    Bounds are percentiles of a paired bootstrap that draws clusters (`rows.cluster`); q̂ is a ridge regression fitted on
    other clusters than it is read at. Units are those of the reward.

    Raises ValueError for a tolerance below 0, a confidence outside of (0.5, 1), an unknown guarded category, and
    fewer than 2 clusters a fold.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected at least 0, got {tolerance:g}")
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0.5 and 1, got {confidence:g}")
    if unknown := [name for name in guarded if name not in schema.categories]:
        raise ValueError(
            f"guarded: {unknown[0]!r} is no category; there are {', '.join(schema.categories) or 'none'}"
        )
    rng = np.random.default_rng(seed)
    cluster = np.unique(rows.cluster, return_inverse=True)[1]
    q = cross_fitted_reward(rows, schema, cluster, folds, rng)
    new, old = (judged(policy.pmf(rows.choices), rows, q) for policy in (candidate, incumbent))
    residual = rows.reward - q[np.arange(len(rows)), rows.column]
    differences = paired_differences(new, old, rows.reward, residual)
    intervals = bootstrap_together(
        [by_cluster(terms, cluster, rows.weight) for terms in differences.values()],
        rng=rng,
        method="percentile",
        confidence=2 * confidence - 1,  # Either end is then a one-sided bound of this confidence.
        replicates=replicates,
    )
    difference = {
        name: {
            "value": by_cluster(terms, cluster, rows.weight).value(),
            "low": interval.low,
            "high": interval.high,
        }
        for (name, terms), interval in zip(differences.items(), intervals, strict=True)
    }
    support = unsupported_mass(candidate.pmf(rows.choices), rows)
    counted = new.ratio if rows.weight is None else new.ratio * rows.weight
    effective = float(counted.sum() ** 2 / max((counted**2).sum(), 1e-300))
    mean, error = float(new.ratio.mean()), float(new.ratio.std(ddof=1) / np.sqrt(len(rows)))
    segments = _segments(differences["dr"], rows, schema, guarded, cluster, confidence)
    reasons = [
        *_against_bound(difference["dr"]["low"], tolerance, confidence),
        *_against_weights(effective, least_effective, float(new.ratio.max()), weight_cap, len(rows)),
        *_against_support(support),
        *_against_mean(mean, error),
        *_against_disagreement(difference["snips"]["value"], difference["dr"]["value"], tolerance),
        *(
            f"segment {name}: worse by {-segment['value']:.4g}, at least {-segment['high']:.4g} at confidence "
            f"{confidence:g} over all segments"
            for name, segment in segments.items()
            if segment["high"] < -tolerance
        ),
    ]
    report = {
        "rows": len(rows),
        "clusters": int(cluster.max()) + 1,
        "tolerance": tolerance,
        "confidence": confidence,
        "difference": difference,
        "candidate": values_of(new, rows, residual),
        "incumbent": values_of(old, rows, residual),
        "effective_rows": effective,
        "greatest_weight": float(new.ratio.max()),
        "mean_weight": mean,
        "unsupported_mass": support,
        "segments": segments,
    }
    passed = not reasons
    if passed:
        low = difference["dr"]["low"]
        reasons = [f"better by at least {low:.4g} at confidence {confidence:g}, limit {-tolerance:.4g}"]
    return GateDecision(passed, reasons, report)


def cross_fitted_reward(
    rows: LoggedDecisions,
    schema: FeatureSchema,
    cluster: Int[np.ndarray, " rows"],
    folds: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "rows columns"]:
    """q̂(x, a) of every eligible action, 0 elsewhere; a row is predicted by a model that did not see its cluster."""
    clusters = int(cluster.max()) + 1
    if folds < 2 or clusters < 2 * folds:
        raise ValueError(
            f"folds: expected at least 2 and 2 clusters a fold, got {folds} for {clusters} clusters"
        )
    fold = rng.permutation(np.arange(clusters) % folds)[cluster]
    q = np.zeros(rows.choices.action.shape)
    for held_out in range(folds):
        inside = fold == held_out
        model = make_oracle("ridge", schema, seed=0).fit(rows.take(~inside))
        q[inside] = np.nan_to_num(model.predict(rows.choices.take(inside)))
    return q


def judged(
    pmf: Float[np.ndarray, "rows columns"], rows: LoggedDecisions, q: Float[np.ndarray, "rows columns"]
) -> Judged:
    chosen = pmf[np.arange(len(rows)), rows.column]
    return Judged(chosen / rows.propensity, (pmf * q).sum(1))


def paired_differences(new: Judged, old: Judged, reward: Row, residual: Row) -> dict[str, Terms]:
    """V(new) − V(old) on the same rows by each of `COMPARED`; self-normalised ones have two normalisers."""
    none = np.zeros((len(reward), 0))
    both, signed = np.stack([new.ratio, old.ratio], 1), np.stack([new.ratio, -old.ratio], 1)
    weight, target = new.ratio - old.ratio, new.q_target - old.q_target
    return {
        "ips": Terms(weight * reward, none, none),
        "snips": Terms(np.zeros_like(reward), signed * reward[:, None], both),
        "dr": Terms(target + weight * residual, none, none),
        "sndr": Terms(target, signed * residual[:, None], both),
    }


def by_cluster(
    terms: Terms, cluster: Int[np.ndarray, " rows"], weight: Float[np.ndarray, " rows"] | None = None
) -> Terms:
    """The same estimate from sums of whole clusters, the units that are independent; rows may count `weight` times."""
    clusters = int(cluster.max()) + 1
    if clusters == len(cluster) and weight is None:
        return terms
    counted = np.ones(len(cluster)) if weight is None else weight

    def summed(column: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " clusters"]:
        return np.bincount(cluster, counted * column, clusters)

    # A mean over rows is a ratio as soon as the number of rows is random.
    numerator = [terms.plain, *terms.numerator.T]
    denominator = [np.ones(len(cluster)), *terms.denominator.T]
    return Terms(
        np.zeros(clusters),
        *(np.stack([summed(column) for column in columns], 1) for columns in (numerator, denominator)),
    )


def values_of(policy: Judged, rows: LoggedDecisions, residual: Row) -> dict[str, float]:
    """A policy's value by every estimator; the last three with the parameter of least estimated squared error."""
    ratio, target, reward = policy.ratio, policy.q_target, rows.reward
    q_logged = reward - residual
    found = {
        "dm": bandit.dm(target),
        "ips": bandit.ipw(ratio, reward),
        "snips": bandit.snipw(ratio, reward),
        "dr": bandit.dr(ratio, reward, q_logged, target),
        "sndr": bandit.sndr(ratio, reward, q_logged, target),
        "clipped_ips": _best(
            ((bandit.ipw(ratio, reward, clip=c), np.minimum(ratio, c)) for c in THRESHOLDS), ratio, reward
        ),
        "switch_dr": _best(
            (
                (
                    bandit.switch_dr(ratio, reward, q_logged, target, threshold=c),
                    np.where(ratio <= c, ratio, 0.0),
                )
                for c in THRESHOLDS
            ),
            ratio,
            residual,
        ),
        "dros": _best(
            (
                (
                    bandit.dros(ratio, reward, q_logged, target, shrinkage=c),
                    bandit.optimistic_ratio(ratio, c),
                )
                for c in THRESHOLDS
            ),
            ratio,
            residual,
        ),
    }
    alone = np.arange(len(rows))
    return {name: by_cluster(terms, alone, rows.weight).value() for name, terms in found.items()}


def _best(tried: Iterable[tuple[Terms, Row]], ratio: Row, residual: Row) -> Terms:
    """The estimator whose squared bias and variance, with a bound on the bias, come to least."""
    return min(
        ((terms, mse_surrogate(terms.plain, ratio, used, residual, bias_tail=0.05)) for terms, used in tried),
        key=lambda pair: pair[1],
    )[0]


def unsupported_mass(pmf: Float[np.ndarray, "rows columns"], rows: LoggedDecisions) -> float | None:
    """Mean probability that π gives to actions the logging policy could not take; None where its pmf is not known."""
    if rows.pmf is None:
        return None
    impossible: Bool[np.ndarray, "rows columns"] = rows.choices.eligible & (rows.pmf <= 0)
    return float(np.where(impossible, pmf, 0.0).sum() / len(rows))


def _segments(
    terms: Terms,
    rows: LoggedDecisions,
    schema: FeatureSchema,
    guarded: Sequence[str],
    cluster: Int[np.ndarray, " rows"],
    confidence: float,
) -> dict[str, Mapping[str, float]]:
    """DR difference of each segment that is large enough, with its upper bound."""
    names = list(schema.categories)
    inside = {
        f"{name}={value}": rows.choices.category[:, names.index(name)] == code
        for name in guarded
        for code, value in enumerate(schema.categories[name], 1)
    }
    large = {name: of for name, of in inside.items() if len(np.unique(cluster[of])) >= SMALLEST_SEGMENT}
    found = {}
    for name, of in large.items():
        own = by_cluster(
            Terms(terms.plain[of], terms.numerator[of], terms.denominator[of]),
            np.unique(cluster[of], return_inverse=True)[1],
            None if rows.weight is None else rows.weight[of],
        )
        interval = delta(own, confidence=1 - (1 - confidence) / len(large), side="upper")
        found[name] = {"value": own.value(), "high": interval.high, "rows": int(of.sum())}
    return found


def _against_bound(low: float, tolerance: float, confidence: float) -> list[str]:
    if low > -tolerance:
        return []
    return [
        f"the difference is known to be above {low:.4g} only (confidence {confidence:g}), the limit is {-tolerance:.4g}"
    ]


def _against_weights(effective: float, least: int, greatest: float, cap: float, rows: int) -> list[str]:
    reasons = []
    if effective < least:
        reasons.append(
            f"{rows} rows are worth {effective:.0f} under the candidate, at least {least} are needed"
        )
    if greatest > cap:
        reasons.append(f"one row has a weight of {greatest:.4g}, at most {cap:.4g} is allowed")
    return reasons


def _against_support(mass: float | None) -> list[str]:
    if mass is None:
        return ["the log lacks the probabilities of the actions not chosen, so support cannot be checked"]
    if mass > 1e-9:
        return [f"a share of {mass:.2%} of the candidate's decisions takes actions that were never possible"]
    return []


def _against_mean(mean: float, error: float) -> list[str]:
    # Where candidate and log agree row by row, rounding is all that is left of the error.
    if abs(mean - 1) <= 3 * error + 1e-9:
        return []
    return [f"the weights have mean {mean:.4f}, more than 3 standard errors ({error:.4f}) from 1"]


def _against_disagreement(snips: float, dr: float, tolerance: float) -> list[str]:
    if snips * dr > 0 or max(abs(snips), abs(dr)) <= tolerance or snips == dr == 0:
        return []
    return [f"SNIPS ({snips:+.4g}) and DR ({dr:+.4g}) disagree about the sign of the difference"]
