"""A small server of OpenAI's protocol over real HTTP on the loopback address: a scripted model, and faults to order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Respond = Callable[[list[dict], float, int | None], str]


@dataclass(frozen=True)
class Fault:
    """What a request meets in place of a proper answer.

    `kind`: "status" (with `status`, `headers` and an error body of `code` and `message`), "hang" (no answer), "empty"
    (a message without content, ended by `finish_reason`), "truncated" (half of the JSON), "cut" (the connection ends
    halfway through the body), "closed" (the connection ends before any answer).
    """

    kind: str
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None
    message: str = "ordered by the test"
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Request:
    """What arrived, and when (seconds of `time.monotonic`); names of headers in lower case."""

    at: float
    path: str
    headers: dict[str, str]
    body: dict


class ReferenceServer:
    """`respond(messages, temperature, seed)` is the model; request k meets `faults[k]` unless that is None.

    A context manager: `url` is the base for clients, `requests` what arrived so far, `busiest` the most requests that
    were in work at once. Honours `n` (choice i gets seed + i), `stop` and `max_tokens`; a token is a word.
    """

    def __init__(self, respond: Respond, faults: Iterable[Fault | None] = ()):
        self._respond, self._faults = respond, iter(faults)
        self.requests: list[Request] = []
        self.busiest = self._busy = 0
        self._lock, self._closing = threading.Lock(), threading.Event()

    def __enter__(self) -> ReferenceServer:
        reference = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                reference._get(self)

            def do_POST(self) -> None:
                reference._post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/v1/models":
            models = [{"id": "scripted", "object": "model", "created": 0, "owned_by": "tests"}]
            _send(handler, {"object": "list", "data": models})
        else:
            _send(handler, _error("no such path", None), status=404)

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.requests.append(Request(time.monotonic(), handler.path, headers, body))
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            fault = next(self._faults, None)
        try:
            if handler.path == "/v1/embeddings":
                _send(handler, _embeddings(body))
            elif handler.path == "/v1/chat/completions":
                self._chat(handler, body, fault)
            else:
                _send(handler, _error("no such path", None), status=404)
        finally:
            with self._lock:
                self._busy -= 1

    def _chat(self, handler: BaseHTTPRequestHandler, body: dict, fault: Fault | None) -> None:
        if fault is None:
            _send(handler, self._completion(body))
        elif fault.kind == "status":
            _send(handler, _error(fault.message, fault.code), status=fault.status, headers=fault.headers)
        elif fault.kind == "empty":
            answer = self._completion(body)
            answer["choices"][0] |= {
                "message": {"role": "assistant", "content": ""},
                "finish_reason": fault.finish_reason,
            }
            _send(handler, answer)
        elif fault.kind == "truncated":
            _send(handler, self._completion(body), part=0.5)
        elif fault.kind == "cut":
            _send(handler, self._completion(body), part=0.5, promised=1.0)
        else:
            if fault.kind == "hang":
                self._closing.wait(30.0)
            handler.close_connection = True

    def _completion(self, body: dict) -> dict:
        messages, temperature, seed = body["messages"], body.get("temperature", 1.0), body.get("seed")
        choices = []
        for index in range(body.get("n", 1)):
            text = self._respond(messages, temperature, None if seed is None else seed + index)
            stops = body.get("stop") or []
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.split(stop)[0]
            words = text.split(" ")
            room = body.get("max_tokens", len(words))
            message = {"role": "assistant", "content": " ".join(words[:room])}
            reason = "stop" if len(words) <= room else "length"
            choices.append({"index": index, "message": message, "finish_reason": reason})
        read = sum(len(message["content"].split()) for message in messages)
        written = sum(len(choice["message"]["content"].split()) for choice in choices)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        about = {"id": "chat-0", "object": "chat.completion", "created": 0, "model": body["model"]}
        return about | {"choices": choices, "usage": usage}


def _embeddings(body: dict) -> dict:
    """A text's vector counts the letters a to z."""
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    vectors = [[float(text.lower().count(letter)) for letter in map(chr, range(97, 123))] for text in texts]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    read = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "model": body["model"], "data": data, "usage": usage}


def _error(message: str, code: str | None) -> dict:
    return {"error": {"message": message, "type": "ordered", "param": None, "code": code}}


def _send(
    handler: BaseHTTPRequestHandler,
    body: dict,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    part: float = 1.0,
    promised: float | None = None,
) -> None:
    """Send this part of the body and promise that part of it (the same, unless told otherwise)."""
    whole = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(int(len(whole) * (part if promised is None else promised))))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(whole[: int(len(whole) * part)])
    if promised is not None:
        handler.close_connection = True
