"""A log grouped by the step of the episode: which rows go where, and how they are drawn."""

import pytest
import torch

from peira.experience.step_log import StepLog
from peira.experience.transitions import TransitionLog


def log_of(lengths):
    """Each observation is (episode, step)."""
    pairs = [(episode, step) for episode, length in enumerate(lengths) for step in range(length)]
    observation = torch.tensor(pairs, dtype=torch.float32)
    first = torch.tensor([0, *lengths]).cumsum(0)
    terminated = torch.zeros(len(pairs), dtype=torch.bool)
    terminated[first[1:] - 1] = True
    return TransitionLog(
        observation=observation,
        action=observation[:, :1] + 0.5,
        reward=observation[:, 1],
        next_observation=observation + torch.tensor([0.0, 1.0]),
        terminated=terminated,
        truncated=torch.zeros_like(terminated),
        first=first,
    )


def test_rows_are_grouped_by_their_place_in_the_episode():
    grouped = StepLog.by_step(log_of([3, 1, 2]), 3)
    assert grouped.steps == 3
    assert grouped.first.tolist() == [0, 3, 5, 6]
    assert grouped.observation.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [2, 1], [0, 2]]
    assert grouped.terminated.tolist() == [False, True, False, False, True, True]
    assert StepLog.by_step(log_of([3, 1, 2])).steps == 3


def test_as_many_rows_of_each_step_are_drawn_evenly():
    grouped = StepLog.by_step(log_of([3, 1, 2]), 3)
    drawn = grouped.sample(6000, torch.Generator().manual_seed(0))
    assert drawn.observation.shape == (3, 6000, 2)
    for step, episodes in enumerate(([0, 1, 2], [0, 2], [0])):
        assert (drawn.observation[step, :, 1] == step).all()
        counts = [(drawn.observation[step, :, 0] == episode).sum().item() for episode in episodes]
        assert sum(counts) == 6000
        assert counts == pytest.approx([6000 / len(episodes)] * len(episodes), rel=0.1)
    torch.testing.assert_close(drawn.action[..., 0], drawn.observation[..., 0] + 0.5)
    torch.testing.assert_close(drawn.next_observation[..., 1], drawn.observation[..., 1] + 1)


def test_pooled_rows_are_one_group():
    pooled = StepLog.by_step(log_of([3, 1, 2])).pooled()
    assert pooled.steps == 1
    assert pooled.sample(500, torch.Generator().manual_seed(0)).observation[0, :, 1].unique().tolist() == [
        0,
        1,
        2,
    ]


def test_a_log_of_another_world_is_refused():
    with pytest.raises(ValueError, match=r"log: has an episode of 3 steps, where the world has 2"):
        StepLog.by_step(log_of([2, 3]), 2)
    with pytest.raises(ValueError, match=r"log: holds no transition of step 2 of 4"):
        StepLog.by_step(log_of([2, 1]), 4)
