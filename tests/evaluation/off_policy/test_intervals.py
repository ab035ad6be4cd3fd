"""Intervals against closed forms, scipy's bootstrap and slow loops; what they refuse; and their speed."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from peira.evaluation.off_policy.bandit import snipw
from peira.evaluation.off_policy.intervals import (
    Interval,
    bootstrap,
    bootstrap_together,
    delta,
    empirical_bernstein,
    hcope,
    hoeffding,
    student_t,
)
from peira.evaluation.off_policy.sequential import wpdis
from peira.evaluation.off_policy.terms import Terms, total
from peira.evaluation.off_policy.weights import Block

X, UNIT = np.array([0.1, 0.4, 0.4, 0.9, 0.2]), (0.0, 1.0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def half_width(interval: Interval) -> float:
    if math.isinf(interval.high):
        return 0.4 - interval.low
    if math.isinf(interval.low):
        return interval.high - 0.4
    assert interval.high - 0.4 == pytest.approx(0.4 - interval.low, abs=1e-12)
    return interval.high - 0.4


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (hoeffding(X, UNIT), 0.6073615),
        (hoeffding(X, UNIT, side="lower"), 0.5473328),
        (hoeffding(X, UNIT, side="upper"), 0.5473328),
        (empirical_bernstein(X, UNIT, side="lower"), 2.5262491),
        (empirical_bernstein(X, UNIT, side="upper"), 2.5262491),
        (empirical_bernstein(X, UNIT), 2.9642472),
        (student_t(X), 0.3827065),
        (student_t(X, side="lower"), stats.t.ppf(0.95, 4) * math.sqrt(0.095 / 5)),
    ],
)
def test_fixture_e(interval, expected):
    assert half_width(interval) == pytest.approx(expected, abs=5e-8)
    assert (interval.valid, interval.reason, interval.confidence) == (True, None, 0.95)


def test_fixture_e_to_machine_precision():
    assert X.var(ddof=1) == pytest.approx(0.095, abs=1e-15)
    assert half_width(hoeffding(X, UNIT)) == pytest.approx(math.sqrt(math.log(40) / 10), abs=1e-12)
    assert half_width(hoeffding(X, UNIT, side="lower")) == pytest.approx(
        math.sqrt(math.log(20) / 10), abs=1e-12
    )
    for side, log_tail in (("lower", math.log(40)), ("both", math.log(80))):
        expected = math.sqrt(2 * 0.095 * log_tail / 5) + 7 * log_tail / 12
        assert half_width(empirical_bernstein(X, UNIT, side=side)) == pytest.approx(expected, abs=1e-12)
    expected = stats.t.ppf(0.975, 4) * math.sqrt(0.095 / 5)
    assert half_width(student_t(X)) == pytest.approx(expected, abs=1e-12)


def test_other_confidences_and_ranges():
    found = hoeffding(10 * X - 5, (-5.0, 5.0), confidence=0.8)
    assert found.high + 1 == pytest.approx(10 * math.sqrt(math.log(10) / 10), abs=1e-12)
    assert found.confidence == 0.8
    with pytest.raises(ValueError, match="expected a confidence between 0 and 1, got 95"):
        hoeffding(X, UNIT, confidence=95)


@pytest.mark.parametrize("bound", [hoeffding, empirical_bernstein])
def test_a_range_taken_from_the_sample_is_said_to_be_no_range(bound):
    found = bound(X, None)
    assert not found.valid
    assert found.reason == "the range of a contribution is not known; the sample's own was used"
    assert found.high - found.low < bound(X, UNIT).high - bound(X, UNIT).low
    with pytest.raises(
        ValueError, match=r"expected contributions in \[0, 0\.5\], got 0\.1 to 0\.9; correct `bounds`"
    ):
        bound(X, (0.0, 0.5))


@pytest.mark.parametrize(
    "interval", [student_t, lambda x: empirical_bernstein(x, UNIT), lambda x: delta(Terms.mean(x))]
)
def test_one_episode_has_no_interval(interval):
    with pytest.raises(ValueError, match="an interval needs at least 2 episodes, got 1"):
        interval(np.array([0.5]))


def test_bootstrap_of_one_episode_is_refused(rng):
    with pytest.raises(ValueError, match="an interval needs at least 2 episodes, got 1"):
        bootstrap(Terms.mean(np.array([0.5])), rng=rng)


def test_hcope_is_the_empirical_bernstein_bound_of_what_is_cut(rng):
    sample = rng.pareto(1.5, size=2_000)
    found = hcope(sample, rng=np.random.default_rng(3))
    # The other 95 % with the threshold that the first 5 % of the same permutation promise most for.
    shuffled = np.random.default_rng(3).permutation(sample)
    chosen, judged = shuffled[:100], shuffled[100:]

    def bound(y, rows, threshold):
        cut, log_tail = np.minimum(y, threshold), math.log(40)
        spread = math.sqrt(2 * cut.var(ddof=1) * log_tail / rows)
        return cut.mean() - spread - 7 * threshold * log_tail / (3 * (rows - 1))

    thresholds = np.geomspace(chosen.min() / 100, chosen.max(), 1_000)
    best = thresholds[np.argmax([bound(chosen, len(judged), c) for c in thresholds])]
    assert found.low == pytest.approx(bound(judged, len(judged), best), abs=1e-12)
    assert (found.high, found.valid, found.method) == (math.inf, True, "hcope")
    assert 0 < found.low < sample.mean()
    # Cutting is what pays: with the whole range nothing can be said.
    assert bound(judged, len(judged), judged.max()) < 0.5 * found.low


def test_hcope_of_nothing_and_its_refusals(rng):
    assert hcope(np.zeros(10), rng=rng).low == 0.0
    assert hcope(np.full(5, 1e-3), rng=rng).low == 0.0
    with pytest.raises(ValueError, match="expected contributions of at least 0, got -1; add a constant"):
        hcope(np.array([-1.0, 2.0, 3.0, 4.0]), rng=rng)
    with pytest.raises(ValueError, match="expected at least 4 episodes"):
        hcope(np.ones(3), rng=rng)


def ratio_terms(rng, episodes=60) -> tuple[np.ndarray, np.ndarray, Terms]:
    weight, reward = rng.exponential(size=episodes) ** 2, rng.normal(size=episodes) + 1
    return weight, reward, snipw(weight, reward)


def test_delta_of_a_mean_is_the_normal_interval(rng):
    sample = rng.normal(size=50)
    found = delta(Terms.mean(sample), confidence=0.9)
    margin = stats.norm.ppf(0.95) * sample.std(ddof=1) / math.sqrt(50)
    assert (found.low, found.high) == pytest.approx(
        (sample.mean() - margin, sample.mean() + margin), abs=1e-12
    )


def test_delta_of_a_ratio_knows_that_the_normaliser_varies(rng):
    weight, reward, terms = ratio_terms(rng)
    value = (weight * reward).sum() / weight.sum()
    error = math.sqrt((weight**2 * (reward - value) ** 2).sum() / 59 / 60) / weight.mean()
    found = delta(terms)
    assert (found.low, found.high) == pytest.approx(
        (value - 1.959963985 * error, value + 1.959963985 * error), abs=1e-8
    )
    # Taking the normalised contributions for a sample forgets that the weights moved with the normaliser.
    imitation = student_t(weight * reward / weight.mean())
    assert imitation.high - imitation.low > 1.2 * (found.high - found.low)


def test_student_t_of_a_ratio_is_wider_than_delta_by_the_quantile(rng):
    terms = ratio_terms(rng)[2]
    found, normal = student_t(terms.value() + terms.influence()), delta(terms)
    assert (found.high - found.low) / (normal.high - normal.low) == pytest.approx(
        stats.t.ppf(0.975, 59) / stats.norm.ppf(0.975), abs=1e-9
    )


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_agrees_with_scipy(method, rng):
    weight, reward, terms = ratio_terms(rng)

    def statistic(weight, reward, axis):
        return (weight * reward).sum(axis) / weight.sum(axis)

    expected = stats.bootstrap(
        (weight, reward),
        statistic,
        paired=True,
        n_resamples=40_000,
        method=method,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = bootstrap(terms, rng=np.random.default_rng(2), method=method, replicates=40_000)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert (found.valid, found.method) == (True, f"bootstrap_{method}")
    assert abs(found.high - found.low) > 0.5


def test_bca_corrects_for_skewness(rng):
    terms = Terms.mean(rng.exponential(size=30) ** 2)
    percentile, bca = (
        bootstrap(terms, rng=np.random.default_rng(2), method=method, replicates=40_000)
        for method in ("percentile", "bca")
    )
    # Skewed to the right: both limits move up, the upper one more.
    assert bca.low - percentile.low > 0.05
    assert bca.high - percentile.high > bca.low - percentile.low


def test_one_sided_bootstrap(rng):
    terms = ratio_terms(rng)[2]
    two = bootstrap(terms, rng=np.random.default_rng(2), confidence=0.9)
    lower = bootstrap(terms, rng=np.random.default_rng(2), side="lower")
    upper = bootstrap(terms, rng=np.random.default_rng(2), side="upper")
    assert (lower.low, lower.high) == (pytest.approx(two.low), math.inf)
    assert (upper.low, upper.high) == (-math.inf, pytest.approx(two.high))


def test_replicates_form_every_normaliser_anew(rng):
    # Two ratios and a mean, four episodes: all 4⁴ replicates can be listed.
    plain, denominator = rng.normal(size=4), rng.exponential(size=(4, 2))
    numerator = denominator * (2 + rng.normal(size=(4, 2)))
    terms = Terms(plain, numerator, denominator)
    draws = np.stack(np.meshgrid(*[np.arange(4)] * 4), -1).reshape(-1, 4)
    values = plain[draws].mean(1) + (numerator[draws].sum(1) / denominator[draws].sum(1)).sum(1)
    found = bootstrap(terms, rng=rng, method="percentile", confidence=0.5, replicates=200_000)
    low, high = np.quantile(values, [0.25, 0.75])
    spread = np.ptp(values)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01 * spread)
    # Bootstrapping contributions that were normalised once leaves their normalisers where they were.
    fixed = plain[draws].mean(1) + (numerator[draws].sum(1) / denominator.sum(0)).sum(1)
    assert np.abs(np.quantile(fixed, [0.25, 0.75]) - [low, high]).max() > 0.05 * spread


def long_and_short(rng, gamma=0.9) -> tuple[list[Terms], Terms]:
    """Blocks of 5, 12 and 3 steps, and the same episodes as one padded block."""
    blocks, steps, log_ratio, reward, lengths = [], 12, [], [], []
    for episodes, width in ((30, 5), (20, 12), (25, 3)):
        length = rng.integers(1, width + 1, size=episodes)
        length[0] = width
        alive = np.arange(width) < length[:, None]
        ratios, rewards = (rng.normal(size=(episodes, width)) * alive for _ in range(2))
        blocks.append(wpdis(Block(rewards, 0.7 * ratios, length), gamma))
        padding = ((0, 0), (0, steps - width))
        log_ratio.append(np.pad(0.7 * ratios, padding))
        reward.append(np.pad(rewards, padding))
        lengths.append(length)
    whole = Block(np.concatenate(reward), np.concatenate(log_ratio), np.concatenate(lengths))
    return blocks, wpdis(whole, gamma)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_blocks_and_order_change_nothing(method, rng):
    blocks, whole = long_and_short(rng)
    expected = bootstrap(whole, rng=np.random.default_rng(5), method=method)
    order = rng.permutation(75)
    shuffled = Terms(whole.plain[order], whole.numerator[order], whole.denominator[order], whole.log_scale)
    for same in (blocks, blocks[::-1], lambda: iter(blocks), shuffled):
        found = bootstrap(same, rng=np.random.default_rng(5), method=method)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-10)
    of_delta = delta(whole)
    for same in (blocks, lambda: iter(blocks), shuffled):
        assert (delta(same).low, delta(same).high) == pytest.approx((of_delta.low, of_delta.high), abs=1e-10)


def test_estimates_that_share_their_draws_move_together(rng):
    blocks, _ = long_and_short(rng)
    shifted = [
        Terms(block.plain + 1.0, block.numerator, block.denominator, block.log_scale) for block in blocks
    ]
    first, second, alone = bootstrap_together([blocks, shifted, list(blocks)], rng=rng, replicates=200)
    assert (second.low, second.high) == pytest.approx((first.low + 1, first.high + 1), abs=1e-12)
    assert (alone.low, alone.high) == (first.low, first.high)
    with pytest.raises(ValueError, match=r"expected estimates of the same episodes, got \[75, 30\] episodes"):
        bootstrap_together([blocks, blocks[0]], rng=rng)


def test_order_changes_nothing_where_one_estimate_cannot_tell_episodes_apart(rng):
    # Half of the episodes have weight 0: their influence on the first estimate is the same, on the second not.
    weight, reward = rng.exponential(size=40) * (np.arange(40) % 2), rng.normal(size=40)
    order = rng.permutation(40)
    found = [
        bootstrap_together(
            [snipw(weight[of], reward[of]), Terms.mean(reward[of])], rng=np.random.default_rng(0)
        )
        for of in (np.arange(40), order)
    ]
    for before, after in zip(*found, strict=True):
        assert (before.low, before.high) == pytest.approx((after.low, after.high), abs=1e-10)


def test_jackknife_in_closed_form_is_the_loop(rng, monkeypatch):
    blocks, whole = long_and_short(rng)
    from peira.evaluation.off_policy import intervals

    without = np.array(
        [
            Terms(
                *(np.delete(of, i, axis=0) for of in (whole.plain, whole.numerator, whole.denominator)),
                whole.log_scale,
            ).value()
            for i in range(75)
        ]
    )
    seen = []
    acceleration = intervals._acceleration
    monkeypatch.setattr(
        intervals, "_acceleration", lambda values: seen.append(values) or acceleration(values)
    )
    for chunk in (2**23, 100):
        monkeypatch.setattr(intervals, "CHUNK", chunk)
        bootstrap(blocks, rng=rng, replicates=100)
        np.testing.assert_allclose(seen[-1], without, atol=1e-10)
    difference = without.mean() - without
    assert acceleration(without) == pytest.approx((difference**3).sum() / (6 * (difference**2).sum() ** 1.5))


def test_equal_contributions_have_no_width(rng):
    for method in ("percentile", "bca"):
        found = bootstrap(Terms.mean(np.full(8, 0.3)), rng=rng, method=method)
        assert (found.low, found.high) == pytest.approx((0.3, 0.3), abs=1e-15)
        assert found.valid


def test_an_interval_that_rests_on_one_episode_is_not_valid(rng):
    terms = snipw(np.array([1.0, 0.0, 0.0, 0.0]), np.ones(4))
    percentile = bootstrap(terms, rng=rng, method="percentile")
    # (3/4)⁴ of the replicates do not hold the first episode.
    lost = int(percentile.reason.split()[0])
    assert percentile.reason == f"{lost} of 2000 replicates have no weight in a normaliser"
    assert lost == pytest.approx(2_000 * 0.75**4, rel=0.15)
    assert not percentile.valid
    assert (percentile.low, percentile.high) == (1.0, 1.0)
    bca = bootstrap(terms, rng=rng)
    assert (bca.valid, bca.reason) == (False, "one episode carries all of the weight in a normaliser")
    assert math.isnan(bca.low) and math.isnan(bca.high)


def test_bca_needs_replicates_on_either_side_of_the_value(rng):
    found = bootstrap(Terms.mean(rng.normal(size=9)), rng=rng, replicates=1)
    assert (found.valid, found.reason) == (False, "all replicates lie on one side of the value")


def test_an_estimate_without_any_weight_has_no_interval(rng):
    terms = snipw(np.zeros(4), np.ones(4))
    for found in (delta(terms), bootstrap(terms, rng=rng)):
        assert (found.valid, found.reason) == (False, "no episode has weight in a normaliser")
        assert math.isnan(found.low) and math.isnan(found.high)


def test_weights_of_any_size_have_an_interval(rng):
    log_ratio, reward = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    length = np.full(50, 3)
    expected = bootstrap(wpdis(Block(reward, log_ratio, length), 1.0), rng=np.random.default_rng(0))
    for shift in (-900.0, 900.0):
        moved = np.concatenate([log_ratio[:, :1] + shift, log_ratio[:, 1:]], axis=1)
        blocks = [
            wpdis(Block(reward[rows], moved[rows], length[rows]), 1.0)
            for rows in (slice(0, 20), slice(20, 50))
        ]
        found = bootstrap(blocks, rng=np.random.default_rng(0))
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_two_thousand_replicates_of_ten_thousand_long_episodes_take_seconds(rng):
    shape = 10_000, 200
    weight = rng.exponential(size=shape)
    terms = Terms(np.zeros(10_000), weight * rng.normal(size=shape), weight)
    started = time.perf_counter()
    found = bootstrap(terms, rng=rng)
    seconds = time.perf_counter() - started
    assert seconds < 30
    error = total([terms]).standard_error
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.06)
