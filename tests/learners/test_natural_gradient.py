"""Conjugate gradients, the line search, and the whole update against TRPO written with automatic differentiation."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from peira.learners.natural_gradient import ActorRows, NaturalGradient, conjugate_gradients
from peira.policies.stacked import StackedCategoricalPolicy, StackedGaussianPolicy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rows_for(policy, rows=60, seed=1):
    observation = drawn(policy.steps, rows, policy.observation_size, seed=seed)
    action = policy.drawn(policy.activations(observation)[-1], generator(seed + 1))
    return ActorRows.of(observation, action, drawn(policy.steps, rows, seed=seed + 2))


def test_conjugate_gradients_solve_several_systems_at_once():
    root = drawn(4, 6, 6)
    matrix = root @ root.mT + 0.5 * torch.eye(6)
    target = drawn(4, 6, seed=1)
    target[2] = 0  # Solved before it starts.
    target[3] = torch.linalg.eigh(matrix[3]).eigenvectors[:, 0]  # Solved after one iteration.
    found = conjugate_gradients(lambda v: (matrix @ v[..., None])[..., 0], target, iterations=12)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target), rtol=1e-4, atol=1e-5)
    assert (found[2] == 0).all()


def test_each_policy_of_a_stack_steps_as_it_would_alone():
    stack = StackedGaussianPolicy(3, 4, 2, generator=generator())
    rows = rows_for(stack)
    alone = []
    for step in range(3):
        one = StackedGaussianPolicy(1, 4, 2)
        one.flat.copy_(stack.flat[step : step + 1])
        part = ActorRows(
            *(
                getattr(rows, name)[step : step + 1]
                for name in ("observation", "action", "advantage", "weight")
            ),
            rows.in_surrogate,
        )
        NaturalGradient().update(one, part)
        alone.append(one.flat[0])
    NaturalGradient().update(stack, rows)
    torch.testing.assert_close(stack.flat.data, torch.stack(alone))
    assert stack.version == 1


def test_a_policy_without_signal_stays_and_says_so():
    policy = StackedGaussianPolicy(2, 4, 2, generator=generator())
    rows = rows_for(policy)
    rows.advantage[0] = 0
    before = policy.flat.clone()
    measures = NaturalGradient().update(policy, rows)
    assert torch.equal(policy.flat[0], before[0])
    assert not torch.equal(policy.flat[1], before[1])
    assert measures["skipped"] == 0.5


@pytest.mark.parametrize("kind", [StackedGaussianPolicy, StackedCategoricalPolicy])
@pytest.mark.parametrize("max_kl", [0.01, 2.0])
def test_no_step_goes_further_than_allowed(kind, max_kl):
    policy = kind(4, 4, 2, generator=generator())
    rows = rows_for(policy, rows=15)
    old = policy.flat.clone()
    head = policy.activations(rows.observation)[-1]
    measures = NaturalGradient(max_kl=max_kl, damping=1e-4).update(policy, rows)
    moved = policy.kl(old, head, policy.flat, policy.activations(rows.observation)[-1]).mean(1)
    assert (moved <= 1.5 * max_kl).all()
    assert measures["kl"] == pytest.approx(moved.mean().item())
    assert measures["surrogate_after"] > measures["surrogate_before"]


def test_advantages_that_promise_nothing_are_refused():
    """Where no fraction of the step improves the surrogate the parameters stay bit for bit."""
    policy = StackedGaussianPolicy(1, 4, 2, generator=generator())
    rows = rows_for(policy)
    before = policy.flat.clone()
    measures = NaturalGradient(backtracks=0, accept=1e6).update(policy, rows)
    assert measures["step_fraction"] == 0
    assert measures["skipped"] == 0
    assert torch.equal(policy.flat, before)


def test_the_update_is_that_of_trpo_with_automatic_differentiation():
    """Gradient and Hessian products of the KL by double backward on ordinary modules, and the usual line search."""
    policy = StackedGaussianPolicy(1, 4, 2, hidden=(8, 8), generator=generator())
    policy.flat += 0.1 * drawn(*policy.flat.shape, seed=9)
    rows = rows_for(policy, rows=200)
    observation, action, advantage = rows.observation[0], rows.action[0], rows.advantage[0]
    modules = []
    for weight, bias in policy.net.layers(policy.flat):
        layer = torch.nn.Linear(*weight.shape[1:]).double()
        layer.weight.data, layer.bias.data = weight[0].T.contiguous(), bias[0, 0].clone()
        modules += [layer, torch.nn.Tanh()]
    net = torch.nn.Sequential(*modules[:-1])
    log_std = torch.nn.Parameter(policy.log_std(policy.flat)[0, 0].clone())
    parameters = [*net.parameters(), log_std]

    def distribution():
        mean = net(observation)
        return Independent(Normal(mean, log_std.exp().expand_as(mean)), 1)

    old = distribution()
    old = Independent(Normal(old.mean.detach(), old.base_dist.scale.detach()), 1)
    old_log_prob = old.log_prob(action)

    def flat(tensors):
        return torch.cat([tensor.flatten() for tensor in tensors])

    def surrogate():
        return (advantage * (distribution().log_prob(action) - old_log_prob).exp()).mean()

    gradient = flat(torch.autograd.grad(surrogate(), parameters))

    def product(v):
        slope = flat(
            torch.autograd.grad(kl_divergence(old, distribution()).mean(), parameters, create_graph=True)
        )
        return flat(torch.autograd.grad(slope @ v, parameters)).detach() + 0.1 * v

    x, residual = torch.zeros_like(gradient), gradient.clone()
    direction, square = residual.clone(), residual @ residual
    for _ in range(10):
        image = product(direction)
        length = square / (direction @ image)
        x, residual = x + length * direction, residual - length * image
        following = residual @ residual
        direction, square = residual + following / square * direction, following
        if square < 1e-10:
            break
    step = x * (2 * 0.01 / (x @ product(x))).sqrt()
    start, before = parameters_to_vector(parameters).detach(), surrogate().item()
    for halvings in range(11):
        share = 0.5**halvings
        vector_to_parameters(start + share * step, parameters)
        gain = surrogate().item() - before
        divergence = kl_divergence(old, distribution()).mean().item()
        if gain > 0 and gain > 0.1 * share * (gradient @ step).item() and divergence <= 0.015:
            break
    measures = NaturalGradient().update(policy, rows)
    assert measures["step_fraction"] == share
    ours = policy.net.layers(policy.flat)
    for (weight, bias), layer in zip(ours, modules[::2], strict=True):
        torch.testing.assert_close(weight[0].T, layer.weight.data, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(bias[0, 0], layer.bias.data, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(policy.log_std(policy.flat)[0, 0], log_std.data, rtol=1e-7, atol=1e-10)
