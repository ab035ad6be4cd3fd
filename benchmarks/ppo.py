"""How fast is training? Our PPO against Stable-Baselines3's, and our rollout against bare EnvPool, in one process.

Same networks (64-64 tanh for actor and critic), steps a batch (8 environments × 256), epochs (10) and minibatches (64
rows). Ours is the whole recipe with ledger, metrics, TensorBoard and store; both are timed from a warm start over whole
batches, and alternate, so that a machine whose speed drifts slows both. Throughput is environment steps of training a
wall second; ratios are medians over the rounds.

    python benchmarks/ppo.py                        # speed, about 4 minutes on two cores
    python benchmarks/ppo.py --curves               # and learning curves: 3 seeds each, about 15 minutes more

Needs `pip install 'peira[bench]'` (`make bench` does it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from peira.environments.control import EnvPoolControl, make_control
from peira.policies.actor_critic import CategoricalActorCritic, GaussianActorCritic
from peira.policies.compiled import CompiledChoice
from peira.recipes import ppo
from peira.runs.plots import read_metrics, series
from peira.runs.run import Run, create_folder
from peira.sources.rollout import rollout
from peira.versions import machine, versions

ENVIRONMENTS = ("HalfCheetah-v5", "CartPole-v1")
ENVS, BATCH, EPOCHS, MINIBATCH = 8, 2048, 10, 64
POINTS, EPISODES = 5, 20  # of a learning curve
PARTS = ("environment", "inference", "update", "rest")


def our_run(env_id: str, batches: int, *, store: bool, seed: int = 0) -> list[dict]:
    """The metrics of a real `peira run ppo`: ledger, metrics, TensorBoard and checkpoints on, evaluation at the end."""
    config = ppo.Config(
        env=env_id,
        steps=batches * BATCH,
        num_envs=ENVS,
        batch_steps=BATCH,
        epochs=EPOCHS,
        minibatches=BATCH // MINIBATCH,
        kl_stop=None,
        evaluations=1,
        evaluation_episodes=1,
        store=store,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        create_folder(folder, "ppo", config)
        run = Run(folder, "ppo", config, console=Console(quiet=True), resumed=False, checkpoint_seconds=30)
        run.finish(ppo.run(config, run))
        return read_metrics(folder)


def our_rate(env_id: str, batches: int, *, store: bool) -> float:
    """Steps a second between the second batch (the first compiles) and the last but one (the last is evaluated)."""
    metrics = our_run(env_id, batches, store=store)[1:-1]
    steps = metrics[-1]["real_steps"] - metrics[0]["real_steps"]
    return steps / (metrics[-1]["wall_seconds"] - metrics[0]["wall_seconds"])


def fractions(env_id: str, batches: int) -> dict[str, float]:
    """Shares of wall time, with clocks around the environment's step, the rollout and the update of a real run."""
    spent = dict.fromkeys(("step", "rollout", "update"), 0.0)

    def clocked(name: str, work):
        def timed_work(*arguments, **options):
            began = time.perf_counter()
            result = work(*arguments, **options)
            spent[name] += time.perf_counter() - began
            return result

        return timed_work

    originals = EnvPoolControl.step, ppo.rollout, ppo.ppo_update
    EnvPoolControl.step = clocked("step", originals[0])
    ppo.rollout, ppo.ppo_update = clocked("rollout", originals[1]), clocked("update", originals[2])
    marks = []
    write = Run._write_metrics

    def mark(run: Run) -> None:
        write(run)
        marks.append((time.perf_counter(), dict(spent)))

    Run._write_metrics = mark
    try:
        our_run(env_id, batches, store=True)
    finally:
        EnvPoolControl.step, ppo.rollout, ppo.ppo_update = originals
        Run._write_metrics = write
    (began, first), (ended, last) = marks[1], marks[-2]
    step, gather, update = ((last[name] - first[name]) / (ended - began) for name in spent)
    return dict(zip(PARTS, (step, gather - step, update, 1 - gather - update), strict=True))


def sb3(env_id: str, seed: int = 0) -> PPO:
    """Stable-Baselines3's PPO with the same sizes; its own defaults otherwise (they are the same)."""
    return PPO(
        "MlpPolicy",
        make_vec_env(env_id, ENVS, seed=seed),
        n_steps=BATCH // ENVS,
        batch_size=MINIBATCH,
        n_epochs=EPOCHS,
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
        device="cpu",
    )


