"""Z-scores of columns, with constant columns left alone; kept with the model that reads them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CONSTANT = 1e-6
"""Deviation below which, in parts of a column's size, it counts as constant."""


@dataclass(frozen=True)
class Standardiser:
    """z = (x − mean)/deviation; a constant column is 0 as z and comes back as exactly its value."""

    mean: Float[Tensor, " columns"]
    deviation: Float[Tensor, " columns"]
    constant: Bool[Tensor, " columns"]

    @staticmethod
    def of(rows: Float[Tensor, "rows columns"], weight: Float[Tensor, " rows"] | None = None) -> Standardiser:
        """Mean and deviation of these rows, each counted `weight` times; in double precision."""
        weight = torch.ones(len(rows)) if weight is None else weight
        share = (weight.double() / weight.double().sum())[:, None]
        mean = (share * rows).sum(0)
        deviation = (share * (rows - mean).square()).sum(0).sqrt()
        constant = deviation <= _CONSTANT * mean.abs().clamp(min=1.0)
        return Standardiser(mean.float(), deviation.masked_fill(constant, 1.0).float(), constant)

    def z(self, raw: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch columns"]:
        return ((raw - self.mean) / self.deviation).masked_fill(self.constant, 0.0)

    def raw(self, z: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch columns"]:
        return self.mean + self.deviation.masked_fill(self.constant, 0.0) * z

    def state_dict(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}
