"""Worlds that are read and written: Gymnasium environments with Text spaces, many side by side, tasks by name.

An episode begins from a named task, and the same task always begins in the same state, so that the members of a group
can be compared. What a world answers is an `Outcome`; a world that fails ends its episode with an `error`, which is
neither a reward nor an end of the task.
"""

from __future__ import annotations

import difflib
import queue
import string
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium
from gymnasium.spaces import Text


@dataclass(frozen=True)
class Outcome:
    """What a world answered to a reset or an action.

    `reward` is the score of the episode and comes with its end; `understood` says whether the action was one of the
    world's grammar at all (whether or not it had an effect); `error` says why the world could not go on.
    """

    observation: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    understood: bool = True
    error: str | None = None

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated or self.error is not None


class TextEnvs(ABC):
    """`num_envs` text worlds side by side, each of which can be reset and stepped on its own.

    `tasks` and `held_out` name the tasks for training and those that nothing is trained on; `max_steps` is the number
    of actions after which an episode is truncated; `manual` tells a reader how to act here.
    """

    id: str
    num_envs: int
    tasks: tuple[str, ...]
    held_out: tuple[str, ...]
    max_steps: int
    manual: str

    @abstractmethod
    def reset(self, which: Sequence[int], tasks: Sequence[str]) -> list[Outcome]:
        """Begin these tasks in the worlds `which`; what there is to read at first, instruction included."""

    @abstractmethod
    def step(self, which: Sequence[int], actions: Sequence[str]) -> list[Outcome]:
        """One action in each of the worlds `which`."""

    @abstractmethod
    def expert(self, which: Sequence[int]) -> list[str]:
        """What the scripted expert would do next in each of the worlds `which`; ValueError where there is none."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what the worlds hold."""


class TextEnv(gymnasium.Env):
    """One text world: `reset(options={"task": NAME})`, `step(action)`, and a scripted expert.

    `step` returns Gymnasium's five; `info["understood"]` is False for an action outside the grammar.
    """

    tasks: tuple[str, ...]
    held_out: tuple[str, ...]
    max_steps: int
    manual: str
    observation_space = Text(1 << 20, charset=string.printable)
    action_space = Text(1 << 12, charset=string.printable)

    @abstractmethod
    def expert_action(self) -> str:
        """What the scripted expert would do next."""


class SeparateTextEnvs(TextEnvs):
    """Text worlds that are objects of their own, in this process.

    A world that raises, answers with what is no text, or (where `timeout` seconds are given) does not answer in time,
    ends its episode with an error and is made anew before its next reset.
    """

    def __init__(self, id: str, make: Callable[[], TextEnv], num_envs: int, *, timeout: float | None = None):
        if num_envs < 1:
            raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
        self.id, self.num_envs = id, num_envs
        self._make, self._timeout = make, timeout
        self._worlds = [make() for _ in range(num_envs)]
        self._broken = [False] * num_envs
        self._workers: list[_Worker | None] = [None] * num_envs
        first = self._worlds[0]
        self.tasks, self.held_out = tuple(first.tasks), tuple(first.held_out)
        self.max_steps, self.manual = first.max_steps, first.manual

    def reset(self, which: Sequence[int], tasks: Sequence[str]) -> list[Outcome]:
        outcomes = []
        for place, task in zip(which, tasks, strict=True):
            if self._broken[place]:
                self._worlds[place], self._workers[place], self._broken[place] = self._make(), None, False
            world = self._worlds[place]
            outcomes.append(self._answer(place, world.reset, options={"task": task}))
        return outcomes

    def step(self, which: Sequence[int], actions: Sequence[str]) -> list[Outcome]:
        return [
            self._answer(place, self._worlds[place].step, action)
            for place, action in zip(which, actions, strict=True)
        ]

    def expert(self, which: Sequence[int]) -> list[str]:
        return [self._worlds[place].expert_action() for place in which]

    def close(self) -> None:
        for world, broken in zip(self._worlds, self._broken, strict=True):
            if not broken:
                world.close()

    def _answer(self, place: int, work: Callable, *arguments: object, **options: object) -> Outcome:
        try:
            if self._timeout is None:
                answer = work(*arguments, **options)
            else:
                worker = self._workers[place] = self._workers[place] or _Worker()
                answer = worker.run(self._timeout, work, *arguments, **options)
            outcome = _outcome(answer)
        except Exception as fault:  # Whatever a world throws ends its episode; the run goes on.
            self._broken[place] = True
            return Outcome("", error=f"{type(fault).__name__}: {fault}".splitlines()[0])
        return outcome


