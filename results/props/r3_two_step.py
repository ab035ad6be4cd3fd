"""Does PROPS find the rare action sooner than on-policy sampling? (``props.md`` 7, R3)

TwoStep: an action of probability 0.0198 leads to the best return, 2; everything else earns 0.5 or 1. Both arms are the
same tabular PPO from the same policy, 200 steps a batch, nothing retained; PROPS renews its behaviour policy every 5
steps. Measured: environment steps until a fresh evaluation (100 sampled episodes, after every second batch) reaches
1.9.

    python results/props/r3_two_step.py                # 30 seeds; writes r3_two_step.json and .md beside this file

An interrupted study goes on where it stopped (one file a run in --work).
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from peira.environments.two_step import COMMON_ACTION_LOGIT
from peira.evaluation.statistics import log_rank_test
from peira.policies.actor_critic import CategoricalActorCritic
from peira.policies.files import save_policy
from peira.recipes import props
from peira.runs.plots import read_metrics, series
from peira.runs.run import Run, create_folder
from peira.versions import machine, versions

HERE = Path(__file__).parent
ARMS = {"props": "props", "ppo": "on-policy"}
GOAL, LEAST_STEPS, BETWEEN_EVALUATIONS = 1.9, 8_000, 400


def first_policy(folder: Path) -> None:
    """All logits zero but that of action 1 in state 1: its sibling has probability 1/(1 + e^3.9) = 0.0198."""
    policy = CategoricalActorCritic(7, 2, hidden=(), bias=False, normalise=False)
    with torch.no_grad():
        policy.actor_head.weight.zero_()
        policy.actor_head.weight[1, 1] = COMMON_ACTION_LOGIT
        policy.critic_head.weight.zero_()
    save_policy(policy, folder)


class UntilGoal(Run):
    """A run that ends once it has reached the goal and `LEAST_STEPS`; one that has not spends its whole budget."""

    @property
    def is_over(self) -> bool:
        reached = self.evaluation is not None and self.evaluation.mean >= GOAL
        return super().is_over or (reached and self.real_steps >= LEAST_STEPS)


def learning_curve(arm: str, seed: int, steps: int, *, compiled: bool = True) -> list[list[float]]:
    """[[steps, …], [return, …]] of the evaluations of one run."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first_policy(folder / "first")
        config = replace(
            props.two_step(),
            seed=seed,
            steps=steps,
            evaluations=steps // BETWEEN_EVALUATIONS,
            sampler=ARMS[arm],
            initial_policy=str(folder / "first"),
            store=False,
            compiled=compiled,
        )
        create_folder(folder / "run", arm, config)
        quiet = Console(quiet=True)
        run = UntilGoal(folder / "run", arm, config, console=quiet, resumed=False, checkpoint_seconds=1e9)
        run.finish(props.run(config, run))
        return [column.tolist() for column in series(read_metrics(folder / "run"), "evaluation_return")]


def steps_to_goal(curve: list[list[float]]) -> float | None:
    """Steps at the first evaluation of at least `GOAL`; None if it never came."""
    return next((step for step, value in zip(*curve, strict=True) if value >= GOAL), None)


def report(curves: dict[str, list[list[list[float]]]], steps: int) -> dict:
    arms = {}
    times, reached = {}, {}
    for arm, of_arm in curves.items():
        goals = [steps_to_goal(curve) for curve in of_arm]
        reached[arm] = np.array([goal is not None for goal in goals])
        times[arm] = np.array([steps if goal is None else goal for goal in goals])
        shared = range(min(len(curve[0]) for curve in of_arm))
        returns = np.array([[curve[1][i] for i in shared] for curve in of_arm])
        at = {
            str(int(of_arm[0][0][i])): float(returns[:, i].mean())
            for i in shared
            if of_arm[0][0][i] % 2000 == 0
        }
        arms[arm] = {
            "median_steps_to_goal": float(np.median(times[arm])),
            "reached": int(reached[arm].sum()),
            "runs": len(of_arm),
            "steps_to_goal": goals,
            "mean_return_at": at,
        }
    test = log_rank_test(times["props"], reached["props"], times["ppo"], reached["ppo"])
    ratio = arms["props"]["median_steps_to_goal"] / arms["ppo"]["median_steps_to_goal"]
    return {
        "arms": arms,
        "ratio_of_medians": ratio,
        "log_rank_p": test.p_value,
        "accepted": {
            "median steps at most half of on-policy's": bool(ratio <= 0.5),
            "log-rank p below 0.01": bool(test.p_value < 0.01),
        },
    }


def markdown(document: dict) -> str:
    arms = document["arms"]
    lines = [
        "# R3: the rare action of TwoStep",
        "",
        f"`{document['command']}` · seeds 0 to {document['seeds'] - 1} · budget {document['steps']} steps; a run ends "
        f"at {LEAST_STEPS} steps, or later, once it has reached a return of {GOAL}",
        "",
        "| arm | median steps to 1.9 | runs that reached it | mean return at 2 000 | at 4 000 | at 8 000 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm, entry in arms.items():
        at = entry["mean_return_at"]
        cells = [f"{at[key]:.2f}" if key in at else "" for key in ("2000", "4000", "8000")]
        lines.append(
            f"| {arm} | {entry['median_steps_to_goal']:.0f} | {entry['reached']} of {entry['runs']} | "
            + " | ".join(cells)
            + " |"
        )
    lines += [
        "",
        f"Ratio of medians {document['ratio_of_medians']:.2f}; log-rank p {document['log_rank_p']:.2g}.",
        "",
        *(f"- {what}: {'yes' if met else 'no'}" for what, met in document["accepted"].items()),
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in document["versions"].items()),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/r3_two_step"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    trials = [(arm, seed) for seed in range(options.seeds) for arm in ARMS]

    def kept(arm: str, seed: int) -> Path:
        return options.work / f"{arm}-{seed}-{options.steps}.json"

    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {
            (arm, seed): pool.submit(learning_curve, arm, seed, options.steps)
            for arm, seed in trials
            if not kept(arm, seed).exists()
        }
        for (arm, seed), future in waiting.items():
            kept(arm, seed).write_text(json.dumps(future.result()))
            print(
                f"{arm} seed {seed}: {steps_to_goal(future.result())} steps to {GOAL}",
                file=sys.stderr,
                flush=True,
            )
    curves = {arm: [json.loads(kept(arm, seed).read_text()) for seed in range(options.seeds)] for arm in ARMS}
    document = {
        "command": f"python results/props/r3_two_step.py --seeds {options.seeds} --steps {options.steps}",
        "seeds": options.seeds,
        "steps": options.steps,
        **report(curves, options.steps),
        "versions": versions(),
        "machine": machine(),
    }
    (HERE / "r3_two_step.json").write_text(json.dumps(document, indent=2) + "\n")
    (HERE / "r3_two_step.md").write_text(markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
