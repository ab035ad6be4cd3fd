"""Discounted stationary ratios ρ(s, a) = d_γ^π(s, a)/d^D(s, a), however fitted, with what can be checked of them.

d_γ^π = (1 − γ) Σ_t γᵗ P_π(s_t, a_t) and d^D is the distribution of the log's rows (of those of which it is known what
follows; weighted by γᵗ where ρ is to be used in sums Σ_t γᵗ ρ r over episodes). Not to be mixed with ratios of one step
t, d_t^π/d_t^b: a discounted ratio is normalised by one global mean, never step by step.

Terminations: an absorbing state without reward follows them. It is never sampled; the discounted time in it is
γ/(1 − γ) times the flow into it, so that m = 1 + γ/(1 − γ)·terminated makes E_D[ρ m] = 1 hold with and without them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from peira.evaluation.off_policy.features import CHUNK
from peira.evaluation.off_policy.propensity import standardisation
from peira.evaluation.off_policy.transitions import Transitions

PROBES = 64
"""Functions that `flow_residual` tries; the same ones for every fit, so that residuals compare."""


@dataclass(frozen=True)
class RatioFit:
    """Fitted ratios of every candidate, each row predicted by the model that did not see its fold.

    ratio          [candidates, rows] ρ̂ at the logged pairs
    value          [candidates] E_D[ρ̂ r]/(1 − γ)
    mean_ratio     [candidates] E_D[ρ̂ m], 1 for a true ratio
    flow_residual  [candidates] see `flow_residual`, 0 for a true ratio
    """

    ratio: Float[np.ndarray, "candidates rows"]
    value: Float[np.ndarray, " candidates"]
    mean_ratio: Float[np.ndarray, " candidates"]
    flow_residual: Float[np.ndarray, " candidates"]


def ratio_fit(
    transitions: Transitions,
    probs: Float[np.ndarray, "candidates points actions"] | None,
    gamma: float,
    ratio: Float[np.ndarray, "candidates rows"],
    *,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> RatioFit:
    """Ratios at the logged pairs with their value and checks; `probs` None where they are of continuous actions.

    Raises ValueError for γ outside of (0, 1).
    """
    check_discounted(gamma)
    share = row_shares(transitions, weight)
    return RatioFit(
        ratio=ratio,
        value=ratio @ (share * transitions.reward) / (1 - gamma),
        mean_ratio=ratio @ (share * row_mass(transitions, gamma)),
        flow_residual=flow_residual(transitions, probs, gamma, ratio, weight=weight),
    )


def flow_residual(
    transitions: Transitions,
    probs: Float[np.ndarray, "candidates points actions"] | None,
    gamma: float,
    ratio: Float[np.ndarray, "candidates rows"],
    *,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> Float[np.ndarray, " candidates"]:
    """Root mean square, over random functions g, of E_D[ρ̂ (γ g(s', π) − g(s, a))] + (1 − γ) E g(s_0, π).

    0 for a true ratio but for sampling: E_D[ρ̂ r] errs by the residual of g = Q of r. The functions are waves
    √2 cos(ω·s + b_a) in the standardised state, with a phase for each action, and random tables where states are
    numbered. With `probs` None they are functions of the state alone, which need no expectation over actions.
    """
    action = transitions.action
    if probs is None:
        action = np.zeros(transitions.rows, dtype=np.int64)
        probs = np.ones((len(ratio), transitions.points, 1))
    rng, actions, observation = np.random.default_rng(0), probs.shape[-1], transitions.observation
    if observation.ndim == 1:
        table = np.sqrt(2) * np.cos(rng.uniform(0, 2 * np.pi, (int(observation.max()) + 1, actions, PROBES)))
    else:
        centre, scale = standardisation(observation)
        frequency = rng.normal(size=(observation.shape[1], PROBES)) / np.sqrt(observation.shape[1])
        phase = rng.uniform(0, 2 * np.pi, (actions, PROBES))

    def probe(points: np.ndarray) -> Float[np.ndarray, "chunk actions probes"]:
        if observation.ndim == 1:
            return table[observation[points]]
        return np.sqrt(2) * np.cos(((observation[points] - centre) / scale @ frequency)[:, None] + phase)

    def expected(points: np.ndarray, amount: np.ndarray) -> Float[np.ndarray, "candidates probes"]:
        """Σ amount·g(s, π) over the points; `amount` [candidates or 1, points]."""
        each = amount[..., None] * probs[:, points]
        return each.reshape(len(probs), -1) @ probe(points).reshape(-1, PROBES)

    share, first = row_shares(transitions, weight), transitions.initial
    balance = (1 - gamma) * expected(first, np.full((1, len(first)), 1 / len(first)))
    rows = np.flatnonzero(share > 0)
    for start in range(0, len(rows), CHUNK // 4):
        chunk = rows[start : start + CHUNK // 4]
        mass, onward = ratio[:, chunk] * share[chunk], transitions.next_row[chunk] >= 0
        balance -= mass @ probe(chunk)[np.arange(len(chunk)), action[chunk]]
        balance += gamma * expected(transitions.next_row[chunk[onward]], mass[:, onward])
    return np.sqrt((balance**2).mean(1))


def row_shares(
    transitions: Transitions, weight: Float[np.ndarray, " rows"] | None
) -> Float[np.ndarray, " rows"]:
    """d^D row by row: 0 where it is not known what follows."""
    share = transitions.known * (1.0 if weight is None else weight)
    return share / share.sum()


def row_mass(transitions: Transitions, gamma: float) -> Float[np.ndarray, " rows"]:
    """m = 1 + γ/(1 − γ)·terminated: the row and the time in the absorbing state behind it."""
    return 1 + gamma / (1 - gamma) * transitions.terminated


def check_discounted(gamma: float) -> None:
    """Raises ValueError unless 0 < γ < 1."""
    if not 0 < gamma < 1:
        raise ValueError(f"gamma: a discounted ratio needs a number in (0, 1), got {gamma}")
