import numpy as np
import pytest
from scipy import stats

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.continuous import KERNELS, kernel_log_ratio, reference_bandwidth
from peira.evaluation.off_policy.weights import Block


def test_kernels_are_the_densities_they_are_named_after():
    u = np.array([-1.2, -1.0, -0.3, 0.0, 0.7, 1.0, 2.5])
    inside = np.abs(u) <= 1
    expected = {
        "gaussian": stats.norm.pdf(u),
        "epanechnikov": np.where(inside, 0.75 * (1 - u**2), 0),
        "triangular": np.where(inside, 1 - np.abs(u), 0),
        "uniform": np.where(inside, 0.5, 0),
        "cosine": np.where(inside, np.pi / 4 * np.cos(np.pi * u / 2), 0),
    }
    assert set(expected) == set(KERNELS)
    for name, density in expected.items():
        np.testing.assert_allclose(np.exp(KERNELS[name].log_density(u)), density, atol=1e-15)


def test_the_joint_density_counts_once():
    """d columns that each hold the joint density, multiplied up, are p^d."""
    action, target = np.array([[0.1, -0.2, 0.3]]), np.array([[0.0, 0.0, 0.1]])
    log_propensity = stats.norm.logpdf(action).sum(axis=1)
    bandwidth = np.array([0.5, 1.0, 2.0])
    weight = np.exp(kernel_log_ratio(action, target, log_propensity, bandwidth, kernel="gaussian"))
    kernel = np.prod(stats.norm.pdf((action - target) / bandwidth) / bandwidth)
    assert weight[0] == pytest.approx(kernel / np.exp(log_propensity[0]), rel=1e-13)
    assert weight[0] != pytest.approx(kernel / np.exp(3 * log_propensity[0]), rel=0.5)


def test_rows_may_be_padded_and_out_of_reach():
    action = np.array([[[0.0], [0.9]], [[0.1], [0.0]]])
    log_ratio = kernel_log_ratio(action, np.zeros_like(action), np.zeros((2, 2)), 0.5, kernel="uniform")
    np.testing.assert_allclose(np.exp(log_ratio), [[1.0, 0.0], [1.0, 1.0]])


def test_equal_actions_are_a_number():
    action = np.random.default_rng(0).normal(size=(1_000, 3)) * 1e3
    for kernel in KERNELS:
        assert np.isfinite(kernel_log_ratio(action, action, np.zeros(1_000), 1e-3, kernel=kernel)).all()


def test_sequences_multiply_the_kernels_of_their_steps():
    """Two steps with r = a_0 a_1 at the end, independent uniform actions, a target of 0.4: E W = 1, E W r = 0.16."""
    rng = np.random.default_rng(1)
    action = rng.uniform(-2, 2, (400_000, 2, 1))
    log_ratio = kernel_log_ratio(action, np.full_like(action, 0.4), np.full((400_000, 2), -np.log(4.0)), 0.8)
    reward = np.zeros((400_000, 2))
    reward[:, 1] = action[:, 0, 0] * action[:, 1, 0]
    block = Block(reward, log_ratio, np.full(400_000, 2))
    for estimator in (sequential.pdis, sequential.wpdis, sequential.wis):
        terms = estimator(block, 1.0)
        assert terms.standard_error() < 0.003
        assert terms.value() == pytest.approx(0.16, abs=4 * terms.standard_error())


def test_the_reference_bandwidth_shrinks_at_the_known_rate():
    action = np.random.default_rng(0).normal(size=(3_200, 1))
    deviation = action.std()
    assert reference_bandwidth(action, kernel="gaussian")[0] == pytest.approx(deviation * 3_200**-0.2)
    assert reference_bandwidth(action, kernel="uniform")[0] == pytest.approx(
        deviation * 3_200**-0.2 * np.sqrt(3)
    )
    wide = np.column_stack([action, 2 * action])
    np.testing.assert_allclose(
        reference_bandwidth(wide, kernel="gaussian"), deviation * 3_200 ** (-1 / 6) * np.array([1.0, 2.0])
    )


def test_errors_say_what_was_expected():
    action = np.zeros((1, 1))
    with pytest.raises(
        ValueError,
        match="expected a kernel of gaussian, epanechnikov, triangular, uniform, cosine, got 'biweight'",
    ):
        kernel_log_ratio(action, action, np.zeros(1), 0.5, kernel="biweight")
    with pytest.raises(ValueError, match=r"expected bandwidths above 0, got 0\.0"):
        kernel_log_ratio(action, action, np.zeros(1), 0.0)
