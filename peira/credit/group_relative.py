"""Group-relative advantages: how good an episode was among the attempts at the same task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peira.experience.dialogue import TextEpisode

Deviation = Literal["unbiased", "population", "none"]


def group_advantages(
    reward: Float[Tensor, " episodes"],
    group: Int[Tensor, " episodes"],
    valid: Bool[Tensor, " episodes"],
    *,
    deviation: Deviation = "unbiased",
    epsilon: float = 1e-6,
) -> Float[Tensor, " episodes"]:
    """A_i = (R_i − mean of the group) / (deviation of the group + ε); 0 for all of a group whose rewards are equal.

    `group` numbers the groups 0, 1, …. Episodes that are not `valid` (their world failed) take no part in mean and
    deviation and get 0, as does a group with fewer than two valid members. `deviation`: "unbiased" divides the squares
    by n − 1 (Shao et al. 2024 as implemented: one success in eight gives 2.4749 and −0.3536), "population" by n (2.6458
    and −0.3780), "none" leaves the division out (Liu et al. 2025).
    """
    number = int(group.max()) + 1 if len(group) else 0
    weight = valid.to(reward.dtype)
    count = torch.zeros(number, dtype=reward.dtype).index_add(0, group, weight)
    kept = torch.where(valid, reward, torch.zeros_like(reward))
    mean = torch.zeros(number, dtype=reward.dtype).index_add(0, group, kept) / count.clamp(min=1)
    centred = (kept - mean[group]) * weight
    # Rounding of the mean must not make a signal of equal rewards.
    first, last = group_range(reward, group, valid, number)
    alive = ((last > first) & (count > 1))[group]
    if deviation != "none":
        squares = torch.zeros(number, dtype=reward.dtype).index_add(0, group, centred.square())
        divisor = count - 1 if deviation == "unbiased" else count
        centred = centred / ((squares / divisor.clamp(min=1)).sqrt()[group] + epsilon)
    return torch.where(alive, centred, torch.zeros_like(centred))


def group_range(
    reward: Float[Tensor, " episodes"],
    group: Int[Tensor, " episodes"],
    valid: Bool[Tensor, " episodes"],
    number: int,
) -> tuple[Float[Tensor, " groups"], Float[Tensor, " groups"]]:
    """Least and greatest reward of each of the `number` groups, over valid episodes; (∞, −∞) where there is none."""
    infinite = torch.full((number,), float("inf"), dtype=reward.dtype)
    low = infinite.scatter_reduce(0, group[valid], reward[valid], "amin")
    high = (-infinite).scatter_reduce(0, group[valid], reward[valid], "amax")
    return low, high


@dataclass(frozen=True)
class Laid:
    """A batch laid flat: episodes in order, their rewards and groups, and the lengths of what they sampled."""

    episodes: list[TextEpisode]
    reward: Float[Tensor, " episodes"]
    valid: Bool[Tensor, " episodes"]
    group: Int[Tensor, " episodes"]
    lengths: Int[Tensor, " episodes"]

    @classmethod
    def of(cls, groups: Sequence[Sequence[TextEpisode]], format_weight: float) -> Laid:
        """R = score − λ·(the episode ended with what is no action)."""
        episodes = [episode for group in groups for episode in group]
        return cls(
            episodes,
            torch.tensor([e.score - format_weight * e.failed_to_parse for e in episodes]),
            torch.tensor([e.error is None and e.sampled_tokens > 0 for e in episodes]),
            torch.arange(len(groups)).repeat_interleave(torch.tensor([len(group) for group in groups])),
            torch.tensor([e.sampled_tokens for e in episodes]),
        )

    @property
    def dead(self) -> Bool[Tensor, " groups"]:
        """Groups whose rewards are all equal."""
        number = int(self.group.max()) + 1
        low, high = group_range(self.reward, self.group, self.valid, number)
        return ~(high > low)
