"""Linear layers whose products go to oneDNN where the processor is not Intel's: MKL takes its fast path only there."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

_WORTHWHILE = 1 << 21
"""Multiplications of a product from which on oneDNN's smaller rate of calls is made up for."""


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies single-precision matrices faster than torch's own choice: an x86 that is not Intel's.

    On an AMD EPYC with AVX-512 it does so 2.2 to 2.5 times as fast.
    """
    about = Path("/proc/cpuinfo")
    if (
        not torch.backends.mkl.is_available()
        or not torch.backends.mkldnn.is_available()
        or not about.exists()
    ):
        return False
    vendors = (line for line in about.read_text().splitlines() if line.startswith("vendor_id"))
    return "GenuineIntel" not in next(vendors, "GenuineIntel")


class OneDnnLinear(nn.Linear):
    """x Wᵀ + b as `nn.Linear` has it, and its gradients, through oneDNN where they are large enough."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        # What is traced to be compiled is given to another compiler, which has its own way to these products.
        small = rows * self.weight.numel() < _WORTHWHILE
        if small or x.dtype != torch.float32 or get_proxy_mode() is not None:
            return super().forward(x)
        return _Product.apply(x.reshape(rows, -1), self.weight, self.bias).view(*x.shape[:-1], -1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if wanted[0] else None,
            _product(gradient.t(), x.t()) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias; both may be transposed views."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def use_onednn(module: nn.Module) -> None:
    """Let every plain linear layer in `module` be a `OneDnnLinear`, its parameters as they are."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear
