"""Behaviour updates see what the next target update will see, and every retained row gets its advantage.

The released rewrite computes advantages for the first n rows only and leaves zeros: that loop must fail here.
"""

from dataclasses import replace

import pytest
import torch
from quiet_run import COUNTER, QuietRun

from peira.credit.gae import generalised_advantages
from peira.learners import ppo as ppo_learner
from peira.recipes import ppo, props
from peira.sources.props import OnPolicySampler

N, M = 8, 4
DISCOUNT, DECAY = 0.9, 0.8
CONFIG = props.Config(
    env=COUNTER,
    steps=4 * N,
    num_envs=1,
    batch_steps=N,
    behaviour_interval=M,
    retained=2,
    discount=DISCOUNT,
    gae_lambda=DECAY,
    epochs=1,
    minibatches=2,
    hidden=(4,),
    normalise_observation=False,
    normalise_reward=False,
    store=False,
    compiled=False,
)


class Recorder(OnPolicySampler):
    """Acts with the target and notes in `seen` the row ids that each behaviour update is shown."""

    def __init__(self, target, seen):
        super().__init__(target)
        self.seen = seen

    def update(self, target, observation, action, new):
        assert len(observation) == len(action)
        self.seen.append(observation.flatten().int().tolist())
        return super().update(target, observation, action, new)


def run_and_record(monkeypatch, config):
    """Row ids of every behaviour update, and what each target update worked with."""
    seen, updates = [], []
    columns_function = ppo.ppo_columns

    def recorded(policy, batch, reward, **options):
        columns = columns_function(policy, batch, reward, **options)
        with torch.no_grad():
            values = policy.value(batch.observation), policy.value(batch.next_observation)
        updates.append((batch, *values, columns[3].view_as(batch.reward)))
        return columns

    with monkeypatch.context() as patch:
        patch.setattr(props, "sampler_for", lambda config, target, run: Recorder(target, seen))
        patch.setattr(ppo, "ppo_columns", recorded)
        props.run(config, QuietRun(config))
    return seen, updates


def ids(start, stop):
    return list(range(start, stop))


# Four iterations of two behaviour updates each (n = 8, m = 4, b = 2); the target updates see the rows
# 0–7, 0–15, 8–23 and 16–31.
WINDOWS = {
    "batch": [
        [],
        ids(0, 4),
        ids(0, 8),
        ids(0, 12),
        ids(8, 16),
        ids(8, 20),
        ids(16, 24),
        ids(16, 28),
    ],
    # Rows 4–7 and 12–15 are still corrected for, though no target update will see them again.
    "ring": [
        [],
        ids(0, 4),
        ids(0, 8),
        ids(0, 12),
        ids(4, 16),
        ids(8, 20),
        ids(12, 24),
        ids(16, 28),
    ],
}


@pytest.mark.parametrize("window", ["batch", "ring"])
def test_rows_of_each_behaviour_update(monkeypatch, window):
    seen, updates = run_and_record(monkeypatch, replace(CONFIG, window=window))
    assert seen == WINDOWS[window]
    learned_from = [batch.rows("observation").flatten().int().tolist() for batch, *_ in updates]
    assert learned_from == [ids(0, 8), ids(0, 16), ids(8, 24), ids(16, 32)]


def test_with_one_retained_batch_the_window_starts_empty_and_grows(monkeypatch):
    seen, _ = run_and_record(monkeypatch, replace(CONFIG, retained=1))
    assert seen == [[], ids(0, 4), [], ids(8, 12), [], ids(16, 20), [], ids(24, 28)]


def test_parallel_worlds_share_the_count_of_steps(monkeypatch):
    seen, _ = run_and_record(monkeypatch, replace(CONFIG, num_envs=2, steps=3 * N))
    twice = [[row for row in rows for _ in range(2)] for rows in ([], ids(0, 2), ids(0, 4), ids(0, 6))]
    assert seen[:4] == twice
    assert seen[4] == [row for row in ids(4, 8) for _ in range(2)]


def quadratic_advantages(batch, value, next_value):
    """A_t = Σ_{k ≥ t} (γλ)^{k−t} δ_k over the steps of the episode that t is in, row by row."""
    advantage = torch.zeros(batch.reward.shape, dtype=torch.float64)
    for t in range(len(advantage)):
        weight = 1.0
        for k in range(t, len(advantage)):
            bootstrap = 0.0 if batch.terminated[k, 0] else DISCOUNT * next_value[k, 0].item()
            advantage[t, 0] += weight * (batch.reward[k, 0].item() + bootstrap - value[k, 0].item())
            if batch.terminated[k, 0] or batch.truncated[k, 0]:
                break
            weight *= DISCOUNT * DECAY
    return advantage.float()


def assert_every_row_has_its_advantage(monkeypatch):
    _, updates = run_and_record(monkeypatch, CONFIG)
    for batch, value, next_value, advantage in updates:
        torch.testing.assert_close(
            advantage, quadratic_advantages(batch, value, next_value), rtol=1e-4, atol=1e-4
        )
    assert any(batch.terminated.any() for batch, *_ in updates)
    assert any(batch.truncated.any() for batch, *_ in updates)


def test_advantages_of_rows_of_every_age(monkeypatch):
    assert_every_row_has_its_advantage(monkeypatch)


def test_a_loop_over_the_first_n_rows_leaves_zeros(monkeypatch):
    def first_rows_only(reward, value, *columns, **options):
        advantage, _ = generalised_advantages(reward, value, *columns, **options)
        advantage[N:] = 0.0
        return advantage, advantage + value

    monkeypatch.setattr(ppo_learner, "generalised_advantages", first_rows_only)
    with pytest.raises(AssertionError):
        assert_every_row_has_its_advantage(monkeypatch)
