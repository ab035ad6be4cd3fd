"""Test 3 of ``pgd.md`` 8: whole trajectories of a linear-Gaussian chain, tilted and sampled in closed form."""

from dataclasses import replace

import pytest
import torch

from peira.sources.diffusion.closed_form import along, law_of_samples, linear_chain
from peira.sources.diffusion.sampler import OFFICIAL, Sampler

STEPS = 4
DATA = linear_chain(STEPS)
TARGET = along(STEPS, [(1, 1.0), (0, 0.8)])
BEHAVIOUR = along(STEPS, [(1, 1.0), (0, 0.2)])
RESIDUAL = along(STEPS, [(2, 1.0), (0, -0.9), (1, -0.5)], last=1)
NOTHING, QUARTER = torch.zeros(STEPS, dtype=torch.float64), torch.full((STEPS,), 0.25, dtype=torch.float64)
TILTED = DATA.tilted(TARGET, NOTHING, QUARTER)


def log_density(s, a):
    return -0.5 * (a[..., 1] + 0.8 * s[..., 0]) ** 2 / 0.25


def behaviour_density(s, a):
    return -0.5 * (a[..., 1] + 0.2 * s[..., 0]) ** 2 / 0.25


def sampled(mode, **settings):
    config = replace(OFFICIAL, churn_noise=1.0, guidance=mode, **settings)
    sampler = Sampler(
        DATA.denoiser((STEPS, 2)),
        config,
        actions=slice(1, 2),
        log_density=log_density,
        behaviour_density=behaviour_density,
    )
    return law_of_samples(sampler, (STEPS, 2))


def holds(law, states, actions, residual, gap, within=6e-4):
    variance = law.covariance.diag()
    assert variance[0::2].tolist() == pytest.approx(states, abs=within)
    assert variance[1::2].tolist() == pytest.approx(actions, abs=within)
    assert law.variance_along(RESIDUAL).tolist() == pytest.approx(residual, abs=within)
    assert law.variance_along(TARGET)[0].item() == pytest.approx(gap, abs=within)


def test_behaviour():
    holds(DATA, [1, 0.8025, 0.6761, 0.5952], [0.29, 0.2821, 0.2770, 0.2738], [0.1] * 3, 0.61)


def test_on_policy_law_by_dividing_by_the_behaviour():
    expected = [1, 0.4125, 0.2656, 0.2289], [0.89, 0.5140, 0.4200, 0.3965], [0.1] * 3, 0.25
    holds(linear_chain(STEPS, gain=-0.8), *expected)
    divided = TILTED.tilted(BEHAVIOUR, NOTHING, QUARTER, -1.0)
    torch.testing.assert_close(divided.covariance, linear_chain(STEPS, gain=-0.8).covariance)


def test_the_tilted_law_shrinks_states_and_residuals():
    expected = [0.4709, 0.2669, 0.2042, 0.1919], [0.2580, 0.1982, 0.1791, 0.1730], [0.0923, 0.0921, 0.0938]
    holds(TILTED, *expected, 0.1534)


@pytest.mark.parametrize(
    ("mode", "states", "actions", "residual", "gap"),
    [
        (
            "dps-after",
            [1.627, 1.000, 0.681, 0.490],
            [0.459, 0.325, 0.264, 0.236],
            [0.1107, 0.1098, 0.1050],
            0.332,
        ),
        (
            "dps-before",
            [3.759, 1.990, 1.074, 0.616],
            [1.006, 0.602, 0.382, 0.272],
            [0.1109, 0.1050, 0.1014],
            0.505,
        ),
        (
            "dps-full",
            [0.428, 0.231, 0.176, 0.171],
            [0.253, 0.189, 0.169, 0.164],
            [0.0922, 0.0919, 0.0939],
            0.137,
        ),
    ],
)
def test_each_placement_of_the_mask_has_its_law(mode, states, actions, residual, gap):
    holds(sampled(mode), states, actions, residual, gap)


def test_full_guidance_less_the_behaviours_is_near_the_on_policy_law():
    """κ = λ = 1 with gradients of states and actions targets the on-policy law (``pgd.md`` 2.5)."""
    on_policy = linear_chain(STEPS, gain=-0.8).covariance.diag()
    guided = (sampled("dps-full").covariance.diag() - on_policy).abs().sum()
    corrected = (sampled("dps-full", negative_behaviour=1.0).covariance.diag() - on_policy).abs().sum()
    assert corrected < 0.5 * guided


def test_redrawing_actions_at_data_states_is_told_apart():
    """The easy imitation: a ~ π at the data's states, nothing else moved."""
    map_ = torch.eye(2 * STEPS, dtype=torch.float64)
    noise = torch.zeros(2 * STEPS, dtype=torch.float64)
    for step in range(STEPS):
        map_[2 * step + 1] = 0
        map_[2 * step + 1, 2 * step] = -0.8
        noise[2 * step + 1] = 0.25
    covariance = map_ @ DATA.covariance @ map_.mT + noise.diag()
    fake = replace(DATA, covariance=covariance)
    assert covariance.diag()[0::2].tolist() == pytest.approx(DATA.covariance.diag()[0::2].tolist())
    assert fake.variance_along(TARGET).tolist() == pytest.approx([0.25] * STEPS)
    states = DATA.covariance.diag()[0:6:2]
    expected = 0.1 + 0.25 * (0.25 + 0.25 + 0.36 * states)
    torch.testing.assert_close(fake.variance_along(RESIDUAL), expected)
    assert fake.variance_along(RESIDUAL)[0].item() == pytest.approx(0.315)
    assert sampled("dps-full").variance_along(RESIDUAL)[0].item() < 0.1