class _Worker:
    """A thread of its own for one world, left behind when the world hangs."""

    def __init__(self):
        self._asked: queue.SimpleQueue = queue.SimpleQueue()
        self._answered: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="text-world", daemon=True).start()

    def run(self, timeout: float, work: Callable, *arguments: object, **options: object) -> tuple:
        self._asked.put((work, arguments, options))
        try:
            answer, fault = self._answered.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"no answer within {timeout:g} s") from None
        if fault is not None:
            raise fault
        return answer

    def _serve(self) -> None:
        while True:
            work, arguments, options = self._asked.get()
            try:
                self._answered.put((work(*arguments, **options), None))
            except Exception as fault:  # Raised again by the caller.
                self._answered.put((None, fault))


def _outcome(answer: tuple) -> Outcome:
    """Outcome from what Gymnasium's `reset` (two entries) or `step` (five) returned."""
    observation, *rest = answer
    if not isinstance(observation, str):
        raise TypeError(f"the observation is no text but {type(observation).__name__}")
    info = rest[-1]
    if len(rest) == 1:
        return Outcome(observation)
    reward, terminated, truncated, _ = rest
    return Outcome(
        observation, float(reward), bool(terminated), bool(truncated), info.get("understood", True)
    )


def make_text(id: str, num_envs: int, *, timeout: float | None = None) -> TextEnvs:
    """`num_envs` copies of a text world side by side.

    "texthouse", "texthouse-brief" (one word an object, for tiny models), "textworld/KIND/LEVEL" such as
    "textworld/coin-collector/3", "miniwob/PAGE" such as "miniwob/enter-password", "browsergym/…". `timeout` in seconds
    bounds every call into a world of this process. Raises ValueError for a world that does not exist (the nearest name
    is offered) or needs an extra that is not installed.
    """
    family, _, rest = id.partition("/")
    if family in ("texthouse", "texthouse-brief") and not rest:
        from peira.environments.texthouse import TextHouse

        brief = family == "texthouse-brief"
        return SeparateTextEnvs(id, lambda: TextHouse(brief=brief), num_envs, timeout=timeout)
    if family == "textworld":
        from peira.environments.textworld import TextWorldGame

        kind, _, level = rest.partition("/")
        if not level.isdigit():
            raise ValueError(
                f"env: expected textworld/KIND/LEVEL, such as textworld/coin-collector/3, got {id!r}"
            )
        return SeparateTextEnvs(
            id, lambda: TextWorldGame(kind=kind, level=int(level)), num_envs, timeout=timeout
        )
    if family == "miniwob" and rest:
        from peira.environments.miniwob import MiniWoBEnvs

        return MiniWoBEnvs(rest, num_envs)
    if family == "browsergym" and rest:
        from peira.environments.browsergym import BrowserGymEnvs

        return BrowserGymEnvs(id, num_envs)
    nearest = difflib.get_close_matches(id, _KNOWN, n=1, cutoff=0.5)
    offer = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(_KNOWN)}"
    raise ValueError(f"env: there is no text world {id!r}; {offer}")


_KNOWN = ("texthouse", "texthouse-brief", "textworld/coin-collector/3", "miniwob/enter-password")
TEXT_FAMILIES = ("texthouse", "texthouse-brief", "textworld", "miniwob", "browsergym")


def is_text(id: str) -> bool:
    """Whether this names a text world."""
    return id.partition("/")[0] in TEXT_FAMILIES
