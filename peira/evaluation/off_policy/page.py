"""One self-contained page with all of a report: opens from disk, asks nothing of the network, needs no script.

Figures are inline SVG whose colours are taken from the style sheet, so that they follow the reader's light or dark
setting and print on white. Whatever comes from the report (names of candidates are names of files) is escaped.
"""

from __future__ import annotations

import io
import math
import re
from html import escape
from pathlib import PurePath

import matplotlib
from matplotlib.figure import Figure

from peira.evaluation.off_policy import contents, plots
from peira.evaluation.off_policy.contents import Table
from peira.evaluation.off_policy.formatting import (
    DASH,
    counted,
    listed,
    measured,
    measured_interval,
    number,
    printable,
    share,
    size,
)
from peira.evaluation.off_policy.guide import title_of
from peira.evaluation.off_policy.verdict import (
    Writing,
    against,
    baseline,
    in_order,
    judgement,
    judgements,
    most_trusted,
    sections,
    shortlist,
    worth,
)

SIGNS = {"better": "▲", "worse": "▼", "unclear": "≈", "doubtful": "?", "not judged": DASH}
"""Beside the colours, for those who do not see them."""

CAPTIONS = {
    "estimates": "Each mark is an estimate with its interval. The vertical line is what the policy that ran earned, "
    "its band the interval of that. An interval wholly to the right of the line speaks for a candidate.",
    "sharpe_ratio": "What trying the first k candidates gains over the baseline, for each unit of spread among them. "
    "High ratios come from a large gain or from a small spread: see which.",
    "portfolio": "What the first k candidates are worth, by each estimator’s ranking.",
    "true_against_estimated": "The nearer to the diagonal, the better the estimate. Filled marks are the candidates "
    "that the estimator ranks first; a good choice has them at the top.",
    "return_distributions": "How probable a return of at most m is. A curve further to the right is better; its left "
    "end shows the bad days.",
    "weight_histograms": "How much likelier each logged episode is under the candidate than under the policy that ran. "
    "The wider the histogram, the fewer episodes carry the estimate.",
    "effective_sample_size": "How much of the log is left for a candidate as episodes go on. Below the dotted line "
    "hardly anything is left to judge by.",
}


def page(report: dict, drawn: dict[str, Figure]) -> str:
    """The whole HTML document. `drawn` holds the figures by their names in `plots.PLOTS`; others are left out."""
    name = PurePath(report["log"]["path"]).name or report["log"]["path"]
    returns = _figure("return_distributions", drawn) + _table(contents.distributions(report))
    parts = [
        ("verdict", "Verdict", _verdict(report)),
        ("estimates", "Estimates", _figure("estimates", drawn) + _estimates(report)),
        ("portfolios", "Portfolios", _portfolios(report, drawn)),
        ("truth", "Against the true values", _truth(report, drawn)),
        ("returns", "Good and bad days", returns),
        ("weights", "How far the log reaches", _weights(report, drawn)),
        ("findings", "Findings", _findings(report)),
        ("estimators", "How the estimators work", _table(contents.estimators(report), words=True)),
        ("models", "Fitted models", _optional(contents.nuisances(report))),
        ("settings", "How this was made", _made(report)),
    ]
    parts = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{anchor}">{anchor.capitalize()}</a>' for anchor, _, _ in parts)
    body = "".join(
        f'<section id="{anchor}"><h2>{heading}</h2>{content}</section>' for anchor, heading, content in parts
    )
    log = report["log"]
    about = [counted(log["episodes"], "episode"), counted(log["steps"], "step")]
    if log["actions"] is not None:
        about.append(counted(log["actions"], "action"))
    if log["action_dims"] is not None:
        about.append(f"continuous actions in {counted(log['action_dims'], 'dimension')}")
    title = f"Off-policy evaluation of {counted(len(report['candidates']), 'candidate')}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Whatever slipped through could still neither run nor call home.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}: {_text(name)}</title><style>{STYLE}</style></head><body>"
        f'<header><p class="kicker">Off-policy evaluation</p><h1>{_headline(report)}</h1>'
        f'<p class="about"><code>{_text(name)}</code> {" · ".join(about)}</p>{_tiles(report)}</header>'
        f"<nav>{links}</nav><main>{body}</main></body></html>\n"
    )


