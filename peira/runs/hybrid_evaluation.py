"""When a learner at a lock, or in any environment, is judged, and what goes into the books."""

from collections.abc import Callable

import torch
from torch import Tensor

from peira.environments.control import ControlEnv
from peira.environments.lock import LockVector
from peira.evaluation.episodes import evaluate
from peira.evaluation.lock import evaluate_lock, success
from peira.policies.protocol import Acts
from peira.runs.run import Run


def judge_when_due(
    run: Run,
    policy: Acts,
    world: LockVector | ControlEnv,
    act: Callable[[int, Tensor, torch.Generator | None], Tensor],
) -> None:
    """Evaluate on fresh episodes, `evaluations` times over the budget; at a lock with sampled and with likely actions.

    There `act(step, observation, generator)` acts, by the most likely actions where the generator is None; which of the
    two gives the score is `deterministic_evaluation`, and the success of both is in the metrics.
    """
    if not run.evaluation_due:
        return
    config, seed = run.config, run.evaluation_seed
    episodes, mode = config.evaluation_episodes, config.deterministic_evaluation
    if not isinstance(world, LockVector):
        run.evaluated(evaluate(policy, config.env, episodes, seed, deterministic=mode))
        return
    sampled, likely = (
        evaluate_lock(
            world.lock.unseen(), lambda step, seen, chance=chance: act(step, seen, chance), episodes, seed
        )
        for chance in (torch.Generator().manual_seed(seed), None)
    )
    run.log({"evaluation_success": success(sampled), "evaluation_success_mean": success(likely)})
    run.costs["evaluation_steps"] += sampled.steps
    run.evaluated(likely if mode else sampled)
