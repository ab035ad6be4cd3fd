"""Each policy class samples with the probability that it states, and once saved it comes back the same."""

import math

import pytest
import torch

from peira.policies.actor_critic import ActorCritic, CategoricalActorCritic, GaussianActorCritic
from peira.policies.files import CLASSES, load_policy, policy_hash, save_policy

KINDS = [kind for kind in CLASSES.values() if issubclass(kind, ActorCritic)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind, seed=0, **options):
    policy = kind(4, 3, generator=generator(seed), **options)
    with torch.no_grad():
        policy.actor_head.weight.mul_(50)  # The initial head is nearly uniform: make it say something.
        if isinstance(policy, GaussianActorCritic):
            policy.log_std.copy_(torch.tensor([-1.0, 0.0, 0.5]))
    return policy


def test_every_class_of_policy_is_tested_and_can_be_loaded():
    assert set(KINDS) == set(ActorCritic.__subclasses__())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [(), (8,), (8, 5)])
@pytest.mark.parametrize("batch", [(), (7,), (2, 5)])
def test_act_and_log_prob_agree(kind, hidden, batch):
    policy = make(kind, hidden=hidden)
    observation = torch.randn(*batch, 4, generator=generator(1))
    action, log_prob = policy.act(observation, generator(2))
    assert log_prob.shape == batch
    assert action.shape == (batch if kind is CategoricalActorCritic else (*batch, 3))
    assert not log_prob.requires_grad
    torch.testing.assert_close(log_prob, policy.log_prob(observation, action), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_draws_the_same_actions(kind):
    policy, observation = make(kind), torch.randn(20, 4, generator=generator(1))
    first, _ = policy.act(observation, generator(5))
    assert torch.equal(first, policy.act(observation, generator(5))[0])
    assert not torch.equal(first, policy.act(observation, generator(6))[0])


def test_a_gaussian_log_density_by_hand():
    policy = GaussianActorCritic(1, 2, hidden=(), bias=False, normalise=False)
    with torch.no_grad():
        policy.actor_head.weight.copy_(torch.tensor([[1.0], [-2.0]]))
        policy.log_std.copy_(torch.tensor([0.0, math.log(2.0)]))
    found = policy.log_prob(torch.tensor([[3.0]]), torch.tensor([[4.0, -2.0]]))
    # Standardised deviations 1 and 2, standard deviations 1 and 2.
    assert found.item() == pytest.approx(-0.5 - 2.0 - math.log(2.0) - math.log(2 * math.pi), rel=1e-6)
    entropy = math.log(2.0) + 1 + math.log(2 * math.pi)
    assert policy.entropy(torch.tensor([[3.0]])).item() == pytest.approx(entropy, rel=1e-6)
    assert policy.mode(torch.tensor([[3.0]])).tolist() == [[3.0, -6.0]]


def test_categorical_probabilities_by_hand():
    policy = CategoricalActorCritic(2, 3, hidden=(), bias=False, normalise=False)
    with torch.no_grad():
        policy.actor_head.weight.copy_(torch.tensor([[0.2, 0.1], [0.3, 0.8], [0.5, 0.1]]).log())
    states = torch.eye(2)
    found = policy.log_prob(states, torch.tensor([2, 1])).exp()
    torch.testing.assert_close(found, torch.tensor([0.5, 0.8]))
    assert policy.mode(states).tolist() == [2, 1]
    assert policy.entropy(states)[1].item() == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.1))


def test_a_gaussian_samples_its_mean_and_deviation():
    policy, draws = make(GaussianActorCritic), 40_000
    observation = torch.randn(4, generator=generator(1)).expand(draws, 4)
    action, _ = policy.act(observation, generator(2))
    error = 4 / math.sqrt(draws)
    deviation = policy.log_std.exp().detach()
    torch.testing.assert_close(
        (action.mean(0) - policy.mode(observation[0])) / deviation, torch.zeros(3), rtol=0, atol=error
    )
    torch.testing.assert_close(action.std(0) / deviation, torch.ones(3), rtol=0, atol=error)


