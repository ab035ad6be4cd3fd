"""R10 (`sharpe.md` 7): the page of speed, memory and other libraries' numbers, from what the benchmark measured.

python benchmarks/evaluation.py --out results/speed/evaluation.json        # measures; see there for the peers
python results/sharpe/r10_speed.py                # writes r10_speed.md and .json beside this file
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = HERE.parent / "speed" / "evaluation.json"
WITHOUT_LEARNING = ("tis", "wis", "pdis", "wpdis")
COMPARED = ("our sizes", "their sizes", "defaults")
SECTIONS = ("r10", "memory", "time", "numbers", "causal")


def page(found: Mapping[str, Any]) -> str:
    """Markdown of everything that was measured."""
    lines = ["# R10: speed and memory of off-policy evaluation, and other libraries beside it", ""]
    for name, of_section in (("r10", _r10_lines), ("memory", _memory_lines)):
        if name in found:
            lines += of_section(found[name])
    if "time" in found:
        lines += [*_time_lines(found["time"]), *_values_lines(found["time"])]
    if "numbers" in found:
        numbers = found["numbers"]
        lines += [*_weights_lines(numbers), *_exact_lines(numbers), *_wrong_lines(numbers)]
    if "causal" in found:
        lines += _causalrl_lines(found["causal"])
    kept = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    of_machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    commands = [f"- {name}: `{found[name]['command']}`" for name in SECTIONS if name in found]
    return "\n".join(
        [*lines, "## Commands", "", *commands, "", f"Versions: {kept}", "", f"Machine: {of_machine}", ""]
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = "|---|" + "---:|" * (len(header) - 1)
    return [f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _said(met: bool) -> str:
    return "met" if met else "**not met**"


def _listed(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in parts.items())


def _r10_lines(of: Mapping[str, Any]) -> list[str]:
    arms = {
        "command": "`peira evaluate`, Parquet files to a written report",
        "files": "`peira.evaluate` from the files",
        "memory": "`peira.evaluate` from arrays in memory",
    }
    sizes, settings = of["sizes"], of["settings"]
    command = of["seconds"]["command"]
    rows = [
        (
            label,
            *(
                f"{of['seconds'][arm][part]:.1f}"
                for part in ("wall", "wall_min", "wall_max", "processor", "load")
            ),
        )
        for arm, label in arms.items()
    ]
    return [
        f"## {sizes['episodes']:,} × {sizes['steps']} transitions, {sizes['candidates']} candidates",
        "",
        f"{', '.join(settings['estimators'])} and the distribution of returns for every candidate, "
        f"{settings['resamples']:,} bootstrap replicates (BCa), medians of {settings['rounds']} rounds in turn. The "
        "two cores were shared with other work: the load is the number of processes that ran or waited, and the "
        "seconds of processor are an upper limit for an idle machine.",
        "",
        *_table(("", "wall s", "least", "greatest", "processor s", "load"), rows),
        f"- from files to report under {of['target_seconds']} s: {_said(of['met'])} (median {command['wall']:.1f} s, "
        f"greatest {command['wall_max']:.1f} s)",
        f"- greatest resident memory of the command: {command['peak_gib']:.2f} GiB",
        "",
        "Where the time goes, by functions of the library with what other libraries do for them (one profiled run from "
        "the files):",
        "",
        *_table(
            ("function", "s", "share"),
            ((row["function"], f"{row['seconds']:.2f}", f"{row['share']:.0%}") for row in of["profile"]),
        ),
    ]


def _memory_lines(of: Mapping[str, Any]) -> list[str]:
    sizes, used = of["sizes"], of["seconds"]
    return [
        f"## {sizes['steps'] / 1e6:.1f} million steps",
        "",
        f"`peira evaluate` on {sizes['episodes']:,} episodes of 20 to {sizes['longest']} steps, {sizes['candidates']} "
        f"candidates, {sizes['files_gib']:.1f} GiB of Parquet; {', '.join(of['estimators'])}, {of['interval']} "
        "intervals (what `auto` takes at this size).",
        "",
        f"- greatest resident memory {used['peak_gib']:.2f} GiB, {of['bytes_a_step']:.0f} bytes a step; under "
        f"{of['target_gib']} GiB: {_said(of['met'])}",
        f"- {used['wall']:.0f} s of wall, {used['processor']:.0f} s of processor, load {used['load']:.1f}; "
        f"{of['estimating_seconds']:.0f} s of the wall are for estimates, the rest reads and writes",
        "",
    ]


def _time_lines(of: Mapping[str, Any]) -> list[str]:
    alone, two = of["networks alone"], of["scope_rl on two threads, defaults"]
    ours, theirs = alone["peira_ten_candidates"], alone["d3rlpy_fqe_one_candidate"]
    rows, notes = [], []
    for label in COMPARED:
        row = of[label]
        mine, peer = row["peira"], row["scope_rl"]
        ratios = (
            "ratio_one_thread_each",
            "ratio_each_at_its_best",
            "ratio_at_its_best_without_unused_ratios",
        )
        rows.append(
            (
                label,
                *(f"{mine[threads]['wall']:.1f} ({mine[threads]['processor']:.1f})" for threads in mine),
                f"{peer['seconds_measured']['total']:.1f} ({peer['processor_measured']:.1f})",
                f"{peer['seconds_for_ten']:.0f}",
                *(f"{row[ratio]:.1f}×" for ratio in ratios),
            )
        )
        notes += [
            f"- {label}, at least {row['target']}×: one thread each {row[ratios[0]]:.1f}×, "
            f"{_said(row['met_one_thread_each'])}; each at its best on two cores {row[ratios[1]]:.1f}×, "
            f"{_said(row['met_each_at_its_best'])}",
            f"  - Peira, ten candidates, one thread: {_listed(mine['one_thread']['parts'])} s",
            f"  - SCOPE-RL, one candidate: {_listed(peer['seconds_measured'])} s",
        ]
    return [
        "## Beside SCOPE-RL 0.2.1: time",
        "",
        "10 candidates, 2 000 episodes of 100 steps, 8 numbers an observation, 4 actions, γ = 0.95: fitted Q "
        "evaluation, marginal ratios, eleven estimators with intervals. SCOPE-RL was run on **one** candidate and its "
        "time multiplied by ten (`extrapolated: true` in the JSON): it goes through candidates one by one. On two "
        f"threads it is slower than on one ({two['seconds']['total']:.1f} s against "
        f"{of['defaults']['scope_rl']['seconds_measured']['total']:.1f} s at its defaults), so that one is its best. "
        "Its networks for the ratios make 10 000 updates at least, whatever is asked for, and it fits ratios of states "
        "besides those of states and actions, though no estimator here reads them (last column: without). Our ratios "
        "are solved in closed form, with 100 Gaussian features. The candidates' probabilities are computed in the time "
        "of both, theirs without the loops of its own softmax policies.",
        "",
        *_table(
            (
                "wall s (processor s)",
                "Peira, 10 candidates, one thread",
                "two threads",
                "SCOPE-RL, 1 candidate",
                "10, extrapolated",
                "one thread each",
                "each at its best",
                "without unused ratios",
            ),
            rows,
        ),
        "*Our sizes*: Q networks of 64 × 64, batches of 256, Adam(W) at 1e-3, 10 000 updates, two folds, 2 000 "
        "percentile replicates on both sides; SCOPE-RL's ratio networks 1 × 64. *Their sizes*: Q networks of 1 × 100, "
        "batches of 100, Adam(W) at 1e-4, 10 000 updates, no folds, 100 percentile replicates on both sides. "
        "*Defaults*: ours 64 × 64, batches of 256, 5 000 updates, two folds, 2 000 BCa replicates; theirs as before: "
        "ours does more work for its time.",
        "",
        *notes,
        "- fitting alone at their sizes, one thread: "
        f"fitted Q evaluation of ten candidates {ours['fqe']['wall']:.1f} s, d3rlpy's of one "
        f"{theirs['seconds']:.1f} s: for ten, extrapolated, {alone['ratio_to_d3rlpy_for_ten']:.0f}× "
        f"({alone['ratio_of_processor_seconds']:.0f}× of processor seconds); DICE ratios on those networks' features, "
        f"ten candidates, {ours['ratios']['wall']:.1f} s",
        "",
    ]


def _values_lines(of: Mapping[str, Any]) -> list[str]:
    rows = []
    for label in COMPARED:
        # SCOPE-RL was run on one.
        (values,) = of[label]["values"].values()
        truth = values["truth"]
        for estimator in (name for name in values["peira"] if name not in WITHOUT_LEARNING):
            both = [values[who][estimator] for who in ("peira", "scope_rl")]
            row = [*(f"{value:.4f}" for value in both), *(f"{value - truth:+.4f}" for value in both)]
            rows.append((f"{estimator}, {label}", *row))
    return [
        f"What was learned, for the candidate that SCOPE-RL was run on; true value {truth:.4f} by dynamic programming:",
        "",
        *_table(("estimator", "Peira", "SCOPE-RL", "our error", "its error"), rows),
    ]


def _weights_lines(of: Mapping[str, Any]) -> list[str]:
    greatest = of["ten candidates without learning"]["greatest_relative_difference"]
    return [
        "## Beside SCOPE-RL 0.2.1: the same logs, the same estimators",
        "",
        "Where it agrees. Ten candidates on the log above, greatest relative difference from ours. As released, "
        "SCOPE-RL takes the reward of each episode's last step for 0 (at γ = 0.95 the last of 100 rewards weighs "
        "little); with `disable_reward_after_done=False` what is left is the 1e-10 that it adds to normalisers:",
        "",
        *_table(
            ("", *WITHOUT_LEARNING),
            ((label, *(f"{row[name]:.1e}" for name in WITHOUT_LEARNING)) for label, row in greatest.items()),
        ),
    ]


def _exact_lines(of: Mapping[str, Any]) -> list[str]:
    case = of["every episode as often as it is likely"]
    why = {
        "mdr": "next values of the last two steps exchanged",
        "wmdr": "the same",
        "mis of states": "the ratio of the action is left out",
        "drl": "γ is left out",
    }
    rows = [
        (
            name,
            f"{row['peira']:.6f}",
            f"{row['as released']:.6f}",
            f"{row['with the last reward']:.6f}",
            why.get(name, "agrees"),
        )
        for name, row in case["estimates"].items()
    ]
    return [
        "Where it does not. Two states, three steps, γ = 0.9, a log that holds every episode exactly as often as it "
        "is likely (1 000 000 episodes), exact values and ratios given: every estimate should be "
        f"{case['truth']:.6f}, the value by {case['how']}.",
        "",
        *_table(("estimator", "Peira", "SCOPE-RL", "the last reward kept", "what is left"), rows),
    ]


def _wrong_lines(of: Mapping[str, Any]) -> list[str]:
    kernel = of["vectors as actions"]
    return [
        "Fitted Q evaluation (`dm`) of a greedy policy and of the same policy with nine actions in ten left to chance: "
        "d3rlpy's, which SCOPE-RL calls, evaluates the greedy policy in both cases.",
        "",
        *_table(
            ("candidate", "truth", "Peira", "SCOPE-RL"),
            (
                (name, *(f"{row[part]:.3f}" for part in ("truth", "peira", "scope_rl")))
                for name, row in of["greedy or not"]["estimates"].items()
            ),
        ),
        f"A deterministic candidate among vectors of numbers, one step, {kernel['rows']:,} decisions, Gaussian kernel "
        f"of bandwidth {kernel['bandwidth']}, PDIS; the kernel's expectation in closed form. SCOPE-RL multiplies one "
        "joint density by itself, once for each dimension, cuts actions to whole numbers, and uses a kernel that "
        "integrates to 1 in one dimension only; the last two columns put the first two of these right:",
        "",
        *_table(
            (
                "dimensions",
                "true value",
                "with the kernel",
                "Peira",
                "SCOPE-RL",
                "densities right",
                "whole numbers, too",
            ),
            (
                (
                    dims,
                    f"{row['truth']:.3f}",
                    f"{row['expected_of_the_kernel']:.3f}",
                    f"{row['peira']:.3f} ± {row['peira_standard_error']:.3f}",
                    *(f"{value:,.3f}" for value in row["scope_rl"].values()),
                )
                for dims, row in kernel["dimensions"].items()
            ),
        ),
        "Intervals of nominal 95 %: how often they hold the true value, and how wide they are.",
        "",
        *_table(
            ("", "samples", "Peira", "width", "SCOPE-RL", "its width"),
            (
                (
                    name,
                    f"{row['samples']:,}",
                    *(
                        text
                        for side in ("peira", "scope_rl")
                        for text in (f"{row[side]['coverage']:.1%}", f"{row[side]['width']:.4g}")
                    ),
                )
                for name, row in of["coverage"].items()
            ),
        ),
    ]


def _causalrl_lines(of: Mapping[str, Any]) -> list[str]:
    one, three = of["one step, 200 000 decisions"], of["three steps, 20 000 episodes"]
    rows = [("Peira", name, row) for name, row in three["peira"].items()]
    rows += [("causalrl", name, row) for name, row in three["causalrl"].items()]
    return [
        f"## Beside causalrl {of['versions']['causalrl']}",
        "",
        "It has importance weighting of one step; for several steps it takes two actions, candidates that are "
        "deterministic, and one outcome at the end. There is no fitted Q evaluation, no marginal ratio, no weighting "
        "of single steps. Below, it estimates propensities and regressions, ours knows the former and counts states.",
        "",
        f"- one step, 200 000 decisions: {one['causalrl']['value']:.12f}, ours {one['peira']['value']:.12f}, "
        f"{one['ratio']:.0f}× faster",
        f"- the two states and three steps above, action 1 always, 20 000 episodes, true value {three['truth']:.4f} by "
        "dynamic programming:",
        "",
        *_table(
            ("", "estimator", "value", "standard error"),
            ((who, name, f"{row['value']:.4f}", f"{row['standard_error']:.4f}") for who, name, row in rows),
        ),
    ]


def main() -> None:
    found = json.loads(FIGURES.read_text())
    (HERE / "r10_speed.md").write_text(page(found))
    kept = {name: found[name] for name in ("r10", "memory", "versions", "machine")}
    (HERE / "r10_speed.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
