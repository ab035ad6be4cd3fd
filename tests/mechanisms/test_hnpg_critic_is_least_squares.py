"""On fixed targets the hybrid critic is least squares with a weight for each source, whatever their sizes."""

import torch

from peira.credit.hybrid_critic import FreshRows, HybridCritic, both_sources
from peira.experience.step_log import StepRows
from peira.policies.stacked import StackedGaussianPolicy

OFF, ON, FEATURES, RATIO = 50, 20, 4, 0.3


def problem():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return drawn(OFF, FEATURES), drawn(OFF), drawn(ON, FEATURES), drawn(ON)


def closed_form(off, z, on, y, off_rows=OFF, on_rows=ON):
    left = off.T @ off / off_rows + RATIO * on.T @ on / on_rows
    return torch.linalg.solve(left, off.T @ z / off_rows + RATIO * on.T @ y / on_rows)


def weighted_least_squares(rows, target, weight):
    root = weight.sqrt()
    return torch.linalg.lstsq(root[:, None] * rows, (root * target)[:, None]).solution[:, 0]


def test_the_loss_has_the_closed_form_minimum():
    off, z, on, y = problem()
    target, weight = both_sources(z, y, w_off=1.0, w_on=RATIO)
    found = weighted_least_squares(torch.cat([off, on]), target, weight)
    torch.testing.assert_close(found, closed_form(off, z, on, y), rtol=0, atol=1e-8)


def test_weighing_rows_rather_than_sources_gives_another_answer():
    off, z, on, y = problem()
    target, weight = both_sources(z, y, w_off=1.0, w_on=RATIO)
    found = weighted_least_squares(torch.cat([off, on]), target, weight)
    assert (found - closed_form(off, z, on, y, off_rows=1, on_rows=1)).abs().max() > 0.05


def test_the_critic_descends_to_it():
    off, z, on, y = problem()
    constant = torch.ones(OFF, 1).double(), torch.ones(ON, 1).double()
    expected = closed_form(torch.cat([off, constant[0]], 1), z, torch.cat([on, constant[1]], 1), y)
    # The last feature is the action; a linear network has a bias.
    rows = StepRows(
        off[None, :, :-1].float(), off[None, :, -1:].float(), z[None].float(), off[None, :, :-1].float(),
        torch.zeros(1, OFF, dtype=torch.bool),
    )  # fmt: skip
    fresh = FreshRows(on[None, :, :-1].float(), on[None, :, -1:].float(), y[None])
    critic = HybridCritic(
        1, FEATURES - 1, 1, discrete=False, hidden=(), w_on=RATIO, learning_rate=3e-2, fit_steps=300
    )
    policy = StackedGaussianPolicy(1, FEATURES - 1, 1)
    critic.sweep(policy, fresh, rows, torch.Generator().manual_seed(0))
    torch.testing.assert_close(critic.flat[0], expected, rtol=0, atol=1e-3)
