"""Tasks of the SharpeRatio@k benchmark: a behaviour policy, ten candidates, their true values, and logs.

Finite tasks are tables (`worlds.World`); their logs show groups of states, not the states that policies act on, so
that no model and no ratio fitted to them is right. Classic control is simulated in batches of numpy: the equations and
constants are those of gymnasium's CartPole-v1, MountainCar-v0 and Acrobot-v1, cut at 200 steps. `deviation` says how
far a step of the batch is from a step of gymnasium.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import gymnasium
import numpy as np
from scipy import special
from worlds import World, draw, drawn, gridworld

from peira.evaluation.off_policy.log import Log

GAMMA = 0.99
CANDIDATES = 10


class Logged(NamedTuple):
    """A log, and what each candidate would do: a function of observations, or probabilities row by row."""

    log: Log
    candidates: dict[str, Callable | np.ndarray]


class Truth(NamedTuple):
    """J of every candidate and of the behaviour policy, with the standard errors of the former (0: exact)."""

    values: dict[str, float]
    behaviour: float
    standard_errors: dict[str, float]


# -- tables ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableTask:
    """A finite world with the behaviour policy as its `behaviour`, candidates [s, a], and the group of each state."""

    world: World
    policies: dict[str, np.ndarray]
    group: np.ndarray
    episodes: int

    @property
    def gamma(self) -> float:
        return self.world.gamma

    @property
    def horizon(self) -> int:
        return self.world.horizon

    def truth(self) -> Truth:
        values = {name: self.world.value(policy) for name, policy in self.policies.items()}
        return Truth(values, self.world.value(self.world.behaviour), dict.fromkeys(values, 0.0))

    def logged(self, rng: np.random.Generator, episodes: int | None = None) -> Logged:
        found = draw(self.world, episodes or self.episodes, rng)
        state, action = found.flat(found.state), found.flat(found.action)
        log = Log.from_arrays(
            observation=self.group[state],
            action=action,
            reward=found.flat(found.reward),
            length=found.length,
            truncated=~found.terminated,
            propensity=self.world.behaviour[state, action],
            actions=self.world.reward.shape[1],
            episode_id=names(len(found.length)),
        )
        return Logged(log, {name: policy[state] for name, policy in self.policies.items()})


def garnet(
    seed: int,
    *,
    states: int,
    actions: int,
    branching: int,
    horizon: int,
    groups: int,
    episodes: int = 4_000,
) -> TableTask:
    """A random world: `branching` successors of every pair, rewards N(0, 1) for each pair; random groups of states."""
    rng = np.random.default_rng(seed)
    move = np.zeros((states, actions, states))
    for s in range(states):
        for a in range(actions):
            move[s, a, rng.choice(states, branching, replace=False)] = rng.dirichlet(np.ones(branching))
    first = rng.dirichlet(np.ones(states))
    reward = rng.standard_normal((states, actions))
    group = rng.permutation(np.arange(states) % groups)
    behaviour, policies = _around_the_best(move, reward, rng)
    world = World(first, move, reward, behaviour, behaviour, GAMMA, horizon, np.arange(states))
    return TableTask(world, policies, group, episodes)


def grid(seed: int = 3, *, size: int = 8, horizon: int = 40, episodes: int = 4_000) -> TableTask:
    """The gridworld of R2, larger; a log shows which block of 2 × 2 cells the walker is in."""
    world = replace(gridworld(size, horizon=horizon), gamma=GAMMA)
    behaviour, policies = _around_the_best(world.move, world.reward, np.random.default_rng(seed))
    cell = np.arange(size * size)
    group = (cell // size // 2) * (size // 2) + cell % size // 2
    return TableTask(replace(world, behaviour=behaviour, target=behaviour), policies, group, episodes)


def _around_the_best(
    move: np.ndarray, reward: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Softmax policies of the optimal values plus noise: a middling one, and ten with more or less noise and heat."""
    q = np.zeros_like(reward)
    for _ in range(2_000):
        q = reward + GAMMA * move @ q.max(-1)
    advantage = q - q.mean(-1, keepdims=True)
    advantage /= advantage.std()
    uniform = 1 / reward.shape[1]

    def policy(sharpness: float, noise: float, share: float) -> np.ndarray:
        seen = advantage + noise * rng.standard_normal(advantage.shape)
        return (1 - share) * special.softmax(sharpness * seen, axis=1) + share * uniform

    behaviour = policy(1.0, 0.7, 0.2)
    return behaviour, {
        f"candidate {number}": policy(rng.uniform(0.5, 3.0), rng.uniform(0.0, 2.0), 0.1)
        for number in range(CANDIDATES)
    }


