"""What speaks against believing an estimate: findings about a log and a candidate, and what each of them forbids.

A finding is a warning, which travels beside the number, or a refusal: then the number does not come at all. Which bases
of estimators, and which claims, a finding refuses is in `REFUSES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from peira.evaluation.off_policy.candidates import IMPOSSIBLE, Candidate
from peira.evaluation.off_policy.log import CELLS, Log
from peira.evaluation.off_policy.weights import cumulative_log_weights, shifted_weights

Severity = Literal["warning", "refusal"]

LEAST_EFFECTIVE_SHARE = 0.01
"""Effective sample size over episodes below which weights say next to nothing."""
GREATEST_WEIGHT_SHARE = 0.2
"""Share of all weight that one episode may carry."""
STANDARD_ERRORS = 4.0
"""How far the mean of weights, which is 1 in truth, may be from 1."""
LEAST_STAY = 0.5
"""Share of a candidate's episodes that must stay inside of what the log covers for weights to be used at all."""
DRIFT_P = 1e-3
"""A log drifts if a trend as strong as its own has a smaller probability than this in one that does not."""
SAME_POLICY = 1e-5
"""Log ratios up to this are rounding: the candidate is the policy of the log."""
TESTED_ACTIONS = 64
"""Only so many of the commonest actions are tested one by one."""


class Basis(StrEnum):
    """What an estimator rests on; and two claims (`CLAIMS`) that may be made of an estimate."""

    WEIGHTS = "weights"
    """Ratios of actions, one or the product over an episode: IPW, TIS, PDIS, WIS, WPDIS, SOPE, return distributions."""
    MARGINAL = "marginal"
    """Ratios of states times the ratio of one action: MIS."""
    DOUBLY_ROBUST = "doubly_robust"
    """Any of these weights, with a model for what they do not tell: DR, WDR, MAGIC, SWITCH, MDR, DRL."""
    KERNEL = "kernel"
    """Weights of actions near a deterministic candidate's: propensities, but no density of the candidate."""
    MODEL = "model"
    """What is fitted without propensities: DM by FQE or LSTDQ, DICE, MWL, MQL."""
    INTERVAL = "interval"
    """The claim of an interval or a standard error."""
    LOWER_BOUND = "lower_bound"
    """The claim that the value is at least so much."""


CLAIMS = frozenset({Basis.INTERVAL, Basis.LOWER_BOUND})
_NEED_PROPENSITY = frozenset({Basis.WEIGHTS, Basis.MARGINAL, Basis.DOUBLY_ROBUST, Basis.KERNEL})
_EVERYTHING = frozenset(Basis)
REFUSES: dict[str, frozenset[Basis]] = {
    "missing_propensity": _NEED_PROPENSITY,
    "deterministic": _NEED_PROPENSITY - {Basis.KERNEL},
    "outside_action_set": _EVERYTHING,
    "outside_support": frozenset({Basis.WEIGHTS, Basis.MARGINAL, Basis.LOWER_BOUND}),
    "no_weight": frozenset({Basis.WEIGHTS, Basis.LOWER_BOUND}),
    "one_episode": frozenset({Basis.INTERVAL, Basis.LOWER_BOUND}),
    "few_effective_episodes": frozenset({Basis.LOWER_BOUND}),
    "one_episode_dominates": frozenset({Basis.LOWER_BOUND}),
    "mean_weight": frozenset({Basis.LOWER_BOUND}),
    "mean_ratio": frozenset({Basis.LOWER_BOUND}),
    "propensities_too_small": frozenset({Basis.LOWER_BOUND}),
}
"""What may not be said once there is such a finding; those that are not listed refuse nothing. As a warning a finding
refuses claims only, no estimator."""


