"""How fast is a TRPO update? Ours against sb3-contrib's, on the same batch and from the same parameters.

Both take the policy's step alone: gradient, conjugate gradients on Fisher products (15), line search; networks, batch,
damping and KL limit are the same (theirs is of a KL averaged over action dimensions; ours is scaled to it). One policy
of 64-64 on 2 048 rows of the sizes of HalfCheetah-v5, in float32 as theirs is, and five of 16-16 on 400 rows each, in
float64 as HNPG has them at a lock: one stacked update against five of theirs. Updates alternate, so that a machine
whose speed drifts slows both; ratios are medians over the rounds. The cosine says that both step in the same direction.

    python benchmarks/natural_gradient.py --out results/speed/natural_gradient.json      # a minute

Needs `pip install 'peira[bench]'` (`make bench` does it).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gymnasium import Env
from gymnasium.spaces import Box
from rich.console import Console
from rich.table import Table
from sb3_contrib import TRPO
from stable_baselines3.common.logger import Logger
from torch import Tensor

from peira.learners.natural_gradient import ActorRows, NaturalGradient
from peira.policies.stacked import StackedGaussianPolicy
from peira.versions import machine, versions

ITERATIONS, DAMPING, MAX_KL = 15, 0.1, 0.01
REQUIRED = 2.0


@dataclass(frozen=True)
class Size:
    """One comparison: how many policies, and what each reads."""

    policies: int
    rows: int
    observation: int
    action: int
    hidden: tuple[int, ...]
    dtype: str


SIZES = {
    "one policy": Size(1, 2048, 17, 6, (64, 64), "float32"),
    "five stacked policies": Size(5, 400, 16, 10, (16, 16), "float64"),
}


class Shapes(Env):
    """Spaces without a world: all that the other side asks of an environment before it updates."""

    def __init__(self, size: Size):
        self.observation_space = Box(-np.inf, np.inf, (size.observation,), np.float32)
        self.action_space = Box(-1.0, 1.0, (size.action,), np.float32)


def theirs(size: Size, seed: int) -> TRPO:
    """Their learner with a full buffer: normal observations, its own actions, normal advantages."""
    model = TRPO(
        "MlpPolicy",
        Shapes(size),
        n_steps=size.rows,
        batch_size=size.rows,
        cg_max_steps=ITERATIONS,
        cg_damping=DAMPING,
        target_kl=MAX_KL,
        n_critic_updates=0,
        policy_kwargs={"net_arch": list(size.hidden)},
        device="cpu",
        seed=seed,
    )
    model.set_logger(Logger(None, []))
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(size.rows, size.observation, generator=generator)
    with torch.no_grad():
        # Away from their nearly constant first policy, so that directions are worth comparing.
        model.policy.action_net.weight.mul_(30)
        action, value, log_prob = model.policy(observation)
    buffer = model.rollout_buffer
    buffer.observations[:, 0], buffer.actions[:, 0] = observation.numpy(), action.numpy()
    buffer.values[:, 0], buffer.log_probs[:, 0] = value[:, 0].numpy(), log_prob.numpy()
    buffer.advantages[:, 0] = torch.randn(size.rows, generator=generator).numpy()
    buffer.returns[:, 0] = buffer.advantages[:, 0] + buffer.values[:, 0]
    buffer.pos, buffer.full = size.rows, True
    return model


def parameters(model: TRPO) -> Tensor:
    """Theirs, laid out as a row of ours: weight [in, out] and bias of each layer, then log σ."""
    policy = model.policy
    layers = [layer for layer in policy.mlp_extractor.policy_net if hasattr(layer, "weight")]
    parts = [
        part for layer in (*layers, policy.action_net) for part in (layer.weight.T.flatten(), layer.bias)
    ]
    return torch.cat([*parts, policy.log_std]).detach().clone()


def ours(size: Size, models: list[TRPO]) -> tuple[StackedGaussianPolicy, ActorRows]:
    """The same policies stacked, and the same batches; advantages standardised, as theirs are."""
    policy = StackedGaussianPolicy(
        size.policies, size.observation, size.action, hidden=size.hidden, dtype=size.dtype
    )
    policy.flat.copy_(torch.stack([parameters(model) for model in models]))

    def column(name: str) -> Tensor:
        return torch.stack([torch.from_numpy(getattr(model.rollout_buffer, name)[:, 0]) for model in models])

    advantage = column("advantages").to(policy.flat.dtype)
    advantage = (advantage - advantage.mean(1, keepdim=True)) / (advantage.std(1, keepdim=True) + 1e-8)
    return policy, ActorRows.of(column("observations"), column("actions"), advantage)


def compare(size: Size, rounds: int) -> dict:
    """Seconds of both a round, their ratio, and the cosine between their steps."""
    models = [theirs(size, seed) for seed in range(size.policies)]
    policy, rows = ours(size, models)
    # Their KL is a mean over action dimensions, not the sum: their Fisher matrix and limit are those of ours divided.
    scale = size.action
    natural = NaturalGradient(max_kl=MAX_KL * scale, damping=DAMPING * scale, iterations=ITERATIONS)
    start = policy.flat.clone()
    states = [{name: value.clone() for name, value in model.policy.state_dict().items()} for model in models]
    buffers = [dict(vars(model.rollout_buffer)) for model in models]
    seconds: dict[str, list[float]] = {"peira": [], "sb3-contrib": []}
    for _ in range(rounds + 1):
        policy.flat.copy_(start)
        began = time.perf_counter()
        natural.update(policy, rows)
        seconds["peira"].append(time.perf_counter() - began)
        for model, state, buffer in zip(models, states, buffers, strict=True):
            model.policy.load_state_dict(state)
            vars(model.rollout_buffer).update(buffer)
            model._current_progress_remaining = 1.0
        began = time.perf_counter()
        for model in models:
            model.train()
        seconds["sb3-contrib"].append(time.perf_counter() - began)
    steps = (policy.flat - start, torch.stack([parameters(model) for model in models]) - start)
    # The first round warms both up.
    pairs = list(zip(seconds["sb3-contrib"][1:], seconds["peira"][1:], strict=True))
    ratios = [their / our for their, our in pairs]
    return {
        "size": vars(size),
        "milliseconds": {name: 1e3 * statistics.median(spent[1:]) for name, spent in seconds.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "cosine": torch.cosine_similarity(*steps, dim=1).min().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("results/speed/natural_gradient.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Without updates of the critic theirs logs the mean of no losses.
    warnings.filterwarnings("ignore", message="Mean of empty slice|invalid value encountered")
    found = {name: compare(size, options.rounds) for name, size in SIZES.items()}
    document = {
        "command": f"python benchmarks/natural_gradient.py --rounds {options.rounds}",
        "comparisons": found,
        "required": REQUIRED,
        "met": all(each["ratio"]["median"] >= REQUIRED for each in found.values()),
        "load": os.getloadavg(),
        "versions": versions(),
        "machine": machine(),
    }
    options.out.write_text(json.dumps(document, indent=2) + "\n")
    table = Table("policy update", "peira", "sb3-contrib", "ratio (range)", "cosine", box=None)
    for name, each in found.items():
        ours, others = (f"{each['milliseconds'][side]:.1f} ms" for side in ("peira", "sb3-contrib"))
        ratio = each["ratio"]
        span = f"{ratio['median']:.1f} ({ratio['min']:.1f}–{ratio['max']:.1f})"
        table.add_row(name, ours, others, span, f"{each['cosine']:.5f}")
    Console().print(table)


if __name__ == "__main__":
    main()
