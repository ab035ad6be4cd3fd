"""From a log and candidates to a report: what it says, what it refuses, and what it must not depend on."""

import json
import math

import numpy as np
import pytest
import torch
from ope_fixtures import A

import peira
from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.command import as_json
from peira.evaluation.off_policy.estimators import ESTIMATORS, fitting
from peira.evaluation.off_policy.evaluate import evaluate
from peira.evaluation.off_policy.guide import ESTIMATORS as EXPLAINED
from peira.evaluation.off_policy.log import Log
from peira.evaluation.off_policy.verdict import MODEL_ALONE, verdict

STEPS = 3
LEARNS_NOTHING = ("tis", "wis", "pdis", "wpdis")


def episodes_of(policy, number, seed=0, steps=STEPS):
    """State, action and reward [episodes, steps] of fixture A."""
    rng = np.random.default_rng(seed)
    state = rng.choice(2, size=number, p=A.mu)
    columns = []
    for _ in range(steps):
        action = (rng.random(number) > policy[state, 0]).astype(int)
        columns.append((state, action, A.R[state, action]))
        state = (rng.random(number) > A.P[state, action, 0]).astype(int)
    return (np.stack(of, 1) for of in zip(*columns, strict=True))


def a_log(number=300, *, vectors=False, order=None, **also):
    state, action, reward = episodes_of(A.pi_b, number)
    order = np.arange(number) if order is None else order
    state, action, reward = state[order].ravel(), action[order].ravel(), reward[order].ravel()
    columns = {
        "action": action,
        "reward": reward,
        "length": np.full(number, STEPS),
        "propensity": A.pi_b[state, action],
        "behaviour_probs": A.pi_b[state],
        "observation": np.eye(2)[state] if vectors else state,
        "episode_id": [f"e{place:04d}" for place in order],
        # The order of the log tells the time where nothing else does.
        "created_at": order.astype(float),
    }
    return Log.from_arrays(**{**columns, **also})


def policy(table, *, vectors=False):
    return lambda observation: table[observation.argmax(1) if vectors else observation]


HALF = (A.pi + A.pi_b) / 2
CANDIDATES = {"new": policy(A.pi), "half": policy(HALF)}


def estimates(report, name="new"):
    return report["candidates"][name]["estimates"]


def test_every_estimator_is_explained_and_none_is_explained_twice():
    assert set(ESTIMATORS) <= set(EXPLAINED)


def test_it_says_what_the_estimators_say():
    log = a_log()
    report = evaluate(log, CANDIDATES, gamma=0.9, estimators=LEARNS_NOTHING)
    log_ratio = A.log_ratio[log.observation, log.action]
    block = log.block(log_ratio, np.arange(log.episodes))
    for name in LEARNS_NOTHING:
        terms = getattr(sequential, name)(block, 0.9)
        found = estimates(report)[name]
        assert found["value"] == pytest.approx(terms.value(), abs=1e-12)
        assert found["standard_error"] == pytest.approx(terms.standard_error(), abs=1e-12)
        assert found["interval"][0] < found["value"] < found["interval"][1]
    assert report["log"]["behaviour"]["value"] == pytest.approx(log.returns(0.9).mean(), abs=1e-12)


@pytest.mark.parametrize("vectors", [False, True], ids=["states", "vectors"])
def test_all_estimators_come_near_the_truth(vectors):
    log = a_log(1500, vectors=vectors)
    candidates = {"new": policy(A.pi, vectors=vectors)}
    names = [name for name in fitting(STEPS) if not (vectors and name == "sope")]
    report = evaluate(log, candidates, gamma=0.9, estimators=tuple(names), updates=400)
    for name, found in estimates(report).items():
        assert found["refused"] is None, name
        near = max(5 * found["standard_error"], 0.15 if vectors else 0.08)
        assert found["value"] == pytest.approx(2.54161104, abs=near), name


def test_a_log_of_one_step_has_the_estimators_of_bandits():
    log = a_log(400)
    one = Log.from_arrays(
        action=log.action,
        reward=log.reward,
        length=np.ones(log.rows, int),
        propensity=np.exp(log.log_propensity),
        behaviour_probs=log.behaviour_probs,
        observation=np.eye(2)[log.observation],
    )
    visits = np.bincount(log.observation, minlength=2) / log.rows
    truth = float(visits @ (A.pi * A.R).sum(1))
    report = evaluate(
        one,
        {"new": policy(A.pi, vectors=True)},
        estimators=tuple(fitting(1)),
        embeddings=np.array([[0], [1]]),
    )
    for name, found in estimates(report).items():
        if name == "offcem":  # Every action is a cluster of its own: no difference can be learned within one.
            assert "no context holds two different actions of one cluster" in found["refused"]
            continue
        assert found["value"] == pytest.approx(truth, abs=5 * found["standard_error"] + 0.02), name
    assert estimates(report)["mips"]["value"] == pytest.approx(estimates(report)["ipw"]["value"], abs=1e-12)


