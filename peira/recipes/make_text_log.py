"""The log of a text world: its scripted expert acts, or a language model from a folder or behind a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peira.environments.text import TextEnvs, make_text
from peira.experience.dialogue import total_steps
from peira.experience.episode import episode_ids, episodes_to_table
from peira.experience.schema import Source
from peira.experience.store import Store
from peira.policies.lm.model import load_language_policy
from peira.policies.lm.sampler import Sampler
from peira.policies.remote import ChatServer
from peira.sources.chat_rollout import chat_rollout
from peira.sources.text_rollout import Attempt, Attempts, expert_rollout, text_rollout


@dataclass(frozen=True)
class TextLogOptions:
    """Who acts in which text world; see `peira.recipes.make_log.Options`."""

    env: str
    model: str | None
    model_name: str
    temperature: float
    action_tokens: int
    num_envs: int

    def __post_init__(self) -> None:
        if self.model_name and not self.is_served:
            raise ValueError(
                f"model_name: names a model of a server, got {self.model_name!r} with model {self.model}; leave it out"
            )
        if self.is_served and not self.model_name:
            raise ValueError(f"model_name: say which model of {self.model} is to act (--model-name)")

    @property
    def is_served(self) -> bool:
        return self.model is not None and self.model.startswith(("http://", "https://"))


def text_log(
    store: Store,
    options: TextLogOptions,
    steps: int,
    seed: int,
    run_id: str,
    *,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write at least `steps` steps of whole episodes, task after task, to the store as they end; what came of them.

    Raises RuntimeError where none of many episodes side by side came to its first step.
    """
    envs = make_text(options.env, options.num_envs)
    try:
        policy_id, attempts = _acting(options, envs)
        seeds = np.random.default_rng(seed)
        total = begun = successes = failed = 0
        while total < steps:
            wanted = [
                Attempt(name, envs.tasks[(begun + place) % len(envs.tasks)], "", int(seeds.integers(2**31)))
                for place, name in enumerate(episode_ids(run_id, begun, options.num_envs, 0))
            ]
            episodes = attempts(wanted)
            acted = [replace(episode, source=Source.LOGGED) for episode in episodes if episode.steps]
            if not acted:
                raise RuntimeError(f"none of {len(episodes)} episodes had a step: {episodes[0].error}")
            store.append(episodes_to_table([episode.to_episode(policy_id) for episode in acted]))
            begun, total = begun + len(wanted), total + total_steps(acted)
            successes += sum(episode.score > 0 for episode in acted)
            failed += sum(episode.error is not None for episode in episodes)
            say(f"{options.env}: {total:,}/{steps:,} steps, {successes} of {begun} episodes scored above 0")
    finally:
        envs.close()
    return {"policy_id": policy_id, "successes": successes, "errors": failed}


def _acting(options: TextLogOptions, envs: TextEnvs) -> tuple[str, Attempts]:
    """The id of who acts, and how it makes attempts."""
    if options.model is None:
        return "expert", partial(expert_rollout, envs, None)
    settings = {"action_tokens": options.action_tokens, "parse_failure_ends": False, "system": envs.manual}
    if options.is_served:
        server = ChatServer(options.model, options.model_name)
        return options.model_name, partial(
            chat_rollout, envs, server, temperature=options.temperature, **settings
        )
    policy = load_language_policy(options.model, train=False)
    sampler = Sampler(policy, options.num_envs, temperature=options.temperature)
    return policy.id or Path(options.model).name, partial(text_rollout, envs, sampler, **settings)
