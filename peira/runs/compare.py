"""Several recipes on the same environment, seeds and budget of real steps or updates: run them, compare them.

Each arm and seed is a `peira run` of its own in `OUT/runs/ARM/seed-N`, so a comparison can be stopped, taken
up again and given more seeds; the result files are written anew as each seed finishes.
"""

import itertools
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from peira.evaluation.statistics import (
    area_under_curve,
    interquartile_mean,
    paired_difference,
    pointwise_bootstrap_interval,
    probability_of_improvement,
    ratio_interval,
    stratified_bootstrap_interval,
)
from peira.experience.disk import write_whole
from peira.runs import plots

PROGRAM = (sys.executable, "-m", "peira")
POLL_SECONDS = 0.25
SECONDS_BETWEEN_LINES = 5.0
LINES_OF_A_FAILURE = 12
POINTS_OF_A_CURVE = 200  # In compare.json and the plot; areas use every evaluation.
BOOTSTRAP_SEED = 2021
CURVE_COLUMNS = ("sampling_error", "staleness")
LEDGER_COLUMNS = ("staleness", "effective_sample_size", "kl_behaviour_target", "sampling_error")
"""Columns of `metrics.jsonl` averaged over iterations where `summary.json` has no figure of its own."""


Unit = Literal["steps", "updates"]
"""What budgets are counted in: the setting of recipes that holds theirs."""


class ComparisonFailed(RuntimeError):
    """Some runs of a comparison failed; the others finished and their results are written."""


@dataclass(frozen=True)
class Trial:
    """One arm with one seed, and its folder."""

    arm: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    @property
    def is_started(self) -> bool:
        return (self.folder / "config.yaml").exists()


@dataclass(frozen=True)
class Outcome:
    """What a finished run reported: its summary, and its metrics iteration by iteration."""

    summary: dict
    metrics: list[dict]


@dataclass(frozen=True)
class Child:
    """A run in progress; `log_start` is where this attempt begins in its `stderr.log`."""

    trial: Trial
    process: subprocess.Popen
    log_start: int


def compare(
    arms: dict[str, list[str]],
    *,
    env: str,
    steps: int,
    seeds: int,
    out: str | Path,
    jobs: int,
    first_seed: int = 0,
    unit: Unit = "steps",
    recipe_of: Mapping[str, str] | None = None,
    console: Console,
    program: Sequence[str] = PROGRAM,
) -> dict:
    """Run every arm with every seed, `jobs` at a time, and return what `OUT/compare.json` then holds.

    `arms` maps a name to more command-line arguments for its runs, which are of the recipe that `recipe_of` gives
    it, by default the one of that name. `steps` is the budget of every run, in real steps or, with unit="updates", in
    updates of recipes that learn from a log alone. Finished runs are reused, half-finished ones are resumed.
    `compare.json`, `compare.md` and `compare.png` are written as each seed finishes. Progress goes to `console`.
    `program` is the command that a run's arguments are handed to.

    Raises ValueError, before anything starts, for a budget below 1 or for an existing run with other
    settings; ComparisonFailed, at the end, if runs failed; KeyboardInterrupt after all children have stopped.
    """
    for field, value in {"arms": len(arms), unit: steps, "seeds": seeds, "jobs": jobs}.items():
        if value < 1:
            raise ValueError(f"{field}: expected at least 1, got {value}")
    out, recipe_of = Path(out), recipe_of or {}
    every_seed = range(first_seed, first_seed + seeds)
    # Seed by seed rather than arm by arm, so that what is there at any moment is a fair comparison.
    trials = [Trial(arm, seed, out / "runs" / arm / f"seed-{seed}") for seed in every_seed for arm in arms]
    settings = {
        arm: {"recipe": recipe_of.get(arm, arm), "env": env, unit: steps, "arguments": arguments}
        for arm, arguments in arms.items()
    }
    for trial in trials:
        _check_same_settings(trial, settings[trial.arm], unit)
    for arm, of_arm in settings.items():
        folder = out / "runs" / arm
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "settings.json", json.dumps(of_arm, indent=2) + "\n")

    outcomes: dict[str, dict[int, Outcome]] = {arm: {} for arm in arms}
    for trial in trials:
        if trial.is_finished:
            outcomes[trial.arm][trial.seed] = _read_outcome(trial)

    def write_results() -> dict:
        ordered = {arm: dict(sorted(of_arm.items())) for arm, of_arm in outcomes.items()}
        result = _result(ordered, arms, env=env, steps=steps, unit=unit, seeds=seeds)
        write_whole(out / "compare.json", to_json(result))
        write_whole(out / "compare.md", markdown(result))
        plots.save(plots.comparison(result), out / "compare.png")
        return result

    def finish(child: Child) -> str:
        _check_succeeded(child)
        try:
            outcome = _read_outcome(child.trial)
        except ValueError as error:
            raise ComparisonFailed(f"failed: {error}") from error
        outcomes[child.trial.arm][child.trial.seed] = outcome
        return f"finished with a score of {_number(float(outcome.summary['score']))}"

    def start(trial: Trial) -> Child:
        if trial.is_started:
            arguments = ["--resume", str(trial.folder)]
        else:
            arguments = [
                recipe_of.get(trial.arm, trial.arm),
                "--env",
                env,
                f"--{unit}",
                str(steps),
                "--seed",
                str(trial.seed),
            ]
            arguments += ["--out", str(trial.folder), *arms[trial.arm]]
        return _start(trial, [*program, "run", *arguments], one_thread=jobs > 1)

    waiting = [trial for trial in trials if not trial.is_finished]
    show_progress = Bars if console.is_terminal else Lines
    result, failures = write_results(), []
    with (
        show_progress(
            console, steps=steps, unit=unit, total=len(trials), finished=len(trials) - len(waiting)
        ) as progress,
        closing(_run_all(waiting, start=start, jobs=jobs, progress=progress)) as groups_of_ended,
    ):
        for ended in groups_of_ended:
            for child in ended:
                try:
                    progress.end(child.trial, finish(child))
                except ComparisonFailed as failure:
                    progress.end(child.trial, str(failure))
                    failures.append(f"{child.trial.name} {failure}")
            result = write_results()
    if failures:
        raise ComparisonFailed("\n".join(failures))
    return result


