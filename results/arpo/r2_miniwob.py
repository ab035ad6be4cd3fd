"""R2: replay on web pages in a real browser, with a policy over page elements trained from nothing.

    python results/arpo/r2_miniwob.py --seeds 3

writes r2_miniwob.json and r2_miniwob.md beside itself. Runs lie in --work; a stopped one is resumed, and what was
measured is kept beside this script until all of it is there. A run takes one to three minutes.

A task is a page and a seed: 16 fixed ones are trained on, 8 of them an iteration with 8 attempts each. Every arm has
the same budget of real steps, resampled ones included. Areas are means over steps of the success of fresh episodes; the
policy at the end is judged on 64 seeds that nothing was trained on.
"""

import argparse
import shlex
from pathlib import Path

import numpy as np

from peira.evaluation.statistics import paired_difference
from peira.runs.plots import read_metrics
from peira.runs.study import kept, measured, partial, publish, trained

STEPS = 15_000
PAGES = ["login-user", "enter-password", "click-checkboxes", "click-test-2"]
"""The untrained policy solves 0, 2 and 5 % of attempts at the first three, 42 % at the last."""
SHARED = ["--model", "dom:", "--tasks", "16", "--groups", "8", "--group-size", "8", "--num-envs", "16"]
SHARED += ["--learning-rate", "1e-3", "--evaluations", "1", "--evaluation-episodes", "64", "--no-store"]
ARMS = {
    "grpo": ["arpo", "--no-replay"],
    "grpo, dead groups left out": ["arpo", "--no-replay", "--exclude-dead"],
    "grpo, resampling": ["arpo", "--no-replay", "--resample", "1"],
    "likelihood of successes": ["arpo", "--no-replay", "--success-only"],
    "arpo recompute": ["arpo"],
    "arpo behaviour": ["arpo", "--mode", "behaviour"],
}


def folder_of(page: str, arm: str, seed: int, work: Path) -> Path:
    return work / f"{page}-{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def one_run(page: str, arm: str, seed: int, work: Path) -> dict:
    folder = folder_of(page, arm, seed, work)
    arguments = [*ARMS[arm], "--env", f"miniwob/{page}", "--steps", str(STEPS), "--seed", str(seed), *SHARED]
    summary = trained(folder, arguments)
    rows = read_metrics(folder)
    # Budgets are equal in steps, so success is averaged over steps, not iterations.
    steps = np.diff([0, *(row["real_steps"] for row in rows)])

    def mean(name: str) -> float:
        return float(np.average([row[name] for row in rows], weights=steps))

    return {
        "area": mean("success"),
        "last": float(np.mean([row["success"] for row in rows[-10:]])),
        "unseen": summary["score"],
        "dead": mean("dead_groups"),
        "dead_after": mean("dead_groups_after_replay"),
        "replayed": sum(row.get("replayed_episodes", 0) for row in rows),
        "episodes": sum(row["fresh_episodes"] for row in rows),
        "errors": mean("environment_errors"),
        "seconds": summary["ledger"]["wall_seconds"],
    }


def report(found: dict) -> dict:
    """Means, and gains over GRPO paired over the seeds that both have."""
    pages = {}
    for page, arms in found.items():
        pages[page] = {
            arm: {name: [run[name] for run in runs.values()] for name in next(iter(runs.values()))}
            for arm, runs in arms.items()
            if runs
        }
        for arm, runs in arms.items():
            both = [seed for seed in runs if seed in arms.get("grpo", {})]
            if arm == "grpo" or len(both) < 2:
                continue
            for name in ("area", "last", "unseen"):
                ours, theirs = (np.array([of[seed][name] for seed in both]) for of in (runs, arms["grpo"]))
                gain = paired_difference(ours, theirs, np.mean, rng=np.random.default_rng(0))
                pages[page][arm][f"{name}_gain"] = {"difference": gain.estimate, "interval": gain.interval}
    return pages


def markdown(document: dict) -> str:
    lines = [
        "# R2: web pages in a real browser",
        "",
        f"`{document['command']}` · {STEPS} real steps a run · gains over GRPO are paired over seeds, with 95 %",
        "bootstrap intervals (which few seeds make too narrow)",
        "",
        "| page | arm | seeds | area: success over training | gain | last 10 iterations | gain | 64 unseen seeds | "
        "gain | dead groups, before → after | episodes replayed |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def gain(entry: dict, name: str) -> str:
        found = entry.get(f"{name}_gain")
        if found is None:
            return ""
        return f"{found['difference']:+.3f} [{found['interval'][0]:+.3f}, {found['interval'][1]:+.3f}]"

    for page, arms in document["pages"].items():
        for arm, entry in arms.items():
            cells = [page, arm, str(len(entry["area"]))]
            for name in ("area", "last", "unseen"):
                cells += [f"{np.mean(entry[name]):.3f}", gain(entry, name)]
            cells += [
                f"{np.mean(entry['dead']):.0%} → {np.mean(entry['dead_after']):.0%}",
                f"{np.mean(entry['replayed']):.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", nargs="+", default=PAGES)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/r2_miniwob"))
    parser.add_argument("--finished", action="store_true", help="report what is measured, start nothing")
    options = parser.parse_args()
    script = Path(__file__)
    runs = {
        f"{page}/{arm}/{seed}": (page, arm, seed)
        for seed in range(options.seeds)
        for page in options.pages
        for arm in options.arms
    }
    if options.finished:
        runs = {label: run for label, run in runs.items() if label in kept(partial(script))}
    measures = measured(partial(script), list(runs), lambda label: one_run(*runs[label], options.work))
    found: dict = {page: {arm: {} for arm in options.arms} for page in options.pages}
    for label, (page, arm, seed) in runs.items():
        found[page][arm][seed] = measures[label]
    arguments = (
        f" --pages {shlex.join(options.pages)} --arms {shlex.join(options.arms)} --seeds {options.seeds}"
    )
    arguments += " --finished" if options.finished else ""
    whole = len(measures) >= 3 * len(PAGES) * len(ARMS)
    publish(script, arguments, {"pages": report(found)}, markdown, finished=whole)


if __name__ == "__main__":
    main()