def test_a_candidate_that_is_the_policy_of_the_log_is_worth_what_the_log_earned():
    report = evaluate(a_log(), {"same": policy(A.pi_b)}, gamma=0.9)
    mean = report["log"]["behaviour"]["value"]
    assert len(estimates(report, "same")) > 4
    for found in estimates(report, "same").values():
        assert found["value"] == pytest.approx(mean, abs=1e-12)
        assert any("the candidate is the policy of the log" in text for text in found["warnings"])


def test_nothing_depends_on_the_order_of_episodes_nor_on_blocks_nor_on_threads(monkeypatch):
    settings = {"gamma": 0.9, "updates": 20, "values": "network"}
    names = (*LEARNS_NOTHING, "dm", "dr", "wdr", "magic", "wmis", "drl")

    def found(log):
        report = evaluate(log, CANDIDATES, estimators=names, **settings)
        numbers = [[of["value"], of["standard_error"], *of["interval"]] for of in estimates(report).values()]
        return np.array(numbers)

    once = found(a_log(120))
    shuffled = found(a_log(120, order=np.random.default_rng(3).permutation(120)))
    np.testing.assert_allclose(shuffled, once, atol=1e-10, rtol=0)
    pieces = Log.pieces
    monkeypatch.setattr(Log, "pieces", lambda self, max_cells=100: pieces(self, 100))
    assert len(a_log(120).pieces()) > 3
    np.testing.assert_allclose(found(a_log(120)), once, atol=1e-10, rtol=0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        np.testing.assert_allclose(found(a_log(120)), once, atol=1e-10, rtol=0)
    finally:
        torch.set_num_threads(threads)


def test_a_blend_that_is_the_model_says_so_and_the_verdict_names_it():
    """Every weight of a short log is worth little here beside a table that is right."""
    report = evaluate(a_log(60), {"new": policy(A.pi)}, gamma=0.9, estimators=("wdr", "magic"))
    assert any(text.endswith(MODEL_ALONE) for text in estimates(report)["magic"]["warnings"])
    assert "Intervals by magic leave out the error of what was fitted." in verdict(report)


@pytest.mark.parametrize("name", ["switch", "dros"])
def test_where_weights_hardly_count_the_estimate_is_said_to_be_the_models(name):
    """One action in fifty is the candidate's: SLOPE takes a threshold that leaves its rewards out."""
    rng = np.random.default_rng(0)
    probs = np.array([0.98, 0.02])
    state, action = rng.integers(0, 3, 400), (rng.random(400) < probs[1]).astype(int)
    log = Log.from_arrays(
        action=action,
        reward=state + 0.5 * action + rng.normal(0, 0.1 + 6 * action),
        length=np.ones(400, int),
        propensity=probs[action],
        observation=state,
        actions=2,
    )
    candidates = {"rare": np.tile([0.0, 1.0], (400, 1)), "near": np.tile([0.9, 0.1], (400, 1))}
    report = evaluate(log, candidates, gamma=1.0, estimators=(name,), interval="delta")
    warned = {
        of: any(MODEL_ALONE in text for text in entry["estimates"][name]["warnings"])
        for of, entry in report["candidates"].items()
    }
    assert warned == {"rare": True, "near": False}


def test_the_same_seed_says_the_same():
    one, two = (
        evaluate(a_log(100), CANDIDATES, gamma=0.9, estimators=("wpdis", "dr"), seed=1) for _ in range(2)
    )
    assert one["candidates"] == two["candidates"]


def test_without_observations_nothing_is_learned_and_it_is_said_why():
    log = a_log(observation=None)
    probs = A.pi[a_log().observation]
    report = evaluate(log, {"new": probs}, gamma=0.9, estimators=("wpdis", "dm", "dr", "wmis"))
    assert estimates(report)["wpdis"]["value"] is not None
    for name in ("dm", "dr", "wmis"):
        assert estimates(report)[name]["value"] is None
        assert "observation" in estimates(report)[name]["refused"]
    automatic = evaluate(log, {"new": probs}, gamma=0.9)
    assert set(automatic["settings"]["estimators"]) == {"wpdis", "pdis"} == set(automatic["chosen"])


def test_without_propensities_they_are_estimated_and_it_is_said():
    known = evaluate(a_log(1000), CANDIDATES, gamma=0.9, estimators=("wpdis",))
    log = a_log(1000, propensity=None, behaviour_probs=None, vectors=True)
    report = evaluate(log, {"new": policy(A.pi, vectors=True)}, gamma=0.9, estimators=("wpdis",))
    assert report["log"]["propensities"] == "estimated"
    found = estimates(report)["wpdis"]
    assert any("propensities were estimated" in text for text in found["warnings"])
    assert 0 <= report["nuisances"]["propensities"]["expected_calibration_error"] < 0.1
    assert found["value"] == pytest.approx(estimates(known)["wpdis"]["value"], abs=0.1)


def test_without_propensities_and_observations_there_is_no_weight():
    log = a_log(propensity=None, behaviour_probs=None, observation=None)
    report = evaluate(log, {"new": A.pi[a_log().observation]}, estimators=("pdis", "dm"))
    assert "importance weights need propensities" in estimates(report)["pdis"]["refused"]
    assert report["log"]["propensities"] == "absent"


def test_one_episode_has_a_value_and_no_interval():
    report = evaluate(a_log(1), CANDIDATES, gamma=0.9, estimators=("pdis",))
    found = estimates(report)["pdis"]
    assert found["value"] is not None
    assert found["interval"] is None
    assert any("one episode" in finding["text"] for finding in report["log"]["findings"])


def test_a_long_horizon_stays_finite():
    rng = np.random.default_rng(0)
    rows = 20 * 2000
    action = (rng.random(rows) < 0.1).astype(int)
    log = Log.from_arrays(
        action=action,
        reward=rng.random(rows),
        length=np.full(20, 2000),
        propensity=np.where(action == 1, 0.1, 0.9),
    )
    other = np.tile([0.8, 0.2], (rows, 1))
    report = evaluate(log, {"other": other}, estimators=LEARNS_NOTHING, gamma=0.999)
    for found in estimates(report, "other").values():
        assert found["refused"] is not None or math.isfinite(found["value"])
    assert estimates(report, "other")["wpdis"]["value"] is not None


def test_true_values_bring_metrics_and_true_portfolios():
    truth = {"new": 2.54161104, "half": 2.3, "behaviour": 2.07569772}
    report = evaluate(a_log(), CANDIDATES, gamma=0.9, estimators=("wpdis",), truth=truth, k=(1, 2))
    assert report["portfolio_values"] == "true"
    two = report["portfolio"]["wpdis"]["2"]
    assert two["best"] == 2.54161104
    assert two["worst"] == 2.3
    spread = (2.54161104 - 2.3) / math.sqrt(2)
    assert two["std"] == pytest.approx(spread)
    assert two["sharpe"] == pytest.approx((2.54161104 - 2.07569772) / spread)
    assert report["metrics"]["wpdis"]["rank_correlation"] == pytest.approx(1.0)
    assert report["metrics"]["wpdis"]["regret"] == {"1": 0.0, "2": 0.0}
    assert math.isnan(report["portfolio"]["wpdis"]["1"]["sharpe"])
    json.loads(as_json(report))


def test_a_candidate_can_be_the_baseline():
    report = evaluate(a_log(), CANDIDATES, gamma=0.9, estimators=("wpdis",), baseline="half")
    low = estimates(report, "half")["wpdis"]["value"]
    high = estimates(report)["wpdis"]["value"]
    assert report["portfolio"]["wpdis"]["2"]["sharpe_numerator"] == pytest.approx(high - low)


def continuous_log(number=4000):
    rng = np.random.default_rng(0)
    context = rng.standard_normal((number, 1))
    action = 0.5 * context + rng.standard_normal((number, 1))
    reward = -((action - context) ** 2)[:, 0]
    density = np.exp(-0.5 * (action - 0.5 * context)[:, 0] ** 2) / math.sqrt(2 * math.pi)
    log = Log.from_arrays(
        action=action, reward=reward, length=np.ones(number, int), propensity=density, observation=context
    )
    return log, context


def test_continuous_candidates_with_and_without_density():
    log, context = continuous_log()
    candidates = {
        "gaussian": (0.8 * context, np.full_like(context, 0.5)),
        "deterministic": (0.8 * context, np.zeros_like(context)),
    }
    report = evaluate(log, candidates, estimators=("snipw", "dm", "dr"), updates=300)
    # E[(0.2 x)²] = 0.04, and the candidate's own variance.
    for name, value in (("gaussian", -0.04 - 0.25), ("deterministic", -0.04)):
        for estimator, found in estimates(report, name).items():
            assert found["value"] == pytest.approx(value, abs=0.05), (name, estimator)
    spoken = estimates(report, "deterministic")["snipw"]["warnings"]
    assert any("kernel of bandwidth" in text for text in spoken)
    assert not any("kernel" in text for text in estimates(report, "gaussian")["snipw"]["warnings"])


def test_a_kernel_that_reaches_nothing_is_found_out():
    """The candidate acts where the log never did: no weight, which must not pass for a value of 0."""
    log, context = continuous_log(200)
    report = evaluate(log, {"far": (context + 50, np.zeros_like(context))}, estimators=("ipw", "snipw"))
    for found in estimates(report, "far").values():
        assert found["value"] is None
        assert "all weights are 0" in found["refused"]


def test_a_deterministic_candidate_takes_no_ratio_from_the_others():
    rng = np.random.default_rng(0)
    rows = 60 * STEPS
    context = rng.standard_normal((rows, 1))
    action = rng.standard_normal((rows, 1))
    log = Log.from_arrays(
        action=action,
        reward=-(action[:, 0] ** 2),
        length=np.full(60, STEPS),
        propensity=np.exp(-0.5 * action[:, 0] ** 2) / math.sqrt(2 * math.pi),
        observation=context,
    )
    zero = np.zeros_like(context)
    candidates = {"gaussian": (zero, zero + 0.8), "deterministic": (zero, zero)}
    report = evaluate(log, candidates, gamma=0.9, estimators=("wpdis", "wmis"))
    assert estimates(report, "gaussian")["wmis"]["value"] < 0
    assert "no ratio of actions" in estimates(report, "deterministic")["wmis"]["refused"]
    assert estimates(report, "deterministic")["wpdis"]["value"] is not None


def test_values_beyond_a_cut_need_what_followed_it():
    """Two steps of an endless process; with what followed the cut the value is that of the whole future."""
    state, action, reward = episodes_of(A.pi_b, 1500, steps=STEPS + 1)
    known = {"final_observation": np.eye(2)[state[:, STEPS]]}
    found = {}
    for name, final in (("known", known), ("unknown", {})):
        log = Log.from_arrays(
            action=action[:, :STEPS].ravel(),
            reward=reward[:, :STEPS].ravel(),
            length=np.full(1500, STEPS),
            truncated=np.ones(1500, bool),
            propensity=A.pi_b[state, action][:, :STEPS].ravel(),
            observation=np.eye(2)[state[:, :STEPS].ravel()],
            **final,
        )
        report = evaluate(
            log,
            {"new": policy(A.pi, vectors=True)},
            gamma=0.9,
            estimators=("mdr", "wmdr"),
            values="linear",
            endless=True,
            interval="delta",
        )
        found[name] = estimates(report)
    for of in found["known"].values():
        assert of["value"] == pytest.approx(384 / 37, abs=max(0.4, 4 * of["standard_error"]))
    for of in found["unknown"].values():
        assert "what followed 1500 of 1500 cut episodes was not recorded" in of["refused"]


def test_episodes_that_all_last_as_long_end_by_the_clock():
    """Marked as terminated or not: values of a process that ends at random would be too low by a tenth here."""
    report = evaluate(a_log(2000), CANDIDATES, gamma=0.9, estimators=("dm",))
    assert report["settings"]["horizon"] == STEPS
    assert estimates(report)["dm"]["value"] == pytest.approx(2.54161104, abs=0.06)
    endless = evaluate(a_log(2000), CANDIDATES, gamma=0.9, estimators=("dm",), endless=True)
    assert estimates(endless)["dm"]["value"] < 2.45


def test_the_library_has_it_at_the_door():
    assert peira.evaluate is evaluate
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        _ = peira.evaluat


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimators": ("pdiss",)}, r"estimators: there is no 'pdiss'; there are dm, tis"),
        (
            {"estimators": ("ipw",)},
            r"estimators: 'ipw' is not for 3-step episodes; for this log there are dm, tis",
        ),
        ({"gamma": 1.5}, r"gamma: expected a number above 0 and below or at 1, got 1.5"),
        ({"confidence": 1.0}, r"confidence: expected a number above 0 and below or at 1, got 1"),
        ({"k": (3,)}, r"k: expected at most 2 \(the number of candidates\), got 3"),
        ({"baseline": "old"}, r"baseline: there is no candidate 'old'; there are behaviour, new, half"),
        ({"truth": {"new": 1.0}}, r"truth: expected the true value of candidate half, got none"),
        ({"folds": 0}, r"folds: expected at least 1, got 0"),
        ({"endless": True, "horizon": 3}, r"endless: a horizon was given as well"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        evaluate(a_log(20), CANDIDATES, **{"estimators": ("wpdis",), **settings})


def test_no_candidate():
    with pytest.raises(ValueError, match="candidates: expected at least one, got none"):
        evaluate(a_log(20), {})
