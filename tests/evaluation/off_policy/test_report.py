"""The files of a report: nothing is lost, nothing is let in from names, and the page stands alone."""

import copy
import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ope_reports import REFUSED, WARNED, estimate, full_report, small_report

from peira.evaluation.off_policy import plots, plotted
from peira.evaluation.off_policy.page import page
from peira.evaluation.off_policy.report import finite, markdown, write_report
from peira.evaluation.off_policy.verdict import verdict

VOID = {"meta", "br", "hr", "img", "link", "input", "col", "wbr"}
CURVES = {"returns", "probability", "log10_edges", "counts", "effective_sample_size_by_step", "steps"}
"""Arrays that are drawn and written to CSV; the page does not spell them out."""


class Page(HTMLParser):
    """A parsed page: its text, tags and attributes; raises where tags do not balance."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def reports() -> dict[str, dict]:
    nothing = full_report(3, 3)
    for candidate in nothing["candidates"].values():
        candidate["truth"] = candidate["distribution"] = candidate["weights"] = None
        for of in candidate["estimates"].values():
            of |= dict.fromkeys(("value", "standard_error", "interval", "effective_sample_size"))
            of |= {"refused": REFUSED, "no_bound": REFUSED}
    nothing["portfolio"] = {name: {} for name in nothing["portfolio"]}
    nothing["metrics"] = None
    nothing["log"]["behaviour"] |= {"standard_error": None, "interval": None}
    return {
        "full": full_report(),
        "without truth": full_report(4, 4, truth=False),
        "continuous": full_report(3, 5, continuous=True),
        "one candidate": full_report(1, 2, truth=False),
        "many": full_report(17, 12, seed=1),
        "small": small_report(a={"wdr": estimate(1.4, 0.1)}),
        "all refused": nothing,
    }


REPORTS = reports()
SEVERAL = pytest.mark.parametrize("report", REPORTS.values(), ids=list(REPORTS))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    return write_report(copy.deepcopy(REPORTS["full"]), tmp_path_factory.mktemp("report"))


def numbers_of(value: object, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], float]]:
    """All numbers of a report with their paths, curves left out."""
    if isinstance(value, dict):
        return [
            of for key, part in value.items() if key not in CURVES for of in numbers_of(part, (*path, key))
        ]
    if isinstance(value, (list, tuple)):
        return [of for index, part in enumerate(value) for of in numbers_of(part, (*path, str(index)))]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return []
    return [(path, float(value))]


def numbers_in(text: str) -> list[float]:
    plain = text.replace("−", "-").replace(",", "").replace("\N{NO-BREAK SPACE}", " ")
    found = re.findall(r"(-?\d+\.?\d*(?:e[+-]?\d+)?)( %)?", plain)
    return [float(number) / (100 if share else 1) for number, share in found]


def shown(report: dict, path: tuple[str, ...], value: float, numbers: list[float]) -> bool:
    """Whether a number stands among `numbers`, rounded as its error warrants."""
    tolerance = 6e-4 * abs(value)
    if path[0] == "candidates" and path[2] == "estimates":
        of = report["candidates"][path[1]]["estimates"][path[3]]
        error = of["standard_error"]
        if path[4] == "effective_sample_size":
            tolerance = max(tolerance, 0.51)
        elif error is not None:
            # Two digits of the error; an interval's ends have those of its width.
            tolerance = max(tolerance, 0.051 * error)
    if path[-1] in ("largest_share", "missing_mass", "support_violations"):
        tolerance = 6e-3 * abs(value)
    return any(abs(value - number) <= tolerance for number in numbers)


@SEVERAL
def test_every_number_is_in_markdown_and_on_the_page(report):
    report = finite(report)
    text = {"markdown": markdown(report), "page": Page(page(report, {})).text}
    for where, words in text.items():
        numbers = numbers_in(words)
        missing = [
            (".".join(path), value)
            for path, value in numbers_of(report)
            if not shown(report, path, value, numbers)
        ]
        assert not missing, f"{where} lacks {missing}"


def test_rows_of_markdown_hold_what_belongs_together():
    report = small_report(
        a={"wdr": estimate(1.41234, 0.0567, effective_sample_size=812.3, warnings=["drift", "few"])},
        b={"wdr": estimate(None)},
    )
    rows = [line for line in markdown(report).splitlines() if line.startswith(("| a |", "| b |"))]
    assert "| a | wdr | 1.412 | 0.057 | 1.299 to 1.526 | 812 | better | 1, 2 |" in rows
    assert "| b | wdr | – | – | – | – | not judged | 3 |" in rows
    assert "3. effective sample size 1.7 of 3000 episodes is below 1 %" in markdown(report)


@SEVERAL
def test_the_page_is_well_formed(report):
    check_alone(page(finite(report), {}))


def test_the_page_with_its_plots_is_well_formed(written):
    check_alone(written["report.html"].read_text())


def check_alone(html: str) -> None:
    """Tags balance, nothing can run, and nothing is asked of the network."""
    assert html.startswith("<!DOCTYPE html>")
    parsed = Page(html)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"link", "script", "iframe", "object", "embed", "img", "base", "form"}
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name.removeprefix("xlink:") in ("href", "src", "srcset", "action", "data", "poster"):
                assert value.startswith("#")
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert "@import" not in html
    (policy,) = [of for of in parsed.all("meta") if of.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_holds_every_plot(written):
    parsed = Page(written["report.html"].read_text())
    pictures = [of["aria-label"] for of in parsed.all("svg") if of.get("class") == "plot"]
    assert pictures == [name.replace("_", " ") for name in plots.PLOTS]


def test_ids_and_what_refers_to_them_agree(written):
    html = written["report.html"].read_text()
    ids = [of["id"] for _, of in Page(html).tags if of.get("id")]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)) and {
        target for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html) for target in pair if target
    } <= set(ids)


def test_names_from_files_cannot_write_the_page(tmp_path):
    hostile = (
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        '" onmouseover="alert(1)',
        "'><b>bold</b>",
        "](http://evil) **x** `y` | z",
        "line\nbreak\x00\udcff",
        "$x^2$",
        "</svg></style><style>",
    )
    report = full_report(1, 2)
    of_one = next(iter(report["candidates"].values()))
    report["candidates"] = {name: copy.deepcopy(of_one) for name in hostile}
    report["ranking"] = {name: list(hostile) for name in report["ranking"]}
    report["portfolio"] = {}
    report["nuisances"] = {hostile[0]: {hostile[1]: hostile[2]}}
    report["versions"] = {hostile[0]: hostile[1]}
    report["chosen"] = {"dm": hostile[0]}
    report["log"]["path"] = "logs/" + hostile[0] + hostile[2]
    report["log"]["findings"] = [{"code": hostile[0], "severity": hostile[2], "text": hostile[1]}]
    report["command"] = "peira evaluate '" + "'".join(hostile[:6]) + "' ```"
    for candidate in report["candidates"].values():
        candidate["estimates"]["dm"] |= {"warnings": [hostile[0]]}
        candidate["estimates"]["pdis"] |= {"value": None, "interval": None, "refused": hostile[1]}
    written = write_report(report, tmp_path)
    html = written["report.html"].read_text()
    parsed = Page(html)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "img", "b" * 2}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert len(parsed.all("style")) == 1 + len([1 for of in parsed.all("svg") if of.get("class") == "plot"])
    for name in hostile[:5]:
        assert name in parsed.text
    text = written["report.md"].read_text()
    assert "<script" not in text.split("```")[0]
    assert "](http" not in text.split("```")[0].replace(r"\]", "")
    # The command's own fence does not end it.
    assert text.rstrip().endswith("````")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all("\n" not in row and "\x00" not in row for row in rows)
    assert list(json.loads(written["report.json"].read_text())["candidates"]) == list(hostile)


def test_json_keeps_keys_and_order_and_knows_no_nan(tmp_path):
    report = small_report(a={"wdr": estimate(1.4, 0.1)}, b={"wdr": estimate(1.2, 0.1)})
    report["nuisances"]["odd"] = {"nan": math.nan, "infinite": [math.inf, -math.inf, 1.0]}
    untouched = copy.deepcopy(report)
    written = write_report(report, tmp_path)
    text = written["report.json"].read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    read = json.loads(text)
    assert read["nuisances"]["odd"] == {"nan": None, "infinite": [None, None, 1.0]}
    assert list(read) == list(report)
    assert list(read["log"]["behaviour"]) == list(report["log"]["behaviour"])
    for part in ("candidates", "portfolio", "ranking", "settings"):
        assert read[part] == report[part]
    assert str(report) == str(untouched)


def test_all_files_are_there_and_nothing_unfinished(written):
    folder = written["report.json"].parent
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == set(written)
    expected = {"report.json", "report.md", "report.html"}
    expected |= {f"plots/{name}.{kind}" for name in plots.PLOTS for kind in ("png", "csv")}
    assert files == expected
    assert {written[name].read_bytes()[:4] for name in files if name.endswith("png")} == {b"\x89PNG"}


def test_plots_of_an_earlier_report_do_not_stay(tmp_path):
    (tmp_path / "plots").mkdir()
    for name in ("weight_histograms.png", "weight_histograms.csv", "mine.png"):
        (tmp_path / "plots" / name).write_text("earlier")
    written = write_report(small_report(a={"wdr": estimate(1.4, 0.1)}), tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(written) | {"plots/mine.png"}


def test_a_failed_write_leaves_the_earlier_page(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("earlier")

    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("peira.evaluation.off_policy.report.page", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(small_report(a={"wdr": estimate(2.4, 0.1)}), tmp_path)
    assert (tmp_path / "report.html").read_text() == "earlier"


@pytest.mark.parametrize("name", plots.PLOTS)
def test_csv_files_hold_what_is_drawn(name, written):
    with written[f"plots/{name}.csv"].open(newline="") as file:
        read = list(csv.DictReader(file))
    rows = plots.PLOTS[name].rows(REPORTS["full"])
    assert len(read) == len(rows) > 0
    for told, row in zip(read, rows, strict=True):
        assert list(told) == list(row)
        for key, value in row.items():
            if value is None:
                assert told[key] == ""
            elif isinstance(value, float):
                assert float(told[key]) == value
            else:
                assert told[key] == str(value)


def test_csv_keeps_names_that_need_quotes():
    report = small_report(**{'a,"b"\nc': {"wdr": estimate(1.4, 0.1)}})
    read = list(csv.DictReader(plotted.as_csv(plotted.estimates(report)).splitlines(keepends=True)))
    assert read[0]["candidate"] == 'a,"b"\nc'


def test_the_verdict_opens_the_page_and_the_summary():
    report = REPORTS["full"]
    text = Page(page(report, {})).text
    summary = markdown(report)
    assert "3 of 5 candidates look better than the policy that ran" in text
    assert (
        text.index("What to try next") < text.index("What not to trust") < text.index("Estimate ± standard")
    )
    assert summary.index("## What to try next") < summary.index("## Estimates")
    plain = re.sub(r"[“”]", "", " ".join(verdict(report)).replace("\N{NO-BREAK SPACE}", " "))
    # Names are emphasised on the page, which parts them from punctuation.
    squeezed = re.sub(r"\s", "", text.replace("\N{NO-BREAK SPACE}", " "))
    for sentence in verdict(report):
        assert re.sub(r"[\s“”]", "", sentence) in squeezed
    assert "Judged by" in plain


def test_every_dash_has_its_reason():
    report = full_report(3, 4)
    for text in (markdown(report), Page(page(report, {})).text):
        assert "A – for an estimate: it was refused, the note says why." in text
        assert "A – for the effective sample size: the estimator uses no importance weights." in text
        assert "A – at k = 1: one candidate has no spread, hence no ratio." in text
        assert "A – for an interval" not in text
        assert REFUSED in text
        assert WARNED in text
    report["candidates"]["ppo_step_40k"]["estimates"]["dm"]["interval"] = None
    assert "A – for an interval or error beside an estimate" in markdown(report)


def test_the_table_across_estimators_marks_better_and_worse_without_colour_alone():
    report = small_report(up={"wdr": estimate(1.4, 0.1)}, down={"wdr": estimate(0.4, 0.1)})
    html = page(report, {})
    assert '<td class="better"><span class="value">1.40</span>' in html
    assert "▲ better" in Page(html).text
    assert "▼ worse" in Page(html).text


def test_inline_figures_follow_the_style_sheet_and_keep_their_text():
    report = REPORTS["full"]
    html = page(report, {"estimates": plots.estimates(report)})
    svg = html[html.index('<svg class="plot"') :]
    svg = svg[: svg.index("</svg>")]
    assert "var(--series-0)" in svg
    assert "var(--ink)" in svg
    assert not re.search("|".join(plots.COLOURS), svg, re.IGNORECASE)
    assert "offline-cql" in svg
    assert "&lt;script&gt;" in svg
    assert "http" not in svg


def test_light_dark_and_print_are_provided_for():
    html = page(REPORTS["small"], {})
    assert "prefers-color-scheme:dark" in html
    assert "@media print" in html
    assert 'name="viewport"' in html
    # Wide tables and figures scroll inside of their own container.
    parsed = Page(html)
    assert len([of for of in parsed.all("div") if of.get("class") == "scroll"]) >= len(parsed.all("table"))


@pytest.mark.parametrize(
    ("values", "headline"),
    [
        ({"a": 1.5, "b": 1.6}, "2 of 2 candidates look better than the policy that ran"),
        ({"a": 1.5, "b": 0.2}, "1 of 2 candidates looks better than the policy that ran"),
        ({"a": 1.1, "b": 0.2}, "No candidate is shown to be better than the policy that ran"),
        ({"a": 1.1}, "The candidate is not shown to be better than the policy that ran"),
        ({"a": None, "b": None}, "This log cannot judge any of 2 candidates"),
        ({"a": None}, "This log cannot judge the candidate"),
    ],
)
def test_the_headline_is_the_verdict_in_one_line(values, headline):
    report = small_report(**{name: {"wdr": estimate(value, 0.1)} for name, value in values.items()})
    html = page(report, {})
    assert headline in Page(html[html.index("<h1>") : html.index("</h1>") + 5]).text


def test_how_estimators_work_is_told_for_those_used():
    report = small_report(a={"wdr": estimate(1.4, 0.1), "homemade": estimate(1.3, 0.1)})
    report["chosen"] = {"wdr": "suits long episodes"}
    for text in (markdown(report), Page(page(report, {})).text):
        assert "weighted doubly robust" in text
        assert "suits long episodes" in text
        assert "homemade" in text
        assert "A –: not described here." in text


def test_the_command_that_repeats_it_is_given():
    report = small_report(a={"wdr": estimate(1.4, 0.1)})
    report["command"] = "peira evaluate 'my log.parquet' --candidates a&b"
    assert f"```sh\n{report['command']}\n```" in markdown(report)
    assert report["command"] in Page(page(report, {})).text


def test_no_number_is_indispensable():
    """Whatever number is missing, the report is still made."""
    report = full_report(2, 2)
    kept = {"episodes", "steps", "horizon", "gamma", "confidence", "k"}
    # One of each kind: the first candidate, estimator and k speak for the others.
    kinds = {(path[0], len(path), path[-1]): path for path, _ in reversed(numbers_of(report))}
    tried = [path for path in kinds.values() if not (kept & set(path) and path[0] in ("log", "settings"))]
    assert len(tried) > 40
    for path in tried:
        holed = copy.deepcopy(report)
        at = holed
        for key in path[:-1]:
            at = at[int(key) if isinstance(at, list) else key]
        at[int(path[-1]) if isinstance(at, list) else path[-1]] = math.nan
        if path[-1] == "value" and path[0] == "candidates":
            at["refused"] = REFUSED
        assert markdown(holed)
        assert page(finite(holed), {})
