"""R4: errors of products of ratios grow exponentially in the horizon, those of state ratios do not.

    python results/sharpe/r4_horizon_curse.py

writes r4_horizon_curse.json, .md and .png beside itself, in one to two minutes on one core; it goes on where it was cut
off. The world is a chain of two lanes, up (+1 a step) and down (−1); the log goes up with probability 0.5, the target
with 0.7, so that E[w²] = 1.16 a step. 200 logs of 1 000 episodes of 256 steps; each T = 4, 8, …, 256 takes their
first T steps, γ = 1. Ratios (time-indexed) and value tables are cross-fitted in 5 folds.

Accepted (``sharpe.md`` 7, R4): PDIS grows exponentially and MIS and DRL polynomially, that is, from T to 2T the RMSE of
PDIS rises by more and more until it can rise no further, in closed form without end, and that of MIS and DRL never by
more than 2²; at T = 64 the RMSE of PDIS is at least 10 times those of MIS and of DRL (lower end of the paired 95 %
interval). Expect that the measured RMSE of PDIS stays far below the one in closed form at long horizons, of
the size of J: 200 logs of 1 000 episodes hardly hold one of the weights that its variance consists of.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from worlds import Log, World, chain, draw, variances

from peira.evaluation.off_policy import marginal, sequential
from peira.evaluation.off_policy.weights import cumulative_log_weights, effective_sample_size
from peira.runs.study import measured, partial, publish, rmse, rmse_ratio, root_mean_square, verdicts

HORIZONS = (4, 8, 16, 32, 64, 128, 256)
EPISODES, JUDGED_AT = 1_000, 64
MARGINAL = ("mis", "drl")


def estimates(world: World, log: Log) -> dict[str, float]:
    """Every estimator on one log, and the effective sample size of its last step."""
    block, gamma = log.block, world.gamma
    q, v = log.values(world)
    ratio = log.state_ratio(world)
    terms = {
        "tis": sequential.tis(block, gamma),
        "pdis": sequential.pdis(block, gamma),
        "wpdis": sequential.wpdis(block, gamma),
        "dr": sequential.dr(block, q, v, gamma),
        "mis": marginal.sm_is(block, ratio, gamma),
        "drl": marginal.drl(block, marginal.pair_ratio(block, ratio), q, v, gamma),
    }
    size = effective_sample_size(cumulative_log_weights(block))[-1]
    return {name: of.value() for name, of in terms.items()} | {"effective_sample_size": float(size)}


def of_seed(seed: int, horizons: tuple[int, ...] = HORIZONS, episodes: int = EPISODES) -> dict[str, dict]:
    """Estimate minus truth of every estimator at every horizon."""
    log = draw(chain(max(horizons)), episodes, np.random.default_rng(seed))
    found = {}
    for horizon in horizons:
        world = chain(horizon)
        of = estimates(world, log.cut(horizon))
        truth = world.value()
        found[str(horizon)] = {
            name: value if name == "effective_sample_size" else value - truth for name, value in of.items()
        }
    return found


def orders(errors: np.ndarray) -> list[float]:
    """log₂ RMSE(2T)/RMSE(T) of [seeds, horizons] errors: the power of T by which the error grows there."""
    return np.diff(np.log2(root_mean_square(errors, axis=0))).tolist()


def summary(seeds: list[dict[str, dict]]) -> dict:
    horizons = [int(horizon) for horizon in seeds[0]]
    names = [name for name in seeds[0][str(horizons[0])] if name != "effective_sample_size"]
    errors = {name: np.array([[of[str(t)][name] for t in horizons] for of in seeds]) for name in names}
    exact = {t: variances(chain(t)) for t in horizons}
    estimators = {}
    for name, of in errors.items():
        in_closed_form = [float(np.sqrt(exact[t][name] / EPISODES)) for t in horizons]
        estimators[name] = {
            "at": {str(t): rmse(of[:, k]) for k, t in enumerate(horizons)},
            "closed_form": dict(zip(map(str, horizons), in_closed_form, strict=True)),
            "order": orders(of),
            "closed_form_order": np.diff(np.log2(in_closed_form)).tolist(),
        }
    ratios = {
        name: {str(t): rmse_ratio(errors["pdis"][:, k], errors[name][:, k]) for k, t in enumerate(horizons)}
        for name in MARGINAL
    }
    return {
        "values": {str(t): chain(t).value() for t in horizons},
        "effective_sample_size": {
            str(t): float(np.mean([of[str(t)]["effective_sample_size"] for of in seeds])) for t in horizons
        },
        "estimators": estimators,
        "pdis_to": ratios,
    }


def accepted(document: dict) -> dict[str, bool]:
    of = document["estimators"]
    up_to_judged = HORIZONS.index(JUDGED_AT)
    rising = np.diff(of["pdis"]["order"][:up_to_judged])
    found = {
        f"measured order of PDIS rises with every doubling up to T = {JUDGED_AT}": bool((rising > 0).all()),
        "order of PDIS in closed form rises with every doubling up to T = 256": bool(
            (np.diff(of["pdis"]["closed_form_order"]) > 0).all()
        ),
    }
    for name in MARGINAL:
        found[f"measured order of {name.upper()} never above 2"] = max(of[name]["order"]) <= 2
        low = document["pdis_to"][name][str(JUDGED_AT)]["interval"][0]
        found[f"RMSE of PDIS at T = {JUDGED_AT} at least 10 times that of {name.upper()}"] = low >= 10
    return found


def drawing(document: dict) -> Figure:
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, of) in enumerate(document["estimators"].items()):
        horizon = [int(t) for t in of["at"]]
        low, high = np.array([at["interval"] for at in of["at"].values()]).T
        colour = f"C{place}"
        axes.plot(horizon, [at["rmse"] for at in of["at"].values()], "o-", color=colour, label=name.upper())
        axes.fill_between(horizon, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(horizon, [of["closed_form"].get(str(t), np.nan) for t in horizon], ":", color=colour)
    axes.plot(horizon, list(document["values"].values()), "k--", linewidth=1, label="J(π)")
    axes.set(xscale="log", yscale="log", ylim=(0.03, 300), xlabel="horizon T", ylabel="RMSE, 1 000 episodes")
    axes.set_xticks(horizon, [str(t) for t in horizon])
    axes.minorticks_off()
    axes.set_title("Errors over the horizon (dotted: with many episodes, in closed form)", fontsize=10)
    axes.legend(fontsize=9)
    return figure


def page(document: dict) -> str:
    horizons = list(document["values"])
    lines = [
        "# R4: the curse of the horizon",
        "",
        f"`{document['command']}` · {document['seeds']} logs of {EPISODES} episodes · {document['seconds']:.0f} s · "
        "RMSE with 95 % bootstrap intervals; beneath it the RMSE in closed form, √(Var/n)",
        "",
        "![RMSE over the horizon](r4_horizon_curse.png)",
        "",
        "| | " + " | ".join(f"T = {t}" for t in horizons) + " |",
        "|---|" + "---:|" * len(horizons),
        "| J(π) | " + " | ".join(f"{value:.2f}" for value in document["values"].values()) + " |",
        "| effective episodes at the last step | "
        + " | ".join(f"{size:.1f}" for size in document["effective_sample_size"].values())
        + " |",
    ]
    for name, of in document["estimators"].items():
        cells = [
            f"{at['rmse']:.3g} [{at['interval'][0]:.3g}, {at['interval'][1]:.3g}]" for at in of["at"].values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append(
            f"| {name}, closed form | "
            + " | ".join(f"{value:.3g}" for value in of["closed_form"].values())
            + " |"
        )
    for name, of in document["pdis_to"].items():
        cells = [
            f"{at['ratio']:.3g} [{at['interval'][0]:.3g}, {at['interval'][1]:.3g}]" for at in of.values()
        ]
        lines.append(f"| pdis/{name} | " + " | ".join(cells) + " |")
    steps = [f"{a}→{b}" for a, b in pairwise(horizons)]
    lines += [
        "",
        "Power of T by which the error grows, log₂ RMSE(2T)/RMSE(T):",
        "",
        "| | " + " | ".join(steps) + " |",
        "|---|" + "---:|" * len(steps),
    ]
    for name, of in document["estimators"].items():
        for label, key in ((name, "order"), (f"{name}, closed form", "closed_form_order")):
            lines.append(f"| {label} | " + " | ".join(f"{order:.2f}" for order in of[key]) + " |")
    return "\n".join([*lines, "", *verdicts(document["accepted"]), "", document["reading"]])


READING = """\
Closed form and measurement agree as long as some tens of episodes carry the weight; the effective sample size at the
last step says when they no longer do. At T = 64 one log of the 200 (its error is 426) makes the RMSE of PDIS, hence its
wide interval; without that log it would be 8.5, still 28 times that of MIS. From T = 128 on no log holds an episode of
the weight that its variance consists of: the measured errors of PDIS and DR are those of estimators that have seen next
to nothing, PDIS returning about 0 (its error is J) or an outlier. DR has the same curse with a smaller constant. WPDIS
hides it, as its errors are bounded by the range of rewards, and is still 7 times as far off as MIS at T = 64."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    seeds = parser.parse_args().seeds
    began = time.monotonic()
    script = Path(__file__)

    def measure(label: str) -> dict:
        return of_seed(int(label.split()[-1]))

    found = measured(partial(script), [f"seed {seed}" for seed in range(seeds)], measure)
    document = {"seeds": seeds, "seconds": time.monotonic() - began, **summary(list(found.values()))}
    document |= {"accepted": accepted(document), "reading": READING}
    drawing(document).savefig(script.with_suffix(".png"), dpi=120)
    publish(script, f" --seeds {seeds}", document, page)


if __name__ == "__main__":
    main()
