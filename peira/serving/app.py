"""The HTTP side of the decision service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peira.serving.requests import LONGEST_NAME, RequestError, read_decide, read_outcome, read_swap
from peira.serving.service import Service
from peira.serving.tokens import Tokens

BODY_SECONDS = 10.0
OPEN = ("/health", "/docs", "/openapi.json")
"""Paths that need no token."""
FOR_OPERATORS = (("POST", "/policy"),)
PATHS = ("/decide", "/outcome", "/policy", "/metrics", *OPEN)
JSON = "application/json"

NAME = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}
FEATURES = {"type": "object", "additionalProperties": {"type": ["number", "string", "boolean", "null"]}}
SECONDS = {"type": "number", "minimum": 0, "description": "seconds since 1970"}
DECIDE = {
    "context": FEATURES,
    "actions": {
        "type": "array",
        "minItems": 1,
        "items": {
            "oneOf": [
                NAME,
                {"type": "object", "required": ["id"], "properties": {"id": NAME, "features": FEATURES}},
            ]
        },
    },
    "event_id": NAME,
    "override": NAME,
    "parent_event_id": NAME,
    "attempt": {"type": "integer", "minimum": 1},
}
OUTCOME = {
    "event_id": NAME,
    "reward": {"type": "number", "minimum": 0, "maximum": 1},
    "applied": {"type": "boolean"},
    "time": SECONDS,
    "source": NAME,
    "outcome_id": NAME,
}
SWAP = {"candidate": NAME, "since": SECONDS, "force": {"type": "boolean"}}


def make_app(service: Service, tokens: Tokens) -> ASGIApp:
    """The service behind its routes, tokens, limits and one-line errors."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(title="Peira decision service", version=version("peira"), lifespan=lifespan, redoc_url=None)
    most = service.options.largest_body

    @app.post("/decide", openapi_extra=_body(DECIDE, "context", "actions"))
    async def decide(request: Request) -> Response:
        """Choose one of the eligible actions; the choice is on disk when it is answered."""
        asked = read_decide(await read_body(request, most), service.options.most_actions)
        return _json(await service.decide(asked))

    @app.post("/outcome", openapi_extra=_body(OUTCOME, "event_id"))
    async def outcome(request: Request) -> Response:
        """Say what came of a decision; the same again changes nothing."""
        status, answer = await service.receive(read_outcome(await read_body(request, most)))
        return _json(answer, status)

    @app.get("/policy")
    async def policy(request: Request) -> Response:
        """The policy that decides."""
        return _json(service.about())

    @app.post("/policy", openapi_extra=_body(SWAP, "candidate"))
    async def swap(request: Request) -> Response:
        """Let a candidate take over if the gate agrees."""
        return _json(await service.swap(read_swap(await read_body(request, most))))

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Counters in Prometheus's text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/health")
    async def health(request: Request) -> Response:
        """Whether it answers."""
        return _json({"status": "ok"})

    @app.exception_handler(RequestError)
    async def refused(request: Request, fault: RequestError) -> Response:
        return _json({"error": str(fault)}, fault.status)

    @app.exception_handler(HTTPException)
    async def no_such(request: Request, fault: HTTPException) -> Response:
        known = ", ".join(PATHS)
        line = f"{request.method} {request.url.path[:LONGEST_NAME]}: {fault.detail}; there are {known}"
        return _json({"error": line}, fault.status_code)

    return Guard(app, service, tokens)


async def read_body(request: Request, most: int) -> bytes:
    """The body; RequestError 413 as soon as more than `most` bytes came, 408 for one that does not come to an end."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise RequestError(413, f"body: expected at most {most} bytes, got more")
    except TimeoutError:
        raise RequestError(408, f"body: it did not come within {BODY_SECONDS:g} seconds") from None
    except ClientDisconnect:
        raise RequestError(400, "body: the connection ended before it did") from None
    return bytes(body)


class Guard:
    """Lets through who has a token, and measures how long answers take."""

    def __init__(self, app: ASGIApp, service: Service, tokens: Tokens) -> None:
        self._app, self._metrics, self._tokens = app, service.metrics, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        path = scope["path"] if scope["path"] in PATHS else "other"

        async def counted(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                self._metrics.answered(path, message["status"], time.perf_counter() - started)

        if (refused := self._refused(scope)) is not None:
            await refused(scope, receive, counted)
        else:
            await self._app(scope, receive, counted)

    def _refused(self, scope: Scope) -> Response | None:
        if scope["path"] in OPEN:
            return None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        role = self._tokens.role(given)
        if role is None:
            line = "token: expected a known one in the header Authorization: Bearer TOKEN"
            return _json({"error": line}, 401, {"WWW-Authenticate": "Bearer"})
        if role != "operator" and (scope["method"], scope["path"]) in FOR_OPERATORS:
            return _json({"error": f"token: expected an operator's for this, got one of a {role}"}, 403)
        return None


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, JSON)


def _body(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}