@dataclass(frozen=True)
class Finding:
    """One thing that speaks against an estimate: a stable `code`, its severity, and a sentence for people."""

    code: str
    severity: Severity
    text: str

    def refuses(self, basis: Basis) -> bool:
        """Whether this forbids estimators of this basis, or this claim."""
        refused = basis in REFUSES.get(self.code, frozenset())
        return refused and (self.severity == "refusal" or basis in CLAIMS)


class WeightReport(NamedTuple):
    """The cumulative weights W_t of all episodes at each step, carried forward after an episode's end.

    mean                   1 in truth
    standard_error         of the mean; NaN for a single episode
    effective_sample_size  (Σ W)² / Σ W²
    largest_share          the greatest weight over the sum of all
    heaviest               the episode with the greatest weight at the last step
    """

    mean: Float[np.ndarray, " steps"]
    standard_error: Float[np.ndarray, " steps"]
    effective_sample_size: Float[np.ndarray, " steps"]
    largest_share: Float[np.ndarray, " steps"]
    heaviest: int


class RatioCheck(NamedTuple):
    """A mean over the steps of a log that is known in truth, and its standard error over whole episodes."""

    mean: float
    standard_error: float


def weight_report(log: Log, log_ratio: Float[np.ndarray, " rows"], max_cells: int = CELLS) -> WeightReport:
    """Moments of W_t = Π_{u ≤ t} π/π_b at every step, by blocks of episodes of similar length, in log space.

    The mean is ∞ where it is beyond the greatest number there is; effective sizes and shares are finite always.
    """
    steps = int(log.length.max())
    # Sums relative to e^scale, the greatest weight so far: a weight of e^800 is a number, its square too.
    scale = np.full(steps, -np.inf)
    first, second = np.zeros(steps), np.zeros(steps)
    heaviest, of_heaviest = 0, -np.inf
    for episodes, block in log.blocks(log_ratio, max_cells):
        weight, log_greatest = shifted_weights(cumulative_log_weights(block))
        last = weight[:, -1].argmax()
        if log_greatest[-1] > of_heaviest:
            heaviest, of_heaviest = int(episodes[last]), log_greatest[-1]
        # Episodes of the block that have ended keep their weight to the last step of the log.
        sums = _carried(weight.sum(axis=0), steps), _carried((weight**2).sum(axis=0), steps)
        log_greatest = _carried(log_greatest, steps)
        common = np.maximum(scale, log_greatest)
        finite = np.where(np.isneginf(common), 0.0, common)
        old, new = np.exp(scale - finite), np.exp(log_greatest - finite)
        first, second = first * old + sums[0] * new, second * old**2 + sums[1] * new**2
        scale = common
    n = log.episodes
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        unit = np.exp(scale)
        mean = first / n
        variance = np.maximum(second / n - mean**2, 0.0) * n / (n - 1)
        error = np.where(n > 1, np.sqrt(variance / n), np.nan)
        some = first > 0
        effective = np.divide(first**2, second, out=np.zeros(steps), where=some)
        share = np.divide(1.0, first, out=np.zeros(steps), where=some)
        return WeightReport(
            np.where(some, mean * unit, 0.0), np.where(some, error * unit, 0.0), effective, share, heaviest
        )


def log_findings(log: Log, gamma: float) -> list[Finding]:
    """What is to be said of the log whichever candidate is evaluated."""
    findings = [*_endings(log, gamma), *_drift(log)]
    if log.left_out:
        findings.append(
            Finding(
                "failed_episodes",
                "warning",
                f"{log.left_out} of {log.left_out + log.episodes} episodes were left out because their world failed; "
                "if failures depend on what was done, what is left flatters",
            )
        )
    if log.episodes == 1:
        findings.append(
            Finding(
                "one_episode",
                "refusal",
                "the log holds one episode: there is a value but neither a standard error nor an interval",
            )
        )
    if log.log_propensity is None:
        findings.append(
            Finding(
                "missing_propensity",
                "refusal",
                "the log does not say how likely its actions were: importance weights need propensities; log them or "
                "estimate them",
            )
        )
    elif log.actions is not None:
        findings += _small_propensities(log)
    return findings


