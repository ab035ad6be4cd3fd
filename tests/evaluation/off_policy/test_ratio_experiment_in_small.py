"""The experiment on ratios of visits (results/sharpe/r6_ratios.py) at a hundredth of its size."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.neural_q import FqeConfig

STUDIES = Path(__file__).parents[3] / "results" / "sharpe"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(STUDIES))
    yield importlib.import_module
    sys.path.remove(str(STUDIES))


@pytest.fixture(scope="module")
def r6(study):
    return study("r6_ratios")


def test_ratios_in_tables_are_exact_and_the_wrong_side_is_not(r6):
    small = r6.random_world(np.random.default_rng(0), states=12, actions=3, successors=3)
    for world, ridge in ((r6.four_rooms(), 1e-30), (small, 0.0)):
        found = r6.of_table(world, ridge=ridge)
        methods = found["methods"]
        for name in (*r6.FAMILIES, r6.normal_equations(0.0)):
            assert methods[name]["difference"] < 1e-9, name
            assert methods[name]["dual"] == pytest.approx(found["value"], abs=1e-9), name
        (wrong,) = r6.WRONG_SIDE
        assert methods[wrong]["primal"] == pytest.approx(found["value"], abs=1e-7)
        assert abs(methods[wrong]["dual"] - found["value"]) > 10 * abs(found["value"])
        assert abs(methods["DualDICE"]["primal"] - found["value"]) > abs(found["value"])


def test_rooms_have_walls_doors_and_a_goal_that_ends_the_episode(r6):
    world = r6.four_rooms(slip=0.0)
    assert len(world.first) == 103
    leaves = 1 - world.move.sum(-1)
    # The goal lies in a corner: two cells lead to it, by one move each.
    np.testing.assert_array_equal(leaves, world.reward)
    assert sorted(leaves.sum(1)[leaves.any(1)]) == [1, 1]
    assert (world.first > 0).sum() == 25
    # What leads from one room to the next are four doors, and every cell can be reached.
    reached = np.linalg.matrix_power(np.eye(103) + world.move.mean(1), 60)
    assert (reached > 0).all()


def test_logs_of_cart_pole_are_those_of_the_distribution_study(study, r6):
    r9 = study("r9_distribution")
    fifty = r6.Study(0.6, {"same": 0.6, "other": 0.8}, episodes=50)
    transitions, probs, blocks = r6.cart_pole_log(fifty, np.random.default_rng(3))
    length, log_weight = r9.cart_pole(50, 0.6, [0.6, 0.8], np.random.default_rng(3))
    for block, weight in zip(blocks, log_weight, strict=True):
        np.testing.assert_array_equal(block.length, length)
        np.testing.assert_allclose(block.log_ratio.sum(1), weight, atol=1e-4)
    np.testing.assert_allclose(probs.sum(-1), 1.0)
    np.testing.assert_array_equal(np.bincount(transitions.point_fold), np.bincount(np.arange(50) % 5, length))
    assert transitions.terminated.sum() == 50
    returns = sequential.returns(blocks[0], r6.GAMMA)
    np.testing.assert_allclose(returns, (1 - 0.99**length) / 0.01)


def test_ratios_on_cart_pole_come_nearer_than_the_log(r6):
    study = replace(r6.STUDIES["seed"], episodes=100)
    found = r6.of_log(study, 0, landmarks=25, config=FqeConfig(hidden=(16, 16), updates=200))
    truth = 40.46, 59.85  # of 300 000 episodes
    estimate = {name: np.array(of) for name, of in found["estimate"].items()}
    error = {name: np.abs(of - truth) for name, of in estimate.items()}
    for name in ("neural dice: dual", "mwl: dual", "mswl: dual", "mql"):
        assert (error[name] < 0.5 * error["mean of the log"]).all(), name
    summary = r6.summary(study, [found, found], list(truth))
    of = summary[r6.FAR]["estimators"]["wpdis"]
    assert of["rmse"] == pytest.approx(error["wpdis"][1])
    assert of["to_wpdis"]["difference"] == 0
