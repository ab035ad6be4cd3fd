"""`peira evaluate`: from files to a report in a folder."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from peira.evaluation.off_policy.candidates import FIELDS, read_candidate
from peira.evaluation.off_policy.estimators import ESTIMATORS
from peira.evaluation.off_policy.evaluate import Settings, evaluate
from peira.evaluation.off_policy.log import read_log
from peira.evaluation.off_policy.report import finite, write_report
from peira.evaluation.off_policy.tables import Fields, numbers, table_batches, texts
from peira.evaluation.off_policy.verdict import most_trusted, verdict

SECONDS_BETWEEN_LINES = 5.0
LINES = 40
"""Estimates up to which the terminal shows all of them."""


@dataclasses.dataclass(frozen=True)
class Options(Settings):
    """Estimate from a log what policies that did not run are worth, how sure that is, and which few to try next.

    LOG: a store, a Parquet file or folder, JSON lines, CSV or Minari data with the columns of a step: episode_id, step,
    observation, action, reward, terminated, truncated, and propensity (the probability, or density, of the logged
    action under the policy that chose it); behaviour_probs and action_set where there are some. A candidate is a table
    with episode_id, step and action_probs (or action_mean and action_std), named after its file.

    example: peira evaluate log.parquet --candidates a.parquet b.parquet --gamma 0.99 --out runs/evaluation
    """

    candidates: tuple[Path, ...] = ()
    """Tables of the candidates; a file's name is the candidate's."""
    truth: Path | None = None
    """True values, where they are known: a JSON object, or a table with candidate and value."""
    embeddings: Path | None = None
    """What actions have in common, for mips and offcem: a table with action and further columns of whole numbers."""
    columns: tuple[str, ...] = ()
    """Names in foreign files, as field=column: reward=clicked propensity=pscore observation=x0,x1,x2."""
    format: str | None = None
    """Format of the log, where its name does not tell: parquet, jsonl, csv, lance, minari."""
    one_step: bool = False
    """Every row is a decision of its own: a bandit's log needs neither step nor terminated."""
    actions: int | None = None
    """Number of actions, where the log may not have tried the last of them."""
    out: Path | None = None
    """Folder of the report; by default runs/evaluate-LOG-DATE."""
    json: bool = False
    """Print the report as one JSON object."""
    threads: int = 2
    """Threads of arithmetic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {self.threads}")


def run(path: str, options: Options, command: str, console: Console) -> tuple[dict[str, Any], Path]:
    """Evaluate and write the report; the report and its folder. Raises ValueError for what cannot be evaluated."""
    if not options.candidates:
        raise ValueError("candidates: name at least one table after --candidates")
    names = [_name(file) for file in options.candidates]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"candidates: two files are called {twice}; a candidate is named after its file")
    for file in (*options.candidates, *(file for file in (options.truth, options.embeddings) if file)):
        if not file.exists():
            raise ValueError(f"path: there is no {file}")
    out = options.out or Path("runs") / f"evaluate-{_name(Path(path))}-{time.strftime('%Y%m%d-%H%M%S')}"
    if out.exists() and any(out.iterdir()) and not (out / "report.json").exists():
        raise ValueError(f"out: {out} holds something else; name another folder")
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)}
    columns = _columns(options.columns)
    with _Shown(console) as shown:
        log = read_log(
            path,
            columns,
            options.format,
            lambda done, of: shown("reading the log", done, of or 0),
            observations=_reads_observations(options),
            actions=options.actions,
            one_step=options.one_step,
        )
        of_candidates = {field: column for field, column in columns.items() if field in FIELDS}
        keep = _reads_observations(options) or options.embeddings is not None
        candidates = {}
        for number, (name, file) in enumerate(zip(names, options.candidates, strict=True)):
            candidates[name] = read_candidate(file, log, name=name, columns=of_candidates, keep_probs=keep)
            shown("reading candidates", number + 1, len(names))
        report = evaluate(
            log,
            candidates,
            truth=None if options.truth is None else read_truth(options.truth),
            embeddings=None if options.embeddings is None else read_embeddings(options.embeddings),
            progress=shown,
            command=command,
            **settings,
        )
    report["log"]["path"] = path
    write_report(report, out)
    return report, out


def table(report: Mapping[str, Any]) -> Table:
    """Estimates as people read them, a line each; those of the most trusted estimator alone where there are many."""
    estimators = report["settings"]["estimators"]
    page = Table(
        "candidate", "estimator", "value", "interval", "effective episodes", box=None, pad_edge=False
    )
    if len(estimators) * len(report["candidates"]) > LINES:
        estimators = [most_trusted(dict(report)) or estimators[0]]
    for name, entry in report["candidates"].items():
        for estimator in estimators:
            page.add_row(name, estimator, *_cells(entry["estimates"][estimator]))
    return page


def sentences(report: Mapping[str, Any]) -> list[str]:
    """The verdict in plain words."""
    return verdict(dict(report))


def as_json(report: Mapping[str, Any]) -> str:
    """The report as one JSON object; what is no number becomes null."""
    return json.dumps(finite(dict(report)), allow_nan=False)


def read_truth(path: Path) -> dict[str, float]:
    """True values by candidate. Raises ValueError for a file that holds none."""
    if path.suffix == ".json":
        try:
            values = json.loads(path.read_text())
            return {str(name): float(value) for name, value in values.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"truth: {path} is no JSON object of names and numbers: {error}") from error
    fields = Fields(("candidate", "value"), None)
    found: dict[str, float] = {}
    for rows in table_batches(path, fields, None, None):
        name, value = fields.of(rows, "candidate"), fields.of(rows, "value")
        if name is None or value is None:
            raise ValueError(f"truth: {path} needs the columns candidate and value")
        found |= dict(
            zip(texts(name, "candidate").to_pylist(), numbers(value, "value").tolist(), strict=True)
        )
    return found


def read_embeddings(path: Path) -> np.ndarray:
    """Whole numbers [actions, dims] from a table with `action` and further columns, in the order of the actions."""
    if path.suffix == ".csv":
        from pyarrow import csv

        rows = csv.read_csv(path)
    elif path.suffix == ".parquet":
        from pyarrow import parquet

        rows = parquet.read_table(path)
    else:
        raise ValueError(f"embeddings: expected a .csv or .parquet file, got {path.name}")
    names = [name for name in rows.column_names if name != "action"]
    if "action" not in rows.column_names or not names:
        raise ValueError(f"embeddings: {path} needs the column action and at least one more")
    kinds = [rows.schema.field(name).type for name in ("action", *names)]
    if not all(pa.types.is_integer(kind) for kind in kinds):
        raise ValueError(f"embeddings: {path} holds {', '.join(map(str, kinds))}; expected whole numbers")
    values = np.column_stack([rows[name].to_numpy() for name in ("action", *names)])
    values = values[np.argsort(values[:, 0])]
    if not np.array_equal(values[:, 0], np.arange(len(values))) or (values < 0).any():
        raise ValueError(f"embeddings: {path} needs one row for each action 0, 1, …, and no number below 0")
    return values[:, 1:]


def sizes(words: Iterable[str]) -> tuple[int, ...]:
    """Sizes of portfolios, from words such as 3 or 1..5. Raises ValueError for anything else."""
    found: list[int] = []
    for word in words:
        first, dots, last = word.partition("..")
        if not first.isdigit() or (dots and not last.isdigit()):
            raise ValueError(f"--k: expected whole numbers such as 3, or a range such as 1..5, got {word!r}")
        found += range(int(first), int(last if dots else first) + 1)
    return tuple(dict.fromkeys(found))


def _reads_observations(options: Options) -> bool:
    """Whether any estimator asked for reads more than weights: `auto` takes what it can get."""
    return any(name == "auto" or ESTIMATORS[name].reads for name in options.estimators)


def _columns(pairs: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise ValueError(f"--columns: expected field=column, got {pair!r}")
        parts = column.split(",")
        found[field] = parts if len(parts) > 1 else column
    return found


def _name(path: Path) -> str:
    name = path.name
    for ending in (".gz", ".parquet", ".jsonl", ".ndjson", ".csv", ".lance"):
        name = name.removesuffix(ending)
    return name


def _cells(estimate: Mapping[str, Any]) -> tuple[str, str, str]:
    if estimate["value"] is None:
        return "–", "", ""
    interval, size = "–", estimate["effective_sample_size"]
    if estimate["interval"] is not None:
        low, high = estimate["interval"]
        interval = f"[{low:.4g}, {'∞' if math.isinf(high) else f'{high:.4g}'}]"
    return f"{estimate['value']:.4g}", interval, "" if size is None else f"{size:,.0f}"


class _Shown:
    """Progress: a bar on a terminal, a line every few seconds in a pipe."""

    def __init__(self, console: Console):
        self._console, self._said, self._stage = console, time.monotonic(), ""
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> _Shown:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, of: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=stage, completed=done, total=of or None)
            return
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN_LINES:
            return
        self._said, self._stage = now, stage
        self._console.print(
            f"{stage}: {done:,}" + (f" of {of:,}" if of else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
