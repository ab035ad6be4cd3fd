"""Every finding is made where its cause is planted, not made where it is not, and refuses what it should."""

import numpy as np
import pytest
from ope_fixtures import HORIZON, A, exact_log

from peira.evaluation.off_policy.candidates import Candidate, behaviour_candidate, candidate_of
from peira.evaluation.off_policy.diagnostics import (
    CLAIMS,
    DRIFT_P,
    REFUSES,
    Basis,
    Finding,
    candidate_findings,
    drift_tests,
    log_findings,
    propensity_checks,
    ratio_check,
    refused_by,
    weight_report,
)
from peira.evaluation.off_policy.log import Log

NUMBERS = frozenset(Basis) - CLAIMS


def made_log(
    rng: np.random.Generator,
    *,
    episodes: int = 400,
    lengths: np.ndarray | None = None,
    behaviour: np.ndarray | None = None,
    shrink: float = 1.0,
    **changes,
) -> Log:
    """A log whose policy chooses by `behaviour` whatever it sees; propensities are written down times `shrink`."""
    behaviour = np.array([0.2, 0.3, 0.5]) if behaviour is None else behaviour
    lengths = rng.integers(1, 8, episodes) if lengths is None else lengths
    rows = int(lengths.sum())
    action = rng.choice(len(behaviour), rows, p=behaviour)
    columns = {
        "action": action,
        "reward": rng.normal(size=rows),
        "length": lengths,
        "propensity": behaviour[action] * shrink,
        "actions": len(behaviour),
    }
    return Log.from_arrays(**{**columns, **changes})


def always(probs: list[float], log: Log, name: str = "new") -> Candidate:
    return candidate_of(np.tile(probs, (log.rows, 1)), log, name)


def codes(findings: list[Finding]) -> dict[str, str]:
    return {finding.code: finding.severity for finding in findings}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# -- weights -----------------------------------------------------------------------------------------------


def test_effective_sample_sizes_of_fixture_a():
    trajectories = exact_log(A, HORIZON)
    log = Log.from_arrays(
        action=trajectories.action.ravel(), reward=trajectories.reward.ravel(), length=trajectories.length
    )
    report = weight_report(log, trajectories.at(A.log_ratio).ravel())
    np.testing.assert_allclose(
        report.effective_sample_size / log.episodes, [0.7296607708, 0.5347031716, 0.3915988276], atol=5e-11
    )
    np.testing.assert_allclose(report.mean, 1.0, rtol=1e-10)


@pytest.mark.parametrize("max_cells", [1, 50, 1 << 22])
def test_weights_are_carried_past_the_end_of_an_episode(rng, max_cells):
    log = made_log(rng)
    log_ratio = rng.normal(scale=0.4, size=log.rows)
    log_ratio[5] = -np.inf
    steps = log.length.max()
    padded = np.zeros((log.episodes, steps))
    padded[np.arange(steps) < log.length[:, None]] = log_ratio
    weight = np.exp(np.cumsum(padded, axis=1))
    report = weight_report(log, log_ratio, max_cells)
    np.testing.assert_allclose(report.mean, weight.mean(axis=0), rtol=1e-12)
    error = weight.std(axis=0, ddof=1) / np.sqrt(log.episodes)
    np.testing.assert_allclose(report.standard_error, error, rtol=1e-9)
    square = (weight**2).sum(axis=0)
    np.testing.assert_allclose(report.effective_sample_size, weight.sum(axis=0) ** 2 / square, rtol=1e-12)
    np.testing.assert_allclose(report.largest_share, (weight / weight.sum(axis=0)).max(axis=0), rtol=1e-12)
    assert report.heaviest == weight[:, -1].argmax()


