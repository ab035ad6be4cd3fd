"""Kernels: the bias at one step is −h²κ₂ for a quadratic reward, and mass is 1 in every number of dimensions (M9).

r(a) = −(a − 0.3)², logged actions uniform on [−2, 2], the target always acts 0. All expectations are integrals. The
easy imitation in more dimensions, a one-dimensional kernel of the distance, has mass 1.25 (Gaussian) or 0.59
(Epanechnikov) in two dimensions, to the power of the number of steps.
"""

import numpy as np
import pytest
from scipy import special

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.continuous import KERNELS, kernel_log_ratio
from peira.evaluation.off_policy.weights import Block

BANDWIDTH = 0.5
# −h² κ₂; the Gaussian's tails are cut at 4h, where the log ends.
TAIL = special.erf(4 / np.sqrt(2)), 8 * np.exp(-8) / np.sqrt(2 * np.pi)
GAUSSIAN = -(BANDWIDTH**2) * (TAIL[0] - TAIL[1]) + 0.09 * (1 - TAIL[0])
BIAS = {
    "epanechnikov": -0.05,
    "triangular": -0.0416667,
    "cosine": -0.0473576,
    "uniform": -0.0833333,
    "gaussian": GAUSSIAN,
}


def reward(action):
    return -((action - 0.3) ** 2)


def nodes(edges):
    """Gauss–Legendre nodes and masses between the edges, exact for what is smooth between them."""
    x, mass = np.polynomial.legendre.leggauss(40)
    edges = np.asarray(edges)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * mass).ravel()


# The kernels have edges at 0 and ± h.
ACTION, LENGTH = nodes([-2, -1, -0.5, 0, 0.5, 1, 2])
PROBABILITY = LENGTH / 4


def kernel_block(kernel, target=0.0):
    log_ratio = kernel_log_ratio(
        ACTION[:, None],
        np.full((len(ACTION), 1), target),
        np.full(len(ACTION), -np.log(4.0)),
        BANDWIDTH,
        kernel=kernel,
    )
    return Block(reward(ACTION)[:, None], log_ratio[:, None], np.ones(len(ACTION), dtype=int))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_bias_of_one_step(kernel):
    estimate = PROBABILITY @ sequential.pdis(kernel_block(kernel), 1.0).plain
    assert estimate - reward(0.0) == pytest.approx(BIAS[kernel], abs=1e-7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_bias_is_that_of_the_second_moment(kernel):
    """κ₂ by integration; for the Gaussian over the whole line −h² κ₂ = −0.25."""
    u, length = nodes(np.linspace(-12, 12, 49))
    density = np.exp(KERNELS[kernel].log_density(u))
    assert length @ density == pytest.approx(1.0, abs=1e-12)
    assert length @ (u**2 * density) == pytest.approx(KERNELS[kernel].second_moment, abs=1e-12)
    assert -(BANDWIDTH**2) * KERNELS[kernel].second_moment == pytest.approx(BIAS[kernel], abs=3e-4)


def test_the_gaussian_figures():
    assert BIAS["gaussian"] == pytest.approx(-0.24971, abs=5e-6)
    assert KERNELS["gaussian"].second_moment == 1.0


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_doubly_robust_form_needs_two_values(kernel):
    """With the right model it is exact; with one value in both places, as in code widely used, the bias stays."""
    block = kernel_block(kernel)
    at_target = np.full_like(block.reward, reward(0.0))
    exact = PROBABILITY @ sequential.dr(block, block.reward, at_target, 1.0).plain
    assert exact == pytest.approx(reward(0.0), abs=1e-12)
    one_value = PROBABILITY @ sequential.dr(block, at_target, at_target, 1.0).plain
    assert one_value - reward(0.0) == pytest.approx(BIAS[kernel], abs=3e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_self_normalisation_divides_out_what_lies_beyond_the_log(kernel):
    """A target at the edge of the logged actions keeps half of its kernel."""
    block = kernel_block(kernel, target=2.0)
    ones = Block(np.ones_like(block.reward), block.log_ratio, block.length)
    plain, ratio = sequential.pdis(ones, 1.0), sequential.wpdis(ones, 1.0)
    kept = (np.exp(KERNELS[kernel].log_density((ACTION - 2) / BANDWIDTH)) / BANDWIDTH) @ LENGTH
    assert kept == pytest.approx(0.5, abs=1e-2)
    assert PROBABILITY @ plain.plain == pytest.approx(kept, abs=1e-12)
    assert (PROBABILITY @ ratio.numerator) / (PROBABILITY @ ratio.denominator) == pytest.approx(
        1.0, abs=1e-12
    )


def integral_over_the_plane(density):
    """∫ density(a) da of a function of rows [rows, 2]."""
    x, length = nodes([-4, -2, -1, -0.5, 0, 0.5, 1, 2, 4])
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.multiply.outer(length, length).ravel() @ density(grid)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_product_of_kernels_has_mass_one(kernel):
    def density(action):
        zero = np.zeros_like(action)
        return np.exp(
            kernel_log_ratio(action, zero, np.zeros(len(action)), np.array([0.5, 0.5]), kernel=kernel)
        )

    assert integral_over_the_plane(density) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("kernel", "mass"),
    [("gaussian", np.sqrt(2 * np.pi) * BANDWIDTH), ("epanechnikov", 3 * np.pi * BANDWIDTH / 8)],
)
def test_the_imitation_that_takes_a_kernel_of_the_distance(kernel, mass):
    def density(action):
        distance = np.linalg.norm(action, axis=1)
        return np.exp(KERNELS[kernel].log_density(distance / BANDWIDTH)) / BANDWIDTH

    assert integral_over_the_plane(density) == pytest.approx(mass, abs=2e-3)
    assert abs(mass - 1) > 0.2


def test_the_imitation_that_casts_actions_to_whole_numbers():
    logged, target = np.trunc(ACTION)[:, None], np.zeros((len(ACTION), 1))
    cast = kernel_log_ratio(logged, target, np.full(len(ACTION), -np.log(4.0)), BANDWIDTH)
    assert abs(PROBABILITY @ (np.exp(cast) * reward(ACTION)) - reward(0.0)) > 0.5
