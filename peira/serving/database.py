"""What was decided and what came of it, in tables of SQLite or PostgreSQL; safe on disk once `record` has returned.

One transaction records everything that waited; the first commit of an event id stays. An outcome is `late` when it
happened or arrived after the window of its decision, or after compaction has claimed the decision: it is kept, in the
view `corrections`, and no join reads it. Rows are ordered by `id`, which only rises (within
a transaction in the order of event ids); clocks may jump.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from peira.experience.decisions import FeatureSchema

FILE = "decisions.db"
FORMAT = "1"


class DatabaseError(RuntimeError):
    """The database did not do what was asked; nothing of it is kept."""


class DatabaseFullError(DatabaseError):
    """There is no space left."""


class StoredDecision(NamedTuple):
    """A row of `DECISION_COLUMNS` as it is kept: what is no number is JSON where it is not a name.

    `seed` and the event id draw `chosen_index` from `pmf`; `override` and `applied` are 0 or 1.
    """

    event_id: str
    timestamp: float
    policy_id: str
    policy_version: int
    config_hash: str
    context: str
    actions: str
    action_features: str | None
    pmf: str
    chosen_index: int
    propensity: float
    seed: int
    explore_kind: str
    explore_parameters: str
    override: int
    slice: str
    parent_event_id: str | None
    attempt: int
    applied: int = 1

    @property
    def action(self) -> str:
        """The name of the action that was chosen."""
        return json.loads(self.actions)[self.chosen_index]


class ArrivedOutcome(NamedTuple):
    """An outcome, with the time at which it arrived, and a key that tells two of one event apart.

    A reward of None says that the decision was not acted on.
    """

    event_id: str
    key: str
    reward: float | None
    outcome_time: float
    source: str
    received: float


class Verdict(NamedTuple):
    """What became of an outcome, and of which decision it is: unknown events have none, and are not stored."""

    status: Literal["stored", "known", "late", "unknown"]
    decided: float | None = None
    policy_version: int | None = None


class Recorded(NamedTuple):
    """decisions: as logged, those of earlier requests under the same id included; outcomes: in the order given."""

    decisions: list[StoredDecision]
    outcomes: list[Verdict]


@dataclass(frozen=True)
class Claim:
    """Decisions that compaction took together, by number, with the outcomes that arrived in time."""

    number: int
    decisions: list[StoredDecision]
    outcomes: list[ArrivedOutcome]


_DECISION = ", ".join(StoredDecision._fields)
_OUTCOME = ", ".join(ArrivedOutcome._fields)
# What differs between the two databases is filled in: {id}, {real}, {big}.
TABLES = (
    "CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS decisions (
        id {id},
        event_id TEXT NOT NULL UNIQUE,
        timestamp {real} NOT NULL,
        policy_id TEXT NOT NULL,
        policy_version {big} NOT NULL,
        config_hash TEXT NOT NULL,
        context TEXT NOT NULL,
        actions TEXT NOT NULL,
        action_features TEXT,
        pmf TEXT NOT NULL,
        chosen_index INTEGER NOT NULL,
        propensity {real} NOT NULL,
        seed {big} NOT NULL,
        explore_kind TEXT NOT NULL,
        explore_parameters TEXT NOT NULL,
        override INTEGER NOT NULL,
        slice TEXT NOT NULL,
        parent_event_id TEXT,
        attempt INTEGER NOT NULL,
        applied INTEGER NOT NULL,
        compaction INTEGER)""",
    "CREATE INDEX IF NOT EXISTS decisions_unclaimed ON decisions (timestamp) WHERE compaction IS NULL",
    "CREATE INDEX IF NOT EXISTS decisions_claimed ON decisions (compaction) WHERE compaction IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS outcomes (
        id {id},
        event_id TEXT NOT NULL,
        key TEXT NOT NULL,
        reward {real} NOT NULL,
        outcome_time {real} NOT NULL,
        source TEXT NOT NULL,
        received {real} NOT NULL,
        late INTEGER NOT NULL,
        UNIQUE (event_id, key))""",
    """CREATE TABLE IF NOT EXISTS compactions (
        number INTEGER PRIMARY KEY, folder TEXT NOT NULL, claimed {real} NOT NULL, written INTEGER NOT NULL)""",
)
VIEW = f"VIEW corrections AS SELECT id, {_OUTCOME} FROM outcomes WHERE late = 1"
_AT_ONCE = 10_000
CHECKPOINT_SECONDS = 1.0
LONGEST_WAIT = 5.0
"""Seconds that a connection to SQLite waits for another that holds the file."""
LONGEST_LOG = 2_048
"""Pages of SQLite's write-ahead log, 8 MiB; then it is written over, which is faster to sync than a file that grows."""


