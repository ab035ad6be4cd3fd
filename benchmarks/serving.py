"""How long the decision service takes to answer, every decision on disk first.

    python benchmarks/serving.py --seconds 60 --rate 500 --database sqlite --out results/speed/serving.json
    python benchmarks/serving.py --seconds 60 --rate 500 --database postgresql --out results/speed/serving.json
    python benchmarks/serving.py --seconds 10 --outcomes          # an outcome for every decision besides

The service runs in a process of its own, the requests come from this one, over loopback. They are sent by the clock,
whatever the service does, and a request's time runs from the moment at which it was due: a service that stalls is
charged for everything that had to wait. The contexts are payments, the policy is SquareCB on an oracle trained on
them. At the end the log is read: every decision that was answered has to be there exactly once, as answered.
PostgreSQL is a server of its own in a temporary folder with its durable defaults. --out keeps the other database's
figures.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import uvloop
from throwaway_postgresql import postgresql

from peira.environments.payment import PaymentWorld
from peira.experience.decision_steps import write_schema
from peira.experience.decisions import LoggedDecisions
from peira.learners.decision_policy import DecisionPolicy, ExplorerConfig
from peira.policies.oracles.make import make_oracle
from peira.serving.database import open_database
from peira.serving.demo import as_served

SERVE = """
import sys
from pathlib import Path
from rich.console import Console
from peira.serving.command import serve
from peira.serving.options import Options
serve(Path(sys.argv[1]), Options(port=int(sys.argv[2]), database=sys.argv[3] or None), Console(stderr=True))
"""
TOKEN = "benchmark-token-0123456789"
OUTCOME_DELAY = 1.0


def train(world: PaymentWorld, oracle: str, rows: int = 20_000) -> DecisionPolicy:
    """SquareCB, 10 % of its decisions off the greedy action, on a model of decisions that were made uniformly."""
    rng = np.random.default_rng(0)
    choices = world.contexts(rows, rng, 0)
    start = DecisionPolicy(None, ExplorerConfig(kind="uniform"), id="uniform", version=0)
    decided = start.decide(choices, rng)
    reward, _ = world.outcomes(choices, decided.column, rng, 0)
    log = LoggedDecisions(
        choices=choices,
        column=decided.column,
        propensity=decided.propensity,
        reward=reward,
        pmf=decided.pmf,
        generation=np.zeros(rows, np.int64),
        time=np.arange(rows, dtype=np.float64),
        uniform=decided.uniform_slice,
        cluster=np.arange(rows),
    )
    model = make_oracle(oracle, world.schema, 0).fit(log)
    explorer = ExplorerConfig(kind="squarecb", explore_mass=0.1, floor=0.02)
    return DecisionPolicy.deploy(model, explorer, choices.take(slice(5_000)), rows, id="squarecb", version=1)


@dataclass
class Load:
    """Sends bodies by the clock over connections that stay open."""

    port: int
    connections: int
    idle: deque[Connection] = field(default_factory=deque)
    waiting: deque[tuple[float, bytes, str]] = field(default_factory=deque)
    latency: dict[str, list[float]] = field(default_factory=lambda: {"/decide": [], "/outcome": []})
    lag: list[float] = field(default_factory=list)
    answers: list[dict] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    under_way: int = 0

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self.connections):
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)

    def send(self, due: float, body: bytes, path: str) -> None:
        if not self.idle:
            self.waiting.append((due, body, path))
            return
        # The one that was used last: its buffers are warm, as with a pool of a real client.
        self.idle.pop().send(due, body, path)

    def answered(self, connection: Connection, due: float, path: str, status: int, body: bytes) -> None:
        self.latency[path].append(time.perf_counter() - due)
        self.under_way -= 1
        if status == 200:
            if path == "/decide":
                self.answers.append(orjson.loads(body))
        else:
            self.errors.append(f"{path} {status}: {body[:200].decode()}")
        if self.waiting:
            connection.send(*self.waiting.popleft())
        else:
            self.idle.append(connection)

    async def run(self, bodies: list[bytes], rate: float, seconds: float, outcomes: bool) -> None:
        """Every body is due at its number over the rate."""
        total = round(rate * seconds)
        start = time.perf_counter() + 0.1
        owed: list[tuple[float, int]] = []  # Outcomes by the time at which they are due.
        sent = told = 0
        while sent < total or owed or self.under_way or self.waiting:
            now = time.perf_counter()
            while sent < total and (due := start + sent / rate) <= now:
                self.lag.append(now - due)
                self.under_way += 1
                self.send(due, bodies[sent % len(bodies)], "/decide")
                sent += 1
            while outcomes and told < len(self.answers):
                heapq.heappush(owed, (now + OUTCOME_DELAY, told))
                told += 1
            while owed and owed[0][0] <= now:
                due, number = heapq.heappop(owed)
                event = self.answers[number]["event_id"]
                self.under_way += 1
                self.send(due, orjson.dumps({"event_id": event, "reward": number % 2}), "/outcome")
            if sent == total and now > start + seconds + OUTCOME_DELAY + 15:
                self.errors += [f"{self.under_way} requests were not answered"] * self.under_way
                return
            await asyncio.sleep(0.001)


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: Load) -> None:
        self.load, self.received = load, b""
        self.asked: tuple[float, str] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.load.idle.append(self)

    def send(self, due: float, body: bytes, path: str) -> None:
        self.asked = (due, path)
        self.transport.write(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (path.encode(), TOKEN.encode(), len(body), body)
        )

    def data_received(self, part: bytes) -> None:
        self.received += part
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        (due, path), self.asked, self.received = self.asked, None, b""
        self.load.answered(self, due, path, int(head[9:12]), body)

    def connection_lost(self, fault: Exception | None) -> None:
        if self.asked is not None:
            self.load.errors.append(f"{self.asked[1]}: the connection was lost: {fault}")
            self.load.under_way -= 1


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    found = np.percentile(np.array(seconds) * 1e3, [50, 90, 99, 99.9, 100])
    return dict(zip(("p50", "p90", "p99", "p99.9", "max"), found.round(3).tolist(), strict=True))


def check_log(folder: Path, url: str | None, answers: list[dict]) -> dict[str, int]:
    """How many decisions were answered, are in the log, and are there once as answered."""
    database = open_database(url, folder)
    try:
        decisions, _ = database.matured(float("9e15"), 0.0, 2**31)
    finally:
        database.close()
    logged = {row.event_id: row for row in decisions}
    right = sum(
        (row := logged.get(answer["event_id"])) is not None
        and (row.action, row.propensity, row.policy_version)
        == (answer["action"], answer["propensity"], answer["policy_version"])
        for answer in answers
    )
    return {
        "answered": len(answers),
        "event ids answered": len({answer["event_id"] for answer in answers}),
        "logged": len(decisions),
        "event ids logged": len(logged),
        "logged as answered": right,
    }


def wait_until_up(port: int, server: subprocess.Popen) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(f"the service did not start; its exit status is {server.poll()}")


def measure(arguments: argparse.Namespace) -> dict:
    world = PaymentWorld(0)
    choices = world.contexts(10_000, np.random.default_rng(1), 0)
    bodies = [orjson.dumps(body) for body in as_served(choices, world.schema)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder)))
        url = stack.enter_context(postgresql()) if arguments.database == "postgresql" else None
        write_schema(folder, world.schema)
        train(world, arguments.oracle).save(folder / "policy")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(folder), str(port), url or ""],
            env=os.environ | {"PEIRA_TOKEN": TOKEN},
        )
        try:
            wait_until_up(port, server)
            load = Load(port, arguments.connections)

            async def drive() -> None:
                await load.connect()
                await load.run(bodies, arguments.rate, arguments.seconds, arguments.outcomes)

            before, used = os.getloadavg(), os.times()
            cpu = server_seconds(server.pid)
            uvloop.run(drive())
            cpu = server_seconds(server.pid) - cpu
            own = os.times()
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(30)
        log = check_log(folder, url, load.answers)
    return {
        "database": arguments.database,
        "oracle": arguments.oracle,
        "rate": arguments.rate,
        "seconds": arguments.seconds,
        "outcomes": arguments.outcomes,
        "decide_ms": percentiles(load.latency["/decide"]),
        **({"outcome_ms": percentiles(load.latency["/outcome"])} if arguments.outcomes else {}),
        "sent_late_ms": percentiles(load.lag),
        "errors": len(load.errors),
        "first_errors": load.errors[:3],
        "log": log,
        "exit_status": status,
        "service_cpu_share": round(cpu / arguments.seconds, 3),
        "client_cpu_share": round((own.user + own.system - used.user - used.system) / arguments.seconds, 3),
        "load_before": [round(of, 2) for of in before],
        "load_after": [round(of, 2) for of in os.getloadavg()],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
    }


def server_seconds(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=500.0, help="decisions a second")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--oracle", default="lightgbm", help="ridge, logistic, lightgbm, mlp or ensemble")
    parser.add_argument(
        "--outcomes", action="store_true", help="an outcome for every decision, a second later"
    )
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the database is put; by default TMPDIR"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file, by database")
    arguments = parser.parse_args()
    found = measure(arguments)
    print(json.dumps(found, indent=2))
    if arguments.out is not None:
        kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        name = arguments.database + (" with outcomes" if arguments.outcomes else "")
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({**kept, name: found}, indent=2) + "\n")
    right = len(set(found["log"].values())) == 1 and not found["errors"] and found["exit_status"] == 0
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
