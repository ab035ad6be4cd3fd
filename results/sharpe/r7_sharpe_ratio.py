"""R7: which estimator chooses the best portfolio of candidates, and do the usual metrics tell?

    python results/sharpe/r7_sharpe_ratio.py

writes r7_sharpe_ratio.json, .md and two .png beside itself, in a quarter of an hour on one core; it goes on where it
was cut off. Seven tasks (`tasks.py`): three Garnet worlds and a gridworld whose logs show groups of states, CartPole,
MountainCar and Acrobot cut at 200 steps; γ = 0.99. In each ten candidates and ten logs of 4 000 (tables) or 1 000
episodes (control), evaluated by `peira.evaluate`; true values by dynamic programming or from 20 000 rollouts a policy.
DM, WPDIS, WDR, marginal IS and DR, the last four self-normalised. In the tables value models are tables of groups by
step left, ratios of groups by step; in control both are linear in 100 Gaussian features (fitted Q evaluation of 200
sweeps, minimax weights of the discounted ratio), 2 folds. None of these is right. The same is done with logs of 200
episodes, which is reported and not judged.

Accepted (``sharpe.md`` 7, R7), best estimators being sets that share ties: (a) the best by SharpeRatio@4 and by nMSE
have no estimator in common in at least 20 % of the 70 trials (lower end of the Wilson interval); (b) the same against
nRegret@1 and RankCorr is reported; (c) the SharpeRatio@4 forgone by the best by nMSE is above 0 (interval); (d) in at
least one task the best estimator changes with k, intervals of the two not overlapping at either k; (e) whether
SharpeRatio@4 agrees with RankCorr at least as often as with nMSE is reported.
"""

import argparse
import time
from functools import cache
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tasks import TASKS, ControlTask, TableTask, deviation

from peira.evaluation.off_policy import portfolio
from peira.evaluation.off_policy.evaluate import evaluate
from peira.evaluation.off_policy.plots import COLOURS, INK, MARKERS, MUTED, save, styled
from peira.evaluation.statistics import stratified_bootstrap_interval
from peira.runs.study import measured, partial, publish, verdicts

ESTIMATORS = ("dm", "wpdis", "wdr", "wmis", "wmdr")
SMALL = 200
"""Episodes of the logs that are reported and not judged."""
K = 4
METRICS = {
    "nmse": ("nMSE", False),
    "rank_correlation": ("RankCorr", True),
    "regret": ("nRegret@1", False),
    "sharpe": (f"SharpeRatio@{K}", True),
}
"""Name, and whether more is better."""
TIE = 1e-9
"""What rounding may make of equal scores."""
TOLERATED = 1e-5
"""Between a step of the batched simulator and gymnasium's, which shows float32."""


# -- one trial ---------------------------------------------------------------------------------------------


def truth(task: TableTask | ControlTask) -> dict:
    """True values, and what the simulator was checked to."""
    found = task.truth()._asdict()
    if isinstance(task, ControlTask):
        found["deviation"] = deviation(task.dynamics, task.behaviour)
        if found["deviation"] > TOLERATED:
            raise RuntimeError(
                f"{task.dynamics.id}: a step differs from gymnasium's by {found['deviation']:.2g}, expected at most "
                f"{TOLERATED:g}"
            )
    return found


def trial(task: TableTask | ControlTask, seed: int, episodes: int) -> dict:
    """Estimates of every candidate by every estimator on one log; None where one was refused."""
    logged = task.logged(np.random.default_rng([seed, episodes]), episodes)
    report = evaluate(
        logged.log,
        logged.candidates,
        estimators=ESTIMATORS,
        gamma=task.gamma,
        horizon=task.horizon,
        values="tabular" if isinstance(task, TableTask) else "linear",
        interval="delta",
        seed=seed,
    )
    of = report["candidates"]
    return {
        "estimates": {
            name: [of[label]["estimates"][name]["value"] for label in logged.candidates]
            for name in ESTIMATORS
        },
        "effective_episodes": [
            of[label]["estimates"]["wpdis"]["effective_sample_size"] for label in logged.candidates
        ],
        "steps": logged.log.rows,
        "on_policy": report["log"]["behaviour"]["value"],
    }


