"""Stationary ratios by the DICE family: exact in tables, linear, and on the features of networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ope_fixtures import A_PRIME, B, discounted_occupancy, exact_log, finite_values, stationary_q

from peira.evaluation.off_policy.dice import (
    ALGAE_DICE,
    BEST_DICE,
    DUAL_DICE,
    GEN_DICE,
    MQL,
    MWL,
    dual_dice_ratio,
    linear_dice,
    saddle_point,
    tabular_dice,
)
from peira.evaluation.off_policy.linear import model_moments
from peira.evaluation.off_policy.neural_dice import neural_dice
from peira.evaluation.off_policy.neural_q import FqeConfig, neural_q
from peira.evaluation.off_policy.ratios import ratio_fit
from peira.evaluation.off_policy.tabular import TabularModel
from peira.evaluation.off_policy.transitions import TERMINATED, TRUNCATED, Transitions

FAMILIES = [DUAL_DICE, GEN_DICE, ALGAE_DICE, BEST_DICE, MWL, MQL]


def model_of(mdp, share):
    return TabularModel(mdp.continues, mdp.R, mdp.mu, share)


def value_of(mdp):
    return mdp.mu @ (mdp.pi * stationary_q(mdp, mdp.pi)).sum(1)


def two_step_log(mdp, fold=False):
    """Every two-step episode as often as it is likely; what follows a second step is not known unless it ends."""
    trajectories = exact_log(mdp, 2)
    alive = trajectories.alive
    next_row = np.arange(1, alive.sum() + 1)
    next_row[trajectories.length.cumsum() - 1] = np.where(trajectories.terminated, TERMINATED, TRUNCATED)
    folds = np.repeat(np.arange(len(alive)) % 2, trajectories.length) if fold else None
    columns = (trajectories.state[alive], trajectories.action[alive], trajectories.reward[alive])
    return Transitions(*columns, next_row, folds)


def first_steps(mdp, fold=False):
    """The log of first steps alone: in it every transition is exactly as frequent as in the world."""
    log = two_step_log(mdp, fold)
    ends_at_once = np.where(log.step == 0, log.next_row, np.where(log.terminated, TRUNCATED, log.next_row))
    return replace(log, next_row=ends_at_once)


@pytest.mark.parametrize("family", FAMILIES)
def test_terminations_are_absorbed_without_a_state_for_them(family):
    """The saddle with missing probability is that of a world with a third state, which no one leaves and none pays."""
    share, policy = np.array([[0.3, 0.2], [0.1, 0.4]]), A_PRIME.pi
    saddle = saddle_point(model_moments(model_of(A_PRIME, share), policy), 0.9, family)
    occupancy = discounted_occupancy(A_PRIME, policy)
    assert saddle.flow_residual == pytest.approx(0, abs=1e-10)
    np.testing.assert_allclose(saddle.zeta.reshape(2, 2), occupancy / share, atol=1e-9)
    assert saddle.dual == pytest.approx(value_of(A_PRIME), abs=1e-9)
    assert saddle.mean_ratio == pytest.approx(1, abs=1e-9)
    assert share.ravel() @ saddle.zeta < 0.6

    move = np.zeros((3, 2, 3))
    move[:2, :, :2] = A_PRIME.continues
    move[..., 2] = 1 - move.sum(-1)
    absorbing = TabularModel(
        move,
        np.vstack([A_PRIME.R, np.zeros(2)]),
        np.append(A_PRIME.mu, 0),
        np.vstack([share * 0.8, np.full(2, 0.1)]),
    )
    padded = np.vstack([policy, [0.5, 0.5]])
    written = saddle_point(model_moments(absorbing, padded), 0.9, family)
    np.testing.assert_allclose(0.8 * written.zeta[:4], saddle.zeta, atol=1e-9)
    assert written.dual == pytest.approx(saddle.dual, abs=1e-9)


@pytest.mark.parametrize("mdp", [B, A_PRIME])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exact_log_gives_exact_ratios(mdp, family):
    log = first_steps(mdp)
    probs = mdp.pi[log.observation][None]
    fit = tabular_dice(log, probs, 0.9, states=2, family=family)
    share = mdp.mu[:, None] * mdp.pi_b
    expected = discounted_occupancy(mdp, mdp.pi) / share
    np.testing.assert_allclose(fit.ratio[0], expected[log.observation, log.action], atol=1e-8)
    assert fit.value[0] == pytest.approx(value_of(mdp), abs=1e-8)
    assert fit.lagrangian[0] == pytest.approx(value_of(mdp), abs=1e-7)
    assert fit.mean_ratio[0] == pytest.approx(1, abs=1e-9)
    assert fit.flow_residual[0] < 1e-9
    features = np.eye(2)[log.observation]
    alike = linear_dice(log, features, probs, 0.9, family=family, ridge=0.0)
    np.testing.assert_allclose(alike.ratio, fit.ratio, atol=1e-7)
    np.testing.assert_allclose(alike.primal, fit.primal, atol=1e-6)


def test_a_wrong_ratio_shows_in_its_checks():
    log = first_steps(B)
    probs = B.pi[log.observation][None]
    right = tabular_dice(log, probs, 0.9, states=2).ratio
    scaled = ratio_fit(log, probs, 0.9, 1.2 * right)
    assert scaled.mean_ratio[0] == pytest.approx(1.2)
    shuffled = ratio_fit(log, probs, 0.9, np.where(log.action == 0, right.mean(), right))
    assert min(scaled.flow_residual[0], shuffled.flow_residual[0]) > 1e-3
    # Functions of the state alone know the flow without the probabilities of actions.
    vectors = replace(log, observation=np.eye(2)[log.observation])
    assert ratio_fit(vectors, None, 0.9, right).flow_residual[0] < 1e-9
    assert ratio_fit(vectors, None, 0.9, 1.2 * right).flow_residual[0] > 1e-3


def test_a_log_that_lacks_what_the_policy_does_is_told_of():
    log = first_steps(B)
    probs = B.pi[log.observation][None]
    never = replace(log, action=np.where(log.observation == 1, 0, log.action))
    assert tabular_dice(never, probs, 0.9, states=2).flow_residual[0] > 1e-2


def test_weights_of_rows_make_another_distribution():
    """With γᵗ on the rows the ratio is against the discounted distribution of the log."""
    log = two_step_log(A_PRIME)
    probs = A_PRIME.pi[log.observation][None]
    weight = 0.9**log.step
    fit = tabular_dice(log, probs, 0.9, states=2, weight=weight)
    share = np.zeros((2, 2))
    np.add.at(share, (log.observation[log.known], log.action[log.known]), weight[log.known])
    occupancy = fit.ratio[0] * (share / share.sum())[log.observation, log.action]
    plain = tabular_dice(log, probs, 0.9, states=2)
    counted = np.zeros((2, 2))
    np.add.at(counted, (log.observation[log.known], log.action[log.known]), 1.0)
    alike = plain.ratio[0] * (counted / counted.sum())[log.observation, log.action]
    assert np.abs(fit.ratio - plain.ratio).max() > 0.01
    np.testing.assert_allclose(occupancy[log.known], alike[log.known], atol=0.02)
    assert fit.flow_residual[0] < 1e-9


def test_folds_are_predicted_by_the_others():
    log = two_step_log(A_PRIME, fold=True)
    probs = A_PRIME.pi[log.observation][None]
    fit = tabular_dice(log, probs, 0.9, states=2)
    for fold in (0, 1):
        others = np.flatnonzero(log.fold != fold)
        renumbered = np.full(log.rows, -9)
        renumbered[others] = np.arange(len(others))
        next_row = np.where(log.next_row >= 0, renumbered[log.next_row], log.next_row)[others]
        alone = Transitions(log.observation[others], log.action[others], log.reward[others], next_row)
        by_others = tabular_dice(alone, probs[:, others], 0.9, states=2)
        for pair in np.ndindex(2, 2):
            mine = (log.fold == fold) & (log.observation == pair[0]) & (log.action == pair[1])
            theirs = (alone.observation == pair[0]) & (alone.action == pair[1])
            np.testing.assert_allclose(fit.ratio[0, mine], by_others.ratio[0, theirs][0], rtol=1e-9)


def test_dual_dice_with_counts_leaves_unseen_pairs_at_nothing():
    counts = np.array([[30.0, 20.0], [50.0, 0.0]])
    never = replace(B, pi=np.array([[0.3, 0.7], [1.0, 0.0]]))
    move = np.where(counts[..., None] > 0, B.P, 0.0)
    model = TabularModel(move, np.where(counts > 0, B.R, 0.0), B.mu, counts / counts.sum())
    found = dual_dice_ratio(model, never.pi, 0.9)
    expected = discounted_occupancy(never, never.pi)
    seen = counts > 0
    np.testing.assert_allclose(found[seen], expected[seen] / model.share[seen], rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_a_discounted_ratio_needs_a_discount(gamma):
    log = first_steps(B)
    with pytest.raises(ValueError, match=r"gamma: a discounted ratio needs a number in \(0, 1\)"):
        tabular_dice(log, B.pi[log.observation][None], gamma, states=2)


@pytest.mark.parametrize("mdp", [B, A_PRIME])
def test_networks_come_near_the_exact_values(mdp):
    log = first_steps(mdp, fold=True)
    vectors = replace(log, observation=np.eye(2)[log.observation])
    probs = np.stack([mdp.pi[log.observation], mdp.pi_b[log.observation]])
    config = FqeConfig(hidden=(16, 16), updates=300, batch=64)
    networks = neural_q(vectors, probs, 0.9, generator=torch.Generator().manual_seed(0), config=config)
    exact = tabular_dice(log, probs, 0.9, states=2)
    for family in (DUAL_DICE, BEST_DICE):
        fit = neural_dice(vectors, probs, 0.9, networks.parameters, family=family)
        np.testing.assert_allclose(fit.value, exact.value, rtol=1e-2)
        np.testing.assert_allclose(fit.mean_ratio, 1, atol=1e-2)
        assert (fit.flow_residual < 1e-2).all()
        assert np.sqrt(((fit.ratio - exact.ratio) ** 2).mean()) < 0.05 * exact.ratio.std()


def test_networks_that_read_the_time_serve_a_finite_horizon():
    """Time in the state and an end at the horizon: the ratio is that of two steps, and so is its value."""
    log = two_step_log(B)
    vectors = replace(log, observation=np.eye(2)[log.observation])
    timed = replace(
        vectors,
        observation=np.column_stack([vectors.observation, log.step / 2]),
        next_row=np.where(log.next_row == TRUNCATED, TERMINATED, log.next_row),
    )
    probs = B.pi[log.observation][None]
    config = FqeConfig(hidden=(16, 16), updates=300, batch=64)
    generator = torch.Generator().manual_seed(0)
    networks = neural_q(vectors, probs, 0.9, generator=generator, horizon=2, config=config)
    fit = neural_dice(timed, probs, 0.9, networks.parameters)
    _, v = finite_values(B, B.pi, 2)
    assert fit.value[0] == pytest.approx(B.mu @ v[0], rel=1e-2)
    assert fit.mean_ratio[0] == pytest.approx(1, abs=1e-2)
