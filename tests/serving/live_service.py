"""A decision service that listens, in this process, and a caller of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from rich.console import Console

from peira.experience.decision_steps import write_schema
from peira.experience.decisions import FeatureSchema
from peira.serving.app import make_app
from peira.serving.options import Options
from peira.serving.service import Service
from peira.serving.tokens import Tokens

OPERATOR, CALLER = "operator-token-0123456789", "caller-token-0123456789"
SCHEMA = FeatureSchema(
    actions=("a", "b", "c"), numbers=("amount",), categories={"country": ("NL", "DE")}, action_numbers=()
)
CONTEXT = {"amount": 12.5, "country": "NL"}


class Reply(NamedTuple):
    status: int
    body: Any


class Caller:
    """Asks one service over one connection."""

    def __init__(self, port: int, token: str | None = OPERATOR) -> None:
        self.port, self.token = port, token
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        given = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        self._connection.request(method, path, sent, {**given, **(headers or {})})
        answer = self._connection.getresponse()
        content = answer.read()
        kind = answer.headers.get_content_type()
        return Reply(answer.status, json.loads(content) if kind == "application/json" else content.decode())

    def decide(self, **fields: Any) -> Reply:
        return self.ask("POST", "/decide", {"context": CONTEXT, "actions": ["a", "b", "c"], **fields})

    def outcome(self, **fields: Any) -> Reply:
        return self.ask("POST", "/outcome", fields)

    def metric(self, name: str) -> float:
        """The value of a sample, labels included in its name."""
        lines = self.ask("GET", "/metrics").body.splitlines()
        return float(next((line for line in lines if line.startswith(f"{name} ")), " 0").rpartition(" ")[2])

    def close(self) -> None:
        self._connection.close()


def make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_schema(folder, SCHEMA)
    return folder


@contextlib.contextmanager
def serving(folder: Path, options: Options = Options(), **given: Any) -> Iterator[Service]:  # noqa: B008 (frozen)
    """A service of the folder that listens at `service.port`."""
    service = Service(folder, options, Console(quiet=True), **given)
    tokens = Tokens((("operator", OPERATOR.encode()), ("caller", CALLER.encode())))
    listening = socket.create_server(("127.0.0.1", 0))
    service.port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(service, tokens), log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < until and thread.is_alive(), "the service did not start"
            time.sleep(0.002)
        yield service
    finally:
        server.should_exit = True
        thread.join()
        service.close()


@contextlib.contextmanager
def calling(service: Service, token: str | None = OPERATOR) -> Iterator[Caller]:
    caller = Caller(service.port, token)
    try:
        yield caller
    finally:
        caller.close()
