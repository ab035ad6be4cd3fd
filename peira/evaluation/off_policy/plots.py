"""Pictures of a report, without a display and in colours that everyone can tell apart.

Every function takes a report and returns a new figure, drawn from the rows of `plotted` and nothing else. An estimator
has the same colour and marker in every figure. Marks beyond an axis become arrows at its edge: one wild interval does
not flatten all the others. A function raises ValueError where the report holds nothing of what it draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from peira.evaluation.off_policy import plotted
from peira.evaluation.off_policy.formatting import counted, elided, number, share
from peira.evaluation.off_policy.plotted import Row
from peira.evaluation.off_policy.verdict import most_trusted, shortlist

# Okabe & Ito's palette without its yellow, which is too pale for lines on white, and its black, which is the ink here.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Past six lines colours come again, with other markers and dashes.
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "d", "h", "8", "H")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))

INK = "#1F2328"
MUTED = "#5B6470"
GRID = "#DFE3E8"
PAPER = "#FFFFFF"

TOGETHER = 4
"""Up to so many estimators share one panel of estimates, side by side in a candidate's row."""

HIGHLIGHTED = 6
"""So many candidates get a colour where each is a line; the others are drawn in grey."""

styled = matplotlib.rc_context(
    {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "figure.facecolor": PAPER,
        "axes.facecolor": "none",
        "legend.frameon": False,
        "legend.fontsize": "small",
        # Names come from people: a dollar sign in one is no formula.
        "text.parse_math": False,
    }
)


class Scale(NamedTuple):
    """The stretch of an axis on which the bulk of the marks lies."""

    low: float
    high: float


@styled
def estimates(report: dict) -> Figure:
    """Every candidate's estimates with their intervals, best candidate first, one colour an estimator.

    The line is the behaviour policy's value with its interval, stars are true values, a × at the left edge stands for
    an estimate that was refused. More than four estimators get a panel each, on one scale.
    """
    rows = _rows(plotted.estimates(report), "candidates with estimates")
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    estimators = _estimators(report, rows)
    together = len(estimators) <= TOGETHER
    pitch = 0.17 * len(estimators) + 0.14 if together else 0.24
    panels = _grid(
        1 if together else len(estimators),
        width=10.5,
        height=max(1.7, pitch * len(names)) + 0.45,
        sharex=True,
        sharey=True,
    )
    scale = bulk(
        [row[key] for row in rows for key in ("value", "low", "high")],
        keep=[row[key] for row in rows for key in ("true_value", "behaviour_value")],
    )
    for index, panel in enumerate(panels):
        shown = estimators if together else estimators[index : index + 1]
        _draw_behaviour(panel, rows[0])
        for slot, estimator in enumerate(shown):
            offset = (slot - (len(shown) - 1) / 2) * 0.72 / len(shown)
            own = [row for row in rows if row["estimator"] == estimator]
            heights = np.array([names.index(row["candidate"]) for row in own]) + offset
            _draw_estimates(panel, own, heights, scale, **_style(estimators, estimator))
        true = {
            names.index(row["candidate"]): row["true_value"] for row in rows if row["true_value"] is not None
        }
        if true:
            _draw_truth(panel, _floats(list(true.values())), np.array(list(true), dtype=np.float64))
        if not together:
            panel.set_title(shown[0])
        panel.grid(axis="y", linewidth=0.6)
        labels = [elided(name) for name in names]
        panel.set_yticks(range(len(names)), labels, fontsize="small", parse_math=False)
        panel.xaxis.set_major_locator(MaxNLocator(7 if together else 4))
    panels[0].set_xlim(scale.low, scale.high)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    _label(panels, x="expected return of an episode" if together else "expected return")
    figure = panels[0].get_figure()
    _title(figure, f"Estimates with {share(report['settings']['confidence'])} intervals" + _discount(report))
    handles = [_mark(label=name, **_style(estimators, name)) for name in estimators]
    handles.append(Line2D([], [], color=INK, linewidth=1.2, label="behaviour policy"))
    if any(row["true_value"] is not None for row in rows):
        handles.append(_mark(INK, "*", "true value", size=9))
    if any(row["refused"] is not None for row in rows):
        handles.append(_mark(MUTED, "x", "refused"))
    if any(_beyond(row, scale) for row in rows):
        handles.append(_mark(MUTED, ">", "goes beyond the axis"))
    _legend(figure, handles)
    return figure


