"""One thread decides and records whatever waits, all in one transaction, and answers when it is on disk.

While the disk writes, more requests queue up; they make the next batch. So the number of waits for the disk follows
from the disk, not from the number of requests.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from peira.serving.database import (
    ArrivedOutcome,
    Database,
    DatabaseError,
    DatabaseFullError,
    StoredDecision,
    Verdict,
)
from peira.serving.metrics import Metrics
from peira.serving.requests import DecideRequest, OutcomeRequest, RequestError

LARGEST_BATCH = 256

Decide = Callable[[Sequence[DecideRequest], float], list[StoredDecision | RequestError]]
Asked = tuple[DecideRequest | OutcomeRequest, asyncio.Future]
Answer = StoredDecision | Verdict | RequestError


class Recorder:
    """Answers `decide` and `receive` of one event loop from a thread that owns the database.

    `most_waiting`: requests beyond that many are refused with status 503. `window`: seconds in which an outcome is in
    time.
    """

    def __init__(
        self, database: Database, decide: Decide, metrics: Metrics, *, window: float, most_waiting: int
    ) -> None:
        self._database, self._decide, self._metrics = database, decide, metrics
        self._window, self._most_waiting = window, most_waiting
        self._waiting: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
        database.expect_load()
        self._thread = threading.Thread(target=self._run, name="recorder")
        self._thread.start()

    async def decide(self, request: DecideRequest) -> StoredDecision:
        """The decision, once it is on disk; that of an earlier request with the same id and content. RequestError."""
        return await self._ask(request)

    async def receive(self, request: OutcomeRequest) -> Verdict:
        """What became of the outcome, once it is on disk. RequestError."""
        return await self._ask(request)

    def close(self) -> None:
        """Answer all that waits, then let go of the database."""
        self._waiting.put(None)
        self._thread.join()
        self._database.close()

    def _ask(self, request: DecideRequest | OutcomeRequest) -> asyncio.Future:
        if self._waiting.qsize() >= self._most_waiting:
            raise RequestError(
                503, f"queue: {self._most_waiting} requests are waiting already; try again later"
            )
        future = asyncio.get_running_loop().create_future()
        self._waiting.put((request, future))
        return future

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._waiting.get()]
            while len(batch) < LARGEST_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            asked = [one for one in batch if one is not None]
            ended = len(asked) < len(batch)
            if asked:
                answers = self._answers([request for request, _ in asked])
                asked[0][1].get_loop().call_soon_threadsafe(_resolve, asked, answers)

    def _answers(self, requests: Sequence[DecideRequest | OutcomeRequest]) -> list[Answer]:
        """One answer a request; none is lost, whatever happens."""
        try:
            return self._record(requests)
        except DatabaseFullError as fault:
            answer = RequestError(507, f"{fault}; nothing was recorded, make room and try again")
        except DatabaseError as fault:
            answer = RequestError(
                503, f"{fault}; nothing is known to be recorded, try again with the same event_id"
            )
        except Exception:
            traceback.print_exc()
            answer = RequestError(500, "the service failed on this request; its log says where")
        return [answer] * len(requests)

    def _record(self, requests: Sequence[DecideRequest | OutcomeRequest]) -> list[Answer]:
        now = time.time()
        asked = [of for of in requests if isinstance(of, DecideRequest)]
        decided = self._decide(asked, now) if asked else []
        rows = [row for row in decided if isinstance(row, StoredDecision)]
        arrived = [
            ArrivedOutcome(
                of.event_id, of.key, of.reward, now if of.time is None else of.time, of.source, now
            )
            for of in requests
            if isinstance(of, OutcomeRequest)
        ]
        recorded = self._database.record(rows, arrived, self._window)
        self._metrics.recorded(rows, arrived, recorded)
        logged, verdicts = iter(recorded.decisions), iter(recorded.outcomes)
        own = iter(decided)
        answers: list[Answer] = []
        for request in requests:
            if isinstance(request, OutcomeRequest):
                answers.append(next(verdicts))
                continue
            row = next(own)
            answers.append(_settled(row, next(logged)) if isinstance(row, StoredDecision) else row)
        return answers


def _settled(own: StoredDecision, logged: StoredDecision) -> StoredDecision | RequestError:
    """The decision in the log under this id, if it was made from the same."""
    for name in ("context", "actions", "action_features"):
        if getattr(own, name) != getattr(logged, name):
            return RequestError(
                409,
                f"event_id: {own.event_id!r} was decided with other {name}; give every decision its own id",
            )
    return logged


def _resolve(asked: Sequence[Asked], answers: Sequence[Answer]) -> None:
    for (_, future), answer in zip(asked, answers, strict=True):
        if future.done():  # Its caller has gone.
            continue
        if isinstance(answer, RequestError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
