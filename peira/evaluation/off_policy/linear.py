"""Linear fits: averages of features over the log, and the equations in them.

For features φ(s, a), φ̄(s) = Σ_a π(a|s) φ(s, a) and D the rows of the log, everything linear (LSTDQ, sweeps of ridge
regression, the DICE saddles, minimax weights and values) is an equation in the same few averages, the `Moments`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from peira.evaluation.off_policy.features import CHUNK
from peira.evaluation.off_policy.tabular import TabularModel
from peira.evaluation.off_policy.transitions import Transitions


@dataclass(frozen=True)
class Moments:
    """Averages over a log; leading axes (candidates, folds) are free.

    φ' is φ̄ at what follows, 0 after an end; `ended` averages φ over terminations alone (divided by all rows); `initial`
    is the mean of φ̄ at first states.
    """

    gram: Float[np.ndarray, "*models features features"]  # E[φ φᵀ]
    onward: Float[np.ndarray, "*models features features"]  # E[φ φ'ᵀ]
    reward: Float[np.ndarray, "*models features"]  # E[φ r]
    mean: Float[np.ndarray, "*models features"]  # E[φ]
    ended: Float[np.ndarray, "*models features"]  # E[φ·terminated]
    initial: Float[np.ndarray, "*models features"]  # E[φ̄_0]

    def flow(self, gamma: float) -> Float[np.ndarray, "*models features features"]:
        """E[φ (γφ' − φ)ᵀ]."""
        return gamma * self.onward - self.gram

    def mass(self, gamma: float) -> Float[np.ndarray, "*models features"]:
        """E[φ m] with m = 1 + γ/(1 − γ)·terminated: what Σ ζ φ counts once an absorbing state is counted with it.

        The discounted time in the absorbing state is γ/(1 − γ) times the flow into it, so E[ζ m] = 1 where ζ is the
        ratio of the discounted distributions, with or without terminations.
        """
        return self.mean + gamma / (1 - gamma) * self.ended


def feature_moments(
    feature: Float[np.ndarray, "rows features"],
    next_feature: Float[np.ndarray, "rows features"],
    reward: Float[np.ndarray, " rows"],
    terminated: Bool[np.ndarray, " rows"],
    initial: Float[np.ndarray, "episodes features"],
    *,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> Moments:
    """Moments of any features, given row by row; `next_feature` and `initial` are φ̄, expectations over the policy."""
    weight = np.full(len(reward), 1 / len(reward)) if weight is None else weight / weight.sum()
    weighted = feature * weight[:, None]
    return Moments(
        gram=weighted.T @ feature,
        onward=weighted.T @ np.where(terminated[:, None], 0.0, next_feature),
        reward=weighted.T @ reward,
        mean=weighted.sum(0),
        ended=weighted.T @ terminated.astype(float),
        initial=initial.mean(0),
    )


def model_moments(model: TabularModel, policy: Float[np.ndarray, "... states actions"]) -> Moments:
    """Moments of one-hot pairs (s, a) in a tabular model: the exact case, with populations or counts."""
    share, successor, policy = np.broadcast_arrays(model.share, model.transition.sum(-1), policy)
    *lead, states, actions = share.shape
    pairs = (*lead, states * actions)
    onward = share[..., None, None] * np.einsum("...sat,...tb->...satb", model.transition, policy)
    flat = share.reshape(pairs)
    return Moments(
        gram=flat[..., None] * np.eye(pairs[-1]),
        onward=onward.reshape(*pairs, pairs[-1]),
        reward=(share * model.reward).reshape(pairs),
        mean=flat,
        ended=(share * (1 - successor)).reshape(pairs),
        initial=(model.initial[..., None] * policy).reshape(pairs),
    )


def action_moments(
    transitions: Transitions,
    features: Float[np.ndarray, "points features"],
    probs: Float[np.ndarray, "candidates points actions"],
    *,
    rows: Bool[np.ndarray, " rows"],
    weight: Float[np.ndarray, "weights rows"] | None = None,
) -> Moments:
    """Moments [candidates, folds] of φ(s, a) = ψ(s) in the block of a, over the chosen `rows` of all other folds.

    ψ is `features`, φ has actions·features entries, action by action. `weight` [1 or candidates, rows] weighs the rows;
    averages are divided by its sum.
    """
    return _moments(transitions, features, transitions.action, probs, rows=rows, weight=weight, factor=None)


def state_moments(
    transitions: Transitions,
    features: Float[np.ndarray, "points features"],
    action_ratio: Float[np.ndarray, "candidates rows"],
    *,
    rows: Bool[np.ndarray, " rows"],
    weight: Float[np.ndarray, "weights rows"] | None = None,
) -> Moments:
    """Moments [candidates, folds] of ψ(s), each row multiplied by π(a|s)/π_b(a|s), so that E is over π's actions."""
    single = np.zeros(transitions.rows, dtype=np.int64)
    everywhere = np.ones((len(action_ratio), transitions.points, 1))
    return _moments(transitions, features, single, everywhere, rows=rows, weight=weight, factor=action_ratio)


def lstdq(moments: Moments, gamma: float, *, ridge: float = 0.0) -> Float[np.ndarray, "*models features"]:
    """β of Q = φ·β: (E[φ(φ − γφ')ᵀ] + ridge·I)⁻¹ E[φ r]; without ridge the solution of least norm.

    The ridge stands beside averages: beside sums over n rows it would be n·ridge.
    """
    return np.einsum("...ij,...j->...i", regularised_inverse(-moments.flow(gamma), ridge), moments.reward)


def fitted_q_sweeps(
    rewarded: Moments, followed: Moments, gamma: float, sweeps: int, *, ridge: float = 0.0
) -> Float[np.ndarray, "sweeps *models features"]:
    """β after 1, 2, … sweeps of ridge regression, β_{j+1} = argmin E(φ·β − r − γ φ'·β_j)² + ridge·‖β‖², from β_0 = 0.

    Sweep j gives the values of j steps to go. Rewards are regressed on the rows of `rewarded`, next values on those of
    `followed`: at a finite horizon a last row knows its reward, not its successor. With the same rows in both the limit
    is LSTDQ.
    """
    of_reward = np.einsum("...ij,...j->...i", regularised_inverse(rewarded.gram, ridge), rewarded.reward)
    of_next = gamma * regularised_inverse(followed.gram, ridge) @ followed.onward
    beta = [of_reward]
    for _ in range(sweeps - 1):
        beta.append(of_reward + np.einsum("...ij,...j->...i", of_next, beta[-1]))
    return np.stack(beta)


def at_actions(
    beta: Float[np.ndarray, "candidates folds coefficients"],
    transitions: Transitions,
    features: Float[np.ndarray, "points features"],
    points: Int[np.ndarray, " chosen"] | None = None,
) -> Float[np.ndarray, "candidates chosen actions"]:
    """φ(s, a)·β of every action at the chosen points (all by default), by the model that did not see their fold."""
    points = np.arange(transitions.points) if points is None else points
    beta = beta.reshape(*beta.shape[:2], -1, features.shape[1])
    value = np.empty((len(beta), len(points), beta.shape[2]))
    for fold in range(transitions.folds):
        of_fold = np.flatnonzero(transitions.point_fold[points] == fold)
        value[:, of_fold] = np.einsum("nd,cad->cna", features[points[of_fold]], beta[:, fold])
    return value


def regularised_inverse(
    matrix: Float[np.ndarray, "... n n"], ridge: float = 0.0
) -> Float[np.ndarray, "... n n"]:
    """(matrix + ridge·I)⁻¹; without ridge the pseudo-inverse, which gives solutions of least norm."""
    if ridge > 0:
        return np.linalg.inv(matrix + ridge * np.eye(matrix.shape[-1]))
    return np.linalg.pinv(matrix, rtol=1e-12)


def _moments(
    transitions: Transitions,
    features: np.ndarray,
    action: np.ndarray,
    probs: np.ndarray,
    *,
    rows: np.ndarray,
    weight: np.ndarray | None,
    factor: np.ndarray | None,
) -> Moments:
    candidates, points, actions = probs.shape
    if not len(features) == points == transitions.points:
        raise ValueError(
            f"expected features and probs at all {transitions.points} points, got {len(features)} and {points}"
        )
    folds, fold, width = transitions.folds, transitions.point_fold, features.shape[1]
    weight = np.ones((1, transitions.rows)) if weight is None else weight
    factor = weight if factor is None else weight * factor
    several = len(factor)  # 1 where no average but `onward` depends on the candidate
    gram = np.zeros((several, folds, actions, width, width))
    onward = np.zeros((candidates, folds, actions, width, actions * width))
    reward, mean, ended = (np.zeros((several, folds, actions, width)) for _ in range(3))
    # One fold and action at a time: φ(s, a) is ψ(s) in one block and 0 in all others.
    order = np.flatnonzero(rows)
    order = order[np.lexsort((action[order], fold[order]))]
    cell = fold[order] * actions + action[order]
    for block in np.split(order, np.flatnonzero(np.diff(cell)) + 1):
        for start in range(0, len(block), CHUNK):
            chunk = block[start : start + CHUNK]
            f, a = fold[chunk[0]], action[chunk[0]]
            psi, ends = features[chunk], transitions.terminated[chunk]
            following = transitions.next_row[chunk[~ends]]
            for w in range(several):
                phi = psi * factor[w, chunk, None]
                gram[w, f, a] += phi.T @ psi
                reward[w, f, a] += phi.T @ transitions.reward[chunk]
                mean[w, f, a] += phi.sum(0)
                ended[w, f, a] += phi[ends].sum(0)
            for c in range(candidates):
                phi = psi[~ends] * factor[c % several, chunk[~ends], None]
                next_phi = probs[c, following, :, None] * features[following, None, :]
                onward[c, f, a] += phi.T @ next_phi.reshape(len(phi), actions * width)
    first = transitions.initial
    begun = np.zeros((candidates, folds, actions * width))
    for f in range(folds):
        at = first[fold[first] == f]
        begun[:, f] = np.einsum("cna,nd->cad", probs[:, at], features[at]).reshape(candidates, -1)

    total = (
        np.stack([np.bincount(fold[order], of[order], minlength=folds) for of in weight]) @ transitions.trains
    )
    if not (total > 0).all():
        raise ValueError(
            "expected rows of positive weight to train every fold's model, got a fold without any"
        )

    def averaged(sums: np.ndarray, *shape: int) -> np.ndarray:
        """Over the rows of the folds that each fold's model is trained on: [candidates, folds, *shape]."""
        of_others = transitions.trains @ sums.reshape(len(sums), folds, -1) / total[..., None]
        return np.broadcast_to(of_others.reshape(len(sums), folds, *shape), (candidates, folds, *shape))

    size = actions * width
    diagonal = np.zeros((several, folds, actions, width, actions, width))
    for a in range(actions):
        diagonal[:, :, a, :, a] = gram[:, :, a]
    return Moments(
        gram=averaged(diagonal, size, size),
        onward=averaged(onward, size, size),
        reward=averaged(reward, size),
        mean=averaged(mean, size),
        ended=averaged(ended, size),
        initial=transitions.trains
        @ begun
        / (np.bincount(fold[first], minlength=folds) @ transitions.trains)[:, None],
    )
