"""Only the lower clip of the behaviour loss acts: down to the ratio 1 − ε_B every action is pushed down."""

from functools import partial

import pytest
import torch

from peira.learners.ppo import clipped_surrogate
from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.sources.props import behaviour_loss, distribution_parameters, lower_clipped_ratio

CLIP = 0.3


def gradient_at(loss, ratio):
    """d loss / d log π_φ(a|s) for one stored action whose ratio π_φ/π_θ is `ratio`."""
    log_ratio = torch.tensor([ratio]).log().requires_grad_()
    return torch.autograd.grad(loss(log_ratio), log_ratio)[0].item()


def two_sided(log_ratio):
    return log_ratio.exp().clamp(1 - CLIP, 1 + CLIP).mean()


def assert_lower_clip_only(loss):
    assert gradient_at(loss, 1 - CLIP - 0.01) == 0.0
    for ratio in (1 - CLIP + 0.01, 1.0, 1 + CLIP + 0.5):
        assert gradient_at(loss, ratio) == pytest.approx(ratio, rel=1e-6)


def test_gradient_stops_below_the_lower_clip_and_nowhere_else():
    assert_lower_clip_only(partial(lower_clipped_ratio, clip=CLIP))


def test_a_clip_on_both_sides_fails():
    with pytest.raises(AssertionError):
        assert_lower_clip_only(two_sided)


def test_the_loss_is_ppos_surrogate_with_advantage_minus_one():
    log_ratio = torch.tensor([0.2, 0.69, 0.71, 1.0, 1.29, 1.31, 4.0]).log()
    surrogate = clipped_surrogate(log_ratio, -torch.ones(7), CLIP)
    assert lower_clipped_ratio(log_ratio, CLIP).item() == pytest.approx(surrogate.item(), rel=1e-6)


@pytest.mark.parametrize("kind", [GaussianActorCritic, CategoricalActorCritic])
@pytest.mark.parametrize("kl_penalty", [0.0, 0.3])
def test_at_the_target_the_gradient_is_the_mean_of_grad_log_prob(kind, kl_penalty):
    generator = torch.Generator().manual_seed(1)
    policy = kind(4, 3, hidden=(8,), generator=generator)
    observation = torch.randn(50, 4, generator=generator)
    action, log_prob = policy.act(observation, generator)
    with torch.no_grad():
        parameters = distribution_parameters(policy.distribution(observation))
    named = policy.actor_parameters()

    expected = torch.autograd.grad(policy.log_prob(observation, action).mean(), list(named.values()))
    loss, measures = behaviour_loss(
        policy, observation, action, log_prob, *parameters, clip=CLIP, kl_penalty=kl_penalty
    )
    found = torch.autograd.grad(loss, list(named.values()))

    assert any(gradient.abs().max() > 1e-2 for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    torch.testing.assert_close(measures, torch.zeros(3), rtol=0, atol=1e-6)
