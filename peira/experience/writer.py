"""Appending off the training thread: small tables are gathered into large appends."""

import queue
import threading
import time

import pyarrow as pa

from peira.experience.episode import Episode, episodes_to_table
from peira.experience.store import Store

_STOP = object()


class BufferedWriter:
    """Appends to a store from a thread of its own.

    Rows wait until `flush_rows` have come or `flush_seconds` have passed, then go to the store in one append.
    At most `max_rows` rows wait; a caller who brings more is held up, nothing is dropped. What went wrong in
    the thread is raised by the caller's next call.
    """

    def __init__(
        self, store: Store, max_rows: int = 100_000, flush_rows: int = 16_384, flush_seconds: float = 5.0
    ):
        if not 0 < flush_rows <= max_rows:
            raise ValueError(
                f"flush_rows: expected 1 to max_rows={max_rows}, came {flush_rows}; raise max_rows or "
                f"lower it"
            )
        self.store = store
        self.max_rows = max_rows
        self.flush_rows = flush_rows
        self.flush_seconds = flush_seconds
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Condition()
        self._waiting_rows = 0
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="experience-writer", daemon=True)
        self._thread.start()

    def append(self, episodes: list[Episode] | pa.Table) -> None:
        """Hand over whole episodes; blocks while the queue is full. They are safe after the next `flush`."""
        table = episodes if isinstance(episodes, pa.Table) else episodes_to_table(episodes)
        with self._room:
            self._raise_if_broken()
            if self._closed:
                raise ValueError("append: the writer is closed; make a new one")
            if table.num_rows == 0:
                return
            # A table larger than the queue passes alone.
            self._room.wait_for(
                lambda: (
                    self._error or self._waiting_rows + table.num_rows <= max(self.max_rows, table.num_rows)
                )
            )
            self._raise_if_broken()
            self._waiting_rows += table.num_rows
        self._queue.put(table)

    def flush(self) -> None:
        """Return when everything handed over is safe in the store."""
        with self._room:
            self._raise_if_broken()
            self._queue.put(None)
            self._room.wait_for(lambda: self._error or self._waiting_rows == 0)
            self._raise_if_broken()

    def close(self) -> None:
        """Flush and end the thread; further calls do nothing."""
        if self._closed:
            return
        try:
            self.flush()
        finally:
            self._closed = True
            self._queue.put(_STOP)
            self._thread.join()

    def __enter__(self) -> "BufferedWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        gathered: list[pa.Table] = []
        rows, since = 0, 0.0
        while True:
            try:
                patience = max(0.0, since + self.flush_seconds - time.monotonic()) if gathered else None
                entry = self._queue.get(timeout=patience)
            except queue.Empty:
                entry = None
            if entry is _STOP:
                return
            if entry is not None:
                since = since if gathered else time.monotonic()
                gathered.append(entry)
                rows += entry.num_rows
            # Nothing more came in time, or a flush asks for what came before it.
            asked = entry is None or time.monotonic() - since >= self.flush_seconds
            # A queue with no room for another such table must be emptied, or its caller would wait for the
            # clock.
            full = (
                rows >= self.flush_rows or rows + (entry.num_rows if entry is not None else 0) > self.max_rows
            )
            if gathered and (full or asked):
                try:
                    for table in _alike(gathered):
                        self.store.append(table)
                except Exception as error:  # handed to the caller, who cannot miss it
                    with self._room:
                        self._error = error
                        self._room.notify_all()
                    return
                with self._room:
                    self._waiting_rows -= rows
                    self._room.notify_all()
                gathered, rows = [], 0


def _alike(tables: list[pa.Table]) -> list[pa.Table]:
    """Neighbours of one schema as one table."""
    merged: list[list[pa.Table]] = []
    for table in tables:
        if merged and merged[-1][0].schema.equals(table.schema):
            merged[-1].append(table)
        else:
            merged.append([table])
    return [pa.concat_tables(group) for group in merged]
