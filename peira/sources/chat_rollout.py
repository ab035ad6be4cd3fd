"""Episodes of text by a model that is asked for replies and shows no tokens, many worlds side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from peira.environments.text import TextEnvs
from peira.experience.dialogue import TextEpisode
from peira.policies.remote import ChatModel, Dialogue
from peira.sources.text_rollout import Attempt, action_of, end_episode


def chat_rollout(
    envs: TextEnvs,
    model: ChatModel,
    wanted: Sequence[Attempt],
    *,
    temperature: float,
    action_tokens: int,
    system: str | None = None,
    parse_failure_ends: bool = True,
) -> list[TextEpisode]:
    """One episode for each of `wanted`, in that order; what was written is kept as text, without log-probabilities.

    Every turn all running worlds are answered in one call, each with its whole dialogue and a seed of its own. An
    action is at most `action_tokens` tokens. A dialogue that became too long ends its episode with score 0; an answer
    that did not come ends it as an error. `parse_failure_ends` is that of `text_rollout`.
    """
    before = [] if system is None else [{"role": "system", "content": system}]
    episodes = [TextEpisode(one.id, one.task, one.group) for one in wanted]
    waiting, free = deque(range(len(wanted))), list(range(envs.num_envs))
    running: dict[int, int] = {}  # World → episode.
    while running or waiting:
        begun = [(free.pop(0), waiting.popleft()) for _ in range(min(len(free), len(waiting)))]
        outcomes = (
            envs.reset([row for row, _ in begun], [wanted[place].task for _, place in begun]) if begun else []
        )
        for (row, place), outcome in zip(begun, outcomes, strict=True):
            if outcome.over:
                end_episode(episodes[place], outcome)
                free.append(row)
            else:
                running[row] = place
                episodes[place].observations.append(outcome.observation)
        rows = sorted(running)
        of_rows = [episodes[running[row]] for row in rows]
        replies = model.reply(
            [[*before, *dialogue_of(episode)] for episode in of_rows],
            temperature=temperature,
            max_tokens=action_tokens,
            seeds=[
                wanted[running[row]].seed + episode.steps for row, episode in zip(rows, of_rows, strict=True)
            ],
        )
        actions: dict[int, str] = {}
        for row, episode, reply in zip(rows, of_rows, replies, strict=True):
            if reply.error is None:
                action = action_of(reply.text)
                episode.actions.append(reply.text)
                if action is not None or not parse_failure_ends:
                    actions[row] = action or ""
                    continue
                episode.ending = "parse_error"
            elif reply.error.startswith("context overflow") and episode.steps:
                episode.ending = "context_overflow"
            else:
                episode.ending, episode.error = "model_error", reply.error
            del running[row]
            free.append(row)
        outcomes = envs.step(list(actions), list(actions.values())) if actions else []
        for row, outcome in zip(actions, outcomes, strict=True):
            episode = episodes[running[row]]
            failed = parse_failure_ends and not outcome.understood
            if outcome.over or failed:
                end_episode(episode, outcome, failed_to_parse=failed)
                del running[row]
                free.append(row)
            else:
                episode.observations.append(outcome.observation)
        free.sort()
    return episodes


def dialogue_of(episode: TextEpisode) -> Dialogue:
    """What was read and written so far, observations as the user's messages, actions as the assistant's."""
    messages: list[dict[str, str]] = []
    for step, observation in enumerate(episode.observations):
        messages.append({"role": "user", "content": observation})
        if step < episode.steps:
            messages.append({"role": "assistant", "content": episode.actions[step]})
    return messages
