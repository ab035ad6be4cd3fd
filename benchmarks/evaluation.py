"""How fast is off-policy evaluation, how much memory does it take, and where do SCOPE-RL's numbers differ from ours?

  r10     10 000 episodes of 200 steps, 10 candidates, everything that needs no learning (TIS, WIS, PDIS, WPDIS, the
          distribution of returns), 2 000 bootstrap replicates: `peira evaluate` from Parquet files to its report,
          `peira.evaluate` from the same files, and from arrays in memory.
  memory  20 million steps in episodes of 20 to 180, 2 candidates, by `peira evaluate`: greatest resident memory.
  time    10 candidates, 2 000 episodes of 100 steps, vectors as observations: fitted Q evaluation, marginal ratios and
          eleven estimators with intervals beside SCOPE-RL, which is run on the first candidate alone and scaled, and
          d3rlpy's fitted Q evaluation beside ours.
  numbers SCOPE-RL's estimates and intervals beside ours on logs whose exact values are known.
  causal  causalrl, as far as there is common ground.

    python benchmarks/evaluation.py                        # r10 and memory, some 8 minutes on two cores
    python benchmarks/evaluation.py --sections time numbers causal --scope-rl PEER/bin/python \\
        --causalrl CAUSAL/bin/python --out results/speed/evaluation.json        # half an hour

How the peers' environments are made is said in benchmarks/scope_rl_peer.py; results/sharpe/r10_speed.py makes a page of
the figures. Sections that are not run again are kept from an earlier file. SCOPE-RL is slower on two threads than on
one, which is shown once; ours runs on one and on two.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from scope_rl_peer import probabilities

import peira
from peira.evaluation.off_policy import bandit, intervals, marginal, models, sequential
from peira.evaluation.off_policy.candidates import Candidate, candidate_of, read_candidate
from peira.evaluation.off_policy.continuous import kernel_log_ratio
from peira.evaluation.off_policy.log import Log, read_log
from peira.evaluation.off_policy.neural_dice import neural_dice
from peira.evaluation.off_policy.neural_q import FqeConfig, NeuralQ, neural_q
from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.weights import Block
from peira.versions import machine, versions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ope_fixtures import HORIZON, A, enumerate_trajectories, exact_log, finite_values, time_ratio

PEER = Path(__file__).with_name("scope_rl_peer.py")
WITHOUT_LEARNING = ("tis", "wis", "pdis", "wpdis")
LEARNED = ("dm", *WITHOUT_LEARNING, "dr", "wdr", "mis", "wmis", "mdr", "wmdr")
RESAMPLES = 2_000
R10_SECONDS, MEMORY_GIB, TIMES_FASTER = 60, 8, 20
FEATURES, ACTIONS, EXPLORATION = 8, 4, 0.1


# -- worlds and logs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A Markov decision process with few states, each of them seen as a vector, so that values are known exactly."""

    first: np.ndarray
    move: np.ndarray
    reward: np.ndarray
    seen: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, states: int = 20, branches: int = 3) -> World:
        """Each action leads to a few states; rewards are 0 to 1."""
        move = np.zeros((states, ACTIONS, states))
        for state in range(states):
            for action in range(ACTIONS):
                move[state, action, rng.choice(states, branches, replace=False)] = rng.dirichlet(
                    np.ones(branches)
                )
        seen = rng.normal(size=(states, FEATURES))
        return cls(rng.dirichlet(np.ones(states)), move, rng.random((states, ACTIONS)), seen)

    def value(self, policy: np.ndarray, gamma: float, steps: int) -> float:
        """J of a policy [states, actions], by dynamic programming."""
        following = np.zeros(len(self.first))
        for _ in range(steps):
            following = (policy * (self.reward + gamma * self.move @ following)).sum(axis=1)
        return float(self.first @ following)

    def log(self, policy: np.ndarray, episodes: int, steps: int, rng: np.random.Generator) -> dict:
        """Flat rows of episodes under a policy."""
        state = _drawn(np.tile(self.first, (episodes, 1)), rng)
        states, actions = np.empty((2, episodes, steps), np.int64)
        for step in range(steps):
            action = _drawn(policy[state], rng)
            states[:, step], actions[:, step] = state, action
            state = _drawn(self.move[state, action], rng)
        states, actions = states.ravel(), actions.ravel()
        return {
            "observation": self.seen[states],
            "action": actions,
            "reward": self.reward[states, actions],
            "propensity": policy[states, actions],
        }