@styled
def sharpe_ratio(report: dict) -> Figure:
    """SharpeRatio@k over k, a line an estimator, with gain and spread in panels of their own."""
    rows = _rows(plotted.portfolios(report), "portfolios")
    return _over_k(
        report,
        rows,
        {
            "sharpe": "SharpeRatio@k = gain / spread",
            "sharpe_numerator": "gain: best of the k − baseline, at least 0",
            "std": "spread: standard deviation of the k",
        },
        "SharpeRatio@k",
    )


@styled
def portfolio(report: dict) -> Figure:
    """What the first k candidates of each estimator's ranking are worth: k-th, best, worst, mean, spread, regret."""
    rows = _rows(plotted.portfolios(report), "portfolios")
    panels = {
        "kth": "the candidate ranked k-th",
        "best": "best of the k",
        "worst": "worst of the k",
        "mean": "mean of the k",
        "std": "spread: standard deviation of the k",
        "regret": "regret: best of all − best of the k",
    }
    if any(row["safety_violation"] is not None for row in rows):
        panels["safety_violation"] = "share of the k below the safety threshold"
    return _over_k(report, rows, panels, "The first k candidates", baseline=("kth", "best", "worst", "mean"))


@styled
def return_distributions(report: dict) -> Figure:
    """Distribution functions of an episode's return: P(return ≤ m) of each candidate and of the behaviour policy."""
    rows = _rows(plotted.return_distributions(report), "return distributions")
    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    panel = figure.subplots()
    behaviour = [row for row in rows if row["policy"] == "behaviour"]
    own = [row for row in rows if row["policy"] == "candidate"]
    handles = _lines_of_candidates(panel, own, "return", "probability", drawstyle="steps-post")
    panel.plot(
        _floats([row["return"] for row in behaviour]),
        _floats([row["probability"] for row in behaviour]),
        color=INK,
        linewidth=1.6,
        linestyle=(0, (5, 2)),
        drawstyle="steps-post",
        zorder=4,
        gid="behaviour policy",
    )
    handles.insert(
        0, Line2D([], [], color=INK, linewidth=1.6, linestyle=(0, (5, 2)), label="behaviour policy")
    )
    panel.set_ylim(-0.02, 1.02)
    panel.grid(axis="y", linewidth=0.8)
    panel.set_xlabel("return of an episode, m")
    panel.set_ylabel("probability of a return ≤ m")
    _title(figure, "Return distributions" + _discount(report))
    _legend(figure, handles, columns=4)
    return figure


@styled
def weight_histograms(report: dict) -> Figure:
    """Histograms of log10 of the final importance weights, a panel a candidate; the line marks a weight of 1.

    Weights of 0 have no logarithm: how many episodes have one is written in the panel.
    """
    rows = _rows(plotted.weight_histograms(report), "weights")
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    columns = min(5, len(names))
    panels = _grid(len(names), columns, width=10.5 if columns > 2 else 5.0, height=1.45, sharex=True)
    for name, panel in zip(names, panels, strict=True):
        bars = [row for row in rows if row["candidate"] == name]
        edges = [bars[0]["log10_low"], *(row["log10_high"] for row in bars)]
        # With an outline, so that a bar of hardly any width is seen.
        panel.stairs(
            [row["episodes"] for row in bars], edges, fill=True, color=COLOURS[0], alpha=0.85, linewidth=1
        )
        # Room for the notes above the highest bar.
        panel.set_ylim(0, 1.45 * max(1, *(row["episodes"] for row in bars)))
        panel.axvline(0, color=INK, linewidth=0.9)
        panel.set_title(elided(name, 24), fontsize="small")
        of = report["candidates"][name]["weights"]
        largest, without = of["largest_share"], of["without_weight"]
        panel.annotate(
            f"largest: {share(largest)}" + (f"\nnone: {counted(without, 'episode')}" if without else ""),
            (0.02, 0.97),
            xycoords="axes fraction",
            va="top",
            fontsize="x-small",
            color=MUTED,
        )
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        panel.tick_params(axis="y", labelsize="small")
    _label(panels, x="log10 of the weight", y="episodes")
    figure = panels[0].get_figure()
    _title(figure, "Weights of whole episodes, and the share of all weight that the largest has")
    return figure


