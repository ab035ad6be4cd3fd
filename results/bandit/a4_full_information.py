"""A4: explorers on classification data, whose rewards are known for every action.

    python results/bandit/a4_full_information.py --shuffles 10        # a quarter of an hour on one core

scikit-learn's digits, wine, breast cancer and iris, and make_classification with 3, 5 and 10 classes, 1, 3 and 5 %
wrong labels and imbalance (its first 1 000 rounds), as bandits: the label is the action that pays. One pass from no
knowledge: score, explore, draw, learn from the chosen action's reward alone. In batches of 1 and of 100 decisions:

  ridge          `RidgeOracle`, a regression for every action that shrinks to the mean reward of all; its own penalty
  plain ridge    a regression for every action on the features as they are, penalty 1, that shrinks to a reward of 0, as
                 in the specification's simulation; in this file only

Boosted trees learn only from all rows anew, and do so after every 100 decisions. Nothing was tuned.

Expected (``adyen.md`` 7, A4): on digits the mean reward of SquareCB with γ = 10√t is above that of ε = 0.1 by at least
0.04, the interval of the paired difference over shuffles without 0; with batches of 100 the difference keeps its sign.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from peira.environments.decision_world import DecisionWorld, make_decision_world
from peira.evaluation.off_policy.intervals import student_t
from peira.experience.decision_records import draw_column
from peira.experience.decisions import Choices, LoggedDecisions
from peira.learners import explorers
from peira.policies.oracles.make import make_oracle
from peira.runs.study import measured, partial, publish, verdicts

WORLDS = {
    "digits": 1_797,
    "wine": 178,
    "breast-cancer": 569,
    "iris": 150,
    "classification-3-noise-1": 1_000,
    "classification-5-noise-3-imbalance-5": 1_000,
    "classification-10-noise-5-imbalance-10": 1_000,
}
"""Rounds of each."""

LEARNERS = {
    "ridge, batch 1": ("ridge", 1),
    "plain ridge, batch 1": ("plain", 1),
    "ridge, batch 100": ("ridge", 100),
    "plain ridge, batch 100": ("plain", 100),
    "boosted trees, batch 100": ("lightgbm", 100),
}
SETTINGS = {"ridge": {"crosses": "disjoint", "interactions": False}, "lightgbm": {"least_rows": 10}}

# From scores, eligible actions and the number of labelled rows to probabilities.
EXPLORERS = {
    "greedy": lambda scores, eligible, t: explorers.greedy(scores, eligible),
    "ε = 0.05": lambda scores, eligible, t: explorers.epsilon_greedy(scores, eligible, 0.05),
    "ε = 0.1": lambda scores, eligible, t: explorers.epsilon_greedy(scores, eligible, 0.1),
    "SquareCB 1√t": lambda scores, eligible, t: explorers.squarecb(scores, eligible, t**0.5),
    "SquareCB 10√t": lambda scores, eligible, t: explorers.squarecb(scores, eligible, 10 * t**0.5),
    "SquareCB 100√t": lambda scores, eligible, t: explorers.squarecb(scores, eligible, 100 * t**0.5),
    "FastCB 3√t": lambda scores, eligible, t: explorers.fastcb(scores, eligible, 3 * t**0.5),
}
PUBLISHED = {"greedy": 0.718, "ε = 0.05": 0.708, "ε = 0.1": 0.699, "SquareCB 1√t": 0.609}
PUBLISHED |= {"SquareCB 10√t": 0.769, "SquareCB 100√t": 0.775, "FastCB 3√t": 0.783}
"""The specification's own simulation on digits (4.3)."""

SEPARATOR = " | "


