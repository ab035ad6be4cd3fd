from dataclasses import replace

import numpy as np
import pytest
from ope_fixtures import (
    A_PRIME,
    HORIZON,
    A,
    B,
    discounted_finite_ratio,
    discounted_occupancy,
    enumerate_trajectories,
    exact_log,
    finite_values,
    population,
    state_occupancy,
    stationary_q,
    time_ratio,
)

from peira.evaluation.off_policy import marginal
from peira.evaluation.off_policy.terms import total
from peira.evaluation.off_policy.weights import Block

GAMMA = A.gamma
DISCOUNT = GAMMA ** np.arange(HORIZON)


def flat(mdp, log):
    """(state, log_ratio, length, terminated) with the rows of one episode after another."""
    return log.state[log.alive], log.at(mdp.log_ratio)[log.alive], log.length, log.terminated


def some_log(mdp, episodes, seed):
    """Independent draws from the trajectories of a fixture."""
    every = enumerate_trajectories(mdp, HORIZON)
    return every.repeated(np.random.default_rng(seed).multinomial(episodes, every.prob_b))


@pytest.mark.parametrize("mdp", [A, A_PRIME])
def test_the_recursion_is_exact_on_an_exact_log(mdp):
    fitted = marginal.fit_occupancy(*flat(mdp, exact_log(mdp, HORIZON)), states=2, steps=HORIZON)
    for found, policy in [(fitted.target, mdp.pi), (fitted.behaviour, mdp.pi_b)]:
        expected = state_occupancy(mdp, policy, HORIZON)
        np.testing.assert_allclose(found[:, :2], expected, atol=1e-12)
        np.testing.assert_allclose(found[:, 2], 1 - expected.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(fitted.time_ratio()[:, :2], time_ratio(mdp, HORIZON), atol=1e-11)
    np.testing.assert_allclose(
        fitted.discounted_ratio(GAMMA)[:2], discounted_finite_ratio(mdp, HORIZON), atol=1e-11
    )


def test_fitted_ratios_estimate_the_value_where_episodes_end_early():
    """From the rows of a log to all four kinds of estimator; the normaliser knows the ratio of having ended."""
    log = exact_log(A_PRIME, HORIZON)
    value = A_PRIME.mu @ finite_values(A_PRIME, A_PRIME.pi, HORIZON)[1][0]
    block, alive = log.block(A_PRIME), log.alive
    of_time, discounted = np.zeros(alive.shape), np.zeros(alive.shape)
    of_time[alive] = marginal.fit_time_ratio(*flat(A_PRIME, log), states=2)
    discounted[alive], ended = marginal.fit_discounted_ratio(*flat(A_PRIME, log), GAMMA, states=2)
    for ratio in (of_time, discounted):
        assert marginal.sm_is(block, ratio, GAMMA).value() == pytest.approx(value, abs=1e-10)
    assert marginal.sm_snis(block, of_time, GAMMA).value() == pytest.approx(value, abs=1e-10)
    normaliser = marginal.HorizonNormaliser(HORIZON, ended)
    assert marginal.sm_snis(block, discounted, GAMMA, normaliser).value() == pytest.approx(value, abs=1e-10)


def test_folds_are_predicted_by_the_others():
    log = some_log(A_PRIME, 300, seed=0)
    state, log_ratio, length, terminated = flat(A_PRIME, log)
    fold = np.arange(300) % 3
    of_time = marginal.fit_time_ratio(state, log_ratio, length, terminated, states=2, fold=fold)
    discounted, ended = marginal.fit_discounted_ratio(
        state, log_ratio, length, terminated, GAMMA, states=2, fold=fold
    )
    step = np.concatenate([np.arange(steps) for steps in length])
    for name in range(3):
        train, row = fold != name, np.repeat(fold != name, length)
        fitted = marginal.fit_occupancy(
            state[row], log_ratio[row], length[train], terminated[train], states=2, steps=HORIZON
        )
        np.testing.assert_array_equal(of_time[~row], fitted.time_ratio()[step[~row], state[~row]])
        np.testing.assert_array_equal(discounted[~row], fitted.discounted_ratio(GAMMA)[state[~row]])
        np.testing.assert_array_equal(ended[~train], fitted.discounted_ratio(GAMMA)[2])
    assert len(np.unique(ended)) == 3


def test_ratios_do_not_depend_on_the_order_of_episodes():
    log = some_log(A_PRIME, 200, seed=1)
    order = np.random.default_rng(2).permutation(200)
    shuffled = replace(log, **{name: of[order] for name, of in vars(log).items()})
    one, other = (
        marginal.fit_occupancy(*flat(A_PRIME, of), states=2, steps=HORIZON).time_ratio()
        for of in (log, shuffled)
    )
    np.testing.assert_allclose(one, other, atol=1e-13)


def test_an_episode_that_was_cut_off_is_left_out_from_there_on():
    """Half of the episodes are cut after two steps, for no reason of their own: the ratios stay exact."""
    log = exact_log(A, HORIZON)
    state, log_ratio, length, terminated = flat(A, log)
    both = np.concatenate([length, np.full(len(length), 2)])
    rows = (
        np.concatenate([state, log.state[:, :2].ravel()]),
        np.concatenate([log_ratio, log.at(A.log_ratio)[:, :2].ravel()]),
    )
    fitted = marginal.fit_occupancy(*rows, both, np.tile(terminated, 2), states=2, steps=HORIZON)
    np.testing.assert_allclose(fitted.time_ratio()[:, :2], time_ratio(A, HORIZON), atol=1e-11)
    np.testing.assert_array_equal(fitted.target[:, 2], 0.0)
    # Said to have terminated, the half that was cut is in the state of having ended.
    ended = marginal.fit_occupancy(
        *rows, both, np.repeat([False, True], len(length)), states=2, steps=HORIZON
    )
    np.testing.assert_allclose(ended.target[:, 2], [0.0, 0.0, 0.5], atol=1e-12)


def test_extreme_ratios_and_none_at_all_give_numbers():
    state, length = np.array([0, 1, 0, 0]), np.array([2, 2])
    terminated = np.array([True, True])
    extreme = marginal.fit_occupancy(
        state, np.array([900.0, 0.0, -900.0, 0.0]), length, terminated, states=2, steps=3
    )
    np.testing.assert_allclose(extreme.target, [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(extreme.time_ratio(), [[1, 0, 0], [0, 2, 0], [0, 0, 1]])
    # Beside an episode that has ended, a ratio of e^−900 leaves no mass among the living.
    faint = marginal.fit_occupancy(
        np.array([0, 0, 1, 1]),
        np.array([0.0, 0.0, -900.0, 0.0]),
        np.array([1, 3]),
        terminated,
        states=2,
        steps=3,
    )
    np.testing.assert_allclose(faint.target, [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]])
    nowhere = marginal.fit_occupancy(state, np.full(4, -np.inf), length, terminated, states=2, steps=2)
    np.testing.assert_array_equal(nowhere.time_ratio(), [[1, 0, 0], [0, 0, 0]])


def test_a_horizon_normaliser_is_the_same_over_blocks():
    log = some_log(A_PRIME, 500, seed=3)
    block, ratio = log.block(A_PRIME), log.at_state(discounted_finite_ratio(A_PRIME, HORIZON))
    ended = np.random.default_rng(0).uniform(0.5, 1.5, 500)
    whole = marginal.sm_snis(block, ratio, GAMMA, marginal.HorizonNormaliser(HORIZON, ended))
    blocks = []
    for steps in (1, 2, 3):
        rows = block.length == steps
        narrow = Block(block.reward[rows, :steps], block.log_ratio[rows, :steps], block.length[rows])
        normaliser = marginal.HorizonNormaliser(HORIZON, ended[rows])
        blocks.append(marginal.sm_snis(narrow, ratio[rows, :steps], GAMMA, normaliser))
    assert total(blocks).value == pytest.approx(whole.value(), abs=1e-12)
    assert total(blocks).standard_error == pytest.approx(whole.standard_error(), abs=1e-12)


def test_windows_below_zero_are_refused():
    log = some_log(A, 5, seed=0)
    with pytest.raises(ValueError, match="expected a window of at least 0 steps, got -1"):
        marginal.sam_sope(log.block(A), np.ones((5, HORIZON)), GAMMA, window=-1)


# Without a horizon: trajectories of 4 steps, of which the log holds the first 3, so that all others are cut off.

CUT = 3


def stationary(mdp, *, discounted_log):
    """(block, ratio, terminated, states after the last step, probabilities, value) of the cut log."""
    every = enumerate_trajectories(mdp, CUT + 1)
    length = np.minimum(every.length, CUT)
    log = replace(
        every,
        **{name: getattr(every, name)[:, :CUT] for name in ("state", "action", "reward")},
        length=length,
    )
    terminated = every.terminated & (every.length <= CUT)
    count = GAMMA ** np.arange(CUT) if discounted_log else np.ones(CUT)
    of_log = (count @ state_occupancy(mdp, mdp.pi_b, CUT))[:, None] * mdp.pi_b
    ratio = discounted_occupancy(mdp, mdp.pi) / (of_log / of_log.sum())
    value = mdp.mu @ (mdp.pi * stationary_q(mdp, mdp.pi)).sum(axis=1)
    return log, log.at(ratio), terminated, every.state[:, CUT], every.prob_b, value


def test_the_fixture_without_a_horizon():
    q = stationary_q(B, B.pi)
    np.testing.assert_allclose(
        q.ravel(), [10.2276061776, 9.9052123552, 9.5664092664, 11.6793436293], atol=1e-10
    )
    assert B.mu @ (B.pi * q).sum(1) == pytest.approx(384 / 37, abs=1e-12)
    assert B.mu @ (B.pi_b * stationary_q(B, B.pi_b)).sum(1) == pytest.approx(7.891231964, abs=1e-9)
    target, behaviour = discounted_occupancy(B, B.pi), discounted_occupancy(B, B.pi_b)
    np.testing.assert_allclose(target.ravel(), [0.1297297, 0.3027027, 0.1135135, 0.4540541], atol=1e-7)
    np.testing.assert_allclose(
        behaviour.ravel(), [0.3163152053, 0.2108768036, 0.2364039956, 0.2364039956], atol=1e-10
    )
    assert (target * B.R).sum() == pytest.approx(1.0378378, abs=1e-7)


@pytest.mark.parametrize("mdp", [B, A_PRIME])
@pytest.mark.parametrize("discounted_log", [True, False])
def test_stationary_estimators_are_exact_from_three_steps(mdp, discounted_log):
    log, ratio, terminated, final_state, prob, value = stationary(mdp, discounted_log=discounted_log)
    block = log.block(mdp)
    table = np.random.default_rng(0).normal(0, 5, (2, 2))
    of_state = (mdp.pi * table).sum(axis=1)
    q, v = log.at(table), log.at_state(of_state)
    final_v = np.where(terminated, 0.0, of_state[final_state])
    keywords = {"discounted_log": discounted_log}
    for terms in (
        marginal.stationary_is(block, ratio, GAMMA, **keywords),
        marginal.stationary_snis(block, ratio, terminated, GAMMA, **keywords),
        marginal.stationary_dr(block, ratio, q, v, final_v, GAMMA, **keywords),
        marginal.stationary_sndr(block, ratio, q, v, final_v, terminated, GAMMA, **keywords),
    ):
        assert population(terms, prob)[0] == pytest.approx(value, abs=1e-11)
    exact = stationary_q(mdp, mdp.pi)
    exact_v = (mdp.pi * exact).sum(axis=1)
    final_v = np.where(terminated, 0.0, exact_v[final_state])
    wrong_ratio = log.at(np.random.default_rng(1).uniform(0, 3, (2, 2)))
    terms = marginal.stationary_dr(
        block, wrong_ratio, log.at(exact), log.at_state(exact_v), final_v, GAMMA, **keywords
    )
    assert population(terms, prob)[0] == pytest.approx(value, abs=1e-11)


def test_normalising_over_logged_steps_alone_forgets_the_time_after_the_end():
    log, ratio, terminated, _, prob, value = stationary(A_PRIME, discounted_log=True)
    terms = marginal.stationary_snis(
        log.block(A_PRIME), ratio, ~terminated & False, GAMMA, discounted_log=True
    )
    assert population(terms, prob)[0] > 1.5 * value


def test_a_cut_episode_takes_the_value_of_its_last_state():
    log, _, terminated, final_state, prob, value = stationary(A_PRIME, discounted_log=True)
    block, exact = log.block(A_PRIME), stationary_q(A_PRIME, A_PRIME.pi)
    of_state = (A_PRIME.pi * exact).sum(axis=1)
    q, v = log.at(exact), log.at_state(of_state)
    final_v = np.where(terminated, 0.0, of_state[final_state])
    ratio = log.at_state(time_ratio(A_PRIME, CUT))
    for final, expected in [(final_v, True), (None, False)]:
        for terms in (
            marginal.sm_dr(block, ratio, q, v, GAMMA, final_v=final),
            marginal.sm_sndr(block, ratio, q, v, GAMMA, final_v=final),
        ):
            assert (abs(population(terms, prob)[0] - value) < 1e-11) == expected


def test_a_value_without_a_horizon_needs_a_discount():
    log, ratio, *_ = stationary(B, discounted_log=False)
    with pytest.raises(ValueError, match="a value without a horizon needs gamma below 1, got 1"):
        marginal.stationary_is(log.block(B), ratio, 1.0, discounted_log=False)