def scores(estimate: np.ndarray, value: np.ndarray, baseline: float) -> dict[str, np.ndarray | float]:
    """The four metrics of one ranking, and SharpeRatio@k, its numerator and the spread over k."""
    order = portfolio.ranking(estimate)
    found = portfolio.portfolios(value, order, baseline)
    return {
        "nmse": portfolio.normalised_mean_squared_error(estimate, value),
        "rank_correlation": portfolio.rank_correlation(estimate, value),
        "regret": float(portfolio.normalised_regret(value, order)[0]),
        "sharpe": float(found.sharpe[K - 1]),
        "sharpe_of_k": found.sharpe,
        "numerator_of_k": found.sharpe_numerator,
        "std_of_k": found.std,
    }


def by_chance(value: np.ndarray, baseline: float) -> dict[str, np.ndarray | float]:
    """What a random ranking scores in expectation: SharpeRatio@k over all sets of k, nRegret@1 over all firsts."""
    size = len(value)
    found = {name: np.full(size, np.nan) for name in ("sharpe_of_k", "numerator_of_k", "std_of_k")}
    for k in range(2, size + 1):
        drawn = [
            portfolio.portfolios(value[list(of)], np.arange(k), baseline)
            for of in combinations(range(size), k)
        ]
        found["sharpe_of_k"][k - 1] = np.mean([of.sharpe[-1] for of in drawn])
        found["numerator_of_k"][k - 1] = np.mean([of.sharpe_numerator[-1] for of in drawn])
        found["std_of_k"][k - 1] = np.mean([of.std[-1] for of in drawn])
    regret = np.mean(
        [portfolio.normalised_regret(value, np.roll(np.arange(size), i))[0] for i in range(size)]
    )
    sharpe = float(found["sharpe_of_k"][K - 1])
    return {**found, "rank_correlation": 0.0, "regret": float(regret), "sharpe": sharpe}


# -- all trials --------------------------------------------------------------------------------------------


def of_task(trials: list[dict], true: dict) -> dict[str, np.ndarray]:
    """Every score [seeds, estimators, …]."""
    value = np.array(list(true["values"].values()))
    found = [
        [scores(np.array(of["estimates"][name], float), value, true["behaviour"]) for name in ESTIMATORS]
        for of in trials
    ]
    return {name: np.array([[each[name] for each in row] for row in found]) for name in found[0][0]}


def aggregated(score: np.ndarray) -> dict[str, list]:
    """Mean over seeds with its interval."""
    found = portfolio.over_data_sets(score, rng=np.random.default_rng(0))
    return {name: getattr(found, name).tolist() for name in ("mean", "low", "high")}


