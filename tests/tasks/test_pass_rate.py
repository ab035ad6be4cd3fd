"""Tasks are chosen by how often the policy solved them; attempts lost to the world say nothing."""

import math

import pytest

from peira.experience.dialogue import TextEpisode
from peira.tasks.pass_rate import PassCounts


def tries(task, solved, failed, lost=0):
    scores = [1.0] * solved + [0.0] * failed
    done = [TextEpisode("", task, "", score=score, ending="finished") for score in scores]
    return done + [TextEpisode("", task, "", ending="env_error", error="gone") for _ in range(lost)]


COUNTS = PassCounts.of([*tries("never", 0, 16), *tries("rarely", 1, 15), *tries("always", 16, 0, lost=3)])


def test_counts():
    assert COUNTS.attempts == {"never": 16, "rarely": 16, "always": 16}
    assert COUNTS.successes == {"never": 0, "rarely": 1, "always": 16}


def test_selection():
    assert COUNTS.selected() == ["rarely", "always"]
    assert COUNTS.selected(at_most=15) == ["rarely"]
    assert COUNTS.selected(at_least=2) == ["always"]


def test_pass_at_k_is_unbiased():
    """Against the mean over all ways to draw k of the n attempts."""
    from itertools import combinations

    counts = PassCounts.of(tries("t", 3, 5))
    outcomes = [True] * 3 + [False] * 5
    for k in (1, 2, 4, 8):
        draws = list(combinations(outcomes, k))
        assert counts.pass_at(k)["t"] == pytest.approx(sum(map(any, draws)) / len(draws))
    assert counts.pass_at(9) == {}
    assert math.isclose(COUNTS.pass_at(16)["rarely"], 1.0)


def test_state():
    other = PassCounts({}, {})
    other.load_state_dict(COUNTS.state_dict())
    assert other == COUNTS
