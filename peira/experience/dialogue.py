"""Episodes of text: what was read, what was written, and the tokens of both exactly as the model saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from peira.experience.episode import Episode
from peira.experience.schema import Source


@dataclass(frozen=True)
class Tokens:
    """An episode as the model saw it: one sequence, and which of its tokens the policy chose.

    `log_probs` holds, for every sampled token in order, its log-probability when it was sampled.
    """

    ids: Int[np.ndarray, " tokens"]
    sampled: Bool[np.ndarray, " tokens"]
    log_probs: Float[np.ndarray, " sampled"]

    def __len__(self) -> int:
        return len(self.ids)


@runtime_checkable
class Sampled(Protocol):
    """An episode as some policy saw it: what it sampled can be counted, and has the log-probabilities of then."""

    @property
    def sampled(self) -> Bool[np.ndarray, " tokens"]: ...

    @property
    def log_probs(self) -> Float[np.ndarray, " sampled"]: ...

    def __len__(self) -> int: ...


@dataclass
class TextEpisode:
    """One attempt at a task, turn by turn.

    `context[t]` are the tokens read before action t (the prompt, or what followed the action before),
    `action_tokens[t]` those sampled, `log_probs[t]` their log-probabilities; empty lists where no language model acted.
    `score` is the world's, in [0, 1]; `ending` says how it ended: finished, max_steps, parse_error,
    env_error, model_error or context_overflow; "" while it runs.
    """

    id: str
    task: str
    group: str
    policy_version: int = 0
    source: str = Source.REAL
    observations: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    context: list[list[int]] = field(default_factory=list)
    action_tokens: list[list[int]] = field(default_factory=list)
    log_probs: list[list[float]] = field(default_factory=list)
    score: float = 0.0
    ending: str = ""
    error: str | None = None

    @property
    def steps(self) -> int:
        return len(self.actions)

    @property
    def failed_to_parse(self) -> bool:
        return self.ending == "parse_error"

    @property
    def sampled_tokens(self) -> int:
        return sum(map(len, self.action_tokens))

    @property
    def tokens(self) -> Tokens:
        """The whole episode as one sequence, up to its last sampled token."""
        parts, marks = [], []
        for context, action in zip(self.context, self.action_tokens, strict=True):
            parts += [context, action]
            marks += [np.zeros(len(context), bool), np.ones(len(action), bool)]
        log_probs = np.concatenate([np.zeros(0), *self.log_probs]).astype(np.float32)
        return Tokens(np.concatenate(parts).astype(np.int64), np.concatenate(marks), log_probs)

    def to_episode(self, policy_id: str) -> Episode:
        """The episode as rows for the store; one that failed before its first action has none."""
        last = self.steps - 1
        reward = np.zeros(self.steps, np.float32)
        terminated, truncated = np.zeros(self.steps, bool), np.zeros(self.steps, bool)
        if self.error is None:
            reward[last] = self.score
            terminated[last] = self.ending in ("finished", "parse_error")
            truncated[last] = not terminated[last]
        columns: dict[str, Any] = {
            "observation": self.observations[: self.steps],
            "action": self.actions,
            "reward": np.ma.masked_array(reward, np.arange(self.steps) == (last if self.error else -1)),
            "terminated": terminated,
            "truncated": truncated,
            "error": pa.array([None] * last + [self.error], pa.string()),
        }
        if self.action_tokens:
            columns["action_tokens"] = pa.array(self.action_tokens, pa.list_(pa.int32()))
            columns["context_tokens"] = pa.array(self.context, pa.list_(pa.int32()))
        if self.log_probs:
            columns["behaviour_log_prob"] = pa.array(self.log_probs, pa.list_(pa.float32()))
        return Episode(
            self.id,
            columns,
            source=self.source,
            task_id=self.task,
            group_id=self.group,
            policy_id=policy_id,
            policy_version=self.policy_version,
        )

    def state_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict) -> TextEpisode:
        return cls(**state)


def total_steps(episodes: Sequence[TextEpisode]) -> int:
    return sum(episode.steps for episode in episodes)
