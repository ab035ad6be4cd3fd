"""Layers of language models as they are fast on a CPU: norms and gates in few passes, products through oneDNN.

They compute what the stock layers do, up to rounding. Gradients are written by hand, where automatic differentiation
would pass over all rows for every operation of a norm and lay its result out.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional

from peira.policies.onednn import WORTHWHILE, onednn_is_faster, product


def use_fast_layers(causal: nn.Module) -> None:
    """Turn the norms, gated feed-forward layers and (where it pays) linear layers of a Llama-like model into ours.

    Parameters, their names and the files a model is saved to stay as they are. Only for models whose layers compute
    what those of Llama do, in single precision.
    """
    gated_by_silu = causal.config.hidden_act in ("silu", "swish")
    for layer in causal.modules():
        if hasattr(layer, "variance_epsilon"):
            layer.__class__ = RootMeanSquareNorm
        elif hasattr(layer, "gate_proj") and gated_by_silu:
            layer.__class__ = GatedFeedForward
        elif type(layer) is nn.Linear and onednn_is_faster():
            layer.__class__ = OneDnnLinear


class RootMeanSquareNorm(nn.Module):
    """y = w · x / √(mean x² + ε) over the last axis (Zhang and Sennrich 2019)."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, x: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        if not torch.is_grad_enabled():  # Nor can what is compiled hold a function with its own gradient.
            return x * _inverse_norm(x, self.variance_epsilon) * self.weight
        return _Norm.apply(x, self.weight, self.variance_epsilon)


def _inverse_norm(x: Tensor, epsilon: float) -> Tensor:
    """r = 1/√(mean x² + ε)."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
    return (square / x.shape[-1] + epsilon).rsqrt()


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = _inverse_norm(x, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """∂x = r w g − r³ x · mean(w g x),  ∂w = Σ over rows of r g x, r the inverse norm."""
        x, weight, inverse = ctx.saved_tensors
        size = x.shape[-1]
        along = (gradient * x).reshape(-1, size)
        # Sums over rows and columns as products with a vector, which do not lay the summands out.
        to_weight = (inverse.reshape(1, -1) @ along)[0] if ctx.needs_input_grad[1] else None
        pull = (along @ weight[:, None]).view(inverse.shape) * inverse.pow(3) / size
        return (gradient * weight).mul_(inverse).addcmul_(x, pull, value=-1), to_weight, None


class GatedFeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer 2020)."""

    def forward(self, x: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        gate, up = self.gate_proj(x), self.up_proj(x)
        opened = _Gate.apply(gate, up) if torch.is_grad_enabled() else functional.silu(gate) * up
        return self.down_proj(opened)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        opened = functional.silu(gate)
        ctx.save_for_backward(gate, up, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up, opened = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * opened


class OneDnnLinear(nn.Linear):
    """x Wᵀ + b as `nn.Linear` has it, and its gradients, through oneDNN where they are large enough."""

    def forward(self, x: Float[Tensor, "*rows fan_in"]) -> Float[Tensor, "*rows fan_out"]:
        rows = x.numel() // self.in_features
        small = rows * self.weight.numel() < WORTHWHILE
        # What is traced to be compiled is given to another compiler, which has its own way to these products.
        if small or x.dtype != torch.float32 or get_proxy_mode() is not None:
            return super().forward(x)
        return _Product.apply(x.reshape(rows, -1), self.weight, self.bias).view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if wanted[0] else None,
            _sum_of_outer_products(gradient, x) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


def _sum_of_outer_products(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right, where the product that takes the smaller of the two as its first factor is cheaper: it copies it."""
    if left.shape[1] <= right.shape[1]:
        return product(left.t(), right.t())
    return product(right.t(), left.t()).t().contiguous()
