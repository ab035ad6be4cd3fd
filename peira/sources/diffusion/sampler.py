"""Windows out of noise, with or without the gradient of a policy's log-density (``pgd.md`` 2.4, 2.5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Denoise = Callable[[Float[Tensor, "windows time channels"], Float[Tensor, " noise"]], Tensor]
LogDensity = Callable[
    [Float[Tensor, "windows time channels"], Float[Tensor, "windows time channels"]],
    Float[Tensor, "windows time"],
]
"""log π of every step of z-scored windows: states are read from the first argument, actions from the second."""

_BLOCK = 1024
"""Steps whose policy gradient is taken together: what a policy's layers hold of them stays in the cache."""
_SMALLEST_NORM = 1e-8
"""A gradient shorter than this is not made longer: where it is 0 there is no direction to go."""


@dataclass(frozen=True)
class SamplerConfig:
    """Noise levels, stochasticity and guidance; defaults for N = 64 (``pgd.md`` 2.10), the code's in `OFFICIAL`.

    Guidance with strength λ and log-density ℓ = Σ_t log π(a_t | s_t) of the window:
    recipe      before each step the actions move by λ_i g, g = ∇_a ℓ of unit length and not multiplied by σ;
                λ_i = λ [(1 − i/N) + cosine·sin(π(i + 1)/N)], 0 in the last step. The official code's.
    dps-after   D_λ = D + σ²λ·M(∂D/∂x)ᵀ∇ℓ(D): the pulled-back gradient moves actions only.
    dps-before  D_λ = D + σ²λ·(∂D/∂x)ᵀM∇ℓ(D): the gradient of actions only, pulled back to everything.
    dps-full    D_λ = D + σ²λ·(∂D/∂x)ᵀ∇ℓ(D): nearest to p(τ)·Ππ^λ.
    stopgrad    D_λ = D + min(σ², cap²)λ·M∇ℓ(D), without the Jacobian.
    """

    steps: int = 64
    """N: noise levels."""
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    """How far the levels crowd towards sigma_min."""
    churn: float = 19.2
    """S_churn: noise is raised by γ = min(S_churn/N, √2 − 1) before a step; 0 for the ODE."""
    churn_low: float = 0.05
    churn_high: float = 50.0
    churn_noise: float = 1.0
    """S_noise: deviation of the noise that is added."""
    order: Literal["heun", "euler"] = "heun"
    guidance: Literal["recipe", "dps-after", "dps-before", "dps-full", "stopgrad"] = "recipe"
    strength: float = 1.0
    """λ; 0 for none."""
    cosine: float = 0.3
    """Weight of the bump over the steps, in the recipe."""
    normalise: Literal["window", "step", "none"] = "window"
    """Over what the recipe's gradient has unit length: the whole window, as in the code, or each time step."""
    denoised: bool = True
    """Whether the recipe takes the gradient at the denoised window, or at the noisy one."""
    sigma_cap: float = 1.0
    """Largest σ that stopgrad multiplies by."""
    negative_behaviour: float = 0.0
    """κ: weight of the behaviour policy's log-density, which is subtracted (STITCH-OPE)."""
    gradient_clamp: float | None = None
    """Largest entry of either gradient with respect to z-scored windows; None for no limit."""

    def __post_init__(self) -> None:
        for name, low in (("steps", 2), ("sigma_min", 1e-6), ("rho", 1), ("churn", 0), ("strength", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(
                f"sigma_max: expected more than sigma_min={self.sigma_min}, got {self.sigma_max}"
            )
        if self.negative_behaviour and not self.strength:
            raise ValueError(
                f"negative_behaviour: {self.negative_behaviour} without a strength; raise strength above 0"
            )

    def levels(self) -> list[float]:
        """σ_0 … σ_{N−1}, and 0: (σ_max^{1/ρ} + i/(N − 1)(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ."""
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [(first + i / (self.steps - 1) * (last - first)) ** self.rho for i in range(self.steps)] + [
            0.0
        ]

    def raised(self, sigma: float) -> float:
        """σ̂: the level after churn."""
        churned = self.churn_low <= sigma <= self.churn_high
        return sigma * (1 + (min(self.churn / self.steps, math.sqrt(2) - 1) if churned else 0.0))

    def recipe_strength(self, step: int) -> float:
        """λ_i of the recipe."""
        if step == self.steps - 1:
            return 0.0
        bump = self.cosine * math.sin(math.pi * (step + 1) / self.steps)
        return self.strength * (1 - step / self.steps + bump)


OFFICIAL = SamplerConfig(steps=256, churn=80.0, churn_noise=1.003)
"""The official code's constants, with its two stabilisers on."""


class Sampler:
    """EDM's sampler (Karras et al. 2022, algorithm 2) with guidance.

    `denoise(x, sigma)` gives the clean windows. `log_density` gives log π of every step of z-scored windows, and
    `behaviour_density` the behaviour policy's, where κ is not 0; gradients are taken through them. All windows go
    through every call together, and no window's result depends on another's.
    """

    def __init__(
        self,
        denoise: Denoise,
        config: SamplerConfig,
        *,
        actions: slice,
        log_density: LogDensity | None = None,
        behaviour_density: LogDensity | None = None,
    ):
        if config.negative_behaviour and behaviour_density is None:
            raise ValueError(
                "negative_behaviour: needs a behaviour policy; fit one to the log, or set it to 0"
            )
        self.denoise, self.config, self.actions = denoise, config, actions
        self.levels = config.levels()
        self._density, self._behaviour = log_density, behaviour_density
        self.guided = log_density is not None and config.strength > 0

    def sample(
        self, windows: int, shape: tuple[int, int], generator: torch.Generator
    ) -> Float[Tensor, "windows time channels"]:
        """`windows` windows of `shape` (time, channels); the same generator gives the same noise, guided or not."""
        x = self.levels[0] * torch.randn(windows, *shape, generator=generator)
        for step, sigma in enumerate(self.levels[:-1]):
            churned = self.config.raised(sigma) > sigma
            noise = torch.randn(x.shape, generator=generator) if churned else None
            x = self.step(x, step, noise)
        return x

    def step(
        self,
        x: Float[Tensor, "windows time channels"],
        step: int,
        noise: Float[Tensor, "windows time channels"] | None,
    ) -> Float[Tensor, "windows time channels"]:
        """From level σ_step to the next: guidance of the recipe, churn with this noise, Euler, Heun's correction."""
        sigma, after = self.levels[step], self.levels[step + 1]
        if self.guided and self.config.guidance == "recipe":
            x = self._nudged(x, step)
        raised = self.config.raised(sigma)
        if raised > sigma:
            x = x + math.sqrt(raised**2 - sigma**2) * self.config.churn_noise * noise
        slope = (x - self._guided_denoise(x, raised)) / raised
        following = x + (after - raised) * slope
        if after > 0 and self.config.order == "heun":
            corrected = (following - self._guided_denoise(following, after)) / after
            following = x + (after - raised) * (slope + corrected) / 2
        return following

    def _nudged(self, x: Tensor, step: int) -> Tensor:
        strength = self.config.recipe_strength(step)
        if strength == 0:
            return x
        sigma = self.levels[step]
        at = self._denoised(x, sigma) if self.config.denoised else x
        direction = self._gradient(at, sigma) / self.config.strength
        if self.config.normalise != "none":
            over = (1, 2) if self.config.normalise == "window" else 2
            norm = torch.linalg.vector_norm(direction, dim=over, keepdim=True)
            direction = direction / norm.clamp(min=_SMALLEST_NORM)
        x = x.clone()
        x[..., self.actions] += strength * direction
        return x

    def _guided_denoise(self, x: Tensor, sigma: float) -> Tensor:
        mode = self.config.guidance
        if not self.guided or mode == "recipe":
            return self._denoised(x, sigma)
        if mode == "stopgrad":
            clean = self._denoised(x, sigma)
            clean[..., self.actions] += min(sigma, self.config.sigma_cap) ** 2 * self._gradient(clean, sigma)
            return clean
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            clean = self.denoise(leaf, self._level(x, sigma))
        if mode == "dps-before":
            gradient = torch.zeros_like(x)
            gradient[..., self.actions] = self._gradient(clean, sigma)
        else:
            gradient = self._gradient(clean, sigma, states=True)
        (pulled,) = torch.autograd.grad(clean, leaf, gradient)
        clean = clean.detach()
        if mode == "dps-after":
            clean[..., self.actions] += sigma**2 * pulled[..., self.actions]
            return clean
        return torch.add(clean, pulled, alpha=sigma**2)

    def _gradient(self, z: Tensor, sigma: float, *, states: bool = False) -> Tensor:
        """λ∇log π − κ∇log π̂_b with respect to the actions of z-scored windows, or to all of their channels."""
        gradient = self.config.strength * self._gradient_of(self._density, z, "policy", sigma, states)
        if self.config.negative_behaviour:
            of_behaviour = self._gradient_of(self._behaviour, z, "behaviour", sigma, states)
            gradient = gradient - self.config.negative_behaviour * of_behaviour
        return gradient

    def _gradient_of(self, density: LogDensity, z: Tensor, name: str, sigma: float, states: bool) -> Tensor:
        blocks = z.detach().split(max(1, _BLOCK // z.shape[1]))
        gradient = torch.cat([self._gradient_in_block(density, block, name, states) for block in blocks])
        if not math.isfinite(gradient.sum().item()) and not bool(gradient.isfinite().all()):
            raise ValueError(
                f"{name}: the gradient of its log_prob is not finite at noise level {sigma:.3g} in "
                f"{int((~gradient.isfinite().flatten(1).all(1)).sum())} of {len(z)} windows; look at its parameters"
            )
        if self.config.gradient_clamp is not None:
            gradient = gradient.clamp(-self.config.gradient_clamp, self.config.gradient_clamp)
        return gradient

    def _gradient_in_block(self, density: LogDensity, z: Tensor, name: str, states: bool) -> Tensor:
        with torch.enable_grad():
            leaf = (z if states else z[..., self.actions]).clone().requires_grad_()
            before, after = z[..., : self.actions.start], z[..., self.actions.stop :]
            # Where states are held, nothing flows back through what the policy makes of them.
            total = (
                density(leaf, leaf) if states else density(z, torch.cat([before, leaf, after], -1))
            ).sum()
            if not total.requires_grad:
                raise ValueError(
                    f"{name}: its log_prob does not depend on the action differentiably; use torch in it"
                )
            return torch.autograd.grad(total, leaf)[0]

    def _denoised(self, x: Tensor, sigma: float) -> Tensor:
        with torch.no_grad():
            return self.denoise(x, self._level(x, sigma))

    def _level(self, x: Tensor, sigma: float) -> Float[Tensor, " noise"]:
        return torch.full((1,), sigma, dtype=x.dtype)
