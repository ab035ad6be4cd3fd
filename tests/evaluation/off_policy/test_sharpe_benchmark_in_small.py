"""The SharpeRatio@k benchmark of results/sharpe at a hundredth of its size: what its tables rest on must hold."""

import importlib
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

STUDIES = Path(__file__).parents[3] / "results" / "sharpe"
SEEDS, EPISODES = 2, 1_000


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(STUDIES))
    yield importlib.import_module
    sys.path.remove(str(STUDIES))


@pytest.fixture(scope="module")
def benchmark(study):
    """The smallest Garnet world, two logs of it, and their summary."""
    r7 = study("r7_sharpe_ratio")
    task = study("tasks").TASKS["Garnet 16"]()
    truths = {"Garnet 16": r7.truth(task)}
    trials = [r7.trial(task, seed, EPISODES) for seed in range(SEEDS)]
    found = {r7.label("Garnet 16", "full", seed): of for seed, of in enumerate(trials)}
    return r7, task, trials, truths["Garnet 16"], r7.summary(found, truths, SEEDS, "full")


def test_estimates_come_near_the_truth_and_scores_follow_from_them(benchmark):
    r7, task, trials, truth, of = benchmark
    value = np.array(list(truth["values"].values()))
    entry = of["tasks"]["Garnet 16"]
    # Every one says more than the log's own mean would; no model of groups of states is right, weights need none.
    nmse = dict(zip(r7.ESTIMATORS, entry["metrics"]["nmse"]["mean"], strict=True))
    assert max(nmse.values()) < entry["nmse_of_behaviour"]
    assert nmse["wdr"] < nmse["dm"]
    assert trials[0]["on_policy"] == pytest.approx(truth["behaviour"], abs=0.5)
    # All ten together are the same portfolio, whoever ranked them.
    sharpe = np.array(entry["curves"]["sharpe_of_k"]["mean"])
    gain = value.max() - truth["behaviour"]
    np.testing.assert_allclose(sharpe[:, -1], gain / value.std(ddof=1))
    assert entry["chance"]["sharpe_of_k"][-1] == pytest.approx(sharpe[0, -1])
    by_hand = np.mean(
        [
            r7.scores(np.array(each["estimates"]["wdr"]), value, truth["behaviour"])["sharpe"]
            for each in trials
        ]
    )
    assert entry["metrics"]["sharpe"]["mean"][r7.ESTIMATORS.index("wdr")] == pytest.approx(by_hand)
    assert entry["refused"] == 0
    assert len(task.policies) == 10


def test_who_knows_the_truth_leaves_nothing_to_be_had_by_mistakes(benchmark):
    r7, _, _, truth, of = benchmark
    value = np.array(list(truth["values"].values()))
    perfect = r7.scores(value, value, truth["behaviour"])
    assert (perfect["nmse"], perfect["regret"]) == (0, 0)
    assert perfect["rank_correlation"] == pytest.approx(1)
    assert perfect["sharpe"] > of["tasks"]["Garnet 16"]["chance"]["sharpe"]
    # On the same log nobody can do better than the best.
    assert all(each["mean"] >= 0 for each in of["forgone"].values())


def test_a_random_ranking_scores_the_mean_over_all_rankings(study):
    r7 = study("r7_sharpe_ratio")
    value, baseline = np.array([1.0, 2.0, 4.0, 3.5, 0.0]), 1.5
    expected = np.mean(
        [
            r7.portfolio.portfolios(value, np.array(order), baseline).sharpe[1:]
            for order in permutations(range(5))
        ],
        axis=0,
    )
    np.testing.assert_allclose(r7.by_chance(value, baseline)["sharpe_of_k"][1:], expected)


def test_the_best_estimator_changes_with_k_only_where_intervals_are_apart_at_both(study):
    r7 = study("r7_sharpe_ratio")
    mean = np.ones((5, 10))
    mean[0, 1:4], mean[1, 5:8] = 3.0, 2.0
    narrow = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    found = r7.changes_with_k(narrow)
    assert {tuple(each["best"]) for each in found} == {("dm", "wpdis")}
    assert {tuple(each["k"]) for each in found} == {(k, m) for k in (2, 3, 4) for m in (6, 7, 8)}
    assert r7.changes_with_k({"mean": mean, "low": mean - 0.6, "high": mean + 0.6}) == []
    equal_but_for_rounding = mean * 0 + 1e-15 * np.arange(5)[:, None] * np.arange(10)
    assert r7.changes_with_k(dict.fromkeys(narrow, equal_but_for_rounding)) == []


def test_batched_simulators_step_like_gymnasium(study):
    tasks = study("tasks")
    for dynamics in (tasks.CART_POLE, tasks.MOUNTAIN_CAR, tasks.ACROBOT):
        weight = np.random.default_rng(0).standard_normal((1 + len(dynamics.scale), dynamics.actions))
        policy = tasks.LinearPolicy(weight, dynamics.scale, 0.2)
        assert tasks.deviation(dynamics, policy, episodes=2, horizon=100) < 1e-6 * max(
            1, dynamics.scale.max()
        )
