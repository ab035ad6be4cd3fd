"""The 4×4 gridworld on which sampling rules for policy evaluation are compared against an exact value.

A deterministic table: `step_gridworld` is the rule for any number of walkers at once, `GridWorld` wraps it
for Gymnasium, `exact_value` is what a Monte-Carlo estimate should come to.
"""

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Int

SIDE = 4
STATES = SIDE * SIDE
ACTIONS = 4  # 0: x - 1, 1: x + 1, 2: y - 1, 3: y + 1
HORIZON = 100
START = 0  # the cell (0, 0); the cell (x, y) has the index SIDE * x + y


TERMINAL, TRAP, BONUS = SIDE * 3 + 3, SIDE * 1 + 1, SIDE * 1 + 3


def _tables() -> tuple[np.ndarray, np.ndarray]:
    moves = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
    cells = np.stack(np.divmod(np.arange(STATES), SIDE), axis=-1)
    reached = np.clip(cells[:, None] + moves, 0, SIDE - 1)
    next_state = SIDE * reached[..., 0] + reached[..., 1]
    reward = np.full((STATES, ACTIONS), -1.0)
    for cell, value in ((TERMINAL, 10.0), (TRAP, -10.0), (BONUS, 1.0)):
        reward[next_state == cell] = value
    reward[next_state == np.arange(STATES)[:, None]] = -1.0  # a bump costs a step wherever it happens
    next_state[TERMINAL] = TERMINAL
    reward[TERMINAL] = 0.0
    return next_state, reward


NEXT_STATE, REWARD = _tables()
NEXT_STATE.setflags(write=False)
REWARD.setflags(write=False)


def step_gridworld(
    state: Int[np.ndarray, " walkers"], action: Int[np.ndarray, " walkers"]
) -> tuple[Int[np.ndarray, " walkers"], Float[np.ndarray, " walkers"], Bool[np.ndarray, " walkers"]]:
    """One step of every walker: `(next_state, reward, terminated)`. The terminal cell absorbs at reward 0."""
    next_state = NEXT_STATE[state, action]
    return next_state, REWARD[state, action], next_state == TERMINAL


def exact_value(
    policy: Float[np.ndarray, "states actions"], horizon: int = HORIZON, gamma: float = 1.0
) -> Float[np.ndarray, " states"]:
    """Expected discounted sum of the next `horizon` rewards from every state, by dynamic programming.

    V_0 = 0,  V_{k+1}(s) = Σ_a π(a|s) (r(s, a) + γ V_k(s'(s, a))).

    `policy[s, a]` = π(a|s), rows sum to 1. The value of an episode is the entry at `START`.
    """
    value = np.zeros(STATES)
    for _ in range(horizon):
        value = (policy * (REWARD + gamma * value[NEXT_STATE])).sum(axis=1)
    return value


def best_action(gamma: float = 0.99) -> Int[np.ndarray, " states"]:
    """The optimal action in every state, of equals the first, by value iteration over `HORIZON` steps.

    A discount below 1 prefers ending the episode to circling through the bonus cell, which costs nothing.
    """
    value = np.zeros(STATES)
    for _ in range(HORIZON):
        action_value = REWARD + gamma * value[NEXT_STATE]
        value = action_value.max(axis=1)
    return action_value.argmax(axis=1)


class GridWorld(gymnasium.Env):
    """A 4×4 grid: from (0, 0) to the terminal cell (3, 3).

    Entering (3, 3) gives +10 and terminates; entering the trap (1, 1) gives −10 and the episode *goes on*;
    entering (1, 3) gives +1, every time; all other moves and bumps into the wall give −1. Registered with a
    time limit of 100 steps, reported as truncation.

    Observation: the cell, one-hot float32 [16]. Actions: `Discrete(4)`.

    Source: Zhong, Zhang, Schäfer, Albrecht, Hanna, "Robust On-Policy Sampling for Data-Efficient Policy
    Evaluation", NeurIPS 2022; in the authors' code, too, the trap does not end the episode.
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
            raise ValueError(f"GridWorld: action must be in 0..{ACTIONS - 1}, got {action}")
        state, reward, terminated = step_gridworld(np.array([self._state]), np.array([action]))
        self._state = int(state[0])
        return self._observation(), float(reward[0]), bool(terminated[0]), False, {}

    def _observation(self) -> np.ndarray:
        observation = np.zeros(STATES, np.float32)
        observation[self._state] = 1.0
        return observation


if "peira/GridWorld-v0" not in gymnasium.registry:
    gymnasium.register("peira/GridWorld-v0", entry_point=GridWorld, max_episode_steps=HORIZON)
