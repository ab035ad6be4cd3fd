"""SynthER: diffusion over single transitions (s, a, r, s', terminal), the baseline without a trajectory or a policy.

Lu et al. 2023 (arXiv 2303.06614); constants of ``pgd.md`` 2.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from peira.experience.schema import Source
from peira.experience.transitions import TransitionLog
from peira.policies.denoiser import (
    CompiledDenoiser,
    Denoiser,
    DenoiserFit,
    DenoiserTraining,
    RandomFourier,
    TrainingSettings,
    initialise_,
)
from peira.policies.files import policy_hash
from peira.sources.diffusion.sampler import OFFICIAL, Sampler, SamplerConfig
from peira.sources.diffusion.windows import bounds_of
from peira.sources.standardise import Standardiser
from peira.sources.synthetic import SyntheticSet, TargetPolicy, equal_parts

SYNTHER_SAMPLER = replace(OFFICIAL, steps=128)
SIDE_BY_SIDE = 16_384


class ResidualMLP(nn.Module):
    """x ← x + Linear(ReLU(LayerNorm(x) + Linear(time))) in `blocks` blocks of one width; reads windows of one step."""

    def __init__(self, channels: int, width: int, blocks: int, generator: torch.Generator | None = None):
        super().__init__()
        encoding = RandomFourier(generator)
        self.time = nn.Sequential(
            encoding, nn.Linear(encoding.size, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.enter = nn.Linear(channels, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, channels)
        initialise_(self, generator)

    def forward(
        self, x: Float[Tensor, "windows 1 channels"], feature: Float[Tensor, " noise"]
    ) -> Float[Tensor, "windows 1 channels"]:
        embedded = self.time(feature)
        x = self.enter(x.squeeze(1)) + embedded
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(functional.relu(norm(x) + embedded))
        return self.out(functional.relu(self.norm(x))).unsqueeze(1)


@dataclass(frozen=True)
class SyntherConfig(TrainingSettings):
    """The defaults are for a small CPU; the code has width 1024 to 2048 and 100 000 updates of 256 or 1024 rows."""

    width: int = 256
    blocks: int = 6
    batch_size: int = 256
    learning_rate: float = 3e-4
    low: tuple[float, ...] = (-1.0,)
    high: tuple[float, ...] = (1.0,)
    """Bounds of the actions, to which samples are clipped."""


class SyntherFit(DenoiserFit):
    """The training of the transition model.

    Columns s, a, r, s' are z-scored, the terminal is not. Everything random follows from `seed`.
    """

    def __init__(self, log: TransitionLog, config: SyntherConfig, seed: int):
        self.config = config
        self._generator = torch.Generator().manual_seed(seed)
        bounds_of(config.low, config.high, log.action_size).check(log.action, "")
        terminal = log.terminated.float()[:, None]
        columns = torch.cat(
            [log.observation, log.action, log.reward[:, None], log.next_observation, terminal], 1
        )
        self.sizes = (log.observation_size, log.action_size)
        self.scores = _without_last(Standardiser.of(columns))
        self._rows = self.scores.z(columns)[:, None]
        super().__init__(DenoiserTraining(self._fresh(self._generator), config, self._generator))

    def denoiser(self) -> Denoiser:
        """The denoiser with the averaged weights of now, frozen."""
        return self._training.averaged(self._fresh(None))

    def _fresh(self, generator: torch.Generator | None) -> Denoiser:
        return Denoiser(ResidualMLP(len(self.scores.mean), self.config.width, self.config.blocks, generator))

    def _batch(self, count: int) -> Float[Tensor, "windows time channels"]:
        return self._rows[torch.randint(len(self._rows), (count,), generator=self._generator)]


class SyntherSource:
    """Transitions drawn from the model, each an episode of its own; no policy has a say."""

    def __init__(self, trained: SyntherFit, *, transitions: int, sampler: SamplerConfig = SYNTHER_SAMPLER):
        self._sizes, self._scores = trained.sizes, trained.scores
        denoiser = trained.denoiser()
        self.id = policy_hash(denoiser)[:16]
        self.bounds = bounds_of(trained.config.low, trained.config.high, trained.sizes[1])
        self.transitions = transitions
        self.config = sampler
        denoise = CompiledDenoiser(denoiser) if trained.config.compiled else denoiser
        self._sampler = Sampler(denoise, sampler, actions=slice(0, 0))

    @property
    def parts(self) -> list[int]:
        return equal_parts(self.transitions, SIDE_BY_SIDE)

    def part(
        self, size: int, policy: TargetPolicy | None, generator: torch.Generator
    ) -> Float[Tensor, "rows columns"]:
        """z-scored rows; the policy is not asked."""
        return self._sampler.sample(size, (1, len(self._scores.mean)), generator).squeeze(1)

    def assemble(self, parts: Sequence[Tensor], policy: TargetPolicy | None, seed: int) -> SyntheticSet:
        rows = self._scores.raw(torch.cat(list(parts)))
        obs, act = self._sizes
        observation, action, reward, following, terminal = rows.split([obs, act, 1, obs, 1], 1)
        terminated = terminal.squeeze(1) > 0.5
        log = TransitionLog(
            observation=observation,
            action=self.bounds.clip(action),
            reward=reward.squeeze(1),
            next_observation=following,
            terminated=terminated,
            truncated=~terminated,
            first=torch.arange(len(rows) + 1),
        )
        about = {
            "generator_id": self.id,
            "strength": 0.0,
            "mode": "none",
            "steps": self.config.steps,
            "seed": seed,
        }
        return SyntheticSet(log, Source.DREAMED, None, None, about)


def _without_last(scores: Standardiser) -> Standardiser:
    """The last column as it is."""
    mean, deviation, constant = scores.mean.clone(), scores.deviation.clone(), scores.constant.clone()
    mean[-1], deviation[-1], constant[-1] = 0.0, 1.0, False
    return Standardiser(mean, deviation, constant)
