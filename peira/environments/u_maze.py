"""A point mass in a U-shaped maze: steps for any number of walkers at once, a Gymnasium environment, a wanderer.

The free space is three cells wide and three high, with a wall in the middle row that leaves a door on the right:

    y 3 ┌─────────┐
        │ goal    │    state (x, y, ẋ, ẏ); action: force in [−1, 1]²
      2 ├──────   │    ẋ ← 0.9 ẋ + 0.1 force, x ← x + ẋ · 0.5, and at a wall the
      1 ├──────   │    coordinate stops where it was and its velocity becomes 0
        │ start   │
      0 └─────────┘

A wanderer between random goals passes the door both ways; a policy for the one goal wants one of them.
"""

import gymnasium
import numpy as np
import pyarrow as pa
from gymnasium import spaces
from jaxtyping import Bool, Float

from peira.environments.truncated_normal import draw, log_density
from peira.experience.assemble import EpisodeAssembler

ID = "peira/UMaze-v0"
SIDE = 3.0
WALL_LEFT, WALL_RIGHT, WALL_BOTTOM, WALL_TOP = 0.0, 2.0, 1.0, 2.0
DRAG, PUSH, STEP = 0.9, 0.1, 0.5
START, GOAL = np.array([0.5, 0.5]), np.array([0.5, 2.5])
REACHED = 0.4
HORIZON = 200
NOISE = 0.4
_RADIUS = 0.4  # how near to a waypoint the wanderer must come

for fixed in (START, GOAL):
    fixed.setflags(write=False)


def in_wall(position: Float[np.ndarray, "*batch 2"]) -> Bool[np.ndarray, "*batch"]:
    """Whether a point lies in a wall or outside of the maze."""
    x, y = position[..., 0], position[..., 1]
    outside = (x < 0) | (x > SIDE) | (y < 0) | (y > SIDE)
    return outside | ((x >= WALL_LEFT) & (x < WALL_RIGHT) & (y > WALL_BOTTOM) & (y < WALL_TOP))


def step_u_maze(
    state: Float[np.ndarray, "walkers 4"], action: Float[np.ndarray, "walkers 2"]
) -> tuple[Float[np.ndarray, "walkers 4"], Float[np.ndarray, " walkers"]]:
    """(next state, reward); the reward is 1 for each step that ends within 0.4 of the goal. Forces are clipped to ±1.

    A step is at most 0.5 long, less than the wall is thick, and moves one coordinate after the other.
    """
    position, velocity = state[:, :2].copy(), state[:, 2:]
    velocity = DRAG * velocity + PUSH * np.clip(action, -1, 1)
    for axis in range(2):
        moved = position.copy()
        moved[:, axis] += STEP * velocity[:, axis]
        free = ~in_wall(moved)
        position[free, axis] = moved[free, axis]
        velocity[~free, axis] = 0.0
    reward = (np.linalg.norm(position - GOAL, axis=1) < REACHED).astype(np.float64)
    return np.concatenate([position, velocity], 1), reward


