"""One offline actor–critic: TD3+BC, ReBRAC's switches, IQL, behaviour cloning, and SAC to make logs with.

They differ in a handful of lines, so they are methods of one update (in the manner of Unifloral, arXiv 2504.11453):

    method   actor                      critics bootstrap from          what holds the actor to the log
    td3      −λ_Q Q₁ + w·(μ − a)²       min Q̄(s', μ̄(s') + noise)        w = `cloning_weight`, β₂ = `critic_cloning`
    iql      advantage-weighted log π   V(s'), an expectile of min Q̄    it only ever sees logged actions
    sac      temperature·log π − Q      min Q̄(s', a') − entropy         nothing: the data have to be its own, or mixed
    bc       (μ − a)²                   no critics                      everything

An update is, as in ``pgd.md`` 2.7: targets move, one step of the actor, then `critic_updates` steps of the critics;
under iql all step together, each from what the others were before. Everything an update does, the gather of its rows,
forward, backward, Adam and the moving targets, is one compiled call. Several seeds run stacked: they share the log, the
compiled update and the process, and their updates are spread evenly over torch's threads. Each has its own row of
parameters, its own draws, and comes out as if it had run alone, bit for bit. (One batched product for all seeds takes a
third longer than one product a seed: at 256 × 256 a product fills a core, and five of them overflow its cache.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from peira.experience.transitions import TransitionLog
from peira.learners.offline_losses import (
    advantage_weight,
    bootstrapped_target,
    cloning_error,
    critic_loss,
    expectile_loss,
    sac_actor_loss,
    smoothed_action,
    td3_bc_actor_loss,
    temperature_loss,
    weighted_likelihood_loss,
)
from peira.policies.compiled import compile_function
from peira.policies.continuous import (
    ContinuousPolicy,
    Critics,
    DeterministicActor,
    GaussianActor,
    ReLUStack,
    TanhGaussianActor,
    Value,
)

ACTORS = {"td3": DeterministicActor, "iql": GaussianActor, "sac": TanhGaussianActor, "bc": DeterministicActor}
MEASURES = {
    "td3": ("actor_loss", "cloning_error", "q", "critic_loss", "gradient_norm"),
    "iql": ("actor_loss", "value_loss", "q", "critic_loss", "gradient_norm"),
    "sac": ("actor_loss", "entropy", "temperature", "q", "critic_loss", "gradient_norm"),
    "bc": ("actor_loss", "gradient_norm"),
}


@dataclass(frozen=True)
class Settings:
    """What `OfflineLearner` does; the defaults are TD3+BC's constants of ``pgd.md`` 2.7."""

    method: Literal["td3", "iql", "sac", "bc"] = "td3"
    """Which row of the table above."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers of every network; ReBRAC has three."""
    actor_layer_norm: bool = False
    """Layer normalisation in the actor."""
    critic_layer_norm: bool = False
    """Layer normalisation in the critics; ReBRAC and RLPD have it."""
    batch: int = 256
    """Rows of a step."""
    discount: float = 0.99
    """γ."""
    polyak: float = 0.005
    """Share by which targets move towards what they follow."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    epsilon: float = 1e-5
    """Adam's ε."""
    critics: int = 2
    """Q networks."""
    critics_in_minimum: int = 2
    """Of how many, drawn anew at each step, the smallest target counts; RLPD: 2 of 10."""
    critic_updates: int = 2
    """Steps of the critics in an update; 1 under iql, where all networks step together."""
    fresh_batches: bool = False
    """Rows of their own, and a move of the targets, for each step of the critics; RLPD: with 20 of them."""
    products: Literal["float32", "bfloat16"] = "float32"
    """Precision of the products between hidden layers while learning; the policy acts in float32 either way."""
    target_noise: float = 0.2
    """td3: deviation of the noise on target actions."""
    noise_clip: float = 0.5
    """td3: its limit."""
    q_weight: float = 2.5
    """td3: λ_Q = q_weight / mean|Q₁|."""
    cloning_weight: float = 1.0
    """td3: weight of (μ − a)² in the actor's loss; 0 for plain TD3."""
    critic_cloning: float = 0.0
    """td3: weight of (a' − what the log did next)², taken off the bootstrapped value (ReBRAC's β₂ times |a|)."""
    expectile: float = 0.7
    """iql: τ."""
    inverse_temperature: float = 3.0
    """iql: β."""
    most_weight: float = 100.0
    """iql: limit of exp(β · advantage)."""
    initial_temperature: float = 1.0
    """sac: weight of the entropy at the start; RLPD: 0.1."""
    entropy_per_action: float = -1.0
    """sac: the entropy that the temperature is tuned to, in nats per action dimension; RLPD: −0.5."""
    entropy_in_target: bool = True
    """sac: count the entropy of the next action in the target."""
    actor_takes_mean: bool = False
    """sac: the actor climbs the mean of all critics rather than the smallest; RLPD does."""

    def __post_init__(self) -> None:
        if self.method not in ACTORS:
            raise ValueError(f"method: expected one of {', '.join(ACTORS)}, got {self.method!r}")
        if self.hidden and min(self.hidden) < 1:
            raise ValueError(f"hidden: expected layers of at least 1, got {min(self.hidden)}")
        for name, (low, high) in _RANGES.items():
            if not low <= (value := getattr(self, name)) <= high:
                expected = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
                raise ValueError(f"{name}: expected {expected}, got {value}")
        if self.critics_in_minimum > self.critics:
            raise ValueError(
                f"critics_in_minimum: expected at most critics={self.critics}, got {self.critics_in_minimum}"
            )
        if self.method in ("iql", "bc") and (self.critic_updates != 1 or self.fresh_batches):
            raise ValueError(
                f"critic_updates: expected 1, on one batch, under {self.method}, got {self.critic_updates}"
            )
        if self.method == "iql" and self.critics_in_minimum != self.critics:
            raise ValueError(
                f"critics_in_minimum: expected all {self.critics} under iql, got {self.critics_in_minimum}"
            )


