"""ROS and ROA for actor-critics: φ against autograd row by row, dropped rows, restart, independence of θ."""

import math

import numpy as np
import pytest
import torch

from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.sources.ros import (
    RobustOnPolicyActing,
    RobustOnPolicySampler,
    robust_policy,
    running_mean_gradient,
    under_sampled_policy,
)

KINDS = [GaussianActorCritic, CategoricalActorCritic]
ALPHA = 0.3


def target_and_rows(kind, rows=40, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    target = kind(4, 2, hidden=(8,), generator=generator, **options)
    observation = torch.randn(rows, 4, generator=generator)
    return target, observation, target.act(observation, generator)[0]


def expected_parameters(target, observation, action):
    """θ − α · mean over rows of ∇ log π_θ(a|s), one row at a time."""
    named = target.actor_parameters()
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for row in range(len(observation)):
        log_prob = target.log_prob(observation[row : row + 1], action[row : row + 1]).sum()
        for gradient, name in zip(torch.autograd.grad(log_prob, list(named.values())), named, strict=True):
            total[name] += gradient
    return {name: named[name] - ALPHA * total[name] / len(observation) for name in named}


def assert_acts_with(policy, expected):
    own = policy.actor_parameters()
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_follow_the_mean_gradient_at_the_target(kind):
    target, observation, action = target_and_rows(kind)
    sampler = RobustOnPolicySampler(ALPHA)
    for rows in (0, 1, 7, 40):
        new = rows - {0: 0, 1: 0, 7: 1, 40: 7}[rows]
        metrics = sampler.update(target, observation[:rows], action[:rows], new)
        assert metrics["ros_rows_differentiated"] == new
        if rows:
            assert_acts_with(sampler.policy, expected_parameters(target, observation[:rows], action[:rows]))
        else:
            assert_acts_with(sampler.policy, target.actor_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_rows_and_a_new_version_are_noticed(kind):
    target, observation, action = target_and_rows(kind)
    sampler = RobustOnPolicySampler(ALPHA)
    sampler.update(target, observation[:30], action[:30], 30)

    metrics = sampler.update(target, observation[10:40], action[10:40], 10)
    assert metrics["ros_rows_differentiated"] == 30
    assert_acts_with(sampler.policy, expected_parameters(target, observation[10:], action[10:]))

    with torch.no_grad():
        target.actor_head.weight.add_(0.1)
    target.version += 1
    metrics = sampler.update(target, observation[10:40], action[10:40], 0)
    assert metrics["ros_rows_differentiated"] == 30
    assert_acts_with(sampler.policy, expected_parameters(target, observation[10:], action[10:]))


@pytest.mark.parametrize("kind", KINDS)
def test_last_layer_only(kind):
    target, observation, action = target_and_rows(kind)
    sampler = RobustOnPolicySampler(ALPHA, parameters="last-layer")
    sampler.update(target, observation, action, len(observation))
    expected = expected_parameters(target, observation, action)
    last = {"actor_head.weight", "actor_head.bias", "log_std"}
    original = target.actor_parameters()
    assert_acts_with(sampler.policy, {n: expected[n] if n in last else original[n] for n in expected})


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_neither_changed_nor_shared(kind):
    target, observation, action = target_and_rows(kind)
    before = {name: parameter.clone() for name, parameter in target.named_parameters()}
    sampler = RobustOnPolicySampler(ALPHA)
    sampler.update(target, observation, action, len(observation))
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    own = {parameter.data_ptr() for parameter in sampler.policy.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in target.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_restarted_sampler_goes_on_bit_for_bit(kind):
    target, observation, action = target_and_rows(kind)
    undisturbed = RobustOnPolicySampler(ALPHA)
    undisturbed.update(target, observation[:15], action[:15], 15)
    restarted = RobustOnPolicySampler(ALPHA)
    restarted.load_state_dict(undisturbed.state_dict())
    for sampler in (undisturbed, restarted):
        metrics = sampler.update(target, observation[:29], action[:29], 14)
        assert metrics["ros_rows_differentiated"] == 14
    theirs = undisturbed.policy.state_dict()
    for name, value in restarted.policy.state_dict().items():
        assert not torch.is_tensor(value) or torch.equal(value, theirs[name])


def test_misuse_is_explained():
    target, observation, action = target_and_rows(CategoricalActorCritic)
    with pytest.raises(
        RuntimeError, match=r"no policy yet; call update\(target, observation, action, new=0\)"
    ):
        _ = RobustOnPolicySampler(ALPHA).policy
    with pytest.raises(ValueError, match="new: expected between 0 and the 40 rows given, got 41"):
        RobustOnPolicySampler(ALPHA).update(target, observation, action, 41)
    with pytest.raises(ValueError, match="parameters: expected 'all' or 'last-layer', got 'head'"):
        RobustOnPolicySampler(ALPHA, parameters="head")
    with pytest.raises(ValueError, match=r"rho: expected a probability, got 1\.5"):
        RobustOnPolicyActing(1.5)


@pytest.fixture
def tabular():
    """A softmax table over three states as an actor-critic, forty rows, and the table's own mean gradient."""
    generator = torch.Generator().manual_seed(3)
    target = CategoricalActorCritic(3, 3, hidden=(), bias=False, normalise=False, generator=generator)
    with torch.no_grad():
        target.actor_head.weight.copy_(torch.randn(3, 3, generator=generator))
    state = torch.randint(3, (40,), generator=generator)
    observation = torch.eye(3)[state]
    action, _ = target.act(observation, generator)
    table = target.distribution(torch.eye(3)).probs.detach().double().numpy()
    gradient = np.zeros((1, 3, 3))
    for step in range(40):
        at = state[step : step + 1].numpy()
        gradient = running_mean_gradient(gradient, step, table[at], at, action[step : step + 1].numpy())
    return target, observation, action, table, gradient[0]


def test_a_tabular_actor_critic_acts_as_the_tables_do(tabular):
    target, observation, action, table, gradient = tabular
    sampler = RobustOnPolicySampler(alpha=20.0)
    sampler.update(target, observation, action, 40)
    acting = sampler.policy.distribution(torch.eye(3)).probs.double().numpy()
    np.testing.assert_allclose(acting, robust_policy(table, gradient, 20.0), rtol=1e-4)


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0])
def test_acting_agrees_with_the_tables(tabular, rho):
    target, observation, action, table, gradient = tabular
    acting = RobustOnPolicyActing(rho)
    acting.update(target, observation, action, 40)
    expected = under_sampled_policy(table, gradient, 40, rho)
    generator = torch.Generator().manual_seed(0)
    counts, states = np.zeros((3, 3)), np.tile(np.arange(3), 20)
    for _ in range(100):
        chosen, log_prob = acting.act(target, torch.eye(3).repeat(20, 1), generator)
        np.testing.assert_allclose(log_prob.exp().numpy(), expected[states, chosen.numpy()], rtol=1e-4)
        np.add.at(counts, (states, chosen.numpy()), 1)
    np.testing.assert_allclose(counts / 2000, expected, atol=0.05)


def test_acting_before_any_row_prefers_the_most_likely_action(tabular):
    target, observation, action, table, _ = tabular
    acting = RobustOnPolicyActing(1.0)
    acting.update(target, observation[:0], action[:0], 0)
    chosen, log_prob = acting.act(target, torch.eye(3), torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(chosen.numpy(), table.argmax(axis=1))
    np.testing.assert_allclose(log_prob.numpy(), 0.0, atol=1e-6)


def test_acting_with_one_continuous_action_takes_the_quantile_that_repairs():
    generator = torch.Generator().manual_seed(4)
    target = GaussianActorCritic(2, 1, hidden=(), generator=generator)
    acting = RobustOnPolicyActing(1.0)
    observation = torch.zeros(5, 2)
    # All data two deviations above the mean: the sums are 10 for the mean's bias and 15 for log σ, to which a
    # candidate z adds z and z² − 1. Of the nine quantiles the third leaves the least |10 + z| + |14 + z²|.
    acting.update(target, observation, torch.full((5, 1), 2.0), 5)
    chosen, log_prob = acting.act(target, observation[:3], generator)
    assert log_prob is None
    third = torch.special.ndtri(torch.tensor(0.3)).item()
    torch.testing.assert_close(chosen, torch.full((3, 1), third))

    on_policy, _ = RobustOnPolicyActing(0.0).act(target, torch.zeros(20_000, 2), generator)
    assert on_policy.mean().item() == pytest.approx(0.0, abs=4 / math.sqrt(20_000))
    assert on_policy.std().item() == pytest.approx(1.0, rel=0.03)


def test_acting_refuses_several_continuous_dimensions():
    target, observation, action = target_and_rows(GaussianActorCritic)
    acting = RobustOnPolicyActing(0.5)
    acting.update(target, observation, action, 40)
    with pytest.raises(ValueError, match="continuous actions need one dimension"):
        acting.act(target, observation, torch.Generator().manual_seed(0))
