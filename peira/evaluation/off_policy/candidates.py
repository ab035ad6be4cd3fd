"""Candidates: policies that did not run, and what each of them would have done at every step of a log."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats

from peira.evaluation.off_policy.log import Log, check_probs
from peira.evaluation.off_policy.tables import (
    Fields,
    Names,
    Progress,
    table_batches,
    texts,
    vectors,
    whole_numbers,
)
from peira.policies.actor_critic import ActorCritic, CategoricalActorCritic

FIELDS = ("episode_id", "step", "action_probs", "action_mean", "action_std")
IMPOSSIBLE = 1e-6
"""Probability up to which a candidate does not choose an action: what single precision leaves of an exact 0."""
_ROWS_AT_ONCE = 65_536
_BYTES_AT_ONCE = 128 << 20

Policy = ActorCritic | Callable[[np.ndarray], np.ndarray] | np.ndarray | tuple[np.ndarray, np.ndarray]


class Support(NamedTuple):
    """How much of a candidate's probability, summed over the rows of a log, falls where the log has nothing to say.

    action        by action
    outside_set   on actions that could not be chosen, and the first row where it does (−1: nowhere)
    never_chosen  on actions that the log never chose anywhere
    impossible    on actions that the log's own policy gave no chance at the row; None where its chances are not known
    """

    action: Float[np.ndarray, " actions"]
    outside_set: float
    outside_row: int
    never_chosen: float
    impossible: float | None


@dataclass(frozen=True)
class Candidate:
    """What a candidate does at the points of a log: its rows, then its final observations.

    log_prob  log of the probability or density of the logged action; None where a candidate is deterministic among
              continuous actions, which have no density
    probs     probability of every action, [rows, actions]; None where they were not kept or actions are continuous
    mean, std Gaussian with independent dimensions, [rows, dims]; std 0 is a deterministic candidate
    final_…   the same at the log's final observations; None where it is not known
    support   where its probability falls; None where actions are continuous or `probs` is not known
    """

    name: str
    log_prob: Float[np.ndarray, " rows"] | None
    probs: Float[np.ndarray, "rows actions"] | None = None
    mean: Float[np.ndarray, "rows dims"] | None = None
    std: Float[np.ndarray, "rows dims"] | None = None
    final_probs: Float[np.ndarray, "finals actions"] | None = None
    final_mean: Float[np.ndarray, "finals dims"] | None = None
    final_std: Float[np.ndarray, "finals dims"] | None = None
    support: Support | None = None

    def log_ratio(self, log: Log) -> Float[np.ndarray, " rows"]:
        """log π(a|s) − log π_b(a|s) of every logged action; −∞ where the candidate would never have chosen it.

        Raises ValueError where the log does not say how likely its actions were, and where there is no density.
        """
        if log.log_propensity is None:
            raise ValueError(
                "propensity: the log has neither propensity nor behaviour_log_prob, which importance weights divide "
                "by; log them, or estimate them from the log"
            )
        if self.log_prob is None:
            raise ValueError(
                f"candidate {self.name} is deterministic among continuous actions and has no density; use the kernel "
                "estimators, or give action_std above 0"
            )
        return self.log_prob - log.log_propensity

    def point_probs(self, log: Log) -> Float[np.ndarray, "points actions"]:
        """Probabilities at the rows and at the final observations, as a fit asks for them.

        Raises ValueError where they are not known.
        """
        if self.probs is None:
            raise ValueError(
                f"candidate {self.name}: the probabilities of all actions are not known or were not kept"
            )
        if log.final_episode is None:
            return self.probs
        if self.final_probs is None:
            raise ValueError(_no_final(self.name, log))
        return np.concatenate([self.probs, self.final_probs])

    def point_gaussian(
        self, log: Log
    ) -> tuple[Float[np.ndarray, "points dims"], Float[np.ndarray, "points dims"]]:
        """Mean and deviation at the rows and at the final observations. Raises ValueError where they are not known."""
        if self.mean is None:
            raise ValueError(f"candidate {self.name} has no action_mean; its actions are not continuous")
        if log.final_episode is None:
            return self.mean, self.std
        if self.final_mean is None:
            raise ValueError(_no_final(self.name, log))
        return np.concatenate([self.mean, self.final_mean]), np.concatenate([self.std, self.final_std])


def read_candidate(
    path: str | os.PathLike,
    log: Log,
    *,
    name: str | None = None,
    columns: Names | None = None,
    format: str | None = None,
    progress: Progress | None = None,
    keep_probs: bool = True,
) -> Candidate:
    """The candidate in a Lance dataset, Parquet file or folder, JSON lines or CSV; named after the file.

    Each row has `episode_id`, `step` and `action_probs`, the probability of every action; for continuous actions
    `action_mean` and `action_std`. Rows may come in any order; those of episodes or steps that the log lacks are
    passed over. A row one step behind the last of a truncated episode is for its final observation. Without
    `keep_probs` only the probability of the logged action is kept: importance weights need no more.

    Raises ValueError, in one line, where a row of the log has none here or more than one, where probabilities do not
    sum to 1, and where the log holds an action that has no probability.
    """
    fields = Fields(FIELDS, columns)
    reading = _Reading(_stem(path) if name is None else name, log, fields, keep_probs)
    waiting: list[pa.Table] = []
    for table in table_batches(path, fields, format, progress):
        # Finding rows that lie in another order costs as much for few of them as for many.
        if waiting and (
            sum(part.nbytes for part in waiting) > _BYTES_AT_ONCE or table.schema != waiting[0].schema
        ):
            reading.add(pa.concat_tables(waiting))
            waiting = []
        waiting.append(table)
    if waiting:
        reading.add(pa.concat_tables(waiting))
    return reading.candidate()


def candidate_of(policy: Policy, log: Log, name: str) -> Candidate:
    """What a policy would have done at every point of the log.

    `policy`: an actor-critic of the library; a function from a batch of observations to their probabilities
    [batch, actions]; an array of probabilities [rows, actions]; or two arrays, mean and deviation [rows, dims]. Arrays
    may go on with the log's final observations. Whole-number observations reach an actor-critic as one-hot vectors.

    Raises ValueError for what is none of these, for language policies, whose actions are texts, and for shapes and
    probabilities that do not fit the log.
    """
    if isinstance(policy, np.ndarray):
        return _from_probs(policy, log, name)
    if isinstance(policy, tuple):
        return _from_gaussian(*policy, log, name)
    if isinstance(policy, ActorCritic):
        parts = _asked(lambda batch: _actor_critic(policy, batch, name), log, name)
        return _from_probs(parts[0], log, name) if len(parts) == 1 else _from_gaussian(*parts, log, name)
    if isinstance(policy, torch.nn.Module) or not callable(policy):
        raise ValueError(
            f"candidate {name}: expected an actor-critic, a function of observations or arrays, came "
            f"{type(policy).__name__}; language policies cannot be evaluated so, another network goes into a function"
        )

    def called(batch: np.ndarray) -> tuple[np.ndarray]:
        probs = np.asarray(policy(batch), np.float64)
        if probs.ndim != 2 or len(probs) != len(batch):
            raise ValueError(
                f"candidate {name}: expected probabilities of shape ({len(batch)}, actions) for a batch of "
                f"{len(batch)} observations, came {probs.shape}; the function is called with batches"
            )
        return (probs,)

    return _from_probs(*_asked(called, log, name), log, name)


def behaviour_candidate(log: Log, name: str = "behaviour") -> Candidate:
    """The policy that made the log: all of its importance weights are 1. Raises ValueError without propensities."""
    own = Candidate(name, log.log_propensity, probs=log.behaviour_probs)
    own.log_ratio(log)
    return own


def same_actions(log: Log, candidates: Sequence[Candidate]) -> Log:
    """The log with as many actions as its candidates have, which may know of some that it never tried.

    Raises ValueError where candidates differ in their number of actions.
    """
    width = {len(candidate.support.action): candidate.name for candidate in candidates if candidate.support}
    if len(width) > 1:
        (fewer, one), (more, other) = sorted(width.items())[:2]
        raise ValueError(
            f"action_probs: candidate {one} has {fewer} actions a row and candidate {other} {more}; "
            "give every candidate the same actions"
        )
    return log.with_actions(next(iter(width))) if width else log


class _Tally:
    """Sums up where a candidate's probability falls."""

    def __init__(self, log: Log, width: int):
        self.log = log
        self.action = np.zeros(width)
        self.outside = self.impossible = 0.0
        self.outside_row = log.rows

    def add(self, rows: Int[np.ndarray, " some"], probs: Float[np.ndarray, "some actions"]) -> None:
        width = len(self.action)
        self.action += probs.sum(axis=0)
        if self.log.action_set is not None:
            outside = np.where(_as_wide(self.log.action_set[rows], width), 0.0, probs).sum(axis=1)
            self.outside += float(outside.sum())
            if (beyond := outside > IMPOSSIBLE).any():
                self.outside_row = min(self.outside_row, int(rows[beyond].min()))
        if self.log.behaviour_probs is not None:
            self.impossible += float(probs[~_as_wide(self.log.behaviour_probs[rows] > 0, width)].sum())

    def support(self) -> Support:
        never = np.ones(len(self.action), bool)
        never[np.flatnonzero(self.log.action_counts)] = False
        return Support(
            self.action,
            self.outside,
            self.outside_row if self.outside_row < self.log.rows else -1,
            float(self.action[never].sum()),
            None if self.log.behaviour_probs is None else self.impossible,
        )


