"""R3: a tiny language model on TextHouse, after warm start, after GRPO, after ARPO, on held-out tasks.

    python results/arpo/r3_texthouse.py

writes r3_texthouse.json and r3_texthouse.md beside itself. Runs lie in --work; finished ones are used again, stopped
ones resumed, so that seeds can be added. About 6 minutes a seed on one core.

For every seed a model of 0.34 million parameters imitates scripted demonstrations until it solves some tasks, then the
arms go on from it: GRPO and ARPO (π_old recomputed, or stored) on the same 64 tasks, and both on the tasks that a
pre-flight of 16 attempts each found to be solved sometimes (its steps count). Equal budgets of real steps. Every policy
is judged at temperature 1 on the same 256 held-out tasks.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from peira.evaluation.statistics import paired_difference
from peira.runs.plots import read_metrics
from peira.runs.study import trained
from peira.versions import machine, versions

HERE = Path(__file__).parent
ENV = "texthouse-brief"
WARM_STEPS, STEPS = 4000, 30_000
SHARED = ["--env", ENV, "--evaluation-episodes", "256", "--no-store"]
LEARNING = ["--tasks", "64", "--steps", str(STEPS), "--evaluations", "4", "--kl-coefficient", "0.02"]
SELECTED = ["--preflight", "16", "--preflight-most", "15"]
ARMS = {
    "grpo": ["arpo", "--no-replay"],
    "arpo recompute": ["arpo"],
    "arpo behaviour": ["arpo", "--mode", "behaviour"],
    "grpo, selected tasks": ["arpo", "--no-replay", *SELECTED],
    "arpo, selected tasks": ["arpo", *SELECTED],
}


def one_seed(seed: int, work: Path) -> dict:
    """Scores and training columns of warm start and arms."""
    seeded = ["--seed", str(seed)]
    warm_folder = work / f"warm-{seed}"
    warm = trained(warm_folder, ["sft", *SHARED, "--steps", str(WARM_STEPS), "--evaluations", "1", *seeded])
    result = {"warm start": {"score": warm["score"]}}
    model = ["--model", str(warm_folder / "policy")]
    for arm, arguments in ARMS.items():
        folder = work / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
        summary = trained(folder, [*arguments, *SHARED, *LEARNING, *model, *seeded])
        rows = read_metrics(folder)

        def mean(name: str, rows: list[dict] = rows) -> float:
            return float(np.mean([row[name] for row in rows if name in row]))

        result[arm] = {
            "score": summary["score"],
            "iterations": len(rows),
            "success_area": mean("success"),
            "success_last": float(np.mean([row["success"] for row in rows[-5:]])),
            "reward_spread": mean("reward_spread"),
            "parse_failures": mean("parse_failures"),
            "dead_groups": mean("dead_groups"),
            "dead_groups_after_replay": mean("dead_groups_after_replay"),
            "replayed_episodes": sum(row.get("replayed_episodes", 0) for row in rows),
            "tasks": rows[-1].get("preflight_tasks", 64),
        }
    return result


def report(seeds: list[dict]) -> dict:
    def column(arm: str, name: str) -> np.ndarray:
        return np.array([seed[arm][name] for seed in seeds])

    def paired(arm: str, baseline: str, name: str) -> dict:
        found = paired_difference(
            column(arm, name), column(baseline, name), np.mean, rng=np.random.default_rng(0)
        )
        return {"difference": found.estimate, "interval": found.interval}

    arms = {
        arm: {name: column(arm, name).tolist() for name in seeds[0][arm]} for arm in ("warm start", *ARMS)
    }
    pairs = {
        "held-out success": {f"{arm} − warm start": paired(arm, "warm start", "score") for arm in ARMS}
        | {
            "arpo recompute − grpo": paired("arpo recompute", "grpo", "score"),
            "arpo behaviour − grpo": paired("arpo behaviour", "grpo", "score"),
            "arpo, selected − grpo, selected": paired(
                "arpo, selected tasks", "grpo, selected tasks", "score"
            ),
        },
        "success on training tasks, mean over iterations": {
            "arpo recompute − grpo": paired("arpo recompute", "grpo", "success_area"),
            "arpo behaviour − grpo": paired("arpo behaviour", "grpo", "success_area"),
            "arpo, selected − grpo, selected": paired(
                "arpo, selected tasks", "grpo, selected tasks", "success_area"
            ),
        },
        "within-group spread of rewards": {
            "grpo, selected − grpo": paired("grpo, selected tasks", "grpo", "reward_spread"),
        },
    }
    return {"arms": arms, "pairs": pairs}


def markdown(document: dict) -> str:
    lines = [
        "# R3: a tiny language model on TextHouse",
        "",
        f"`{document['command']}` · {ENV}, 0.34 M parameters, {WARM_STEPS} steps of demonstrations, then {STEPS} real",
        f"steps for every arm (a pre-flight's included) · seeds 0 to {document['seeds'] - 1} · 256 held-out tasks",
        "",
        "| arm | held-out success (each seed) | mean | on training tasks: mean / last 5 iterations | "
        "spread of rewards | parse failures | dead groups, before → after replay | episodes replayed | tasks |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, entry in document["arms"].items():
        scores = entry["score"]
        cells = [", ".join(f"{score:.2f}" for score in scores), f"{np.mean(scores):.3f}"]
        if arm != "warm start":
            mean = {name: float(np.mean(values)) for name, values in entry.items()}
            cells += [
                f"{mean['success_area']:.2f} / {mean['success_last']:.2f}",
                f"{mean['reward_spread']:.2f}",
                f"{mean['parse_failures']:.0%}",
                f"{mean['dead_groups']:.0%} → {mean['dead_groups_after_replay']:.0%}",
                f"{mean['replayed_episodes']:.0f}",
                f"{mean['tasks']:.0f}",
            ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |" + " |" * (8 - len(cells)))
    lines += ["", "Differences, paired over seeds, with 95 % bootstrap intervals:", ""]
    for what, found in document["pairs"].items():
        lines += [f"- {what}"]
        lines += [
            f"  - {pair}: {entry['difference']:+.3f} [{entry['interval'][0]:+.3f}, {entry['interval'][1]:+.3f}]"
            for pair, entry in found.items()
        ]
    lines += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in document["versions"].items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/r3_texthouse"))
    options = parser.parse_args()
    found = []
    for seed in range(options.seeds):
        found.append(one_seed(seed, options.work))
        if len(found) < 2:
            continue
        document = {
            "command": f"python results/arpo/r3_texthouse.py --seeds {len(found)}",
            "seeds": len(found),
            **report(found),
            "versions": versions(),
            "machine": machine(),
        }
        (HERE / "r3_texthouse.json").write_text(json.dumps(document, indent=2) + "\n")
        (HERE / "r3_texthouse.md").write_text(markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
