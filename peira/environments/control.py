"""Vectorised control environments with one behaviour: EnvPool where it has the environment, Gymnasium otherwise.

Both follow Gymnasium's SAME_STEP rule: when an episode ends, `step` returns the first observation of the next one and
hands out the true final observation in `info["final_obs"]`, with `info["_final_obs"]` saying for which environments.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv

from peira.environments import gridworld, lock, two_step, u_maze  # noqa: F401  (registers peira/… with Gymnasium)

# Families of EnvPool whose only randomness is drawn when an episode starts, so that their state can be rebuilt.
_ENVPOOL_FAMILIES = ("envpool.mujoco.gym", "envpool.classic_control")


_ARTICLE = {"reward": "a", "observation": "an"}


class EnvironmentFault(RuntimeError):
    """An environment returned something that is no observation or reward."""


def make_control(id: str, num_envs: int, seed: int, *, threads: int | None = None) -> ControlEnv:
    """`num_envs` copies of the environment `id`, seeded seed, seed + 1, …, behind Gymnasium's vector API.

    Observations are float32 vectors (other spaces are flattened), actions float32 vectors (clipped to the space before
    they are executed) or int64 numbers. `threads` is EnvPool's, and changes no result; by default one for every
    environment up to the number of cores, and a single one for classic control, where waking a thread takes longer
    than a step. Raises ValueError for an id that does not exist (the nearest name is offered), a space that control
    policies cannot serve, or an extra that is not installed.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
    if _envpool_has(id):
        return EnvPoolControl(id, num_envs, seed, threads)
    return GymnasiumControl(id, num_envs, seed)