def bare_envpool(env_id: str) -> tuple[object, list[np.ndarray]]:
    """An EnvPool of the same size and actions drawn beforehand."""
    import envpool

    pool = envpool.make_gymnasium(env_id, num_envs=ENVS, seed=0)
    pool.reset()
    rng = np.random.default_rng(0)
    space = pool.action_space
    if hasattr(space, "n"):
        return pool, [rng.integers(0, space.n, ENVS).astype(np.int32) for _ in range(BATCH // ENVS)]
    return pool, [rng.uniform(-1, 1, (ENVS, *space.shape)).astype(space.dtype) for _ in range(BATCH // ENVS)]


def timed(work, steps: int) -> float:
    """Steps a second."""
    began = time.perf_counter()
    work()
    return steps / (time.perf_counter() - began)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(env_id: str, rounds: int, batches: int) -> dict:
    """Throughputs of both trainings, of our rollout and of bare EnvPool, taken in turn."""
    theirs = sb3(env_id)
    pool, actions = bare_envpool(env_id)
    env = make_control(env_id, ENVS, 0)
    env.reset()
    kind = CategoricalActorCritic if env.discrete else GaussianActorCritic
    generator = torch.Generator().manual_seed(0)
    policy = kind(env.observation_size, env.action_size, generator=generator)
    choose = CompiledChoice(policy)

    def bare() -> None:
        for action in actions:
            pool.step(action)

    def gather() -> None:
        rollout(env, policy, BATCH // ENVS, generator, gathered_for=0, choose=choose)

    theirs.learn(BATCH)
    bare()
    gather()
    rates: dict[str, list[float]] = {
        name: [] for name in ("peira", "without store", "sb3", "rollout", "envpool")
    }
    for _ in range(rounds):
        rates["sb3"].append(timed(lambda: theirs.learn(2 * BATCH, reset_num_timesteps=False), 2 * BATCH))
        rates["peira"].append(our_rate(env_id, batches, store=True))
        rates["without store"].append(our_rate(env_id, batches, store=False))
        for _ in range(20):
            rates["rollout"].append(timed(gather, BATCH))
            rates["envpool"].append(timed(bare, BATCH))

    def ratio(above: str, below: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(rates[above], rates[below], strict=True)])

    return {
        "steps_per_second": {name: spread(values) for name, values in rates.items()},
        "training_ratio_to_sb3": ratio("peira", "sb3"),
        "training_ratio_to_sb3_without_store": ratio("without store", "sb3"),
        "rollout_ratio_to_envpool": ratio("rollout", "envpool"),
        "share_of_wall_time": fractions(env_id, batches),
    }


def our_curve(env_id: str, seed: int, steps: int) -> list[float]:
    """Evaluation returns of `peira run ppo` under Stable-Baselines3's settings: raw observations and rewards."""
    with tempfile.TemporaryDirectory() as name:
        config = ppo.Config(
            env=env_id,
            steps=steps,
            seed=seed,
            num_envs=ENVS,
            batch_steps=BATCH,
            epochs=EPOCHS,
            minibatches=BATCH // MINIBATCH,
            kl_stop=None,
            value_clip=None,
            anneal=False,
            normalise_reward=False,
            normalise_observation=False,
            store=False,
            evaluations=POINTS,
            evaluation_episodes=EPISODES,
        )
        folder = Path(name) / "run"
        create_folder(folder, "ppo", config)
        run = Run(folder, "ppo", config, console=Console(quiet=True), resumed=False, checkpoint_seconds=1e9)
        run.finish(ppo.run(config, run))
        return series(read_metrics(folder), "evaluation_return")[1].tolist()


def their_curve(env_id: str, seed: int, steps: int) -> list[float]:
    """Evaluation returns of Stable-Baselines3's PPO at the same numbers of steps."""
    model, returns = sb3(env_id, seed), []
    for point in range(POINTS):
        model.learn(steps // POINTS, reset_num_timesteps=False)
        env = make_vec_env(env_id, EPISODES, seed=1000 * (seed + 1) + point)
        returns.append(float(evaluate_policy(model, env, n_eval_episodes=EPISODES)[0]))
    return returns


def curves(env_id: str, steps: int, seeds: int) -> dict:
    """Learning curves of both after the same numbers of steps, `seeds` runs each."""
    ours = [our_curve(env_id, seed, steps) for seed in range(seeds)]
    theirs = [their_curve(env_id, seed, steps) for seed in range(seeds)]
    return {"steps": [steps // POINTS * (point + 1) for point in range(POINTS)], **compared(ours, theirs)}


def compared(ours: list[list[float]], theirs: list[list[float]]) -> dict:
    """Both sets of curves, and the difference of their means with Welch's 95 % interval: seeds are independent runs."""
    means = np.mean(ours, axis=1), np.mean(theirs, axis=1)
    interval = scipy.stats.ttest_ind(*means, equal_var=False).confidence_interval()
    return {
        "peira": ours,
        "sb3": theirs,
        "area_difference": float(means[0].mean() - means[1].mean()),
        "area_difference_interval": [float(interval.low), float(interval.high)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=14, help="batches of ours in a round")
    parser.add_argument(
        "--curves", action="store_true", help="also train 3 seeds of each and compare learning curves"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "sizes": {"envs": ENVS, "batch_steps": BATCH, "epochs": EPOCHS, "minibatch": MINIBATCH},
        "environments": {env_id: measure(env_id, options.rounds, options.batches) for env_id in ENVIRONMENTS},
        "versions": versions(),
        "machine": machine(),
    }
    if options.curves:
        for env_id, batches in zip(ENVIRONMENTS, (100, 30), strict=True):
            result["environments"][env_id]["curves"] = curves(env_id, batches * BATCH, 3)
    columns = ("environment", "peira", "sb3", "ratio", "no store", "rollout", "envpool", "ratio", *PARTS)
    page = Table(*columns, title="environment steps a second (medians) and shares of wall time", box=None)
    for env_id, entry in result["environments"].items():
        rate = {name: f"{value['median']:,.0f}" for name, value in entry["steps_per_second"].items()}
        page.add_row(
            env_id,
            rate["peira"],
            rate["sb3"],
            f"{entry['training_ratio_to_sb3']['median']:.1f}×",
            f"{entry['training_ratio_to_sb3_without_store']['median']:.1f}×",
            rate["rollout"],
            rate["envpool"],
            f"{entry['rollout_ratio_to_envpool']['median']:.0%}",
            *(f"{entry['share_of_wall_time'][part]:.0%}" for part in PARTS),
        )
    Console().print(page)
    for env_id, entry in result["environments"].items():
        if "curves" in entry:
            found = entry["curves"]
            low, high = found["area_difference_interval"]
            print(
                f"{env_id}: mean of the curve, ours − theirs {found['area_difference']:.0f} [{low:.0f}, {high:.0f}]"
            )
            for name in ("peira", "sb3"):
                print(f"  {name}, after {found['steps']}: {np.mean(found[name], axis=0).round().tolist()}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
