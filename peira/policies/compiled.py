"""Ahead-of-time compilation of a function of tensors into one native call, without a guard check on every call.

`torch.compile` re-checks its guards at each call, which costs more than a minibatch of a small network does. Here the
function is traced once with fake tensors and handed to the same compiler (Inductor, C++ wrapper).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize

from peira.policies.onednn import traced_product


def can_compile() -> bool:
    """Whether this machine has the C++ compiler that native code for the CPU needs."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def compile_function(
    function: Callable[..., tuple[Tensor, ...]], arguments: list[Tensor], *, growing: Collection[int] = ()
) -> Callable[..., tuple[Tensor, ...]]:
    """Native form of `function(*tensors) -> tuple of tensors`, for tensors shaped and typed like `arguments`.

    `growing` gives the positions of arguments whose first axis may have any length in later calls; every other size is
    fixed. The function must be free of control flow that depends on values. The caller answers for passing contiguous
    tensors of the promised shapes: nothing is checked again. One thread and one compiled form for all lengths make
    repeated runs agree bit for bit.
    """
    # Imported here: it takes seconds, which commands that compile nothing should not.
    from torch._dynamo.source import ConstantSource
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode = FakeTensorMode(shape_env=ShapeEnv())

    def fake(position: int, tensor: Tensor) -> Tensor:
        sizes = [DimDynamic.STATIC] * tensor.dim()
        if position in growing:
            sizes[0] = DimDynamic.DYNAMIC
        context = StatelessSymbolicContext(dynamic_sizes=sizes)
        # Views with an offset, as tensors cut from a larger one are, cannot be traced with a growing axis.
        whole = tensor.clone(memory_format=torch.contiguous_format)
        return mode.from_tensor(
            whole, symbolic_context=context, source=ConstantSource(f"argument_{position}")
        )

    stand_ins = [fake(position, tensor) for position, tensor in enumerate(arguments)]
    decompositions = {**select_decomp_table(), **_CHEAPER}
    with torch.no_grad(), mode:
        graph = make_fx(functionalize(function), decomposition_table=decompositions)(*stand_ins)
    # The pattern matcher would put product and bias together again; checks of sizes cost a quarter of a small call.
    cheaper = config.patch(pattern_matcher=False, size_asserts=False)
    with torch.no_grad(), tracing(TracingContext(mode)), cheaper:
        native = compile_fx_inner(graph, stand_ins, cpp_wrapper=True).current_callable
    return lambda *tensors: native(list(tensors))


class CompiledChoice:
    """`policy.choose` as one native call, for batches of the size of the first; follows the policy as it changes."""

    def __init__(self, policy: nn.Module):
        self._module = _Choice(policy)
        tensors = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        unread = ("critic_", "normaliser.moments")
        self._tensors = {
            name: value
            for name, value in tensors.items()
            if not name.removeprefix("policy.").startswith(unread)
        }
        self._function: Callable[..., tuple[Tensor, ...]] | None = None
        self._shape = torch.Size()

    def __call__(self, observation: Tensor, noise: Tensor) -> Tensor:
        arguments = [observation, noise, *self._tensors.values()]
        if self._function is None:
            self._function = compile_function(self._choose, arguments)
            self._shape = observation.shape
        if observation.shape != self._shape:
            raise ValueError(f"compiled for observations {list(self._shape)}, got {list(observation.shape)}")
        return self._function(*arguments)[0]

    def _choose(self, observation: Tensor, noise: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        named = dict(zip(self._tensors, tensors, strict=True))
        return (functional_call(self._module, named, (observation, noise)),)


class _Choice(nn.Module):
    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        return self.policy.choose(observation, noise)


def _product_and_bias(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """A linear layer in two: adding the bias is then fused with the activation, where addmm would copy it first."""
    return torch.mm(left, right) + bias


def _tanh(x: Tensor) -> Tensor:
    """tanh as x·P(x²)/Q(x²), within 5e-7 of it everywhere, in less time than the library function.

    The coefficients are the well-known minimax ones for float32 (Eigen's `ptanh`); beyond ±7.9 the result is ±1.
    """
    x = x.clamp(-7.90531110763549805, 7.90531110763549805)
    square = x * x
    above = square * -2.76076847742355e-16 + 2.00018790482477e-13
    for coefficient in (
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ):
        above = above * square + coefficient
    below = square * 1.19825839466702e-06 + 1.18534705686654e-04
    for coefficient in (2.26843463243900e-03, 4.89352518554385e-03):
        below = below * square + coefficient
    return x * above / below


_CHEAPER = {
    torch.ops.aten.addmm.default: _product_and_bias,
    torch.ops.aten.mm.default: traced_product,
    torch.ops.aten.tanh.default: _tanh,
}
