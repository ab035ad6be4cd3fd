"""TextHouse: a household to be acted in by text, a twin of ALFWorld's engine, a thousand times faster.

In its sentences, its lists of admissible actions and its ends it is the ALFRED text domain as ALFWorld's own engine
plays it, for rooms drawn from a seed (Shridhar et al., "ALFWorld: Aligning Text and Embodied Environments for
Interactive Learning", ICLR 2021). It departs from that in three ways: an episode is truncated after `max_steps`;
nothing can be sliced; and there is a second, brief rendering for models of a vocabulary of some sixty words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from peira.environments.text import TextEnv
from peira.environments.texthouse_moves import House, expert_move
from peira.environments.texthouse_rooms import FAMILIES, FIRST_HELD_OUT, LARGEST, draw_room
from peira.environments.texthouse_words import Sentences, Words


class TextHouse(TextEnv):
    """Find a thing in a room, do to it what is asked for, and bring it where it should be.

    A task is named by its family and a seed, as in "heat/17", and its name alone determines the room of a given size:

    - `put`, and `heat`, `cool`, `clean` first in the microwave, the fridge, the sinkbasin; `two` of a kind; `light`:
      hold it under a lamp that is on.
    - Seeds from 1,000,000 on are held out: no room of theirs is also one of training, whatever is asked there.

    The reward is 1 at the end of an episode whose goal holds (`terminated`), and 0 otherwise; after `max_steps` actions
    the episode is `truncated`. An action that does nothing is answered by "Nothing happens." ("nothing" if brief), and
    `info["understood"]` is False if it was not of the grammar either. What can be closed is so at first.

    `receptacles` and `objects` are their numbers in the room (`light` has a lamp besides); small rooms are drawn from
    few kinds. With `brief`, the same happens in fewer words: every action is one or two words, every name is one.

    Raises `ValueError` for settings that no room has, and for a task that is none.
    """

    def __init__(
        self,
        *,
        receptacles: int = 6,
        objects: int = 3,
        families: Sequence[str] = ("put", "heat", "clean"),
        max_steps: int = 20,
        num_tasks: int = 512,
        num_held_out: int = 256,
        brief: bool = False,
    ):
        if not 4 <= receptacles <= LARGEST:
            raise ValueError(f"receptacles: expected 4 to {LARGEST}, got {receptacles}")
        fewest = 2 if "two" in families else 1
        if not fewest <= objects <= LARGEST:
            raise ValueError(f"objects: expected {fewest} to {LARGEST}, got {objects}")
        unknown = [family for family in families if family not in FAMILIES]
        if unknown or not families:
            raise ValueError(f"families: expected some of {', '.join(FAMILIES)}, got {list(families)}")
        if max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
        if not 1 <= num_tasks <= FIRST_HELD_OUT:
            raise ValueError(f"num_tasks: expected 1 to {FIRST_HELD_OUT}, got {num_tasks}")
        if num_held_out < 0:
            raise ValueError(f"num_held_out: expected 0 or more, got {num_held_out}")
        self.families, self.max_steps = tuple(families), max_steps
        self.tasks = self._named(0, num_tasks)
        self.held_out = self._named(FIRST_HELD_OUT, num_held_out)
        self._receptacles, self._objects = receptacles, objects
        self._language = Words if brief else Sentences
        self.manual = self._language.manual
        self._house: House | None = None
        self._over = False

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[str, dict]:
        """Begin the task `options["task"]`, without one a training task drawn by `seed`."""
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if task is None:
            task = self.tasks[self.np_random.integers(len(self.tasks))]
        named = re.fullmatch(r"([a-z]+)/(\d+)", task)
        if named is None or named[1] not in self.families:
            raise ValueError(
                f"task: expected a family of {', '.join(self.families)} and a seed, as in {self.tasks[0]}, got {task}"
            )
        room = draw_room(named[1], int(named[2]), self._receptacles, self._objects)
        self._house, self._words = House(room), self._language(room)
        self._steps, self._over = 0, False
        return self._words.begin(self._house), {"task": task}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict]:
        """What is said of the action, the reward, `terminated`, `truncated`, and `info["understood"]`."""
        house, words = self._running(), self._words
        action = action.strip()
        move = words.read(action, house)
        if move is not None and house.act(*move):
            observation = words.tell(move, house)
        else:
            observation = words.nothing_happens
        self._steps += 1
        solved = house.solved()
        truncated = not solved and self._steps >= self.max_steps
        self._over = solved or truncated
        understood = move is not None or words.understands(action)
        return observation, float(solved), solved, truncated, {"understood": understood}

    def admissible(self) -> list[str]:
        """The actions that would be carried out now, in alphabetical order."""
        house, words = self._running(), self._words
        return sorted([*words.bare, *map(words.write, house.moves())])

    def expert_action(self) -> str:
        """What a searcher who knows no more than has been shown would do next."""
        return self._words.write(expert_move(self._running()))

    def _running(self) -> House:
        if self._house is None or self._over:
            raise RuntimeError("TextHouse: no episode is running; call reset first")
        return self._house

    def _named(self, first: int, count: int) -> tuple[str, ...]:
        """That many names of tasks, the families in turn."""
        turns = len(self.families)
        return tuple(f"{self.families[task % turns]}/{first + task // turns}" for task in range(count))
