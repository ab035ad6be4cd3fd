"""The experiments of results/sharpe at a hundredth of their size: what they claim must show in direction."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from ope_fixtures import HORIZON, A, enumerate_trajectories

STUDIES = Path(__file__).parents[3] / "results" / "sharpe"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(STUDIES))
    yield importlib.import_module
    sys.path.remove(str(STUDIES))


def root_mean_square(errors):
    return np.sqrt(np.mean(np.square(errors), axis=0))


def logs(count):
    return [np.random.default_rng(seed) for seed in range(count)]


def gathered(rows):
    return {name: root_mean_square([row[name] for row in rows]) for name in rows[0]}


def test_logs_follow_the_world(study):
    """Fixture A is that of the tests, and pairs of states and actions come as often as they should."""
    worlds = study("worlds")
    world = worlds.fixture_a()
    for ours, theirs in (
        (world.move, A.P),
        (world.reward, A.R),
        (world.behaviour, A.pi_b),
        (world.target, A.pi),
    ):
        np.testing.assert_array_equal(ours, theirs)
    log = worlds.draw(world, 40_000, np.random.default_rng(0))
    every = enumerate_trajectories(A, HORIZON)
    code = 2 ** np.arange(2 * HORIZON)
    seen = np.bincount(np.hstack([log.state, log.action]) @ code, minlength=64) / 40_000
    expected = np.bincount(np.hstack([every.state, every.action]) @ code, every.prob_b, minlength=64)
    assert np.abs(seen - expected).max() < 4 * np.sqrt(expected.max() / 40_000)
    np.testing.assert_allclose(log.block.log_ratio, A.log_ratio[log.state, log.action])


def test_episodes_end_where_the_world_ends_them(study):
    worlds = study("worlds")
    world = worlds.gridworld()
    log = worlds.draw(world, 2_000, np.random.default_rng(0))
    last = log.state[np.arange(2_000), log.length - 1]
    np.testing.assert_array_equal(last == 35, log.terminated)
    assert (log.length[~log.terminated] == world.horizon).all()
    assert not log.reward[~log.block.alive].any()
    cut = log.cut(10)
    assert cut.reward.shape == (2_000, 10)
    np.testing.assert_array_equal(cut.terminated, log.terminated & (log.length <= 10))


def test_variances_are_those_of_the_fixture(study):
    """``sharpe.md`` 5."""
    found = study("worlds").variances(study("worlds").fixture_a())
    expected = {
        "tis": 18.3661,
        "wis": 4.4695,
        "pdis": 10.2432,
        "wpdis": 3.5522,
        "dr": 1.09864,
        "drl": 1.00614,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=5e-5), name


def test_r2_estimators_stand_in_order(study):
    r2, world = study("r2_error_rates"), study("worlds").fixture_a()
    rows = [r2.errors_of_seed(world, seed, (250, 1_000)) for seed in range(40)]
    small, large = np.stack([root_mean_square([row[name] for row in rows]) for name in rows[0]], axis=1)
    error = dict(zip(rows[0], large, strict=True))
    assert error["tis"] > error["pdis"] > error["wpdis"] > 1.3 * error["dr"]
    assert error["drl"] < 1.1 * error["dr"]
    assert (small > 1.3 * large).all()
    for name, variance in study("worlds").variances(world).items():
        assert error[name] == pytest.approx(np.sqrt(variance / 1_000), rel=0.35), name


def test_r3_intervals_hold_the_truth(study):
    r3, world = study("r3_coverage"), study("worlds").fixture_a()
    every = enumerate_trajectories(A, HORIZON).block(A)
    pdis = study("r2_error_rates").sequential.pdis(every, A.gamma).plain
    assert r3.contribution_bounds(world) == pytest.approx((pdis.min(), pdis.max()))
    limits = r3.limits(world, 0, logs=60, episodes=100, replicates=200)
    found = {name: r3.coverage(np.array(of), world.value()) for name, of in limits.items()}
    for name in r3.SELF_NORMALISED:
        for method in r3.GATED:
            assert found[f"{name}: {method}"]["coverage"] >= 0.85, (name, method)
    for method in ("hoeffding", "empirical_bernstein"):
        assert found[f"pdis: {method}"]["coverage"] == 1
        assert found[f"pdis: {method}"]["median_width"] > 2 * found["pdis: student_t"]["median_width"]


def test_r4_products_of_ratios_grow_faster_with_the_horizon(study):
    r4 = study("r4_horizon_curse")
    rows = [r4.of_seed(seed, (8, 32), 300) for seed in range(20)]
    short, long = (gathered([row[t] for row in rows]) for t in ("8", "32"))
    for name in r4.MARGINAL:
        assert long["pdis"] / short["pdis"] > 2 * long[name] / short[name], name
    assert long["pdis"] > 3 * long["drl"]


def test_r5_magic_is_near_the_better_of_model_and_weights(study):
    r5, worlds = study("r5_magic"), study("worlds")
    win, fail = (
        gathered([r5.of_seed(world, seed, (1_000,)) for seed in range(15)])
        for world in (worlds.model_win(), worlds.model_fail())
    )
    assert win["wdr"] > 3 * win["dm"]
    assert fail["dm"] > 3 * fail["wdr"]
    assert win["magic"] < 0.5 * win["wdr"]
    assert fail["magic"] < 0.2 * fail["dm"]


def test_r8_weights_on_what_actions_share(study):
    r8, worlds = study("r8_bandits"), study("worlds")
    of = worlds.multiclass_bandit(np.random.default_rng(0), contexts=500)
    basic = gathered([r8.doubly_robust(of, 500, rng) for rng in logs(30)])
    assert basic["dr"] < 0.8 * basic["ipw"]
    many = gathered([r8.embedded(500, 0, 300, rng) for rng in logs(8)])
    assert many["mips"] < 0.5 * many["ipw"]
    clusters = gathered([r8.clustered(1.0, 0, 1_500, rng) for rng in logs(3)])
    assert clusters["offcem"] < 0.8 * clusters["mips"]
    slates = gathered([r8.slated(4, 0.0, 0, 400, rng) for rng in logs(30)])
    assert slates["pi"] < 0.5 * slates["ips"]


def test_r8_slope_stays_away_from_bandwidths_that_are_much_too_wide(study):
    r8 = study("r8_bandits")
    found = [r8.kernels(1.5, 0.5, 1_000, rng)["kernel bandwidth"] for rng in logs(20)]
    table = r8.slope_table({"kernel bandwidth": found})["kernel bandwidth"]
    reached = table["rules"]["slope"]["ratio"] * min(table["rmse"])
    assert reached < 0.5 * table["rmse"][-1]
    assert reached < 2.5 * min(table["rmse"])
    assert 0 < table["place_of_the_best"] < 6


def test_r9_the_distribution_comes_nearer(study):
    r9 = study("r9_distribution")
    errors, truth = r9.fixture_logs(20, (250, 4_000))
    assert len(truth.atom) == 27
    assert truth.mass.sum() == pytest.approx(1.0, abs=1e-12)
    # ``sharpe.md`` 9.
    assert truth.cvar(0.1) == pytest.approx(0.3000276, abs=1e-7)
    for name in r9.ESTIMATORS:
        small, large = errors[f"{name} distance"].mean(0)
        assert 2.5 < small / large < 6
        small, large = root_mean_square(errors[f"{name} cvar"])
        assert small > 2 * large


def test_r9_lengths_and_weights_of_cart_pole(study):
    r9 = study("r9_distribution")
    length, log_weight = r9.cart_pole(400, 0.5, [0.5, 0.8], np.random.default_rng(0))
    own, _ = r9.cart_pole(400, 0.8, [], np.random.default_rng(1))
    np.testing.assert_allclose(log_weight[0], 0.0, atol=1e-9)
    assert np.exp(log_weight[1]).mean() == pytest.approx(1.0, abs=0.3)
    assert length.max() <= r9.STEPS
    assert own.mean() > 1.3 * length.mean()
    weighted = np.average(length, weights=np.exp(log_weight[1]))
    assert abs(weighted - own.mean()) < abs(length.mean() - own.mean())
