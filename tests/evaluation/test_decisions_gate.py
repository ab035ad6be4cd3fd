"""Which candidates the deployment gate of decisions lets through, and what it says about the others."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from peira.evaluation.decisions import by_cluster, gate, judged, paired_differences, values_of
from peira.evaluation.off_policy.intervals import bootstrap
from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions

SCHEMA = FeatureSchema(actions=("a", "b", "c"), categories={"issuer": ("x", "y")})
MEAN = np.array([0.5, 0.7, 0.3])
LOGGED = np.array([0.5, 0.3, 0.2])


@dataclass(frozen=True)
class Fixed:
    """The same probabilities in every context."""

    probs: tuple[float, ...]

    def pmf(self, choices):
        return np.tile(self.probs, (len(choices), 1))


INCUMBENT, BETTER, WORSE = Fixed((0.5, 0.3, 0.2)), Fixed((0.1, 0.9, 0.0)), Fixed((0.2, 0.1, 0.7))


def a_log(rows=2000, seed=0, pmf=LOGGED, mean=MEAN):
    rng = np.random.default_rng(seed)
    code = rng.integers(1, 3, (rows, 1)).astype(np.int32)
    choices = Choices(
        number=np.zeros((rows, 0), np.float32),
        category=code,
        action=np.tile(np.arange(3, dtype=np.int32), (rows, 1)),
        feature=np.zeros((rows, 3, 0), np.float32),
    )
    column = rng.choice(3, rows, p=pmf)
    worth = mean[code[:, 0] - 1] if mean.ndim == 2 else np.tile(mean, (rows, 1))
    return LoggedDecisions(
        choices=choices,
        column=column,
        propensity=pmf[column],
        reward=(rng.random(rows) < worth[np.arange(rows), column]).astype(float),
        pmf=np.tile(pmf, (rows, 1)),
        generation=np.zeros(rows, np.int64),
        time=np.arange(rows, dtype=float),
        uniform=np.zeros(rows, bool),
        cluster=np.arange(rows),
    )


def test_an_improvement_passes_and_a_loss_does_not():
    better = gate(BETTER, INCUMBENT, a_log(), SCHEMA)
    assert better.passed
    difference = better.report["difference"]["dr"]
    truth = MEAN @ np.subtract(BETTER.probs, INCUMBENT.probs)
    assert 0 < difference["low"] < truth < difference["high"]
    assert better.reasons[0].startswith(f"better by at least {difference['low']:.4g} at confidence 0.975")

    worse = gate(WORSE, INCUMBENT, a_log(), SCHEMA)
    assert not worse.passed
    assert any(reason.startswith("the difference is known to be above -") for reason in worse.reasons)


def test_a_tolerance_admits_what_is_no_worse_by_more_and_an_incumbent_against_itself():
    almost = Fixed((0.5, 0.28, 0.22))
    assert not gate(almost, INCUMBENT, a_log(), SCHEMA).passed
    assert gate(almost, INCUMBENT, a_log(), SCHEMA, tolerance=0.05).passed
    itself = gate(INCUMBENT, INCUMBENT, a_log(), SCHEMA, tolerance=0.01)
    assert itself.passed
    assert itself.report["difference"]["dr"]["value"] == 0
    assert not gate(INCUMBENT, INCUMBENT, a_log(), SCHEMA).passed  # An improvement was asked for.


def reasons(rows, candidate=BETTER, **settings):
    return "\n".join(gate(candidate, INCUMBENT, rows, SCHEMA, **settings).reasons)


def test_an_action_that_could_not_be_logged_is_refused_even_where_snips_looks_good():
    rows = a_log(pmf=np.array([0.6, 0.4, 0.0]))
    said = gate(Fixed((0.0, 0.8, 0.2)), INCUMBENT, rows, SCHEMA)
    assert said.report["candidate"]["snips"] > said.report["incumbent"]["snips"] + 0.05
    assert said.report["unsupported_mass"] == pytest.approx(0.2)
    assert "20.00% of the candidate's decisions takes actions that were never possible" in "\n".join(
        said.reasons
    )


def test_few_effective_rows_heavy_rows_and_unlogged_probabilities_are_refused():
    rows = a_log()
    assert "rows are worth" in reasons(rows.take(slice(0, 300)), least_effective=200)
    assert "one row has a weight of" in reasons(rows, weight_cap=2.0)
    assert "lacks the probabilities of the actions not chosen" in reasons(replace(rows, pmf=None))


def test_propensities_of_another_policy_show_in_the_mean_weight():
    """Logged before a floor of 0.3 was applied: what was drawn is likelier than what is said."""
    drawn, said = np.array([0.4, 0.3, 0.3]), np.array([0.5, 0.45, 0.05])
    rows = a_log(pmf=drawn)
    rows = replace(rows, propensity=said[rows.column], pmf=np.tile(said, (len(rows), 1)))
    assert "more than 3 standard errors" in reasons(rows, candidate=Fixed((0.3, 0.4, 0.3)))


def test_estimators_that_disagree_about_the_sign_are_refused(monkeypatch):
    """All actions are worth the same and the model of rewards is wrong: noise decides, for each in its own way."""
    rows = a_log(300, seed=22, mean=np.array([0.5, 0.5, 0.5]))
    wrong = np.tile([0.9, 0.1, 0.9], (300, 1))
    monkeypatch.setattr("peira.evaluation.decisions.cross_fitted_reward", lambda *_: wrong)
    candidate, incumbent = Fixed((0.1, 0.1, 0.8)), Fixed((0.8, 0.1, 0.1))
    said = gate(candidate, incumbent, rows, SCHEMA)
    difference = said.report["difference"]
    assert difference["snips"]["value"] < -0.01
    assert difference["dr"]["value"] > 0.01
    assert "disagree about the sign" in "\n".join(said.reasons)
    assert "disagree" not in "\n".join(gate(candidate, incumbent, rows, SCHEMA, tolerance=0.2).reasons)


def test_a_guarded_segment_may_not_pay_for_the_others():
    mean = np.array([[0.2, 0.9, 0.2], [0.9, 0.2, 0.9]])  # The second action is bad for issuer y.
    rows = a_log(4000, mean=mean)
    candidate = Fixed((0.2, 0.7, 0.1))
    assert "segment" not in reasons(rows, candidate=candidate, tolerance=0.1)
    said = reasons(rows, candidate=candidate, tolerance=0.1, guarded=("issuer",))
    assert "segment issuer=y: worse by" in said
    assert "issuer=x" not in said


def test_retries_count_as_one_row():
    """Every row four times, as one cluster of four: the same value with the same error, not half of it."""
    rows = a_log(500)
    four = rows.take(np.repeat(np.arange(500), 4))
    widths = []
    for log, cluster in ((rows, rows.cluster), (four, four.cluster), (four, np.arange(2000))):
        q = np.zeros(log.choices.action.shape)
        new, old = (judged(policy.pmf(log.choices), log, q) for policy in (BETTER, INCUMBENT))
        terms = by_cluster(paired_differences(new, old, log.reward, log.reward)["snips"], cluster)
        interval = bootstrap(terms, rng=np.random.default_rng(0), method="percentile")
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.05)
    assert widths[2] == pytest.approx(widths[0] / 2, rel=0.1)


def test_clusters_of_different_sizes_leave_the_value_as_it_is():
    rows = a_log(300)
    cluster = np.random.default_rng(1).integers(0, 40, 300)
    q = np.full(rows.choices.action.shape, 0.4)
    new, old = (judged(policy.pmf(rows.choices), rows, q) for policy in (BETTER, INCUMBENT))
    for name, terms in paired_differences(new, old, rows.reward, rows.reward - 0.4).items():
        assert by_cluster(terms, np.unique(cluster, return_inverse=True)[1]).value() == pytest.approx(
            terms.value(), abs=1e-12
        ), name


def test_rows_of_a_thinned_log_count_for_those_left_out():
    """Half of the failures were dropped and the rest weigh two: the estimate is that of the whole log."""
    rows = a_log(40_000)
    failed = np.flatnonzero(rows.reward == 0)
    kept = np.sort(np.concatenate([np.flatnonzero(rows.reward == 1), failed[::2]]))
    thinned = rows.take(kept)
    weight = np.where(thinned.reward == 0, 2.0, 1.0)
    found = {
        name: gate(BETTER, INCUMBENT, log, SCHEMA).report
        for name, log in (("whole", rows), ("thinned", thinned), ("weighed", replace(thinned, weight=weight)))
    }
    for estimator in ("snips", "dr"):
        value = {name: report["candidate"][estimator] for name, report in found.items()}
        assert value["weighed"] == pytest.approx(value["whole"], abs=0.01)
        assert value["thinned"] > value["whole"] + 0.05
        difference = {name: report["difference"][estimator]["value"] for name, report in found.items()}
        assert difference["weighed"] == pytest.approx(difference["whole"], abs=0.01)


def test_values_agree_with_the_truth_by_every_estimator():
    rows = a_log(20_000)
    q = np.tile(MEAN, (20_000, 1))
    found = values_of(judged(BETTER.pmf(rows.choices), rows, q), rows, rows.reward - MEAN[rows.column])
    assert set(found) == {"dm", "ips", "snips", "dr", "sndr", "clipped_ips", "switch_dr", "dros"}
    for name, value in found.items():
        assert value == pytest.approx(MEAN @ BETTER.probs, abs=0.02), name


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"tolerance": -1}, "tolerance: expected at least 0, got -1"),
        ({"confidence": 0.4}, "confidence: expected a number between 0.5 and 1, got 0.4"),
        ({"guarded": ("shop",)}, "guarded: 'shop' is no category; there are issuer"),
        ({"folds": 1}, "folds: expected at least 2 and 2 clusters a fold, got 1 for 2000 clusters"),
    ],
)
def test_bad_settings(settings, line):
    with pytest.raises(ValueError, match=line):
        gate(BETTER, INCUMBENT, a_log(), SCHEMA, **settings)
