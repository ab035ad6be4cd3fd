"""C: on Pendulum-v1, are guided windows more on-policy than unguided ones, and as plausible?

    python results/pgd/c_pendulum.py

writes c_pendulum.json, .md and a picture beside itself, in about three hours of one core; it goes on where it was cut
off, models included. Per seed a log of 300 episodes × 200 steps of the scripted swing-up with noise N(0, 0.5²) and 20 %
uniform torques (in units of the largest), one diffusion model (U-Net, f = 64, windows of 32 steps) and an ensemble of
five one-step networks. Targets are Gaussian (deviation 0.2): (i) the swing-up with 1.5 times the gain, (ii) with half
of it, (iii) around an actor that TD3+BC learned from the log. 2 048 windows of each kind (N = 64): unguided; guided by
the official recipe with one λ for all targets, tuned on (i) so that std (a − μ)/σ is about 1; the ensemble rolled out
under the target; real ones; and real ones whose actions are drawn anew from the target, which no state follows. log π
is a density in torque. Errors are squared deviations from the true simulator, its state set from the observation, in
units of the data's variances, mean over the three channels; those of the ensemble are also compounded: its rollout
against the simulator's with the same actions.

Accepted (``pgd.md`` 7, C), 5 seeds, paired 95 % bootstrap intervals: (a) log π of guided less unguided windows at least
1 nat a step on targets (i) and (iii), the interval above 0; (b) one-step error of guided at most twice that of unguided
windows; (c) over steps from the 16th on, error of guided windows below the compounded error of the ensemble.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from peira.environments.pendulum_policies import (
    GaussianAround,
    learned_target,
    pendulum_log,
    step_pendulum,
    swing_up_target,
)
from peira.evaluation.off_policy.plots import save
from peira.evaluation.statistics import paired_difference
from peira.experience.transitions import TransitionLog, from_table
from peira.learners.offline import OfflineLearner, Settings, standardisation
from peira.runs import guidance_plot
from peira.runs.study import RESAMPLES, measured, partial, publish, verdicts
from peira.sources.diffusion.diagnostics import diagnose, over_strengths
from peira.sources.diffusion.sampler import SamplerConfig
from peira.sources.diffusion.tuning import tuned_strength
from peira.sources.diffusion.windows import Channels
from peira.sources.dynamics_ensemble import EnsembleConfig, EnsembleFit, EnsembleSource
from peira.sources.guided_diffusion import DiffusionFit, FitConfig, TrajectoryDiffusion, generate

EPISODES, WINDOWS, LATE = 300, 2048, 16
BOX = {"low": (-2.0,), "high": (2.0,)}
FIT = FitConfig(**BOX, length=32, features=64, updates=12_000, batch_size=128)
ENSEMBLE = EnsembleConfig(**BOX, members=5, elites=5, updates=10_000)
ACTOR_UPDATES = 20_000
GUIDANCE = SamplerConfig(guidance="recipe")
SWEPT = {
    "recipe": (0.1, 0.3, 1.0, 3.0, 10.0),
    "dps-after": (0.01, 0.1, 1.0),
    "dps-full": (0.01, 0.03, 0.1, 0.3),
}
SWEPT_WINDOWS = 256
TARGETS = {"i": "gain × 1.5", "ii": "gain × 0.5", "iii": "TD3+BC actor"}
FIGURES = ("log_pi", "std_z", "dynamics_error", "nearest_neighbour", "action_variance", "state_variance")


def simulator(observation: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    following, reward = step_pendulum(observation.numpy(), action.numpy())
    return torch.from_numpy(following).float(), torch.from_numpy(reward).float()


# -- one seed ----------------------------------------------------------------------------------------------------------


def logged(seed: int) -> TransitionLog:
    return from_table(pendulum_log(EPISODES, np.random.default_rng(seed), run_id=f"c_pendulum {seed}"))


def fitted(log: TransitionLog, seed: int, work: Path) -> tuple[TrajectoryDiffusion, torch.Tensor]:
    """The model, and real windows; taken from the work folder where it was fitted before."""
    training = DiffusionFit(log, FIT, seed)
    real = training.windows.batch(WINDOWS, torch.Generator().manual_seed(seed))
    folder = work / f"diffusion-{seed}"
    if (folder / "diffusion.json").exists():
        return TrajectoryDiffusion.load(folder), real
    while not training.is_over:
        loss = training.advance(1000)
        print(f"seed {seed}: {training.step} of {FIT.updates} updates, loss {loss:.3f}", flush=True)
    training.model().save(folder)
    return TrajectoryDiffusion.load(folder), real


def targets(log: TransitionLog, seed: int) -> dict[str, GaussianAround]:
    learner = OfflineLearner(Settings(), 3, 1, low=BOX["low"], high=BOX["high"], seeds=[seed])
    learner.standardise(*standardisation(log.observation))
    packed = learner.pack(log)
    for _ in range(ACTOR_UPDATES // 1000):
        learner.update(packed, learner.draw_rows(1000, [(0, log.rows, learner.settings.batch)]))
    actor = learner.policies[0].requires_grad_(False)
    return {"i": swing_up_target(1.5), "ii": swing_up_target(0.5), "iii": learned_target(actor.mode)}


def compounded(
    source: EnsembleSource, policy: GaussianAround, start: torch.Tensor, channels: Channels, seed: int
) -> tuple[dict, list[float]]:
    """Measures of the ensemble's rollouts; by step, its state's error against the simulator under the same actions."""
    rolled = source.rolled_out(start, policy, torch.Generator().manual_seed(seed))
    observation, action = rolled[..., :3], rolled[..., 3:4]
    following = rolled[..., 5:8]
    deviation = channels.scores.deviation[:3]
    true, errors = start, []
    for step in range(rolled.shape[1]):
        true, _ = simulator(true, action[:, step])
        errors.append(((following[:, step] - true) / deviation).square().mean().item())
    one_step, _ = simulator(observation.flatten(0, 1), action.flatten(0, 1))
    error = ((following.flatten(0, 1) - one_step) / deviation).square().mean(1)
    by_step = error.unflatten(0, rolled.shape[:2]).mean(0)
    log_pi = policy.log_prob(observation, action)
    return {
        "log_pi": log_pi.mean().item(),
        "std_z": ((action - policy.mode(observation)) / policy.std).std().item(),
        "dynamics_error": error.mean().item(),
        "dynamics_error_by_step": by_step.tolist(),
    }, errors


def redrawn(channels: Channels, z: torch.Tensor, policy: GaussianAround, seed: int) -> torch.Tensor:
    """Real windows whose actions are drawn anew from the policy, nothing else moved: what guidance must not be."""
    observation, _ = channels.decision(z)
    action = channels.bounds.clip(policy.sample(observation, torch.Generator().manual_seed(seed)))
    raw = channels.raw(z)
    raw[..., channels.actions] = channels.bounds.unsquash(action)
    return channels.scores.z(raw)


def trial(label: str, work: Path) -> dict:
    seed, began = int(label), time.process_time()
    log = logged(seed)
    model, real = fitted(log, seed, work)
    clock = {"fit": time.process_time() - began}
    of_target = targets(log, seed)
    ensemble = EnsembleFit(log, ENSEMBLE, seed)
    ensemble.advance(ENSEMBLE.updates)
    clock["actor_and_ensemble"] = time.process_time() - began - sum(clock.values())

    def drawn(policy: GaussianAround | None, guidance: SamplerConfig, n: int = WINDOWS) -> torch.Tensor:
        return generate(model, policy, guidance, n, torch.Generator().manual_seed(seed))

    start = replace(GUIDANCE, strength=1.0)
    strength, path = tuned_strength(
        model, of_target["i"], start, torch.Generator().manual_seed(seed), rounds=12, windows=64
    )
    clock["tuning"] = time.process_time() - began - sum(clock.values())
    guidance = replace(GUIDANCE, strength=strength)
    unguided = drawn(None, guidance)
    clock["unguided"] = time.process_time() - began - sum(clock.values())
    source = EnsembleSource(ensemble, log, horizon=FIT.length - 1)
    at = model.channels.raw(real[:, 0])[:, :3]
    found = {}
    for name, policy in of_target.items():
        guided = drawn(policy, guidance)
        told = {
            kind: diagnose(model.channels, z, policy, real=real, simulator=simulator)
            for kind, z in (
                ("real", real),
                ("redrawn", redrawn(model.channels, real, policy, seed)),
                ("unguided", unguided),
                ("guided", guided),
            )
        }
        told["ensemble"], told["compounded"] = compounded(source, policy, at, model.channels, seed)
        found[name] = told
    clock["guided"] = time.process_time() - began - sum(clock.values())
    swept = {}
    if seed == 0:
        for mode, strengths in SWEPT.items():
            windows = {0.0: unguided[:SWEPT_WINDOWS]}
            for each in strengths:
                windows[each] = drawn(
                    of_target["i"], replace(GUIDANCE, guidance=mode, strength=each), SWEPT_WINDOWS
                )
            swept[mode] = over_strengths(
                model.channels, windows, of_target["i"], real=real, simulator=simulator
            )
    return {"strength": strength, "tuning": path, "targets": found, "swept": swept, "cpu_seconds": clock}


# -- all seeds ---------------------------------------------------------------------------------------------------------


def difference(a: np.ndarray, b: np.ndarray) -> dict:
    found = paired_difference(a, b, np.mean, rng=np.random.default_rng(0), resamples=RESAMPLES)
    return {"difference": found.estimate, "interval": [float(limit) for limit in found.interval]}


def late(by_step: list[float]) -> float:
    """Mean from the 16th step on."""
    return float(np.mean(by_step[LATE:]))


def report(trials: list[dict]) -> dict:
    of_target = {}
    for name in TARGETS:
        told = [trial["targets"][name] for trial in trials]

        def mean_of(kind: str, figure: str, told: list[dict] = told) -> np.ndarray:
            return np.array([each[kind][figure] for each in told])

        guided, unguided = (mean_of(kind, "log_pi") for kind in ("guided", "unguided"))
        error, before = (mean_of(kind, "dynamics_error") for kind in ("guided", "unguided"))
        guided_late = np.array([late(each["guided"]["dynamics_error_by_step"]) for each in told])
        compounded_late = np.array([late(each["compounded"]) for each in told])
        of_target[name] = {
            "arms": {
                kind: {
                    figure: float(mean_of(kind, figure).mean())
                    for figure in FIGURES
                    if figure in told[0][kind]
                }
                for kind in ("real", "redrawn", "unguided", "guided", "ensemble")
            },
            "log_pi_gain": difference(guided, unguided),
            "error_ratio": float(error.mean() / before.mean()),
            "error_over_twice": difference(error, 2 * before),
            "late_error": {"guided": float(guided_late.mean()), "compounded": float(compounded_late.mean())},
            "late_error_difference": difference(guided_late, compounded_late),
            "compounded_by_step": np.mean([each["compounded"] for each in told], 0).tolist(),
            "guided_by_step": np.mean(
                [each["guided"]["dynamics_error_by_step"] for each in told], 0
            ).tolist(),
        }
    gains = [of_target[name]["log_pi_gain"] for name in ("i", "iii")]
    return {
        "strengths": [trial["strength"] for trial in trials],
        "targets": of_target,
        "swept": trials[0]["swept"],
        "real": trials[0]["targets"]["i"]["real"],
        "cpu_seconds": {
            name: float(np.mean([trial["cpu_seconds"][name] for trial in trials]))
            for name in trials[0]["cpu_seconds"]
        },
        "accepted": {
            "log π of guided over unguided windows at least 1 nat a step on (i) and (iii), intervals above 0": all(
                gain["difference"] >= 1.0 and gain["interval"][0] > 0 for gain in gains
            ),
            "one-step error of guided at most twice that of unguided windows, on every target": all(
                entry["error_ratio"] <= 2.0 for entry in of_target.values()
            ),
            "from step 16 on, guided error below the ensemble's compounded error, intervals below 0": all(
                entry["late_error_difference"]["interval"][1] < 0 for entry in of_target.values()
            ),
        },
    }


def page(document: dict) -> str:
    lines = [
        "# C: guided windows on Pendulum-v1",
        "",
        f"`{document['command']}` · {document['seeds']} seeds, mean over them · λ of the recipe tuned on (i): "
        + ", ".join(f"{strength:.3g}" for strength in document["strengths"]),
        "",
        "| target | windows | log π a step | std z | one-step error | to nearest real (s, a) | action variance |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, entry in document["targets"].items():
        for kind, row in entry["arms"].items():
            cells = [
                f"{row[figure]:.3g}" if figure in row else ""
                for figure in ("nearest_neighbour", "action_variance")
            ]
            lines.append(
                f"| ({name}) {TARGETS[name]} | {kind} | {row['log_pi']:.2f} | {row['std_z']:.2f} | "
                f"{row['dynamics_error']:.2g} | {cells[0]} | {cells[1]} |"
            )
    lines += [
        "",
        "| target | log π gained | error, guided / unguided | from step 16, guided | ensemble, compounded |",
        "|---|---|---:|---:|---:|",
    ]
    for name, entry in document["targets"].items():
        gain, low_high = entry["log_pi_gain"]["difference"], entry["log_pi_gain"]["interval"]
        lines.append(
            f"| ({name}) | {gain:.2f} [{low_high[0]:.2f}, {low_high[1]:.2f}] | {entry['error_ratio']:.2f} | "
            f"{entry['late_error']['guided']:.2g} | {entry['late_error']['compounded']:.2g} |"
        )
    cpu = ", ".join(
        f"{name.replace('_', ' ')} {seconds:.0f}" for name, seconds in document["cpu_seconds"].items()
    )
    return "\n".join(
        [
            *lines,
            "",
            "![over λ](c_pendulum.png)",
            "",
            "Target (i), seed 0, 256 windows a point; dotted: real windows (whose error is rounding alone).",
            "",
            f"CPU seconds a seed: {cpu}.",
            "",
            *verdicts(document["accepted"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/c_pendulum"))
    parser.add_argument(
        "--draw", action="store_true", help="only draw the picture anew, from c_pendulum.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    script = Path(__file__)
    if not options.draw:
        trials = measured(
            partial(script), map(str, range(options.seeds)), lambda label: trial(label, options.work)
        )
        document = {"seeds": options.seeds, **report(list(trials.values()))}
        publish(
            script,
            "" if options.seeds == 5 else f" --seeds {options.seeds}",
            document,
            page,
            finished=options.seeds >= 5,
        )
    document = json.loads(script.with_suffix(".json").read_text())
    save(guidance_plot.over_strengths(document["swept"], document["real"]), script.with_suffix(".png"))


if __name__ == "__main__":
    main()
