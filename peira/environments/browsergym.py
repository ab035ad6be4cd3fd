"""BrowserGym's tasks as text worlds: MiniWoB++, WebArena and whatever else it registers under "browsergym/…".

What is read is BrowserGym's own accessibility tree, what is written its own actions, `click('12')`. It starts two
browsers for every episode, which takes seconds: for training on MiniWoB++ there is `peira.environments.miniwob`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium

from peira.environments.miniwob.driver import INSTALL, PROGRAMS, html_folder
from peira.environments.text import SeparateTextEnvs, TextEnv

FIRST_HELD_OUT = 1_000_000  # tasks are seeded from 0, those held out from here
PREFIX = "browsergym/"


class BrowserGymEnvs(SeparateTextEnvs):
    """`num_envs` BrowserGym environments side by side; a task "browsergym/miniwob.click-test-2/17" is an id and a seed.

    The first line read is the goal, then comes what `read` makes of BrowserGym's observation, then why the last action
    failed, if it did. The score is the sum of the rewards of the episode, given at its end; MiniWoB++'s is 1 there for
    partial credit too, so it is not to be mixed with that of `MiniWoBEnvs`. There are no scripted experts.

    ids: a Gymnasium id, or several. make: an environment from its id. read: text from an observation, such as
    `read_dom`. manual: how to act; left out, BrowserGym's own description of its actions.

    Raises ValueError where BrowserGym, its benchmark or Chromium is not installed, or there is no such id.
    """

    def __init__(
        self,
        ids: str | Sequence[str],
        num_envs: int,
        *,
        num_tasks: int = 8,
        num_held_out: int = 8,
        max_steps: int = 10,
        make: Callable[[str], gymnasium.Env] | None = None,
        read: Callable[[dict[str, Any]], str] | None = None,
        manual: str | None = None,
    ):
        ids = (ids,) if isinstance(ids, str) else tuple(ids)
        for id in ids:
            _register(id)
        names = "+".join(id.removeprefix(PREFIX) for id in ids)
        tasks, held_out = (
            tuple(f"{id}/{first + seed}" for id in ids for seed in range(count))
            for first, count in ((0, num_tasks), (FIRST_HELD_OUT, num_held_out))
        )
        manual = _action_set().describe(with_long_description=False) if manual is None else manual
        make, read = make or make_environment, read or read_axtree

        def world() -> _World:
            return _World(ids, make, read, tasks, held_out, max_steps, manual)

        super().__init__(PREFIX + names, world, num_envs)


class _World(TextEnv):
    """One environment at a time, of the id that the task names."""

    def __init__(
        self,
        ids: tuple[str, ...],
        make: Callable[[str], gymnasium.Env],
        read: Callable[[dict[str, Any]], str],
        tasks: tuple[str, ...],
        held_out: tuple[str, ...],
        max_steps: int,
        manual: str,
    ):
        self.tasks, self.held_out, self.max_steps, self.manual = tasks, held_out, max_steps, manual
        self._ids, self._make, self._read = ids, make, read
        self._environment: gymnasium.Env | None = None
        self._id = ""
        self._text = ""
        self._steps, self._score = 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        task = (options or {}).get("task", self.tasks[0])
        id, _, number = task.rpartition("/")
        if id not in self._ids or not (number.isascii() and number.isdigit()):
            raise ValueError(f"task: expected an id and a seed such as {self.tasks[0]!r}, got {task!r}")
        with self._gone_when_it_fails():
            if self._environment is None or self._id != id:
                self.close()
                self._environment, self._id = self._make(id), id
            observation, _ = self._environment.reset(seed=int(number))
        self._text = self._describe(observation)
        self._steps, self._score = 0, 0.0
        return self._text, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        if self._environment is None:
            raise ValueError("no task was begun; reset first")
        self._steps += 1
        understood, terminated, truncated = self._understands(action), False, False
        if understood:
            with self._gone_when_it_fails():
                observation, reward, terminated, truncated, _ = self._environment.step(action)
            self._text = self._describe(observation)
            self._score += float(reward)
        truncated = not terminated and (truncated or self._steps >= self.max_steps)
        score = self._score if terminated or truncated else 0.0
        return self._text, score, terminated, truncated, {"understood": understood}

    def expert_action(self) -> str:
        raise ValueError(f"expert: there is none for {self._id or PREFIX}")

    def close(self) -> None:
        if self._environment is not None:
            environment, self._environment = self._environment, None
            environment.close()

    def _understands(self, action: str) -> bool:
        """Whether BrowserGym finds one of its actions here; what it cannot read it would not do either."""
        assert self._environment is not None
        to_code = self._environment.unwrapped.action_mapping
        try:
            if to_code is not None:
                to_code(action)
        except Exception:  # Its parser raises what it likes; all of it says the same.
            return False
        return True

    def _describe(self, observation: dict[str, Any]) -> str:
        goal = " ".join(part["text"] for part in observation["goal_object"] if part["type"] == "text")
        lines = [f"goal: {goal}", self._read(observation)]
        if failure := observation["last_action_error"]:
            lines.append(f"the last action failed: {failure.splitlines()[0]}")
        return "\n".join(lines)

    @contextlib.contextmanager
    def _gone_when_it_fails(self) -> Iterator[None]:
        """A browser that failed is not kept beside the one that takes its place."""
        try:
            yield
        except Exception:
            with contextlib.suppress(Exception):  # What is broken may break again when it is closed.
                self.close()
            raise


def read_axtree(observation: dict[str, Any]) -> str:
    """The accessibility tree, one node a line, with the `bid` that actions name in brackets."""
    from browsergym.utils.obs import flatten_axtree_to_str

    return flatten_axtree_to_str(observation["axtree_object"])


def read_dom(observation: dict[str, Any]) -> str:
    """The DOM as HTML, each element with the attribute `bid` that actions name."""
    from browsergym.utils.obs import flatten_dom_to_str, prune_html

    return prune_html(flatten_dom_to_str(observation["dom_object"]))


def make_environment(id: str) -> gymnasium.Env:
    """BrowserGym's environment, headless, in Debian's Chromium where Playwright has installed none of its own."""
    _provide_chromium()
    settings: dict[str, Any] = {"headless": True, "action_mapping": _action_set().to_python_code}
    if id.startswith(f"{PREFIX}miniwob."):
        os.environ.setdefault("MINIWOB_URL", f"{(html_folder() / 'miniwob').as_uri()}/")
        settings |= {"slow_mo": 0, "pre_observation_delay": 0.0}  # its pages are there at once
    return gymnasium.make(id, disable_env_checker=True, **settings)


def _action_set() -> Any:
    from browsergym.core.action.highlevel import HighLevelActionSet

    return HighLevelActionSet(multiaction=False)


def _register(id: str) -> None:
    """See to it that Gymnasium knows this id; BrowserGym's benchmarks register theirs when they are imported."""
    if id.startswith(PREFIX):
        benchmark = id.removeprefix(PREFIX).partition(".")[0]
        module = "core" if benchmark == "openended" else benchmark
        try:
            importlib.import_module(f"browsergym.{module}")
        except ModuleNotFoundError as missing:
            raise ValueError(
                f"env: {id!r} needs BrowserGym, and {missing.name} is not there; in a virtual environment of its own, "
                f"since it pins an old playwright: pip install browsergym-core browsergym-{module}"
            ) from None
    if id not in gymnasium.registry:
        raise ValueError(f"env: Gymnasium knows no environment {id!r}")