def test_weights_beyond_all_numbers_are_finite_where_they_can_be(rng):
    log = made_log(rng, lengths=np.array([2000, 1500, 2000]))
    log_ratio = np.repeat([0.5, -0.5, 0.4999], log.length)
    report = weight_report(log, log_ratio)
    # The weights of e^1000, e^−750 and e^999.8 compare as 1, 0 and e^−0.2.
    small = np.exp(-0.2)
    assert report.effective_sample_size[-1] == pytest.approx((1 + small) ** 2 / (1 + small**2), rel=1e-9)
    assert report.largest_share[-1] == pytest.approx(1 / (1 + small), rel=1e-9)
    assert report.heaviest == 0
    same = weight_report(log, np.zeros(log.rows))
    np.testing.assert_array_equal(same.mean, 1.0)
    np.testing.assert_array_equal(same.standard_error, 0.0)
    np.testing.assert_array_equal(same.effective_sample_size, 3.0)


def test_no_weight_at_all(rng):
    log = made_log(rng)
    impossible = np.full(log.rows, -np.inf)
    report = weight_report(log, impossible)
    assert not report.mean.any() and not report.effective_sample_size.any() and not report.largest_share.any()
    assert not report.standard_error.any()


# -- findings about the log --------------------------------------------------------------------------------


def test_a_sound_log_has_no_findings():
    for seed in range(20):
        assert log_findings(made_log(np.random.default_rng(seed)), 0.99) == []


def test_one_episode_has_a_value_and_no_interval(rng):
    log = made_log(rng, lengths=np.array([5]))
    (finding,) = log_findings(log, 0.99)
    assert (finding.code, finding.severity) == ("one_episode", "refusal")
    assert finding.text == (
        "the log holds one episode: there is a value but neither a standard error nor an interval"
    )
    assert refused_by([finding], Basis.INTERVAL) == refused_by([finding], Basis.LOWER_BOUND) == [finding]
    assert refused_by([finding], *NUMBERS) == []
    # Neither do its weights give rise to what only several episodes can show.
    assert codes(candidate_findings(log, always([0.3, 0.3, 0.4], log))) == {}


def test_without_propensities_only_models_remain(rng):
    log = made_log(rng, propensity=None)
    (finding,) = log_findings(log, 0.99)
    assert (finding.code, finding.severity) == ("missing_propensity", "refusal")
    assert {basis for basis in NUMBERS if not finding.refuses(basis)} == {Basis.MODEL}
    assert codes(candidate_findings(log, always([0.3, 0.3, 0.4], log))) == {}


def test_cut_episodes_are_told(rng):
    cut = np.arange(400) < 100
    log = made_log(rng, truncated=cut)
    (finding,) = log_findings(log, 1.0)
    assert finding == Finding(
        "truncated",
        "warning",
        "100 of 400 episodes were cut: importance weighting estimates the return up to the cut, not what would have "
        "followed; what followed 100 of them was not recorded, so that value fits leave their last step out",
    )
    rows = log.rows
    recorded = made_log(
        np.random.default_rng(0),
        truncated=cut,
        observation=np.zeros(rows, int),
        final_observation=np.zeros(100, int),
    )
    assert log_findings(recorded, 1.0)[0].text.endswith("not what would have followed")
    everywhere = made_log(rng, truncated=np.ones(400, bool))
    assert codes(log_findings(everywhere, 1.0)) == {"truncated": "warning", "no_end": "warning"}
    assert codes(log_findings(everywhere, 0.99)) == {"truncated": "warning"}


def test_failed_episodes_are_told(rng):
    log = made_log(rng)
    object.__setattr__(log, "left_out", 12)
    (finding,) = log_findings(log, 0.9)
    assert finding.code == "failed_episodes"
    assert finding.text.startswith("12 of 412 episodes were left out because their world failed")


