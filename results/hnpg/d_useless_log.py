"""D: what a log is worth on Pendulum, and what it costs where it is worth nothing.

    python results/hnpg/d_useless_log.py --seeds 5            # 30 runs of 200 000 steps; half an hour on one core

One policy and critic for all steps (`--time-mode stationary`). Two logs of 20 000 steps: of uniformly random actions,
and of a policy half trained by TRPO (40 000 steps, another seed). Arms: TRPO; HNPG with either log; the random log
alone (w_on = 0). A run is judged 20 times over its budget by 20 fresh episodes at the mean action; the area is the mean
of those returns, the end is the mean of the last three.

Gains are over the return of uniformly random actions. Expected (``hnpg.md`` 7, D): with the random log HNPG gains at
least 95 % of what TRPO does, in area and at the end; alone the random log is clearly worse.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from peira.environments.control import make_control
from peira.evaluation.statistics import paired_difference
from peira.experience.assemble import EpisodeAssembler
from peira.policies.files import load_policy
from peira.runs.plots import read_metrics, series
from peira.runs.study import measured, partial, publish, trained, verdicts

ENV, STEPS, LOG_STEPS, HALF_TRAINED = "Pendulum-v1", 200_000, 20_000, 40_000
ENVS, EPISODE = 10, 200
EVALUATIONS, EPISODES = 20, 20
SHARED = [
    "--env",
    ENV,
    "--evaluations",
    str(EVALUATIONS),
    "--evaluation-episodes",
    str(EPISODES),
    "--no-store",
]
ARMS = {
    "TRPO": ["trpo"],
    "HNPG, random log": ["hnpg", "--log", "random"],
    "HNPG, half-trained log": ["hnpg", "--log", "half"],
    "random log alone": ["hnpg", "--log", "random", "--w-on", "0"],
}
MARGIN = 0.05


def log_of(kind: str, seed: int, work: Path) -> Path:
    """The log as a Parquet file of whole episodes, made if it is not there."""
    path = work / f"log-{kind}-{seed}.parquet"
    if path.exists():
        return path
    generator = torch.Generator().manual_seed(seed + 1)
    act = random_action
    if kind == "half":
        folder = work / f"logger-{seed}"
        order = ["trpo", *SHARED, "--steps", str(HALF_TRAINED), "--seed", str(seed + 1000)]
        trained(folder, order)
        act = load_policy(folder / "policy").sample
    env = make_control(ENV, ENVS, seed + 1)
    observation, _ = env.reset()
    columns: dict[str, list[np.ndarray]] = {}
    for _ in range(LOG_STEPS // ENVS):
        action = act(torch.from_numpy(observation), generator).clamp(-2, 2).numpy()
        following, reward, terminated, truncated, info = env.step(action)
        row = {"observation": observation, "action": action, "reward": reward, "terminated": terminated}
        row |= {"truncated": truncated, "final_observation": info.get("final_obs", following)}
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
        observation = following
    assembler = EpisodeAssembler(ENVS, f"{seed:026d}", 0)
    table = assembler.add({name: np.stack(rows) for name, rows in columns.items()}, source="logged")
    pq.write_table(table, path)
    return path


def random_action(observation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 4 * torch.rand(len(observation), 1, generator=generator) - 2


def random_return(seed: int) -> float:
    """Mean return of uniformly random actions over 50 episodes."""
    env, generator = make_control(ENV, 50, seed), torch.Generator().manual_seed(seed)
    observation, _ = env.reset()
    total = np.zeros(50)
    for _ in range(EPISODE):
        observation, reward, *_ = env.step(random_action(torch.from_numpy(observation), generator).numpy())
        total += reward
    return float(total.mean())


def one_run(arm: str, seed: int, work: Path) -> dict:
    recipe, *options = ARMS[arm]
    if "--log" in options:
        place = options.index("--log") + 1
        options[place] = str(log_of(options[place], seed, work))
    folder = work / f"{list(ARMS).index(arm)}-{seed}"
    summary = trained(folder, [recipe, *SHARED, "--steps", str(STEPS), "--seed", str(seed), *options])
    steps, returns = series(read_metrics(folder), "evaluation_return")
    return {
        "area": float(returns.mean()),
        "end": float(returns[-3:].mean()),
        "steps": steps.tolist(),
        "returns": returns.tolist(),
        "random": random_return(seed),
        "seconds": summary["ledger"]["wall_seconds"],
    }


def gains(runs: dict[int, dict], name: str) -> np.ndarray:
    return np.array([run[name] - run["random"] for run in runs.values()])


def report(found: dict[str, dict[int, dict]]) -> dict:
    """Means, and gains as shares of TRPO's; at least two seeds, for the intervals."""
    arms = {}
    for arm, runs in found.items():
        arms[arm] = {"seeds": {str(seed): run for seed, run in runs.items()}}
        for name in ("area", "end"):
            ours, theirs = gains(runs, name), gains(found["TRPO"], name)
            arms[arm][name] = float(np.mean([run[name] for run in runs.values()]))
            arms[arm][f"{name}_ratio"] = float(ours.mean() / theirs.mean())
            shares = ours / theirs.mean(), theirs / theirs.mean()
            apart = paired_difference(*shares, np.mean, rng=np.random.default_rng(0))
            arms[arm][f"{name}_difference"] = apart.interval
    useless, alone = arms["HNPG, random log"], arms["random log alone"]
    enough = {
        f"with the random log HNPG gains at least 95 % of TRPO, {name}": useless[f"{name}_ratio"]
        >= 1 - MARGIN
        for name in ("area", "end")
    }
    worse = alone["end_difference"][1] < 0
    return {"arms": arms, "accepted": {**enough, "the random log alone is worse": worse}}


def page(document: dict) -> str:
    lines = [
        "# D: a log that helps and one that does not, on Pendulum",
        "",
        f"`{document['command']}` · {STEPS:,} steps a run · gain: return above that of random actions, as a share of",
        "TRPO's mean gain; in brackets the 95 % bootstrap interval of the difference from TRPO's, paired over seeds",
        "",
        "| arm | seeds | mean return over training | gain | return at the end | gain |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm, entry in document["arms"].items():
        cells = [arm, str(len(entry["seeds"]))]
        for name in ("area", "end"):
            low, high = entry[f"{name}_difference"]
            cells += [f"{entry[name]:.0f}", f"{entry[f'{name}_ratio']:.3f} [{low:+.3f}, {high:+.3f}]"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *verdicts(document["accepted"])])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("runs/hnpg-pendulum"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    runs = {f"{arm}/{seed}": (arm, seed) for seed in range(options.seeds) for arm in ARMS}
    found = measured(partial(Path(__file__)), list(runs), lambda label: one_run(*runs[label], options.work))
    by_arm = {arm: {seed: found[f"{arm}/{seed}"] for seed in range(options.seeds)} for arm in ARMS}
    publish(Path(__file__), f" --seeds {options.seeds}", report(by_arm), page, finished=options.seeds >= 5)


if __name__ == "__main__":
    main()
