"""Tests 4 and 5 of ``pgd.md`` 8: what the official guidance must and must not depend on, and its gradient."""

from dataclasses import replace

import pytest
import torch

from peira.policies.denoiser import make_denoiser
from peira.sources.diffusion.sampler import OFFICIAL, Sampler, SamplerConfig
from peira.sources.diffusion.windows import Bounds, Channels
from peira.sources.guided_diffusion import FitConfig, TrajectoryDiffusion
from peira.sources.standardise import Standardiser

CHANNELS, ACTIONS = 4, slice(1, 2)
CONFIG = SamplerConfig(steps=12, churn=3.6)
NETWORK = make_denoiser(
    CHANNELS, features=16, blocks=2, generator=torch.Generator().manual_seed(0)
).requires_grad_(False)


def log_density(s, a):
    return -0.5 * ((a[..., 1] - 0.3 - 0.5 * s[..., 0]) / 0.4) ** 2


def drawn(config=CONFIG, density=log_density, windows=6, length=8):
    sampler = Sampler(NETWORK, config, actions=ACTIONS, log_density=density)
    return sampler.sample(windows, (length, CHANNELS), torch.Generator().manual_seed(1))


def test_scaling_the_density_changes_nothing_once_normalised():
    torch.testing.assert_close(
        drawn(), drawn(density=lambda s, a: 10 * log_density(s, a)), atol=1e-3, rtol=1e-3
    )
    raw = replace(CONFIG, normalise="none", strength=0.01)
    assert not torch.allclose(drawn(raw), drawn(raw, density=lambda s, a: 10 * log_density(s, a)), atol=0.05)


def test_doubling_the_length_lowers_the_shift_by_root_two():
    def shift(length):
        means = []
        for strength in (0.03, 0.0):
            sampler = Sampler(
                lambda x, sigma: x / (1 + sigma.square()),
                replace(OFFICIAL, steps=64, strength=strength),
                actions=slice(0, 1),
                log_density=lambda _, z: -0.5 * (z[..., 0] - 5.0) ** 2,
            )
            generator = torch.Generator().manual_seed(0)
            means.append(sampler.sample(100, (length, 1), generator).mean().item())
        return means[0] - means[1]

    assert shift(64) / shift(128) == pytest.approx(2**0.5, rel=0.03)


def test_permuting_windows_permutes_what_comes_out():
    """The norm is a window's own, not the batch's."""
    order = torch.tensor([3, 0, 2, 1])
    sampler = Sampler(NETWORK, CONFIG, actions=ACTIONS, log_density=log_density)
    generator = torch.Generator().manual_seed(2)
    x, noise = (torch.randn(4, 8, CHANNELS, generator=generator) for _ in range(2))
    x[3] *= 5
    for step in (0, 6, 10):
        torch.testing.assert_close(
            sampler.step(x, step, noise)[order],
            sampler.step(x[order], step, noise[order]),
            atol=1e-4,
            rtol=1e-4,
        )


def test_states_get_no_direct_guidance():
    sampler = Sampler(NETWORK, CONFIG, actions=ACTIONS, log_density=log_density)
    x = torch.randn(4, 8, CHANNELS, generator=torch.Generator().manual_seed(2))
    for step in range(CONFIG.steps):
        moved = sampler._nudged(x, step) - x
        assert torch.equal(moved[..., [0, 2, 3]], torch.zeros(4, 8, 3))
        length = torch.linalg.vector_norm(moved, dim=(1, 2))
        torch.testing.assert_close(
            length, torch.full((4,), CONFIG.recipe_strength(step)), atol=1e-5, rtol=1e-4
        )
    assert CONFIG.recipe_strength(CONFIG.steps - 1) == 0


def test_the_schedule_sums_to_what_the_specification_says():
    strengths = [OFFICIAL.recipe_strength(step) for step in range(256)]
    assert max(strengths) == pytest.approx(1.004, abs=1e-3)
    assert sum(strengths) == pytest.approx(177.4, abs=0.1)


def test_no_gradient_is_no_guidance_where_the_official_norm_gives_nan():
    """g/‖g‖ + 1e-8, as the official code's precedence has it, is NaN at the mean of the policy."""
    flat = drawn(density=lambda _, a: 0.0 * a[..., 1])
    assert torch.equal(flat, drawn(density=None))
    gradient = torch.zeros(3)
    assert (gradient / gradient.norm() + 1e-8).isnan().all()


def test_clamped_gradients_stay_within_the_clamp():
    sampler = Sampler(
        NETWORK,
        replace(CONFIG, normalise="none", gradient_clamp=1.0),
        actions=ACTIONS,
        log_density=lambda s, a: 1000 * log_density(s, a),
    )
    x = torch.randn(4, 8, CHANNELS, generator=torch.Generator().manual_seed(2))
    moved = (sampler._nudged(x, 0) - x)[..., 1]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, CONFIG.recipe_strength(0)))


def test_a_saturated_action_gets_a_finite_gradient():
    model = guided_model(mean=0.2, deviation=0.8, low=-1.0, high=1.0)
    density = model.log_density(Gaussian(0.3, 0.5))
    z = torch.tensor([[[0.0, 400.0, 0.0, 0.0]]])
    sampler = Sampler(lambda x, sigma: x, CONFIG, actions=ACTIONS, log_density=density)
    assert torch.equal(sampler._nudged(z, 0), z)


class Gaussian:
    def __init__(self, mean, deviation):
        self._mean, self._deviation = mean, deviation

    def mode(self, observation):
        return torch.full_like(observation[..., :1], self._mean)

    def log_prob(self, observation, action):
        return (-0.5 * ((action - self.mode(observation)) / self._deviation).square()).sum(-1)


def guided_model(mean, deviation, low, high):
    scores = Standardiser(
        torch.tensor([0.0, mean, 0.0, 0.0]), torch.tensor([1.0, deviation, 1.0, 1.0]), torch.zeros(4).bool()
    )
    channels = Channels(1, Bounds(torch.tensor([low]), torch.tensor([high])), scores)
    return TrajectoryDiffusion(FitConfig(compiled=False), channels, NETWORK)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-2.0, 4.0)])
def test_gradient_goes_through_tanh_and_scale_with_no_jacobian_term(low, high):
    """dlog π/dz = −(a − m)/s² · (1 − tanh²)·half·σ_u, and not the −2·tanh·σ_u of a change of density."""
    mean, deviation, m, s = 0.2, 0.8, 0.3, 0.5
    density = guided_model(mean, deviation, low, high).log_density(Gaussian(m, s))
    z = torch.tensor([[[0.0, value, 0.0, 0.0] for value in (-1.5, -0.2, 0.4, 1.1)]], requires_grad=True)
    (gradient,) = torch.autograd.grad(density(z.detach(), z).sum(), z)
    unit = (mean + deviation * z.detach().double()[..., 1]).tanh()
    half, middle = (high - low) / 2, (high + low) / 2
    expected = -(middle + half * unit - m) / s**2 * half * (1 - unit**2) * deviation
    torch.testing.assert_close(gradient[..., 1].double(), expected, atol=1e-5, rtol=1e-5)

    def exact(value):
        action = middle + half * torch.tanh(mean + deviation * value)
        return -0.5 * ((action - m) / s) ** 2

    at = z.detach().double()[..., 1]
    finite = (exact(at + 1e-5) - exact(at - 1e-5)) / 2e-5
    torch.testing.assert_close(finite, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(gradient[..., [0, 2, 3]], torch.zeros(1, 4, 3))
    with_jacobian = expected - 2 * unit * deviation
    assert (gradient[..., 1].double() - with_jacobian).abs().max() > 0.1
