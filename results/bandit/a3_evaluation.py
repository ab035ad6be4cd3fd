"""A3: which logs can judge another policy, do the intervals hold, and does the gate let bad candidates through?

    python results/bandit/a3_evaluation.py --worlds 4 --repeats 50

In each world boosted trees of 40 000 uniform decisions make the policies that log; the candidate is the greedy policy
of trees of 40 000 other uniform decisions. A repeat is a log of 40 000 decisions of each policy, drawn from
100 000 contexts, over which true values are exact. Expected (``adyen.md`` 7, A3):

- the RMSE of SNIPS under SquareCB with γ = 2000 is at most 0.8 of that under ε-greedy with ε = 0.05;
- 95 % intervals of the bootstrap hold the truth in at least 90 % of 200 repeats (DR and SNIPS, SquareCB's logs);
- of 200 candidates that are truly no better than the incumbent the gate promotes at most 7 %;
- a candidate that takes an action which was never logged is refused, however good SNIPS looks.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from a1_matched_mass import FIRST_WORLD, ROWS, uniform_log

from peira.environments.payment import PaymentWorld
from peira.evaluation.decisions import cross_fitted_reward, gate, judged, values_of
from peira.evaluation.off_policy import bandit
from peira.evaluation.off_policy.intervals import bootstrap_together
from peira.experience.decision_records import draw_column
from peira.experience.decisions import Choices, LoggedDecisions
from peira.learners.decision_policy import DecisionPolicy, ExplorerConfig
from peira.policies.oracles.make import make_oracle
from peira.policies.oracles.protocol import RewardOracle
from peira.runs.study import measured, partial, publish, rmse, verdicts

LOGGING = {
    "uniform": {"kind": "uniform"},
    "ε = 0.2": {"kind": "epsilon", "epsilon": 0.2},
    "ε = 0.05": {"kind": "epsilon", "epsilon": 0.05},
    "SquareCB 300": {"kind": "squarecb", "gamma": 300.0},
    "SquareCB 2000": {"kind": "squarecb", "gamma": 2000.0},
}
ESTIMATORS = ("dm", "ips", "snips", "dr")
COVERED_BY = "SquareCB 2000"
CANDIDATES, CANDIDATE_ROWS = 200, 10_000
POOL = 100_000


def policy(oracle: RewardOracle | None, **explorer: object) -> DecisionPolicy:
    """A policy as it is deployed, without a uniform slice."""
    config = ExplorerConfig(**explorer, uniform_slice=0.0)
    return DecisionPolicy(oracle, config, id="a3", version=0, gamma=explorer.get("gamma"))


@dataclass(frozen=True)
class Pool:
    """Contexts that logs are drawn from, with replacement: what is true of them is known without error."""

    choices: Choices
    expected: np.ndarray

    @classmethod
    def of(cls, world: PaymentWorld, rows: int, rng: np.random.Generator) -> Pool:
        choices = world.contexts(rows, rng, 0)
        return cls(choices, world.expected_reward(choices, 0))

    def value(self, pmf: np.ndarray) -> float:
        return float(np.nansum(pmf * self.expected, 1).mean())

    def log(self, pmf: np.ndarray, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, LoggedDecisions]:
        """Which contexts were drawn, and the decisions of the policy with these probabilities in them."""
        drawn, every = rng.integers(len(self.choices), size=rows), np.arange(rows)
        probability = pmf[drawn]
        column = draw_column(probability, rng.random(rows))
        return drawn, LoggedDecisions(
            choices=self.choices.take(drawn),
            column=column,
            propensity=probability[every, column],
            reward=(rng.random(rows) < self.expected[drawn, column]).astype(float),
            pmf=probability,
            generation=np.zeros(rows, np.int64),
            time=every.astype(float),
            uniform=np.zeros(rows, bool),
            cluster=every,
        )


@dataclass(frozen=True)
class Known:
    """A policy whose probabilities in the rows of one log were worked out before."""

    probability: np.ndarray

    def pmf(self, choices: Choices) -> np.ndarray:
        return self.probability


def models(seed: int, rows: int, number: int) -> tuple[PaymentWorld, list[RewardOracle]]:
    """A world and boosted trees of different uniform logs."""
    world, rng = PaymentWorld(seed), np.random.default_rng(seed)
    return world, [
        make_oracle("lightgbm", world.schema, seed).fit(uniform_log(world, rows, rng)) for _ in range(number)
    ]


def estimation(seed: int, repeats: int) -> dict:
    world, (own, other) = models(seed, ROWS, 2)
    pool = Pool.of(world, POOL, np.random.default_rng([seed, 1]))
    candidate = policy(other, kind="greedy").pmf(pool.choices)
    truth = pool.value(candidate)
    found = {}
    for place, (name, explorer) in enumerate(LOGGING.items()):
        by, rng = policy(own, **explorer).pmf(pool.choices), np.random.default_rng([seed, 2, place])
        errors: dict[str, list[float]] = {estimator: [] for estimator in ESTIMATORS}
        effective, held = [], {"dr": 0, "snips": 0}
        for _ in range(repeats):
            drawn, rows = pool.log(by, ROWS, rng)
            q = cross_fitted_reward(rows, world.schema, np.arange(ROWS), 2, rng)
            of = judged(candidate[drawn], rows, q)
            q_logged = q[np.arange(ROWS), rows.column]
            values = values_of(of, rows, rows.reward - q_logged)
            for estimator in ESTIMATORS:
                errors[estimator].append(values[estimator] - truth)
            effective.append(of.ratio.sum() ** 2 / (of.ratio**2).sum() / ROWS)
            if name == COVERED_BY:
                terms = {
                    "dr": bandit.dr(of.ratio, rows.reward, q_logged, of.q_target),
                    "snips": bandit.snipw(of.ratio, rows.reward),
                }
                intervals = bootstrap_together(list(terms.values()), rng=rng, replicates=500)
                for estimator, interval in zip(terms, intervals, strict=True):
                    held[estimator] += int(interval.low <= truth <= interval.high)
        found[name] = {
            "cost": truth - pool.value(by),
            "effective": float(np.mean(effective)),
            "errors": errors,
            "held": held,
        }
    return {"truth": truth, "logging": found}


def promotion(part: int, wanted: int) -> dict:
    """Pairs of equally good models by chance: the worse one of each stands for promotion. How many get it?"""
    differences, promoted, bounded = [], 0, 0
    for number in range(wanted):
        seed = 10_000 + part * wanted + number
        world, of_both = models(seed, CANDIDATE_ROWS, 2)
        rng = np.random.default_rng([seed, 1])
        pool = Pool.of(world, 2 * CANDIDATE_ROWS, rng)
        both = [policy(of, kind="squarecb", gamma=2000.0).pmf(pool.choices) for of in of_both]
        candidate, incumbent = sorted(both, key=pool.value)
        drawn, rows = pool.log(incumbent, CANDIDATE_ROWS, rng)
        said = gate(Known(candidate[drawn]), Known(incumbent[drawn]), rows, world.schema, seed=seed)
        differences.append(pool.value(candidate) - pool.value(incumbent))
        promoted += said.passed
        bounded += said.report["difference"]["dr"]["low"] > 0
    return {"differences": differences, "promoted": promoted, "bounded": int(bounded)}


def never_logged(seed: int) -> dict:
    """The log's policy never takes one combination; the candidate often does."""
    world, (own, other) = models(seed, ROWS, 2)
    pool = Pool.of(world, ROWS, np.random.default_rng([seed, 3]))
    barred = world.schema.actions.index("token+exemption")
    candidate = policy(other, kind="greedy").pmf(pool.choices)
    incumbent = policy(own, kind="squarecb", gamma=300.0).pmf(pool.choices)
    incumbent = np.where(pool.choices.action == barred, 0.0, incumbent)
    incumbent /= incumbent.sum(1, keepdims=True)
    drawn, rows = pool.log(incumbent, ROWS, np.random.default_rng([seed, 4]))
    said = gate(Known(candidate[drawn]), Known(incumbent[drawn]), rows, world.schema, tolerance=0.05)
    return {
        "passed": said.passed,
        "unsupported": said.report["unsupported_mass"],
        "snips_difference": said.report["difference"]["snips"]["value"],
        "reasons": said.reasons,
    }


