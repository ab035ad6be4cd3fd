"""Values fitted to a log: tabular, linear and by stacked networks, against exact values and one another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ope_fixtures import A_PRIME, HORIZON, A, B, enumerate_trajectories, finite_values, stationary_q

from peira.evaluation.off_policy import bandit, linear, tabular
from peira.evaluation.off_policy.fitted_q import linear_q, sequential_mrdr_weights, tabular_q
from peira.evaluation.off_policy.neural_q import FqeConfig, neural_q, neural_q_continuous
from peira.evaluation.off_policy.transitions import TERMINATED, TRUNCATED, Transitions, q_bounds

QUICK = FqeConfig(hidden=(32,), updates=1500, batch=128)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def laid_flat(trajectories):
    """Every trajectory as an episode, with its probability as the weight of its rows; cut ones are TRUNCATED."""
    alive = trajectories.alive
    next_row = np.arange(1, alive.sum() + 1)
    last = trajectories.length.cumsum() - 1
    next_row[last] = np.where(trajectories.terminated, TERMINATED, TRUNCATED)
    weight = np.broadcast_to(trajectories.prob_b[:, None], alive.shape)[alive]
    columns = (trajectories.state[alive], trajectories.action[alive], trajectories.reward[alive])
    return Transitions(*columns, next_row), weight[None]


def garnet_log(seed=0, episodes=200, steps=20, states=6, actions=3, ends=0.05, fold=True):
    """A log of a random world: noisy rewards, episodes that end at random or are cut with a final observation."""
    rng = np.random.default_rng(seed)
    move = rng.dirichlet(np.full(states, 0.3), size=(states, actions))
    gain = rng.normal(size=(states, actions))
    state, alive = rng.integers(states, size=episodes), np.ones(episodes, dtype=bool)
    columns, ended = [], np.zeros(episodes, dtype=bool)
    for _ in range(steps):
        action = rng.integers(actions, size=episodes)
        reward = gain[state, action] + 0.3 * rng.normal(size=episodes)
        columns.append((state, action, reward, alive))
        ended |= alive & (rng.random(episodes) < ends)
        alive = alive & ~ended
        state = (rng.random((episodes, 1)) > move[state, action].cumsum(1)).sum(1).clip(max=states - 1)
    state_of, action, reward, lived = (np.stack(of, 1) for of in zip(*columns, strict=True))
    length = lived.sum(1)
    next_row = np.arange(1, length.sum() + 1)
    last = length.cumsum() - 1
    next_row[last[ended]] = TERMINATED
    next_row[last[~ended]] = length.sum() + np.arange((~ended).sum())
    observation = np.concatenate([state_of[lived], state[~ended]])
    folds = np.repeat(np.arange(episodes) % 2, length) if fold else None
    policies = rng.dirichlet(np.ones(actions), size=(3, states))
    return Transitions(observation, action[lived], reward[lived], next_row, folds), policies[:, observation]


def one_hot(transitions):
    return np.eye(int(transitions.observation.max()) + 1)[transitions.observation]


def vectors(transitions):
    return replace(transitions, observation=one_hot(transitions))


def test_rows_know_their_episode():
    log = Transitions(
        observation=np.arange(7),
        action=np.zeros(6, dtype=np.int64),
        reward=np.zeros(6),
        next_row=np.array([1, 2, TERMINATED, 4, 6, TRUNCATED]),
        fold=np.array([0, 0, 0, 1, 1, 2]),
    )
    assert log.initial.tolist() == [0, 3, 5]
    assert log.step.tolist() == [0, 1, 2, 0, 1, 0, 2]
    assert log.point_fold.tolist() == [0, 0, 0, 1, 1, 2, 1]
    assert log.within.tolist() == [True, True, False, True, False, False]
    assert log.known.tolist() == [True, True, True, True, True, False]
    assert log.trains.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": np.array([0.0, np.nan, 0.0])}, "reward: expected finite numbers, got nan in row 1"),
        ({"next_row": np.array([2, 2, TERMINATED])}, "next_row: expected the row behind"),
        ({"next_row": np.array([1, 2, 7])}, "got 7 in row 2"),
        ({"observation": np.zeros(2, dtype=np.int64)}, "at least as many observations, got 3, 3, 3 and 2"),
        (
            {"fold": np.array([0, 1, 1])},
            "fold: expected one number a row, the same for all rows of an episode",
        ),
        ({"fold": np.array([1, 1, 1])}, "at least two folds"),
    ],
)
def test_a_malformed_log_is_refused(change, message):
    columns = {
        "observation": np.zeros(3, dtype=np.int64),
        "action": np.zeros(3, dtype=np.int64),
        "reward": np.zeros(3),
        "next_row": np.array([1, 2, TERMINATED]),
    }
    Transitions(**columns)
    with pytest.raises(ValueError, match=message):
        Transitions(**columns | change)


def test_finite_horizon_tables_are_those_of_the_fixture():
    log, weight = laid_flat(enumerate_trajectories(A, HORIZON))
    fit = tabular_q(log, A.pi[log.observation][None], A.gamma, states=2, horizon=HORIZON, weight=weight)
    expected = [
        [[2.391436, 2.068164], [1.7298, 3.842588]],
        [[1.504, 1.206], [0.855, 2.972]],
        [[1.0, 0.0], [0.0, 2.0]],
    ]
    np.testing.assert_allclose(fit.q[0], np.array(expected)[log.step, log.observation], atol=1e-9)
    np.testing.assert_allclose(fit.v[0, log.initial[0]], 2.1651456, atol=1e-9)
    features = one_hot(log)
    alike = linear_q(log, features, A.pi[log.observation][None], A.gamma, horizon=HORIZON, weight=weight)
    np.testing.assert_allclose(alike.q, fit.q, atol=1e-9)


def test_an_end_of_time_is_not_an_end_of_the_world():
    """Episodes marked as terminated at the horizon give the same tables as episodes cut there."""
    trajectories = enumerate_trajectories(A, HORIZON)
    log, weight = laid_flat(trajectories)
    marked = replace(log, next_row=np.where(log.next_row == TRUNCATED, TERMINATED, log.next_row))
    probs = A.pi[log.observation][None]
    cut, ended = (
        tabular_q(of, probs, A.gamma, states=2, horizon=HORIZON, weight=weight) for of in (log, marked)
    )
    np.testing.assert_allclose(ended.q, cut.q, atol=1e-12)
    wrong = tabular_q(marked, probs, A.gamma, states=2, weight=weight)
    assert np.abs(wrong.v[0, log.initial] - cut.v[0, log.initial]).max() > 0.1


def test_early_termination_in_finite_and_infinite_time():
    log, weight = laid_flat(enumerate_trajectories(A_PRIME, HORIZON))
    probs = A_PRIME.pi[log.observation][None]
    finite = tabular_q(log, probs, A_PRIME.gamma, states=2, horizon=HORIZON, weight=weight)
    q, v = finite_values(A_PRIME, A_PRIME.pi, HORIZON)
    np.testing.assert_allclose(finite.q[0], q[log.step, log.observation], atol=1e-9)
    assert A_PRIME.mu @ v[0] == pytest.approx(1.77466416, abs=1e-8)
    for fit in (
        tabular_q(log, probs, A_PRIME.gamma, states=2, weight=weight),
        linear_q(log, one_hot(log), probs, A_PRIME.gamma, weight=weight),
    ):
        np.testing.assert_allclose(fit.q[0], stationary_q(A_PRIME, A_PRIME.pi)[log.observation], atol=1e-9)
        assert fit.td_error[0] < 2.0


def test_stationary_tables_of_fixture_b():
    log, weight = laid_flat(enumerate_trajectories(B, HORIZON))
    probs = np.stack([B.pi[log.observation], B.pi_b[log.observation]])
    fit = tabular_q(log, probs, B.gamma, states=2, weight=weight)
    expected = np.array([[10.2276061776, 9.9052123552], [9.5664092664, 11.6793436293]])
    np.testing.assert_allclose(fit.q[0], expected[log.observation], atol=1e-9)
    value = fit.v[:, log.initial] @ np.eye(2)[log.observation[log.initial]]
    value = value / np.bincount(log.observation[log.initial]) @ B.mu
    np.testing.assert_allclose(value, [384 / 37, 7.891231964], atol=1e-9)
    np.testing.assert_allclose(linear_q(log, one_hot(log), probs, B.gamma, weight=weight).q, fit.q, atol=1e-8)
    assert fit.bounds == pytest.approx((0.0, 20.0))
    assert (fit.low >= 0).all()
    assert (fit.high <= 20).all()


def test_cut_episodes_bootstrap_and_ended_ones_do_not():
    log = Transitions(np.zeros((4, 1)), np.zeros(2, dtype=np.int64), np.ones(2), np.array([2, 3]))
    probs = np.ones((1, 4, 1))
    ended = replace(log, next_row=np.full(2, TERMINATED))
    config = FqeConfig(hidden=(), updates=300, batch=4, learning_rate=0.05)
    for given, expected in ((log, 10.0), (ended, 1.0)):
        states = replace(given, observation=np.zeros(4, dtype=np.int64))
        assert tabular_q(states, probs, 0.9, states=1).v[0, 0] == pytest.approx(expected)
        assert linear_q(given, np.ones((4, 1)), probs, 0.9).v[0, 0] == pytest.approx(expected)
        neural = neural_q(given, probs, 0.9, generator=seeded(), config=config)
        assert neural.v[0, 0] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="got a fold without any"):
        linear_q(replace(log, next_row=np.full(2, TRUNCATED)), np.ones((4, 1)), probs, 0.9)


def test_a_pair_never_seen_has_its_prior():
    log = Transitions(
        np.array([0, 0]), np.array([0, 0]), np.array([1.0, 3.0]), np.array([TERMINATED, TERMINATED])
    )
    without = tabular.empirical_model(log, states=2, actions=2)
    assert without.reward[0, 0].tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert without.transition.sum() == 0
    assert without.share[0, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    smoothed = tabular.empirical_model(log, states=2, actions=2, prior=2.0)
    np.testing.assert_allclose(smoothed.reward[0, 0], 2.0)
    np.testing.assert_allclose(smoothed.transition[0, 0, 0], [[0.25, 0.25], [0.5, 0.5]])


def test_sweeps_of_regression_end_in_lstdq():
    log, probs = garnet_log()
    features = one_hot(log) @ np.random.default_rng(1).normal(size=(6, 4))
    moments = linear.action_moments(log, features, probs, rows=log.known)
    sweeps = linear.fitted_q_sweeps(moments, moments, 0.8, 200)
    np.testing.assert_allclose(sweeps[-1], linear.lstdq(moments, 0.8), atol=1e-9)
    assert np.abs(sweeps[5] - sweeps[-1]).max() > 1e-6


def test_moments_of_a_log_are_those_of_its_features_written_out():
    log, probs = garnet_log()
    psi = np.random.default_rng(1).normal(size=(log.points, 3))
    moments = linear.action_moments(log, psi, probs, rows=log.known)
    one = np.eye(3)[log.action]
    phi = (one[:, :, None] * psi[: log.rows, None, :]).reshape(log.rows, -1)
    averaged = (probs[..., None] * psi[:, None, :]).reshape(3, log.points, -1)
    for candidate, fold in ((0, 0), (2, 1)):
        rows = log.fold != fold
        written = linear.feature_moments(
            phi[rows],
            averaged[candidate][np.maximum(log.next_row, 0)][rows],
            log.reward[rows],
            log.terminated[rows],
            averaged[candidate][log.initial[log.fold[log.initial] != fold]],
        )
        for name, value in vars(written).items():
            np.testing.assert_allclose(
                getattr(moments, name)[candidate, fold], value, atol=1e-12, err_msg=name
            )


@pytest.mark.parametrize("kind", ["tabular", "linear", "neural"])
def test_a_fold_is_predicted_without_its_own_rewards(kind):
    log, probs = garnet_log(episodes=40)
    other = replace(log, reward=np.where(log.fold == 0, log.reward + 5, log.reward))
    config = FqeConfig(hidden=(8,), updates=20, batch=16)

    def fit(log):
        if kind == "tabular":
            return tabular_q(log, probs, 0.9, states=6).q
        if kind == "linear":
            return linear_q(log, one_hot(log), probs, 0.9, ridge=1e-6).q
        return neural_q(vectors(log), probs, 0.9, generator=seeded(), config=config).q

    before, after = fit(log), fit(other)
    own = log.point_fold == 0
    assert np.array_equal(before[:, own], after[:, own])
    assert np.abs(before[:, ~own] - after[:, ~own]).min() > 0.1


def test_discount_and_horizon_are_checked():
    log, probs = garnet_log(ends=0.0)
    for gamma, horizon, message in (
        (1.0, None, "needs episodes that terminate or a horizon"),
        (1.1, None, r"expected a number in \(0, 1\]"),
        (0.9, 19, "expected at least 20, the length of the longest episode, got 19"),
    ):
        with pytest.raises(ValueError, match=message):
            tabular_q(log, probs, gamma, states=6, horizon=horizon)
    with pytest.raises(ValueError, match="expected numbers of states from 0 to 4"):
        tabular_q(log, probs, 0.9, states=5)
    with pytest.raises(ValueError, match="one-hot vectors or use tabular_q"):
        neural_q(log, probs, 0.9, generator=seeded())


def test_bounds_of_what_rewards_can_add_up_to():
    log, _ = garnet_log(ends=0.0)
    low, high = log.reward.min(), log.reward.max()
    assert low < 0 < high
    assert q_bounds(log, 0.9) == pytest.approx((10 * low, 10 * high))
    assert q_bounds(log, 1.0, horizon=20) == pytest.approx((20 * low, 20 * high))
    positive = replace(log, reward=log.reward - low + 1)
    assert q_bounds(positive, 0.9)[0] == pytest.approx(10.0)
    ending = replace(positive, next_row=np.where(log.next_row >= log.rows, TERMINATED, log.next_row))
    assert q_bounds(ending, 0.9)[0] == pytest.approx(1.0)


def test_mrdr_weights_at_one_step_are_the_bandit_ones():
    rng = np.random.default_rng(0)
    propensity, target = rng.uniform(0.1, 0.9, 50), rng.uniform(0, 1, 50)
    log = Transitions(np.zeros((50, 1)), np.zeros(50, dtype=np.int64), np.zeros(50), np.full(50, TERMINATED))
    found = sequential_mrdr_weights(log, np.log(target / propensity)[None], np.log(propensity), 0.9)[0]
    expected = bandit.mrdr_weights(target, propensity)
    np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-12)


def test_mrdr_weights_follow_an_episode():
    log = Transitions(
        np.zeros((4, 1)), np.zeros(4, dtype=np.int64), np.zeros(4), np.array([1, 2, TERMINATED, TERMINATED])
    )
    ratio, propensity = np.array([0.5, 0.0, 2.0, 1.5]), np.array([0.4, 0.5, 0.25, 0.2])
    with np.errstate(divide="ignore"):
        found = sequential_mrdr_weights(log, np.log(ratio)[None], np.log(propensity), 0.9)[0]
    by_hand = np.array([0.5 * 0.6 / 0.4, 0.0, 0.0, 1.5 * 0.8 / 0.2])
    np.testing.assert_allclose(found, by_hand / by_hand.max(), atol=1e-15)
    ratio[1] = 3.0
    found = sequential_mrdr_weights(log, np.log(ratio)[None], np.log(propensity), 0.9)[0]
    by_hand[1:3] = 0.9**2 * 0.5**2 * 3.0 * 0.5 / 0.5, 0.9**4 * 1.5**2 * 2.0 * 0.75 / 0.25
    np.testing.assert_allclose(found, by_hand / by_hand.max(), rtol=1e-12)


def test_mrdr_lowers_the_variance_of_dr_where_features_are_too_few():
    """One decision, one feature for two states: the fit errs where the doubly robust estimator is hurt least."""
    state, action = np.divmod(np.arange(4), 2)
    p, pi = np.array([0.9, 0.1, 0.3, 0.7]), np.array([0.4, 0.6, 0.5, 0.5])
    reward, chance = np.array([1.0, 4.0, 0.0, 1.0]), 0.5 * p
    log = Transitions(state, action, reward, np.full(4, TERMINATED))
    probs = pi.reshape(1, 2, 2)[:, state]
    mrdr = sequential_mrdr_weights(log, np.log(pi / p)[None], np.log(p), 1.0)

    def variance(weight):
        fit = linear_q(log, np.ones((4, 1)), probs, 1.0, weight=weight)
        dr = fit.v[0] + pi / p * (reward - fit.logged[0])
        assert chance @ dr == pytest.approx(0.5 * pi @ reward)
        return chance @ (dr - chance @ dr) ** 2

    assert variance(chance[None] * mrdr) < 0.5 * variance(chance[None])


def test_stacked_networks_come_near_the_exact_values():
    log, probs = garnet_log(episodes=300)
    exact = tabular_q(log, probs, 0.9, states=6)
    told = []
    fit = neural_q(
        vectors(log), probs, 0.9, generator=seeded(), config=QUICK, progress=lambda *of: told.append(of)
    )
    spread = exact.logged.std(1)
    assert (np.sqrt(((fit.logged - exact.logged) ** 2).mean(1)) < 0.1 * spread).all()
    np.testing.assert_allclose(fit.td_error, exact.td_error, rtol=0.1)
    np.testing.assert_allclose(fit.v, (probs * fit.q).sum(-1))
    assert told[0] == (15, 1500)
    assert told[-1] == (1500, 1500)


def test_networks_that_read_the_time_come_near_finite_horizon_values():
    log, probs = garnet_log(episodes=300, steps=10)
    exact = tabular_q(log, probs, 1.0, states=6, horizon=10)
    fit = neural_q(vectors(log), probs, 1.0, generator=seeded(), horizon=10, config=QUICK)
    assert (np.sqrt(((fit.logged - exact.logged) ** 2).mean(1)) < 0.2 * exact.logged.std(1)).all()
    assert (fit.q[:, log.step == 10] == 0).all()


def test_a_candidate_is_not_changed_by_its_company():
    log, probs = garnet_log(episodes=50)
    config = FqeConfig(hidden=(16, 16), updates=60, batch=32)
    together = neural_q(vectors(log), probs, 0.9, generator=seeded(), config=config)
    for candidate in range(3):
        only = probs[[candidate]]
        alone = neural_q(vectors(log), only, 0.9, generator=seeded(), config=config)
        np.testing.assert_allclose(alone.q[0], together.q[candidate], rtol=1e-4, atol=1e-4)
    again = neural_q(vectors(log), probs, 0.9, generator=seeded(), config=config)
    assert np.array_equal(again.q, together.q)


def test_continuous_values_are_expectations_over_the_policy():
    """Reward −(a − s)², one step: V(s) = −((m − s)² + σ²), and γ times that of what follows before it."""
    rng = np.random.default_rng(0)
    episodes, deviation = 1500, np.array([0.0, 0.7])
    place = rng.uniform(-1, 1, (episodes, 2))
    state = place.reshape(-1, 1)
    action = rng.uniform(-2, 2, (2 * episodes, 1))
    next_row = np.arange(1, 2 * episodes + 1)
    next_row[1::2] = TERMINATED
    reward = -((action - state) ** 2)[:, 0]
    log = Transitions(state, action, reward, next_row)
    mean = np.broadcast_to(0.5 * state, (2, *state.shape))
    std = np.broadcast_to(deviation[:, None, None], mean.shape)
    config = FqeConfig(hidden=(32, 32), updates=800, batch=128, samples=40)
    fit = neural_q_continuous(log, mean, std, 0.9, generator=seeded(), horizon=2, config=config)
    now = -(0.25 * state[:, 0] ** 2 + deviation[:, None] ** 2)
    # What follows lies anywhere in [−1, 1]: E s² = 1/3.
    after = -(0.25 / 3 + deviation[:, None] ** 2)
    expected = now + np.where(log.step == 0, 0.9 * after, 0.0)
    np.testing.assert_allclose(fit.v.mean(1), expected.mean(1), atol=0.05)
    # What 40 draws leave: the deviation of (a − s)² over √40, about 0.15 for the wide policy.
    assert (np.sqrt(((fit.v - expected) ** 2).mean(1)) < [0.08, 0.2]).all()
    logged = reward + np.where(log.step == 0, 0.9 * after, 0.0)
    assert np.sqrt(((fit.logged - logged) ** 2).mean()) < 0.15
    assert fit.q is None
    still = neural_q_continuous(log, mean[:1], std[:1], 0.9, generator=seeded(), horizon=2, config=config)
    assert np.sqrt(((still.v - expected[:1]) ** 2).mean()) < 0.08


@pytest.mark.parametrize("rows", [1024, 1025])
def test_a_last_chunk_of_one_point_is_predicted_like_any_other(rows):
    """Points are predicted 1024 at a time; a torch index of one entry is a single number to numpy."""
    rng = np.random.default_rng(0)
    ended = np.full(rows, TERMINATED)
    observation, reward = rng.normal(size=(rows, 2)), rng.normal(size=rows)
    options = {"generator": torch.Generator().manual_seed(0), "config": FqeConfig(updates=2)}
    discrete = Transitions(observation, rng.integers(0, 2, rows), reward, ended)
    fit = neural_q(discrete, np.full((2, rows, 2), 0.5), 0.9, **options)
    assert fit.q.shape == (2, rows, 2)
    continuous = Transitions(observation, rng.normal(size=(rows, 1)), reward, ended)
    fit = neural_q_continuous(continuous, np.zeros((2, rows, 1)), np.ones((2, rows, 1)), 0.9, **options)
    assert np.isfinite(fit.v).all()