def to_json(result: dict) -> str:
    """A result as JSON with one line for each list of numbers."""
    text = json.dumps(result, indent=2, allow_nan=False)
    # A line break right after "[" is never inside a JSON string.
    lists_of_numbers = re.compile(r"\[\n([^\[\]{}\"]*)\]")
    return lists_of_numbers.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"


# What is on disk already ------------------------------------------------------------------------------------


def _check_same_settings(trial: Trial, asked: dict, unit: Unit) -> None:
    """Runs with other settings must not be averaged in: refuse them before anything is touched."""
    if not (trial.is_started or trial.is_finished):
        return
    settings_file = trial.folder.parent / "settings.json"
    if settings_file.exists():
        stored = json.loads(settings_file.read_text())
        for field, value in asked.items():
            if stored.get(field) != value:
                raise _other_settings(trial, field, _as_text(stored.get(field)), _as_text(value))
    if trial.is_started:
        stored = _read_config(trial.folder / "config.yaml")
        expected = {field: asked[field] for field in ("recipe", "env", unit)}
        expected |= {"seed": trial.seed, **_fields_of(asked["arguments"])}
        for field, value in expected.items():
            if field in stored and not _is_same(stored[field], value):
                raise _other_settings(trial, field, _as_text(stored[field]), _as_text(value))


def _other_settings(trial: Trial, field: str, stored: str, asked: str) -> ValueError:
    return ValueError(
        f"{field}: {trial.folder} ran with {stored}, this comparison asks for {asked}; "
        f"ask for {stored} or choose another --out"
    )


def _read_config(path: Path) -> dict:
    """The fields of a run's `config.yaml`, those of nested sections beside those at the top."""
    config = yaml.safe_load(path.read_text())
    nested = [section for section in config.values() if isinstance(section, dict)]
    return {field: value for section in [*nested, config] for field, value in section.items()}


def _fields_of(arguments: list[str]) -> dict[str, list[str]]:
    """`["--sizes", "64", "64", "--no-anneal"]` → `{"sizes": ["64", "64"], "anneal": ["False"]}`."""
    fields: dict[str, list[str]] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            option, has_value, value = argument[2:].partition("=")
            name = option.replace("-", "_")
            fields[name] = [value] if has_value else []
        elif name:
            fields[name].append(argument)
    flags = {name for name, values in fields.items() if not values}
    return {
        name.removeprefix("no_") if name in flags else name: values or [str(not name.startswith("no_"))]
        for name, values in fields.items()
    }


