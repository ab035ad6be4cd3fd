"""C: the lock through images that a small network misreads: HNPG beside RLPD.

    python results/hnpg/c_digits.py --seeds 5          # 10 runs of 600 000 steps; some hours on one core

H = 10; an observation is the features of an image of the step's digit and of one of the state's, from a frozen random
network: a linear probe misreads a part of them, so no critic of this class is right everywhere. Codes, log and images
are drawn anew for each seed; training shows 70 % of the images, the success that counts is on the others, with sampled
actions, after the same number of steps.

Expected (``hnpg.md`` 7, C): HNPG's success less RLPD's has a 95 % interval above 0, and the standard deviation over
iterations of RLPD's TD error on its own newest steps is larger than that of HNPG's Monte-Carlo error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from peira.environments.digits_lock import make_lock, probe_accuracy
from peira.evaluation.statistics import paired_difference
from peira.runs.plots import read_metrics, series
from peira.runs.study import measured, partial, publish, trained, verdicts

HORIZON = 10
METHODS = ("hnpg", "rlpd")
PROBE_ROWS = 6_000


def one_run(method: str, seed: int, options: argparse.Namespace) -> dict:
    """Success on held-out images over training, and how the error of the critic on fresh steps went."""
    folder = options.work / f"{method}-{options.log}-{options.steps}-{seed}"
    order = [method, "--env", f"digits-lock-h{HORIZON}", "--log", options.log, "--steps", str(options.steps)]
    order += ["--seed", str(seed), "--evaluations", "10", "--evaluation-episodes", "200", "--no-store"]
    summary = trained(folder, order)
    rows = read_metrics(folder)
    steps, held_out = series(rows, "evaluation_success")
    errors = np.array([row["critic_loss/on"] for row in rows])
    return {
        "held_out": float(held_out[-1]),
        "held_out_mean_action": rows[-1]["evaluation_success_mean"],
        "training": float(np.mean([row["success"] for row in rows[-20:]])),
        "steps": steps.tolist(),
        "held_out_curve": held_out.tolist(),
        "error": float(errors.mean()),
        "error_deviation": float(errors.std()),
        "seconds": summary["ledger"]["wall_seconds"],
    }


def report(found: dict[str, list[dict]]) -> dict:
    success, deviation = (
        {method: np.array([run[name] for run in runs]) for method, runs in found.items()}
        for name in ("held_out", "error_deviation")
    )
    gain = paired_difference(success["hnpg"], success["rlpd"], np.mean, rng=np.random.default_rng(0))
    train, test = probe_accuracy(
        make_lock(f"digits-lock-h{HORIZON}", 0, "on_fall"), PROBE_ROWS, np.random.default_rng(0)
    )
    return {
        "methods": found,
        "difference": {"difference": gain.estimate, "interval": gain.interval},
        "deviation_ratio": float(deviation["rlpd"].mean() / deviation["hnpg"].mean()),
        "probe": {"training": train, "held_out": test},
        "accepted": {
            "a linear probe reads 70 to 95 % of step and state on held-out images": 0.7 <= test <= 0.95,
            "HNPG opens the lock more often than RLPD on held-out images": gain.interval[0] > 0,
            "RLPD's error on fresh steps varies more": bool(
                deviation["rlpd"].mean() > deviation["hnpg"].mean()
            ),
        },
    }


def page(document: dict) -> str:
    gain, probe = document["difference"], document["probe"]
    lines = [
        "# C: the lock through images",
        "",
        f"`{document['command']}` · H = {HORIZON} · a linear probe reads step and state right on "
        f"{probe['training']:.0%} of",
        f"training images and {probe['held_out']:.0%} of held-out ones · means over seeds",
        "",
        "| method | seeds | success, held-out images | mean action | training images | error on fresh steps | "
        "its deviation over iterations | seconds a run |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    names = ("held_out", "held_out_mean_action", "training", "error", "error_deviation")
    for method, runs in document["methods"].items():
        mean = {name: np.mean([run[name] for run in runs]) for name in (*names, "seconds")}
        cells = [method, str(len(runs)), *(f"{mean[name]:.4g}" for name in names), f"{mean['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    low, high = gain["interval"]
    lines += ["", f"HNPG − RLPD, held-out success: {gain['difference']:+.3f} [{low:+.3f}, {high:+.3f}]", ""]
    return "\n".join([*lines, *verdicts(document["accepted"])])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600_000)
    parser.add_argument("--log", default="eps", choices=["eps", "mid", "mixed"])
    parser.add_argument("--work", type=Path, default=Path("runs/hnpg-digits"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    runs = {
        f"{method}/{options.log}/{options.steps}/{seed}": (method, seed)
        for seed in range(options.seeds)
        for method in METHODS
    }
    found = measured(partial(Path(__file__)), list(runs), lambda label: one_run(*runs[label], options))
    by_method = {
        method: [found[label] for label, run in runs.items() if run[0] == method] for method in METHODS
    }
    arguments = f" --seeds {options.seeds} --steps {options.steps} --log {options.log}"
    publish(Path(__file__), arguments, report(by_method), page, finished=options.seeds >= 5)


if __name__ == "__main__":
    main()
