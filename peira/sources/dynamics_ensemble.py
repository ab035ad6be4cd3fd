"""An ensemble of probabilistic one-step models, rolled out under the policy: the autoregressive baseline.

Chua et al. 2018 (PETS), Yu et al. 2020 (MOPO); constants of the code that ``pgd.md`` 2.8 names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from peira.experience.schema import Source
from peira.experience.transitions import TransitionLog
from peira.policies.continuous import ReLUStack
from peira.policies.gradient_step import GradientStep
from peira.sources.diffusion.windows import Bounds, bounds_of
from peira.sources.standardise import Standardiser
from peira.sources.synthetic import SyntheticSet, TargetPolicy, equal_parts

MAX_LOG_VARIANCE, MIN_LOG_VARIANCE = 0.5, -10.0
"""Where the learned soft limits of the log-variance begin."""
LIMIT_WEIGHT = 0.01
SIDE_BY_SIDE = 16_384
_VALIDATION_ROWS = 8_192

Termination = Callable[[Float[Tensor, "rows obs"]], Bool[Tensor, " rows"]]


def _never(following: Float[Tensor, "rows obs"]) -> Bool[Tensor, " rows"]:
    return torch.zeros(len(following), dtype=torch.bool)


def _hopper(following: Float[Tensor, "rows obs"]) -> Bool[Tensor, " rows"]:
    healthy = (following[:, 1:].abs() < 100).all(1) & (following[:, 0] > 0.7) & (following[:, 1].abs() < 0.2)
    return ~healthy


def _walker(following: Float[Tensor, "rows obs"]) -> Bool[Tensor, " rows"]:
    height, angle = following[:, 0], following[:, 1]
    return ~((height > 0.8) & (height < 2.0) & (angle.abs() < 1.0))


TERMINATIONS: dict[str, Termination] = {
    "Hopper-v5": _hopper,
    "Walker2d-v5": _walker,
    "HalfCheetah-v5": _never,
    "Pendulum-v1": _never,
}
"""Whether an episode ends with this next observation, by the rules of the environment."""


def termination_of(env: str, log: TransitionLog) -> Termination:
    """The rule of this environment; where none is known, that nothing terminates, if the log agrees.

    Raises ValueError for an environment without a known rule whose log has terminals.
    """
    if env not in TERMINATIONS and bool(log.terminated.any()):
        raise ValueError(
            f"env: {int(log.terminated.sum())} steps of the log terminate, and no rule is known by which {env} does; "
            f"rules are known for {', '.join(TERMINATIONS)}"
        )
    return TERMINATIONS.get(env, _never)


@dataclass(frozen=True)
class EnsembleConfig:
    """How the ensemble is trained and rolled out."""

    members: int = 7
    elites: int = 5
    """Members that are used: those with the least validation error."""
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    updates: int = 20_000
    """Adam steps, each on a batch for every member; 400 epochs of the batch size in the code."""
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 2.5e-5
    """AdamW's."""
    validation_share: float = 0.2
    """Share of rows held out to choose the elites."""
    low: tuple[float, ...] = (-1.0,)
    high: tuple[float, ...] = (1.0,)
    """Bounds of the actions, to which the policy's are clipped in rollouts."""
    compiled: bool = True
    """Compile the training step to native code."""

    def __post_init__(self) -> None:
        if not 1 <= self.elites <= self.members:
            raise ValueError(f"elites: expected 1 to members={self.members}, got {self.elites}")