_RANGES = {
    **dict.fromkeys(("batch", "critics", "critics_in_minimum", "critic_updates"), (1, math.inf)),
    **dict.fromkeys(("learning_rate", "target_noise", "noise_clip", "q_weight"), (0, math.inf)),
    **dict.fromkeys(("cloning_weight", "critic_cloning", "inverse_temperature"), (0, math.inf)),
    **dict.fromkeys(("most_weight", "initial_temperature", "epsilon"), (1e-12, math.inf)),
    **dict.fromkeys(("discount", "polyak", "expectile"), (0, 1)),
}


class _Temperature(nn.Module):
    def __init__(self, initial: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(initial)))


class _Networks(nn.Module):
    """All networks of one seed; lets `functional_call` put parameters into them while a loss calls any of them."""

    def __init__(self, actor: ContinuousPolicy, settings: Settings, generator: torch.Generator):
        super().__init__()
        self.actor = actor
        obs, act = actor.observation_size, actor.action_size
        shape = {"hidden": settings.hidden, "layer_norm": settings.critic_layer_norm, "generator": generator}
        if settings.method != "bc":
            self.critics = Critics(obs, act, settings.critics, **shape)
        if settings.method == "iql":
            self.value = Value(obs, **shape)
        if settings.method == "sac":
            self.temperature = _Temperature(settings.initial_temperature)

    def forward(self, function: Callable, *inputs: object) -> object:
        return function(self, *inputs)