@functools.cache
def _provide_chromium() -> None:
    """Put Debian's Chromium where Playwright looks for the browser that `playwright install` would download.

    For all of BrowserGym's browsers: the one for its chat window can be told of no other program.
    """
    import playwright

    described = json.loads((Path(playwright.__file__).parent / "driver/package/browsers.json").read_text())
    revision = next(each["revision"] for each in described["browsers"] if each["name"] == "chromium")
    own = os.environ.get("PLAYWRIGHT_BROWSERS_PATH", str(Path.home() / ".cache/ms-playwright"))
    if (Path(own) / f"chromium-{revision}").exists():
        return
    program = next(filter(None, map(shutil.which, PROGRAMS[0])), None)
    if program is None:
        raise ValueError(
            f"env: BrowserGym needs Chromium; install it with\nplaywright install chromium\nor\n{INSTALL}"
        )
    folder = tempfile.mkdtemp(prefix="peira-playwright-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = Path(folder) / f"chromium-{revision}" / "chrome-linux" / "chrome"
    link.parent.mkdir(parents=True)
    link.symlink_to(program)
    os.environ["PLAYWRIGHT_BROWSERS_PATH"] = folder
    os.environ["PLAYWRIGHT_SKIP_VALIDATE_HOST_REQUIREMENTS"] = "1"