def test_a_categorical_policy_samples_its_probabilities():
    policy, draws = make(CategoricalActorCritic), 40_000
    observation = torch.randn(4, generator=generator(1)).expand(draws, 4)
    action, _ = policy.act(observation, generator(2))
    frequency = torch.bincount(action, minlength=3) / draws
    expected = policy.distribution(observation[0]).probs.detach()
    torch.testing.assert_close(frequency, expected, rtol=0, atol=4 * 0.5 / math.sqrt(draws))


def singular_values(layer):
    return torch.linalg.svdvals(layer.weight.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_begin_orthogonal_with_the_usual_gains(kind):
    policy = kind(4, 3, hidden=(16, 8), generator=generator())
    for layer, gain in [
        (policy.actor_body[0], math.sqrt(2)),
        (policy.actor_body[2], math.sqrt(2)),
        (policy.critic_body[2], math.sqrt(2)),
        (policy.actor_head, 0.01),
        (policy.critic_head, 1.0),
    ]:
        values = singular_values(layer)
        torch.testing.assert_close(values, torch.full_like(values, gain))
        assert not layer.bias.any()
    assert not torch.equal(policy.actor_body[0].weight, policy.critic_body[0].weight)


def test_initial_weights_follow_from_the_generator_alone():
    same = [policy_hash(GaussianActorCritic(4, 3, generator=generator(seed))) for seed in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


@pytest.mark.parametrize("kind", KINDS)
def test_actor_parameters_decide_actions_and_the_others_do_not(kind):
    policy, observation = make(kind, bias=True), torch.randn(5, 4, generator=generator(1))
    actor = policy.actor_parameters()
    rest = {name: value for name, value in policy.named_parameters() if name not in actor}
    assert all(name.startswith("critic") for name in rest)
    used = torch.autograd.grad(
        policy.log_prob(observation, policy.mode(observation)).sum(),
        list(policy.parameters()),
        allow_unused=True,
    )
    for (name, _), gradient in zip(policy.named_parameters(), used, strict=True):
        assert (gradient is None) == (name in rest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_reads_raw_observations_through_its_normaliser(kind):
    policy, bare = make(kind), make(kind, normalise=False)
    rows = torch.randn(50, 4, generator=generator(1)) * 3 + 10
    policy.normaliser.update(rows)
    standardised = (rows - rows.mean(0)) / rows.std(0, correction=0)
    action = policy.mode(rows)
    torch.testing.assert_close(
        policy.log_prob(rows, action), bare.log_prob(standardised, action), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(policy.value(rows), bare.value(standardised), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"hidden": (), "bias": False, "normalise": False}])
def test_a_saved_policy_comes_back_the_same(kind, options, tmp_path):
    policy = make(kind, **options)
    if policy.normaliser is not None:
        policy.normaliser.update(torch.randn(9, 4, generator=generator(3)) + 2)
    policy.id, policy.version = "props-01ABC", 17
    save_policy(policy, tmp_path / "a" / "policy")
    loaded = load_policy(tmp_path / "a" / "policy")
    observation = torch.randn(6, 4, generator=generator(1))
    assert type(loaded) is kind
    assert (loaded.id, loaded.version) == ("props-01ABC", 17)
    assert policy_hash(loaded) == policy_hash(policy)
    assert torch.equal(loaded.mode(observation), policy.mode(observation))
    assert torch.equal(loaded.value(observation), policy.value(observation))
    assert loaded.description() == policy.description()


def test_the_hash_tells_one_changed_bit():
    policy = make(GaussianActorCritic)
    before = policy_hash(policy)
    assert policy_hash(policy) == before
    with torch.no_grad():
        policy.log_std[0] = torch.nextafter(policy.log_std[0], torch.tensor(9.0))
    assert policy_hash(policy) != before


def test_a_folder_without_a_policy_and_an_unknown_class_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"policy: .* holds no policy\.json; name a folder that a run wrote"):
        load_policy(tmp_path)
    save_policy(make(GaussianActorCritic), tmp_path)
    about = tmp_path / "policy.json"
    about.write_text(about.read_text().replace("GaussianActorCritic", "Oracle"))
    with pytest.raises(ValueError, match="is of class 'Oracle'; known are GaussianActorCritic, Categorical"):
        load_policy(tmp_path)