def candidate_findings(
    log: Log, candidate: Candidate, report: WeightReport | None = None, max_cells: int = CELLS
) -> list[Finding]:
    """What is to be said of this candidate on this log; `report` is that of its weights, if it is known already."""
    findings = _support(log, candidate)
    if candidate.log_prob is None:
        findings.append(
            Finding(
                "deterministic",
                "refusal",
                "the candidate is deterministic among continuous actions and has no density: only estimators with a "
                "kernel weigh it",
            )
        )
    if candidate.log_prob is None or log.log_propensity is None:
        return findings
    log_ratio = candidate.log_ratio(log)
    if np.abs(log_ratio).max() <= SAME_POLICY:
        findings.append(
            Finding(
                "same_policy",
                "warning",
                "the candidate is the policy of the log: its estimate is the mean return of the log",
            )
        )
        return findings
    check = ratio_check(log, log_ratio)
    if _is_far(np.array([check.mean]), np.array([check.standard_error]))[0]:
        side = (
            "the candidate does things that the log's policy never does, or propensities are too large"
            if check.mean < 1
            else "propensities are too small, or a few rare actions weigh too much"
        )
        findings.append(
            Finding(
                "mean_ratio",
                "warning",
                f"ratios of single steps have mean {check.mean:.4g} ± {check.standard_error:.2g}, in truth 1: {side}",
            )
        )
    return findings + _weights(log, weight_report(log, log_ratio, max_cells) if report is None else report)


def refused_by(findings: Iterable[Finding], *bases: Basis) -> list[Finding]:
    """The findings that forbid estimators of any of these bases, or any of these claims."""
    return [finding for finding in findings if any(finding.refuses(basis) for basis in bases)]


def ratio_check(log: Log, log_ratio: Float[np.ndarray, " rows"]) -> RatioCheck:
    """Mean of π/π_b over all steps: 1 in truth, less by the probability that falls where π_b has none.

    Every step adds to it, so that it tells far more than the products over episodes do.
    """
    # Beyond e³⁰⁰ nothing is told apart, and squares stay finite.
    return _mean_of_steps(log, np.exp(np.minimum(log_ratio, 300.0)))


def propensity_checks(log: Log) -> tuple[Float[np.ndarray, " actions"], Float[np.ndarray, " actions"]]:
    """For every action the mean of 1{a_t = a}/p_t over the steps at which it could be chosen, and its standard error.

    1 where each of those steps gave the action a chance, less where some did not; more than 1 only if the propensities
    written down are too small: they do not sum to one over all actions. NaN for an action that no set holds, and for
    all but the `TESTED_ACTIONS` commonest.
    """
    inverse = np.exp(-log.log_propensity)
    mean, error = np.full(log.actions, np.nan), np.full(log.actions, np.nan)
    for action in _commonest(log):
        chosen = np.where(log.action == action, inverse, 0.0)
        could = None if log.action_set is None else log.action_set[:, action]
        mean[action], error[action] = _mean_of_steps(log, chosen, could)
    return mean, error


def drift_tests(log: Log) -> dict[str, float]:
    """p-values of trends over the log's time (`created_at`, or the order of the log where it does not tell).

      reward     Spearman's test of time and return
      behaviour  Spearman's test of time and mean log-propensity, Pearson's of time and the frequency of each of the
                 `TESTED_ACTIONS` commonest actions; the least p of them times their number (Bonferroni)

    Empty for fewer than 10 episodes, where no such test tells anything.
    """
    if log.episodes < 10:
        return {}
    time = (
        np.arange(log.episodes) if log.created_at is None or np.ptp(log.created_at) == 0 else log.created_at
    )
    length = log.length
    rank = stats.rankdata(time)
    found = {"reward": _trend(rank, log.returns(1.0))}
    behaviour = []
    if log.log_propensity is not None:
        behaviour.append(_trend(rank, np.add.reduceat(log.log_propensity, log.offset[:-1]) / length))
    if log.actions is not None:
        for action in np.argsort(-log.action_counts, kind="stable")[:TESTED_ACTIONS]:
            times = np.add.reduceat((log.action == action).astype(np.int64), log.offset[:-1])
            behaviour.append(_trend(rank, times / length))
    if behaviour:
        found["behaviour"] = min(1.0, min(behaviour) * len(behaviour))
    return found