@styled
def effective_sample_size(report: dict) -> Figure:
    """(Σ W_t)² / Σ W_t² over steps t, a line a candidate: how many episodes of its own the log is worth to it."""
    rows = _rows(plotted.effective_sample_size(report), "weights")
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    panel = figure.subplots()
    episodes = report["log"]["episodes"]
    handles = _lines_of_candidates(panel, rows, "step", "effective_sample_size")
    panel.axhline(episodes, color=INK, linewidth=1, gid="episodes in the log")
    panel.axhline(episodes / 100, color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)), gid="1 % of the log")
    handles.append(Line2D([], [], color=INK, linewidth=1, label=f"the whole log ({number(episodes)})"))
    handles.append(Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (1, 1.5)), label="1 % of it"))
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(axis="y", linewidth=0.8)
    panel.set_xlabel("step of the episode")
    panel.set_ylabel("effective sample size (episodes)")
    _title(figure, "Effective sample size")
    _legend(figure, handles, columns=4)
    return figure


@styled
def true_against_estimated(report: dict, k: int | None = None) -> Figure:
    """True over estimated values, a panel an estimator; the k candidates that it ranks first lie in the shaded region.

    By default k is the size of the verdict's shortlist, and 3 (or all, if there are fewer) where that is empty. The
    diagonal is a perfect estimate, the horizontal line the behaviour policy.
    """
    rows = _rows(plotted.true_against_estimated(report), "candidates with known true values")
    estimators = _estimators(report, rows)
    if k is None:
        chosen = shortlist(report, most_trusted(report))
        k = min(3, len(report["candidates"])) if chosen is None else len(chosen.names)
    panels = _grid(len(estimators), width=10.5 if len(estimators) > 1 else 4.6, height=2.7, sharey=True)
    true_values = [row["true"] for row in rows]
    for estimator, panel in zip(estimators, panels, strict=True):
        own = [row for row in rows if row["estimator"] == estimator]
        scale = bulk([row["estimated"] for row in own], keep=true_values)
        colour = _style(estimators, estimator)["colour"]
        chosen = [row["estimated"] for row in own if row["rank"] <= k]
        if chosen:
            edge = max(min(chosen), scale.low)
            panel.axvspan(edge, scale.high, color=colour, alpha=0.12, linewidth=0, gid="top k")
        panel.axline(
            (true_values[0], true_values[0]), slope=1, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2))
        )
        if (value := report["log"]["behaviour"]["value"]) is not None:
            panel.axhline(value, color=INK, linewidth=1, gid="behaviour policy")
        estimated, true = _floats([row["estimated"] for row in own]), _floats([row["true"] for row in own])
        first = np.array([row["rank"] <= k for row in own])
        marker = np.where(estimated > scale.high, ">", np.where(estimated < scale.low, "<", "o"))
        for is_first, sign in dict.fromkeys(zip(first.tolist(), marker.tolist(), strict=True)):
            these = (first == is_first) & (marker == sign)
            panel.plot(
                np.clip(estimated[these], scale.low, scale.high),
                true[these],
                linestyle="none",
                marker=sign,
                markersize=6,
                color=colour,
                markerfacecolor=colour if is_first else "none",
                clip_on=False,
                zorder=3,
                gid="chosen" if is_first else "not chosen",
            )
        panel.set_xlim(scale.low, scale.high)
        panel.set_title(estimator)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.grid(linewidth=0.6)
    _label(panels, x="estimated value", y="true value")
    figure = panels[0].get_figure()
    _title(figure, f"True against estimated values; shaded: the first {number(k)} by each estimator")
    _legend(
        figure,
        [
            Line2D([], [], color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), label="estimate = truth"),
            Line2D([], [], color=INK, linewidth=1, label="behaviour policy"),
            Patch(color=MUTED, alpha=0.25, linewidth=0, label=f"first {number(k)}"),
        ],
    )
    return figure


class Plot(NamedTuple):
    """A figure and the rows behind it."""

    draw: Callable[[dict], Figure]
    rows: Callable[[dict], list[Row]]


PLOTS = {
    "estimates": Plot(estimates, plotted.estimates),
    "sharpe_ratio": Plot(sharpe_ratio, plotted.portfolios),
    "portfolio": Plot(portfolio, plotted.portfolios),
    "true_against_estimated": Plot(true_against_estimated, plotted.true_against_estimated),
    "return_distributions": Plot(return_distributions, plotted.return_distributions),
    "weight_histograms": Plot(weight_histograms, plotted.weight_histograms),
    "effective_sample_size": Plot(effective_sample_size, plotted.effective_sample_size),
}
"""All plots by the name of their file, in the order of the page."""


