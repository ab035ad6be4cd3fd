"""The continuous combination lock behind rich observations: only the whole code pays, and a log can show it.

Two good latent states and a dead one; at every step one of ten latent actions keeps an episode good, the right one at
the last step pays 1. A uniform policy succeeds with probability 10^−H. Source: Zhou et al., arXiv 2311.08384, section 6
and code; Song et al. (Hy-Q), arXiv 2210.06718, for two of the logs. Two things differ between the paper and its code,
and are chosen here as the paper has them: a fall pays at once (`anti_reward`), the latent action is drawn from
softmax(a / 0.1) as the code has it (with the paper's softmax(a) a one-hot action would succeed 23 % of the time).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Int
from scipy.linalg import hadamard

from peira.experience.step_log import StepLog

STATES, LATENT_ACTIONS = 3, 10
DEAD = 2
TEMPERATURE = 0.1
NOISE = 0.1
LURE = 0.1
LURE_PROBABILITY = 0.5
REGISTERED = (5, 10, 15, 30, 50)

AntiReward = Literal["on_fall", "final_failure", "none"]
LogKind = Literal["eps", "mid", "mixed"]
LOG_KINDS = ("eps", "mid", "mixed")


@dataclass(frozen=True)
class CombinationLock:
    """One lock: its codes, and the rule by which failing pays.

    codes[i, h] is the latent action that keeps an episode good in good state i at step h. anti_reward "on_fall": a fall
    pays 0.1 with probability ½, when it happens (the paper's); "final_failure": every failed episode is paid so at its
    last step (what the code does); "none".
    """

    codes: Int[np.ndarray, "good steps"]
    anti_reward: AntiReward = "on_fall"

    action_size: ClassVar[int] = LATENT_ACTIONS

    @classmethod
    def drawn(
        cls, horizon: int, rng: np.random.Generator, anti_reward: AntiReward = "on_fall"
    ) -> CombinationLock:
        """A lock with random codes."""
        return cls(rng.integers(LATENT_ACTIONS, size=(2, horizon)), anti_reward)

    @property
    def horizon(self) -> int:
        """H: steps of every episode."""
        return self.codes.shape[1]

    @property
    def observation_size(self) -> int:
        """d: the least power of two that holds three latent states and H + 1 steps."""
        return 1 << (self.horizon + 3).bit_length()

    def unseen(self) -> CombinationLock:
        """The lock as evaluation sees it: the same, for its noise is fresh anyway."""
        return self

    def start(self, episodes: int, rng: np.random.Generator) -> Int[np.ndarray, " episodes"]:
        """Latent states at the start: 0 or 1 by a fair coin."""
        return rng.integers(2, size=episodes)

    def observe(
        self, state: Int[np.ndarray, " rows"], step: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "rows obs"]:
        """Hadamard · ([onehot(state), onehot(step)] + N(0, 0.1²) on the first H + 3 entries); float32.

        Step H is what the last action led to.
        """
        hidden = np.zeros((len(state), self.observation_size))
        hidden[np.arange(len(state)), state] = 1.0
        hidden[:, STATES + step] = 1.0
        hidden[:, : STATES + self.horizon] += NOISE * rng.standard_normal((len(state), STATES + self.horizon))
        return (hidden @ self._mixing).astype(np.float32)

    @cached_property
    def _mixing(self) -> Float[np.ndarray, "obs obs"]:
        return hadamard(self.observation_size).astype(np.float64)

    def latent_action(
        self, action: Float[np.ndarray, "rows action"], rng: np.random.Generator
    ) -> Int[np.ndarray, " rows"]:
        """A draw from softmax(action / 0.1)."""
        weight = np.cumsum(latent_probabilities(action), axis=1)
        return (weight < rng.random((len(action), 1)) * weight[:, -1:]).sum(1)

    def step(
        self,
        state: Int[np.ndarray, " rows"],
        step: int,
        action: Float[np.ndarray, "rows action"],
        rng: np.random.Generator,
    ) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Next latent states and rewards of episodes that are all at the same step."""
        good = state != DEAD
        right = good & (self.latent_action(action, rng) == self.codes[np.where(good, state, 0), step])
        following = np.where(right, rng.integers(2, size=len(state)), DEAD)
        last = step == self.horizon - 1
        lured = {"on_fall": good & ~right, "final_failure": ~right & last, "none": np.zeros_like(right)}
        coin = rng.random(len(state)) < LURE_PROBABILITY
        reward = np.where(right & last, 1.0, LURE * (lured[self.anti_reward] & coin))
        return following, reward

    def expert(
        self, state: Int[np.ndarray, " rows"], step: int
    ) -> tuple[Float[np.ndarray, "rows action"], Bool[np.ndarray, " rows"]]:
        """The one-hot optimal actions, and where there is one: dead episodes have none."""
        good = state != DEAD
        return np.eye(LATENT_ACTIONS)[self.codes[np.where(good, state, 0), step]], good

    def log(self, kind: LogKind, trajectories: int, rng: np.random.Generator) -> StepLog:
        """What somebody else did at this lock: `trajectories` transitions of every step.

        eps    ε-greedy around the one-hot expert, ε = 1/H, uniform actions from [0, 1]^10 otherwise and once dead. The
               mean of its actions opens the lock: imitation solves it.
        mid    the same, but with a uniform action at step ⌊H/2⌋ always (Hy-Q): few successes, and imitation fails.
        mixed  states of the optimal policy reached by resetting, each followed by one uniform action (Hy-Q's optimal
               occupancy): no whole episode, no success, nothing to imitate.
        """
        horizon, rows = self.horizon, trajectories
        observation = np.empty((horizon, rows, self.observation_size), np.float32)
        following = np.empty_like(observation)
        action = np.empty((horizon, rows, LATENT_ACTIONS), np.float32)
        reward = np.empty((horizon, rows), np.float32)
        state = self.start(rows, rng)
        for step in range(horizon):
            if kind == "mixed":
                state = self.start(rows, rng)
            if kind == "mixed" or step == 0:
                observation[step] = self.observe(state, step, rng)
            else:
                observation[step] = following[step - 1]
            acted, known = self.expert(state, step)
            forced = kind == "mixed" or (kind == "mid" and step == horizon // 2)
            explores = forced | ~known | (rng.random(rows) < 1 / horizon)
            action[step] = np.where(explores[:, None], rng.random((rows, LATENT_ACTIONS)), acted)
            state, reward[step] = self.step(state, step, action[step], rng)
            following[step] = self.observe(state, step + 1, rng)
        terminated = np.zeros((horizon, rows), bool)
        terminated[-1] = True
        columns = (observation, action, reward, following, terminated)
        return StepLog(
            *(torch.from_numpy(column.reshape(horizon * rows, *column.shape[2:])) for column in columns),
            first=torch.arange(horizon + 1) * rows,
        )


def latent_probabilities(action: Float[np.ndarray, "rows action"]) -> Float[np.ndarray, "rows action"]:
    """softmax(action / 0.1), float64."""
    logit = np.asarray(action, np.float64) / TEMPERATURE
    weight = np.exp(logit - logit.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


class LockVector(VectorEnv):
    """Episodes of one lock in step with one another, under the SAME_STEP rule; state in, state out, for resuming.

    After the last step of an episode `step` shows the first observation of the next; the final one is in
    `info["final_obs"]`. `good` is the share of episodes that were still good at each step of the newest ones.
    """

    metadata: ClassVar[dict] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    discrete = False

    def __init__(self, lock: CombinationLock, num_envs: int, seed: int):
        self.lock, self.num_envs = lock, num_envs
        self.observation_size, self.action_size = lock.observation_size, lock.action_size
        self.single_observation_space = Box(-np.inf, np.inf, (lock.observation_size,), np.float32)
        self.single_action_space = Box(-np.inf, np.inf, (lock.action_size,), np.float32)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self.good = np.ones(lock.horizon)
        self._rng = np.random.default_rng(seed)
        self._state = np.zeros(num_envs, np.int64)
        self._step = 0
        self.observation = np.zeros((num_envs, lock.observation_size), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start all episodes over, with fresh chance where `seed` is given."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._begin()
        return self.observation.copy(), {}

    def _begin(self) -> None:
        self._step, self._state = 0, self.lock.start(self.num_envs, self._rng)
        self.observation = self.lock.observe(self._state, 0, self._rng)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        self.good[self._step] = (self._state != DEAD).mean()
        self._state, reward = self.lock.step(self._state, self._step, actions, self._rng)
        self._step += 1
        self.observation = self.lock.observe(self._state, self._step, self._rng)
        ended = np.full(self.num_envs, self._step == self.lock.horizon)
        info = {}
        if ended[0]:
            info = {"final_obs": self.observation, "_final_obs": ended}
            self._begin()
        return self.observation, reward.astype(np.float32), ended, np.zeros_like(ended), info

    def state_dict(self) -> dict:
        return {
            "chance": self._rng.bit_generator.state,
            "state": self._state,
            "step": self._step,
            "observation": self.observation,
            "good": self.good.copy(),
        }

    def load_state_dict(self, state: dict) -> None:
        self._rng.bit_generator.state = state["chance"]
        self._state, self._step = np.asarray(state["state"]), state["step"]
        self.observation, self.good = np.asarray(state["observation"]), np.array(state["good"])


class LockEnv(gymnasium.Env):
    """One lock for one learner, behind Gymnasium's API: `peira/Lock-H5-v0` and H = 10, 15, 30, 50.

    Observation Box(−∞, ∞, [d]), action Box(−∞, ∞, [10]); H steps, the last of which terminates. The codes are those
    that `codes_seed` draws, whatever `reset` is seeded with.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, horizon: int, codes_seed: int = 0, anti_reward: AntiReward = "on_fall"):
        self.lock = CombinationLock.drawn(horizon, np.random.default_rng(codes_seed), anti_reward)
        self.observation_space = Box(-np.inf, np.inf, (self.lock.observation_size,), np.float32)
        self.action_space = Box(-np.inf, np.inf, (LATENT_ACTIONS,), np.float32)
        self._step = horizon

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._step, self._state = 0, self.lock.start(1, self.np_random)
        return self.lock.observe(self._state, 0, self.np_random)[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self._step == self.lock.horizon:
            raise RuntimeError("Lock: the episode is over; call reset() before step()")
        given = np.asarray(action, np.float64)[None]
        self._state, reward = self.lock.step(self._state, self._step, given, self.np_random)
        self._step += 1
        observation = self.lock.observe(self._state, self._step, self.np_random)[0]
        good = bool(self._state[0] != DEAD)
        return observation, float(reward[0]), self._step == self.lock.horizon, False, {"good": good}


def lock_horizon(name: str, prefix: str = "lock-h") -> int | None:
    """H where `name` is `<prefix>H` with H from 2 to 100; None for the name of another environment.

    Raises ValueError for a lock with another H.
    """
    found = re.fullmatch(re.escape(prefix) + r"(-?\w*)", name)
    if found is None:
        return None
    if not found[1].isdecimal() or not 2 <= int(found[1]) <= 100:
        raise ValueError(f"env: expected {prefix}H with H from 2 to 100 steps, got {name!r}")
    return int(found[1])


for _horizon in REGISTERED:
    if (_id := f"peira/Lock-H{_horizon}-v0") not in gymnasium.registry:
        gymnasium.register(_id, entry_point=LockEnv, kwargs={"horizon": _horizon})
