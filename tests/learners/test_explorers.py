"""Every explorer gives a pmf over the eligible actions only; its numbers are those of the formula by hand."""

import math

import numpy as np
import pytest

from peira.learners.explorers import (
    epsilon_greedy,
    falcon_epochs,
    falcon_gamma,
    fastcb,
    greedy,
    member_intervals,
    mix_floor,
    project_floor,
    regcb,
    regcb_from_intervals,
    sensitivity_intervals,
    softmax,
    squarecb,
    squarecb_elim,
    survivors,
    thompson,
    uniform,
    vw_gamma,
)

ROWS, COLUMNS = 4000, 6


def world(seed=0):
    """Scores with ties, rows of 1 to 6 eligible actions in any columns, NaN in the others."""
    generator = np.random.default_rng(seed)
    shape = (ROWS, COLUMNS)
    eligible = generator.random(shape).argsort(1) < generator.integers(1, COLUMNS + 1, (ROWS, 1))
    scores = np.where(
        generator.random((ROWS, 1)) < 0.5, generator.random(shape), generator.integers(3, size=shape) / 2
    )
    return np.where(eligible, scores, np.nan), eligible


def members_of(scores, seed=1):
    noise = 0.1 * np.random.default_rng(seed).standard_normal((7, *scores.shape))
    return np.clip(scores + noise, 0, 1)


def intervals_of(scores):
    return member_intervals(members_of(scores), 0.8)


EXPLORERS = {
    "uniform": lambda s, e: uniform(e),
    "greedy": greedy,
    "epsilon": lambda s, e: epsilon_greedy(s, e, 0.1),
    "softmax": lambda s, e: softmax(s, e, 0.05),
    "squarecb": lambda s, e: squarecb(s, e, 37.0),
    "squarecb, no γ": lambda s, e: squarecb(s, e, 0.0),
    "squarecb, γ = ∞": lambda s, e: squarecb(s, e, math.inf),
    "squarecb, γ overflows": lambda s, e: squarecb(s * 1e10, e, 1e308),
    "fastcb": lambda s, e: fastcb(s, e, 37.0),
    "fastcb, no γ": lambda s, e: fastcb(s, e, 0.0),
    "fastcb, γ = ∞": lambda s, e: fastcb(s, e, math.inf),
    "regcb": lambda s, e: regcb(s, e, np.full(s.shape, 1e-2), 100),
    "regcb, optimistic": lambda s, e: regcb(s, e, np.full(s.shape, 1e-2), 100, optimistic=True),
    "regcb of members": lambda s, e: regcb_from_intervals(*intervals_of(s), e, False),
    "squarecb-elim": lambda s, e: squarecb_elim(s, *intervals_of(s), e, 37.0),
    "thompson": lambda s, e: thompson(members_of(s), e),
    "mixed": lambda s, e: mix_floor(squarecb(s, e, 1e3), e, 0.02),
    "projected": lambda s, e: project_floor(squarecb(s, e, 1e3), e, 0.02),
    "projected, all": lambda s, e: project_floor(squarecb(s, e, 1e3), e, 1.0),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", EXPLORERS)
def test_rows_are_probabilities_of_the_eligible_actions(name):
    scores, eligible = world()
    pmf = EXPLORERS[name](scores, eligible)
    assert pmf.dtype == np.float64 and pmf.shape == scores.shape
    assert (pmf >= 0).all() and (pmf <= 1).all()
    assert (pmf[~eligible] == 0).all()
    # One bit of the last place of 1, either way.
    assert abs(pmf.sum(1) - 1).max() <= 2 * np.finfo(float).eps


WITH_MEMBERS = ("regcb of members", "squarecb-elim", "thompson")


@pytest.mark.parametrize("name", [name for name in EXPLORERS if name not in WITH_MEMBERS])
def test_the_order_and_number_of_columns_do_not_matter(name):
    scores, eligible = world()
    # Scores without ties: the first of several best ones depends on the order.
    scores = np.where(eligible, np.random.default_rng(2).random(scores.shape), np.nan)
    order = np.random.default_rng(3).permutation(COLUMNS)
    wide = [
        np.concatenate([of[:, order], np.full((ROWS, 3), fill)], axis=1)
        for of, fill in ((scores, np.nan), (eligible, False))
    ]
    np.testing.assert_allclose(
        EXPLORERS[name](*wide)[:, :COLUMNS], EXPLORERS[name](scores, eligible)[:, order], atol=1e-15
    )


@pytest.mark.parametrize("name", [name for name in EXPLORERS if not name.startswith("uniform")])
def test_a_row_without_an_eligible_action_is_named(name):
    scores, eligible = world()
    eligible[17] = False
    with pytest.raises(ValueError, match="no action of row 17"):
        EXPLORERS[name](scores, eligible)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["greedy", "epsilon", "softmax", "squarecb", "fastcb", "regcb", "squarecb-elim"]
)
def test_a_score_that_is_not_finite_is_named(name, value):
    scores, eligible = world()
    broken = scores.copy()
    eligible[5, 2], broken[5, 2] = True, value
    explorer = (
        EXPLORERS[name]
        if name != "squarecb-elim"
        else lambda s, e: squarecb_elim(s, 0.0 * e, 1.0 * e, e, 1.0)
    )
    with pytest.raises(ValueError, match=r"scores: expected finite numbers.* at row 5, column 2"):
        explorer(broken, eligible)


