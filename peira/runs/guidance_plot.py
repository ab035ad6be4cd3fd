"""The picture over λ: how on-policy, how plausible and how varied guided windows are, from what diagnostics gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from peira.evaluation.off_policy.plots import MARKERS, MUTED, styled
from peira.runs.plots import COLOURS

ERROR = "dynamics_error"
PANELS = (
    ("log_pi", "log π(a | s), nats a step", "more on-policy"),
    ("std_z", "std of (a − μ)/σ", "1: as spread as the policy"),
    (ERROR, "one-step dynamics error", "against the simulator"),
    ("action_variance", "variance of actions, z-scored", "1: as in the data"),
)


@styled
def over_strengths(curves: Mapping[str, Sequence[Mapping[str, Any]]], real: Mapping[str, Any]) -> Figure:
    """One panel a measure, one line a way of guiding, over λ; the unguided windows (λ = 0) at the left.

    `curves` maps a label to what `peira.sources.diffusion.diagnostics.over_strengths` returned, `real` is what
    `diagnose` said of real windows, drawn as a grey dotted line. Measures that were not taken get no panel.
    """
    shown = [panel for panel in PANELS if all(panel[0] in row for rows in curves.values() for row in rows)]
    figure = Figure(figsize=(3.1 * len(shown), 3.2), layout="constrained")
    for axes, (name, label, note) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
    ):
        lowest = _panel(axes, curves, name)
        # An error is drawn over decades; real windows have none but rounding, which is decades below all others.
        if name in real and (name != ERROR or real[name] > lowest / 10):
            axes.axhline(real[name], color=MUTED, linewidth=1, linestyle=":")
        axes.set_title(label, loc="left", fontsize=9)
        axes.set_xlabel(f"λ · {note}", fontsize=8)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def _panel(axes: Axes, curves: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> float:
    """Draw one measure; its lowest value."""
    every = sorted({row["strength"] for rows in curves.values() for row in rows})
    smallest = next(strength for strength in every if strength > 0)
    axes.set_xscale("symlog", linthresh=smallest, linscale=1)
    decades = 10.0 ** np.arange(np.ceil(np.log10(smallest)), np.floor(np.log10(every[-1])) + 1)
    axes.set_xticks([0, *decades], ["0", *(f"{decade:g}" for decade in decades)], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    for (label, rows), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        strength, value = (np.array([row[key] for row in rows], float) for key in ("strength", name))
        axes.plot(strength, value, color=colour, marker=marker, markersize=4, linewidth=1.4, label=label)
    axes.set_xlim(left=0)
    lowest = min(row[name] for rows in curves.values() for row in rows)
    if name == ERROR and lowest > 0:
        axes.set_yscale("log")
    return lowest
