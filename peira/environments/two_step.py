"""The two-step problem in which the one good action is rare, so that on-policy batches often miss it."""

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Int

STATES = 7  # a binary tree: from state s, action a leads to 2 s + 1 + a; the states 3 to 6 are leaves
ACTIONS = 2
START = 0
FIRST_LEAF = 3
# The initial logit of a=1 in state 1, which leaves the good a=0 a probability of 0.0198.
COMMON_ACTION_LOGIT = 3.9

REWARD = np.array([[0.0, 0.0], [2.0, 0.5], [1.0, 1.0]])
REWARD.setflags(write=False)


def step_two_step(
    state: Int[np.ndarray, " walkers"], action: Int[np.ndarray, " walkers"]
) -> tuple[Int[np.ndarray, " walkers"], Float[np.ndarray, " walkers"], Bool[np.ndarray, " walkers"]]:
    """One step of every walker, none of them at a leaf: `(next_state, reward, terminated)`."""
    next_state = 2 * state + 1 + action
    return next_state, REWARD[state, action], next_state >= FIRST_LEAF


class TwoStep(gymnasium.Env):
    """Two decisions: (0, a0) → 1, (0, a1) → 2; then (1, a0) pays 2, (1, a1) pays 0.5, from 2 both pay 1.

    Learning from a batch without the rare (1, a0) prefers state 2 (1 > 0.5) and so makes it rarer still. The
    setting starts from a policy with `COMMON_ACTION_LOGIT` for (1, a1) and zero logits elsewhere.

    Observation: the state, one-hot float32 [7]. Actions: `Discrete(2)`.

    Source: Corrado & Hanna, arXiv 2311.08290, the tabular example.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (STATES,), np.float32)
        self.action_space = spaces.Discrete(ACTIONS)
        self._state = START

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._state = START
        return self._observation(), {}

    def step(self, action: int | np.integer) -> tuple[np.ndarray, float, bool, bool, dict]:
        if not 0 <= action < ACTIONS:
            raise ValueError(f"TwoStep: action must be 0 or 1, got {action}")
        if self._state >= FIRST_LEAF:
            raise RuntimeError("TwoStep: the episode is over; call reset() before step()")
        state, reward, terminated = step_two_step(np.array([self._state]), np.array([action]))
        self._state = int(state[0])
        return self._observation(), float(reward[0]), bool(terminated[0]), False, {}

    def _observation(self) -> np.ndarray:
        observation = np.zeros(STATES, np.float32)
        observation[self._state] = 1.0
        return observation


if "peira/TwoStep-v0" not in gymnasium.registry:
    gymnasium.register("peira/TwoStep-v0", entry_point=TwoStep)
