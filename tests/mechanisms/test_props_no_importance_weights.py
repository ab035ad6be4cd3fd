"""The target update treats all rows as on-policy: how probable each was when drawn plays no part."""

from dataclasses import replace

import pytest
import torch
from quiet_run import QuietRun

from peira.policies.files import policy_hash
from peira.recipes import ppo, props

CONFIG = props.Config(
    env="CartPole-v1",
    steps=192,
    num_envs=2,
    batch_steps=64,
    behaviour_interval=16,
    behaviour_learning_rate=1e-2,
    behaviour_minibatches=2,
    behaviour_epochs=2,
    epochs=2,
    minibatches=2,
    kl_stop=None,
    retained=3,
    hidden=(8,),
    store=False,
    compiled=False,
)
GATHER, COLUMNS = props.rollout, ppo.ppo_columns


def gather_with_noise(*arguments, **options):
    """Rows whose recorded behaviour probabilities are wrong."""
    batch = GATHER(*arguments, **options)
    noise = torch.randn(batch.reward.shape, generator=torch.Generator().manual_seed(batch.steps))
    return replace(batch, behaviour_log_prob=batch.behaviour_log_prob + noise)


def importance_weighted_columns(policy, batch, reward, **options):
    """PPO that corrects for who acted: ratios π_θ / π_behaviour."""
    columns = list(COLUMNS(policy, batch, reward, **options))
    columns[2] = batch.rows("behaviour_log_prob")
    return tuple(columns)


def trained_with(monkeypatch, gather):
    monkeypatch.setattr(props, "rollout", gather)
    return policy_hash(props.run(CONFIG, QuietRun(CONFIG)))


def assert_behaviour_probabilities_do_not_matter(monkeypatch):
    assert trained_with(monkeypatch, GATHER) == trained_with(monkeypatch, gather_with_noise)


def test_noise_on_behaviour_probabilities_leaves_every_update_identical(monkeypatch):
    assert_behaviour_probabilities_do_not_matter(monkeypatch)


def test_importance_weights_in_the_target_update_are_noticed(monkeypatch):
    monkeypatch.setattr(ppo, "ppo_columns", importance_weighted_columns)
    with pytest.raises(AssertionError):
        assert_behaviour_probabilities_do_not_matter(monkeypatch)


def first_ratios(monkeypatch, columns_function):
    """π_now / old probability for all rows, at the start of each target update; and the rows' ages."""
    found = []

    def recorded(policy, batch, reward, **options):
        columns = columns_function(policy, batch, reward, **options)
        with torch.no_grad():
            ratio = (policy.log_prob(columns[0], columns[1]) - columns[2]).exp()
        found.append((ratio, (policy.version - batch.rows("policy_version"))))
        return columns

    monkeypatch.setattr(ppo, "ppo_columns", recorded)
    props.run(CONFIG, QuietRun(CONFIG))
    return found


def test_ratios_start_at_exactly_one_for_rows_of_every_age(monkeypatch):
    found = first_ratios(monkeypatch, COLUMNS)
    assert [age.unique().tolist() for _, age in found] == [[0], [0, 1], [0, 1, 2]]
    for ratio, _ in found:
        assert torch.equal(ratio, torch.ones(len(ratio)))


def test_with_importance_weights_ratios_of_older_rows_are_not_one(monkeypatch):
    ratio, age = first_ratios(monkeypatch, importance_weighted_columns)[-1]
    assert (ratio[age == 2] - 1).abs().max() > 1e-3
