"""R5: does MAGIC follow the better of model and weights?

    python results/sharpe/r5_magic.py

writes r5_magic.json and r5_magic.md beside itself, in about half a minute on one core; it goes on where it was cut off.
ModelWin and ModelFail of Thomas and Brunskill 2016: in the first a table of the log is the right model and weights
are hopeless (E[w²] = 2.07 in each of ten choices), in the second states cannot be told apart, no model is right, and
weights of two steps are all it takes. 100 logs of 2 000 episodes a world, of which growing parts are evaluated.
Tables are cross-fitted in 5 folds and by step left, as `peira evaluate` fits them. MAGIC blends all members −1 … T −
1. Beside it stands a blend that differs in one thing: the covariances of its members are those of their influences
(delta method), where MAGIC has those of the episodes' contributions.

Accepted (``sharpe.md`` 7, R5): at n = 1 000 the RMSE of MAGIC is at most 1.5 times the lesser of those of DM and WDR in
both worlds, while DM and WDR each lose by at least 3 times in one of them. The same is said of every other n.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from accuracy import measured, partial, publish, rmse, rmse_ratio, verdicts
from worlds import Log, World, draw, model_fail, model_win

from peira.evaluation.off_policy import intervals, sequential
from peira.evaluation.off_policy.magic import REPLICATES, magic, simplex_minimum
from peira.evaluation.off_policy.terms import Terms

WORLDS = {"ModelWin": model_win, "ModelFail": model_fail}
SIZES = (50, 100, 200, 500, 1_000, 2_000)
JUDGED_AT = 1_000


def error_by_contributions(wdr: Terms) -> float:
    """The standard error that MAGIC's Ω gives to WDR, where `wdr.standard_error()` is that of its influence."""
    contribution = wdr.plain / len(wdr.plain) + (wdr.numerator / wdr.denominator.sum(0)).sum(1)
    return float(np.sqrt(len(contribution)) * contribution.std(ddof=1))


def influence_blend(wdr: Terms, rng: np.random.Generator) -> float:
    """MAGIC's blend with Ω = Σ_i φ_i φ_iᵀ/n², φ_i the influences of the members, which know of the normalisers."""
    episodes = len(wdr.plain)
    normaliser = wdr.denominator.mean(0)
    theta = wdr.numerator.mean(0) / normaliser
    member = wdr.plain.mean() + np.append(0.0, theta.cumsum())
    influence = (wdr.numerator - theta * wdr.denominator) / normaliser
    of_members = np.column_stack([wdr.plain - wdr.plain.mean(), influence]).cumsum(axis=1)
    limits = intervals.bootstrap(wdr, rng=rng, method="percentile", confidence=0.9, replicates=REPLICATES)
    low, high = min(limits.low, member[-1]), max(limits.high, member[-1])
    bias = np.maximum(low - member, 0.0) + np.maximum(member - high, 0.0)
    covariance = of_members.T @ of_members / episodes**2
    return float(simplex_minimum(covariance + np.outer(bias, bias)) @ member)


def estimates(world: World, log: Log, rng: np.random.Generator) -> dict[str, float]:
    """Every estimator on one log, the shares of DM and WDR in MAGIC, and what the error of WDR is taken for."""
    q, v = log.values(world)
    wdr = sequential.wdr(log.block, q, v, world.gamma)
    blend = magic(wdr, rng=rng, last_step=np.arange(-1, world.horizon))
    return {
        "pdis": sequential.pdis(log.block, world.gamma).value(),
        "wpdis": sequential.wpdis(log.block, world.gamma).value(),
        "dm": sequential.dm(v).value(),
        "dr": sequential.dr(log.block, q, v, world.gamma).value(),
        "wdr": wdr.value(),
        "magic": blend.terms.value(),
        "influence blend": influence_blend(wdr, rng),
        "share of dm in magic": float(blend.share[0]),
        "share of wdr in magic": float(blend.share[-1]),
        "error of wdr by contributions": error_by_contributions(wdr),
        "error of wdr by influence": wdr.standard_error(),
    }


def of_seed(world: World, seed: int, sizes: tuple[int, ...] = SIZES) -> dict[str, list[float]]:
    """Estimates minus truth, and the rest, at every size, on growing parts of one log."""
    rng, truth = np.random.default_rng(seed), world.value()
    log = draw(world, max(sizes), rng)
    found = [estimates(world, log.head(n), rng) for n in sizes]
    return {name: [of[name] - (0.0 if " of " in name else truth) for of in found] for name in found[0]}