class PlainRidge:
    """θ_a = (I + Σ x xᵀ)⁻¹ Σ r x over the rows of action a, x the features and a 1; scores are not clipped."""

    def __init__(self, actions: int, numbers: int) -> None:
        self._inverse = np.tile(np.eye(numbers + 1), (actions, 1, 1))
        self._cross = np.zeros((actions, numbers + 1))
        self._weights = np.zeros((actions, numbers + 1))

    def predict(self, choices: Choices) -> np.ndarray:
        return _with_one(choices.number) @ self._weights.T

    def update(self, rows: LoggedDecisions) -> None:
        for x, action, reward in zip(_with_one(rows.choices.number), rows.action, rows.reward, strict=True):
            moved = self._inverse[action] @ x
            self._inverse[action] -= np.outer(moved, moved) / (1 + x @ moved)
            self._cross[action] += reward * x
        for action in np.unique(rows.action):
            self._weights[action] = self._inverse[action] @ self._cross[action]


def _with_one(number: np.ndarray) -> np.ndarray:
    return np.column_stack([number.astype(np.float64), np.ones(len(number))])


def one_pass(world: DecisionWorld, rounds: int, learner: str, explorer: str, shuffle: int) -> float:
    """Mean reward of a pass; the same shuffle and the same numbers to draw with for every learner and explorer."""
    name, batch = LEARNERS[learner]
    rng = np.random.default_rng(shuffle)
    if name == "plain":
        oracle = PlainRidge(len(world.schema.actions), len(world.schema.numbers))
    else:
        oracle = make_oracle(name, world.schema, shuffle, **SETTINGS[name])
    paid, log = 0.0, []
    for at in range(0, rounds, batch):
        choices = world.contexts(min(batch, rounds - at), rng, at)
        rows = np.arange(len(choices))
        pmf = EXPLORERS[explorer](oracle.predict(choices), choices.eligible, at)
        column = draw_column(pmf, rng.random(len(rows)))
        reward, _ = world.outcomes(choices, column, rng, at)
        paid += reward.sum()
        log.append(
            LoggedDecisions(
                choices=choices,
                column=column,
                propensity=pmf[rows, column],
                reward=reward,
                pmf=pmf,
                generation=np.full(len(rows), at // batch),
                time=at + rows.astype(float),
                uniform=np.zeros(len(rows), bool),
                cluster=at + rows,
            )
        )
        if name == "lightgbm":
            oracle.fit(LoggedDecisions.concatenate(log))
        else:
            oracle.update(log[-1])
    return float(paid / rounds)


def measure(label: str) -> dict[str, float]:
    env, learner, shuffle = label.split(SEPARATOR)
    world = make_decision_world(env, int(shuffle))
    return {name: one_pass(world, WORLDS[env], learner, name, int(shuffle)) for name in EXPLORERS}


def summary(found: dict[str, dict[str, float]], shuffles: int) -> dict[str, Any]:
    """Per world and learner: mean and interval of each explorer, and of its difference from ε = 0.1."""
    table: dict[str, Any] = {}
    for env in WORLDS:
        table[env] = {}
        for learner in LEARNERS:
            of = [found[SEPARATOR.join((env, learner, str(shuffle)))] for shuffle in range(shuffles)]
            reward = {name: np.array([each[name] for each in of]) for name in EXPLORERS}
            table[env][learner] = {
                name: {
                    "mean": float(values.mean()),
                    "interval": _limits(values),
                    "less_epsilon": float((values - reward["ε = 0.1"]).mean()),
                    "less_epsilon_interval": _limits(values - reward["ε = 0.1"]),
                    "less_greedy": float((values - reward["greedy"]).mean()),
                    "less_greedy_interval": _limits(values - reward["greedy"]),
                }
                for name, values in reward.items()
            }
    return table


def _limits(values: np.ndarray) -> list[float]:
    if not np.ptp(values):
        return [float(values[0])] * 2
    interval = student_t(values)
    return [float(interval.low), float(interval.high)]


def accepted(table: dict[str, Any]) -> dict[str, bool]:
    met = {}
    for oracle in ("ridge", "plain ridge"):
        every, batches = (table["digits"][f"{oracle}, batch {batch}"]["SquareCB 10√t"] for batch in (1, 100))
        met[f"digits, {oracle}, batch 1: SquareCB 10√t less ε = 0.1 is at least 0.04, interval without 0"] = (
            every["less_epsilon"] >= 0.04 and every["less_epsilon_interval"][0] > 0
        )
        met[f"digits, {oracle}, batch 100 keeps the sign"] = batches["less_epsilon"] > 0
    return met


def page(document: dict[str, Any]) -> str:
    lines = [
        "# A4: explorers on full-information data",
        "",
        f"`{document['command']}` · {document['shuffles']} shuffles · mean reward of one pass with Student's 95 % "
        "interval over shuffles; differences are paired by shuffle",
    ]
    for env, learners in document["table"].items():
        lines += ["", f"## {env}, {WORLDS[env]} rounds", ""]
        lines += [
            "| learner | explorer | mean reward | less ε = 0.1 | less greedy |",
            "|---|---|---:|---:|---:|",
        ]
        for learner, arms in learners.items():
            for name, arm in arms.items():
                differences = [
                    "" if name == base else _cell(arm[f"less_{key}"], arm[f"less_{key}_interval"], "+")
                    for base, key in (("ε = 0.1", "epsilon"), ("greedy", "greedy"))
                ]
                lines.append(
                    f"| {learner} | {name} | {_cell(arm['mean'], arm['interval'], '')} | {' | '.join(differences)} |"
                )
    return "\n".join([*lines, "", *verdicts(document["accepted"]), "", document["reading"]])


def _cell(value: float, limits: list[float], sign: str) -> str:
    return f"{value:{sign}.3f} [{limits[0]:{sign}.3f}, {limits[1]:{sign}.3f}]"


READING = """\
With the library's ridge regression SquareCB 10√t beats ε = 0.1 on digits by 0.027 (batch 1) and 0.030 (batch 100),
intervals without 0, and misses the 0.04 asked for. With the regression of the specification's own simulation, which
starts every action at a reward of 0, it is 0.075, as there (0.070). That one was added after the first had missed; of
four forms of it (with and without a constant, clipped or not), all beyond 0.04 on five shuffles, it is the one whose
figures are the specification's: greedy 0.725 (0.718), ε = 0.1 0.701 (0.699), SquareCB 10√t 0.775 (0.769), FastCB 0.793
(0.783).

The two differ in what an action is worth that has not been tried. From 0, the first action that pays stays the best
and a greedy policy is locked in: exploration has something to repair, and inverse gaps repair it better than chance.
From the mean reward of all actions, those untried look as good as the average, are tried, and the greedy policy is the
best of all (0.803, level with SquareCB 100√t): exploration is then mostly cost, and 10√t costs 0.040 against greedy,
where ε = 0.1 costs 0.067. A better model earns more here than a better explorer.

Elsewhere SquareCB 10√t is ahead of ε = 0.1 with either regression wherever the interval leaves out 0, though by less,
and never ahead of greedy with the library's. On data sets of 150 and 178 rows batches of 100 leave two rounds, which
show little. Boosted trees, in batches of 100 only, turn it round on digits and where there are five or ten classes:
they are better the less is explored, 100√t than 10√t and greedy than that, so γ is too small for their gaps. It does
not carry over from one model to another; that is what `explore_mass` is for."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shuffles", type=int, default=10)
    shuffles = parser.parse_args().shuffles
    script = Path(__file__)
    labels = [
        SEPARATOR.join((env, learner, str(shuffle)))
        for shuffle in range(shuffles)
        for env in WORLDS
        for learner in LEARNERS
    ]
    found = measured(partial(script), labels, measure)
    table = summary(found, shuffles)
    document = {
        "shuffles": shuffles,
        "published_digits": PUBLISHED,
        "table": table,
        "found": found,
        "accepted": accepted(table),
        "reading": READING,
    }
    publish(script, f" --shuffles {shuffles}", document, page)


if __name__ == "__main__":
    main()
