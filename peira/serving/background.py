"""Work that would hold up answers runs in a process of its own, at low priority."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")


class BackgroundError(RuntimeError):
    """The process ended without a result."""


async def in_background(work: Callable[..., Result], *arguments: Any) -> Result:
    """What `work` returns or raises in a new process, which is ended with the task that waits for it.

    Raises BackgroundError where the process dies.
    """
    # A fork would copy a process with threads; `spawn` starts clean.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, work, arguments), daemon=True)
    await asyncio.to_thread(process.start)
    sender.close()
    try:
        failed, found = await asyncio.to_thread(receiver.recv)
    except EOFError:
        await asyncio.to_thread(process.join)
        raise BackgroundError(f"{work.__name__}: its process ended with {process.exitcode}") from None
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)
    if failed:
        raise found
    return found


def _run(answer: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.nice(10)
    # Ctrl-C is for the service, which ends this process when it has drained.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer.send((False, work(*arguments)))
    except Exception as fault:
        answer.send((True, fault))