def summary(world: World, seeds: list[dict[str, list[float]]], sizes: tuple[int, ...]) -> dict:
    found = {name: np.array([of[name] for of in seeds]) for name in seeds[0]}
    means = {name: found.pop(name).mean(0) for name in list(found) if " of " in name}
    of_sizes = {}
    for k, n in enumerate(sizes):
        errors = {name: of[:, k] for name, of in found.items()}
        at = {name: rmse(of) for name, of in errors.items()}
        better, worse = sorted(("dm", "wdr"), key=lambda name: at[name]["rmse"])
        of_sizes[str(n)] = {
            "rmse": at,
            "better": better,
            "loss_of_the_other": rmse_ratio(errors[worse], errors[better]),
            "magic_to_better": rmse_ratio(errors["magic"], errors[better]),
            "influence_blend_to_better": rmse_ratio(errors["influence blend"], errors[better]),
            "mean": {name: float(of[k]) for name, of in means.items()},
        }
    return {"value": world.value(), "value_of_behaviour": world.value(world.behaviour), "sizes": of_sizes}


def accepted(worlds: dict, n: int = JUDGED_AT) -> dict[str, bool]:
    at = {name: entry["sizes"][str(n)] for name, entry in worlds.items()}
    found = {
        f"{name}: RMSE of MAGIC at n = {n} at most 1.5 times that of {of['better'].upper()}": (
            of["magic_to_better"]["ratio"] <= 1.5
        )
        for name, of in at.items()
    }
    for loser, winner in (("DM", "wdr"), ("WDR", "dm")):
        lost = [of["loss_of_the_other"]["ratio"] for of in at.values() if of["better"] == winner]
        found[f"{loser} loses by at least 3 times in one of the worlds at n = {n}"] = (
            max(lost, default=0.0) >= 3
        )
    return found


def page(document: dict) -> str:
    lines = [
        "# R5: MAGIC",
        "",
        f"`{document['command']}` · {document['seeds']} logs a world · {document['seconds']:.0f} s · RMSE with 95 % "
        "bootstrap intervals; ratios are paired over logs",
    ]
    for name, entry in document["worlds"].items():
        sizes = entry["sizes"]
        lines += [
            "",
            f"## {name}",
            "",
            f"J(π) = {entry['value']:.4f}, J(π_b) = {entry['value_of_behaviour']:.4f}",
            "",
            "| | " + " | ".join(f"n = {n}" for n in sizes) + " |",
            "|---|" + "---:|" * len(sizes),
        ]
        for estimator in next(iter(sizes.values()))["rmse"]:
            cells = [of["rmse"][estimator] for of in sizes.values()]
            shown = [f"{c['rmse']:.3g} [{c['interval'][0]:.3g}, {c['interval'][1]:.3g}]" for c in cells]
            lines.append(f"| {estimator} | " + " | ".join(shown) + " |")
        for label, key in (
            ("magic/better of dm and wdr", "magic_to_better"),
            ("influence blend/better of them", "influence_blend_to_better"),
            ("worse/better of them", "loss_of_the_other"),
        ):
            cells = [of[key] for of in sizes.values()]
            shown = [f"{c['ratio']:.2f} [{c['interval'][0]:.2f}, {c['interval'][1]:.2f}]" for c in cells]
            lines.append(f"| {label} | " + " | ".join(shown) + " |")
        for name in next(iter(sizes.values()))["mean"]:
            shown = [f"{of['mean'][name]:.3g}" for of in sizes.values()]
            lines.append(f"| mean {name} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *verdicts(document["accepted"]), "", document["reading"]])


READING = """\
In ModelFail MAGIC keeps to the model too long. Its Ω is the covariance of the episodes' contributions
ŵ_t (r − Q̂ + γV̂), as in the paper. Where these vary around the model's bias and not around 0, that is not the variance
of a self-normalised sum: at n = 1 000 it takes WDR's error for 0.29 where it is 0.06, and 8 % of the blend goes to
members with a bias of more than 1. With the covariances of the influences (delta method) in the place of Ω, and nothing
else changed, the figure is met in both worlds from n = 500 on. With fewer episodes it is met by neither: a handful of
them carries all the weight, and the log does not show which of model and weights is wrong."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100)
    seeds = parser.parse_args().seeds
    began = time.monotonic()
    script = Path(__file__)

    def measure(label: str) -> dict:
        name, seed = label.split(" seed ")
        return of_seed(WORLDS[name](), int(seed))

    labels = [f"{name} seed {seed}" for name in WORLDS for seed in range(seeds)]
    found = measured(partial(script), labels, measure)
    worlds = {
        name: summary(make(), [found[f"{name} seed {seed}"] for seed in range(seeds)], SIZES)
        for name, make in WORLDS.items()
    }
    document = {
        "seeds": seeds,
        "seconds": time.monotonic() - began,
        "worlds": worlds,
        "accepted": accepted(worlds),
        "reading": READING,
    }
    publish(script, f" --seeds {seeds}", document, page)


if __name__ == "__main__":
    main()
