"""One Chromium behind chromedriver: a page of frames, each showing a page of MiniWoB++, moved by one call together.

Spoken to in the W3C WebDriver protocol over HTTP. A process beside ours (`watch.py`) kills the browser and removes its
folder as soon as we let go of it or are gone ourselves.
"""

from __future__ import annotations

import http.client
import http.server
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

INSTALL = "apt-get install -y --no-install-recommends chromium chromium-driver"
VARIABLES = ("MINIWOB_CHROME_BINARY", "MINIWOB_CHROMEDRIVER")
PROGRAMS = (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-breakpad",
    "--no-proxy-server",
    "--no-first-run",
    "--app=data:,",  # without it a new-tab page loads first
)
FRAMES = "/miniwob/"
STARTED = "started successfully on port "
START_TIMEOUT = 60.0  # seconds for chromedriver and Chromium to start


class BrowserFault(RuntimeError):
    """The browser or its driver is dead, does not answer in time, or answers what cannot be."""


def html_folder() -> Path:
    """The pages that the `miniwob` package brings along; found without importing it, and Selenium with it."""
    found = importlib.util.find_spec("miniwob")
    if found is None or not found.submodule_search_locations:
        raise ValueError("env: MiniWoB needs the package miniwob: pip install 'peira[browser]'")
    return Path(found.submodule_search_locations[0]) / "html"


def find_programs() -> tuple[str, str]:
    """Paths of Chromium and of chromedriver: from miniwob's own two variables, else from the PATH."""
    named = [os.environ.get(variable, "") for variable in VARIABLES]
    if any(named) and not all(named):
        raise ValueError(f"env: set both {VARIABLES[0]} and {VARIABLES[1]}, or neither")
    paths = []
    for variable, name, candidates in zip(VARIABLES, named, PROGRAMS, strict=True):
        path = next(filter(None, map(shutil.which, [name] if name else candidates)), None)
        if path is None:
            missing = (
                f"{variable} names {name}, which cannot be run" if name else f"{candidates[0]} is not there"
            )
            raise ValueError(
                f"env: MiniWoB needs Chromium and its driver, and {missing}; install both with\n{INSTALL}"
            )
        paths.append(path)
    return paths[0], paths[1]


def _short_folder() -> str:
    """Where temporary files go, unless the name of Chromium's socket there would have more than its 107 characters."""
    usual = tempfile.gettempdir()
    return usual if len(usual) < 40 else "/tmp"


class _Pages(http.server.ThreadingHTTPServer):
    """Serves a folder on 127.0.0.1, and an empty page in the pages' own folder to hold the frames."""

    daemon_threads = True
    request_queue_size = 128  # all frames may ask at once

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}{FRAMES}"
        threading.Thread(target=self.serve_forever, name="miniwob-pages", daemon=True).start()

    def handle_error(self, *request: Any) -> None:
        # A browser that is killed hangs up in the middle of a file.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*request)

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Files(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path != FRAMES:
            return super().do_GET()
        page = b"<!doctype html><title>MiniWoB++</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)
        return None

    def end_headers(self) -> None:
        # An icon that had to be asked for again would not be there yet when its page is looked at.
        self.send_header("Cache-Control", "max-age=86400")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing: requests are no news."""


class Browser:
    """A running Chromium with `frames.js` in an empty page, and the server of MiniWoB's pages.

    Every request is answered within `timeout` seconds or raises `BrowserFault`, after which the browser is of no
    more use and is to be closed.
    """

    def __init__(self, timeout: float):
        chromium, chromedriver = find_programs()
        self._pages = _Pages(html_folder())
        self._folder = tempfile.mkdtemp(prefix="peira-chromium-", dir=_short_folder())
        self._watch = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(Path(__file__).with_name("watch.py")), self._folder),
                *(chromedriver, "--port=0"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": self._folder, "XDG_CONFIG_HOME": self._folder},
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT
            self._driver = http.client.HTTPConnection(
                "127.0.0.1", self._port(deadline), timeout=START_TIMEOUT
            )
            self._session = ""
            options = {"binary": chromium, "args": [*CHROMIUM_FLAGS, f"--user-data-dir={self._folder}"]}
            capabilities = {
                "goog:chromeOptions": options,
                "timeouts": {"script": int(1000 * timeout), "pageLoad": int(1000 * START_TIMEOUT)},
            }
            session = self._ask("", {"capabilities": {"alwaysMatch": capabilities}})
            self._session = "/" + session["sessionId"]
            self._ask("/url", {"url": self._pages.url})
            # In a page without focus the elements of a frame would neither gain nor lose it.
            focus = {"cmd": "Emulation.setFocusEmulationEnabled", "params": {"enabled": True}}
            self._ask("/goog/cdp/execute", focus)
            frames = Path(__file__).with_name("frames.js").read_text()
            shown = self._script(f"{frames}\nreturn location.href;")
            if shown != self._pages.url:
                raise BrowserFault(f"Chromium shows {shown} in place of {self._pages.url}")
            assert self._driver.sock is not None
            # Beyond the script's own limit, which tells more than a silent connection.
            self._driver.timeout = timeout + 5
            self._driver.sock.settimeout(self._driver.timeout)
        except BaseException:
            self.close()
            raise

    def act(self, moves: Sequence[Sequence]) -> list[dict[str, Any]]:
        """What each frame shows after its move, in one call for all; see `act` in frames.js for both."""
        return json.loads(self._script("return peira.act(arguments[0])", moves))

    def close(self) -> None:
        """Kill the browser and its driver, and remove what they wrote; returns when both is done."""
        self._pages.close()
        assert self._watch.stdin is not None and self._watch.stdout is not None
        self._watch.stdin.close()
        self._watch.wait()
        self._watch.stdout.close()

    def _script(self, text: str, *arguments: Any) -> Any:
        return self._ask("/execute/sync", {"script": text, "args": arguments})

    def _ask(self, path: str, body: dict) -> Any:
        headers = {"Content-Type": "application/json; charset=utf-8"}
        try:
            self._driver.request("POST", f"/session{self._session}{path}", json.dumps(body).encode(), headers)
            response = self._driver.getresponse()
            value = json.loads(response.read())["value"]
        except TimeoutError as fault:
            raise BrowserFault(f"no answer within {self._driver.timeout:g} s") from fault
        except (OSError, http.client.HTTPException, ValueError) as fault:
            raise BrowserFault(f"chromedriver does not answer: {type(fault).__name__}: {fault}") from fault
        if response.status != 200:
            raise BrowserFault(f"{value['error']}: {value['message']}".splitlines()[0])
        return value

    def _port(self, deadline: float) -> int:
        """The port that chromedriver says it listens on."""
        assert self._watch.stdout is not None
        said = b""
        while True:
            ready, _, _ = select.select([self._watch.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._watch.stdout.fileno(), 4096) if ready else b""
            if not chunk:
                raise BrowserFault(
                    f"chromedriver did not start; it said: {said.decode(errors='replace').strip()!r}"
                )
            said += chunk
            _, found, after = said.decode(errors="replace").partition(STARTED)
            if found and "." in after:
                return int(after.partition(".")[0])