class _Reading:
    """Puts the rows of a candidate's table where the log has them, a batch at a time."""

    def __init__(self, name: str, log: Log, fields: Fields, keep_probs: bool):
        self.name, self.log, self.fields, self.keep_probs = name, log, fields, keep_probs
        self.one_step = bool((log.length == 1).all())
        self.seen = np.zeros(log.points, bool)
        self.log_prob = np.zeros(log.rows)
        self.kept: dict[str, np.ndarray] = {}
        self.tally: _Tally | None = None
        self.next = 0

    def add(self, table: pa.Table) -> None:
        points = self._points(table)
        known = np.flatnonzero(points >= 0)
        points = points[known]
        in_order = np.sort(points)
        twice = in_order[1:][in_order[1:] == in_order[:-1]]
        if not len(twice):
            twice = points[self.seen[points]]
        if len(twice):
            raise ValueError(
                f"step: candidate {self.name} has {self._place(twice[0])} twice; give every step once"
            )
        self.seen[points] = True
        if len(known) < table.num_rows:
            table = table.take(pa.array(known))
        probs = self.fields.of(table, "action_probs")
        if probs is not None:
            self._add_probs(points, probs)
            return
        mean, std = self.fields.of(table, "action_mean"), self.fields.of(table, "action_std")
        if mean is None or std is None:
            raise ValueError(
                f"action_probs: candidate {self.name} has no such column; give the probability of every action, or "
                "action_mean and action_std where actions are continuous"
            )
        self._add_gaussian(points, mean, std)

    def candidate(self) -> Candidate:
        rows = self.log.rows
        lacking = np.flatnonzero(~self.seen[:rows])
        if len(lacking):
            raise ValueError(
                f"candidate {self.name}: no row for {self.log.place(int(lacking[0]))}, {len(lacking)} of {rows} rows "
                "are missing; give one for every step of the log"
            )
        finals = bool(self.seen[rows:].all()) and self.log.points > rows
        here = {name: values[:rows] for name, values in self.kept.items()}
        final = {f"final_{name}": values[rows:] for name, values in self.kept.items()} if finals else {}
        if self.tally is None:
            log_prob = _log_density(self.log.action, here["mean"], here["std"])
            return Candidate(self.name, log_prob, **here, **final)
        return Candidate(self.name, self.log_prob, support=self.tally.support(), **here, **final)

    def _points(self, table: pa.Table) -> Int[np.ndarray, " batch"]:
        """Where in the log each row of the table belongs, −1 for nowhere."""
        log, count = self.log, table.num_rows
        ids, step = self.fields.of(table, "episode_id"), self.fields.of(table, "step")
        for name, column in (("episode_id", ids), ("step", step)):
            if column is None and not self.one_step:
                raise ValueError(
                    f"{name}: candidate {self.name} has no such column; a row is found by episode and step"
                )
        step = np.zeros(count, np.int64) if step is None else whole_numbers(step, "step")
        following = np.arange(self.next, min(self.next + count, log.rows))
        if ids is None:
            self.next += count
            return np.pad(following, (0, count - len(following)), constant_values=-1)
        ids = texts(ids, "episode_id")
        if len(following) == count:
            # Tables are mostly in the order of their log: comparing is cheaper than looking up.
            episode = np.searchsorted(log.offset, following, side="right") - 1
            expected = log.episode_id.take(pa.array(episode))
            if (step == following - log.offset[episode]).all() and pc.all(pc.equal(ids, expected)).as_py():
                self.next += count
                return following
        episode = pc.index_in(ids, value_set=log.episode_id).fill_null(-1).to_numpy(zero_copy_only=False)
        length = log.length[episode]
        points = np.where((episode >= 0) & (step >= 0) & (step < length), log.offset[episode] + step, -1)
        if log.final_episode is not None:
            final = np.full(log.episodes, -1)
            final[log.final_episode] = np.arange(log.rows, log.points)
            points = np.where((episode >= 0) & (step == length), final[episode], points)
        return points

    def _place(self, point: int | np.integer) -> str:
        if point < self.log.rows:
            return self.log.place(int(point))
        episode = int(self.log.final_episode[point - self.log.rows])
        return f"episode {self.log.episode_id[episode]}, step {self.log.length[episode]}"

    def _add_probs(self, points: Int[np.ndarray, " batch"], column: pa.Array) -> None:
        field = f"candidate {self.name}: action_probs"

        def place(row: int) -> str:
            return self._place(points[row])

        if self.log.actions is None:
            raise ValueError(f"{field}: the log's actions are vectors; give action_mean and action_std")
        probs = vectors(column, field, place)
        if not len(probs):
            return
        if self.tally is None:
            _check_actions(self.name, self.log, probs.shape[1])
            self.tally = _Tally(self.log, probs.shape[1])
        self._check_width(field, probs, len(self.tally.action))
        check_probs(field, probs, place)
        inside = points < self.log.rows
        rows, of_rows = points[inside], probs[inside]
        self.tally.add(rows, of_rows)
        with np.errstate(divide="ignore"):
            self.log_prob[rows] = np.log(of_rows[np.arange(len(rows)), self.log.action[rows]])
        if self.keep_probs:
            self._keep("probs", points, probs)

    def _add_gaussian(self, points: Int[np.ndarray, " batch"], mean: pa.Array, std: pa.Array) -> None:
        if self.log.actions is not None:
            raise ValueError(
                f"candidate {self.name}: action_mean: the log's actions are numbers 0 … {self.log.actions - 1}; give "
                "action_probs"
            )
        dims = self.log.action.shape[1]
        for name, column in (("mean", mean), ("std", std)):
            field = f"candidate {self.name}: action_{name}"
            values = vectors(column, field, lambda row: self._place(points[row]))
            self._check_width(field, values, dims)
            legal = np.isfinite(values).all(axis=1) & ((values >= 0).all(axis=1) | (name == "mean"))
            if not legal.all():
                row = int(np.argmin(legal))
                raise ValueError(
                    f"{field}: expected finite numbers{', none below 0' if name == 'std' else ''}, came "
                    f"{values[row].tolist()} in {self._place(points[row])}; a deterministic action has deviation 0"
                )
            self._keep(name, points, values)

    def _check_width(self, field: str, values: np.ndarray, width: int) -> None:
        if values.shape[1] != width:
            raise ValueError(f"{field}: expected {width} numbers a row, came {values.shape[1]}")

    def _keep(self, name: str, points: np.ndarray, values: np.ndarray) -> None:
        if name not in self.kept:
            self.kept[name] = np.full((self.log.points, values.shape[1]), np.nan)
        self.kept[name][points] = values


