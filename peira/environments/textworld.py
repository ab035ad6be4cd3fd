"""Games made by TextWorld's own generator, compiled once into a cache and played with TextWorld's engine.

A task's name says which game it is: `coin-collector/5/17` is the game of level 5 that seed 17 gives. Games are
generated and compiled when they are first played (1 to 2 s for most levels, up to 20 s for the largest) and then kept
in `$PEIRA_CACHE/textworld` (`~/.cache/peira/textworld` where the variable is not set).
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

from peira.environments.text import TextEnv
from peira.experience.disk import sync, write_whole

if TYPE_CHECKING:
    import textworld

LEVELS = {
    # Coin Collector has (1 + (level - 1) // 100) · (1 + (level - 1) % 100) rooms, and the engine holds 100.
    "coin-collector": (*range(1, 151), *range(201, 234)),
    "treasure-hunter": tuple(range(1, 31)),
}
HELD_OUT_SEEDS = 1_000_000  # the first seed of the held-out games; those for training count from 0
OTHER_ATTEMPT = 10_000_000  # added to the seed when the generator finds no game for it
ATTEMPTS = 20

VERBS = (
    "close|drop|eat|examine|get|go|goal|help|i|insert|inv|inventory|l|lock|look|open|pick|put|shut|take|unlock|wait|walk"
    "|x|z|n|s|e|w|north|south|east|west"
)
# "then" would begin a second command; what is much longer the interpreter would cut off.
COMMAND = re.compile(rf"(?!.*\bthen\b)({VERBS})( [a-z0-9' -]{{1,100}})?")
NO_SENTENCE = ("I didn't understand that sentence", "I only understood you as far as")
BANNER = re.compile(r"[\s_|\\/$<>=-]+")

MANUAL = (
    "A house of several rooms. One command at a time: look, inventory, go north, go south, go east, go west, "
    "examine THING, take THING, take THING from PLACE, drop THING, put THING on PLACE, insert THING into PLACE, "
    "open THING, close THING, lock THING with KEY, unlock THING with KEY, eat THING."
)


class TextWorldGame(TextEnv):
    """Games of one kind and level: find what the first sentence asks for and take it.

    `kind` is `coin-collector` (a chain of rooms with a coin at the far end; from level 101 on with dead ends) or
    `treasure-hunter` (a maze with the wanted thing and a wrong one: taking the wrong one loses the game; from level 11
    on with doors and containers). The instruction names the goal, not the way. Tasks for training are seeds 0, 1, …,
    held-out ones are seeds 1000000, 1000001, …; a seed that the generator finds no game for is replaced by seed +
    10000000, + 20000000, ….

    Reward: 1 with the step that wins, else 0. An episode terminates when won or lost and is truncated after `max_steps`
    actions, understood or not.

    `info["understood"]` is False where the text is not one command that begins with one of `VERBS` (such a text never
    reaches the game, which would obey "save" and "script", which write files, "restart", and several commands at once),
    and where the game's parser answers "I didn't understand that sentence" or "I only understood you as far as …". A
    command about a thing that is not here counts as understood.

    The expert is TextWorld's own and knows the map. In Coin Collector up to level 100 its way can be found without that
    (never go back); elsewhere a player must search where the expert does not. Once the game cannot be won any more (the
    wanted thing was eaten), the expert looks around.

    Source: Côté et al., "TextWorld: A Learning Environment for Text-based Games", 2018.
    """

    def __init__(
        self,
        kind: str = "coin-collector",
        *,
        level: int = 5,
        num_tasks: int = 64,
        num_held_out: int = 16,
        max_steps: int = 50,
    ):
        _require_textworld()
        if kind not in LEVELS:
            raise ValueError(f"kind: expected one of {', '.join(LEVELS)}, got {kind!r}")
        if level not in LEVELS[kind]:
            spans = "1 to 150 or 201 to 233" if kind == "coin-collector" else "1 to 30"
            raise ValueError(f"level: {kind} has levels {spans}, got {level}")
        for name, number in (("num_tasks", num_tasks), ("num_held_out", num_held_out)):
            if not 1 <= number <= HELD_OUT_SEEDS:
                raise ValueError(f"{name}: expected 1 to {HELD_OUT_SEEDS}, got {number}")
        if max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
        self.tasks = tuple(f"{kind}/{level}/{seed}" for seed in range(num_tasks))
        self.held_out = tuple(f"{kind}/{level}/{HELD_OUT_SEEDS + number}" for number in range(num_held_out))
        self.max_steps, self.manual = max_steps, MANUAL
        self._known = frozenset(self.tasks + self.held_out)
        self._task: str | None = None
        self._steps, self._over = 0, True

    def prepare(self, tasks: Sequence[str]) -> None:
        """Compile the games of these tasks that the cache does not hold yet; on a terminal, with a progress bar."""
        for task in tasks:
            self._check(task)
        missing = [task for task in tasks if not _is_whole(_game_file(task))]
        console = Console(stderr=True)
        for task in track(missing, "Compiling games", console=console, disable=not sys.stderr.isatty()):
            compiled(task)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        super().reset(seed=seed)
        task = (options or {}).get("task") or self.tasks[self.np_random.integers(len(self.tasks))]
        self._check(task)
        if task != self._task:
            self.close()
            self._game, self._task = _start(compiled(task)), task
        self._state = self._game.reset()
        self._steps, self._over = 0, False
        return _cleaned(self._state.feedback), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        if self._over:
            raise ValueError("the episode is over; call reset first")
        self._steps += 1
        command = " ".join(action.lower().split()).rstrip(".!")
        text, understood = "That's not a command I recognise.", False
        if COMMAND.fullmatch(command):
            self._state, _, _ = self._game.step(command)
            text = _cleaned(self._state.feedback)
            understood = not text.startswith(NO_SENTENCE)
        won = bool(self._state["won"])
        terminated = won or bool(self._state["lost"])
        truncated = not terminated and self._steps >= self.max_steps
        self._over = terminated or truncated
        return text, float(won), terminated, truncated, {"understood": understood}

    def expert_action(self) -> str:
        commands = self._state["policy_commands"]
        return commands[0] if commands else "look"

    def admissible(self) -> list[str]:
        """The commands that have an effect now, in alphabetical order; worked out when asked for."""
        from textworld.generator.inform7 import Inform7Game

        grammar = Inform7Game(self._state["game"])
        return sorted(set(grammar.gen_commands_from_actions(self._state["_valid_actions"])))

    def close(self) -> None:
        if self._task is not None:
            self._game.close()
            self._task = None

    def _check(self, task: str) -> None:
        if task not in self._known:
            first, last = f"{self.tasks[0]} … {self.tasks[-1]}", f"{self.held_out[0]} … {self.held_out[-1]}"
            raise ValueError(f"task: {task!r} is none of {first}, {last}")


def compiled(task: str) -> Path:
    """The game file of a task, compiled now if the cache does not hold it whole.

    Of several processes that ask for the same game at once, one compiles it and the others wait.
    """
    import fcntl  # not on Windows, where TextWorld does not run either

    game = _game_file(task)
    if _is_whole(game):
        return game
    try:
        game.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise ValueError(
            f"cannot make the folder for games {game.parent} ({fault}); set PEIRA_CACHE"
        ) from None
    with game.with_name(f".{game.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_whole(game):
            _compile(task, game)
    return game


def _game_file(task: str) -> Path:
    import textworld

    cache = Path(os.environ.get("PEIRA_CACHE") or Path.home() / ".cache" / "peira")
    return cache / "textworld" / textworld.__version__ / f"{task.replace('/', '-')}.z8"


def _digest(game: Path) -> str:
    return hashlib.sha256(game.read_bytes() + game.with_suffix(".json").read_bytes()).hexdigest()


def _is_whole(game: Path) -> bool:
    """Whether game and description are there and are what was compiled."""
    try:
        return game.with_suffix(".sha256").read_text() == _digest(game)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _compile(task: str, game: Path) -> None:
    from textworld.generator import GameOptions, compile_game

    part = game.with_name(f".{game.stem}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    options = GameOptions()
    options.path = str(part / game.name)
    compile_game(_generated(task), options)
    for suffix in (".json", ".z8"):
        file = (part / game.name).with_suffix(suffix)
        sync(file)
        file.replace(game.with_suffix(suffix))
    write_whole(game.with_suffix(".sha256"), _digest(game))  # last: without it the other two do not count
    shutil.rmtree(part)


def _generated(task: str) -> textworld.Game:
    from textworld.challenges import coin_collector, treasure_hunter
    from textworld.generator import GameOptions, QuestGenerationError

    kind, level, seed = task.split("/")
    generator = {"coin-collector": coin_collector, "treasure-hunter": treasure_hunter}[kind]
    for attempt in range(ATTEMPTS):
        options = GameOptions()
        options.seeds = int(seed) + attempt * OTHER_ATTEMPT
        options.grammar.only_last_action = True  # otherwise the instruction spells out the whole way
        try:
            return generator.make({"level": int(level)}, options)
        except QuestGenerationError:
            continue
    raise ValueError(
        f"task: TextWorld's generator finds no game for {task!r} in {ATTEMPTS} attempts; leave it out"
    )


def _start(game: Path) -> textworld.Environment:
    import textworld

    # Asking for the expert's commands makes the engine keep track of the state that `admissible` reads, too.
    environment = textworld.start(str(game), textworld.EnvInfos(policy_commands=True))
    environment.seed(1)  # Without a seed the interpreter takes the time of day.
    return environment


def _cleaned(feedback: str) -> str:
    """What the game said, without banner, prompt, status line and closing menu; a line a paragraph, single spaces."""
    text, prompt, status = feedback.rpartition("\n>")
    lines = [" ".join(line.split()) for line in (text if prompt else status).splitlines()]
    kept = itertools.takewhile(lambda line: not line.startswith("You scored "), lines)
    return "\n".join(line for line in kept if line and not BANNER.fullmatch(line))


def _require_textworld() -> None:
    if importlib.util.find_spec("textworld") is None:
        raise ValueError("TextWorldGame needs the package textworld: pip install 'peira[language]'")
