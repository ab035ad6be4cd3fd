"""Rows kept from earlier batches are stored raw and read with the statistics of today."""

import numpy as np
import pytest
import torch
from quiet_run import COUNTER, QuietRun

from peira.recipes import ppo, props
from peira.sources.props import PropsSampler

N = 8
CONFIG = props.Config(
    env=COUNTER,
    steps=4 * N,
    num_envs=1,
    batch_steps=N,
    behaviour_interval=4,
    behaviour_minibatches=1,
    behaviour_epochs=1,
    retained=2,
    epochs=1,
    minibatches=2,
    hidden=(4,),
    store=False,
    compiled=False,
)


@pytest.fixture
def updates(monkeypatch):
    """For each target update: raw observations, the same as the policy reads them, and scaled rewards."""
    found = []
    columns_function = ppo.ppo_columns

    def recorded(policy, batch, reward, **options):
        raw = batch.rows("observation")
        found.append((raw.clone(), policy.normalised(raw), batch.reward.clone(), reward))
        return columns_function(policy, batch, reward, **options)

    monkeypatch.setattr(ppo, "ppo_columns", recorded)
    props.run(CONFIG, QuietRun(CONFIG))
    return found


def statistics_after(update):
    """Mean and standard deviation of all observations of the counter, 0 … (update + 1) N − 1."""
    gathered = np.arange((update + 1) * N)
    return gathered.mean(), np.sqrt(gathered.var() + 1e-8)


def test_observations_of_every_age_are_normalised_with_the_statistics_of_today(updates):
    for number, (raw, normalised, _, _) in enumerate(updates):
        first = max(number - 1, 0) * N
        assert raw.flatten().tolist() == list(range(first, (number + 1) * N))
        mean, deviation = statistics_after(number)
        torch.testing.assert_close(normalised, (raw - mean) / deviation, rtol=1e-5, atol=1e-5)


def test_rows_normalised_when_they_were_gathered_would_be_on_another_scale(updates):
    raw, normalised, _, _ = updates[1]
    mean, deviation = statistics_after(0)
    stale = (raw[:N] - mean) / deviation
    assert (stale - normalised[:N]).abs().min() > 0.05


def test_rewards_of_every_age_are_scaled_with_the_statistics_of_today(updates):
    discounted, running = [], 0.0
    for step in range(1, len(updates) * N + 1):
        running = running * CONFIG.discount + 1 + (step - 1) % 3
        discounted.append(running)
        if step % 11 == 0 or step % 7 == 0:
            running = 0.0
    for number, (_, _, reward, scaled) in enumerate(updates):
        deviation = np.sqrt(np.var(discounted[: (number + 1) * N]) + 1e-8)
        torch.testing.assert_close(scaled, reward / deviation, rtol=1e-5, atol=1e-5)


def test_behaviour_updates_read_raw_rows_through_the_normaliser_of_the_target(monkeypatch):
    seen = []
    update = PropsSampler.update

    def recorded(self, target, observation, action, new):
        measures = update(self, target, observation, action, new)
        if len(observation):
            seen.append((observation, self.policy.normalised(observation), self.policy.version))
        return measures

    monkeypatch.setattr(PropsSampler, "update", recorded)
    props.run(CONFIG, QuietRun(CONFIG))
    assert [version for *_, version in seen] == [0, 1, 1, 2, 2, 3, 3]
    for raw, normalised, version in seen:
        mean, deviation = statistics_after(version - 1) if version else (0.0, 1.0)
        expected = ((raw - mean) / deviation).clamp(-10, 10)
        torch.testing.assert_close(normalised, expected, rtol=1e-5, atol=1e-5)
