"""What is fitted to a log before estimators run: value models and ratios of all candidates at once, cross-fitted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from peira.evaluation.off_policy import large_actions, marginal
from peira.evaluation.off_policy.candidates import Candidate
from peira.evaluation.off_policy.dice import BEST_DICE, MWL, linear_dice, tabular_dice
from peira.evaluation.off_policy.features import gaussian_features
from peira.evaluation.off_policy.fitted_q import FittedQ, linear_q, tabular_q
from peira.evaluation.off_policy.kernel_balance import mswl, mwl
from peira.evaluation.off_policy.log import Log
from peira.evaluation.off_policy.neural_q import FqeConfig, neural_q, neural_q_continuous
from peira.evaluation.off_policy.propensity import calibration_report, fit_gaussian_propensity, fit_propensity
from peira.evaluation.off_policy.ratios import RatioFit
from peira.evaluation.off_policy.transitions import TERMINATED, Transitions
from peira.evaluation.off_policy.weights import weights

Values = Literal["auto", "tabular", "linear", "network"]
Progress = Callable[[str, int, int], None]

LANDMARKS = 100
"""Gaussian features of an observation, for what is fitted in closed form."""
RIDGE = 1e-3
"""Penalty beside averages over the log."""
MOST_PAIRS = 2_000
"""States (with time) × actions up to which tables are solved."""


@dataclass
class Models:
    """Fitted parts [candidates, rows] by the names that estimators read them by, and why a part is missing."""

    parts: dict[str, Float[np.ndarray, "candidates rows"]] = field(default_factory=dict)
    final_v: Float[np.ndarray, "candidates episodes"] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    checks: dict[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class FitSettings:
    """How models are fitted; `horizon` None is a value without one."""

    gamma: float
    horizon: int | None
    fold: Int[np.ndarray, " rows"] | None
    values: Values = "auto"
    updates: int = FqeConfig.updates
    embedding: Int[np.ndarray, "actions dims"] | None = None
    seed: int = 0


def fit_models(
    log: Log,
    candidates: Sequence[Candidate],
    wanted: Collection[str],
    settings: FitSettings,
    progress: Progress,
) -> Models:
    """Every part that is wanted and can be had; `missing` says of the others why not."""
    models = Models()
    fits = {
        ("q", "v"): _fit_values,
        ("state_ratio",): _fit_state_ratio,
        ("pair_ratio",): _fit_pair_ratio,
        ("dice_ratio",): _fit_dice,
        ("mwl_ratio",): _fit_mwl,
        ("embedding_ratio",): _fit_embedding,
        ("cluster_ratio", "effect", "effect_v"): _fit_clusters,
    }
    for names, fit in fits.items():
        if not set(names) & set(wanted):
            continue
        try:
            fit(log, candidates, settings, models, progress)
        except ValueError as fault:
            models.missing |= dict.fromkeys(names, str(fault))
    return models


def estimated_propensities(log: Log, fold: Int[np.ndarray, " rows"] | None) -> tuple[Log, dict[str, float]]:
    """The log with propensities fitted to it, by logistic regression, or a Gaussian for continuous actions.

    With them, where actions are numbered, what they look like on held-out rows: expected calibration error and log
    loss. Raises ValueError where the log has no observations.
    """
    features = _vectors(log.transitions())[: log.rows]
    if log.actions is None:
        fitted = fit_gaussian_propensity(features, log.action, fold=fold)
        return replace(log, log_propensity=fitted.log_density), {
            "log_loss": -float(fitted.log_density.mean())
        }
    probs = fit_propensity(features, log.action, log.actions, fold=fold, action_set=log.action_set)
    chosen = np.log(probs[np.arange(log.rows), log.action])
    seen = calibration_report(probs, log.action)
    checks = {"expected_calibration_error": seen.expected_calibration_error, "log_loss": seen.log_loss}
    return replace(log, log_propensity=chosen, behaviour_probs=probs), checks


def is_tabular(log: Log) -> bool:
    """Whether observations are numbers of states."""
    return log.observation is not None and log.observation.ndim == 1


def _fit_values(
    log: Log, candidates: Sequence[Candidate], settings: FitSettings, models: Models, progress: Progress
) -> None:
    transitions = log.transitions(settings.fold)
    gamma, horizon = settings.gamma, settings.horizon
    kind = settings.values
    if kind == "auto":
        small = is_tabular(log) and log.actions is not None
        kind = "tabular" if small else "network" if log.length.max() > 1 or log.actions is None else "linear"
    generator = torch.Generator().manual_seed(settings.seed)
    network = {
        "generator": generator,
        "horizon": horizon,
        "config": FqeConfig(updates=settings.updates),
        "progress": lambda done, total: progress("value networks", done, total),
    }
    if log.actions is None:
        if kind != "network":
            raise ValueError(f"values: {kind} values need numbered actions; take network for continuous ones")
        mean, std = (np.stack(of) for of in zip(*(c.point_gaussian(log) for c in candidates), strict=True))
        as_vectors = replace(transitions, observation=_vectors(transitions))
        fit = neural_q_continuous(as_vectors, mean, std, gamma, **network)
    else:
        probs = _probs(log, candidates)
        if kind == "tabular":
            states = _states(transitions, "values")
            fit = tabular_q(transitions, probs, gamma, states=states, horizon=horizon)
        elif kind == "linear":
            features = _features(_vectors(transitions), settings.seed)
            fit = linear_q(transitions, features, probs, gamma, horizon=horizon, ridge=RIDGE)
        else:
            as_vectors = replace(transitions, observation=_vectors(transitions))
            fit = neural_q(as_vectors, probs, gamma, **network)
    models.parts |= {"q": fit.logged, "v": fit.v[:, : log.rows]}
    models.final_v = np.zeros((len(candidates), log.episodes))
    if horizon is None and log.final_episode is not None:
        models.final_v[:, log.final_episode] = fit.v[:, log.rows :]
    models.checks["values"] = {"kind": kind, **_checks(fit, candidates)}


def _checks(fit: FittedQ, candidates: Sequence[Candidate]) -> dict:
    names = [candidate.name for candidate in candidates]
    return {
        "bounds": list(fit.bounds),
        "td_error": dict(zip(names, fit.td_error.tolist(), strict=True)),
        "q_range": {
            name: [low, high]
            for name, low, high in zip(names, fit.low.tolist(), fit.high.tolist(), strict=True)
        },
    }


def _fit_state_ratio(
    log: Log, candidates: Sequence[Candidate], settings: FitSettings, models: Models, progress: Progress
) -> None:
    if not is_tabular(log):
        raise ValueError(
            "time-indexed ratios need numbers of states as observations; "
            f"{log.no_observation if log.observation is None else 'the log holds vectors'}"
        )
    _, state = np.unique(log.observation, return_inverse=True)
    fold = None if settings.fold is None else settings.fold[log.offset[:-1]]
    # Values count up to where episodes were cut: being cut is an end like any other.
    ended = np.ones(log.episodes, bool)
    ratios = []
    for number, candidate in enumerate(candidates):
        if candidate.log_prob is None:
            ratios.append(np.zeros(log.rows))
            continue
        ratio = marginal.fit_time_ratio(
            state, candidate.log_ratio(log), log.length, ended, states=int(state.max()) + 1, fold=fold
        )
        ratios.append(ratio)
        progress("ratios of states", number + 1, len(candidates))
    models.parts["state_ratio"] = np.stack(ratios)


def _fit_pair_ratio(
    log: Log, candidates: Sequence[Candidate], settings: FitSettings, models: Models, progress: Progress
) -> None:
    """ρ(s) linear in features, times the known π/π_b: less noise than ρ(s, a) learned as a whole."""
    _check_learned(log, settings)
    transitions = _with_time(log.transitions(settings.fold), settings.horizon)
    features = _features(_vectors(transitions), settings.seed)
    # A candidate without a density has no ratio of actions: estimators that need one refuse it.
    log_ratio = [
        np.full(log.rows, -np.inf) if candidate.log_prob is None else candidate.log_ratio(log)
        for candidate in candidates
    ]
    action_ratio = weights(np.stack(log_ratio))
    found = mswl(transitions, features, action_ratio, settings.gamma)
    _keep("pair_ratio", "ratios", found, candidates, models)


def _fit_dice(
    log: Log, candidates: Sequence[Candidate], settings: FitSettings, models: Models, progress: Progress
) -> None:
    found = _learned(log, candidates, settings, partial(tabular_dice, family=BEST_DICE), linear_dice)
    _keep("dice_ratio", "dice", found, candidates, models)


def _fit_mwl(
    log: Log, candidates: Sequence[Candidate], settings: FitSettings, models: Models, progress: Progress
) -> None:
    found = _learned(log, candidates, settings, partial(tabular_dice, family=MWL), mwl)
    _keep("mwl_ratio", "mwl", found, candidates, models)


def _learned(
    log: Log,
    candidates: Sequence[Candidate],
    settings: FitSettings,
    tabular: Callable[..., RatioFit],
    linear: Callable[..., RatioFit],
) -> RatioFit:
    """ρ(s, a), exactly for numbered states; otherwise linear in features of the observation, for each action."""
    _check_learned(log, settings)
    if log.actions is None:
        raise ValueError("learned ratios of pairs need numbered actions; take mis or mdr for continuous ones")
    transitions = _with_time(log.transitions(settings.fold), settings.horizon)
    probs = _probs(log, candidates)
    if not is_tabular(log):
        return linear(transitions, _features(_vectors(transitions), settings.seed), probs, settings.gamma)
    if transitions.observation.ndim == 2:
        _, state = np.unique(transitions.observation, axis=0, return_inverse=True)
        transitions = replace(transitions, observation=state.ravel())
    states = int(transitions.observation.max()) + 1
    if states * log.actions > MOST_PAIRS:
        raise ValueError(
            f"{states} states (with time) × {log.actions} actions are more than the {MOST_PAIRS} pairs that are solved"
        )
    return tabular(transitions, probs, settings.gamma, states=states)


def _keep(part: str, check: str, found: RatioFit, candidates: Sequence[Candidate], models: Models) -> None:
    names = [candidate.name for candidate in candidates]
    models.parts[part] = found.ratio
    models.checks[check] = {
        "mean_ratio": dict(zip(names, found.mean_ratio.tolist(), strict=True)),
        "flow_residual": dict(zip(names, found.flow_residual.tolist(), strict=True)),
    }


def _check_learned(log: Log, settings: FitSettings) -> None:
    if log.observation is None:
        raise ValueError(f"observation: {log.no_observation}; learned ratios need numbers")
    if not settings.gamma < 1:
        raise ValueError("learned ratios are of discounted distributions: give a gamma below 1")


def _with_time(transitions: Transitions, horizon: int | None) -> Transitions:
    """With a horizon: the time beside the observation, and an end wherever an episode of the log ends."""
    if horizon is None:
        return transitions
    observation = transitions.observation
    if observation.ndim == 1:
        observation = observation[:, None]
    timed = np.column_stack([observation, transitions.step / horizon])
    next_row = np.where(transitions.within, transitions.next_row, TERMINATED)
    return replace(transitions, observation=timed, next_row=next_row)


def _fit_embedding(
    log: Log, candidates: Sequence[Candidate], settings: FitSettings, models: Models, progress: Progress
) -> None:
    embedding = _embedding(log, settings)
    behaviour = _behaviour_probs(log)
    given = [np.eye(int(column.max()) + 1)[column] for column in embedding.T]
    models.parts["embedding_ratio"] = np.stack(
        [
            large_actions.embedding_ratio(embedding[log.action], given, candidate.probs, behaviour)
            for candidate in candidates
        ]
    )


def _fit_clusters(
    log: Log, candidates: Sequence[Candidate], settings: FitSettings, models: Models, progress: Progress
) -> None:
    embedding, behaviour = _embedding(log, settings), _behaviour_probs(log)
    _, cluster = np.unique(embedding, axis=0, return_inverse=True)
    cluster = cluster.ravel()
    features = _vectors(log.transitions())[: log.rows]
    _, context = np.unique(features, axis=0, return_inverse=True)
    effect = large_actions.fit_conjunct_effect(
        features, context.ravel(), log.action, log.reward, cluster, log.actions, fold=settings.fold
    )
    probs = _probs(log, candidates)[:, : log.rows]
    models.parts["cluster_ratio"] = np.stack(
        [large_actions.cluster_ratio(cluster, log.action, of, behaviour) for of in probs]
    )
    logged = effect[np.arange(log.rows), log.action]
    models.parts["effect"] = np.broadcast_to(logged, (len(candidates), log.rows))
    models.parts["effect_v"] = np.einsum("cna,na->cn", probs, effect)


def _embedding(log: Log, settings: FitSettings) -> np.ndarray:
    if settings.embedding is None:
        raise ValueError("needs what actions have in common: give --embeddings FILE")
    if len(settings.embedding) != log.actions:
        raise ValueError(
            f"embeddings: expected one row for each of {log.actions} actions, got {len(settings.embedding)}"
        )
    return settings.embedding


def _behaviour_probs(log: Log) -> np.ndarray:
    if log.behaviour_probs is None:
        raise ValueError(
            "needs the probability of every action under the log's policy: give the column behaviour_probs"
        )
    return log.behaviour_probs


def _probs(log: Log, candidates: Sequence[Candidate]) -> Float[np.ndarray, "candidates points actions"]:
    return np.stack([candidate.point_probs(log) for candidate in candidates])


def _states(transitions: Transitions, what: str) -> int:
    if transitions.observation.ndim != 1:
        raise ValueError(f"{what}: tables need numbers of states as observations, the log holds vectors")
    return int(transitions.observation.max()) + 1


def _vectors(transitions: Transitions) -> Float[np.ndarray, "points features"]:
    observation = transitions.observation
    return observation if observation.ndim == 2 else np.eye(int(observation.max()) + 1)[observation]


def _features(
    observation: Float[np.ndarray, "points dims"], seed: int
) -> Float[np.ndarray, "points features"]:
    rng = np.random.default_rng(seed)
    return np.column_stack([np.ones(len(observation)), gaussian_features(observation, LANDMARKS, rng=rng)])
