"""How fast is learning from a log? TD3+BC and IQL here, in d3rlpy, and in plain PyTorch; and five stacked seeds.

Same networks (256-256), batches (256), log and thread for all; rows are drawn inside an update. What is counted is
the steps of the critics: an update of TD3+BC here is two of them and one of the actor (``pgd.md`` 2.7), in d3rlpy and
in the paper's code one, and one of the actor every second time, so that per step of the critics all do the same. Sides
alternate within a round, and ratios are medians over the rounds, of wall time and of processor time (which a machine
that is shared disturbs less). The floor is the time of the matrix products alone, measured in the same rounds.

    python benchmarks/offline.py --peer PEER/bin/python --out results/speed/offline.json

PEER is the environment that benchmarks/scope_rl_peer.py tells how to make; without it d3rlpy is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from peira.experience.transitions import TransitionLog
from peira.learners.offline import OfflineLearner, Settings, standardisation
from peira.versions import machine, versions

OBS, ACT, WIDTH, BATCH, ROWS, LENGTH = 17, 6, 256, 256, 100_000, 1000
METHODS = ("td3bc", "iql")
STACKED = 5

Side = Callable[[int], tuple[float, float]]
"""Does so many steps of the critics; seconds on the wall and of the processor."""


def made_log() -> TransitionLog:
    """Sizes of HalfCheetah; what the numbers are does not change the time."""
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(ROWS + 1, OBS, generator=generator)
    first = torch.arange(0, ROWS + 1, LENGTH)
    truncated = torch.zeros(ROWS, dtype=torch.bool)
    truncated[first[1:] - 1] = True
    return TransitionLog(
        observation=observation[:-1],
        action=torch.rand(ROWS, ACT, generator=generator) * 2 - 1,
        reward=torch.randn(ROWS, generator=generator),
        next_observation=observation[1:],
        terminated=torch.zeros(ROWS, dtype=torch.bool),
        truncated=truncated,
        first=first,
    )


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def ours(
    method: str, log: TransitionLog, *, seeds: int = 1, threads: int = 1, products: str = "float32"
) -> Side:
    """This package's learner."""
    per_update = 2 if method == "td3bc" else 1
    settings = Settings(
        method="td3" if method == "td3bc" else method, critic_updates=per_update, products=products
    )
    learner = OfflineLearner(settings, OBS, ACT, low=[-1] * ACT, high=[1] * ACT, seeds=range(seeds))
    learner.standardise(*standardisation(log.observation))
    packed = learner.pack(log)

    def work(steps: int) -> tuple[float, float]:
        torch.set_num_threads(threads)
        updates = steps // per_update
        found = clocked(lambda: learner.update(packed, learner.draw_rows(updates, [(0, log.rows, BATCH)])))
        torch.set_num_threads(1)
        return found

    return work


def network(fan_in: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(fan_in, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, fan_out)
    )


