"""The behaviour policy starts from the target at each update, stays near it, and never changes it."""

import pytest
import torch
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.policies.files import policy_hash
from peira.sources.props import (
    OnPolicySampler,
    PropsSampler,
    behaviour_loss,
    distribution_of,
    distribution_parameters,
    mean_kl,
)

KINDS = pytest.mark.parametrize("kind", [GaussianActorCritic, CategoricalActorCritic])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind, seed=0):
    policy = kind(4, 3, hidden=(8,), generator=generator(seed))
    policy.normaliser.update(torch.randn(20, 4, generator=generator(9)) + 1)
    return policy


def window(target, rows=64, seed=1):
    observation = torch.randn(rows, 4, generator=generator(seed))
    return observation, target.act(observation, generator(seed))[0]


def make_sampler(target, **options):
    settings = {
        "learning_rate": 1e-2,
        "clip": 0.3,
        "kl_penalty": 0.1,
        "kl_stop": 0.05,
        "epochs": 4,
        "minibatches": 4,
        "generator": generator(3),
        "compiled": False,
    }
    return PropsSampler(target, **{**settings, **options})


def named(policy):
    return {name: value for name, value in policy.state_dict().items() if torch.is_tensor(value)}


@KINDS
def test_an_update_moves_the_actor_and_leaves_critic_normaliser_and_target(kind):
    target = make(kind)
    sampler = make_sampler(target)
    before = policy_hash(target)
    measures = sampler.update(target, *window(target), new=64)
    assert policy_hash(target) == before
    assert 1 < measures["behaviour_steps"] <= 16
    moving = {n for n, p in sampler.policy.named_parameters() if not n.startswith("critic_")}
    for name, value in named(sampler.policy).items():
        assert torch.equal(value, named(target)[name]) == (name not in moving), name


@KINDS
def test_target_and_behaviour_share_no_memory(kind):
    target = make(kind)
    sampler = make_sampler(target)
    for _ in range(2):
        before = policy_hash(target)
        with torch.no_grad():
            for value in named(sampler.policy).values():
                value.add_(1.0)
        assert policy_hash(target) == before
        sampler.update(target, *window(target), new=0)
    acting = policy_hash(sampler.policy)
    with torch.no_grad():
        for value in named(target).values():
            value.add_(1.0)
    assert policy_hash(sampler.policy) == acting


@KINDS
def test_an_empty_window_makes_behaviour_the_target(kind):
    target = make(kind)
    sampler = make_sampler(target)
    sampler.update(target, *window(target), new=64)
    with torch.no_grad():
        target.actor_head.weight.add_(0.1)
    measures = sampler.update(target, torch.empty(0), torch.empty(0), new=0)
    assert policy_hash(sampler.policy) == policy_hash(target)
    assert measures["behaviour_steps"] == 0


@KINDS
def test_an_update_depends_on_target_and_window_not_on_updates_before(kind):
    target = make(kind)
    fresh, used = make_sampler(target), make_sampler(target)
    used.update(target, *window(target, seed=5), new=64)
    used._generator.manual_seed(3)
    for sampler in (fresh, used):
        sampler.update(target, *window(target), new=64)
    assert policy_hash(fresh.policy) == policy_hash(used.policy)


@KINDS
def test_the_update_stops_before_the_divergence_is_exceeded(kind):
    target = make(kind)
    sampler = make_sampler(target, learning_rate=0.05, kl_stop=0.01, epochs=50, minibatches=1)
    rows = window(target)
    measures = sampler.update(target, *rows, new=64)
    assert measures["behaviour_steps"] < 50
    assert measures["behaviour_kl"] > 0.01
    # What was refused is the step from here: one step fewer was still within the limit.
    shorter = make_sampler(
        target, learning_rate=0.05, kl_stop=0.01, epochs=measures["behaviour_steps"] - 1, minibatches=1
    )
    assert shorter.update(target, *rows, new=64)["behaviour_kl"] <= 0.01
    assert policy_hash(shorter.policy) == policy_hash(sampler.policy)


@KINDS
def test_a_window_smaller_than_the_number_of_minibatches_is_no_error(kind):
    target = make(kind)
    sampler = make_sampler(target, minibatches=16, kl_stop=1e9)
    assert sampler.update(target, *window(target, rows=3), new=3)["behaviour_steps"] == 12


@KINDS
def test_state_goes_out_and_comes_back(kind):
    target = make(kind)
    sampler, other = make_sampler(target), make_sampler(make(kind, seed=4))
    sampler.update(target, *window(target), new=64)
    other.load_state_dict(sampler.state_dict())
    assert policy_hash(other.policy) == policy_hash(sampler.policy)


def test_gaussian_kl_is_the_mean_over_action_dimensions():
    new = Normal(
        torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([0.5, 1.0, 2.0]).expand(2, 3)
    )
    old = Normal(
        torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, 0.0]]), torch.tensor([1.0, 1.0, 1.5]).expand(2, 3)
    )
    expected = kl_divergence(new, old)
    found = mean_kl(Independent(new, 1), Independent(old, 1))
    torch.testing.assert_close(found, expected.mean())
    summed = kl_divergence(Independent(new, 1), Independent(old, 1)).mean()
    torch.testing.assert_close(3 * found, summed)


def test_categorical_kl_is_exact_over_all_actions():
    new = Categorical(probs=torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    old = Categorical(probs=torch.tensor([[0.3, 0.3, 0.4], [0.1, 0.1, 0.8]]))
    torch.testing.assert_close(mean_kl(new, old), kl_divergence(new, old).mean())
    assert mean_kl(old, old).item() == pytest.approx(0, abs=1e-7)


@KINDS
def test_loss_and_measures_by_their_definitions(kind):
    target, behaviour = make(kind), make(kind)
    with torch.no_grad():
        behaviour.actor_head.weight.add_(torch.randn(3, 8, generator=generator(5)) * 0.5)
        observation, action = window(target)
        old, new = target.distribution(observation), behaviour.distribution(observation)
        old_log_prob = old.log_prob(action)
        loss, measures = behaviour_loss(
            behaviour,
            observation,
            action,
            old_log_prob,
            *distribution_parameters(old),
            clip=0.3,
            kl_penalty=0.2,
        )
    ratio = (new.log_prob(action) - old_log_prob).exp()
    divergence = kl_divergence(new, old).mean() / (3 if kind is GaussianActorCritic else 1)
    assert (ratio < 0.7).any()
    torch.testing.assert_close(loss, ratio.clamp(min=0.7).mean() + 0.2 * divergence)
    k3 = (ratio - 1 - ratio.log()).mean()
    torch.testing.assert_close(measures, torch.stack([k3, divergence, (ratio < 0.7).float().mean()]))


@KINDS
def test_distributions_are_rebuilt_from_their_parameters(kind):
    target = make(kind)
    observation, action = window(target)
    distribution = target.distribution(observation)
    rebuilt = distribution_of(target, distribution_parameters(distribution))
    torch.testing.assert_close(rebuilt.log_prob(action), distribution.log_prob(action))


def test_a_far_away_action_does_not_overflow_the_divergence():
    target = make(GaussianActorCritic)
    observation, action = window(target)
    sampler = make_sampler(target, epochs=2, minibatches=1, kl_stop=1e9)
    measures = sampler.update(target, observation, action * 1e3, new=64)
    assert all(value == value and abs(value) < 1e12 for value in measures.values())


def test_the_on_policy_sampler_acts_with_the_target_itself():
    target = make(GaussianActorCritic)
    sampler = OnPolicySampler(target)
    assert sampler.update(target, *window(target), new=64) == {}
    assert sampler.policy is target
