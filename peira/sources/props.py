"""Proximal robust on-policy sampling: a behaviour policy that gathers what has been sampled too rarely.

The behaviour policy φ starts each update as a copy of the target θ and lowers the probability of what the window
already holds, so that window and new steps together look as if drawn from θ (``props.md`` 2.4–2.6).
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributions import Categorical, Independent

from peira.policies.actor_critic import ActorCritic, GaussianActorCritic
from peira.policies.gradient_step import GradientStep


def lower_clipped_ratio(log_ratio: Float[Tensor, " rows"], clip: float) -> Float[Tensor, ""]:
    """E max(r, 1 − ε_B) with r = π_φ/π_θ: PPO's surrogate with advantage −1 for every stored action, as a loss.

    Because the advantage is negative only the lower clip acts: max(r, clip(r, 1−ε_B, 1+ε_B)) = max(r, 1−ε_B).
    """
    return log_ratio.exp().clamp(min=1 - clip).mean()


def mean_kl(behaviour: Independent | Categorical, target: Independent | Categorical) -> Float[Tensor, ""]:
    """KL(π_φ ‖ π_θ), the mean over rows; for Gaussians also over action dimensions, as the published λ expect.

    Gaussian, a dimension: log(σ_θ/σ_φ) + (σ_φ² + (μ_φ − μ_θ)²)/(2σ_θ²) − ½. Categorical: Σ_a π_φ (log π_φ − log π_θ).
    """
    if isinstance(behaviour, Categorical):
        return (behaviour.probs * (behaviour.logits - target.logits)).sum(-1).mean()
    new, old = behaviour.base_dist, target.base_dist
    return (
        (old.scale / new.scale).log()
        + (new.scale.square() + (new.loc - old.loc).square()) / (2 * old.scale.square())
        - 0.5
    ).mean()


def behaviour_loss(
    behaviour: ActorCritic,
    observation: Float[Tensor, "rows obs"],
    action: Shaped[Tensor, "rows *action"],
    target_log_prob: Float[Tensor, " rows"],
    *target_parameters: Float[Tensor, "rows actions"],
    clip: float,
    kl_penalty: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " measures"]]:
    """E max(r, 1 − ε_B) + λ KL(π_φ ‖ π_θ); measures: k3 estimate of KL(π_θ ‖ π_φ), λ's KL, share of clipped rows.

    `target_parameters` are what `distribution_parameters(π_θ(·|s))` gave. Reads stored states and actions only.
    """
    distribution = behaviour.distribution(observation)
    log_ratio = distribution.log_prob(action) - target_log_prob
    kl = mean_kl(distribution, distribution_of(behaviour, target_parameters))
    bounded = log_ratio.clamp(-20.0, 20.0)
    measures = torch.stack(
        [(bounded.expm1() - bounded).mean(), kl, (log_ratio.exp() < 1 - clip).float().mean()]
    )
    return lower_clipped_ratio(log_ratio, clip) + kl_penalty * kl, measures


def distribution_parameters(distribution: Independent | Categorical) -> tuple[Tensor, ...]:
    """Mean and standard deviation, or logits, one row a state."""
    if isinstance(distribution, Categorical):
        return (distribution.logits,)
    return distribution.base_dist.loc, distribution.base_dist.scale


def distribution_of(policy: ActorCritic, parameters: tuple[Tensor, ...]) -> Independent | Categorical:
    """The inverse of `distribution_parameters` for a policy of this class."""
    if isinstance(policy, GaussianActorCritic):
        normal = torch.distributions.Normal(*parameters, validate_args=False)
        return Independent(normal, 1, validate_args=False)
    return Categorical(logits=parameters[0], validate_args=False)


class OnPolicySampler:
    """Acts with the target itself: what PPO and PPO-Buffer do."""

    def __init__(self, target: ActorCritic):
        self.policy = target

    def update(self, target: ActorCritic, observation: Tensor, action: Tensor, new: int) -> dict:
        """Nothing to learn; the target is what acts."""
        return {}

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore."""


class PropsSampler:
    """The PROPS behaviour policy: `policy` acts, `update` refits it before the next steps.

    Symbols of the paper: clip ε_B, kl_penalty λ, kl_stop δ_B, `epochs` E_B, `minibatches` M_B. Adam's moments are
    forgotten at each update, for φ starts again from θ (the official code keeps them).
    """

    def __init__(
        self,
        target: ActorCritic,
        *,
        learning_rate: float,
        clip: float,
        kl_penalty: float,
        kl_stop: float,
        epochs: int,
        minibatches: int,
        generator: torch.Generator,
        max_gradient_norm: float = 0.5,
        compiled: bool = True,
    ):
        self.policy = copy.deepcopy(target)
        self.epochs, self.minibatches = epochs, minibatches
        self._generator = generator
        self._step = GradientStep(
            self.policy,
            partial(behaviour_loss, clip=clip, kl_penalty=kl_penalty),
            learning_rate=learning_rate,
            max_gradient_norm=max_gradient_norm,
            kl_stop=kl_stop,
            only=list(self.policy.actor_parameters()),
            compiled=compiled,
        )

    def update(
        self,
        target: ActorCritic,
        observation: Float[Tensor, "rows ..."],
        action: Shaped[Tensor, "rows ..."],
        new: int,
    ) -> dict[str, float]:
        """φ ← θ, then epochs of minibatch steps away from what these rows hold, until the KL stop.

        The rows are those that the next target update will still see; it makes no difference which of them are `new`.
        """
        self.policy.load_state_dict(target.state_dict())
        if len(observation) == 0:
            return {"behaviour_steps": 0, "behaviour_kl": 0.0}
        self._step.reset()
        with torch.no_grad():
            distribution = target.distribution(observation)
            parameters = tuple(p.contiguous() for p in distribution_parameters(distribution))
            columns = (observation, action, distribution.log_prob(action), *parameters)
        measures = self._step.epochs(
            columns,
            epochs=self.epochs,
            minibatches=min(self.minibatches, len(observation)),
            generator=self._generator,
        )
        kl, _, clipped = measures[-1].tolist()
        return {"behaviour_steps": len(measures), "behaviour_kl": kl, "behaviour_clipped": clipped}

    def state_dict(self) -> dict:
        return {"policy": self.policy.state_dict(), "step": self._step.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.policy.load_state_dict(state["policy"])
        self._step.load_state_dict(state["step"])
