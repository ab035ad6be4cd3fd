"""From a log to windows that a denoiser reads, and from what it writes back to transitions (``pgd.md`` 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peira.experience.transitions import TransitionLog
from peira.sources.standardise import Standardiser

CLIP = 0.999
"""Actions, scaled to [−1, 1], are kept this far inside before the inverse of tanh."""
_TOLERATED = 1e-5
"""How far outside its bounds an action may be, in parts of their distance: rounding."""


class Bounds:
    """Between actions in the environment's units and what a denoiser sees.

    A bounded action a is u = artanh(clip((2a − high − low)/(high − low), ±0.999)); one with an infinite bound is
    itself. Raises ValueError unless low < high.
    """

    def __init__(self, low: Float[Tensor, " act"], high: Float[Tensor, " act"]):
        if not bool((low < high).all()):
            raise ValueError(
                f"low, high: expected low < high for every action, got {low.tolist()}, {high.tolist()}"
            )
        self.low, self.high = low.float(), high.float()
        self.bounded = low.isfinite() & high.isfinite()
        self.half = torch.where(self.bounded, (self.high - self.low) / 2, 1.0)
        """Half the range of each action, 1 where there are no bounds."""
        self._middle = torch.where(self.bounded, (self.high + self.low) / 2, 0.0)

    def __len__(self) -> int:
        return len(self.low)

    def squash(self, u: Float[Tensor, "*batch act"]) -> Float[Tensor, "*batch act"]:
        """Actions in the environment's units."""
        return torch.where(self.bounded, self._middle + self.half * u.tanh(), u)

    def unsquash(self, action: Float[Tensor, "*batch act"]) -> Float[Tensor, "*batch act"]:
        """The inverse of `squash`, for actions kept within ±0.999 of the bounds."""
        inside = ((action - self._middle) / self.half).clamp(-CLIP, CLIP)
        return torch.where(self.bounded, inside.atanh(), action)

    def clip(self, action: Float[Tensor, "*batch act"]) -> Float[Tensor, "*batch act"]:
        return action.clamp(self.low, self.high)

    def check(self, action: Float[Tensor, "rows act"], what_else: str) -> None:
        """Raise ValueError, saying what else can be done, unless all actions lie within the bounds up to rounding."""
        if action.shape[1] != len(self):
            raise ValueError(f"action: the log has {action.shape[1]} numbers, the bounds are for {len(self)}")
        slack = torch.where(self.bounded, _TOLERATED * 2 * self.half, torch.inf)
        beyond = ((action < self.low - slack) | (action > self.high + slack)).any(1)
        if beyond.any():
            row = int(beyond.nonzero()[0])
            raise ValueError(
                f"action: {int(beyond.sum())} of {len(action)} rows lie outside {self.low.tolist()} to "
                f"{self.high.tolist()}, first {action[row].tolist()} in row {row}; give the right bounds{what_else}"
            )


def bounds_of(low: Sequence[float], high: Sequence[float], size: int) -> Bounds:
    """Bounds of `size` actions, given one for all or one each; raises ValueError for another number."""
    for name, given in (("low", low), ("high", high)):
        if len(given) not in (1, size):
            raise ValueError(f"{name}: expected 1 or {size} bounds, got {len(given)}")
    return Bounds(torch.tensor(low).expand(size).clone(), torch.tensor(high).expand(size).clone())


