"""The terms of the loss have the values worked out by hand, and an update starts on-policy."""

import math
from functools import partial

import pytest
import torch

from peira.environments.control import make_control
from peira.learners.ppo import (
    MEASURES,
    clipped_surrogate,
    kl_estimate,
    ppo_columns,
    ppo_loss,
    ppo_update,
    value_loss,
)
from peira.policies.actor_critic import CategoricalActorCritic
from peira.policies.files import policy_hash
from peira.policies.gradient_step import GradientStep
from peira.sources.rollout import rollout


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "ratio,advantage,expected",
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),
        (1.5, 2.0, -2.4),  # A good action is not pushed further up than 1.2.
        (0.5, 2.0, -1.0),
        (0.5, -2.0, 1.6),  # A bad one is not pushed further down than 0.8.
        (1.5, -2.0, 3.0),
    ],
)
def test_surrogate_of_one_row(ratio, advantage, expected):
    found = clipped_surrogate(torch.tensor([ratio]).log(), torch.tensor([advantage]), 0.2)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_surrogate_is_the_mean_over_rows():
    found = clipped_surrogate(torch.tensor([1.5, 0.5]).log(), torch.tensor([2.0, -2.0]), 0.2)
    assert found.item() == pytest.approx((-2.4 + 1.6) / 2, rel=1e-6)


@pytest.mark.parametrize(
    "value,old_value,returns,clip,expected",
    [
        (3.0, 1.0, 2.0, None, 0.5),
        (1.1, 1.0, 2.0, 0.2, 0.5 * 0.81),
        (2.0, 1.0, 2.0, 0.2, 0.5 * 0.64),  # Right, but only by moving further than allowed.
        (0.0, 1.0, 2.0, 0.2, 0.5 * 4.0),  # Moved away: the larger of the errors 4 and 1.44.
    ],
)
def test_value_loss_of_one_row(value, old_value, returns, clip, expected):
    found = value_loss(*(torch.tensor([number]) for number in (value, old_value, returns)), clip)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_kl_estimate_by_hand_and_without_overflow():
    found = kl_estimate(torch.tensor([2.0, 0.5]).log())
    assert found.item() == pytest.approx(((1 - math.log(2)) + (-0.5 + math.log(2))) / 2, rel=1e-5)
    assert kl_estimate(torch.zeros(4)).item() == 0.0
    assert math.isfinite(kl_estimate(torch.tensor([300.0, -300.0])).item())


def test_kl_estimate_converges_to_the_divergence_from_old_to_new():
    old, new = (torch.distributions.Categorical(probs=torch.tensor(p)) for p in ([0.6, 0.4], [0.3, 0.7]))
    every = torch.tensor([0] * 6 + [1] * 4)
    exact = torch.distributions.kl_divergence(old, new)
    torch.testing.assert_close(kl_estimate(new.log_prob(every) - old.log_prob(every)), exact)


OPTIONS = {"clip": 0.2, "value_clip": 0.2, "value_coefficient": 0.5, "entropy_coefficient": 0.01}


def tabular():
    policy = CategoricalActorCritic(2, 2, hidden=(), bias=False, normalise=False)
    with torch.no_grad():
        policy.actor_head.weight.copy_(torch.tensor([[0.8, 0.5], [0.2, 0.5]]).log())
        policy.critic_head.weight.copy_(torch.tensor([[1.0, 2.0]]))
    return policy


def test_the_whole_loss_by_hand():
    observation, action = torch.eye(2), torch.tensor([0, 1])
    old_log_prob = torch.tensor([0.5, 0.5]).log()  # Ratios 1.6 and 1.
    advantage = torch.tensor([3.0, 1.0])  # Standardised: ±1/√2.
    loss, measures = ppo_loss(
        tabular(),
        observation,
        action,
        old_log_prob,
        advantage,
        torch.tensor([1.5, 0.0]),
        torch.tensor([1.0, 2.0]),
        **OPTIONS,
    )
    surrogate = -(1.2 - 1.0) / math.sqrt(2) / 2
    fit = 0.5 * (0.25 + 4.0) / 2
    entropy = (-0.8 * math.log(0.8) - 0.2 * math.log(0.2) + math.log(2)) / 2
    kl = (0.6 - math.log(1.6)) / 2
    assert measures.tolist() == pytest.approx([kl, surrogate, fit, entropy, 0.5], rel=1e-5)
    assert loss.item() == pytest.approx(surrogate + 0.5 * fit - 0.01 * entropy, rel=1e-5)


