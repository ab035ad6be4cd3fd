import json

import numpy as np
import pytest
import torch
from torch.distributions import AffineTransform, Independent, Normal, TanhTransform, TransformedDistribution

from peira.policies.continuous import (
    Critics,
    DeterministicActor,
    GaussianActor,
    ReLUStack,
    TanhGaussianActor,
    UniformActor,
    Value,
)
from peira.policies.files import CLASSES, load_policy, save_policy
from peira.policies.protocol import Acts

LOW, HIGH = [-2.0, 0.0], [2.0, 3.0]
KINDS = (DeterministicActor, GaussianActor, TanhGaussianActor)


def made(kind, **options):
    generator = torch.Generator().manual_seed(0)
    policy = kind(3, 2, low=LOW, high=HIGH, hidden=(16, 16), generator=generator, **options)
    policy.standardise(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]))
    return policy


@pytest.fixture
def observation():
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("kind", KINDS)
def test_actions_stay_within_the_bounds_and_follow_standardised_observations(kind, observation):
    policy = made(kind)
    mode = policy.mode(observation)
    assert (mode >= torch.tensor(LOW)).all() and (mode <= torch.tensor(HIGH)).all()
    inputs = (observation - torch.tensor([1.0, 2.0, 3.0])) * torch.tensor([0.5, 1.0, 2.0])
    unit = policy.net(inputs)[:, :2].tanh()
    torch.testing.assert_close(mode, torch.stack([2 * unit[:, 0], 1.5 + 1.5 * unit[:, 1]], 1))
    assert isinstance(policy, Acts)


@pytest.mark.parametrize("kind", [GaussianActor, TanhGaussianActor])
def test_act_and_log_prob_agree(kind, observation):
    policy = made(kind)
    action, log_prob = policy.act(observation, torch.Generator().manual_seed(2))
    torch.testing.assert_close(log_prob, policy.log_prob(observation, action))


def test_the_squashed_density_is_the_one_that_torch_derives(observation):
    policy = made(TanhGaussianActor)
    action = policy.sample(observation, torch.Generator().manual_seed(2)).detach().double()
    mean, log_std = (head.double() for head in policy.heads(policy.standardised(observation)))
    scale = AffineTransform(policy.centre.double(), policy.half_range.double(), event_dim=1)
    base = Independent(Normal(mean, log_std.exp()), 1)
    expected = TransformedDistribution(base, [TanhTransform(), scale]).log_prob(action)
    torch.testing.assert_close(
        policy.log_prob(observation, action.float()).double(), expected, rtol=1e-3, atol=1e-3
    )
    noise = torch.randn(7, 2, generator=torch.Generator().manual_seed(2))
    unit, unit_log_prob = policy.unit_sample(policy.standardised(observation), noise)
    torch.testing.assert_close(
        unit_log_prob - policy.half_range.log().sum(),
        policy.log_prob(observation, policy.from_unit(unit)),
        rtol=1e-3,
        atol=1e-3,
    )


def test_the_gaussian_density_is_in_the_environments_units(observation):
    policy = made(GaussianActor)
    policy.log_std.data.copy_(torch.tensor([-1.0, 0.5]))
    action = policy.sample(observation, torch.Generator().manual_seed(2))
    std = policy.log_std.exp() * policy.half_range
    expected = Normal(policy.mode(observation), std).log_prob(action).sum(-1)
    torch.testing.assert_close(policy.log_prob(observation, action), expected)


@pytest.mark.parametrize("kind", [GaussianActor, TanhGaussianActor])
def test_the_gradient_with_respect_to_the_action_is_that_of_the_density(kind, observation):
    policy = made(kind).double()
    action = policy.sample(observation.double(), torch.Generator().manual_seed(2)).double().detach()
    action = (policy.centre + 0.5 * (action - policy.centre)).requires_grad_()
    torch.autograd.gradcheck(lambda a: policy.log_prob(observation.double(), a).sum(), action)


