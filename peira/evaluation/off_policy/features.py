"""Features of states for what is fitted in closed form."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist, pdist

from peira.evaluation.off_policy.propensity import standardisation

CHUNK = 16_384
"""Rows handled at once wherever something wider than the log is formed: memory stays linear in the log."""


def gaussian_features(
    observation: Float[np.ndarray, "points dims"],
    landmarks: int,
    *,
    rng: np.random.Generator,
    bandwidth: float | None = None,
) -> Float[np.ndarray, "points landmarks"]:
    """z with z(x)·z(y) ≈ exp(−‖x − y‖²/(2h²)), exactly so where x or y is a landmark: Nyström's approximation.

    z(x) = K_LL^(−½) k(L, x) with `landmarks` points L drawn without replacement, on standardised observations; a linear
    fit on z is a fit in the kernel's space, its memory linear in the log. h: by default the median distance between
    landmarks. Directions with eigenvalues of K_LL below 1e-12 of the largest are dropped, so that fewer columns than
    landmarks may come.

    Source: Williams and Seeger 2001.
    """
    centre, scale = standardisation(observation)
    standardised = (observation - centre) / scale
    landmark = standardised[rng.choice(len(observation), min(landmarks, len(observation)), replace=False)]
    if bandwidth is None:
        distance = pdist(landmark)
        bandwidth = float(np.median(distance[distance > 0])) if (distance > 0).any() else 1.0
    eigenvalue, vector = np.linalg.eigh(_gaussian(landmark, landmark, bandwidth))
    kept = eigenvalue > 1e-12 * eigenvalue[-1]
    root = vector[:, kept] / np.sqrt(eigenvalue[kept])
    chunks = [standardised[start : start + CHUNK] for start in range(0, len(observation), CHUNK)]
    return np.concatenate([_gaussian(chunk, landmark, bandwidth) @ root for chunk in chunks])


def _gaussian(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    return np.exp(-cdist(x, y, "sqeuclidean") / (2 * bandwidth**2))
