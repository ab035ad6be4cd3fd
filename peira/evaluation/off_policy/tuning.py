"""Choice of an estimator's hyper-parameter from the same log: SLOPE and a surrogate of the mean squared error."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from peira.evaluation.off_policy.terms import Terms

SLOPE_CONSTANT = math.sqrt(6) - 1


def slope(value: Float[np.ndarray, " candidates"], half_width: Float[np.ndarray, " candidates"]) -> int:
    """Index of the candidate that SLOPE chooses: the least variance whose bias is not yet to be seen.

    Candidates are gone through by falling half-width; i is accepted while |θ_j − θ_i| ≤ cnf_i + (√6 − 1) cnf_j for all
    j accepted before, and the last one accepted is chosen. Assumes, and does not check, that the bias rises as the
    half-width falls.

    Source: Su et al. 2020, "Adaptive Estimator Selection for Off-Policy Evaluation"; the constant of Tucker and Lee
    2021.
    """
    order = np.argsort(-half_width, kind="stable")
    return int(order[accepted_in_order(value[order], half_width[order]) - 1])


def accepted_in_order(
    value: Float[np.ndarray, " candidates"], half_width: Float[np.ndarray, " candidates"]
) -> int:
    """How many candidates, in the order they come, are accepted before the first that is not (see `slope`)."""
    for i in range(1, len(value)):
        allowed = half_width[i] + SLOPE_CONSTANT * half_width[:i]
        if not (np.abs(value[:i] - value[i]) <= allowed).all():
            return i
    return len(value)


def half_width(terms: Terms, tail: float = 0.1) -> float:
    """t_{1 − tail, n − 1} · standard error: the half-width that `slope` compares; 0.1 as in Open Bandit Pipeline."""
    return float(special.stdtrit(len(terms.plain) - 1, 1 - tail) * terms.standard_error())


def mse_surrogate(
    sample: Float[np.ndarray, " rows"],
    ratio: Float[np.ndarray, " rows"],
    modified: Float[np.ndarray, " rows"],
    residual: Float[np.ndarray, " rows"],
    *,
    bias_tail: float | None = None,
) -> float:
    """Estimated mean squared error of an estimator that uses `modified` weights instead of the true `ratio`.

    var(y)/n + b², b = |mean((w − ŵ)(r − q̂))|; `sample` is y, `residual` is r − q̂(x, a) (the reward itself where there
    is no model). With `bias_tail` δ the bias is an upper bound, b + √(2 mean(w²) ln(2/δ)/n) + 2 max(w) ln(2/δ)/(3n),
    which assumes rewards in [0, 1].

    Source: Su et al. 2020, "Doubly Robust Off-Policy Evaluation with Shrinkage", section 5.
    """
    rows = len(sample)
    bias = abs(float(np.mean((ratio - modified) * residual)))
    if bias_tail is not None:
        log_tail = math.log(2 / bias_tail)
        bias += math.sqrt(2 * float(np.mean(ratio**2)) * log_tail / rows)
        bias += 2 * float(ratio.max()) * log_tail / (3 * rows)
    return float(sample.var(ddof=1)) / rows + bias**2
