"""Continuous actions: a deterministic target by kernels, as log ratios that the sequential estimators take.

Where the target has a density the log ratio is a difference of log densities, and nothing here is needed. A target
that always acts a = π(s) has none: its point mass is spread by a kernel, w_h = Π_d K((a_d − π_d(s))/h_d)/h_d / p(a|s),
p the joint density of the logged action as it was recorded (one that was clipped after its density was taken biases
all that follows, unseen). With these log ratios in a `Block`
  pdis          the kernel estimator of Kallus and Zhou 2018; its bias at one step is (h²/2) κ₂ r''(π(s)) + O(h⁴)
  wpdis, wis    self-normalised: what is missing of a kernel's mass, at the edge of the log's actions, is divided out
  dr, wdr       kernel DR with q = Q̂(s, a) at the logged action and v = Q̂(s, π(s)) at the target's: two values, not one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Kernel:
    """A symmetric density on the line: its logarithm, and κ₂ = ∫ u² K(u) du."""

    log_density: Callable[[np.ndarray], np.ndarray]
    second_moment: float


def _log(density: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(density, 0.0))


KERNELS = {
    "gaussian": Kernel(lambda u: -0.5 * u**2 - 0.5 * np.log(2 * np.pi), 1.0),
    "epanechnikov": Kernel(lambda u: _log(0.75 * (1 - u**2)), 1 / 5),
    "triangular": Kernel(lambda u: _log(1 - np.abs(u)), 1 / 6),
    "uniform": Kernel(lambda u: _log(0.5 * (np.abs(u) <= 1)), 1 / 3),
    "cosine": Kernel(
        lambda u: _log(np.pi / 4 * np.cos(np.pi / 2 * np.clip(u, -1, 1)) * (np.abs(u) < 1)), 1 - 8 / np.pi**2
    ),
}


def kernel_log_ratio(
    action: Float[np.ndarray, "*rows dims"],
    target_action: Float[np.ndarray, "*rows dims"],
    log_propensity: Float[np.ndarray, "*rows"],
    bandwidth: Float[np.ndarray, " dims"] | float,
    *,
    kernel: str = "epanechnikov",
) -> Float[np.ndarray, "*rows"]:
    """log w_h = Σ_d log(K((a_d − π_d(s))/h_d)/h_d) − log p(a|s), a product of kernels, one a dimension.

    Rows may lie flat or padded [episodes, steps]; set what lies after an episode's end to 0. −∞ where the logged action
    is out of the kernel's reach. Raises ValueError for a kernel that is not known or a bandwidth that is not positive.
    """
    if not np.all(np.asarray(bandwidth) > 0):
        raise ValueError(f"expected bandwidths above 0, got {bandwidth}")
    density = _kernel(kernel).log_density((action - target_action) / bandwidth)
    return (density - np.log(bandwidth)).sum(axis=-1) - log_propensity


def reference_bandwidth(
    action: Float[np.ndarray, "rows dims"], *, kernel: str = "epanechnikov"
) -> Float[np.ndarray, " dims"]:
    """σ_d n^{−1/(dims + 4)} / √κ₂, σ_d the deviation of the logged actions: the rate that balances bias and variance.

    Divided by √κ₂, so that every kernel spreads the target alike. Only the rate is known to be right; take multiples
    of it as the candidates of `tuning.slope`. In one dimension the rate is n^{−1/5}. Raises ValueError for a kernel
    that is not known.
    """
    rows, dims = action.shape
    return action.std(axis=0) * rows ** (-1 / (dims + 4)) / np.sqrt(_kernel(kernel).second_moment)


def _kernel(name: str) -> Kernel:
    if name not in KERNELS:
        raise ValueError(f"expected a kernel of {', '.join(KERNELS)}, got {name!r}")
    return KERNELS[name]
