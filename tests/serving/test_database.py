"""SQLite and PostgreSQL keep the same promises; a fault of the disk or the connection keeps nothing half."""

import os
import sqlite3
import subprocess
import threading
import time

import pytest
from logged_rows import decision, outcome

from peira.experience.decisions import FeatureSchema
from peira.serving.database import (
    DatabaseError,
    DatabaseFullError,
    SqliteDatabase,
    _write_ahead,
    open_database,
)

WINDOW = 100.0


def test_a_decision_is_kept_once_and_the_first_one_stays(database):
    first, second = decision("e1"), decision("e1", 1005.0, chosen_index=0)
    assert database.record([first], [], WINDOW).decisions == [first]
    assert database.record([decision("e0"), second], [], WINDOW).decisions == [decision("e0"), first]
    assert (
        database.record([decision("e2"), decision("e2", 7.0)], [], WINDOW).decisions == [decision("e2")] * 2
    )
    assert database.matured(9e9, 0.0, 10)[0] == [first, decision("e0"), decision("e2")]


def test_outcomes_are_stored_known_late_or_unknown(database):
    late_time = outcome("e1", 0.3, 1002.0, outcome_time=1101.0)
    arrived = [
        outcome("e1", 1.0),
        outcome("e1", 1.0, 1005.0),  # Sent again.
        outcome("e1", 0.5),
        outcome("nobody"),
        outcome("e1", 0.2, 1100.5),
        late_time,
        outcome("e1", 0.7, 990.0),  # The clock went back since the decision.
    ]
    verdicts = database.record([decision("e1")], arrived, WINDOW).outcomes
    assert [verdict.status for verdict in verdicts] == [
        "stored",
        "known",
        "stored",
        "unknown",
        "late",
        "late",
        "stored",
    ]
    assert {verdict.decided for verdict in verdicts} == {1000.0, None}
    again = database.record([], [outcome("e1", 0.2, 1002.0), outcome("e1", 1.0, 5000.0)], WINDOW)
    assert [verdict.status for verdict in again.outcomes] == ["known", "known"]
    _, kept = database.matured(9e9, 0.0, 10)
    assert sorted(of.reward for of in kept) == [0.5, 0.7, 1.0]
    assert database.counts() == {"decisions": 1, "outcomes": 3, "corrections": 2}
    with database._transaction() as cursor:
        cursor.execute("SELECT reward FROM corrections ORDER BY id")
        assert [row[0] for row in cursor.fetchall()] == [0.2, 0.3]


def test_rows_are_ordered_as_they_were_recorded_when_the_clock_goes_back(database):
    for number, time_ in enumerate((1000.0, 900.0, 950.0)):
        database.record([decision(f"e{number}", time_)], [], WINDOW)
    assert [row.event_id for row in database.matured(9e9, 0.0, 10)[0]] == ["e0", "e1", "e2"]
    assert [row.event_id for row in database.matured(9e9, 0.0, 2)[0]] == ["e1", "e2"]
    assert [row.event_id for row in database.matured(950.0, 901.0, 9)[0]] == ["e2"]


def test_an_outcome_after_the_claim_is_a_correction_even_within_the_window(database):
    database.record([decision("e1"), decision("e2", 2000.0)], [outcome("e1", 0.25)], WINDOW)
    claim = database.claim(1500.0, "here")
    assert [row.event_id for row in claim.decisions] == ["e1"]
    assert [of.reward for of in claim.outcomes] == [0.25]
    assert database.record([], [outcome("e1", 0.75)], WINDOW).outcomes[0].status == "late"
    assert database.claim(1500.0, "here") == claim  # Until it is written it is handed out again, as it was.
    database.written(claim.number)
    assert database.claim(1500.0, "here") is None


def test_a_claim_is_finished_by_the_folder_that_made_it(database):
    database.record([decision("e1"), decision("e2")], [], WINDOW)
    mine = database.claim(1500.0, "mine", limit=1)
    other = database.claim(1500.0, "other")
    assert [len(of.decisions) for of in (mine, other)] == [1, 1]
    assert mine.number != other.number and mine.decisions != other.decisions
    assert database.claim(1500.0, "mine") == mine


def test_dropping_keeps_corrections_and_what_the_store_does_not_hold(database):
    rows = [decision("old"), decision("ruled", override=1), decision("new", 3000.0), decision("unapplied")]
    database.record(rows, [outcome("old"), outcome("unapplied", None)], WINDOW)
    claim = database.claim(5000.0, "here")
    database.record([], [outcome("old", 0.5, 5000.0)], WINDOW)
    assert database.drop(2000.0) == 0  # Not before it is said to be written.
    database.written(claim.number)
    assert database.drop(2000.0) == 1
    assert [row.event_id for row in database.matured(9e9, 0.0, 10)[0]] == ["new", "ruled", "unapplied"]
    assert database.counts() == {"decisions": 3, "outcomes": 0, "corrections": 1}


