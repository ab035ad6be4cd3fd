"""What a language policy scores on fresh episodes of text that nobody learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peira.evaluation.episodes import Evaluation
from peira.sources.text_rollout import Attempt, Attempts


def evaluate_text(attempts: Attempts, tasks: Sequence[str], seed: int) -> Evaluation:
    """One episode of each of `tasks`; scores and numbers of actions.

    An episode whose world failed says nothing of the policy and is left out; RuntimeError when that is all of them.
    """
    episodes = attempts([Attempt("", task, "", seed + place) for place, task in enumerate(tasks)])
    sound = [episode for episode in episodes if episode.error is None]
    if not sound:
        raise RuntimeError(f"none of {len(episodes)} evaluation episodes came to an end: {episodes[0].error}")
    return Evaluation(
        np.array([episode.score for episode in sound]), np.array([episode.steps for episode in sound])
    )
