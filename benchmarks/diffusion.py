"""Does guidance cost more than the denoiser calls it needs, and does compiling pay?

Guided sampling of 2 048 windows of 32 steps and 25 channels (17 observations, 6 actions) with a U-Net of f = 64 and N =
64 levels, against the same number of bare denoiser calls on tensors of the same shape: 2N − 1, and N − 1 more for the
recipe's gradient at denoised windows; with dps each is a call and its product with a Jacobian. The guiding policy is an
IQL actor of 256-256. Then a training step on 128 windows: compiled, the same step uncompiled, and plain PyTorch with
fused Adam. Alternating rounds, so that a machine whose speed drifts slows both sides; CPU seconds of this process.

    python benchmarks/diffusion.py --out results/speed/diffusion.json       # about a quarter of an hour of one core
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from peira.policies.continuous import GaussianActor
from peira.policies.denoiser import (
    DenoiserTraining,
    TrainingSettings,
    denoising_loss,
    make_denoiser,
    noise_levels,
)
from peira.sources.diffusion.sampler import SamplerConfig
from peira.sources.diffusion.windows import Bounds, Channels
from peira.sources.guided_diffusion import FitConfig, TrajectoryDiffusion, generate
from peira.sources.standardise import Standardiser
from peira.versions import machine, versions

OBSERVATIONS, ACTIONS, LENGTH, FEATURES, LEVELS = 17, 6, 32, 64, 64
CHANNELS = OBSERVATIONS + ACTIONS + 2
BATCH = 128
GOAL = 1.3


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of this process: a machine that is shared takes longer by the clock."""
    began = time.process_time()
    work()
    return time.process_time() - began


def model() -> TrajectoryDiffusion:
    scores = Standardiser(
        torch.zeros(CHANNELS), torch.ones(CHANNELS), torch.zeros(CHANNELS, dtype=torch.bool)
    )
    channels = Channels(OBSERVATIONS, Bounds(-torch.ones(ACTIONS), torch.ones(ACTIONS)), scores)
    denoiser = make_denoiser(CHANNELS, features=FEATURES, generator=torch.Generator().manual_seed(0))
    return TrajectoryDiffusion(FitConfig(length=LENGTH, features=FEATURES), channels, denoiser)


def sampling(windows: int, rounds: int) -> dict:
    """CPU seconds of guided sampling and of its bare calls, and their ratio, for the recipe and for dps."""
    made = model()
    policy = GaussianActor(
        OBSERVATIONS,
        ACTIONS,
        low=[-1.0] * ACTIONS,
        high=[1.0] * ACTIONS,
        generator=torch.Generator().manual_seed(0),
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(windows, LENGTH, CHANNELS, generator=generator)
    sigma = torch.ones(1)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(2 * LEVELS - 1 + LEVELS - 1):
                made.denoise(x, sigma)

    def bare_with_jacobian() -> None:
        for _ in range(2 * LEVELS - 1):
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(made.denoise(leaf, sigma), leaf, x)

    def guided(mode: str) -> Callable[[], object]:
        # A small strength: networks that never trained leave the range of floats under a large one.
        config = SamplerConfig(guidance=mode, strength=1e-3)
        return lambda: generate(made, policy, config, windows, generator)

    with torch.no_grad():
        made.denoise(x, sigma)
    arms = {
        "recipe": (guided("recipe"), bare),
        "dps-full": (guided("dps-full"), bare_with_jacobian),
    }
    spent = {name: {"guided": [], "bare": []} for name in arms}
    for _ in range(rounds):
        for name, (work, calls) in arms.items():
            spent[name]["guided"].append(timed(work))
            spent[name]["bare"].append(timed(calls))
    found = {}
    for name, each in spent.items():
        ratios = [a / b for a, b in zip(each["guided"], each["bare"], strict=True)]
        found[name] = {
            "guided_cpu_seconds": statistics.median(each["guided"]),
            "bare_cpu_seconds": statistics.median(each["bare"]),
            "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        }
    return found


def training(rounds: int, steps: int) -> dict:
    """CPU seconds of a training step: compiled, uncompiled, and plain PyTorch."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(BATCH, LENGTH, CHANNELS, generator=generator)

    def ours(compiled: bool) -> Callable[[], object]:
        denoiser = make_denoiser(CHANNELS, features=FEATURES, generator=generator)
        settings = TrainingSettings(updates=10**9, batch_size=BATCH, compiled=compiled)
        training = DenoiserTraining(denoiser, settings, generator)
        return lambda: training.advance(steps, lambda count: clean)

    def plain() -> Callable[[], object]:
        denoiser = make_denoiser(CHANNELS, features=FEATURES, generator=generator)
        adam = torch.optim.Adam(denoiser.parameters(), lr=1e-3, fused=True)

        def work() -> None:
            for _ in range(steps):
                noise, sigma = torch.randn(clean.shape, generator=generator), noise_levels(BATCH, generator)
                adam.zero_grad()
                denoising_loss(denoiser, clean, noise, sigma)[0].backward()
                adam.step()

        return work

    arms = {"compiled": ours(True), "uncompiled": ours(False), "plain": plain()}
    first = {name: timed(work) for name, work in arms.items()}
    spent = {name: [] for name in arms}
    for _ in range(rounds):
        for name, work in arms.items():
            spent[name].append(timed(work) / steps)
    step = {name: statistics.median(values) for name, values in spent.items()}
    return {
        "cpu_seconds_a_step": step,
        "plain_over_compiled": step["plain"] / step["compiled"],
        "cpu_seconds_to_compile": first["compiled"] - steps * step["compiled"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = os.getloadavg()
    document = {
        "command": f"python benchmarks/diffusion.py --windows {options.windows} --rounds {options.rounds}",
        "windows": options.windows,
        "sampling": sampling(options.windows, options.rounds),
        "training": training(options.rounds, options.steps),
        "load": [began[0], os.getloadavg()[0]],
        "versions": versions(),
        "machine": machine(),
    }
    document["accepted"] = {
        f"guided sampling within {GOAL} times its bare denoiser calls ({name})": entry["ratio"]["median"]
        <= GOAL
        for name, entry in document["sampling"].items()
    }
    text = json.dumps(document, indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
