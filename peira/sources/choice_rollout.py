"""Episodes on web pages of a policy that chooses among candidate actions, many frames side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from peira.environments.miniwob import MiniWoBEnvs
from peira.experience.dialogue import TextEpisode
from peira.policies.dom import Choices, DomPolicy, Page, read_page
from peira.policies.draws import chances, choose
from peira.sources.text_rollout import Attempt, end_episode


@dataclass
class ChoiceEpisode(TextEpisode):
    """An episode whose actions were chosen among candidates: its pages as numbers, and which candidate it was."""

    pages: list[Page] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)

    @property
    def sampled_tokens(self) -> int:
        return len(self.chosen)

    @property
    def tokens(self) -> Choices:
        log_probs = np.concatenate([np.zeros(0), *self.log_probs]).astype(np.float32)
        return Choices(self.pages, np.asarray(self.chosen, np.int64), log_probs)

    def state_dict(self) -> dict:
        return {**vars(self), "pages": [vars(page) for page in self.pages]}

    @classmethod
    def from_state(cls, state: dict) -> ChoiceEpisode:
        return cls(**{**state, "pages": [Page(**page) for page in state["pages"]]})


@torch.no_grad()
def choice_rollout(
    envs: MiniWoBEnvs, policy: DomPolicy, wanted: Sequence[Attempt], *, temperature: float = 1.0
) -> list[ChoiceEpisode]:
    """One episode for each of `wanted`, in that order; frames are filled anew as episodes end."""
    episodes = [ChoiceEpisode(one.id, one.task, one.group, policy.version) for one in wanted]
    waiting = deque(range(len(wanted)))
    running: dict[int, int] = {}  # Frame → episode.
    free: list[int] = list(range(envs.num_envs))
    while running or waiting:
        while free and waiting:
            begun = [(free.pop(0), waiting.popleft()) for _ in range(min(len(free), len(waiting)))]
            outcomes = envs.reset([frame for frame, _ in begun], [wanted[place].task for _, place in begun])
            for (frame, place), outcome in zip(begun, outcomes, strict=True):
                if outcome.over:
                    end_episode(episodes[place], outcome)
                    free.append(frame)
                    continue
                running[frame] = place
                episodes[place].observations.append(outcome.observation)
        frames = sorted(running)
        if not frames:
            continue
        read = [read_page(snapshot) for snapshot in envs.elements(frames)]
        places = [running[frame] for frame in frames]
        seeds = np.array([wanted[place].seed for place in places])
        steps = np.array([episodes[place].steps for place in places])
        options, log_probs = choose(
            policy.logits([page for page, _ in read]), chances(seeds, steps), temperature
        )
        actions: list[str] = []
        for place, (page, candidates), option, log_prob in zip(
            places, read, options.tolist(), log_probs.tolist(), strict=True
        ):
            episode = episodes[place]
            episode.pages.append(page)
            episode.chosen.append(option)
            episode.log_probs.append([log_prob])
            episode.actions.append(candidates[option])
            actions.append(candidates[option])
        for frame, place, outcome in zip(frames, places, envs.step(frames, actions), strict=True):
            if outcome.over:
                end_episode(episodes[place], outcome)
                del running[frame]
                free.append(frame)
            else:
                episodes[place].observations.append(outcome.observation)
        free.sort()
    return episodes
