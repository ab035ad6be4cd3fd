"""Two actions, logged with (0.8, 0.2), judged for the policy that always takes the second, which pays 1 half the time.

``adyen.md`` 8, test 5. The ten rows are the whole population: moments over them are exact. Importance weighting suffers
from rewards that are far from 0, self-normalised and doubly robust estimates do not.
"""

import numpy as np
import pytest

from peira.evaluation.off_policy import bandit

ACTION = np.array([0] * 8 + [1, 1])
REWARD = np.array([0.0] * 8 + [0.0, 1.0])
PROPENSITY = np.where(ACTION == 0, 0.8, 0.2)
RATIO = (ACTION == 1) / PROPENSITY


def variance(terms) -> float:
    return float(np.mean(terms.influence() ** 2))


def estimates(shift):
    reward = REWARD + shift
    exact_logged = np.where(ACTION == 1, 0.5, 0.0) + shift
    exact_target = np.full(10, 0.5 + shift)
    return {
        "ips": bandit.ipw(RATIO, reward),
        "snips": bandit.snipw(RATIO, reward),
        "dr": bandit.dr(RATIO, reward, exact_logged, exact_target),
    }


def test_variances_are_those_of_the_closed_form():
    found = estimates(0.0)
    assert all(terms.value() == pytest.approx(0.5, abs=1e-12) for terms in found.values())
    assert variance(found["ips"]) == pytest.approx(0.2 * 25 * 0.5 - 0.25, abs=1e-12)
    assert variance(found["dr"]) == pytest.approx(0.2 * 25 * 0.25, abs=1e-12)
    on_policy = np.array([0.0, 1.0])
    assert on_policy.var() == 0.25


def test_adding_one_to_every_reward_hurts_importance_weighting_alone():
    before, after = estimates(0.0), estimates(1.0)
    assert all(terms.value() == pytest.approx(1.5, abs=1e-12) for terms in after.values())
    assert variance(after["ips"]) == pytest.approx(0.2 * 25 * 2.5 - 2.25, abs=1e-12)
    for name in ("snips", "dr"):
        assert variance(after[name]) == pytest.approx(variance(before[name]), abs=1e-12)
