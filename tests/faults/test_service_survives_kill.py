"""The decision service is killed under load, twenty times: what it answered is in the log once, as it was answered."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from peira.experience.decision_steps import write_schema
from peira.experience.decisions import FeatureSchema
from peira.serving.database import open_database

KILLS = 20
CALLERS = 6
TOKEN = "a-token-of-the-tests-0123"
SCHEMA = FeatureSchema(actions=("a", "b", "c"), numbers=("amount",))


def serve_until_killed(folder: str, ports) -> None:
    from rich.console import Console

    from peira.serving import command
    from peira.serving.options import Options

    os.environ["PEIRA_TOKEN"] = TOKEN
    options = Options(port=0, compact_minutes=0)
    command.serve(Path(folder), options, Console(quiet=True), ready=ports.send)


class Heard:
    """What callers were told, over all lives of the service."""

    def __init__(self) -> None:
        self.decisions: dict[str, tuple[str, float]] = {}
        self.outcomes: dict[str, float] = {}
        self.faults: list[str] = []

    def call_until_it_dies(self, port: int, name: str) -> None:
        """Decide and tell outcomes, some sent twice; remember only what was answered."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        number = 0

        def ask(path: str, body: dict) -> dict:
            connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            content = json.loads(answer.read())
            if answer.status != 200:
                self.faults.append(f"{path} {answer.status}: {content}")
            return content

        try:
            while True:
                event = f"{name}-{number}"
                body = {"context": {"amount": number}, "actions": ["a", "b", "c"], "event_id": event}
                for _ in range(1 + number % 2):
                    said = ask("/decide", body)
                    found = (said["action"], said["propensity"])
                    if self.decisions.setdefault(event, found) != found:
                        self.faults.append(f"{event}: decided anew")
                if number % 3:
                    reward = number % 7 / 7
                    ask("/outcome", {"event_id": event, "reward": reward})
                    self.outcomes[event] = reward
                number += 1
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            connection.close()  # It is dead.


@pytest.fixture(scope="module")
def processes():
    """Processes that start in milliseconds, forked from one that has imported the service and not used it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["peira.serving.command", "peira.serving.service", __name__])
    return context


def start(processes, folder: Path):
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=serve_until_killed, args=(str(folder), sender))
    child.start()
    sender.close()
    assert receiver.poll(60), "the service did not start"
    return child, receiver.recv()


def check(folder: Path, heard: Heard) -> None:
    database = open_database(None, folder)
    decisions, outcomes = database.matured(9e15, 0.0, 10**9)
    database.close()
    ids = [row.event_id for row in decisions]
    assert len(ids) == len(set(ids)), "a decision is in the log twice"
    logged = {row.event_id: (row.action, row.propensity) for row in decisions}
    wrong = {event for event, said in heard.decisions.items() if logged.get(event) != said}
    assert not wrong, (
        f"{len(wrong)} of {len(heard.decisions)} answered decisions are not in the log as answered"
    )
    told = [(of.event_id, of.reward) for of in outcomes]
    assert len(told) == len(set(told)), "an outcome is in the log twice"
    assert heard.outcomes.items() <= dict(told).items(), "an acknowledged outcome is lost"


def test_every_answered_decision_is_in_the_log_once_after_twenty_kills(tmp_path, processes):
    write_schema(tmp_path, SCHEMA)
    heard = Heard()
    for life in range(KILLS):
        child, port = start(processes, tmp_path)
        callers = [
            threading.Thread(target=heard.call_until_it_dies, args=(port, f"{life}-{caller}"))
            for caller in range(CALLERS)
        ]
        before = len(heard.decisions)
        for caller in callers:
            caller.start()
        until = time.monotonic() + 20
        while len(heard.decisions) < before + 25 + 7 * (life % 5):
            assert time.monotonic() < until, "the service does not decide"
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for caller in callers:
            caller.join()
        assert child.exitcode == -signal.SIGKILL, "the service ended by itself"
        assert not heard.faults, heard.faults[:3]
        check(tmp_path, heard)
    assert len(heard.decisions) >= 25 * KILLS and len(heard.outcomes) > 10 * KILLS


def test_sigterm_answers_what_was_asked_and_ends_with_status_zero(tmp_path, processes):
    write_schema(tmp_path, SCHEMA)
    heard = Heard()
    child, port = start(processes, tmp_path)
    callers = [
        threading.Thread(target=heard.call_until_it_dies, args=(port, f"caller-{number}"))
        for number in range(CALLERS)
    ]
    for caller in callers:
        caller.start()
    until = time.monotonic() + 20
    while len(heard.decisions) < 50:
        assert time.monotonic() < until
        time.sleep(0.001)
    child.terminate()
    for caller in callers:
        caller.join()
    child.join(20)
    assert child.exitcode == 0
    assert not heard.faults
    check(tmp_path, heard)
