"""What a language policy scores on fresh episodes of text that nobody learns from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peira.evaluation.episodes import Evaluation
from peira.sources.text_rollout import Attempt, Attempts, sound


def evaluate_text(attempts: Attempts, tasks: Sequence[str], seed: int) -> Evaluation:
    """One episode of each of `tasks`; scores and numbers of actions.

    An episode whose world failed says nothing of the policy and is left out; RuntimeError when that is all of them.
    """
    episodes = sound(attempts([Attempt("", task, "", seed + place) for place, task in enumerate(tasks)]))
    return Evaluation(
        np.array([episode.score for episode in episodes]), np.array([episode.steps for episode in episodes])
    )