def _headline(report: dict) -> str:
    trusted = most_trusted(report)
    judged = list(judgements(report, trusted).values())
    better, total = judged.count("better"), len(judged)
    if trusted is None:
        return f"This log cannot judge {'the candidate' if total == 1 else f'any of {total} candidates'}"
    current = against(report, WRITING)
    if better == 0:
        return f"{'The' if total == 1 else 'No'} candidate is {'not ' * (total == 1)}shown to be better than {current}"
    return f"{better} of {counted(total, 'candidate')} {'looks' if better == 1 else 'look'} better than {current}"


def _tiles(report: dict) -> str:
    trusted = most_trusted(report)
    behaviour = report["log"]["behaviour"]
    interval = behaviour["interval"]
    chosen = shortlist(report, trusted)
    tiles = [
        (
            "The policy that ran",
            measured(behaviour["value"], behaviour["standard_error"]),
            "; ".join(["mean return", *([measured_interval(interval)] if interval else [])]),
        )
    ]
    if chosen is not None:
        estimate = report["candidates"][chosen.names[0]]["estimates"][trusted]
        tiles.append(
            (
                f"First choice: {_text(chosen.names[0])}",
                measured(estimate["value"], estimate["standard_error"]),
                f"estimate; {measured_interval(estimate['interval'])}",
            )
        )
        tiles.append(("To try next", number(len(chosen.names)), _text(listed(chosen.names))))
    if trusted is not None:
        tiles.append(("Judged by", _text(trusted), title_of(trusted)))
    return (
        '<dl class="tiles">'
        + "".join(
            f'<div><dt>{label}</dt><dd class="figure-of">{value}</dd><dd>{aside}</dd></div>'
            for label, value, aside in tiles
        )
        + "</dl>"
    )


def _verdict(report: dict) -> str:
    cards = "".join(
        f'<div class="card"><h3>{section.heading}</h3><ul>'
        + "".join(f"<li>{sentence}</li>" for sentence in section.sentences)
        + "</ul></div>"
        for section in sections(report, WRITING)
    )
    return f'{_standings(report)}<div class="cards">{cards}</div>'