def _drawn(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index a row."""
    reached = chances.cumsum(axis=1)
    return (reached < rng.random((len(chances), 1)) * reached[:, -1:]).sum(axis=1)


def log_of(rows: Mapping[str, np.ndarray], steps: int) -> Log:
    """Episodes of equal length, all of which end."""
    length = np.full(len(rows["reward"]) // steps, steps)
    return Log.from_arrays(length=length, **rows)


def write_episodes(
    folder: Path, length: np.ndarray, candidates: int, rng: np.random.Generator, batch: int
) -> list[Path]:
    """A log and candidates as Parquet files, written `batch` episodes at a time: the log's path, then theirs."""
    behaviour = rng.normal(size=(FEATURES, ACTIONS)) * 0.3
    weights = [behaviour + rng.normal(size=behaviour.shape) * 0.02 * (n + 1) for n in range(candidates)]
    paths = [folder / "log.parquet", *(folder / f"candidate-{n}.parquet" for n in range(candidates))]
    writers: list[pq.ParquetWriter] = []
    for start in range(0, len(length), batch):
        here = length[start : start + batch]
        rows, ends = int(here.sum()), np.cumsum(here)
        ids = pa.array(np.char.mod("%08d", np.arange(start, start + len(here))))
        step = np.arange(rows) - np.repeat(ends - here, here)
        where = {
            "episode_id": ids.take(pa.array(np.repeat(np.arange(len(here)), here))),
            "step": step.astype(np.int32),
        }
        observation = rng.standard_normal((rows, FEATURES))
        chances = probabilities(observation, behaviour, EXPLORATION)
        action = _drawn(chances, rng)
        tables = [
            {
                **where,
                "observation": _lists(observation),
                "action": action.astype(np.int32),
                "reward": (action + rng.normal(size=rows)).astype(np.float32),
                "terminated": step == np.repeat(here, here) - 1,
                "truncated": np.zeros(rows, bool),
                "propensity": chances[np.arange(rows), action],
            },
            *(
                {**where, "action_probs": _lists(probabilities(observation, weight, EXPLORATION))}
                for weight in weights
            ),
        ]
        tables = [pa.table(table) for table in tables]
        writers = writers or [
            pq.ParquetWriter(path, table.schema) for path, table in zip(paths, tables, strict=True)
        ]
        for writer, table in zip(writers, tables, strict=True):
            writer.write_table(table)
    for writer in writers:
        writer.close()
    return paths


def _lists(values: np.ndarray) -> pa.Array:
    offset = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offset), pa.array(values.ravel().astype(np.float32)))


# -- measuring ---------------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any]) -> dict[str, float]:
    """Wall seconds, those of this process's processors, and how many processes waited for one at the end."""
    began, spent = time.perf_counter(), time.process_time()
    work()
    return {
        "wall": time.perf_counter() - began,
        "processor": time.process_time() - spent,
        "load": os.getloadavg()[0],
    }


def command_seconds(arguments: list[str]) -> dict[str, float]:
    """The same of `peira` with these arguments, and its greatest resident memory in GiB."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen([sys.executable, "-m", "peira", *arguments], stdout=said, stderr=said)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise RuntimeError(f"peira {' '.join(arguments)}:\n{said.read().decode()}")
    return {
        "wall": time.perf_counter() - began,
        "processor": used.ru_utime + used.ru_stime,
        "load": os.getloadavg()[0],
        "peak_gib": used.ru_maxrss / 2**20,
    }


def ask_peer(
    python: str, task: str, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], threads: int = 1
) -> dict[str, Any]:
    """What a peer finds on the same arrays, in its own environment."""
    with tempfile.TemporaryDirectory() as name:
        given, found = Path(name, "given.npz"), Path(name, "found.json")
        np.savez(given, settings=json.dumps(settings), **arrays)
        around = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [python, str(PEER), task, str(given), str(found)], env=around, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{task}: {done.stderr[-2000:]}")
        return json.loads(found.read_text())


def summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Median of every figure, and the least and greatest wall seconds."""
    found = {name: statistics.median(of[name] for of in rounds) for name in rounds[0]}
    walls = [of["wall"] for of in rounds]
    return {**found, "wall_min": min(walls), "wall_max": max(walls)}


# -- R10 ---------------------------------------------------------------------------------------------------


