"""FastCB weighs losses: it is blind to their scale, explores more where all are larger, and is not SquareCB.

The imitation that puts rewards where the losses belong fails both.
"""

import numpy as np

from peira.learners.explorers import fastcb, squarecb

LOSSES = np.array([0.1, 0.2, 0.5])
ALL = np.ones((1, 3), dtype=bool)
GAMMA = 10.0


def of_losses(explorer, losses):
    return explorer(1 - losses[None], ALL, GAMMA)[0]


def reward_form(scores, eligible, gamma):
    """p_a = r_b/(K r_b + γ(r_b − r_a)): the same ratio of rewards."""
    best = scores.max(1, keepdims=True)
    pmf = best / (scores.shape[1] * best + gamma * (best - scores))
    first = np.arange(scores.shape[1]) == scores.argmax(1)[:, None]
    return np.where(first, 1 - np.where(first, 0, pmf).sum(1, keepdims=True), pmf)


def test_closed_form():
    np.testing.assert_allclose(of_losses(fastcb, LOSSES), [0.899821, 0.076923, 0.023256], atol=5e-7)


def test_a_quarter_of_all_losses_changes_fastcb_not_and_squarecb_much():
    np.testing.assert_allclose(of_losses(fastcb, LOSSES / 4), of_losses(fastcb, LOSSES), rtol=1e-12)
    of_quarter = of_losses(squarecb, LOSSES / 4)
    np.testing.assert_allclose(of_quarter[1:], 1 / (3 + GAMMA * np.array([0.1, 0.4]) / 4), rtol=1e-12)
    assert of_quarter[0] < of_losses(squarecb, LOSSES)[0] - 0.1


def test_more_loss_everywhere_changes_squarecb_not_and_makes_fastcb_explore():
    np.testing.assert_allclose(of_losses(squarecb, LOSSES + 0.4), of_losses(squarecb, LOSSES), rtol=1e-12)
    more = of_losses(fastcb, LOSSES + 0.4)
    np.testing.assert_allclose(more[1:], [0.5 / (1.5 + 1), 0.5 / (1.5 + 4)], rtol=1e-12)
    np.testing.assert_allclose(more[1:], [0.2, 0.0909], atol=5e-5)
    assert (more[1:] > of_losses(fastcb, LOSSES)[1:]).all()


def test_rewards_in_the_place_of_losses_fail_both():
    plain = of_losses(reward_form, LOSSES)
    assert abs(plain - of_losses(fastcb, LOSSES)).max() > 0.1
    assert abs(of_losses(reward_form, LOSSES / 4) - plain).max() > 0.1
    assert (of_losses(reward_form, LOSSES + 0.4)[1:] < plain[1:]).all()


def test_at_high_success_rates_the_imitation_is_nearly_squarecb():
    few = LOSSES / 50
    np.testing.assert_allclose(of_losses(reward_form, few), of_losses(squarecb, few), atol=2e-3)
    assert abs(of_losses(fastcb, few) - of_losses(squarecb, few)).max() > 0.2