class Database(ABC):
    """Decisions and outcomes. One thread uses an object at a time; any number of processes share a database."""

    _mark: str
    """Stands for a value in a statement."""

    @abstractmethod
    def _transaction(self) -> contextlib.AbstractContextManager[Any]:
        """A cursor whose statements are on disk at the end, all or none; DatabaseError where they are not."""

    @abstractmethod
    def _exclude_outcomes(self, cursor: Any) -> None:
        """Until the end of the transaction, nobody stores outcomes."""

    @abstractmethod
    def _admit_outcomes(self, cursor: Any) -> None:
        """Until the end of the transaction, nobody claims decisions."""

    def expect_load(self) -> None:  # noqa: B027 (PostgreSQL needs nothing.)
        """Prepare for many small commits, none of which shall wait for more than itself."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection."""

    def bind(self, schema: FeatureSchema) -> None:
        """Keep the schema of the first service; ValueError where the database holds decisions under another."""
        kept = {"format": FORMAT, "schema": schema.to_json()}
        with self._transaction() as cursor:
            cursor.executemany(
                self._sql("INSERT INTO settings VALUES (?, ?) ON CONFLICT DO NOTHING"), list(kept.items())
            )
            cursor.execute("SELECT name, value FROM settings")
            found = dict(cursor.fetchall())
        if found["format"] != FORMAT:
            raise ValueError(
                f"database: it has format {found['format']}, this version writes {FORMAT}; use another database"
            )
        if found["schema"] != kept["schema"]:
            logged = FeatureSchema.from_json(found["schema"])
            raise ValueError(
                f"schema: schema.json has hash {schema.hash}, the decisions in the database were made under "
                f"{logged.hash}; put that schema back, or start a new folder and database"
            )

    def record(
        self, decisions: Sequence[StoredDecision], outcomes: Sequence[ArrivedOutcome], window: float
    ) -> Recorded:
        """Log decisions, then outcomes, in one transaction.

        `window`: seconds after its decision in which an outcome is in time. Raises DatabaseError, and
        DatabaseFullError where there is no space; then nothing is kept.
        """
        with self._transaction() as cursor:
            logged = self._log(cursor, decisions) if decisions else []
            verdicts = self._receive(cursor, outcomes, window) if outcomes else []
        return Recorded(logged, verdicts)

    def matured(
        self, until: float, since: float, limit: int
    ) -> tuple[list[StoredDecision], list[ArrivedOutcome]]:
        """The newest decisions made from `since` to `until`, oldest first, with the outcomes that came in time."""
        chosen = f"SELECT id, event_id FROM decisions WHERE timestamp >= {since!r} AND timestamp <= {until!r}"
        return self._read(f"{chosen} ORDER BY id DESC LIMIT {limit}")

    def claim(self, until: float, folder: str, limit: int = 50_000) -> Claim | None:
        """Decisions made until then for `folder` to keep; what a compaction that ended early has claimed comes first.

        None where nothing is left. From now on their outcomes are late.
        """
        with self._transaction() as cursor:
            self._exclude_outcomes(cursor)
            cursor.execute(
                self._sql("SELECT min(number) FROM compactions WHERE folder = ? AND written = 0"), (folder,)
            )
            number = cursor.fetchone()[0]
            if number is None:
                cursor.execute("SELECT coalesce(max(number), 0) + 1 FROM compactions")
                number = cursor.fetchone()[0]
                cursor.execute(
                    self._sql(
                        "UPDATE decisions SET compaction = ? WHERE id IN (SELECT id FROM decisions WHERE "
                        "compaction IS NULL AND timestamp <= ? ORDER BY timestamp LIMIT ?)"
                    ),
                    (number, until, limit),
                )
                if cursor.rowcount == 0:
                    return None
                cursor.execute(
                    self._sql("INSERT INTO compactions VALUES (?, ?, ?, 0)"), (number, folder, until)
                )
        return Claim(number, *self._read(f"SELECT id, event_id FROM decisions WHERE compaction = {number}"))

    def written(self, number: int) -> None:
        """Say that a claim is safe in the store."""
        with self._transaction() as cursor:
            cursor.execute(self._sql("UPDATE compactions SET written = 1 WHERE number = ?"), (number,))

    def drop(self, until: float) -> int:
        """Delete decisions made until then that are in the store, with their outcomes; corrections stay.

        So do decisions that a rule made or that were not acted on, which the store does not hold.
        """
        old = self._sql(
            "SELECT d.event_id FROM decisions d JOIN compactions c ON d.compaction = c.number WHERE "
            f"c.written = 1 AND d.timestamp <= ? AND d.override = 0 AND d.applied = 1 LIMIT {_AT_ONCE}"
        )
        dropped = 0
        while True:
            with self._transaction() as cursor:
                cursor.execute(old, (until,))
                events = cursor.fetchall()
                cursor.executemany(self._sql("DELETE FROM outcomes WHERE event_id = ? AND late = 0"), events)
                cursor.executemany(self._sql("DELETE FROM decisions WHERE event_id = ?"), events)
            dropped += len(events)
            if len(events) < _AT_ONCE:
                return dropped

    def counts(self) -> dict[str, int]:
        """How many decisions, outcomes in time and corrections there are."""
        with self._transaction() as cursor:
            cursor.execute(
                "SELECT (SELECT count(*) FROM decisions), (SELECT count(*) FROM outcomes WHERE late = 0), "
                "(SELECT count(*) FROM outcomes WHERE late = 1)"
            )
            return dict(zip(("decisions", "outcomes", "corrections"), cursor.fetchone(), strict=True))

    def _log(self, cursor: Any, decisions: Sequence[StoredDecision]) -> list[StoredDecision]:
        values = ", ".join("?" * len(StoredDecision._fields))
        cursor.executemany(
            self._sql(f"INSERT INTO decisions ({_DECISION}) VALUES ({values}) ON CONFLICT DO NOTHING"),
            # In one order everywhere: two services that share ids then never wait in a circle.
            sorted(decisions, key=lambda row: row.event_id),
        )
        if cursor.rowcount == len(decisions):
            return list(decisions)
        ids = list({decision.event_id for decision in decisions})
        cursor.execute(f"SELECT {_DECISION} FROM decisions WHERE event_id IN ({self._marks(ids)})", ids)
        logged = {row[0]: StoredDecision(*row) for row in cursor.fetchall()}
        return [logged[decision.event_id] for decision in decisions]

    def _receive(self, cursor: Any, outcomes: Sequence[ArrivedOutcome], window: float) -> list[Verdict]:
        self._admit_outcomes(cursor)
        ids = list({outcome.event_id for outcome in outcomes})
        cursor.execute(
            "SELECT event_id, timestamp, policy_version, compaction FROM decisions "
            f"WHERE event_id IN ({self._marks(ids)})",
            ids,
        )
        decided = {row[0]: row[1:] for row in cursor.fetchall()}
        cursor.execute(f"SELECT event_id, key FROM outcomes WHERE event_id IN ({self._marks(ids)})", ids)
        known = set(map(tuple, cursor.fetchall()))
        rows, unapplied, verdicts = [], [], []
        for outcome in outcomes:
            if (of := decided.get(outcome.event_id)) is None:
                verdicts.append(Verdict("unknown"))
                continue
            time, version, compaction = of
            late = compaction is not None or max(outcome.received, outcome.outcome_time) > time + window
            name = (outcome.event_id, outcome.key)
            if outcome.reward is None:
                unapplied += [] if late else [(outcome.event_id,)]
            elif name not in known:
                rows.append((*outcome, int(late)))
            status = "known" if name in known else "late" if late else "stored"
            known.add(name)
            verdicts.append(Verdict(status, time, version))
        cursor.executemany(
            self._sql("UPDATE decisions SET applied = 0 WHERE event_id = ?"), sorted(unapplied)
        )
        cursor.executemany(
            self._sql(
                f"INSERT INTO outcomes ({_OUTCOME}, late) VALUES ({', '.join('?' * 7)}) ON CONFLICT DO NOTHING"
            ),
            sorted(rows),
        )
        return verdicts

    def _read(self, chosen: str) -> tuple[list[StoredDecision], list[ArrivedOutcome]]:
        """Decisions that a query of ids chooses, and their outcomes in time, as of one moment."""
        decisions = ", ".join(f"d.{name}" for name in StoredDecision._fields)
        outcomes = ", ".join(f"o.{name}" for name in ArrivedOutcome._fields)
        with self._snapshot() as cursor:
            cursor.execute(
                f"SELECT {decisions} FROM decisions d JOIN ({chosen}) c ON c.id = d.id ORDER BY d.id"
            )
            decided = [StoredDecision(*row) for row in cursor.fetchall()]
            cursor.execute(
                f"SELECT {outcomes} FROM outcomes o JOIN ({chosen}) c ON c.event_id = o.event_id "
                "WHERE o.late = 0 ORDER BY o.id"
            )
            return decided, [ArrivedOutcome(*row) for row in cursor.fetchall()]

    @abstractmethod
    def _snapshot(self) -> contextlib.AbstractContextManager[Any]:
        """A cursor whose statements all see the same state; nobody waits for it."""

    def _sql(self, statement: str) -> str:
        return statement.replace("?", self._mark)

    def _marks(self, values: Sequence[Any]) -> str:
        return ", ".join([self._mark] * len(values))


