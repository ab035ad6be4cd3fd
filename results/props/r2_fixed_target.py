"""Does PROPS lower sampling error when the target stands still? (``props.md`` 7, R2)

A randomly initialised 64-64 policy acts for 8192 steps under each sampler; the sampling error of all its steps is then
measured exactly (least squares on last hidden features). Seeds are paired: each gives every sampler the same policy,
normaliser and environment seed.

    python results/props/r2_fixed_target.py            # writes r2_fixed_target.json and .md beside this file
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from peira.environments.control import make_control
from peira.evaluation.sampling_error import sampling_error
from peira.evaluation.statistics import ratio_interval
from peira.experience.batch import Batch
from peira.policies.actor_critic import GaussianActorCritic
from peira.sources.props import OnPolicySampler, PropsSampler
from peira.sources.rollout import rollout
from peira.sources.ros import RobustOnPolicySampler
from peira.versions import machine, versions

HERE = Path(__file__).parent
ENVIRONMENTS = ("Hopper-v5", "HalfCheetah-v5")
ROS_STEP_SIZES = (1e-5, 1e-4, 1e-3)
STEPS, INTERVAL, ENVS = 8192, 256, 1


def target_policy(env_id: str, seed: int) -> GaussianActorCritic:
    """A random policy whose normaliser has seen 4096 of its own steps and then stands still."""
    env = make_control(env_id, ENVS, 10_000 + seed)
    env.reset()
    policy = GaussianActorCritic(
        env.observation_size, env.action_size, generator=torch.Generator().manual_seed(seed)
    )
    seen = rollout(env, policy, 4096 // ENVS, torch.Generator().manual_seed(seed), gathered_for=0)
    policy.normaliser.update(seen.rows("observation"))
    env.close()
    return policy


def gather(sampler, env_id: str, policy: GaussianActorCritic, seed: int, interval: int, steps: int) -> Batch:
    """`steps` steps in which `sampler` is updated every `interval` and nothing is evicted."""
    env = make_control(env_id, ENVS, seed)
    env.reset()
    generator = torch.Generator().manual_seed(seed)
    batches: list[Batch] = []
    nothing = torch.empty(0, env.observation_size), torch.empty(0, env.action_size)
    observation, action = nothing
    for _ in range(steps // interval):
        sampler.update(policy, observation, action, batches[-1].steps if batches else 0)
        batches.append(rollout(env, sampler.policy, interval // ENVS, generator, gathered_for=0))
        observation = torch.cat([observation, batches[-1].rows("observation")])
        action = torch.cat([action, batches[-1].rows("action")])
    env.close()
    return Batch.concatenate(batches)


def measure(env_id: str, seed: int, steps: int = STEPS, *, compiled: bool = True) -> dict[str, float]:
    """Sampling error of `steps` steps under each sampler, and its reference level p/(2N)."""
    policy = target_policy(env_id, seed)
    props = PropsSampler(
        policy,
        learning_rate=1e-3,
        clip=0.3,
        kl_penalty=0.1,
        kl_stop=0.05,
        epochs=16,
        minibatches=16,
        generator=torch.Generator().manual_seed(seed),
        compiled=compiled,
    )
    samplers = {"on-policy": (OnPolicySampler(policy), INTERVAL), "props": (props, INTERVAL)}
    for alpha in ROS_STEP_SIZES:
        samplers[f"ros {alpha:g}"] = (RobustOnPolicySampler(alpha), ENVS)
    errors = {}
    for name, (sampler, interval) in samplers.items():
        batch = gather(sampler, env_id, policy, seed, interval, steps)
        error = sampling_error(policy, batch.rows("observation"), batch.rows("action"))
        errors[name] = error.value
    return {**errors, "reference": error.reference_level}


def report(results: dict[str, list[dict[str, float]]]) -> dict:
    """Per environment: errors a seed, ratios to on-policy with 95 % bootstrap intervals, and the acceptance figures."""
    page = {}
    for env_id, per_seed in results.items():
        columns = {name: np.array([row[name] for row in per_seed]) for name in per_seed[0]}
        base = columns["on-policy"]
        ratios = {}
        for name, values in columns.items():
            if name not in ("on-policy", "reference"):
                ratio = ratio_interval(values, base, np.mean, rng=np.random.default_rng(0))
                ratios[name] = {"ratio": ratio.estimate, "interval": ratio.interval}
        props = ratios["props"]
        page[env_id] = {
            "sampling_error": {name: values.tolist() for name, values in columns.items()},
            "ratio_to_on_policy": ratios,
            "accepted": {
                "props ratio at most 0.80": bool(props["ratio"] <= 0.80),
                "upper limit below 0.90": bool(props["interval"][1] < 0.90),
                "on-policy within 20 % of p/(2N)": bool(
                    abs(base.mean() / columns["reference"][0] - 1) <= 0.2
                ),
                "no ROS better than 0.9": all(ratios[f"ros {a:g}"]["ratio"] >= 0.9 for a in ROS_STEP_SIZES),
            },
        }
    return page


def markdown(document: dict) -> str:
    lines = [
        "# R2: sampling error with a fixed target",
        "",
        f"`{document['command']}` · {document['seeds']} paired seeds · {STEPS} steps, nothing evicted · PROPS m 256, "
        "lr 1e-3, λ 0.1, ε 0.3, δ 0.05, 16 × 16 · exact (least-squares) meter",
        "",
        "| environment | sampler | sampling error (mean) | ratio to on-policy [95 %] |",
        "|---|---|---:|---:|",
    ]
    for env_id, entry in document["environments"].items():
        for name, values in entry["sampling_error"].items():
            mean = f"{np.mean(values):.5f}"
            ratio = entry["ratio_to_on_policy"].get(name)
            shown = (
                f"{ratio['ratio']:.3f} [{ratio['interval'][0]:.3f}, {ratio['interval'][1]:.3f}]"
                if ratio
                else ""
            )
            lines.append(f"| {env_id} | {'p/(2N)' if name == 'reference' else name} | {mean} | {shown} |")
    lines += ["", "| environment | acceptance figure | met |", "|---|---|---|"]
    for env_id, entry in document["environments"].items():
        lines += [
            f"| {env_id} | {what} | {'yes' if met else 'no'} |" for what, met in entry["accepted"].items()
        ]
    lines += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in document["versions"].items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, float]]] = {}
    for env_id in ENVIRONMENTS:
        for seed in range(seeds):
            began = time.monotonic()
            results.setdefault(env_id, []).append(measure(env_id, seed))
            row = ", ".join(f"{name} {value:.4f}" for name, value in results[env_id][-1].items())
            print(
                f"{env_id} seed {seed}: {row} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True
            )
    document = {
        "command": f"python results/props/r2_fixed_target.py --seeds {seeds}",
        "seeds": seeds,
        "environments": report(results),
        "versions": versions(),
        "machine": machine(),
    }
    (HERE / "r2_fixed_target.json").write_text(json.dumps(document, indent=2) + "\n")
    (HERE / "r2_fixed_target.md").write_text(markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