def gathered(steps=32):
    env = make_control("CartPole-v1", 2, 0)
    env.reset()
    policy = CategoricalActorCritic(4, 2, hidden=(8,), generator=generator())
    return policy, rollout(env, policy, steps, generator(1), gathered_for=0)


def make_step(policy, **options):
    settings = {"learning_rate": 1e-2, "compiled": False, **options}
    return GradientStep(policy, partial(ppo_loss, **OPTIONS), **settings)


def test_columns_are_computed_under_the_policy_as_it_is_now():
    policy, batch = gathered()
    with torch.no_grad():
        policy.actor_head.weight.add_(torch.randn(2, 8, generator=generator(2)))
    columns = ppo_columns(policy, batch, batch.reward, discount=0.9, decay=0.0)
    observation, action, log_prob, advantage, returns, value = columns
    assert torch.equal(log_prob, policy.log_prob(observation, action).detach())
    assert not torch.allclose(log_prob, batch.rows("behaviour_log_prob"))
    # With λ = 0 the return is one reward and what follows, as the critic sees it now; CartPole pays 1 a step.
    following = policy.value(batch.rows("next_observation")).detach()
    expected = 1 + 0.9 * torch.where(batch.rows("terminated"), 0.0, following)
    torch.testing.assert_close(returns, expected)
    torch.testing.assert_close(advantage, expected - value)
    assert all(not column.requires_grad for column in columns)


def test_the_first_minibatch_starts_at_ratio_1():
    policy, batch = gathered()
    columns = ppo_columns(policy, batch, batch.reward, discount=0.99, decay=0.95)
    measures = make_step(policy).epochs(columns, epochs=1, minibatches=4, generator=generator(3))
    first = dict(zip(MEASURES, measures[0].tolist(), strict=True))
    assert first["kl"] == pytest.approx(0, abs=1e-7)
    assert first["policy_loss"] == pytest.approx(0, abs=1e-6)  # Standardised advantages have mean 0.
    assert first["clip_fraction"] == 0
    assert measures[-1, 0] > 1e-7


def test_an_update_raises_the_version_and_says_how_far_it_went():
    policy, batch = gathered()
    columns = ppo_columns(policy, batch, batch.reward, discount=0.99, decay=0.95)
    before = policy_hash(policy)
    measures = ppo_update(make_step(policy), policy, columns, epochs=3, minibatches=4, generator=generator(3))
    assert policy.version == 1
    assert policy_hash(policy) != before
    assert measures["update_steps"] == 12
    assert set(MEASURES) < set(measures)
    returns, old_value = columns[4], columns[5]
    expected = 1 - (returns - old_value).var() / returns.var()
    assert measures["explained_variance"] == pytest.approx(expected.item(), rel=1e-4)


def test_the_kl_stop_ends_an_update():
    policy, batch = gathered()
    columns = ppo_columns(policy, batch, batch.reward, discount=0.99, decay=0.95)
    measures = ppo_update(
        make_step(policy, learning_rate=0.1, kl_stop=0.01),
        policy,
        columns,
        epochs=20,
        minibatches=4,
        generator=generator(3),
    )
    assert measures["kl"] > 0.01
    assert measures["update_steps"] < 80


def test_repeated_updates_make_good_actions_likelier():
    policy, batch = gathered()
    observation, action = batch.rows("observation"), batch.rows("action")
    good = (action == 1).float()
    value = policy.value(observation).detach()
    columns = (observation, action, policy.log_prob(observation, action).detach(), good, value, value)
    before = policy.distribution(observation).probs[:, 1].mean().item()
    ppo_update(make_step(policy), policy, columns, epochs=5, minibatches=2, generator=generator(3))
    assert policy.distribution(observation).probs[:, 1].mean().item() > before + 0.02
