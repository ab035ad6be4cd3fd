"""How many decisions a second does the whole loop make: score, explore, draw, learn?

A million decisions among 8 eligible actions with 32 numbers of context, rewards 0 or 1 with the log-odds of a linear
function for every action. Ours decides in batches that double from 128 to 4 096, by `DecisionPolicy` on a ridge
regression for every action, SquareCB with γ = 10√t, and learns from each batch. Vowpal Wabbit's Python package decides
and learns one by one, with the same exploration and as many weights (`-q ca --ignore_linear c`), on the first decisions
only; its time for the million is extrapolated. It is measured in four ways, as fast as we could make each:

  text made      arrays to text, text to examples (once for both uses), predict, draw, set the label, learn
  text ready     the same without the making of the text
  parsed         the same with the examples parsed beforehand as well
  its driver     its C++ driver reads a file of text that is labelled already, and predicts and learns from it with a
                 thread for parsing: it decides nothing, its actions being those of a uniform log

    python benchmarks/bandits.py --out results/speed/bandits.json        # some five minutes on two cores

Expected: at least 3 times the decisions a second of Vowpal Wabbit in each of the first two ways; medians of rounds in
which all take turns. What either pays on the same first decisions is measured too, so that speed is not bought with
reward.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import vowpalwabbit
from rich.console import Console

from peira.experience.decisions import Choices, FeatureSchema, LoggedDecisions
from peira.learners.decision_policy import DecisionPolicy, ExplorerConfig
from peira.policies.oracles.linear import RidgeOracle
from peira.versions import machine, versions

ACTIONS, NUMBERS = 8, 32
FIRST_BATCH, LAST_BATCH = 128, 4_096
PARSED = 4_000
"""Decisions whose parsed examples are held in memory."""
TIMES_FASTER = 3
OPTIONS = "--cb_explore_adf --squarecb -q ca --ignore_linear c --quiet"


@dataclass(frozen=True)
class Stream:
    """Contexts, what each action pays on average [n, 8], and what it would pay now."""

    choices: Choices
    expected: np.ndarray
    pays: np.ndarray

    def __len__(self) -> int:
        return len(self.choices)


def stream(rows: int) -> Stream:
    rng = np.random.default_rng(0)
    number = rng.standard_normal((rows, NUMBERS), dtype=np.float32)
    weight = rng.normal(0, 1.5 / NUMBERS**0.5, (NUMBERS, ACTIONS)).astype(np.float32)
    expected = 1 / (1 + np.exp(-(number @ weight)))
    return Stream(
        Choices(
            number=number,
            category=np.zeros((rows, 0), np.int32),
            action=np.tile(np.arange(ACTIONS, dtype=np.int32), (rows, 1)),
            feature=np.zeros((rows, ACTIONS, 0), np.float32),
        ),
        expected,
        rng.random((rows, 1), dtype=np.float32) < expected,
    )


def text_of(number: np.ndarray) -> list[list[str]]:
    """One list of lines a decision."""
    actions = [f"|a a{action}" for action in range(ACTIONS)]
    names = " ".join(f"{at}:%.6g" for at in range(NUMBERS))
    return [[f"shared |c {names % tuple(row)}", *actions] for row in number.tolist()]


@dataclass(frozen=True)
class Measured:
    """Decisions made, seconds, and the columns chosen."""

    decisions: int
    seconds: float
    processor: float
    column: np.ndarray

    def rate(self) -> float:
        return self.decisions / self.seconds


def timed(decisions: int, work: Callable[[], np.ndarray]) -> Measured:
    began, spent = time.perf_counter(), time.process_time()
    column = work()
    return Measured(decisions, time.perf_counter() - began, time.process_time() - spent, column)


def ours(given: Stream, rng: np.random.Generator) -> np.ndarray:
    schema = FeatureSchema(
        tuple(f"a{action}" for action in range(ACTIONS)), tuple(f"x{at}" for at in range(NUMBERS))
    )
    oracle = RidgeOracle(schema, crosses="disjoint", interactions=False)
    explorer = ExplorerConfig(kind="squarecb", uniform_slice=0.0)
    columns, at, size, version = [], 0, FIRST_BATCH, 0
    while at < len(given):
        choices = given.choices.take(slice(at, at + size))
        policy = DecisionPolicy.deploy(oracle, explorer, choices, labelled=at, id="ridge", version=version)
        decided = policy.decide(choices, rng)
        rows = np.arange(len(choices))
        oracle.update(
            LoggedDecisions(
                choices=choices,
                column=decided.column,
                propensity=decided.propensity,
                reward=given.pays[at + rows, decided.column].astype(np.float64),
                pmf=decided.pmf,
                generation=np.full(len(rows), version),
                time=(at + rows).astype(np.float64),
                uniform=decided.uniform_slice,
                cluster=at + rows,
            )
        )
        columns.append(decided.column)
        at, size, version = at + len(choices), min(2 * size, LAST_BATCH), version + 1
    return np.concatenate(columns)


def one_by_one(given: Stream, decisions: list, rng: np.random.Generator, workspace: Any) -> np.ndarray:
    """`decisions` are lines of text or the examples parsed from them."""
    drawn, columns = rng.random(len(decisions)).tolist(), []
    pays = given.pays[: len(decisions)].tolist()
    for row, lines in enumerate(decisions):
        examples = workspace.parse(lines) if isinstance(lines[0], str) else lines
        pmf = workspace.predict(examples)
        left, column = drawn[row], 0
        while column < ACTIONS - 1 and left >= pmf[column]:
            left -= pmf[column]
            column += 1
        examples[1 + column].set_label_string(f"0:{-float(pays[row][column])}:{pmf[column]}")
        workspace.learn(examples)
        workspace.finish_example(examples)
        columns.append(column)
    return np.array(columns)


def driver(path: Path) -> np.ndarray:
    vowpalwabbit.Workspace(f"{OPTIONS} -d {path} -p {path.with_suffix('.predictions')}").finish()
    return np.zeros(0, int)


def write_labelled(path: Path, lines: list[list[str]], given: Stream, rng: np.random.Generator) -> None:
    """A uniform log."""
    column = rng.integers(ACTIONS, size=len(lines))
    with path.open("w") as file:
        for row, (shared, *actions) in enumerate(lines):
            cost = -float(given.pays[row, column[row]])
            actions[column[row]] = f"0:{cost}:{1 / ACTIONS} {actions[column[row]]}"
            file.write("\n".join([shared, *actions]) + "\n\n")


def one_round(given: Stream, peer_rows: int, folder: Path, seed: int) -> dict[str, Measured]:
    """All sides once."""
    number = given.choices.number[:peer_rows]
    lines = text_of(number)
    labelled = folder / "labelled.txt"
    write_labelled(labelled, lines, given, np.random.default_rng(seed))

    def vw(decisions: Callable[[Any], list], rows: int, ready: bool) -> Measured:
        workspace, rng = vowpalwabbit.Workspace(OPTIONS), np.random.default_rng(seed)
        if not ready:
            found = timed(rows, lambda: one_by_one(given, decisions(workspace), rng, workspace))
        else:
            made = decisions(workspace)
            found = timed(rows, lambda: one_by_one(given, made, rng, workspace))
        workspace.finish()
        return found

    return {
        "peira": timed(len(given), lambda: ours(given, np.random.default_rng(seed))),
        "text made": vw(lambda workspace: text_of(number), peer_rows, ready=False),
        "text ready": vw(lambda workspace: lines, peer_rows, ready=True),
        "parsed": vw(
            lambda workspace: [workspace.parse(of) for of in lines[:PARSED]],
            min(PARSED, peer_rows),
            ready=True,
        ),
        "its driver": timed(peer_rows, lambda: driver(labelled)),
    }


def report(given: Stream, rounds: list[dict[str, Measured]], loads: list[float]) -> dict[str, Any]:
    sides = {
        side: {
            "decisions": rounds[0][side].decisions,
            "extrapolated": rounds[0][side].decisions < len(given),
            "rates": [each[side].rate() for each in rounds],
            "rate": statistics.median(each[side].rate() for each in rounds),
            "seconds_for_all": len(given) / statistics.median(each[side].rate() for each in rounds),
            "processor_rate": statistics.median(
                each[side].decisions / each[side].processor for each in rounds
            ),
        }
        for side in rounds[0]
    }
    rows = rounds[0]["text ready"].decisions

    def paid(side: str, decisions: int) -> float:
        return statistics.mean(
            float(given.expected[np.arange(decisions), each[side].column[:decisions]].mean())
            for each in rounds
        )

    return {
        "sides": sides,
        "times_faster": {
            side: sides["peira"]["rate"] / of["rate"] for side, of in sides.items() if side != "peira"
        },
        "expected_reward": {
            f"of the first {rows} decisions": {
                "peira": paid("peira", rows),
                "vowpal wabbit": paid("text ready", rows),
                "uniform": float(given.expected[:rows].mean()),
                "best": float(given.expected[:rows].max(1).mean()),
            },
            "of all": {"peira": paid("peira", len(given)), "best": float(given.expected.max(1).mean())},
        },
        "load": loads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument(
        "--peer-decisions", type=int, default=20_000, help="Vowpal Wabbit's; the rest is extrapolated"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    given, rounds, loads = stream(options.decisions), [], []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(options.rounds):
            rounds.append(one_round(given, options.peer_decisions, Path(name), seed))
            loads.append(os.getloadavg()[0])
    found = {
        "command": " ".join(["python", *sys.argv]),
        "decisions": len(given),
        "actions": ACTIONS,
        "numbers": NUMBERS,
        **report(given, rounds, loads),
        "versions": {**versions(), "vowpalwabbit": importlib.metadata.version("vowpalwabbit")},
        "machine": machine(),
    }
    slow = [way for way in ("text made", "text ready") if found["times_faster"][way] < TIMES_FASTER]
    Console().print_json(data=found)
    print(f"at least {TIMES_FASTER} times Vowpal Wabbit's rate: {'no' if slow else 'yes'}; load {loads}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
