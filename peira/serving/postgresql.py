"""The tables of decisions and outcomes in PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
from psycopg import IsolationLevel

from peira.serving.database import TABLES, VIEW, Database, DatabaseError, DatabaseFullError

CLAIM_LOCK = 0x7065697261
"""Key of the advisory lock that keeps outcomes and claims apart."""
TABLE_LOCK = CLAIM_LOCK + 1
CONNECT_SECONDS = 5


class PostgresDatabase(Database):
    """A connection by URL, made anew when it was lost. ValueError for a URL that is none."""

    _mark = "%s"

    def __init__(self, url: str) -> None:
        try:
            self._about = psycopg.conninfo.conninfo_to_dict(url, connect_timeout=CONNECT_SECONDS)
        except psycopg.ProgrammingError as fault:
            # The URL may hold a password, which an error must not show.
            raise ValueError("database: expected postgresql://USER:PASSWORD@HOST:PORT/NAME") from fault
        self._connection: psycopg.Connection | None = None
        with self._transaction() as cursor:
            # Two services may start at the same moment, and CREATE … IF NOT EXISTS does not wait for the other.
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (TABLE_LOCK,))
            # Where the tables are there already, creating them would wait for everyone who writes.
            cursor.execute("SELECT to_regclass('corrections')")
            for table in () if cursor.fetchone()[0] else (*TABLES, f"CREATE {VIEW}"):
                cursor.execute(
                    table.format(
                        id="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
                        real="DOUBLE PRECISION",
                        big="BIGINT",
                    )
                )

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            connection = psycopg.connect(**self._about)
            # The default of the server may have been weakened.
            connection.execute("SET synchronous_commit = on")
            connection.commit()
            self._connection = connection
        return self._connection

    @contextlib.contextmanager
    def _transaction(self, level: IsolationLevel = IsolationLevel.READ_COMMITTED) -> Iterator[psycopg.Cursor]:
        try:
            connection = self._connected()
            connection.isolation_level = level
            with connection.transaction(), connection.cursor() as cursor:
                yield cursor
        except psycopg.Error as fault:
            self.close()
            kind = DatabaseFullError if isinstance(fault, psycopg.errors.DiskFull) else DatabaseError
            first = next(iter(str(fault).strip().splitlines()), type(fault).__name__)
            raise kind(f"database: {first}") from fault

    def _snapshot(self) -> contextlib.AbstractContextManager[psycopg.Cursor]:
        return self._transaction(IsolationLevel.REPEATABLE_READ)

    def _exclude_outcomes(self, cursor: psycopg.Cursor) -> None:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (CLAIM_LOCK,))

    def _admit_outcomes(self, cursor: psycopg.Cursor) -> None:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (CLAIM_LOCK,))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()