def _from_probs(probs: Float[np.ndarray, "given actions"], log: Log, name: str) -> Candidate:
    if log.actions is None:
        raise ValueError(
            f"candidate {name}: the log's actions are vectors; give mean and deviation, not probabilities"
        )
    probs = np.asarray(probs, np.float64)
    _check_points(name, probs, log, "actions")
    field = f"candidate {name}: action_probs"
    _check_actions(name, log, probs.shape[1])
    rows = log.rows
    check_probs(field, probs[:rows], log.place)
    tally = _Tally(log, probs.shape[1])
    tally.add(np.arange(rows), probs[:rows])
    with np.errstate(divide="ignore"):
        log_prob = np.log(probs[np.arange(rows), log.action])
    final = None
    if len(probs) > rows:
        final = probs[rows:]
        check_probs(field, final, lambda row: f"final observation {row}")
    return Candidate(name, log_prob, probs[:rows], final_probs=final, support=tally.support())


def _from_gaussian(
    mean: Float[np.ndarray, "given dims"], std: Float[np.ndarray, "given dims"], log: Log, name: str
) -> Candidate:
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if log.actions is not None:
        raise ValueError(
            f"candidate {name}: the log's actions are numbers 0 … {log.actions - 1}; give their probabilities"
        )
    for values in (mean, std):
        _check_points(name, values, log, "dims")
    if mean.shape != (len(std), log.action.shape[1]) or mean.shape != std.shape:
        raise ValueError(
            f"candidate {name}: expected mean and deviation for {log.action.shape[1]} action dimensions, came shapes "
            f"{mean.shape} and {std.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()):
        raise ValueError(f"candidate {name}: expected finite means and deviations of at least 0, came others")
    rows = log.rows
    log_prob = _log_density(log.action, mean[:rows], std[:rows])
    final = {"final_mean": mean[rows:], "final_std": std[rows:]} if len(mean) > rows else {}
    return Candidate(name, log_prob, mean=mean[:rows], std=std[:rows], **final)


def _asked(function: Callable[[np.ndarray], tuple[np.ndarray, ...]], log: Log, name: str) -> list[np.ndarray]:
    """What the function says of the observations of all points, asked in batches."""
    if log.observation is None:
        raise ValueError(f"observation: {log.no_observation}, and candidate {name} acts on observations")
    parts = []
    for observation in (log.observation, log.final_observation):
        for start in range(0, 0 if observation is None else len(observation), _ROWS_AT_ONCE):
            parts.append(function(observation[start : start + _ROWS_AT_ONCE]))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _actor_critic(policy: ActorCritic, observation: np.ndarray, name: str) -> tuple[np.ndarray, ...]:
    if observation.ndim == 1:
        if observation.min() < 0 or observation.max() >= policy.observation_size:
            raise ValueError(
                f"observation: expected states 0 … {policy.observation_size - 1} for candidate {name}, came "
                f"{observation.min()} … {observation.max()}"
            )
        observation = np.eye(policy.observation_size)[observation]
    elif observation.shape[1] != policy.observation_size:
        raise ValueError(
            f"observation: candidate {name} reads {policy.observation_size} numbers, the log has {observation.shape[1]}"
        )
    like = next(policy.parameters())
    with torch.no_grad():
        of_policy = policy.distribution(torch.as_tensor(observation).to(like))
        if isinstance(policy, CategoricalActorCritic):
            # In double precision, so that probabilities sum to 1 in it.
            return (of_policy.logits.double().softmax(-1).cpu().numpy(),)
        return of_policy.mean.double().cpu().numpy(), of_policy.stddev.double().cpu().numpy()


def _log_density(
    action: Float[np.ndarray, "rows dims"],
    mean: Float[np.ndarray, "rows dims"],
    std: Float[np.ndarray, "rows dims"],
) -> Float[np.ndarray, " rows"] | None:
    if (std == 0).any():
        return None
    return stats.norm.logpdf(action, mean, std).sum(axis=1)


def _check_points(name: str, values: np.ndarray, log: Log, columns: str) -> None:
    if values.ndim != 2 or len(values) not in (log.rows, log.points):
        raise ValueError(
            f"candidate {name}: expected shape ({log.rows}, {columns}), or ({log.points}, {columns}) with the final "
            f"observations, came {values.shape}"
        )


def _check_actions(name: str, log: Log, width: int) -> None:
    """The candidate may know of more actions than the log has tried, not of fewer."""
    beyond = log.action >= width
    if beyond.any():
        row = int(np.argmax(beyond))
        raise ValueError(
            f"action: {log.action[row]} in {log.place(row)} is out of range, candidate {name} has probabilities of "
            f"actions 0 … {width - 1}; give one for every action"
        )
    if width < log.actions:
        raise ValueError(
            f"candidate {name}: action_probs: expected {log.actions} probabilities a row, one for every action of the "
            f"log, came {width}"
        )


def _as_wide(columns: Bool[np.ndarray, "rows some"], width: int) -> Bool[np.ndarray, "rows actions"]:
    """The log's columns, False for actions that only the candidate knows of."""
    return np.pad(columns, ((0, 0), (0, width - columns.shape[1])))


def _no_final(name: str, log: Log) -> str:
    episode = int(log.final_episode[0])
    return (
        f"candidate {name}: what it does at final observations is not known; give a row for step "
        f"{log.length[episode]} of episode {log.episode_id[episode]} and likewise for the other truncated episodes"
    )


def _stem(path: str | os.PathLike) -> str:
    name = Path(os.fspath(path).rstrip("/")).name
    for suffix in (".gz", ".jsonl", ".ndjson", ".csv", ".parquet", ".lance"):
        name = name.removesuffix(suffix)
    return name
