"""`peira …` in a process of its own that starts in milliseconds: forked from one with everything imported.

Starting Python, torch and Lance takes seconds; a signal, an exit status and a terminal need a process each.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TINY = ["--num-envs", "2", "--epochs", "1", "--minibatches", "2", "--hidden", "8", "--no-compiled"]
TINY += ["--evaluations", "2", "--evaluation-episodes", "2"]
"""Settings with which PPO's part of a run takes no time."""
TINY_PROPS = [*TINY, "--behaviour-interval", "64", "--behaviour-epochs", "1", "--behaviour-minibatches", "2"]

# Reads one JSON object a line: {"start": {…}} answers with the child's pid, {"wait": pid} with its status.
PARENT = """
import json, os, sys
import torch
import peira.cli, peira.runs.run, peira.runs.compare, peira.recipes.props, peira.experience.commands
import tyro, warnings, gymnasium, envpool, envpool.registration
torch.set_num_threads(1)
warnings.filterwarnings("ignore", message="lance is not fork-safe")  # It is forked before it is used.

def run(start):
    os.setsid()
    os.chdir(start["folder"])
    for file, descriptor in ((start["stdin"], 0), (start["stdout"], 1), (start["stderr"], 2)):
        flags = os.O_RDONLY if descriptor == 0 else os.O_RDWR | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(file, flags), descriptor)
    os.environ.update(start["environment"])
    sys.path[:0] = [start["folder"]]
    peira.cli.log.file = None
    status = 1
    try:
        exec(start["first"], {})
        status = peira.cli.command(start["arguments"])
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

for line in sys.stdin:
    asked = json.loads(line)
    if "start" in asked:
        answer = os.fork()
        if answer == 0:
            run(asked["start"])
    else:
        answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
    print(answer, flush=True)
"""

FORKED_RUNS = """
import os, sys, types
import peira.cli, peira.runs.compare

class Forked:
    returncode = None

    def __init__(self, command, *, stderr, **_):
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(stderr.fileno(), 2)
            status = 1
            try:
                status = peira.cli.command(command[3:])  # After `python -m peira`.
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

peira.runs.compare.subprocess = types.SimpleNamespace(Popen=Forked, DEVNULL=None)
"""
"""Python that makes `peira compare` fork its runs, where starting them anew would take seconds each."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its exit status (negative for a signal) and what it printed."""

    status: int
    stdout: str
    stderr: str


class Command:
    """A running `peira` command."""

    def __init__(self, commands: Commands, pid: int, stdout: Path, stderr: Path):
        self.commands, self.pid, self.stdout, self.stderr = commands, pid, stdout, stderr

    def send(self, kind: signal.Signals) -> None:
        os.kill(self.pid, kind)

    def wait(self) -> Ended:
        status = self.commands.ask({"wait": self.pid})
        stdout = self.stdout.read_text() if self.stdout.is_file() else ""
        return Ended(status, stdout, self.stderr.read_text() if self.stderr.is_file() else "")


class Commands:
    """Starts commands; `folder` is where they run and where what they print is kept."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0

    def ask(self, question: dict) -> int:
        print(json.dumps(question), file=_parent().stdin, flush=True)
        return int(_parent().stdout.readline())

    def start(
        self,
        *arguments: object,
        first: str = "",
        environment: dict[str, str] | None = None,
        terminal: str | None = None,
    ) -> Command:
        """Start `peira ARGUMENTS`; `first` is Python to run before it, `terminal` the path of a pty."""
        self.count += 1
        stdout, stderr = self.folder / f"{self.count}.stdout", self.folder / f"{self.count}.stderr"
        start = {
            "arguments": [str(word) for word in arguments],
            "folder": str(self.folder),
            "stdin": terminal or os.devnull,
            "stdout": terminal or str(stdout),
            "stderr": terminal or str(stderr),
            "environment": environment or {},
            "first": first,
        }
        return Command(self, self.ask({"start": start}), stdout, stderr)

    def run(self, *arguments: object, **options: object) -> Ended:
        """Run `peira ARGUMENTS` to its end."""
        return self.start(*arguments, **options).wait()


@functools.cache
def _parent() -> subprocess.Popen:
    """One for all tests of this process, with which it ends."""
    return subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "110"},
        start_new_session=True,  # Ctrl-C for the tests is not for their commands.
    )


def wait_for(path: Path, lines: int = 1, seconds: float = 60) -> None:
    """Wait until the file has so many lines."""
    until = time.monotonic() + seconds
    while not path.exists() or path.read_text().count("\n") < lines:
        assert time.monotonic() < until, f"{path} did not come to {lines} lines in {seconds} s"
        time.sleep(0.005)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def metrics(folder: Path) -> list[dict]:
    """The rows of `metrics.jsonl` apart from wall time."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "wall_seconds"} for row in rows]


def until_killed_in(function: str, *, call: int) -> str:
    """Python that kills its process as it enters `module:function` or `module:Class.method` the `call`-th time."""
    module, _, attribute = function.partition(":")
    return f"""
import importlib, os, signal
*owner, attribute = {attribute!r}.split(".")
module, calls = importlib.import_module({module!r}), []
for name in owner:
    module = getattr(module, name)
true_function = getattr(module, attribute)
def deadly(*arguments, **named):
    calls.append(None)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return true_function(*arguments, **named)
setattr(module, attribute, deadly)
"""
