"""MiniWoB++ as text worlds: a task is a page and a seed, an action a line, and the score 1 or 0 at the end.

All worlds are frames of one browser. Where it dies or hangs, every episode that was running in it ends with an error,
and the next reset starts another.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peira.environments.miniwob.driver import Browser, BrowserFault, find_programs, html_folder
from peira.environments.miniwob.pages import MANUAL, MAX_STEPS, PAGES, Element, Snapshot, parse
from peira.environments.text import Outcome, TextEnvs

FIRST_HELD_OUT = 1_000_000  # tasks are numbered from 0, those held out from here


@dataclass
class _Episode:
    page: str
    snapshot: Snapshot
    steps: int = 0
    over: bool = False
    lost: str | None = None  # why its browser is gone


class MiniWoBEnvs(TextEnvs):
    """`num_envs` frames that show pages of MiniWoB++ (Shi et al. 2017; Liu et al. 2018), all moved by one call.

    page: a page's name, or several. A task "enter-password/17" is a page and the seed of its problem; `tasks` are the
    seeds 0, 1, … of each page and `held_out` others, but any seed can be reset to.
    max_steps: actions before an episode is truncated; left out, what suits the page (of several the most).
    timeout: seconds after which a call that has not answered counts as a crash.

    The score is 1 if the page's raw reward, which knows no time limit and no partial credit, ends as 1, else 0.
    `elements` gives the same states as `Outcome.observation` does, but structured.
    """

    def __init__(
        self,
        page: str | Sequence[str],
        num_envs: int,
        *,
        num_tasks: int = 32,
        num_held_out: int = 64,
        max_steps: int | None = None,
        timeout: float = 30.0,
    ):
        pages = (page,) if isinstance(page, str) else tuple(page)
        for name, value in (
            ("num_envs", num_envs),
            ("num_tasks", num_tasks),
            ("max_steps", max_steps),
            ("pages", len(pages)),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        _check_pages(pages)
        find_programs()
        self.id = "miniwob/" + "+".join(pages)
        self.num_envs = num_envs
        self.tasks = tuple(f"{name}/{seed}" for name in pages for seed in range(num_tasks))
        self.held_out = tuple(
            f"{name}/{FIRST_HELD_OUT + seed}" for name in pages for seed in range(num_held_out)
        )
        self.max_steps = max_steps or max(_max_steps(name) for name in pages)
        self.manual = MANUAL
        self._pages, self._timeout = pages, timeout
        self._browser: Browser | None = None
        self._episodes: list[_Episode | None] = [None] * num_envs

    def reset(self, which: Sequence[int], tasks: Sequence[str]) -> list[Outcome]:
        begun = [self._page_and_seed(task) for task in tasks]
        moves = [
            [place, "reset", page, seed, page not in PAGES]  # the last: whether to load the page anew
            for place, (page, seed) in zip(which, begun, strict=True)
        ]
        for place in which:
            self._episodes[place] = None
        try:
            try:
                answers = self._act(moves)
            except BrowserFault:  # It may have died unnoticed before, and these episodes shall not suffer.
                answers = self._act(moves)
        except BrowserFault as fault:
            return [Outcome("", error=f"the browser failed: {fault}") for _ in which]
        outcomes = []
        for (place, _, page, _, _), answer in zip(moves, answers, strict=True):
            if "fault" in answer:
                outcomes.append(Outcome("", error=answer["fault"]))
                continue
            episode = self._episodes[place] = _Episode(page, _snapshot(answer))
            outcomes.append(Outcome(episode.snapshot.as_text()))
        return outcomes

    def step(self, which: Sequence[int], actions: Sequence[str]) -> list[Outcome]:
        parsed = [parse(action) for action in actions]
        running = [self._running(place) for place in which]
        moves = [
            [place, *move]
            for place, move, episode in zip(which, parsed, running, strict=True)
            if move is not None and episode.lost is None
        ]
        try:
            answers = dict(zip((move[0] for move in moves), self._act(moves), strict=True)) if moves else {}
        except BrowserFault:
            answers = {}  # `_act` has marked all that were running as lost.
        return [
            self._outcome(episode, answers.get(place), move is not None)
            for place, move, episode in zip(which, parsed, running, strict=True)
        ]

    def elements(self, which: Sequence[int]) -> list[Snapshot]:
        """What the worlds `which` showed last: the goal, and each element with its attributes and position.

        An element is acted on with "click REF" and, where it `takes_text`, 'type REF "text"'.
        """
        return [self._begun(place).snapshot for place in which]

    def expert(self, which: Sequence[int]) -> list[str]:
        actions = []
        for place in which:
            episode = self._begun(place)
            if episode.page not in PAGES:
                known = ", ".join(PAGES)
                raise ValueError(f"expert: there is none for the page {episode.page!r}, but for {known}")
            actions.append(PAGES[episode.page].expert(episode.snapshot))
        return actions

    def close(self) -> None:
        """End the browser. A later reset would start another."""
        self._lose("the worlds were closed")

    def _outcome(self, episode: _Episode, answer: dict[str, Any] | None, understood: bool) -> Outcome:
        episode.steps += 1
        fault = episode.lost or (answer or {}).get("fault")
        if fault:
            episode.over = True
            return Outcome("", understood=understood, error=fault)
        done, raw = False, 0.0
        if answer is not None:
            episode.snapshot, done, raw = _snapshot(answer), answer["done"], answer["raw"]
        truncated = not done and episode.steps >= self.max_steps
        episode.over = done or truncated
        reward = 1.0 if done and raw == 1 else 0.0
        return Outcome(episode.snapshot.as_text(), reward, done, truncated, understood)

    def _act(self, moves: Sequence[Sequence]) -> list[dict[str, Any]]:
        try:
            if self._browser is None:
                self._browser = Browser(self._timeout)
            return self._browser.act(moves)
        except BrowserFault as fault:
            self._lose(f"the browser failed: {fault}")
            raise

    def _lose(self, why: str) -> None:
        """Be done with the browser, and with all that was running in it."""
        if self._browser is not None:
            self._browser.close()
            self._browser = None
        for episode in self._episodes:
            if episode is not None and not episode.over:
                episode.lost = episode.lost or why

    def _begun(self, place: int) -> _Episode:
        episode = self._episodes[place]
        if episode is None:
            raise ValueError(f"{self.id}: no task was begun in world {place}; reset it first")
        return episode

    def _running(self, place: int) -> _Episode:
        episode = self._begun(place)
        if episode.over:
            raise ValueError(f"{self.id}: the episode in world {place} is over; reset it first")
        return episode

    def _page_and_seed(self, task: str) -> tuple[str, int]:
        page, _, seed = task.rpartition("/")
        if page not in self._pages or not (seed.isascii() and seed.isdigit()):
            raise ValueError(f"task: expected a page and a seed such as {self.tasks[0]!r}, got {task!r}")
        return page, int(seed)


def _max_steps(page: str) -> int:
    return PAGES[page].max_steps if page in PAGES else MAX_STEPS


def _check_pages(pages: Sequence[str]) -> None:
    known = sorted(path.stem for path in (html_folder() / "miniwob").glob("*.html"))
    for page in pages:
        if page not in known:
            close = difflib.get_close_matches(page, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise ValueError(f"env: there is no page {page!r}; {hint}")


def _snapshot(answer: dict[str, Any]) -> Snapshot:
    return Snapshot(answer["goal"], tuple(map(Element._make, answer["elements"])))
