"""The ledger's columns have the values worked out by hand for batches of known provenance."""

import math
from dataclasses import replace

import pytest
import torch

from peira.environments.control import make_control
from peira.experience.batch import SOURCE_CODES, Batch
from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.runs.ledger import effective_sample_size, on_policy_columns
from peira.sources.rollout import rollout


def tabular(probability):
    policy = CategoricalActorCritic(1, 2, hidden=(), bias=False, normalise=False)
    with torch.no_grad():
        policy.actor_head.weight[:, 0] = torch.tensor([probability, 1 - probability]).log()
    return policy


def batch_of(actions, behaviour, versions=None, sources=None):
    """One state, one world; `behaviour` is the probability with which each action was drawn."""
    steps = len(actions)
    zeros = torch.zeros(steps, 1)
    return Batch(
        observation=torch.ones(steps, 1, 1),
        action=torch.tensor(actions)[:, None],
        reward=zeros,
        terminated=zeros.bool(),
        truncated=zeros.bool(),
        next_observation=torch.ones(steps, 1, 1),
        behaviour_log_prob=torch.tensor(behaviour).log()[:, None],
        policy_version=torch.tensor(versions or [0] * steps)[:, None],
        source=torch.tensor([SOURCE_CODES[name] for name in sources or ["real"] * steps])[:, None],
    )


@pytest.mark.parametrize(
    "weights,expected", [([1, 1, 1, 1], 1.0), ([1, 1, 2], 16 / 18), ([5, 0, 0, 0], 0.25), ([3, 1], 0.8)]
)
def test_effective_sample_size_by_hand(weights, expected):
    found = effective_sample_size(torch.tensor(weights, dtype=torch.float32).log())
    assert found == pytest.approx(expected, rel=1e-6)


def test_effective_sample_size_ignores_the_scale_of_weights_and_does_not_overflow():
    log_weight = torch.tensor([0.0, 1.0, -2.0])
    assert effective_sample_size(log_weight + 500) == pytest.approx(
        effective_sample_size(log_weight), rel=1e-4
    )
    assert effective_sample_size(log_weight - 500) == pytest.approx(
        effective_sample_size(log_weight), rel=1e-4
    )


def test_rows_of_the_policy_itself_are_on_policy():
    env = make_control("Pendulum-v1", 4, 0)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    policy = GaussianActorCritic(3, 1, hidden=(4,), generator=generator)
    policy.version = 5
    columns = on_policy_columns(policy, rollout(env, policy, 100, generator, gathered_for=5))
    assert columns["kl_behaviour_target"] == pytest.approx(0, abs=1e-9)
    assert columns["effective_sample_size"] == pytest.approx(1, abs=1e-6)
    assert columns["staleness"] == 0
    assert (columns["share_real"], columns["share_replayed"]) == (1, 0)
    # Four features, a bias and a standard deviation are fitted to 400 rows.
    assert columns["sampling_error_reference"] == pytest.approx(6 / 800)
    assert 0 < columns["sampling_error"] < 5 * 6 / 800


def test_divergence_and_effective_sample_size_of_rows_that_another_policy_drew():
    # Behaviour (½, ½) showed each action once; the policy gives them 0.8 and 0.2: ratios 1.6 and 0.4.
    columns = on_policy_columns(tabular(0.8), batch_of([0, 1], [0.5, 0.5]))
    kl = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert columns["kl_behaviour_target"] == pytest.approx(kl, rel=1e-5)
    assert columns["effective_sample_size"] == pytest.approx(4 / (2 * (1.6**2 + 0.4**2)), rel=1e-5)


def test_sampling_error_is_the_divergence_of_the_frequencies_from_the_policy():
    columns = on_policy_columns(tabular(0.8), batch_of([0, 0, 0, 1], [0.8, 0.8, 0.8, 0.2]))
    exact = 0.75 * math.log(0.75 / 0.8) + 0.25 * math.log(0.25 / 0.2)
    assert columns["sampling_error"] == pytest.approx(exact, abs=1e-6)
    assert columns["sampling_error_reference"] == pytest.approx(1 / 8)


def test_sampling_error_is_left_out_where_the_rows_are_too_few():
    policy = CategoricalActorCritic(1, 3, hidden=(), bias=False, normalise=False)  # two free logits
    for rows, expected in ((1, False), (2, True)):
        columns = on_policy_columns(policy, batch_of([0] * rows, [1 / 3] * rows))
        assert ("sampling_error" in columns) == ("sampling_error_reference" in columns) == expected


def test_staleness_is_the_mean_age_in_policy_versions():
    policy = tabular(0.5)
    policy.version = 7
    columns = on_policy_columns(policy, batch_of([0, 1, 0, 1], [0.5] * 4, versions=[4, 6, 7, 7]))
    assert columns["staleness"] == (3 + 1) / 4


def test_rows_given_to_an_earlier_version_count_as_replayed():
    policy = tabular(0.5)
    policy.version = 2
    batch = batch_of([0, 1, 0, 1], [0.5] * 4, [1, 2, 2, 2], ["real", "real", "dreamed", "human"])
    columns = on_policy_columns(policy, batch)
    shares = {name: value for name, value in columns.items() if name.startswith("share_")}
    assert shares == {"share_replayed": 0.25, "share_real": 0.25, "share_dreamed": 0.25, "share_human": 0.25}
    assert sum(shares.values()) == 1


def test_the_ledger_changes_neither_policy_nor_batch():
    policy, batch = tabular(0.8), batch_of([0, 1, 0], [0.5] * 3, [0, 0, 0])
    before = replace(batch, **{name: column.clone() for name, column in batch.columns().items()})
    policy.version = 3
    on_policy_columns(policy, batch)
    for name, column in batch.columns().items():
        assert torch.equal(column, getattr(before, name))
    assert policy.version == 3
