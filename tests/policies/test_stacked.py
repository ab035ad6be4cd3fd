"""Stacked networks and policies agree with automatic differentiation and with torch's distributions."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.func import hessian, jacrev, jvp, vjp

from peira.policies.stacked import StackedCategoricalPolicy, StackedGaussianPolicy, StackedMLP

STEPS, ROWS, OBS, ACT = 3, 7, 4, 2
KINDS = [StackedGaussianPolicy, StackedCategoricalPolicy]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def observations(rows=ROWS, seed=1):
    return torch.randn(STEPS, rows, OBS, generator=generator(seed), dtype=torch.float64)


def policy_of(kind, seed=0, **options):
    policy = kind(STEPS, OBS, ACT, hidden=(5, 4), generator=generator(seed), **options)
    policy.flat += 0.3 * torch.randn(
        policy.flat.shape, generator=generator(seed + 10), dtype=policy.flat.dtype
    )
    return policy


def actions(policy, observation):
    return policy.drawn(policy.activations(observation)[-1], generator(2))


def distribution(policy, flat, observation):
    head = policy.activations(observation, flat)[-1]
    if policy.discrete:
        return Categorical(logits=head)
    return Independent(Normal(head, policy.log_std(flat).exp().expand_as(head)), 1)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_networks_put_out_what_modules_of_the_same_parameters_do(hidden):
    net = StackedMLP((OBS, *hidden, ACT))
    flat, seen = net.initial(STEPS, generator()), observations()
    found = net.forward(flat, seen)[-1]
    for step in range(STEPS):
        modules: list[nn.Module] = []
        for weight, bias in net.layers(flat[step : step + 1]):
            layer = nn.Linear(*weight.shape[1:]).double()
            layer.weight.data, layer.bias.data = weight[0].T, bias[0, 0]
            modules += [layer, nn.Tanh()]
        torch.testing.assert_close(found[step], nn.Sequential(*modules[:-1])(seen[step]))
    assert flat.shape == (STEPS, net.size)


def test_the_last_layer_starts_small():
    net = StackedMLP((100, 50, 2))
    first, last = net.layers(net.initial(1, generator()))
    assert first[0].abs().max() <= 0.1
    assert first[0].abs().max() > 0.09
    assert last[0].abs().max() <= 0.1 / 50**0.5
    assert (last[1] == 0).all()


def test_derivatives_are_those_of_automatic_differentiation():
    net = StackedMLP((OBS, 5, 4, ACT))
    flat, seen = net.initial(STEPS, generator()), observations()
    direction = torch.randn(flat.shape, generator=generator(3), dtype=flat.dtype)
    cotangent = torch.randn(STEPS, ROWS, ACT, generator=generator(4), dtype=flat.dtype)

    def outputs(flat):
        return net.forward(flat, seen)[-1]

    activations = net.forward(flat, seen)
    torch.testing.assert_close(
        net.tangent(flat, activations, direction), jvp(outputs, (flat,), (direction,))[1]
    )
    torch.testing.assert_close(
        net.pullback(flat, activations, cotangent), vjp(outputs, flat)[1](cotangent)[0]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_densities_and_divergences_are_those_of_the_distributions(kind):
    old, new, seen = policy_of(kind), policy_of(kind, seed=5), observations()
    action = actions(old, seen)
    expected = distribution(old, old.flat, seen).log_prob(action)
    torch.testing.assert_close(old.log_prob(seen, action), expected)
    heads = old.activations(seen)[-1], new.activations(seen)[-1]
    expected = kl_divergence(distribution(old, old.flat, seen), distribution(new, new.flat, seen))
    torch.testing.assert_close(old.kl(old.flat, heads[0], new.flat, heads[1]), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_gradients_of_the_log_density(kind):
    policy, seen = policy_of(kind), observations()
    action = actions(policy, seen)
    coefficient = torch.randn(STEPS, ROWS, generator=generator(6), dtype=torch.float64)
    direction = torch.randn(policy.flat.shape, generator=generator(7), dtype=torch.float64)
    activations = policy.activations(seen)

    def log_prob(flat):
        return policy.log_prob_at(flat, policy.activations(seen, flat)[-1], action)

    score = jacrev(log_prob)(policy.flat.data)
    torch.testing.assert_close(
        policy.score(activations, action, coefficient), (score * coefficient[..., None, None]).sum((0, 1))
    )
    torch.testing.assert_close(
        policy.score_product(activations, action, direction), (score * direction).sum((2, 3))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_products_are_those_with_the_hessian_of_the_divergence(kind):
    policy, seen = policy_of(kind), observations()
    weight = torch.rand(STEPS, ROWS, generator=generator(6), dtype=torch.float64)
    direction = torch.randn(policy.flat.shape, generator=generator(7), dtype=torch.float64)
    activations, old = policy.activations(seen), policy.flat.data.clone()

    def divergence(flat):
        return (weight * policy.kl(old, activations[-1], flat, policy.activations(seen, flat)[-1])).sum()

    size = old.numel()
    curvature = hessian(divergence)(old).reshape(size, size)
    expected = (curvature @ direction.flatten()).view_as(direction)
    torch.testing.assert_close(policy.fisher(activations, weight, direction), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_drawn_from_the_policy(kind):
    policy = kind(1, OBS, ACT, generator=generator())
    policy.flat += 0.5 * torch.randn(policy.flat.shape, generator=generator(8), dtype=torch.float64)
    seen = torch.full((20_000, OBS), 0.3)
    for drawn in (
        policy.sample(seen, generator(9)),
        policy.drawn(policy.activations(seen[None])[-1], generator(9))[0],
    ):
        shown = distribution(policy, policy.flat, seen[None, :1].double())
        if policy.discrete:
            share = torch.bincount(drawn, minlength=ACT) / len(drawn)
            torch.testing.assert_close(share.double(), shown.probs[0, 0], rtol=0, atol=0.02)
        else:
            torch.testing.assert_close(drawn.mean(0).double(), shown.mean[0, 0], rtol=0, atol=0.05)
            torch.testing.assert_close(drawn.std(0).double(), shown.base_dist.scale[0, 0], rtol=0.03, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_step_acts_by_its_own_row(kind):
    policy, seen = policy_of(kind), observations().float()
    noise = policy.noise((STEPS, ROWS), generator(3))
    choose, most = policy.in_turn(), policy.in_turn(mode=True)
    for step in [*range(STEPS), 0]:
        torch.testing.assert_close(
            choose(seen[step], noise[step]), policy.choose(seen[step], noise[step], step)
        )
        torch.testing.assert_close(most(seen[step], noise[step]), policy.mode(seen[step], step))
    alone = kind(1, OBS, ACT, hidden=(5, 4))
    alone.flat.copy_(policy.flat[1:2])
    torch.testing.assert_close(alone.mode(seen[1]), policy.mode(seen[1], 1))
    action = policy.choose(seen[1], noise[1], 1)
    expected = policy.log_prob(seen, torch.stack([action] * STEPS))[1]
    torch.testing.assert_close(alone.log_prob(seen[1], action), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_is_built_again_from_its_description(kind):
    policy = policy_of(kind, dtype=torch.float32)
    policy.version = 4
    about = policy.description()
    assert about.pop("class") == kind.__name__
    again = kind(**about)
    again.load_state_dict(policy.state_dict())
    assert again.version == 4
    assert torch.equal(again.flat, policy.flat)
    assert again.flat.dtype == torch.float32
