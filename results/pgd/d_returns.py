"""D: do returns gain when TD3+BC learns from guided windows?

    python results/pgd/d_returns.py

writes d_returns.json and .md beside itself; every cell (environment, data, seed) is a run of `peira run pgd` in the
work folder that goes on where it was cut off, about 45 minutes of one core for the five of an environment and seed. On
two cores run it with --only HalfCheetah-v5 and --only Hopper-v5 side by side first, and OMP_NUM_THREADS=1.
Medium logs of 100 000 steps of HalfCheetah-v5 and Hopper-v5 (made by `peira store make-log` unless they lie in --logs),
TD3+BC for 50 000 updates, five data conditions: the log alone; 240 of 256 rows unguided, guided by the official recipe,
from SynthER, or from an ensemble rolled out for 5 steps. λ is 2: with N = 64 and L = 32 it moves actions as far as the
paper's 1 with N = 256 and L = 129, the displacement being λN/√(L|a|) (``pgd.md`` 2.4). 2 048 windows of 32 steps are
renewed every 10 000 updates. Scores are of the last evaluation of 20 fresh episodes, as a percentage of the way from
D4RL's random to its expert reference.

Accepted (``pgd.md`` 7, D), stratified bootstrap 95 % intervals over environments and seeds: (a) guided − unguided above
0; (b) guided − real above −2 points. Where only the second holds that is what is reported: gains in return are the
paper's least robust claim.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from peira.evaluation.statistics import stratified_bootstrap_interval
from peira.runs.study import RESAMPLES, measured, partial, publish, trained, verdicts

REFERENCE = {"HalfCheetah-v5": (-280.18, 12135.0), "Hopper-v5": (-20.27, 3234.3)}
"""Returns of D4RL's random and expert policies (arXiv 2004.07219), of the same tasks in an older simulator."""
DATA = ("real", "unguided", "guided", "synther", "ensemble")
UPDATES, REFRESH, LOG_STEPS = 50_000, 10_000, 100_000
MARGIN = 2.0
"""Points by which guided data may be worse than the log alone."""


def log_of(env: str, logs: Path) -> Path:
    """The medium log of this environment, made if it is not there."""
    folder = logs / f"{env}-medium"
    if not (folder / "experience.lance").exists():
        order = [sys.executable, "-m", "peira", "store", "make-log", str(folder)]
        subprocess.run([*order, "--env", env, "--policy", "medium", "--steps", str(LOG_STEPS)], check=True)
    return folder


def summary_of(env: str, data: str, seed: str, work: Path, logs: Path) -> dict:
    """What came of this run, which is made or gone on with if it is not there."""
    arguments = ["pgd", "--env", env, "--log", str(log_of(env, logs)), "--seed", seed, "--data", data]
    arguments += ["--updates", str(UPDATES), "--refresh", str(REFRESH), "--fit-updates", "8000"]
    arguments += ["--evaluations", "5", "--evaluation-episodes", "20", "--no-store"]
    if data == "guided":
        # The model that the unguided run of this seed fitted: the two differ in guidance alone.
        model = work / f"{env}-unguided-{seed}" / "diffusion"
        if not model.exists():
            summary_of(env, "unguided", seed, work, logs)
        arguments += ["--strength", "2", "--model", str(model)]
    return trained(work / f"{env}-{data}-{seed}", arguments)


def cell(label: str, work: Path, logs: Path) -> dict:
    """Score of one run, and what it cost."""
    env, data, seed = label.split(" ")
    summary = summary_of(env, data, seed, work, logs)
    low, high = REFERENCE[env]
    return {
        "return": summary["score"],
        "score": 100 * (summary["score"] - low) / (high - low),
        "wall_seconds": summary["ledger"]["wall_seconds"],
    }


def difference(a: np.ndarray, b: np.ndarray) -> dict:
    """Mean of a − b over seeds and environments, seeds redrawn within each environment."""
    apart = a - b
    interval = stratified_bootstrap_interval(
        apart, np.mean, rng=np.random.default_rng(0), resamples=RESAMPLES
    )
    return {"difference": float(apart.mean()), "interval": interval and list(interval)}


def report(cells: dict[str, dict], seeds: int) -> dict:
    score = {
        data: np.array(
            [[cells[f"{env} {data} {seed}"]["score"] for env in REFERENCE] for seed in range(seeds)]
        )
        for data in DATA
    }
    differences = {
        f"guided − {data}": difference(score["guided"], score[data]) for data in DATA if data != "guided"
    }
    accepted = {}
    if seeds > 1:
        accepted = {
            "guided − unguided above 0": differences["guided − unguided"]["interval"][0] > 0,
            "guided − real above −2 points": differences["guided − real"]["interval"][0] > -MARGIN,
        }
    return {
        "scores": {data: values.T.tolist() for data, values in score.items()},
        "mean_score": {
            data: dict(zip(REFERENCE, values.mean(0).tolist(), strict=True)) for data, values in score.items()
        },
        "differences": differences,
        "wall_seconds": {
            data: float(np.mean([cells[name]["wall_seconds"] for name in cells if f" {data} " in name]))
            for data in DATA
        },
        "accepted": accepted,
    }


def page(document: dict) -> str:
    lines = [
        "# D: returns of TD3+BC on invented data",
        "",
        f"`{document['command']}` · {document['seeds']} seeds · {UPDATES:,} updates · score: percentage of the way "
        "from D4RL's random to its expert return; each seed's in brackets",
        "",
        "| data | " + " | ".join(REFERENCE) + " | wall seconds a run |",
        "|---|" + "---:|" * (len(REFERENCE) + 1),
    ]
    for data in DATA:
        cells = [
            f"{np.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"
            for values in document["scores"][data]
        ]
        lines.append(f"| {data} | " + " | ".join(cells) + f" | {document['wall_seconds'][data]:.0f} |")
    lines += ["", "| difference of scores | mean | 95 % interval |", "|---|---:|---|"]
    for name, entry in document["differences"].items():
        interval = entry["interval"]
        shown = f"[{interval[0]:.1f}, {interval[1]:.1f}]" if interval else ""
        lines.append(f"| {name} | {entry['difference']:.1f} | {shown} |")
    return "\n".join([*lines, "", *verdicts(document["accepted"])])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/d_returns"))
    parser.add_argument("--logs", type=Path, default=Path("runs/d_returns/logs"))
    parser.add_argument(
        "--only",
        choices=[*REFERENCE],
        help="measure this environment's cells and write no page: a core for each",
    )
    options = parser.parse_args()
    script = Path(__file__)
    envs = [options.only] if options.only else [*REFERENCE]
    # Seed by seed, so that what is there after any time is a whole comparison.
    labels = [f"{env} {data} {seed}" for seed in range(options.seeds) for env in envs for data in DATA]
    cells = measured(partial(script), labels, lambda label: cell(label, options.work, options.logs))
    if options.only:
        return
    document = {"seeds": options.seeds, **report(cells, options.seeds)}
    publish(
        script,
        "" if options.seeds == 3 else f" --seeds {options.seeds}",
        document,
        page,
        finished=options.seeds >= 3,
    )


if __name__ == "__main__":
    main()
