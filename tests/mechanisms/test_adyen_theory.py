"""The regret of one decision is bounded whatever the truth is; a wrong K breaks the bound within some thousand draws.

200 γ × 500 draws of (f̂, f*, eligible among 8): f̂ apart, close together or level, f* anything, near f̂, or near it in
some actions and the same in the others.
"""

import numpy as np
import pytest

from peira.learners.explorers import fastcb, squarecb

GAMMAS, DRAWS, COLUMNS = 200, 500, 8


def draws(generator):
    """f̂, f* and eligible [500, 8]."""
    shape, rows = (DRAWS, COLUMNS), (DRAWS, 1)
    count = generator.integers(2, COLUMNS + 1, rows)
    eligible = generator.random(shape).argsort(1) < count
    predicted = generator.random(shape)
    close, level = generator.random(rows) < 0.3, generator.random(rows) < 0.2
    predicted = np.where(close, 0.5 + 0.02 * generator.standard_normal(shape), predicted)
    predicted = np.where(level, np.round(predicted * 3) / 3, predicted).clip(0, 1)
    near = predicted + generator.standard_normal(shape) * 10.0 ** generator.uniform(-3, 0, rows)
    in_some = np.where(generator.random(shape) < 0.3, near, predicted)
    which = generator.integers(3, size=rows)
    truth = np.choose(which, [generator.random(shape), near, in_some]).clip(0, 1)
    return predicted, truth, eligible


def regret(pmf, truth, eligible):
    best = np.where(eligible, truth, -np.inf).max(1, keepdims=True)
    return (pmf * np.where(eligible, best - truth, 0)).sum(1)


def squarecb_excess(explorer):
    """Each draw's γ/K·(regret − (γ/4)E_p[(f̂ − f*)²]); the bound is 2."""
    generator, excess = np.random.default_rng(0), []
    for gamma in 10.0 ** np.linspace(-1, 5, GAMMAS):
        predicted, truth, eligible = draws(generator)
        pmf = explorer(predicted, eligible, gamma)
        error = (pmf * (predicted - truth) ** 2).sum(1)
        excess.append((regret(pmf, truth, eligible) - gamma / 4 * error) * gamma / eligible.sum(1))
    return np.concatenate(excess)


def fastcb_excess(explorer):
    """Each draw's regret minus its bound (5K/γ)E_p[ℓ*] + 7γE_p[(ℓ̂ − ℓ*)²/(ℓ̂ + ℓ*)], γ from 2K on."""
    generator, excess = np.random.default_rng(1), []
    for gamma in 2 * COLUMNS * 10.0 ** np.linspace(0, 4, GAMMAS):
        predicted, truth, eligible = draws(generator)
        if gamma < 40:
            # Payments: most losses are small.
            predicted, truth = 1 - (1 - predicted) / 5, 1 - (1 - truth) / 5
        pmf = explorer(predicted, eligible, gamma)
        loss, true_loss = 1 - predicted, 1 - truth
        total = loss + true_loss
        error = np.divide((loss - true_loss) ** 2, total, out=np.zeros_like(total), where=total > 0)
        bound = 5 * eligible.sum(1) / gamma * (pmf * true_loss).sum(1) + 7 * gamma * (pmf * error).sum(1)
        excess.append(regret(pmf, truth, eligible) - bound)
    return np.concatenate(excess)


def with_count(count_of):
    """Inverse gap weighting with another K."""

    def explorer(scores, eligible, gamma):
        known = np.where(eligible, scores, -np.inf)
        best = known.argmax(1)[:, None]
        pmf = 1 / (count_of(eligible) + gamma * (known.max(1, keepdims=True) - known))
        np.put_along_axis(pmf, best, 0.0, 1)
        np.put_along_axis(pmf, best, 1 - pmf.sum(1, keepdims=True), 1)
        return pmf

    return explorer


def test_squarecb_is_within_its_bound():
    excess = squarecb_excess(squarecb)
    assert len(excess) == 100_000
    # Near the bound too: draws that never come close would show nothing.
    assert 1.2 < excess.max() <= 2.0


def test_fastcb_is_within_its_bound():
    excess = fastcb_excess(fastcb)
    assert len(excess) == 100_000
    assert excess.max() <= 1e-12


@pytest.mark.parametrize(
    "count_of",
    [lambda eligible: eligible.sum(1, keepdims=True) - 1, lambda eligible: eligible.shape[1]],
    ids=["one too few", "all actions instead of the eligible"],
)
def test_a_wrong_k_breaks_the_bound(count_of):
    assert squarecb_excess(with_count(lambda eligible: eligible.sum(1, keepdims=True))).max() <= 2.0
    assert (squarecb_excess(with_count(count_of)) > 2.0).sum() >= 10


def test_greedy_breaks_fastcb_s_bound():
    def greedy(scores, eligible, gamma):
        return fastcb(scores, eligible, np.inf)

    assert (fastcb_excess(greedy) > 1e-3).sum() >= 10