def _is_same(stored: object, asked: object) -> bool:
    """Is a value from YAML the one that was asked for, there as text: 3e-4 and 0.0003 are the same."""
    stored = stored if isinstance(stored, list) else [stored]
    asked = asked if isinstance(asked, list) else [asked]
    return len(stored) == len(asked) and all(map(_is_same_item, stored, asked))


def _is_same_item(stored: object, asked: object) -> bool:
    try:
        return float(stored) == float(asked)
    except (TypeError, ValueError):
        return str(stored).lower() == str(asked).lower()


def _as_text(value: object) -> str:
    return (shlex.join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _read_outcome(trial: Trial) -> Outcome:
    path = trial.folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: expected a JSON object, got {error}; delete it to resume the run"
        ) from error
    if not isinstance(summary.get("score"), int | float) or not math.isfinite(summary["score"]):
        raise ValueError(
            f"{path}: expected a finite score, got {summary.get('score')}; delete the run's folder"
        )
    return Outcome(summary, plots.read_metrics(trial.folder))


# Progress ---------------------------------------------------------------------------------------------------


class Lines:
    """Progress as plain lines, for a pipe or a log."""

    def __init__(self, console: Console, *, steps: int, unit: Unit, total: int, finished: int):
        self.console = console
        self.steps, self.unit, self.total, self.ended = steps, unit, total, finished
        self.last_line_at = time.monotonic()

    def __enter__(self) -> "Lines":
        if self.ended:
            self.say(f"{self.ended} of {self.total} runs were finished before and are reused")
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def show(self, steps_done: dict[Trial, int]) -> None:
        if time.monotonic() - self.last_line_at < SECONDS_BETWEEN_LINES:
            return
        self.last_line_at = time.monotonic()
        self.say(
            "; ".join(
                f"{trial.name}: {done:,} of {self.steps:,} {self.unit}" for trial, done in steps_done.items()
            )
        )

    def end(self, trial: Trial, outcome: str) -> None:
        self.ended += 1
        self.say(f"[{self.ended}/{self.total}] {trial.name} {outcome}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bars(Lines):
    """Progress as one bar for the comparison and one for each running child, for a terminal."""

    def __init__(self, console: Console, *, steps: int, unit: Unit, total: int, finished: int):
        super().__init__(console, steps=steps, unit=unit, total=total, finished=finished)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=console)
        self.whole = self.bars.add_task("all runs", total=steps * total, completed=steps * finished)
        self.of_trial = {}

    def __enter__(self) -> "Bars":
        self.bars.start()
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def show(self, steps_done: dict[Trial, int]) -> None:
        for trial, done in steps_done.items():
            if trial not in self.of_trial:
                self.of_trial[trial] = self.bars.add_task(trial.name, total=self.steps)
            self.bars.update(self.of_trial[trial], completed=done)
        self.bars.update(self.whole, completed=self.ended * self.steps + sum(steps_done.values()))

    def end(self, trial: Trial, outcome: str) -> None:
        super().end(trial, outcome)
        self.bars.remove_task(self.of_trial.pop(trial))


# The children -----------------------------------------------------------------------------------------------


def _start(trial: Trial, command: list[str], *, one_thread: bool) -> Child:
    trial.folder.mkdir(parents=True, exist_ok=True)
    with (trial.folder / "stderr.log").open("ab") as log:
        log_start = log.tell()  # Before the child writes: it shares the offset.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=os.environ | ({"OMP_NUM_THREADS": "1"} if one_thread else {}),
            # A group of its own: Ctrl-C on the terminal reaches the child once, through us, not twice.
            process_group=0,
        )
    return Child(trial, process, log_start)