class Plain:
    """The algorithms as single-file implementations have them: modules, torch's Adam, a loop over parameters."""

    def __init__(self, log: TransitionLog):
        offset, scale = standardisation(log.observation)
        self.columns = (
            (log.observation - offset) * scale,
            log.action,
            log.reward[:, None],
            (log.next_observation - offset) * scale,
            log.terminated[:, None].float(),
        )
        self.actor, self.target_actor = network(OBS, ACT), network(OBS, ACT)
        self.critics = [network(OBS + ACT, 1) for _ in range(2)]
        self.targets = [network(OBS + ACT, 1) for _ in range(2)]
        self.value, self.log_std = network(OBS, 1), nn.Parameter(torch.zeros(ACT))
        self.steps = 0
        adam = torch.optim.Adam
        self.actor_adam = adam([*self.actor.parameters(), self.log_std], lr=3e-4)
        self.critic_adam = adam([p for critic in self.critics for p in critic.parameters()], lr=3e-4)
        self.value_adam = adam(self.value.parameters(), lr=3e-4)

    def batch(self) -> list[Tensor]:
        rows = torch.from_numpy(np.random.randint(0, ROWS, BATCH))  # noqa: NPY002 (as they do)
        return [column[rows] for column in self.columns]

    @staticmethod
    def descend(adam: torch.optim.Optimizer, loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()
        adam.step()

    @staticmethod
    def follow(target: nn.Module, source: nn.Module) -> None:
        for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
            slow.data.copy_(0.005 * fast.data + 0.995 * slow.data)

    def td3bc(self) -> None:
        observation, action, reward, following, ended = self.batch()
        self.steps += 1
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            next_action = (self.target_actor(following).tanh() + noise).clamp(-1, 1)
            pair = torch.cat([following, next_action], 1)
            target = reward + (1 - ended) * 0.99 * torch.min(self.targets[0](pair), self.targets[1](pair))
        pair = torch.cat([observation, action], 1)
        self.descend(
            self.critic_adam, sum(functional.mse_loss(critic(pair), target) for critic in self.critics)
        )
        if self.steps % 2 == 0:
            chosen = self.actor(observation).tanh()
            q = self.critics[0](torch.cat([observation, chosen], 1))
            weight = 2.5 / q.abs().mean().detach()
            self.descend(self.actor_adam, -weight * q.mean() + functional.mse_loss(chosen, action))
            self.follow(self.target_actor, self.actor)
            for slow, fast in zip(self.targets, self.critics, strict=True):
                self.follow(slow, fast)

    def iql(self) -> None:
        observation, action, reward, following, ended = self.batch()
        pair = torch.cat([observation, action], 1)
        with torch.no_grad():
            next_value = self.value(following)
            q = torch.min(self.targets[0](pair), self.targets[1](pair))
        advantage = q - self.value(observation)
        self.descend(self.value_adam, ((0.7 - (advantage < 0).float()).abs() * advantage**2).mean())
        target = reward + (1 - ended) * 0.99 * next_value
        self.descend(
            self.critic_adam, sum(functional.mse_loss(critic(pair), target) for critic in self.critics) / 2
        )
        for slow, fast in zip(self.targets, self.critics, strict=True):
            self.follow(slow, fast)
        weight = (3.0 * advantage.detach()).exp().clamp(max=100.0)
        policy = torch.distributions.Normal(self.actor(observation).tanh(), self.log_std.clamp(-20, 2).exp())
        self.descend(self.actor_adam, -(weight * policy.log_prob(action).sum(1, keepdim=True)).mean())

    def side(self, method: str) -> Side:
        step = getattr(self, method)
        return lambda steps: clocked(lambda: [step() for _ in range(steps)])


def floor(method: str) -> Side:
    """The products of 256 × 256 × 256 that a step of the critics cannot do without: 11 of TD3+BC, 15 of IQL.

    TD3+BC, two steps: actor 3, its target 1, Q₁ under the actor 2, twice 8 for two critics (target, forward, and two
    products backward). IQL: two target critics 2, critics 6, V 4 (two forward, two backward), actor 3.
    """
    products = {"td3bc": 11, "iql": 15}[method]
    left, right = torch.randn(BATCH, WIDTH), torch.randn(WIDTH, WIDTH)
    result = torch.empty(BATCH, WIDTH)
    return lambda steps: clocked(lambda: [torch.mm(left, right, out=result) for _ in range(products * steps)])


class Peer:
    """d3rlpy in a process of its own, told how many updates to do."""

    def __init__(self, python: str, method: str, log: Path):
        script = Path(__file__).with_name("offline_peer.py")
        environment = {"PATH": os.environ["PATH"], "HOME": str(log.parent), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [python, str(script), str(log), method],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.versions = self.answer()

    def answer(self) -> object:
        for line in self.process.stdout:
            if line.startswith(("[", "{")):
                return json.loads(line)
        raise RuntimeError("d3rlpy's process ended; run benchmarks/offline_peer.py by hand to see why")

    def __call__(self, steps: int) -> tuple[float, float]:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return tuple(self.answer())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(sides: dict[str, Side], rounds: int, steps: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds a step of the critics, wall and processor, of every side in every round."""
    for side in sides.values():
        side(4)  # Compiles, allocates, warms up.
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(tuple(seconds / steps for seconds in side(steps)))
    return found


def summary(found: dict[str, list[tuple[float, float]]], base: str) -> dict[str, dict]:
    """Median milliseconds, and medians over rounds of how many times `base`'s time each side takes."""
    result = {}
    for name, rounds in found.items():
        ratios = [
            [mine[clock] / theirs[clock] for mine, theirs in zip(rounds, found[base], strict=True)]
            for clock in range(2)
        ]
        result[name] = {
            "wall_ms": 1e3 * statistics.median(wall for wall, _ in rounds),
            "processor_ms": 1e3 * statistics.median(processor for _, processor in rounds),
            "times_wall": statistics.median(ratios[0]),
            "times_processor": statistics.median(ratios[1]),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", help="Python of the environment with d3rlpy")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60, help="steps of the critics a side and round")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    log, console = made_log(), Console()
    document: dict = {
        "command": shlex.join(["python", *sys.argv]),
        "sizes": [OBS, ACT, WIDTH, BATCH],
        "methods": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        columns = ("observation", "action", "reward", "terminated", "truncated")
        path = Path(folder) / "log.npz"
        np.savez(path, **{name: getattr(log, name).numpy() for name in columns})
        for method in METHODS:
            sides: dict[str, Side] = {
                "ours": ours(method, log),
                "ours, bfloat16 products": ours(method, log, products="bfloat16"),
                f"ours, {STACKED} seeds, 1 thread": ours(method, log, seeds=STACKED),
                f"ours, {STACKED} seeds, 2 threads": ours(method, log, seeds=STACKED, threads=2),
                f"ours, {STACKED} seeds, 2 threads, bfloat16 products": ours(
                    method, log, seeds=STACKED, threads=2, products="bfloat16"
                ),
                "plain PyTorch": Plain(log).side(method),
                "products alone": floor(method),
            }
            peer = Peer(arguments.peer, method, path) if arguments.peer else None
            if peer:
                sides["d3rlpy"] = peer
                document["peer"] = peer.versions
            found = summary(measure(sides, arguments.rounds, arguments.steps), "ours")
            if peer:
                peer.close()
            document["methods"][method] = found
            table = Table(method, "wall ms", "processor ms", "× ours, wall", "× ours, processor")
            for name, row in found.items():
                table.add_row(name, *(f"{value:.2f}" for value in row.values()))
            console.print(table)
    document |= {
        "load": os.getloadavg(),
        "rounds": arguments.rounds,
        "versions": versions(),
        "machine": machine(),
    }
    console.print(f"load {document['load'][0]:.1f}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
