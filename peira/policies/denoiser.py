"""Denoisers of trajectory windows: EDM's preconditioning and loss, a 1-D U-Net over time, a small transformer, EMA.

Karras et al. 2022 (arXiv 2206.00364); architecture and constants of the policy-guided diffusion code (``pgd.md`` 2.3).
Windows are z-scored, `[windows, time, channels]`, so that the deviation of the data is 1.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from peira.policies.compiled import compile_function
from peira.policies.gradient_step import GradientStep

P_MEAN, P_STD = -1.2, 1.2
"""Of ln σ in training."""
GROUPS = 8
FOURIER_FREQUENCIES = 8

TimeFeatures = Literal["fourier", "sinusoidal"]


class Sinusoidal(nn.Module):
    """sin and cos of the noise feature at `count` frequencies from 1 down to 1e-4, as in the official code.

    Over the range of ln(σ)/4, [−1.6, 1.1], this is nearly linear: ``pgd.md`` 2.3 calls it a trap.
    """

    def __init__(self, count: int):
        super().__init__()
        self.size = 2 * count
        self.register_buffer("frequency", torch.logspace(0.0, -4.0, count))

    def forward(self, feature: Float[Tensor, " noise"]) -> Float[Tensor, "noise size"]:
        angle = feature[:, None] * self.frequency
        return torch.cat([angle.sin(), angle.cos()], -1)


class RandomFourier(nn.Module):
    """The feature itself, and sin and cos of 2πxw for 8 fixed w ~ N(0, 1), as in SynthER."""

    def __init__(self, generator: torch.Generator | None):
        super().__init__()
        self.size = 2 * FOURIER_FREQUENCIES + 1
        self.register_buffer("frequency", torch.randn(FOURIER_FREQUENCIES, generator=generator))

    def forward(self, feature: Float[Tensor, " noise"]) -> Float[Tensor, "noise size"]:
        angle = 2 * math.pi * feature[:, None] * self.frequency
        return torch.cat([feature[:, None], angle.sin(), angle.cos()], -1)


class TemporalUNet(nn.Module):
    """1-D convolutions over time at widths features·2ⁱ, i = 0 … blocks − 1 (``pgd.md`` 2.3).

    Encoder block: Conv3, plus Linear(SiLU(t)), GroupNorm, ReLU, Conv3, GroupNorm, ReLU; between blocks the time axis is
    halved by max-pooling, odd lengths rounded up. Decoder block: nearest upsampling to the stored length, Conv2, plus
    t, GroupNorm, ReLU, concatenation with what was stored, two times Conv3, GroupNorm, ReLU. Any length works.
    """

    def __init__(
        self,
        channels: int,
        *,
        features: int,
        blocks: int,
        time_features: TimeFeatures,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if features % GROUPS:
            raise ValueError(f"features: expected a multiple of {GROUPS}, got {features}")
        self.time = _time_embedding(features, time_features, generator)
        widths = [features * 2**block for block in range(blocks)]
        self.down = nn.ModuleList(
            _Down(width_in, width, features)
            for width_in, width in zip([channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _Up(deeper, width, features)
            for deeper, width in reversed(list(zip(widths[1:], widths, strict=False)))
        )
        self.out = nn.Conv1d(features, channels, 1)
        initialise_(self, generator)

    def forward(
        self, x: Float[Tensor, "windows time channels"], feature: Float[Tensor, " noise"]
    ) -> Float[Tensor, "windows time channels"]:
        """F(x; feature), where `feature` holds one noise level a window, or one for all."""
        embedded = functional.silu(self.time(feature))
        x = x.transpose(1, 2)
        stored = []
        for depth, block in enumerate(self.down):
            if depth:
                stored.append(x)
                x = functional.max_pool1d(x, 2, ceil_mode=True)
            x = block(x, embedded)
        for block in self.up:
            x = block(x, stored.pop(), embedded)
        return self.out(x).transpose(1, 2)


class _Down(nn.Module):
    def __init__(self, width_in: int, width: int, features: int):
        super().__init__()
        self.first = nn.Conv1d(width_in, width, 3, padding=1)
        self.time = nn.Linear(features, width)
        self.first_norm = nn.GroupNorm(GROUPS, width)
        self.second = nn.Conv1d(width, width, 3, padding=1)
        self.second_norm = nn.GroupNorm(GROUPS, width)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        x = functional.relu(self.first_norm(self.first(x) + self.time(embedded)[:, :, None]))
        return functional.relu(self.second_norm(self.second(x)))


class _Up(nn.Module):
    def __init__(self, width_in: int, width: int, features: int):
        super().__init__()
        self.widen = nn.Conv1d(width_in, width, 2)
        self.time = nn.Linear(features, width)
        self.widen_norm = nn.GroupNorm(GROUPS, width)
        self.first = nn.Conv1d(2 * width, width, 3, padding=1)
        self.first_norm = nn.GroupNorm(GROUPS, width)
        self.second = nn.Conv1d(width, width, 3, padding=1)
        self.second_norm = nn.GroupNorm(GROUPS, width)

    def forward(self, x: Tensor, stored: Tensor, embedded: Tensor) -> Tensor:
        x = x.repeat_interleave(2, -1)[:, :, : stored.shape[-1]]
        x = self.widen(functional.pad(x, (0, 1)))
        x = functional.relu(self.widen_norm(x + self.time(embedded)[:, :, None]))
        x = functional.relu(self.first_norm(self.first(torch.cat([x, stored], 1))))
        return functional.relu(self.second_norm(self.second(x)))


class TemporalTransformer(nn.Module):
    """Pre-norm transformer over time with sinusoidal positions; the noise level is added to every token.

    `blocks` layers of width `features`, 4 heads, feed-forward layers of twice the width. Any length works.
    """

    HEADS = 4

    def __init__(
        self,
        channels: int,
        *,
        features: int,
        blocks: int,
        time_features: TimeFeatures,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if features % (2 * self.HEADS):
            raise ValueError(f"features: expected a multiple of {2 * self.HEADS}, got {features}")
        self.time = _time_embedding(features, time_features, generator)
        self.register_buffer("frequency", torch.logspace(0.0, -3.0, features // 2))
        self.enter = nn.Linear(channels, features)
        self.layers = nn.ModuleList(_Layer(features, self.HEADS) for _ in range(blocks))
        self.norm = nn.LayerNorm(features)
        self.out = nn.Linear(features, channels)
        initialise_(self, generator)

    def forward(
        self, x: Float[Tensor, "windows time channels"], feature: Float[Tensor, " noise"]
    ) -> Float[Tensor, "windows time channels"]:
        """F(x; feature), where `feature` holds one noise level a window, or one for all."""
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * self.frequency
        x = self.enter(x) + torch.cat([angle.sin(), angle.cos()], -1) + self.time(feature)[:, None]
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weight = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        x = x + self.merge((weight @ value).transpose(1, 2).reshape(batch, time, width))
        return x + self.narrow(functional.gelu(self.widen(self.forward_norm(x))))


NETWORKS = {"unet": TemporalUNet, "transformer": TemporalTransformer}


class Denoiser(nn.Module):
    """D(x; σ) = c_skip x + c_out F(c_in x; ln(σ)/4), the best guess at the clean window behind x.

    c_skip = 1/(σ² + 1), c_out = σ/√(σ² + 1), c_in = 1/√(σ² + 1), for data of deviation 1 (EDM, table 1).
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(
        self, x: Float[Tensor, "windows time channels"], sigma: Float[Tensor, " noise"]
    ) -> Float[Tensor, "windows time channels"]:
        """The clean window, given one noise level a window or one for all."""
        level = sigma[:, None, None]
        inverse = 1 / (level.square() + 1)
        scale = inverse.sqrt()
        return inverse * x + level * scale * self.network(scale * x, sigma.log() / 4)


