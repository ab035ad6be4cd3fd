"""Contextual bandits: estimators of one decision an episode, as pure functions of arrays.

V = E[Σ_a π(a|x) q(x, a)] from rows (x_i, a_i, r_i) with a_i ~ p(·|x_i). Throughout
  ratio     [rows]   w = π(a|x)/p(a|x)
  q_logged  [rows]   q̂(x, a), the reward model at the logged action
  q_target  [rows]   q̂(x, π) = Σ_a π(a|x) q̂(x, a)
With w unbiased weights need π ≪ p and the true p; DM needs q̂ right; DR needs one of the two. Fit q̂ by `fit_reward`,
with folds. These are the sequential estimators at T = 1. Source of the family: Dudík et al. 2014; Saito et al. 2021
(Open Bandit Pipeline) for the names.
"""

from __future__ import annotations

import copy

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from peira.evaluation.off_policy.propensity import (
    Calibration,
    Classifier,
    MultinomialLogistic,
    Regressor,
    calibrate,
    class_probabilities,
    ridge_coefficients,
    splits,
    standardisation,
    train_and_held_out,
    with_intercept,
)
from peira.evaluation.off_policy.terms import Terms

Row = Float[np.ndarray, " rows"]


def dm(q_target: Row) -> Terms:
    """Direct method: mean of q̂(x, π)."""
    return Terms.mean(q_target)


def ipw(ratio: Row, reward: Row, *, clip: float = np.inf) -> Terms:
    """Inverse propensity weighting: mean of min(w, clip)·r."""
    return Terms.mean(np.minimum(ratio, clip) * reward)


def snipw(ratio: Row, reward: Row) -> Terms:
    """Self-normalised IPW: Σ w r / Σ w; asymptotic variance E[w²(r − V)²]. Swaminathan and Joachims 2015.

    On `balanced_ratio` it is balanced IPW, on an embedding's ratio SN-MIPS.
    """
    return Terms(np.zeros_like(reward), (ratio * reward)[:, None], ratio[:, None])


def dr(ratio: Row, reward: Row, q_logged: Row, q_target: Row, *, clip: float = np.inf) -> Terms:
    """Doubly robust: mean of q̂(x, π) + min(w, clip)(r − q̂(x, a)). Dudík et al. 2014."""
    return Terms.mean(q_target + np.minimum(ratio, clip) * (reward - q_logged))


def sndr(ratio: Row, reward: Row, q_logged: Row, q_target: Row) -> Terms:
    """DR with the residual self-normalised: mean of q̂(x, π) + Σ w(r − q̂(x, a)) / Σ w."""
    return Terms(q_target, (ratio * (reward - q_logged))[:, None], ratio[:, None])


def switch_dr(ratio: Row, reward: Row, q_logged: Row, q_target: Row, *, threshold: float) -> Terms:
    """DR where w ≤ threshold, the reward model alone elsewhere; 0 gives DM, ∞ gives DR. Wang et al. 2017."""
    return dr(np.where(ratio <= threshold, ratio, 0.0), reward, q_logged, q_target)


def dros(ratio: Row, reward: Row, q_logged: Row, q_target: Row, *, shrinkage: float) -> Terms:
    """DR with optimistic shrinkage, ŵ = λw/(w² + λ), λ = `shrinkage` ≥ 0; 0 gives DM, ∞ gives DR. Su et al. 2020."""
    return dr(optimistic_ratio(ratio, shrinkage), reward, q_logged, q_target)


def sg_ipw(ratio: Row, reward: Row, *, strength: float) -> Terms:
    """IPW with the sub-Gaussian weights of `subgaussian_ratio`; strength 0 gives IPW. Metelli et al. 2021."""
    return ipw(subgaussian_ratio(ratio, strength), reward)


def sg_dr(ratio: Row, reward: Row, q_logged: Row, q_target: Row, *, strength: float) -> Terms:
    """DR with the sub-Gaussian weights of `subgaussian_ratio`; strength 0 gives DR. Metelli et al. 2021."""
    return dr(subgaussian_ratio(ratio, strength), reward, q_logged, q_target)


def optimistic_ratio(ratio: Row, shrinkage: float) -> Row:
    """ŵ = λw/(w² + λ) with λ = `shrinkage`; ValueError for λ < 0."""
    if not shrinkage >= 0:
        raise ValueError(f"expected a shrinkage of at least 0, got {shrinkage:g}")
    shrunk = np.zeros_like(ratio)
    some = ratio > 0
    with np.errstate(divide="ignore", over="ignore"):
        # The same after division by λw: finite at both ends, λ = 0 and λ = ∞.
        shrunk[some] = 1.0 / (ratio[some] / shrinkage + 1.0 / ratio[some])
    return shrunk