def _run_all(
    trials: Iterable[Trial], *, start: Callable[[Trial], Child], jobs: int, progress: Lines
) -> Iterator[list[Child]]:
    """Run all, `jobs` at a time, and yield those that ended; whatever interrupts it stops the children."""
    waiting, running = deque(trials), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(start(waiting.popleft()))
            time.sleep(POLL_SECONDS)
            progress.show({child.trial: _steps_done(child.trial, progress.unit) for child in running})
            ended = [child for child in running if child.process.poll() is not None]
            running = [child for child in running if child not in ended]
            if ended:
                yield ended
    finally:
        _stop(running, progress)


def _stop(running: list[Child], progress: Lines) -> None:
    """Interrupt the children and wait for their checkpoints; a second Ctrl-C kills them."""
    if not running:
        return
    try:
        progress.say(f"Stopping {len(running)} of the runs at their next checkpoint; Ctrl-C again kills them")
        for child in running:
            child.process.send_signal(signal.SIGINT)
        for child in running:
            child.process.wait()
    except KeyboardInterrupt:
        for child in running:
            child.process.kill()
            child.process.wait()


def _steps_done(trial: Trial, unit: Unit) -> int:
    """How much of its budget the last whole line of a run's metrics has spent; 0 before the first."""
    path = trial.folder / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65_536))
        whole_lines = file.read().rpartition(b"\n")[0]
    last = json.loads(whole_lines.rpartition(b"\n")[2]) if whole_lines else {}
    return last.get("real_steps" if unit == "steps" else unit, 0)


def _check_succeeded(child: Child) -> None:
    code = child.process.returncode
    if code == 0 and child.trial.is_finished:
        return
    log = child.trial.folder / "stderr.log"
    with log.open("rb") as file:
        file.seek(child.log_start)
        lines = file.read().decode(errors="replace").rstrip().splitlines()[-LINES_OF_A_FAILURE:]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if code == 0:
        how += " but no summary.json"
    said = "".join(f"\n    {line}" for line in lines) or " (empty)"
    raise ComparisonFailed(f"failed with {how}; the end of {log}:{said}")


# The result -------------------------------------------------------------------------------------------------


def _result(
    outcomes: dict[str, dict[int, Outcome]],
    arms: dict[str, list[str]],
    *,
    env: str,
    steps: int,
    unit: Unit,
    seeds: int,
) -> dict:
    """The content of `compare.json`; the same outcomes give the same result, to the last digit."""
    curves = {
        arm: {seed: plots.series(outcome.metrics, "evaluation_return") for seed, outcome in of_arm.items()}
        for arm, of_arm in outcomes.items()
    }
    curves_with_area = [curve for of_arm in curves.values() for curve in of_arm.values() if len(curve[0]) > 1]
    covered = _covered_by_all(curves_with_area)
    scores = {
        arm: {seed: float(outcome.summary["score"]) for seed, outcome in of_arm.items()}
        for arm, of_arm in outcomes.items()
    }
    areas = {
        arm: {seed: _area_within(covered, *curve) for seed, curve in of_arm.items()}
        for arm, of_arm in curves.items()
    }
    return {
        "env": env,
        "steps": steps,
        "unit": unit,
        "seeds": seeds,
        "command": _command(),
        "versions": _versions(
            [outcome.summary for of_arm in outcomes.values() for outcome in of_arm.values()]
        ),
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "auc_steps": covered,
        "arms": {
            arm: {
                "arguments": arms[arm],
                "seeds": list(of_arm),
                **_centre("score_iqm", "interval", scores[arm]),
                "per_seed": list(scores[arm].values()),
                **_centre("auc_iqm", "auc_interval", areas[arm]),
                "auc_per_seed": list(areas[arm].values()),
                "ledger": _mean_ledger(list(of_arm.values())),
                "curve": _mean_curve(list(curves[arm].values()), with_band=True),
                "ledger_curves": {
                    column: curve
                    for column in CURVE_COLUMNS
                    if (curve := _mean_curve([plots.series(o.metrics, column) for o in of_arm.values()]))
                },
            }
            for arm, of_arm in outcomes.items()
        },
        "pairs": {
            f"{a}-{b}": _pair(scores[a], scores[b]) | {"auc": _pair(areas[a], areas[b], with_ratio=True)}
            for a, b in itertools.permutations(arms, 2)
        },
    }


def _generator() -> np.random.Generator:
    # A fresh one for every interval, so that adding an arm does not move the limits of another.
    return np.random.default_rng(BOOTSTRAP_SEED)


