"""Worlds whose true values are known, and logs drawn from them.

Finite worlds are tables: their values follow by dynamic programming, and so do the variances that estimators have with
many episodes. Bandits are tables over a fixed set of contexts; a log draws contexts from it with replacement.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special

from peira.evaluation.off_policy.fitted_q import FittedQ, tabular_q
from peira.evaluation.off_policy.marginal import fit_time_ratio
from peira.evaluation.off_policy.propensity import MultinomialLogistic
from peira.evaluation.off_policy.tabular import TabularModel, finite_horizon_q
from peira.evaluation.off_policy.transitions import TERMINATED, TRUNCATED, Transitions
from peira.evaluation.off_policy.weights import Block

FOLDS = 5
"""Folds of whatever is fitted to a log."""


@dataclass(frozen=True)
class World:
    """First states [s], moves [s, a, s'] (what is missing to 1 ends the episode), rewards [s, a], two policies [s, a].

    `seen` is the number that a log records for each state; logs and values have `horizon` steps.
    """

    first: np.ndarray
    move: np.ndarray
    reward: np.ndarray
    behaviour: np.ndarray
    target: np.ndarray
    gamma: float
    horizon: int
    seen: np.ndarray

    @property
    def model(self) -> TabularModel:
        return TabularModel(self.move, self.reward, self.first, np.zeros_like(self.reward))

    def q(self) -> np.ndarray:
        """Q_t of the target, [t, s, a]."""
        return finite_horizon_q(self.model, self.target, self.gamma, self.horizon)

    def v(self) -> np.ndarray:
        """V_t of the target and 0 after the last step, [t, s]."""
        v = (self.target * self.q()).sum(-1)
        return np.concatenate([v, np.zeros_like(v[:1])])

    def value(self, policy: np.ndarray | None = None) -> float:
        """J of a policy, by default the target."""
        policy = self.target if policy is None else policy
        q = finite_horizon_q(self.model, policy, self.gamma, self.horizon)
        return float(self.first @ (policy * q[0]).sum(-1))

    def log_ratio(self) -> np.ndarray:
        """log π − log π_b, [s, a]."""
        return np.log(self.target) - np.log(self.behaviour)


@dataclass(frozen=True)
class Log:
    """Episodes of the behaviour policy, padded with 0: states as they are seen, ratios of the target."""

    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    log_ratio: np.ndarray
    length: np.ndarray
    terminated: np.ndarray

    @property
    def block(self) -> Block:
        return Block(self.reward, self.log_ratio, self.length)

    def head(self, episodes: int) -> "Log":
        """The first of the episodes."""
        return Log(*(column[:episodes] for column in vars(self).values()))

    def cut(self, steps: int) -> "Log":
        """The first steps of every episode."""
        length = np.minimum(self.length, steps)
        columns = (self.state, self.action, self.reward, self.log_ratio)
        return Log(
            *(column[:, :steps] for column in columns), length, self.terminated & (self.length <= steps)
        )

    def flat(self, padded: np.ndarray) -> np.ndarray:
        """[rows], one episode after another."""
        return padded[self.block.alive]

    def padded(self, rows: np.ndarray) -> np.ndarray:
        """[episodes, steps] with 0 after the end."""
        columns = np.zeros(self.reward.shape)
        columns[self.block.alive] = rows
        return columns

    def episode_fold(self, folds: int) -> np.ndarray:
        """Episodes are drawn independently, so that any split is a random one."""
        return np.arange(len(self.length)) % folds

    def transitions(self, folds: int = FOLDS) -> Transitions:
        next_row = np.arange(1, self.length.sum() + 1)
        next_row[np.cumsum(self.length) - 1] = np.where(self.terminated, TERMINATED, TRUNCATED)
        return Transitions(
            self.flat(self.state),
            self.flat(self.action),
            self.flat(self.reward),
            next_row,
            np.repeat(self.episode_fold(folds), self.length),
        )

    def values(self, world: World, folds: int = FOLDS) -> tuple[np.ndarray, np.ndarray]:
        """Cross-fitted tables Q̂_t at the logged pairs and V̂_t at the states, padded."""
        transitions = self.transitions(folds)
        seen = int(world.seen.max()) + 1
        # The policy as it looks to whoever sees only `seen`; the worlds' policies do not depend on more.
        of_seen = np.zeros((seen, world.target.shape[1]))
        of_seen[world.seen] = world.target
        fit: FittedQ = tabular_q(
            transitions,
            of_seen[transitions.observation][None],
            world.gamma,
            states=seen,
            horizon=self.reward.shape[1],
        )
        return self.padded(fit.logged[0]), self.padded(fit.v[0])

    def state_ratio(self, world: World, folds: int = FOLDS) -> np.ndarray:
        """Cross-fitted time-indexed ratios ρ̂_t(s), padded."""
        ratio = fit_time_ratio(
            self.flat(self.state),
            self.flat(self.log_ratio),
            self.length,
            self.terminated,
            states=int(world.seen.max()) + 1,
            fold=self.episode_fold(folds),
        )
        return self.padded(ratio)


def draw(world: World, episodes: int, rng: np.random.Generator) -> Log:
    """A log of the behaviour policy."""
    states, actions = world.reward.shape
    state, action = (np.zeros((episodes, world.horizon), dtype=np.int64) for _ in range(2))
    length = np.full(episodes, world.horizon)
    alive = np.arange(episodes)
    where = rng.choice(states, p=world.first, size=episodes)
    chosen = world.behaviour.cumsum(-1)[:, :-1]
    # Cumulative probabilities of all pairs (s, a), end to end: the one of row k lies between k and k + 1.
    pairs = states * actions
    arrival = world.move.reshape(pairs, states).cumsum(-1) + np.arange(pairs)[:, None]
    terminated = np.zeros(episodes, dtype=bool)
    for t in range(world.horizon):
        taken = (rng.random(len(alive))[:, None] > chosen[where]).sum(1)
        state[alive, t], action[alive, t] = where, taken
        pair = where * actions + taken
        where = np.searchsorted(arrival.ravel(), pair + rng.random(len(alive)), side="right") - pair * states
        ended = where >= states
        length[alive[ended]], terminated[alive[ended]] = t + 1, True
        alive, where = alive[~ended], where[~ended]
    lives = np.arange(world.horizon) < length[:, None]
    return Log(
        np.where(lives, world.seen[state], 0),
        action,
        np.where(lives, world.reward[state, action], 0.0),
        np.where(lives, world.log_ratio()[state, action], 0.0),
        length,
        terminated,
    )


def fixture_a() -> World:
    """Two states, two actions, three steps (``sharpe.md`` 9, A)."""
    return World(
        first=np.array([0.7, 0.3]),
        move=np.array([[[0.8, 0.2], [0.2, 0.8]], [[0.5, 0.5], [0.4, 0.6]]]),
        reward=np.array([[1.0, 0.0], [0.0, 2.0]]),
        behaviour=np.array([[0.6, 0.4], [0.5, 0.5]]),
        target=np.array([[0.3, 0.7], [0.2, 0.8]]),
        gamma=0.9,
        horizon=3,
        seen=np.arange(2),
    )


WRONG_Q = np.array([[0.5, 1.0], [1.5, 0.0]])
"""A Q̂ of fixture A that is wrong at every step."""


def gridworld(
    size: int = 6, *, horizon: int = 20, slip: float = 0.2, behaviour: float = 0.4, target: float = 0.2
) -> World:
    """From one corner to the other, which gives 1 and ends the episode; −0.05 a step, −0.5 in two puddles.

    A move slips to a random direction with probability `slip`. Both policies are ε-greedy for the optimal values, with
    their ε named like them.
    """
    cell = np.arange(size * size)
    row, column = cell // size, cell % size
    straight = np.zeros((len(cell), 4, len(cell)))
    for a, (down, right) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):
        to = np.clip(row + down, 0, size - 1) * size + np.clip(column + right, 0, size - 1)
        straight[cell, a, to] = 1.0
    move = (1 - slip) * straight + slip * straight.mean(1, keepdims=True)
    reward = np.full((len(cell), 4), -0.05)
    puddle = [size * (size // 2) + size // 3, size * (size // 3) + size // 2]
    reward[puddle] -= 0.5
    reward[-1], move[-1] = 1.0, 0.0

    gamma = 0.95
    q = np.zeros_like(reward)
    for _ in range(500):
        q = reward + gamma * move @ q.max(-1)
    greedy = np.eye(4)[q.argmax(-1)]
    first = np.eye(len(cell))[0]
    policies = [(1 - epsilon) * greedy + epsilon / 4 for epsilon in (behaviour, target)]
    return World(first, move, reward, *policies, gamma, horizon, cell)


def chain(horizon: int, *, behaviour: float = 0.5, target: float = 0.7, slip: float = 0.1) -> World:
    """Two lanes, up and down: being up gives 1, being down −1; action 0 leads up, action 1 down, unless it slips.

    The policies choose action 0 with the probabilities named like them, in both lanes.
    """
    up = np.array([1 - slip, slip])
    move = np.tile(np.stack([up, 1 - up], axis=1), (2, 1, 1))
    policies = [np.tile([p, 1 - p], (2, 1)) for p in (behaviour, target)]
    reward = np.array([[1.0, 1.0], [-1.0, -1.0]])
    return World(np.array([0.5, 0.5]), move, reward, *policies, 1.0, horizon, np.arange(2))


def model_win() -> World:
    """ModelWin of Thomas and Brunskill 2016: ten choices between two lotteries, a world a table models exactly.

    In state 0 action 0 leads to state 1 with probability 0.4 and to state 2 with 0.6, action 1 the other way round;
    from both one comes back. The reward, 1 for state 1 and −1 for state 2, is paid when leaving them, which is the same
    return. The log takes action 0 with probability 0.73, the target with 0.27.
    """
    move = np.zeros((3, 2, 3))
    move[0] = [[0.0, 0.4, 0.6], [0.0, 0.6, 0.4]]
    move[1:, :, 0] = 1.0
    reward = np.array([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    p = special.expit(1.0)
    policies = [np.array([[of, 1 - of], [0.5, 0.5], [0.5, 0.5]]) for of in (p, 1 - p)]
    return World(np.eye(3)[0], move, reward, *policies, 1.0, 20, np.arange(3))


def model_fail() -> World:
    """ModelFail of Thomas and Brunskill 2016: two steps whose states look alike, so that no model of them is right.

    Action 0 leads up, where the second step gives 1, action 1 down, where it gives −1. The log takes action 0 with
    probability 0.88, the target with 0.12.
    """
    move = np.zeros((3, 2, 3))
    move[0] = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    reward = np.array([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    p = special.expit(2.0)
    policies = [np.tile([of, 1 - of], (3, 1)) for of in (p, 1 - p)]
    return World(np.eye(3)[0], move, reward, *policies, 1.0, 2, np.zeros(3, dtype=np.int64))


def variances(world: World) -> dict[str, float]:
    """What n·MSE tends to as the episodes become many, for the estimators of which it is known in closed form.

    Weighted sums of steps have it by a backward recursion of their first two moments. Doubly robust estimators whose
    fitted values are consistent have Var V(s_0) + Σ_t γ^{2t} E[ω_t² Var(r + γV(s')|s, a)], ω_t = W_t for DR and WDR,
    the exact ρ_t for DRL (the bounds of ``sharpe.md`` 2.2 and 2.4). MIS with fitted ρ_t(s) has
    Var V(s_0) + Σ_t γ^{2t} E_b[ρ_t(s)² Var_b(w (r + γV(s') − γE_π V(s_{t+1}))|s)]: what Xie et al. 2019 give, less the
    mean value of the next step, which drops out because the fitted distribution of each step is scaled to sum to 1.
    """
    closed = _with_end(world)
    j, steps = world.value(), range(world.horizon)
    b, ratio, move, gamma = closed.behaviour, closed.target / closed.behaviour, closed.move, world.gamma

    def variance(x: np.ndarray) -> float:
        """Of Σ_t γ^t W_t x_t(s, a)."""
        mean, square = np.zeros((2, len(b)))
        for t in reversed(steps):
            following = gamma * move @ mean
            square = (b * ratio**2 * (x[t] ** 2 + 2 * x[t] * following + gamma**2 * move @ square)).sum(-1)
            mean = (b * ratio * (x[t] + following)).sum(-1)
        return float(closed.first @ square - (closed.first @ mean) ** 2)

    # E[W²], E[W² G], E[W² G²] from each state on.
    weight, first, second = np.ones(len(b)), np.zeros(len(b)), np.zeros(len(b))
    for _ in steps:
        r, next_weight, next_first = closed.reward, move @ weight, gamma * move @ first
        of_second = r**2 * next_weight + 2 * r * next_first + gamma**2 * move @ second
        weight, first, second = (
            (b * ratio**2 * of).sum(-1) for of in (next_weight, r * next_weight + next_first, of_second)
        )
    weight, first, second = (float(closed.first @ of) for of in (weight, first, second))

    v = closed.v()
    under_target = [closed.first]
    under_log = [closed.first]
    squared = [closed.first]  # E_b[W_{t−1}² 1{s_t = s}]
    for _ in steps:
        for of, flow in (
            (under_target, closed.target),
            (under_log, b),
            (squared, b * ratio**2),
        ):
            of.append(np.einsum("s,sa,sau->u", of[-1], flow, move))
    theta = [float(under_target[t] @ (closed.target * closed.reward).sum(-1)) for t in steps]
    of_start = float(closed.first @ v[0] ** 2 - j**2)
    dr = drl = mis = of_start
    for t in steps:
        discount = gamma ** (2 * t)
        following = move @ v[t + 1]
        noise = gamma**2 * (move @ v[t + 1] ** 2 - following**2)
        dr += discount * float(squared[t] @ (b * ratio**2 * noise).sum(-1))
        some = under_log[t] > 0
        rho = np.divide(under_target[t], under_log[t], out=np.zeros(len(b)), where=some)
        drl += discount * float((under_log[t] * rho**2) @ (b * ratio**2 * noise).sum(-1))
        gained = closed.reward + gamma * (following - under_target[t + 1] @ v[t + 1])
        spread = (b * ratio**2 * (gained**2 + noise)).sum(-1) - (closed.target * gained).sum(-1) ** 2
        mis += discount * float((under_log[t] * rho**2) @ spread)
    rewards = np.broadcast_to(closed.reward, (world.horizon, *closed.reward.shape))
    return {
        "tis": second - j**2,
        "wis": second - 2 * j * first + j**2 * weight,
        "pdis": variance(rewards),
        "wpdis": variance(rewards - np.array(theta)[:, None, None]),
        "dr": dr,
        "wdr": dr,
        "mis": mis,
        "drl": drl,
    }


def _with_end(world: World) -> World:
    """The same world with the state of having ended as one of its states."""
    states, actions = world.reward.shape
    move = np.zeros((states + 1, actions, states + 1))
    move[:states, :, :states] = world.move
    move[:, :, states] = 1.0 - move.sum(-1)
    policies = [np.vstack([of, np.full(actions, 1 / actions)]) for of in (world.behaviour, world.target)]
    reward = np.vstack([world.reward, np.zeros(actions)])
    return World(
        np.append(world.first, 0.0),
        move,
        reward,
        *policies,
        world.gamma,
        world.horizon,
        np.append(world.seen, world.seen.max() + 1),
    )


@dataclass(frozen=True)
class Bandit:
    """A bandit over a fixed set of contexts: features [x, d], two policies [x, a], mean rewards q [x, a].

    Rewards are q + `noise`·N(0, 1), or 0 and 1 with mean q where `noise` is None.
    """

    features: np.ndarray
    behaviour: np.ndarray
    target: np.ndarray
    q: np.ndarray
    noise: float | None

    @property
    def value(self) -> float:
        return float((self.target * self.q).sum(1).mean())

    @property
    def actions(self) -> int:
        return self.q.shape[1]

    def draw(self, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Context, action and reward of every row."""
        context = rng.integers(len(self.q), size=rows)
        action = drawn(self.behaviour[context], rng)
        return context, action, self.rewards(self.q[context, action], rng)

    def rewards(self, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.noise is None:
            return (rng.random(len(mean)) < mean).astype(float)
        return mean + self.noise * rng.standard_normal(len(mean))

    def ratio(self, context: np.ndarray, action: np.ndarray) -> np.ndarray:
        """π/π_b of the rows."""
        return self.target[context, action] / self.behaviour[context, action]


def drawn(probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One category a row of `probs` [rows, categories]."""
    cumulated = probs.cumsum(1)
    return (rng.random(len(probs))[:, None] * cumulated[:, -1:] > cumulated).sum(1)


def multiclass_bandit(
    rng: np.random.Generator, *, contexts: int = 2_000, classes: int = 10, dims: int = 16
) -> Bandit:
    """Classification as a bandit: the action is the class that is guessed, the reward 1 if it is right.

    Each class is a mixture of two Gaussians. The log mixes the guess of a classifier that sees half of the features
    (0.6) with chance, the target that of one that sees all (0.9).
    """
    centre = rng.normal(0, 1.2, (classes, 2, dims))

    def sample(rows: int) -> tuple[np.ndarray, np.ndarray]:
        label = rng.integers(classes, size=rows)
        return centre[label, rng.integers(2, size=rows)] + rng.standard_normal((rows, dims)), label

    train, train_label = sample(500)
    features, label = sample(contexts)
    policies = []
    for seen, trust in ((dims // 2, 0.6), (dims, 0.9)):
        model = MultinomialLogistic(classes).fit(train[:, :seen], train_label)
        guess = np.eye(classes)[model.predict_proba(features[:, :seen]).argmax(1)]
        policies.append(trust * guess + (1 - trust) / classes)
    return Bandit(features, *policies, np.eye(classes)[label], None)


def synthetic_bandit(
    rng: np.random.Generator,
    *,
    contexts: int = 500,
    actions: int = 10,
    dims: int = 5,
    behaviour: float = 0.0,
    target: float = 3.0,
    noise: float | None = None,
) -> Bandit:
    """Rewards logistic in x and x²; policies softmax in their means with the inverse temperatures named like them."""
    features = rng.standard_normal((contexts, dims))
    logit = features @ rng.standard_normal((dims, actions)) + 0.5 * (features**2) @ rng.standard_normal(
        (dims, actions)
    )
    q = special.expit(logit / np.sqrt(dims))
    policies = (special.softmax(of * q, axis=1) for of in (behaviour, target))
    return Bandit(features, *policies, q, noise)


@dataclass(frozen=True)
class EmbeddedBandit:
    """A bandit whose rewards depend on an embedding e ~ p(e|a) of the action: `worth` is q of each category, [x, d, e].

    `embedding_probs` [d, a, e]; the mean reward of a row is the sum of its categories' worth.
    """

    bandit: Bandit
    embedding_probs: np.ndarray
    worth: np.ndarray

    def draw(
        self, rows: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Context, action, embedding [rows, d] and reward."""
        context, action, _ = self.bandit.draw(rows, rng)
        embedding = np.stack([drawn(probs[action], rng) for probs in self.embedding_probs], axis=1)
        mean = self.worth[context[:, None], np.arange(embedding.shape[1]), embedding].sum(1)
        return context, action, embedding, self.bandit.rewards(mean, rng)


def embedded_bandit(
    rng: np.random.Generator,
    *,
    actions: int,
    contexts: int = 200,
    dims: int = 3,
    categories: int = 10,
    features: int = 5,
    noise: float = 2.5,
) -> EmbeddedBandit:
    """Many actions without a direct effect: log softmax(−q), target 0.05-greedy (Saito and Joachims 2022)."""
    x = rng.standard_normal((contexts, features))
    embedding_probs = special.softmax(rng.standard_normal((dims, actions, categories)), axis=-1)
    share = rng.dirichlet(np.ones(dims))
    worth = np.einsum("xf,dfe->xde", x, rng.standard_normal((dims, features, categories))) * share[:, None]
    q = np.einsum("dae,xde->xa", embedding_probs, worth)
    target = 0.95 * np.eye(actions)[q.argmax(1)] + 0.05 / actions
    bandit = Bandit(x, special.softmax(-q, axis=1), target, q, noise)
    return EmbeddedBandit(bandit, embedding_probs, worth)


def clustered_bandit(
    rng: np.random.Generator,
    *,
    direct: float,
    actions: int = 200,
    clusters: int = 20,
    contexts: int = 100,
    features: int = 4,
    noise: float = 1.0,
) -> tuple[Bandit, np.ndarray]:
    """q(x, a) = g(x, c(a)) + `direct`·h(x, a), g not linear in x and h linear; and the cluster of each action."""
    x = rng.standard_normal((contexts, features))
    cluster = rng.permutation(np.arange(actions) % clusters)
    of_cluster = np.sin(2 * x @ rng.standard_normal((features, clusters)) / np.sqrt(features))
    of_action = x @ rng.standard_normal((features, actions)) / np.sqrt(features)
    q = of_cluster[:, cluster] + direct * of_action
    target = 0.8 * np.eye(actions)[q.argmax(1)] + 0.2 / actions
    return Bandit(x, special.softmax(-0.5 * q, axis=1), target, q, noise), cluster


@dataclass(frozen=True)
class Slates:
    """Slates over a fixed set of contexts, positions chosen independently: two policies and `worth`, each [x, l, a].

    The reward is the sum of the worth of what is shown, plus `interaction` for every pair of neighbours that show the
    same action, plus noise of deviation 1.
    """

    behaviour: np.ndarray
    target: np.ndarray
    worth: np.ndarray
    interaction: float

    @property
    def value(self) -> float:
        together = (self.target[:, :-1] * self.target[:, 1:]).sum((1, 2))
        return float(((self.target * self.worth).sum((1, 2)) + self.interaction * together).mean())

    def draw(self, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """log π − log π_b of every position [rows, l], and the reward of the slate [rows]."""
        context = rng.integers(len(self.worth), size=rows)
        positions = self.worth.shape[1]
        slate = np.stack([drawn(self.behaviour[context, place], rng) for place in range(positions)], axis=1)
        at = context[:, None], np.arange(positions), slate
        reward = self.worth[at].sum(1) + self.interaction * (slate[:, :-1] == slate[:, 1:]).sum(1)
        log_ratio = np.log(self.target[at]) - np.log(self.behaviour[at])
        return log_ratio, reward + rng.standard_normal(rows)


def slates(
    rng: np.random.Generator,
    *,
    positions: int,
    actions: int = 6,
    contexts: int = 100,
    interaction: float = 0.0,
) -> Slates:
    """Uniform logging; the target shows the best action of each position with probability 0.8.

    Half of what an action is worth is the same at every position, so that the target often shows equal neighbours.
    """
    worth = rng.standard_normal((contexts, positions, actions)) + rng.standard_normal((contexts, 1, actions))
    worth /= np.sqrt(2)
    behaviour = np.full(worth.shape, 1 / actions)
    target = 0.8 * np.eye(actions)[worth.argmax(-1)] + 0.2 / actions
    return Slates(behaviour, target, worth, interaction)
