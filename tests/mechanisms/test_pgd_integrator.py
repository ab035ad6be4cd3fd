"""Test 1 of ``pgd.md`` 8: the sampler's own variance on data N(0, 1), and what the official code's step makes of it."""

import math
from dataclasses import replace

import pytest
import torch

from peira.sources.diffusion.closed_form import GaussianLaw, law_of_samples
from peira.sources.diffusion.sampler import OFFICIAL, Sampler

STANDARD = GaussianLaw(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))


class FromTheUnchurned(Sampler):
    """The official code's step: the slope is taken at x̂, the step begins at x."""

    def step(self, x, step, noise):
        sigma, after = self.levels[step], self.levels[step + 1]
        raised = self.config.raised(sigma)
        churned = x
        if raised > sigma:
            churned = x + math.sqrt(raised**2 - sigma**2) * self.config.churn_noise * noise
        slope = (churned - self._denoised(churned, raised)) / raised
        following = x + (after - raised) * slope
        if after > 0 and self.config.order == "heun":
            corrected = (following - self._denoised(following, after)) / after
            following = churned + (after - raised) * (slope + corrected) / 2
        return following


def variance(kind, **settings) -> float:
    sampler = kind(STANDARD.denoiser((1, 1)), replace(OFFICIAL, **settings), actions=slice(0, 1))
    return law_of_samples(sampler, (1, 1)).covariance.item()


@pytest.mark.parametrize(
    ("settings", "expected", "within"),
    [({}, 1.0126, 1e-4), ({"churn": 0.0}, 1.0002, 1e-4), ({"order": "euler"}, 0.865, 1e-3)],
)
def test_variance_is_that_of_the_integrator(settings, expected, within):
    assert variance(Sampler, **settings) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize(
    ("settings", "expected", "within"), [({}, 1.061, 1e-3), ({"order": "euler"}, 0.0035, 1e-4)]
)
def test_stepping_from_the_unchurned_window_is_told_apart(settings, expected, within):
    assert variance(FromTheUnchurned, **settings) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize(
    ("steps", "expected"), [(256, 1.007), (128, 1.017), (64, 1.037), (32, 1.090), (16, 1.277)]
)
def test_few_steps_disperse_too_much(steps, expected):
    """``pgd.md`` 2.10, with S_noise 1."""
    found = variance(Sampler, steps=steps, churn_noise=1.0)
    assert found == pytest.approx(expected, abs=1e-3)


def test_sampling_agrees_with_the_propagated_law():
    config = replace(OFFICIAL, steps=16)
    sampler = Sampler(STANDARD.denoiser((1, 1)), config, actions=slice(0, 1))
    drawn = sampler.sample(20_000, (1, 1), torch.Generator().manual_seed(0)).double()
    assert drawn.var().item() == pytest.approx(law_of_samples(sampler, (1, 1)).covariance.item(), rel=0.05)
