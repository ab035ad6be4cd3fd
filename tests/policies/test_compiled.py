"""A compiled choice is the policy's own, and follows the policy as it learns."""

import pytest
import torch

from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.policies.compiled import CompiledChoice, can_compile


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
