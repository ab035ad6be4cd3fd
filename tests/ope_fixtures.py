"""Small Markov decision processes whose off-policy quantities are known exactly.

Two states, two actions. `A` is evaluated over three steps; in `A_PRIME` action 1 in state 1 ends the episode after its
reward; `B` has the tables of `A` and no horizon. All trajectories can be enumerated, so that the mean and the variance
of an estimator are finite sums.
"""

from dataclasses import dataclass, replace

import numpy as np

from peira.evaluation.off_policy.terms import Terms
from peira.evaluation.off_policy.weights import Block


@dataclass(frozen=True)
class MDP:
    """First states `mu` [s], moves `P` [s, a, s'], rewards `R` [s, a], policies `pi_b`, `pi` [s, a], `ends` [s, a]."""

    mu: np.ndarray
    P: np.ndarray
    R: np.ndarray
    pi_b: np.ndarray
    pi: np.ndarray
    gamma: float
    ends: np.ndarray

    @property
    def continues(self) -> np.ndarray:
        """P without what follows an action that ends the episode, [s, a, s']."""
        return self.P * ~self.ends[:, :, None]

    @property
    def log_ratio(self) -> np.ndarray:
        """log π(a|s) − log π_b(a|s), [s, a]."""
        return np.log(self.pi) - np.log(self.pi_b)


A = MDP(
    mu=np.array([0.7, 0.3]),
    P=np.array([[[0.8, 0.2], [0.2, 0.8]], [[0.5, 0.5], [0.4, 0.6]]]),
    R=np.array([[1.0, 0.0], [0.0, 2.0]]),
    pi_b=np.array([[0.6, 0.4], [0.5, 0.5]]),
    pi=np.array([[0.3, 0.7], [0.2, 0.8]]),
    gamma=0.9,
    ends=np.zeros((2, 2), dtype=bool),
)
A_PRIME = replace(A, ends=np.array([[False, False], [False, True]]))
B = A

HORIZON = 3
WRONG_Q = np.array([[0.5, 1.0], [1.5, 0.0]])
"""The wrong Q̂ of every step."""


@dataclass(frozen=True)
class Trajectories:
    """Every trajectory with its probability; padded with state 0, action 0 and reward 0 after the end."""

    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    length: np.ndarray
    terminated: np.ndarray
    prob_b: np.ndarray
    prob: np.ndarray

    @property
    def alive(self) -> np.ndarray:
        """Whether the step was taken, [trajectories, steps]."""
        return np.arange(self.state.shape[1]) < self.length[:, None]

    def at(self, table: np.ndarray) -> np.ndarray:
        """Values of the logged pairs from a table [s, a] or [t, s, a], 0 after the end: [trajectories, steps]."""
        steps = np.arange(self.state.shape[1])
        table = np.broadcast_to(table, (len(steps), *table.shape[-2:]))
        return np.where(self.alive, table[steps, self.state, self.action], 0.0)

    def at_state(self, table: np.ndarray) -> np.ndarray:
        """Values of the logged states from a table [s] or [t, s], 0 after the end: [trajectories, steps]."""
        return self.at(np.repeat(table[..., None], self.action.max() + 1, axis=-1))

    def block(self, mdp: MDP) -> Block:
        """Rewards and log ratios of π against π_b."""
        return Block(self.reward, self.at(mdp.log_ratio), self.length)

    def repeated(self, count: np.ndarray) -> "Trajectories":
        """A log that holds trajectory i `count[i]` times."""
        return Trajectories(**{name: np.repeat(column, count, axis=0) for name, column in vars(self).items()})


