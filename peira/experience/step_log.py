"""A log as critics of single steps read it: transitions grouped by the step of the episode they were taken at."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peira.experience.transitions import TransitionLog


@dataclass(frozen=True)
class StepRows:
    """As many transitions of each step, `[steps, rows, …]`."""

    observation: Float[Tensor, "steps rows obs"]
    action: Float[Tensor, "steps rows act"]
    reward: Float[Tensor, "steps rows"]
    next_observation: Float[Tensor, "steps rows obs"]
    terminated: Bool[Tensor, "steps rows"]


@dataclass(frozen=True)
class StepLog:
    """Transitions, those of step 0 first, then those of step 1, …; groups may differ in size.

    first[h] is the first row of step h, and the last entry the number of rows. The rows need not make up whole
    episodes. Probabilities of logged actions are not needed, and not kept.
    """

    observation: Float[Tensor, "rows obs"]
    action: Float[Tensor, "rows act"]
    reward: Float[Tensor, " rows"]
    next_observation: Float[Tensor, "rows obs"]
    terminated: Bool[Tensor, " rows"]
    first: Int[Tensor, " bounds"]

    def __post_init__(self) -> None:
        if (empty := torch.nonzero(self.first.diff() == 0)).numel():
            raise ValueError(
                f"log: holds no transition of step {int(empty[0])} of {self.steps}; every step needs some: give longer "
                "episodes, or use one policy for all steps (time_mode stationary)"
            )

    @property
    def steps(self) -> int:
        """Groups: H, or 1."""
        return len(self.first) - 1

    @property
    def rows(self) -> int:
        return len(self.reward)

    def sample(self, rows: int, generator: torch.Generator) -> StepRows:
        """`rows` transitions of each step, uniformly with replacement."""
        size = self.first.diff()[:, None]
        drawn = torch.rand(self.steps, rows, generator=generator, dtype=torch.float64)
        which = self.first[:-1, None] + (drawn * size).long().clamp_(max=size - 1)
        return StepRows(
            **{field.name: getattr(self, field.name)[which] for field in fields(StepRows)},
        )

    def pooled(self) -> StepLog:
        """The same transitions in one group: for a policy and critic that are the same at every step."""
        return replace(self, first=torch.tensor([0, self.rows]))

    @staticmethod
    def by_step(log: TransitionLog, steps: int | None = None) -> StepLog:
        """Grouped by the place in the episode; `steps` says how long episodes are, None that the log says it.

        Raises ValueError where an episode is longer than `steps`, or none has as many.
        """
        place = torch.arange(log.rows) - torch.repeat_interleave(log.first[:-1], log.length)
        longest = int(log.length.max())
        steps = longest if steps is None else steps
        if longest > steps:
            raise ValueError(
                f"log: has an episode of {longest} steps, where the world has {steps}; give a log of this world"
            )
        first = torch.zeros(steps + 1, dtype=torch.int64)
        first[1:] = torch.bincount(place, minlength=steps).cumsum(0)
        order = place.argsort(stable=True)
        names = [field.name for field in fields(StepLog) if field.name != "first"]
        return StepLog(**{name: getattr(log, name)[order] for name in names}, first=first)
