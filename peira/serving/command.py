"""`peira serve DIR`: listen until a signal says to end."""

from __future__ import annotations

import gc
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn
from rich.console import Console

from peira.serving.app import make_app
from peira.serving.options import Options
from peira.serving.service import Service
from peira.serving.tokens import read_tokens

LOCAL = ("127.0.0.1", "::1", "localhost")
DRAIN_SECONDS = 10
SWITCH_SECONDS = 0.0005


def serve(
    folder: Path, options: Options, console: Console, ready: Callable[[int], None] = lambda port: None
) -> None:
    """Serve the folder until SIGTERM (returns) or Ctrl-C (KeyboardInterrupt); requests under way are answered.

    `ready` is called with the port when requests may come: from then on they wait for their answer.

    Raises ValueError for a folder, token or policy that is not as expected, OSError for a port that is taken, and
    DatabaseError.
    """
    if options.demo:
        from peira.serving.demo import show

        show(folder, options, console)
        return
    if not folder.is_dir():
        raise ValueError(f"folder: {folder} is not there; make it, with a schema.json, or add --demo")
    tokens, origin = read_tokens(folder, options.token_file)
    listening = _listen(options)
    with listening:
        service = Service(folder, options, console)
        try:
            server = uvicorn.Server(
                uvicorn.Config(
                    make_app(service, tokens),
                    log_level="warning",
                    access_log=False,
                    ws="none",
                    server_header=False,
                    timeout_keep_alive=60,
                    timeout_graceful_shutdown=DRAIN_SECONDS,
                )
            )
            host, port = listening.getsockname()[:2]
            place = f"[{host}]" if ":" in host else host
            _say(console, f"deciding at http://{place}:{port} with the token of {origin}; API at /docs")
            if options.host not in LOCAL:
                _say(console, "tokens travel in the clear: put a proxy with TLS before this port")
            # Two threads take turns, one for HTTP and one for the log: neither may hold the other up for long.
            ready(port)
            sys.setswitchinterval(SWITCH_SECONDS)
            gc.freeze()
            interrupted = _run(server, listening)
        finally:
            service.close()
    _say(console, "all that was asked is answered and on disk")
    if interrupted:
        raise KeyboardInterrupt


def _run(server: uvicorn.Server, listening: socket.socket) -> bool:
    """Serve until a signal; whether it was Ctrl-C."""
    seen: list[int] = []
    # uvicorn drains on both signals, then raises them again for whoever listened before: that is here.
    before = {
        kind: signal.signal(kind, lambda kind, _: seen.append(kind))
        for kind in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        server.run(sockets=[listening])
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
    return signal.SIGINT in seen


def _listen(options: Options) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as fault:
        raise OSError(
            f"port: {options.host}:{options.port} cannot be listened on ({fault.strerror or fault}); "
            "choose another --port"
        ) from fault


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
