"""The payment simulator against its formula written out in loops, and each of its extensions against what it claims."""

import copy

import numpy as np
import pytest
from scipy.special import logit

from peira.environments.decision_world import best_value, make_decision_world, regret, uniform_value
from peira.environments.payment import (
    ACTIONS,
    INTERVENTIONS,
    ISSUERS,
    WORLDS,
    Drift,
    NovelAction,
    Outage,
    PaymentConfig,
    PaymentWorld,
)


def draw(world, rows, *, seed=0, at=0):
    return world.contexts(rows, np.random.default_rng(seed), at)


def pick(choices, seed=0):
    return (np.random.default_rng(seed).random(len(choices)) * choices.count).astype(np.int64)


def test_actions_are_named_by_their_bits():
    assert ACTIONS == (
        "none",
        "token",
        "exemption",
        "token+exemption",
        "format",
        "token+format",
        "exemption+format",
        "token+exemption+format",
    )


def test_the_truth_is_the_formula():
    world = PaymentWorld(7)
    # The same draws, in the order in which the world makes them; then the formula, term by term.
    generator = np.random.default_rng(7)
    beta = generator.normal(2, 0.7, 40)
    e, d, s = (generator.normal(0, scale, (40, 3)) for scale in (0.35, 0.15, 0.2))
    token, exemption = generator.random(40) < 0.6, generator.random(40) < 0.7
    choices = draw(world, 300)
    expected = world.expected_reward(choices, 0)
    for row in range(300):
        i, c = choices.category[row] - 1
        z = float(choices.number[row, 0])
        wanted = []
        for code in range(8):
            b = [code >> k & 1 for k in range(3)]
            if (b[0] and not token[i]) or (b[1] and not (exemption[i] and z <= 1.2)):
                continue
            score = beta[i] - 0.35 * max(z, 0) - 0.15 * c
            score += sum(b[k] * (e[i, k] + (0.10, 0.05, -0.05)[k] + d[i, k] * z) for k in range(3))
            score += sum(b[k] * b[m] * s[i, at] for at, (k, m) in enumerate([(0, 1), (0, 2), (1, 2)]))
            wanted.append((code, b, 1 / (1 + np.exp(-score))))
        count = len(wanted)
        assert choices.action[row].tolist() == [code for code, _, _ in wanted] + [-1] * (8 - count)
        assert choices.feature[row, :count].tolist() == [b for _, b, _ in wanted]
        assert not choices.feature[row, count:].any()
        np.testing.assert_allclose(expected[row, :count], [f for _, _, f in wanted], rtol=1e-12)
        assert np.isnan(expected[row, count:]).all()


def test_contexts_have_the_stated_distribution():
    choices = draw(PaymentWorld(0), 200_000)
    share = (np.arange(40) + 1.0) ** -0.7
    issuers = np.bincount(choices.category[:, 0] - 1, minlength=ISSUERS) / 200_000
    np.testing.assert_allclose(issuers, share / share.sum(), atol=4 * np.sqrt(0.14 / 200_000))
    np.testing.assert_allclose(np.bincount(choices.category[:, 1])[1:] / 200_000, 0.25, atol=0.004)
    assert abs(choices.number.mean()) < 0.01
    assert abs(choices.number.std() - 1) < 0.01
    assert choices.number.dtype == choices.feature.dtype == np.float32
    assert choices.action.shape == (200_000, 8)


def test_worlds_are_as_hard_as_the_published_sanity_figures_say():
    best, uniform, count = [], [], []
    for seed in range(10):
        world = make_decision_world("payment", seed)
        choices = draw(world, 20_000)
        expected = world.expected_reward(choices, 0)
        best.append(best_value(expected).mean())
        uniform.append(uniform_value(expected).mean())
        count.append(choices.count.mean())
    # Stated of 5 worlds: an optimum of .84 to .87, uniform .79 to .83.
    assert 0.84 < np.mean(best) < 0.87
    assert 0.79 < np.mean(uniform) < 0.83
    assert 0.82 < min(best) < max(best) < 0.88
    assert 0.74 < min(uniform) < max(uniform) < 0.84
    assert 3 < min(count) < max(count) < 8


