"""DICE with networks: the exact saddle on the features that a candidate's Q network has learned.

Gradient steps on the Lagrangian itself do not get there on a small machine: its condition grows as (1 − γ)⁻², and
the features they learn on the way were no better than random ones. Temporal differences learn features fast, and the
dual is right for whatever ν can express, Q^π itself being the one that matters. So the hidden layers come from fitted Q
evaluation, and the last layers of ν and ζ are solved in closed form, for all candidates and folds.

What is not independent of the Q network should not be read as a second opinion on it: where the network is wrong in the
features it lacks, so is this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from peira.evaluation.off_policy.dice import BEST_DICE, DiceFit, Lagrangian, read_out, saddle_point
from peira.evaluation.off_policy.linear import Moments
from peira.evaluation.off_policy.ratios import check_discounted, row_shares
from peira.evaluation.off_policy.stacked import held_out, stacked_features, standardised_inputs
from peira.evaluation.off_policy.transitions import Transitions

CHUNK = 2048


def neural_dice(
    transitions: Transitions,
    probs: Float[np.ndarray, "candidates points actions"],
    gamma: float,
    parameters: Sequence[Float[Tensor, "models _ _"]],
    *,
    family: Lagrangian = BEST_DICE,
    ridge: float = 1.0,
    weight: Float[np.ndarray, " rows"] | None = None,
) -> DiceFit:
    """The saddle with ν and ζ linear in the last hidden layer of each candidate's and fold's network.

    `parameters` are those of `neural_q` on the same points and candidates; where they were trained with a horizon T,
    the last column of the observation here must be step/T. `ridge` is in units of (1 − γ)²/rows, as in `linear_dice`;
    `weight` makes d^D a weighted distribution of rows.

    Raises ValueError for γ outside of (0, 1).
    """
    check_discounted(gamma)
    candidates, _, actions = probs.shape
    x = standardised_inputs(transitions.observation)
    moments = _network_moments(transitions, probs, x, parameters, weight)
    saddle = saddle_point(moments, gamma, family, ridge=ridge * (1 - gamma) ** 2 / transitions.rows)
    nu, zeta = np.empty(probs.shape), np.empty(probs.shape)
    for fold, points, models in held_out(transitions, candidates):
        features = _features(parameters, models, x[points])
        for of, coefficients in ((nu, saddle.nu), (zeta, saddle.zeta)):
            by_action = coefficients[:, fold].reshape(candidates, actions, -1)
            of[:, points.numpy()] = np.einsum("cnd,cad->cna", features, by_action)
    return read_out(transitions, probs, gamma, nu=nu, zeta=zeta, lagrange=saddle.lagrange, weight=weight)


def _network_moments(
    transitions: Transitions,
    probs: np.ndarray,
    x: Tensor,
    parameters: Sequence[Tensor],
    weight: np.ndarray | None,
) -> Moments:
    """Moments [candidates, folds] as `action_moments` has them, for features of each model's own."""
    candidates, _, actions = probs.shape
    folds, width = transitions.folds, parameters[-2].shape[1] + 1
    share, fold, first = row_shares(transitions, weight), transitions.point_fold, transitions.initial
    lead, size = (candidates, folds), actions * width
    gram, onward = np.zeros((*lead, size, size)), np.zeros((*lead, size, size))
    reward, mean, ended, initial = (np.zeros((*lead, size)) for _ in range(4))
    for f in range(folds):
        models = slice(f * candidates, (f + 1) * candidates)
        trained = transitions.trains[f] > 0
        rows = np.flatnonzero(trained[fold[: transitions.rows]] & (share > 0))
        of_fold = share / share[rows].sum()
        for action in range(actions):
            block = slice(action * width, (action + 1) * width)
            for chunk in _chunks(rows[transitions.action[rows] == action]):
                phi = _features(parameters, models, x[chunk])
                weighted = (phi * of_fold[chunk, None]).swapaxes(1, 2)
                ends = transitions.terminated[chunk]
                following = transitions.next_row[chunk[~ends]]
                gram[:, f, block, block] += weighted @ phi
                reward[:, f, block] += weighted @ transitions.reward[chunk]
                mean[:, f, block] += weighted.sum(2)
                ended[:, f, block] += weighted[..., ends].sum(2)
                onward[:, f, block] += weighted[..., ~ends] @ _expected(
                    parameters, models, x, probs, following
                )
        starts = first[trained[fold[first]]]
        for chunk in _chunks(starts):
            initial[:, f] += _expected(parameters, models, x, probs, chunk).sum(1) / len(starts)
    return Moments(gram=gram, onward=onward, reward=reward, mean=mean, ended=ended, initial=initial)


def _chunks(rows: Int[np.ndarray, " rows"]) -> Iterator[Int[np.ndarray, " chunk"]]:
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


def _features(
    parameters: Sequence[Tensor], models: slice, x: Float[Tensor, "chunk inputs"]
) -> Float[np.ndarray, "candidates chunk features"]:
    hidden = stacked_features([parameter[models] for parameter in parameters], x[None])[0]
    return torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1).double().numpy()


def _expected(
    parameters: Sequence[Tensor], models: slice, x: Tensor, probs: np.ndarray, points: np.ndarray
) -> Float[np.ndarray, "candidates chunk coefficients"]:
    """φ̄ at points: the features once for each action, times its probability."""
    by_action = probs[:, points, :, None] * _features(parameters, models, x[points])[:, :, None, :]
    return by_action.reshape(*by_action.shape[:2], by_action.shape[2] * by_action.shape[3])
