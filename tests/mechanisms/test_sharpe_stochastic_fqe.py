"""M6: fitted Q evaluation evaluates the policy it is given, exploration included, and not the greedy policy.

Two states, three versions of one policy that explores with ε = 0, 0.5 or 0.9. Values must differ with ε and match a
linear solve. The easy imitation bootstraps from the policy's best action: its tables are the same for every ε.
"""

import numpy as np
import pytest
import torch
from ope_fixtures import B, exact_log

from peira.evaluation.off_policy.fitted_q import linear_q, tabular_q
from peira.evaluation.off_policy.neural_q import FqeConfig, neural_q
from peira.evaluation.off_policy.transitions import TRUNCATED, Transitions

GAMMA, EPSILON = 0.9, np.array([0.0, 0.5, 0.9])
GREEDY = np.array([[0.0, 1.0], [0.0, 1.0]])
POLICIES = (1 - EPSILON)[:, None, None] * GREEDY + EPSILON[:, None, None] / 2


@pytest.fixture(scope="module")
def log():
    """First steps as frequent as in the world; where they lead to is known, what comes after that is not."""
    trajectories = exact_log(B, 2)
    next_row = np.arange(1, trajectories.state.size + 1)
    next_row[1::2] = TRUNCATED
    columns = (of.ravel() for of in (trajectories.state, trajectories.action, trajectories.reward))
    return Transitions(*columns, next_row)


def vectors(log):
    return Transitions(np.eye(2)[log.observation], log.action, log.reward, log.next_row)


def fit(kind, log, policies):
    probs = policies[:, log.observation]
    if kind == "tabular":
        return tabular_q(log, probs, GAMMA, states=2)
    if kind == "linear":
        return linear_q(log, np.eye(2)[log.observation], probs, GAMMA)
    config = FqeConfig(hidden=(16,), updates=1000, batch=128, learning_rate=3e-3)
    return neural_q(vectors(log), probs, GAMMA, generator=torch.Generator().manual_seed(0), config=config)


def linear_solve(policy):
    move = np.einsum("sat,tb->satb", B.P, policy).reshape(4, 4)
    q = np.linalg.solve(np.eye(4) - GAMMA * move, B.R.ravel()).reshape(2, 2)
    return (policy * q).sum(1)


@pytest.mark.parametrize(("kind", "tolerance"), [("tabular", 1e-9), ("linear", 1e-9), ("neural", 0.02)])
def test_values_differ_with_exploration_and_match_the_linear_solve(kind, tolerance, log):
    expected = np.stack([linear_solve(policy) for policy in POLICIES])
    np.testing.assert_allclose(fit(kind, log, POLICIES).v, expected[:, log.observation], rtol=tolerance)
    assert (np.abs(np.diff(expected, axis=0)) > 1.0).all()


@pytest.mark.parametrize("kind", ["tabular", "linear", "neural"])
def test_the_greedy_imitation_gives_the_same_table_for_every_policy(kind, log):
    best_actions = np.eye(2)[POLICIES.argmax(-1)]
    imitation = fit(kind, log, best_actions)
    tables = imitation.q
    np.testing.assert_allclose(tables, np.broadcast_to(tables[:1], tables.shape), rtol=1e-5)
    evaluated = (POLICIES[-1][log.observation] * tables[-1]).sum(-1)
    assert np.abs(evaluated - linear_solve(POLICIES[-1])[log.observation]).min() > 1.0
