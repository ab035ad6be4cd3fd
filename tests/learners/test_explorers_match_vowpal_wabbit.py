"""The same probabilities as Vowpal Wabbit for the same scores, to the precision of its float32.

Its model is made to predict given costs: all weights start at 1, there is no constant, and an action's one feature has
the cost for its value. A pair of features v and −v adds 2v² to what the model is sensitive to, and nothing to the cost.
The counter t rises by examples of other features. The scores here are 1 − cost.
"""

import contextlib

import numpy as np
import pytest

from peira.learners.explorers import (
    epsilon_greedy,
    mix_floor,
    project_floor,
    regcb,
    softmax,
    squarecb,
    squarecb_elim,
    vw_gamma,
)

vowpalwabbit = pytest.importorskip("vowpalwabbit")

ROWS, COLUMNS, LEARNING_RATE = 60, 6, 0.5
TOLERANCE = 2e-6


@contextlib.contextmanager
def model(options, labelled):
    workspace = vowpalwabbit.Workspace(f"--cb_explore_adf --noconstant --initial_weight 1 --quiet {options}")
    for _ in range(labelled):
        workspace.learn(["0:0.5:0.5 | 100000:1", "| 100001:1"])
    yield workspace
    workspace.finish()


def asked(workspace, cost, eligible, pair=None):
    """[n, K] probabilities; an action that is not eligible is not in the question."""
    pmf = np.zeros(cost.shape)
    for row in range(len(cost)):
        columns = np.flatnonzero(eligible[row])
        lines = []
        for column in columns:
            line = f"| {10 * column + 1}:{cost[row, column]!r}"
            if pair is not None:
                line += f" {10 * column + 2}:{pair[row, column]!r} {10 * column + 3}:{-pair[row, column]!r}"
            lines.append(line)
        pmf[row, columns] = workspace.predict(lines)
    return pmf


def costs(seed=0, *, ties=False):
    """Costs that float32 holds exactly, without a cost of 0 (Vowpal Wabbit drops features of value 0)."""
    generator = np.random.default_rng(seed)
    eligible = generator.random((ROWS, COLUMNS)).argsort(1) < generator.integers(1, COLUMNS + 1, (ROWS, 1))
    cost = generator.integers(1, 4 if ties else 1024, (ROWS, COLUMNS)) / 1024
    return cost, eligible


def python_floats(array):
    return array.astype(object)


def test_epsilon_greedy_ties_included():
    cost, eligible = costs(ties=True)
    with model("--epsilon 0.3", 0) as workspace:
        theirs = asked(workspace, python_floats(cost), eligible)
    np.testing.assert_allclose(epsilon_greedy(1 - cost, eligible, 0.3), theirs, atol=TOLERANCE)


@pytest.mark.parametrize("labelled", [0, 1, 7, 400])
def test_squarecb_with_its_schedule(labelled):
    cost, eligible = costs(1)
    with model("--squarecb", labelled) as workspace:
        theirs = asked(workspace, python_floats(cost), eligible)
    np.testing.assert_allclose(squarecb(1 - cost, eligible, vw_gamma(labelled)), theirs, atol=TOLERANCE)


def test_squarecb_with_another_schedule():
    cost, eligible = costs(2)
    with model("--squarecb --gamma_scale 3 --gamma_exponent 0.8", 50) as workspace:
        theirs = asked(workspace, python_floats(cost), eligible)
    np.testing.assert_allclose(squarecb(1 - cost, eligible, vw_gamma(50, 3.0, 0.8)), theirs, atol=TOLERANCE)


def test_the_floor_of_squarecb_is_the_projection():
    cost, eligible = costs(3)
    with model("--squarecb --epsilon 0.3", 400) as workspace:
        theirs = asked(workspace, python_floats(cost), eligible)
    pmf = squarecb(1 - cost, eligible, vw_gamma(400))
    np.testing.assert_allclose(project_floor(pmf, eligible, 0.3), theirs, atol=TOLERANCE)
    assert abs(mix_floor(pmf, eligible, 0.3) - theirs).max() > 0.01


@pytest.mark.parametrize("floor", [0.0, 0.4])
def test_softmax(floor):
    cost, eligible = costs(4)
    with model(f"--softmax --lambda 20 --epsilon {floor}", 0) as workspace:
        theirs = asked(workspace, python_floats(cost), eligible)
    ours = project_floor(softmax(1 - cost, eligible, 1 / 20), eligible, floor)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize("labelled", [1, 30, 3000])
@pytest.mark.parametrize("optimistic", [False, True])
def test_regcb_by_sensitivity(labelled, optimistic):
    cost, eligible = costs(5)
    pair = 10.0 ** np.random.default_rng(6).uniform(-1.5, 0.5, cost.shape)
    pair = np.round(pair * 1024) / 1024
    options = f"--regcb --sgd --power_t 0 --learning_rate {LEARNING_RATE} {'--regcbopt' * optimistic}"
    with model(options, labelled) as workspace:
        theirs = asked(workspace, python_floats(cost), eligible, python_floats(pair))
    sensitivity = LEARNING_RATE * (cost**2 + 2 * pair**2)
    ours = regcb(1 - cost, eligible, sensitivity, labelled, optimistic=optimistic)
    if optimistic:
        # It gives 1 to each of several optimistic actions, so that the row sums to their number.
        theirs /= theirs.sum(1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    # Some actions are eliminated, and some rows keep several, or the comparison would show little.
    assert ((theirs == 0) & eligible).any()


def test_its_elimination_for_squarecb_counts_wrongly_and_ours_does_not():
    equal, all_three = np.full((1, 3), 0.5), np.ones((1, 3), dtype=bool)
    with model("--squarecb --elim", 0) as workspace:
        theirs = asked(workspace, python_floats(equal), all_three)
    assert theirs.min() < 0
    np.testing.assert_allclose(
        squarecb_elim(1 - equal, 0 * equal, 0 * equal + 1, all_three, 0.0), [[1 / 3] * 3]
    )
