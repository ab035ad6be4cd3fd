"""Normal noise that stays within bounds and so has a density everywhere, where clipped noise heaps up at them."""

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri


def draw(
    mean: Float[np.ndarray, "*batch"], std: float, bound: float, rng: np.random.Generator
) -> Float[np.ndarray, "*batch"]:
    """From N(mean, std²) given that the result lies within ±bound, by inversion."""
    low, high = ndtr((-bound - mean) / std), ndtr((bound - mean) / std)
    return np.clip(mean + std * ndtri(low + (high - low) * rng.random(np.shape(mean))), -bound, bound)


def log_density(
    value: Float[np.ndarray, "*batch"], mean: Float[np.ndarray, "*batch"], std: float, bound: float
) -> Float[np.ndarray, "*batch"]:
    """log N(value; mean, std²) − log P(within ±bound), for means within the bounds."""
    inside = np.log(ndtr((bound - mean) / std) - ndtr((-bound - mean) / std))
    z = (value - mean) / std
    return -0.5 * np.square(z) - np.log(std) - 0.5 * np.log(2 * np.pi) - inside
