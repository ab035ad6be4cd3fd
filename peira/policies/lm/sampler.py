"""Batched generation over many turns: keys and values stay, rows differ in length, finish and are filled anew.

A row is one episode in progress. `feed` gives rows more to read and samples the token that follows; `step` lets rows
read the token just sampled and samples the next. Every token comes with its log-probability at the sampling
temperature. What a row samples follows from its seed and what it has read, not from the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from peira.policies.compiled import compile_function
from peira.policies.draws import chances, choose
from peira.policies.lm.model import LanguagePolicy

_SMALLEST, _STEP, _DOUBLED_FROM = 128, 64, 512


class ContextOverflow(ValueError):
    """A row was asked to read more than the model's context holds."""


class Sampler:
    """`rows` episodes in progress of one language policy.

    `temperature` 0 takes the most likely token (its log-probability is then that at temperature 1). `compiled` makes
    `step` one native call, which pays for small models on a CPU; it needs a C++ compiler and some seconds for each
    length of the cache (multiples of 64 tokens, then doublings). `keep_cache=False` reads every episode anew from its
    beginning at each `feed`: slower, and the same up to rounding (not together with `compiled`).
    """

    def __init__(
        self,
        policy: LanguagePolicy,
        rows: int,
        *,
        temperature: float = 1.0,
        compiled: bool = False,
        keep_cache: bool = True,
    ):
        if temperature < 0:
            raise ValueError(f"temperature: expected at least 0, got {temperature}")
        if compiled and not keep_cache:
            raise ValueError("compiled: needs keep_cache")
        self.policy, self.rows = policy, rows
        self._temperature, self._compiled, self._keep_cache = temperature, compiled, keep_cache
        self.length = np.zeros(rows, np.int64)
        self._seed = np.zeros(rows, np.int64)
        self._history: list[list[int]] = [[] for _ in range(rows)]
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self.capacity = _SMALLEST
        self._weights: dict[str, Tensor] = {}
        self._functions: dict[int, Callable] = {}

    def clear(self) -> None:
        """Forget all rows and let the cache be small again: what follows is, bit for bit, as by a new sampler."""
        self.length[:] = 0
        self._keys, self._values, self.capacity = [], [], _SMALLEST

    def begin(self, row: int, seed: int) -> None:
        """Start a new episode in this row: what it had read is forgotten."""
        self.length[row], self._seed[row] = 0, seed
        self._history[row] = []

    @torch.no_grad()
    def feed(
        self, rows: Sequence[int] | Int[np.ndarray, " rows"], chunks: Sequence[Sequence[int]]
    ) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Let these rows read these tokens (at least one each); the token sampled after them, and its log-probability.

        Raises ContextOverflow, with nothing read, when a row would come to hold more than the model's context.
        """
        rows = np.asarray(rows)
        if (np.diff(rows) <= 0).any():
            raise ValueError(f"rows: expected rising numbers, got {rows.tolist()}")
        counts = np.array([len(chunk) for chunk in chunks])
        self._make_room(rows, self.length[rows] + counts)
        if not self._keep_cache:
            chunks = [[*self._history[row], *chunk] for row, chunk in zip(rows, chunks, strict=True)]
            self.length[rows] = 0
        causal = self.policy.causal
        self._weights = {**dict(causal.named_parameters()), **dict(causal.named_buffers())}
        return self._read(rows, chunks)

    def _read(self, rows: np.ndarray, chunks: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        counts = np.array([len(chunk) for chunk in chunks])
        if not self._keep_cache:
            for row, chunk in zip(rows, chunks, strict=True):
                self._history[row] = [*self._history[row][: self.length[row]], *chunk]
        source = self._first_alike(rows, chunks)
        read = np.flatnonzero(source == np.arange(len(rows)))
        ids = np.zeros((len(read), counts[read].max()), np.int64)
        for line, place in zip(ids, read, strict=True):
            line[: counts[place]] = chunks[place]
        # What pads a chunk out is written beyond the row's end, where nothing looks until it is overwritten.
        positions = self.length[rows[read], None] + np.arange(ids.shape[1])
        seen = int(positions.max()) + 1
        self._reserve(seen)
        place = torch.from_numpy(rows[read])
        where = torch.from_numpy(positions)
        cache = _Cache(self, place, where, seen)
        mask = torch.arange(seen) <= where[:, :, None]
        device = self.policy.device
        last = (torch.arange(len(read), device=device), torch.from_numpy(counts[read] - 1).to(device))
        logits = self.policy.logits(
            *(tensor.to(device) for tensor in (torch.from_numpy(ids), where, mask[:, None])),
            wanted=last,
            cache=cache,
        )
        if len(read) < len(rows):
            self._copy(rows[source], rows, int(counts.max()))
            logits = logits[torch.from_numpy(np.searchsorted(read, source)).to(device)]
        self.length[rows] += counts
        token, log_prob = choose(logits, self._chances(rows).to(device), self._temperature)
        return token.cpu().numpy(), log_prob.cpu().numpy()

    def _first_alike(self, rows: np.ndarray, chunks: Sequence[Sequence[int]]) -> Int[np.ndarray, " rows"]:
        """Of rows that begin with the same tokens, as attempts at one task do, the first; any other row itself."""
        source, first = np.arange(len(rows)), {}
        for place in np.flatnonzero(self.length[rows] == 0):
            source[place] = first.setdefault(tuple(chunks[place]), place)
        return source

    def _copy(self, of: np.ndarray, to: np.ndarray, length: int) -> None:
        """Give rows `to` the first `length` keys and values of rows `of`."""
        changed = np.flatnonzero(of != to)
        of, to = torch.from_numpy(of[changed]), torch.from_numpy(to[changed])
        for tensor in (*self._keys, *self._values):
            tensor[to, :, :length] = tensor[of, :, :length]

    @torch.no_grad()
    def step(
        self, rows: Sequence[int] | Int[np.ndarray, " rows"], tokens: Int[np.ndarray, " rows"]
    ) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
        """Let these rows read one token each: the one that `feed` or `step` has just sampled for them."""
        rows = np.asarray(rows)
        self._make_room(rows, self.length[rows] + 1)
        if not self._compiled:
            return self._read(rows, np.asarray(tokens)[:, None].tolist())
        self._reserve(int(self.length.max()) + 1)
        # All rows take part; what an idle one writes at its end is overwritten by what it reads next.
        ids, positions = np.zeros(self.rows, np.int64), self.length.copy()
        ids[rows] = tokens
        self.length[rows] += 1
        arguments = [
            torch.from_numpy(ids),
            torch.from_numpy(positions),
            self._chances(np.arange(self.rows)),
            *self._keys,
            *self._values,
            *self._weights.values(),
        ]
        function = self._functions.get(self.capacity)
        if function is None:
            function = self._functions[self.capacity] = compile_function(self._one_step, arguments)
        token, log_prob = function(*arguments)
        return token.numpy()[rows], log_prob.numpy()[rows]

    def _make_room(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        if (lengths > self.policy.context).any():
            raise ContextOverflow(
                f"an episode of {lengths.max()} tokens does not fit the context of {self.policy.context}"
            )

    def _reserve(self, length: int) -> None:
        """Let the cache hold sequences of this length."""
        while self.capacity < length:
            self.capacity += _STEP if self.capacity < _DOUBLED_FROM else self.capacity
        for layers in (self._keys, self._values):
            for layer, old in enumerate(layers):
                if old.shape[2] < self.capacity:
                    layers[layer] = old.new_zeros(*old.shape[:2], self.capacity, old.shape[3])
                    layers[layer][:, :, : old.shape[2]] = old

    def _chances(self, rows: np.ndarray) -> Float[Tensor, " rows"]:
        """One number in (0, 1) for each row's next token, from its seed and how much it has read."""
        return chances(self._seed[rows], self.length[rows])

    def _one_step(
        self, ids: Tensor, positions: Tensor, chance: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        layers = len(self._keys)
        named = dict(zip(self._weights, tensors[2 * layers :], strict=True))
        cache = _WholeCache(tensors[:layers], tensors[layers : 2 * layers], positions)
        mask = (torch.arange(self.capacity) <= positions[:, None])[:, None, None]
        module = _Logits(self.policy)
        logits = functional_call(
            module,
            {f"causal.{name}": value for name, value in named.items()},
            (ids[:, None], positions[:, None], mask, cache),
        )
        return choose(logits[:, 0], chance, self._temperature)


class _Logits(nn.Module):
    """Lets `functional_call` put parameters into the model while the policy computes logits."""

    def __init__(self, policy: LanguagePolicy):
        super().__init__()
        self.causal = policy.causal
        self._policy = (policy,)  # Not a child: its parameters are those of `causal`.

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        return self._policy[0].logits(ids, positions, mask, cache=cache)


class _Cache:
    """The sampler's keys and values while some rows read on: `transformers`' Cache, as far as models use it."""

    is_compileable = False

    def __init__(self, sampler: Sampler, rows: Tensor, positions: Tensor, seen: int):
        self._sampler, self._rows, self._positions, self._seen = sampler, rows, positions, seen

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        sampler = self._sampler
        if layer == len(sampler._keys):
            _, heads, _, size = keys.shape
            for layers, new in ((sampler._keys, keys), (sampler._values, values)):
                layers.append(new.new_zeros(sampler.rows, heads, sampler.capacity, size))
        rows = self._rows.to(keys.device)
        row, position = rows[:, None], self._positions.to(keys.device)
        seen = []
        for layers, new in ((sampler._keys, keys), (sampler._values, values)):
            layers[layer][row, :, position] = new.transpose(1, 2)
            whole = layers[layer][:, :, : self._seen]
            seen.append(whole if len(rows) == sampler.rows else whole[rows])
        return seen[0], seen[1]

    def get_seq_length(self, *_: Any) -> int:
        return 0


class _WholeCache:
    """The keys and values of all rows, each of which reads one more token."""

    is_compileable = False

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], positions: Tensor):
        self._keys, self._values = keys, values
        self._rows, self._positions = torch.arange(len(positions)), positions

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        for whole, new in ((self._keys[layer], keys), (self._values[layer], values)):
            whole[self._rows, :, self._positions] = new[:, :, 0]
        return self._keys[layer], self._values[layer]

    def get_seq_length(self, *_: Any) -> int:
        return 0