def test_propensities_that_do_not_sum_to_one(rng):
    log = made_log(rng, shrink=0.8)
    mean, error = propensity_checks(log)
    np.testing.assert_allclose(mean, 1.25, atol=5 * error.max())
    (finding,) = log_findings(log, 0.99)
    assert (finding.code, finding.severity) == ("propensities_too_small", "warning")
    assert finding.text.startswith("the propensities do not sum to one over all actions: where action ")
    assert refused_by([finding], Basis.LOWER_BOUND) and not refused_by([finding], *NUMBERS)


def test_sound_propensities_average_to_one_where_an_action_could_be_chosen(rng):
    sets = np.ones((2000, 3), bool)
    sets[:1000, 2] = False
    action = np.where(np.arange(2000) < 1000, rng.choice(2, 2000), rng.choice(3, 2000, p=[0.25, 0.25, 0.5]))
    propensity = np.where(np.arange(2000) < 1000, 0.5, np.array([0.25, 0.25, 0.5])[action])
    log = Log.from_arrays(
        action=action,
        reward=np.zeros(2000),
        length=np.full(1000, 2),
        propensity=propensity,
        action_set=sets,
    )
    mean, error = propensity_checks(log)
    assert (np.abs(mean - 1) < 4 * error).all()
    # A policy that never takes an action it could take lacks support, its propensities are right all the same.
    sure = made_log(rng, behaviour=np.array([1.0, 0.0]))
    np.testing.assert_array_equal(propensity_checks(sure)[0], [1.0, 0.0])
    assert log_findings(sure, 0.9) == []


def test_drift_is_found_where_it_is():
    rng = np.random.default_rng(0)
    log = made_log(rng)
    assert drift_tests(log).keys() == {"reward", "behaviour"}
    rising = made_log(rng, lengths=np.full(400, 5), reward=rng.normal(size=2000) + np.linspace(0, 1, 2000))
    assert codes(log_findings(rising, 0.9)) == {"reward_drift": "warning"}
    late = rng.random(2000) < np.linspace(0, 1, 2000)
    action = np.where(late, rng.choice(2, 2000, p=[0.8, 0.2]), rng.choice(2, 2000))
    propensity = np.where(late, np.array([0.8, 0.2])[action], 0.5)
    changing = made_log(rng, lengths=np.full(400, 5), action=action, propensity=propensity, actions=2)
    assert codes(log_findings(changing, 0.9)) == {"behaviour_drift": "warning"}
    continuous = made_log(rng, lengths=np.full(400, 5), action=rng.normal(size=(2000, 1)), actions=None)
    assert drift_tests(continuous)["behaviour"] > DRIFT_P
    assert drift_tests(made_log(rng, episodes=9)) == {}


def test_time_is_what_the_log_says_it_is(rng):
    reward = rng.normal(size=400) + np.linspace(0, 3, 400)
    order = rng.permutation(400)
    ones = np.ones(400, int)
    timed = made_log(rng, lengths=ones, reward=reward[order], created_at=order.astype(float))
    assert drift_tests(timed)["reward"] < 1e-10
    assert drift_tests(made_log(rng, lengths=ones, reward=reward[order]))["reward"] > DRIFT_P
    # Times that are all the same tell nothing, the order does.
    at_once = made_log(rng, lengths=ones, reward=reward, created_at=np.full(400, 5.0))
    assert drift_tests(at_once)["reward"] < 1e-10


def test_the_drift_test_holds_its_level():
    rng = np.random.default_rng(1)
    p_values = np.array([list(drift_tests(made_log(rng, episodes=60)).values()) for _ in range(400)])
    rejected = (p_values < 0.05).mean(axis=0)
    assert (rejected < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)).all()
    assert rejected[0] > 0.05 - 3 * np.sqrt(0.05 * 0.95 / 400)


# -- findings about a candidate ----------------------------------------------------------------------------


def test_a_near_candidate_has_no_findings():
    for seed in range(20):
        log = made_log(np.random.default_rng(seed), lengths=np.full(400, 3))
        assert candidate_findings(log, always([0.25, 0.3, 0.45], log)) == []


