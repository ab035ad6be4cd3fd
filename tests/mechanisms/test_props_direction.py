"""A behaviour update raises what the window shows too rarely for its target, whatever its probability is.

Two easy imitations fail here: fitting the window (the sign error) and exploring towards the uniform policy.
"""

from functools import partial

import pytest
import torch

from peira.policies.actor_critic import CategoricalActorCritic
from peira.policies.gradient_step import GradientStep
from peira.sources.props import PropsSampler

EPOCHS, LEARNING_RATE = 16, 0.01
A, B = 0, 1


def tabular_policy(probabilities):
    """One state, a logit an action; in float64, so that a gradient that should be 0 is."""
    options = {"hidden": (), "bias": False, "normalise": False}
    policy = CategoricalActorCritic(1, len(probabilities), **options).double()
    with torch.no_grad():
        policy.actor_head.weight[:, 0] = torch.tensor(probabilities, dtype=torch.float64).log()
    return policy


def window(actions):
    return torch.ones(len(actions), 1, dtype=torch.float64), torch.tensor(actions)


def probabilities_of(policy):
    return policy.distribution(torch.ones(1, dtype=torch.float64)).probs.detach()


def props(probabilities, actions):
    target = tabular_policy(probabilities)
    sampler = PropsSampler(
        target,
        learning_rate=LEARNING_RATE,
        clip=0.3,
        kl_penalty=0.0,
        kl_stop=1.0,
        epochs=EPOCHS,
        minibatches=1,
        generator=torch.Generator().manual_seed(0),
        compiled=False,
    )
    sampler.update(target, *window(actions), new=0)
    return probabilities_of(sampler.policy)


def imitation(loss, probabilities, actions):
    """As many steps of Adam on another loss, from the same start on the same window."""
    policy = tabular_policy(probabilities)

    def with_measures(policy, observation, action):
        value = loss(policy.distribution(observation), action).mean()
        return value, torch.zeros(1, dtype=value.dtype)

    step = GradientStep(policy, with_measures, learning_rate=LEARNING_RATE, compiled=False)
    rows = window(actions)
    step.epochs(rows, epochs=EPOCHS, minibatches=1, generator=torch.Generator().manual_seed(0))
    return probabilities_of(policy)


def negative_likelihood(distribution, action):
    return -distribution.log_prob(action)


def kl_to_uniform(distribution, action):
    """KL(π ‖ uniform) = log |A| − entropy: the entropy bonus."""
    return -distribution.entropy()


def kl_from_uniform(distribution, action):
    return -distribution.logits.mean(-1)


def assert_rarer_action_rises(update):
    assert update([0.5, 0.5], [A, A, A, B])[B] > 0.5 + 1e-3
    assert update([0.5, 0.5], [B, B, B, A])[A] > 0.5 + 1e-3


def assert_mirrored(update):
    mostly_a, mostly_b = update([0.5, 0.5], [A, A, A, B]), update([0.5, 0.5], [B, B, B, A])
    torch.testing.assert_close(mostly_a, mostly_b.flip(0), rtol=0, atol=1e-9)


def assert_balanced_data_change_nothing(update):
    for probabilities, actions in [([0.5, 0.5], [A, B]), ([0.9, 0.1], [A] * 9 + [B])]:
        expected = torch.tensor(probabilities, dtype=torch.float64)
        torch.testing.assert_close(update(probabilities, actions), expected, rtol=0, atol=1e-6)


def assert_common_action_rises_when_under_sampled(update):
    assert update([0.9, 0.1], [A] * 8 + [B] * 2)[A] > 0.9 + 1e-3


CLAIMS = [
    assert_rarer_action_rises,
    assert_mirrored,
    assert_balanced_data_change_nothing,
    assert_common_action_rises_when_under_sampled,
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_props_moves_towards_what_is_under_sampled(claim):
    claim(props)


@pytest.mark.parametrize("claim", [assert_rarer_action_rises, assert_common_action_rises_when_under_sampled])
def test_fitting_the_window_is_the_wrong_sign(claim):
    with pytest.raises(AssertionError):
        claim(partial(imitation, negative_likelihood))


@pytest.mark.parametrize("explorer", [kl_to_uniform, kl_from_uniform])
@pytest.mark.parametrize(
    "claim", [assert_balanced_data_change_nothing, assert_common_action_rises_when_under_sampled]
)
def test_exploring_is_not_correcting(claim, explorer):
    with pytest.raises(AssertionError):
        claim(partial(imitation, explorer))
