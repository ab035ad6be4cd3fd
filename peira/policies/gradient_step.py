"""One step of Adam on a policy's parameters, fused into a single call.

Minibatch training of small networks is dominated by dispatch: hundreds of tiny operations a step. Here the gather of
the minibatch, forward, backward, gradient clipping and Adam are one compiled function of one flat parameter vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from peira.policies.compiled import compile_function

Loss = Callable[..., tuple[Float[Tensor, ""], Float[Tensor, " measures"]]]


class _WithLoss(nn.Module):
    """Lets `functional_call` put parameters into a policy while a loss calls any of its methods."""

    def __init__(self, policy: nn.Module, loss: Loss):
        super().__init__()
        self.policy, self.loss = policy, loss

    def forward(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(self.policy, *columns)


class GradientStep:
    """Adam on `loss(policy, *columns) -> (scalar, measures)` for parameters of `policy`: all, or those in `only`.

    On construction the parameters become views of one flat vector, `parameters`. `measures[0]` is the divergence from
    the policy before the update: a step that would start with it above `kl_stop` is not taken (the test comes before
    the step, ``props.md`` 2.4). Gradients are clipped to the norm `max_gradient_norm`. `learning_rate` is a tensor to
    be filled with a new value when the rate is annealed. Adam: Kingma and Ba 2015, algorithm 1, β = (0.9, 0.999).
    """

    def __init__(
        self,
        policy: nn.Module,
        loss: Loss,
        *,
        learning_rate: float,
        max_gradient_norm: float = 0.5,
        kl_stop: float | None = None,
        only: Sequence[str] | None = None,
        epsilon: float = 1e-5,
        compiled: bool = True,
    ):
        named = dict(policy.named_parameters())
        self._names = [name for name in named if only is None or name in only]
        self._shapes = [named[name].shape for name in self._names]
        self.parameters = torch.cat([named[name].detach().flatten() for name in self._names])
        for name, view in zip(self._names, self._views(self.parameters), strict=True):
            named[name].data = view
        fixed = {name: value.detach() for name, value in named.items() if name not in self._names}
        self._fixed = {**fixed, **dict(policy.named_buffers())}
        self._with_loss = _WithLoss(policy, loss)
        self.learning_rate = torch.tensor(learning_rate)
        self.kl_stop = float("inf") if kl_stop is None else kl_stop
        self._max_gradient_norm, self._epsilon = max_gradient_norm, epsilon
        self._first, self._second = torch.zeros_like(self.parameters), torch.zeros_like(self.parameters)
        self._count = torch.zeros(())
        self._rate, self._correction = torch.zeros(()), torch.zeros(())
        self._compiled, self._function = compiled, None

    def __call__(
        self, rows: Int[Tensor, " minibatch"], *columns: Shaped[Tensor, "rows ..."]
    ) -> Float[Tensor, " measures"]:
        """Take one step on these rows of the (contiguous) columns; the measures at the parameters before the step."""
        # Adam's corrections for the moments' start at 0, taken once here: in the compiled function a power of the count
        # would be fused into the loop over parameters and taken anew for each of them.
        count = self._count.item() + 1
        correction = math.sqrt(1 - 0.999**count)
        self._correction.fill_(correction)
        self._rate.fill_(self.learning_rate.item() * correction / (1 - 0.9**count))
        state = (self.parameters, self._first, self._second, self._count)
        arguments = [*state, self._rate, self._correction, *self._fixed.values(), rows, *columns]
        with torch.no_grad():
            if self._function is None:
                growing = range(len(arguments) - 1 - len(columns), len(arguments))
                self._function = (
                    compile_function(self._one_step, arguments, growing=growing)
                    if self._compiled
                    else self._one_step
                )
            (measures,) = self._function(*arguments)
        return measures

    def epochs(
        self,
        columns: Sequence[Shaped[Tensor, "rows ..."]],
        *,
        epochs: int,
        minibatches: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "steps measures"]:
        """Shuffled passes over all rows, until done or stopped by the divergence; the measures of every step.

        Where a step was refused, it is the last row.
        """
        measures = []
        columns = [column.contiguous() for column in columns]
        for rows in shuffled_minibatches(columns[0].shape[0], epochs, minibatches, generator):
            measures.append(self(rows, *columns))
            if self.kl_stop != float("inf") and not measures[-1][0].item() <= self.kl_stop:
                break
        return torch.stack(measures)

    def reset(self) -> None:
        """Forget Adam's moments."""
        for tensor in (self._first, self._second, self._count):
            tensor.zero_()

    def state_dict(self) -> dict:
        return {"first": self._first, "second": self._second, "count": self._count}

    def load_state_dict(self, state: dict) -> None:
        self._first.copy_(state["first"])
        self._second.copy_(state["second"])
        self._count.copy_(state["count"])

    def _views(self, flat: Float[Tensor, " parameters"]) -> Iterator[Tensor]:
        start = 0
        for shape in self._shapes:
            yield flat[start : start + shape.numel()].view(shape)
            start += shape.numel()

    def _one_step(self, flat, first, second, count, rate, correction, *tensors):
        fixed = {
            f"policy.{name}": value
            for name, value in zip(self._fixed, tensors[: len(self._fixed)], strict=True)
        }
        rows, *columns = tensors[len(self._fixed) :]
        trained = dict(zip((f"policy.{name}" for name in self._names), self._views(flat), strict=True))

        def loss(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            minibatch = tuple(column[rows] for column in columns)
            return functional_call(self._with_loss, {**fixed, **parameters}, minibatch)

        gradients, (_, measures) = grad_and_value(loss, has_aux=True)(trained)
        gradient = torch.cat([gradients[name].flatten() for name in trained])
        gradient = gradient * (self._max_gradient_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
        new_first = torch.lerp(first, gradient, 1 - 0.9)
        new_second = torch.lerp(second, gradient.square(), 1 - 0.999)
        new_flat = flat - rate * new_first / (new_second.sqrt() + self._epsilon * correction)
        taken = measures[0] <= self.kl_stop
        olds, news = (flat, first, second, count), (new_flat, new_first, new_second, count + 1)
        for old, new in zip(olds, news, strict=True):
            old.copy_(torch.where(taken, new, old))
        return (measures,)


def shuffled_minibatches(
    rows: int, epochs: int, minibatches: int, generator: torch.Generator
) -> Iterator[Int[Tensor, " minibatch"]]:
    """Every row once an epoch, in fresh random order, in `minibatches` parts whose sizes differ by at most one."""
    for _ in range(epochs):
        yield from torch.randperm(rows, generator=generator).tensor_split(minibatches)
