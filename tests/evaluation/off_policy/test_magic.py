from dataclasses import replace

import numpy as np
import pytest
from ope_fixtures import HORIZON, WRONG_Q, A, enumerate_trajectories, finite_values
from scipy import optimize

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.magic import magic, simplex_minimum
from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.weights import Block

Q, V = finite_values(A, A.pi, HORIZON)
VALUE = A.mu @ V[0]


def some_log(episodes, seed):
    every = enumerate_trajectories(A, HORIZON)
    return every.repeated(np.random.default_rng(seed).multinomial(episodes, every.prob_b))


def wdr(log, table):
    return sequential.wdr(log.block(A), log.at(table), log.at_state((A.pi * table).sum(-1)), A.gamma)


def blend(terms, seed=0, **keywords):
    return magic(terms, rng=np.random.default_rng(seed), **keywords)


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("rank", [1, 3, 20])
def test_the_quadratic_programme_is_solved(size, rank):
    """No direction toward a corner goes down, and a general solver does no better."""
    rng = np.random.default_rng(size + rank)
    root = rng.normal(size=(rank, size)) * 1e3
    matrix = root.T @ root
    x = simplex_minimum(matrix)
    assert x.min() >= 0
    assert x.sum() == pytest.approx(1.0, abs=1e-12)
    value = x @ matrix @ x
    assert (2 * (matrix @ x)).min() >= 2 * value - 1e-8 * np.abs(matrix).max()
    general = optimize.minimize(
        lambda y: y @ matrix @ y / 1e6,
        np.full(size, 1 / size),
        jac=lambda y: 2 * matrix @ y / 1e6,
        bounds=[(0, 1)] * size,
        constraints={"type": "eq", "fun": lambda y: y.sum() - 1},
    )
    assert value <= general.fun * 1e6 + 1e-6 * np.abs(matrix).max()


def test_shares_of_a_known_programme():
    """Independent members: shares as the inverse variances."""
    np.testing.assert_allclose(simplex_minimum(np.diag([1.0, 2.0, 4.0])), np.array([4, 2, 1]) / 7, atol=1e-12)
    np.testing.assert_allclose(simplex_minimum(np.array([[1.0, 2.0], [2.0, 9.0]])), [1.0, 0.0], atol=1e-12)
    np.testing.assert_array_equal(simplex_minimum(np.zeros((3, 3))), [0.0, 0.0, 1.0])


def test_members_take_the_model_from_their_last_step_on():
    """g^(j) by the formula with normalised weights."""
    log = some_log(60, 0)
    block, q, v = log.block(A), log.at(WRONG_Q), log.at_state((A.pi * WRONG_Q).sum(-1))
    weight = np.exp(block.log_ratio.cumsum(axis=1))
    share = np.column_stack([np.full(60, 1 / 60), weight / weight.sum(axis=0)])
    expected = []
    for j in range(-1, HORIZON):
        value = 0.0
        for t in range(j + 1):
            value += A.gamma**t * (share[:, t + 1] @ (block.reward[:, t] - q[:, t]) + share[:, t] @ v[:, t])
        if j + 1 < HORIZON:
            value += A.gamma ** (j + 1) * share[:, j + 1] @ v[:, j + 1]
        expected.append(value)
    np.testing.assert_allclose(blend(wdr(log, WRONG_Q)).member, expected, atol=1e-12)


def influences(terms, last_step):
    """Of the members, episode by episode, [members, episodes]."""
    step = np.arange(terms.numerator.shape[1])
    return np.array([replace(terms, numerator=terms.numerator * (step <= j)).influence() for j in last_step])


def error_of_members(terms, seed, replicates):
    """Ω, b and the bootstrap quantiles of WDR, by the definitions."""
    (n, steps), rng = terms.numerator.shape, np.random.default_rng(seed)
    order, last = np.argsort(terms.influence(), kind="stable"), []
    for drawn in rng.multinomial(n, np.full(n, 1 / n), size=replicates):
        of = np.repeat(order, drawn)
        last.append(
            terms.plain[of].mean() + (terms.numerator[of].sum(0) / terms.denominator[of].sum(0)).sum()
        )
    quantiles = np.quantile(last, [0.05, 0.95])
    theta = terms.numerator.sum(0) / terms.denominator.sum(0)
    member = terms.plain.mean() + np.append(0.0, theta.cumsum())
    low, high = min(quantiles[0], member[-1]), max(quantiles[1], member[-1])
    bias = np.where(member < low, low - member, np.maximum(member - high, 0))
    return np.cov(influences(terms, range(-1, steps))) / n, bias, quantiles


def covariance_of_contributions(terms):
    """The paper's Ω."""
    n = len(terms.plain)
    contribution = np.column_stack([terms.plain / n, terms.numerator / terms.denominator.sum(0)]).cumsum(1)
    return n * np.cov(contribution.T)


def test_the_share_minimises_the_estimated_error():
    """With b∘b in the place of b bᵀ, a factor n missing or too many, or the paper's Ω, the shares are others."""
    terms = wdr(some_log(80, 1), WRONG_Q)
    found = blend(terms, seed=5, replicates=100)
    covariance, bias, _ = error_of_members(terms, 5, 100)
    assert bias[0] > 0
    np.testing.assert_allclose(found.share, simplex_minimum(covariance + np.outer(bias, bias)), atol=1e-9)
    for imitation in (
        covariance + bias**2,
        covariance * 80 + np.outer(bias, bias),
        covariance / 80 + np.outer(bias, bias),
        covariance_of_contributions(terms) + np.outer(bias, bias),
    ):
        assert np.abs(found.share - simplex_minimum((imitation + imitation.T) / 2)).max() > 0.01


