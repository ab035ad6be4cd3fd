"""The natural gradient of a Gaussian without a state, against what it is on paper.

π = N(μ, σ²), f(a) = −(a − c)²: F = diag(1/σ², 2) and w = F⁻¹g = (2(c − μ)σ², −σ²) for (μ, log σ).
"""

import math

import pytest
import torch

from peira.learners.natural_gradient import ActorRows, NaturalGradient
from peira.policies.stacked import StackedGaussianPolicy

ROWS, C = 20_000, 1.0


def rows_of(policy):
    """Quantiles of the policy in the place of draws: what so many draws show on average, without their chance."""
    noise = torch.special.ndtri((torch.arange(ROWS).double() + 0.5) / ROWS)[None, :, None]
    action = policy.activations(torch.zeros(1, ROWS, 1))[-1] + noise * policy.log_std(policy.flat).exp()
    value = -(action[..., 0] - C).square()
    return ActorRows.of(torch.zeros(1, ROWS, 1).double(), action, value - value.mean())


def fresh_policy(mean=0.0, std=1.0):
    """Parameters: the weight of an observation that is always 0, the mean, log σ."""
    policy = StackedGaussianPolicy(1, 1, 1, hidden=())
    policy.flat.copy_(torch.tensor([[0.0, mean, math.log(std)]]))
    return policy


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.4, 0.5)])
def test_the_direction_is_the_one_on_paper(mean, std):
    policy = fresh_policy(mean, std)
    found = NaturalGradient(damping=0.0).direction(policy, rows_of(policy)).solution[0]
    expected = torch.tensor([0.0, 2 * (C - mean) * std**2, -(std**2)]).double()
    torch.testing.assert_close(found, expected, rtol=0.005, atol=1e-9)


def test_damping_enters_each_component():
    policy, damping = fresh_policy(), 0.1
    found = NaturalGradient(damping=damping).direction(policy, rows_of(policy)).solution[0]
    expected = torch.tensor([0.0, 2 * C / (1 + damping), -2 / (2 + damping)]).double()
    torch.testing.assert_close(found, expected, rtol=0.005, atol=1e-9)


def test_the_step_has_the_kl_it_should():
    """w = (2, −1), wᵀFw = 6, scale √(0.02 / 6) = 0.0577; the exact KL of that step is 0.01095, not 0.01."""
    policy = fresh_policy()
    natural = NaturalGradient(damping=0.0)
    rows = rows_of(policy)
    assert natural.direction(policy, rows).curvature.item() == pytest.approx(6, rel=0.005)
    measures = natural.update(policy, rows)
    scale = math.sqrt(0.02 / 6)
    assert scale == pytest.approx(0.0577, abs=5e-5)
    torch.testing.assert_close(
        policy.flat[0], torch.tensor([0.0, 2 * scale, -scale]).double(), rtol=0.005, atol=1e-9
    )
    assert measures["kl"] == pytest.approx(
        -scale + 0.5 * (1 + 4 * scale**2) * math.exp(2 * scale) - 0.5, rel=0.005
    )
    assert measures["kl"] == pytest.approx(0.01095, rel=0.005)
    assert measures["step_fraction"] == 1.0


def test_a_step_whose_kl_is_too_large_is_halved(monkeypatch):
    policy = fresh_policy()
    monkeypatch.setattr("peira.learners.natural_gradient.KL_SLACK", 1.0)
    measures = NaturalGradient(damping=0.0).update(policy, rows_of(policy))
    assert measures["step_fraction"] == 0.5
    assert measures["kl"] < 0.01