def subgaussian_ratio(ratio: Row, strength: float) -> Row:
    """ŵ = w/(1 − λ + λw) with λ = `strength`; 0 stays 0 at λ = 1. ValueError for λ outside [0, 1]."""
    if not 0 <= strength <= 1:
        raise ValueError(f"expected a strength in [0, 1], got {strength:g}")
    return np.divide(ratio, 1 - strength + strength * ratio, out=np.zeros_like(ratio), where=ratio > 0)


def replay(target_prob: Row, propensity: Row, reward: Row) -> Terms:
    """Mean reward of the rows whose action the deterministic target would have taken. Li et al. 2011.

    `target_prob` is π(a|x) of the logged action, 0 or 1; `propensity` is p(a|x), the same in all rows: with actions
    logged at random but not evenly, the rows that match are no random draw of the contexts. ValueError otherwise.
    """
    if not np.isin(target_prob, (0.0, 1.0)).all():
        raise ValueError("replay needs a deterministic candidate (probabilities 0 and 1); use snipw instead")
    if np.ptp(propensity) > 1e-9:
        raise ValueError(
            "replay needs uniform logging, got propensities of "
            f"{propensity.min():g} to {propensity.max():g}; use snipw instead"
        )
    return snipw(target_prob, reward)


def mrdr_weights(target_prob: Row, propensity: Row) -> Row:
    """π(a|x)(1 − p)/p² of the logged action: `fit_reward` with it minimises the variance of DR, not its own error.

    Exactly so for a deterministic target; for others it leaves out how the errors at different actions offset one
    another. Source: Farajtabar et al. 2018.
    """
    return target_prob * (1.0 - propensity) / propensity**2


def mixture_log_propensity(
    logger_log_prob: Float[np.ndarray, "rows loggers"], logger: Int[np.ndarray, " rows"]
) -> Row:
    """log Σ_k (n_k/n) π_k(a|x): the propensity of a row taken as drawn from the mixture of all loggers.

    `logger_log_prob` is log π_k(a_i|x_i) of every logger k for every logged action, whoever took it. Weights against
    this propensity ("balanced") never vary more than weights against the logger's own ("naive"). Agarwal et al. 2017.
    """
    share = np.bincount(logger, minlength=logger_log_prob.shape[1]) / len(logger)
    return special.logsumexp(logger_log_prob, axis=1, b=share)


def inverse_variance(terms: Terms, logger: Int[np.ndarray, " rows"]) -> Terms:
    """Strata of several loggers weighted by their precision: Σ_k (n_k/σ_k²) ȳ_k / Σ_k n_k/σ_k².

    `terms` is any mean of rows under each logger's own propensity; σ_k² is the variance of the whole of y in stratum
    k (in DR of q̂(x, π) too, and that part is weighted like the residual). Agarwal et al. 2017.

    Raises ValueError for a self-normalised estimator, a logger with one row, or a stratum that does not vary.
    """
    if terms.numerator.shape[1]:
        raise ValueError("expected an estimator that is a mean of rows, got a self-normalised one")
    names, stratum, count = np.unique(logger, return_inverse=True, return_counts=True)
    if (few := count < 2).any():
        raise ValueError(f"a variance needs 2 rows of every logger, got 1 of logger {names[few][0]}")
    mean = np.bincount(stratum, terms.plain) / count
    variance = np.bincount(stratum, (terms.plain - mean[stratum]) ** 2) / (count - 1)
    if (flat := variance <= 0).any():
        raise ValueError(
            f"the rows of logger {names[flat][0]} do not vary; their inverse variance is infinite"
        )
    precision = 1.0 / variance[stratum]
    return Terms(np.zeros_like(terms.plain), (terms.plain * precision)[:, None], precision[:, None])


