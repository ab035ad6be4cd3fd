"""Policy-guided diffusion: a model of the log's trajectory windows that invents experience for the current policy.

Jackson et al. 2024 (arXiv 2404.06356). `fit` learns p_off(τ) from the log; `generate` samples windows while the
gradient of log π moves their actions, so that states, rewards and ends follow; λ = 0 is unguided upsampling with the
same model.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from peira.experience.schema import Source
from peira.experience.transitions import TransitionLog
from peira.policies.denoiser import (
    CompiledDenoiser,
    Denoiser,
    DenoiserFit,
    DenoiserTraining,
    TrainingSettings,
    denoising_loss,
    make_denoiser,
    noise_levels,
)
from peira.policies.files import policy_hash, tensors_of
from peira.sources.diffusion.sampler import LogDensity, Sampler, SamplerConfig
from peira.sources.diffusion.windows import Bounds, Channels, Windows, bounds_of, cut_windows, transitions_of
from peira.sources.synthetic import SyntheticSet, TargetPolicy, equal_parts, target_log_prob

SIDE_BY_SIDE = 2048
"""Windows that go through the denoiser in one call; more are sampled in parts of equal size."""
PART = 512
"""Windows of a part of a set, between two of which a run can be taken up again."""
_VALIDATION_WINDOWS = 1024


@dataclass(frozen=True)
class FitConfig(TrainingSettings):
    """How windows are cut and the denoiser is trained. The defaults are the small-CPU preset of ``pgd.md`` 2.9."""

    length: int = 32
    """T: steps of a window."""
    stride: int = 8
    """Every stride-th start is kept, besides windows that begin an episode or end with a terminal."""
    validation_share: float = 0.05
    """Share of episodes held out for the validation loss."""
    terminal_pad: bool = True
    """Follow a terminal by one absorbing step; without it no sample ever terminates (the official slicing)."""
    low: tuple[float, ...] = (-1.0,)
    """Lower bounds of the actions, one for all or one each; -inf for none."""
    high: tuple[float, ...] = (1.0,)
    """Upper bounds of the actions."""
    out_of_bounds: Literal["error", "clip"] = "error"
    """What to do with logged actions outside the bounds."""
    network: Literal["unet", "transformer"] = "unet"
    features: int = 64
    """f: width of the U-Net's first block, or of the transformer."""
    blocks: int = 3
    """B: blocks of the U-Net, each half as long and twice as wide as the one before; layers of the transformer."""
    time_features: Literal["fourier", "sinusoidal"] = "fourier"
    """How the noise level is encoded; sinusoidal as in the official code."""

    def bounds(self, size: int) -> Bounds:
        """Bounds of every action; raises ValueError for another number of them than actions."""
        return bounds_of(self.low, self.high, size)


