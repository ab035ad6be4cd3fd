"""For tests of GRPO's update: episodes without a world, a run that writes nothing, a learner that keeps gradients."""

import torch

from peira.experience.dialogue import TextEpisode


def episode(
    score=0.0, *, task="t", group="g", tokens=2, log_prob=-0.5, version=0, ending="finished", source="real"
):
    """An episode of one action of `tokens` tokens, all sampled at the same log-probability."""
    return TextEpisode(
        id="",
        task=task,
        group=group,
        policy_version=version,
        source=source,
        observations=["o"],
        actions=["a"],
        context=[[1, 2]],
        action_tokens=[[3] * tokens],
        log_probs=[[log_prob] * tokens],
        score=score,
        ending=ending,
        error="lost" if ending == "env_error" else None,
    )


class SilentRun:
    def __init__(self):
        self.row = {}

    def log(self, measures):
        self.row.update(measures)

    def book(self, columns, *, replayed_steps):
        self.row.update(columns)
        self.row["replayed_steps"] = replayed_steps


class GradientKeeper:
    """Stands for a learner whose policy gives every sampled token the same log-probability.

    `gradients` holds, for every step, −∂loss/∂log π of each token; `passes` counts passes without gradients.
    """

    def __init__(self, log_prob):
        self._log_prob = log_prob
        self.gradients, self.passes = [], 0

    def log_prob(self, episodes, *, temperature):
        self.passes += 1
        return torch.full((sum(int(entry.sampled.sum()) for entry in episodes),), self._log_prob)

    def step(self, episodes, loss, *, temperature):
        sampled = sum(int(entry.sampled.sum()) for entry in episodes)
        leaf = torch.full((sampled,), self._log_prob, requires_grad=True)
        loss(leaf, torch.arange(len(leaf))).backward()
        self.gradients.append(-leaf.grad)
        return 0.0
