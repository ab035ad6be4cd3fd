"""Windows with a Gaussian law, whose denoisers and samples are known exactly: what the sampler is held to.

Vectors are windows flattened time by time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from peira.sources.diffusion.sampler import Denoise, Sampler


@dataclass(frozen=True)
class GaussianLaw:
    """N(mean, covariance) over flattened windows, in double precision."""

    mean: Float[Tensor, " size"]
    covariance: Float[Tensor, "size size"]

    def tilted(
        self,
        direction: Float[Tensor, "factors size"],
        centre: Float[Tensor, " factors"],
        variance: Float[Tensor, " factors"],
        strength: float = 1.0,
    ) -> GaussianLaw:
        """The law multiplied by Π_j N(c_j·x; centre_j, variance_j)^strength: precision Σ⁻¹ + strength Σ_j c_j c_jᵀ/v_j.

        A negative strength divides. Raises torch's LinAlgError where no law is left.
        """
        weight = strength / variance
        precision = torch.linalg.inv(self.covariance) + direction.mT @ (weight[:, None] * direction)
        torch.linalg.cholesky(precision)
        covariance = torch.linalg.inv(precision)
        shift = torch.linalg.solve(self.covariance, self.mean) + direction.mT @ (weight * centre)
        return GaussianLaw(covariance @ shift, covariance)

    def denoiser(self, shape: tuple[int, int]) -> Denoise:
        """D(x; σ) = mean + Σ(Σ + σ²I)⁻¹(x − mean) on windows of `shape`: of a tilted law, the exact guided denoiser."""
        unit = torch.eye(len(self.mean), dtype=self.mean.dtype)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            gain = torch.linalg.solve(self.covariance + sigma.square() * unit, self.covariance)
            return (self.mean + (x.flatten(1) - self.mean) @ gain).unflatten(1, shape)

        return denoise

    def variance_along(self, direction: Float[Tensor, "factors size"]) -> Float[Tensor, " factors"]:
        """E (c_j·x)² for each row c_j."""
        return (direction @ self.covariance * direction).sum(1) + (direction @ self.mean).square()


def law_of_samples(sampler: Sampler, shape: tuple[int, int]) -> GaussianLaw:
    """The law that a sampler draws from when its steps are affine, by mean and covariance, without sampling.

    Each step is probed with unit vectors for window and noise: linear denoisers, and guidance that is linear in the
    window (dps or stopgrad with a Gaussian policy), make it affine.
    """
    size = shape[0] * shape[1]
    unit = torch.eye(size, dtype=torch.float64).unflatten(1, shape)
    nothing = torch.zeros(1, *shape, dtype=torch.float64)
    start = torch.cat([nothing, unit, nothing.expand(size, -1, -1)])
    noise = torch.cat([nothing, nothing.expand(size, -1, -1), unit])
    mean = torch.zeros(size, dtype=torch.float64)
    covariance = sampler.levels[0] ** 2 * torch.eye(size, dtype=torch.float64)
    for step in range(len(sampler.levels) - 1):
        moved = sampler.step(start, step, noise).flatten(1)
        of_window, of_noise = (moved[1:] - moved[0]).split(size)
        mean = moved[0] + mean @ of_window
        covariance = of_window.mT @ covariance @ of_window + of_noise.mT @ of_noise
    return GaussianLaw(mean, covariance)


def linear_chain(
    steps: int,
    *,
    keep: float = 0.9,
    push: float = 0.5,
    noise: float = 0.1,
    gain: float = -0.2,
    action_variance: float = 0.25,
) -> GaussianLaw:
    """(s_0, a_0, s_1, a_1, …) of s_0 ~ N(0, 1), a = gain·s + N(0, action_variance), s' = keep·s + push·a + N(0, noise).

    The system of ``pgd.md`` 8, test 3, whose constants are the defaults.
    """
    # x = (sources of randomness) @ map, built along time.
    size = 2 * steps
    map_ = torch.zeros(size, size, dtype=torch.float64)
    state = torch.zeros(size, dtype=torch.float64)
    state[0] = 1.0
    for step in range(steps):
        action = gain * state
        action[2 * step + 1] += action_variance**0.5
        map_[:, 2 * step], map_[:, 2 * step + 1] = state, action
        state = keep * state + push * action
        if step < steps - 1:
            state[2 * step + 2] += noise**0.5
    return GaussianLaw(torch.zeros(size, dtype=torch.float64), map_.mT @ map_)


def along(steps: int, terms: Sequence[tuple[int, float]], *, last: int = 0) -> Float[Tensor, "factors size"]:
    """For each step t but the `last` ones, a row with the weights of `terms`: (offset from s_t, weight)."""
    rows = torch.zeros(steps - last, 2 * steps, dtype=torch.float64)
    at = torch.arange(steps - last)
    for offset, weight in terms:
        rows[at, 2 * at + offset] = weight
    return rows
