"""What candidates are worth, how sure that is, and which few to try next: one call from a log to a report.

The report is a plain dictionary; its keys are described in docs/evaluate.md and stay as they are.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

from peira.evaluation.off_policy import distribution, intervals, portfolio, sequential, tuning
from peira.evaluation.off_policy.candidates import (
    Candidate,
    Policy,
    candidate_of,
    read_candidate,
    same_actions,
)
from peira.evaluation.off_policy.continuous import kernel_log_ratio, reference_bandwidth
from peira.evaluation.off_policy.diagnostics import (
    Basis,
    Finding,
    WeightReport,
    candidate_findings,
    log_findings,
    refused_by,
    weight_report,
)
from peira.evaluation.off_policy.estimators import ESTIMATORS, Estimator, Piece, fitting, grid_of
from peira.evaluation.off_policy.log import Log, read_log
from peira.evaluation.off_policy.magic import magic
from peira.evaluation.off_policy.models import (
    FitSettings,
    Models,
    Values,
    estimated_propensities,
    fit_models,
    is_tabular,
)
from peira.evaluation.off_policy.terms import Terms, total
from peira.evaluation.off_policy.verdict import MODEL_ALONE
from peira.versions import versions

IntervalMethod = Literal["auto", "bca", "bootstrap", "delta", "student", "hoeffding", "bernstein", "hcope"]
Progress = Callable[[str, int, int], None]

BEHAVIOUR = "behaviour"
"""Name of the policy that made the log, where a baseline is asked for."""
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
TAILS = (0.05, 0.1, 0.25)
POINTS = 200
"""Points of a curve in the report."""
BOOTSTRAPPED = 5_000_000
"""Steps (padding included) up to which intervals are bootstrapped unless asked for."""
LEAST_EPISODES = 10
"""Effective episodes that a kernel's bandwidth must leave to be considered."""
HELD = 4_000_000
"""Steps up to which the terms of an estimate are kept instead of being formed anew at each pass."""