class SqliteDatabase(Database):
    """One file beside its write-ahead log; every commit waits for the disk."""

    _mark = "?"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._checkpoints: Checkpoints | None = None
        with self._transaction() as cursor:
            for table in TABLES:
                cursor.execute(table.format(id="INTEGER PRIMARY KEY", real="REAL", big="INTEGER"))
            cursor.execute(VIEW.replace("VIEW", "CREATE VIEW IF NOT EXISTS", 1))

    def expect_load(self) -> None:
        """Copy the write-ahead log beside the commits; by itself SQLite lets every 300th wait for that."""
        self._disconnect()
        self._checkpoints = Checkpoints(self.path)

    def record(
        self, decisions: Sequence[StoredDecision], outcomes: Sequence[ArrivedOutcome], window: float
    ) -> Recorded:
        recorded = super().record(decisions, outcomes, window)
        if self._checkpoints is not None and self._checkpoints.behind.is_set():
            # All but the newest pages are copied already. When these are, the log starts again at its beginning.
            self._checkpoints.behind.clear()
            with contextlib.suppress(sqlite3.Error):  # The disk is full: the next commit says so.
                _checkpoint(self._connected())
        return recorded

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _connect(self.path, checkpoints=self._checkpoints is None)
        return self._connection

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Cursor]:
        try:
            cursor = self._connected().cursor()
            cursor.execute(begin)
            yield cursor
            cursor.execute("COMMIT")
        except sqlite3.Error as fault:
            # What a failed statement left open ends with its connection; the next transaction opens another.
            self._disconnect()
            code = getattr(fault, "sqlite_errorcode", None)
            kind = DatabaseFullError if code == sqlite3.SQLITE_FULL else DatabaseError
            raise kind(f"database: {self.path}: {fault}") from fault
        except BaseException:
            self._disconnect()
            raise

    def _snapshot(self) -> contextlib.AbstractContextManager[sqlite3.Cursor]:
        return self._transaction("BEGIN DEFERRED")

    def _exclude_outcomes(self, cursor: sqlite3.Cursor) -> None:
        """Nothing to do: one transaction writes at a time."""

    _admit_outcomes = _exclude_outcomes

    def close(self) -> None:
        self._disconnect()
        if self._checkpoints is not None:
            self._checkpoints.close()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


