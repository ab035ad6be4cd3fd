"""R1: robust on-policy sampling evaluates a gridworld policy with fewer steps than on-policy sampling.

    python results/props/r1_gridworld.py

writes r1_gridworld.json and r1_gridworld.md beside itself, in some ten seconds on one core.

One fixed softmax table (the best action with probability 0.7, each other one 0.1) is evaluated by the mean
return of the episodes finished within the budget of steps. Its exact value comes from dynamic programming, so
every seed has a squared error. Arms differ only in how actions are chosen: on-policy, ROS with step α, and
ROA (the greedy under-sampled rule) with ρ = 1. A fifth arm is the cheap competitor, weighted regression
importance sampling on the on-policy data: each episode weighs Π π(a|s)/π_D(a|s), π_D being the observed
action shares.

Accepted: the ratio of mean squared errors to on-policy is at most 0.2 for ROS with α = 1000 and 0.1 for ROA,
both with the upper end of their 95 % bootstrap interval below 0.5.
"""

import json
import platform
from pathlib import Path

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int
from scipy.stats import bootstrap

from peira.environments.gridworld import (
    ACTIONS,
    HORIZON,
    START,
    STATES,
    best_action,
    exact_value,
    step_gridworld,
)
from peira.sources.ros import draw_action, robust_policy, running_mean_gradient, under_sampled_policy

COMMAND = "python results/props/r1_gridworld.py"
SEEDS = 100
BUDGETS = (951, 3805)
BEST_ACTION_PROBABILITY = 0.7
ALPHAS = (10.0, 100.0, 1000.0)
ON_POLICY, REWEIGHTED, GREEDY = "on-policy", "on-policy, reweighted (WRIS)", "ROA ρ=1"
# What each ratio to on-policy must not exceed: itself, and the upper end of its interval.
ACCEPTED = {"ROS α=1000": (0.2, 0.5), GREEDY: (0.1, 0.5)}


def policy_table() -> Float[np.ndarray, "states actions"]:
    """π(a|s): `BEST_ACTION_PROBABILITY` for an optimal action, the rest shared."""
    policy = np.full((STATES, ACTIONS), (1 - BEST_ACTION_PROBABILITY) / (ACTIONS - 1))
    policy[np.arange(STATES), best_action()] = BEST_ACTION_PROBABILITY
    return policy


def acting_rules() -> dict:
    """Arm → acting probabilities from (π(·|s), the mean gradient's row of s, steps so far)."""
    rules = {ON_POLICY: lambda policy, gradient, steps: policy}
    for alpha in ALPHAS:
        rules[f"ROS α={alpha:g}"] = lambda policy, gradient, steps, alpha=alpha: robust_policy(
            policy, gradient, alpha
        )
    rules[GREEDY] = under_sampled_policy
    return rules


def gather(
    policy: Float[np.ndarray, "states actions"], rule, seeds: int, steps: int, generator: np.random.Generator
) -> tuple[
    Int[np.ndarray, "steps seeds"],
    Int[np.ndarray, "steps seeds"],
    Float[np.ndarray, "steps seeds"],
    Bool[np.ndarray, "steps seeds"],
]:
    """`(state, action, reward, ended)` of `steps` steps for every seed; episodes follow each other."""
    states, actions = np.empty((2, steps, seeds), dtype=np.int64)
    rewards, ended = np.empty((steps, seeds)), np.empty((steps, seeds), dtype=bool)
    gradient = np.zeros((seeds, STATES, ACTIONS))
    state, age, rows = np.full(seeds, START), np.zeros(seeds, dtype=np.int64), np.arange(seeds)
    for step in range(steps):
        at_state = policy[state]
        action = draw_action(rule(at_state, gradient[rows, state], step), generator)
        gradient = running_mean_gradient(gradient, step, at_state, state, action)
        next_state, reward, terminated = step_gridworld(state, action)
        age += 1
        over = terminated | (age == HORIZON)
        states[step], actions[step], rewards[step], ended[step] = state, action, reward, over
        state, age = np.where(over, START, next_state), np.where(over, 0, age)
    return states, actions, rewards, ended


def monte_carlo_value(reward: Float[np.ndarray, " steps"], ended: Bool[np.ndarray, " steps"]) -> float:
    """Mean return of the finished episodes of one seed."""
    return float(reward[: _finished(ended)].sum() / ended.sum())


def reweighted_value(
    policy: Float[np.ndarray, "states actions"],
    state: Int[np.ndarray, " steps"],
    action: Int[np.ndarray, " steps"],
    reward: Float[np.ndarray, " steps"],
    ended: Bool[np.ndarray, " steps"],
) -> float:
    """Weighted regression importance sampling over the finished episodes of one seed.

    Σ_i w_i G_i / Σ_i w_i with w_i = Π_t π(a_t|s_t) / π_D(a_t|s_t), π_D the action shares of those episodes.
    """
    rows = _finished(ended)
    state, action = state[:rows], action[:rows]
    count = np.zeros(policy.shape)
    np.add.at(count, (state, action), 1)
    log_ratio = np.log(policy[state, action] * count[state].sum(axis=1) / count[state, action])
    starts = np.concatenate([[0], np.flatnonzero(ended)[:-1] + 1])
    log_weight = np.add.reduceat(log_ratio, starts)
    weight = np.exp(log_weight - log_weight.max())
    return float((weight * np.add.reduceat(reward[:rows], starts)).sum() / weight.sum())