def drawable(report: dict) -> dict[str, Plot]:
    """The plots for which the report has something to show."""
    return {name: plot for name, plot in PLOTS.items() if plot.rows(report)}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; a reader sees the old file or the new one, never half of one."""
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png", dpi=130)
    part.replace(path)


def _rows(rows: list[Row], what: str) -> list[Row]:
    if not rows:
        raise ValueError(f"report: expected {what} to draw, got none")
    return rows


def _estimators(report: dict, rows: list[Row]) -> list[str]:
    """The estimators of the rows in the order in which they were named: the same colours in every figure."""
    there = {row["estimator"] for row in rows}
    return [name for name in report["settings"]["estimators"] if name in there]


def _style(estimators: list[str], estimator: str) -> dict[str, str]:
    index = estimators.index(estimator)
    return {"colour": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _draw_behaviour(panel: Axes, row: Row) -> None:
    if row["behaviour_low"] is not None:
        panel.axvspan(
            row["behaviour_low"], row["behaviour_high"], color=MUTED, alpha=0.16, linewidth=0, zorder=0
        )
    if row["behaviour_value"] is not None:
        panel.axvline(row["behaviour_value"], color=INK, linewidth=1.2, zorder=1, gid="behaviour policy")


def _draw_estimates(
    panel: Axes,
    rows: list[Row],
    height: Float[np.ndarray, " rows"],
    scale: Scale,
    *,
    colour: str,
    marker: str,
) -> None:
    """Points with their intervals; arrows where either leaves the scale; a × at the left edge where it was refused."""
    style = {"color": colour, "zorder": 3}
    value, low, high = (_floats([row[key] for row in rows]) for key in ("value", "low", "high"))
    # An interval that lacks one end only is one-sided.
    there = ~(np.isnan(low) & np.isnan(high))
    low, high = np.nan_to_num(low, nan=-np.inf), np.nan_to_num(high, nan=np.inf)
    ends = np.clip(low[there], scale.low, scale.high), np.clip(high[there], scale.low, scale.high)
    panel.hlines(height[there], *ends, linewidth=1.6, gid="interval", **style)
    marks = {"estimate": (value, (value >= scale.low) & (value <= scale.high), marker)}
    for side, at in (("<", scale.low), (">", scale.high)):
        leaves = np.array([side in _beyond(row, scale) for row in rows], dtype=bool)
        marks[f"beyond the axis {side}"] = np.full(len(rows), at), leaves, side
    edge = scale.low + 0.012 * (scale.high - scale.low)
    marks["refused"] = np.full(len(rows), edge), np.isnan(value), "x"
    for what, (at, shown, sign) in marks.items():
        if shown.any():
            width = {"markeredgewidth": 1.6} if sign == "x" else {}
            panel.plot(
                at[shown],
                height[shown],
                linestyle="none",
                marker=sign,
                markersize=5.5,
                clip_on=False,
                gid=what,
                **width,
                **style,
            )


def _draw_truth(panel: Axes, value: Float[np.ndarray, " rows"], height: Float[np.ndarray, " rows"]) -> None:
    """Stars above their rows and lines down through them, so that they hide no estimate."""
    panel.vlines(value, height - 0.3, height + 0.4, color=INK, linewidth=0.8, zorder=2)
    panel.plot(
        value,
        height - 0.34,
        linestyle="none",
        marker="*",
        markersize=8,
        color=INK,
        markeredgecolor=PAPER,
        markeredgewidth=0.5,
        zorder=4,
        gid="true value",
    )


def _beyond(row: Row, scale: Scale) -> list[str]:
    """Through which ends of the axis an estimate or its interval leaves it: `<`, `>`."""
    there = [row[key] for key in ("value", "low", "high") if row[key] is not None]
    if (row["low"] is None) != (row["high"] is None):
        there.append(-math.inf if row["low"] is None else math.inf)
    sides = {"<": any(x < scale.low for x in there), ">": any(x > scale.high for x in there)}
    return [side for side, leaves in sides.items() if leaves]


def _over_k(
    report: dict, rows: list[Row], quantities: dict[str, str], title: str, baseline: Sequence[str] = ()
) -> Figure:
    """A panel a quantity over k, a line an estimator; hollow markers, because portfolios often coincide."""
    estimators = _estimators(report, rows)
    panels = _grid(len(quantities), 4 if len(quantities) > 6 else 3, width=10.5, height=2.6, sharex=True)
    for (quantity, label), panel in zip(quantities.items(), panels, strict=True):
        for index, estimator in enumerate(estimators):
            own = [row for row in rows if row["estimator"] == estimator]
            style = _style(estimators, estimator)
            panel.plot(
                [row["k"] for row in own],
                _floats([row[quantity] for row in own]),
                label=estimator,
                color=style["colour"],
                linestyle=DASHES[index // len(COLOURS) % len(DASHES)],
                marker=style["marker"],
                markersize=5 + 0.5 * (len(estimators) - index),
                markerfacecolor="none",
                linewidth=1.5,
            )
        if quantity in baseline:
            for level in {row["baseline_value"] for row in rows} - {None}:
                panel.axhline(level, color=INK, linewidth=1, gid="baseline")
        panel.set_title(label, fontsize="small")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.grid(axis="y", linewidth=0.8)
    _label(panels, x="k, candidates tried")
    handles = panels[0].get_legend_handles_labels()[0]
    if baseline:
        handles = [*handles, Line2D([], [], color=INK, linewidth=1, label="baseline")]
    figure = panels[0].get_figure()
    _title(figure, f"{title}, by {report['portfolio_values']} values")
    _legend(figure, handles)
    return figure


def _grid(
    count: int, columns: int | None = None, *, width: float, height: float, **sharing: bool
) -> list[Axes]:
    """`count` panels in rows of at most four, as even as can be, in a new figure; height of a panel in inches."""
    lines = math.ceil(count / (columns or 4))
    columns = columns or math.ceil(count / lines)
    figure = Figure(figsize=(width, height * lines + 0.9), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, **sharing).ravel()
    for spare in panels[count:]:
        spare.remove()
    return list(panels[:count])


def _label(panels: list[Axes], *, x: str, y: str = "") -> None:
    """Label the axes where no panel follows below, or none to the left."""
    columns = panels[0].get_gridspec().ncols
    for index, panel in enumerate(panels):
        if index + columns >= len(panels):
            panel.set_xlabel(x)
            panel.tick_params(labelbottom=True)
        if index % columns == 0:
            panel.set_ylabel(y)


def _lines_of_candidates(panel: Axes, rows: list[Row], x: str, y: str, **style: str) -> list[Line2D]:
    """A line a candidate, the first few in colour, and the handles that tell them apart in a legend."""
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    handles = []
    for index, name in enumerate(names):
        own = [row for row in rows if row["candidate"] == name]
        coloured = index < HIGHLIGHTED
        line = panel.plot(
            _floats([row[x] for row in own]),
            _floats([row[y] for row in own]),
            color=COLOURS[index] if coloured else MUTED,
            linewidth=1.6 if coloured else 0.7,
            alpha=1 if coloured else 0.5,
            zorder=3 if coloured else 2,
            marker="." if len(own) == 1 else None,
            gid="candidate",
            **style,
        )[0]
        if coloured:
            handles.append(Line2D([], [], color=line.get_color(), linewidth=1.6, label=elided(name)))
    if len(names) > HIGHLIGHTED:
        rest = f"{number(len(names) - HIGHLIGHTED)} more"
        handles.append(Line2D([], [], color=MUTED, linewidth=0.7, label=rest))
    return handles


def bulk(values: Sequence[float | None], keep: Sequence[float | None]) -> Scale:
    """The stretch that shows all of `keep` and the bulk of `values`, with a margin.

    Of the values those count that lie within three interquartile ranges of their middle half, or from `keep` not
    farther than `keep` spans.
    """
    there, kept = _floats(values), _floats(keep)
    there, kept = there[np.isfinite(there)], kept[np.isfinite(kept)]
    if len(there):
        first, third = np.quantile(there, [0.25, 0.75])
        low, high = first - 3 * (third - first), third + 3 * (third - first)
        if len(kept):
            low, high = min(low, 2 * kept.min() - kept.max()), max(high, 2 * kept.max() - kept.min())
        there = there[(there >= low) & (there <= high)]
    shown = np.concatenate([there, kept])
    if not len(shown):
        return Scale(-1.0, 1.0)
    margin = 0.05 * float(np.ptp(shown)) or 0.05 * max(abs(float(shown[0])), 1.0)
    return Scale(float(shown.min()) - margin, float(shown.max()) + margin)


def _floats(values: Sequence[float | None]) -> Float[np.ndarray, " values"]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _discount(report: dict) -> str:
    gamma = report["settings"]["gamma"]
    return "" if gamma == 1 else f", rewards discounted by {number(gamma)} a step"


def _mark(colour: str, marker: str, label: str, size: float = 5.5) -> Line2D:
    return Line2D([], [], color=colour, linestyle="none", marker=marker, markersize=size, label=label)


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", weight="bold", fontsize="medium")


def _legend(figure: Figure, handles: list, columns: int = 7) -> None:
    figure.legend(handles=handles, loc="outside lower left", ncols=min(columns, len(handles)))
