"""In which order tasks are practised."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class TaskOrder:
    """Tasks in random order, each once before any comes again; a batch holds no task twice."""

    def __init__(self, tasks: Sequence[str], batch: int):
        if batch > len(tasks):
            raise ValueError(f"groups: expected at most the number of tasks, {len(tasks)}, got {batch}")
        self._tasks, self._batch = tasks, batch
        self._left: list[int] = []

    def draw(self, generator: torch.Generator) -> list[str]:
        if len(self._left) < self._batch:
            self._left = torch.randperm(len(self._tasks), generator=generator).tolist()
        chosen, self._left = self._left[: self._batch], self._left[self._batch :]
        return [self._tasks[place] for place in chosen]

    def state_dict(self) -> dict:
        return {"left": self._left}

    def load_state_dict(self, state: dict) -> None:
        self._left = list(state["left"])
