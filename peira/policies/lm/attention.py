"""Attention whose heads share keys and values, computed without copies of them for every head."""

from __future__ import annotations

from typing import Any

import torch
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
    mask: Bool[Tensor, "rows 1 length seen"] | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Float[Tensor, "rows length heads size"], None]:
    """softmax(q kᵀ · scaling + mask) v, where heads / groups consecutive heads read the same keys and values."""
    rows, heads, length, size = query.shape
    groups, seen = keys.shape[1], keys.shape[2]
    query = (query * scaling).reshape(rows, groups, heads // groups * length, size)
    weight = (query @ keys.transpose(2, 3)).view(rows, groups, heads // groups, length, seen)
    if mask is None:  # `transformers` means that every token sees those before it.
        mask = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril(seen - length)[None, None]
    weight = weight.masked_fill(~mask[:, :, None], float("-inf")).softmax(-1)
    output = weight.view(rows, groups, heads // groups * length, seen) @ values
    return output.view(rows, heads, length, size).transpose(1, 2).contiguous(), None


def attend_by_groups(causal: nn.Module) -> None:
    """Let `causal` attend by groups from now on, if it is of a type for which that is the same; it pays on CPUs."""
    if causal.config.model_type in _MODELS:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        causal.config._attn_implementation = NAME
