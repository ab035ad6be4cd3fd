"""Steps in memory, `[time, env, …]`, as learners read them, and those retained from earlier policies."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from peira.experience.schema import Source

SOURCE_CODES = {source: code for code, source in enumerate(Source)}


@dataclass(frozen=True)
class Batch:
    """Consecutive steps of parallel worlds; time runs down the first axis, oldest step first.

    Observations and rewards are raw. `action` is the policy's unclipped sample, and `behaviour_log_prob` the log of
    its probability (density) under the policy that chose it. `next_observation` is what the step led to, also where
    the episode ended there. `policy_version` is the version of the target policy for which the step was gathered.
    `source` holds codes of `SOURCE_CODES`.
    """

    observation: Float[Tensor, "time env obs"]
    action: Shaped[Tensor, "time env *action"]
    reward: Float[Tensor, "time env"]
    terminated: Bool[Tensor, "time env"]
    truncated: Bool[Tensor, "time env"]
    next_observation: Float[Tensor, "time env obs"]
    behaviour_log_prob: Float[Tensor, "time env"]
    policy_version: Int[Tensor, "time env"]
    source: Int[Tensor, "time env"]

    @property
    def steps(self) -> int:
        """Number of environment steps: time × env."""
        return self.reward.numel()

    @property
    def done(self) -> Bool[Tensor, "time env"]:
        """Whether the episode ended with this step, by its rules (terminated) or by the clock (truncated)."""
        return self.terminated | self.truncated

    def rows(self, name: str) -> Shaped[Tensor, "rows *rest"]:
        """A column with time and env merged: oldest step first."""
        return getattr(self, name).flatten(0, 1)

    def between(self, start: int, stop: int | None = None) -> Batch:
        """The steps from time `start` up to, not including, time `stop`."""
        return Batch(**{name: column[start:stop] for name, column in self.columns().items()})

    def columns(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def concatenate(batches: list[Batch]) -> Batch:
        """Batches of the same worlds joined along time, in the order given."""
        if len(batches) == 1:
            return batches[0]
        columns = [batch.columns() for batch in batches]
        return Batch(**{name: torch.cat([c[name] for c in columns]) for name in columns[0]})


class RetainedBatches:
    """The last `batches` target batches of `batch_steps` steps each, oldest first (``props.md`` 2.6).

    rule="batch": the oldest whole batch leaves when a new one begins, so that everything here will still be here at
    the next target update. rule="ring": the oldest steps leave as new ones come, as in the first official code.
    """

    def __init__(self, batches: int, batch_steps: int, rule: Literal["batch", "ring"] = "batch"):
        if batches < 1:
            raise ValueError(f"batches: expected at least 1, the current one, got {batches}")
        self.batches, self.batch_steps, self.rule = batches, batch_steps, rule
        self._steps: Batch | None = None

    def __len__(self) -> int:
        return 0 if self._steps is None else self._steps.steps

    def begin(self) -> None:
        """Make room for the next target batch."""
        if self.rule == "batch" and len(self) == self.batches * self.batch_steps:
            self._steps = None if self.batches == 1 else self._without_oldest(self.batch_steps)

    def extend(self, new: Batch) -> None:
        """Add steps just gathered; under rule="ring" as many of the oldest leave as do not fit."""
        self._steps = new if self._steps is None else Batch.concatenate([self._steps, new])
        excess = len(self) - self.batches * self.batch_steps
        if excess > 0:
            self._steps = self._without_oldest(excess)

    def all(self) -> Batch:
        """Every retained step: what the target update learns from."""
        if self._steps is None:
            raise ValueError("no steps are retained yet: call extend() first")
        return self._steps

    def window(self, upcoming: int) -> Batch | None:
        """What the behaviour update sees before the next `upcoming` steps; None when that is nothing."""
        if self._steps is None or self.rule == "batch":
            return self._steps
        excess = len(self) + upcoming - self.batches * self.batch_steps
        return self._without_oldest(excess) if excess > 0 else self._steps

    def _without_oldest(self, steps: int) -> Batch:
        width = self._steps.reward.shape[1]
        return self._steps.between(steps // width)

    def state_dict(self) -> dict:
        return {} if self._steps is None else self._steps.columns()

    def load_state_dict(self, state: dict) -> None:
        self._steps = Batch(**state) if state else None
