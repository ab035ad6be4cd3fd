"""What gathering and evaluation ask of a policy, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Acts(Protocol):
    """Chooses actions for a batch of observations `[…, obs]`, and says how likely an action is."""

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """The randomness of one choice for each place of `shape`."""

    def choose(self, observation: Tensor, noise: Tensor) -> Tensor:
        """The action that this noise stands for."""

    def sample(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """An action drawn from π(· | observation)."""

    def mode(self, observation: Tensor) -> Tensor:
        """The action to take when nothing is to be found out."""

    def log_prob(self, observation: Tensor, action: Tensor) -> Tensor:
        """log π(action | observation), `[…]`."""