def test_a_density_at_the_very_edge_is_finite(observation):
    policy = made(TanhGaussianActor)
    edge = torch.tensor([[-2.0, 3.0]]).expand(7, -1)
    assert torch.isfinite(policy.log_prob(observation, edge)).all()
    far = policy.choose(observation, torch.full((7, 2), 100.0))
    assert torch.isfinite(policy.log_prob(observation, far)).all()


def test_a_deterministic_actor_says_that_it_has_no_density(observation):
    policy = made(DeterministicActor)
    with pytest.raises(ValueError, match="a deterministic actor has no density"):
        policy.log_prob(observation, policy.mode(observation))


def test_a_uniform_policy_fills_its_box():
    policy = UniformActor(2, low=LOW, high=HIGH)
    action = policy.sample(torch.zeros(4000, 3), torch.Generator().manual_seed(0))
    torch.testing.assert_close(action.mean(0), torch.tensor([0.0, 1.5]), atol=0.08, rtol=0)
    torch.testing.assert_close(action.amax(0), torch.tensor(HIGH), atol=0.01, rtol=0)
    torch.testing.assert_close(policy.log_prob(torch.zeros(1, 3), action[:1]), -torch.tensor([12.0]).log())
    assert policy.mode(torch.zeros(5, 3)).tolist() == [[0.0, 1.5]] * 5


def test_critics_side_by_side_are_the_critics_one_by_one():
    generator = torch.Generator().manual_seed(0)
    critics = Critics(3, 2, 3, hidden=(8, 8), layer_norm=True, generator=generator)
    observation, action = torch.randn(5, 3), torch.randn(5, 2)
    together = critics(observation, action)
    assert together.shape == (3, 5)
    for member in range(3):
        single = ReLUStack((5, 8, 8, 1), layer_norm=True)
        single.load_state_dict(
            {
                n: v[member].reshape(dict(single.named_parameters())[n].shape)
                for n, v in critics.net.state_dict().items()
            }
        )
        alone = single(torch.cat([observation, action], -1)).squeeze(-1)
        torch.testing.assert_close(together[member], alone)
    torch.testing.assert_close(critics.first(observation, action), together[0])
    assert not torch.allclose(together[0], together[1])


def test_layers_begin_as_wide_as_linear_layers_do():
    value = Value(100, hidden=(400,), generator=torch.Generator().manual_seed(0))
    first, last = value.net.weights
    assert first.abs().max().item() == pytest.approx(0.1, rel=1e-3)
    assert last.abs().max().item() == pytest.approx(0.05, rel=1e-2)


def test_half_products_change_little_and_only_between_hidden_layers():
    stack = ReLUStack((3, 64, 64, 2), generator=torch.Generator().manual_seed(0))
    inputs = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    exact = stack(inputs)
    stack.half_products = True
    rough = stack(inputs)
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, rtol=0.02, atol=0.01)
    shallow = ReLUStack((3, 64, 2), generator=torch.Generator().manual_seed(0))
    exact = shallow(inputs)
    shallow.half_products = True
    assert torch.equal(exact, shallow(inputs))


@pytest.mark.parametrize("bounds", [([-np.inf], [np.inf]), ([1.0], [1.0]), ([2.0], [1.0])])
def test_bounds_without_room_are_refused(bounds):
    low, high = bounds
    with pytest.raises(ValueError, match="low, high: expected finite bounds with room between them"):
        DeterministicActor(3, 1, low=low, high=high)


@pytest.mark.parametrize("kind", [*KINDS, UniformActor])
def test_policies_come_back_from_disk(kind, tmp_path, observation):
    policy = UniformActor(2, low=LOW, high=HIGH) if kind is UniformActor else made(kind, layer_norm=True)
    policy.id, policy.version = "somebody", 7
    assert kind.__name__ in CLASSES
    save_policy(policy, tmp_path)
    assert json.loads((tmp_path / "policy.json").read_text())["class"] == kind.__name__
    again = load_policy(tmp_path)
    assert (again.id, again.version) == ("somebody", 7)
    assert torch.equal(again.mode(observation), policy.mode(observation))
