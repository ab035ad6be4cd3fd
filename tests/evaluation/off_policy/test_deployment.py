"""The gate lets nobody pass on a number that does not carry it, and says why of everyone."""

import numpy as np
import pytest
from ope_fixtures import A
from test_evaluate import HALF, a_log, policy

import peira.evaluation
from peira.evaluation.off_policy.deployment import gate
from peira.evaluation.off_policy.log import Log

WORSE = A.pi[:, ::-1]
CANDIDATES = {"half": policy(HALF), "worse": policy(WORSE), "new": policy(A.pi)}
SETTINGS = {"gamma": 0.9, "estimators": ("wpdis", "wdr")}


def test_better_candidates_pass_best_first_and_worse_ones_do_not():
    decision = gate(CANDIDATES, a_log(1000), 2, **SETTINGS)
    assert decision.admitted == ["new", "half"]
    assert list(decision.reasons) == list(CANDIDATES)
    assert decision.reasons["new"].startswith("admitted: worth at least")
    assert decision.reasons["worse"].startswith("not admitted: worth at least")
    assert decision.limit == pytest.approx(decision.report["log"]["behaviour"]["value"])


def test_no_more_than_k_pass():
    decision = gate(CANDIDATES, a_log(1000), 1, **SETTINGS)
    assert decision.admitted == ["new"]
    assert decision.reasons["half"].startswith("not among the first 1: worth at least")


def test_a_tolerated_loss_lowers_the_limit_and_a_limit_of_ones_own_replaces_it():
    log = a_log(1000)
    own = log.returns(0.9).mean()
    tolerant = gate(CANDIDATES, log, 3, tolerated_loss=0.5, **SETTINGS)
    assert tolerant.limit == pytest.approx(own / 2)
    assert set(tolerant.admitted) == set(CANDIDATES)
    assert gate(CANDIDATES, log, 3, limit=10.0, **SETTINGS).admitted == []


def test_more_confidence_admits_less():
    log = a_log(60)
    few = gate({"half": policy(HALF)}, log, 1, confidence=0.6, **SETTINGS)
    sure = gate({"half": policy(HALF)}, log, 1, confidence=0.999, **SETTINGS)
    low = [of.report["candidates"]["half"]["estimates"]["wdr"]["interval"][0] for of in (few, sure)]
    assert low[1] < low[0]
    assert sure.admitted == []


def test_a_tail_that_is_too_bad_stays_out():
    log = a_log(1000)
    free = gate(CANDIDATES, log, 3, **SETTINGS)
    worst = free.report["candidates"]["new"]["distribution"]["cvar"]["0.1"]
    held = gate(CANDIDATES, log, 3, tail=(0.1, worst + 0.01), **SETTINGS)
    assert "new" in free.admitted
    assert "new" not in held.admitted
    assert "the worst 10% of its episodes earn" in held.reasons["new"]
    with pytest.raises(ValueError, match=r"tail: expected one of 0.05, 0.1, 0.25, got 0.2"):
        gate(CANDIDATES, log, 3, tail=(0.2, 0.0), **SETTINGS)


def test_weights_that_one_episode_carries_admit_nobody():
    """The log's policy avoids what pays; a single episode of 200 did it, and the candidate always does."""
    rng = np.random.default_rng(0)
    length = 8
    action = (rng.random((200, length)) < 0.05).astype(int)
    action[0] = 1
    log = Log.from_arrays(
        action=action.ravel(),
        reward=action.ravel().astype(float),
        length=np.full(200, length),
        propensity=np.where(action == 1, 0.05, 0.95).ravel(),
    )
    bold = np.tile([0.1, 0.9], (log.rows, 1))
    decision = gate({"bold": bold}, log, 1, estimators=("wpdis",))
    assert decision.report["candidates"]["bold"]["estimates"]["wpdis"]["value"] > decision.limit
    assert decision.admitted == []
    assert "effective sample size below 1%" in decision.reasons["bold"]


def test_what_was_refused_does_not_pass():
    log = a_log(300, observation=None)
    decision = gate({"new": A.pi[a_log(300).observation]}, log, 1, gamma=0.9, estimators=("dm",))
    assert decision.estimator is None
    assert decision.reasons["new"].startswith("not admitted: observation: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected at least 1, got 0"),
        ({"k": 1, "confidence": 0.5}, "confidence: expected a number between 0.5 and 1, got 0.5"),
    ],
)
def test_bad_limits(options, message):
    with pytest.raises(ValueError, match=message):
        gate(CANDIDATES, a_log(20), **options)


def test_the_library_has_it_at_the_door():
    assert peira.evaluation.gate is gate