def _centre(name: str, interval_name: str, by_seed: dict[int, float | None]) -> dict:
    values = np.array([value for value in by_seed.values() if value is not None])
    interval = stratified_bootstrap_interval(values, rng=_generator())
    return {
        name: float(interquartile_mean(values)) if len(values) else None,
        interval_name: interval and list(interval),
    }


def _pair(a: dict[int, float | None], b: dict[int, float | None], *, with_ratio: bool = False) -> dict:
    """Arm `a` against arm `b` on the seeds that both have finished."""
    both = [seed for seed in a if a[seed] is not None and b.get(seed) is not None]
    names = ["difference", "probability_of_improvement", *(["ratio"] if with_ratio else [])]
    estimates = dict.fromkeys(names)
    if both:
        of_a, of_b = np.array([a[seed] for seed in both]), np.array([b[seed] for seed in both])
        estimates["difference"] = paired_difference(of_a, of_b, rng=_generator())
        estimates["probability_of_improvement"] = probability_of_improvement(of_a, of_b, rng=_generator())
        # A ratio of returns means nothing where one of them is not positive.
        if with_ratio and min(of_a.min(), of_b.min()) > 0:
            estimates["ratio"] = ratio_interval(of_a, of_b, rng=_generator())
    pair: dict = {"seeds": both}
    for name, estimate in estimates.items():
        interval_name = "interval" if name == "difference" else f"{name}_interval"
        pair |= {name: estimate and estimate.estimate, interval_name: estimate and estimate.interval}
    return pair


def _covered_by_all(curves: list[tuple[np.ndarray, np.ndarray]]) -> list[float] | None:
    """The range of steps inside every curve, None if there is none.

    An arm that evaluates earlier than another would otherwise pay for the low returns of its beginning.
    """
    if not curves:
        return None
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    return [float(first), float(last)] if first < last else None


def _area_within(covered: list[float] | None, steps: np.ndarray, returns: np.ndarray) -> float | None:
    if covered is None or len(steps) < 2:
        return None
    inside = steps[(steps > covered[0]) & (steps < covered[1])]
    grid = np.array([covered[0], *inside, covered[1]])
    return area_under_curve(grid, np.interp(grid, steps, returns))


def _mean_curve(curves: list[tuple[np.ndarray, np.ndarray]], *, with_band: bool = False) -> dict | None:
    """Interquartile mean over seeds at up to `POINTS_OF_A_CURVE` steps, within the range that all cover."""
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return None
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    if not len(grid):
        return None
    grid = grid[np.unique(np.linspace(0, len(grid) - 1, POINTS_OF_A_CURVE).round().astype(int))]
    on_grid = np.array([np.interp(grid, steps, values) for steps, values in curves])
    curve: dict = {"steps": grid.tolist(), "iqm": interquartile_mean(on_grid, axis=0).tolist()}
    if with_band:
        band = pointwise_bootstrap_interval(on_grid, rng=_generator())
        curve["low"], curve["high"] = [limit.tolist() for limit in band] if band else (None, None)
    return curve