class TrajectoryDiffusion:
    """Averaged denoiser and channels: all that sampling needs. `id` names its weights."""

    def __init__(self, config: FitConfig, channels: Channels, denoiser: Denoiser):
        self.config, self.channels, self.denoiser = config, channels, denoiser.requires_grad_(False)
        self.id = policy_hash(denoiser)[:16]
        self._compiled = CompiledDenoiser(self.denoiser) if config.compiled else None

    @property
    def length(self) -> int:
        return self.config.length

    def denoise(
        self, z: Float[Tensor, "windows time channels"], sigma: Float[Tensor, " noise"]
    ) -> Float[Tensor, "windows time channels"]:
        """D(z; σ); where a gradient is to flow back to z, the uncompiled form."""
        if self._compiled is None or (torch.is_grad_enabled() and z.requires_grad):
            return self.denoiser(z, sigma)
        return self._compiled(z, sigma)

    def log_density(self, policy: TargetPolicy) -> LogDensity:
        """log π(a_t | s_t) in the environment's units, at the states of z-scored windows and the actions of others."""
        half = self.channels.bounds.half

        def density(
            states: Float[Tensor, "windows time channels"], actions: Float[Tensor, "windows time channels"]
        ) -> Float[Tensor, "windows time"]:
            observation, _ = self.channels.decision(states)
            _, action = self.channels.decision(actions)
            return target_log_prob(policy, observation, action, half)

        return density

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"denoiser.{name}": value for name, value in tensors_of(self.denoiser).items()}
        tensors |= {f"channels.{name}": value for name, value in self.channels.state_dict().items()}
        save_file(tensors, folder / "diffusion.safetensors")
        about = {
            "observation_size": self.channels.observation_size,
            "id": self.id,
            "config": asdict(self.config),
        }
        (folder / "diffusion.json").write_text(json.dumps(about, indent=2) + "\n")

    @staticmethod
    def load(folder: str | Path) -> TrajectoryDiffusion:
        """What `save` wrote; ValueError where the folder holds none."""
        about_path = Path(folder) / "diffusion.json"
        if not about_path.exists():
            raise ValueError(
                f"model: {folder} holds no diffusion.json; name a folder that a fitted model was saved to"
            )
        about = json.loads(about_path.read_text())
        settings = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in about["config"].items()
        }
        config = FitConfig(**settings)
        tensors = load_file(Path(folder) / "diffusion.safetensors")
        of_channels, of_denoiser = (
            {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}
            for head in ("channels.", "denoiser.")
        )
        channels = Channels.from_state(about["observation_size"], of_channels)
        denoiser = fresh_denoiser(config, channels, None)
        denoiser.load_state_dict(of_denoiser)
        return TrajectoryDiffusion(config, channels, denoiser)


def fresh_denoiser(config: FitConfig, channels: Channels, generator: torch.Generator | None) -> Denoiser:
    """An untrained denoiser of these windows."""
    return make_denoiser(
        channels.size,
        network=config.network,
        features=config.features,
        blocks=config.blocks,
        time_features=config.time_features,
        generator=generator,
    )


class DiffusionFit(DenoiserFit):
    """The training of a model of a log's windows.

    Everything random follows from `seed`: the episodes held out, the first weights, the windows and noise of every
    update. Raises ValueError as `cut_windows` does.
    """

    def __init__(self, log: TransitionLog, config: FitConfig, seed: int):
        self.config = config
        self._generator = torch.Generator().manual_seed(seed)
        self.windows: Windows = cut_windows(
            log,
            config.bounds(log.action_size),
            length=config.length,
            stride=config.stride,
            validation_share=config.validation_share,
            terminal_pad=config.terminal_pad,
            out_of_bounds=config.out_of_bounds,
            generator=self._generator,
        )
        self._validation_seed = seed
        denoiser = fresh_denoiser(config, self.windows.channels, self._generator)
        super().__init__(DenoiserTraining(denoiser, config, self._generator))

    def model(self) -> TrajectoryDiffusion:
        """The model with the averaged weights of now."""
        fresh = fresh_denoiser(self.config, self.windows.channels, None)
        return TrajectoryDiffusion(self.config, self.windows.channels, self._training.averaged(fresh))

    def validation_loss(self) -> float | None:
        """The averaged denoiser's loss on windows of held-out episodes, always under the same noise; None if none."""
        held = self.windows.held_out
        if len(held) == 0:
            return None
        generator = torch.Generator().manual_seed(self._validation_seed)
        clean = self.windows.at(held[torch.randperm(len(held), generator=generator)[:_VALIDATION_WINDOWS]])
        noise = torch.randn(clean.shape, generator=generator)
        denoiser = self._training.averaged(fresh_denoiser(self.config, self.windows.channels, None))
        with torch.no_grad():
            loss, _ = denoising_loss(denoiser, clean, noise, noise_levels(len(clean), generator))
        return loss.item()

    def _batch(self, count: int) -> Float[Tensor, "windows time channels"]:
        return self.windows.batch(count, self._generator)


def fit(log: TransitionLog, config: FitConfig, generator: torch.Generator) -> TrajectoryDiffusion:
    """Learn the log's windows from start to end; for training that can be taken up again see `DiffusionFit`.

    Raises ValueError for what `cut_windows` refuses.
    """
    training = DiffusionFit(log, config, _seed(generator))
    while not training.is_over:
        training.advance(1000)
    return training.model()


