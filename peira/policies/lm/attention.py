"""Attention whose heads share keys and values, computed without copies of them for every head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

NAME = "peira_grouped"
_MODELS = ("qwen3", "qwen2", "llama", "mistral")
"""Types of model whose attention is softmax(q·k·scale)·v under a mask, and nothing else."""


def _attend(
    module: nn.Module,
    query: Float[Tensor, "rows heads length size"],
    keys: Float[Tensor, "rows groups seen size"],
    values: Float[Tensor, "rows groups seen size"],
    mask: Bool[Tensor, "rows 1 length seen"],
    *,
    scaling: float,
    **_: Any,
) -> tuple[Float[Tensor, "rows length heads size"], None]:
    """softmax(q kᵀ · scaling + mask) v, where heads / groups consecutive heads read the same keys and values."""
    rows, heads, length, size = query.shape
    groups, seen = keys.shape[1], keys.shape[2]
    query = (query * scaling).reshape(rows, groups, heads // groups * length, size)
    weight = (query @ keys.transpose(2, 3)).view(rows, groups, heads // groups, length, seen)
    weight = weight.masked_fill(~mask[:, :, None], float("-inf")).softmax(-1)
    output = weight.view(rows, groups, heads // groups * length, seen) @ values
    return output.view(rows, heads, length, size).transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def grouped_attention(causal: nn.Module) -> Iterator[None]:
    """Within, `causal` attends by groups, if it is of a type for which that is the same."""
    if causal.config.model_type not in _MODELS:
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    usual = causal.config._attn_implementation
    causal.config._attn_implementation = NAME
    try:
        yield
    finally:
        causal.config._attn_implementation = usual
