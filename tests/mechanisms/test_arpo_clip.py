"""Where the loss of a token stops pulling (``arpo.md`` 8, test 5)."""

import pytest
import torch

from peira.learners.grpo import clipped_loss


def slope(ratio, advantage):
    """∂loss/∂log π of one token."""
    log_prob = torch.tensor([ratio]).log().requires_grad_()
    clipped_loss(log_prob, torch.zeros(1), torch.tensor([advantage])).sum().backward()
    return log_prob.grad.item()


@pytest.mark.parametrize("ratio", [0.01, 0.5, 1.0, 1.29])
def test_a_good_token_is_pulled_up_until_the_upper_clip(ratio):
    assert slope(ratio, 1.0) == pytest.approx(-ratio, rel=1e-5)


@pytest.mark.parametrize("ratio", [1.31, 5.0, 1e30])
def test_and_not_beyond(ratio):
    assert slope(ratio, 1.0) == 0


@pytest.mark.parametrize("ratio", [0.81, 1.0, 2.9])
def test_a_bad_token_is_pushed_down_between_lower_clip_and_dual_clip(ratio):
    assert slope(ratio, -1.0) == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize("ratio", [0.1, 0.79, 3.1, 1e30])
def test_and_not_outside(ratio):
    assert slope(ratio, -1.0) == 0


def test_the_loss_of_a_bad_token_is_bounded():
    loss = clipped_loss(torch.tensor([50.0]), torch.zeros(1), torch.tensor([-2.0]))
    assert loss.item() == 6.0
