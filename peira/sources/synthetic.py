"""Experience that a model made up: its transitions, where they come from, and how they enter a store or a batch.

No policy chose these steps with a known probability, so that none is ever written beside them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from peira.experience.batch import SOURCE_CODES
from peira.experience.episode import to_arrow
from peira.experience.schema import TIMESTAMP_TYPE, VOCABULARY, Source, source_array
from peira.experience.transitions import TransitionLog, concatenate
from peira.policies.continuous import DeterministicActor

NO_VERSION = -1
"""Policy version of rows that no version was asked for."""


@runtime_checkable
class TargetPolicy(Protocol):
    """What a model is guided by or rolled out under: observations and actions in the environment's units.

    `log_prob` must be differentiable in the action (and in the observation where states are guided too). An actor that
    has none is taken for deterministic: N(mode, 1) in units of half the range of the action (``pgd.md`` 2.4).
    """

    def mode(self, observation: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch act"]: ...


@runtime_checkable
class ExperienceModel(Protocol):
    """A source of invented experience: diffusion over windows or transitions, or an ensemble rolled out.

    A set is made in parts, so that a run can be taken up again between two of them.
    """

    @property
    def parts(self) -> list[int]:
        """Sizes of the parts of a set."""
        ...

    def part(self, size: int, policy: TargetPolicy | None, generator: torch.Generator) -> Tensor:
        """One part, for the data's own behaviour where the policy is None and the model can."""
        ...

    def assemble(self, parts: Sequence[Tensor], policy: TargetPolicy | None, seed: int) -> SyntheticSet:
        """The transitions of all parts."""
        ...


def invent(model: ExperienceModel, policy: TargetPolicy | None, generator: torch.Generator) -> SyntheticSet:
    """One set of transitions for this policy."""
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    generator = torch.Generator().manual_seed(seed)
    return model.assemble([model.part(size, policy, generator) for size in model.parts], policy, seed)