# -- classic control ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dynamics:
    """A simulator of many episodes at once; states are float64 [episodes, 2 or 4].

    start    uniform within these limits of each coordinate
    step     state, action → next state, reward, terminated
    observe  what gymnasium shows of a state; `scale` brings it to about 1
    """

    id: str
    low: np.ndarray
    high: np.ndarray
    step: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
    observe: Callable[[np.ndarray], np.ndarray]
    scale: np.ndarray
    actions: int

    def start(self, episodes: int, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(self.low, self.high, (episodes, len(self.low)))


def _cart_pole(state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, x_speed, angle, angle_speed = state.T
    cos, sin = np.cos(angle), np.sin(angle)
    # Cart 1 kg, pole 0.1 kg with its centre at 0.5 m, 10 N either way, Euler steps of 0.02 s.
    push = (np.where(action == 1, 10.0, -10.0) + 0.05 * angle_speed**2 * sin) / 1.1
    angle_pull = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    pull = push - 0.05 * angle_pull * cos / 1.1
    speeds = np.stack([x_speed, pull, angle_speed, angle_pull], axis=1)
    state = state + 0.02 * speeds
    fallen = (np.abs(state[:, 0]) > 2.4) | (np.abs(state[:, 2]) > 12 * 2 * np.pi / 360)
    return state, np.ones(len(state)), fallen


def _mountain_car(state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    speed = np.clip(state[:, 1] + 0.001 * (action - 1) - 0.0025 * np.cos(3 * state[:, 0]), -0.07, 0.07)
    place = np.clip(state[:, 0] + speed, -1.2, 0.6)
    speed = np.where((place == -1.2) & (speed < 0), 0.0, speed)
    return np.stack([place, speed], axis=1), np.full(len(state), -1.0), (place >= 0.5) & (speed >= 0)


def _acrobot_derivative(state: np.ndarray, torque: np.ndarray) -> np.ndarray:
    """Two links of 1 m and 1 kg with their centres at 0.5 m and moments of inertia 1, as in Sutton and Barto's book."""
    one, two, speed_one, speed_two = state.T
    cos, sin = np.cos(two), np.sin(two)
    d1, d2 = 3.5 + cos, 1.25 + 0.5 * cos
    phi2 = 4.9 * np.sin(one + two)
    phi1 = -0.5 * (speed_two + 2 * speed_one) * speed_two * sin + 14.7 * np.sin(one) + phi2
    pull_two = (torque + d2 / d1 * phi1 - 0.5 * speed_one**2 * sin - phi2) / (1.25 - d2**2 / d1)
    return np.stack([speed_one, speed_two, -(d2 * pull_two + phi1) / d1, pull_two], axis=1)


def _acrobot(state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    torque, dt = action - 1.0, 0.2
    k1 = _acrobot_derivative(state, torque)
    k2 = _acrobot_derivative(state + dt / 2 * k1, torque)
    k3 = _acrobot_derivative(state + dt / 2 * k2, torque)
    k4 = _acrobot_derivative(state + dt * k3, torque)
    state = state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    state[:, :2] = (state[:, :2] + np.pi) % (2 * np.pi) - np.pi
    state[:, 2:] = np.clip(state[:, 2:], [-4 * np.pi, -9 * np.pi], [4 * np.pi, 9 * np.pi])
    up = -np.cos(state[:, 0]) - np.cos(state[:, 1] + state[:, 0]) > 1
    return state, np.where(up, 0.0, -1.0), up


def _acrobot_seen(state: np.ndarray) -> np.ndarray:
    one, two = state[:, 0], state[:, 1]
    return np.column_stack([np.cos(one), np.sin(one), np.cos(two), np.sin(two), state[:, 2:]])


CART_POLE = Dynamics(
    "CartPole-v1",
    np.full(4, -0.05),
    np.full(4, 0.05),
    _cart_pole,
    lambda state: state,
    np.array([1.0, 1.0, 0.1, 1.0]),
    2,
)
MOUNTAIN_CAR = Dynamics(
    "MountainCar-v0",
    np.array([-0.6, 0.0]),
    np.array([-0.4, 0.0]),
    _mountain_car,
    lambda state: state,
    np.array([0.5, 0.03]),
    3,
)
ACROBOT = Dynamics(
    "Acrobot-v1",
    np.full(4, -0.1),
    np.full(4, 0.1),
    _acrobot,
    _acrobot_seen,
    np.array([1.0, 1.0, 1.0, 1.0, 2.0, 4.0]),
    3,
)


def deviation(dynamics: Dynamics, policy: Callable, *, episodes: int = 5, horizon: int = 200) -> float:
    """Greatest difference between the batch and gymnasium over whole episodes, both stepped from the batch's states.

    Observations are compared in float32, as gymnasium gives them. Raises AssertionError where rewards or ends differ.
    """
    env = gymnasium.make(dynamics.id).unwrapped
    greatest = 0.0
    for seed in range(episodes):
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        state = dynamics.start(1, rng)
        for _ in range(horizon):
            env.state, env.steps_beyond_terminated = state[0].copy(), None
            action = drawn(policy(dynamics.observe(state)), rng)
            state, reward, terminated = dynamics.step(state, action)
            seen, their_reward, their_end, _, _ = env.step(int(action[0]))
            assert (reward[0], terminated[0]) == (their_reward, their_end)
            greatest = max(greatest, float(np.abs(dynamics.observe(state)[0] - seen).max()))
            if their_end:
                break
    return greatest


class Step(NamedTuple):
    """One step of the episodes that are still alive: their numbers, and a row for each."""

    alive: np.ndarray
    observation: np.ndarray
    action: np.ndarray
    probability: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray


def steps(
    dynamics: Dynamics,
    probs: Callable[[np.ndarray, np.ndarray], np.ndarray],
    episodes: int,
    horizon: int,
    rng: np.random.Generator,
) -> Iterator[Step]:
    """Episodes side by side; `probs` is asked with observations and the numbers of their episodes."""
    state, alive = dynamics.start(episodes, rng), np.arange(episodes)
    for _ in range(horizon):
        observation = dynamics.observe(state)
        # Drawn for all, alive or not: episodes of different policies have their randomness in common.
        chance = rng.random(episodes)[alive]
        of = probs(observation, alive)
        action = (chance[:, None] > of.cumsum(1)[:, :-1]).sum(1)
        state, reward, terminated = dynamics.step(state, action)
        yield Step(alive, observation, action, of[np.arange(len(alive)), action], reward, terminated)
        state, alive = state[~terminated], alive[~terminated]
        if not len(alive):
            return


def returns(dynamics: Dynamics, probs: Callable, episodes: int, horizon: int, seed: int) -> np.ndarray:
    """Discounted returns of as many episodes."""
    total = np.zeros(episodes)
    every = steps(dynamics, probs, episodes, horizon, np.random.default_rng(seed))
    for t, step in enumerate(every):
        total[step.alive] += GAMMA**t * step.reward
    return total


@dataclass(frozen=True)
class LinearPolicy:
    """(1 − ε) softmax((1, s/scale)·W) + ε/actions."""

    weight: np.ndarray
    scale: np.ndarray
    epsilon: float

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        logits = observation / self.scale @ self.weight[1:] + self.weight[0]
        return (1 - self.epsilon) * special.softmax(logits, axis=1) + self.epsilon / logits.shape[1]


@dataclass(frozen=True)
class ControlTask:
    """Classic control with a behaviour policy and candidates, functions of observations."""

    dynamics: Dynamics
    behaviour: LinearPolicy
    policies: dict[str, LinearPolicy]
    episodes: int = 1_000
    horizon: int = 200
    gamma: float = GAMMA

    def truth(self, rollouts: int = 20_000) -> Truth:
        """By rollouts with common random numbers."""

        def of(policy: LinearPolicy) -> np.ndarray:
            return returns(self.dynamics, lambda seen, _: policy(seen), rollouts, self.horizon, seed=2024)

        found = {name: of(policy) for name, policy in self.policies.items()}
        return Truth(
            {name: float(each.mean()) for name, each in found.items()},
            float(of(self.behaviour).mean()),
            {name: float(each.std(ddof=1) / np.sqrt(rollouts)) for name, each in found.items()},
        )

    def logged(self, rng: np.random.Generator, episodes: int | None = None) -> Logged:
        episodes = episodes or self.episodes
        every = list(steps(self.dynamics, lambda seen, _: self.behaviour(seen), episodes, self.horizon, rng))
        episode = np.concatenate([step.alive for step in every])
        order = np.argsort(episode, kind="stable")
        rows = {
            name: np.concatenate([getattr(step, name) for step in every])[order]
            for name in ("observation", "action", "reward", "probability")
        }
        ended = np.zeros(episodes, dtype=bool)
        for step in every:
            ended[step.alive[step.terminated]] = True
        log = Log.from_arrays(
            propensity=rows.pop("probability"),
            length=np.bincount(episode, minlength=episodes),
            truncated=~ended,
            actions=self.dynamics.actions,
            episode_id=names(episodes),
            **rows,
        )
        return Logged(log, dict(self.policies))


SEARCHES, PROPOSALS, ELITE, TRIALS, GENERATIONS, PACE = 2, 64, 8, 8, 16, 0.4
STAGES = (0.25, 0.6, 1.0)
"""Shares of the way from chance to the best that a search found: what is kept of it."""


def stages(dynamics: Dynamics, seed: int, horizon: int = 200) -> list[np.ndarray]:
    """Weights of linear softmax policies by cross-entropy search, kept when they first come to each of `STAGES`."""
    rng = np.random.default_rng(seed)
    shape = (1 + len(dynamics.scale), dynamics.actions)
    mean, spread = np.zeros(shape), np.full(shape, 2.0)
    path = [mean]
    for _ in range(GENERATIONS):
        proposal = mean + spread * rng.standard_normal((PROPOSALS, *shape))

        def probs(seen: np.ndarray, alive: np.ndarray, proposal: np.ndarray = proposal) -> np.ndarray:
            own = proposal[alive // TRIALS]
            return special.softmax(
                np.einsum("nd,nda->na", seen / dynamics.scale, own[:, 1:]) + own[:, 0], axis=1
            )

        seed_of_trials = int(rng.integers(2**31))
        score = returns(dynamics, probs, PROPOSALS * TRIALS, horizon, seed_of_trials)
        best = np.argsort(score.reshape(PROPOSALS, TRIALS).mean(1))[-ELITE:]
        # In small steps, so that there are stages to keep.
        mean = (1 - PACE) * mean + PACE * proposal[best].mean(0)
        spread = (1 - PACE) * spread + PACE * proposal[best].std(0)
        path.append(mean)
    worth = np.array(
        [
            returns(dynamics, lambda seen, _, of=of: _softmax(dynamics, of)(seen), 200, horizon, seed).mean()
            for of in path
        ]
    )
    way = (worth - worth[0]) / (worth.max() - worth[0])
    reached: list[int] = []
    for stage in STAGES:
        # Never the same policy twice: its copies would have no spread.
        later = np.arange(len(path)) > (reached[-1] if reached else 0)
        reached.append(int(np.argmax(later & ((way >= stage) | (np.arange(len(path)) == len(path) - 1)))))
    return [path[at] for at in reached]


def _softmax(dynamics: Dynamics, weight: np.ndarray) -> LinearPolicy:
    return LinearPolicy(weight, dynamics.scale, 0.0)


def control(dynamics: Dynamics, epsilons: tuple[float, ...]) -> ControlTask:
    """Two searches at three stages, each with four ε: 24 policies, of which ten are drawn.

    The behaviour policy is the middle stage of the first search with ε = 0.4.
    """
    base = [weight for search in range(SEARCHES) for weight in stages(dynamics, search)]
    pool = {
        f"search {place // len(STAGES) + 1} at {STAGES[place % len(STAGES)]:.0%}, ε = {epsilon:g}": LinearPolicy(
            weight, dynamics.scale, epsilon
        )
        for place, weight in enumerate(base)
        for epsilon in epsilons
    }
    chosen = np.sort(np.random.default_rng(12345).choice(len(pool), CANDIDATES, replace=False))
    behaviour = LinearPolicy(base[1], dynamics.scale, 0.4)
    return ControlTask(dynamics, behaviour, {list(pool)[at]: list(pool.values())[at] for at in chosen})


def names(episodes: int) -> list[str]:
    """Names that sort as they count."""
    return [f"{number:06d}" for number in range(episodes)]


TASKS: dict[str, Callable[[], TableTask | ControlTask]] = {
    "Garnet 16": lambda: garnet(0, states=16, actions=2, branching=3, horizon=10, groups=8),
    "Garnet 40": lambda: garnet(1, states=40, actions=3, branching=4, horizon=20, groups=14),
    "Garnet 100": lambda: garnet(2, states=100, actions=5, branching=5, horizon=40, groups=25),
    "gridworld": grid,
    # The ε of the paper's configurations.
    "CartPole": lambda: control(CART_POLE, (0.1, 0.3, 0.5, 0.7)),
    "MountainCar": lambda: control(MOUNTAIN_CAR, (0.0, 0.1, 0.2, 0.3)),
    "Acrobot": lambda: control(ACROBOT, (0.1, 0.15, 0.2, 0.25)),
}
