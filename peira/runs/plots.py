"""Plots of one run and of a comparison, without a display and in colours that everyone can tell apart.

Every function draws from what is on disk or in the result JSON, so a plot can be made again without a run.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from peira.evaluation.off_policy.plots import save

# Okabe & Ito's palette without its yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":")

PANELS = {
    "evaluation_return": "evaluation return",
    "sampling_error": "sampling error",
    "staleness": "staleness (policy versions)",
}
"""Columns of `metrics.jsonl` that are drawn, with their axis labels; the first takes the large panel."""


def read_metrics(run_folder: Path) -> list[dict]:
    """The rows of a run's `metrics.jsonl`, one dictionary an iteration. Raises ValueError for a torn line."""
    path = run_folder / "metrics.jsonl"
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: expected one JSON object, got {line[:60]!r}") from error
    return rows


def budget_of(metrics: list[dict]) -> str:
    """The column that counts what the run's budget is made of: updates or real steps."""
    return "updates" if metrics and "updates" in metrics[-1] else "real_steps"


def series(metrics: list[dict], column: str) -> tuple[np.ndarray, np.ndarray]:
    """A column over real steps: steps `[points]`, which rise, and the finite values `[points]`.

    Where several iterations report the same step (learning without acting), the last one counts. A run that has a
    budget of updates is drawn over these.
    """
    axis = budget_of(metrics)
    points = {
        row[axis]: row[column]
        for row in metrics
        if row.get(column) is not None and math.isfinite(row[column])
    }
    steps = np.array(sorted(points), dtype=np.float64)
    return steps, np.array([points[step] for step in steps], dtype=np.float64)


def learning_curve(run_folder: Path) -> Path:
    """Draw one run's evaluation return, sampling error and staleness over real steps into `curve.png`.

    A column that the run never reported gets no panel. Raises ValueError if it reported none of the three.
    """
    metrics = read_metrics(run_folder)
    drawn = {column: series(metrics, column) for column in PANELS}
    drawn = {column: points for column, points in drawn.items() if len(points[0])}
    if not drawn:
        raise ValueError(
            f"{run_folder / 'metrics.jsonl'}: expected one of {', '.join(PANELS)}, got none of them"
        )
    figure, axes = _panels(list(drawn), _axis_label(budget_of(metrics)))
    for column, (steps, values) in drawn.items():
        axes[column].plot(steps, values, color=COLOURS[0], marker="." if len(steps) < 40 else None)
    figure.suptitle("/".join(run_folder.resolve().parts[-2:]), x=0.01, ha="left", weight="bold")
    path = run_folder / "curve.png"
    save(figure, path)
    return path


def comparison(result: dict) -> Figure:
    """Learning curves of all arms with their 95 % bands; sampling error and staleness beside them.

    `result` is what `peira.runs.compare.compare` returns and writes to `compare.json`. Lines are
    interquartile means over seeds. An arm without a curve yet is left out.
    """
    curves = {"evaluation_return": {name: arm["curve"] for name, arm in result["arms"].items()}}
    for column in list(PANELS)[1:]:
        curves[column] = {name: arm["ledger_curves"].get(column) for name, arm in result["arms"].items()}
    columns = [column for column, of_arms in curves.items() if any(of_arms.values())]
    figure, axes = _panels(columns or ["evaluation_return"], _axis_label(result["unit"]))
    for column in columns:
        for index, (name, curve) in enumerate(curves[column].items()):
            if curve is None:
                continue
            style = {"color": COLOURS[index % len(COLOURS)], "label": name}
            line_style = LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]
            marker = "." if len(curve["steps"]) < 2 else None
            axes[column].plot(curve["steps"], curve["iqm"], linestyle=line_style, marker=marker, **style)
            if curve.get("low") is not None:
                axes[column].fill_between(
                    curve["steps"], curve["low"], curve["high"], color=style["color"], alpha=0.18, linewidth=0
                )
        _label_lines(axes[column])
    fewest = min(len(arm["seeds"]) for arm in result["arms"].values())
    spread = "95 % bootstrap bands" if fewest > 1 else "no band with one seed"
    figure.suptitle(
        f"{result['env']}: interquartile mean of {_count(fewest, 'seed')}, {spread}",
        x=0.01,
        ha="left",
        weight="bold",
    )
    return figure


def _axis_label(unit: str) -> str:
    return unit if unit == "updates" else "real environment steps"


def _panels(columns: Sequence[str], label: str) -> tuple[Figure, dict[str, Axes]]:
    """One large panel for the first column, the others stacked to its right."""
    side = columns[1:]
    if side:
        figure = Figure(figsize=(10.5, 4.6), layout="constrained")
        mosaic = [[columns[0], column] for column in side]
        axes = figure.subplot_mosaic(mosaic, width_ratios=[1.7, 1], sharex=True)
    else:
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        axes = {columns[0]: figure.subplots()}
    for column, panel in axes.items():
        panel.set_title(PANELS[column], loc="left", fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    for column in {columns[0], columns[-1]}:
        axes[column].set_xlabel(label)
    return figure, axes


def _label_lines(panel: Axes) -> None:
    """Write each line's name at its right end, pushed apart where the ends meet."""
    ends = sorted(
        ((line.get_xdata()[-1], line.get_ydata()[-1], line) for line in panel.get_lines()),
        key=lambda end: end[1],
    )
    right = max(end[0] for end in ends)
    bottom, top = panel.get_ylim()
    panel.set_ylim(bottom, top)
    height_of_text = 12 / (panel.get_figure().get_size_inches()[1] * 72 * panel.get_position().height)
    gap = height_of_text * (top - bottom)
    heights = np.array([end[1] for end in ends], dtype=np.float64)
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    heights[-1] = min(heights[-1], top)
    for index in reversed(range(len(heights) - 1)):
        heights[index] = min(heights[index], heights[index + 1] - gap)
    for height, (_, _, line) in zip(heights, ends, strict=True):
        panel.annotate(
            line.get_label(),
            (right, height),
            xytext=(6, 0),
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            weight="bold",
            annotation_clip=False,
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
