"""A report on disk: numbers for machines, a summary and a page for people, plots with their numbers beside them.

The report itself is the plain dictionary that `peira evaluate` makes; nothing here computes an estimate.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from peira.evaluation.off_policy import contents, plots, plotted
from peira.evaluation.off_policy.contents import Table
from peira.evaluation.off_policy.formatting import counted, printable
from peira.evaluation.off_policy.page import page
from peira.evaluation.off_policy.verdict import Writing, sections, verdict
from peira.experience.disk import write_whole

__all__ = ["markdown", "verdict", "write_report"]


def write_report(report: dict, folder: Path) -> dict[str, Path]:
    """Write a report into a folder, which is made if it is not there.

      report.json                  the report, keys in their order; NaN and ±∞ become null
      report.md                    `markdown(report)`
      report.html                  one page with everything, plots included
      plots/NAME.png, NAME.csv     every plot of `plots.PLOTS` that has something to show, and its numbers

    Returns what was written: path under the folder → path. Every file is there whole or not at all; `report.html`
    comes last. Plots and tables that an earlier report left there and this one does not have are removed.
    """
    report = finite(report)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    written = {}

    def write(name: str, text: str) -> None:
        written[name] = folder / name
        write_whole(written[name], text)

    write("report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    write("report.md", markdown(report))
    drawable = plots.drawable(report)
    for name in plots.PLOTS.keys() - drawable.keys():
        for kind in ("png", "csv"):
            (folder / "plots" / f"{name}.{kind}").unlink(missing_ok=True)
    drawn = {}
    for name, plot in drawable.items():
        drawn[name] = plot.draw(report)
        written[f"plots/{name}.png"] = folder / "plots" / f"{name}.png"
        plots.save(drawn[name], written[f"plots/{name}.png"])
        # Laid out once; the page takes the same layout.
        drawn[name].set_layout_engine("none")
        write(f"plots/{name}.csv", plotted.as_csv(plot.rows(report)))
    write("report.html", page(report, drawn))
    return written


def markdown(report: dict) -> str:
    """The report as Markdown: verdict, every table, and links to the plots beside it."""
    report = finite(report)
    names = list(plots.drawable(report))
    writing = Writing(name=lambda name: f"**{_text(name)}**", text=_text)
    lines = [f"# Off-policy evaluation of {counted(len(report['candidates']), 'candidate')}", ""]
    for section in sections(report, writing):
        lines += [f"## {section.heading}", "", *(f"- {sentence}" for sentence in section.sentences), ""]
    lines += ["## Estimates", "", *_picture("estimates", names), *_table(contents.behaviour(report))]
    lines += _table(contents.estimates(report))
    lines += [f"{number}. {_text(text)}" for text, number in contents.notes(report).items()] + [""]
    if report["portfolio"]:
        lines += ["## Portfolios", "", f"By {report['portfolio_values']} values.", ""]
        lines += _picture("sharpe_ratio", names) + _picture("portfolio", names)
        for estimator in report["portfolio"]:
            lines += [f"### {_text(estimator)}", "", *_table(contents.portfolio(report, estimator))]
    if report["ranking"]:
        lines += ["## Rankings", "", *_table(contents.ranking(report))]
    for heading, pictures, table in (
        ("Against the true values", ["true_against_estimated"], contents.metrics(report)),
        ("Return distributions", ["return_distributions"], contents.distributions(report)),
        ("Importance weights", ["weight_histograms", "effective_sample_size"], contents.weights(report)),
        ("Findings", [], contents.findings(report)),
        ("How the estimators work", [], contents.estimators(report)),
        ("Fitted models", [], contents.nuisances(report)),
        ("How this was made", [], contents.settings(report)),
    ):
        drawn = [line for name in pictures for line in _picture(name, names)]
        if drawn or (table is not None and table.rows):
            lines += [f"## {heading}", "", *drawn, *([] if table is None else _table(table))]
    return "\n".join([*lines, *_fenced(report["command"])]) + "\n"


def finite(value: object) -> object:
    """The same with None for every NaN and ±∞, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _table(table: Table) -> list[str]:
    if not table.rows:
        return [_text(" ".join(table.notes)), ""]
    rows = [table.header, ["---"] * len(table.header), *([_text(cell) for cell in row] for row in table.rows)]
    said = [_text(" ".join(table.notes)), ""] if table.notes else []
    return [*(f"| {' | '.join(row)} |" for row in rows), "", *said]


def _picture(name: str, drawn: list[str]) -> list[str]:
    return [f"![{name.replace('_', ' ')}](plots/{name}.png)", ""] if name in drawn else []


def _fenced(command: str) -> list[str]:
    """The command in a fence that is longer than any run of backticks in it."""
    command = printable(command)
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}sh", command, fence]


def _text(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no end of a table's cell."""
    escaped = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", printable(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
