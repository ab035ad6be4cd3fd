"""Many small networks trained as one: what the neural fits of all candidates and folds have in common.

Networks of one shape are stacked along a leading axis, fold by fold, and every layer is one batched product. The
candidates of a fold see the same minibatch, gathered once; each has a loss of its own, so that none is changed by the
company it is trained in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peira.evaluation.off_policy.propensity import standardisation
from peira.evaluation.off_policy.transitions import Transitions

Progress = Callable[[int, int], None]
"""Called now and then as `progress(done, total)`."""


def stacked_parameters(
    sizes: Sequence[int], folds: int, members: int, generator: torch.Generator
) -> list[Float[Tensor, "models _ _"]]:
    """Weights and biases, layer after layer, of folds × members networks; `sizes` runs from input to output.

    Uniform within ± 1/√inputs, the same for all members of a fold: what then tells two candidates apart is their
    policies, not their initial values.
    """
    parameters = []
    for inputs, outputs in pairwise(sizes):
        for rows in (inputs, 1):
            uniform = torch.rand(folds, rows, outputs, generator=generator).mul_(2).sub_(1) / math.sqrt(
                inputs
            )
            parameters.append(uniform.repeat_interleave(members, 0).requires_grad_())
    return parameters


def stacked_features(
    parameters: Sequence[Float[Tensor, "models _ _"]], x: Float[Tensor, "folds batch inputs"]
) -> Float[Tensor, "folds members batch features"]:
    """The last hidden layer of every member on its fold's rows: linear layers with a ReLU behind each."""
    return _behind(parameters[:-2], x.repeat_interleave(len(parameters[0]) // len(x), 0), len(x))


def stacked_relu(
    parameters: Sequence[Float[Tensor, "models _ _"]], x: Float[Tensor, "folds batch inputs"]
) -> Float[Tensor, "folds members batch outputs"]:
    """The outputs of every member on its fold's rows: a linear layer on `stacked_features`."""
    hidden = stacked_features(parameters, x)
    return torch.baddbmm(parameters[-1], hidden.flatten(0, 1), parameters[-2]).view(*hidden.shape[:3], -1)


def stacked_relu_on_actions(
    parameters: Sequence[Float[Tensor, "models _ _"]],
    x: Float[Tensor, "folds batch inputs"],
    action: Float[Tensor, "folds members batch samples dims"],
) -> Float[Tensor, "folds members batch samples outputs"]:
    """`stacked_relu` on (x, action) for several actions a row, the last inputs; the part of x is multiplied once.

    There must be a hidden layer.
    """
    folds, members, batch, samples, dims = action.shape
    of_state, of_action = parameters[0].split([x.shape[-1], dims], 1)
    from_state = torch.baddbmm(parameters[1], x.repeat_interleave(members, 0), of_state)
    from_action = torch.bmm(action.reshape(folds * members, batch * samples, dims), of_action)
    first = from_state.unsqueeze(2) + from_action.view(folds * members, batch, samples, -1)
    hidden = _behind(parameters[2:-2], first.flatten(1, 2).relu_(), folds).flatten(0, 1)
    return torch.baddbmm(parameters[-1], hidden, parameters[-2]).view(folds, members, batch, samples, -1)


def _behind(layers: Sequence[Tensor], hidden: Tensor, folds: int) -> Tensor:
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        hidden = torch.baddbmm(bias, hidden, weight).relu_()
    return hidden.view(folds, len(hidden) // folds, *hidden.shape[1:])


class Minibatches:
    """Rows for each fold's models: drawn with replacement from what they are trained on, in proportion to `weight`."""

    def __init__(
        self,
        transitions: Transitions,
        rows: Bool[np.ndarray, " rows"],
        batch: int,
        generator: torch.Generator,
        weight: Float[np.ndarray, " rows"] | None = None,
    ) -> None:
        weight = np.ones(transitions.rows) if weight is None else weight
        fold = transitions.point_fold[: transitions.rows]
        chosen = [np.flatnonzero(rows & (trained[fold] > 0) & (weight > 0)) for trained in transitions.trains]
        if not all(len(of_fold) for of_fold in chosen):
            raise ValueError(
                "expected rows of positive weight to train every fold's model, got a fold without any"
            )
        self._row = torch.from_numpy(np.concatenate(chosen))
        self._up_to = (
            torch.from_numpy(np.concatenate([weight[of_fold] for of_fold in chosen])).double().cumsum(0)
        )
        ends = self._up_to[torch.tensor([len(of_fold) for of_fold in chosen]).cumsum(0) - 1]
        self._begins, self._ends = torch.cat([ends.new_zeros(1), ends[:-1]])[:, None], ends[:, None]
        self._batch, self._generator = batch, generator

    def draw(self) -> Int[Tensor, "folds batch"]:
        share = torch.rand(len(self._ends), self._batch, generator=self._generator, dtype=torch.float64)
        drawn = torch.lerp(self._begins.expand_as(share), self._ends.expand_as(share), share)
        return self._row[torch.searchsorted(self._up_to, drawn, right=True).clamp_(max=len(self._row) - 1)]


def held_out(transitions: Transitions, members: int) -> Iterator[tuple[int, Int[Tensor, " chunk"], slice]]:
    """Every fold's points, in chunks, and where the networks that did not see them lie among the stacked."""
    for fold in range(transitions.folds):
        points = torch.from_numpy(np.flatnonzero(transitions.point_fold == fold))
        yield from (
            (fold, chunk, slice(fold * members, (fold + 1) * members)) for chunk in points.split(1024)
        )


def standardised_inputs(
    observation: Float[np.ndarray, "points features"], *, time: Float[np.ndarray, " points"] | None = None
) -> Float[Tensor, "points inputs"]:
    """What the networks read, in single precision: observations and, if given, time, each of mean 0 and deviation 1."""
    columns = observation if time is None else np.column_stack([observation, time])
    centre, scale = standardisation(columns)
    return torch.from_numpy((columns - centre) / scale).float()


def updates_with_progress(updates: int, progress: Progress | None) -> Iterator[int]:
    """0, …, updates − 1, telling of every hundredth part of them that is done."""
    every = max(1, updates // 100)
    for update in range(updates):
        yield update
        if progress is not None and ((update + 1) % every == 0 or update + 1 == updates):
            progress(update + 1, updates)
