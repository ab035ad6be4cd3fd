"""The exact sampling-error meter against long optimisations and closed forms, and what it refuses."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from peira.evaluation.sampling_error import (
    categorical_sampling_error,
    gaussian_sampling_error,
    sampling_error,
)
from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Thousands of tiny operations: a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def categorical_rows(rows, width, actions, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    slope = torch.randn(width, actions, generator=generator, dtype=torch.float64) * scale / width**0.5
    logits = features @ slope
    return features, logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def long_optimisation(features, logits, action):
    """The same maximum by BFGS run to a gradient of 1e-9."""
    x, start, rows = features.numpy(), logits.numpy(), np.arange(len(action))
    others = logits.shape[1] - 1

    def loss(delta):
        score = start.copy()
        score[:, :others] += x @ delta.reshape(-1, others)
        score -= score.max(axis=1, keepdims=True)
        probability = np.exp(score)
        normaliser = probability.sum(axis=1, keepdims=True)
        likelihood = (score - np.log(normaliser))[rows, action].mean()
        error = probability / normaliser
        error[rows, action] -= 1
        return -likelihood, (x.T @ error[:, :others] / len(rows)).ravel()

    start_at = np.zeros(x.shape[1] * others)
    best = minimize(loss, start_at, jac=True, method="BFGS", options={"maxiter": 20_000, "gtol": 1e-9})
    return loss(start_at)[0] - best.fun


@pytest.mark.parametrize(
    ("rows", "width", "actions", "scale"),
    [(2048, 65, 2, 1), (500, 20, 3, 1), (2000, 10, 6, 2), (300, 4, 3, 6)],
)
def test_categorical_equals_a_long_optimisation(rows, width, actions, scale):
    data = categorical_rows(rows, width, actions, scale)
    assert categorical_sampling_error(*data) == pytest.approx(long_optimisation(*data), abs=1e-6)


def test_categorical_far_from_its_policy():
    features, logits, action = categorical_rows(1000, 5, 3, scale=4)
    far = categorical_sampling_error(features, -3 * logits, action)
    assert far == pytest.approx(long_optimisation(features, -3 * logits, action), abs=1e-6)
    assert far > 1


def test_tabular_sampling_error_is_the_divergence_of_the_shares():
    generator = torch.Generator().manual_seed(3)
    features = torch.eye(4, dtype=torch.float64)[
        torch.randint(3, (600,), generator=generator)
    ]  # one state unseen
    logits = features @ torch.randn(4, 3, generator=generator, dtype=torch.float64)
    action = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    expected = 0.0
    for state in range(3):
        here = features[:, state] == 1
        share = torch.bincount(action[here], minlength=3) / here.sum()
        policy = logits[here][0].softmax(0)
        expected += float(here.double().mean() * (share * (share / policy).log()).sum())
    assert categorical_sampling_error(features, logits, action) == pytest.approx(expected, abs=1e-6)


def test_an_action_that_never_occurs_leaves_a_finite_value():
    rows = 500
    features, logits = torch.ones(rows, 1, dtype=torch.float64), torch.zeros(rows, 3, dtype=torch.float64)
    only = torch.zeros(rows, dtype=torch.int64)
    assert categorical_sampling_error(features, logits, only) == pytest.approx(np.log(3), abs=2e-6)
    logits[:, 2] = -40.0
    assert categorical_sampling_error(features, logits, only + 2) == pytest.approx(40 + np.log(2), abs=2e-6)


def test_gaussian_equals_least_squares():
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    mean = features @ torch.randn(6, 2, generator=generator, dtype=torch.float64)
    log_std = torch.tensor([0.3, -0.7], dtype=torch.float64)
    action = mean + log_std.exp() * torch.randn(300, 2, generator=generator, dtype=torch.float64)
    fitted = features @ torch.linalg.lstsq(features, action).solution
    deviation = (action - fitted).square().mean(0).sqrt()
    best = torch.distributions.Normal(fitted, deviation).log_prob(action).sum(1).mean()
    own = torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(1).mean()
    measured = gaussian_sampling_error(features, mean, log_std, action)
    assert measured == pytest.approx(float(best - own), abs=1e-9)


def test_gaussian_data_without_spread_stay_finite():
    features = torch.ones(50, 1, dtype=torch.float64)
    mean = torch.zeros(50, 1, dtype=torch.float64)
    measured = gaussian_sampling_error(features, mean, torch.zeros(1, dtype=torch.float64), mean)
    assert measured == pytest.approx(np.log(1e6) - 0.5)


@pytest.mark.parametrize("kind", [GaussianActorCritic, CategoricalActorCritic])
def test_adam_approaches_the_exact_value_from_below_and_leaves_the_policy_alone(kind):
    generator = torch.Generator().manual_seed(5)
    policy = kind(5, 2, hidden=(8,), generator=generator)
    observation = torch.randn(256, 5, generator=generator)
    action, _ = policy.act(observation, generator)
    before = copy.deepcopy(policy)
    exact, adam = (sampling_error(policy, observation, action, way) for way in ("exact", "adam"))
    assert 0.9 * exact.value < adam.value <= exact.value + 1e-6
    assert adam.parameters == exact.parameters
    for parameter, original in zip(policy.parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, original)
        assert parameter.grad is None


def test_too_few_rows_are_refused():
    policy = CategoricalActorCritic(5, 3, hidden=(8,), generator=torch.Generator().manual_seed(7))
    with pytest.raises(
        ValueError, match="17 rows cannot tell 18 fitted parameters apart; give at least 18 rows"
    ):
        sampling_error(policy, torch.zeros(17, 5), torch.zeros(17, dtype=torch.int64))


def test_bad_values_are_named():
    generator = torch.Generator().manual_seed(8)
    policy = CategoricalActorCritic(5, 3, hidden=(8,), generator=generator)
    observation, action = torch.randn(64, 5, generator=generator), torch.zeros(64, dtype=torch.int64)
    with pytest.raises(ValueError, match="kind: expected 'exact' or 'adam', got 'ols'"):
        sampling_error(policy, observation, action, "ols")
    with pytest.raises(ValueError, match="action: expected 0 to 2, got 0 to 3"):
        sampling_error(policy, observation, action.index_fill(0, torch.tensor(5), 3))
    observation[9, 2] = torch.nan
    with pytest.raises(ValueError, match="the policy output is not finite in every row"):
        sampling_error(policy, observation, action)
