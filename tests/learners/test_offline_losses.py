"""Each loss against a value worked out by hand, and where no gradient may go."""

import math

import pytest
import torch

from peira.learners.offline_losses import (
    advantage_weight,
    bootstrapped_target,
    cloning_error,
    critic_loss,
    expectile_loss,
    sac_actor_loss,
    smoothed_action,
    td3_bc_actor_loss,
    temperature_loss,
    weighted_likelihood_loss,
)


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


def test_smoothing_clips_the_noise_and_then_the_action():
    action = torch.tensor([[0.0], [0.9], [0.0], [-0.2]])
    noise = torch.tensor([[1.0], [1.0], [5.0], [-1.0]])
    smoothed = smoothed_action(action, noise, std=0.2, clip=0.5)
    torch.testing.assert_close(smoothed, torch.tensor([[0.2], [1.0], [0.5], [-0.4]]))


def test_a_target_bootstraps_unless_the_episode_terminated():
    target = bootstrapped_target(
        torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0]), torch.tensor([10.0, 10.0]), 0.9
    )
    assert target.tolist() == [10.0, 1.0]


def test_the_critics_loss_is_a_mean_over_members_and_rows_with_a_fixed_target():
    q, target = torch.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True), leaf(1.0, 1.0)
    loss = critic_loss(q, target)
    assert loss.item() == pytest.approx((0 + 1 + 4 + 1) / 4)
    loss.backward()
    assert target.grad is None
    torch.testing.assert_close(q.grad, torch.tensor([[0.0, 0.5], [1.0, -0.5]]))


def test_td3_bc_weighs_the_critic_by_its_own_size():
    q, cloning = leaf(2.0, -6.0), leaf(0.1, 0.3)
    loss = td3_bc_actor_loss(q, cloning, q_weight=2.5, cloning_weight=1.0)
    # λ = 2.5 / mean(2, 6); mean Q = −2; mean error 0.2.
    assert loss.item() == pytest.approx(0.2 + 2.5 / 4 * 2)
    loss.backward()
    torch.testing.assert_close(q.grad, torch.full((2,), -2.5 / 4 / 2))  # none through λ
    torch.testing.assert_close(cloning.grad, torch.full((2,), 0.5))


def test_the_cloning_error_is_a_mean_over_dimensions():
    error = cloning_error(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.5]]))
    assert error.tolist() == [0.625]


def test_the_expectile_leans_upwards():
    value = leaf(0.0, 0.0)
    loss = expectile_loss(value, torch.tensor([1.0, -2.0]), expectile=0.7)
    assert loss.item() == pytest.approx((0.7 * 1 + 0.3 * 4) / 2)
    loss.backward()
    torch.testing.assert_close(value.grad, torch.tensor([-0.7, 0.6]))


def test_the_expectile_of_many_targets_is_the_textbook_one():
    targets = torch.tensor([0.0, 1.0, 3.0])
    value = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        expectile_loss(value.expand(3), targets, 0.8).backward()
        optimizer.step()
    # 0.8 (3 − e) = 0.2 (e − 0) + 0.2 (e − 1) where 1 < e < 3: e = 2.6 / 1.2.
    assert value.item() == pytest.approx(2.6 / 1.2, abs=1e-4)


def test_advantage_weights_are_exponential_limited_and_fixed():
    target, value = leaf(1.0, 5.0), leaf(0.5, 0.0)
    weight = advantage_weight(target, value, inverse_temperature=3.0, most=100.0)
    torch.testing.assert_close(weight, torch.tensor([math.exp(1.5), 100.0]))
    assert not weight.requires_grad


def test_the_weighted_likelihood_is_a_mean():
    assert weighted_likelihood_loss(torch.tensor([-1.0, -3.0]), torch.tensor([2.0, 0.5])).item() == 1.75


def test_sac_trades_entropy_against_the_critic():
    temperature = torch.tensor(0.5, requires_grad=True)
    log_prob, q = leaf(-1.0, -3.0), leaf(2.0, 4.0)
    loss = sac_actor_loss(log_prob, q, temperature)
    assert loss.item() == pytest.approx(0.5 * -2 - 3)
    loss.backward()
    assert temperature.grad is None
    torch.testing.assert_close(q.grad, torch.full((2,), -0.5))


@pytest.mark.parametrize(("log_prob", "rises"), [(3.0, True), (-9.0, False)])
def test_the_temperature_rises_while_the_entropy_is_below_its_target(log_prob, rises):
    log_temperature = torch.tensor(0.0, requires_grad=True)
    temperature_loss(log_temperature, torch.full((4,), log_prob), target_entropy=-2.0).backward()
    # d/dα −α (log π + H̄) = −(3 − 2) or −(−9 − 2).
    assert log_temperature.grad.item() == pytest.approx(-(log_prob - 2))
    assert (log_temperature.grad.item() < 0) == rises
