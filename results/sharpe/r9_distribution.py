"""R9: the distribution of returns and its lower tail.

    python results/sharpe/r9_distribution.py

writes r9_distribution.json and r9_distribution.md beside itself, in about three minutes on one core. Fixture A, whose
distribution of returns is known exactly, with 400 logs; and CartPole of 200 steps (γ = 1: the return is the length),
with 100 logs of a linear softmax controller at inverse temperature 0.5 and two candidates, at 0.8 (near) and 1.2 (far),
whose distributions are those of a million episodes of their own. Logs of 10 000 episodes, of which the first 625, the
first 2 500 and all are evaluated by weights of whole episodes: TIS, and SNTIS self-normalised.

Accepted (``sharpe.md`` 7, R9), on fixture A and for the near candidate: the RMSE of SNTIS' CVaR₀.₁ halves with every
fourfold n (ratio in 0.5 ± 0.1), and the greatest distance of its distribution function from the true one is below 0.05
at n = 10 000 on average over logs. Expect both; the far candidate shows what weights of 200 steps cost.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import gymnasium
import numpy as np
from scipy import special
from worlds import World, draw, fixture_a

from peira.evaluation.off_policy import sequential
from peira.evaluation.off_policy.distribution import (
    ReturnDistribution,
    sntis_distribution,
    tis_distribution,
)
from peira.evaluation.off_policy.weights import effective_sample_size
from peira.runs.study import publish, rmse, rmse_ratio, verdicts

SIZES = (625, 2_500, 10_000)
LEVEL = 0.1
ESTIMATORS = {"tis": tis_distribution, "sntis": sntis_distribution}
STEPS, INVERSE_TEMPERATURE = 200, 0.5
CANDIDATES = {"CartPole, near": 0.8, "CartPole, far": 1.2}
TRUTH_EPISODES, TOGETHER = 1_000_000, 100_000
CONTROLLER = np.array([0.0, 0.0, 4.0, 1.0])
"""Weights of position, velocity, angle and angular velocity; positive pushes to the right."""


def exact_returns(world: World) -> ReturnDistribution:
    """All returns of the target with their probabilities, by going through all states and sums of rewards."""
    alive = {(state, 0.0): p for state, p in enumerate(world.first) if p > 0}
    ended: dict[float, float] = {}
    for t in range(world.horizon):
        following: dict[tuple[int, float], float] = {}
        for (state, gained), p in alive.items():
            for action, prob in enumerate(world.target[state]):
                total = round(gained + world.gamma**t * world.reward[state, action], 12)
                onward = world.move[state, action]
                ended[total] = ended.get(total, 0.0) + p * prob * (1 - onward.sum())
                for to in np.flatnonzero(onward):
                    at = int(to), total
                    following[at] = following.get(at, 0.0) + p * prob * onward[to]
        alive = following
    for (_, total), p in alive.items():
        ended[total] = ended.get(total, 0.0) + p
    atom = np.array(sorted(total for total, p in ended.items() if p > 0))
    return ReturnDistribution(atom, np.array([ended[total] for total in atom]), 0.0)


def observed_returns(returns: np.ndarray) -> ReturnDistribution:
    """The distribution of a sample."""
    atom, count = np.unique(returns, return_counts=True)
    return ReturnDistribution(atom, count / len(returns), 0.0)


def distance(found: ReturnDistribution, truth: ReturnDistribution) -> float:
    """Greatest difference of the two distribution functions."""
    support = np.union1d(found.atom, truth.atom)

    def at_support(of: ReturnDistribution) -> np.ndarray:
        # Atoms that only rounding keeps apart are one.
        place = np.searchsorted(of.atom, support + 1e-9, side="right")
        return np.append(0.0, of.cdf())[place]

    return float(np.abs(at_support(found) - at_support(truth)).max())


def errors_of_log(
    returns: np.ndarray, log_weight: np.ndarray, truth: ReturnDistribution, sizes: tuple[int, ...]
) -> dict[str, list[float]]:
    """Distance and error of CVaR at every size, and the effective share of the episodes."""
    found: dict[str, list[float]] = {}
    for n in sizes:
        for name, form in ESTIMATORS.items():
            of = form(returns[:n], log_weight[:n])
            found.setdefault(f"{name} distance", []).append(distance(of, truth))
            found.setdefault(f"{name} cvar", []).append(float(of.cvar(LEVEL) - truth.cvar(LEVEL)))
        size = effective_sample_size(log_weight[:n, None])[0]
        found.setdefault("effective share", []).append(float(size / n))
    return found


def cart_pole(
    episodes: int, inverse_temperature: float, candidates: list[float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths [episodes] of one controller, and log weights [candidates, episodes] of others."""
    seed = int(rng.integers(2**31))
    env = gymnasium.make_vec("CartPole-v1", num_envs=episodes, vectorization_mode="vector_entry_point")
    observation, _ = env.reset(seed=seed)
    alive, length, log_weight = (
        np.ones(episodes, bool),
        np.zeros(episodes),
        np.zeros((len(candidates), episodes)),
    )
    for _ in range(STEPS):
        push = observation @ CONTROLLER
        action = rng.random(episodes) < special.expit(inverse_temperature * push)
        signed = np.where(action, push, -push)
        taken = special.log_expit(inverse_temperature * signed)
        for weight, of in zip(log_weight, candidates, strict=True):
            weight += np.where(alive, special.log_expit(of * signed) - taken, 0.0)
        observation, _, terminated, _, _ = env.step(action.astype(np.int64))
        length += alive
        alive &= ~terminated
        if not alive.any():
            break
    env.close()
    return length, log_weight