def _trend(rank: Float[np.ndarray, " episodes"], values: Float[np.ndarray, " episodes"]) -> float:
    return float(stats.pearsonr(rank, values).pvalue) if np.ptp(values) > 0 else 1.0


def _commonest(log: Log) -> Int[np.ndarray, " some"]:
    return np.argsort(-log.action_counts, kind="stable")[:TESTED_ACTIONS]


def _drift(log: Log) -> list[Finding]:
    p_values = drift_tests(log)
    texts = {
        "reward": "returns rise or fall over the time of the log",
        "behaviour": "what the log's policy does changes over the time of the log",
    }
    because = {
        "reward": "the world or the policy changed, and a candidate is judged on a mixture of then and now",
        "behaviour": "propensities must be those of the policy that chose at the time, not of the last one",
    }
    return [
        Finding(f"{name}_drift", "warning", f"{texts[name]} (p = {p:.2g}): {because[name]}")
        for name, p in p_values.items()
        if p < DRIFT_P
    ]


def _endings(log: Log, gamma: float) -> list[Finding]:
    cut = int(log.truncated.sum())
    if not cut:
        return []
    known = 0 if log.final_episode is None else len(log.final_episode)
    text = (
        f"{cut} of {log.episodes} episodes were cut: importance weighting estimates the return up to the cut, not what "
        "would have followed"
    )
    if known < cut:
        text += f"; what followed {cut - known} of them was not recorded, so that value fits leave their last step out"
    findings = [Finding("truncated", "warning", text)]
    if gamma == 1 and cut == log.episodes:
        findings.append(
            Finding(
                "no_end",
                "warning",
                "gamma is 1 and no episode of the log truly ends: a value without horizon is not defined; give a "
                "horizon to what is fitted, or a gamma below 1",
            )
        )
    return findings


def _small_propensities(log: Log) -> list[Finding]:
    mean, error = propensity_checks(log)
    excess = np.divide(mean - 1, error, out=np.zeros_like(mean), where=error > 0)
    action = int(np.argmax(excess))
    if not (excess[action] > STANDARD_ERRORS and mean[action] > 1 + IMPOSSIBLE):
        return []
    return [
        Finding(
            "propensities_too_small",
            "warning",
            f"the propensities do not sum to one over all actions: where action {action} could be chosen, "
            f"1{{chosen}}/propensity has mean {mean[action]:.4g} ± {error[action]:.2g}, in truth at most 1; log those "
            "of the policy that chose",
        )
    ]


def _support(log: Log, candidate: Candidate) -> list[Finding]:
    support = candidate.support
    if support is None:
        return []
    findings = []
    if support.outside_row >= 0:
        share = support.outside_set / log.rows
        findings.append(
            Finding(
                "outside_action_set",
                "refusal",
                f"the candidate gives {share:.2%} of its probability to actions that could not be chosen, first in "
                f"{log.place(support.outside_row)}: it cannot be carried out; divide what is left by its sum",
            )
        )
    never = support.never_chosen / log.rows
    impossible = 0.0 if support.impossible is None else support.impossible / log.rows
    share = max(never, impossible)
    if share <= IMPOSSIBLE:
        return findings
    stay = float(np.mean((1 - min(share, 1.0)) ** log.length))
    where = (
        "to actions that the log's policy gave no chance"
        if impossible >= never
        else f"to actions that the log never chose ({_listed(_never_chosen(log, support.action))})"
    )
    findings.append(
        Finding(
            "outside_support",
            "refusal" if stay < LEAST_STAY else "warning",
            f"the candidate gives {share:.2%} of its probability {where}: about {1 - stay:.0%} of its episodes would "
            "leave what the log covers, and importance weights take their return for 0",
        )
    )
    return findings