def generate(
    model: TrajectoryDiffusion,
    policy: TargetPolicy | None,
    guidance: SamplerConfig,
    n: int,
    generator: torch.Generator,
    *,
    length: int | None = None,
    behaviour: TargetPolicy | None = None,
    side_by_side: int = SIDE_BY_SIDE,
) -> Float[Tensor, "windows time channels"]:
    """`n` windows, z-scored as the model's channels are, guided by `policy`; None, or strength 0, for unguided ones.

    `behaviour` is a policy fitted to the log, for guidance with κ > 0. `length` defaults to the windows' own; another
    one draws a warning. At most `side_by_side` windows are sampled in one call. Raises ValueError where a policy's
    gradient is not finite, or does not exist.
    """
    length = model.length if length is None else length
    if n < 1:
        raise ValueError(f"n: expected at least 1 window, got {n}")
    if length != model.length:
        warnings.warn(
            f"length: windows of {length} steps from a model of {model.length}; the network extrapolates",
            stacklevel=2,
        )
    sampler = Sampler(
        model.denoise,
        guidance,
        actions=model.channels.actions,
        log_density=None if policy is None else model.log_density(policy),
        behaviour_density=None if behaviour is None else model.log_density(behaviour),
    )
    shape = (length, model.channels.size)
    with _frozen(policy), _frozen(behaviour):
        return torch.cat([sampler.sample(size, shape, generator) for size in equal_parts(n, side_by_side)])


def as_experience(
    model: TrajectoryDiffusion,
    z: Float[Tensor, "windows time channels"],
    policy: TargetPolicy | None,
    guidance: SamplerConfig,
    seed: int,
) -> SyntheticSet:
    """Transitions of generated windows with their provenance; guided if a policy and a strength were there.

    `policy` is what guided them, or, where the strength was 0, what mean log π is to be told for (None for nothing).
    """
    transitions = transitions_of(model.channels, z)
    guided = policy is not None and guidance.strength > 0
    about = {
        "generator_id": model.id,
        "strength": float(guidance.strength) if guided else 0.0,
        "mode": guidance.guidance if guided else "none",
        "steps": guidance.steps,
        "seed": seed,
        "mean_log_pi": None,
    }
    if policy is not None:
        with torch.no_grad():
            told = target_log_prob(
                policy, transitions.observation, transitions.action, model.channels.bounds.half
            )
        about["mean_log_pi"] = told.mean().item()
    return SyntheticSet(
        transitions,
        Source.GUIDED if guided else Source.DREAMED,
        getattr(policy, "id", None) or None if guided else None,
        getattr(policy, "version", None) if guided else None,
        about,
    )


@dataclass(frozen=True)
class DiffusionSource:
    """A fitted model as a source of experience: `windows` a set, guided if λ > 0."""

    model: TrajectoryDiffusion
    guidance: SamplerConfig
    windows: int = 2048
    behaviour: TargetPolicy | None = None

    @property
    def parts(self) -> list[int]:
        return equal_parts(self.windows, PART)

    def part(
        self, size: int, policy: TargetPolicy | None, generator: torch.Generator
    ) -> Float[Tensor, "windows time channels"]:
        return generate(self.model, policy, self.guidance, size, generator, behaviour=self.behaviour)

    def assemble(self, parts: Sequence[Tensor], policy: TargetPolicy | None, seed: int) -> SyntheticSet:
        return as_experience(self.model, torch.cat(list(parts)), policy, self.guidance, seed)


@contextlib.contextmanager
def _frozen(policy: TargetPolicy | None) -> Iterator[None]:
    """No graph is kept for the parameters of a policy whose gradient with respect to actions is asked for."""
    trained = [p for p in policy.parameters() if p.requires_grad] if isinstance(policy, nn.Module) else []
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31 - 1, (1,), generator=generator))