def test_a_seed_is_a_world():
    choices = draw(PaymentWorld(3), 100)
    expected = PaymentWorld(3).expected_reward(choices, 0)
    np.testing.assert_array_equal(expected, PaymentWorld(3).expected_reward(choices, 0))
    assert not np.allclose(expected[:, 0], PaymentWorld(4).expected_reward(choices, 0)[:, 0])


def test_regret_of_a_pmf_is_what_it_loses_to_the_best_action():
    world = PaymentWorld(0)
    choices = draw(world, 1000)
    expected = world.expected_reward(choices, 0)
    uniform = choices.eligible / choices.count[:, None]
    np.testing.assert_allclose(regret(expected, uniform), best_value(expected) - uniform_value(expected))
    best = np.zeros_like(expected)
    best[np.arange(1000), np.nanargmax(expected, 1)] = 1
    np.testing.assert_allclose(regret(expected, best), 0, atol=1e-15)


@pytest.mark.parametrize("env", ["payment", "payment-retries"])
def test_rewards_are_bernoulli_with_the_true_mean(env):
    world = make_decision_world(env, 0)
    choices = draw(world, 100_000)
    expected = world.expected_reward(choices, 0)
    column = pick(choices)
    reward, _ = world.outcomes(choices, column, np.random.default_rng(1), 0)
    assert set(np.unique(reward)) == {0.0, 1.0}
    truth = expected[np.arange(len(choices)), column]
    groups = choices.action[np.arange(len(choices)), column]
    if env == "payment-retries":
        groups = groups + 8 * (choices.number[:, 1] == 2)
    for group in np.unique(groups):
        of = groups == group
        error = np.sqrt((truth[of] * (1 - truth[of])).sum()) / of.sum()
        assert abs(reward[of].mean() - truth[of].mean()) < 4 * error


def test_a_success_is_known_sooner_than_a_failure():
    world = PaymentWorld(0)
    choices = draw(world, 200_000)
    reward, delay = world.outcomes(choices, pick(choices), np.random.default_rng(1), 0)
    for outcome, scale in ((1, 10), (0, 100)):
        of = delay[reward == outcome]
        # The mean of an exponential that is rounded up: 1 / (1 − e^(−1/scale)).
        assert abs(of.mean() * (1 - np.exp(-1 / scale)) - 1) < 0.03
        assert of.min() == 1
    # 40 rounds after a decision, what is known of it is a success more often than it should be, by Bayes' rule.
    known = delay <= 40
    rate = reward.mean()
    success, failure = rate * (1 - np.exp(-40 / 10)), (1 - rate) * (1 - np.exp(-40 / 100))
    assert abs(reward[known].mean() - success / (success + failure)) < 0.004
    assert reward[known].mean() - rate > 0.08


def test_delays_of_zero_are_none():
    world = PaymentWorld(0, PaymentConfig(delay_success=0, delay_failure=0))
    choices = draw(world, 100)
    assert not world.outcomes(choices, pick(choices), np.random.default_rng(1), 0)[1].any()


def test_drift_goes_from_one_draw_to_another_linearly():
    plain, world = PaymentWorld(0), PaymentWorld(0, PaymentConfig(drift=Drift(start=100, length=50)))
    choices = draw(plain, 500)
    np.testing.assert_array_equal(draw(world, 500).action, choices.action)

    def score(world, round):
        return logit(world.expected_reward(choices, np.full(500, round)))

    first, last = score(plain, 0), score(world, 10_000)
    np.testing.assert_array_equal(score(world, 99), first)
    np.testing.assert_allclose(score(world, 110), 0.8 * first + 0.2 * last, atol=1e-9)
    np.testing.assert_allclose(score(world, 150), last, atol=1e-9)
    # The second draw is another world, not a shift of the first one.
    best_first, best_last = (np.nanargmax(of, 1) for of in (first, last))
    assert (best_first != best_last).mean() > 0.3


def test_a_season_comes_back():
    drift = Drift(start=100, length=10, season=40)
    rounds = np.array([0, 99, 100, 105, 110, 139, 140, 145, 150, 179, 180, 185, 225])
    wanted = [0, 0, 0, 0.5, 1, 1, 1, 0.5, 0, 0, 0, 0.5, 0.5]
    np.testing.assert_allclose(drift.weight(rounds), wanted)
    np.testing.assert_array_equal(Drift(start=5, length=0).weight(np.array([4, 5, 6])), [0, 1, 1])


