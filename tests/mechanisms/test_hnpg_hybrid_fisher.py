"""Over two sources the natural gradient is a regression on ∇log π, and over fresh rows alone it is TRPO's direction."""

import torch
from torch.func import hessian, jacrev

from peira.learners.natural_gradient import ActorRows, NaturalGradient
from peira.policies.stacked import StackedCategoricalPolicy, StackedGaussianPolicy

OFF, ON, RATIO = 80, 50, 0.4
# Conjugate gradients stop at a residual of 1e-5: far from rounding where advantages are large.
LARGE = 1e4


def rows_for(policy, rows, seed, logged=False):
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(1, rows, 2, generator=generator, dtype=torch.float64)
    head = policy.activations(observation)[-1]
    action = policy.drawn(head, generator)
    if logged and not policy.discrete:
        action = action + 0.5
    advantage = LARGE * torch.randn(1, rows, generator=generator, dtype=torch.float64)
    return ActorRows.of(observation, action, advantage, logged_actions=logged)


def policies():
    generator = torch.Generator().manual_seed(3)
    for kind in (StackedGaussianPolicy, StackedCategoricalPolicy):
        yield kind(1, 2, 3, hidden=(3,), generator=generator)


def scores(policy, rows):
    """∇ log π of every row, by automatic differentiation."""

    def log_prob(flat):
        return policy.log_prob_at(flat, policy.activations(rows.observation, flat)[-1], rows.action)[0]

    return jacrev(log_prob)(policy.flat.data)[:, 0]


def test_the_direction_solves_the_regression_over_both_sources():
    for policy in policies():
        off, on = rows_for(policy, OFF, 0, logged=True), rows_for(policy, ON, 1)
        joined = ActorRows.joined([on, off], [RATIO, 1.0])
        natural = NaturalGradient(damping=0.0, iterations=500)
        found = natural.direction(policy, joined, "sampled").solution[0]
        stacked = torch.cat([scores(policy, on) * (RATIO / ON) ** 0.5, scores(policy, off) * OFF**-0.5])
        target = torch.cat([on.advantage[0] * (RATIO / ON) ** 0.5, off.advantage[0] * OFF**-0.5])
        expected = torch.linalg.lstsq(stacked, target[:, None], driver="gelsd").solution[:, 0]
        torch.testing.assert_close(stacked @ found, stacked @ expected, rtol=1e-5, atol=1e-5 * LARGE)
        assert torch.cosine_similarity(found, expected, 0) > 1 - 1e-6


def test_weighing_rows_alike_solves_another_regression():
    policy = next(policies())
    off, on = rows_for(policy, OFF, 0, logged=True), rows_for(policy, ON, 1)
    natural = NaturalGradient(damping=0.0, iterations=500)
    right = natural.direction(policy, ActorRows.joined([on, off], [RATIO, 1.0]), "sampled").solution[0]
    alike = natural.direction(
        policy, ActorRows.joined([on, off], [float(ON), float(OFF)]), "sampled"
    ).solution[0]
    assert torch.cosine_similarity(right, alike, 0) < 0.999


def test_without_a_log_it_is_the_direction_of_trpo():
    """An independent one: the Hessian of the mean KL in full, a tenth of the identity added, solved exactly."""
    for policy in policies():
        on = rows_for(policy, ON, 1)
        old_flat, old_head = policy.flat.data.clone(), policy.activations(on.observation)[-1]

        def mean_kl(flat, policy=policy, on=on, old_flat=old_flat, old_head=old_head):
            return policy.kl(old_flat, old_head, flat, policy.activations(on.observation, flat)[-1]).mean()

        curvature = hessian(mean_kl)(old_flat)[0, :, 0]
        gradient = (scores(policy, on) * on.advantage[0][:, None]).mean(0)
        expected = torch.linalg.solve(curvature + 0.1 * torch.eye(len(curvature)).double(), gradient)
        found = NaturalGradient().direction(policy, on).solution[0]
        assert torch.cosine_similarity(found, expected, 0) > 0.999
