"""Test 2 of ``pgd.md`` 8: one dimension, data N(0, 1), policy N(m, v), the tables of 2.5 and 2.4."""

from dataclasses import replace

import pytest
import torch

from peira.sources.diffusion.closed_form import GaussianLaw, law_of_samples
from peira.sources.diffusion.sampler import OFFICIAL, Sampler

STANDARD = GaussianLaw(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
ONE = slice(0, 1)


def standard(x, sigma):
    """D of independent N(0, 1)."""
    return x / (1 + sigma.square())


def log_density(mean, variance):
    return lambda _, z: -0.5 * (z[..., 0] - mean) ** 2 / variance


def sampled(mean, variance, strength, mode, churn):
    config = replace(OFFICIAL, churn=churn, guidance=mode, strength=strength, sigma_cap=1e9)
    sampler = Sampler(STANDARD.denoiser((1, 1)), config, actions=ONE, log_density=log_density(mean, variance))
    law = law_of_samples(sampler, (1, 1))
    return law.mean.item(), law.covariance.item()


def exact(mean, variance, strength, churn):
    tilted = STANDARD.tilted(
        torch.ones(1, 1, dtype=torch.float64),
        torch.tensor([mean], dtype=torch.float64),
        torch.tensor([variance], dtype=torch.float64),
        strength,
    )
    law = law_of_samples(
        Sampler(tilted.denoiser((1, 1)), replace(OFFICIAL, churn=churn), actions=ONE), (1, 1)
    )
    return law.mean.item(), law.covariance.item()


@pytest.mark.parametrize(
    ("target", "ode", "churned"),
    [
        ((1.0, 1.0, 1.0), (0.496, 0.500), (0.500, 0.507)),
        ((2.0, 0.25, 1.0), (1.591, 0.200), (1.600, 0.203)),
        ((1.0, 1.0, 0.3), (0.228, 0.769), (0.231, 0.779)),
        ((2.0, 0.25, 4.0), (1.877, 0.059), (1.882, 0.060)),
    ],
)
def test_exact_guidance_reaches_the_tilted_law(target, ode, churned):
    assert exact(*target, 0.0) == pytest.approx(ode, abs=1e-3)
    assert exact(*target, 80.0) == pytest.approx(churned, abs=1.5e-3)


def test_exact_guidance_is_the_formula_of_the_specification():
    mean, variance, strength = 2.0, 0.25, 1.5
    tilted = STANDARD.tilted(
        torch.ones(1, 1, dtype=torch.float64),
        torch.tensor([mean], dtype=torch.float64),
        torch.tensor([variance], dtype=torch.float64),
        strength,
    )
    x, sigma = torch.tensor([[[0.7]]], dtype=torch.float64), torch.tensor([1.3], dtype=torch.float64)
    k = 1 / (1 + sigma**2)
    v = sigma**2 * k
    expected = k * x + v * (mean - k * x) / (v + variance / strength)
    torch.testing.assert_close(tilted.denoiser((1, 1))(x, sigma), expected)


@pytest.mark.parametrize(
    ("target", "mode", "ode", "churned"),
    [
        ((1.0, 1.0, 1.0), "dps-full", (0.717, 0.368), (0.542, 0.485)),
        ((2.0, 0.25, 1.0), "dps-full", (2.546, 0.018), (1.697, 0.177)),
        ((1.0, 1.0, 0.3), "dps-full", (0.269, 0.741), (0.242, 0.773)),
        ((2.0, 0.25, 4.0), "dps-full", (2.164, 0.000), (1.926, 0.047)),
        ((1.0, 1.0, 1.0), "stopgrad", (4.39, 0.000), (0.593, 0.460)),
        ((2.0, 0.25, 1.0), "stopgrad", (2.668, 0.000), (1.719, 0.171)),
        ((1.0, 1.0, 0.3), "stopgrad", (8.78, 0.07), (0.300, 0.746)),
    ],
)
def test_approximate_guidance_overshoots_and_churn_pulls_back(target, mode, ode, churned):
    assert sampled(*target, mode, 0.0) == pytest.approx(ode, abs=5e-3)
    assert sampled(*target, mode, 80.0) == pytest.approx(churned, abs=2e-3)


def test_stopgrad_without_its_cap_overflows_and_with_it_does_not():
    uncapped = sampled(2.0, 0.25, 4.0, "stopgrad", 80.0)
    assert abs(uncapped[0]) > 1e20
    config = replace(OFFICIAL, guidance="stopgrad", strength=4.0, sigma_cap=0.2)
    sampler = Sampler(STANDARD.denoiser((1, 1)), config, actions=ONE, log_density=log_density(2.0, 0.25))
    assert law_of_samples(sampler, (1, 1)).mean.item() == pytest.approx(1.9, abs=0.2)


@pytest.mark.parametrize("mode", ["recipe", "dps-after", "dps-before", "dps-full", "stopgrad"])
def test_strength_zero_is_unguided_bit_for_bit(mode):
    plain = Sampler(STANDARD.denoiser((1, 1)), replace(OFFICIAL, steps=32), actions=ONE)
    zero = Sampler(
        STANDARD.denoiser((1, 1)),
        replace(OFFICIAL, steps=32, guidance=mode, strength=0.0),
        actions=ONE,
        log_density=log_density(2.0, 0.25),
    )
    first, second = (
        sampler.sample(50, (1, 1), torch.Generator().manual_seed(3)) for sampler in (plain, zero)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("length", "strength", "mean", "variance"),
    [(1, 0.1, 0.95, 0.04), (32, 0.1, 0.32, 0.54), (32, 0.3, 0.87, 0.04), (192, 0.3, 0.38, 0.46)],
)
def test_the_recipe_depends_on_the_size_of_the_block(length, strength, mean, variance):
    """The table of ``pgd.md`` 2.4: the same λ means less the more entries share the one norm."""
    config = replace(OFFICIAL, strength=strength)
    sampler = Sampler(
        standard,
        config,
        actions=ONE,
        log_density=lambda _, z: -0.5 * (z[..., 0] - 1.0) ** 2,
    )
    drawn = sampler.sample(max(64, 6400 // length), (length, 1), torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(mean, abs=0.03)
    assert drawn.var().item() == pytest.approx(variance, abs=0.04)


def test_normalising_each_step_makes_the_strength_free_of_the_length():
    means = []
    for length in (4, 64):
        config = replace(OFFICIAL, steps=64, strength=0.05, normalise="step")
        sampler = Sampler(
            standard,
            config,
            actions=ONE,
            log_density=lambda _, z: -0.5 * (z[..., 0] - 1.0) ** 2,
        )
        means.append(
            sampler.sample(12_800 // length, (length, 1), torch.Generator().manual_seed(0)).mean().item()
        )
    assert means[0] > 0.2
    assert means[0] == pytest.approx(means[1], abs=0.03)