class UMaze(gymnasium.Env):
    """From the lower left cell to the upper left one, through the door on the right.

    Reward 1 for each step near the goal; nothing terminates, and the clock cuts after 200 steps. Episodes begin at
    rest within ±0.1 of (0.5, 0.5). Observation: (x, y, ẋ, ẏ), float32. Action: force, Box(−1, 1, 2).
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self) -> None:
        limit = np.array([SIDE, SIDE, 1.0, 1.0], np.float32)
        self.observation_space = spaces.Box(np.array([0, 0, -1, -1], np.float32), limit)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._state = np.zeros((1, 4))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._state = starts(1, self.np_random)
        return self._state[0].astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._state, reward = step_u_maze(self._state, np.asarray(action, np.float64).reshape(1, 2))
        return self._state[0].astype(np.float32), float(reward[0]), False, False, {}


def starts(walkers: int, rng: np.random.Generator) -> Float[np.ndarray, "walkers 4"]:
    """States in which episodes begin."""
    return np.concatenate([START + rng.uniform(-0.1, 0.1, (walkers, 2)), np.zeros((walkers, 2))], 1)


def free_points(number: int, rng: np.random.Generator) -> Float[np.ndarray, "number 2"]:
    """Points drawn uniformly from the free space: rows 0 and 2, and the door between them."""
    corners = np.array([(0, 0), (1, 0), (2, 0), (2, 1), (0, 2), (1, 2), (2, 2)], np.float64)
    return corners[rng.integers(len(corners), size=number)] + rng.random((number, 2))


def way_to(
    position: Float[np.ndarray, "walkers 2"], goal: Float[np.ndarray, "walkers 2"]
) -> Float[np.ndarray, "walkers 2"]:
    """The point to head for next: the goal where the way is free, else the near side of the door, then its far side."""
    below, goal_below = position[:, 1] <= WALL_BOTTOM, goal[:, 1] <= WALL_BOTTOM
    above, goal_above = position[:, 1] >= WALL_TOP, goal[:, 1] >= WALL_TOP
    same = (below & goal_below) | (above & goal_above)
    in_door_column = position[:, 0] >= WALL_RIGHT + 0.1
    goal_in_column = goal[:, 0] >= WALL_RIGHT
    door = np.stack([np.full(len(goal), 2.5), np.where(below, 0.5, np.where(above, 2.5, position[:, 1]))], 1)
    beyond = np.stack(
        [np.full(len(goal), 2.5), np.where(goal_below, 0.5, np.where(goal_above, 2.5, goal[:, 1]))], 1
    )
    direct = same | (in_door_column & goal_in_column)
    return np.where(direct[:, None], goal, np.where(in_door_column[:, None], beyond, door))


def steer(
    state: Float[np.ndarray, "walkers 4"], goal: Float[np.ndarray, "walkers 2"]
) -> Float[np.ndarray, "walkers 2"]:
    """The force that the wanderer would like: 2 · (waypoint − position) − 4 · velocity, within ±1."""
    return np.clip(2.0 * (way_to(state[:, :2], goal) - state[:, :2]) - 4.0 * state[:, 2:], -1, 1)


def u_maze_log(
    episodes: int, rng: np.random.Generator, *, run_id: str, started_ms: int = 0, noise: float = NOISE
) -> pa.Table:
    """Steps of walkers that go from one random goal to the next, 200 an episode, all walkers at once.

    Walkers begin anywhere. Actions are `steer` plus normal noise cut off at the bounds; `behaviour_log_prob` is their
    density given the goal of the moment, `goal` that goal, and `reward` the environment's.
    """
    state = np.concatenate([free_points(episodes, rng), np.zeros((episodes, 2))], 1)
    goal = free_points(episodes, rng)
    names = ("observation", "action", "reward", "behaviour_log_prob", "goal", "final_observation")
    kept: dict[str, list] = {name: [] for name in names}
    for _ in range(HORIZON):
        arrived = np.linalg.norm(state[:, :2] - goal, axis=1) < _RADIUS
        goal = np.where(arrived[:, None], free_points(episodes, rng), goal)
        mean = steer(state, goal)
        action = draw(mean, noise, 1.0, rng)
        following, reward = step_u_maze(state, action)
        values = state, action, reward, log_density(action, mean, noise, 1.0).sum(1), goal, following
        for name, value in zip(names, values, strict=True):
            kept[name].append(value.astype(np.float32))
        state = following
    columns = {name: np.stack(values) for name, values in kept.items()}
    truncated = np.zeros((HORIZON, episodes), bool)
    truncated[-1] = True
    columns |= {"terminated": np.zeros_like(truncated), "truncated": truncated}
    return EpisodeAssembler(episodes, run_id, started_ms).add(
        columns, source="logged", policy_id="u-maze-wanderer", policy_version=0, task_id=ID
    )


if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point=UMaze, max_episode_steps=HORIZON)