def test_a_bias_of_the_model_is_no_variance_of_the_weights():
    """A model off by 5, a WDR by some 0.03: with the paper's Ω the blend trusts the model enough to be off by 0.1."""
    rng = np.random.default_rng(0)
    weight = rng.lognormal(0, 1.5, (100, 1))
    terms = Terms(rng.normal(0, 0.1, 100), weight * (5 + rng.normal(0, 0.1, (100, 1))), weight)
    bias_of_blend = 5 * blend(terms).share[0]
    assert terms.standard_error() < 0.04
    assert bias_of_blend < 0.001
    _, bias, _ = error_of_members(terms, 0, 100)
    by_contributions = simplex_minimum(covariance_of_contributions(terms) + np.outer(bias, bias))
    assert 5 * by_contributions[0] > 0.1


def test_the_interval_is_widened_to_hold_wdr():
    """Each step's reward of 1 hangs on one episode, that a replicate leaves out with probability 1/e: all lie below.

    A first step without doubt brings the model near to the interval: were WDR's distance from it counted, the model
    would get all.
    """
    steps, n = 40, 100
    rng = np.random.default_rng(0)
    weight = np.full((n, steps), 1e-3)
    weight[np.arange(steps), np.arange(steps)] = 1.0
    numerator = np.column_stack([np.full(n, -18.7), weight * (weight == 1.0)])
    terms = Terms(rng.normal(0, 0.1, n), numerator, np.column_stack([np.ones(n), weight]))
    found = blend(terms, seed=1, last_step=np.array([-1, steps]), replicates=50)
    covariance, bias, quantiles = error_of_members(terms, 1, 50)
    assert quantiles[1] < terms.value() - 1
    ends = np.ix_([0, -1], [0, -1])
    expected = simplex_minimum((covariance + np.outer(bias, bias))[ends])
    assert bias[-1] == 0
    assert 0.1 < expected[0] < 0.9
    np.testing.assert_allclose(found.share, expected, atol=1e-9)
    bias[-1] = found.member[-1] - quantiles[1]
    assert simplex_minimum((covariance + np.outer(bias, bias))[ends])[0] > 0.99


def test_a_wrong_model_is_left_and_a_right_one_kept():
    shares = {}
    for name, table, episodes in [("wrong", WRONG_Q, 3_000), ("right", Q, 50)]:
        shares[name] = np.mean([blend(wdr(some_log(episodes, s), table)).share for s in range(10)], axis=0)
    assert shares["wrong"][0] < 0.05
    assert shares["right"][0] > 0.5


def root_mean_square_errors(table, episodes, logs):
    """Of DM, WDR and MAGIC."""
    errors = []
    for seed in range(logs):
        found = blend(wdr(some_log(episodes, 100 + seed), table), seed)
        errors.append([found.member[0] - VALUE, found.member[-1] - VALUE, found.terms.value() - VALUE])
    return np.sqrt(np.mean(np.square(errors), axis=0))


def test_the_error_is_near_that_of_the_better_end():
    dm, wdr_error, blended = root_mean_square_errors(Q, 100, 60)
    assert blended < 1.5 * dm
    assert wdr_error > 1.5 * blended
    dm, wdr_error, blended = root_mean_square_errors(WRONG_Q, 1_600, 40)
    assert blended < 1.5 * wdr_error
    assert dm > 10 * blended


def test_a_bias_that_the_interval_hides_is_not_seen():
    """100 episodes: the blend takes the member that is wrong by 0.45, about as far as WDR's interval reaches."""
    _, wdr_error, blended = root_mean_square_errors(WRONG_Q, 100, 40)
    assert blended > 1.5 * wdr_error


def test_the_blend_holds_its_shares_fixed():
    terms = wdr(some_log(100, 2), WRONG_Q)
    found = blend(terms, last_step=np.array([-1, 0, 2]))
    assert found.terms.value() == pytest.approx(found.share @ found.member, abs=1e-12)
    of_members = influences(terms, found.last_step)
    np.testing.assert_allclose(found.terms.influence(), found.share @ of_members, atol=1e-12)


def test_the_order_of_episodes_does_not_matter():
    terms = wdr(some_log(90, 3), WRONG_Q)
    order = np.random.default_rng(0).permutation(90)
    shuffled = Terms(terms.plain[order], terms.numerator[order], terms.denominator[order], terms.log_scale)
    assert blend(shuffled).terms.value() == pytest.approx(blend(terms).terms.value(), abs=1e-10)


def test_long_episodes_get_some_members_both_ends_included():
    rng = np.random.default_rng(0)
    block = Block(rng.normal(size=(20, 300)), rng.normal(0, 0.1, (20, 300)), np.full(20, 300))
    found = blend(sequential.wdr(block, rng.normal(size=(20, 300)), rng.normal(size=(20, 300)), 0.99))
    assert len(found.last_step) == 25
    assert (found.last_step[0], found.last_step[-1]) == (-1, 299)


def test_errors_say_what_is_missing():
    terms = wdr(some_log(30, 0), WRONG_Q)
    with pytest.raises(ValueError, match=r"expected members that rise from -1 to 2, got \[0, 1, 2\]"):
        blend(terms, last_step=np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=r"expected members that rise from -1 to 2, got \[-1, 1, 1, 2\]"):
        blend(terms, last_step=np.array([-1, 1, 1, 2]))
    with pytest.raises(ValueError, match="MAGIC needs at least 2 episodes to see how they vary, got 1"):
        blend(Terms(np.zeros(1), np.zeros((1, 2)), np.ones((1, 2))))
    with pytest.raises(
        ValueError, match="no episode has weight at step 1, where WDR has no value; use dr instead"
    ):
        blend(Terms(np.zeros(2), np.zeros((2, 2)), np.array([[1.0, 0.0], [1.0, 0.0]])))
