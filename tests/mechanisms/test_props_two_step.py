"""PROPS does not miss the rare action of TwoStep as independent draws do: R3 in small.

In a batch of TwoStep the state before the good action, of probability 0.0198, is seen some fifty times. Independent
draws miss the action in (1 − 0.0198)⁵⁰ = 37 % of batches; a batch that mirrors its policy holds it.
"""

import torch

from peira.environments.two_step import COMMON_ACTION_LOGIT
from peira.policies.actor_critic import CategoricalActorCritic
from peira.recipes import props
from peira.sources.props import OnPolicySampler, PropsSampler

BATCHES, VISITS, INTERVAL = 20, 50, 5


def batches_without_the_rare_action(sampler, target: CategoricalActorCritic) -> int:
    generator = torch.Generator().manual_seed(0)
    state = torch.zeros(VISITS, 7)
    state[:, 1] = 1.0
    missed = 0
    for _ in range(BATCHES):
        action = torch.empty(0, dtype=torch.int64)
        for _ in range(VISITS // INTERVAL):
            sampler.update(target, state[: len(action)], action, INTERVAL if len(action) else 0)
            action = torch.cat([action, sampler.policy.act(state[:INTERVAL], generator)[0]])
        missed += not (action == 0).any()
    return missed


def test_nearly_every_batch_holds_the_rare_action():
    target = CategoricalActorCritic(7, 2, hidden=(), bias=False, normalise=False)
    with torch.no_grad():
        target.actor_head.weight.zero_()
        target.actor_head.weight[1, 1] = COMMON_ACTION_LOGIT
    settings = props.two_step()
    sampler = PropsSampler(
        target,
        learning_rate=settings.behaviour_learning_rate,
        clip=settings.behaviour_clip,
        kl_penalty=settings.behaviour_kl_penalty,
        kl_stop=settings.behaviour_kl_stop,
        epochs=8,
        minibatches=settings.behaviour_minibatches,
        generator=torch.Generator().manual_seed(0),
        compiled=False,
    )
    assert batches_without_the_rare_action(sampler, target) <= 2
    assert batches_without_the_rare_action(OnPolicySampler(target), target) >= 4
