"""Importance weights of whole episodes and of their steps, in log space.

W_t = Π_{u ≤ t} π(a_u|s_u) / π_b(a_u|s_u). Products of probabilities are never formed by themselves: at some hundreds
of steps both are 0 and their ratio is not a number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

Padded = Float[np.ndarray, "episodes steps"]

MAX_LOG_WEIGHT = 300.0
"""Weights that are not normalised are held at e³⁰⁰: they, their sums and their squares stay finite."""


@dataclass(frozen=True)
class Block:
    """Episodes of similar length, padded to the longest: after an episode's end `reward` and `log_ratio` are 0.

    log_ratio = log π(a_t|s_t) − log π_b(a_t|s_t); −∞ where the target would never have acted so. Its sum over time is
    then carried forward after the end, which keeps E_b[W_t] = 1 for every t.
    """

    reward: Float[np.ndarray, "episodes steps"]
    log_ratio: Float[np.ndarray, "episodes steps"]
    length: Int[np.ndarray, " episodes"]

    @property
    def steps(self) -> int:
        """Steps of the longest episode."""
        return self.reward.shape[1]

    @property
    def alive(self) -> Bool[np.ndarray, "episodes steps"]:
        """Whether the episode has this step."""
        return np.arange(self.steps) < self.length[:, None]

    def discount(self, gamma: float) -> Float[np.ndarray, " steps"]:
        """γ^t: the first reward is not discounted."""
        return gamma ** np.arange(self.steps)


def cumulative_log_weights(block: Block) -> Padded:
    """log W_t = Σ_{u ≤ t} log_ratio_u."""
    return np.cumsum(block.log_ratio, axis=1)


def window_log_weights(block: Block, steps: int) -> Padded:
    """Σ of the last `steps` log ratios up to and with t (fewer at the start of an episode); −∞ where any of them is."""
    impossible = np.isneginf(block.log_ratio)
    # Sums over a window are differences of sums from the start, and −∞ − (−∞) is not a number.
    finite = _window_sum(np.where(impossible, 0.0, block.log_ratio), steps)
    return np.where(_window_sum(impossible.astype(np.int64), steps) > 0, -np.inf, finite)


def weights(log_weight: Float[np.ndarray, "episodes *steps"]) -> Float[np.ndarray, "episodes *steps"]:
    """W = exp(log_weight), held at exp(`MAX_LOG_WEIGHT`)."""
    return np.exp(np.minimum(log_weight, MAX_LOG_WEIGHT))


def shifted_weights(log_weight: Padded) -> tuple[Padded, Float[np.ndarray, " steps"]]:
    """(W_t / exp c_t, c_t) with c_t = max_i log W_it, for what is invariant to a factor common to all episodes.

    The greatest weight of each step becomes 1, so that no step can overflow, or vanish as a whole. c_t = −∞, and all
    weights 0, at a step where no episode has weight.
    """
    greatest = log_weight.max(axis=0)
    return np.exp(log_weight - np.where(np.isneginf(greatest), 0.0, greatest)), greatest


def previous_weights(weight: Padded) -> Padded:
    """W_{t−1}, with W_{−1} = 1."""
    return np.concatenate([np.ones((len(weight), 1)), weight[:, :-1]], axis=1)


def clamp_log_ratio(block: Block, low: float = -np.inf, high: float = np.inf) -> tuple[Block, float]:
    """The block with each log ratio held within [low, high], and the fraction of steps that this changed.

    Biased: importance weighting goes toward 0, doubly robust estimators toward their model. (−6, 2) is the choice of
    the DOPE benchmark (Fu et al. 2021). Raises ValueError unless low ≤ 0 ≤ high: equal policies must stay equal.
    """
    if not low <= 0 <= high:
        raise ValueError(f"expected limits on either side of 0, got [{low:g}, {high:g}]")
    clamped = np.clip(block.log_ratio, low, high)
    return replace(block, log_ratio=clamped), float((clamped != block.log_ratio).sum() / block.length.sum())


def clip_ratio(block: Block, greatest: float) -> tuple[Block, float]:
    """The block with each step's ratio π/π_b held at `greatest` ≥ 1, and the fraction of steps that this changed."""
    return clamp_log_ratio(block, high=float(np.log(greatest)))


def effective_sample_size(log_weight: Padded) -> Float[np.ndarray, " steps"]:
    """(Σ_i W_it)² / Σ_i W_it² for each step: how many unweighted episodes would be as good; 0 where there is no weight.

    Source: Kong 1992.
    """
    weight, _ = shifted_weights(log_weight)
    square = (weight**2).sum(axis=0)
    return np.divide(weight.sum(axis=0) ** 2, square, out=np.zeros_like(square), where=square > 0)


def _window_sum(columns: np.ndarray, steps: int) -> np.ndarray:
    if steps == 0:
        return np.zeros_like(columns)
    summed = np.cumsum(columns, axis=1)
    summed[:, steps:] -= summed[:, :-steps].copy()
    return summed
