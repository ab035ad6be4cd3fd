"""A log laid flat for what is fitted to it: one row a step, episodes one after another.

Its *points* are where a policy can be asked: the rows first, then final observations that were recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

TERMINATED, TRUNCATED = -1, -2
"""What `next_row` says where no observation follows: value 0 from here on, or a value that cannot be known."""


@dataclass(frozen=True)
class Transitions:
    """What a fit reads of a log.

      observation  [points, …] features, or [points] numbers of states; points ≥ rows
      action       [rows] numbers of actions, or [rows, dims]
      reward       [rows]
      next_row     [rows] the point that follows: the next row, a point behind the rows for a final observation that
                   was recorded, TERMINATED, or TRUNCATED
      fold         [rows] 0, 1, … for cross-fitting: a fold is predicted by the model of all others. None fits and
                   predicts on the same rows

    A TRUNCATED row takes no part in a stationary fit: neither its value nor the flow out of it is known.

    Raises ValueError where lengths differ, a reward is not finite, an episode's rows are not consecutive, a fold cuts
    an episode, or fewer than two folds are left.
    """

    observation: Float[np.ndarray, "points features"] | Int[np.ndarray, " points"]
    action: Int[np.ndarray, " rows"] | Float[np.ndarray, "rows dims"]
    reward: Float[np.ndarray, " rows"]
    next_row: Int[np.ndarray, " rows"]
    fold: Int[np.ndarray, " rows"] | None = None

    def __post_init__(self) -> None:
        rows, points = len(self.reward), len(self.observation)
        if not (len(self.action) == len(self.next_row) == rows and 0 < rows <= points):
            raise ValueError(
                f"expected as many actions and next rows as rewards and at least as many observations, got "
                f"{len(self.action)}, {len(self.next_row)}, {rows} and {points}"
            )
        if len(bad := np.flatnonzero(~np.isfinite(self.reward))):
            raise ValueError(f"reward: expected finite numbers, got {self.reward[bad[0]]} in row {bad[0]}")
        outside = (self.next_row < TRUNCATED) | (self.next_row >= points)
        if len(bad := np.flatnonzero(outside | (self.within & (self.next_row != np.arange(1, rows + 1))))):
            raise ValueError(
                f"next_row: expected the row behind, a point from {rows} to {points - 1}, {TERMINATED} or {TRUNCATED}, "
                f"got {self.next_row[bad[0]]} in row {bad[0]}"
            )
        if self.fold is None:
            return
        if len(self.fold) != rows or (self.fold[self.next_row[self.within]] != self.fold[self.within]).any():
            raise ValueError("fold: expected one number a row, the same for all rows of an episode")
        if self.folds < 2 or not np.array_equal(np.unique(self.fold), np.arange(self.folds)):
            raise ValueError(
                f"fold: expected at least two folds numbered 0, 1, …, got {np.unique(self.fold).tolist()}"
            )

    @property
    def rows(self) -> int:
        return len(self.reward)

    @property
    def points(self) -> int:
        return len(self.observation)

    @property
    def folds(self) -> int:
        """Number of models a candidate needs: one without cross-fitting."""
        return 1 if self.fold is None else int(self.fold.max()) + 1

    @cached_property
    def within(self) -> Bool[np.ndarray, " rows"]:
        """Rows that another row of the log follows."""
        return (self.next_row >= 0) & (self.next_row < self.rows)

    @property
    def terminated(self) -> Bool[np.ndarray, " rows"]:
        return self.next_row == TERMINATED

    @property
    def known(self) -> Bool[np.ndarray, " rows"]:
        """Rows of which it is known what follows."""
        return self.next_row != TRUNCATED

    @cached_property
    def initial(self) -> Int[np.ndarray, " episodes"]:
        """Rows that begin an episode."""
        follows = np.zeros(self.rows, dtype=bool)
        follows[self.next_row[self.within]] = True
        return np.flatnonzero(~follows)

    @cached_property
    def step(self) -> Int[np.ndarray, " points"]:
        """How many steps of the episode came before this point."""
        begins = np.zeros(self.rows, dtype=np.int64)
        begins[self.initial] = self.initial
        step = np.zeros(self.points, dtype=np.int64)
        step[: self.rows] = np.arange(self.rows) - np.maximum.accumulate(begins)
        last = self.next_row >= self.rows
        step[self.next_row[last]] = step[: self.rows][last] + 1
        return step

    @cached_property
    def point_fold(self) -> Int[np.ndarray, " points"]:
        """The fold of every point; 0 throughout without cross-fitting."""
        fold = np.zeros(self.points, dtype=np.int64)
        if self.fold is not None:
            fold[: self.rows] = self.fold
            last = self.next_row >= self.rows
            fold[self.next_row[last]] = self.fold[last]
        return fold

    @property
    def trains(self) -> Float[np.ndarray, "folds folds"]:
        """1 where the model that predicts the first fold is trained on the second."""
        return np.ones((1, 1)) if self.fold is None else 1.0 - np.eye(self.folds)


def effective_horizon(transitions: Transitions, gamma: float, horizon: int | None = None) -> float:
    """Σ_{t<T} γᵗ: the discounted number of steps a return is made of.

    T is `horizon`; without one it is infinite, or at γ = 1 the longest episode of the log.
    """
    if horizon is None and gamma < 1:
        return 1 / (1 - gamma)
    longest = int(transitions.step.max()) + 1 if horizon is None else horizon
    return float((gamma ** np.arange(longest)).sum())


def q_bounds(
    transitions: Transitions,
    gamma: float,
    horizon: int | None = None,
    rows: Bool[np.ndarray, " rows"] | None = None,
) -> tuple[float, float]:
    """Least and greatest value that rewards within those of the log (of the chosen `rows` of it) can add up to.

    [r_min, r_max]·H with H the effective horizon; where returns may be as short as one reward (something terminates, or
    the horizon is finite) also r_min and r_max themselves: with rewards of 1 alone, r_min/(1 − γ) would be the only
    value left.
    """
    steps = effective_horizon(transitions, gamma, horizon)
    reward = transitions.reward if rows is None else transitions.reward[rows]
    low, high = float(reward.min()), float(reward.max())
    if transitions.terminated.any() or horizon is not None:
        return min(low, low * steps), max(high, high * steps)
    return low * steps, high * steps


def check_discount(transitions: Transitions, gamma: float, horizon: int | None = None) -> None:
    """Raises ValueError for γ not in (0, 1], for γ = 1 where returns never end, and for steps beyond the horizon."""
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma: expected a number in (0, 1], got {gamma}")
    if horizon is None and gamma == 1 and not transitions.terminated.any():
        raise ValueError("gamma: at 1 a value needs episodes that terminate or a horizon; give one of them")
    if horizon is not None and (longest := int(transitions.step[: transitions.rows].max()) + 1) > horizon:
        raise ValueError(
            f"horizon: expected at least {longest}, the length of the longest episode, got {horizon}"
        )


def informative_rows(
    transitions: Transitions, horizon: int | None
) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Rows that tell of rewards, and rows that tell what follows.

    For a stationary value both are the rows of which it is known what follows. At a finite horizon T every row tells of
    rewards; an end at step T − 1 is an end of time, not of the world, and tells nothing of what follows.
    """
    if horizon is None:
        return transitions.known, transitions.known
    in_time = transitions.step[: transitions.rows] < horizon - 1
    return np.ones(transitions.rows, dtype=bool), transitions.known & in_time


