"""A log of a policy that ran: what it saw, did and got, and how likely it was to do so; read once, kept as arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, Shaped

from peira.evaluation.off_policy.steps import FIELDS, StepsReader
from peira.evaluation.off_policy.tables import Fields, Names, Progress, table_batches
from peira.evaluation.off_policy.transitions import TERMINATED, TRUNCATED, Transitions
from peira.evaluation.off_policy.weights import Block

CELLS = 1 << 22
"""Steps, padding included, of one block of episodes: 32 MiB an array."""
SUM_TOLERANCE = 1e-5
"""How far probabilities may miss 1: what single precision leaves. Errors of a step multiply over an episode."""
_AGREEMENT = 1e-4


@dataclass(frozen=True)
class Log:
    """Whole episodes, one after another; a row is a step.

      episode_id         Arrow text, in the order of the log
      offset             first row of each episode, and the number of rows at the end
      action             numbers 0 … actions − 1; or vectors, where `actions` is None
      reward             as it was given
      truncated          episodes that were cut (a time limit, the end of the recording); all others terminated
      log_propensity     log of the probability, or density, of the logged action under the policy that chose it
      observation        vectors, or one whole number a row (a state); None for the reason `no_observation`
      final_observation  what the last step of a truncated episode led to, for those of `final_episode`
      action_set         which actions could be chosen; None where all could, always
      behaviour_probs    the probability of every action under the policy that chose
      created_at         seconds; when each episode began
      left_out           number of episodes that were left out because their world failed

    Raises ValueError, which names episode and step, for a reward, observation or continuous action that is not finite,
    an action out of range or outside of its set, propensities that are none, and where there is no step at all.
    """

    episode_id: pa.LargeStringArray
    offset: Int[np.ndarray, " bounds"]
    action: Int[np.ndarray, " rows"] | Float[np.ndarray, "rows dims"]
    reward: Float[np.ndarray, " rows"]
    truncated: Bool[np.ndarray, " episodes"]
    actions: int | None
    log_propensity: Float[np.ndarray, " rows"] | None = None
    observation: Float[np.ndarray, "rows features"] | Int[np.ndarray, " rows"] | None = None
    final_observation: Float[np.ndarray, "finals features"] | Int[np.ndarray, " finals"] | None = None
    final_episode: Int[np.ndarray, " finals"] | None = None
    action_set: Bool[np.ndarray, "rows actions"] | None = None
    behaviour_probs: Float[np.ndarray, "rows actions"] | None = None
    created_at: Float[np.ndarray, " episodes"] | None = None
    left_out: int = 0
    no_observation: str = "the log has no column of that name"

    def __post_init__(self) -> None:
        if not len(self.reward):
            raise ValueError("log: holds no step; give at least one episode")
        self._check(
            np.isfinite(self.reward), "reward", self.reward, "expected a finite number", "find its source"
        )
        if self.actions is None:
            finite = np.isfinite(self.action).all(axis=1)
            self._check(finite, "action", self.action, "expected finite numbers", "find their source")
        else:
            expected = f"expected one of 0 … {self.actions - 1}"
            known = (self.action >= 0) & (self.action < self.actions)
            self._check(
                known, "action", self.action, expected, "number the actions from 0 and say how many there are"
            )
        if self.observation is not None and self.observation.ndim == 2:
            finite = np.isfinite(self.observation).all(axis=1)
            self._check(
                finite, "observation", self.observation, "expected finite numbers", "find their source"
            )
        if self.final_observation is not None and self.final_observation.ndim == 2:
            finite = np.isfinite(self.final_observation).all(axis=1)
            if not finite.all():
                episode = self.episode_id[int(self.final_episode[np.argmin(finite)])]
                raise ValueError(
                    f"final_observation: expected finite numbers in episode {episode}; find their source"
                )
        for name, columns in (("action_set", self.action_set), ("behaviour_probs", self.behaviour_probs)):
            if columns is not None and columns.shape[1] != self.actions:
                expected = "vectors" if self.actions is None else self.actions
                raise ValueError(
                    f"{name}: speaks of {columns.shape[1]} actions, expected {expected}; say how many there are"
                )
        if self.action_set is not None:
            inside = self.action_set[np.arange(self.rows), self.action]
            self._check(
                inside,
                "action_set",
                self.action,
                "expected a set that holds the action that was chosen",
                "log both alike",
            )
        if self.behaviour_probs is not None:
            check_probs("behaviour_probs", self.behaviour_probs, self.place)
        if self.log_propensity is not None:
            given = self.log_propensity
            legal = np.isfinite(given) & ((given <= SUM_TOLERANCE) | (self.actions is None))
            expected = "expected the finite logarithm of a probability or density"
            self._check(legal, "log_propensity", given, expected, "a probability is above 0 and at most 1")

    @classmethod
    def from_arrays(
        cls,
        *,
        action: np.ndarray,
        reward: np.ndarray,
        length: np.ndarray,
        truncated: np.ndarray | None = None,
        propensity: np.ndarray | None = None,
        log_propensity: np.ndarray | None = None,
        behaviour_probs: np.ndarray | None = None,
        observation: np.ndarray | None = None,
        final_observation: np.ndarray | None = None,
        action_set: np.ndarray | None = None,
        actions: int | None = None,
        episode_id: Sequence[str] | None = None,
        created_at: np.ndarray | None = None,
    ) -> Log:
        """A log from rows laid flat: episode i has `length[i]` of them, in the order of their steps.

        Whole-number actions are numbers of actions, of which there are `actions` (one more than the greatest, if not
        given); other actions are vectors. `final_observation` has one entry for each truncated episode. Episodes are
        named 0, 1, … without `episode_id`. Raises ValueError as `Log` does, and where lengths do not add up.
        """
        action, reward, length = (
            np.asarray(action),
            np.asarray(reward, np.float64),
            np.asarray(length, np.int64),
        )
        rows, episodes = len(reward), len(length)
        if length.sum() != rows or len(action) != rows or not (length > 0).all():
            raise ValueError(
                f"length: expected positive lengths that add up to the rows, got a sum of {length.sum()} for "
                f"{rows} rewards and {len(action)} actions"
            )
        truncated = np.zeros(episodes, bool) if truncated is None else np.asarray(truncated, bool)
        final_episode = None
        if final_observation is not None:
            final_episode = np.flatnonzero(truncated)
            final_observation = _observations(np.asarray(final_observation))
            if len(final_observation) != len(final_episode):
                raise ValueError(
                    f"final_observation: expected one for each of {len(final_episode)} truncated episodes, got "
                    f"{len(final_observation)}"
                )
        names = pa.array(np.arange(episodes) if episode_id is None else episode_id).cast(pa.large_string())
        if episode_id is not None and len(names.unique()) < len(names):
            twice = next(of["values"] for of in names.value_counts().to_pylist() if of["counts"] > 1)
            raise ValueError(
                f"episode_id: {twice} comes more than once; give every episode a name of its own"
            )
        discrete = action.dtype.kind in "iub"
        if behaviour_probs is not None:
            behaviour_probs = np.asarray(behaviour_probs, np.float64)
        log = cls(
            episode_id=names,
            offset=np.concatenate([[0], np.cumsum(length)]),
            action=action.astype(np.int64) if discrete else np.asarray(action, np.float64).reshape(rows, -1),
            reward=reward,
            truncated=truncated,
            actions=_number_of_actions(actions, action, action_set, behaviour_probs) if discrete else None,
            observation=None if observation is None else _observations(np.asarray(observation)),
            final_observation=final_observation,
            final_episode=final_episode,
            action_set=None if action_set is None else np.asarray(action_set, bool),
            behaviour_probs=behaviour_probs,
            created_at=None if created_at is None else np.asarray(created_at, np.float64),
        )
        return _with_propensity(log, propensity, log_propensity)

    # -- what there is -------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        return len(self.reward)

    @property
    def episodes(self) -> int:
        return len(self.truncated)

    @property
    def terminated(self) -> Bool[np.ndarray, " episodes"]:
        """Episodes that truly ended: nothing more was to be had."""
        return ~self.truncated

    @property
    def length(self) -> Int[np.ndarray, " episodes"]:
        """Steps of each episode."""
        return np.diff(self.offset)

    @property
    def points(self) -> int:
        """Where a policy can be asked: the rows, then the final observations."""
        return self.rows + (0 if self.final_episode is None else len(self.final_episode))

    @property
    def row_episode(self) -> Int[np.ndarray, " rows"]:
        """Number of the episode of each row."""
        return np.repeat(np.arange(self.episodes), self.length)

    @property
    def step(self) -> Int[np.ndarray, " rows"]:
        """Step of each row within its episode."""
        return np.arange(self.rows) - np.repeat(self.offset[:-1], self.length)

    def place(self, row: int) -> str:
        """How errors name a row."""
        episode = int(np.searchsorted(self.offset, row, side="right")) - 1
        return f"episode {self.episode_id[episode]}, step {row - self.offset[episode]}"

    def returns(self, gamma: float) -> Float[np.ndarray, " episodes"]:
        """Σ_t γᵗ r_t of each episode; the first reward is not discounted."""
        return np.add.reduceat(gamma**self.step * self.reward, self.offset[:-1])

    def with_actions(self, actions: int) -> Log:
        """The same log where there are `actions` actions, some of which it may never have tried.

        Raises ValueError where it knows of more, where its own policy is known to have had another number, and where
        actions are vectors.
        """
        if self.actions is None or actions < self.actions:
            raise ValueError(f"actions: expected at least {self.actions}, what the log has, came {actions}")
        if self.behaviour_probs is not None and actions != self.actions:
            raise ValueError(
                f"behaviour_probs: the log's own policy had {self.actions} actions, not {actions}"
            )
        sets = self.action_set
        if sets is not None:
            sets = np.pad(sets, ((0, 0), (0, actions - self.actions)))
        return replace(self, actions=actions, action_set=sets)

    # -- how it is laid out for estimators -----------------------------------------------------------------

    def pieces(self, max_cells: int = CELLS) -> list[Int[np.ndarray, " piece"]]:
        """The episodes in groups of similar length; a group, padded to its longest, has at most `max_cells` steps.

        One episode that is longer than that is a group of its own.
        """
        order = np.argsort(self.length, kind="stable")
        length = self.length[order]
        groups, start = [], 0
        while start < len(order):
            ahead = length[start : start + max_cells]
            # Padded cells of the first 1, 2, … episodes from here on: they rise.
            fitting = int(np.searchsorted(ahead * np.arange(1, len(ahead) + 1), max_cells, side="right"))
            stop = start + max(fitting, 1)
            groups.append(order[start:stop])
            start = stop
        return groups

    def padded(
        self, values: Shaped[np.ndarray, " rows"], episodes: Int[np.ndarray, " piece"]
    ) -> Shaped[np.ndarray, "piece steps"]:
        """One value a row, laid out as [episodes, steps] for these episodes; 0 after an episode's end."""
        length = self.length[episodes]
        steps = np.arange(length.max())
        rows = self.offset[episodes][:, None] + steps
        if (length == len(steps)).all():
            return values[rows]
        alive = steps < length[:, None]
        laid = np.zeros(alive.shape, values.dtype)
        laid[alive] = values[rows[alive]]
        return laid

    def block(self, log_ratio: Float[np.ndarray, " rows"], episodes: Int[np.ndarray, " piece"]) -> Block:
        """Rewards and log ratios of these episodes."""
        return Block(
            self.padded(self.reward, episodes), self.padded(log_ratio, episodes), self.length[episodes]
        )

    def blocks(
        self, log_ratio: Float[np.ndarray, " rows"], max_cells: int = CELLS
    ) -> Iterator[tuple[Int[np.ndarray, " piece"], Block]]:
        """Each of the `pieces` with its block, so that no more than `max_cells` padded steps are held at a time."""
        for episodes in self.pieces(max_cells):
            yield episodes, self.block(log_ratio, episodes)

    def split(self, folds: int, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
        """A fold for every row, whole episodes in folds of equal size (± 1), drawn by `rng`.

        Which fold an episode falls into depends on its name, not on where it lies in the log. Raises ValueError for
        fewer than 2 folds and for more folds than episodes.
        """
        if not 2 <= folds <= self.episodes:
            raise ValueError(f"folds: expected 2 to {self.episodes} (the number of episodes), got {folds}")
        fold = np.empty(self.episodes, np.int64)
        fold[pc.array_sort_indices(self.episode_id).to_numpy()] = rng.permutation(self.episodes) % folds
        return np.repeat(fold, self.length)

    def transitions(
        self, fold: Int[np.ndarray, " rows"] | None = None, *, one_hot: bool = False
    ) -> Transitions:
        """The log laid flat for what is fitted to it.

        States are numbered 0, 1, … in the order of their own numbers; `one_hot` makes them vectors. Raises ValueError
        where the observations are no numbers.
        """
        if self.observation is None:
            raise ValueError(
                f"observation: {self.no_observation}; what is fitted needs numbers: a vector or the number of a state"
            )
        observation = self.observation
        if self.final_observation is not None:
            observation = np.concatenate([observation, self.final_observation])
        if observation.ndim == 1:
            states, observation = np.unique(observation, return_inverse=True)
            if one_hot:
                observation = np.eye(len(states))[observation]
        next_row = np.arange(1, self.rows + 1)
        next_row[self.offset[1:] - 1] = np.where(self.truncated, TRUNCATED, TERMINATED)
        if self.final_episode is not None:
            next_row[self.offset[self.final_episode + 1] - 1] = np.arange(self.rows, self.points)
        return Transitions(observation, self.action, self.reward, next_row, fold)

    @cached_property
    def action_counts(self) -> Int[np.ndarray, " actions"]:
        """How often each action was chosen."""
        return np.bincount(self.action, minlength=self.actions)

    def _check(
        self, legal: Bool[np.ndarray, " rows"], field: str, values: np.ndarray, expected: str, advice: str
    ) -> None:
        if not legal.all():
            row = int(np.argmin(legal))
            raise ValueError(f"{field}: {expected}, came {_seen(values[row])} in {self.place(row)}; {advice}")


def read_log(
    path: str | os.PathLike,
    columns: Names | None = None,
    format: str | None = None,
    progress: Progress | None = None,
    *,
    observations: bool = True,
    actions: int | None = None,
    one_step: bool = False,
) -> Log:
    """The log in a Lance dataset (or a run's folder), Parquet file or folder, JSON lines, CSV or Minari data set.

    `columns` maps the fields of a step to the columns of a foreign file: {"propensity": "pscore"}, and a vector that
    lies in several columns to their names. Rows may come in any order. `actions` says how many actions there are if
    the log may not have tried the last of them. Without `observations` they are not read: importance weighting needs
    none. With `one_step` every row is a decision of its own (a bandit's log): `step`, `terminated` and `truncated` are
    not read, and rows are numbered where there is no `episode_id`.

    Either `propensity` or `behaviour_log_prob` says how likely the logged action was; `behaviour_probs` (all actions)
    may take their place. Neither is needed: then the log has no `log_propensity`. In `action_set`, a list of numbers of
    actions or of one flag for each, null means all of them. Episodes that ended in `error` are left out and counted.

    Raises ValueError, in one line, for whatever is missing or illegal; see `Log`.
    """
    skipped = ["observation", "final_observation"] if not observations else []
    skipped += ["step", "terminated", "truncated"] if one_step else []
    fields = Fields(FIELDS, columns, skipped)
    reader = StepsReader(fields, one_step, observations)
    for table in table_batches(path, fields, format, progress):
        if table.num_rows:
            reader.add(table)
    if not reader.rows:
        raise ValueError(f"log: {os.fspath(path)} holds no step; give at least one episode")
    read = reader.steps()
    number, sets = None, read.action_set
    if read.action.dtype.kind == "i":
        number = _number_of_actions(actions, read.action, sets, read.behaviour_probs)
    elif actions is not None:
        raise ValueError(f"actions: the log's actions are vectors and have no number, came {actions}")
    if number is not None and sets is not None:
        everything = ~sets.any(axis=1)
        sets = np.pad(sets, ((0, 0), (0, max(0, number - sets.shape[1]))))
        sets[everything] = True
        sets = None if sets.all() else sets
    log = Log(
        episode_id=read.episode_id,
        offset=read.offset,
        action=read.action,
        reward=read.reward,
        truncated=read.truncated,
        actions=number,
        observation=read.observation,
        final_observation=read.final_observation,
        final_episode=read.final_episode,
        action_set=sets,
        behaviour_probs=read.behaviour_probs,
        created_at=read.created_at,
        left_out=read.left_out,
        no_observation=read.no_observation,
    )
    return _with_propensity(log, read.propensity, read.behaviour_log_prob)


def check_probs(field: str, probs: Float[np.ndarray, "rows actions"], place: Callable[[int], str]) -> None:
    """Raise ValueError unless each row holds probabilities that sum to one."""
    legal = (probs >= 0).all(axis=1)
    if not legal.all():
        row = int(np.argmin(legal))
        value = probs[row][~(probs[row] >= 0)][0]
        raise ValueError(
            f"{field}: expected probabilities, came {value:g} in {place(row)}; none is below 0 or missing"
        )
    total = probs.sum(axis=1)
    legal = np.abs(total - 1) <= SUM_TOLERANCE
    if not legal.all():
        row = int(np.argmin(legal))
        raise ValueError(
            f"{field}: expected probabilities that sum to 1, came a sum of {total[row]:.6g} in {place(row)}; "
            "give one for every action, with at least six digits"
        )


def _with_propensity(log: Log, propensity: np.ndarray | None, log_prob: np.ndarray | None) -> Log:
    """The log with what is known of the probability of its actions; what is said twice must agree."""
    said: dict[str, np.ndarray] = {}
    if propensity is not None and not np.isnan(propensity).all():
        propensity = np.asarray(propensity, np.float64)
        _check_given("propensity", propensity, log)
        legal = (propensity > 0) & (propensity < np.inf)
        expected = "expected a density above 0"
        if log.actions is not None:
            legal &= propensity <= 1 + SUM_TOLERANCE
            expected = "expected a probability above 0 and at most 1"
        advice = "an action that was chosen had a chance to be: log that chance, or leave the column out to estimate it"
        log._check(legal, "propensity", propensity, expected, advice)
        said["propensity"] = np.log(propensity)
    if log_prob is not None and not np.isnan(log_prob).all():
        log_prob = np.asarray(log_prob, np.float64)
        _check_given("behaviour_log_prob", log_prob, log)
        said["behaviour_log_prob"] = log_prob
    if log.behaviour_probs is not None:
        chosen = log.behaviour_probs[np.arange(log.rows), log.action]
        advice = "an action that was chosen had a chance to be: log that chance"
        log._check(
            chosen > 0, "behaviour_probs", chosen, "expected a chance of the logged action above 0", advice
        )
        said["behaviour_probs"] = np.log(chosen)
    if not said:
        return log
    first, *others = said
    for other in others:
        legal = np.abs(said[first] - said[other]) <= _AGREEMENT
        if not legal.all():
            row = int(np.argmin(legal))
            raise ValueError(
                f"{first}: {np.exp(said[first][row]):.6g} in {log.place(row)}, where {other} says "
                f"{np.exp(said[other][row]):.6g}; leave one of the two columns out"
            )
    return replace(log, log_propensity=said[first])


def _check_given(field: str, values: np.ndarray, log: Log) -> None:
    missing = np.isnan(values)
    if missing.any():
        row = int(np.argmax(missing))
        raise ValueError(
            f"{field}: missing in {log.place(row)}; every logged action needs it, or leave the whole column out to "
            "estimate it"
        )


def _number_of_actions(
    actions: int | None, action: np.ndarray, sets: np.ndarray | None, probs: np.ndarray | None
) -> int:
    """As many as are said to be; else as many as any column speaks of."""
    if actions is not None:
        return actions
    if probs is not None:
        return probs.shape[1]
    return max(int(action.max(initial=0)) + 1, 0 if sets is None else sets.shape[1])


def _observations(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "iub" and values.ndim == 1:
        return values.astype(np.int64)
    return np.asarray(values, np.float64).reshape(len(values), -1)


def _seen(value: np.ndarray | np.generic) -> str:
    return (
        f"{value:.6g}"
        if np.ndim(value) == 0
        else np.array2string(value, precision=6, threshold=8, separator=", ")
    )
