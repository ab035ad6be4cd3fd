"""Group-relative advantages have the closed form of the specification (``arpo.md`` 8, tests 1 and 7)."""

import math

import pytest
import torch
from laid_batches import episode

from peira.credit.group_relative import group_advantages
from peira.experience.success_replay import SuccessReplay

ALL = torch.ones(8, dtype=torch.bool)
ONE_GROUP = torch.zeros(8, dtype=torch.long)


def rewards(successes):
    return torch.tensor([1.0] * successes + [0.0] * (8 - successes))


def test_one_success_in_eight():
    advantage = group_advantages(rewards(1), ONE_GROUP, ALL)
    assert advantage[0].item() == pytest.approx(2.47486, abs=1e-4)
    assert advantage[1:].tolist() == pytest.approx([-0.35355] * 7, abs=1e-4)


@pytest.mark.parametrize("successes", range(1, 8))
def test_closed_form(successes):
    q = successes / 8
    advantage = group_advantages(rewards(successes), ONE_GROUP, ALL)
    assert advantage[0].item() == pytest.approx(math.sqrt((1 - q) / q * 7 / 8), abs=1e-4)
    assert advantage[-1].item() == pytest.approx(-math.sqrt(q / (1 - q) * 7 / 8), abs=1e-4)


def test_population_deviation_is_the_other_convention():
    advantage = group_advantages(rewards(1), ONE_GROUP, ALL, deviation="population")
    assert advantage[0].item() == pytest.approx(2.6458, abs=1e-4)
    assert group_advantages(rewards(1), ONE_GROUP, ALL, deviation="none")[0].item() == pytest.approx(7 / 8)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_give_exactly_nothing(value):
    assert group_advantages(torch.full((8,), value), ONE_GROUP, ALL).eq(0).all()


def test_an_episode_whose_world_failed_takes_no_part():
    valid = torch.tensor([True] * 7 + [False])
    advantage = group_advantages(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 5.0]), ONE_GROUP, valid)
    alone = group_advantages(torch.tensor([1.0, 0, 0, 0, 0, 0, 0]), ONE_GROUP[:7], ALL[:7])
    assert advantage[:7].tolist() == alone.tolist()
    assert advantage[7] == 0


def test_groups_are_compared_within_themselves():
    reward = torch.cat([rewards(1), rewards(4), rewards(8)])
    group = torch.arange(3).repeat_interleave(8)
    advantage = group_advantages(reward, group, torch.ones(24, dtype=torch.bool))
    assert advantage[:8].tolist() == group_advantages(rewards(1), ONE_GROUP, ALL).tolist()
    assert advantage[8:16].tolist() == group_advantages(rewards(4), ONE_GROUP, ALL).tolist()
    assert advantage[16:].eq(0).all()


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_share_of_dead_groups(probability):
    """(1 − p)⁸ + p⁸ of groups are dead; a filled buffer revives all that failed and none that succeeded."""
    number = 10_000
    generator = torch.Generator().manual_seed(0)
    reward = torch.bernoulli(torch.full((number * 8,), probability), generator=generator)
    group = torch.arange(number).repeat_interleave(8)
    advantage = group_advantages(reward, group, torch.ones(number * 8, dtype=torch.bool))
    dead = advantage.view(number, 8).eq(0).all(1)
    expected = (1 - probability) ** 8 + probability**8
    assert abs(dead.float().mean().item() - expected) < 3 * math.sqrt(expected * (1 - expected) / number)

    replay = SuccessReplay()
    replay.store([episode(1.0)])
    some = reward.view(number, 8)[:500]
    groups = [[episode(score) for score in row.tolist()] for row in some]
    spliced = replay.splice(groups, generator, version=1).groups
    after = torch.tensor([[entry.score for entry in group] for group in spliced])
    assert not after.eq(0).all(1).any()
    assert after.eq(1).all(1).sum() == some.eq(1).all(1).sum()
