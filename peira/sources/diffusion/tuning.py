"""Finding the strength of guidance at which actions are as spread as the policy's (``pgd.md`` 2.6, after PolyGRAD)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from peira.sources.diffusion.sampler import SamplerConfig
from peira.sources.guided_diffusion import TrajectoryDiffusion, generate
from peira.sources.synthetic import TargetPolicy, is_deterministic, standard_scores


def tuned_strength(
    model: TrajectoryDiffusion,
    policy: TargetPolicy,
    guidance: SamplerConfig,
    generator: torch.Generator,
    *,
    behaviour: TargetPolicy | None = None,
    rounds: int = 20,
    windows: int = 64,
    rate: float = 1.0,
) -> tuple[float, list[dict[str, float]]]:
    """λ after `rounds` moves log λ ← log λ + rate·(std(z) − 1), starting from `guidance.strength`, and the path there.

    z = (a − μ(s))/σ(s) over the steps of `windows` fresh windows a round. Too little guidance leaves std(z) > 1, a
    collapse shows as std(z) < 1. A move is at most a factor of e, for std(z) is unbounded before guidance bites.
    Raises ValueError for a strength of 0, from which no factor leads away, and for a deterministic policy, which has no
    spread.
    """
    if is_deterministic(policy):
        raise ValueError("policy: a deterministic one has no spread to tune to; choose the strength yourself")
    if guidance.strength <= 0:
        raise ValueError(f"strength: expected a start above 0, got {guidance.strength}; PolyGRAD's is 0.005")
    strength, path = guidance.strength, []
    for _ in range(rounds):
        settings = replace(guidance, strength=strength)
        z = generate(model, policy, settings, windows, generator, behaviour=behaviour)
        observation, action = model.channels.decision(z[:, :-1])
        std = standard_scores(policy, observation, action, model.channels.bounds.half).std().item()
        path.append({"strength": strength, "std_z": std})
        strength *= math.exp(max(-1.0, min(1.0, rate * (std - 1))))
    return strength, path
