"""A compiled choice is the policy's own, and follows the policy as it learns; compiled tanh is tanh."""

import pytest
import torch

from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.policies.compiled import CompiledChoice, can_compile, compile_function


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
@pytest.mark.parametrize("kind", [GaussianActorCritic, CategoricalActorCritic])
def test_compiled_choice_follows_the_policy(kind):
    generator = torch.Generator().manual_seed(0)
    policy = kind(3, 4, hidden=(5,), generator=generator)
    choose = CompiledChoice(policy)
    for _ in range(3):
        observation = torch.randn(8, 3, generator=generator)
        noise = policy.noise((8,), generator)
        with torch.no_grad():
            torch.testing.assert_close(choose(observation, noise), policy.choose(observation, noise))
            for parameter in policy.actor_parameters().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
            policy.normaliser.update(observation)


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_a_batch_of_another_size_is_refused():
    policy = CategoricalActorCritic(3, 2, hidden=(5,), generator=torch.Generator().manual_seed(0))
    choose = CompiledChoice(policy)
    choose(torch.zeros(8, 3), torch.zeros(8, 2))
    with pytest.raises(ValueError, match=r"compiled for observations \[8, 3\], got \[4, 3\]"):
        choose(torch.zeros(4, 3), torch.zeros(4, 2))


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_compiled_tanh_is_tanh():
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.tensor([-1e30, 0.0, 1e-20, 1e30])])
    (value,) = compile_function(lambda x: (torch.tanh(x),), [x])(x)
    torch.testing.assert_close(value, torch.tanh(x.double()).float(), rtol=1e-6, atol=5e-7)
    assert value.abs().max() <= 1
    assert value[-3] == 0
    assert value[-1] == 1
