"""Robust on-policy sampling (ROS): choose the next actions so that all data so far look on-policy.

The tabular functions act on many independent chains at once; the two samplers serve any actor-critic.

Source: Zhong, Zhang, Schäfer, Albrecht, Hanna, "Robust On-Policy Sampling for Data-Efficient Policy
Evaluation", NeurIPS 2022, arXiv 2111.14552.
"""

import copy
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Categorical

# Two candidates whose mean absolute gradients differ by less than this are equally good.
TIE_TOLERANCE = 1e-9


def running_mean_gradient(
    mean_gradient: Float[np.ndarray, "chains states actions"],
    steps: int,
    policy: Float[np.ndarray, "chains actions"],
    state: Int[np.ndarray, " chains"],
    action: Int[np.ndarray, " chains"],
) -> Float[np.ndarray, "chains states actions"]:
    """The mean of ∇_θ log π_θ(a_i|s_i) over `steps` past steps and this one, for a table of softmax logits θ.

    g ← (t g + ∇ log π_θ(a|s)) / (t + 1),  ∂ log π_θ(a|s) / ∂θ[s', ·] = 1{s' = s} (e_a − π_θ(·|s)).

    `policy` is π_θ(·|s) at each chain's state: gradients are those of the *target*, wherever the action came
    from. Averaged, not summed: a sum would make the step of `robust_policy` grow with time.
    """
    chains = np.arange(len(state))
    updated = mean_gradient * (steps / (steps + 1))
    updated[chains, state] -= policy / (steps + 1)
    updated[chains, state, action] += 1 / (steps + 1)
    return updated


def robust_policy(
    policy: Float[np.ndarray, "chains actions"],
    mean_gradient: Float[np.ndarray, "chains actions"],
    alpha: float,
) -> Float[np.ndarray, "chains actions"]:
    """The acting probabilities softmax(θ_s − α g_s) of ROS at one state of each chain.

    `policy` is π_θ(·|s) and `mean_gradient` the row g_s of the running mean over *all* steps; `alpha` is the
    step size α. For α → ∞ the most under-sampled action is certain.
    """
    with np.errstate(divide="ignore"):
        logits = np.log(policy) - alpha * mean_gradient
    unnormalised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return unnormalised / unnormalised.sum(axis=1, keepdims=True)


def under_sampled_policy(
    policy: Float[np.ndarray, "chains actions"],
    mean_gradient: Float[np.ndarray, "chains actions"],
    steps: int,
    rho: float = 1.0,
) -> Float[np.ndarray, "chains actions"]:
    """The acting probabilities of robust on-policy acting (ROA) at one state of each chain.

    ρ 1{a ∈ argmin_a' mean |(t g + ∇ log π_θ(a'|s)) / (t + 1)|} + (1 − ρ) π_θ(a|s), equals sharing ρ.

    Only the row g_s of the running mean depends on the choice, so only that row is asked for.
    """
    inclusion = np.eye(policy.shape[1]) - policy[:, None, :]
    error = np.abs(steps * mean_gradient[:, None, :] + inclusion).sum(axis=2)
    best = error <= error.min(axis=1, keepdims=True) + TIE_TOLERANCE
    return rho * best / best.sum(axis=1, keepdims=True) + (1 - rho) * policy


def draw_action(
    probabilities: Float[np.ndarray, "chains actions"], generator: np.random.Generator
) -> Int[np.ndarray, " chains"]:
    """One action for each chain from its row of probabilities, by inversion; consumes one uniform a chain."""
    cumulative = probabilities.cumsum(axis=1)
    uniform = generator.random((len(probabilities), 1)) * cumulative[:, -1:]
    return (uniform >= cumulative).sum(axis=1)


