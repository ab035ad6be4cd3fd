"""The vectorised recurrences equal a loop over steps, for every length and across decays of 0."""

import pytest
import torch

from peira.experience.scan import running_sum, running_sum_backwards


def looped(value, decay):
    total, last = [], torch.zeros_like(value[0])
    for one, factor in zip(value, decay, strict=True):
        last = one + factor * last
        total.append(last)
    return torch.stack(total)


def test_four_steps_by_hand():
    value, decay = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([9.0, 0.5, 0.0, 2.0])
    assert running_sum(value, decay).tolist() == [1.0, 2.5, 3.0, 10.0]
    assert running_sum_backwards(value, decay).tolist() == [1 + 9 * 3.5, 2 + 0.5 * 3, 3.0, 4.0]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 9, 64, 100])
@pytest.mark.parametrize("rest", [(), (3,), (2, 3)])
def test_equals_the_loop(steps, rest):
    generator = torch.Generator().manual_seed(steps)
    value = torch.randn(steps, *rest, generator=generator, dtype=torch.float64)
    decay = torch.rand(steps, *rest, generator=generator, dtype=torch.float64)
    decay[decay < 0.2] = 0.0
    torch.testing.assert_close(running_sum(value, decay), looped(value, decay))
    backwards = looped(value.flip(0), decay.flip(0)).flip(0)
    torch.testing.assert_close(running_sum_backwards(value, decay), backwards)


def test_arguments_are_left_alone():
    value, decay = torch.arange(5.0), torch.full((5,), 0.5)
    running_sum(value, decay)
    running_sum_backwards(value, decay)
    assert value.tolist() == [0, 1, 2, 3, 4]
    assert decay.tolist() == [0.5] * 5