def test_an_outage_lowers_one_issuers_logit_for_a_while():
    outage = Outage(issuer=2, start=100, length=300)
    plain, world = PaymentWorld(0), PaymentWorld(0, PaymentConfig(outages=(outage,)))
    choices = draw(plain, 600)
    hit = choices.category[:, 0] == 3
    assert 0 < hit.sum() < 600
    for round, drop in ((99, 0), (100, 2), (399, 2), (400, 0)):
        rounds = np.full(600, round)
        lower = logit(plain.expected_reward(choices, rounds)) - logit(world.expected_reward(choices, rounds))
        np.testing.assert_allclose(lower[hit][choices.eligible[hit]], drop, atol=1e-9)
        np.testing.assert_allclose(lower[~hit][choices.eligible[~hit]], 0, atol=1e-9)


def test_a_novel_action_is_eligible_from_its_round_on():
    world = PaymentWorld(0, PaymentConfig(novel=NovelAction("token+exemption", start=1300)))
    plain = draw(PaymentWorld(0), 600, at=1000)
    choices = draw(world, 600, at=1000)
    np.testing.assert_array_equal(choices.action[300:], plain.action[300:])
    assert (choices.action[300:] == 3).any()
    assert not (choices.action[:300] == 3).any()
    before = plain.action[:300]
    for row in range(300):
        rest = [code for code in before[row] if code not in (3, -1)]
        assert choices.action[row].tolist() == rest + [-1] * (8 - len(rest))


@pytest.mark.parametrize("moving", [{}, {"drift": Drift(start=0, length=3_000)}])
def test_a_payment_that_nothing_would_have_saved_comes_back_once(moving):
    world = PaymentWorld(0, PaymentConfig(retry_after=50.0, **moving))
    rows = 5_000
    choices = draw(world, rows, at=10)
    assert len(choices) == rows
    attempt = choices.number[:, 1]
    clusters = world.clusters(choices, 10)
    first = {cluster: row for row, cluster in enumerate(clusters) if attempt[row] == 1}
    again = {cluster: row for row, cluster in enumerate(clusters) if attempt[row] == 2}
    assert len(first) + len(again) == rows
    assert set(again) <= set(first)
    gaps = [row - first[cluster] for cluster, row in again.items()]
    assert min(gaps) > 0
    # The lag counts payments, and every seventh row or so is a return.
    assert 45 < np.mean(gaps) < 75
    for cluster, row in list(again.items())[:50]:
        assert choices.take([row]).number[0, 0] == choices.number[first[cluster], 0]

    lost = np.ones(rows, bool)
    for code in range(8):
        eligible = (choices.action == code).any(1)
        taken = choices.take(eligible)
        column = taken.column_of(np.full(len(taken), code))
        reward, _ = world.outcomes(taken, column, np.random.default_rng(0), 10 + np.flatnonzero(eligible))
        lost[eligible] &= reward == 0
    came_back = np.isin(np.arange(rows), [first[cluster] for cluster in again])
    assert lost[came_back].all()
    # All others that nothing would have saved are near the end of the call, where their return would be beyond it.
    beyond = np.flatnonzero(lost & (attempt == 1) & ~came_back)
    assert beyond.min() > rows - 1_000
    # Hard payments are overrepresented among those that come back.
    expected = best_value(world.expected_reward(choices, 10))
    assert expected[attempt == 2].mean() < expected[attempt == 1].mean() - 0.02


def test_a_retried_payments_fate_is_its_own():
    world = make_decision_world("payment-retries", 0)
    choices = draw(world, 5_000)
    column = pick(choices)
    outcomes = [world.outcomes(choices, column, np.random.default_rng(seed), 0)[0] for seed in (1, 2)]
    np.testing.assert_array_equal(*outcomes)
    # In another world it is drawn anew: were it shared, no row could fail there that is likelier to succeed.
    other = make_decision_world("payment-retries", 1)
    failed = other.outcomes(choices, column, np.random.default_rng(1), 0)[0] < outcomes[0]
    row = np.arange(len(choices))
    likelier = (other.expected_reward(choices, 0) > world.expected_reward(choices, 0))[row, column]
    assert (failed & likelier).any()


