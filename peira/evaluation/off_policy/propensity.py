"""Which probability did the policy that chose have? Estimated from the log where it was not written down.

Every fit is cross-fitted by `fold`: what is said about a row comes from a model that never saw its fold, and folds
hold whole episodes. `fold=None` fits and predicts on the same rows, which is legitimate for propensities of the log
itself (ratios with estimated propensities often vary less than with the true ones) and must then be said.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special, stats

Calibration = Literal["isotonic", "platt"]
Rows = Bool[np.ndarray, " rows"]


@runtime_checkable
class Classifier(Protocol):
    """What scikit-learn calls a classifier; columns of `predict_proba` follow `classes_`, which the fit sets."""

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Classifier: ...

    def predict_proba(self, X: np.ndarray) -> np.ndarray: ...


@runtime_checkable
class Regressor(Protocol):
    """What scikit-learn calls a regressor."""

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> Regressor: ...

    def predict(self, X: np.ndarray) -> np.ndarray: ...


class MultinomialLogistic:
    """P(class | x) = softmax(b + Bᵀz) with z the standardised x, by L-BFGS.

    Minimises −Σ_i u_i log P(y_i | x_i) + (ridge/2)‖B‖² − Σ_c log softmax(b)_c / classes. The last term is one
    observation at the mean of x, divided evenly over the classes: with no features P(c) = (n_c + 1/classes)/(n + 1), so
    that a class which the training rows lack keeps a probability above 0 and a rare one is hardly moved, which a
    penalty on b would do.
    """

    def __init__(self, classes: int, ridge: float = 1.0) -> None:
        self.classes_ = np.arange(classes)
        self.ridge = ridge

    def fit(
        self,
        X: Float[np.ndarray, "rows features"],
        y: Int[np.ndarray, " rows"],
        sample_weight: Float[np.ndarray, " rows"] | None = None,
    ) -> MultinomialLogistic:
        """Fit on classes numbered 0, 1, …; raises RuntimeError if the minimum was not reached."""
        classes, features = len(self.classes_), X.shape[1]
        weight = np.ones(len(y)) if sample_weight is None else sample_weight
        self.centre, self.scale = standardisation(X, weight)
        # The even observation sits at the mean of x, where the logits are b.
        design = np.vstack([self._design(X), np.eye(1, features + 1)])
        target = np.zeros((len(y) + 1, classes))
        target[np.arange(len(y)), y] = weight
        target[-1] = 1.0 / classes
        mass = target.sum(1, keepdims=True)
        total = mass.sum()

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            theta = flat.reshape(features + 1, classes)
            logits = design @ theta
            log_probs = logits - special.logsumexp(logits, axis=1, keepdims=True)
            gradient = design.T @ (mass * np.exp(log_probs) - target)
            gradient[1:] += self.ridge * theta[1:]
            value = -(target * log_probs).sum() + 0.5 * self.ridge * (theta[1:] ** 2).sum()
            return value / total, gradient.ravel() / total

        found = optimize.minimize(
            loss,
            np.zeros((features + 1) * classes),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 5_000, "maxfun": 10_000, "ftol": 0.0, "gtol": 1e-10, "maxcor": 20},
        )
        # A line search that can no longer lower the loss has arrived as well, to the precision of the loss.
        if np.abs(found.jac).max() > 1e-5:
            raise RuntimeError(
                f"the logistic regression did not converge ({found.message}); scale the features or raise `ridge`"
            )
        self.theta = found.x.reshape(features + 1, classes)
        return self

    def predict_proba(self, X: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, "rows classes"]:
        """Probabilities of the classes 0, 1, …"""
        return special.softmax(self._design(X) @ self.theta, axis=1)

    def _design(self, X: np.ndarray) -> np.ndarray:
        return with_intercept((X - self.centre) / self.scale)


class GaussianPropensity(NamedTuple):
    """A Gaussian behaviour policy with independent dimensions, and the log density of the logged actions."""

    mean: Float[np.ndarray, "rows dims"]
    std: Float[np.ndarray, "rows dims"]
    log_density: Float[np.ndarray, " rows"]


class CalibrationReport(NamedTuple):
    """How far predicted probabilities can be taken at their word.

    expected_calibration_error   Σ_bins (share of the pairs in the bin)·|mean predicted − frequency|
    log_loss                     −mean log p(a_i | x_i); ∞ if an action that was taken had probability 0
    The rest is the reliability table, one entry a bin that is not empty: its edges, the number of pairs in it, their
    mean predicted probability and how often the action was the one taken.
    """

    expected_calibration_error: float
    log_loss: float
    low: Float[np.ndarray, " bins"]
    high: Float[np.ndarray, " bins"]
    count: Int[np.ndarray, " bins"]
    predicted: Float[np.ndarray, " bins"]
    observed: Float[np.ndarray, " bins"]


def fit_propensity(
    features: Float[np.ndarray, "rows features"],
    action: Int[np.ndarray, " rows"],
    actions: int,
    *,
    fold: Int[np.ndarray, " rows"] | None = None,
    classifier: Classifier | None = None,
    calibration: Calibration | None = None,
    action_set: Bool[np.ndarray, "rows actions"] | None = None,
) -> Float[np.ndarray, "rows actions"]:
    """π̂_b(a|x) of every action at every row, by `classifier` (multinomial logistic regression by default).

    With `calibration` the next fold is held out of the training as well and the probabilities are calibrated on it, so
    that three folds are the least. Probabilities outside `action_set` are set to 0 and the others divided by their sum.

    Raises ValueError where an action is outside of 0 … actions − 1 or of its set, where folds do not suffice, and
    where an action that was taken would get probability 0 (a classifier that never met it in the other folds).
    """
    _check_actions(action, actions)
    rows = np.arange(len(action))
    if action_set is not None and not action_set[rows, action].all():
        row = int(np.argmin(action_set[rows, action]))
        raise ValueError(f"expected actions out of their action sets, got action {action[row]} in row {row}")
    probs = np.empty((len(action), actions))
    for train, calibrating, predicted in splits(fold, len(action), calibration):
        model = MultinomialLogistic(actions) if classifier is None else copy.deepcopy(classifier)
        model.fit(features[train], action[train])
        probs[predicted] = class_probabilities(model, features[predicted], actions)
        if calibration is not None:
            held_out = class_probabilities(model, features[calibrating], actions)
            probs[predicted] = calibrate(probs[predicted], held_out, action[calibrating], calibration)
    if not (probs[rows, action] > 0).all():
        row = int(np.argmin(probs[rows, action]))
        raise ValueError(
            f"action {action[row]} in row {row} got probability 0: the other folds do not hold it; use fewer folds or "
            "a classifier that gives every action a probability"
        )
    if action_set is not None:
        probs = np.where(action_set, probs, 0.0)
        probs /= probs.sum(1, keepdims=True)
    return probs


def fit_gaussian_propensity(
    features: Float[np.ndarray, "rows features"],
    action: Float[np.ndarray, "rows dims"],
    *,
    fold: Int[np.ndarray, " rows"] | None = None,
    regressor: Regressor | None = None,
    ridge: float = 1.0,
) -> GaussianPropensity:
    """π̂_b(a|x) = Π_d N(a_d; μ_d(x), σ_d²), each μ_d by a `regressor` (ridge on the standardised x by default).

    σ_d is the root mean square of the residuals a_d − μ_d(x) that the *other* folds left when they were held out
    themselves: residuals of training rows would be too small. `log_density` is the joint density of the recorded
    action, so that actions which were clipped after sampling need their unclipped values.

    Raises ValueError where a dimension has no spread around its mean: such a policy has no density.
    """
    mean, std = np.empty_like(action), np.empty_like(action)
    for train, held_out in train_and_held_out(fold, len(action)):
        if regressor is None:
            # Centred, so that the penalty falls on slopes only.
            centre, scale = standardisation(features[train])
            level = action[train].mean(0)
            slopes = ridge_coefficients((features[train] - centre) / scale, action[train] - level, ridge)
            mean[held_out] = level + (features[held_out] - centre) / scale @ slopes
            continue
        for dim in range(action.shape[1]):
            fitted = copy.deepcopy(regressor).fit(features[train], action[train, dim])
            mean[held_out, dim] = fitted.predict(features[held_out])
    for train, held_out in train_and_held_out(fold, len(action)):
        std[held_out] = np.sqrt(np.mean((action[train] - mean[train]) ** 2, axis=0))
    # Rounding of the mean must not make a density of a deterministic policy.
    if flat := np.flatnonzero((std <= 1e-9 * np.abs(action).max(0)).any(0)).tolist():
        raise ValueError(
            f"the logged actions are a function of the features in dimension {flat[0]} (no spread): a deterministic "
            "policy has no density; importance weights cannot be formed"
        )
    return GaussianPropensity(mean, std, stats.norm.logpdf(action, mean, std).sum(1))


def calibrate(
    probs: Float[np.ndarray, "rows actions"],
    held_out_probs: Float[np.ndarray, "held_out actions"],
    held_out_action: Int[np.ndarray, " held_out"],
    method: Calibration,
    held_out_weight: Float[np.ndarray, " held_out"] | None = None,
) -> Float[np.ndarray, "rows actions"]:
    """Probabilities mapped, action by action against the rest, to the frequencies of held-out rows; rows sum to 1.

    "isotonic" is the rising step function of least squares, interpolated between the held-out probabilities and kept
    inside [1/(m+2), 1 − 1/(m+2)] for m held-out rows, because a frequency of 0 is no evidence for a propensity of 0.
    "platt" is σ(α·logit p + β) fitted to the targets (n₊+1)/(n₊+2) and 1/(n₋+2).

    Source: Zadrozny and Elkan 2002 (isotonic, one against the rest); Platt 1999.
    """
    weight = np.ones(len(held_out_action)) if held_out_weight is None else held_out_weight
    of_one = _isotonic if method == "isotonic" else _platt
    calibrated = np.empty_like(probs)
    for action in range(probs.shape[1]):
        taken = held_out_action == action
        calibrated[:, action] = of_one(probs[:, action], held_out_probs[:, action], taken, weight)
    return calibrated / calibrated.sum(1, keepdims=True)


def calibration_report(
    probs: Float[np.ndarray, "rows actions"], action: Int[np.ndarray, " rows"], bins: int = 10
) -> CalibrationReport:
    """Reliability of predicted probabilities over all pairs of a row and an action, in `bins` of equal width.

    All pairs, not only the likeliest action of each row: a weight divides by the probability of whatever was taken.
    A probability on an edge belongs to the upper bin, 1 to the last.
    """
    _check_actions(action, probs.shape[1])
    taken = np.zeros(probs.shape)
    taken[np.arange(len(action)), action] = 1.0
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, probs.ravel(), side="right") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    size = count[filled]
    predicted = np.bincount(index, probs.ravel(), minlength=bins)[filled] / size
    observed = np.bincount(index, taken.ravel(), minlength=bins)[filled] / size
    with np.errstate(divide="ignore"):
        log_loss = -np.log(probs[np.arange(len(action)), action]).mean()
    return CalibrationReport(
        float(np.average(np.abs(predicted - observed), weights=size)),
        float(log_loss),
        edges[:-1][filled],
        edges[1:][filled],
        size,
        predicted,
        observed,
    )


def class_probabilities(
    model: Classifier, features: Float[np.ndarray, "rows features"], classes: int
) -> Float[np.ndarray, "rows classes"]:
    """Predicted probabilities of the classes 0, 1, …; 0 for those the model was never trained on."""
    probs = np.zeros((len(features), classes))
    probs[:, np.asarray(model.classes_, dtype=int)] = model.predict_proba(features)
    return probs


def train_and_held_out(fold: Int[np.ndarray, " rows"] | None, rows: int) -> Iterator[tuple[Rows, Rows]]:
    """For each fold the rows to train on (all others) and the rows to predict; all rows twice without folds.

    Raises ValueError for a single fold: nothing would be left to train on.
    """
    if fold is None:
        yield np.ones(rows, dtype=bool), np.ones(rows, dtype=bool)
        return
    names = np.unique(fold)
    if len(names) < 2:
        raise ValueError(f"cross-fitting needs at least 2 folds, got {len(names)}")
    for name in names:
        yield fold != name, fold == name


def splits(
    fold: Int[np.ndarray, " rows"] | None, rows: int, calibration: Calibration | None
) -> Iterator[tuple[Rows, Rows, Rows]]:
    """For each fold the rows to train on, to calibrate on (those of the next fold) and to predict.

    Raises ValueError for fewer than three folds where there is something to calibrate.
    """
    if calibration is None:
        for train, held_out in train_and_held_out(fold, rows):
            yield train, held_out, held_out
        return
    names = np.unique(fold) if fold is not None else np.zeros(0)
    if len(names) < 3:
        raise ValueError(
            f"calibration needs at least 3 folds (to train on, to calibrate on, to predict), got {len(names)}"
        )
    for name, following in zip(names, np.roll(names, -1), strict=True):
        yield (fold != name) & (fold != following), fold == following, fold == name


def standardisation(
    features: Float[np.ndarray, "rows features"], weight: Float[np.ndarray, " rows"] | None = None
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]:
    """Mean and deviation of each feature; 1 for the deviation of one that does not vary."""
    weight = np.ones(len(features)) if weight is None else weight
    mean = np.average(features, axis=0, weights=weight)
    deviation = np.sqrt(np.average((features - mean) ** 2, axis=0, weights=weight))
    # The mean of equal numbers is rounded and need not be equal to them.
    return mean, np.where(deviation > 1e-12 * np.abs(features).max(0), deviation, 1.0)


def ridge_coefficients(
    design: Float[np.ndarray, "rows columns"],
    target: Float[np.ndarray, "rows *targets"],
    ridge: float,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> Float[np.ndarray, "columns *targets"]:
    """β = (XᵀUX + ridge·I)⁻¹ XᵀUy."""
    weighted = design if weight is None else design * weight[:, None]
    return np.linalg.solve(weighted.T @ design + ridge * np.eye(design.shape[1]), weighted.T @ target)


def with_intercept(features: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, "rows columns"]:
    """A column of ones, then the features."""
    return np.column_stack([np.ones(len(features)), features])


def _isotonic(
    probs: np.ndarray, held_out_probs: np.ndarray, taken: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    # Equal probabilities are one point: a step inside of them would depend on the order of the rows.
    position, index = np.unique(held_out_probs, return_inverse=True)
    mass = np.bincount(index, weight)
    step = optimize.isotonic_regression(np.bincount(index, weight * taken) / mass, weights=mass).x
    least = 1.0 / (weight.sum() + 2)
    return np.clip(np.interp(probs, position, step), least, 1.0 - least)


def _platt(
    probs: np.ndarray, held_out_probs: np.ndarray, taken: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    def log_odds(of: np.ndarray) -> np.ndarray:
        return special.logit(np.clip(of, 1e-15, 1 - 1e-15))[:, None]

    positive = (weight * taken).sum()
    target = np.where(taken, (positive + 1) / (positive + 2), 1 / (weight.sum() - positive + 2))
    model = MultinomialLogistic(2, ridge=0.0).fit(
        np.vstack([log_odds(held_out_probs)] * 2),
        np.repeat([1, 0], len(taken)),
        np.concatenate([weight * target, weight * (1 - target)]),
    )
    return model.predict_proba(log_odds(probs))[:, 1]


def _check_actions(action: np.ndarray, actions: int) -> None:
    if len(action) and not (action.min() >= 0 and action.max() < actions):
        raise ValueError(f"expected actions of 0 … {actions - 1}, got {action.min()} … {action.max()}")
