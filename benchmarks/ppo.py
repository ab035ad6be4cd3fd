"""How fast is training? Our PPO against Stable-Baselines3's, and our rollout against bare EnvPool, in one process.

Same networks (64-64 tanh for actor and critic), steps a batch (8 environments × 256), epochs (10) and minibatches (64
rows). Both are timed from a warm start over whole batches; the two alternate, so that a machine whose speed drifts
slows both. Throughput is environment steps of training a wall second; ratios are medians over the rounds.

    python benchmarks/ppo.py                        # speed, about 6 minutes on two cores
    python benchmarks/ppo.py --curves               # and learning curves: 3 seeds each, about 15 minutes more

Needs `pip install 'peira[bench]'` (`make bench` does it).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from peira.environments.control import make_control
from peira.environments.normalise import RewardScaler
from peira.learners.ppo import ppo_columns, ppo_update
from peira.policies.actor_critic import ActorCritic, CategoricalActorCritic, GaussianActorCritic
from peira.recipes import ppo
from peira.runs.plots import read_metrics, series
from peira.runs.run import Run, create_folder, machine, versions
from peira.sources.rollout import rollout

ENVIRONMENTS = ("HalfCheetah-v5", "CartPole-v1")
ENVS, BATCH, EPOCHS, MINIBATCH = 8, 2048, 10, 64
PARTS = ("environment", "inference", "update", "rest")


class Ours:
    """The inner loop of `peira run ppo`, held open so that batches of it can be timed."""

    def __init__(self, env_id: str, seed: int = 0):
        self.config = ppo.Config(env=env_id, num_envs=ENVS, batch_steps=BATCH, kl_stop=None, seed=seed)
        self.env = make_control(env_id, ENVS, seed)
        self.env.reset()
        kind = CategoricalActorCritic if self.env.discrete else GaussianActorCritic
        self.generator = torch.Generator().manual_seed(seed)
        self.policy: ActorCritic = kind(
            self.env.observation_size, self.env.action_size, generator=self.generator
        )
        self.step = ppo.ppo_step(self.config, self.policy)
        self.scaler = RewardScaler(self.config.discount, ENVS)
        self.seconds = dict.fromkeys(("rollout", "environment", "update"), 0.0)

    def train(self, batches: int) -> None:
        config = self.config
        for _ in range(batches):
            began = time.perf_counter()
            batch = rollout(self.env, self.policy, BATCH // ENVS, self.generator, gathered_for=0)
            self.seconds["rollout"] += time.perf_counter() - began
            self.policy.normaliser.update(batch.rows("observation"))
            self.scaler.update(batch.reward, batch.done)
            columns = ppo_columns(
                self.policy,
                batch,
                self.scaler.scale(batch.reward),
                discount=config.discount,
                decay=config.gae_lambda,
            )
            began = time.perf_counter()
            ppo_update(
                self.step,
                self.policy,
                columns,
                epochs=EPOCHS,
                minibatches=BATCH // MINIBATCH,
                generator=self.generator,
            )
            self.seconds["update"] += time.perf_counter() - began

    def fractions(self, batches: int) -> dict[str, float]:
        """Shares of wall time; the environment's is measured by timing its `step` from within a rollout."""
        inner, spent = self.env.step, [0.0]

        def timed(actions: np.ndarray) -> tuple:
            began = time.perf_counter()
            result = inner(actions)
            spent[0] += time.perf_counter() - began
            return result

        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self.env.step = timed
        began = time.perf_counter()
        self.train(batches)
        whole = time.perf_counter() - began
        del self.env.step
        parts = (spent[0], self.seconds["rollout"] - spent[0], self.seconds["update"])
        return dict(zip(PARTS, [*(part / whole for part in parts), 1 - sum(parts) / whole], strict=True))


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
    ours, theirs = Ours(env_id), sb3(env_id)
    pool, actions = bare_envpool(env_id)

    def bare() -> None:
        for action in actions:
            pool.step(action)

    def gather() -> None:
        rollout(ours.env, ours.policy, BATCH // ENVS, ours.generator, gathered_for=0)

    ours.train(2)
    theirs.learn(BATCH)
    bare()
    rates: dict[str, list[float]] = {"peira": [], "sb3": [], "rollout": [], "envpool": []}
    for _ in range(rounds):
        rates["sb3"].append(timed(lambda: theirs.learn(BATCH, reset_num_timesteps=False), BATCH))
        rates["peira"].append(timed(lambda: ours.train(batches), batches * BATCH))
        for _ in range(3):
            rates["rollout"].append(timed(gather, BATCH))
            rates["envpool"].append(timed(bare, BATCH))
    training = [ours / theirs for ours, theirs in zip(rates["peira"], rates["sb3"], strict=True)]
    gathering = [ours / bare for ours, bare in zip(rates["rollout"], rates["envpool"], strict=True)]
    return {
        "steps_per_second": {name: spread(values) for name, values in rates.items()},
        "training_ratio_to_sb3": spread(training),
        "rollout_ratio_to_envpool": spread(gathering),
        "share_of_wall_time": ours.fractions(batches),
    }


def our_score(env_id: str, seed: int, steps: int) -> float:
    """Final evaluation of `peira run ppo` under the benchmark's settings."""
    with tempfile.TemporaryDirectory() as name:
        config = ppo.Config(
            env=env_id,
            steps=steps,
            seed=seed,
            kl_stop=None,
            value_clip=None,
            store=False,
            evaluation_episodes=20,
        )
        config = replace(config, anneal=False, normalise_reward=False, normalise_observation=False)
        create_folder(Path(name) / "run", "ppo", config)
        run = Run(
            Path(name) / "run",
            "ppo",
            config,
            console=Console(quiet=True),
            resumed=False,
            checkpoint_seconds=1e9,
        )
        run.finish(ppo.run(config, run))
        return float(series(read_metrics(Path(name) / "run"), "evaluation_return")[1][-1])


def their_score(env_id: str, seed: int, steps: int) -> float:
    model = sb3(env_id, seed).learn(steps)
    returns, _ = evaluate_policy(
        model, make_vec_env(env_id, 1, seed=seed + 1000), n_eval_episodes=20, return_episode_rewards=True
    )
    return float(np.mean(returns))


def curves(env_id: str, steps: int, seeds: int) -> dict[str, list[float]]:
    """Mean return of 20 evaluation episodes after the same number of steps, a seed each."""
    return {
        "steps": steps,
        "peira": [our_score(env_id, seed, steps) for seed in range(seeds)],
        "sb3": [their_score(env_id, seed, steps) for seed in range(seeds)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=6, help="batches of ours in a round")
    parser.add_argument("--curves", action="store_true", help="also train 3 seeds of each and compare scores")
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
        for env_id, steps in zip(ENVIRONMENTS, (200_000, 60_000), strict=True):
            result["environments"][env_id]["score"] = curves(env_id, steps, 3)
    columns = ("environment", "peira", "sb3", "ratio", "rollout", "envpool", "ratio", *PARTS)
    page = Table(*columns, title="environment steps a second (medians) and shares of wall time", box=None)
    for env_id, entry in result["environments"].items():
        rate = {name: f"{value['median']:,.0f}" for name, value in entry["steps_per_second"].items()}
        page.add_row(
            env_id,
            rate["peira"],
            rate["sb3"],
            f"{entry['training_ratio_to_sb3']['median']:.1f}×",
            rate["rollout"],
            rate["envpool"],
            f"{entry['rollout_ratio_to_envpool']['median']:.0%}",
            *(f"{entry['share_of_wall_time'][part]:.0%}" for part in PARTS),
        )
    Console().print(page)
    for env_id, entry in result["environments"].items():
        if "score" in entry:
            print(f"{env_id} after {entry['score']['steps']:,} steps: {entry['score']}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