def _mean_ledger(outcomes: list[Outcome]) -> dict[str, float]:
    """Mean over seeds of every numeric column: from the summary, else the mean of the iterations."""
    ledgers = []
    for outcome in outcomes:
        means = {column: plots.series(outcome.metrics, column)[1] for column in LEDGER_COLUMNS}
        ledger = {column: float(values.mean()) for column, values in means.items() if len(values)}
        numbers = {
            column: value
            for column, value in outcome.summary["ledger"].items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        ledgers.append(numbers | {column: value for column, value in ledger.items() if column not in numbers})
    columns = dict.fromkeys(column for ledger in ledgers for column in ledger)
    return {
        column: float(np.mean([ledger[column] for ledger in ledgers if column in ledger]))
        for column in columns
    }


def _versions(summaries: list[dict]) -> dict[str, str]:
    """Versions that the runs were made with; all of them where runs differ."""
    names = sorted({name for summary in summaries for name in summary["versions"]})
    return {
        name: ", ".join(sorted({str(summary["versions"].get(name)) for summary in summaries}))
        for name in names
    }


def _command() -> str:
    name = Path(sys.argv[0]).name
    return shlex.join(["peira" if name == "__main__.py" else name, *sys.argv[1:]])


# What people read -------------------------------------------------------------------------------------------


def table(result: dict) -> Table:
    """The comparison for a terminal: scores, pairs and the experience ledger under one another."""
    grid = Table.grid(padding=(0, 0, 1, 0))
    grid.add_row(_title(result), style="bold")
    for title, header, rows in _tables(result):
        part = Table(*header, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in part.columns[1:]:
            column.justify = "right"
        part.columns[0].no_wrap = True
        for row in rows:
            part.add_row(*row)
        grid.add_row(part)
    grid.add_row("\n".join(_notes(result)), style="dim")
    return grid


def markdown(result: dict) -> str:
    """The comparison as a page: the command, the tables, the plot and how to read them."""
    lines = [f"# {_title(result)}", "", "```", result["command"], "```", ""]
    for title, header, rows in _tables(result):
        lines += [f"## {title}", "", f"| {' | '.join(header)} |", f"|---{'|--:' * (len(header) - 1)}|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    lines += ["![Learning curves](compare.png)", "", *[f"- {note}" for note in _notes(result)], ""]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result["machine"]
    lines += [
        f"Made with {versions or 'no finished run'} on {machine['platform']}, {machine['cores']} cores."
    ]
    return "\n".join(lines) + "\n"


def _title(result: dict) -> str:
    unit = "real steps" if result["unit"] == "steps" else result["unit"]
    return f"{', '.join(result['arms'])} on {result['env']}, {result['steps']:,} {unit}"


def _tables(result: dict) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table."""
    arms = result["arms"]
    yield (
        "Scores",
        ["arm", "seeds", "score", "area under the curve"],
        [
            [
                name,
                str(len(arm["seeds"])),
                _with_interval(arm["score_iqm"], arm["interval"]),
                _with_interval(arm["auc_iqm"], arm["auc_interval"]),
            ]
            for name, arm in arms.items()
        ],
    )
    if len(arms) > 1:
        header = ["pair a − b", "", "difference", "ratio", "P(a > b)"]
        yield "Pairs", header, list(_pair_rows(result))
    columns = dict.fromkeys(column for arm in arms.values() for column in arm["ledger"])
    yield (
        "Experience ledger, mean over seeds",
        ["", *arms],
        [
            [column.replace("_", " "), *[_number(arm["ledger"].get(column)) for arm in arms.values()]]
            for column in columns
            if any(arm["ledger"].get(column) for arm in arms.values())
        ],
    )


def _pair_rows(result: dict) -> Iterator[list[str]]:
    for a, b in itertools.combinations(result["arms"], 2):
        pair = result["pairs"][f"{a}-{b}"]
        for label, what, part in ((f"{a} − {b}", "score", pair), ("", "area", pair["auc"])):
            yield [
                label,
                what,
                _with_interval(part["difference"], part["interval"]),
                _with_interval(part.get("ratio"), part.get("ratio_interval")),
                _with_interval(
                    part["probability_of_improvement"], part["probability_of_improvement_interval"]
                ),
            ]


def _notes(result: dict) -> list[str]:
    """How to read the tables, with what these seeds cannot show."""
    arms = result["arms"].values()
    fewest, finished = min(len(arm["seeds"]) for arm in arms), sum(len(arm["seeds"]) for arm in arms)
    expected = len(result["arms"]) * result["seeds"]
    notes = []
    if finished < expected:
        notes.append(f"Unfinished: {finished} of {expected} runs; pairs use the seeds that both arms have.")
    notes.append("Score and area: interquartile mean over seeds, [95 % bootstrap interval].")
    if fewest < 2:
        notes.append("No interval with fewer than 2 seeds: one run says nothing about the spread of runs.")
    if fewest < 4:
        notes.append("With fewer than 4 seeds the interquartile mean is the mean.")
    if 2 <= fewest < 5:
        notes.append(
            f"With {fewest} seeds a bootstrap interval is too narrow: the doubt is larger than it says."
        )
    if result["auc_steps"] is not None:
        first, last = result["auc_steps"]
        notes.append(
            f"Area: mean evaluation return from step {first:,.0f} to {last:,.0f}, the range of every curve."
        )
    return notes


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    limits = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else ""
    return _number(value) + limits


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
