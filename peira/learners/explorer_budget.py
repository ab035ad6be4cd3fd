"""γ from a budget: how much traffic leaves the greedy action, or what reward that costs, on a window of decisions.

Both fall as γ rises, so that the γ of a budget is found by bracketing. Shapes and words are those of `explorers`.
Source: ``adyen.md`` 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize

from peira.learners.explorers import Cells, Mask

LOWEST, HIGHEST = 1e-6, 1e12
"""The range of γ searched: no gap of rewards in [0, 1] counts at the one end, every gap above 1e-9 at the other."""

NEAREST = 1.01
"""How far above the least that can be reached a budget below it is put. The least itself would need an infinite γ."""

Explorer = Callable[[float], Cells]
"""From γ to the pmf [n, K] of the window, floors included; its mass and cost must not rise with γ."""


class Solved(NamedTuple):
    """gamma: the γ found. reached: the mass or cost that it has on the window."""

    gamma: float
    reached: float


def explore_mass(pmf: Cells, scores: Cells, eligible: Mask) -> float:
    """E_x[1 − p_b], b the best score (the first of several): the share of decisions that leave the greedy action."""
    best = np.where(eligible, scores, -np.inf).argmax(1)
    return float(1 - pmf[np.arange(len(pmf)), best].mean())


def explore_cost(pmf: Cells, scores: Cells, eligible: Mask) -> float:
    """E_x[Σ_a p_a(f̂_b − f̂_a)]: the reward a decision that exploration gives up, as the model predicts it."""
    best = np.where(eligible, scores, -np.inf).max(1, keepdims=True)
    return float((pmf * np.where(eligible, best - scores, 0.0)).sum(1).mean())


def gamma_for_mass(
    explorer: Explorer, scores: Cells, eligible: Mask, mass: float, *, nearest: bool = False
) -> Solved:
    """The γ at which `explore_mass` on the window is `mass`, to 1e-6 of log γ.

    Actions that are level with the best keep 1/K(x) at any γ, and floors keep theirs, so that some masses cannot be
    reached. Those raise ValueError with the least or the most that can be; with `nearest`, a mass above the most gives
    γ = 0 and one below the least the γ that comes within a hundredth of the least. `reached` tells which mass it is.
    Also raises ValueError for an empty window and for a mass outside (0, 1).
    """
    if not 0 < mass < 1:
        raise ValueError(f"explore_mass: expected a share in (0, 1), got {mass:g}")
    return _solve(
        "explore_mass",
        lambda gamma: explore_mass(explorer(gamma), scores, eligible),
        mass,
        len(scores),
        nearest,
    )


def gamma_for_cost(
    explorer: Explorer, scores: Cells, eligible: Mask, cost: float, *, nearest: bool = False
) -> Solved:
    """The γ at which `explore_cost` on the window is `cost`, in units of the reward; otherwise as `gamma_for_mass`.

    Ties cost nothing: without a floor any cost from 0 to that of uniform exploration can be reached.
    """
    if not 0 < cost < math.inf:
        raise ValueError(f"explore_cost: expected more than 0, got {cost:g}")
    return _solve(
        "explore_cost",
        lambda gamma: explore_cost(explorer(gamma), scores, eligible),
        cost,
        len(scores),
        nearest,
    )


def _solve(name: str, spent: Callable[[float], float], budget: float, rows: int, nearest: bool) -> Solved:
    if not rows:
        raise ValueError(f"{name}: needs decisions to measure it on, got an empty window")
    most, least = spent(0.0), spent(HIGHEST)
    if budget > most or budget < least:
        if not nearest:
            raise ValueError(
                f"{name}: {budget:g} cannot be reached on this window; ties and floors leave {least:.6g} at the least "
                f"and {most:.6g} at the most"
            )
        budget = most if budget > most else least * NEAREST
    if budget >= spent(LOWEST):
        return Solved(0.0, most)
    low, high = math.log(LOWEST), math.log(HIGHEST)
    gamma = math.exp(optimize.brentq(lambda at: spent(math.exp(at)) - budget, low, high, xtol=1e-6))
    return Solved(gamma, spent(gamma))
