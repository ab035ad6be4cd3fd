"""Replay in memory: a preallocated ring over tensors `[time, env, …]`."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_END = ("terminated", "truncated")


class ReplayRing:
    """The last `capacity` steps of parallel streams, oldest overwritten first.

    `spec` maps a name to the shape of one entry and its dtype; without it the first batch decides. Rows are
    kept time by time, so `capacity` is rounded down to a multiple of the number of streams.
    """

    def __init__(
        self,
        capacity: int,
        spec: Mapping[str, tuple[tuple[int, ...], torch.dtype]] | None = None,
        device: torch.device | str = "cpu",
    ):
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1 step, came {capacity}")
        self.capacity = capacity
        self.device = torch.device(device)
        self.spec = dict(spec) if spec is not None else None
        self.num_envs = 0
        self._rows: dict[str, Tensor] = {}
        self._times = 0  # length of the ring in times: capacity // num_envs
        self._head = 0  # the time that is written next
        self._filled = 0  # times that hold steps

    def __len__(self) -> int:
        """Number of steps held."""
        return self._filled * self.num_envs

    def add(self, batch: Mapping[str, Tensor]) -> None:
        """Add steps `[time, env, …]`; raises ValueError where they do not fit what the ring holds."""
        if not self._rows:
            self._allocate(batch)
        if batch.keys() != self._rows.keys():
            odd = sorted(batch.keys() ^ self._rows.keys())[0]
            raise ValueError(f"{odd}: the ring holds {', '.join(self._rows)}; add the same names each time")
        length = len(next(iter(batch.values())))
        for name, values in batch.items():
            rows = self._rows[name]
            if values.shape != (length, self.num_envs, *rows.shape[1:]) or values.dtype != rows.dtype:
                expected = [length, self.num_envs, *rows.shape[1:]]
                raise ValueError(
                    f"{name}: expected {rows.dtype} {expected}, came {values.dtype} {list(values.shape)}"
                )
        # Of a batch longer than the ring only the newest part stays.
        skipped = max(0, length - self._times)
        head = (self._head + skipped) % self._times
        first = min(length - skipped, self._times - head)
        for name, values in batch.items():
            ring = self._rows[name].view(self._times, self.num_envs, *self._rows[name].shape[1:])
            ring[head : head + first].copy_(values[skipped : skipped + first])
            ring[: length - skipped - first].copy_(values[skipped + first :])
        self._head = (self._head + length) % self._times
        self._filled = min(self._filled + length, self._times)

    def sample(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`n` steps drawn uniformly with replacement, `[n, …]`."""
        self._check_filled()
        rows = torch.randint(len(self), (n,), generator=generator, device=self.device)
        return {name: values.index_select(0, rows) for name, values in self._rows.items()}

    def sample_windows(
        self, n: int, length: int, generator: torch.Generator, cross_episodes: bool = False
    ) -> dict[str, Tensor]:
        """`n` windows of `length` consecutive steps of one stream, `[n, length, …]`, uniform over those there
        are.

        No window crosses the write head. None crosses an episode's end either, unless `cross_episodes`: then
        `mask` in the result is True up to and including the first end. Needs `terminated` and `truncated`.
        Raises ValueError if there is no such window.
        """
        self._check_filled()
        done = self._done()
        starts = self._starts(done, length, cross_episodes)
        if len(starts) == 0:
            raise ValueError(
                f"length: no {length} consecutive steps are held; ask for shorter windows or pass "
                f"cross_episodes=True"
            )
        pick = torch.randint(len(starts), (n,), generator=generator, device=self.device)
        age = torch.arange(length, device=self.device)
        time, env = starts[pick] // self.num_envs, starts[pick] % self.num_envs
        times = (time[:, None] + age) % self._times
        rows = (times * self.num_envs + env[:, None]).flatten()
        windows = {
            name: values.index_select(0, rows).view(n, length, *values.shape[1:])
            for name, values in self._rows.items()
        }
        if cross_episodes:
            ended = done.flatten()[rows].view(n, length).long()
            windows["mask"] = ended.cumsum(1) - ended == 0
        return windows

    def state_dict(self) -> dict[str, Any]:
        """Steps held and the position of the write head."""
        return {
            "rows": {name: values[: len(self)].clone() for name, values in self._rows.items()},
            "num_envs": self.num_envs,
            "head": self._head,
            "filled": self._filled,
            "capacity": self.capacity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; the capacity must be the same."""
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"capacity: expected {self.capacity}, came {state['capacity']}; resume with the same"
            )
        self._rows = {}
        if not state["rows"]:
            return
        held = {name: torch.as_tensor(values) for name, values in state["rows"].items()}
        self._allocate(
            {name: values.view(-1, state["num_envs"], *values.shape[1:]) for name, values in held.items()}
        )
        for name, values in held.items():
            self._rows[name][: len(values)].copy_(values)
        self._head, self._filled = state["head"], state["filled"]

    def _allocate(self, batch: Mapping[str, Tensor]) -> None:
        if self.spec is None:
            self.spec = {name: (tuple(values.shape[2:]), values.dtype) for name, values in batch.items()}
        self.num_envs = next(iter(batch.values())).shape[1]
        self._times = self.capacity // self.num_envs
        if self._times == 0:
            raise ValueError(
                f"capacity: {self.capacity} steps cannot hold one of each of {self.num_envs} streams"
            )
        self._rows = {
            name: torch.zeros(self._times * self.num_envs, *shape, dtype=dtype, device=self.device)
            for name, (shape, dtype) in self.spec.items()
        }

    def _check_filled(self) -> None:
        if self._filled == 0:
            raise ValueError("sample: the ring is empty; add steps first")

    def _done(self) -> Bool[Tensor, "time env"]:
        for name in _END:
            if name not in self._rows:
                raise ValueError(f"{name}: windows need to know where episodes end; add {name} to the ring")
        done = self._rows["terminated"] | self._rows["truncated"]
        return done.view(self._times, self.num_envs)

    def _starts(
        self, done: Bool[Tensor, "time env"], length: int, cross_episodes: bool
    ) -> Int[Tensor, " window"]:
        """Row at which each allowed window starts."""
        oldest = self._head if self._filled == self._times else 0
        count = self._filled - length + 1
        if count < 1:
            return torch.empty(0, dtype=torch.long, device=self.device)
        times = (oldest + torch.arange(self._filled, device=self.device)) % self._times
        allowed = torch.ones(count, self.num_envs, dtype=torch.bool, device=self.device)
        if not cross_episodes:
            # A window may end with an episode; no earlier step of it may.
            ends = torch.zeros(self._filled + 1, self.num_envs, dtype=torch.long, device=self.device)
            ends[1:] = done[times].cumsum(0)
            allowed = ends[length - 1 : length - 1 + count] == ends[:count]
        at, env = allowed.nonzero(as_tuple=True)
        return times[at] * self.num_envs + env
