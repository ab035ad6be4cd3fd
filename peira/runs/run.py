"""One experiment: its folder, seeds, progress, ledger, checkpoints, and how it is taken up again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from peira.evaluation.episodes import Evaluation
from peira.experience.assemble import EpisodeAssembler
from peira.experience.batch import Batch
from peira.experience.decision_steps import SCHEMA_FILE, decisions_to_steps, write_schema
from peira.experience.decisions import FeatureSchema, LoggedDecisions
from peira.experience.dialogue import TextEpisode, total_steps
from peira.experience.disk import write_whole
from peira.experience.episode import episode_ids, episodes_to_table
from peira.experience.store import Store
from peira.experience.writer import BufferedWriter
from peira.policies.actor_critic import ActorCritic
from peira.policies.files import policy_hash, save_policy
from peira.runs import checkpoint, plots
from peira.runs.ledger import COSTS, on_policy_columns
from peira.sources.synthetic import SyntheticSet
from peira.versions import machine, versions

SECONDS_BETWEEN_LINES = 5.0


class Run:
    """What a recipe sees of the world outside: progress, metrics, store, checkpoints and seeds.

    A recipe asks for its generators, names the parts that must survive (`keep`), then loops over
    `iterations()`; in the loop it reports what it gathered, learned from, measured and evaluated. Everything
    else happens here.
    """

    def __init__(
        self,
        folder: Path,
        recipe: str,
        config: Any,
        *,
        console: Console,
        resumed: bool,
        checkpoint_seconds: float,
    ):
        self.folder, self.recipe, self.config = folder, recipe, config
        # A recipe that learns from a log alone has a budget of updates and takes no real step.
        self.steps, self.seed = getattr(config, "steps", 0), config.seed
        self.budget, self._spent_as = self.steps, "real_steps"
        self.iteration = 0
        self.costs = dict.fromkeys(COSTS, 0)
        self.evaluation: Evaluation | None = None
        self._evaluations = 0
        self._console = console
        self._checkpoint_seconds = checkpoint_seconds
        self._row: dict[str, float] = {}
        self._generators: dict[str, torch.Generator] = {}
        self._parts: dict[str, Any] = {}
        self._means: dict[str, list[float]] = {}
        self._wall_before, self._began = 0.0, time.monotonic()
        self._interrupted = False
        self._loop: Iterator[int] | None = None
        self._episodes = 0
        self._state: dict | None = None
        self._checkpointed: int | None = None
        self._remarks: list[str] = []
        self._doing = "", 0, 0
        self._resumed = resumed
        self._lock = _lock(folder)
        about = yaml.safe_load((folder / "config.yaml").read_text())
        self.id, self._started_ms = about["run_id"], about["started_ms"]
        if resumed and (newest := checkpoint.newest(folder / "checkpoints")):
            self._restore(checkpoint.load_tree(newest))
        self._metrics = self._open_metrics()
        # What an earlier process showed beyond the checkpoint will be shown again.
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=self.iteration + 1 if resumed else None
        )
        self._assembler: EpisodeAssembler | None = None
        self._writer: BufferedWriter | None = None
        self._stored: pa.Array | None = None

    # Seeds and parts ----------------------------------------------------------------------------------------

    def generator(self, name: str) -> torch.Generator:
        """The generator of this name, seeded from the run's seed; its state is part of every checkpoint."""
        if name not in self._generators:
            generator = torch.Generator().manual_seed(self.derived_seed(name))
            if self._state is not None and name in self._state["generators"]:
                generator.set_state(self._state["generators"][name])
            self._generators[name] = generator
        return self._generators[name]

    def derived_seed(self, name: str) -> int:
        """A 31-bit seed that follows from the run's seed and a name, and from nothing else."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def keep(self, **parts: Any) -> bool:
        """Put these parts (each with state_dict and load_state_dict) into every checkpoint.

        On a resumed run they are brought to their state in the newest checkpoint and True is returned; False
        means that the run begins here.
        """
        self._parts.update(parts)
        if self._state is None:
            return False
        for name, part in parts.items():
            part.load_state_dict(self._state["parts"][name])
        return True

    # The loop -----------------------------------------------------------------------------------------------

    @property
    def real_steps(self) -> int:
        """Environment steps gathered for learning so far."""
        return self.costs["real_steps"]

    @property
    def spent(self) -> int:
        """How much of `budget` is used up: real steps or updates, whichever `iterations` was told."""
        return self.costs[self._spent_as]

    @property
    def is_over(self) -> bool:
        """Whether the budget holds no further batch; a subclass may end the loop earlier."""
        return self.spent + self._batch_steps > self.budget

    @property
    def wall_seconds(self) -> float:
        """Seconds at work, over all the processes that this run took."""
        return self._wall_before + time.monotonic() - self._began

    def iterations(
        self, batch_steps: int, *, budget: Literal["real_steps", "updates"] = "real_steps"
    ) -> Iterator[int]:
        """Count iterations of `batch_steps` real steps each, as many as the budget holds but never more.

        With budget="updates" the budget is `config.updates` and an iteration is `batch_steps` of them: the recipe adds
        to `costs["updates"]` what it did, and an iteration that adds nothing costs nothing. Between two of them the
        metrics are written and, when due, a checkpoint. After Ctrl-C (or SIGTERM) the iteration is finished, a
        checkpoint written and KeyboardInterrupt raised; a second Ctrl-C stops at once.
        """
        if budget == "updates":
            self.budget, self._spent_as = getattr(self.config, "updates", self.steps), "updates"
            self.costs.setdefault("updates", 0)
        self._loop = self._count(batch_steps)
        return self._loop

    def _count(self, batch_steps: int) -> Iterator[int]:
        previous = {kind: signal.signal(kind, self._interrupt) for kind in (signal.SIGINT, signal.SIGTERM)}
        saved = time.monotonic()
        self._batch_steps = batch_steps
        try:
            with _Progress(self) as self._progress:
                while not self.is_over:
                    self.iteration += 1
                    self._row = {}
                    yield self.iteration
                    self._write_metrics()
                    self._progress.show(self._row)
                    if self._interrupted or time.monotonic() - saved >= self._checkpoint_seconds:
                        self.checkpoint()
                        saved = time.monotonic()
                    if self._interrupted:
                        raise KeyboardInterrupt
        finally:
            for kind, handler in previous.items():
                signal.signal(kind, handler)
        self.checkpoint()

    def gathered(self, policy: ActorCritic, batch: Batch) -> None:
        """Book real steps just gathered, and hand the episodes that they complete to the store."""
        self.costs["real_steps"] += batch.steps
        self._row.update(self.costs)
        if not self.config.store:
            return
        columns = {
            name: getattr(batch, name).numpy()
            for name in ("observation", "action", "reward", "terminated", "truncated", "behaviour_log_prob")
        }
        columns["final_observation"] = batch.next_observation.numpy()
        if self._assembler is None:
            self._assembler = EpisodeAssembler(batch.reward.shape[1], self.id, self._started_ms)
            if self._state is not None and self._state["assembler"]:
                self._assembler.load_state_dict(self._state["assembler"])
        table = self._assembler.add(
            columns,
            policy_id=self.policy_id,
            policy_version=policy.version,
            source="real",
            task_id=self.config.env,
        )
        self._keep_experience(table)

    def gathered_episodes(self, episodes: Sequence[TextEpisode], *, cost: str = "real_steps") -> None:
        """Book whole episodes of text just gathered, their steps under `cost`, and hand them to the store."""
        self.costs[cost] += total_steps(episodes)
        self.costs["tokens"] += sum(episode.sampled_tokens for episode in episodes)
        self._row.update(self.costs)
        if self.config.store and (acted := [episode for episode in episodes if episode.steps]):
            self._keep_experience(
                episodes_to_table([episode.to_episode(self.policy_id) for episode in acted])
            )

    def gathered_decisions(self, number: int) -> None:
        """Book decisions just made; they are handed to the store when their outcomes are known."""
        self.costs["real_steps"] += number
        self._row.update(self.costs)

    def keep_decisions(self, rows: LoggedDecisions, schema: FeatureSchema, *, source: str) -> None:
        """Hand decisions with their outcomes to the store, each an episode of one step."""
        ids = self.episode_ids(len(rows))
        if self.config.store:
            if not (self.folder / SCHEMA_FILE).exists():
                write_schema(self.folder, schema)
            steps = decisions_to_steps(
                rows,
                schema,
                event_ids=ids,
                policy_id=self.policy_id,
                source=source,
                started_ms=self._started_ms,
            )
            self._keep_experience(steps)

    def invented(self, made: SyntheticSet) -> None:
        """Book synthetic steps under their source, and hand them to the store."""
        self.costs[f"{made.source}_steps"] += made.transitions.rows
        self._row.update(self.costs)
        if self.config.store:
            self._keep_experience(made.to_table(self.episode_ids(made.transitions.episodes)))

    def doing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Say what an iteration is about to do where that spends nothing of the budget; "" where it does again."""
        begins = what != self._doing[0]
        self._doing = what, done, total
        self._progress.show({}, at_once=begins and what != "")

    def remark(self, lines: list[str]) -> None:
        """What people should read beside the score: `remarks` of the summary."""
        self._remarks = lines

    def episode_ids(self, number: int) -> list[str]:
        """Names for the next `number` episodes: the same in a resumed run as in one that was never stopped."""
        first = self._episodes
        self._episodes += number
        return episode_ids(self.id, first, number, self._started_ms)

    def learns_from(self, policy: ActorCritic, batch: Batch) -> None:
        """Book the batch that `policy` is about to learn from: the on-policy columns of the ledger."""
        columns = on_policy_columns(policy, batch)
        self.book(columns, replayed_steps=round(columns.get("share_replayed", 0.0) * batch.steps))

    def book(self, columns: dict[str, float], *, replayed_steps: int) -> None:
        """Put the ledger's columns of what is about to be learned from into metrics and summary."""
        self.costs["replayed_steps"] += replayed_steps
        self._row.update(self.costs)
        self._row.update(columns)
        for name, value in columns.items():
            self._means.setdefault(name, []).append(value)

    def log(self, measures: dict[str, float]) -> None:
        """Add columns to this iteration's metrics."""
        self._row.update(measures)

    @property
    def evaluation_due(self) -> bool:
        """Whether another of `config.evaluations` equal parts of the budget, or all of it, is spent."""
        spent = self.spent * self.config.evaluations // self.budget
        return spent > self._evaluations or self.is_over

    @property
    def evaluation_seed(self) -> int:
        """Seed of the next evaluation: the same for every recipe under this run's seed."""
        return self.derived_seed("evaluation, last" if self.is_over else f"evaluation {self._evaluations}")

    def evaluated(self, evaluation: Evaluation) -> None:
        """Book an evaluation of the target policy on fresh episodes; the last one gives the run's score."""
        self.evaluation = evaluation
        self._evaluations = self.spent * self.config.evaluations // self.budget
        self.costs["evaluation_steps"] += evaluation.steps
        self._row["evaluation_return"] = evaluation.mean
        self._row["evaluation_length"] = float(evaluation.lengths.mean())
        self._row.update(self.costs)

    # Checkpoints --------------------------------------------------------------------------------------------

    @property
    def policy_id(self) -> str:
        return f"{self.recipe}-{self.id}"

    def checkpoint(self) -> None:
        """Make safe, in this order, the experience, the metrics and the state of every part."""
        if self._checkpointed == self.iteration:
            return  # Writing it anew would leave a moment without it.
        if self._writer is not None:
            self._writer.flush()
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        evaluation = self.evaluation
        state = {
            "iteration": self.iteration,
            "costs": self.costs,
            "evaluations": self._evaluations,
            "evaluation": evaluation and {"returns": evaluation.returns, "lengths": evaluation.lengths},
            "means": self._means,
            "wall_seconds": self.wall_seconds,
            "generators": {name: generator.get_state() for name, generator in self._generators.items()},
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "assembler": self._assembler and self._assembler.state_dict(),
            "episodes": self._episodes,
        }
        folder = self.folder / "checkpoints"
        checkpoint.save_tree(state, folder / str(self.iteration))
        checkpoint.drop_old(folder)
        self._checkpointed = self.iteration

    def finish(self, policy: ActorCritic) -> dict[str, Any]:
        """Save the policy, the curve and `summary.json`, and return the summary."""
        self.close()
        if policy.id != self.policy_id:
            policy.id = self.policy_id
        save_policy(policy, self.folder / "policy")
        interval = self.evaluation.interval()
        summary = {
            "recipe": self.recipe,
            "env": self.config.env,
            "steps": self.steps,
            **({"updates": self.budget} if self._spent_as == "updates" else {}),
            "seed": self.seed,
            "score": self.evaluation.mean,
            "score_interval": interval and list(interval),
            "score_episodes": len(self.evaluation.returns),
            "ledger": {
                **self.costs,
                "wall_seconds": round(self.wall_seconds, 3),
                **{name: float(np.mean(values)) for name, values in self._means.items()},
            },
            **({"remarks": self._remarks} if self._remarks else {}),
            "policy_hash": policy_hash(policy),
            "run_id": self.id,
            "out": str(self.folder),
            "versions": versions(),
            "machine": machine(),
        }
        write_whole(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        plots.learning_curve(self.folder)
        return summary

    def close(self) -> None:
        """End the loop and its progress bar, close all files, let go of the run; safe to call twice."""
        try:
            if self._loop is not None:
                self._loop.close()
            if self._writer is not None:
                self._writer.close()
        finally:
            self._metrics.close()
            self._board.close()
            self._lock.close()

    def _restore(self, state: dict) -> None:
        self._state = state
        self.iteration, self.costs = state["iteration"], state["costs"]
        self._checkpointed = self.iteration
        self._evaluations, self._means = state["evaluations"], state["means"]
        self._wall_before, self._episodes = state["wall_seconds"], state["episodes"]
        if state["evaluation"]:
            self.evaluation = Evaluation(**state["evaluation"])

    def _open_metrics(self):
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)[: self.iteration]
            write_whole(path, "".join(lines))
        return path.open("a")

    def _keep_experience(self, table: pa.Table) -> None:
        """Hand complete episodes to the store, without those that it holds already."""
        if self._writer is None:
            store = Store.open(self.folder / "experience.lance", mode="a")
            # Not only after a checkpoint: the store takes episodes in before the first one is due.
            if self._resumed and len(store):
                self._stored = store.read(columns=["episode_id"])["episode_id"].unique()
            self._writer = BufferedWriter(store)
        if self._stored is not None and table.num_rows:
            # A resumed run gathers again what the store took in after the checkpoint: the same episodes, in
            # the same order, so that the first new one ends the search.
            known = pc.is_in(table["episode_id"], value_set=self._stored)
            table = table.filter(pc.invert(known))
            if table.num_rows:
                self._stored = None
        self._writer.append(table)

    def _write_metrics(self) -> None:
        row = {"iteration": self.iteration, **self._row, "wall_seconds": round(self.wall_seconds, 3)}
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        for name, value in row.items():
            if name != "iteration":
                self._board.add_scalar(name, value, self.iteration)

    def _interrupt(self, kind: int, frame: object) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        self._console.print("stopping after this iteration; a checkpoint will be written", style="yellow")