@pytest.mark.parametrize("env", WORLDS)
def test_a_run_that_is_resumed_goes_on_as_it_would_have(env):
    world, generator = make_decision_world(env, 0), np.random.default_rng(5)

    def period(world, generator, at):
        choices = world.contexts(400, generator, at)
        column = pick(choices)
        return choices, *world.outcomes(choices, column, generator, at), world.clusters(choices, at)

    period(world, generator, 71_800)
    saved = copy.deepcopy(generator.bit_generator.state)
    went_on = period(world, generator, 72_200)
    generator = np.random.default_rng()
    generator.bit_generator.state = saved
    resumed = period(make_decision_world(env, 0), generator, 72_200)
    for name in ("number", "category", "action", "feature"):
        np.testing.assert_array_equal(getattr(went_on[0], name), getattr(resumed[0], name))
    for one, other in zip(went_on[1:], resumed[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_some_rows_with_their_rounds_are_the_rows():
    world = make_decision_world("payment-season", 0)
    choices = draw(world, 5_000, at=48_000)
    rows = np.array([4_000, 3, 700])
    np.testing.assert_array_equal(
        world.expected_reward(choices.take(rows), 48_000 + rows), world.expected_reward(choices, 48_000)[rows]
    )
    with pytest.raises(ValueError, match="at: expected the rounds of 3 rows, got 2"):
        world.expected_reward(choices.take(rows), rows[:2])


def test_no_rows():
    for env in WORLDS:
        world = make_decision_world(env, 0)
        choices = draw(world, 0)
        reward, delay = world.outcomes(choices, np.zeros(0, int), np.random.default_rng(0), 0)
        assert len(choices) == len(reward) == len(delay) == 0
        assert world.expected_reward(choices, 0).shape == (0, 8)


def test_the_schema_encodes_the_contexts_of_the_world():
    world = PaymentWorld(0)
    encoded = world.schema.encode(
        [{"amount": 0.5, "issuer": "issuer-07", "category": "category-3"}],
        [["none", "format"]],
        [[dict.fromkeys(INTERVENTIONS, 0), {"token": 0, "exemption": 0, "format": 1}]],
    )
    expected = world.expected_reward(encoded, 0)
    choices = draw(world, 20_000)
    same = (choices.category == [8, 4]).all(1) & (abs(choices.number[:, 0] - 0.5) < 0.05)
    assert same.any()
    column = choices.take(same).column_of(np.full(same.sum(), 4))
    near = world.expected_reward(choices.take(same), 0)[np.arange(same.sum()), column]
    np.testing.assert_allclose(near, expected[0, 1], atol=0.01)


def test_what_is_wrong_is_named():
    world = PaymentWorld(0)
    choices = draw(world, 10)
    padded = np.where(choices.count < 8, choices.count, 0)
    row = int(np.argmax(choices.count < 8))
    with pytest.raises(ValueError, match=f"column: {padded[row]} of row {row} is padding"):
        world.outcomes(choices, padded, np.random.default_rng(0), 0)
    choices.category[4, 0] = 0
    with pytest.raises(ValueError, match="none of the schema's"):
        world.expected_reward(choices, 0)
    with pytest.raises(ValueError, match=r"novel\.action: .* got 'none'"):
        NovelAction("none", 5)
    with pytest.raises(ValueError, match=r"outage\.issuer: expected 0 to 39, got 40"):
        Outage(40, 0, 1)
    with pytest.raises(ValueError, match=r"drift\.season: .* 50 rounds of a transition, got 40"):
        Drift(0, 50, season=40)
    with pytest.raises(ValueError, match=r"drift\.length: .* got -1"):
        Drift(0, -1)
    with pytest.raises(ValueError, match=r"delay_failure: .* got nan"):
        PaymentConfig(delay_failure=float("nan"))
    with pytest.raises(ValueError, match=r"retry_after: .* got 0"):
        PaymentConfig(retry_after=0.0)


@pytest.mark.parametrize(
    ("env", "offer"),
    [
        ("paymnt-drift", "did you mean 'payment-drift'"),
        ("digit", "did you mean 'digits'"),
        ("?", "there are payment, "),
    ],
)
def test_an_unknown_world_is_answered_with_the_nearest_name(env, offer):
    with pytest.raises(ValueError, match=f"env: there is no decision world .*; {offer}"):
        make_decision_world(env, 0)
