"""How a log becomes windows, by hand: starts, pads, timeouts, bounds, channels that never move."""

import pytest
import torch

from peira.experience.transitions import TransitionLog
from peira.sources.diffusion.windows import Bounds, bounds_of, cut_windows, transitions_of

UNIT = Bounds(torch.tensor([-1.0]), torch.tensor([1.0]))


def log_of(lengths, terminated, *, action=None, constant=False):
    """One-dimensional observations 10·episode + step; action 0.1·step − 0.5."""
    lengths = torch.tensor(lengths)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    episode = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    place = torch.arange(int(first[-1])) - first[episode]
    last = place == lengths[episode] - 1
    ends = torch.tensor(terminated)[episode] & last
    value = (10 * episode + place).float()
    observation = torch.stack([value, torch.full_like(value, 7.0) if constant else value.square()], 1)
    return TransitionLog(
        observation=observation,
        action=(0.1 * place - 0.5).float()[:, None] if action is None else action,
        reward=place.float(),
        next_observation=observation + torch.tensor([1.0, 0.0]),
        terminated=ends,
        truncated=last & ~ends,
        first=first,
    )


def cut(log, bounds=UNIT, **options):
    settings = {
        "length": 3,
        "stride": 1,
        "validation_share": 0.05,
        "terminal_pad": True,
        "out_of_bounds": "error",
        "generator": torch.Generator().manual_seed(0),
    }
    return cut_windows(log, bounds, **{**settings, **options})


def first_values(windows):
    """The first observation of every window, whichever set it is in."""
    start = torch.cat([windows.start, windows.held_out]).sort().values
    return windows.channels.raw(windows.at(start))[:, 0, 0].round().int().tolist()


def test_no_window_crosses_an_episode_or_ends_with_a_timeout():
    windows = cut(log_of([5, 5], [False, True]))
    # Episode 0: starts 0 and 1 (2 would end with the timeout). Episode 1, with its pad: starts 0 … 3.
    assert first_values(windows) == [0, 1, 10, 11, 12, 13]


def test_the_official_slicing_has_no_pad():
    assert first_values(cut(log_of([5, 5], [False, True]), terminal_pad=False)) == [0, 1, 10, 11, 12]


def test_the_stride_keeps_beginnings_and_terminals():
    windows = cut(log_of([12, 12], [False, True]), stride=4)
    # Starts 0 … 9 and, with the pad, 10 … 20 are valid: every fourth of them, both beginnings, the one with the pad.
    assert first_values(windows) == [0, 4, 8, 10, 12, 16, 20]


def test_the_pad_repeats_the_last_observation_and_is_taken_off_again():
    windows = cut(log_of([3], [True]), length=4)
    raw = windows.channels.raw(windows.at(windows.start))
    assert raw.shape == (1, 4, 5)
    torch.testing.assert_close(raw[0, 3], torch.tensor([2.0, 4.0, 0.0, 0.0, 1.0]))
    assert raw[0, :, -1].tolist() == [0.0, 0.0, 1.0, 1.0]
    back = transitions_of(windows.channels, windows.at(windows.start))
    assert back.observation[:, 0].round().tolist() == [0, 1, 2]
    assert back.terminated.tolist() == [False, False, True]
    assert not back.truncated.any()
    torch.testing.assert_close(back.action[:, 0], torch.tensor([-0.5, -0.4, -0.3]))


def test_windows_come_back_as_the_transitions_they_were():
    log = log_of([6, 6, 6], [False, False, True])
    windows = cut(log)
    z = windows.at(windows.start)
    back = transitions_of(windows.channels, z)
    assert back.episodes == len(z)
    torch.testing.assert_close(
        back.next_observation[:, 0] - back.observation[:, 0], 1.0 - back.terminated.float()
    )
    assert bool((back.terminated | back.truncated)[back.first[1:] - 1].all())
    assert back.truncated.sum() + back.terminated.sum() == len(z)


def test_channels_are_z_scored_over_windows_and_steps():
    windows = cut(log_of([15] * 8, [True] * 8), stride=3)
    every = windows.at(torch.cat([windows.start, windows.held_out])).flatten(0, 1)
    torch.testing.assert_close(every.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(every.std(0, correction=0), torch.ones(5), atol=1e-3, rtol=0)


def test_a_constant_channel_is_zero_and_comes_back_exactly():
    windows = cut(log_of([6, 6], [False, False], constant=True))
    z = windows.at(windows.start)
    assert windows.channels.scores.constant.tolist() == [False, True, False, False, True]
    assert torch.equal(z[..., 1], torch.zeros_like(z[..., 1]))
    noisy = windows.channels.raw(z + torch.randn(z.shape, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(noisy[..., 1], torch.full_like(z[..., 1], 7.0))
    assert torch.equal(noisy[..., -1], torch.zeros_like(z[..., 1]))


def test_whole_episodes_are_held_out():
    windows = cut(log_of([10] * 40, [False] * 40), validation_share=0.1)
    train, held = (set((w // 10).tolist()) for w in (windows.start, windows.held_out))
    assert len(held) == 4
    assert not train & held


def test_one_episode_is_trained_on_and_nothing_held_out():
    windows = cut(log_of([10], [False]))
    assert len(windows.start) == 7
    assert len(windows.held_out) == 0


def test_windows_longer_than_any_episode_are_refused():
    with pytest.raises(ValueError, match="length: no episode has 9 steps, the longest has 6"):
        cut(log_of([5, 4], [True, False]), length=9)


def test_a_length_that_only_timeouts_have_is_refused():
    with pytest.raises(ValueError, match="length: every window of 5 steps ends with a timeout"):
        cut(log_of([5, 4], [False, False]), length=5)


def test_episodes_too_short_for_a_window_are_counted():
    assert cut(log_of([10, 2, 2], [False, False, False])).too_short == 2


def test_single_steps_make_no_transition():
    with pytest.raises(ValueError, match="length: expected windows of at least 2 steps"):
        cut(log_of([5], [True]), length=1)


def test_actions_outside_the_bounds_are_refused_or_clipped():
    action = torch.tensor([[0.1], [-3.0], [0.2], [1.5], [0.0]])
    log = log_of([5], [True], action=action)
    with pytest.raises(
        ValueError, match=r"action: 2 of 5 rows lie outside .* first \[-3.0\] in row 1; .* clip"
    ):
        cut(log)
    windows = cut(log, out_of_bounds="clip")
    _, back = windows.channels.decision(windows.rows[:5])
    torch.testing.assert_close(back[:, 0], torch.tensor([0.1, -0.999, 0.2, 0.999, 0.0]), atol=1e-4, rtol=0)


def test_bounds_for_another_number_of_actions_are_refused():
    with pytest.raises(ValueError, match="action: the log has 1 numbers, the bounds are for 2"):
        cut(log_of([5], [True]), Bounds(-torch.ones(2), torch.ones(2)))
    with pytest.raises(ValueError, match="low: expected 1 or 3 bounds, got 2"):
        bounds_of((-1.0, -1.0), (1.0, 1.0), 3)


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (0.0, 5.0), (-float("inf"), float("inf"))])
def test_actions_go_through_any_box_and_back(low, high):
    bounds = Bounds(torch.tensor([low]), torch.tensor([high]))
    middle = 0.0 if low == -float("inf") else (low + high) / 2
    action = middle + torch.tensor([[-0.9], [0.0], [0.4]])
    torch.testing.assert_close(bounds.squash(bounds.unsquash(action)), action)
    assert torch.equal(bounds.bounded, torch.tensor([low != -float("inf")]))
