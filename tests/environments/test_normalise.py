"""Running moments equal those of all data at once, and reward scaling equals a loop over steps."""

import numpy as np
import pytest
import torch

from peira.environments.normalise import ObservationNormaliser, RewardScaler, RunningMoments


def test_moments_of_unequal_parts_equal_those_of_all_rows():
    generator = np.random.default_rng(0)
    rows = generator.normal([5.0, -3.0, 1000.0], [1.0, 0.01, 10.0], (300, 3))
    moments = RunningMoments(3)
    for part in np.split(rows, [1, 2, 50, 170]):
        moments.update(torch.from_numpy(part))
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance.numpy(), rows.var(0), rtol=1e-9)
    assert moments.count == 300


def test_the_first_update_replaces_what_was_assumed():
    moments = RunningMoments()
    moments.update(torch.tensor([3.0, 5.0]))
    assert (moments.mean, moments.variance) == (4.0, 1.0)


def test_before_any_update_observations_pass_unchanged():
    observation = torch.tensor([[0.5, -11.0]])
    assert ObservationNormaliser(2)(observation).tolist() == [[0.5, -10.0]]


def test_statistics_move_only_in_update():
    normaliser = ObservationNormaliser(2)
    rows = torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 20.0]])
    normaliser.update(rows)
    expected = (rows.numpy() - rows.numpy().mean(0)) / np.sqrt(rows.numpy().var(0) + 1e-8)
    for _ in range(3):
        np.testing.assert_allclose(normaliser(rows).numpy(), expected, rtol=1e-5)
    assert normaliser(torch.tensor([1e6, -1e6])).tolist() == [10.0, -10.0]


def test_a_feature_that_never_changes_is_0():
    normaliser = ObservationNormaliser(1)
    normaliser.update(torch.full((50, 1), 7.0))
    assert normaliser(torch.tensor([7.0])).item() == 0.0


def test_normaliser_saves_and_loads():
    normaliser, other = ObservationNormaliser(2), ObservationNormaliser(2)
    normaliser.update(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    other.load_state_dict(normaliser.state_dict())
    observation = torch.tensor([[0.3, -4.0]])
    assert torch.equal(normaliser(observation), other(observation))
    more = torch.tensor([[9.0, 9.0]])
    normaliser.update(more)
    other.update(more)
    assert torch.equal(normaliser.moments.variance, other.moments.variance)


def discounted_returns(reward, done, discount):
    """Of each world apart, begun anew after an episode's end."""
    returns, running = np.zeros(reward.shape), np.zeros(reward.shape[1])
    for time in range(len(reward)):
        running = reward[time] + discount * running
        returns[time] = running
        running = np.where(done[time], 0.0, running)
    return returns


@pytest.mark.parametrize("parts", [[], [1], [7], [1, 2, 30]])
def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(parts):
    generator = np.random.default_rng(1)
    reward = generator.normal(1.0, 2.0, (40, 3))
    done = generator.random((40, 3)) < 0.2
    scaler = RewardScaler(0.9, 3)
    for part, ended in zip(np.split(reward, parts), np.split(done, parts), strict=True):
        scaler.update(torch.from_numpy(part).float(), torch.from_numpy(ended))
    deviation = np.sqrt(discounted_returns(reward, done, 0.9).var() + 1e-8)
    scaled = scaler.scale(torch.from_numpy(reward).float())
    np.testing.assert_allclose(scaled.numpy(), reward / deviation, rtol=1e-4, atol=1e-6)


def test_scaled_rewards_are_clipped():
    scaler = RewardScaler(0.5, 1)
    scaler.update(torch.tensor([[1.0], [1.0]]), torch.tensor([[True], [True]]))
    assert scaler.scale(torch.tensor([5.0, -5.0])).tolist() == [10.0, -10.0]


def test_scaler_goes_on_from_its_saved_state():
    generator = torch.Generator().manual_seed(2)
    reward, done = torch.randn(20, 2, generator=generator), torch.zeros(20, 2, dtype=torch.bool)
    scaler, other = RewardScaler(0.9, 2), RewardScaler(0.9, 2)
    scaler.update(reward[:9], done[:9])
    other.load_state_dict(scaler.state_dict())
    for one in (scaler, other):
        one.update(reward[9:], done[9:])
    assert torch.equal(scaler.scale(reward), other.scale(reward))
