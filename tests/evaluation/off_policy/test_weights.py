import numpy as np
import pytest
from ope_fixtures import A_PRIME, A, enumerate_trajectories, exact_log

from peira.evaluation.off_policy.weights import (
    MAX_LOG_WEIGHT,
    Block,
    clamp_log_ratio,
    clip_ratio,
    cumulative_log_weights,
    effective_sample_size,
    previous_weights,
    shifted_weights,
    weights,
    window_log_weights,
)

INFINITE = np.inf


def block(log_ratio, length=None):
    log_ratio = np.asarray(log_ratio, dtype=float)
    length = np.full(len(log_ratio), log_ratio.shape[1]) if length is None else np.asarray(length)
    return Block(np.zeros_like(log_ratio), log_ratio, length)


def test_weights_are_carried_forward_after_the_end():
    some = block([[0.5, -0.2, 0.0], [1.0, 0.0, 0.0]], [2, 1])
    np.testing.assert_allclose(cumulative_log_weights(some), [[0.5, 0.3, 0.3], [1.0, 1.0, 1.0]], atol=1e-15)
    np.testing.assert_array_equal(some.alive, [[True, True, False], [True, False, False]])
    np.testing.assert_allclose(some.discount(0.5), [1.0, 0.5, 0.25])


@pytest.mark.parametrize("mdp", [A, A_PRIME])
def test_weights_have_mean_one_at_every_step(mdp):
    trajectories = enumerate_trajectories(mdp, 3)
    weight = weights(cumulative_log_weights(trajectories.block(mdp)))
    np.testing.assert_allclose(trajectories.prob_b @ weight, 1.0, atol=1e-14)


def test_weights_of_the_living_alone_do_not():
    trajectories = enumerate_trajectories(A_PRIME, 3)
    weight = weights(cumulative_log_weights(trajectories.block(A_PRIME))) * trajectories.alive
    np.testing.assert_allclose(trajectories.prob_b @ weight, [1.0, 0.76, 0.3888], atol=1e-14)


def test_an_action_the_target_never_takes_ends_the_weight_for_good():
    log_weight = cumulative_log_weights(block([[1.0, -INFINITE, 2.0, 3.0]]))
    np.testing.assert_array_equal(weights(log_weight)[0, 1:], 0.0)


def test_previous_weights_start_at_one():
    np.testing.assert_array_equal(previous_weights(np.array([[2.0, 3.0, 4.0]])), [[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("window", [0, 1, 2, 4, 9])
def test_a_window_sums_the_last_log_ratios(window):
    log_ratio = np.array([[1.0, -INFINITE, 2.0, 3.0, 5.0], [0.1, 0.2, 0.3, 0.4, 0.5]])
    summed = [[sum(row[max(0, t + 1 - window) : t + 1]) for t in range(5)] for row in log_ratio]
    np.testing.assert_allclose(window_log_weights(block(log_ratio), window), summed, atol=1e-14)


def test_unnormalised_weights_stay_finite_with_their_squares():
    weight = weights(np.array([[1e4, 0.0, -1e4]]))
    np.testing.assert_array_equal(weight, [[np.exp(MAX_LOG_WEIGHT), 1.0, 0.0]])
    assert np.isfinite((weight**2).sum())


def test_the_greatest_shifted_weight_is_one_however_large():
    log_weight = np.array([[1e4, -1e4, -INFINITE], [1e4 - 1, -INFINITE, -INFINITE]])
    weight, log_scale = shifted_weights(log_weight)
    np.testing.assert_allclose(weight, [[1.0, 1.0, 0.0], [np.exp(-1), 0.0, 0.0]])
    np.testing.assert_array_equal(log_scale, [1e4, -1e4, -INFINITE])


def test_clamping_reports_the_fraction_of_steps_it_changed():
    some = block([[-7.0, 3.0, 0.5, 0.0], [1.0, -INFINITE, 0.0, 0.0]], [3, 2])
    clamped, fraction = clamp_log_ratio(some, -6.0, 2.0)
    np.testing.assert_array_equal(clamped.log_ratio, [[-6.0, 2.0, 0.5, 0.0], [1.0, -6.0, 0.0, 0.0]])
    assert fraction == pytest.approx(3 / 5)
    assert some.log_ratio[0, 0] == -7.0


def test_clipping_holds_each_ratio():
    clipped, fraction = clip_ratio(block(np.log([[3.0, 0.5, 1.5]])), 2.0)
    np.testing.assert_allclose(np.exp(clipped.log_ratio), [[2.0, 0.5, 1.5]])
    assert fraction == pytest.approx(1 / 3)


def test_limits_that_would_change_equal_policies_are_refused():
    with pytest.raises(ValueError, match=r"expected limits on either side of 0, got \[-6, -1\]"):
        clamp_log_ratio(block([[0.0]]), -6.0, -1.0)


def test_effective_sample_size_of_the_fixture():
    log = exact_log(A, 3)
    share = effective_sample_size(cumulative_log_weights(log.block(A))) / len(log.length)
    np.testing.assert_allclose(share, [0.7296607708, 0.5347031716, 0.3915988276], atol=1e-10)


def test_effective_sample_size_counts_equal_weights_and_nothing():
    log_weight = np.array(
        [[900.0, -INFINITE, -INFINITE], [900.0, 5.0, -INFINITE], [900.0, -INFINITE, -INFINITE]]
    )
    np.testing.assert_allclose(effective_sample_size(log_weight), [3.0, 1.0, 0.0])


def test_gaussian_ratios_cost_episodes_exponentially():
    """E[w²] = e^{1/4} a step for means 1/2 apart: ESS/n = e^{−steps/4}."""
    node, mass = np.polynomial.hermite_e.hermegauss(60)
    mass = mass / mass.sum()
    weight = weights((0.5 * node - 0.125)[:, None])[:, 0]
    assert mass @ weight == pytest.approx(1.0, abs=1e-12)
    assert mass @ weight**2 == pytest.approx(1.2840254, abs=1e-7)
    assert (mass @ weight**2) ** 20 == pytest.approx(148.413, abs=1e-3)
    assert (mass @ weight**2) ** -20 == pytest.approx(0.00674, abs=1e-5)

    action = np.random.default_rng(0).normal(size=(200_000, 4))
    share = effective_sample_size(cumulative_log_weights(block(0.5 * action - 0.125))) / len(action)
    np.testing.assert_allclose(share, np.exp(-np.arange(1, 5) / 4), rtol=0.04)
