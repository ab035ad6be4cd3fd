"""Replay by rejection: of a log, exactly the decisions that the policy would have made, in its own proportions."""

from dataclasses import replace

import numpy as np
import pytest

from peira.environments.logged_stream import LoggedStream, largest_acceptance, replay
from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions

SCHEMA = FeatureSchema(actions=("a", "b", "c"), numbers=("x",))
# Two contexts; the second has two eligible actions.
ELIGIBLE = np.array([[0, 1, 2], [1, 2, -1]])
LOGGING = np.array([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]])
TARGET = np.array([[0.1, 0.3, 0.6], [0.9, 0.1, 0.0]])
LIMIT = 1 / 3  # .2 / .6


class Grid(np.random.Generator):
    """In place of uniform numbers, the midpoints of as many equal cells for every block of `cells`."""

    cells = 1000

    def random(self, size):
        return (np.arange(size) % self.cells + 0.5) / self.cells


def log(context, column, *, whole=True, time=None):
    rows = len(context)
    return LoggedDecisions(
        choices=Choices(
            number=context[:, None].astype(np.float32),
            category=np.zeros((rows, 0), np.int32),
            action=ELIGIBLE[context].astype(np.int32),
            feature=np.zeros((rows, 3, 0), np.float32),
        ),
        column=column,
        propensity=LOGGING[context, column],
        reward=np.arange(rows, dtype=np.float64) / rows,
        pmf=LOGGING[context] if whole else None,
        generation=np.zeros(rows, np.int64),
        time=np.arange(rows, dtype=np.float64) if time is None else time,
        uniform=np.zeros(rows, bool),
        cluster=np.arange(rows),
    )


def sampled(rows, generator):
    context = generator.integers(2, size=rows)
    column = (generator.random(rows)[:, None] > LOGGING[context].cumsum(1)[:, :2]).sum(1)
    return log(context, column)


def test_acceptance_by_enumeration_is_the_policy_itself():
    cells = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    context, column = np.repeat(cells, Grid.cells, axis=0).T
    rows = log(context, column)
    accepted = replay(rows, TARGET[context], Grid(np.random.PCG64()), 0.3)
    count = np.zeros((2, 3))
    np.add.at(count, (context[accepted], column[accepted]), 1)
    # p(a|x) · P(accepted | x, a) = c · π(a|x), to the last row.
    np.testing.assert_allclose(LOGGING * count / Grid.cells, 0.3 * TARGET, atol=0.6 / Grid.cells)
    np.testing.assert_allclose((LOGGING * count / Grid.cells).sum(1), 0.3, atol=1e-3)


def test_accepted_rows_of_a_random_log_are_distributed_as_the_policy():
    rows = sampled(100_000, np.random.default_rng(0))
    context = rows.choices.number[:, 0].astype(int)
    accepted = replay(rows, TARGET[context], np.random.default_rng(1), LIMIT)
    assert abs(len(accepted) / 100_000 - LIMIT) < 4 * np.sqrt(LIMIT * (1 - LIMIT) / 100_000)
    assert abs(context[accepted].mean() - 0.5) < 4 * 0.5 / np.sqrt(len(accepted))
    for x in range(2):
        column = rows.column[accepted][context[accepted] == x]
        share = np.bincount(column, minlength=3) / len(column)
        np.testing.assert_allclose(share, TARGET[x], atol=4 * 0.5 / np.sqrt(len(column)))


def test_the_log_itself_is_accepted_whole():
    rows = sampled(1000, np.random.default_rng(0))
    assert len(replay(rows, rows.pmf, np.random.default_rng(1), 1.0)) == 1000


@pytest.mark.parametrize("whole", [True, False])
def test_a_c_that_is_too_large_is_refused(whole):
    context = np.array([0, 0, 1])
    rows = log(context, np.array([0, 2, 1]), whole=whole)
    target = TARGET[context]
    assert largest_acceptance(rows, target) == pytest.approx(LIMIT)
    replay(rows, target, np.random.default_rng(0), LIMIT)
    with pytest.raises(ValueError, match=r"c: 0\.34 makes .* larger than 1; give at most 0\.3333"):
        replay(rows, target, np.random.default_rng(0), 0.34)


def test_what_might_have_been_chosen_counts_where_it_is_known():
    context = np.array([0])
    chosen = np.array([0])
    assert largest_acceptance(log(context, chosen), TARGET[context]) == pytest.approx(LIMIT)
    assert largest_acceptance(log(context, chosen, whole=False), TARGET[context]) == 1.0