def r10(options: argparse.Namespace) -> dict[str, Any]:
    episodes, steps, candidates = 10_000, 200, 10
    settings = {"gamma": 0.99, "resamples": RESAMPLES, "interval": "bca"}
    rounds: dict[str, list[dict[str, float]]] = {"command": [], "files": [], "memory": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        log_path, *paths = write_episodes(folder, np.full(episodes, steps), candidates, rng, 2_000)
        files = {path.stem: path for path in paths}
        given = [
            "evaluate",
            str(log_path),
            "--candidates",
            *map(str, paths),
            "--estimators",
            *WITHOUT_LEARNING,
        ]
        given += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        log = read_log(log_path)
        held = {name: read_candidate(path, log, name=name) for name, path in files.items()}

        def evaluated(log: Log | Path, candidates: Mapping[str, Candidate | Path]) -> None:
            report = peira.evaluate(log, candidates, estimators=WITHOUT_LEARNING, **settings)
            assert all(
                of["estimates"][name]["interval"] is not None and of["distribution"] is not None
                for of in report["candidates"].values()
                for name in WITHOUT_LEARNING
            )

        for turn in range(options.rounds):
            out = folder / f"report-{turn}"
            rounds["command"].append(command_seconds([*given, "--out", str(out)]))
            rounds["files"].append(seconds(lambda: evaluated(log_path, files)))
            rounds["memory"].append(seconds(lambda: evaluated(log, held)))
        profile = cProfile.Profile()
        profile.runcall(evaluated, log_path, files)
    return {
        "sizes": {"episodes": episodes, "steps": steps, "candidates": candidates, "actions": ACTIONS},
        "settings": {**settings, "estimators": list(WITHOUT_LEARNING), "rounds": options.rounds},
        "seconds": {arm: summary(of) for arm, of in rounds.items()},
        "profile": where_time_goes(profile),
        "target_seconds": R10_SECONDS,
        "met": summary(rounds["command"])["wall"] < R10_SECONDS,
    }


def where_time_goes(profile: cProfile.Profile, most: int = 14) -> list[dict[str, Any]]:
    """Functions of the library by the time spent in them and in what other libraries do for them."""
    stats = pstats.Stats(profile).stats
    spent: dict[tuple, float] = {}
    for function, (_, _, own, _, callers) in stats.items():
        if _is_ours(function):
            spent[function] = spent.get(function, 0.0) + own
            continue
        for caller, (*_, cumulative) in callers.items():
            if _is_ours(caller):
                spent[caller] = spent.get(caller, 0.0) + cumulative
    total = sum(spent.values())
    greatest = sorted(spent, key=spent.get, reverse=True)[:most]
    return [
        {
            "function": f"{Path(file).stem}.{name}",
            "seconds": spent[file, line, name],
            "share": spent[file, line, name] / total,
        }
        for file, line, name in greatest
    ]


def _is_ours(function: tuple[str, int, str]) -> bool:
    return "/peira/" in function[0] and "/site-packages/" not in function[0]


# -- memory ------------------------------------------------------------------------------------------------


def memory(options: argparse.Namespace) -> dict[str, Any]:
    steps, candidates = 20_000_000, 2
    rng = np.random.default_rng(1)
    length = rng.integers(20, 181, size=steps // 100)
    length = length[: np.searchsorted(length.cumsum(), steps) + 1]
    while length.sum() < steps:
        length = np.append(length, rng.integers(20, 181))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        began = time.perf_counter()
        log_path, *paths = write_episodes(folder, length, candidates, rng, 10_000)
        writing = time.perf_counter() - began
        size = sum(path.stat().st_size for path in (log_path, *paths)) / 2**30
        given = ["evaluate", str(log_path), "--candidates", *map(str, paths), "--gamma", "0.99"]
        given += ["--estimators", *WITHOUT_LEARNING, "--out", str(folder / "report")]
        found = command_seconds(given)
        report = json.loads((folder / "report" / "report.json").read_text())
    return {
        "sizes": {
            "steps": int(length.sum()),
            "episodes": len(length),
            "longest": int(length.max()),
            "candidates": candidates,
            "files_gib": size,
        },
        "estimators": list(WITHOUT_LEARNING),
        "interval": report["settings"]["interval"],
        "seconds": found,
        "estimating_seconds": report["seconds"]["total"],
        "making_the_files_seconds": writing,
        "bytes_a_step": found["peak_gib"] * 2**30 / int(length.sum()),
        "target_gib": MEMORY_GIB,
        "met": found["peak_gib"] < MEMORY_GIB,
    }


# -- peers: time -------------------------------------------------------------------------------------------


def peer_case(episodes: int = 2_000, steps: int = 100, gamma: float = 0.95) -> dict[str, Any]:
    """The world, its log, and ten candidates nearer to and farther from the log's policy."""
    rng = np.random.default_rng(2)
    world = World.drawn(rng)
    behaviour = rng.normal(size=(FEATURES, ACTIONS)) * 0.3
    rows = world.log(probabilities(world.seen, behaviour, EXPLORATION), episodes, steps, rng)
    weight = np.stack([behaviour + rng.normal(size=behaviour.shape) * 0.01 * (n + 1) for n in range(10)])
    return {
        "world": world,
        "rows": rows,
        "steps": steps,
        "gamma": gamma,
        "policies": {
            "names": np.array([f"candidate {n}" for n in range(10)]),
            "weight": weight,
            "exploration": np.full(10, EXPLORATION),
        },
        "truth": {
            f"candidate {n}": world.value(probabilities(world.seen, of, EXPLORATION), gamma, steps)
            for n, of in enumerate(weight)
        },
    }


def as_functions(case: Mapping[str, Any]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Candidates as Peira takes them."""
    policies = case["policies"]
    return {
        str(name): partial(probabilities, weight=weight, exploration=share)
        for name, weight, share in zip(
            policies["names"], policies["weight"], policies["exploration"], strict=True
        )
    }


def first_of(case: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
    """The arrays that a peer reads, with the first candidates only."""
    return {**case["rows"], **{name: of[:count] for name, of in case["policies"].items()}}


@dataclass(frozen=True)
class Comparison:
    """The settings of both sides; `network` takes the place of ours where sizes are theirs."""

    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]
    network: Mapping[str, Any] | None = None


THEIRS = {"updates": 10_000, "folds": 1, "hidden": None, "resamples": 100}  # their defaults
THEIR_NETWORK = {"hidden": (100,), "batch": 100, "learning_rate": 1e-4}
COMPARED = {
    "our sizes": Comparison(
        {"updates": 10_000, "folds": 2, "interval": "bootstrap"},
        {
            "updates": 10_000,
            "folds": 2,
            "hidden": [64, 64],
            "learning_rate": 1e-3,
            "batch": 256,
            "resamples": RESAMPLES,
        },
    ),
    "their sizes": Comparison(
        {"updates": 10_000, "folds": 1, "interval": "bootstrap", "resamples": 100}, THEIRS, THEIR_NETWORK
    ),
    "defaults": Comparison({}, THEIRS),
}


def peer_time(options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of ours on one thread and on two before and after each of SCOPE-RL's, which is run on one candidate."""
    case = peer_case()
    shared = {"steps": case["steps"], "gamma": case["gamma"], "ratios": True, "values": True}
    rounds: dict[str, dict[int, list[dict]]] = {label: {1: [], 2: []} for label in COMPARED}

    def our_round(labels: Iterable[str]) -> None:
        for label in labels:
            for threads in (1, 2):
                rounds[label][threads].append(apart(threads, timed_evaluation, label, threads))

    def scope_rl(label: str, threads: int) -> dict[str, Any]:
        settings = {**shared, **COMPARED[label].theirs, "threads": threads}
        return ask_peer(options.scope_rl, "evaluate", first_of(case, 1), settings, threads)

    our_round(["our sizes"])
    peer = {"our sizes": scope_rl("our sizes", 1)}
    our_round(["our sizes", "their sizes", "defaults"])
    peer |= dict.fromkeys(("their sizes", "defaults"), scope_rl("defaults", 1))
    two = scope_rl("defaults", 2)
    our_round(["their sizes", "defaults"])
    found: dict[str, Any] = {}
    for label, of_label in rounds.items():
        ours = {threads: summary([of["seconds"] for of in several]) for threads, several in of_label.items()}
        their = peer[label]
        ten, unused = (10 * their["seconds"][part] for part in ("total", "ratios of states, not used"))
        found[label] = {
            "settings": {
                "peira": {**of_label[1][-1]["settings"], **(COMPARED[label].network or {})},
                "scope_rl": {**shared, **COMPARED[label].theirs, "threads": 1},
            },
            "peira": {
                "one_thread": {**ours[1], "parts": of_label[1][-1]["parts"]},
                "two_threads": {**ours[2], "parts": of_label[2][-1]["parts"]},
            },
            "scope_rl": {
                "candidates_measured": 1,
                "extrapolated": True,
                "seconds_measured": their["seconds"],
                "processor_measured": their["processor"],
                "seconds_for_ten": ten,
                "versions": their["versions"],
            },
            "ratio_one_thread_each": ten / ours[1]["wall"],
            "ratio_each_at_its_best": ten / min(of["wall"] for of in ours.values()),
            "ratio_at_its_best_without_unused_ratios": (ten - unused)
            / min(of["wall"] for of in ours.values()),
            "target": TIMES_FASTER,
            "met_one_thread_each": ten / ours[1]["wall"] >= TIMES_FASTER,
            "met_each_at_its_best": ten / min(of["wall"] for of in ours.values()) >= TIMES_FASTER,
            "values": {
                name: {
                    "truth": case["truth"][name],
                    "peira": of_label[1][-1]["values"][name],
                    "scope_rl": their["value"][name],
                }
                for name in their["value"]
            },
        }
    found["scope_rl on two threads, defaults"] = {"seconds": two["seconds"], "processor": two["processor"]}
    found["networks alone"] = apart(1, networks_alone, options)
    return found


def apart(threads: int, work: Callable[..., Any], *given: Any) -> Any:
    """What the work gives in a process of its own that computes on so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def timed_evaluation(label: str, threads: int) -> dict[str, Any]:
    """One evaluation of the ten candidates: seconds, and what it found."""
    torch.set_num_threads(threads)
    case, of = peer_case(), COMPARED[label]
    reports = []

    def evaluated() -> None:
        log = log_of(case["rows"], case["steps"])
        reports.append(
            peira.evaluate(log, as_functions(case), gamma=case["gamma"], estimators=LEARNED, **of.ours)
        )

    with patch.object(models, "FqeConfig", partial(FqeConfig, **(of.network or {}))):
        spent = seconds(evaluated)
    (report,) = reports
    return {
        "seconds": spent,
        "parts": report["seconds"],
        "settings": report["settings"],
        "values": {name: _values(report, name) for name in report["candidates"]},
    }


def _values(report: Mapping[str, Any], name: str) -> dict[str, float | None]:
    return {of: entry["value"] for of, entry in report["candidates"][name]["estimates"].items()}


def networks_alone(options: argparse.Namespace) -> dict[str, Any]:
    """Fitting only, at the sizes of SCOPE-RL and d3rlpy: one hidden layer of 100, 10 000 updates, no folds."""
    torch.set_num_threads(1)
    case = peer_case()
    log = log_of(case["rows"], case["steps"])
    transitions = log.transitions()
    probs = np.stack(
        [candidate_of(of, log, name).point_probs(log) for name, of in as_functions(case).items()]
    )
    config = FqeConfig(updates=10_000, **THEIR_NETWORK)
    fits: list[NeuralQ] = []

    def fit() -> None:
        generator = torch.Generator().manual_seed(0)
        fits.append(neural_q(transitions, probs, case["gamma"], generator=generator, config=config))

    fqe = [seconds(fit)]
    settings = {"threads": 1, "steps": case["steps"], "gamma": case["gamma"]}
    settings |= {"updates": 10_000, "hidden": [100], "learning_rate": 1e-4, "batch": 100}
    peer = ask_peer(options.scope_rl, "d3rlpy_fqe", first_of(case, 1), settings)
    fqe.append(seconds(fit))
    dice = seconds(lambda: neural_dice(transitions, probs, case["gamma"], fits[-1].parameters))
    return {
        "peira_ten_candidates": {"fqe": summary(fqe), "ratios": dice},
        "d3rlpy_fqe_one_candidate": peer,
        "ratio_to_d3rlpy_for_ten": peer["seconds"] * 10 / summary(fqe)["wall"],
        "ratio_of_processor_seconds": peer["processor"] * 10 / summary(fqe)["processor"],
        "extrapolated": True,
    }


# -- peers: numbers ----------------------------------------------------------------------------------------


def peer_numbers(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "ten candidates without learning": same_weights(options),
        "every episode as often as it is likely": exact_case(options),
        "greedy or not": greedy_case(options),
        "vectors as actions": kernel_case(options),
        "coverage": coverage_case(options),
    }


def same_weights(options: argparse.Namespace) -> dict[str, Any]:
    """Ten candidates, the log of the time comparison: the greatest relative difference of each estimator."""
    case = peer_case()
    settings = {"threads": 1, "steps": case["steps"], "gamma": case["gamma"], "updates": 1, "folds": 1}
    settings |= {"ratios": False, "values": False, "resamples": 100}
    peer = ask_peer(options.scope_rl, "evaluate", first_of(case, 10), settings)
    report = peira.evaluate(
        log_of(case["rows"], case["steps"]),
        as_functions(case),
        gamma=case["gamma"],
        estimators=WITHOUT_LEARNING,
    )
    found = {}
    for label in ("value", "value_with_last_reward"):
        found[label] = {
            of: max(
                abs(peer[label][name][of] / _values(report, name)[of] - 1) for name in report["candidates"]
            )
            for of in WITHOUT_LEARNING
        }
    return {
        "greatest_relative_difference": {
            "as released": found["value"],
            "with the last reward": found["value_with_last_reward"],
        }
    }


def exact_case(options: argparse.Namespace) -> dict[str, Any]:
    """Three steps in two states: estimates are expectations, nuisances and ratios are the true ones."""
    trajectories = exact_log(A, HORIZON)
    q, v = finite_values(A, A.pi, HORIZON)
    state, step = trajectories.state, np.broadcast_to(np.arange(HORIZON), trajectories.state.shape)
    ratio = time_ratio(A, HORIZON)
    arrays = {
        "observation": np.eye(2)[state].reshape(-1, 2),
        "action": trajectories.action.ravel(),
        "reward": trajectories.reward.ravel(),
        "propensity": A.pi_b[state, trajectories.action].ravel(),
        "probs": A.pi[state].reshape(-1, 2),
        "q": q[step, state].reshape(-1, 2),
        "first_value": v[0][state[:, 0]],
        "state_ratio": ratio[step, state].ravel(),
    }
    peer = ask_peer(options.scope_rl, "exact", arrays, {"steps": HORIZON, "gamma": A.gamma})
    block, gamma = trajectories.block(A), A.gamma
    at_q, at_v, at_ratio = trajectories.at(q), trajectories.at_state(v), trajectories.at_state(ratio)
    pairs = marginal.pair_ratio(block, at_ratio)
    ours: dict[str, Terms] = {
        "dm": sequential.dm(at_v),
        "tis": sequential.tis(block, gamma),
        "wis": sequential.wis(block, gamma),
        "pdis": sequential.pdis(block, gamma),
        "wpdis": sequential.wpdis(block, gamma),
        "dr": sequential.dr(block, at_q, at_v, gamma),
        "wdr": sequential.wdr(block, at_q, at_v, gamma),
        "mis": marginal.sam_is(block, pairs, gamma),
        "wmis": marginal.sam_snis(block, pairs, gamma),
        "mdr": marginal.sam_dr(block, pairs, at_q, at_v, gamma),
        "wmdr": marginal.sam_sndr(block, pairs, at_q, at_v, gamma),
        "mis of states": marginal.sm_is(block, at_ratio, gamma),
        "drl": marginal.drl(block, pairs, at_q, at_v, gamma),
    }
    return {
        "truth": float(A.mu @ v[0]),
        "how": "dynamic programming",
        "estimates": {
            name: {
                "peira": terms.value(),
                **{label: peer[label][name] for label in ("as released", "with the last reward")},
            }
            for name, terms in ours.items()
        },
    }


def greedy_case(options: argparse.Namespace) -> dict[str, Any]:
    """Fitted Q evaluation of a greedy policy and of the same policy mixed with 90 % of chance."""
    case = peer_case()
    world, gamma, steps = case["world"], case["gamma"], case["steps"]
    sharp = 1e4 * case["policies"]["weight"][9]
    shares = {"greedy": 0.0, "nine in ten by chance": 0.9}
    case["policies"] = {
        "names": np.array(list(shares)),
        "weight": np.stack([sharp] * len(shares)),
        "exploration": np.array(list(shares.values())),
    }
    settings = {"threads": 1, "steps": steps, "gamma": gamma, "updates": 10_000, "folds": 1}
    settings |= {"ratios": False, "values": True, "resamples": 100, "hidden": [64, 64]}
    settings |= {"learning_rate": 1e-3, "batch": 256}
    peer = ask_peer(options.scope_rl, "evaluate", first_of(case, len(shares)), settings)
    report = peira.evaluate(log_of(case["rows"], steps), as_functions(case), gamma=gamma, estimators=("dm",))
    return {
        "how": "dynamic programming",
        "estimates": {
            name: {
                "truth": world.value(probabilities(world.seen, sharp, share), gamma, steps),
                "peira": _values(report, name)["dm"],
                "scope_rl": peer["value"][name]["dm"],
            }
            for name, share in shares.items()
        },
    }


def kernel_case(options: argparse.Namespace, bandwidth: float = 0.5, rows: int = 400_000) -> dict[str, Any]:
    """A deterministic candidate m, one step, r(a) = 1 − |a − m'|²/10 in d dimensions, logged by N(0, I).

    A product of Gaussian kernels has the expectation 1 − (|m − m'|² + d h²)/10; without a kernel r(m).
    """
    found = {}
    for dims in (1, 2, 3):
        rng = np.random.default_rng(dims)
        target, best = np.full(dims, 0.3), np.full(dims, -0.4)
        action = rng.normal(size=(rows, dims))
        density = np.exp(-0.5 * action**2) / np.sqrt(2 * np.pi)
        reward = 1 - ((action - best) ** 2).sum(axis=1) / 10
        arrays = {
            "observation": np.zeros((rows, 1)),
            "action": action,
            "reward": reward,
            "propensity": density,
            "density": density,
            "target": target,
        }
        peer = ask_peer(options.scope_rl, "kernels", arrays, {"bandwidth": bandwidth})
        log_ratio = kernel_log_ratio(
            action, target, np.log(density).sum(axis=1), bandwidth, kernel="gaussian"
        )
        terms = sequential.pdis(Block(reward[:, None], log_ratio[:, None], np.ones(rows, np.int64)), 1.0)
        off = float(((target - best) ** 2).sum())
        found[str(dims)] = {
            "truth": 1 - off / 10,
            "expected_of_the_kernel": 1 - (off + dims * bandwidth**2) / 10,
            "peira": terms.value(),
            "peira_standard_error": terms.standard_error(),
            "scope_rl": {name: value for name, value in peer.items() if name != "versions"},
        }
    return {"how": "closed form", "bandwidth": bandwidth, "rows": rows, "dimensions": found}


def coverage_case(options: argparse.Namespace) -> dict[str, Any]:
    """How often intervals of nominal 95 % hold the true value, on the same samples."""
    rng = np.random.default_rng(3)
    trajectories = enumerate_trajectories(A, HORIZON)
    block, gamma = trajectories.block(A), A.gamma
    truth = float(A.mu @ finite_values(A, A.pi, HORIZON)[1][0])
    normal = rng.normal(size=(4_000, 20))
    drawn = rng.choice(len(trajectories.prob_b), size=(1_000, 200), p=trajectories.prob_b)
    negative = -1 - rng.random((1_000, 200))
    bounded = rng.random((20, 10_000))
    terms = [
        sequential.wpdis(Block(block.reward[of], block.log_ratio[of], block.length[of]), gamma)
        for of in drawn
    ]
    # What SCOPE-RL bootstraps: contributions that were divided by the normalisers of the whole sample.
    normalised = np.stack([(of.numerator / of.denominator.mean(axis=0)).sum(axis=1) for of in terms])
    cases = {
        "Student t, 20 normal numbers": ("t", 0.0, normal, intervals.student_t),
        "bootstrap of WPDIS, 200 episodes": (
            "bootstrap",
            truth,
            normalised,
            lambda of: intervals.bootstrap(of, rng=np.random.default_rng(0), replicates=500),
        ),
        "empirical Bernstein, 200 numbers in [−2, −1]": (
            "bernstein",
            -1.5,
            negative,
            lambda of: intervals.empirical_bernstein(of, (-2.0, -1.0)),
        ),
        "Hoeffding, 10 000 numbers in [0, 1]": (
            "hoeffding",
            0.5,
            bounded,
            lambda of: intervals.hoeffding(of, (0.0, 1.0)),
        ),
    }
    settings = {
        name: {"method": method, "truth": true, "resamples": 500}
        for name, (method, true, *_) in cases.items()
    }
    samples = {name: sample for name, (_, _, sample, _) in cases.items()}
    peer = ask_peer(options.scope_rl, "coverage", samples, {"cases": settings})
    found = {}
    for name, (method, true, sample, interval) in cases.items():
        limits = [interval(of) for of in (terms if method == "bootstrap" else sample)]
        inside = [of.low <= true <= of.high for of in limits]
        found[name] = {
            "nominal": 0.95,
            "peira": {
                "coverage": float(np.mean(inside)),
                "width": float(np.mean([of.high - of.low for of in limits])),
            },
            "scope_rl": peer[name],
            "samples": len(sample),
        }
    return found


def beside_causalrl(options: argparse.Namespace) -> dict[str, Any]:
    """One step with known propensities; three steps in two states, action 1 always, values by dynamic programming."""
    rng = np.random.default_rng(4)
    rows = 200_000
    context = rng.normal(size=(rows, FEATURES))
    weight = rng.normal(size=(2, FEATURES, ACTIONS)) * 0.3
    behaviour, target = (probabilities(context, of, EXPLORATION) for of in weight)
    action = _drawn(behaviour, rng)
    every = np.arange(rows)
    one_step = {
        "action": action,
        "reward": action + rng.normal(size=rows),
        "propensity": behaviour[every, action],
        "target_propensity": target[every, action],
    }
    always = np.array([[0.0, 1.0], [0.0, 1.0]])
    trajectories = exact_log(A, HORIZON)
    chosen = rng.choice(len(trajectories.length), 20_000, replace=False)
    state, taken = trajectories.state[chosen], trajectories.action[chosen]
    reward, returns = trajectories.reward[chosen], trajectories.reward[chosen] @ A.gamma ** np.arange(HORIZON)
    given = {**one_step, "states": state.astype(float), "actions": taken.astype(float), "returns": returns}
    peer = ask_peer(options.causalrl, "causalrl", given, {})
    began = time.perf_counter()
    ipw = bandit.ipw(one_step["target_propensity"] / one_step["propensity"], one_step["reward"]).value()
    of_ipw = time.perf_counter() - began
    log = Log.from_arrays(
        action=taken.ravel(),
        reward=reward.ravel(),
        length=np.full(len(chosen), HORIZON),
        propensity=A.pi_b[state, taken].ravel(),
        observation=state.ravel(),
        actions=2,
    )
    began = time.perf_counter()
    report = peira.evaluate(
        log,
        {"always 1": always[state.ravel()]},
        gamma=A.gamma,
        estimators=("dm", "dr"),
        folds=5,
        interval="delta",
    )
    of_report = time.perf_counter() - began
    estimates = report["candidates"]["always 1"]["estimates"]
    return {
        "one step, 200 000 decisions": {
            "peira": {"value": ipw, "seconds": of_ipw},
            "causalrl": peer["ipw"],
            "ratio": peer["ipw"]["seconds"] / of_ipw,
        },
        "three steps, 20 000 episodes": {
            "truth": float(A.mu @ finite_values(A, always, HORIZON)[1][0]),
            "peira": {
                name: {part: estimates[name][part] for part in ("value", "standard_error")}
                for name in ("dm", "dr")
            },
            "peira_seconds": of_report,
            "causalrl": {name: peer[name] for name in ("gcomp", "dr")},
        },
        "versions": peer["versions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=["r10", "memory"])
    parser.add_argument("--rounds", type=int, default=3, help="of r10")
    parser.add_argument("--scope-rl", help="Python of the environment with SCOPE-RL")
    parser.add_argument("--causalrl", help="Python of the environment with causalrl")
    parser.add_argument(
        "--folder", help="where the logs lie meanwhile; by default the system's temporary folder"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    needed = {"time": options.scope_rl, "numbers": options.scope_rl, "causal": options.causalrl}
    if lacking := [name for name in options.sections if not needed.get(name, True)]:
        parser.error(
            f"{lacking[0]}: name the peer's Python with --{'causalrl' if 'causal' in lacking else 'scope-rl'}"
        )
    found: dict[str, Any] = {}
    if options.out and options.out.exists():
        found = json.loads(options.out.read_text())
    for name in options.sections:
        found[name] = {**SECTIONS[name](options), "command": " ".join(["python", *sys.argv])}
        Console().print_json(data=found[name])
        if options.out:
            books = {"versions": versions(), "machine": machine()}
            options.out.write_text(json.dumps(found | books, indent=2) + "\n")


SECTIONS = {
    "r10": r10,
    "memory": memory,
    "time": peer_time,
    "numbers": peer_numbers,
    "causal": beside_causalrl,
}

if __name__ == "__main__":
    main()