def create_folder(folder: Path, recipe: str, config: Any, *, threads: int = 1) -> None:
    """Make a new run's folder with its `config.yaml`; `threads` is there because results depend on it.

    Raises ValueError when the folder already holds a run or cannot be made.
    """
    if (folder / "config.yaml").exists():
        raise ValueError(
            f"out: {folder} already holds a run; go on with it by --resume {folder}, or name another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise ValueError(
            f"out: cannot make the folder {folder}: {fault.strerror}; name another one"
        ) from fault
    started = time.time_ns() // 1_000_000
    about = {
        "recipe": recipe,
        "run_id": episode_ids(f"{folder.resolve()} {os.getpid()} {started}", 0, 1, started)[0],
        "started_ms": started,
        "threads": threads,
        "config": _plain(asdict(config)),
    }
    write_whole(folder / "config.yaml", yaml.safe_dump(about, sort_keys=False))


def read_config(folder: Path) -> tuple[str, dict[str, Any], int]:
    """The recipe's name, its settings and the number of threads, as a run's folder holds them.

    Raises ValueError when there is no run in the folder.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise ValueError(f"resume: {folder} holds no run (no config.yaml); name the folder given as --out")
    about = yaml.safe_load(path.read_text())
    if not isinstance(about, dict) or not {"recipe", "run_id", "started_ms", "config"} <= set(about):
        raise ValueError(f"resume: {path} was not written by `peira run`; name the folder given as --out")
    return about["recipe"], about["config"], about.get("threads", 1)


def config_from(kind: type, settings: dict[str, Any]) -> Any:
    """A recipe's Config from the settings in `config.yaml`; lists become the tuples that frozen configs hold.

    Raises ValueError when the settings do not fit the Config of this version.
    """
    known = {field.name for field in fields(kind)}
    if unknown := set(settings) ^ known:
        raise ValueError(
            f"resume: the run was made by another version of Peira: {', '.join(sorted(unknown))} differ"
        )
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    )


class _Progress:
    """A bar on a terminal, a line every few seconds in a pipe."""

    def __init__(self, run: Run):
        self._run, self._console = run, run._console
        self._said = time.monotonic()
        self._score = "–"
        self._unit = "updates" if run._spent_as == "updates" else "steps"
        self._bar = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + self._unit),
                TextColumn("return {task.fields[score]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )

    def __enter__(self) -> _Progress:
        run = self._run
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                self._title, total=run.budget, completed=run.spent, score=self._score
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def _title(self) -> str:
        run = self._run
        what, done, total = run._doing
        title = f"{run.recipe} {run.config.env} seed {run.seed}"
        return title + (f", {what}" if what else "") + (f" ({done:,} of {total:,})" if total else "")

    def show(self, row: dict[str, float], *, at_once: bool = False) -> None:
        run = self._run
        if "evaluation_return" in row:
            self._score = f"{row['evaluation_return']:.4g}"
        if self._bar is not None:
            done = min(run.spent, run.budget)
            self._bar.update(self._task, description=self._title, completed=done, score=self._score)
        elif at_once or time.monotonic() - self._said >= SECONDS_BETWEEN_LINES or run.is_over:
            self._said = time.monotonic()
            self._console.print(
                f"{self._title}: {run.spent:,}/{run.budget:,} {self._unit}, "
                f"return {self._score}, {run.wall_seconds:.0f} s",
                highlight=False,
                soft_wrap=True,
            )


def _lock(folder: Path) -> IO[str]:
    """Hold the run for this process; the system lets go of it when the process ends, however it ends."""
    file = (folder / "config.yaml").open()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"resume: another process is at work on the run in {folder}; wait for it or stop it"
        ) from None
    return file


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value