def test_the_policy_of_the_log_is_recognised(rng):
    log = made_log(rng)
    # In single precision, as policies of the library write it down.
    rounded = always(np.array([0.2, 0.3, 0.5], np.float32).astype(float) / np.float32(1.0), log)
    for candidate in (behaviour_candidate(log), rounded):
        (finding,) = candidate_findings(log, candidate)
        assert (finding.code, finding.severity) == ("same_policy", "warning")
        assert finding.text == (
            "the candidate is the policy of the log: its estimate is the mean return of the log"
        )
    assert not any(finding.refuses(basis) for basis in Basis)


def test_few_effective_episodes_and_one_that_dominates(rng):
    log = made_log(rng, lengths=np.full(400, 40))
    found = candidate_findings(log, always([0.8, 0.1, 0.1], log))
    assert codes(found) == {
        "few_effective_episodes": "warning",
        "one_episode_dominates": "warning",
        "mean_weight": "warning",
    }
    assert {basis for basis in Basis if refused_by(found, basis)} == {Basis.LOWER_BOUND}
    texts = {finding.code: finding.text for finding in found}
    report = weight_report(log, always([0.8, 0.1, 0.1], log).log_ratio(log))
    assert (
        f"the weights of 400 episodes are worth {report.effective_sample_size[-1]:.3g} unweighted ones"
        in (texts["few_effective_episodes"])
    )
    assert texts["one_episode_dominates"].startswith(f"episode {log.episode_id[report.heaviest]} carries ")
    assert candidate_findings(log, always([0.8, 0.1, 0.1], log), report) == found


def test_wrong_propensities_move_the_mean_ratio(rng):
    log = made_log(rng, shrink=0.8)
    found = {of.code: of for of in candidate_findings(log, always([0.25, 0.3, 0.45], log))}
    assert "mean_ratio" in found
    assert "propensities are too small" in found["mean_ratio"].text
    assert not found["mean_ratio"].refuses(Basis.WEIGHTS)


def test_standard_errors_are_those_of_whole_episodes(rng):
    # Ratios that agree within an episode tell as little as one of them would.
    lengths = np.array([1, 4, 2, 5])
    log = made_log(rng, lengths=lengths)
    ratio = np.array([1.0, 2.0, 0.5, 1.5])
    check = ratio_check(log, np.log(np.repeat(ratio, lengths)))
    mean = (ratio @ lengths) / 12
    assert check.mean == pytest.approx(mean, rel=1e-14)
    # Delta method for Σ w / Σ steps: residuals (w_i − mean)·steps_i over the mean number of steps, 3.
    residual = (ratio - mean) * lengths / 3
    assert check.standard_error == pytest.approx(np.sqrt((residual**2).sum() / 3 / 4), rel=1e-12)
    assert ratio_check(log, np.zeros(12)) == (1.0, 0.0)


def test_what_the_log_s_policy_never_does_shows_in_the_mean_ratio(rng):
    # Where x = 1 the policy never takes action 1 though it takes it elsewhere; nothing but the ratios can tell.
    x = rng.integers(0, 2, 4000)
    action = np.where(x == 1, 0, rng.integers(0, 2, 4000))
    log = made_log(
        rng,
        lengths=np.full(2000, 2),
        action=action,
        propensity=np.where(x == 1, 1.0, 0.5),
        reward=np.zeros(4000),
        actions=2,
    )
    assert log_findings(log, 0.9) == []
    candidate = always([0.5, 0.5], log)
    check = ratio_check(log, candidate.log_ratio(log))
    assert check.mean == pytest.approx(0.75, abs=5 * check.standard_error)
    found = {of.code: of for of in candidate_findings(log, candidate)}
    assert "the candidate does things that the log's policy never does" in found["mean_ratio"].text


