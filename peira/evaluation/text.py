"""What a language policy scores on fresh episodes of text that nobody learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peira.environments.text import TextEnvs
from peira.evaluation.episodes import Evaluation
from peira.policies.lm.sampler import Sampler
from peira.sources.text_rollout import Attempt, text_rollout


def evaluate_text(
    envs: TextEnvs,
    sampler: Sampler,
    tasks: Sequence[str],
    seed: int,
    *,
    action_tokens: int,
    system: str | None = None,
    parse_failure_ends: bool = True,
) -> Evaluation:
    """One episode of each of `tasks`; scores and numbers of actions.

    An episode whose world failed says nothing of the policy and is left out; RuntimeError when that is all of them.
    """
    wanted = [Attempt("", task, "", seed + place) for place, task in enumerate(tasks)]
    episodes = text_rollout(
        envs,
        sampler,
        wanted,
        action_tokens=action_tokens,
        system=system,
        parse_failure_ends=parse_failure_ends,
    )
    sound = [episode for episode in episodes if episode.error is None]
    if not sound:
        raise RuntimeError(
            f"{envs.id}: none of {len(episodes)} evaluation episodes came to an end: {episodes[0].error}"
        )
    return Evaluation(
        np.array([episode.score for episode in sound]), np.array([episode.steps for episode in sound])
    )