class Checkpoints:
    """A thread that copies pages from the write-ahead log into the database file, while others commit.

    Under steady load the log never ends before it: `behind` is set when the log is so long that whoever commits has to
    copy the last few pages, so that it starts anew.
    """

    def __init__(self, path: Path) -> None:
        self.behind = threading.Event()
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection = _connect(self._path, checkpoints=False)
        while not self._ended.wait(CHECKPOINT_SECONDS):
            with contextlib.suppress(
                sqlite3.Error
            ):  # It is tried again; what it has not copied is in the log.
                if _checkpoint(connection) > LONGEST_LOG:
                    self.behind.set()
        connection.close()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


def _connect(path: Path, *, checkpoints: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LONGEST_WAIT, isolation_level=None, check_same_thread=False)
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")
    if not checkpoints:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Give the file a write-ahead log; where another connection is about to, SQLite does not wait by itself."""
    began = time.monotonic()
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as fault:
            # The lowest byte of the code says that it is busy, what is above it with what.
            is_busy = fault.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() - began > LONGEST_WAIT:
                raise
            time.sleep(0.005)


def _checkpoint(connection: sqlite3.Connection) -> int:
    """Copy what can be copied without waiting for anyone; the pages that the log holds."""
    return connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]


def open_database(url: str | None, folder: Path) -> Database:
    """PostgreSQL by URL, or else the SQLite file of the folder; DatabaseError where it does not answer."""
    if url is None:
        return SqliteDatabase(folder / FILE)
    from peira.serving.postgresql import PostgresDatabase

    return PostgresDatabase(url)
