"""The distribution of returns under the target, from weighted returns of the log: variance, quantiles, CVaR.

F(m) = P_π(Σ_t γ^t r_t ≤ m), estimated at the returns that occurred and not on a grid. Every function takes `count`, how
often each episode occurs in each of several replicates (real numbers ≥ 0, for example of a bootstrap), and then gives
all replicates at once. Source: Huang et al. 2021 and Chandak et al. 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from peira.evaluation.off_policy.weights import shifted_weights, weights

Episode = Float[np.ndarray, " episodes"]
Count = Float[np.ndarray, "*replicates episodes"]
Conditional = Float[np.ndarray, "episodes support"]
Functional = Float[np.ndarray, "*replicates"] | float

ROUNDING = 1e-12
"""How far sums of masses round, and (relative to the greatest) returns."""


@dataclass(frozen=True)
class ReturnDistribution:
    """Masses ≥ 0 at rising returns, and how much they lack to 1.

    `missing` below 0 says that weights summed to more than the episodes and that the mass above 1 was cut off the
    greatest returns. Where mass is missing `mean` and `variance` count it as returns of 0, and levels that are not
    reached have no quantile and no CVaR (NaN).
    """

    atom: Float[np.ndarray, " atoms"]
    mass: Float[np.ndarray, "*replicates atoms"]
    missing: Functional

    def cdf(self) -> Float[np.ndarray, "*replicates atoms"]:
        """F at every atom."""
        return np.cumsum(self.mass, axis=-1)

    def mean(self) -> Functional:
        """Σ_k m_k G_k."""
        return self.mass @ self.atom

    def variance(self) -> Functional:
        """Σ_k m_k G_k² − mean²."""
        mean = self.mean()
        missing = 1 - self.mass.sum(axis=-1)
        return (self.mass * (self.atom - np.expand_dims(mean, -1)) ** 2).sum(axis=-1) + missing * mean**2

    def quantile(self, level: float) -> Functional:
        """min{G_k : F(G_k) ≥ level}."""
        reached = self.cdf() >= _checked(level) - ROUNDING
        return np.where(reached[..., -1], self.atom[reached.argmax(axis=-1)], np.nan)[()]

    def cvar(self, level: float) -> Functional:
        """Mean of the worst `level` of returns: (Σ_{G < q} m G + (level − F(q−)) q)/level, q the quantile.

        The atom at the quantile counts with the part of its mass that is needed.
        """
        cdf = self.cdf()
        used = np.diff(np.minimum(cdf, _checked(level)), axis=-1, prepend=0.0)
        return np.where(cdf[..., -1] >= level - ROUNDING, used @ self.atom / level, np.nan)[()]


def tis_distribution(returns: Episode, log_weight: Episode, count: Count | None = None) -> ReturnDistribution:
    """F̂(m) = min(1, (1/n) Σ_i W_i 1{G_i ≤ m}), W_i the weight of the whole episode (its logarithm is given).

    Unbiased below the cut at 1.
    """
    return _from_signed(returns, _per_episode(weights(log_weight), count))


def sntis_distribution(
    returns: Episode, log_weight: Episode, count: Count | None = None
) -> ReturnDistribution:
    """F̂(m) = Σ_i W_i 1{G_i ≤ m} / Σ_i W_i: ends at 1. NaN throughout where no episode has weight."""
    weight, _ = shifted_weights(log_weight[:, None])
    mass = weight[:, 0] if count is None else count * weight[:, 0]
    with np.errstate(invalid="ignore"):
        return _from_signed(returns, mass / mass.sum(axis=-1, keepdims=True))


def dm_distribution(
    support: Float[np.ndarray, " support"], target: Conditional, count: Count | None = None
) -> ReturnDistribution:
    """Mean over episodes of a model of the return's distribution at the first state, on a common support.

    `target` [episodes, support] holds Σ_a π(a|s_0) P̂(G = z | s_0, a). A model of the expected return is none of these:
    the distribution of V̂(s_0) has far too little variance.
    """
    return _from_signed(support, _mean_over_episodes(target, count))


def tdr_distribution(
    returns: Episode,
    log_weight: Episode,
    support: Float[np.ndarray, " support"],
    taken: Conditional,
    target: Conditional,
    count: Count | None = None,
) -> ReturnDistribution:
    """Doubly robust: F̂(m) = (1/n) Σ_i [W_i (1{G_i ≤ m} − Ĝ(m; s_0, a_0)) + Σ_a π(a|s_0) Ĝ(m; s_0, a)].

    `taken` holds the masses of Ĝ at the logged first action, `target` those under the target's first action, on a
    common support. Unbiased with true weights, whatever Ĝ, before it is made a distribution function: the greatest
    value so far, held within [0, 1].
    """
    weight = weights(log_weight)
    of_model = _mean_over_episodes(target - weight[:, None] * taken, count)
    atoms = np.concatenate([returns, support])
    return _from_signed(atoms, np.concatenate([_per_episode(weight, count), of_model], axis=-1))


def _per_episode(weight: np.ndarray, count: np.ndarray | None) -> np.ndarray:
    return weight / len(weight) if count is None else count * weight / count.sum(axis=-1, keepdims=True)


def _mean_over_episodes(masses: np.ndarray, count: np.ndarray | None) -> np.ndarray:
    return masses.mean(axis=0) if count is None else count @ masses / count.sum(axis=-1, keepdims=True)


def _from_signed(value: np.ndarray, mass: np.ndarray) -> ReturnDistribution:
    """The distribution that the running maximum of the cumulated masses, held within [0, 1], belongs to."""
    order = np.argsort(value, kind="stable")
    # Returns that only rounding keeps apart are one atom: the running maximum would hold what stands between them.
    apart = np.diff(value[order]) > ROUNDING * np.abs(value).max()
    first = np.flatnonzero(np.append(True, apart))
    atom = value[order][first]
    cumulated = np.cumsum(np.add.reduceat(mass[..., order], first, axis=-1), axis=-1)
    monotone = np.clip(np.maximum.accumulate(cumulated, axis=-1), 0.0, 1.0)
    return ReturnDistribution(atom, np.diff(monotone, axis=-1, prepend=0.0), 1 - cumulated[..., -1])


def _checked(level: float) -> float:
    if not 0 < level <= 1:
        raise ValueError(f"expected a level in (0, 1], got {level:g}")
    return level
