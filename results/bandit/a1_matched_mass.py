"""A1: what exploration costs when as much traffic leaves the greedy action.

    python results/bandit/a1_matched_mass.py --worlds 10

In each world boosted trees are fitted to 40 000 uniform decisions; γ of SquareCB and FastCB and τ of softmax are solved
so that the share of traffic off the greedy action is that of ε-greedy. Cost is the authorised share that is given up
against the greedy policy of the same model, by the simulator's own probabilities, on 40 000 fresh contexts. Expected
(``adyen.md`` 7, A1): at ε = 0.2 the cost of SquareCB, and of FastCB, is at most half of uniform exploration's (mean
over worlds), the upper end of the interval below 0.7.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from peira.environments.payment import PaymentWorld
from peira.experience.decisions import LoggedDecisions
from peira.learners import explorers
from peira.learners.explorer_budget import explore_mass, gamma_for_mass
from peira.policies.oracles.make import make_oracle
from peira.runs.study import measured, partial, publish, verdicts

ROWS = 40_000
FIRST_WORLD = 100
"""Lower numbers served to choose the oracles' defaults."""
EPSILONS = (0.05, 0.1, 0.2)
# One family of distributions a method: the greater the number, the less is explored.
METHODS = {
    "SquareCB": explorers.squarecb,
    "FastCB": explorers.fastcb,
    "softmax": lambda scores, eligible, number: explorers.softmax(scores, eligible, 1 / max(number, 1e-12)),
}


def uniform_log(world: PaymentWorld, rows: int, rng: np.random.Generator) -> LoggedDecisions:
    """Decisions at random, with their outcomes."""
    choices = world.contexts(rows, rng, 0)
    pmf = explorers.uniform(choices.eligible)
    column = (pmf.cumsum(1) > rng.random(rows)[:, None]).argmax(1)
    reward, _ = world.outcomes(choices, column, rng, 0)
    return LoggedDecisions(
        choices=choices,
        column=column,
        propensity=pmf[np.arange(rows), column],
        reward=reward,
        pmf=pmf,
        generation=np.zeros(rows, np.int64),
        time=np.arange(rows, dtype=float),
        uniform=np.ones(rows, bool),
        cluster=world.clusters(choices, 0),
    )


def measure(label: str) -> dict:
    seed = int(label)
    world, rng = PaymentWorld(seed), np.random.default_rng(seed)
    oracle = make_oracle("lightgbm", world.schema, seed).fit(uniform_log(world, ROWS, rng))
    choices = world.contexts(ROWS, rng, 0)
    expected = np.nan_to_num(world.expected_reward(choices, 0))
    eligible, scores = choices.eligible, oracle.predict(choices)

    def value(pmf: np.ndarray) -> float:
        return float((pmf * expected).sum(1).mean())

    best = value(explorers.greedy(scores, eligible))
    found = {}
    for epsilon in EPSILONS:
        # Of a greedy action that is drawn at random among equals, as SquareCB's is not.
        uniform = explorers.epsilon_greedy(scores, eligible, epsilon)
        mass = float((epsilon * (1 - 1 / eligible.sum(1))).mean())
        arms = {
            "ε-greedy": {"mass": mass, "cost": best - value(uniform), "least": float(uniform[eligible].min())}
        }
        for name, family in METHODS.items():
            solved = gamma_for_mass(
                lambda number, family=family: family(scores, eligible, number),
                scores,
                eligible,
                mass,
                nearest=True,
            )
            pmf = family(scores, eligible, solved.gamma)
            arms[name] = {
                "mass": explore_mass(pmf, scores, eligible),
                "cost": best - value(pmf),
                "least": float(pmf[eligible].min()),
                "number": solved.gamma,
            }
        found[f"{epsilon:g}"] = arms
    return {
        "optimum": float(np.nanmax(world.expected_reward(choices, 0), 1).mean()),
        "greedy": best,
        "arms": found,
    }


def ratio_of_means(costs: np.ndarray, baseline: np.ndarray) -> dict:
    """A world's cost may be below 0 (exploring near-ties corrects the model), so that only means are divided."""
    drawn = np.random.default_rng(0).integers(len(costs), size=(4_000, len(costs)))
    replicates = costs[drawn].mean(1) / baseline[drawn].mean(1)
    return {
        "ratio": float(costs.mean() / baseline.mean()),
        "interval": [float(limit) for limit in np.quantile(replicates, (0.025, 0.975))],
    }


def report(found: dict[str, dict]) -> dict:
    table = {}
    for epsilon in found[next(iter(found))]["arms"]:
        cost = {
            name: np.array([world["arms"][epsilon][name]["cost"] for world in found.values()])
            for name in ("ε-greedy", *METHODS)
        }
        table[epsilon] = {}
        for name, costs in cost.items():
            of = [world["arms"][epsilon][name] for world in found.values()]
            table[epsilon][name] = {
                "mass": float(np.mean([arm["mass"] for arm in of])),
                "cost": float(costs.mean()),
                **ratio_of_means(costs, cost["ε-greedy"]),
                "least": float(np.min([arm["least"] for arm in of])),
                "number": [arm["number"] for arm in of] if name in METHODS else None,
            }
    return table


def accepted(table: dict) -> dict[str, bool]:
    return {
        f"{name} costs at most half of ε = 0.2, upper end below 0.7": table["0.2"][name]["ratio"] <= 0.5
        and table["0.2"][name]["interval"][1] < 0.7
        for name in ("SquareCB", "FastCB")
    }


def page(document: dict) -> str:
    lines = [
        "# A1: the cost of exploration at matched mass",
        "",
        f"`{document['command']}` · {document['worlds']} worlds · cost in 10⁻⁵ of a payment, mean over worlds; ratio "
        "to ε-greedy's cost, of means, with a 95 % interval that draws worlds",
        "",
        "| share off the greedy action | method | reached | cost | ratio | least probability | γ (softmax: 1/τ) |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for epsilon, arms in document["table"].items():
        for name, arm in arms.items():
            low, high = arm["interval"]
            numbers = "" if arm["number"] is None else f"{min(arm['number']):.0f}–{max(arm['number']):.0f}"
            lines.append(
                f"| ε = {epsilon} | {name} | {arm['mass']:.1%} | {1e5 * arm['cost']:.0f} | {arm['ratio']:.2f} "
                f"[{low:.2f}, {high:.2f}] | {arm['least']:.1e} | {numbers} |"
            )
    return "\n".join([*lines, "", *verdicts(document["accepted"]), "", document["reading"]])


READING = """\
SquareCB gives up 0.30 to 0.44 of what uniform exploration costs, the published regime (0.23 to 0.30) at the smaller
shares and above it at the largest. FastCB misses its figure at ε = 0.2 by a little. It explores in proportion to the
loss of the best action, so that at equal traffic more of it falls on the payments that fail often anyway, and there the
gaps between actions, which the logistic function stretches, are wider. At the same traffic softmax is far cheaper than
both, and pays with probabilities of 10⁻⁹⁵ and less: such a log cannot judge any other policy. The specification's
simulation has 3 to 8 eligible actions; the rules that it states give 2, 4 or 8, which is what is used here."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=10)
    worlds = parser.parse_args().worlds
    script = Path(__file__)
    found = measured(partial(script), [str(FIRST_WORLD + place) for place in range(worlds)], measure)
    table = report(found)
    document = {
        "worlds": worlds,
        "found": found,
        "table": table,
        "accepted": accepted(table),
        "reading": READING,
    }
    publish(script, f" --worlds {worlds}", document, page)


if __name__ == "__main__":
    main()