def report(found: dict[str, dict]) -> dict:
    estimations = [of for label, of in found.items() if label.startswith("estimation")]
    promotions = [of for label, of in found.items() if label.startswith("promotion")]
    table = {}
    for name in LOGGING:
        of = [one["logging"][name] for one in estimations]
        table[name] = {
            "cost": float(np.mean([one["cost"] for one in of])),
            "effective": float(np.mean([one["effective"] for one in of])),
            **{e: rmse(np.concatenate([one["errors"][e] for one in of])) for e in ESTIMATORS},
        }
    covered = [one["logging"][COVERED_BY] for one in estimations]
    repeats = sum(len(one["errors"]["dr"]) for one in covered)
    return {
        "table": table,
        "coverage": {e: sum(one["held"][e] for one in covered) / repeats for e in ("dr", "snips")},
        "repeats": repeats,
        "promoted": sum(one["promoted"] for one in promotions),
        "bounded": sum(one["bounded"] for one in promotions),
        "candidates": sum(len(one["differences"]) for one in promotions),
        "mean_difference": float(np.mean(np.concatenate([one["differences"] for one in promotions]))),
        "never_logged": [of for label, of in found.items() if label.startswith("never")],
    }


def accepted(of: dict) -> dict[str, bool]:
    table = of["table"]
    return {
        "SNIPS' RMSE under SquareCB 2000 is at most 0.8 of that under ε = 0.05": table["SquareCB 2000"][
            "snips"
        ]["rmse"]
        <= 0.8 * table["ε = 0.05"]["snips"]["rmse"],
        f"coverage of at least 90 % over {of['repeats']} repeats": min(of["coverage"].values()) >= 0.9,
        f"at most 7 % of {of['candidates']} no better candidates promoted": of["promoted"]
        <= 0.07 * of["candidates"],
        "an action that was never logged is refused": not any(one["passed"] for one in of["never_logged"]),
    }