def make_denoiser(
    channels: int,
    *,
    network: Literal["unet", "transformer"] = "unet",
    features: int = 64,
    blocks: int = 3,
    time_features: TimeFeatures = "fourier",
    generator: torch.Generator | None = None,
) -> Denoiser:
    """A fresh denoiser of windows with this many channels; raises ValueError for sizes that do not divide."""
    kind = NETWORKS[network]
    return Denoiser(
        kind(channels, features=features, blocks=blocks, time_features=time_features, generator=generator)
    )


def noise_levels(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Training's noise levels: ln σ ~ N(−1.2, 1.2²)."""
    return (torch.randn(count, generator=generator) * P_STD + P_MEAN).exp()


def denoising_loss(
    denoiser: nn.Module,
    clean: Float[Tensor, "windows time channels"],
    noise: Float[Tensor, "windows time channels"],
    sigma: Float[Tensor, " windows"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " measures"]]:
    """EDM's loss: the mean over windows of (σ² + 1)/σ² · mean (D(x + σn; σ) − x)²; its value is the one measure.

    The weight makes the loss of a freshly initialised network about 1 at every noise level.
    """
    level = sigma[:, None, None]
    error = (denoiser(clean + level * noise, sigma) - clean).square().mean((1, 2))
    loss = (error * (sigma.square() + 1) / sigma.square()).mean()
    return loss, loss.detach()[None]


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """From 0.1·peak linearly to the peak over the first tenth of the steps, then along a cosine to 0."""
    warm = max(1, steps // 10)
    if step < warm:
        return peak * (0.1 + 0.9 * step / warm)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class MovingAverage:
    """θ_ema ← d·θ_ema + (1 − d)·θ at every `every`-th call; what is saved and sampled from.

    d is `decay`, but at the k-th move at most k/(k + 9), so that a short training is not averaged with its start.
    """

    def __init__(self, parameters: Float[Tensor, " parameters"], *, decay: float = 0.995, every: int = 10):
        self.average = parameters.detach().clone()
        self.decay, self.every = decay, every
        self._calls = 0

    def update(self, parameters: Float[Tensor, " parameters"]) -> None:
        self._calls += 1
        if self._calls % self.every == 0:
            moves = self._calls // self.every
            self.average.lerp_(parameters, 1 - min(self.decay, moves / (moves + 9)))

    def state_dict(self) -> dict:
        return {"average": self.average, "calls": self._calls}

    def load_state_dict(self, state: dict) -> None:
        self.average.copy_(state["average"])
        self._calls = state["calls"]


@dataclass(frozen=True)
class TrainingSettings:
    """How a denoiser is trained."""

    updates: int = 10_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    """Adam's, at its peak."""
    ema_decay: float = 0.995
    ema_every: int = 10
    """Updates between moves of the averaged weights."""
    compiled: bool = True
    """Compile training step and denoiser to native code (needs a C++ compiler)."""


class DenoiserTraining:
    """Adam on the EDM loss with warm-up, cosine and an average of the weights; resumes bit for bit.

    `batch(count)` gives that many clean windows, z-scored; noise is drawn from `generator`, whose state is kept here.
    """

    def __init__(self, denoiser: Denoiser, settings: TrainingSettings, generator: torch.Generator):
        self.denoiser, self.steps, self.batch_size = denoiser, settings.updates, settings.batch_size
        self._peak, self._generator = settings.learning_rate, generator
        self._step = GradientStep(
            denoiser,
            denoising_loss,
            learning_rate=settings.learning_rate,
            max_gradient_norm=math.inf,
            epsilon=1e-8,
            compiled=settings.compiled,
        )
        self.average = MovingAverage(
            self._step.parameters, decay=settings.ema_decay, every=settings.ema_every
        )
        self.step = 0
        self._rows = torch.arange(settings.batch_size)

    @property
    def is_over(self) -> bool:
        return self.step >= self.steps

    def advance(self, updates: int, batch: Callable[[int], Float[Tensor, "windows time channels"]]) -> float:
        """At most this many updates, no more than are left; the mean loss over them."""
        losses = []
        for _ in range(min(updates, self.steps - self.step)):
            clean = batch(self.batch_size)
            sigma = noise_levels(self.batch_size, self._generator)
            noise = torch.randn(clean.shape, generator=self._generator)
            self._step.learning_rate.fill_(learning_rate_at(self.step, self.steps, self._peak))
            losses.append(self._step(self._rows, clean, noise, sigma))
            self.average.update(self._step.parameters)
            self.step += 1
        loss = torch.cat(losses).mean().item()
        if not math.isfinite(loss):
            raise ValueError(
                f"learning_rate: the denoising loss is {loss} after {self.step} updates at {self._peak:g}; lower it"
            )
        return loss

    def averaged(self, fresh: Denoiser) -> Denoiser:
        """`fresh`, a denoiser of the same shape, given the averaged weights, frozen."""
        state, start = self.denoiser.state_dict(), 0
        for name, parameter in self.denoiser.named_parameters():
            state[name] = self.average.average[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        fresh.load_state_dict(state)
        return fresh.requires_grad_(False)

    def state_dict(self) -> dict:
        return {
            "denoiser": dict(self.denoiser.state_dict()),
            "adam": self._step.state_dict(),
            "average": self.average.state_dict(),
            "step": self.step,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.denoiser.load_state_dict(state["denoiser"])
        self._step.load_state_dict(state["adam"])
        self.average.load_state_dict(state["average"])
        self.step = state["step"]
        self._generator.set_state(state["generator"])


class DenoiserFit(abc.ABC):
    """A denoiser learned from batches that a subclass draws, piece by piece; its state resumes bit for bit."""

    def __init__(self, training: DenoiserTraining):
        self._training = training

    @property
    def step(self) -> int:
        return self._training.step

    @property
    def is_over(self) -> bool:
        return self._training.is_over

    def advance(self, updates: int) -> float:
        """At most this many updates; the mean loss over them."""
        return self._training.advance(updates, self._batch)

    def state_dict(self) -> dict:
        return self._training.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._training.load_state_dict(state)

    @abc.abstractmethod
    def _batch(self, count: int) -> Float[Tensor, "windows time channels"]: ...


class CompiledDenoiser:
    """`denoiser(x, sigma)` as one native call for windows shaped like the first; its weights must not change."""

    def __init__(self, denoiser: Denoiser):
        self._denoiser = denoiser
        self._tensors = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}
        self._functions: dict[torch.Size, Callable[..., tuple[Tensor, ...]]] = {}

    def __call__(
        self, x: Float[Tensor, "windows time channels"], sigma: Float[Tensor, " noise"]
    ) -> Float[Tensor, "windows time channels"]:
        arguments = [x.contiguous(), sigma, *self._tensors.values()]
        if x.shape not in self._functions:
            self._functions[x.shape] = compile_function(self._denoise, arguments)
        return self._functions[x.shape](*arguments)[0]

    def _denoise(self, x: Tensor, sigma: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        named = dict(zip(self._tensors, tensors, strict=True))
        return (torch.func.functional_call(self._denoiser, named, (x, sigma)),)


def initialise_(module: nn.Module, generator: torch.Generator | None) -> None:
    """Weights N(0, 1/fan-in) cut at two deviations (LeCun normal, as the official code's), biases 0; `module.out` all
    0.

    The denoiser then begins as c_skip·x, which is right at the largest noise, where training hardly ever looks (EDM).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            deviation = 1 / math.sqrt(layer.weight[0].numel()) / 0.87962566
            nn.init.trunc_normal_(
                layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator
            )
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(module.out.weight)


def _time_embedding(features: int, kind: TimeFeatures, generator: torch.Generator | None) -> nn.Sequential:
    encoding = RandomFourier(generator) if kind == "fourier" else Sinusoidal(features // 8)
    return nn.Sequential(
        encoding, nn.Linear(encoding.size, features), nn.SiLU(), nn.Linear(features, features)
    )