def enumerate_trajectories(mdp: MDP, horizon: int) -> Trajectories:
    """All trajectories of at most `horizon` steps that π_b can make."""
    states, actions = mdp.R.shape
    state, action = np.arange(states)[:, None], np.zeros((states, 0), dtype=np.int64)
    length, ended = np.zeros(states, dtype=np.int64), np.zeros(states, dtype=bool)
    prob_b, prob = mdp.mu.copy(), mdp.mu.copy()
    for t in range(horizon):
        # An ended trajectory has one child (action 0); one that goes on has a child for each action.
        parent = np.repeat(np.arange(len(ended)), np.where(ended, 1, actions))
        first = np.searchsorted(parent, np.arange(len(ended)))
        taken = np.arange(len(parent)) - first[parent]
        state, action = state[parent], np.column_stack([action[parent], taken])
        here, lives = state[:, t], ~ended[parent]
        prob_b = prob_b[parent] * np.where(lives, mdp.pi_b[here, taken], 1.0)
        prob = prob[parent] * np.where(lives, mdp.pi[here, taken], 1.0)
        length = length[parent] + lives
        ended = ended[parent] | (lives & mdp.ends[here, taken])
        if t + 1 < horizon:
            parent = np.repeat(np.arange(len(ended)), np.where(ended, 1, states))
            first = np.searchsorted(parent, np.arange(len(ended)))
            following = np.arange(len(parent)) - first[parent]
            move = np.where(ended[parent], 1.0, mdp.P[state[parent, t], action[parent, t], following])
            state, action = np.column_stack([state[parent], following]), action[parent]
            prob_b, prob = prob_b[parent] * move, prob[parent] * move
            length, ended = length[parent], ended[parent]
    alive = np.arange(horizon) < length[:, None]
    reward = np.where(alive, mdp.R[state, action], 0.0)
    possible = prob_b > 0
    return Trajectories(*(of[possible] for of in (state, action, reward, length, ended, prob_b, prob)))


def exact_log(mdp: MDP, horizon: int) -> Trajectories:
    """A log in which every trajectory is exactly as frequent as under π_b (A over 3 steps: 1 000 000 episodes)."""
    trajectories = enumerate_trajectories(mdp, horizon)
    # All probabilities have one decimal.
    count = np.rint(trajectories.prob_b * 10.0 ** (2 * horizon)).astype(np.int64)
    return trajectories.repeated(count // np.gcd.reduce(count))


def population(terms: Terms, probability: np.ndarray) -> tuple[float, float]:
    """The value of an estimator when episodes have these probabilities, and its variance for one episode."""
    plain = probability @ terms.plain
    numerator, denominator = probability @ terms.numerator, probability @ terms.denominator
    theta = numerator / denominator
    influence = (
        terms.plain - plain + ((terms.numerator - theta * terms.denominator) / denominator).sum(axis=1)
    )
    return float(plain + theta.sum()), float(probability @ influence**2)


def finite_values(mdp: MDP, policy: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Q_t [t, s, a] and V_t [t, s] of a policy with `horizon` steps in all."""
    q, v = np.zeros((horizon, *mdp.R.shape)), np.zeros((horizon + 1, len(mdp.mu)))
    for t in reversed(range(horizon)):
        q[t] = mdp.R + mdp.gamma * mdp.continues @ v[t + 1]
        v[t] = (policy * q[t]).sum(axis=1)
    return q, v[:horizon]


def state_occupancy(mdp: MDP, policy: np.ndarray, horizon: int) -> np.ndarray:
    """d_t(s) [t, s]; sums to the probability of being alive at t."""
    occupancy = np.zeros((horizon, len(mdp.mu)))
    occupancy[0] = mdp.mu
    for t in range(1, horizon):
        occupancy[t] = np.einsum("s,sa,sau->u", occupancy[t - 1], policy, mdp.continues)
    return occupancy


def time_ratio(mdp: MDP, horizon: int) -> np.ndarray:
    """ρ_t(s) = d_t^π(s) / d_t^b(s), [t, s]."""
    return state_occupancy(mdp, mdp.pi, horizon) / state_occupancy(mdp, mdp.pi_b, horizon)


def discounted_finite_ratio(mdp: MDP, horizon: int) -> np.ndarray:
    """Σ_t γ^t d_t^π(s) / Σ_t γ^t d_t^b(s) over `horizon` steps, [s]."""
    discount = mdp.gamma ** np.arange(horizon)
    return (discount @ state_occupancy(mdp, mdp.pi, horizon)) / (
        discount @ state_occupancy(mdp, mdp.pi_b, horizon)
    )


def stationary_q(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Q [s, a] without a horizon."""
    states, actions = mdp.R.shape
    move = np.einsum("sau,ub->saub", mdp.continues, policy).reshape(states * actions, -1)
    return np.linalg.solve(np.eye(states * actions) - mdp.gamma * move, mdp.R.ravel()).reshape(
        states, actions
    )


def discounted_occupancy(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """d_γ(s, a) = (1 − γ) Σ_t γ^t P(s_t = s, a_t = a) without a horizon, [s, a]; sums to 1 if no episode ends."""
    move = np.einsum("sa,sau->su", policy, mdp.continues)
    of_state = np.linalg.solve(np.eye(len(mdp.mu)) - mdp.gamma * move.T, (1 - mdp.gamma) * mdp.mu)
    return of_state[:, None] * policy