def test_a_decision_that_was_not_acted_on_is_marked(database):
    database.record([decision("e1")], [], WINDOW)
    assert database.record([], [outcome("e1", None)], WINDOW).outcomes[0].status == "stored"
    decisions, outcomes = database.matured(9e9, 0.0, 10)
    assert [row.applied for row in decisions] == [0] and outcomes == []


def test_two_services_on_one_database_lose_and_double_nothing(url, tmp_path):
    def write(name: str) -> None:
        own = open_database(url, tmp_path)
        for number in range(60):
            own.record(
                [decision(f"{name}{number}"), decision(f"both{number}")], [outcome(f"both{number}")], WINDOW
            )
        own.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    database = open_database(url, tmp_path)
    decisions, outcomes = database.matured(9e9, 0.0, 1000)
    expected = {f"{name}{number}" for name in ("x", "y", "z", "both") for number in range(60)}
    assert sorted(row.event_id for row in decisions) == sorted(expected)
    assert sorted(of.event_id for of in outcomes) == sorted(f"both{number}" for number in range(60))
    database.close()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY, sqlite3.SQLITE_READONLY])
def test_a_service_waits_while_another_turns_the_journal_into_a_write_ahead_log(tmp_path, code):
    """SQLite's own waiting leaves that moment out. What else fails is not tried again."""
    asked = []

    class Refused(sqlite3.Connection):
        def execute(self, statement):
            asked.append(statement)
            if len(asked) > 3:
                return super().execute(statement)
            fault = sqlite3.OperationalError("refused")
            fault.sqlite_errorcode = code
            raise fault

    connection = sqlite3.connect(tmp_path / "decisions.db", factory=Refused)
    if code == sqlite3.SQLITE_READONLY:
        with pytest.raises(sqlite3.OperationalError, match="refused"):
            _write_ahead(connection)
        assert len(asked) == 1
    else:
        _write_ahead(connection)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_decisions_under_another_schema_are_refused(database):
    schema = FeatureSchema(actions=("a", "b"))
    database.bind(schema)
    database.bind(schema)
    with pytest.raises(ValueError, match=rf"schema.json has hash .*{schema.hash}; put that schema back"):
        database.bind(FeatureSchema(actions=("a", "b", "c")))


def test_a_full_disk_keeps_nothing_half_and_the_next_commit_after_works(tmp_path):
    database = SqliteDatabase(tmp_path / "decisions.db")
    database.record([decision("before")], [], WINDOW)
    pages = database._connected().execute("PRAGMA page_count").fetchone()[0]
    database._connected().execute(f"PRAGMA max_page_count = {pages}")
    many = [decision(f"e{number}") for number in range(2000)]
    with pytest.raises(DatabaseFullError, match="database or disk is full"):
        database.record(many, [outcome("before")], WINDOW)
    assert database.counts() == {"decisions": 1, "outcomes": 0, "corrections": 0}
    assert database.record(many, [], WINDOW).decisions == many  # The limit was of that connection.
    database.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        database = SqliteDatabase(disk / "decisions.db")
        answered, full = [], 0
        for number in range(400):
            row = decision(f"e{number}", context="{" + " " * 3000 + "}")
            try:
                database.record([row], [], WINDOW)
                answered.append(row.event_id)
            except DatabaseFullError:
                full += 1
            if full == 3:
                break
        assert full == 3 and len(answered) > 20
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        database.record([decision("after")], [], WINDOW)
        assert [row.event_id for row in database.matured(9e9, 0.0, 1000)[0]] == [*answered, "after"]
        database.close()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_lost_connection_is_an_error_once_and_then_made_anew(postgresql_url, tmp_path):
    database, other = open_database(postgresql_url, tmp_path), open_database(postgresql_url, tmp_path)
    database.record([decision("e1")], [], WINDOW)
    with other._transaction() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
    with pytest.raises(DatabaseError, match="database: "):
        database.record([decision("e2")], [], WINDOW)
    database.record([decision("e2")], [], WINDOW)
    assert database.counts()["decisions"] == 2
    database.close()
    other.close()


def test_a_server_that_does_not_answer_is_a_database_error():
    with pytest.raises(DatabaseError, match="database: connection"):
        open_database("postgresql://nobody@127.0.0.1:1/none", None)


def test_a_url_with_a_fault_shows_no_password():
    with pytest.raises(ValueError, match="database: expected postgresql://USER") as caught:
        open_database("postgresql://me:secret@host:port/x y", None)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path):
    (tmp_path / "decisions.db").write_bytes(b"something else" * 100)
    with pytest.raises(DatabaseError, match="file is not a database"):
        open_database(None, tmp_path)


def test_a_locked_database_is_an_error_and_not_a_wait_for_ever(tmp_path, monkeypatch):
    database, other = open_database(None, tmp_path), open_database(None, tmp_path)
    database._connected().execute("PRAGMA busy_timeout = 50")
    with other._transaction():
        started = time.monotonic()
        with pytest.raises(DatabaseError, match="database is locked"):
            database.record([decision("e1")], [], WINDOW)
        assert time.monotonic() - started < 5
    database.record([decision("e1")], [], WINDOW)
    database.close()
    other.close()
