"""A browser may die or hang at any moment: its episodes end with an error, never with a score, and nothing is left."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from peira.environments.miniwob import MiniWoBEnvs

STARTER = """
import os, sys, time
from peira.environments.miniwob import MiniWoBEnvs
worlds = MiniWoBEnvs("click-test-2", 2)
worlds.reset([0, 1], ["click-test-2/0", "click-test-2/1"])
{then}
"""


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process that is not a zombie."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(folder.name)] = int(parent), command
    return found


def below(ancestor: int) -> dict[int, str]:
    """Command line of each process that this one has started, directly or not."""
    alive, inside = processes(), {ancestor}
    for _ in alive:
        more = {pid for pid, (parent, _) in alive.items() if parent in inside}
        if more <= inside:
            break
        inside |= more
    return {pid: alive[pid][1] for pid in inside - {ancestor}}


def browser_of(ancestor: int) -> dict[str, int]:
    """The processes that can be killed, by what they are."""
    found = {}
    for pid, command in below(ancestor).items():
        if command.startswith("/usr/bin/chromedriver"):
            found["chromedriver"] = pid
        elif "--type=renderer" in command:
            found.setdefault("renderers", []).append(pid)
        elif command.startswith("/usr/lib/chromium/chromium ") and "--type=" not in command:
            found["chromium"] = pid
    return found


def wait_until_gone(pids) -> None:
    deadline = time.monotonic() + 10
    while left := set(pids) & processes().keys():
        assert time.monotonic() < deadline, [processes().get(pid) for pid in left]
        time.sleep(0.02)


@pytest.fixture
def worlds():
    worlds = MiniWoBEnvs("click-test-2", 4, timeout=2.0)
    yield worlds
    worlds.close()
    assert not [command for command in below(os.getpid()).values() if "chrom" in command]


@pytest.fixture
def temporary():
    """An empty folder with a name short enough for Chromium's socket."""
    folder = Path(tempfile.mkdtemp(prefix="p-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def begin(worlds, places):
    outcomes = worlds.reset(places, [f"click-test-2/{place}" for place in places])
    assert all(outcome.error is None for outcome in outcomes)


def is_sound(worlds, places):
    begin(worlds, places)
    outcomes = worlds.step(places, worlds.expert(places))
    assert [outcome.reward for outcome in outcomes] == [1.0] * len(places)


@pytest.mark.parametrize("what", ["chromium", "chromedriver"])
def test_who_was_running_ends_with_an_error_and_later_episodes_are_sound(worlds, what):
    begin(worlds, [0, 1, 2, 3])
    (ended,) = worlds.step([3], worlds.expert([3]))
    os.kill(browser_of(os.getpid())[what], signal.SIGKILL)
    outcomes = worlds.step([0, 1], ["click 1", "no action at all"])
    for outcome in outcomes:
        assert outcome.error.startswith("the browser failed: ")
        assert outcome.over and not outcome.terminated and not outcome.truncated and outcome.reward == 0.0
    begin(worlds, [0])
    # World 2 was in that browser too: it hears of it when it is next asked, although there is another browser now.
    (outcome,) = worlds.step([2], ["click 1"])
    assert outcome.error.startswith("the browser failed: ")
    with pytest.raises(ValueError, match="the episode in world 2 is over"):
        worlds.step([2], ["click 1"])
    (outcome,) = worlds.step([0], worlds.expert([0]))
    assert outcome.reward == 1.0 and ended.reward == 1.0
    is_sound(worlds, [0, 1, 2, 3])


def test_a_death_between_episodes_is_no_ones_error(worlds):
    is_sound(worlds, [0, 1])
    os.kill(browser_of(os.getpid())["chromium"], signal.SIGKILL)
    is_sound(worlds, [0, 1])


def test_a_page_that_hangs_is_given_up(worlds):
    begin(worlds, [0, 1])
    hanging = browser_of(os.getpid())
    for renderer in hanging["renderers"]:
        os.kill(renderer, signal.SIGSTOP)
    start = time.monotonic()
    outcomes = worlds.step([0, 1], ["click 1", "click 1"])
    assert all(outcome.error.startswith("the browser failed: ") for outcome in outcomes)
    assert time.monotonic() - start < 12
    wait_until_gone([hanging["chromium"], hanging["chromedriver"], *hanging["renderers"]])
    is_sound(worlds, [0, 1])


def test_a_driver_that_hangs_is_given_up(worlds):
    begin(worlds, [0])
    os.kill(browser_of(os.getpid())["chromedriver"], signal.SIGSTOP)
    (outcome,) = worlds.step([0], ["click 1"])
    assert outcome.error == "the browser failed: no answer within 7 s"
    is_sound(worlds, [0])


def test_a_page_that_throws_ends_its_own_episode_only(worlds):
    begin(worlds, [0, 1])
    broken = (
        "document.querySelectorAll('iframe')[0].contentWindow.core.getDOMInfo = () => { throw 'broken'; }"
    )
    worlds._browser._script(broken)
    one, other = worlds.step([0, 1], ["click 1", "click 1"])
    assert (one.error, other.error) == ("broken", None)
    is_sound(worlds, [0])
    (outcome,) = worlds.step([1], worlds.expert([1]))
    assert outcome.reward == 1.0


def test_a_browser_that_cannot_be_started_is_an_error_until_it_can(worlds, monkeypatch):
    monkeypatch.setenv("MINIWOB_CHROME_BINARY", "/bin/true")
    monkeypatch.setenv("MINIWOB_CHROMEDRIVER", "/usr/bin/chromedriver")
    (outcome,) = worlds.reset([0], ["click-test-2/0"])
    assert outcome.error.startswith("the browser failed: ")
    monkeypatch.undo()
    is_sound(worlds, [0])


@pytest.mark.parametrize("driver", ["/bin/false", "/bin/echo", "no program"])
def test_a_driver_that_ends_at_once_leaves_nothing(monkeypatch, temporary, driver):
    if driver == "no program":
        driver = str(temporary / "driver")
        Path(driver).write_text("no program")
        Path(driver).chmod(0o755)
    monkeypatch.setenv("MINIWOB_CHROME_BINARY", "/bin/true")
    monkeypatch.setenv("MINIWOB_CHROMEDRIVER", driver)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    worlds = MiniWoBEnvs("click-test-2", 1)
    for _ in range(5):
        (outcome,) = worlds.reset([0], ["click-test-2/0"])
        assert outcome.error.startswith("the browser failed: chromedriver did not start")
    assert not list(temporary.glob("peira-chromium-*"))


def test_a_long_name_of_the_folder_for_temporary_files_is_no_hindrance(worlds, monkeypatch, tmp_path):
    long = tmp_path / "long" / ("x" * 100)
    long.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    is_sound(worlds, [0])


def test_close_leaves_neither_processes_nor_files():
    worlds = MiniWoBEnvs("click-test-2", 1)
    begin(worlds, [0])
    started, folder = below(os.getpid()), Path(worlds._browser._folder)
    assert len([command for command in started.values() if "chrom" in command]) > 4
    assert folder.is_dir()
    worlds.close()
    wait_until_gone(started)
    assert not folder.exists()
    (outcome,) = worlds.step([0], ["click 1"])
    assert outcome.error == "the worlds were closed"
    worlds.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, "end", "a child that lives on"])
def test_the_browser_goes_when_its_process_goes(how, temporary):
    then = {"end": "sys.exit()"}.get(how, "print('ready', flush=True)\ntime.sleep(600)")
    if how == "a child that lives on":  # and holds all that was open when it was forked
        then = "print('ready', flush=True)\nif os.fork() == 0: time.sleep(600)\ntime.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER.format(then=then)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    child = None
    try:
        if how == "end":
            assert process.wait(60) == 0
        else:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.2)
            started = below(process.pid)
            child = next(
                (pid for pid, line in started.items() if line.startswith(f"{sys.executable} -c")), None
            )
            assert {"chromium", "chromedriver"} <= browser_of(process.pid).keys()
            process.send_signal(how if isinstance(how, signal.Signals) else signal.SIGKILL)
            process.wait(10)
            wait_until_gone(started.keys() - {child})
        deadline = time.monotonic() + 10
        while left := list(temporary.iterdir()):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if child is not None:
            os.kill(child, signal.SIGKILL)
