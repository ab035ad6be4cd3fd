"""Fresh returns hold a critic to the truth where fitting to its own bootstrap alone runs away.

f(x₁) = w, f(x₂) = 2w, no rewards, both states lead to x₂, γ = 0.99; the log is uniform on both states, fresh data are
at x₂ with return 0. One fit then gives w' = 3γ / (2.5 + 4λ) · w: above 1 for λ < 0.1175.
"""

import pytest
import torch

from peira.credit.hybrid_critic import FreshRows, HybridCritic, bootstrapped_target, both_sources
from peira.experience.step_log import StepLog
from peira.policies.stacked import StackedGaussianPolicy

GAMMA = 0.99
LOGGED, FRESH = torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0]).double()


def factor(ratio, fresh_return=lambda w: torch.zeros(1).double(), repeats=1):
    """w' / w of one exact fit with λ = `ratio`, every fresh row `repeats` times over."""
    w = torch.tensor(0.7).double()
    following = (2 * w).expand(2)
    z = bootstrapped_target(torch.zeros(2).double(), torch.zeros(2, dtype=torch.bool), following, GAMMA)
    y = fresh_return(w).repeat(repeats)
    target, weight = both_sources(z, y, w_off=1.0, w_on=ratio)
    feature = torch.cat([LOGGED, FRESH.repeat(repeats)])
    return ((weight * feature * target).sum() / (weight * feature.square()).sum() / w).item()


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 1.188), (1.0, 0.456923), (0.1175, 1.0)])
def test_a_fit_multiplies_the_error_by_the_closed_form(ratio, expected):
    assert factor(ratio) == pytest.approx(expected, abs=1e-6)
    assert factor(ratio) == pytest.approx(3 * GAMMA / (2.5 + 4 * ratio), abs=1e-12)


def test_sources_are_weighed_and_not_their_rows():
    assert factor(1.0, repeats=7) == pytest.approx(factor(1.0), abs=1e-12)


def test_bootstrapping_the_fresh_data_too_would_diverge():
    assert factor(1.0, lambda w: (GAMMA * 2 * w)[None]) > 1


def fitted(w_on, fits):
    """w after so many fits of the critic itself from w = 1. Each row has a mirror image, which keeps the bias at 0."""
    state = torch.tensor([1.0, 2.0, -1.0, -2.0])[:, None]
    log = StepLog(
        observation=state,
        action=torch.zeros(4, 1),
        reward=torch.zeros(4),
        next_observation=2 * state.sign(),
        terminated=torch.zeros(4, dtype=torch.bool),
        first=torch.tensor([0, 4]),
    )
    seen = torch.tensor([2.0, -2.0])[None, :, None]
    fresh = FreshRows(seen, torch.zeros_like(seen), torch.zeros(1, 2).double())
    policy = StackedGaussianPolicy(1, 1, 1, hidden=())
    critic = HybridCritic(
        1, 1, 1, discrete=False, hidden=(), w_on=w_on, discount=GAMMA, learning_rate=1e-2, fit_steps=120
    )
    critic.flat.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
    generator = torch.Generator().manual_seed(0)
    for _ in range(fits):
        critic.iterate(policy, fresh, log, generator, fits=1, minibatch=1024)
    return critic.flat[0, 0].item()


def test_the_critic_shrinks_by_that_factor_with_fresh_data_and_grows_without():
    assert fitted(1.0, 2) == pytest.approx(0.4569**2, rel=0.05)
    assert fitted(0.0, 3) == pytest.approx(1.188**3, rel=0.05)
