"""Attention that copies nothing that is shared: keys and values among heads, beginnings among sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

NAME = "peira_grouped"
_MODELS = ("qwen3", "qwen2", "llama", "mistral")
"""Types of model whose attention is softmax(q·k·scale)·v under a mask, and nothing else."""


@dataclass(frozen=True)
class Families:
    """Sequences laid flat, one after another without padding; those of a family share one copy of their beginning.

    Attempts at one task begin with the same prompt, and what a causal model makes of it is the same for all of them.
    `family`, `own` (place of its first token after the shared ones) and `length` belong to the sequences; `shared` (how
    many tokens) and `start` (place of the first) to the families.
    """

    ids: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, " tokens"]
    family: Int[np.ndarray, " sequences"]
    own: Int[np.ndarray, " sequences"]
    length: Int[np.ndarray, " sequences"]
    start: Int[np.ndarray, " families"]
    shared: Int[np.ndarray, " families"]

    @classmethod
    def of(cls, sequences: Sequence[np.ndarray]) -> Families:
        """Neighbours become a family as long as each that joins saves tokens; a family of one shares nothing."""
        family, shared = _families(sequences)
        length = np.array([len(sequence) for sequence in sequences])
        rest = length - shared[family]
        # First all shared beginnings, then what is a sequence's own.
        start = np.concatenate([[0], np.cumsum(shared)])
        own = start[-1] + np.concatenate([[0], np.cumsum(rest)])[:-1]
        first = np.searchsorted(family, np.arange(len(shared)))
        begun = [sequences[place][:many] for place, many in zip(first, shared, strict=True)]
        ended = [sequence[shared[place] :] for sequence, place in zip(sequences, family, strict=True)]
        positions = [np.arange(many) for many in shared]
        positions += [np.arange(shared[f], many) for f, many in zip(family, length, strict=True)]
        return cls(
            np.concatenate([*begun, *ended]),
            np.concatenate(positions),
            family,
            own,
            length,
            start[:-1],
            shared,
        )

    def places(self, marked: Sequence[np.ndarray]) -> Int[Tensor, " marked"]:
        """Where the marked tokens of each sequence lie, sequence by sequence."""
        return self._at([np.flatnonzero(marks) for marks in marked])

    def places_before(self, marked: Sequence[np.ndarray]) -> Int[Tensor, " marked"]:
        """Where the tokens before the marked ones lie."""
        return self._at([np.flatnonzero(marks) - 1 for marks in marked])

    def _at(self, within: Sequence[np.ndarray]) -> Tensor:
        counts = [len(places) for places in within]
        place, family = np.concatenate(within), np.repeat(self.family, counts)
        beyond = place - self.shared[family]
        return torch.from_numpy(
            np.where(beyond < 0, self.start[family] + place, np.repeat(self.own, counts) + beyond)
        )


def _families(
    sequences: Sequence[np.ndarray],
) -> tuple[Int[np.ndarray, " sequences"], Int[np.ndarray, " families"]]:
    """Family of every sequence, and how many tokens each family shares."""
    family, shared, members = np.zeros(len(sequences), int), [0], 1
    for place in range(1, len(sequences)):
        before, this = sequences[place - 1], sequences[place]
        many = min(len(before), len(this))
        same = before[:many] == this[:many]
        # At least one token stays a sequence's own; the family's beginning can only become shorter.
        common = min(many - 1, many if same.all() else int(same.argmin()))
        common = min(common, shared[-1]) if members > 1 else common
        if common * members > shared[-1] * (members - 1):
            shared[-1], members = common, members + 1
        else:
            shared.append(0)
            members = 1
        family[place] = len(shared) - 1
    return family, np.array(shared)


class Layout:
    """Where the queries, keys and values of `families` go for batched products, and where the results come from.

    Queries are laid [family, group of heads, head, token] for what is shared, then [family, group, member, head, token]
    for what is a sequence's own; keys likewise without heads. `query_back` and `key_back` lead from every token (and
    head, or group) to its row. Whoever is shorter than the longest is filled up with rows that nothing reads.
    """

    def __init__(self, families: Families, heads: int, groups: int):
        number, members = len(families.shared), int(np.bincount(families.family).max())
        rest = families.length - families.shared[families.family]
        self.families, self.members, self.groups, self.each = number, members, groups, heads // groups
        self.shared, self.own = int(families.shared.max()), int(rest.max())
        begun, begun_real = _runs(families.start, families.shared, self.shared)
        first = np.searchsorted(families.family, np.arange(number))
        seat = (families.family, np.arange(len(rest)) - first[families.family])
        own, own_real = (np.zeros((number, members, self.own), kind) for kind in (np.int64, bool))
        own[seat], own_real[seat] = _runs(families.own, rest, self.own)
        places = ((begun[:, None], begun_real[:, None]), (own[:, None], own_real[:, None]))
        tokens = len(families.ids)
        self.key, self.key_back, _ = _rows(places, np.arange(groups)[:, None], tokens)
        heads_of = np.arange(heads).reshape(groups, self.each, 1)
        places = tuple((place[..., None, :], real[..., None, :]) for place, real in places)
        self.query, self.query_back, real = _rows(places, heads_of, tokens)
        self.query_real = None if real.all() else torch.from_numpy(real)[:, None]
        ragged = families.shared < self.shared
        self.unseen = torch.from_numpy(np.where(begun_real, 0.0, -np.inf)) if ragged.any() else None

    @property
    def shared_queries(self) -> int:
        return self.families * self.groups * self.each * self.shared

    @property
    def shared_keys(self) -> int:
        return self.families * self.groups * self.shared


def _runs(start: np.ndarray, length: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """start, start + 1, … of each run in rows of one width, and which of them belong to the run."""
    column = np.arange(width)
    real = column < length[:, None]
    return np.where(real, start[:, None] + column, 0), real


def _rows(
    blocks: Sequence[tuple[np.ndarray, np.ndarray]], part: np.ndarray, tokens: int
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Row of [token, part] for every place of the blocks, its inverse, and which places are real."""
    parts = part.size
    there, real = [], []
    for place, exists in blocks:
        # [groups, …] stands before what a family's places have beyond their first axis.
        spread = part.reshape(part.shape[0], *(1,) * (place.ndim - part.ndim - 1), *part.shape[1:])
        rows = place * parts + spread
        there.append(rows.ravel())
        real.append(np.broadcast_to(exists, rows.shape).ravel())
    there, real = np.concatenate(there), np.concatenate(real)
    back = np.empty(tokens * parts, np.int64)
    back[there[real]] = np.flatnonzero(real)
    return torch.from_numpy(there), torch.from_numpy(back), real