class ControlEnv(VectorEnv, ABC):
    """A VectorEnv under the SAME_STEP rule whose state can be saved and rebuilt exactly.

    An environment's state is rebuilt from how its running episode began and the actions taken since, then checked
    against the observation that was saved: simulators that cannot give their state resume bit for bit all the same.
    """

    metadata: ClassVar[dict] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self, id: str, num_envs: int, seed: int, observation_space: Box, action_space: Box | Discrete
    ):
        self.id, self.num_envs, self.seed = id, num_envs, seed
        limit = np.full(gymnasium.spaces.flatdim(observation_space), np.inf, np.float32)
        self.single_observation_space = Box(-limit, limit)
        if isinstance(action_space, Box):
            action_space = Box(action_space.low.astype(np.float32), action_space.high.astype(np.float32))
        self.single_action_space = action_space
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(action_space, num_envs)
        self._bounds = None if isinstance(action_space, Discrete) else (action_space.low, action_space.high)
        self._first_action = getattr(action_space, "start", 0)
        self.observation = np.zeros((num_envs, self.observation_size), np.float32)
        self._actions: list[np.ndarray] = []
        self._began = np.zeros(num_envs, np.int64)
        self._steps = 0

    @property
    def observation_size(self) -> int:
        return self.single_observation_space.shape[0]

    @property
    def action_size(self) -> int:
        """Dimensions of a continuous action, or the number of discrete ones."""
        space = self.single_action_space
        return int(space.n) if isinstance(space, Discrete) else int(np.prod(space.shape))

    @property
    def discrete(self) -> bool:
        return isinstance(self.single_action_space, Discrete)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start over: every environment as if just made with `seed` (by default the seed it was made with)."""
        self.seed = self.seed if seed is None else seed
        self._open()
        self._actions, self._steps = [], 0
        self._began[:] = 0
        self.observation = self._checked(self._start(np.arange(self.num_envs)), "observation")
        return self.observation.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One step of every environment; where an episode ends the next one starts at once."""
        executed = self._executable(actions)
        observation, reward, terminated, truncated = self._advance(executed)
        done = terminated | truncated
        # Asked for at once: a simulator's thread that has just worked is still awake.
        started = self._start(ended) if (ended := done.nonzero()[0]).size else None
        reward = self._checked(reward, "reward")
        observation = self._checked(observation, "observation")
        self._actions.append(executed)
        self._steps += 1
        info = {}
        if started is not None:
            info = {"final_obs": observation, "_final_obs": done}
            observation = observation.copy()
            observation[ended] = self._checked(started, "observation")
            self._began[ended] = self._steps
            self._forget()
        self.observation = observation
        return observation, reward, terminated, truncated, info

    def state_dict(self) -> dict:
        return {
            "seed": self.seed,
            "observation": self.observation.copy(),
            "actions": np.stack(self._actions) if self._actions else np.zeros((0, self.num_envs), np.float32),
            "began": self._began.copy(),
            "steps": self._steps,
            "starts": self._starts(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Rebuild every running episode; raises RuntimeError when the simulator does not come to the same point."""
        self.seed = state["seed"]
        self._open()
        self._began = np.asarray(state["began"]).copy()
        self._steps = state["steps"]
        self._actions = list(state["actions"])
        observation = self._restart(state["starts"])
        for time, executed in enumerate(self._actions, start=self._steps - len(self._actions)):
            running = np.flatnonzero(self._began <= time)
            if len(running):
                observation[running] = self._replay(executed, running)
        if not np.array_equal(observation, state["observation"]):
            raise RuntimeError(
                f"{self.id} did not come back to the state it was saved in: its randomness or physics has changed "
                "since the checkpoint (another version of the simulator?)"
            )
        self.observation = observation

    def _executable(self, actions: np.ndarray) -> np.ndarray:
        if self._bounds is None:
            executed = np.array(actions, np.int64)  # A copy: the caller may write into its own.
            return executed + self._first_action if self._first_action else executed
        low, high = self._bounds
        return np.minimum(np.maximum(np.asarray(actions, np.float32), low), high)

    def _checked(self, values: np.ndarray, field: str) -> np.ndarray:
        values = np.asarray(values, np.float32)
        # A finite sum has only finite entries, and is found faster than they are looked at.
        if not math.isfinite(np.add.reduce(values, axis=None)):
            for copy in np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1)):
                shown = np.array2string(np.atleast_1d(values[copy]), threshold=6)
                raise EnvironmentFault(
                    f"environment {self.id} returned {_ARTICLE[field]} {field} that is not finite at step "
                    f"{self._steps} of copy {copy}: {shown}; nothing was learned from it"
                )
        return values

    def _forget(self) -> None:
        """Drop the actions that no running episode needs."""
        oldest = self._steps - len(self._actions)
        del self._actions[: int(self._began.min()) - oldest]

    @abstractmethod
    def _open(self) -> None:
        """Make the environments anew, seeded."""

    @abstractmethod
    def _start(self, which: np.ndarray) -> np.ndarray:
        """Start an episode in the environments `which`; their observations."""

    @abstractmethod
    def _advance(self, executed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Observation, reward, terminated, truncated after one step of every environment, without a reset."""

    @abstractmethod
    def _starts(self) -> object:
        """What, beside the seed, says how each running episode began."""

    @abstractmethod
    def _restart(self, starts: object) -> np.ndarray:
        """Bring freshly made environments to the start of their running episodes; the observations there."""

    @abstractmethod
    def _replay(self, executed: np.ndarray, which: np.ndarray) -> np.ndarray:
        """One step of the environments `which` with their part of the actions; their observations."""


class EnvPoolControl(ControlEnv):
    """EnvPool's C++ simulators. A running episode is known by how often its environment was reset.

    Steps and resets go to the simulators directly: EnvPool's own `step` spends a tenth of a millisecond in Python on
    names and nested structures, which is longer than eight environments of CartPole take. A test holds both to the same
    results.
    """

    def __init__(self, id: str, num_envs: int, seed: int, threads: int | None):
        self._threads = threads or (1 if _envpool_family(id) == "envpool.classic_control" else 0)
        self._resets = np.zeros(num_envs, np.int64)
        import envpool

        self._make: Callable = envpool.make_gymnasium
        with _quiet_spaces():
            spec = envpool.make_spec(id)
            observation_space, action_space = spec.gymnasium_observation_space, spec.gymnasium_action_space
        super().__init__(id, num_envs, seed, observation_space, action_space)
        self._kind = np.int32 if self.discrete else action_space.dtype

    def _open(self) -> None:
        with _quiet_spaces():
            self._pool = self._make(
                self.id, num_envs=self.num_envs, seed=self.seed, num_threads=min(self._threads, self.num_envs)
            )
            _ = self._pool.observation_space  # Made, and remarked on, when first read; then kept.
        keys = self._pool._state_keys
        self._places = [keys.index(name) for name in ("obs", "reward", "done", "trunc")]
        self._all = np.arange(self.num_envs, dtype=np.int32)
        self._resets[:] = 0

    def _start(self, which: np.ndarray) -> np.ndarray:
        self._resets[which] += 1
        self._pool._reset(which.astype(np.int32))
        return self._pool._recv()[self._places[0]]

    def _advance(self, executed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        observation, reward, done, truncated = self._exchange(executed, self._all)
        return observation, reward, done & ~truncated, truncated

    def _exchange(self, executed: np.ndarray, which: np.ndarray) -> list[np.ndarray]:
        """One step of `which`, as the simulators give it: observation, reward, done, truncated."""
        self._pool._send([which, which, executed.astype(self._kind)])
        state = self._pool._recv()
        return [state[place] for place in self._places]

    def _starts(self) -> list[int]:
        return self._resets.tolist()

    def _restart(self, starts: list[int]) -> np.ndarray:
        wanted = np.asarray(starts)
        observation = np.zeros_like(self.observation)
        while (behind := np.flatnonzero(self._resets < wanted)).size:
            observation[behind] = self._start(behind)
        return observation

    def _replay(self, executed: np.ndarray, which: np.ndarray) -> np.ndarray:
        return self._exchange(executed[which], which.astype(np.int32))[0]


class GymnasiumControl(ControlEnv):
    """Any Gymnasium environment. A running episode is known by the random state in which it was reset."""

    def __init__(self, id: str, num_envs: int, seed: int):
        self._vector = _make_gymnasium(id, num_envs)
        space, action = self._vector.single_observation_space, self._vector.single_action_space
        if not isinstance(action, Box | Discrete):
            raise ValueError(
                f"env: {id} has the action space {action}; control policies act in Box or Discrete spaces"
            )
        if len(space.shape or ()) > 1:
            raise ValueError(
                f"env: {id} shows arrays of shape {space.shape}; control policies read vectors: wrap it"
            )
        self._random_states: list[dict] = [{}] * num_envs
        super().__init__(id, num_envs, seed, space, action)

    def _open(self) -> None:
        for copy, env in enumerate(self._vector.envs):
            env.unwrapped.np_random = np.random.default_rng(self.seed + copy)

    def _start(self, which: np.ndarray) -> np.ndarray:
        for copy in which:
            generator = self._vector.envs[copy].unwrapped.np_random
            self._random_states[copy] = generator.bit_generator.state
        mask = np.zeros(self.num_envs, bool)
        mask[which] = True
        return np.asarray(self._vector.reset(options={"reset_mask": mask})[0])[which]

    def _advance(self, executed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self._vector.step(executed)[:4]

    def _starts(self) -> list[dict]:
        return list(self._random_states)

    def _restart(self, starts: list[dict]) -> np.ndarray:
        for env, state in zip(self._vector.envs, starts, strict=True):
            env.unwrapped.np_random.bit_generator.state = state
        return np.asarray(self._start(np.arange(self.num_envs)), np.float32)

    def _replay(self, executed: np.ndarray, which: np.ndarray) -> np.ndarray:
        return np.asarray([self._vector.envs[copy].step(executed[copy])[0] for copy in which], np.float32)

    def close(self, **options) -> None:
        self._vector.close(**options)


@contextlib.contextmanager
def _quiet_spaces() -> Iterator[None]:
    """EnvPool states the bounds of float32 spaces in float64, and Gymnasium remarks on each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting.*")
        yield


def _envpool_has(id: str) -> bool:
    if importlib.util.find_spec("envpool") is None:
        return False
    import envpool

    return id in envpool.list_all_envs() and _envpool_family(id) is not None


def _envpool_family(id: str) -> str | None:
    """The one of `_ENVPOOL_FAMILIES` to which this environment of EnvPool's belongs."""
    from envpool.registration import registry

    module = registry.specs[id][0]
    return next((family for family in _ENVPOOL_FAMILIES if module.startswith(family)), None)


def _make_gymnasium(id: str, num_envs: int) -> VectorEnv:
    def one() -> gymnasium.Env:
        env = gymnasium.make(id)
        flat = isinstance(env.observation_space, Box) and len(env.observation_space.shape) == 1
        image = isinstance(env.observation_space, Box) and len(env.observation_space.shape) > 1
        return env if flat or image else gymnasium.wrappers.FlattenObservation(env)

    try:
        return gymnasium.vector.SyncVectorEnv([one] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    except gymnasium.error.DependencyNotInstalled as fault:
        extra = "peira[control]" if "mujoco" in str(fault).lower() else "gymnasium[box2d]"
        raise ValueError(f"env: {id} needs what is not installed here: pip install '{extra}'") from fault
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.Error) as fault:
        nearest = difflib.get_close_matches(id, list(gymnasium.registry), n=1, cutoff=0.5)
        offer = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"env: there is no environment {id!r}{offer}") from fault