def own_returns(inverse_temperature: float, episodes: int) -> ReturnDistribution:
    """What a controller's own episodes give."""
    lengths, rng = [], np.random.default_rng(1)
    for first in range(0, episodes, TOGETHER):
        together = min(TOGETHER, episodes - first)
        lengths.append(cart_pole(together, inverse_temperature, [], rng)[0])
    return observed_returns(np.concatenate(lengths))


def fixture_logs(
    logs: int, sizes: tuple[int, ...] = SIZES
) -> tuple[dict[str, np.ndarray], ReturnDistribution]:
    """Errors [logs, sizes] on fixture A, and the truth."""
    world = fixture_a()
    truth = exact_returns(world)
    found = []
    for seed in range(logs):
        log = draw(world, max(sizes), np.random.default_rng(seed))
        returns = sequential.returns(log.block, world.gamma)
        found.append(errors_of_log(returns, log.log_ratio.sum(1), truth, sizes))
    return {name: np.array([of[name] for of in found]) for name in found[0]}, truth


def cart_pole_logs(
    logs: int, sizes: tuple[int, ...] = SIZES, truth_episodes: int = TRUTH_EPISODES
) -> dict[str, tuple[dict[str, np.ndarray], ReturnDistribution]]:
    """The same for the candidates on CartPole."""
    truths = {name: own_returns(of, truth_episodes) for name, of in CANDIDATES.items()}
    found: dict[str, list[dict]] = {name: [] for name in CANDIDATES}
    together = min(logs, TOGETHER // max(sizes))
    for first in range(0, logs, together):
        rng = np.random.default_rng([2, first])
        length, log_weight = cart_pole(
            together * max(sizes), INVERSE_TEMPERATURE, list(CANDIDATES.values()), rng
        )
        for log in range(together):
            rows = slice(log * max(sizes), (log + 1) * max(sizes))
            for name, weight in zip(CANDIDATES, log_weight, strict=True):
                found[name].append(errors_of_log(length[rows], weight[rows], truths[name], sizes))
        print(f"CartPole: {first + together} of {logs} logs", flush=True)
    return {
        name: ({key: np.array([of[key] for of in logs]) for key in logs[0]}, truths[name])
        for name, logs in found.items()
    }


def summary(errors: dict[str, np.ndarray], truth: ReturnDistribution, sizes: tuple[int, ...]) -> dict:
    estimators = {}
    for name in ESTIMATORS:
        cvar, distances = errors[f"{name} cvar"], errors[f"{name} distance"]
        estimators[name] = {
            "cvar": {str(n): rmse(cvar[:, k]) for k, n in enumerate(sizes)},
            "cvar_ratio": {
                f"{b}/{a}": rmse_ratio(cvar[:, k + 1], cvar[:, k]) for k, (a, b) in enumerate(pairwise(sizes))
            },
            "distance": {
                str(n): {"mean": float(distances[:, k].mean()), "greatest": float(distances[:, k].max())}
                for k, n in enumerate(sizes)
            },
        }
    return {
        "logs": len(errors["effective share"]),
        "true_cvar": float(truth.cvar(LEVEL)),
        "true_mean": float(truth.mean()),
        "effective_share": {
            str(n): float(errors["effective share"][:, k].mean()) for k, n in enumerate(sizes)
        },
        "estimators": estimators,
    }


def accepted(worlds: dict[str, dict]) -> dict[str, bool]:
    found = {}
    for name in ("fixture A", "CartPole, near"):
        of = worlds[name]["estimators"]["sntis"]
        ratios = [each["ratio"] for each in of["cvar_ratio"].values()]
        found[f"{name}: RMSE of CVaR halves with every fourfold n"] = all(0.4 <= r <= 0.6 for r in ratios)
        found[f"{name}: distribution function within 0.05 at n = 10000"] = (
            of["distance"]["10000"]["mean"] < 0.05
        )
    return found


def page(document: dict) -> str:
    lines = [
        "# R9: distribution of returns",
        "",
        f"`{document['command']}` · {document['seconds']:.0f} s · RMSE of CVaR₀.₁ with 95 % bootstrap intervals "
        "(bias); distance: greatest difference to the true distribution function, mean over logs (greatest)",
    ]
    for name, entry in document["worlds"].items():
        sizes = list(entry["effective_share"])
        lines += [
            "",
            f"## {name}",
            "",
            f"{entry['logs']} logs · true mean {entry['true_mean']:.4f}, true CVaR₀.₁ {entry['true_cvar']:.4f} · "
            f"effective share of the episodes {entry['effective_share'][sizes[-1]]:.3f} at n = {sizes[-1]}",
            "",
            "| | " + " | ".join(f"n = {n}" for n in sizes) + " | RMSE ratios at 4n/n |",
            "|---|" + "---:|" * (len(sizes) + 1),
        ]
        for estimator, of in entry["estimators"].items():
            cells = [
                f"{c['rmse']:.4f} [{c['interval'][0]:.4f}, {c['interval'][1]:.4f}] ({c['bias']:+.4f})"
                for c in of["cvar"].values()
            ]
            ratios = ", ".join(
                f"{c['ratio']:.2f} [{c['interval'][0]:.2f}, {c['interval'][1]:.2f}]"
                for c in of["cvar_ratio"].values()
            )
            lines.append(f"| {estimator}: CVaR₀.₁ | " + " | ".join([*cells, ratios]) + " |")
            cells = [f"{c['mean']:.4f} ({c['greatest']:.4f})" for c in of["distance"].values()]
            lines.append(f"| {estimator}: distance | " + " | ".join(cells) + " | |")
    return "\n".join([*lines, "", *verdicts(document["accepted"]), "", document["reading"]])


READING = """\
The far candidate keeps 1.4 % of the log's effective size, and no distribution function comes within 0.05. Its lower
tail is another matter: short episodes have few ratios and small weights, so that TIS sees it well, while SNTIS divides
by a normaliser that the long episodes of great weight make up, and is six times as far off. Both RMSEs still halve
with every fourfold n. On fixture A and for the near candidate the two are about alike."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fixture-logs", type=int, default=400)
    parser.add_argument("--cartpole-logs", type=int, default=100)
    options = parser.parse_args()
    began = time.monotonic()
    logs = {"fixture A": fixture_logs(options.fixture_logs)}
    print(f"fixture A: {options.fixture_logs} logs", flush=True)
    logs |= cart_pole_logs(options.cartpole_logs)
    worlds = {name: summary(*of, SIZES) for name, of in logs.items()}
    document = {
        "seconds": time.monotonic() - began,
        "worlds": worlds,
        "accepted": accepted(worlds),
        "reading": READING,
    }
    arguments = f" --fixture-logs {options.fixture_logs} --cartpole-logs {options.cartpole_logs}"
    publish(Path(__file__), arguments, document, page)


if __name__ == "__main__":
    main()
