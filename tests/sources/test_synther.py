"""SynthER: transitions out of a diffusion model without a policy; terminals, bounds, training that resumes."""

import copy
from dataclasses import replace

import pytest
import torch

from peira.experience.schema import Source, validate
from peira.experience.transitions import TransitionLog
from peira.sources.diffusion.sampler import SamplerConfig
from peira.sources.synther import SyntherConfig, SyntherFit, SyntherSource
from peira.sources.synthetic import invent

CONFIG = SyntherConfig(
    width=32,
    blocks=2,
    updates=500,
    batch_size=128,
    learning_rate=4e-3,
    ema_decay=0.9,
    low=(-2.0,),
    high=(2.0,),
    compiled=False,
)
SAMPLER = SamplerConfig(steps=24, churn=7.2)


def log_of(rows=3000):
    """s' = s + a, reward −s; terminal, a quarter of the time, where s > 0.674."""
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(rows, 1, generator=generator)
    action = torch.rand(rows, 1, generator=generator) * 4 - 2
    ends = state[:, 0] > 0.674
    return TransitionLog(state, action, -state[:, 0], state + action, ends, ~ends, torch.arange(rows + 1))


def test_transitions_hang_together_and_terminals_are_as_frequent():
    fit = SyntherFit(log_of(), CONFIG, 0)
    fit.advance(CONFIG.updates)
    made = invent(
        SyntherSource(fit, transitions=3000, sampler=SAMPLER), None, torch.Generator().manual_seed(0)
    )
    log = made.transitions
    assert (made.source, made.policy_version, log.rows) == (Source.DREAMED, None, 3000)
    assert (log.next_observation - log.observation - log.action).square().mean().item() < 0.3
    assert log.terminated.float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert (log.observation[log.terminated, 0] > 0.674).float().mean().item() > 0.8
    assert torch.equal(log.truncated, ~log.terminated)
    assert log.action.abs().max() <= 2.0
    validate(made.to_table([f"{n:026d}" for n in range(made.transitions.episodes)]))


def test_the_terminal_is_not_z_scored():
    fit = SyntherFit(log_of(), CONFIG, 0)
    assert fit.scores.mean[-1] == 0.0 and fit.scores.deviation[-1] == 1.0
    assert fit.scores.deviation[0].item() == pytest.approx(1.0, abs=0.05)


def test_training_resumes_bit_for_bit():
    config = replace(CONFIG, updates=12)
    whole, begun = (SyntherFit(log_of(), config, 0) for _ in range(2))
    whole.advance(12)
    begun.advance(5)
    resumed = SyntherFit(log_of(), config, 0)
    resumed.load_state_dict(copy.deepcopy(begun.state_dict()))
    resumed.advance(100)
    assert resumed.is_over and resumed.step == 12
    for a, b in zip(whole.denoiser().parameters(), resumed.denoiser().parameters(), strict=True):
        assert torch.equal(a, b)


def test_actions_outside_the_bounds_are_refused():
    with pytest.raises(ValueError, match=r"action: .* rows lie outside"):
        SyntherFit(log_of(), replace(CONFIG, low=(-1.0,), high=(1.0,)), 0)