def _never_chosen(log: Log, mass: Float[np.ndarray, " actions"]) -> Int[np.ndarray, " some"]:
    counts = np.pad(log.action_counts, (0, len(mass) - len(log.action_counts)))
    return np.flatnonzero((counts == 0) & (mass > IMPOSSIBLE))


def _listed(actions: Int[np.ndarray, " some"]) -> str:
    shown = ", ".join(str(action) for action in actions[:5])
    return shown if len(actions) <= 5 else f"{shown} and {len(actions) - 5} more"


def _weights(log: Log, report: WeightReport) -> list[Finding]:
    if report.largest_share[-1] == 0:
        return [
            Finding(
                "no_weight",
                "refusal",
                "no episode of the log could have come from the candidate: all weights are 0",
            )
        ]
    findings = []
    effective = report.effective_sample_size[-1]
    if effective < LEAST_EFFECTIVE_SHARE * log.episodes:
        findings.append(
            Finding(
                "few_effective_episodes",
                "warning",
                f"the weights of {log.episodes} episodes are worth {effective:.3g} unweighted ones (effective sample "
                f"size below {LEAST_EFFECTIVE_SHARE:.0%}): the candidate is too far from the log's policy for its "
                "horizon",
            )
        )
    share = report.largest_share[-1]
    if share > GREATEST_WEIGHT_SHARE and log.episodes > 1:
        findings.append(
            Finding(
                "one_episode_dominates",
                "warning",
                f"episode {log.episode_id[report.heaviest]} carries {share:.0%} of all weight: the estimate is little "
                "more than its return",
            )
        )
    with np.errstate(invalid="ignore"):
        away = np.abs(report.mean - 1) / report.standard_error
    away = np.where(_is_far(report.mean, report.standard_error), np.nan_to_num(away, posinf=np.inf), -1.0)
    step = int(np.argmax(away))
    if away[step] >= 0:
        findings.append(
            Finding(
                "mean_weight",
                "warning",
                f"the weights up to step {step} have mean {report.mean[step]:.4g} ± {report.standard_error[step]:.2g}, "
                "in truth 1: the rare episodes that the candidate would make often are not in the log, or propensities "
                "are wrong",
            )
        )
    return findings


def _is_far(
    mean: Float[np.ndarray, " *steps"], error: Float[np.ndarray, " *steps"]
) -> Bool[np.ndarray, " *steps"]:
    """Whether a mean that is 1 in truth is farther from it than chance, or rounding, explains."""
    return np.abs(mean - 1) > np.maximum(STANDARD_ERRORS * np.nan_to_num(error, nan=np.inf), IMPOSSIBLE)


def _mean_of_steps(
    log: Log, values: Float[np.ndarray, " rows"], counted: np.ndarray | None = None
) -> RatioCheck:
    """Σ values / number of counted steps; standard error of the ratio of means over episodes, ddof 1."""
    total = np.add.reduceat(values, log.offset[:-1])
    count = log.length if counted is None else np.add.reduceat(counted.astype(np.int64), log.offset[:-1])
    if not count.any():
        return RatioCheck(float("nan"), float("nan"))
    mean = float(total.sum() / count.sum())
    if log.episodes == 1:
        return RatioCheck(mean, float("nan"))
    residual = (total - mean * count) / count.mean()
    return RatioCheck(mean, float(residual.std(ddof=1) / np.sqrt(log.episodes)))


def _carried(columns: Float[np.ndarray, " some"], steps: int) -> Float[np.ndarray, " steps"]:
    return np.pad(columns, (0, steps - len(columns)), mode="edge")