@dataclass(frozen=True)
class Channels:
    """What a step is made of, `[observation, u, reward, done]`, z-scored; kept with the model."""

    observation_size: int
    bounds: Bounds
    scores: Standardiser

    @property
    def size(self) -> int:
        return self.observation_size + self.action_size + 2

    @property
    def action_size(self) -> int:
        return len(self.bounds)

    @property
    def actions(self) -> slice:
        """Where the actions are among the channels."""
        return slice(self.observation_size, self.observation_size + self.action_size)

    def raw(self, z: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch channels"]:
        """Observation, u, reward and done as numbers of the data."""
        return self.scores.raw(z)

    def decision(
        self, z: Float[Tensor, "*batch channels"]
    ) -> tuple[Float[Tensor, "*batch obs"], Float[Tensor, "*batch act"]]:
        """Observation and action in the environment's units, differentiable in z; where log π is evaluated."""
        raw = self.raw(z)
        return raw[..., : self.observation_size], self.bounds.squash(raw[..., self.actions])

    def state_dict(self) -> dict[str, Tensor]:
        return {"low": self.bounds.low, "high": self.bounds.high, **self.scores.state_dict()}

    @staticmethod
    def from_state(observation_size: int, state: dict[str, Tensor]) -> Channels:
        scores = {name: value for name, value in state.items() if name not in ("low", "high")}
        return Channels(observation_size, Bounds(state["low"], state["high"]), Standardiser(**scores))


@dataclass(frozen=True)
class Windows:
    """Windows of `length` steps as starts among `rows`, z-scored; none crosses an episode's end.

    rows          z-scored channels of every step, with a pad step behind each episode that terminated
    start         first row of each window that is trained on
    held_out      first row of each window of the episodes held out for validation
    too_short     episodes that hold no window
    """

    channels: Channels
    rows: Float[Tensor, "rows channels"]
    start: Int[Tensor, " windows"]
    held_out: Int[Tensor, " held"]
    length: int
    too_short: int

    def at(self, start: Int[Tensor, " windows"]) -> Float[Tensor, "windows time channels"]:
        """The windows that begin in these rows."""
        return self.rows[start[:, None] + torch.arange(self.length)]

    def batch(self, count: int, generator: torch.Generator) -> Float[Tensor, "count time channels"]:
        """Windows drawn uniformly, with replacement."""
        return self.at(self.start[torch.randint(len(self.start), (count,), generator=generator)])


def cut_windows(
    log: TransitionLog,
    bounds: Bounds,
    *,
    length: int,
    stride: int,
    validation_share: float,
    terminal_pad: bool,
    out_of_bounds: Literal["error", "clip"],
    generator: torch.Generator,
) -> Windows:
    """Windows of the log (``pgd.md`` 2.2): every `stride`-th start, all that end with a terminal or begin an episode.

    No window crosses the end of an episode, and none ends with a timeout. With `terminal_pad` an episode that
    terminated is followed by one absorbing step (its last observation, u = 0, reward 0, done), so that the step before
    can become a terminal transition; without it, as in the official code, none ever does. A share of the episodes that
    hold windows is held out: at least one of two or more, none of a single one.

    Raises ValueError for actions outside the bounds (unless they are to be clipped, which is right where the
    environment clipped them) and for a length that no episode has.
    """
    if length < 2:
        raise ValueError(
            f"length: expected windows of at least 2 steps, which make a transition, got {length}"
        )
    if out_of_bounds == "error":
        bounds.check(log.action, ", or set out_of_bounds to clip if the environment clipped them")
    steps = log.length
    ends = log.terminated[log.first[1:] - 1]
    padded = steps + (ends.long() if terminal_pad else 0)
    first = torch.cat([torch.zeros(1, dtype=torch.int64), padded.cumsum(0)])
    episode = torch.repeat_interleave(torch.arange(log.episodes), padded)
    place = torch.arange(len(episode)) - first[episode]
    is_pad = place == steps[episode]
    source = log.first[episode] + torch.minimum(place, steps[episode] - 1)

    raw = torch.cat(
        [
            log.observation[source],
            bounds.unsquash(log.action[source]).masked_fill(is_pad[:, None], 0.0),
            log.reward[source].masked_fill(is_pad, 0.0)[:, None],
            log.terminated[source].float()[:, None],
        ],
        1,
    )
    last = place + length - 1
    valid = (last < padded[episode]).nonzero().squeeze(1)
    if len(valid) == 0:
        raise ValueError(
            f"length: no episode has {length} steps, the longest has {int(padded.max())}; ask for shorter windows"
        )
    at_end = last[valid] == padded[episode[valid]] - 1
    kept = (torch.arange(len(valid)) % stride == 0) | (place[valid] == 0) | at_end
    start = valid[kept & ~(at_end & ~ends[episode[valid]])]
    if len(start) == 0:
        raise ValueError(
            f"length: every window of {length} steps ends with a timeout, whose successor is not in the log; ask for "
            "shorter windows"
        )

    with_windows = episode[start].unique()
    held = max(1, round(validation_share * len(with_windows))) if len(with_windows) > 1 else 0
    out = torch.zeros(log.episodes, dtype=torch.bool)
    out[with_windows[torch.randperm(len(with_windows), generator=generator)[:held]]] = True
    is_out = out[episode[start]]
    # A row counts as often as windows cover it.
    covered = torch.zeros(len(raw) + 1, dtype=torch.int64)
    covered.index_add_(0, start, torch.ones_like(start))
    covered.index_add_(0, start + length, -torch.ones_like(start))
    scores = Standardiser.of(raw, covered.cumsum(0)[:-1].float())
    return Windows(
        Channels(log.observation_size, bounds, scores),
        scores.z(raw),
        start[~is_out],
        start[is_out],
        length,
        log.episodes - len(with_windows),
    )


def transitions_of(channels: Channels, z: Float[Tensor, "windows time channels"]) -> TransitionLog:
    """Transitions (t, t + 1) of z-scored windows, each window an episode; done where its channel is above ½.

    What follows a done step is padding and left out. A window whose last transition is not terminal is truncated there.
    """
    raw = channels.raw(z)
    observation, action = channels.decision(z)
    done = raw[:, :-1, -1] > 0.5
    is_real = done.long().cumsum(1) - done.long() == 0
    lengths = is_real.sum(1)
    is_last = torch.arange(done.shape[1]) == lengths[:, None] - 1
    return TransitionLog(
        observation=observation[:, :-1][is_real],
        action=action[:, :-1][is_real],
        reward=raw[:, :-1, -2][is_real],
        next_observation=observation[:, 1:][is_real],
        terminated=done[is_real],
        truncated=(is_last & ~done)[is_real],
        first=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
    )
