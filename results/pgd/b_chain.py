"""B: does a learned denoiser sample windows as the closed form says, unguided and guided?

    python results/pgd/b_chain.py

writes b_chain.json and .md beside itself, in about an hour on one core; it goes on where it was cut off. The
linear-Gaussian chain of ``pgd.md`` 8, test 3, with windows of 8 steps: s_0 ~ N(0, 1), s' = 0.9 s + 0.5 a + N(0, 0.1),
logged under a = −0.2 s + N(0, 0.25), guided by π(a | s) = N(−0.8 s, 0.25). Per seed one U-Net (f = 32) is fitted to
20 000 windows, and 4 096 are sampled without guidance and with each placement of the action mask (N = 128, S_churn 80,
S_noise 1, λ = 1). The closed form beside each is that of the same sampler with the exact denoiser, in the same z-scored
channels; that of the tilted law is shown as well.

Accepted (``pgd.md`` 7, B): every variance of an unguided window's entries within 10 % of the law of the data, and with
dps-full the mean of (a + 0.8 s)² over a window within 15 % of the closed form of the same sampler, in the mean over
seeds.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from peira.experience.transitions import TransitionLog
from peira.runs.study import measured, partial, publish, verdicts
from peira.sources.diffusion.closed_form import GaussianLaw, along, law_of_samples, linear_chain
from peira.sources.diffusion.sampler import OFFICIAL, Sampler
from peira.sources.diffusion.windows import Channels
from peira.sources.guided_diffusion import FitConfig, TrajectoryDiffusion, fit, generate

STEPS, WINDOWS, SAMPLES = 8, 20_000, 4_096
GAIN, VARIANCE = -0.8, 0.25
"""Of the policy that guides."""
SAMPLER = replace(OFFICIAL, steps=128, churn_noise=1.0)
ARMS = ("unguided", "dps-full", "dps-after", "dps-before")
FIT = FitConfig(
    length=STEPS,
    stride=1,
    low=(-float("inf"),),
    high=(float("inf"),),
    features=32,
    updates=10_000,
    batch_size=128,
)
WITHIN_VARIANCE, WITHIN_GAP = 0.10, 0.15


class Target:
    """N(−0.8 s, 0.25)."""

    def mode(self, observation: torch.Tensor) -> torch.Tensor:
        return GAIN * observation

    def choose(self, observation: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.mode(observation) + VARIANCE**0.5 * noise

    def log_prob(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return -0.5 * (action - self.mode(observation)).square().sum(-1) / VARIANCE


def chain_log(seed: int) -> TransitionLog:
    """Episodes of 9 steps, each of which gives one window: the one that does not end with the timeout."""
    law = linear_chain(STEPS + 2)
    factor = torch.linalg.cholesky(law.covariance)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(WINDOWS, len(factor), generator=generator, dtype=torch.float64) @ factor.mT
    state, action = drawn[:, 0::2].float(), drawn[:, 1::2].float()
    ends = torch.zeros(WINDOWS, STEPS + 1, dtype=torch.bool)
    ends[:, -1] = True
    rows = WINDOWS * (STEPS + 1)
    return TransitionLog(
        observation=state[:, :-1].reshape(rows, 1),
        action=action[:, :-1].reshape(rows, 1),
        reward=torch.zeros(rows),
        next_observation=state[:, 1:].reshape(rows, 1),
        terminated=torch.zeros(rows, dtype=torch.bool),
        truncated=ends.flatten(),
        first=torch.arange(WINDOWS + 1) * (STEPS + 1),
    )


def sampler_of(arm: str, denoise, log_density, actions: slice) -> Sampler:
    config = SAMPLER if arm == "unguided" else replace(SAMPLER, guidance=arm)
    return Sampler(denoise, config, actions=actions, log_density=None if arm == "unguided" else log_density)


def closed_form(arm: str, channels: Channels) -> GaussianLaw:
    """The law of what the sampler draws with the exact denoiser, in the model's z-scored channels, as raw values."""
    mean, deviation = (
        value[:2].double().repeat(STEPS) for value in (channels.scores.mean, channels.scores.deviation)
    )
    law = linear_chain(STEPS)
    scaled = GaussianLaw((law.mean - mean) / deviation, law.covariance / (deviation[:, None] * deviation))

    def log_density(states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        state, action = (mean.view(STEPS, 2) + deviation.view(STEPS, 2) * z for z in (states, actions))
        return -0.5 * (action[..., 1] - GAIN * state[..., 0]).square() / VARIANCE

    sampled = law_of_samples(
        sampler_of(arm, scaled.denoiser((STEPS, 2)), log_density, slice(1, 2)), (STEPS, 2)
    )
    return GaussianLaw(mean + deviation * sampled.mean, sampled.covariance * (deviation[:, None] * deviation))


def figures(law: GaussianLaw) -> dict:
    """Variances of states and actions, mean (a + 0.8 s)² and the residual of the dynamics, over the window."""
    gap = along(STEPS, [(1, 1.0), (0, -GAIN)])
    residual = along(STEPS, [(2, 1.0), (0, -0.9), (1, -0.5)], last=1)
    variance = law.covariance.diag()
    return {
        "state_variance": variance[0::2].tolist(),
        "action_variance": variance[1::2].tolist(),
        "policy_gap": law.variance_along(gap).mean().item(),
        "dynamics_residual": law.variance_along(residual).mean().item(),
    }


def sampled(model: TrajectoryDiffusion, arm: str, seed: int) -> dict:
    policy = None if arm == "unguided" else Target()
    config = SAMPLER if arm == "unguided" else replace(SAMPLER, guidance=arm)
    z = generate(model, policy, config, SAMPLES, torch.Generator().manual_seed(seed))
    raw = model.channels.raw(z)[..., :2].double().flatten(1)
    return figures(GaussianLaw(raw.mean(0), torch.cov(raw.T)))


def trial(label: str) -> dict:
    seed = int(label)
    began = time.process_time()
    model = fit(chain_log(seed), FIT, torch.Generator().manual_seed(seed))
    fitted = time.process_time()
    found = {
        arm: {"sampled": sampled(model, arm, seed), "closed_form": figures(closed_form(arm, model.channels))}
        for arm in ARMS
    }
    return {**found, "fit_cpu_seconds": fitted - began, "sample_cpu_seconds": time.process_time() - fitted}


def report(trials: list[dict]) -> dict:
    off = linear_chain(STEPS)
    zero, variance = (
        torch.zeros(STEPS, dtype=torch.float64),
        torch.full((STEPS,), VARIANCE, dtype=torch.float64),
    )
    tilted = off.tilted(along(STEPS, [(1, 1.0), (0, -GAIN)]), zero, variance)
    laws = {"data": figures(off), "tilted": figures(tilted)}
    arms = {}
    for arm in ARMS:
        arms[arm] = {
            kind: {
                name: np.mean([trial[arm][kind][name] for trial in trials], 0).tolist()
                for name in laws["data"]
            }
            for kind in ("sampled", "closed_form")
        }
        ratio = [
            trial[arm]["sampled"]["policy_gap"] / trial[arm]["closed_form"]["policy_gap"] for trial in trials
        ]
        arms[arm]["gap_ratio"] = {"mean": float(np.mean(ratio)), "of_seed": ratio}
    deviation = [
        abs(found / true - 1)
        for name in ("state_variance", "action_variance")
        for found, true in zip(arms["unguided"]["sampled"][name], laws["data"][name], strict=True)
    ]
    return {
        "laws": laws,
        "arms": arms,
        "largest_deviation": max(deviation),
        "cpu_seconds": {
            name: float(np.mean([trial[name] for trial in trials]))
            for name in ("fit_cpu_seconds", "sample_cpu_seconds")
        },
        "accepted": {
            "every unguided variance within 10 % of the data's": max(deviation) <= WITHIN_VARIANCE,
            "guided (a + 0.8 s)² within 15 % of the closed form of the same sampler": abs(
                arms["dps-full"]["gap_ratio"]["mean"] - 1
            )
            <= WITHIN_GAP,
        },
    }


def page(document: dict) -> str:
    rows = [
        ("data", "exact", document["laws"]["data"]),
        ("tilted, λ = 1", "exact", document["laws"]["tilted"]),
    ]
    for arm, entry in document["arms"].items():
        rows += [(arm, "closed form", entry["closed_form"]), (arm, "learned", entry["sampled"])]
    lines = [
        "# B: a learned denoiser on the linear-Gaussian chain",
        "",
        f"`{document['command']}` · {document['seeds']} seeds · windows of {STEPS} steps, {WINDOWS:,} to fit, "
        f"{SAMPLES:,} sampled, mean over seeds",
        "",
        "| windows | by | Var s_0, s_3, s_7 | Var a_0, a_3, a_7 | mean (a + 0.8 s)² | dynamics residual |",
        "|---|---|---|---|---:|---:|",
    ]
    for name, kind, entry in rows:
        states, actions = (
            ", ".join(f"{entry[of][t]:.3f}" for t in (0, 3, 7))
            for of in ("state_variance", "action_variance")
        )
        lines.append(
            f"| {name} | {kind} | {states} | {actions} | {entry['policy_gap']:.4f} | {entry['dynamics_residual']:.4f} |"
        )
    ratios = ", ".join(
        f"{arm} {entry['gap_ratio']['mean']:.3f}"
        for arm, entry in document["arms"].items()
        if arm != "unguided"
    )
    cpu = document["cpu_seconds"]
    return "\n".join(
        [
            *lines,
            "",
            f"Largest deviation of an unguided variance from the data's: {document['largest_deviation']:.1%}. Learned "
            f"over closed form, mean (a + 0.8 s)²: {ratios}. CPU seconds a seed: {cpu['fit_cpu_seconds']:.0f} to fit, "
            f"{cpu['sample_cpu_seconds']:.0f} to sample.",
            "",
            *verdicts(document["accepted"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    script = Path(__file__)
    trials = measured(partial(script), map(str, range(options.seeds)), trial)
    document = {"seeds": options.seeds, **report(list(trials.values()))}
    publish(
        script,
        "" if options.seeds == 5 else f" --seeds {options.seeds}",
        document,
        page,
        finished=options.seeds >= 5,
    )


if __name__ == "__main__":
    main()