class OfflineLearner:
    """Learns an actor a seed from rows of transitions; see the module's docstring.

    `policies[i]` and `critics[i]` (none under bc) belong to `seeds[i]` and follow the parameters as they change. Each
    seed draws its initial parameters, rows and noise from a generator of its own.
    """

    def __init__(
        self,
        settings: Settings,
        observation_size: int,
        action_size: int,
        *,
        low: Sequence[float],
        high: Sequence[float],
        seeds: Sequence[int],
        compiled: bool = True,
    ):
        self.settings, self.seeds = settings, tuple(seeds)
        self.observation_size, self.action_size = observation_size, action_size
        self.updates = 0
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        networks = []
        for generator in self._generators:
            actor = ACTORS[settings.method](
                observation_size,
                action_size,
                low=low,
                high=high,
                hidden=settings.hidden,
                layer_norm=settings.actor_layer_norm,
                generator=generator,
            )
            networks.append(_Networks(actor, settings, generator))
        self.policies: list[ContinuousPolicy] = [each.actor for each in networks]
        self.critics: list[Critics] = [each.critics for each in networks if settings.method != "bc"]
        self._networks = copy.deepcopy(networks[0])
        for module in self._networks.modules():
            if isinstance(module, ReLUStack):
                module.half_products = settings.products == "bfloat16"
        self._shapes: dict[str, dict[str, torch.Size]] = {}
        # What an update reads and moves: a row a seed of each vector.
        self._state: dict[str, Tensor] = {}
        for group in dict(networks[0].named_children()):
            named = [dict(getattr(each, group).named_parameters(prefix=group)) for each in networks]
            self._shapes[group] = {name: tensor.shape for name, tensor in named[0].items()}
            rows = [torch.cat([tensor.detach().flatten() for tensor in each.values()]) for each in named]
            flat = torch.stack(rows)
            for row, each in zip(flat, named, strict=True):
                views = self._views(group, row)
                for name, tensor in each.items():
                    tensor.data = views[name]
            self._state[group] = flat
            self._state[f"{group} first"] = torch.zeros_like(flat)
            self._state[f"{group} second"] = torch.zeros_like(flat)
        for group in {"td3": ("actor", "critics"), "bc": ()}.get(settings.method, ("critics",)):
            self._state[f"{group} target"] = self._state[group].clone()
        self._one = {
            "td3": self._td3_update,
            "iql": self._iql_update,
            "sac": self._sac_update,
            "bc": self._bc_update,
        }[settings.method]
        self._compiled, self._function = compiled, None

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what `update` measures."""
        return MEASURES[self.settings.method]

    @property
    def parts(self) -> int:
        """Batches of an update."""
        return self.settings.critic_updates if self.settings.fresh_batches else 1

    def standardise(self, offset: Float[Tensor, " obs"], scale: Float[Tensor, " obs"]) -> None:
        """Read observations as (observation − offset) · scale from now on; before any are packed."""
        for policy in self.policies:
            policy.standardise(offset, scale)

    def pack(self, log: TransitionLog) -> Float[Tensor, "rows columns"]:
        """The log as an update reads it: a row a transition, standardised, actions in [−1, 1].

        Columns: s, a, s', r, goes on (0 where terminated), a', a' known (0 at the end of an episode, whose next row is
        another episode's).
        """
        known = torch.ones(log.rows)
        known[log.first[1:] - 1] = 0.0
        following = self.policies[0].to_unit(log.action).roll(-1, 0)
        steps = log.observation, log.action, log.reward, log.next_observation, log.terminated
        return self._pack(*steps, following, known)

    def pack_steps(
        self,
        observation: Float[Tensor, "rows obs"],
        action: Float[Tensor, "rows act"],
        reward: Float[Tensor, " rows"],
        next_observation: Float[Tensor, "rows obs"],
        terminated: Bool[Tensor, " rows"],
    ) -> Float[Tensor, "rows columns"]:
        """Single steps as rows that stand beside those of `pack`; what was done next counts as unknown."""
        steps = observation, action, reward, next_observation, terminated
        return self._pack(*steps, torch.zeros_like(action), torch.zeros(len(reward)))

    def _pack(self, observation, action, reward, next_observation, terminated, following, known):
        policy = self.policies[0]
        columns = (
            policy.standardised(observation),
            policy.to_unit(action),
            policy.standardised(next_observation),
            reward[:, None],
            (~terminated)[:, None].float(),
            following,
            known[:, None],
        )
        return torch.cat(columns, 1)

    def draw_rows(
        self, updates: int, ranges: Sequence[tuple[int, int, int]]
    ) -> Int[Tensor, "updates seeds parts batch"]:
        """Rows for so many updates: from each range (start, stop, number) `number` of the batch, with replacement.

        Raises ValueError where the numbers do not add up to the batch, or a range is empty.
        """
        batch = sum(number for _, _, number in ranges)
        if batch != self.settings.batch or any(start >= stop and number for start, stop, number in ranges):
            raise ValueError(
                f"ranges: expected rows to draw from and numbers that add up to batch={self.settings.batch}, got "
                f"{list(ranges)}"
            )
        drawn = []
        for generator in self._generators:
            shape = (updates, self.parts)
            parts = [
                torch.randint(start, stop, (*shape, number), generator=generator)
                for start, stop, number in ranges
                if number
            ]
            drawn.append(torch.cat(parts, -1))
        return torch.stack(drawn, 1)

    def update(
        self, packed: Float[Tensor, "rows columns"], rows: Int[Tensor, "updates seeds parts batch"]
    ) -> Float[Tensor, "updates seeds measures"]:
        """One update for each entry of `rows`, which name rows of `packed`; the measures of each.

        Raises RuntimeError, naming update and measure, when one of them is not a finite number: the parameters are of
        no use from there on.
        """
        noise, subset = self._chance(len(rows))
        rates = self._rates(len(rows)).unbind()
        packed = packed.contiguous()

        def calls(seed: int, first: int, stop: int) -> Iterator[list[Tensor]]:
            state = [tensor[seed] for tensor in self._state.values()]
            chances = (tensor[first:stop, seed].contiguous().unbind() for tensor in (rows, noise, subset))
            return ([*state, packed, *chance] for chance in zip(*chances, rates[first:stop], strict=True))

        def learn(seed: int, first: int, stop: int) -> Tensor:
            with torch.no_grad():
                each = calls(seed, first, stop)
                return torch.stack([self._native(arguments)(*arguments)[0] for arguments in each])

        seeds, updates, threads = len(self.seeds), len(rows), torch.get_num_threads()
        if seeds == 1 or not self._compiled:  # Tracing puts parameters into modules, which are shared.
            parts = {(seed, 0, updates): learn(seed, 0, updates) for seed in range(seeds)}
        else:
            # A lane computes alone; how many threads a product uses is a setting of its caller.
            torch.set_num_threads(1)
            try:
                self._native(next(calls(0, 0, updates)))
                parts = _in_lanes(learn, lanes(seeds, updates, threads))
            finally:
                torch.set_num_threads(threads)
        of_seeds = ([parts[part] for part in sorted(parts) if part[0] == seed] for seed in range(seeds))
        measures = torch.stack([torch.cat(found) for found in of_seeds], 1)
        self._refuse(measures)
        self.updates += len(rows)
        for policy in self.policies:
            policy.version += len(rows)
        return measures

    def state_dict(self) -> dict:
        return {
            "state": self._state,
            "updates": self.updates,
            "versions": [policy.version for policy in self.policies],
            "standardisation": {"offset": self.policies[0].offset, "scale": self.policies[0].scale},
            "generators": [generator.get_state() for generator in self._generators],
        }

    def load_state_dict(self, state: dict) -> None:
        for name, tensor in state["state"].items():
            self._state[name].copy_(tensor)
        self.updates = state["updates"]
        self.standardise(**state["standardisation"])
        for policy, version in zip(self.policies, state["versions"], strict=True):
            policy.version = version
        for generator, given in zip(self._generators, state["generators"], strict=True):
            generator.set_state(given)

    # What one call does ---------------------------------------------------------------------------------------

    def _native(self, arguments: list[Tensor]) -> Callable[..., tuple[Tensor]]:
        """One update of one seed, in place: compiled at the first call, for a packed log of any length."""
        if self._function is None:
            growing = [len(self._state)]
            self._function = (
                compile_function(self._step, arguments, growing=growing) if self._compiled else self._step
            )
        return self._function

    def _step(self, *tensors: Tensor) -> tuple[Tensor]:
        *state, packed, rows, noise, subset, rates = tensors
        named = dict(zip(self._state, state, strict=True))
        new, measures = self._one(named, packed[rows], noise, subset, rates)
        for old, value in zip(state, new.values(), strict=True):
            old.copy_(value)
        return (torch.stack(measures),)

    def _td3_update(self, state, batches, noise, subset, rates):
        settings = self.settings
        state = self._follow(state, "actor", "critics")

        def climb(networks, batch):
            action = networks.actor.unit_mode(batch.observation)
            q = networks.critics.first(batch.observation, action)
            cloning = cloning_error(action, batch.action)
            loss = td3_bc_actor_loss(q, cloning, settings.q_weight, settings.cloning_weight)
            return loss, (cloning.mean(), q.mean())

        def targets(networks, batch, action, noise, members):
            action = smoothed_action(action, noise, settings.target_noise, settings.noise_clip)
            value = self._least(networks.critics(batch.next_observation, action), members)
            if settings.critic_cloning:
                off = cloning_error(action, batch.next_action) * batch.next_action_known
                value = value - settings.critic_cloning * off
            return bootstrapped_target(batch.reward, batch.goes_on, value, settings.discount)

        batch = self._batch(batches[0])
        state, loss, (cloning, q), norm = self._descend(state, ("actor",), rates[0], climb, batch)
        for step in range(settings.critic_updates):
            if settings.fresh_batches and step:
                batch = self._batch(batches[step])
                state = self._follow(state, "actor", "critics")
            if settings.fresh_batches or step == 0:
                action = self._call(self._targets(state), self._next_mode, batch)
            target = self._call(self._targets(state), targets, batch, action, noise[step], subset[step])
            state, fit, _, more = self._descend(
                state, ("critics",), rates[1 + step], self._fit, batch, target
            )
            norm = norm + more
        return state, (loss, cloning, q, fit, norm.sqrt())

    def _iql_update(self, state, batches, noise, subset, rates):
        settings, batch = self.settings, self._batch(batches[0])
        state = self._follow(state, "critics")
        q = self._call(
            self._targets(state), lambda networks: networks.critics(batch.observation, batch.action).amin(0)
        )

        def all_three(networks):
            value = networks.value(batch.observation)
            target = bootstrapped_target(
                batch.reward, batch.goes_on, networks.value(batch.next_observation), settings.discount
            )
            fit = critic_loss(networks.critics(batch.observation, batch.action), target)
            value_loss = expectile_loss(value, q, settings.expectile)
            weight = advantage_weight(q, value, settings.inverse_temperature, settings.most_weight)
            log_prob = networks.actor.unit_log_prob(batch.observation, batch.action)
            loss = weighted_likelihood_loss(log_prob, weight)
            return loss + value_loss + fit, (loss, value_loss, fit)

        groups = ("actor", "critics", "value")
        state, _, (loss, value_loss, fit), norm = self._descend(state, groups, rates[0], all_three)
        return state, (loss, value_loss, q.mean(), fit, norm.sqrt())

    def _sac_update(self, state, batches, noise, subset, rates):
        settings = self.settings
        state = self._follow(state, "critics")

        def climb(networks, batch):
            action, log_prob = networks.actor.unit_sample(batch.observation, noise[-1])
            q = networks.critics(batch.observation, action)
            log_temperature = networks.temperature.log
            loss = sac_actor_loss(
                log_prob, q.mean(0) if settings.actor_takes_mean else q.amin(0), log_temperature.exp()
            )
            wanted = settings.entropy_per_action * self.action_size
            tuning = temperature_loss(log_temperature, log_prob, wanted)
            return loss + tuning, (loss, -log_prob.mean(), log_temperature.exp(), q.mean())

        def next_choice(networks, batch, noise):
            action, log_prob = networks.actor.unit_sample(batch.next_observation, noise)
            return action, log_prob * networks.temperature.log.exp()

        def targets(networks, batch, action, members):
            return self._least(networks.critics(batch.next_observation, action), members)

        groups = ("actor", "temperature")
        state, _, (loss, entropy, temperature, q), norm = self._descend(
            state, groups, rates[0], climb, self._batch(batches[-1])
        )
        for step in range(settings.critic_updates):
            batch = self._batch(batches[step if settings.fresh_batches else 0])
            if settings.fresh_batches and step:
                state = self._follow(state, "critics")
            action, cost = self._call(state, next_choice, batch, noise[step])
            value = self._call(self._targets(state), targets, batch, action, subset[step])
            if settings.entropy_in_target:
                value = value - cost
            target = bootstrapped_target(batch.reward, batch.goes_on, value, settings.discount)
            state, fit, _, more = self._descend(
                state, ("critics",), rates[1 + step], self._fit, batch, target
            )
            norm = norm + more
        return state, (loss, entropy, temperature, q, fit, norm.sqrt())

    def _bc_update(self, state, batches, noise, subset, rates):
        batch = self._batch(batches[0])

        def imitate(networks):
            return cloning_error(networks.actor.unit_mode(batch.observation), batch.action).mean(), ()

        state, loss, _, norm = self._descend(state, ("actor",), rates[0], imitate)
        return state, (loss, norm.sqrt())

    @staticmethod
    def _next_mode(networks, batch):
        return networks.actor.unit_mode(batch.next_observation)

    @staticmethod
    def _fit(networks, batch, target):
        return critic_loss(networks.critics(batch.observation, batch.action), target), ()

    def _least(
        self, q: Float[Tensor, "members rows"], chosen: Int[Tensor, " chosen"]
    ) -> Float[Tensor, " rows"]:
        return (q if self.settings.critics_in_minimum == self.settings.critics else q[chosen]).amin(0)

    # Parameters as vectors -----------------------------------------------------------------------------------

    def _views(self, group: str, flat: Float[Tensor, " size"]) -> dict[str, Tensor]:
        found, start = {}, 0
        for name, shape in self._shapes[group].items():
            found[name] = flat[start : start + shape.numel()].view(shape)
            start += shape.numel()
        return found

    def _call(self, state: dict[str, Tensor], function: Callable, *inputs: object):
        """`function(networks, *inputs)` with the parameters of `state` in the networks."""
        named = {
            n: v
            for group in self._shapes
            if group in state
            for n, v in self._views(group, state[group]).items()
        }
        return functional_call(self._networks, named, (function, *inputs))

    @staticmethod
    def _targets(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name.removesuffix(" target"): flat for name, flat in state.items() if name.endswith(" target")
        }

    def _follow(self, state: dict[str, Tensor], *groups: str) -> dict[str, Tensor]:
        moved = {
            f"{group} target": torch.lerp(state[f"{group} target"], state[group], self.settings.polyak)
            for group in groups
        }
        return {**state, **moved}

    def _descend(self, state, groups, rate, loss, *inputs):
        """A step of Adam for these groups: new state, loss, what else the loss gave, squared norm of the gradient."""
        fixed = {name: flat for name, flat in state.items() if name in self._shapes and name not in groups}
        trained = {group: self._views(group, state[group]) for group in groups}

        def objective(trained):
            named = {name: tensor for views in trained.values() for name, tensor in views.items()}
            for group, flat in fixed.items():
                named.update(self._views(group, flat))
            return functional_call(self._networks, named, (loss, *inputs))

        gradients, (value, more) = grad_and_value(objective, has_aux=True)(trained)
        state, norm = dict(state), 0.0
        for group in groups:
            gradient = torch.cat([gradients[group][name].flatten() for name in self._shapes[group]])
            norm = norm + gradient.square().sum()
            first = torch.lerp(state[f"{group} first"], gradient, 0.1)
            second = torch.lerp(state[f"{group} second"], gradient.square(), 0.001)
            step = rate[0] * first / (second.sqrt() + rate[1])
            state.update({group: state[group] - step, f"{group} first": first, f"{group} second": second})
        return state, value, more, norm

    def _rates(self, updates: int) -> Float[Tensor, "updates steps two"]:
        """Adam's step size and ε for the actor's step of each update and each step of the critics.

        Both carry the corrections for the moments' start at 0 (Kingma and Ba 2015, end of section 2).
        """
        per = self.settings.critic_updates
        began = torch.arange(self.updates, self.updates + updates, dtype=torch.float64)[:, None]
        counts = torch.cat([began + 1, began * per + torch.arange(1, per + 1)], 1)
        correction = (1 - 0.999**counts).sqrt()
        size = self.settings.learning_rate * correction / (1 - 0.9**counts)
        return torch.stack([size, self.settings.epsilon * correction], -1).float()

    def _chance(self, updates: int) -> tuple[Tensor, Tensor]:
        """Standard normal noise for actions, and which critics make the minimum; `[updates, seeds, …]`."""
        settings = self.settings
        per = settings.critic_updates
        draws = {"td3": per, "sac": per + 1}.get(settings.method, 0)
        noise, subset = [], []
        for generator in self._generators:
            noise.append(torch.randn(updates, draws, settings.batch, self.action_size, generator=generator))
            if settings.critics_in_minimum < settings.critics:
                order = torch.rand(updates, per, settings.critics, generator=generator).argsort(-1)
                subset.append(order[..., : settings.critics_in_minimum])
            else:
                subset.append(torch.zeros(updates, per, 0, dtype=torch.int64))
        return torch.stack(noise, 1), torch.stack(subset, 1)

    def _batch(self, rows: Float[Tensor, "batch columns"]) -> _Batch:
        obs, act = self.observation_size, self.action_size
        parts = rows.split([obs, act, obs, 1, 1, act, 1], dim=-1)
        return _Batch(*(part.squeeze(-1) if place in (3, 4, 6) else part for place, part in enumerate(parts)))

    def _refuse(self, measures: Float[Tensor, "updates seeds measures"]) -> None:
        bad = (~torch.isfinite(measures)).nonzero()
        if len(bad):
            update, seed, measure = bad[0].tolist()
            raise RuntimeError(
                f"{self.measures[measure]} is {measures[update, seed, measure].item()} at update "
                f"{self.updates + update + 1} (seed {self.seeds[seed]}): the parameters are of no use from there on; "
                "look for rewards or actions that are out of scale, or lower the learning rate"
            )


Part = tuple[int, int, int]
"""Seed, first update, and the update before which it ends."""


def lanes(seeds: int, updates: int, threads: int) -> list[list[Part]]:
    """What each thread does so that all end together: McNaughton's wrap-around rule.

    Seeds lie end to end and are cut into equal lengths. One that a cut divides begins as the first part of the later
    lane and is continued as the last part of the earlier one, by when its beginning is over where all are equally fast.
    """
    number = min(threads, seeds)
    cuts = [lane * seeds * updates // number for lane in range(number + 1)]
    plan: list[list[Part]] = [[] for _ in range(number)]
    for seed in range(seeds):
        start, stop = seed * updates, (seed + 1) * updates
        within = [lane for lane in range(number) if cuts[lane] < stop and start < cuts[lane + 1]]
        beginning = stop - max(start, cuts[within[-1]])
        plan[within[-1]].append((seed, 0, beginning))
        if len(within) == 2:
            plan[within[0]].append((seed, beginning, updates))
    return plan


def _in_lanes(learn: Callable[[int, int, int], Tensor], plan: list[list[Part]]) -> dict[Part, Tensor]:
    """The results of all parts, each lane in a thread; a part that continues another waits for it."""
    over = {(seed, stop): Event() for lane in plan for seed, _, stop in lane}

    def work(lane: list[Part]) -> dict[Part, Tensor]:
        found = {}
        for seed, first, stop in lane:
            if first:
                over[seed, first].wait()
            try:
                found[seed, first, stop] = learn(seed, first, stop)
            finally:
                over[seed, stop].set()
        return found

    with ThreadPoolExecutor(len(plan), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return {part: result for found in pool.map(work, plan) for part, result in found.items()}


@dataclass(frozen=True)
class _Batch:
    observation: Tensor
    action: Tensor
    next_observation: Tensor
    reward: Tensor
    goes_on: Tensor
    next_action: Tensor
    next_action_known: Tensor


def standardisation(
    observation: Float[Tensor, "rows obs"],
) -> tuple[Float[Tensor, " obs"], Float[Tensor, " obs"]]:
    """Offset and scale of z-scores with ``pgd.md``'s 1e-3: mean and 1 / (std + 1e-3); a constant channel has scale 1.

    A channel that never moved in the log would otherwise be blown up a thousandfold when it moves in the world.
    """
    wide = observation.double()
    std = wide.std(0, correction=0)
    constant = observation.amax(0) == observation.amin(0)
    scale = torch.where(constant, torch.ones_like(std), 1 / (std + 1e-3))
    return wide.mean(0).float(), scale.float()


def best_episodes(log: TransitionLog, share: float) -> TransitionLog:
    """The `share` of episodes with the highest returns, at least one of them, in the order of the log: %BC's filter.

    Raises ValueError for a share outside (0, 1]. Source: Chen et al. 2021, section 5.
    """
    if not 0 < share <= 1:
        raise ValueError(f"best: expected a share above 0 and at most 1, got {share}")
    number = max(1, round(share * log.episodes))
    kept = log.returns().argsort(descending=True, stable=True)[:number]
    return log.of_episodes(kept.sort().values)