def test_actions_that_the_log_never_chose(rng):
    short = made_log(rng, lengths=np.full(400, 3)).with_actions(5)
    found = candidate_findings(short, always([0.2, 0.3, 0.45, 0.05, 0.0], short))
    (finding,) = [of for of in found if of.code == "outside_support"]
    assert finding.severity == "warning"
    assert finding.text == (
        "the candidate gives 5.00% of its probability to actions that the log never chose (3): about 14% of its "
        "episodes would leave what the log covers, and importance weights take their return for 0"
    )
    assert refused_by([finding], *NUMBERS) == [] and refused_by([finding], Basis.LOWER_BOUND)

    long = made_log(rng, lengths=np.full(400, 30)).with_actions(5)
    (finding,) = [
        of
        for of in candidate_findings(long, always([0.2, 0.3, 0.45, 0.05, 0.0], long))
        if of.code == "outside_support"
    ]
    assert finding.severity == "refusal"
    assert {basis for basis in NUMBERS if finding.refuses(basis)} == {Basis.WEIGHTS, Basis.MARGINAL}


def test_actions_that_the_log_s_policy_gave_no_chance(rng):
    chances = np.tile([0.5, 0.5, 0.0], (2000, 1))
    chances[:200] = [0.25, 0.25, 0.5]
    action = np.where(np.arange(2000) < 200, 2, rng.integers(0, 2, 2000))
    log = made_log(
        rng,
        lengths=np.ones(2000, int),
        action=action,
        propensity=None,
        behaviour_probs=chances,
        reward=np.zeros(2000),
    )
    (finding,) = [
        of for of in candidate_findings(log, always([0.4, 0.4, 0.2], log)) if of.code == "outside_support"
    ]
    assert finding.text.startswith(
        "the candidate gives 18.00% of its probability to actions that the log's policy gave no chance"
    )


def test_actions_that_could_not_be_chosen_refuse_everything(rng):
    log = made_log(rng)
    sets = np.ones((log.rows, 3), bool)
    row = int(np.flatnonzero(log.action != 1)[10])
    sets[row, 1] = False
    log = made_log(np.random.default_rng(0), action_set=sets)
    found = candidate_findings(log, always([0.25, 0.3, 0.45], log))
    (finding,) = [of for of in found if of.code == "outside_action_set"]
    assert finding.severity == "refusal"
    assert (
        f"to actions that could not be chosen, first in {log.place(row)}: it cannot be carried out"
        in finding.text
    )
    assert all(finding.refuses(basis) for basis in Basis)


def test_a_candidate_without_any_weight(rng):
    log = made_log(rng, lengths=np.full(50, 40))
    found = candidate_findings(log, always([1.0, 0.0, 0.0], log))
    assert codes(found)["no_weight"] == "refusal"
    assert refused_by(found, Basis.WEIGHTS)
    assert not refused_by(found, Basis.MODEL)


def test_deterministic_candidates_are_left_to_kernels(rng):
    log = made_log(rng, lengths=np.full(10, 2), action=rng.normal(size=(20, 1)), actions=None)
    candidate = candidate_of((np.zeros((20, 1)), np.zeros((20, 1))), log, "still")
    (finding,) = candidate_findings(log, candidate)
    assert (finding.code, finding.severity) == ("deterministic", "refusal")
    assert {basis for basis in NUMBERS if not finding.refuses(basis)} == {Basis.KERNEL, Basis.MODEL}


def test_findings_are_sentences_without_a_full_stop(rng):
    log = made_log(rng, lengths=np.full(400, 40), shrink=0.8, truncated=np.ones(400, bool)).with_actions(4)
    found = [*log_findings(log, 1.0), *candidate_findings(log, always([0.7, 0.1, 0.1, 0.1], log))]
    assert len(found) >= 6
    assert all("\n" not in of.text and of.text[-1] not in ".?!" for of in found)
    assert len({of.code for of in found}) == len(found)
    assert {of.code for of in found if of.severity == "refusal"} <= REFUSES.keys()