def _finished(ended: Bool[np.ndarray, " steps"]) -> int:
    """How many rows belong to finished episodes."""
    return int(np.flatnonzero(ended)[-1]) + 1


def squared_errors(seeds: int, steps: int, seed: int) -> dict[str, Float[np.ndarray, " seeds"]]:
    """Arm → squared error of each seed's value estimate after `steps` steps."""
    policy = policy_table()
    truth = exact_value(policy)[START]
    errors = {}
    for arm, (name, rule) in enumerate(acting_rules().items()):
        generator = np.random.default_rng([seed, steps, arm])
        state, action, reward, ended = gather(policy, rule, seeds, steps, generator)
        values = [monte_carlo_value(reward[:, i], ended[:, i]) for i in range(seeds)]
        errors[name] = (np.array(values) - truth) ** 2
        if name == ON_POLICY:
            values = [
                reweighted_value(policy, state[:, i], action[:, i], reward[:, i], ended[:, i])
                for i in range(seeds)
            ]
            errors[REWEIGHTED] = (np.array(values) - truth) ** 2
    return errors


def ratio_to_on_policy(
    errors: dict[str, Float[np.ndarray, " seeds"]], name: str, seed: int
) -> tuple[float, tuple[float, float]]:
    """Ratio of mean squared errors to on-policy and its 95 % percentile bootstrap interval over seeds."""

    def ratio(arm, on_policy, axis=-1):
        return arm.mean(axis=axis) / on_policy.mean(axis=axis)

    samples = (errors[name], errors[ON_POLICY])
    interval = bootstrap(
        samples,
        ratio,
        # The reweighted estimates come from the on-policy arm's own data; the other arms gather theirs.
        paired=name == REWEIGHTED,
        vectorized=True,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(ratio(*samples)), (float(interval.low), float(interval.high))


def study(seeds: int, budgets: tuple[int, ...], seed: int = 0) -> dict:
    """Every arm at every budget, with the acceptance figures."""
    truth = float(exact_value(policy_table())[START])
    report = {"exact_value": truth, "seeds": seeds, "seed": seed, "budgets": {}, "accepted": True}
    for steps in budgets:
        errors = squared_errors(seeds, steps, seed)
        arms = {}
        for name, error in errors.items():
            mean = float(error.mean())
            arms[name] = {"mean_squared_error": mean, "relative": mean / truth**2}
            if name == ON_POLICY:
                continue
            ratio, interval = ratio_to_on_policy(errors, name, seed)
            arms[name] |= {"ratio": ratio, "interval": interval}
            if name in ACCEPTED:
                limit, upper_limit = ACCEPTED[name]
                met = ratio <= limit and interval[1] < upper_limit
                arms[name] |= {"limit": limit, "upper_limit": upper_limit, "met": met}
                report["accepted"] &= met
        report["budgets"][str(steps)] = arms
    return report


def table(report: dict) -> str:
    """The report as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        "# R1: ROS on the 4×4 gridworld",
        "",
        f"Command: `{report['command']}`  ",
        f"{report['seeds']} seeds an arm (numpy generators `[{report['seed']}, steps, arm]`), {versions}.",
        "",
        f"Exact value of the evaluated policy by dynamic programming: {report['exact_value']:.4f}.",
        "Ratios: mean squared error over that of on-policy Monte Carlo, 95 % percentile bootstrap interval.",
        "",
        "| steps | arm | mean squared error | relative to value² | ratio to on-policy | required | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for steps, arms in report["budgets"].items():
        for name, arm in arms.items():
            ratio, required, met = "1", "", ""
            if "ratio" in arm:
                low, high = arm["interval"]
                ratio = f"{arm['ratio']:.3f} [{low:.3f}, {high:.3f}]"
            if "limit" in arm:
                required = f"≤ {arm['limit']}, upper end < {arm['upper_limit']}"
                met = "yes" if arm["met"] else "no"
            error, relative = arm["mean_squared_error"], arm["relative"]
            lines.append(
                f"| {steps} | {name} | {error:.3e} | {relative:.3e} | {ratio} | {required} | {met} |"
            )
    lines += ["", f"Accepted: {'yes' if report['accepted'] else 'no'}.", ""]
    return "\n".join(lines)


def main() -> None:
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    report = {"command": COMMAND, "versions": versions} | study(SEEDS, BUDGETS)
    beside = Path(__file__).with_suffix(".json")
    beside.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    text = table(report)
    beside.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
