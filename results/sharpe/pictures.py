"""The pictures of docs/evaluate.md: the horizon curse, and what a log cannot say about actions that it never tried.

    python results/sharpe/pictures.py

writes docs/pictures/horizon-curse.png and docs/pictures/support.png in some twenty seconds on one thread.

The curse: 40 logs of 500 episodes each of the two-lane chain of `worlds.chain`, at horizons from 2 to 128. Errors are
divided by the horizon, which values grow with; bands are 95 % bootstrap intervals of the RMSE over logs. The dotted
line is the exact error of PDIS: from 64 steps on it hangs on weights so rare that 40 logs hold too few of them. The
effective sample size is (Σ W)²/Σ W² of the weights at the last step: the product of all ratios, or the ratio of states
times that of the last action; bands hold four logs of five.

Support: one log of 2 000 five-step episodes, whose policy has three actions and takes two of them. Candidates move
probability to the third. The log is the same whether that action pays 2 or −2; the value of the candidates is not.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from worlds import chain, draw, variances

from peira.evaluation.off_policy import intervals, marginal, sequential
from peira.evaluation.off_policy.candidates import candidate_of
from peira.evaluation.off_policy.diagnostics import Basis, candidate_findings, refused_by
from peira.evaluation.off_policy.formatting import number
from peira.evaluation.off_policy.log import Log
from peira.evaluation.off_policy.plots import COLOURS, MUTED, save, styled
from peira.evaluation.off_policy.weights import (
    cumulative_log_weights,
    effective_sample_size,
)
from peira.runs.study import rmse

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"

HORIZONS = (2, 4, 8, 16, 32, 64, 128)
EPISODES, LOGS = 500, 40
CURSED = ("PDIS", "WPDIS", "DR", "MIS")

STEPS, LOGGED = 5, 2_000
OLD_ACTIONS, UNTRIED = np.array([1.0, 0.5]), (2.0, -2.0)
LOG_POLICY, PREFERENCE = np.array([0.5, 0.5]), np.array([0.7, 0.3])


def curse(horizon: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """Errors a step and effective sample sizes of every log, and by how much the mean of the log itself is off."""
    world = chain(horizon)
    truth = world.value()
    errors = {name: np.empty(LOGS) for name in CURSED}
    effective = {"whole past": np.empty(LOGS), "state, last action": np.empty(LOGS)}
    for seed in range(LOGS):
        log = draw(world, EPISODES, np.random.default_rng([horizon, seed]))
        q, v = log.values(world)
        ratio = log.state_ratio(world)
        estimates = {
            "PDIS": sequential.pdis(log.block, world.gamma),
            "WPDIS": sequential.wpdis(log.block, world.gamma),
            "DR": sequential.dr(log.block, q, v, world.gamma),
            "MIS": marginal.sm_is(log.block, ratio, world.gamma),
        }
        for name, terms in estimates.items():
            errors[name][seed] = (terms.value() - truth) / horizon
        with np.errstate(divide="ignore"):
            of_states = np.log(marginal.pair_ratio(log.block, ratio))
        for name, log_weight in (
            ("whole past", cumulative_log_weights(log.block)),
            ("state, last action", of_states),
        ):
            effective[name][seed] = effective_sample_size(log_weight)[-1]
    return errors, effective, abs(world.value(world.behaviour) - truth) / horizon


@styled
def horizon_curse() -> Figure:
    found = [curse(horizon) for horizon in HORIZONS]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, name in zip(COLOURS, CURSED, strict=False):
        measured = [rmse(errors[name]) for errors, _, _ in found]
        limits = np.array([of["interval"] for of in measured]).T
        _line(left, [of["rmse"] for of in measured], limits, colour, name)
    exact = [np.sqrt(variances(chain(of))["pdis"] / EPISODES) / of for of in HORIZONS]
    left.plot(HORIZONS, exact, color=COLOURS[0], linestyle=":", linewidth=1.2, label="PDIS, exact")
    guess = [of for *_, of in found]
    left.plot(HORIZONS, guess, color=MUTED, linestyle="--", linewidth=1.2, label="guess: the log’s own mean")
    left.set(
        yscale="log",
        ylabel="RMSE of the value / horizon",
        title=f"Error with {EPISODES} episodes",
        ylim=(None, 30),
    )
    for colour, name in ((COLOURS[0], "whole past"), (COLOURS[3], "state, last action")):
        sizes = np.array([effective[name] for _, effective, _ in found])
        limits = np.quantile(sizes, [0.1, 0.9], axis=1)
        _line(right, np.median(sizes, axis=1), limits, colour, f"weights of the {name}")
    right.set(yscale="log", ylabel="episodes", title="Effective sample size at the last step")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="horizon (steps)")
        axes.set_xticks(HORIZONS, [str(horizon) for horizon in HORIZONS])
        axes.minorticks_off()
        axes.grid(True)
        axes.legend()
    return figure


def _line(axes: Axes, values: list[float] | np.ndarray, limits: np.ndarray, colour: str, label: str) -> None:
    axes.plot(HORIZONS, values, color=colour, marker="o", markersize=3.5, label=label)
    axes.fill_between(HORIZONS, *limits, color=colour, alpha=0.18, linewidth=0)


def untried_log(rng: np.random.Generator) -> Log:
    """Episodes of a policy that has three actions and never takes the last."""
    action = rng.choice(2, p=LOG_POLICY, size=(LOGGED, STEPS))
    return Log.from_arrays(
        action=action.ravel(),
        reward=rng.normal(OLD_ACTIONS[action], 0.5).ravel(),
        length=np.full(LOGGED, STEPS),
        behaviour_probs=np.tile([*LOG_POLICY, 0.0], (action.size, 1)),
    )


def candidate_probs(share: float) -> np.ndarray:
    """A candidate that gives `share` to the untried action."""
    return np.append((1 - share) * PREFERENCE, share)


@styled
def support() -> Figure:
    log = untried_log(np.random.default_rng(0))
    shares = np.linspace(0.0, 0.5, 51)
    estimators = {"PDIS": sequential.pdis, "WPDIS": sequential.wpdis}
    found = {name: np.empty((len(shares), 3)) for name in estimators}
    refused = np.zeros(len(shares), bool)
    for place, share in enumerate(shares):
        candidate = candidate_of(np.tile(candidate_probs(share), (log.rows, 1)), log, "candidate")
        findings = candidate_findings(log, candidate)
        refused[place] = bool(refused_by(findings, Basis.WEIGHTS))
        block = log.block(candidate.log_ratio(log), np.arange(log.episodes))
        for name, estimator in estimators.items():
            terms = estimator(block, 1.0)
            limits = intervals.bootstrap(terms, rng=np.random.default_rng(0), replicates=500)
            found[name][place] = terms.value(), limits.low, limits.high
    first = shares[refused.argmax()]

    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(first, shares[-1], color=MUTED, alpha=0.12, linewidth=0)
    axes.text(
        first + 0.008,
        0.02,
        f"refused from {number(100 * first)} % on",
        color=MUTED,
        transform=axes.get_xaxis_transform(),
    )
    for colour, (name, of) in zip(COLOURS, found.items(), strict=False):
        axes.plot(shares[~refused], of[~refused, 0], color=colour, label=f"{name} and its 95 % interval")
        axes.plot(shares[refused], of[refused, 0], color=colour, linestyle=":")
        axes.fill_between(shares, of[:, 1], of[:, 2], color=colour, alpha=0.2, linewidth=0)
    for pays, style in zip(UNTRIED, ("--", "-."), strict=True):
        truth = [STEPS * candidate_probs(share) @ [*OLD_ACTIONS, pays] for share in shares]
        axes.plot(
            shares,
            truth,
            color="black",
            linestyle=style,
            label=f"truth if the untried action pays {number(pays)}",
        )
    axes.set(
        xlabel="probability that the candidate gives to the action that the log never tried",
        ylabel="value",
        title="One log, two worlds: nothing in it tells them apart",
        xlim=(0, shares[-1]),
    )
    axes.grid(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.08))
    return figure


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for name, figure in (("horizon-curse", horizon_curse()), ("support", support())):
        save(figure, PICTURES / f"{name}.png")
        print(PICTURES / f"{name}.png", file=sys.stderr)


if __name__ == "__main__":
    main()
