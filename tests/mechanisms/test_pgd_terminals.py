"""Test 6 of ``pgd.md`` 8: terminals come out of the model as often as they are in its windows."""

from dataclasses import replace

import pytest
import torch

from peira.experience.transitions import TransitionLog
from peira.sources.diffusion.sampler import SamplerConfig
from peira.sources.diffusion.windows import transitions_of
from peira.sources.guided_diffusion import DiffusionFit, FitConfig, generate

LENGTH, EPISODES = 4, 600


def two_state_log():
    """States ±1 that alternate, actions of their own; 30 % of episodes terminate, the others are cut one step later."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(EPISODES, generator=generator) < 0.3
    # An episode of 3 steps that terminates makes one window of 4 with its pad; one of 5 steps cut makes one of 4 too.
    lengths = torch.where(ends, LENGTH - 1, LENGTH + 1)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    rows = int(first[-1])
    last = torch.zeros(rows, dtype=torch.bool)
    last[first[1:] - 1] = True
    episode = torch.repeat_interleave(torch.arange(EPISODES), lengths)
    place = torch.arange(rows) - first[episode]
    state = torch.where((place + episode) % 2 == 0, 1.0, -1.0)[:, None]
    return TransitionLog(
        observation=state,
        action=torch.rand(rows, 1, generator=generator) - 0.5,
        reward=state.squeeze(1),
        next_observation=-state,
        terminated=last & ends[episode],
        truncated=last & ~ends[episode],
        first=first,
    )


CONFIG = FitConfig(
    length=LENGTH,
    stride=1,
    features=16,
    blocks=2,
    updates=500,
    batch_size=256,
    learning_rate=4e-3,
    ema_decay=0.9,
    compiled=False,
)


def test_terminal_transitions_are_as_frequent_as_in_the_data():
    training = DiffusionFit(two_state_log(), CONFIG, 0)
    training.advance(CONFIG.updates)
    windows = training.windows
    real = transitions_of(windows.channels, windows.at(windows.start)).terminated.float().mean().item()
    assert real == pytest.approx(0.1, abs=0.02)
    sampler = SamplerConfig(steps=32, churn=9.6)
    z = generate(training.model(), None, sampler, 10_000, torch.Generator().manual_seed(0))
    made = transitions_of(windows.channels, z)
    assert made.terminated.float().mean().item() == pytest.approx(real, rel=0.2)
    # The pad step is gone: nothing follows a terminal within its window.
    assert bool((made.terminated | made.truncated)[made.first[1:] - 1].all())


def test_the_official_slicing_loses_them():
    """Without the pad a terminal is the last step of its window, which has no successor there."""
    config = replace(CONFIG, length=LENGTH - 1, terminal_pad=False)
    windows = DiffusionFit(two_state_log(), config, 0).windows
    z = windows.at(windows.start)
    assert (windows.channels.raw(z)[:, -1, -1] > 0.5).float().mean().item() > 0.1
    assert not bool(transitions_of(windows.channels, z).terminated.any())