@dataclass(frozen=True)
class Settings:
    """How candidates are evaluated."""

    gamma: float = 1.0
    """Discount of a step; the first reward is not discounted."""
    estimators: tuple[str, ...] = ("auto",)
    """Names of estimators, or auto for a sensible few."""
    interval: IntervalMethod = "auto"
    """auto: bca on logs of moderate size, delta beyond. bca and bootstrap redraw episodes; hcope is a lower bound."""
    confidence: float = 0.95
    """Of the intervals."""
    k: tuple[int, ...] = ()
    """Sizes of the portfolios; by default 1 to the number of candidates, at most 10."""
    baseline: str = BEHAVIOUR
    """The safe alternative: the policy that made the log, or the name of a candidate."""
    folds: int = 2
    """Parts for cross-fitting of whatever is learned; 1 to fit and predict on the same episodes."""
    values: Values = "auto"
    """Value model: tabular (numbers of states), linear (Gaussian features) or network (fitted Q evaluation)."""
    updates: int = 5_000
    """Gradient steps of networks."""
    horizon: int | None = None
    """Steps to which values count; by default the longest episode if any was cut or all are as long, else none."""
    endless: bool = False
    """Values without a horizon although episodes were cut: needs final observations or stationary dynamics."""
    resamples: int = 2_000
    """Bootstrap replicates."""
    bandwidth: float | None = None
    """Of the kernel for deterministic candidates among continuous actions; chosen by SLOPE if left out."""
    safety: float | None = None
    """Value below which a candidate is unsafe; by default the baseline's."""
    seed: int = 0
    """Of folds, networks and bootstrap."""

    def __post_init__(self) -> None:
        known = [*ESTIMATORS, "auto"]
        unknown = [name for name in self.estimators if name not in known]
        if unknown:
            raise ValueError(f"estimators: there is no {unknown[0]!r}; there are {', '.join(known)}")
        for name, value, low, high in (
            ("gamma", self.gamma, 0.0, 1.0),
            ("confidence", self.confidence, 0.0, 1.0),
        ):
            if not low < value <= high or (name == "confidence" and value == 1):
                raise ValueError(f"{name}: expected a number above 0 and below or at 1, got {value:g}")
        for name in ("folds", "updates", "resamples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if any(k < 1 for k in self.k):
            raise ValueError(f"k: expected sizes of at least 1, got {min(self.k)}")
        if self.endless and self.horizon is not None:
            raise ValueError("endless: a horizon was given as well; leave one of them out")


def evaluate(
    log: Log | str | os.PathLike,
    candidates: Mapping[str, Policy | Candidate | str | os.PathLike],
    *,
    truth: Mapping[str, float] | None = None,
    embeddings: np.ndarray | None = None,
    columns: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    command: str = "",
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate candidates, policies that did not run, on the log of one that did.

    `log`: a path that `read_log` reads (`columns` names the columns of foreign files), or a `Log`. `candidates`: name →
    policy of the library, function of observations, arrays, or path of a table. `truth`: true values by name, where
    they are known (and "behaviour" for the log's policy). `embeddings` [actions, dims]: whole numbers that say what
    actions have in common, for mips and offcem. `settings`: the fields of `Settings`.

    Returns the report: estimates with standard errors, intervals and warnings for every candidate and estimator, or the
    reason why there is none; rankings; portfolios with SharpeRatio@k; distributions of returns; diagnostics. Raises
    ValueError, in one line, for input that cannot be evaluated.
    """
    chosen = Settings(**settings)
    if not candidates:
        raise ValueError("candidates: expected at least one, got none")
    began = time.perf_counter()
    say = progress or (lambda stage, done, of: None)
    path = "" if isinstance(log, Log) else os.fspath(log)
    if not isinstance(log, Log):
        log = read_log(path, columns, progress=lambda done, of: say("reading the log", done, of or 0))
    read = []
    for number, (name, given) in enumerate(candidates.items()):
        if isinstance(given, str | os.PathLike):
            read.append(read_candidate(given, log, name=name))
        else:
            read.append(given if isinstance(given, Candidate) else candidate_of(given, log, name))
        say("reading candidates", number + 1, len(candidates))
    log, read = _by_name(same_actions(log, read), read)
    seconds = {"reading": time.perf_counter() - began}
    evaluation = _Evaluation(log, read, chosen, truth, embeddings, say, seconds)
    report = evaluation.report()
    seconds["total"] = time.perf_counter() - began
    return {"log": {"path": path, **report.pop("log")}, **report, "command": command}


def _by_name(log: Log, candidates: list[Candidate]) -> tuple[Log, list[Candidate]]:
    """Log and candidates with the episodes in the order of their names: results do not depend on how they came."""
    order = pc.array_sort_indices(log.episode_id).to_numpy()
    if (np.diff(order) == 1).all():
        return log, candidates
    length, place = log.length[order], np.argsort(order)
    first = np.cumsum(length) - length
    rows = np.repeat(log.offset[order] - first, length) + np.arange(log.rows)
    finals = None
    if log.final_episode is not None:
        finals = np.argsort(place[log.final_episode])

    def moved(values: np.ndarray | None, by: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[by]

    time_known = log.created_at is not None and np.ptp(log.created_at) > 0
    of_rows = ("action", "reward", "log_propensity", "observation", "action_set", "behaviour_probs")
    log = replace(
        log,
        episode_id=log.episode_id.take(pa.array(order)),
        offset=np.append(first, log.rows),
        truncated=log.truncated[order],
        # Where nothing tells the time, the order in which episodes came does.
        created_at=log.created_at[order] if time_known else order.astype(np.float64),
        final_observation=moved(log.final_observation, finals),
        final_episode=None if finals is None else np.sort(place[log.final_episode]),
        **{name: moved(getattr(log, name), rows) for name in of_rows},
    )
    of_candidate = {
        **dict.fromkeys(("log_prob", "probs", "mean", "std"), rows),
        **dict.fromkeys(("final_probs", "final_mean", "final_std"), finals),
    }
    return log, [
        replace(candidate, **{name: moved(getattr(candidate, name), by) for name, by in of_candidate.items()})
        for candidate in candidates
    ]


@dataclass
class _Evaluation:
    """One evaluation in progress."""

    log: Log
    candidates: list[Candidate]
    settings: Settings
    truth: Mapping[str, float] | None
    embeddings: np.ndarray | None
    progress: Progress
    seconds: dict[str, float]

    def report(self) -> dict[str, Any]:
        log, settings = self.log, self.settings
        self._check_truth()
        horizon = settings.horizon
        if horizon is None and not settings.endless:
            longest, cut = int(log.length.max()), bool(log.truncated.any())
            # Episodes that all end at one step end by the clock, whatever the log calls it.
            horizon = longest if longest > 1 and (cut or (log.length == longest).all()) else None
        # Drawn by the names of episodes, so that their order makes no difference.
        enough = settings.folds > 1 and log.episodes >= 2 * settings.folds
        fold = log.split(settings.folds, np.random.default_rng(settings.seed)) if enough else None
        findings = log_findings(log, settings.gamma)
        names, chosen = self._names()
        propensities, calibration = "logged", None
        if log.log_propensity is None:
            propensities = "absent"
            if log.observation is not None and any(ESTIMATORS[name].basis != Basis.MODEL for name in names):
                log, calibration = estimated_propensities(log, fold)
                self.log = log
                propensities = "estimated"
                findings = log_findings(log, settings.gamma)
                findings.append(
                    Finding(
                        "estimated_propensities",
                        "warning",
                        "the log does not say how likely its actions were; propensities were estimated from it, and "
                        "what they get wrong is in no interval",
                    )
                )

        began = time.perf_counter()
        wanted = {part for name in names for part in self._reads(name)}
        fit = FitSettings(
            settings.gamma, horizon, fold, settings.values, settings.updates, self.embeddings, settings.seed
        )
        models = fit_models(log, self.candidates, wanted, fit, self.progress)
        self.seconds["models"] = time.perf_counter() - began

        own = intervals_of({"value": self._own}, settings, padded=_padded_cells(log))["value"]
        report: dict[str, Any] = {
            "log": {
                "episodes": log.episodes,
                "steps": log.rows,
                "horizon": int(log.length.max()),
                "actions": log.actions,
                "action_dims": None if log.actions is not None else log.action.shape[1],
                "propensities": propensities,
                "findings": [_told(finding) for finding in findings],
                "behaviour": {**own, "returns": _distribution_of(self._own_returns())},
            },
            "settings": self._told_settings(names, horizon),
            "chosen": chosen,
            "candidates": {},
        }
        self.seconds["estimates"] = self.seconds["intervals"] = 0.0
        for number, candidate in enumerate(self.candidates):
            entry = self._candidate(number, candidate, names, models, findings)
            report["candidates"][candidate.name] = entry
            self.progress("candidates", number + 1, len(self.candidates))
        report |= self._choices(report, names)
        report["nuisances"] = models.checks | ({"propensities": calibration} if calibration else {})
        report["seconds"], report["versions"] = self.seconds, versions()
        return report

    # -- what is estimated -------------------------------------------------------------------------------------

    def _names(self) -> tuple[list[str], dict[str, str]]:
        """The estimators asked for, without repetition, and why those of `auto` were taken."""
        horizon = int(self.log.length.max())
        names: dict[str, None] = {}
        chosen: dict[str, str] = {}
        for name in self.settings.estimators:
            if name == "auto":
                chosen = self._automatic(horizon)
                names |= dict.fromkeys(chosen)
                continue
            suited = fitting(horizon)
            if name not in suited:
                kind = "one-step" if horizon == 1 else f"{horizon}-step"
                raise ValueError(
                    f"estimators: {name!r} is not for {kind} episodes; for this log there are {', '.join(suited)}"
                )
            names[name] = None
        return list(names), chosen

    def _automatic(self, horizon: int) -> dict[str, str]:
        log = self.log
        learned = log.observation is not None
        if horizon == 1:
            chosen = {"ipw": "unbiased, nothing learned", "snipw": "the same with less variance"}
            if learned:
                chosen |= {
                    "dm": "no weights at all, to compare with",
                    "dr": "a model corrected by weights",
                    "dros": "the same with weights shrunk as far as the data allow",
                }
            return chosen
        chosen = {"wpdis": "weights with little variance, nothing learned", "pdis": "its unbiased form"}
        if learned:
            chosen |= {
                "dm": "no weights at all, to compare with",
                "dr": "a model corrected by weights",
                "wdr": "the same with less variance",
                "magic": "weights while they last, the model from there",
            }
            if is_tabular(log):
                chosen |= {"wmis": "weights of states do not grow with the horizon", "drl": "with a model"}
            elif self.settings.gamma < 1 and log.actions is not None:
                chosen |= {"wmis": "learned weights do not grow with the horizon", "mdr": "with a model"}
        return chosen

    def _reads(self, name: str) -> tuple[str, ...]:
        reads = ESTIMATORS[name].reads
        ratio = "state_ratio" if is_tabular(self.log) else "pair_ratio"
        return tuple(ratio if part == "state_ratio or pair_ratio" else part for part in reads)

    def _candidate(
        self,
        number: int,
        candidate: Candidate,
        names: Sequence[str],
        models: Models,
        of_log: Sequence[Finding],
    ) -> dict[str, Any]:
        log, settings = self.log, self.settings
        log_ratio, kernel = self._log_ratio(candidate)
        report = None if log_ratio is None else weight_report(log, log_ratio)
        weighed = candidate
        if kernel:  # With the kernel's weights it can be checked as one that has a density.
            weighed = replace(candidate, log_prob=log_ratio + log.log_propensity)
        findings = candidate_findings(log, weighed, report)
        if kernel:
            findings.append(Finding("kernel", "warning", kernel))
        estimates: dict[str, Any] = {}
        found: dict[str, Callable[[], Iterable[Terms]]] = {}
        began = time.perf_counter()
        tuned: dict[str, str] = {}
        same = any(finding.code == "same_policy" for finding in findings)
        for name in names:
            if same:
                # Nothing has to be estimated: the log's own returns are what the candidate earns.
                found[name], tuned[name] = self._own, ""
                continue
            refusal = self._refusal(name, models, [*of_log, *findings])
            if kernel and ESTIMATORS[name].basis != Basis.MODEL and not ESTIMATORS[name].weighs_episodes:
                refusal = (
                    "the candidate is deterministic among continuous actions and has no ratio of actions"
                )
            if refusal is None and log_ratio is None and ESTIMATORS[name].basis != Basis.MODEL:
                refusal = "there are no importance weights"
            if refusal is not None:
                estimates[name] = _refused(refusal)
                continue
            try:
                found[name], tuned[name] = self._terms(name, number, log_ratio, models)
            except ValueError as fault:
                estimates[name] = _refused(str(fault))
        self.seconds["estimates"] += time.perf_counter() - began
        began = time.perf_counter()
        estimates |= intervals_of(found, settings, padded=_padded_cells(log))
        self.seconds["intervals"] += time.perf_counter() - began
        for name in found:
            estimator, entry = ESTIMATORS[name], estimates[name]
            about = [finding for finding in (*of_log, *findings) if _concerns(finding, estimator)]
            entry["effective_sample_size"] = (
                float(report.effective_sample_size[-1])
                if estimator.weighs_episodes and report is not None
                else None
            )
            entry["warnings"] = [
                *([tuned[name]] if tuned[name] else []),
                *entry.pop("reasons"),
                # A refusal that another kind of estimator earned is still a warning for this one.
                *(finding.text for finding in about if not refused_by([finding], estimator.basis)),
            ]
            unbound = refused_by(about, Basis.LOWER_BOUND)
            entry["no_bound"] = unbound[0].text if unbound else None
            if settings.interval == "hcope" and unbound:
                entry["interval"] = None
                entry["warnings"].append(f"no lower bound: {unbound[0].text}")
            if math.isnan(entry["value"]):
                estimates[name] = _refused(intervals.NO_WEIGHT)
        return {
            "estimates": {name: estimates[name] for name in names},
            "truth": None if self.truth is None else self.truth[candidate.name],
            "distribution": self._distribution(log_ratio, [*of_log, *findings]),
            "weights": None if report is None else self._weights(log_ratio, report, candidate),
            "findings": [_told(finding) for finding in findings],
        }

    def _refusal(self, name: str, models: Models, findings: Sequence[Finding]) -> str | None:
        estimator = ESTIMATORS[name]
        about = [finding for finding in findings if _concerns(finding, estimator)]
        if against := refused_by(about, estimator.basis):
            return against[0].text
        reads = self._reads(name)
        for part in reads:
            if part in models.missing:
                return models.missing[part]
        cut = int(self.log.truncated.sum())
        known = 0 if self.log.final_episode is None else len(self.log.final_episode)
        if self.settings.endless and known < cut and {"v", "pair_ratio"} <= set(reads):
            return f"what followed {cut - known} of {cut} cut episodes was not recorded, and would have had a value"
        return None

    def _log_ratio(self, candidate: Candidate) -> tuple[Float[np.ndarray, " rows"] | None, str]:
        """Log ratios of the logged actions, by a kernel (and what it was) where the candidate has no density."""
        log, settings = self.log, self.settings
        if log.log_propensity is None:
            return None, ""
        if candidate.log_prob is not None:
            return candidate.log_ratio(log), ""
        if settings.bandwidth:
            widths = [np.full(log.action.shape[1], settings.bandwidth)]
        else:
            widths = [scale * reference_bandwidth(log.action) for scale in (0.25, 0.5, 1.0, 2.0, 4.0)]
        tried = [kernel_log_ratio(log.action, candidate.mean, log.log_propensity, width) for width in widths]
        # Bandwidths that leave next to no weight cannot be compared with others; the widest stays in any case.
        size = [weight_report(log, of).effective_sample_size[-1] for of in tried[:-1]]
        kept = [*(place for place, of in enumerate(size) if of >= LEAST_EPISODES), len(tried) - 1]
        tried, widths = [tried[place] for place in kept], [widths[place] for place in kept]
        best = 0
        if len(tried) > 1:
            made = [self._joined(lambda block: sequential.pdis(block, settings.gamma), of) for of in tried]
            accepted = tuning.accepted_in_order(
                np.array([terms.value() for terms in made]),
                np.array([tuning.half_width(terms) for terms in made]),
            )
            best = accepted - 1
        shown = ", ".join(f"{width:.3g}" for width in widths[best])
        return tried[best], (
            f"the candidate is deterministic: its action was spread by an Epanechnikov kernel of bandwidth {shown}"
            f"{', chosen by SLOPE' if len(tried) > 1 else ''}; what that smooths away is bias"
        )

    def _joined(self, of: Callable, log_ratio: np.ndarray) -> Terms:
        """Terms without ratios over all blocks."""
        plain = [of(block).plain for _, block in self.log.blocks(log_ratio)]
        return Terms.mean(np.concatenate(plain))

    def _terms(
        self, name: str, number: int, log_ratio: np.ndarray | None, models: Models
    ) -> tuple[Callable[[], Iterable[Terms]], str]:
        """What yields an estimator's terms block by block, and the value that its parameter was given."""
        log, estimator = self.log, ESTIMATORS[name]
        ratio = np.zeros(log.rows) if log_ratio is None else log_ratio

        # The blend is formed of all episodes at once.
        parts = [np.concatenate(log.pieces())] if name == "magic" else log.pieces()

        def pieces() -> Iterable[Piece]:
            for part in parts:
                laid = {read: log.padded(models.parts[read][number], part) for read in self._reads(name)}
                if models.final_v is not None:
                    laid["final_v"] = models.final_v[number, part]
                yield Piece(log.block(ratio, part), self.settings.gamma, log.terminated[part], **laid)

        if name == "magic":
            return self._blended(pieces, estimator)
        parameter, told = (), ""
        if estimator.grid is not None:
            parameter, told = self._tuned(estimator, pieces)

        def again() -> Iterable[Terms]:
            return (estimator.terms(piece, *parameter) for piece in pieces())

        if _padded_cells(log) <= HELD:
            held = list(again())
            return lambda: held, told
        return again, told

    def _blended(
        self, pieces: Callable[[], Iterable[Piece]], estimator: Estimator
    ) -> tuple[Callable[[], Iterable[Terms]], str]:
        if _padded_cells(self.log) > HELD * 8:
            raise ValueError(
                "the blend needs all episodes in memory at once; take wdr for a log of this size"
            )
        (piece,) = pieces()
        rng = np.random.default_rng(self.settings.seed)
        blended = magic(estimator.terms(piece), rng=rng, ordered=True)
        alone = float(blended.share[0])
        told = f"{alone:.0%} of the blend is {MODEL_ALONE}"
        return lambda: [blended.terms], told if alone > 0.5 else ""

    def _tuned(self, estimator: Estimator, pieces: Callable[[], Iterable[Piece]]) -> tuple[tuple[float], str]:
        grid = grid_of(estimator.grid, next(iter(pieces())))
        values, widths = [], []
        for value in grid:
            made = [estimator.terms(piece, value) for piece in pieces()]
            joined = Terms.mean(np.concatenate([terms.plain for terms in made]))
            values.append(joined.value())
            widths.append(tuning.half_width(joined))
        # In the order of the grid: where weights are few, the width of an estimate with more of them may be less.
        best = grid[tuning.accepted_in_order(np.array(values), np.array(widths)) - 1]
        told = f"{estimator.grid} {best:.3g}, chosen by SLOPE"
        if "q" not in estimator.reads:
            return (best,), told
        counted, whole = (_counted(estimator, pieces(), value) for value in (best, grid[0]))
        alone = 1 - counted / whole if whole > 0 else 0.0
        return (best,), f"{told}; {alone:.0%} of the estimate is {MODEL_ALONE}" if alone > 0.5 else told

    # -- what is said beside estimates -------------------------------------------------------------------------

    def _own(self) -> list[Terms]:
        """Terms of the log's own returns."""
        return [Terms.mean(self.log.returns(self.settings.gamma))]

    def _own_returns(self) -> distribution.ReturnDistribution:
        returns = self.log.returns(self.settings.gamma)
        return distribution.sntis_distribution(returns, np.zeros(len(returns)))

    def _distribution(
        self, log_ratio: np.ndarray | None, findings: Sequence[Finding]
    ) -> dict[str, Any] | None:
        if log_ratio is None or refused_by(findings, Basis.WEIGHTS):
            return None
        log = self.log
        weight = np.add.reduceat(log_ratio, log.offset[:-1])
        if np.isneginf(weight).all():
            return None
        found = distribution.sntis_distribution(log.returns(self.settings.gamma), weight)
        return {"estimator": "sntis", **_distribution_of(found)}

    def _weights(self, log_ratio: np.ndarray, report: WeightReport, candidate: Candidate) -> dict[str, Any]:
        log = self.log
        last = np.add.reduceat(log_ratio, log.offset[:-1]) / math.log(10)
        finite = last[np.isfinite(last)]
        counts, edges = (
            np.histogram(finite, bins=40) if len(finite) else (np.zeros(1, int), np.array([0.0, 1.0]))
        )
        steps = _thinned(len(report.effective_sample_size))
        support = candidate.support
        outside = 0.0 if support is None else max(support.never_chosen, support.impossible or 0.0)
        return {
            "log10_edges": edges.tolist(),
            "counts": counts.tolist(),
            "without_weight": int(len(last) - len(finite)),
            "largest_share": float(report.largest_share[-1]),
            "effective_sample_size_by_step": report.effective_sample_size[steps].tolist(),
            "steps": steps.tolist(),
            "support_violations": outside / log.rows,
        }

    def _choices(self, report: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Rankings, portfolios, and metrics where the truth is known."""
        entries = report["candidates"]
        labels = list(entries)
        sizes = self.settings.k or tuple(range(1, min(len(labels), 10) + 1))
        if max(sizes) > len(labels):
            raise ValueError(
                f"k: expected at most {len(labels)} (the number of candidates), got {max(sizes)}"
            )
        known = self.truth is not None
        true = np.array([self.truth[label] for label in labels]) if known else None
        ranking, chosen, metrics = {}, {}, {}
        for name in names:
            estimate = np.array([_number(entries[label]["estimates"][name]["value"]) for label in labels])
            order = portfolio.ranking(estimate)
            ranking[name] = [labels[place] for place in order]
            baseline = self._baseline(report, name)
            value = true if known else estimate
            # What has no estimate cannot be put into a portfolio by it; it is ranked last.
            kept = np.flatnonzero(~np.isnan(value))
            if baseline is None or np.isnan(estimate).all():
                chosen[name] = {}
                continue
            order = np.searchsorted(kept, order[np.isin(order, kept)])
            found = portfolio.portfolios(value[kept], order, baseline)
            chosen[name] = {
                str(k): {
                    "best": float(found.best[k - 1]),
                    "worst": float(found.worst[k - 1]),
                    "mean": float(found.mean[k - 1]),
                    "std": float(found.std[k - 1]),
                    "sharpe_numerator": float(found.sharpe_numerator[k - 1]),
                    "sharpe": float(found.sharpe[k - 1]),
                    "regret": float(found.regret[k - 1]),
                }
                for k in sizes
                if k <= len(order)
            }
            if known:
                threshold = baseline if self.settings.safety is None else self.settings.safety
                violation = portfolio.safety_violation_rate(true, portfolio.ranking(estimate), threshold)
                metrics[name] = {
                    "mse": portfolio.mean_squared_error(estimate, true),
                    "nmse": portfolio.normalised_mean_squared_error(estimate, true),
                    "rank_correlation": portfolio.rank_correlation(estimate, true),
                    "type_i": portfolio.type_one_error(estimate, true, threshold),
                    "type_ii": portfolio.type_two_error(estimate, true, threshold),
                    "regret": {str(k): float(found.regret[k - 1]) for k in sizes},
                    "safety_violation": {str(k): float(violation[k - 1]) for k in sizes},
                }
        return {
            "ranking": ranking,
            "portfolio": chosen,
            "portfolio_values": "true" if known else "estimated",
            "metrics": metrics if known else None,
        }

    def _baseline(self, report: dict[str, Any], name: str) -> float | None:
        wanted = self.settings.baseline
        if self.truth is not None and wanted in self.truth:
            return float(self.truth[wanted])
        if wanted == BEHAVIOUR:
            return report["log"]["behaviour"]["value"]
        if wanted not in report["candidates"]:
            raise ValueError(
                f"baseline: there is no candidate {wanted!r}; there are {', '.join([BEHAVIOUR, *report['candidates']])}"
            )
        return report["candidates"][wanted]["estimates"][name]["value"]

    def _check_truth(self) -> None:
        if self.truth is None:
            return
        for candidate in self.candidates:
            if not math.isfinite(self.truth.get(candidate.name, math.nan)):
                raise ValueError(f"truth: expected the true value of candidate {candidate.name}, got none")

    def _told_settings(self, names: Sequence[str], horizon: int | None) -> dict[str, Any]:
        told = {of.name: getattr(self.settings, of.name) for of in fields(self.settings)}
        sizes = self.settings.k or tuple(range(1, min(len(self.candidates), 10) + 1))
        method = _method(self.settings, _padded_cells(self.log))
        return {**told, "estimators": list(names), "k": list(sizes), "horizon": horizon, "interval": method}


_OF_MODELS = (
    "outside_action_set",
    "one_episode",
    "truncated",
    "no_end",
    "failed_episodes",
    "reward_drift",
    "outside_support",
    "same_policy",
)
"""Findings that concern what is learned without weights."""
_OF_EPISODES = ("few_effective_episodes", "one_episode_dominates", "mean_weight", "no_weight")
"""Findings about products of ratios over whole episodes."""


def _concerns(finding: Finding, estimator: Estimator) -> bool:
    """Whether a finding says anything of estimates by this estimator."""
    if finding.code in _OF_EPISODES:
        return estimator.weighs_episodes
    if finding.code == "outside_support" and estimator.weighs_groups:
        return False
    return estimator.basis != Basis.MODEL or finding.code in _OF_MODELS


def intervals_of(
    estimates: Mapping[str, Callable[[], Iterable[Terms]]], settings: Settings, *, padded: int
) -> dict[str, dict[str, Any]]:
    """Value, standard error and interval of every estimate; `reasons` say why an interval may not hold."""
    method, rng = _method(settings, padded), np.random.default_rng(settings.seed)
    found: dict[str, dict[str, Any]] = {}
    limits: dict[str, intervals.Interval] = {}
    totals = {name: total(blocks) for name, blocks in estimates.items()}
    several = [name for name, of in totals.items() if len(of.influence) > 1 and not math.isnan(of.value)]
    if method in ("bca", "bootstrap") and several:
        drawn = intervals.bootstrap_together(
            [estimates[name] for name in several],
            rng=rng,
            method="bca" if method == "bca" else "percentile",
            confidence=settings.confidence,
            replicates=settings.resamples,
            ordered=True,
        )
        limits = dict(zip(several, drawn, strict=True))
    for name, of in totals.items():
        if name in several and name not in limits:
            sample = of.value + of.influence
            match method:
                case "delta":
                    limits[name] = intervals.delta(estimates[name], confidence=settings.confidence)
                case "student":
                    limits[name] = intervals.student_t(sample, confidence=settings.confidence)
                case "hoeffding":
                    limits[name] = intervals.hoeffding(sample, None, confidence=settings.confidence)
                case "bernstein":
                    limits[name] = intervals.empirical_bernstein(sample, None, confidence=settings.confidence)
                case "hcope":
                    limits[name] = _lower_bound(sample, settings, rng)
        limit = limits.get(name)
        found[name] = {
            "value": of.value,
            "standard_error": of.standard_error,
            "interval": None if limit is None or math.isnan(limit.low) else [limit.low, limit.high],
            "reasons": [limit.reason] if limit is not None and limit.reason else [],
            "refused": None,
        }
    return found


def _lower_bound(sample: np.ndarray, settings: Settings, rng: np.random.Generator) -> intervals.Interval:
    try:
        return intervals.hcope(sample, rng=rng, confidence=settings.confidence)
    except ValueError as fault:
        return intervals.Interval(
            math.nan, math.nan, "hcope", settings.confidence, valid=False, reason=str(fault)
        )


def _method(settings: Settings, padded: int) -> str:
    if settings.interval != "auto":
        return settings.interval
    return "bca" if padded <= BOOTSTRAPPED else "delta"


def _padded_cells(log: Log) -> int:
    return log.episodes * int(log.length.max())


def _refused(reason: str) -> dict[str, Any]:
    return {
        "value": None,
        "standard_error": None,
        "interval": None,
        "effective_sample_size": None,
        "warnings": [],
        "refused": reason,
        "no_bound": reason,
    }


def _counted(estimator: Estimator, pieces: Iterable[Piece], value: float) -> float:
    """Σ of the discounted weights with which rewards correct the model: what rewards of 1 come to without a model."""
    total_weight = 0.0
    for piece in pieces:
        none = np.zeros_like(piece.q)
        ones = replace(piece.block, reward=piece.block.alive.astype(np.float64))
        total_weight += float(estimator.terms(replace(piece, block=ones, q=none, v=none), value).plain.sum())
    return total_weight


def _told(finding: Finding) -> dict[str, str]:
    return {"code": finding.code, "severity": finding.severity, "text": finding.text}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _thinned(length: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(length, POINTS)).astype(int))


def _distribution_of(found: distribution.ReturnDistribution) -> dict[str, Any]:
    at = _thinned(len(found.atom))
    return {
        "mean": float(found.mean()),
        "variance": float(found.variance()),
        "quantiles": {f"{level:g}": float(found.quantile(level)) for level in LEVELS},
        "cvar": {f"{level:g}": float(found.cvar(level)) for level in TAILS},
        "missing_mass": float(found.missing),
        "returns": found.atom[at].tolist(),
        "probability": found.cdf()[at].tolist(),
    }