class DynamicsEnsemble(nn.Module):
    """p_i(Δs, r | s, a) = N(mean_i, diag exp(log-variance_i)), i = 1 … members; inputs and outputs z-scored.

    log-variances are kept softly between two learned limits: v = max − softplus(max − v), v = min + softplus(v − min).
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        members: int,
        hidden: Sequence[int],
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.observation_size = observation_size
        outputs = observation_size + 1
        sizes = (observation_size + action_size, *hidden, 2 * outputs)
        self.net = ReLUStack(sizes, members, generator=generator)
        self.most = nn.Parameter(torch.full((outputs,), MAX_LOG_VARIANCE))
        self.least = nn.Parameter(torch.full((outputs,), MIN_LOG_VARIANCE))

    def forward(
        self, inputs: Float[Tensor, "members rows inputs"]
    ) -> tuple[Float[Tensor, "members rows outputs"], Float[Tensor, "members rows outputs"]]:
        """Mean and log-variance of every member at inputs of its own."""
        mean, log_variance = self.net(inputs).chunk(2, -1)
        log_variance = self.most - functional.softplus(self.most - log_variance)
        return mean, self.least + functional.softplus(log_variance - self.least)


def ensemble_loss(
    ensemble: nn.Module, inputs: Float[Tensor, "rows inputs"], outputs: Float[Tensor, "rows outputs"]
) -> tuple[Float[Tensor, ""], Float[Tensor, " measures"]]:
    """Σ_members mean[(μ − y)² e^{−v} + v] + 0.01·Σ(max − min); rows come member by member, equally many each."""
    members = ensemble.net.weights[0].shape[0]
    mean, log_variance = ensemble(inputs.unflatten(0, (members, -1)))
    error = (mean - outputs.unflatten(0, (members, -1))).square()
    loss = (error * (-log_variance).exp() + log_variance).mean((1, 2)).sum()
    loss = loss + LIMIT_WEIGHT * (ensemble.most - ensemble.least).sum()
    return loss, torch.stack([error.mean().detach()])


class EnsembleFit:
    """The training of an ensemble, piece by piece; resumes bit for bit. Everything random follows from `seed`."""

    def __init__(self, log: TransitionLog, config: EnsembleConfig, seed: int):
        self.config = config
        self._generator = torch.Generator().manual_seed(seed)
        bounds_of(config.low, config.high, log.action_size).check(log.action, "")
        inputs = torch.cat([log.observation, log.action], 1)
        outputs = torch.cat([log.next_observation - log.observation, log.reward[:, None]], 1)
        outputs[log.terminated, :-1] = 0.0
        # What a terminal step led to may not be in the log: it is neither learned from nor judged by.
        known = (~log.terminated).nonzero().squeeze(1)
        if len(known) < 2:
            raise ValueError(
                f"log: {len(known)} of {log.rows} steps do not terminate; the ensemble needs at least 2"
            )
        self.inputs, self.outputs = Standardiser.of(inputs), Standardiser.of(outputs[known])
        order = known[torch.randperm(len(known), generator=self._generator)]
        held = max(1, round(config.validation_share * len(order)))
        self._held, self._train = order[:held], order[held:]
        self._columns = (self.inputs.z(inputs), self.outputs.z(outputs))
        self._sizes = (log.observation_size, log.action_size)
        self.ensemble = DynamicsEnsemble(*self._sizes, config.members, config.hidden, self._generator)
        self._step = GradientStep(
            self.ensemble,
            ensemble_loss,
            learning_rate=config.learning_rate,
            max_gradient_norm=math.inf,
            epsilon=1e-8,
            compiled=config.compiled,
        )
        self.step = 0

    @property
    def is_over(self) -> bool:
        return self.step >= self.config.updates

    def advance(self, updates: int) -> float:
        """At most this many updates; the mean squared z-scored error over them."""
        errors = []
        for _ in range(min(updates, self.config.updates - self.step)):
            shape = (self.config.members * self.config.batch_size,)
            rows = self._train[torch.randint(len(self._train), shape, generator=self._generator)]
            self._step.parameters.mul_(1 - self.config.learning_rate * self.config.weight_decay)
            errors.append(self._step(rows, *self._columns))
            self.step += 1
        return torch.cat(errors).mean().item()

    @torch.no_grad()
    def validation_error(self) -> Float[Tensor, " members"]:
        """Mean squared z-scored error of each member's mean on the held-out rows."""
        held = self._held[:_VALIDATION_ROWS]
        inputs = self._columns[0][held].expand(self.config.members, -1, -1)
        return (self.ensemble(inputs)[0] - self._columns[1][held]).square().mean((1, 2))

    def elites(self) -> list[int]:
        """The members with the least validation error, best first."""
        return self.validation_error().argsort(stable=True)[: self.config.elites].tolist()

    def state_dict(self) -> dict:
        return {
            "ensemble": dict(self.ensemble.state_dict()),
            "adam": self._step.state_dict(),
            "step": self.step,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.ensemble.load_state_dict(state["ensemble"])
        self._step.load_state_dict(state["adam"])
        self.step = state["step"]
        self._generator.set_state(state["generator"])


class EnsembleSource:
    """Rollouts of `horizon` steps under the policy, from observations drawn from the log (``pgd.md`` 2.8).

    At every step each row is answered by an elite drawn at random, the rows being dealt evenly among them. A rollout
    ends where `terminates` says so. `penalty` is taken off the reward for each unit of the largest ‖σ‖ among the elites
    (MOPO). Actions are the policy's own draws, clipped to the bounds as an environment clips them.
    """

    def __init__(
        self,
        trained: EnsembleFit,
        log: TransitionLog,
        *,
        horizon: int = 5,
        starts: int = 50_000,
        penalty: float = 0.0,
        terminates: Termination = _never,
    ):
        if min(horizon, starts) < 1:
            raise ValueError(f"horizon, starts: expected at least 1, got {horizon}, {starts}")
        self._ensemble, self._elites = trained.ensemble, trained.elites()
        self._inputs, self._outputs = trained.inputs, trained.outputs
        self.bounds: Bounds = bounds_of(trained.config.low, trained.config.high, log.action_size)
        self._observations = log.observation
        self._action_size = log.action_size
        self.horizon, self.starts, self.penalty, self.terminates = horizon, starts, penalty, terminates

    @property
    def parts(self) -> list[int]:
        return equal_parts(self.starts, SIDE_BY_SIDE)

    @torch.no_grad()
    def part(
        self, size: int, policy: TargetPolicy | None, generator: torch.Generator
    ) -> Float[Tensor, "starts horizon columns"]:
        """Columns s, a, r, s', terminated, alive; rows after the end of a rollout are not alive."""
        drawn = torch.randint(len(self._observations), (size,), generator=generator)
        return self.rolled_out(self._observations[drawn], policy, generator)

    @torch.no_grad()
    def rolled_out(
        self,
        observation: Float[Tensor, "starts obs"],
        policy: TargetPolicy | None,
        generator: torch.Generator,
    ) -> Float[Tensor, "starts horizon columns"]:
        """`part` from these observations."""
        if policy is None:
            raise ValueError("policy: an ensemble is rolled out under a policy; give one")
        alive = torch.ones(len(observation), dtype=torch.bool)
        steps = []
        for _ in range(self.horizon):
            noise = torch.randn(len(observation), self._action_size, generator=generator)
            action = self.bounds.clip(policy.choose(observation, noise))
            following, reward = self.answer(observation, action, generator)
            over = self.terminates(following)
            ends = (reward[:, None], following, over[:, None].float(), alive[:, None].float())
            steps.append(torch.cat([observation, action, *ends], 1))
            alive = alive & ~over
            observation = following
        return torch.stack(steps, 1)

    @torch.no_grad()
    def answer(
        self,
        observation: Float[Tensor, "rows obs"],
        action: Float[Tensor, "rows act"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "rows obs"], Float[Tensor, " rows"]]:
        """Next observation and reward, drawn from one elite a row."""
        inputs = self._inputs.z(torch.cat([observation, action], 1))
        rows, elites = len(inputs), len(self._elites)
        each = -(-rows // elites)
        # Dealt like cards: row order[i] goes to elite i // each; the last hand is filled up with rows seen twice.
        order = torch.randperm(rows, generator=generator)
        dealt = torch.cat([order, order[: each * elites - rows]])
        mean, log_variance = self._members(inputs[dealt].unflatten(0, (elites, each)))
        noise = torch.randn(mean.shape, generator=generator)
        drawn = (mean + (log_variance / 2).exp() * noise).flatten(0, 1)[:rows]
        outputs = torch.empty_like(drawn)
        outputs[order] = self._outputs.raw(drawn)
        reward = outputs[:, -1]
        if self.penalty:
            _, log_variance = self._members(inputs.expand(elites, -1, -1))
            deviation = (log_variance / 2).exp() * self._outputs.deviation
            reward = reward - self.penalty * torch.linalg.vector_norm(deviation, dim=-1).amax(0)
        return observation + outputs[:, :-1], reward

    def assemble(self, parts: Sequence[Tensor], policy: TargetPolicy | None, seed: int) -> SyntheticSet:
        log = rollouts_as_log(torch.cat(list(parts)), self._ensemble.observation_size, self._action_size)
        about = {"generator_id": "ensemble", "steps": self.horizon, "seed": seed}
        version, name = getattr(policy, "version", None), getattr(policy, "id", None) or None
        return SyntheticSet(log, Source.DREAMED, name, version, about)

    def _members(
        self, inputs: Float[Tensor, "elites rows inputs"]
    ) -> tuple[Float[Tensor, "elites rows outputs"], Float[Tensor, "elites rows outputs"]]:
        """The elites at inputs of their own; the other members answer for the first of them and are dropped."""
        net, chosen = self._ensemble.net, torch.tensor(self._elites)
        x = inputs
        for layer, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            x = torch.baddbmm(bias[chosen], x, weight[chosen])
            if layer < len(net.weights) - 1:
                x = x.relu_()
        mean, log_variance = x.chunk(2, -1)
        most, least = self._ensemble.most, self._ensemble.least
        log_variance = most - functional.softplus(most - log_variance)
        return mean, least + functional.softplus(log_variance - least)


def rollouts_as_log(
    rolled: Float[Tensor, "starts horizon columns"], observation_size: int, action_size: int
) -> TransitionLog:
    """Rollouts as episodes, each up to its end or, truncated, to the horizon."""
    kept = rolled[..., -1] > 0.5
    lengths = kept.sum(1)
    is_last = torch.arange(rolled.shape[1]) == lengths[:, None] - 1
    observation, action, reward, following, over, _ = rolled[kept].split(
        [observation_size, action_size, 1, observation_size, 1, 1], 1
    )
    terminated = over.squeeze(1) > 0.5
    return TransitionLog(
        observation=observation,
        action=action,
        reward=reward.squeeze(1),
        next_observation=following,
        terminated=terminated,
        truncated=is_last[kept] & ~terminated,
        first=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
    )