def bootstrapped_rows(
    transitions: Transitions, horizon: int | None
) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Rows whose Bellman target can be formed, and those among them whose target goes on to what follows."""
    in_time = np.ones(transitions.rows, dtype=bool)
    if horizon is not None:
        in_time = transitions.step[: transitions.rows] < horizon - 1
    return transitions.known | ~in_time, (transitions.next_row >= 0) & in_time


def logged_returns(
    transitions: Transitions, gamma: float, horizon: int | None, rows: Bool[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Σ_k γᵏ r_{t+k} to the end of the episode; at γ < 1 without a horizon a cut tail is worth r̄/(1 − γ).

    r̄ is the mean reward of the chosen `rows`.
    """
    cut = 0.0
    if horizon is None and gamma < 1:
        cut = float(transitions.reward[rows].mean()) / (1 - gamma)
    returns = transitions.reward + gamma * np.where(transitions.terminated, 0.0, cut)
    order = np.argsort(transitions.step[: transitions.rows], kind="stable")
    steps = np.split(order, np.flatnonzero(np.diff(transitions.step[order])) + 1)
    for of_step in reversed(steps):
        onward = of_step[transitions.within[of_step]]
        returns[onward] = transitions.reward[onward] + gamma * returns[transitions.next_row[onward]]
    return returns
