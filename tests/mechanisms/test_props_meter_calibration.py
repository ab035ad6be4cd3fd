"""The sampling-error meter reads p/(2N) on on-policy data, and the divergence itself on shifted data.

A meter that weights rows by |advantage|, counts the wrong parameters, leaves out the standard deviations, or
measures KL(π_φ ‖ π_θ) of the acting policy instead of what the data show, misses one of the two.
"""

import pytest
import torch

from peira.evaluation.sampling_error import sampling_error
from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic

ROWS, DRAWS, FEATURES, ACTIONS = 4096, 50, 16, 3


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Many small operations: a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gaussian_policy(generator, bias=True):
    policy = GaussianActorCritic(8, ACTIONS, hidden=(32, FEATURES), bias=bias, generator=generator)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-0.5, 0.0, 0.3]))
    return policy


@pytest.mark.parametrize("bias", [True, False])
def test_gaussian_on_policy_data_read_the_reference_level(bias):
    generator = torch.Generator().manual_seed(0)
    policy = gaussian_policy(generator, bias)
    observation = torch.randn(ROWS, 8, generator=generator)
    values = []
    for _ in range(DRAWS):
        measured = sampling_error(policy, observation, policy.act(observation, generator)[0])
        values.append(measured.value)
    parameters = (FEATURES + bias) * ACTIONS + ACTIONS
    assert (measured.parameters, measured.rows) == (parameters, ROWS)
    assert measured.reference_level == parameters / (2 * ROWS)
    assert sum(values) / DRAWS == pytest.approx(parameters / (2 * ROWS), rel=0.1)


def test_categorical_on_policy_data_read_the_reference_level():
    generator = torch.Generator().manual_seed(1)
    policy = CategoricalActorCritic(8, 3, hidden=(32, FEATURES), generator=generator)
    with torch.no_grad():
        policy.actor_head.weight.mul_(50)
    observation = torch.randn(ROWS, 8, generator=generator)
    values = []
    for _ in range(DRAWS):
        measured = sampling_error(policy, observation, policy.act(observation, generator)[0])
        values.append(measured.value)
    assert measured.parameters == (FEATURES + 1) * 2
    assert sum(values) / DRAWS == pytest.approx(measured.reference_level, rel=0.1)


@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0])
def test_a_mean_shift_of_c_deviations_adds_half_its_square(shift):
    generator = torch.Generator().manual_seed(2)
    policy = gaussian_policy(generator)
    observation = torch.randn(ROWS, 8, generator=generator)
    increases = []
    for _ in range(DRAWS):
        action, _ = policy.act(observation, generator)
        level = sampling_error(policy, observation, action).value
        action[:, 1] += shift * policy.log_std[1].exp()
        increases.append(sampling_error(policy, observation, action).value - level)
    # The increase of one draw is c²/2 + c·(mean noise), of deviation c/√N.
    tolerance = 4 * shift / (ROWS * DRAWS) ** 0.5
    assert sum(increases) / DRAWS == pytest.approx(shift**2 / 2, abs=tolerance)
