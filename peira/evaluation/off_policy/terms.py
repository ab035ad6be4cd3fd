"""What an estimator gives: the contribution of each episode to means and to ratios of means.

One structure for all estimators, so that every interval can be formed by the same code, normalisers included, and an
estimate over a long log can be summed over blocks of episodes of similar length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Terms:
    """value = mean_i plain_i + Σ_m Σ_i numerator_im / Σ_i denominator_im over episodes i and ratios m, maybe none.

    The true columns of ratio m are the given ones times exp(log_scale_m): weights may be as large or as small as they
    like, as long as those of one column are stored relative to its greatest. `log_scale` is 0 if left out.

    Where a block of episodes has fewer columns than another (its episodes are shorter), its further numerators are 0
    and its further denominators are those of its last column: a normaliser counts an episode that has ended with the
    weight that it had at its end.
    """

    plain: Float[np.ndarray, " episodes"]
    numerator: Float[np.ndarray, "episodes ratios"]
    denominator: Float[np.ndarray, "episodes ratios"]
    log_scale: Float[np.ndarray, " ratios"] | None = None

    def __post_init__(self) -> None:
        if self.log_scale is None:
            object.__setattr__(self, "log_scale", np.zeros(self.numerator.shape[1]))

    @classmethod
    def mean(cls, sample: Float[np.ndarray, " episodes"]) -> Terms:
        """An estimator that is the mean of one number an episode."""
        return cls(sample, np.zeros((len(sample), 0)), np.zeros((len(sample), 0)))

    def value(self) -> float:
        """The estimate; NaN where no episode has weight in a normaliser."""
        return Sums.of(self).value()

    def influence(self) -> Float[np.ndarray, " episodes"]:
        """φ_i = plain_i − mean plain + Σ_m (numerator_im − θ_m denominator_im) / mean denominator_m; its mean is 0."""
        return _influence(self, Sums.of(self))

    def standard_error(self) -> float:
        """std(φ, ddof = 1) / √episodes; NaN for a single episode."""
        return _standard_error(self.influence())

    def factor(self, log_scale: Float[np.ndarray, " all_ratios"]) -> Float[np.ndarray, " all_ratios"]:
        """What takes each column, then the last column repeated, to the common scale of several blocks."""
        return _factor(self.log_scale, log_scale)


@dataclass(frozen=True)
class Sums:
    """Sums of `Terms` over episodes; those of several blocks are added with +."""

    episodes: int
    plain: float
    numerator: Float[np.ndarray, " ratios"]
    denominator: Float[np.ndarray, " ratios"]
    log_scale: Float[np.ndarray, " ratios"]

    @classmethod
    def of(cls, terms: Terms) -> Sums:
        """Sums over one block."""
        numerator, denominator = terms.numerator.sum(axis=0), terms.denominator.sum(axis=0)
        return cls(len(terms.plain), float(terms.plain.sum()), numerator, denominator, terms.log_scale)

    def __add__(self, other: Sums) -> Sums:
        ratios = max(len(self.numerator), len(other.numerator))
        mine, others = _carried(self.log_scale, ratios), _carried(other.log_scale, ratios)
        log_scale = np.maximum(mine, others)
        numerator, denominator = np.zeros(ratios), np.zeros(ratios)
        for sums in (self, other):
            factor = _factor(sums.log_scale, log_scale)
            width = len(sums.numerator)
            numerator[:width] += sums.numerator * factor[:width]
            denominator += _carried(sums.denominator, ratios) * factor
        return Sums(
            self.episodes + other.episodes, self.plain + other.plain, numerator, denominator, log_scale
        )

    def ratios(self) -> Float[np.ndarray, " ratios"]:
        """θ_m; NaN where no episode has weight."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.numerator / self.denominator

    def value(self) -> float:
        """The estimate; NaN where no episode has weight in a normaliser."""
        return float(self.plain / self.episodes + self.ratios().sum())


class Total(NamedTuple):
    """An estimate over all blocks, its standard error and the influence of every episode in the order of the blocks."""

    value: float
    standard_error: float
    influence: Float[np.ndarray, " episodes"]


def total(blocks: Sequence[Terms] | Callable[[], Iterable[Terms]]) -> Total:
    """The estimate over several blocks of episodes, as if they were one; the blocks are gone through twice.

    `blocks`: the terms of each block, or what yields them anew when called, so that only one is held at a time.
    Raises ValueError where there is none.
    """
    again = blocks if callable(blocks) else lambda: blocks
    sums = add(again())
    influence = np.concatenate([_influence(terms, sums) for terms in again()])
    return Total(sums.value(), _standard_error(influence), influence)


def add(blocks: Iterable[Terms]) -> Sums:
    """Sums over several blocks of episodes. Raises ValueError where there is none."""
    sums = None
    for terms in blocks:
        of_block = Sums.of(terms)
        sums = of_block if sums is None else sums + of_block
    if sums is None:
        raise ValueError("expected at least one block of episodes, got none")
    return sums


def _influence(terms: Terms, sums: Sums) -> np.ndarray:
    influence = terms.plain - sums.plain / sums.episodes
    if not len(sums.numerator):
        return influence
    ratios, factor, width = sums.ratios(), terms.factor(sums.log_scale), terms.numerator.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        per_unit = factor * (sums.episodes / sums.denominator)
        influence = influence + (terms.numerator - ratios[:width] * terms.denominator) @ per_unit[:width]
        return influence - terms.denominator[:, -1] * (ratios * per_unit)[width:].sum()


def _standard_error(influence: np.ndarray) -> float:
    return float(influence.std(ddof=1) / np.sqrt(len(influence))) if len(influence) > 1 else float("nan")


def _factor(log_scale: np.ndarray, common: np.ndarray) -> np.ndarray:
    # A column without any weight has log scale −∞.
    difference = _carried(log_scale, len(common)) - np.where(np.isneginf(common), 0.0, common)
    return np.exp(difference)


def _carried(columns: np.ndarray, ratios: int) -> np.ndarray:
    return (
        columns
        if len(columns) == ratios
        else np.append(columns, np.repeat(columns[-1:], ratios - len(columns)))
    )
