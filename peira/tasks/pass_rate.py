"""Which tasks are worth practising: those that the policy solves sometimes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peira.experience.dialogue import TextEpisode


@dataclass
class PassCounts:
    """How often each task was tried and solved by one policy; attempts that their world broke off don't count."""

    attempts: dict[str, int]
    successes: dict[str, int]

    @classmethod
    def of(cls, episodes: Sequence[TextEpisode], *, success_above: float = 0.5) -> PassCounts:
        counts = cls({}, {})
        for episode in episodes:
            if episode.error is None:
                counts.attempts[episode.task] = counts.attempts.get(episode.task, 0) + 1
                solved = counts.successes.get(episode.task, 0) + (episode.score > success_above)
                counts.successes[episode.task] = solved
        return counts

    def selected(self, *, at_least: int = 1, at_most: int | None = None) -> list[str]:
        """Tasks solved at least `at_least` and at most `at_most` times, in the order in which they were tried.

        With n attempts and `at_least` 1, a task of pass rate p is kept with probability 1 − (1 − p)ⁿ: the verdict is
        noisy near the boundary, which is why the counts are kept (``arpo.md`` 2.7).
        """
        most = math.inf if at_most is None else at_most
        return [task for task, solved in self.successes.items() if at_least <= solved <= most]

    def pass_at(self, k: int) -> dict[str, float]:
        """Unbiased estimate of the chance that one of k attempts succeeds: 1 − C(n − c, k)/C(n, k) (Chen et al. 2021).

        Tasks with fewer than k attempts are left out.
        """
        return {
            task: 1 - math.comb(tried - self.successes[task], k) / math.comb(tried, k)
            for task, tried in self.attempts.items()
            if tried >= k
        }

    def state_dict(self) -> dict:
        return {"attempts": self.attempts, "successes": self.successes}

    def load_state_dict(self, state: Mapping) -> None:
        self.attempts, self.successes = dict(state["attempts"]), dict(state["successes"])
