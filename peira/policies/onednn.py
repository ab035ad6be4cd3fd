"""Matrix products through oneDNN on x86 processors that are not Intel's: MKL takes its AVX-512 path only on those.

On an AMD EPYC with AVX-512 oneDNN multiplies matrices in single precision 2.2 to 2.4 times as fast as MKL, torch's own
choice (`python benchmarks/language.py`). A call costs some 10 µs more, so that only products from `WORTHWHILE`
multiplications on gain.
"""

from __future__ import annotations

import functools
from types import NotImplementedType

import torch
from jaxtyping import Float
from torch import Tensor

from peira.versions import processor

WORTHWHILE = 1 << 21

_LIBRARY = torch.library.Library("peira", "DEF")
_LIBRARY.define("product(Tensor x, Tensor weight) -> Tensor")


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this machine's processor is an x86 that is not Intel's, and torch has oneDNN."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return both and processor().get("vendor_id", "GenuineIntel") != "GenuineIntel"


def product(
    x: Float[Tensor, "rows inner"],
    weight: Float[Tensor, "columns inner"],
    bias: Float[Tensor, " columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """x weightᵀ + bias, through oneDNN in any case; both may be transposed views."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


_LIBRARY.impl("product", product, "CPU")
torch.library.register_fake("peira::product", lambda x, weight: x.new_empty(x.shape[0], weight.shape[0]))


def traced_product(left: Tensor, right: Tensor) -> Tensor | NotImplementedType:
    """left · right in code that is being traced to be compiled; NotImplemented to leave it to the compiler.

    oneDNN's own operator is not to be had there for weights that change; this one is called as a whole.
    """
    sizes = (*left.shape, right.shape[1])
    fixed = all(isinstance(size, int) for size in sizes)
    if (
        fixed
        and sizes[0] * sizes[1] * sizes[2] >= WORTHWHILE
        and left.dtype == torch.float32
        and onednn_is_faster()
    ):
        return torch.ops.peira.product(left, right.t())
    return NotImplemented
