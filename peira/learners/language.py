"""Optimiser steps on the log-probabilities of whole episodes of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.experience.dialogue import Sampled

TokenLoss = Callable[[Float[Tensor, " tokens"], Int[Tensor, " tokens"]], Float[Tensor, ""]]


@runtime_checkable
class Scoring(Protocol):
    """A policy that gives what it sampled in whole episodes a log-probability each."""

    version: int

    def trained(self) -> list[nn.Parameter]: ...

    def log_prob(
        self, episodes: Sequence[Sampled], *, temperature: float = 1.0
    ) -> Float[Tensor, " tokens"]: ...


class LanguageLearner:
    """AdamW on the trained parameters of a policy that is scored by whole episodes.

    Episodes go through the model packed, at most `micro_tokens` tokens at a time; gradients add up, so that this bounds
    memory and changes nothing else. Gradients are clipped to the norm `max_gradient_norm`; a step whose norm is not
    finite is left out. `learning_rate` may be set anew before any step.
    """

    def __init__(
        self,
        policy: Scoring,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        max_gradient_norm: float = 1.0,
        micro_tokens: int = 8192,
    ):
        self.policy, self.learning_rate = policy, learning_rate
        self._max_gradient_norm, self._micro_tokens = max_gradient_norm, micro_tokens
        self._parameters = policy.trained()
        self._optimiser = torch.optim.AdamW(
            self._parameters, lr=learning_rate, weight_decay=weight_decay, fused=True
        )

    def log_prob(self, episodes: Sequence[Sampled], *, temperature: float) -> Float[Tensor, " tokens"]:
        """Log-probability of every sampled token, episode by episode, without gradients."""
        flat = torch.zeros(sum(int(episode.sampled.sum()) for episode in episodes))
        with torch.no_grad():
            for chosen, where in self._parts(episodes):
                flat[where] = self.policy.log_prob(chosen, temperature=temperature).cpu()
        return flat

    def step(self, episodes: Sequence[Sampled], loss: TokenLoss, *, temperature: float = 1.0) -> float:
        """One step on loss(log_prob, which): `which` are the places of these sampled tokens among all, laid flat.

        The losses of all parts are added. Returns the norm of the gradient before clipping.
        """
        self._optimiser.zero_grad(set_to_none=True)
        for chosen, where in self._parts(episodes):
            log_prob = self.policy.log_prob(chosen, temperature=temperature)
            loss(log_prob, where.to(log_prob.device)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_gradient_norm).item()
        if np.isfinite(norm):
            for group in self._optimiser.param_groups:
                group["lr"] = self.learning_rate
            self._optimiser.step()
            self.policy.version += 1
        return norm

    def _parts(self, episodes: Sequence[Sampled]) -> list[tuple[list[Sampled], Int[Tensor, " tokens"]]]:
        """Neighbours together, with the places of their sampled tokens among those of all."""
        counts = np.array([int(episode.sampled.sum()) for episode in episodes])
        starts = np.concatenate([[0], np.cumsum(counts)])
        parts, part, longest = [], [], 0
        for place, episode in enumerate(episodes):
            longest = max(longest, len(episode))
            if part and longest * (len(part) + 1) > self._micro_tokens:
                parts.append(part)
                part, longest = [], len(episode)
            part.append(place)
        parts.append(part)
        return [
            (
                [episodes[place] for place in part],
                torch.from_numpy(np.concatenate([np.arange(starts[p], starts[p + 1]) for p in part])),
            )
            for part in parts
        ]

    def state_dict(self) -> dict:
        return self._optimiser.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._optimiser.load_state_dict(state)


def supervised_loss(weight: Float[Tensor, " tokens"]) -> TokenLoss:
    """−Σ w log π(token): likelihood of demonstrated tokens."""
    return lambda log_prob, which: -(weight.to(log_prob.device)[which] * log_prob).sum()
