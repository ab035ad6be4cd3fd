"""MAGIC: importance weighting for the first steps and a value model for the rest, blended by estimated error.

g^(j) weights the steps 0 … j and takes the model from there: g^(−1) is DM, g^(steps − 1) is WDR. With WDR's ratios
θ_t = γ^t Σ_i W_it (r_it − Q̂_it + γ V̂_{i,t+1}) / Σ_i W_it,  g^(j) = mean V̂(s_0) + Σ_{t ≤ j} θ_t, and a blend
Σ_j x_j g^(j) is WDR with θ_t counted Σ_{j ≥ t} x_j times.

Where this departs from the paper: its Ω, the covariance of the members, is that of what each episode contributes to
their sums, n/(n − 1) Σ_i (g_i^(j) − ḡ^(j)) (g_i^(k) − ḡ^(k)) with g^(j) = Σ_i g_i^(j). That is the variance of a sum
whose weights are given; a member divides by weights of the same episodes. Where a model is wrong, contributions vary
with the weights around its bias and the ratios θ_t do not. Ω is therefore made of influences (delta method), as every
standard error of `Terms`. In the paper's ModelFail with 1 000 episodes (``results/sharpe/r5_magic.md``) the paper's
Ω takes the error of WDR for 0.29, influences for 0.054, and it is 0.056; the RMSE of the blend is 2.08 times that of
WDR with the one and 1.07 times with the other. The price: where a few episodes carry all the weight, influences are too
small; in ModelWin the RMSE is up to 1.3 times that of DM, 1.2 times with the paper's Ω.

Source: Thomas and Brunskill 2016, "Data-Efficient Off-Policy Policy Evaluation for Reinforcement Learning".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize

from peira.evaluation.off_policy.terms import Terms

REPLICATES = 200
"""Bootstrap replicates of WDR for the interval that says how biased a blend's member is (κ of the paper)."""

MOST_LENGTHS = 25
"""Members of a blend if the caller names none."""


@dataclass(frozen=True)
class Magic:
    """The blend as `Terms` with its shares held fixed, and its members: weighted up to step `last_step` (−1: none)."""

    terms: Terms
    last_step: Int[np.ndarray, " members"]
    share: Float[np.ndarray, " members"]
    member: Float[np.ndarray, " members"]


def magic(
    wdr: Terms,
    *,
    rng: np.random.Generator,
    last_step: Int[np.ndarray, " members"] | None = None,
    replicates: int = REPLICATES,
    ordered: bool = False,
) -> Magic:
    """Σ_j x_j g^(j) with x = argmin xᵀ(Ω + b bᵀ)x over shares x ≥ 0, Σ x = 1.

    Ω_jk = Σ_i φ_i^(j) φ_i^(k) / (n (n − 1)) over the episodes' influences on the members, φ^(j) = plain − mean plain +
    Σ_{t ≤ j} (numerator_t − θ_t denominator_t) / mean denominator_t; b_j is how far g^(j) lies outside the interval
    between the 5 % and 95 % quantiles of bootstrapped WDR, widened to hold WDR itself.
    `wdr` is what `sequential.wdr` gives (of all episodes: it is kept in memory); `last_step` the members, in rising
    order, both ends included (up to 25 evenly spaced ones if left out). A bias within that interval is not seen: with a
    model that is wrong in every step and few episodes the blend can be worse than WDR.

    Raises ValueError with fewer than 2 episodes, for members out of order or without an end, and where no episode has
    weight at some step.
    """
    episodes, steps = wdr.numerator.shape
    if episodes < 2:
        raise ValueError(f"MAGIC needs at least 2 episodes to see how they vary, got {episodes}")
    if last_step is None:
        last_step = np.unique(np.rint(np.linspace(-1, steps - 1, min(steps + 1, MOST_LENGTHS))).astype(int))
    if last_step[0] != -1 or last_step[-1] != steps - 1 or (np.diff(last_step) <= 0).any():
        raise ValueError(f"expected members that rise from -1 to {steps - 1}, got {last_step.tolist()}")

    normaliser = wdr.denominator.mean(axis=0)
    if (empty := normaliser <= 0).any():
        raise ValueError(
            f"no episode has weight at step {empty.argmax()}, where WDR has no value; use dr instead"
        )
    theta = wdr.numerator.mean(axis=0) / normaliser
    member = (wdr.plain.mean() + np.append(0.0, theta.cumsum()))[last_step + 1]
    influence = np.empty((episodes, steps + 1))
    influence[:, 0] = wdr.plain - wdr.plain.mean()
    influence[:, 1:] = (wdr.numerator - theta * wdr.denominator) / normaliser
    influence = influence.cumsum(axis=1)[:, last_step + 1]
    covariance = influence.T @ influence / (episodes * (episodes - 1))
    bias = _outside(member, _bootstrapped(wdr, rng, replicates, ordered))

    share = simplex_minimum(covariance + np.outer(bias, bias))
    # θ_t is in the members j ≥ t.
    counted = np.append(share[::-1].cumsum()[::-1], 0.0)[np.searchsorted(last_step, np.arange(steps))]
    return Magic(replace(wdr, numerator=wdr.numerator * counted), last_step, share, member)


def simplex_minimum(matrix: Float[np.ndarray, "members members"]) -> Float[np.ndarray, " members"]:
    """argmin xᵀ matrix x over x ≥ 0, Σ x = 1, for a positive semi-definite matrix; exact, by an active set.

    The minimum of xᵀAx + m(Σ x − 1)² over x ≥ 0 has the same direction for every m > 0: given the direction the best
    scale depends on xᵀAx alone. That problem is non-negative least squares (Lawson and Hanson 1974).
    """
    eigenvalue, eigenvector = np.linalg.eigh(matrix)
    size = float(eigenvalue[-1])
    if size <= 0:
        return np.append(np.zeros(len(matrix) - 1), 1.0)
    root = np.sqrt(np.maximum(eigenvalue, 0.0) / size)[:, None] * eigenvector.T
    x, _ = optimize.nnls(np.vstack([root, np.ones(len(matrix))]), np.append(np.zeros(len(matrix)), 1.0))
    return x / x.sum()


def _bootstrapped(wdr: Terms, rng: np.random.Generator, replicates: int, ordered: bool) -> np.ndarray:
    """Values of the replicates in which every normaliser has weight."""
    episodes = len(wdr.plain)
    drawn = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=replicates)
    # Drawn by rank of influence, so that the result does not depend on the order of the episodes.
    count = np.empty((replicates, episodes))
    count[:, np.arange(episodes) if ordered else np.argsort(wdr.influence(), kind="stable")] = drawn
    numerator, denominator = count @ wdr.numerator, count @ wdr.denominator
    defined = (denominator > 0).all(axis=1)
    return count[defined] @ wdr.plain / episodes + (numerator[defined] / denominator[defined]).sum(axis=1)


def _outside(member: np.ndarray, replicate: np.ndarray) -> np.ndarray:
    low, high = np.quantile(replicate, [0.05, 0.95])
    low, high = min(low, member[-1]), max(high, member[-1])
    return np.maximum(low - member, 0.0) + np.maximum(member - high, 0.0)
