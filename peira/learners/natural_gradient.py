"""The natural policy gradient: conjugate gradients on exact Fisher products and a line search that checks the KL.

Schulman et al. 2015 (TRPO), for a stack of policies at once: each has its own direction, scale and acceptance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from peira.policies.stacked import StackedPolicy

KL_SLACK = 1.5
"""How far past max_kl a step may go: the undamped step of exactly max_kl in the quadratic model can exceed it."""


def conjugate_gradients(
    product: Callable[[Float[Tensor, "problems size"]], Float[Tensor, "problems size"]],
    target: Float[Tensor, "problems size"],
    *,
    iterations: int = 10,
    tolerance: float = 1e-10,
) -> Float[Tensor, "problems size"]:
    """x with A x ≈ target, for several symmetric positive A at once, from x = 0.

    `product` gives A v, row by row. A problem stops where its squared residual is below `tolerance`, or where a
    direction has no curvature; the others go on. Source: Hestenes and Stiefel 1952.
    """
    solution = torch.zeros_like(target)
    residual = direction = target
    square = (residual * residual).sum(1, keepdim=True)
    for _ in range(iterations):
        image = product(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        going = (square >= tolerance) & (curvature > 0)
        if not going.any():
            break
        length = torch.where(going, square / torch.where(going, curvature, 1.0), 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        following = (residual * residual).sum(1, keepdim=True)
        growth = torch.where(going, following / torch.where(going, square, 1.0), 0.0)
        direction = residual + growth * direction
        square = following
    return solution


@dataclass(frozen=True)
class ActorRows:
    """What a policy update reads, `[steps, rows, …]`.

    `weight` sums to 1 over the rows of a step; each source's share of it is the source's weight (equation 2), spread
    evenly over its rows. `in_surrogate` says whose actions were drawn from the policy itself: only for those is the
    ratio 1 at the start, so only they may enter a surrogate of ratios.
    """

    observation: Float[Tensor, "steps rows obs"]
    action: Shaped[Tensor, "steps rows *action"]
    advantage: Float[Tensor, "steps rows"]
    weight: Float[Tensor, "steps rows"]
    in_surrogate: Bool[Tensor, " rows"]

    @staticmethod
    def joined(sources: list[ActorRows], weights: list[float]) -> ActorRows:
        """Rows of several sources, each source's weights scaled to its share of the whole."""
        share = [weight / sum(weights) for weight in weights]
        return ActorRows(
            observation=torch.cat([rows.observation for rows in sources], 1),
            action=torch.cat([rows.action for rows in sources], 1),
            advantage=torch.cat([rows.advantage for rows in sources], 1),
            weight=torch.cat([rows.weight * of for rows, of in zip(sources, share, strict=True)], 1),
            in_surrogate=torch.cat([rows.in_surrogate for rows in sources]),
        )

    @staticmethod
    def of(
        observation: Float[Tensor, "steps rows obs"],
        action: Shaped[Tensor, "steps rows *action"],
        advantage: Float[Tensor, "steps rows"],
        *,
        logged_actions: bool = False,
    ) -> ActorRows:
        """One source, every row of equal weight."""
        rows = advantage.shape[1]
        return ActorRows(
            observation,
            action,
            advantage,
            torch.full_like(advantage, 1 / rows),
            torch.full((rows,), not logged_actions),
        )


@dataclass(frozen=True)
class NaturalDirection:
    """Solution x of (F + damping) x = g for each policy of a stack, and what was seen on the way."""

    gradient: Float[Tensor, "steps size"]
    solution: Float[Tensor, "steps size"]
    curvature: Float[Tensor, " steps"]


