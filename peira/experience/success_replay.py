"""Stored successes of each task, to be replayed where a whole group failed (ARPO, Lu et al. 2025)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from peira.experience.dialogue import TextEpisode
from peira.experience.schema import Source


@dataclass
class Entry:
    """A stored success, and how often it was replayed."""

    episode: Any
    used: int = 0


@dataclass
class Splice:
    """A batch after replay: its groups, how many of them were dead before, and what was put in."""

    groups: list[list[Any]]
    version: int
    dead_before: int = 0
    injected: list[Any] = field(default_factory=list)

    @property
    def ages(self) -> list[int]:
        """Policy versions since each replayed episode was gathered."""
        return [self.version - episode.policy_version for episode in self.injected]


class SuccessReplay:
    """First in, first out: the `capacity` newest successes of each task.

    An iteration goes through `splice`, then `store`, in this order (``arpo.md`` 2.5): what is stored now helps from the
    next iteration on, and a replayed episode is never stored again. `max_age` (in policy versions) and `max_uses` leave
    entries out that are older or were replayed more often; None for no limit, as in the official code. `kind` is the
    class of the episodes.
    """

    def __init__(
        self,
        capacity: int = 8,
        *,
        dead_deviation: float = 0.05,
        dead_mean: float = 0.2,
        stored_above: float = 0.1,
        max_age: int | None = None,
        max_uses: int | None = None,
        kind: type[TextEpisode] = TextEpisode,
    ):
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self.capacity, self.dead_deviation, self.dead_mean = capacity, dead_deviation, dead_mean
        self.stored_above, self.max_age, self.max_uses = stored_above, max_age, max_uses
        self._kind = kind
        self._entries: dict[str, deque[Entry]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def of_task(self, task: str) -> list[Any]:
        """The stored successes of a task, oldest first."""
        return [entry.episode for entry in self._entries.get(task, ())]

    def is_dead(self, group: Sequence[Any]) -> bool:
        """Whether a group failed as a whole: its scores (not its format) are alike and low. Errors take no part."""
        scores = torch.tensor([episode.score for episode in group if episode.error is None])
        return bool(
            len(scores) and scores.std(correction=0) < self.dead_deviation and scores.mean() < self.dead_mean
        )

    def splice(self, groups: Sequence[Sequence[Any]], generator: torch.Generator, *, version: int) -> Splice:
        """Put one stored success of its own task in the place of member 0 of every group that failed as a whole."""
        result = Splice([list(group) for group in groups], version)
        for group in result.groups:
            if not self.is_dead(group):
                continue
            result.dead_before += 1
            usable = [entry for entry in self._entries.get(group[0].task, ()) if self._usable(entry, version)]
            if not usable:
                continue
            entry = usable[int(torch.randint(len(usable), (), generator=generator))]
            entry.used += 1
            group[0] = replace(entry.episode, group=group[0].group, source=Source.REPLAYED)
            result.injected.append(group[0])
        return result

    def store(self, fresh: Sequence[Any]) -> None:
        """Remember the successes among episodes just gathered."""
        for episode in fresh:
            if episode.error is None and episode.score > self.stored_above:
                kept = self._entries.setdefault(episode.task, deque(maxlen=self.capacity))
                kept.append(Entry(episode))

    def _usable(self, entry: Entry, version: int) -> bool:
        young = self.max_age is None or version - entry.episode.policy_version <= self.max_age
        return young and (self.max_uses is None or entry.used < self.max_uses)

    def state_dict(self) -> dict:
        return {
            task: [{"episode": entry.episode.state_dict(), "used": entry.used} for entry in entries]
            for task, entries in self._entries.items()
        }

    def load_state_dict(self, state: dict) -> None:
        self._entries = {
            task: deque(
                (Entry(self._kind.from_state(entry["episode"]), entry["used"]) for entry in entries),
                maxlen=self.capacity,
            )
            for task, entries in state.items()
        }
