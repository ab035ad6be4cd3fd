"""With a target that stands still PROPS lowers sampling error, and on-policy sampling sits at p/(2N): R2 in small.

States come independently, so nothing but the choice of actions differs between the samplers.
"""

import numpy as np
import torch

from peira.evaluation.sampling_error import sampling_error
from peira.policies.actor_critic import GaussianActorCritic
from peira.sources.props import OnPolicySampler, PropsSampler

STEPS, INTERVAL = 4096, 512


def error_under(sampler, target: GaussianActorCritic, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    observation, action = torch.empty(0, 4), torch.empty(0, 2)
    for _ in range(STEPS // INTERVAL):
        sampler.update(target, observation, action, INTERVAL if len(action) else 0)
        seen = torch.randn(INTERVAL, 4, generator=generator)
        observation = torch.cat([observation, seen])
        action = torch.cat([action, sampler.policy.act(seen, generator)[0]])
    return sampling_error(target, observation, action).value


def test_sampling_error_falls_below_that_of_on_policy_sampling():
    props_errors, on_policy = [], []
    for seed in range(4):
        generator = torch.Generator().manual_seed(100 + seed)
        target = GaussianActorCritic(4, 2, hidden=(16,), normalise=False, generator=generator)
        props = PropsSampler(
            target,
            learning_rate=1e-3,
            clip=0.3,
            kl_penalty=0.1,
            kl_stop=0.05,
            epochs=8,
            minibatches=4,
            generator=generator,
            compiled=False,
        )
        on_policy.append(error_under(OnPolicySampler(target), target, seed))
        props_errors.append(error_under(props, target, seed))
    reference = (17 * 2 + 2) / (2 * STEPS)
    assert 0.7 < np.mean(on_policy) / reference < 1.3
    assert np.mean(props_errors) < 0.7 * np.mean(on_policy)