def test_a_policy_beyond_the_log_is_refused_at_any_c():
    rows = log(np.array([0]), np.array([0]))
    rows = replace(rows, pmf=np.array([[0.5, 0.5, 0.0]]))
    for c in (1e-6, largest_acceptance(rows, TARGET[:1])):
        with pytest.raises(ValueError, match="an action that the log never could take"):
            replay(rows, TARGET[:1], np.random.default_rng(0), c)


@pytest.mark.parametrize(
    "pmf",
    [[[0.5, 0.5, 0.1]], [[1.2, -0.2, 0.0]], [[np.nan, 0.5, 0.5]]],
)
def test_what_is_no_distribution_is_refused(pmf):
    with pytest.raises(ValueError, match="pmf: row 0 is no distribution"):
        replay(log(np.array([0]), np.array([0])), np.array(pmf), np.random.default_rng(0), 0.1)


def test_other_bad_input_is_named():
    rows, generator = log(np.array([1]), np.array([0])), np.random.default_rng(0)
    with pytest.raises(ValueError, match="pmf: row 0 is no distribution over its eligible actions"):
        replay(rows, np.array([[0.5, 0.4, 0.1]]), generator, 0.1)
    with pytest.raises(ValueError, match=r"pmf: expected the shape \(1, 3\)"):
        replay(rows, np.ones((1, 1)), generator, 0.1)
    for c in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"c: expected a number in \(0, 1\]"):
            replay(rows, TARGET[1:], generator, c)
    for propensity in (0.0, 1.5, np.nan):
        wrong = replace(rows, propensity=np.array([propensity]))
        with pytest.raises(ValueError, match=r"propensity: expected a number in \(0, 1\]"):
            replay(wrong, TARGET[1:], generator, 0.1)
    with pytest.raises(ValueError, match="log: holds no decision"):
        LoggedStream(rows.take(slice(0)), SCHEMA)
    with pytest.raises(ValueError, match="pmf: expected at most the 1 rows left from round 0, got 2"):
        LoggedStream(rows, SCHEMA).accept(TARGET, generator, 0, 0.1)


def test_the_stream_is_in_the_order_of_time_and_its_rows_become_the_policys():
    context = np.array([0, 1, 0, 1, 0])
    rows = log(context, np.array([2, 0, 1, 1, 0]), time=np.array([3.0, 1.0, 5.0, 2.0, 4.0]))
    stream = LoggedStream(rows, SCHEMA)
    assert (len(stream), stream.schema) == (5, SCHEMA)
    assert [len(stream.contexts(2, at)) for at in (0, 2, 4, 6)] == [2, 2, 1, 0]
    choices = stream.contexts(3, 2)
    np.testing.assert_array_equal(choices.number[:, 0], [0, 0, 0])
    taken = stream.accept(TARGET[[0, 0, 0]], Grid(np.random.PCG64()), 2, LIMIT)
    # In order of time: columns 2, 0, 1 with π/p = 3, .2, 1; all three draws are below .0025.
    np.testing.assert_array_equal(taken.accepted, [2, 3, 4])
    assert taken.acceptance == 1.0
    np.testing.assert_array_equal(taken.rows.column, [2, 0, 1])
    np.testing.assert_array_equal(taken.rows.reward, [0.0, 0.8, 0.4])
    np.testing.assert_array_equal(taken.rows.propensity, [0.6, 0.1, 0.3])
    np.testing.assert_array_equal(taken.rows.pmf, TARGET[[0, 0, 0]])


def test_the_safe_c_suits_every_policy():
    generator = np.random.default_rng(0)
    rows = sampled(500, generator)
    stream = LoggedStream(rows, SCHEMA)
    assert stream.safe_acceptance == pytest.approx(0.2)
    context = stream.contexts(500, 0).number[:, 0].astype(int)
    for _ in range(20):
        pmf = generator.dirichlet([0.2] * 3, 500) * stream.rows.choices.eligible
        pmf /= pmf.sum(1, keepdims=True)
        stream.accept(pmf, generator, 0, stream.safe_acceptance)
    greedy = np.eye(3)[LOGGING[context].argmin(1) - (context == 1)]
    assert 0.1 < stream.accept(greedy, generator, 0, stream.safe_acceptance).acceptance < 0.3
