"""EDM's denoiser: sizes, preconditioning, any length, averaging, and training that resumes bit for bit."""

import copy

import pytest
import torch

from peira.policies.denoiser import (
    CompiledDenoiser,
    Denoiser,
    DenoiserTraining,
    MovingAverage,
    TemporalUNet,
    TrainingSettings,
    denoising_loss,
    learning_rate_at,
    make_denoiser,
    noise_levels,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("features", "millions"), [(1024, 178), (128, 2.8), (64, 0.70)])
def test_the_official_network_has_as_many_parameters_as_counted(features, millions):
    with torch.device("meta"):
        network = TemporalUNet(25, features=features, blocks=3, time_features="sinusoidal")
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("network", ["unet", "transformer"])
@pytest.mark.parametrize("time_features", ["fourier", "sinusoidal"])
@pytest.mark.parametrize("length", [1, 7, 32, 33])
def test_any_length_comes_out_as_it_went_in(network, time_features, length):
    denoiser = make_denoiser(5, network=network, features=16, time_features=time_features, generator=seeded())
    x = torch.randn(3, length, 5, generator=seeded(1))
    for sigma in (torch.tensor([2.0]), torch.tensor([0.1, 2.0, 50.0])):
        assert denoiser(x, sigma).shape == x.shape


@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_one_level_for_all_is_that_level_for_each(network):
    denoiser = make_denoiser(4, network=network, features=16, generator=seeded())
    torch.nn.init.normal_(denoiser.network.out.weight, generator=seeded(2))
    x = torch.randn(3, 8, 4, generator=seeded(1))
    torch.testing.assert_close(denoiser(x, torch.tensor([0.7])), denoiser(x, torch.full((3,), 0.7)))
    assert not torch.allclose(denoiser(x, torch.tensor([0.7])), denoiser(x, torch.tensor([0.8])))


@pytest.mark.parametrize(("network", "features"), [("unet", 20), ("transformer", 12)])
def test_widths_that_do_not_divide_are_refused(network, features):
    with pytest.raises(ValueError, match=f"features: expected a multiple of 8, got {features}"):
        make_denoiser(4, network=network, features=features)


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x, feature):
        self.seen = x, feature
        return torch.full_like(x, self.value)


def test_preconditioning_is_table_1_of_edm():
    denoiser = Denoiser(Constant(3.0))
    x, sigma = torch.full((1, 2, 2), 5.0), torch.tensor([2.0])
    expected = 5 / 5 + 2 / 5**0.5 * 3
    torch.testing.assert_close(denoiser(x, sigma), torch.full((1, 2, 2), expected))
    seen, feature = denoiser.network.seen
    torch.testing.assert_close(seen, torch.full((1, 2, 2), 5 / 5**0.5))
    torch.testing.assert_close(feature, torch.log(sigma) / 4)


def test_a_fresh_denoiser_scales_and_its_loss_is_one_at_every_level():
    """The last layer begins at 0: D is c_skip·x, the best linear guess for uncorrelated data of deviation 1."""
    denoiser = make_denoiser(4, features=16, generator=seeded())
    clean, noise = (torch.randn(4000, 8, 4, generator=seeded(seed)) for seed in (1, 2))
    for level in (0.01, 1.0, 50.0):
        sigma = torch.full((4000,), level)
        torch.testing.assert_close(denoiser(clean, sigma[:1]), clean / (1 + level**2))
        assert denoising_loss(denoiser, clean, noise, sigma)[0].item() == pytest.approx(1.0, rel=0.03)


def test_noise_levels_are_log_normal():
    logs = noise_levels(100_000, seeded()).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.02)
    assert logs.std().item() == pytest.approx(1.2, abs=0.02)


def test_learning_rate_warms_up_for_a_tenth_and_falls_to_zero():
    assert learning_rate_at(0, 1000, 1.0) == pytest.approx(0.1)
    assert learning_rate_at(50, 1000, 1.0) == pytest.approx(0.55)
    assert learning_rate_at(100, 1000, 1.0) == pytest.approx(1.0)
    assert learning_rate_at(550, 1000, 1.0) == pytest.approx(0.5)
    assert learning_rate_at(999, 1000, 1.0) == pytest.approx(0.0, abs=1e-5)


def test_average_moves_at_every_tenth_call_and_forgets_where_it_began():
    average = MovingAverage(torch.zeros(2), decay=0.995, every=10)
    for _ in range(25):
        average.update(torch.ones(2))
    torch.testing.assert_close(average.average, torch.full((2,), 1 - 1 / 10 * 2 / 11))
    average = MovingAverage(torch.zeros(2), decay=0.5, every=1)
    for _ in range(20):
        average.update(torch.ones(2))
    average.update(torch.zeros(2))
    torch.testing.assert_close(average.average, torch.full((2,), 0.5))


def trained(compiled=False, blocks=2):
    denoiser = make_denoiser(3, features=8, blocks=blocks, generator=seeded())
    settings = TrainingSettings(
        updates=40, batch_size=16, learning_rate=3e-3, ema_decay=0.5, ema_every=2, compiled=compiled
    )
    return DenoiserTraining(denoiser, settings, seeded(1))


def windows(count):
    return torch.linspace(-1, 1, 6).view(1, 6, 1).expand(count, 6, 3).clone()


def test_training_resumes_bit_for_bit():
    whole, begun = trained(), trained()
    whole.advance(40, windows)
    begun.advance(13, windows)
    state = copy.deepcopy(begun.state_dict())
    resumed = trained()
    resumed.load_state_dict(state)
    resumed.advance(100, windows)
    assert resumed.is_over and whole.is_over and resumed.step == 40
    for (name, a), b in zip(
        whole.denoiser.state_dict().items(), resumed.denoiser.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert torch.equal(whole.average.average, resumed.average.average)


def test_training_lowers_the_loss_and_the_average_lags_behind():
    training = trained()
    first = training.advance(5, windows)
    assert training.advance(35, windows) < 0.9 * first
    averaged = training.averaged(make_denoiser(3, features=8, blocks=2))
    ours, theirs = (dict(d.named_parameters()) for d in (averaged, training.denoiser))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(p.requires_grad for p in averaged.parameters())


def test_a_loss_that_is_not_finite_names_the_learning_rate():
    training = trained()
    with pytest.raises(ValueError, match="learning_rate: the denoising loss is nan"):
        training.advance(2, lambda count: windows(count) * torch.nan)


def test_compiled_forms_agree_with_the_plain_ones():
    plain, native = trained(blocks=1), trained(compiled=True, blocks=1)
    for training in (plain, native):
        training.advance(3, windows)
    for a, b in zip(plain.denoiser.parameters(), native.denoiser.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    denoiser = plain.averaged(make_denoiser(3, features=8, blocks=1))
    compiled = CompiledDenoiser(denoiser)
    for level in (0.01, 40.0):
        x, sigma = torch.randn(5, 6, 3, generator=seeded(3)), torch.tensor([level])
        torch.testing.assert_close(compiled(x, sigma), denoiser(x, sigma), atol=1e-5, rtol=1e-4)
