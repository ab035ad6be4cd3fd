"""Choosing among logits with randomness that follows from a seed and a count, whatever is computed beside it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def chances(seed: Int[np.ndarray, " rows"], count: Int[np.ndarray, " rows"]) -> Float[Tensor, " rows"]:
    """A number in (0, 1) for each row: SplitMix64 (Steele, Lea and Flood 2014) as a hash of (seed, count), 24 bits."""
    with np.errstate(over="ignore"):
        bits = seed.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
        bits = bits + (count.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = bits ^ (bits >> np.uint64(31))
    return torch.from_numpy(((bits >> np.uint64(40)).astype(np.float64) + 0.5) / 2**24).float()


def choose(
    logits: Float[Tensor, "rows options"], chance: Float[Tensor, " rows"], temperature: float
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """The option at which the running sum of probabilities passes `chance`, and its log-probability.

    Temperature 0 takes the most likely option; its log-probability is then that at temperature 1.
    """
    log_probs = torch.log_softmax(logits / temperature if temperature else logits, -1)
    if temperature:
        total = log_probs.exp().cumsum(-1)
        option = (total < chance[:, None] * total[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)
    else:
        option = log_probs.argmax(-1)
    return option, log_probs.gather(1, option[:, None]).squeeze(1)