class _GradientSum:
    """Σ ∇_θ log π_θ(a_i|s_i) over the stored rows at the target's parameters, kept up to date cheaply."""

    def __init__(self, parameters: str) -> None:
        if parameters not in ("all", "last-layer"):
            raise ValueError(f"parameters: expected 'all' or 'last-layer', got {parameters!r}")
        self.parameters = parameters
        self.rows = 0
        self.version: int | None = None
        self.total: dict[str, Tensor] = {}

    def select(self, policy: nn.Module) -> dict[str, Tensor]:
        """The actor parameters that take part, by name; the last layer includes a Gaussian's log-std."""
        named = policy.actor_parameters()
        if self.parameters == "all":
            return named
        last = {id(parameter) for parameter in policy.actor_head.parameters()}
        if hasattr(policy, "log_std"):
            last.add(id(policy.log_std))
        return {name: parameter for name, parameter in named.items() if id(parameter) in last}

    def update(self, target: nn.Module, observation: Tensor, action: Tensor, new: int) -> bool:
        """Bring the sum up to date with the stored rows; True if it had to be computed afresh."""
        rows = len(observation)
        if not 0 <= new <= rows:
            raise ValueError(f"new: expected between 0 and the {rows} rows given, got {new}")
        afresh = target.version != self.version or rows != self.rows + new
        chosen = self.select(target)
        if afresh:
            self.total = {name: torch.zeros_like(parameter) for name, parameter in chosen.items()}
            new = rows
        if new:
            log_prob = target.log_prob(observation[rows - new :], action[rows - new :])
            gradients = torch.autograd.grad(log_prob.sum(), list(chosen.values()))
            for total, gradient in zip(self.total.values(), gradients, strict=True):
                total += gradient
        self.rows, self.version = rows, target.version
        return afresh

    def mean(self) -> dict[str, Tensor]:
        return {name: total / max(self.rows, 1) for name, total in self.total.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "version": self.version,
            "total": {name: total.clone() for name, total in self.total.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.version = state["rows"], state["version"]
        self.total = {name: total.clone() for name, total in state["total"].items()}


class RobustOnPolicySampler:
    """ROS for any actor-critic: act with φ = θ − α · mean over the stored rows of ∇_θ log π_θ(a|s).

    Gradients are evaluated at the target's parameters θ, over `parameters` of the actor: "all", or
    "last-layer" (with a Gaussian's log-std). φ starts from θ at every update and shares no memory with it.

    The running sum is kept between updates: it costs one backward pass over the new rows, and one over all
    stored rows when the target's `version` changed or rows were dropped. Whoever changes the target's
    observation normaliser must therefore raise its version.
    """

    def __init__(self, alpha: float, parameters: str = "all") -> None:
        self.alpha = alpha
        self._gradient = _GradientSum(parameters)
        self._policy: nn.Module | None = None

    @property
    def policy(self) -> nn.Module:
        """The acting policy φ."""
        if self._policy is None:
            raise RuntimeError(
                "RobustOnPolicySampler: no policy yet; call update(target, observation, action, new=0) first"
            )
        return self._policy

    def update(
        self,
        target: nn.Module,
        observation: Float[Tensor, "rows ..."],
        action: Float[Tensor, "rows ..."] | Int[Tensor, " rows"],
        new: int,
    ) -> dict[str, float]:
        """Set φ from all stored rows, in time order, of which the last `new` came since the last call.

        Returns `ros_gradient_norm` (of the mean gradient), `ros_step_norm` (of φ − θ) and
        `ros_rows_differentiated` (the cost of this update).
        """
        afresh = self._gradient.update(target, observation, action, new)
        if self._policy is None:
            self._policy = copy.deepcopy(target).requires_grad_(False)
        self._policy.load_state_dict(target.state_dict())
        mean = self._gradient.mean()
        own = self._gradient.select(self._policy)
        with torch.no_grad():
            for name, gradient in mean.items():
                own[name].sub_(gradient, alpha=self.alpha)
        norm = _norm(mean)
        return {
            "ros_gradient_norm": norm,
            "ros_step_norm": abs(self.alpha) * norm,
            "ros_rows_differentiated": float(len(observation) if afresh else new),
        }

    def state_dict(self) -> dict[str, Any]:
        """The running sum; the next `update` makes φ again from it and the target."""
        return self._gradient.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gradient.load_state_dict(state)


class RobustOnPolicyActing:
    """ROA for any actor-critic: with probability ρ the action that best repairs the data, else one of π_θ.

    The repairing action minimises, over the candidates, the mean absolute entry of the mean gradient of
    log π_θ with that action included; equals share ρ. Candidates are all actions of a categorical policy, and
    the nine quantiles i/10 of a Gaussian with one action dimension. The source's ρ: 1 for tables, 0.05 for
    networks, where 0.5 is worse than sampling on-policy.
    """

    def __init__(self, rho: float, parameters: str = "all") -> None:
        if not 0 <= rho <= 1:
            raise ValueError(f"rho: expected a probability, got {rho}")
        self.rho = rho
        self._gradient = _GradientSum(parameters)

    def update(
        self,
        target: nn.Module,
        observation: Float[Tensor, "rows ..."],
        action: Float[Tensor, "rows ..."] | Int[Tensor, " rows"],
        new: int,
    ) -> dict[str, float]:
        """Take note of all stored rows, in time order, of which the last `new` came since the last call."""
        afresh = self._gradient.update(target, observation, action, new)
        return {
            "roa_gradient_norm": _norm(self._gradient.mean()),
            "roa_rows_differentiated": float(len(observation) if afresh else new),
        }

    def act(
        self, target: nn.Module, observation: Float[Tensor, "batch ..."], generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch 1"] | Int[Tensor, " batch"], Float[Tensor, " batch"] | None]:
        """`(action, behaviour_log_prob)` for each observation, all against the same stored rows.

        The log-probability is None for continuous actions: with atoms at the quantiles they have no density.
        """
        with torch.no_grad():
            distribution = target.distribution(observation)
        batch = len(observation)
        if isinstance(distribution, Categorical):
            every = torch.arange(distribution.logits.shape[1], device=observation.device)
            greedy = self._repairing(target, observation, every[:, None].expand(-1, batch))
            acting = self.rho * greedy + (1 - self.rho) * distribution.probs
            chosen = torch.multinomial(acting, 1, generator=generator)
            return chosen.squeeze(1), acting.gather(1, chosen).squeeze(1).log()

        mean, deviation = distribution.base_dist.loc, distribution.base_dist.scale
        if mean.shape[1] != 1:
            raise ValueError(
                "RobustOnPolicyActing: continuous actions need one dimension, for the quantiles of one "
                f"Gaussian; got {mean.shape[1]} (use RobustOnPolicySampler)"
            )
        quantiles = torch.special.ndtri(torch.arange(1, 10, dtype=mean.dtype, device=mean.device) / 10)
        candidates = mean + deviation * quantiles[:, None, None]
        greedy = self._repairing(target, observation, candidates)
        repair = candidates[torch.multinomial(greedy, 1, generator=generator).squeeze(1), torch.arange(batch)]
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        repairs = torch.rand(mean.shape, generator=generator, device=mean.device) < self.rho
        return torch.where(repairs, repair, mean + deviation * noise), None

    def _repairing(
        self,
        target: nn.Module,
        observation: Float[Tensor, "batch ..."],
        candidates: Float[Tensor, "candidates batch 1"] | Int[Tensor, "candidates batch"],
    ) -> Float[Tensor, "batch candidates"]:
        """For each row, equal weights on the candidates whose inclusion leaves the smallest mean gradient."""
        chosen = self._gradient.select(target)
        errors = []
        # A gradient of its own for every row and candidate: in pieces, for the cost of each is quadratic.
        for few, options in zip(observation.split(16), candidates.split(16, dim=1), strict=True):
            log_prob = target.distribution(few).log_prob(options).T
            one_each = torch.eye(log_prob.numel(), dtype=log_prob.dtype, device=log_prob.device)
            gradients = torch.autograd.grad(
                log_prob, list(chosen.values()), one_each.view(-1, *log_prob.shape), is_grads_batched=True
            )
            error = torch.zeros(log_prob.numel(), dtype=log_prob.dtype, device=log_prob.device)
            for name, gradient in zip(chosen, gradients, strict=True):
                included = gradient + self._gradient.total.get(name, 0.0)
                error += included.abs().flatten(1).sum(dim=1)
            errors.append(error.view_as(log_prob))
        error = torch.cat(errors)
        best = torch.isclose(error, error.min(dim=1, keepdim=True).values, rtol=1e-5).to(error.dtype)
        return best / best.sum(dim=1, keepdim=True)

    def state_dict(self) -> dict[str, Any]:
        return self._gradient.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gradient.load_state_dict(state)


def _norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
