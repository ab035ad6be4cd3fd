"""Linear recurrences along time, computed in log₂(time) vectorised sweeps instead of a loop over steps."""

import torch
from jaxtyping import Float
from torch import Tensor


def running_sum(
    value: Float[Tensor, "time *rest"], decay: Float[Tensor, "time *rest"]
) -> Float[Tensor, "time *rest"]:
    """y_t = value_t + decay_t · y_{t-1}, with y_{-1} = 0.

    Doubling (Hillis and Steele 1986): after sweep k every y_t covers the last 2ᵏ steps. O(T log T) work in log₂ T
    tensor operations; exact up to rounding, also when decays are 0 at episode boundaries.
    """
    total, factor, reach = value, decay, 1
    steps = value.shape[0]
    while reach < steps:
        total = torch.cat([total[:reach], torch.addcmul(total[reach:], factor[reach:], total[:-reach])])
        factor = torch.cat([factor[:reach], factor[reach:] * factor[:-reach]])
        reach *= 2
    return total


def running_sum_backwards(
    value: Float[Tensor, "time *rest"], decay: Float[Tensor, "time *rest"]
) -> Float[Tensor, "time *rest"]:
    """y_t = value_t + decay_t · y_{t+1}, with y_T = 0: `running_sum` read from the newest step to the oldest."""
    return running_sum(value.flip(0), decay.flip(0)).flip(0)