class _AttendInFamilies(torch.autograd.Function):
    """softmax(q kᵀ · scaling) v of every token over those before it in its own sequence.

    Query, key and value are rows of [token, head or group]. The scores of a sequence's own tokens lie in one buffer,
    first those over what is shared, then those over its own; products are written into their part of it.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float
    ) -> Tensor:
        query = query.index_select(0, layout.query).mul_(scaling)
        key, value = key.index_select(0, layout.key), value.index_select(0, layout.key)
        result = torch.empty_like(query)
        q, k, v, out = (
            _Views(query, layout),
            _Views(key, layout),
            _Views(value, layout),
            _Views(result, layout),
        )
        scores = query.new_empty(
            layout.families * layout.groups, q.members.shape[1], layout.shared + layout.own
        )
        over_shared, over_own = _over(scores, layout)
        shared_weight = query.new_empty(0)
        if layout.shared:
            shared_weight = torch.baddbmm(
                _causal(query, layout.shared, layout.each), q.shared, k.shared.transpose(1, 2)
            ).softmax(-1)
            torch.bmm(shared_weight, v.shared, out=out.shared)
            torch.bmm(q.members, k.shared.transpose(1, 2), out=over_shared)
            if layout.unseen is not None:
                over_shared += layout.unseen.to(scores.dtype).repeat_interleave(layout.groups, 0)[:, None]
        over_own.copy_(_causal(query, layout.own, layout.each))
        torch.baddbmm(over_own, q.own, k.own.transpose(1, 2), out=over_own)
        weight = torch._softmax(scores, -1, False, out=scores)
        over_shared, over_own = _over(weight, layout)
        torch.bmm(over_own, v.own, out=out.own)
        if layout.shared:
            torch.baddbmm(out.members, over_shared, v.shared, out=out.members)
        ctx.save_for_backward(query, key, value, shared_weight, weight)
        ctx.layout, ctx.scaling = layout, scaling
        return result.index_select(0, layout.query_back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layout = ctx.layout
        query, key, value, shared_weight, weight = ctx.saved_tensors
        gradient = gradient.index_select(0, layout.query)
        if layout.query_real is not None:
            gradient *= layout.query_real
        to_query, to_key, to_value = (torch.empty_like(x) for x in (query, key, value))
        q, k, v, g = (_Views(x, layout) for x in (query, key, value, gradient))
        dq, dk, dv = (_Views(x, layout) for x in (to_query, to_key, to_value))
        to_weight = torch.empty_like(weight)
        over_shared, over_own = _over(to_weight, layout)
        torch.bmm(g.own, v.own.transpose(1, 2), out=over_own)
        if layout.shared:
            torch.bmm(g.members, v.shared.transpose(1, 2), out=over_shared)
        torch._softmax_backward_data(to_weight, weight, -1, weight.dtype, grad_input=to_weight)
        weight_shared, weight_own = _over(weight, layout)
        torch.bmm(over_own, k.own, out=dq.own)
        torch.bmm(over_own.transpose(1, 2), q.own, out=dk.own)
        torch.bmm(weight_own.transpose(1, 2), g.own, out=dv.own)
        if layout.shared:
            torch.baddbmm(dq.members, over_shared, k.shared, out=dq.members)
            torch.bmm(over_shared.transpose(1, 2), q.members, out=dk.shared)
            torch.bmm(weight_shared.transpose(1, 2), g.members, out=dv.shared)
            to_weight = g.shared @ v.shared.transpose(1, 2)
            scores = torch._softmax_backward_data(to_weight, shared_weight, -1, weight.dtype)
            torch.bmm(scores, k.shared, out=dq.shared)
            torch.baddbmm(dk.shared, scores.transpose(1, 2), q.shared, out=dk.shared)
            torch.baddbmm(dv.shared, shared_weight.transpose(1, 2), g.shared, out=dv.shared)
        back = layout.query_back, layout.key_back, layout.key_back
        to_query, to_key, to_value = (
            x.index_select(0, rows) for x, rows in zip((to_query, to_key, to_value), back, strict=True)
        )
        return to_query.mul_(ctx.scaling), to_key, to_value, None, None


class _Views:
    """Rows as the batched products take them: what is shared, and what is own by sequence and by family."""

    def __init__(self, rows: Tensor, layout: Layout):
        size, batch = rows.shape[1], layout.families * layout.groups
        many = layout.shared_keys if len(rows) == len(layout.key) else layout.shared_queries
        self.shared = rows[:many].view(batch, -1, size) if many else rows[:0]
        self.own = rows[many:].view(batch * layout.members, -1, size)
        self.members = rows[many:].view(batch, -1, size)


def _over(scores: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The scores of own tokens: over what is shared, family by family, and over their own, sequence by sequence."""
    by_sequence = scores.view(-1, layout.each * layout.own, scores.shape[-1])
    return scores[..., : layout.shared], by_sequence[..., layout.shared :]


