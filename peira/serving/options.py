"""Settings of the decision service."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Options:
    """Decide by HTTP: POST /decide and /outcome, GET /policy, /metrics and /health; every answer is on disk first.

    DIR holds schema.json (features and actions), policy/ (none: decide uniformly) and, unless --database names
    another place, decisions.db. docs/serve.md shows every request.

    example: peira serve runs/shop --port 8080 --window 86400
    """

    host: str = "127.0.0.1"
    """Address to listen on; the default answers this machine only."""
    port: int = 8080
    """Port to listen on; 0 takes a free one."""
    token_file: Path | None = None
    """Tokens of callers, one a line: ROLE TOKEN, with the role `caller` or `operator`; a line of one word is an
    operator's. By default PEIRA_TOKEN, or else DIR/token, which is made if need be."""
    database: str | None = None
    """postgresql://USER:PASSWORD@HOST:PORT/NAME; by default SQLite, DIR/decisions.db."""
    window: float = 86_400.0
    """Seconds in which an outcome counts; then a decision without one gets the default reward."""
    default_reward: float = 0.0
    """Reward of a decision without outcome."""
    aggregation: Literal["first", "max", "sum"] = "first"
    """The reward of a decision with several outcomes."""
    largest_body: int = 65_536
    """Bytes of a request."""
    most_actions: int = 256
    """Eligible actions of a decision."""
    most_waiting: int = 5_000
    """Requests that may wait for the disk; more are refused with status 503."""
    compact_minutes: float = 60.0
    """Minutes between moves of matured decisions to DIR/experience.lance; 0 for never."""
    keep_days: float = 30.0
    """Days that a decision stays in the database after it was moved."""
    gate_rows: int = 50_000
    """A candidate is compared on so many of the newest matured decisions."""
    tolerance: float = 0.0
    """A candidate may be worse by so much reward; 0 asks for an improvement."""
    confidence: float = 0.975
    """One-sided confidence of that comparison."""
    demo: bool = False
    """Make a service in DIR and drive it with simulated payments."""
    demo_rate: float = 150.0
    """Payments a second of the demonstration."""
    demo_seconds: float | None = None
    """End the demonstration after so many seconds; by default it goes on until Ctrl-C."""

    def __post_init__(self) -> None:
        if self.database is not None and not self.database.startswith(("postgresql://", "postgres://")):
            raise ValueError("database: expected postgresql://…; leave it out for SQLite")
        for name, fits, expected in (
            ("port", 0 <= self.port <= 65_535, "0 to 65535"),
            ("window", 0 < self.window < math.inf, "more than 0 seconds"),
            ("default_reward", 0 <= self.default_reward <= 1, "a number from 0 to 1"),
            ("largest_body", self.largest_body >= 1024, "at least 1024 bytes"),
            ("most_actions", self.most_actions >= 1, "at least 1"),
            ("most_waiting", self.most_waiting >= 1, "at least 1"),
            ("compact_minutes", 0 <= self.compact_minutes < math.inf, "at least 0"),
            ("keep_days", 0 <= self.keep_days < math.inf, "at least 0"),
            ("gate_rows", self.gate_rows >= 1, "at least 1"),
            ("tolerance", 0 <= self.tolerance < math.inf, "at least 0"),
            ("confidence", 0.5 < self.confidence < 1, "a number between 0.5 and 1"),
            ("demo_rate", 0 < self.demo_rate <= 2_000, "more than 0, at most 2000"),
            ("demo_seconds", self.demo_seconds is None or self.demo_seconds > 0, "more than 0"),
        ):
            if not fits:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")
        if self.demo_seconds is not None and not self.demo:
            raise ValueError("demo_seconds: it ends a demonstration; add --demo")
