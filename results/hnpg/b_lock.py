"""B: the combination lock, with a log of few successes and with one of none.

    python results/hnpg/b_lock.py                     # 10 seeds at H = 5, 3 at H = 10; several hours on one core
    python results/hnpg/b_lock.py --finished          # a report on what is measured so far

Codes, log and everything random are drawn anew for each seed, and all methods see the same ones. A run is
`peira run hnpg` (or trpo, rlpd) in a folder of its own under --work: what is cut off is taken up again. Solved means
that the share of training episodes that open the lock, averaged over 20 000 steps, passes 0.5. BC regresses on the
logged actions with the policy's network; its mean action is what is judged.

Expected (``hnpg.md`` 7, B), H = 5 within 150 000 steps:

- HNPG solves at least 9 of 10 on `mid` and on `mixed`, TRPO none;
- BC opens at most 15 % on `mid` and 1 % on `mixed`;
- offline only, after as many updates, is below HNPG on `mixed` by at least 0.3, paired over seeds, 95 % interval
  without 0.

On `eps` imitation opens the lock too: nothing is claimed there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from peira.evaluation.lock import evaluate_lock, success
from peira.evaluation.statistics import paired_difference
from peira.policies.stacked import StackedGaussianPolicy
from peira.recipes import hnpg
from peira.runs.plots import read_metrics, series
from peira.runs.run import Run
from peira.runs.study import kept, measured, partial, publish, trained, verdicts

WINDOW = 20_000
BUDGET = {5: 150_000, 10: 300_000}
EPISODES = 200
METHODS = {
    "HNPG": ["hnpg"],
    "TRPO": ["trpo"],
    "BC": [],
    "offline only": ["hnpg", "--w-on", "0"],
    "hybrid critic only": ["hnpg", "--actor-offline", "none"],
    "hybrid actor only": ["hnpg", "--critic-offline", "none"],
    "RLPD": ["rlpd"],
}
BC_STEPS, BC_ROWS, BC_RATE = 3_000, 256, 3e-3


def clone(horizon: int, log: str, seed: int) -> dict:
    """The mean action of a Gaussian fitted to the logged actions, judged like the runs."""
    config = hnpg.Config(env=f"lock-h{horizon}", log=log, seed=seed)
    seeds = SimpleNamespace(seed=seed)
    seeds.derived_seed = lambda name: Run.derived_seed(seeds, name)
    world, rows = hnpg.begin(config, seeds)
    generator = torch.Generator().manual_seed(seeds.derived_seed("cloning"))
    policy = StackedGaussianPolicy(
        horizon, world.observation_size, world.action_size, hidden=config.hidden, generator=generator
    )
    net = policy.flat[:, : policy.net.size].clone()
    adam = torch.optim.Adam([net], lr=BC_RATE, fused=True)
    for _ in range(BC_STEPS):
        drawn = rows.sample(BC_ROWS, generator)
        activations = policy.net.forward(net, drawn.observation.double())
        error = activations[-1] - drawn.action
        net.grad = policy.net.pullback(net, activations, 2 * error / BC_ROWS)
        adam.step()
    policy.flat[:, : policy.net.size] = net
    found = evaluate_lock(
        world.lock,
        lambda step, seen: policy.mode(seen, step),
        EPISODES,
        seeds.derived_seed("evaluation, last"),
    )
    return {"solved": None, "sampled": None, "mean": success(found)}


def one_run(horizon: int, log: str, method: str, seed: int, work: Path) -> dict:
    """When the lock was open in training, and how often it is at the end."""
    if method == "BC":
        return clone(horizon, log, seed)
    recipe, *options = METHODS[method]
    options += [] if recipe == "trpo" else ["--log", log]
    options += ["--evaluations", "1", "--evaluation-episodes", str(EPISODES), "--no-store"]
    folder = folder_of(horizon, log, method, seed, work)
    shared = ["--env", f"lock-h{horizon}", "--steps", str(BUDGET[horizon]), "--seed", str(seed)]
    summary = trained(folder, [recipe, *shared, *options])
    rows = read_metrics(folder)
    steps, share = series(rows, "success")
    mean = moving_average(steps, share)
    thresholds = {limit: steps[mean > limit] for limit in (0.5, 0.9)}
    first = {limit: int(passed[0]) if len(passed) else None for limit, passed in thresholds.items()}
    return {
        "solved": first[0.5],
        "safe": first[0.9],
        "sampled": rows[-1]["evaluation_success"],
        "mean": rows[-1]["evaluation_success_mean"],
        "on_loss": [row["critic_loss/on"] for row in rows][-1],
        "on_loss_before": rows[-1].get("critic_loss/on_before"),
        "off_loss": rows[-1].get("critic_loss/off"),
        "seconds": summary["ledger"]["wall_seconds"],
    }


def folder_of(horizon: int, log: str, method: str, seed: int, work: Path) -> Path:
    """TRPO sees no log: one run serves for all."""
    name = method.replace(" ", "-")
    return work / (f"h{horizon}-{name}-{seed}" if method == "TRPO" else f"h{horizon}-{log}-{name}-{seed}")


def moving_average(steps: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean over the last `WINDOW` steps, or over all there are at the start."""
    total = np.concatenate([[0], np.cumsum(share)])
    first = np.searchsorted(steps, steps - WINDOW, side="right")
    place = np.arange(1, len(steps) + 1)
    return (total[place] - total[first]) / (place - first)


