"""M8. An interval of 95 % holds the truth 95 times in 100, and narrows as √n; its imitations do neither."""

import math

import numpy as np
import pytest
from scipy import stats

from peira.evaluation.off_policy.bandit import ipw, snipw
from peira.evaluation.off_policy.intervals import (
    Interval,
    bootstrap,
    delta,
    empirical_bernstein,
    hcope,
    hoeffding,
    student_t,
)

REPLICATES = 4_000


def coverage(interval, samples, truth) -> float:
    found: list[Interval] = [interval(sample) for sample in samples]
    return float(np.mean([of.low <= truth <= of.high for of in found]))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_student_covers_gaussian_data(rng):
    samples = rng.normal(size=(REPLICATES, 20))
    assert 0.94 <= coverage(student_t, samples, 0.0) <= 0.96
    assert 0.94 <= coverage(lambda x: student_t(x, side="lower"), samples, 0.0) <= 0.96

    def one_sided_quantile(sample):
        margin = stats.t.ppf(0.95, 19) * sample.std(ddof=1) / math.sqrt(20)
        return Interval(sample.mean() - margin, sample.mean() + margin, "", 0.95)

    # t_{1−α} on both sides, as SCOPE-RL has it: 90 % sold as 95 %.
    assert 0.88 <= coverage(one_sided_quantile, samples, 0.0) <= 0.915


def test_hoeffding_narrows_with_the_root_of_n(rng):
    widths = {}
    for n in (100, 10_000):
        found = hoeffding(rng.random(n), (0.0, 1.0))
        widths[n] = (found.high - found.low) / 2
    assert widths[10_000] == pytest.approx(math.sqrt(math.log(40) / 20_000), abs=1e-12)
    assert widths[10_000] == pytest.approx(0.0136, abs=5e-5)
    assert widths[100] / widths[10_000] == pytest.approx(10.0, abs=1e-9)
    # √(ln(2/α)/2 · n), as SCOPE-RL has it, grows.
    assert math.sqrt(math.log(40) / 2 * 10_000) == pytest.approx(135.8, abs=0.1)


@pytest.mark.parametrize("bound", [hoeffding, empirical_bernstein])
def test_range_based_bounds_cover_whatever_the_data(bound, rng):
    rare = (rng.random((REPLICATES // 4, 30)) < 0.02).astype(float)
    assert coverage(lambda x: bound(x, (0.0, 1.0)), rare, 0.02) >= 0.95
    # Most samples of 30 hold no 1; with their own range their interval is a point.
    assert coverage(lambda x: bound(x, None), rare, 0.02) < 0.6
    assert not bound(rare[0], None).valid


def test_the_greatest_contribution_is_no_range(rng):
    samples = rng.random((REPLICATES, 20)) - 1.0
    assert coverage(lambda x: empirical_bernstein(x, (-1.0, 0.0)), samples, -0.5) >= 0.95

    def greatest_for_range(sample):
        log_tail = math.log(2 / 0.05)
        margin = 7 * sample.max() * log_tail / (3 * 19) + math.sqrt(2 * sample.var() * log_tail / 20)
        return Interval(sample.mean() - margin, sample.mean() + margin, "", 0.95)

    # Below 0 the greatest contribution even narrows the interval.
    margins = [greatest_for_range(x) for x in samples[:10]]
    honest = [empirical_bernstein(x, (-1.0, 0.0)) for x in samples[:10]]
    assert all(a.high - a.low < 0.3 * (b.high - b.low) for a, b in zip(margins, honest, strict=True))


def bandit_logs(rng, logs, rows):
    """Fixture C: the value is 1.5."""
    behaviour, target, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7]), np.array([1.0, 0.0, 2.0])
    action = rng.choice(3, p=behaviour, size=(logs, rows))
    return np.stack([(target / behaviour)[action], q[action] + rng.normal(size=(logs, rows))], axis=1)


def test_self_normalised_values_are_covered(rng):
    logs = bandit_logs(rng, 1_000, 200)
    assert 0.93 <= coverage(lambda log: delta(snipw(*log)), logs, 1.5) <= 0.97

    def with_t(log):
        terms = snipw(*log)
        return student_t(terms.value() + terms.influence())

    assert 0.93 <= coverage(with_t, logs, 1.5) <= 0.97
    for method in ("percentile", "bca"):
        interval = coverage(
            lambda log, method=method: bootstrap(snipw(*log), rng=rng, method=method, replicates=500),
            logs,
            1.5,
        )
        assert 0.93 <= interval <= 0.97, method
    # Contributions that were normalised once, taken for a sample.
    assert coverage(lambda log: student_t(log[0] * log[1] / log[0].mean()), logs, 1.5) > 0.985


def test_hcope_is_a_lower_bound_of_heavy_tailed_contributions(rng):
    # Ratios without a bound: w = 0.5 u^(−1/2), E[w] = 1, reward 1 where u < 0.04, so that the value is 0.2.
    uniform = rng.random((REPLICATES // 4, 400))
    samples = [ipw(0.5 / np.sqrt(u), (u < 0.04).astype(float)).plain for u in uniform]
    found = [hcope(sample, rng=rng).low for sample in samples]
    assert np.mean(np.array(found) <= 0.2) >= 0.95
    # It is no empty promise either: with more episodes it comes near.
    u = rng.random(400_000)
    near = hcope(ipw(0.5 / np.sqrt(u), (u < 0.04).astype(float)).plain, rng=rng).low
    assert 0.15 < near < 0.2