def _causal(like: Tensor, length: int, times: int) -> Tensor:
    """0 where a token may look and −∞ where not, for `times` heads."""
    return like.new_full((length, length), float("-inf")).triu_(1).repeat(times, 1)


def _attend(
    module: nn.Module,
    query: Float[Tensor, "rows heads length size"],
    keys: Float[Tensor, "rows groups seen size"],
    values: Float[Tensor, "rows groups seen size"],
    mask: Bool[Tensor, "rows 1 length seen"] | None,
    *,
    scaling: float,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "rows length heads size"], None]:
    """softmax(q kᵀ · scaling + mask) v, where heads / groups consecutive heads read the same keys and values.

    With a layout there is one row, and a token looks at those before it in its own sequence, whatever the mask.
    """
    rows, heads, length, size = query.shape
    if layout is not None:
        flat = (x[0].transpose(0, 1).reshape(-1, size) for x in (query, keys, values))
        return _AttendInFamilies.apply(*flat, layout, scaling).view(1, length, heads, size), None
    groups, seen = keys.shape[1], keys.shape[2]
    query = (query * scaling).reshape(rows, groups, heads // groups * length, size)
    weight = (query @ keys.transpose(2, 3)).view(rows, groups, heads // groups, length, seen)
    if mask is None:  # `transformers` means that every token sees those before it.
        mask = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril(seen - length)[None, None]
    weight = weight.masked_fill_(~mask[:, :, None], float("-inf")).softmax(-1)
    output = weight.view(rows, groups, heads // groups * length, seen) @ values
    # A copy even of one token: its odd strides would turn the product that follows into one for each row.
    output = output.view(rows, heads, length, size).transpose(1, 2)
    return output.clone(memory_format=torch.contiguous_format), None


def attend_by_groups(causal: nn.Module) -> bool:
    """Let `causal` attend by groups from now on, if it is of a type for which that is the same; it pays on CPUs."""
    if causal.config.model_type not in _MODELS:
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    causal.config._attn_implementation = NAME
    return True