def crowned(tasks: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The best estimators by every metric, [trials, estimators]."""
    return {
        name: portfolio.best_estimators(
            np.concatenate([of[name] for of in tasks.values()]), higher_is_better=higher
        )
        for name, (_, higher) in METRICS.items()
    }


def agreement(best: dict[str, np.ndarray], tasks: int) -> dict[str, dict]:
    """Of every two metrics, in how many trials they crown no estimator in common; and with the first of ties alone."""
    found = {}
    for one, other in combinations(METRICS, 2):
        first = int((best[one].argmax(1) != best[other].argmax(1)).sum())
        apart = ~(best[one] & best[other]).any(1)
        found[f"{one} - {other}"] = {
            **portfolio.disagreement(best[one], best[other])._asdict(),
            "of_tasks": apart.reshape(tasks, -1).sum(1).tolist(),
            "count_without_shared_ties": first,
        }
    return found


def forgone(tasks: dict[str, dict[str, np.ndarray]], metric: str) -> dict:
    """SharpeRatio@4 of the best less that of the estimators which `metric` crowns (their mean), trial by trial."""
    lost = []
    for of in tasks.values():
        best = portfolio.best_estimators(of[metric], higher_is_better=METRICS[metric][1])
        lost.append(of["sharpe"].max(1) - _mean_of(best, of["sharpe"]))
    return _with_interval(np.array(lost).T)


def forgone_unseen(tasks: dict[str, dict[str, np.ndarray]], metric: str) -> dict:
    """The same on a log that was not used to choose: SharpeRatio@4 of the estimators with the best mean SharpeRatio@4
    over a task's other logs, less that of those with the best mean `metric` over them. It may be negative.
    """
    lost = []
    for of in tasks.values():
        of_task = []
        for seed in range(len(of["sharpe"])):
            others = np.arange(len(of["sharpe"])) != seed
            chosen = [
                portfolio.best_estimators(of[name][others].mean(0), higher_is_better=METRICS[name][1])
                for name in ("sharpe", metric)
            ]
            one, other = (_mean_of(best, of["sharpe"][seed]) for best in chosen)
            of_task.append(one - other)
        lost.append(of_task)
    return _with_interval(np.array(lost).T)


def _mean_of(chosen: np.ndarray, score: np.ndarray) -> np.ndarray:
    return np.where(chosen, score, 0.0).sum(-1) / chosen.sum(-1)


def _with_interval(lost: np.ndarray) -> dict:
    """Mean of [seeds, tasks] with a 95 % interval that redraws seeds within tasks."""
    low, high = stratified_bootstrap_interval(lost, np.mean, rng=np.random.default_rng(0))
    return {
        "mean": float(lost.mean()),
        "interval": [float(low), float(high)],
        "of_tasks": lost.mean(0).tolist(),
        "share_above_zero": float((lost > TIE).mean()),
    }


def changes_with_k(curves: dict[str, list]) -> list[dict]:
    """Estimators a and b with a the best at k and b at another k by their means, and intervals apart at both."""
    mean, low, high = (np.array(curves[name])[:, 1:] for name in ("mean", "low", "high"))
    best = portfolio.best_estimators(mean.T, higher_is_better=True)
    # What rounding makes of equal portfolios (all are at the last k) is no difference.
    above = low[:, None] > high[None] + TIE
    found = []
    for k, other in combinations(range(len(best)), 2):
        for a, b in permutations(range(len(ESTIMATORS)), 2):
            if best[k, a] and best[other, b] and above[a, b, k] and above[b, a, other]:
                found.append({"k": [k + 2, other + 2], "best": [ESTIMATORS[a], ESTIMATORS[b]]})
    return found


def summary(found: dict[str, dict], truths: dict[str, dict], seeds: int, size: str) -> dict:
    """All tables of the logs of one size."""
    trials = {name: [found[label(name, size, seed)] for seed in range(seeds)] for name in truths}
    tasks = {name: of_task(of, truths[name]) for name, of in trials.items()}
    entries = {}
    for name, of in tasks.items():
        value, behaviour = np.array(list(truths[name]["values"].values())), truths[name]["behaviour"]
        guess = [np.full(len(value), each["on_policy"]) for each in trials[name]]
        curves = {key: aggregated(of[key]) for key in ("sharpe_of_k", "numerator_of_k", "std_of_k")}
        entries[name] = {
            "steps": float(np.mean([each["steps"] for each in trials[name]])),
            "effective_episodes": np.quantile(
                [each["effective_episodes"] for each in trials[name]], [0, 0.5, 1]
            ).tolist(),
            "metrics": {metric: aggregated(of[metric]) for metric in METRICS},
            "curves": curves,
            "chance": {key: np.asarray(each).tolist() for key, each in by_chance(value, behaviour).items()},
            "nmse_of_behaviour": float(
                np.mean([portfolio.normalised_mean_squared_error(each, value) for each in guess])
            ),
            "changes_with_k": changes_with_k(curves["sharpe_of_k"]),
            "refused": int(
                sum(v is None for each in trials[name] for row in each["estimates"].values() for v in row)
            ),
        }
    best = crowned(tasks)
    everything = np.concatenate([of["sharpe"] for of in tasks.values()])
    return {
        "tasks": entries,
        "agreement": agreement(best, len(tasks)),
        "crowned_together": {name: float(of.sum(1).mean()) for name, of in best.items()},
        "crowned": {
            name: dict(zip(ESTIMATORS, of.mean(0).tolist(), strict=True)) for name, of in best.items()
        },
        "forgone": {name: forgone(tasks, name) for name in METRICS if name != "sharpe"},
        "forgone_unseen": {name: forgone_unseen(tasks, name) for name in METRICS if name != "sharpe"},
        "at_the_cap": float((everything >= portfolio.SHARPE_CAP).mean()),
        "no_gain": float((everything == 0).mean()),
    }


def accepted(of: dict) -> dict[str, bool]:
    apart, lost = of["agreement"]["nmse - sharpe"], of["forgone"]["nmse"]
    changing = [name for name, entry in of["tasks"].items() if entry["changes_with_k"]]
    return {
        f"(a) best by SharpeRatio@{K} and by nMSE disjoint in at least 20 % of trials: {_shown(apart)}": (
            apart["low"] > 0.2
        ),
        f"(c) SharpeRatio@{K} forgone by the best by nMSE above 0: {_mean_shown(lost)}": lost["interval"][0]
        > 0,
        f"(d) in at least one task the best estimator changes with k: {', '.join(changing) or 'in none'}": bool(
            changing
        ),
    }


def reported(of: dict) -> list[str]:
    """What has no figure to be met."""
    apart = {name: of["agreement"][f"{name} - sharpe"] for name in METRICS if name != "sharpe"}
    agreeing = {name: each["trials"] - each["count"] for name, each in apart.items()}
    return [
        f"(b) best by SharpeRatio@{K} disjoint from that by nRegret@1 in {_shown(apart['regret'])}, by RankCorr in "
        f"{_shown(apart['rank_correlation'])}",
        f"(c) the same on logs that were not used for choosing: {_mean_shown(of['forgone_unseen']['nmse'])}",
        f"(e) SharpeRatio@{K} agrees with RankCorr in {agreeing['rank_correlation']} trials, with nMSE in "
        f"{agreeing['nmse']}, with nRegret@1 in {agreeing['regret']}",
    ]


def _shown(each: dict) -> str:
    return (
        f"{each['count']} of {each['trials']} ({each['share']:.2f} [{each['low']:.2f}, {each['high']:.2f}])"
    )


def _mean_shown(each: dict) -> str:
    low, high = each["interval"]
    return f"{each['mean']:.3f} [{low:.3f}, {high:.3f}]"


# -- what is shown -----------------------------------------------------------------------------------------


@styled
def curves(tasks: dict[str, dict]) -> Figure:
    """SharpeRatio@k, its numerator and the spread over k: a row a task, a line an estimator."""
    figure = Figure(figsize=(10.5, 2.1 * len(tasks) + 0.6), layout="constrained")
    grid = figure.subplots(len(tasks), 3, sharex=True)
    titles = ("SharpeRatio@k", "numerator: best@k − J(π_b), at least 0", "spread: std@k")
    for row, (name, entry) in zip(grid, tasks.items(), strict=True):
        for axes, key, title in zip(row, entry["curves"], titles, strict=True):
            _lines(axes, entry["curves"][key], entry["chance"][key])
            axes.set_ylim(bottom=0)
            if name == next(iter(tasks)):
                axes.set_title(title)
        row[0].set_ylabel(name)
    for axes in grid[-1]:
        axes.set_xlabel("k")
        axes.set_xticks(range(2, 11))
    figure.align_ylabels(grid)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(ESTIMATORS) + 1)
    return figure


def _lines(axes: Axes, of: dict[str, list], chance: list[float]) -> None:
    k = np.arange(1, len(chance) + 1)[1:]
    mean, low, high = (np.array(of[name])[:, 1:] for name in ("mean", "low", "high"))
    for place, name in enumerate(ESTIMATORS):
        # Beside one another, as portfolios often coincide.
        at = k + 0.09 * (place - (len(ESTIMATORS) - 1) / 2)
        style = {"color": COLOURS[place], "marker": MARKERS[place], "fillstyle": "none", "markersize": 4}
        axes.errorbar(at, mean[place], _reach(mean[place], low[place], high[place]), linewidth=1, **style)
        axes.plot([], [], label=name.upper(), **style)
    axes.plot(k, chance[1:], color=MUTED, linestyle="--", linewidth=1.1, label="random ranking")
    axes.grid(True)


def _reach(mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How far an interval reaches to either side; where all logs agree rounding may put its ends on one."""
    return np.maximum([mean - low, high - mean], 0.0)


@styled
def bars(tasks: dict[str, dict]) -> Figure:
    """The four metrics of every estimator: a column a task; a star where no mean is better."""
    figure = Figure(figsize=(2.0 * len(tasks) + 0.6, 8), layout="constrained")
    grid = figure.subplots(len(METRICS), len(tasks))
    for row, (key, (title, higher)) in zip(grid, METRICS.items(), strict=True):
        for axes, (name, entry) in zip(row, tasks.items(), strict=True):
            mean, low, high = (np.array(entry["metrics"][key][which]) for which in ("mean", "low", "high"))
            best = portfolio.best_estimators(mean, higher_is_better=higher)
            place = np.arange(len(ESTIMATORS))
            axes.bar(place, mean, color=COLOURS[: len(place)])
            axes.errorbar(place, mean, _reach(mean, low, high), fmt="none", color=INK, linewidth=1)
            axes.plot(place[best], high[best], "*", color=INK, markersize=7)
            axes.margins(y=0.12)
            if key in entry["chance"]:
                axes.axhline(entry["chance"][key], color=MUTED, linestyle="--", linewidth=1)
            axes.set_xticks(place, [of.upper() for of in ESTIMATORS], rotation=90, fontsize=7)
            axes.tick_params(axis="y", labelsize=7)
            if key == next(iter(METRICS)):
                axes.set_title(name)
        row[0].set_ylabel(f"{title}\n({'more' if higher else 'less'} is better)")
    figure.supxlabel(
        "means over logs with 95 % bootstrap intervals; star: the best mean; dashed: a random ranking",
        fontsize=9,
    )
    return figure


def page(document: dict) -> str:
    judged = document["logs"]
    lines = [
        "# R7: SharpeRatio@k",
        "",
        f"`{document['command']}` · {document['seeds']} logs a task · {document['seconds']:.0f} s · means over logs "
        "with 95 % bootstrap intervals",
        "",
        *verdicts(document["accepted"]),
        *(f"- {what}" for what in document["reported"]),
        "",
        document["reading"],
        "",
        "## Tasks",
        "",
        "Effective episodes: those of whole-episode weights, least, median and greatest over candidates and logs.",
        "",
        "| | steps | episodes | J(π_b) | J of the candidates | greatest standard error of J | effective episodes |",
        "|---|---:|---:|---:|---|---:|---|",
    ]
    for name, true in document["truth"].items():
        value = sorted(true["values"].values(), reverse=True)
        error = max(true["standard_errors"].values())
        effective = judged["tasks"][name]["effective_episodes"]
        lines.append(
            f"| {name} | {true['horizon']} | {true['episodes']} | {true['behaviour']:.2f} | "
            + ", ".join(f"{of:.2f}" for of in value)
            + f" | {f'{error:.3f}' if error else 'exact'} | "
            + ", ".join(f"{of:.3g}" for of in effective)
            + " |"
        )
    checked = {name: of["deviation"] for name, of in document["truth"].items() if "deviation" in of}
    lines += [
        "",
        "Greatest difference between an observation of the batched simulators and gymnasium's, step by step: "
        + ", ".join(f"{name} {of:.1g}" for name, of in checked.items())
        + ".",
        "",
        "![SharpeRatio@k over k](r7_sharpe_ratio_over_k.png)",
        "",
        "![Metrics of the estimators](r7_sharpe_ratio_metrics.png)",
    ]
    for title, of in (
        ("The logs that are judged", judged),
        (f"Logs of {SMALL} episodes (not judged)", document["small_logs"]),
    ):
        lines += ["", f"## {title}", "", *_tables(of)]
    return "\n".join(lines)


def _tables(of: dict) -> list[str]:
    lines = []
    for key, (title, higher) in METRICS.items():
        last = "π_b for all" if key == "nmse" else "random"
        lines += [
            f"### {title}, {'more' if higher else 'less'} is better",
            "",
            "| | " + " | ".join(name.upper() for name in ESTIMATORS) + f" | {last} |",
            "|---|" + "---:|" * (len(ESTIMATORS) + 1),
        ]
        for name, entry in of["tasks"].items():
            mean, low, high = (entry["metrics"][key][which] for which in ("mean", "low", "high"))
            best = portfolio.best_estimators(np.array(mean), higher_is_better=higher)
            cells = [
                f"{'**' if top else ''}{m:.3g}{'**' if top else ''} [{lo:.3g}, {hi:.3g}]"
                for m, lo, hi, top in zip(mean, low, high, best, strict=True)
            ]
            other = entry["nmse_of_behaviour"] if key == "nmse" else entry["chance"][key]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {other:.3g} |")
        lines.append("")
    together = of["crowned_together"]
    lines += [
        "### Which metrics crown no estimator in common",
        "",
        "| | disjoint best sets, ties shared | share | task by task | first of ties alone |",
        "|---|---:|---:|---|---:|",
    ]
    for pair, each in of["agreement"].items():
        one, other = (METRICS[name][0] for name in pair.split(" - "))
        lines.append(
            f"| {one} – {other} | {each['count']} of {each['trials']} | {each['share']:.2f} [{each['low']:.2f}, "
            f"{each['high']:.2f}] | {', '.join(map(str, each['of_tasks']))} | {each['count_without_shared_ties']} |"
        )
    lines += [
        "",
        "Estimators that share the best score of a trial, on average: "
        + ", ".join(f"{METRICS[name][0]} {count:.2f}" for name, count in together.items())
        + f". SharpeRatio@{K} is at its cap in {of['at_the_cap']:.1%} and 0 in {of['no_gain']:.1%} of portfolios.",
        "",
        "How often an estimator is among the best (ties shared):",
        "",
        "| | " + " | ".join(name.upper() for name in ESTIMATORS) + " |",
        "|---|" + "---:|" * len(ESTIMATORS),
    ]
    for name, shares in of["crowned"].items():
        lines.append(
            f"| {METRICS[name][0]} | " + " | ".join(f"{each:.2f}" for each in shares.values()) + " |"
        )
    lines += [
        "",
        f"### SharpeRatio@{K} forgone by choosing the estimator by another metric",
        "",
        "| chosen by | on the same log (never below 0) | share of logs | on a log not used for choosing |",
        "|---|---:|---:|---:|",
    ]
    for name, each in of["forgone"].items():
        unseen = of["forgone_unseen"][name]
        lines.append(
            f"| {METRICS[name][0]} | {_mean_shown(each)} | {each['share_above_zero']:.2f} | {_mean_shown(unseen)} |"
        )
    lines += ["", "The best estimator changes with k, intervals apart at both:", ""]
    for name, entry in of["tasks"].items():
        lines += [f"- {name}: {each}" for each in _changes(entry["changes_with_k"])]
    return lines


def _changes(found: list[dict]) -> list[str]:
    """One sentence for every two estimators."""
    sizes: dict[tuple[str, ...], tuple[set, set]] = {}
    for each in found:
        at = sizes.setdefault(tuple(each["best"]), (set(), set()))
        for some, k in zip(at, each["k"], strict=True):
            some.add(k)
    return [
        " and later ".join(
            f"{name.upper()} at k = {', '.join(map(str, sorted(some)))}"
            for name, some in zip(pair, at, strict=True)
        )
        for pair, at in sizes.items()
    ]


READING = """\
(a) is missed: the share of 27 % is above 20 %, its interval is not. The interval moreover takes the 70 trials for
independent, which they are not: ten logs of a task share candidates and true values, and 10 of the 19 disagreements are
MountainCar's, none those of three other tasks. Logs of 200 episodes disagree more often and would meet the figure, but
the size was chosen before. The share depends on how hard the choice is: where candidates lie far apart and logs are
large several estimators choose the same four (2.9 share the best SharpeRatio@4 on average), and there is nothing to
disagree about. With the first of ties alone it would be 63 of 70; published counts do not say how they treat ties.

What the disagreement in MountainCar says is not in favour of SharpeRatio@4. The best candidate is nearly
deterministic, hardly an episode of the log looks like one of its own (effective episodes about 1), and WPDIS never has
it among its first four. These are of middling and nearly equal value: they gain 9.6 over π_b where those of all others
gain 14.3 to 14.8, with half the spread (1.9 against 3.5 to 3.9), and the ratio crowns WPDIS. nMSE, nRegret@1 and
RankCorr do not. Whoever wants the best policy found is better served by them here; hence numerator and spread are shown
beside the ratio.

(c) on the same log is above 0 by construction as soon as there is any disagreement. The comparison on logs that were
not used for choosing can come out below 0, and does not: but it rests on two tasks, MountainCar as above (1.67 of
SharpeRatio@4) and Acrobot (2.62), where WPDIS and WMDR have about the same nMSE and WPDIS the worse portfolio. In the
five others it is at most 0.13. Choosing by RankCorr forgoes less, and nothing with logs of 200 episodes. SharpeRatio@4
also has another scale in each task (1.7 to 10), so that a mean over tasks is mostly Acrobot's.

(d) is met in MountainCar with the widest gaps, for the reason above: WPDIS leads up to k = 4, while its portfolio lacks
both the best and the worst, and is last from k = 6 to 9. Where all logs lead an estimator to the same portfolio, as
often in Garnet 16 and the gridworld, its interval has no width. The intervals are those of one comparison each, with
ten logs, and many comparisons are made.

(e) points as published: SharpeRatio@4 agrees more often with RankCorr than with nMSE. nMSE sees a common shift of all
estimates that no choice suffers from: in MountainCar DM is worse by nMSE than whoever predicts J(π_b) for all (0.018
against 0.007), and ranks all ten candidates right. By SharpeRatio@4 and by nRegret@1 every estimator is better than
chance in every task."""


# -- the run -----------------------------------------------------------------------------------------------


def label(task: str, size: str, seed: int) -> str:
    return f"{task}, {size} log, seed {seed}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    script = Path(__file__)
    task_of = cache(lambda name: TASKS[name]())

    def measure(what: str) -> dict:
        began = time.monotonic()
        name, *rest = what.split(", ")
        task = task_of(name)
        if rest == ["truth"]:
            found = {**truth(task), "horizon": task.horizon, "episodes": task.episodes}
        else:
            size, seed = rest[0].removesuffix(" log"), int(rest[1].removeprefix("seed "))
            found = trial(task, seed, SMALL if size == "small" else task.episodes)
        return {**found, "seconds": time.monotonic() - began}

    labels = [f"{name}, truth" for name in TASKS]
    labels += [label(name, size, s) for size in ("full", "small") for s in range(seeds) for name in TASKS]
    found = measured(partial(script), labels, measure)
    truths = {name: found[f"{name}, truth"] for name in TASKS}
    logs, small = (summary(found, truths, seeds, size) for size in ("full", "small"))
    for entry in small["tasks"].values():
        del entry["curves"]  # Not drawn.
    document = {
        "seeds": seeds,
        "seconds": sum(each["seconds"] for each in found.values()),
        "truth": truths,
        "accepted": accepted(logs),
        "reported": reported(logs),
        "logs": logs,
        "small_logs": small,
        "reading": READING,
    }
    for name, figure in (("over_k", curves(logs["tasks"])), ("metrics", bars(logs["tasks"]))):
        save(figure, script.with_name(f"{script.stem}_{name}.png"))
    publish(script, f" --seeds {seeds}", document, page)


if __name__ == "__main__":
    main()