def fit_reward(
    features: Float[np.ndarray, "rows features"],
    action: Int[np.ndarray, " rows"],
    reward: Row,
    actions: int,
    *,
    fold: Int[np.ndarray, " rows"] | None = None,
    weight: Row | None = None,
    regressor: Regressor | None = None,
    ridge: float = 1.0,
) -> Float[np.ndarray, "rows actions"]:
    """q̂(x, a) of every action at every row, cross-fitted by `fold`.

    By default one ridge regression an action on the standardised x with an intercept, after subtraction of the mean
    reward; the penalty falls on the intercept too, so that an action the training rows lack gets the mean reward, and
    one they hold m times gets it with weight ridge/(m + ridge). As ridge → 0 one-hot features give the means of the
    cells. A `regressor` instead learns one function of (x, one-hot a). `weight`: `mrdr_weights`, for example.
    """
    q = np.empty((len(action), actions))
    for train, held_out in train_and_held_out(fold, len(action)):
        of_train = None if weight is None else weight[train]
        if regressor is None:
            known = features[train], action[train], reward[train]
            q[held_out] = ridge_reward(*known, features[held_out], actions, ridge=ridge, weight=of_train)
            continue
        one_hot = np.eye(actions)
        keywords = {} if of_train is None else {"sample_weight": of_train}
        fitted = copy.deepcopy(regressor).fit(
            np.column_stack([features[train], one_hot[action[train]]]), reward[train], **keywords
        )
        asked = features[held_out]
        for a in range(actions):
            q[held_out, a] = fitted.predict(np.column_stack([asked, np.tile(one_hot[a], (len(asked), 1))]))
    return q


def ridge_reward(
    features: Float[np.ndarray, "rows features"],
    action: Int[np.ndarray, " rows"],
    reward: Row,
    asked: Float[np.ndarray, "asked features"],
    actions: int,
    *,
    ridge: float = 1.0,
    weight: Row | None = None,
) -> Float[np.ndarray, "asked actions"]:
    """The default model of `fit_reward`, trained on the first arrays and read at the features `asked`."""
    centre, scale = standardisation(features, weight)
    design, asked = with_intercept((features - centre) / scale), with_intercept((asked - centre) / scale)
    level = np.average(reward, weights=weight)
    ends = np.cumsum(np.bincount(action, minlength=actions))[:-1]
    coefficients = np.stack(
        [
            ridge_coefficients(
                design[rows], reward[rows] - level, ridge, None if weight is None else weight[rows]
            )
            for rows in np.split(np.argsort(action, kind="stable"), ends)
        ]
    )
    return level + asked @ coefficients.T


def balanced_ratio(
    features: Float[np.ndarray, "rows features"],
    action: Int[np.ndarray, " rows"],
    target_probs: Float[np.ndarray, "rows actions"],
    *,
    fold: Int[np.ndarray, " rows"] | None = None,
    classifier: Classifier | None = None,
    calibration: Calibration | None = None,
) -> Row:
    """w = ĉ/(1 − ĉ), ĉ(x, a) the probability that a pair was made by the target and not by the log.

    No propensity is needed. The classifier (logistic regression by default) separates the logged pairs from the pairs
    (x_i, a) of all actions weighted by π(a|x_i) (no actions are drawn), on the interactions of (1, x) with one-hot a.
    Memory is rows·actions²·features: meant for few actions. Estimate with `snipw`. Sondhi et al. 2020.
    """
    rows, actions = target_probs.shape
    pair_row = np.concatenate([np.arange(rows), np.repeat(np.arange(rows), actions)])
    pair_action = np.concatenate([action, np.tile(np.arange(actions), rows)])
    weight = np.concatenate([np.ones(rows), target_probs.ravel()])
    by_target = np.repeat([0, 1], [rows, rows * actions])
    some = weight > 0
    pair_row, pair_action, weight, by_target = (of[some] for of in (pair_row, pair_action, weight, by_target))
    basis = with_intercept(features)
    pairs = (basis[pair_row][:, :, None] * np.eye(actions)[pair_action][:, None, :]).reshape(
        len(pair_row), -1
    )

    ratio = np.empty(rows)
    for train, calibrating, held_out in splits(fold, rows, calibration):
        model = MultinomialLogistic(2) if classifier is None else copy.deepcopy(classifier)
        used = train[pair_row]
        model.fit(pairs[used], by_target[used], sample_weight=weight[used])
        # The logged pairs come first, one a row.
        probs = class_probabilities(model, pairs[:rows][held_out], 2)
        if calibration is not None:
            used = calibrating[pair_row]
            probs = calibrate(
                probs, class_probabilities(model, pairs[used], 2), by_target[used], calibration, weight[used]
            )
        if not (probs[:, 0] > 0).all():
            raise ValueError(
                "the classifier is certain that a logged pair was made by the target; calibrate it"
            )
        ratio[held_out] = probs[:, 1] / probs[:, 0]
    return ratio
