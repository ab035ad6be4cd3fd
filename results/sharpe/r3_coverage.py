"""R3: do intervals hold the truth as often as they say?

    python results/sharpe/r3_coverage.py

writes r3_coverage.json and r3_coverage.md beside itself, in one to two minutes on one core; it goes on where it was cut
off. 2 000 logs of 200 episodes of fixture A, every interval at 95 %. WPDIS and WDR get Student t (value + influence),
delta, percentile and BCa bootstrap (2 000 replicates); WDR once with a Q̂ that is wrong at every step and once with
tables that are cross-fitted to the log. PDIS, whose contributions have a known range, gets Hoeffding, empirical
Bernstein and the lower bound of HCOPE.

Accepted (``sharpe.md`` 7, R3): t, bootstrap and delta hold the truth in 93 to 97 % of the logs for WPDIS and WDR,
Hoeffding and empirical Bernstein in at least 95 %. Expect all of it; Hoeffding and Bernstein hold it always, and are
several times as wide. PDIS with Student t, reported beside them, shows what skewed weights do to a symmetric interval.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from scipy import stats
from worlds import WRONG_Q, Log, World, draw, fixture_a

from peira.evaluation.off_policy import intervals, sequential
from peira.evaluation.off_policy.terms import Terms
from peira.runs.study import measured, partial, publish, verdicts

EPISODES, CHUNK = 200, 50
SELF_NORMALISED = ("wpdis", "wdr (wrong Q̂)", "wdr (fitted Q̂)")
GATED = ("student_t", "delta", "bootstrap_percentile", "bootstrap_bca")


def contribution_bounds(world: World) -> tuple[float, float]:
    """The least and the greatest Σ_t γ^t W_t r_t that an episode can give."""
    ratio = np.exp(world.log_ratio())
    low, high = np.zeros((2, len(world.first)))
    for _ in range(world.horizon):
        possible = world.move > 0
        least = np.where(possible, low, np.inf).min(-1)
        greatest = np.where(possible, high, -np.inf).max(-1)
        low = (ratio * (world.reward + world.gamma * least)).min(-1)
        high = (ratio * (world.reward + world.gamma * greatest)).max(-1)
    return float(low.min()), float(high.max())


def intervals_of(world: World, log: Log, rng: np.random.Generator, replicates: int) -> dict[str, list[float]]:
    """[low, high] of every interval of every estimator."""
    block, gamma = log.block, world.gamma
    wrong = WRONG_Q[log.state, log.action], (world.target * WRONG_Q).sum(-1)[log.state]
    terms = {
        "wpdis": sequential.wpdis(block, gamma),
        "wdr (wrong Q̂)": sequential.wdr(block, *wrong, gamma),
        "wdr (fitted Q̂)": sequential.wdr(block, *log.values(world), gamma),
    }
    found = {}
    for method in ("percentile", "bca"):
        together = intervals.bootstrap_together(
            list(terms.values()), rng=rng, method=method, replicates=replicates
        )
        found |= {(name, of.method): of for name, of in zip(terms, together, strict=True)}
    for name, of in terms.items():
        found[name, "student_t"] = intervals.student_t(of.value() + of.influence())
        found[name, "delta"] = intervals.delta(of)
    pdis: Terms = sequential.pdis(block, gamma)
    bounds = contribution_bounds(world)
    found["pdis", "student_t"] = intervals.student_t(pdis.plain)
    found["pdis", "hoeffding"] = intervals.hoeffding(pdis.plain, bounds)
    found["pdis", "empirical_bernstein"] = intervals.empirical_bernstein(pdis.plain, bounds)
    found["pdis", "hcope"] = intervals.hcope(pdis.plain, rng=rng)
    return {f"{name}: {method}": [of.low, of.high] for (name, method), of in found.items()}


def limits(world: World, chunk: int, *, logs: int, episodes: int, replicates: int) -> dict[str, list]:
    """[logs, 2] limits of every interval on a chunk of logs."""
    rng = np.random.default_rng(chunk)
    every = draw(world, logs * episodes, rng)
    of_logs = []
    for place in range(logs):
        rows = slice(place * episodes, (place + 1) * episodes)
        log = Log(*(column[rows] for column in vars(every).values()))
        of_logs.append(intervals_of(world, log, rng, replicates))
    return {name: [of[name] for of in of_logs] for name in of_logs[0]}


def coverage(limits: np.ndarray, truth: float) -> dict:
    """How often the truth lies within, below and above [logs, 2] limits, and how wide the intervals are."""
    low, high = limits.T
    within = (low <= truth) & (truth <= high)
    bounds = stats.binomtest(int(within.sum()), len(within)).proportion_ci(0.95, "wilson")
    return {
        "coverage": float(within.mean()),
        "coverage_interval": [float(bounds.low), float(bounds.high)],
        "truth_below": float((truth < low).mean()),
        "truth_above": float((truth > high).mean()),
        "median_low": float(np.median(low)),
        "median_width": float(np.median(high - low)) if np.isfinite(high).all() else None,
    }


def accepted(found: dict[str, dict]) -> dict[str, bool]:
    verdict = {
        f"{name}: {method}: 93 to 97 %": 0.93 <= found[f"{name}: {method}"]["coverage"] <= 0.97
        for name in SELF_NORMALISED
        for method in GATED
    }
    for method in ("hoeffding", "empirical_bernstein"):
        verdict[f"pdis: {method}: at least 95 %"] = found[f"pdis: {method}"]["coverage"] >= 0.95
    return verdict


def page(document: dict) -> str:
    lines = [
        "# R3: coverage of intervals",
        "",
        f"`{document['command']}` · {document['logs']} logs of {EPISODES} episodes of fixture A, J(π) = "
        f"{document['value']:.4f} · nominal 95 % · {document['seconds']:.0f} s · contributions of PDIS lie in "
        f"[{document['bounds'][0]:.3f}, {document['bounds'][1]:.3f}]",
        "",
        "| estimator: interval | coverage [Wilson 95 %] | truth below | truth above | median width |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, of in document["intervals"].items():
        low, high = of["coverage_interval"]
        width = (
            f"low at {of['median_low']:.2f}" if of["median_width"] is None else f"{of['median_width']:.3f}"
        )
        lines.append(
            f"| {name} | {of['coverage']:.1%} [{low:.1%}, {high:.1%}] | {of['truth_below']:.1%} | "
            f"{of['truth_above']:.1%} | {width} |"
        )
    return "\n".join([*lines, "", *verdicts(document["accepted"]), "", document["reading"]])


READING = """\
With 200 episodes every interval of a self-normalised estimator holds the truth in 94 to 95 % of the logs, as the
normalisers' own variation is in all of them. Where Q̂ is fitted, cross-fitting keeps the intervals honest: they are
about as wide as the errors of WDR with the true Q are.

Hoeffding and empirical Bernstein hold the truth always, at three times the width: their range is that of the heaviest
episode. PDIS with Student t misses to one side: skewed weights put the truth above the interval more often."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logs", type=int, default=2_000)
    logs = parser.parse_args().logs
    began = time.monotonic()
    script, world = Path(__file__), fixture_a()

    def measure(label: str) -> dict:
        number = int(label.split()[-1])
        return limits(world, number, logs=CHUNK, episodes=EPISODES, replicates=intervals.REPLICATES)

    chunks = measured(partial(script), [f"chunk {c}" for c in range(logs // CHUNK)], measure).values()
    names = next(iter(chunks))
    found = {
        name: coverage(np.concatenate([np.array(chunk[name]) for chunk in chunks]), world.value())
        for name in names
    }
    document = {
        "logs": len(chunks) * CHUNK,
        "episodes": EPISODES,
        "replicates": intervals.REPLICATES,
        "value": world.value(),
        "bounds": contribution_bounds(world),
        "seconds": time.monotonic() - began,
        "intervals": found,
        "accepted": accepted(found),
        "reading": READING,
    }
    publish(script, f" --logs {logs}", document, page)


if __name__ == "__main__":
    main()
