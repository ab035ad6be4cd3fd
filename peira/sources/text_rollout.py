"""Episodes of text: a language policy (or a scripted expert) acts in many text worlds side by side.

Rows are filled anew as their episodes end. A row reads what its world answered as soon as enough others have something
to read too, so that reading is done many rows at a time and no row waits long for a slow writer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from peira.environments.text import Outcome, TextEnvs
from peira.experience.dialogue import TextEpisode
from peira.experience.schema import Source
from peira.policies.lm.sampler import ContextOverflow, Sampler
from peira.policies.lm.tokenizer import Renderer


@dataclass(frozen=True)
class Attempt:
    """An episode that is wanted: its task, its group, and the seed of everything the policy samples in it."""

    id: str
    task: str
    group: str
    seed: int


Attempts = Callable[[Sequence[Attempt]], list[TextEpisode]]
"""Makes these attempts with some policy; their episodes, in this order."""


def action_of(text: str) -> str | None:
    """The action in what a model wrote: what follows the last "Action:" on its line, or all of a single line.

    None when there is no single action to be found.
    """
    if "Action:" in text:
        text = text.rsplit("Action:", 1)[1].strip().split("\n", 1)[0]
    text = text.strip()
    return text if text and "\n" not in text else None


def text_rollout(
    envs: TextEnvs,
    sampler: Sampler,
    wanted: Sequence[Attempt],
    *,
    action_tokens: int,
    system: str | None = None,
    parse_failure_ends: bool = True,
) -> list[TextEpisode]:
    """One episode for each of `wanted`, in that order.

    An action is at most `action_tokens` tokens. `system` is shown before everything else. Where `parse_failure_ends`,
    writing what is no action of the world ends the episode with score 0; otherwise it is a step without effect. An
    episode whose context is full ends, nothing is cut off it. Errors of a world end only the episode in it.
    """
    return _Rollout(envs, sampler, wanted, action_tokens, system, parse_failure_ends).run()


class _Rollout:
    def __init__(
        self,
        envs: TextEnvs,
        sampler: Sampler,
        wanted: Sequence[Attempt],
        action_tokens: int,
        system: str | None,
        parse_failure_ends: bool,
    ):
        self.envs, self.sampler, self.renderer = envs, sampler, sampler.policy.renderer
        self.action_tokens, self.parse_failure_ends = action_tokens, parse_failure_ends
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.wanted = wanted
        sampler.clear()
        version = sampler.policy.version
        self.episodes = [TextEpisode(one.id, one.task, one.group, version) for one in wanted]
        self.waiting = deque(range(len(wanted)))
        self.rows = min(envs.num_envs, sampler.rows)
        self.place = [-1] * self.rows  # Which episode is in a row.
        self.to_read: dict[int, list[int]] = {}
        # Of the action that a row is writing: its tokens, their log-probabilities, and how many there are.
        self.is_writing = np.zeros(self.rows, bool)
        self.tokens = np.zeros((self.rows, action_tokens), np.int64)
        self.log_probs = np.zeros((self.rows, action_tokens), np.float32)
        self.written = np.zeros(self.rows, np.int64)

    def run(self) -> list[TextEpisode]:
        self._fill(range(self.rows))
        while self.to_read or self.is_writing.any():
            if len(self.to_read) >= self.is_writing.sum():
                rows = np.array(sorted(self.to_read))
                found = self.sampler.feed(rows, [self.to_read.pop(row) for row in rows.tolist()])
                self.is_writing[rows], self.written[rows] = True, 0
            else:
                rows = np.flatnonzero(self.is_writing)
                found = self.sampler.step(rows, self.tokens[rows, self.written[rows] - 1])
            self._write(rows, *found)
        return self.episodes

    def _fill(self, rows: Sequence[int]) -> None:
        """Begin waiting episodes in these rows."""
        rows = list(rows)
        while rows and self.waiting:
            chosen = [(row, self.waiting.popleft()) for row in rows[: len(self.waiting)]]
            outcomes = self.envs.reset(
                [row for row, _ in chosen], [self.wanted[place].task for _, place in chosen]
            )
            rows = rows[len(chosen) :]
            for (row, place), outcome in zip(chosen, outcomes, strict=True):
                episode = self.episodes[place]
                if outcome.error is not None:
                    end_episode(episode, outcome)
                    rows.append(row)
                    continue
                self.place[row] = place
                self.sampler.begin(row, self.wanted[place].seed)
                messages = [*self.system, {"role": "user", "content": outcome.observation}]
                if not self._reads(row, outcome.observation, self.renderer.first(messages)):
                    rows.append(row)

    def _reads(self, row: int, observation: str, tokens: list[int], written: tuple[int, ...] = ()) -> bool:
        """Have the row read this next, after the token `written` last, which was sampled but not read yet.

        False when its context is full and the episode ends for it.
        """
        episode = self.episodes[self.place[row]]
        length = self.sampler.length[row] + len(written) + len(tokens)
        if length + self.action_tokens > self.sampler.policy.context:
            if episode.steps == 0:
                raise ContextOverflow(
                    f"the first observation of {episode.task} is {len(tokens)} tokens long; with {self.action_tokens} "
                    f"for an action it does not fit the model's context of {self.sampler.policy.context}"
                )
            episode.ending, episode.score = "context_overflow", 0.0
            return False
        episode.observations.append(observation)
        episode.context.append(tokens)
        self.to_read[row] = [*written, *tokens]
        return True

    def _write(self, rows: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray) -> None:
        """Book a sampled token for each of these rows; act where it completes an action."""
        self.tokens[rows, self.written[rows]] = tokens
        self.log_probs[rows, self.written[rows]] = log_probs
        self.written[rows] += 1
        finished = np.isin(tokens, self.renderer.stops) | (self.written[rows] == self.action_tokens)
        if finished.any():
            self._act(rows[finished].tolist())

    def _act(self, rows: Sequence[int]) -> None:
        self.is_writing[rows] = False
        actions, last, free = {}, {}, []
        for row in rows:
            episode, tokens = self.episodes[self.place[row]], self.tokens[row, : self.written[row]].tolist()
            last[row] = tokens[-1]
            episode.action_tokens.append(tokens)
            episode.log_probs.append(self.log_probs[row, : self.written[row]].tolist())
            text = self.renderer.text(tokens)
            action = action_of(text)
            episode.actions.append(text)
            if action is None and self.parse_failure_ends:
                episode.ending = "parse_error"
                free.append(row)
            else:
                actions[row] = action or ""
        outcomes = self.envs.step(list(actions), list(actions.values())) if actions else []
        for row, outcome in zip(actions, outcomes, strict=True):
            episode = self.episodes[self.place[row]]
            failed = self.parse_failure_ends and not outcome.understood
            if outcome.over or failed:
                end_episode(episode, outcome, failed_to_parse=failed)
                free.append(row)
            else:
                following = self.renderer.next(outcome.observation, last[row])
                if not self._reads(row, outcome.observation, following, (last[row],)):
                    free.append(row)
        self._fill(sorted(free))


def sound(episodes: Sequence[TextEpisode]) -> list[TextEpisode]:
    """The episodes whose world did not fail; RuntimeError, with the first error, when that is none."""
    found = [episode for episode in episodes if episode.error is None]
    if not found:
        raise RuntimeError(f"none of {len(episodes)} episodes came to an end: {episodes[0].error}")
    return found


def end_episode(episode: TextEpisode, outcome: Outcome, *, failed_to_parse: bool = False) -> None:
    """Book how a world ended this episode."""
    episode.error = outcome.error
    if outcome.error is not None:
        episode.ending = "env_error"
    elif outcome.terminated:
        episode.ending, episode.score = "finished", outcome.reward
    elif failed_to_parse:
        episode.ending = "parse_error"
    else:
        episode.ending, episode.score = "max_steps", outcome.reward


def expert_rollout(
    envs: TextEnvs, renderer: Renderer | None, wanted: Sequence[Attempt], *, system: str | None = None
) -> list[TextEpisode]:
    """What the scripted expert does in each of `wanted`, with the tokens that a model would have read and written.

    The tokens, of which there are none without a renderer, carry no log-probabilities: no model chose them.
    """
    before = [] if system is None else [{"role": "system", "content": system}]
    episodes = [TextEpisode(one.id, one.task, one.group, source=Source.HUMAN) for one in wanted]
    for start in range(0, len(wanted), envs.num_envs):
        running = list(range(start, min(start + envs.num_envs, len(wanted))))
        outcomes = envs.reset([place - start for place in running], [wanted[place].task for place in running])
        first = True
        while running:
            going = []
            for place, outcome in zip(running, outcomes, strict=True):
                episode = episodes[place]
                if outcome.over:
                    end_episode(episode, outcome)
                    continue
                going.append(place)
                message = {"role": "user", "content": outcome.observation}
                episode.observations.append(outcome.observation)
                if renderer is not None:
                    episode.context.append(
                        renderer.first([*before, message])
                        if first
                        else renderer.next(outcome.observation, renderer.stops[0])
                    )
            running, first = going, False
            rows = [place - start for place in running]
            actions = envs.expert(rows) if rows else []
            for place, action in zip(running, actions, strict=True):
                episodes[place].actions.append(action)
                if renderer is not None:
                    episodes[place].action_tokens.append([*renderer.encode(action), renderer.stops[0]])
            outcomes = envs.step(rows, actions) if rows else []
    return episodes
