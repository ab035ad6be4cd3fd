"""Advantages equal the definition, summed row by row, with terminated and truncated episodes told apart."""

import pytest
import torch

from peira.credit.gae import generalised_advantages


def column(*values):
    return torch.tensor(values)[:, None]


def by_definition(reward, value, next_value, terminated, truncated, discount, decay):
    """A_t = Σ_{k ≥ t} (γλ)^{k−t} δ_k up to the end of the episode or the newest row: O(N²)."""
    steps, envs = reward.shape
    advantage = torch.zeros_like(reward)
    for env in range(envs):
        for t in range(steps):
            for k in range(t, steps):
                bootstrap = 0.0 if terminated[k, env] else discount * next_value[k, env]
                delta = reward[k, env] + bootstrap - value[k, env]
                advantage[t, env] += (discount * decay) ** (k - t) * delta
                if terminated[k, env] or truncated[k, env]:
                    break
    return advantage


def test_three_steps_by_hand():
    no = column(False, False, False)
    advantage, returns = generalised_advantages(
        column(1.0, 2.0, 3.0), column(4.0, 5.0, 6.0), column(5.0, 6.0, 8.0), no, no, discount=0.5, decay=0.5
    )
    # δ = (1 + 2.5 − 4, 2 + 3 − 5, 3 + 4 − 6) = (−0.5, 0, 1)
    assert advantage[:, 0].tolist() == [-0.5 + 0.25**2, 0.25, 1.0]
    assert returns[:, 0].tolist() == [3.5625, 5.25, 7.0]


def test_termination_cuts_the_bootstrap_and_truncation_keeps_it():
    yes, no = column(True), column(False)
    arguments = column(1.0), column(2.0), column(10.0)
    terminated, _ = generalised_advantages(*arguments, yes, no, discount=0.9, decay=1.0)
    truncated, _ = generalised_advantages(*arguments, no, yes, discount=0.9, decay=1.0)
    assert terminated.item() == pytest.approx(1 - 2)
    assert truncated.item() == pytest.approx(1 + 9 - 2)


@pytest.mark.parametrize("ending", ["terminated", "truncated"])
def test_nothing_passes_from_one_episode_into_the_one_before(ending):
    generator = torch.Generator().manual_seed(0)
    reward, value, next_value = torch.randn(3, 6, 1, generator=generator)
    ends = {"terminated": torch.zeros(6, 1, dtype=bool), "truncated": torch.zeros(6, 1, dtype=bool)}
    ends[ending][2] = True
    before, _ = generalised_advantages(reward, value, next_value, **ends, discount=0.9, decay=0.9)
    reward[3:] += 100
    after, _ = generalised_advantages(reward, value, next_value, **ends, discount=0.9, decay=0.9)
    assert torch.equal(before[:3], after[:3])
    assert (after[3:] > before[3:] + 50).all()


@pytest.mark.parametrize("discount,decay", [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_equals_the_definition(discount, decay):
    generator = torch.Generator().manual_seed(3)
    reward, value, next_value = torch.randn(3, 45, 4, generator=generator, dtype=torch.float64)
    terminated = torch.rand(45, 4, generator=generator) < 0.1
    truncated = torch.rand(45, 4, generator=generator) < 0.1
    advantage, returns = generalised_advantages(
        reward, value, next_value, terminated, truncated, discount=discount, decay=decay
    )
    expected = by_definition(reward, value, next_value, terminated, truncated, discount, decay)
    torch.testing.assert_close(advantage, expected)
    torch.testing.assert_close(returns, expected + value)


def test_with_decay_1_returns_are_discounted_sums_of_rewards():
    reward = column(1.0, 1.0, 1.0, 1.0)
    value = column(0.3, -0.2, 5.0, 7.0)
    next_value = torch.cat([value[1:], column(0.0)])
    terminated, no = column(False, False, False, True), column(False, False, False, False)
    _, returns = generalised_advantages(reward, value, next_value, terminated, no, discount=0.5, decay=1.0)
    torch.testing.assert_close(returns, column(1.875, 1.75, 1.5, 1.0))