@dataclass(frozen=True)
class NaturalGradient:
    """TRPO's update: a natural-gradient direction, scaled to `max_kl`, halved until it is safe and an improvement.

    g = Σ w A ∇log π;  x ≈ (F + damping·I)⁻¹ g by conjugate gradients;  step = x·√(2 max_kl / xᵀ(F + damping·I)x);
    halved up to `backtracks` times until the surrogate Σ w A π/π_old rises, by more than `accept` of what g promises,
    and mean KL(π_old ‖ π) ≤ 1.5 max_kl; otherwise the policy keeps its parameters. fisher="exact" takes F as the
    expectation over the policy's actions; "sampled" as Σ w φ φᵀ over the rows' own actions (φ = ∇ log π): x is then the
    solution of the regression Σ w (xᵀφ − A)², for which logged actions do as well. Source: ``hnpg.md`` 2.1, 2.2.
    """

    max_kl: float = 0.01
    damping: float = 0.1
    iterations: int = 10
    backtracks: int = 10
    accept: float = 0.1

    def direction(
        self, policy: StackedPolicy, rows: ActorRows, fisher: Literal["exact", "sampled"] = "exact"
    ) -> NaturalDirection:
        """The direction alone, before it is scaled."""
        activations = policy.activations(rows.observation)
        return self._direction(policy, rows, fisher, activations)

    def _direction(
        self, policy: StackedPolicy, rows: ActorRows, fisher: str, activations: list[Tensor]
    ) -> NaturalDirection:
        gradient = policy.score(activations, rows.action, rows.weight * rows.advantage)

        def product(direction: Tensor) -> Tensor:
            if fisher == "exact":
                image = policy.fisher(activations, rows.weight, direction)
            else:
                along = policy.score_product(activations, rows.action, direction)
                image = policy.score(activations, rows.action, rows.weight * along)
            return image.add_(direction, alpha=self.damping)

        solution = conjugate_gradients(product, gradient, iterations=self.iterations)
        return NaturalDirection(gradient, solution, (solution * product(solution)).sum(1))

    def update(
        self, policy: StackedPolicy, rows: ActorRows, fisher: Literal["exact", "sampled"] = "exact"
    ) -> dict[str, float]:
        """Move the policy; raises its version. Measures are means over the stack.

        surrogate_before and surrogate_after; kl, of the step taken; step_fraction, of the scaled step (0 where none was
        taken); skipped, the share of policies without a usable direction (no signal, or no curvature).
        """
        old_flat = policy.flat.clone()
        activations = policy.activations(rows.observation)
        old_head = activations[-1]
        old_log_prob = policy.log_prob_at(old_flat, old_head, rows.action)
        found = self._direction(policy, rows, fisher, activations)
        usable = (found.curvature > 0) & found.curvature.isfinite()
        scale = (2 * self.max_kl / torch.where(usable, found.curvature, 1.0)).sqrt()
        step = torch.where(usable[:, None], scale[:, None] * found.solution, 0.0)

        trusted = rows.weight * rows.in_surrogate
        pull = trusted * rows.advantage
        before = pull.sum(1)
        promised = (self._surrogate_gradient(policy, rows, activations, pull, found) * step).sum(1)
        share = torch.ones_like(before)
        waiting = usable.clone()
        taken = torch.zeros_like(before)
        after, divergence = before.clone(), torch.zeros_like(before)
        for _ in range(self.backtracks + 1):
            if not waiting.any():
                break
            flat = old_flat + share[:, None] * step
            head = policy.activations(rows.observation, flat)[-1]
            ratio = (policy.log_prob_at(flat, head, rows.action) - old_log_prob).exp()
            surrogate = (pull * ratio).sum(1)
            moved = (rows.weight * policy.kl(old_flat, old_head, flat, head)).sum(1)
            gain = surrogate - before
            good = waiting & (gain > 0) & (gain > self.accept * share * promised)
            good &= moved <= KL_SLACK * self.max_kl
            taken = torch.where(good, share, taken)
            after = torch.where(good, surrogate, after)
            divergence = torch.where(good, moved, divergence)
            waiting &= ~good
            share = torch.where(waiting, share / 2, share)
        policy.flat.copy_(old_flat + taken[:, None] * step)
        policy.version += 1
        return {
            "surrogate_before": before.mean().item(),
            "surrogate_after": after.mean().item(),
            "kl": divergence.mean().item(),
            "step_fraction": taken.mean().item(),
            "skipped": (~usable).double().mean().item(),
        }

    def _surrogate_gradient(
        self,
        policy: StackedPolicy,
        rows: ActorRows,
        activations: list[Tensor],
        pull: Tensor,
        found: NaturalDirection,
    ) -> Tensor:
        if rows.in_surrogate.all():
            return found.gradient
        return policy.score(activations, rows.action, pull)