def test_greedy_shares_ties_evenly():
    scores = np.array([[0.2, 0.7, 0.7, np.nan], [0.9, 0.7, 0.1, 0.9]])
    eligible = np.array([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=bool)
    np.testing.assert_array_equal(greedy(scores, eligible), [[0, 0.5, 0.5, 0], [0, 0, 0, 1]])


def test_epsilon_counts_both_ways_to_the_greedy_action():
    pmf = epsilon_greedy(np.array([[0.1, 0.9, 0.5, 0.0]]), np.array([[True, True, True, False]]), 0.3)
    np.testing.assert_allclose(pmf, [[0.1, 0.3 / 3 + 0.7, 0.1, 0]], rtol=1e-15)


def test_softmax_by_hand_and_far_beyond_the_range_of_exp():
    scores, all_three = np.array([[0.0, math.log(2), math.log(5)]]), np.ones((1, 3), dtype=bool)
    np.testing.assert_allclose(softmax(scores, all_three, 1.0), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-15)
    np.testing.assert_array_equal(softmax(scores, all_three, 1e-6), [[0, 0, 1]])


def test_squarecb_keeps_ties_at_one_kth_and_the_best_never_below():
    scores, eligible = world()
    count = eligible.sum(1)
    for gamma in (0.0, 1.0, 1e3, 1e9, math.inf):
        pmf = squarecb(scores, eligible, gamma)
        level = eligible & (scores == np.nanmax(scores, axis=1, keepdims=True))
        assert (pmf[level] >= (1 / count)[np.nonzero(level)[0]] - 1e-15).all()
        assert (pmf.max(1) >= 1 / count - 1e-15).all()
    assert (pmf[eligible & ~level] == 0).all()


def test_losses_of_fastcb_are_clipped_and_a_perfect_action_takes_the_row():
    eligible = np.ones((4, 3), dtype=bool)
    scores = np.array([[1.0, 0.9, 0.5], [1.2, 1.0, 0.9], [1.0, 1.0, 1.0], [0.5, -3.0, 0.0]])
    pmf = fastcb(scores, eligible, 10.0)
    np.testing.assert_array_equal(pmf[:3], [[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3])
    # Losses .5, 1, 1: .5/(1.5 + 5) each.
    np.testing.assert_allclose(pmf[3, 1:], 1 / 13, rtol=1e-14)


def largest_weight(distance, sensitivity, delta):
    """The definition, searched: the largest w in [0, Δ/s] with w(Δ² − (Δ − s w)²) ≤ δ."""
    weight = np.linspace(0, distance / sensitivity, 2_000_001)
    fits = weight * (distance**2 - (distance - sensitivity * weight) ** 2) <= delta
    return weight[fits].max()


@pytest.mark.parametrize(
    ("score", "sensitivity", "labelled"), [(0.8, 0.3, 50), (0.1, 2.0, 7), (0.5, 1e-3, 10**6)]
)
def test_bounds_of_regcb_are_those_of_the_largest_weight(score, sensitivity, labelled):
    scores, eligible = np.array([[score, 0.5]]), np.array([[True, True]])
    low, high = sensitivity_intervals(scores, eligible, np.full((1, 2), sensitivity), labelled)
    delta = 0.1 * math.log(2 * labelled)
    above = sensitivity * largest_weight(2 - score, sensitivity, delta)
    below = sensitivity * largest_weight(1 + score, sensitivity, delta)
    assert high[0, 0] == pytest.approx(min(score + above, 1), abs=4e-6)
    assert low[0, 0] == pytest.approx(max(score - below, 0), abs=4e-6)


def test_bounds_of_regcb_at_the_ends():
    scores, eligible = np.array([[0.4, 1.3, -0.2, np.nan]]), np.array([[True, True, True, False]])

    def bounds(sensitivity, labelled):
        return [
            of[0] for of in sensitivity_intervals(scores, eligible, np.full((1, 4), sensitivity), labelled)
        ]

    # Nothing learned yet, or an action that a row would move at will: anything is possible.
    for low, high in (bounds(0.1, 0), bounds(math.inf, 100)):
        np.testing.assert_array_equal(low, [0, 0, 0, np.nan])
        np.testing.assert_array_equal(high, [1, 1, 1, np.nan])
    # Nothing would move it: the prediction, clipped.
    for of in bounds(0.0, 100):
        np.testing.assert_allclose(of, [0.4, 1, 0, np.nan], atol=1e-5)
    low, high = bounds(0.05, 100)
    assert (low[:3] <= np.clip(scores[0, :3], 0, 1)).all() and (
        high[:3] >= np.clip(scores[0, :3], 0, 1)
    ).all()


def test_regcb_eliminates_what_cannot_be_best_and_is_uniform_on_the_rest():
    low = np.array([[0.5, 0.2, 0.1, 0.9], [0.1, 0.1, 0.1, 0.1]])
    high = np.array([[0.7, 0.5, 0.4, 1.0], [0.3, 0.6, 0.6, 0.6]])
    eligible = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=bool)
    np.testing.assert_array_equal(survivors(low, high, eligible), [[1, 1, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(
        regcb_from_intervals(low, high, eligible, False), [[0.5, 0.5, 0, 0], [0.25] * 4]
    )
    np.testing.assert_array_equal(
        regcb_from_intervals(low, high, eligible, True), [[1, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 3]]
    )
    with pytest.raises(ValueError, match=r"low ≤ high, got 0.7 and 0.5 at row 0, column 1"):
        survivors(np.where(low == 0.2, 0.7, low), high, eligible)


def test_squarecb_elim_counts_all_survivors():
    """Three level actions of a fresh model: counting only new best scores gave (−1, 1, 1) in Vowpal Wabbit 9.11."""
    fresh, all_three = np.full((1, 3), 0.5), np.ones((1, 3), dtype=bool)
    bounds = sensitivity_intervals(fresh, all_three, np.full((1, 3), 0.5), 0)
    np.testing.assert_allclose(squarecb_elim(fresh, *bounds, all_three, 0.0), [[1 / 3] * 3], rtol=1e-15)
    # K is the number of survivors: the third cannot be best.
    scores = np.array([[0.9, 0.8, 0.1]])
    pmf = squarecb_elim(scores, scores - 0.1, scores + 0.1, all_three, 10.0)
    np.testing.assert_allclose(pmf, [[1 - 1 / 3, 1 / 3, 0]], rtol=1e-14)


def test_thompson_counts_votes_and_splits_those_of_undecided_members():
    members = np.array([[[0.9, 0.1, 0.5]], [[0.2, 0.2, 0.1]], [[0.3, 0.8, 0.9]], [[0.9, 0.1, 0.95]]])
    eligible = np.array([[True, True, False]])
    np.testing.assert_allclose(thompson(members, eligible), [[2.5 / 4, 1.5 / 4, 0]], rtol=1e-15)
    with pytest.raises(ValueError, match="at least 1 member"):
        thompson(members[:0], eligible)


def test_quantiles_of_members():
    members = np.linspace(0, 1, 11)[:, None, None] * np.ones((11, 1, 2))
    low, high = member_intervals(members, 0.8)
    np.testing.assert_allclose([low, high], [[[0.1, 0.1]], [[0.9, 0.9]]], rtol=1e-12)


def test_floors_count_the_eligible_actions():
    eligible = np.array([[True, False, True, True], [True, False, False, False]])
    pmf = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    for floored in (project_floor, mix_floor):
        np.testing.assert_allclose(
            floored(pmf, eligible, 0.3), [[0.8, 0, 0.1, 0.1], [1, 0, 0, 0]], rtol=1e-15
        )
        np.testing.assert_allclose(floored(pmf, eligible, 0.0), pmf, rtol=1e-15)
        np.testing.assert_allclose(floored(pmf, eligible, 1.0), uniform(eligible), rtol=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, e: epsilon_greedy(s, e, 1.5), r"epsilon: expected a share in \[0, 1\], got 1.5"),
        (lambda s, e: softmax(s, e, 0.0), "temperature: expected more than 0, got 0"),
        (lambda s, e: squarecb(s, e, -1.0), "gamma: expected at least 0, got -1"),
        (lambda s, e: fastcb(s, e, math.nan), "gamma: expected at least 0, got nan"),
        (lambda s, e: project_floor(uniform(e), e, 1.1), "floor: expected a share"),
        (lambda s, e: mix_floor(uniform(e), e, -0.1), "floor: expected a share"),
        (
            lambda s, e: regcb(s, e, np.full(s.shape, -1.0), 5),
            "sensitivity: expected at least 0, got -1.0 at row",
        ),
        (lambda s, e: regcb(s, e, np.ones(s.shape), 5, mellowness=-1.0), "mellowness: expected at least 0"),
        (lambda s, e: member_intervals(members_of(s), 0.0), "coverage: expected a share"),
    ],
)
def test_settings_out_of_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*world())


def test_schedule_of_vowpal_wabbit():
    assert [vw_gamma(t) for t in (0, 1, 4, 10_000)] == [0, 10, 20, 1000]
    assert vw_gamma(100, scale=3.0, exponent=1.0) == 300


def test_epochs_of_falcon():
    np.testing.assert_array_equal(falcon_epochs(100), [2, 4, 8, 16, 32, 64])
    # 2T^(1/2), 2T^(3/4), 2T^(7/8), 2T^(15/16): four fits in 100,000 rounds instead of sixteen.
    np.testing.assert_array_equal(falcon_epochs(100_000, 100_000), [633, 11_247, 47_428, 97_394])
    assert len(falcon_epochs(100_000)) == 16
    assert len(falcon_epochs(1)) == 0


def test_gamma_of_falcon():
    expected = math.sqrt(10 * 65536 / math.log(100 * 65536 / 0.05)) / 30
    assert falcon_gamma(10.0, 65536, class_size=100.0) == pytest.approx(expected, rel=1e-12)
    # At 100,000 rounds and 10 actions it is 6 to 8, whatever the class: nearly uniform for small gaps.
    assert all(6 < falcon_gamma(10.0, 100_000, class_size=of) < 8 for of in (100.0, 1e3, 1e7))
    assert falcon_gamma(10.0, 0, class_size=100.0) == 0
    with pytest.raises(ValueError, match="class_size ≥ 1"):
        falcon_gamma(10.0, 5, class_size=0.5)
