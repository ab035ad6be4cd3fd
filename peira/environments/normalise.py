"""Running normalisation of observations and rewards, held still within a batch and applied to raw data of any age.

What is stored is raw. The statistics change only when `update` is called, between batches, so one policy version sees
one normalisation, and steps retained from an earlier policy are read with the statistics of today (``props.md`` 2.8).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from peira.experience.scan import running_sum


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, by Chan's parallel update; float64, one entry a feature.

    The first update replaces the initial mean 0 and variance 1; before it, `normalise` is the identity up to clipping.
    """

    def __init__(self, size: int | None = None):
        super().__init__()
        shape = () if size is None else (size,)
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "rows *feature"]) -> None:
        rows = rows.to(torch.float64)
        new_count, new_mean = rows.shape[0], rows.mean(0)
        new_square = (rows - new_mean).square().sum(0)
        total = self.count + new_count
        shift = new_mean - self.mean
        square = self.variance * self.count + new_square + shift.square() * (self.count * new_count / total)
        self.mean.add_(shift * (new_count / total))
        self.variance.copy_(square / total)
        self.count.copy_(total)


class ObservationNormaliser(nn.Module):
    """(observation − mean) / √(variance + 1e-8), clipped to ±`clip`; statistics move only in `update`.

    `offset` and `scale` are the float32 forms of the moments that acting and learning read.
    """

    def __init__(self, size: int, clip: float = 10.0):
        super().__init__()
        self.clip = clip
        self.moments = RunningMoments(size)
        self.register_buffer("offset", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch obs"]:
        return ((observation - self.offset) * self.scale).clamp(-self.clip, self.clip)

    def update(self, observation: Float[Tensor, "rows obs"]) -> None:
        self.moments.update(observation)
        self.offset.copy_(self.moments.mean)
        self.scale.copy_((self.moments.variance + 1e-8).rsqrt())


class RewardScaler:
    """Rewards divided by the running standard deviation of the discounted return, clipped to ±`clip`.

    R_t = reward_t + γ R_{t-1}, set back to 0 after an episode ends; scaled = reward / √(Var R + 1e-8). The mean is not
    subtracted: that would change which policy is best.
    """

    def __init__(self, discount: float, num_envs: int, clip: float = 10.0):
        self.discount, self.clip = discount, clip
        self.moments = RunningMoments()
        self._return = torch.zeros(num_envs)

    def update(self, reward: Float[Tensor, "time env"], done: Bool[Tensor, "time env"]) -> None:
        """Take in the next steps of the same worlds."""
        carried = torch.cat([self._return[None], reward])
        decay = torch.full_like(carried, self.discount)
        decay[2:][done[:-1]] = 0.0
        returns = running_sum(carried, decay)
        self._return = returns[-1] * (~done[-1])
        self.moments.update(returns[1:].flatten())

    def scale(self, reward: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        factor = (self.moments.variance + 1e-8).rsqrt().to(torch.float32)
        return (reward * factor).clamp(-self.clip, self.clip)

    def state_dict(self) -> dict:
        return {"moments": dict(self.moments.state_dict()), "return": self._return}

    def load_state_dict(self, state: dict) -> None:
        self.moments.load_state_dict(state["moments"])
        self._return = state["return"]