def plan(seeds: int, seeds_h10: int) -> list[tuple[int, str, str, int]]:
    """The main comparisons first, then what takes longest."""
    main = ["HNPG", "TRPO", "BC", "offline only"]
    runs = [(5, log, method, seed) for seed in range(seeds) for log in ("mixed", "mid") for method in main]
    runs += [(5, "eps", method, seed) for seed in range(min(seeds, 3)) for method in ("HNPG", "BC")]
    runs += [
        (10, log, method, seed) for seed in range(seeds_h10) for log in ("mixed", "mid") for method in main
    ]
    hybrids = ["hybrid critic only", "hybrid actor only"]
    runs += [
        (5, log, method, seed) for seed in range(seeds) for log in ("mixed", "mid") for method in hybrids
    ]
    runs += [(5, log, "RLPD", seed) for seed in range(seeds) for log in ("mixed", "mid")]
    return runs + [(10, log, "RLPD", seed) for seed in range(seeds_h10) for log in ("mixed", "mid")]


def report(found: dict[tuple[int, str, str, int], dict]) -> dict:
    """Of each setting: seeds solved, steps it took, success at the end of each seed; and the differences that count."""
    settings: dict[str, dict] = {}
    for (horizon, log, method, seed), run in found.items():
        entry = settings.setdefault(f"H={horizon}, {log}, {method}", {"seeds": []})
        entry["seeds"].append({"seed": seed, **run})
    differences = {}
    for log in ("mixed", "mid"):
        ours, theirs = (by_seed(found, 5, log, method, "sampled") for method in ("HNPG", "offline only"))
        both = sorted(ours.keys() & theirs.keys())
        if len(both) > 1:
            pair = (np.array([of[seed] for seed in both]) for of in (ours, theirs))
            gain = paired_difference(*pair, np.mean, rng=np.random.default_rng(0))
            differences[f"HNPG − offline only, H=5, {log}"] = {
                "difference": gain.estimate,
                "interval": gain.interval,
            }
    return {"settings": settings, "differences": differences, "accepted": accepted(found, differences)}


def by_seed(found: dict, horizon: int, log: str, method: str, name: str) -> dict[int, float]:
    return {key[3]: run[name] for key, run in found.items() if key[:3] == (horizon, log, method)}


def accepted(found: dict, differences: dict) -> dict[str, bool]:
    def solved(log: str, method: str) -> tuple[int, int]:
        runs = by_seed(found, 5, log, method, "solved")
        return sum(steps is not None for steps in runs.values()), len(runs)

    def opens(log: str) -> float:
        return float(np.mean(list(by_seed(found, 5, log, "BC", "mean").values())))

    gain = differences.get("HNPG − offline only, H=5, mixed", {"difference": 0.0, "interval": [0.0, 0.0]})
    none = [solved(log, "TRPO")[0] == 0 for log in ("mid", "mixed")]
    return {
        **{
            f"HNPG solves at least 9 of 10 on {log}": solved(log, "HNPG")[0] >= 0.9 * solved(log, "HNPG")[1]
            for log in ("mid", "mixed")
        },
        "TRPO solves none": all(none),
        "BC opens at most 15 % on mid": opens("mid") <= 0.15,
        "BC opens at most 1 % on mixed": opens("mixed") <= 0.01,
        "offline only is below HNPG by at least 0.3 on mixed": gain["difference"] >= 0.3
        and gain["interval"][0] > 0,
    }


def page(document: dict) -> str:
    lines = [
        "# B: the combination lock",
        "",
        f"`{document['command']}` · {BUDGET[5]:,} steps at H = 5, {BUDGET[10]:,} at H = 10 · success of {EPISODES}",
        "fresh episodes, mean over seeds",
        "",
        "| setting | seeds | solved | steps to 0.5: median (range) | success, sampled actions | mean action | "
        "seconds a run |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]

    def mean(seeds: list[dict], name: str, digits: int = 3) -> str:
        values = [run[name] for run in seeds if run.get(name) is not None]
        return f"{np.mean(values):.{digits}f}" if values else ""

    for setting, entry in document["settings"].items():
        seeds = entry["seeds"]
        steps = [run["solved"] for run in seeds if run["solved"] is not None]
        when = f"{np.median(steps):,.0f} ({min(steps):,}–{max(steps):,})" if steps else ""
        count = "" if setting.endswith("BC") else str(len(steps))
        cells = [setting, str(len(seeds)), count, when, mean(seeds, "sampled"), mean(seeds, "mean")]
        lines.append("| " + " | ".join([*cells, mean(seeds, "seconds", 0)]) + " |")
    lines += ["", "| difference in success, sampled actions | 95 % interval |", "|---|---|"]
    for name, gain in document["differences"].items():
        low, high = gain["interval"]
        lines.append(f"| {name}: {gain['difference']:+.3f} | [{low:+.3f}, {high:+.3f}] |")
    return "\n".join([*lines, "", *verdicts(document["accepted"])])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seeds-h10", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/hnpg"))
    parser.add_argument("--finished", action="store_true", help="report what is measured, start nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {"/".join(map(str, key)): key for key in plan(options.seeds, options.seeds_h10)}
    script = Path(__file__)
    if options.finished:
        runs = {label: runs[label] for label in kept(partial(script)) if label in runs}
    found = measured(partial(script), list(runs), lambda label: one_run(*runs[label], options.work))
    arguments = f" --seeds {options.seeds} --seeds-h10 {options.seeds_h10}"
    arguments += " --finished" if options.finished else ""
    settings = report({runs[label]: run for label, run in found.items()})
    publish(script, arguments, settings, page, finished=len(found) == len(plan(10, 3)))


if __name__ == "__main__":
    main()