def page(document: dict) -> str:
    of = document["report"]
    lines = [
        "# A3: what a log can tell of another policy",
        "",
        f"`{document['command']}` · RMSE over all repeats, with 95 % bootstrap interval",
        "",
        "| logging policy | cost against the candidate | effective share of rows | DM | IPS | SNIPS | DR |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in of["table"].items():
        cells = [
            f"{row[e]['rmse']:.4f} [{row[e]['interval'][0]:.4f}, {row[e]['interval'][1]:.4f}]"
            for e in ESTIMATORS
        ]
        lines.append(f"| {name} | {row['cost']:.4f} | {row['effective']:.3f} | {' | '.join(cells)} |")
    lines += [
        "",
        f"95 % BCa intervals under {COVERED_BY}: DR holds the truth in {of['coverage']['dr']:.1%}, SNIPS in "
        f"{of['coverage']['snips']:.1%} of {of['repeats']} repeats.",
        "",
        f"Of {of['candidates']} candidates that are no better than the incumbent (by {-of['mean_difference']:.4f} "
        f"worse on average) the gate promotes {of['promoted']}; by its bound alone {of['bounded']} would pass.",
        "",
        *(
            f"A candidate with {one['unsupported']:.0%} of its decisions on an action never logged (SNIPS sees a "
            f"difference of {one['snips_difference']:+.4f}): {one['reasons'][-1] if one['passed'] else 'refused'}."
            for one in of["never_logged"]
        ),
        "",
        *verdicts(document["accepted"]),
        "",
        document["reading"],
    ]
    return "\n".join(lines)


READING = """\
Errors, effective rows and costs are those of the specification's simulation. At the same cost a log of SquareCB
is worth more than twice the rows of ε-greedy's (0.041 against 0.018 of them), and importance weighting without
a normaliser is two to three times worse than SNIPS throughout, since rewards are near 1.

Bounds are a little too bold: weights of several hundred make the lower tail longer than any bootstrap of 10 000
rows shows. Candidates that are worse by chance pass a bound of 97.5 % in 15 of 200 cases instead of 5; the
other conditions of the gate leave 11. With bounds of 95 %, which was the gate's default when this was first
run, 19 passed the bound, and BCa, the delta method and self-normalised estimates did no better; the lower end
of a 95 % interval is the default since."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    script, parts = Path(__file__), 10

    def measure(label: str) -> dict:
        kind, seed = label.split()
        if kind == "estimation":
            return estimation(int(seed), options.repeats)
        if kind == "promotion":
            return promotion(int(seed), CANDIDATES // parts)
        return never_logged(int(seed))

    labels = [f"estimation {FIRST_WORLD + place}" for place in range(options.worlds)]
    labels += [f"promotion {part}" for part in range(parts)] + [f"never {FIRST_WORLD}"]
    of = report(measured(partial(script), labels, measure))
    document = {"report": of, "accepted": accepted(of), "reading": READING}
    publish(script, f" --worlds {options.worlds} --repeats {options.repeats}", document, page)


if __name__ == "__main__":
    main()