def _standings(report: dict) -> str:
    """A row a candidate: its judgement and its interval as a strip, all on one scale with the baseline's value."""
    trusted = most_trusted(report)
    if trusted is None:
        return ""
    _, value = baseline(report, trusted)
    order = in_order(report, trusted)
    shown = [report["candidates"][name]["estimates"].get(trusted) for name in order]
    ends = [
        end for estimate in shown if estimate for end in (estimate["value"], *(estimate["interval"] or ()))
    ]
    truths = [report["candidates"][name]["truth"] for name in order]
    scale = plots.bulk(ends, keep=[value, *truths])
    known = any(truth is not None for truth in truths)
    rows = []
    for name, estimate, truth in zip(order, shown, truths, strict=True):
        judged = judgement(report, name, trusted)
        cells = [f"<th scope='row'>{_text(name)}</th>", f"<td>{_badge(judged)}</td>"]
        if estimate is None or estimate["value"] is None:
            reason = "not estimated" if estimate is None else f"refused: {estimate['refused']}"
            cells.append(f'<td colspan="3" class="reason">{DASH} {_text(reason)}</td>')
        else:
            cells.append(f'<td class="strip">{_strip(estimate, value, truth, scale, judged)}</td>')
            cells.append(f'<td class="number">{measured(estimate["value"], estimate["standard_error"])}</td>')
            cells.append(f'<td class="number">{measured_interval(estimate["interval"])}</td>')
        if known:
            cells.append(f'<td class="number">{number(truth)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    interval = f"{share(report['settings']['confidence'])} interval"
    truth = '<th scope="col" class="number">true</th>' if known else ""
    return (
        f'<div class="scroll" tabindex="0"><table class="standings"><caption>By {_text(trusted)}, best first; the '
        f"upright line is {against(report, WRITING)}, worth {worth(report, value)}</caption><thead><tr>"
        '<th scope="col">candidate</th><th scope="col">verdict</th><th scope="col" class="strip"></th>'
        f'<th scope="col" class="number">estimate</th><th scope="col" class="number">{interval}</th>{truth}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _strip(estimate: dict, value: float | None, truth: float | None, scale: plots.Scale, judged: str) -> str:
    def at(x: float) -> str:
        return f"{100 * min(max((x - scale.low) / (scale.high - scale.low), 0), 1):.2f}%"

    marks = ""
    if value is not None:
        marks += f'<line class="baseline" x1="{at(value)}" x2="{at(value)}" y1="0" y2="24"/>'
    if estimate["interval"] is not None:
        low, high = estimate["interval"]
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        marks += f'<line class="interval" x1="{at(low)}" x2="{at(high)}" y1="12" y2="12"/>'
    marks += f'<circle cx="{at(estimate["value"])}" cy="12" r="5"/>'
    if truth is not None:
        marks += f'<text x="{at(truth)}" y="17" text-anchor="middle">★</text>'
    kind = judged.replace(" ", "-")
    return f'<svg class="{kind}" width="100%" height="24" role="img" aria-label="{judged}">{marks}</svg>'


def _badge(judged: str) -> str:
    return f'<span class="badge {judged.replace(" ", "-")}">{SIGNS[judged]} {judged}</span>'


def _estimates(report: dict) -> str:
    """Candidates down, estimators across; a cell holds value, error, interval and effective sample size."""
    numbered = contents.notes(report)
    estimators = report["settings"]["estimators"]
    rows = []
    for name in in_order(report, most_trusted(report)):
        cells = "".join(_estimate(report, name, estimator, numbered) for estimator in estimators)
        rows.append(f'<tr><th scope="row">{_text(name)}</th>{cells}</tr>')
    rows.insert(0, _behaviour(report, len(estimators)))
    head = "".join(f'<th scope="col">{_text(estimator)}</th>' for estimator in estimators)
    confidence = share(report["settings"]["confidence"])
    said = [
        f"{SIGNS['better']} better, {SIGNS['worse']} worse, {SIGNS['unclear']} not told apart from {against(report)}; "
        f"{SIGNS['doubtful']} the interval is not to be believed, see the findings.",
        *contents.why_dashes(report),
    ]
    listed = "".join(f"<li>{_text(text)}</li>" for text in numbered)
    return (
        f'<div class="scroll" tabindex="0"><table class="matrix"><caption>Estimate ± standard error, {confidence} '
        f'interval, effective sample size (ESS)</caption><thead><tr><th scope="col">candidate</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{_said(said)}"
        + (f'<p class="notes-of">Notes</p><ol class="notes">{listed}</ol>' if listed else "")
    )


def _behaviour(report: dict, columns: int) -> str:
    """What the policy that ran earned, in a row across all estimators."""
    of = report["log"]["behaviour"]
    value, error = (
        measured(of["value"], of["standard_error"]),
        measured(of["standard_error"], of["standard_error"]),
    )
    spread = f'<span class="aside">± {error}</span>, {measured_interval(of["interval"])}; its'
    if of["standard_error"] is None:
        spread = "without an error, as one episode has no spread; its"
    said = _text("; ".join(["mean return in the log", *of["reasons"]]))
    return (
        f'<tr><th scope="row">the policy that ran</th><td colspan="{columns}"><span class="value">{value}</span> '
        f"{spread} {said}</td></tr>"
    )


def _estimate(report: dict, name: str, estimator: str, numbered: dict[str, int]) -> str:
    estimate = report["candidates"][name]["estimates"].get(estimator)
    if estimate is None:
        return f"<td>{DASH}</td>"
    marks = contents.notes_of(estimate, numbered)
    marks = f"<sup>{marks}</sup>" if marks else ""
    if estimate["value"] is None:
        return f'<td class="not-judged"><span class="value">{DASH}</span>{marks}</td>'
    judged = judgement(report, name, estimator)
    error = estimate["standard_error"]
    return (
        f'<td class="{judged.replace(" ", "-")}"><span class="value">{measured(estimate["value"], error)}</span> '
        f'<span class="aside">± {measured(error, error)}</span>{marks}<br>'
        f'<span class="sign">{SIGNS[judged]}</span> {measured_interval(estimate["interval"])}<br>'
        f'<span class="aside">ESS {size(estimate["effective_sample_size"])}</span></td>'
    )


def _portfolios(report: dict, drawn: dict[str, Figure]) -> str:
    if not report["portfolio"]:
        return ""
    trusted = most_trusted(report)
    order = sorted(report["portfolio"], key=lambda estimator: estimator != trusted)
    tables = "".join(
        f"<details{' open' if index == 0 else ''}><summary>By {_text(estimator)}</summary>"
        f"{_table(contents.portfolio(report, estimator))}</details>"
        for index, estimator in enumerate(order)
    )
    values = (
        "True values of the candidates are used."
        if report["portfolio_values"] == "true"
        else "True values are not known: the portfolios are what each estimator promises."
    )
    return (
        f"<p>The first k candidates of a ranking, tried side by side, are a portfolio. {values}</p>"
        + _figure("sharpe_ratio", drawn)
        + _figure("portfolio", drawn)
        + tables
        + f"<details><summary>Rankings</summary>{_table(contents.ranking(report))}</details>"
    )


def _truth(report: dict, drawn: dict[str, Figure]) -> str:
    return _figure("true_against_estimated", drawn) + _optional(contents.metrics(report))


def _weights(report: dict, drawn: dict[str, Figure]) -> str:
    pictures = _figure("weight_histograms", drawn) + _figure("effective_sample_size", drawn)
    return pictures + _optional(contents.weights(report))


def _findings(report: dict) -> str:
    rows = contents.findings(report).rows
    if not rows:
        return "<p>Nothing was found wrong with the log or the candidates.</p>"
    return (
        '<ul class="findings">'
        + "".join(
            f'<li><span class="badge severity-{_text(severity)}">{_text(severity)}</span> <b>{_text(about)}</b>: '
            f"{_text(text)} <code>{_text(code)}</code></li>"
            for about, severity, text, code in rows
        )
        + "</ul>"
    )


def _made(report: dict) -> str:
    table = _table(contents.settings(report))
    return f'{table}<h3>To do it again</h3><pre tabindex="0"><code>{_text(report["command"])}</code></pre>'


def _optional(table: Table | None) -> str:
    return "" if table is None else _table(table)


def _table(table: Table, *, words: bool = False) -> str:
    """A table in a container of its own that scrolls; `words` lets long cells wrap."""
    if not table.rows:
        return _said(table.notes)
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f"</div>{_said(table.notes)}"
    )


def _said(sentences: list[str]) -> str:
    return f'<p class="said">{_text(" ".join(sentences))}</p>' if sentences else ""


def _figure(name: str, drawn: dict[str, Figure]) -> str:
    if name not in drawn:
        return ""
    picture = f'<div class="scroll" tabindex="0">{inline_svg(drawn[name], name)}</div>'
    return f"<figure>{picture}<figcaption>{CAPTIONS[name]}</figcaption></figure>"


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for use inside a page: text as text, colours from the page's style sheet.

    `name` keeps the ids of this figure's parts apart from those of the others in the page.
    """
    text = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=nothing, facecolor="none")
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    opening = (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{name.replace("_", " ")}">'
    )
    svg = opening + svg[svg.index(">") + 1 :]
    # Groups carry ids that nothing refers to and that repeat from figure to figure.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for colour, variable in PALETTE.items():
        svg = re.sub(colour, f"var(--{variable})", svg, flags=re.IGNORECASE)
    return svg


def _text(text: str) -> str:
    return escape(printable(text))


WRITING = Writing(name=lambda name: f"<b>{_text(name)}</b>", text=_text)


PALETTE = {
    **{colour: f"series-{index}" for index, colour in enumerate(plots.COLOURS)},
    plots.INK: "ink",
    plots.MUTED: "muted",
    plots.GRID: "grid",
    plots.PAPER: "paper",
}
"""The colours of the figures and the variables of the style sheet that take their place."""

_LIGHT = (
    "--ground:#f5f6f8;--paper:#fff;--ink:#1f2328;--muted:#5b6470;--grid:#dfe3e8;--better:#0a6aa6;--worse:#b34a00;"
    "--tint-better:#e6f1f9;--tint-worse:#fcebe0;"
    + "".join(f"--series-{index}:{colour};" for index, colour in enumerate(plots.COLOURS))
)
_DARK = (
    "--ground:#0f1216;--paper:#171b21;--ink:#e7eaee;--muted:#9ba5b2;--grid:#2d343d;--better:#63b3ea;--worse:#f29a5c;"
    "--tint-better:#14293a;--tint-worse:#3a2415;--series-0:#4ea5e0;--series-1:#f0854a;--series-2:#33c497;"
    "--series-3:#e3a5c9;--series-4:#f0b64a;--series-5:#9ad6f7;"
)

STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%}}
body{{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
header,main,nav{{max-width:72rem;margin:0 auto;padding:0 1.5rem}}
header{{padding-top:3rem}}
h1{{font-size:clamp(1.6rem,4vw,2.5rem);line-height:1.15;margin:.2rem 0 .6rem;letter-spacing:-.02em;text-wrap:balance}}
h2{{font-size:1.35rem;margin:0 0 1rem;letter-spacing:-.01em}}
h3{{font-size:1rem;margin:0 0 .5rem}}
.kicker{{margin:0;color:var(--muted);font-size:.85rem;letter-spacing:.08em;text-transform:uppercase}}
.about{{margin:0;color:var(--muted);overflow-wrap:anywhere}}
code,pre{{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.875em}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:1rem;margin:1.75rem 0 0}}
.tiles div,.card,main>section{{background:var(--paper);border:1px solid var(--grid);border-radius:12px}}
.tiles div{{padding:1rem 1.25rem;min-width:0}}
.tiles dt,.tiles dd{{margin:0;overflow-wrap:anywhere;font-size:.85rem;color:var(--muted)}}
.tiles .figure-of{{font-size:1.7rem;line-height:1.3;font-weight:650;color:var(--ink);font-variant-numeric:tabular-nums}}
nav{{position:sticky;top:0;z-index:5;display:flex;gap:1.25rem;overflow-x:auto;max-width:none;
padding:.75rem max(1.5rem,calc((100% - 72rem)/2 + 1.5rem));margin-top:1.5rem;background:var(--ground);
border-bottom:1px solid var(--grid);scrollbar-width:none}}
nav a{{color:var(--muted);text-decoration:none;white-space:nowrap;font-size:.9rem}}
nav a:hover,nav a:focus{{color:var(--ink);text-decoration:underline;text-underline-offset:.3em}}
main{{padding-bottom:4rem}}
main>section{{padding:1.75rem;margin-top:1.5rem;scroll-margin-top:3.5rem}}
#verdict{{background:none;border:0;padding:0;scroll-margin-top:4.5rem}}
#verdict>.scroll{{background:var(--paper);border:1px solid var(--grid);border-radius:12px;padding:.5rem 1.25rem 1rem;
margin-bottom:1rem}}
.cards{{columns:2;column-gap:1rem}}
.card{{padding:1.25rem 1.5rem;margin-bottom:1rem;break-inside:avoid}}
.card ul{{margin:0;padding-left:1.1rem}}
.card li{{margin:.4rem 0;overflow-wrap:anywhere}}
.card li::marker{{color:var(--muted)}}
.scroll{{overflow-x:auto;max-width:100%}}
.scroll:focus-visible,pre:focus-visible{{outline:2px solid var(--better);outline-offset:2px}}
table{{border-collapse:separate;border-spacing:0;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}}
caption{{text-align:left;color:var(--muted);padding:.6rem 0;font-size:.85rem}}
th,td{{text-align:left;vertical-align:top;padding:.45rem .75rem;border-bottom:1px solid var(--grid);white-space:nowrap}}
tbody tr:last-child>*{{border-bottom:0}}
thead th{{color:var(--muted);font-weight:500;font-size:.82rem;border-bottom-color:var(--muted)}}
tbody th{{font-weight:600;position:sticky;left:0;background:var(--paper);max-width:16rem;overflow:hidden;
text-overflow:ellipsis}}
th:first-child{{padding-left:0}}
.words td{{white-space:normal;min-width:11rem}}
.number{{text-align:right}}
.standings td,.standings tbody th{{vertical-align:middle}}
.standings .strip{{min-width:11rem;width:42%;padding-top:0;padding-bottom:0}}
.standings svg{{display:block;overflow:visible;color:var(--muted)}}
.standings .reason,.said,figcaption,.aside,.notes{{color:var(--muted)}}
.standings .reason{{white-space:normal;font-size:.85rem}}
.interval{{stroke:currentColor;stroke-width:3;stroke-linecap:round}}
.baseline{{stroke:var(--ink);stroke-width:1}}
.standings circle{{fill:currentColor}}
.standings text{{fill:var(--ink);font-size:14px}}
.standings svg.better,.better .sign{{color:var(--better)}}
.standings svg.worse,.worse .sign{{color:var(--worse)}}
.badge{{display:inline-block;padding:.05rem .55rem;border-radius:99px;font-size:.8rem;font-weight:600;
border:1px solid currentColor;color:var(--muted);white-space:nowrap}}
.badge.better{{color:var(--better);background:var(--tint-better)}}
.badge.worse,.severity-refusal,.severity-warning{{color:var(--worse);background:var(--tint-worse)}}
.matrix td{{line-height:1.4}}
.matrix td.better{{background:var(--tint-better)}}
.matrix td.worse{{background:var(--tint-worse)}}
.matrix .value{{font-weight:650}}
.aside{{font-size:.82rem}}
sup{{line-height:0;color:var(--muted)}}
.said,figcaption,.notes{{font-size:.85rem;max-width:60rem}}
.said{{margin:.6rem 0 0}}
.notes-of{{font-weight:600;font-size:.85rem;margin:.9rem 0 0}}
.notes{{margin:.25rem 0 0;padding-left:1.4rem}}
figure{{margin:0 0 1.75rem}}
figcaption{{margin-top:.5rem}}
.plot{{display:block;width:100%;min-width:40rem;height:auto}}
.plot text{{font-family:inherit!important}}
details{{border-top:1px solid var(--grid);padding:.7rem 0}}
summary{{cursor:pointer;font-weight:600}}
.findings{{list-style:none;margin:0;padding:0}}
.findings li{{padding:.5rem 0;border-bottom:1px solid var(--grid);overflow-wrap:anywhere}}
.findings li:last-child{{border-bottom:0}}
.findings code{{color:var(--muted);margin-left:.3rem}}
#settings h3{{margin-top:1.5rem}}
pre{{background:var(--ground);border:1px solid var(--grid);border-radius:8px;padding:1rem;overflow-x:auto;margin:0}}
@media (max-width:40rem){{header,main{{padding-left:1rem;padding-right:1rem}}header{{padding-top:1.75rem}}
nav{{padding-left:1rem;padding-right:1rem}}main>section{{padding:1.1rem}}.card{{padding:1rem 1.1rem}}
.cards{{columns:1}}.tiles{{grid-template-columns:1fr 1fr;gap:.6rem}}.tiles div{{padding:.75rem .9rem}}
.tiles .figure-of{{font-size:1.35rem}}tbody th{{max-width:9rem}}
.standings tbody th{{max-width:7rem}}.standings td,.standings th{{padding-left:.3rem;padding-right:.3rem}}
.standings .strip{{min-width:7.5rem}}#verdict>.scroll{{padding:.25rem .9rem .75rem}}}}
@media print{{
.tiles{{grid-template-columns:repeat(4,1fr)}}:root{{color-scheme:light;{_LIGHT}--ground:#fff;}}nav{{display:none}}body{{font-size:10.5pt}}
header{{padding-top:0}}main>section,.card,.tiles div{{border-color:var(--grid)}}
.scroll,pre{{overflow:visible}}pre{{white-space:pre-wrap}}.plot{{min-width:0}}tbody th{{position:static}}
figure,tr,.card{{break-inside:avoid}}h2,h3{{break-after:avoid}}table{{font-size:8pt}}
th,td{{white-space:normal;padding:.25rem .4rem}}details::details-content{{content-visibility:visible;height:auto}}}}
""".strip()