def equal_parts(n: int, most: int) -> list[int]:
    """`n` as a sum of as few numbers as possible, none above `most`, no two of them more than 1 apart."""
    count = -(-n // most)
    return [n // count + (part < n % count) for part in range(count)]


def is_deterministic(policy: TargetPolicy) -> bool:
    """Whether the policy has no density of its own."""
    return isinstance(policy, DeterministicActor) or not hasattr(policy, "log_prob")


def target_log_prob(
    policy: TargetPolicy,
    observation: Float[Tensor, "*batch obs"],
    action: Float[Tensor, "*batch act"],
    half: Float[Tensor, " act"],
) -> Float[Tensor, "*batch"]:
    """log π(action | observation); for a deterministic actor −½ Σ ((a − μ(s))/half)², half the action's range."""
    if is_deterministic(policy):
        return -0.5 * ((action - policy.mode(observation)) / half).square().sum(-1)
    return policy.log_prob(observation, action)


def standard_scores(
    policy: TargetPolicy,
    observation: Float[Tensor, "*batch obs"],
    action: Float[Tensor, "*batch act"],
    half: Float[Tensor, " act"],
) -> Float[Tensor, "*batch act"]:
    """z = (a − μ(s))/σ(s), σ being how far one unit of the policy's noise moves its action from the mode.

    Exact for Gaussian policies, to first order for squashed ones; a deterministic one has σ = half the range.
    """
    with torch.no_grad():
        mode = policy.mode(observation)
        if is_deterministic(policy):
            return (action - mode) / half
        deviation = (policy.choose(observation, torch.ones_like(mode)) - mode).abs()
        return (action - mode) / deviation.clamp(min=1e-6)


@dataclass(frozen=True)
class SyntheticSet:
    """Transitions made by one call of a model.

    `source` is guided where a policy's gradient shaped them, dreamed otherwise. `policy_version` is that of the policy
    they were made for, None where no policy was asked. `about` says how: model, strength, mode, steps, mean log π, and
    seed.
    """

    transitions: TransitionLog
    source: Source
    policy_id: str | None
    policy_version: int | None
    about: Mapping[str, Any]

    def state_dict(self) -> dict:
        columns = {field.name: getattr(self.transitions, field.name) for field in fields(TransitionLog)}
        own = {"policy_id": self.policy_id, "policy_version": self.policy_version, "about": dict(self.about)}
        return {"transitions": columns, "source": str(self.source), **own}

    @staticmethod
    def from_state(state: dict) -> SyntheticSet:
        rest = {name: state[name] for name in ("policy_id", "policy_version", "about")}
        return SyntheticSet(TransitionLog(**state["transitions"]), Source(state["source"]), **rest)

    def to_table(self, ids: Sequence[str]) -> pa.Table:
        """Steps as a store holds them: each window or rollout an episode with one of these ids.

        `about` becomes columns `synthetic_…`, a number that is None null. There is no propensity or log-probability.
        """
        log = self.transitions
        last = (log.first[1:] - 1).numpy()
        length = log.length.numpy()
        not_last = np.ones((log.rows, log.observation_size), bool)
        not_last[last] = False
        final = np.ma.MaskedArray(log.next_observation.numpy(), mask=not_last)
        arrays: dict[str, tuple[pa.Array, dict | None]] = {
            "episode_id": (pa.array(np.repeat(np.array(ids), length)), None),
            "step": (
                pa.array((np.arange(log.rows) - np.repeat(last + 1 - length, length)).astype(np.int32)),
                None,
            ),
            "final_observation": to_arrow(final),
            "source": (source_array(self.source, log.rows), None),
            "created_at": (pa.array(np.full(log.rows, time.time_ns() // 1000)).view(TIMESTAMP_TYPE), None),
        }
        for name in ("observation", "action", "reward", "terminated", "truncated"):
            arrays[name] = to_arrow(getattr(log, name).numpy())
        for name, value in (("policy_id", self.policy_id), ("policy_version", self.policy_version)):
            arrays[name] = pa.repeat(pa.scalar(value, VOCABULARY[name]), log.rows), None
        for name, value in self.about.items():
            scalar = pa.scalar(value, pa.float64()) if value is None else pa.scalar(value)
            arrays[f"synthetic_{name}"] = pa.repeat(scalar, log.rows), None
        names = [name for name in VOCABULARY if name in arrays]
        names += [name for name in arrays if name not in VOCABULARY]
        schema = pa.schema([pa.field(name, arrays[name][0].type, metadata=arrays[name][1]) for name in names])
        return pa.table([arrays[name][0] for name in names], schema=schema)


class MixedBuffer:
    """Real and synthetic transitions in the proportions that a learner is to see them (``pgd.md`` 2.7).

    A batch holds `synthetic` rows of the sets that are alive and `batch_size − synthetic` real ones, uniform, without
    replacement inside the batch. `refresh` brings a new set in; the last `lifetime` sets live, each giving an equal
    part. Rows are addressed in one log, real ones first, which `log` gives and which changes with every refresh.
    """

    def __init__(
        self,
        real: TransitionLog,
        *,
        batch_size: int = 256,
        synthetic: int = 240,
        refresh_every: int = 10_000,
        lifetime: int = 1,
    ):
        if not 0 <= synthetic <= batch_size:
            raise ValueError(f"synthetic: expected 0 to batch_size={batch_size}, got {synthetic}")
        if min(refresh_every, lifetime) < 1:
            raise ValueError(f"refresh_every, lifetime: expected at least 1, got {refresh_every}, {lifetime}")
        if real.rows < batch_size - synthetic:
            raise ValueError(
                f"batch_size: {batch_size - synthetic} distinct real rows are asked for, the log has {real.rows}"
            )
        self._real = real
        self.batch_size, self.synthetic = batch_size, synthetic
        self.refresh_every, self.lifetime = refresh_every, lifetime
        self._sets: list[SyntheticSet] = []
        self._refreshed = 0

    def due(self, update: int) -> bool:
        """Whether a set is to come in before this update: when there is none, and `refresh_every` after the last."""
        return self.synthetic > 0 and (not self._sets or update - self._refreshed >= self.refresh_every)

    def refresh(self, new: SyntheticSet, update: int = 0) -> None:
        """Bring a set in before this update; the oldest leaves when more than `lifetime` are there."""
        if new.transitions.rows < self.synthetic:
            raise ValueError(
                f"synthetic: a batch holds {self.synthetic} distinct synthetic rows, but a set has only "
                f"{new.transitions.rows}; make larger sets"
            )
        self._sets.append(new)
        self._refreshed = update
        del self._sets[: -self.lifetime]

    def versions(self) -> list[int]:
        """Policy version of each set that is alive, oldest first; −1 where no policy was asked."""
        return [NO_VERSION if each.policy_version is None else each.policy_version for each in self._sets]

    def log(self) -> TransitionLog:
        """All rows, real ones first."""
        return concatenate([self._real, *(each.transitions for each in self._sets)])

    def shares(self) -> dict[str, float]:
        """Share of each source in a batch, as the ledger names it."""
        found = {"share_logged": 1 - self.synthetic / self.batch_size}
        for each in self._sets:
            name = f"share_{each.source}"
            found[name] = found.get(name, 0.0) + self.synthetic / self.batch_size / len(self._sets)
        return found

    def provenance(self) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Code of the source (`SOURCE_CODES`) and policy version of every row of `log`."""
        counts = torch.tensor([self._real.rows, *(each.transitions.rows for each in self._sets)])
        codes = torch.tensor(
            [SOURCE_CODES[each] for each in (Source.LOGGED, *(s.source for s in self._sets))]
        )
        versions = torch.tensor([NO_VERSION, *self.versions()])
        return codes.repeat_interleave(counts), versions.repeat_interleave(counts)

    def rows(self, batches: int, generator: torch.Generator) -> Int[Tensor, "batches batch"]:
        """Row numbers of `batches` batches."""
        if self.synthetic and not self._sets:
            raise ValueError("synthetic: there is no set yet; call refresh() first")
        real = self.batch_size - self.synthetic
        parts, start = [distinct_rows(batches, real, self._real.rows, generator)], self._real.rows
        for number, each in enumerate(self._sets):
            share = self.synthetic // len(self._sets) + (number < self.synthetic % len(self._sets))
            held = each.transitions.rows
            parts.append(start + distinct_rows(batches, share, held, generator))
            start += held
        return torch.cat(parts, 1)

    def state_dict(self) -> dict:
        return {"sets": [each.state_dict() for each in self._sets], "refreshed": self._refreshed}

    def load_state_dict(self, state: dict) -> None:
        self._sets = [SyntheticSet.from_state(each) for each in state["sets"]]
        self._refreshed = state["refreshed"]


def mix(
    real: TransitionLog,
    synthetic: Sequence[SyntheticSet],
    ratio: float,
    refresh_every: int,
    *,
    batch_size: int = 256,
    lifetime: int = 1,
) -> MixedBuffer:
    """A buffer in which `ratio` of every batch is synthetic, holding these sets to begin with."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: expected 0 to 1, the share of synthetic rows, got {ratio}")
    buffer = MixedBuffer(
        real,
        batch_size=batch_size,
        synthetic=round(ratio * batch_size),
        refresh_every=refresh_every,
        lifetime=lifetime,
    )
    for each in synthetic:
        buffer.refresh(each)
    return buffer


def distinct_rows(
    batches: int, count: int, rows: int, generator: torch.Generator
) -> Int[Tensor, "batches count"]:
    """For each batch `count` of `rows` numbers, uniform and without repetition; the order within a batch is random.

    Draws with repetition, keeps first occurrences, and draws again for the batches that came up short.
    """
    if count > rows:
        raise ValueError(f"count: {count} distinct rows are asked for, there are {rows}")
    if 4 * count > rows:
        return torch.rand(batches, rows, generator=generator).argsort(1)[:, :count]
    drawn = torch.randint(rows, (batches, count), generator=generator)
    while True:
        order = drawn.argsort(dim=1, stable=True)
        ordered = drawn.gather(1, order)
        repeated = torch.zeros_like(drawn, dtype=torch.bool)
        repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        again = torch.zeros_like(repeated).scatter_(1, order, repeated)
        missing = int(again.sum())
        if missing == 0:
            return drawn
        drawn[again] = torch.randint(rows, (missing,), generator=generator)
