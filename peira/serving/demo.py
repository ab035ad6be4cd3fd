"""`peira serve DIR --demo`: simulated payments ask a service, a trainer proposes, the gate decides, a person watches.

Three processes: the service as anyone would run it, this one, which sends payments over HTTP as they come and their
outcomes when they are known, and every few seconds a trainer. The first policy is uniform.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.live import Live
from rich.table import Table

from peira.environments.decision_world import best_value
from peira.environments.payment import PaymentWorld
from peira.experience.decision_steps import SCHEMA_FILE, write_schema
from peira.experience.decisions import Choices, FeatureSchema
from peira.learners.decision_policy import DecisionPolicy, ExplorerConfig
from peira.policies.oracles.make import make_oracle
from peira.serving.background import in_background
from peira.serving.database import open_database
from peira.serving.deployment import CANDIDATES, read_schema
from peira.serving.matured import matured_rows
from peira.serving.options import Options
from peira.serving.tokens import read_tokens

WINDOW_SECONDS = 3.0
TOLERANCE = 0.02
REPORT_SECONDS = 5.0
TRAIN_SECONDS = 10.0
LEAST_ROWS = 1_000
MEMORY = 40_000
"""Rows that a candidate is trained and judged on, half each."""
CONNECTIONS = 32
BLOCK = 500
LINES = 15


def show(folder: Path, options: Options, console: Console) -> None:
    """Run the demonstration until Ctrl-C (KeyboardInterrupt) or its time is over (returns).

    Raises ValueError for a folder that holds another service, OSError for a port that is taken.
    """
    world = PaymentWorld(0)
    if (folder / SCHEMA_FILE).exists() and read_schema(folder).hash != world.schema.hash:
        raise ValueError(f"demo: {folder} holds a service of other decisions; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_schema(folder, world.schema)
    served = replace(
        options,
        demo=False,
        demo_seconds=None,
        window=WINDOW_SECONDS,
        tolerance=max(options.tolerance, TOLERANCE),
        gate_rows=MEMORY,
        compact_minutes=min(options.compact_minutes, 0.5),
    )
    tokens, _ = read_tokens(folder, options.token_file)
    operator = next((token for role, token in tokens.pairs if role == "operator"), None)
    if operator is None:
        raise ValueError("token_file: the demonstration puts policies in force; add an operator's token")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    service = context.Process(target=_serve, args=(folder, served, sender))
    service.start()
    sender.close()
    try:
        port = _port(receiver, console)
        demonstration = Demonstration(folder, served, console, world, port, operator.decode())
        asyncio.run(demonstration.run(options.demo_rate, options.demo_seconds))
    finally:
        service.terminate()
        service.join()


def _serve(folder: Path, options: Options, ports: Pipe) -> None:
    from peira.serving.command import serve

    with ports, contextlib.suppress(KeyboardInterrupt):  # Ctrl-C goes to both; the other one tells of it.
        try:
            serve(folder, options, Console(stderr=True, quiet=True), ready=ports.send)
        except (ValueError, OSError, RuntimeError) as fault:
            ports.send(str(fault))


def _port(receiver: Pipe, console: Console) -> int:
    with console.status("the service starts …"):
        try:
            came = receiver.recv()
        except EOFError:
            came = "demo: the service ended before it listened"
    if isinstance(came, str):
        raise OSError(came)
    return came


def train(folder: Path, options: Options, version: int) -> float | None:
    """Save a candidate trained on the older half of what has matured; since when decisions are new to it, or None."""
    schema = read_schema(folder)
    database = open_database(options.database, folder)
    try:
        rows = matured_rows(database, schema, options, limit=MEMORY)
    finally:
        database.close()
    if rows is None or len(rows) < LEAST_ROWS:
        return None
    since = float(np.median(rows.time))
    learned = rows.take(rows.time < since)
    oracle = make_oracle("logistic", schema, 0).fit(learned)
    explorer = ExplorerConfig(kind="squarecb", explore_mass=0.1, floor=0.02, uniform_slice=0.02)
    policy = DecisionPolicy.deploy(
        oracle, explorer, learned.choices.take(slice(-5_000, None)), len(learned), "demo", version
    )
    policy.save(folder / CANDIDATES / f"generation-{version:04d}")
    return since


def as_served(choices: Choices, schema: FeatureSchema) -> Iterator[dict[str, Any]]:
    """The bodies of `POST /decide` for these rows, actions in the order of the columns."""
    values = [("", *known) for known in schema.categories.values()]
    for number, category, action, feature in zip(
        choices.number.tolist(),
        choices.category.tolist(),
        choices.action.tolist(),
        choices.feature.tolist(),
        strict=True,
    ):
        context = dict(zip(schema.numbers, number, strict=True))
        context |= {
            name: of[code] for name, of, code in zip(schema.categories, values, category, strict=True)
        }
        yield {
            "context": context,
            "actions": [
                {"id": schema.actions[code], "features": dict(zip(schema.action_numbers, of, strict=True))}
                for code, of in zip(action, feature, strict=True)
                if code >= 0
            ],
        }


@dataclass
class Measured:
    """What came in since the last report."""

    began: float = field(default_factory=time.perf_counter)
    seconds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    regrets: list[float] = field(default_factory=list)
    uniform_regrets: list[float] = field(default_factory=list)
    version: int = 0


class Demonstration:
    """Payments, their outcomes, a trainer and what is shown of them."""

    def __init__(
        self, folder: Path, options: Options, console: Console, world: PaymentWorld, port: int, token: str
    ) -> None:
        self._folder, self._options, self._console, self._world = folder, options, console, world
        self._port, self._token = port, token
        self._rng = np.random.default_rng()
        self._idle: asyncio.Queue[Pair] = asyncio.Queue()
        self._measured = Measured()
        self._errors: list[str] = []
        self._lines: list[tuple[str, ...]] = []
        self._decisions = 0
        self._said = f"uniform until {LEAST_ROWS:,} decisions have matured"
        self._under_way: set[asyncio.Task] = set()

    async def run(self, rate: float, seconds: float | None) -> None:
        for _ in range(CONNECTIONS):
            self._idle.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))
        self._failed = asyncio.get_running_loop().create_future()
        forever = [
            self._failed,
            *(
                asyncio.create_task(of)
                for of in (self._pay(rate), self._train(), self._report(time.perf_counter()))
            ),
        ]
        try:
            done, _ = await asyncio.wait(forever, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (EOFError, ConnectionError) as fault:
            raise OSError("demo: the service ended") from fault
        finally:
            for task in (*forever, *self._under_way):
                task.cancel()
            await asyncio.gather(*forever, *self._under_way, return_exceptions=True)
            while not self._idle.empty():
                self._idle.get_nowait()[1].close()

    async def _pay(self, rate: float) -> None:
        """One payment after another by the clock, whatever the service does."""
        started, number = time.perf_counter(), 0
        while True:
            choices = self._world.contexts(BLOCK, self._rng, number)
            expected = self._world.expected_reward(choices, number)
            best, even = best_value(expected), np.nanmean(expected, axis=1)
            for row, body in enumerate(as_served(choices, self._world.schema)):
                due = started + number / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                regret = best[row] - expected[row]
                task = asyncio.create_task(
                    self._payment(choices.take([row]), body, number, due, rate, regret, best[row] - even[row])
                )
                self._under_way.add(task)
                task.add_done_callback(self._paid)
                number += 1

    def _paid(self, task: asyncio.Task) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None and not self._failed.done():
            self._failed.set_exception(task.exception())

    async def _payment(
        self,
        payment: Choices,
        body: dict[str, Any],
        number: int,
        due: float,
        rate: float,
        regret: np.ndarray,
        uniform_regret: float,
    ) -> None:
        status, answer = await self._ask("/decide", body)
        if status != 200:
            return
        self._decisions += 1
        now = self._measured
        now.seconds.append(time.perf_counter() - due)
        now.regrets.append(regret[answer["index"]])
        now.uniform_regrets.append(uniform_regret)
        now.version = answer["policy_version"]
        column = np.array([answer["index"]])
        [reward], [delay] = self._world.outcomes(payment, column, self._rng, number)
        await asyncio.sleep(delay / rate)
        status, _ = await self._ask("/outcome", {"event_id": answer["event_id"], "reward": float(reward)})
        if status == 200:
            self._measured.rewards.append(reward)

    async def _train(self) -> None:
        """Train, propose, and tell what the gate said."""
        version = max(
            (int(of.name.rpartition("-")[2]) for of in (self._folder / CANDIDATES).glob("generation-*")),
            default=0,
        )
        while True:
            await asyncio.sleep(TRAIN_SECONDS)
            since = await in_background(train, self._folder, self._options, version + 1)
            if since is None:
                continue
            version += 1
            status, answer = await self._ask(
                "/policy", {"candidate": f"generation-{version:04d}", "since": since}, expected=(200, 409)
            )
            said = "; ".join(answer["reasons"]) if status == 200 else answer["error"]
            self._said = f"generation {version} {'takes over' if status == 200 else 'is refused'}: {said}"

    async def _ask(
        self, path: str, body: dict[str, Any], expected: tuple[int, ...] = (200, 202)
    ) -> tuple[int, dict[str, Any]]:
        content = orjson.dumps(body)
        reader, writer = pair = await self._idle.get()
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        self._idle.put_nowait(pair)
        status = int(head[9:12])
        if status not in expected:
            self._errors.append(f"{path} {status}: {answer['error']}")
        return status, answer

    async def _report(self, started: float) -> None:
        terminal = self._console.is_terminal
        with (
            Live(console=self._console, auto_refresh=False) if terminal else contextlib.nullcontext() as live
        ):
            while True:
                await asyncio.sleep(REPORT_SECONDS)
                past, self._measured = self._measured, Measured()
                self._lines = [*self._lines, self._line(past, started)][-LINES:]
                if terminal:
                    live.update(self._table(), refresh=True)
                else:
                    cells = zip(_COLUMNS, self._lines[-1], strict=True)
                    line = ", ".join(f"{name} {cell}" for name, cell in cells)
                    self._console.print(f"{line}; {self._said}", highlight=False, soft_wrap=True)

    def _line(self, past: Measured, started: float) -> tuple[str, ...]:
        now = time.perf_counter()

        def mean(of: list[float]) -> str:
            return f"{np.mean(of):.4f}" if of else "–"

        p50, p99 = np.percentile(past.seconds or [np.nan], [50, 99]) * 1e3
        return (
            f"{now - started:.0f}",
            f"{len(past.seconds) / (now - past.began):.0f}",
            mean(past.rewards),
            mean(past.regrets),
            mean(past.uniform_regrets),
            str(past.version),
            f"{p50:.1f}",
            f"{p99:.1f}",
            str(len(self._errors)),
        )

    def _table(self) -> Table:
        table = Table(
            title=f"http://127.0.0.1:{self._port} decides payments, {self._decisions:,} so far; API at /docs",
            caption=self._errors[-1] if self._errors else self._said,
        )
        for name in _COLUMNS:
            table.add_column(name, justify="right")
        for line in self._lines:
            table.add_row(*line)
        return table


Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_COLUMNS = (
    "seconds",
    "decisions/s",
    "mean reward",
    "regret",
    "regret if uniform",
    "generation",
    "p50 ms",
    "p99 ms",
    "errors",
)
