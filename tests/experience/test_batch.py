"""Batches keep the order of time, and retained batches leave when their rule says."""

import pytest
import torch

from peira.experience.batch import SOURCE_CODES, Batch, RetainedBatches


def steps(start, stop, envs=1, version=0):
    """Steps whose observation is 10 · time + environment."""
    time = torch.arange(start, stop)
    observation = (10.0 * time[:, None] + torch.arange(envs)).unsqueeze(-1)
    shape = (stop - start, envs)
    return Batch(
        observation=observation,
        action=torch.zeros(*shape, 2),
        reward=observation.squeeze(-1),
        terminated=(time % 4 == 0)[:, None].expand(shape),
        truncated=(time % 6 == 0)[:, None].expand(shape),
        next_observation=observation + 10,
        behaviour_log_prob=torch.zeros(shape),
        policy_version=torch.full(shape, version),
        source=torch.full(shape, SOURCE_CODES["real"]),
    )


def times(batch):
    return None if batch is None else (batch.observation[:, 0, 0] / 10).int().tolist()


def span(start, stop):
    return list(range(start, stop))


def test_rows_run_through_the_environments_of_the_oldest_step_first():
    batch = steps(0, 3, envs=2)
    assert batch.steps == 6
    assert batch.rows("observation").tolist() == [[0], [1], [10], [11], [20], [21]]
    assert batch.rows("reward").tolist() == [0, 1, 10, 11, 20, 21]
    assert batch.rows("action").shape == (6, 2)


def test_done_is_terminated_or_truncated():
    assert steps(0, 9).done[:, 0].tolist() == [True, False, False, False, True, False, True, False, True]


def test_between_and_concatenate_undo_each_other():
    whole = steps(0, 7, envs=3)
    joined = Batch.concatenate([whole.between(0, 2), whole.between(2, 3), whole.between(3)])
    for name, column in whole.columns().items():
        assert torch.equal(getattr(joined, name), column)
    assert times(whole.between(-2)) == [5, 6]


def test_a_column_of_another_length_is_refused():
    columns = steps(0, 4).columns()
    with pytest.raises(TypeError, match="reward"):
        Batch(**{**columns, "reward": torch.zeros(3, 1)})


def test_whole_batches_leave_when_a_new_one_begins():
    retained = RetainedBatches(batches=2, batch_steps=4)
    for start, expected in [(0, span(0, 4)), (4, span(0, 8)), (8, span(4, 12)), (12, span(8, 16))]:
        retained.begin()
        retained.extend(steps(start, start + 2))
        retained.extend(steps(start + 2, start + 4))
        assert times(retained.all()) == expected


def test_the_window_holds_only_what_will_still_be_there():
    retained = RetainedBatches(batches=2, batch_steps=4)
    retained.begin()
    assert retained.window(2) is None
    retained.extend(steps(0, 4))
    retained.extend(steps(4, 8))
    retained.begin()
    assert times(retained.window(2)) == span(4, 8)
    retained.extend(steps(8, 10))
    assert times(retained.window(2)) == span(4, 10)


def test_with_one_batch_the_window_is_empty_when_a_new_one_begins():
    retained = RetainedBatches(batches=1, batch_steps=4)
    retained.extend(steps(0, 4))
    retained.begin()
    assert len(retained) == 0
    assert retained.window(2) is None


def test_the_ring_drops_as_many_of_the_oldest_as_come():
    retained = RetainedBatches(batches=2, batch_steps=4, rule="ring")
    retained.extend(steps(0, 8))
    retained.begin()
    assert times(retained.all()) == span(0, 8)
    assert times(retained.window(2)) == span(2, 8)
    retained.extend(steps(8, 10))
    assert times(retained.all()) == span(2, 10)
    assert times(retained.window(2)) == span(4, 10)


@pytest.mark.parametrize("rule", ["batch", "ring"])
def test_steps_of_parallel_environments_leave_together(rule):
    retained = RetainedBatches(batches=2, batch_steps=6, rule=rule)
    for start in (0, 3, 6):
        retained.begin()
        retained.extend(steps(start, start + 3, envs=2))
    assert times(retained.all()) == span(3, 9)
    assert retained.all().observation[0].flatten().tolist() == [30, 31]
    assert len(retained) == 12


def test_state_goes_out_and_comes_back():
    retained, other = RetainedBatches(2, 4), RetainedBatches(2, 4)
    other.load_state_dict(retained.state_dict())
    assert len(other) == 0
    retained.extend(steps(0, 4, version=3))
    other.load_state_dict(retained.state_dict())
    for name, column in retained.all().columns().items():
        assert torch.equal(getattr(other.all(), name), column)
    retained.load_state_dict({})
    assert len(retained) == 0


def test_nothing_retained_and_nothing_to_retain_are_said():
    with pytest.raises(ValueError, match="no steps are retained yet"):
        RetainedBatches(2, 4).all()
    with pytest.raises(ValueError, match="batches: expected at least 1, the current one, got 0"):
        RetainedBatches(0, 4)
