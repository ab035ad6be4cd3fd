"""Neural networks with embeddings, one or a bootstrap ensemble; all members are trained in one batched pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from peira.experience.decisions import Choices, LoggedDecisions
from peira.policies.oracles.base import Oracle, Scores, Weights, check_choices, check_rows, nothing_in
from peira.policies.oracles.design import Scale

PAIRS = 65_536
# Largest width of an embedding; fewer values than its square get about the root of their number.
WIDEST = 16
# Deviation of embeddings at first: small, so that values are told apart by what is learned of them.
EMBEDDING = 0.1


@dataclass(eq=False)
class NetworkOracle(Oracle):
    """σ(w₃ᵀ relu(W₂ relu(W_x·context + W_a·action + b₁) + b₂) + b₃) with log loss, for every member of a stack.

    The context is its standardised numbers and an embedding of each category, the action an embedding of its code and
    its standardised features; W_x·context is computed once a decision, not once an action. What no row has (an action,
    a value of a category) gets the mean embedding of those that were seen.

    hidden          width of both hidden layers
    epochs          passes over the rows
    batch_size      rows in a step
    learning_rate   of AdamW
    weight_decay    of AdamW, decoupled
    patience        stop after so many epochs without a lower loss on a tenth of the rows held out, and go back to the
                    best epoch; None: never, and all rows are learned from
    """

    state_file: ClassVar[str] = "network.safetensors"

    seed: int = field(default=0, kw_only=True)
    hidden: int = field(default=64, kw_only=True)
    epochs: int = field(default=20, kw_only=True)
    batch_size: int = field(default=256, kw_only=True)
    learning_rate: float = field(default=3e-3, kw_only=True)
    weight_decay: float = field(default=0.1, kw_only=True)
    patience: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a positive number, got {self.learning_rate:g}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: expected at least 0, got {self.weight_decay:g}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience: expected at least 1 epoch or None, got {self.patience}")
        self._state: dict[str, Tensor] = {}

    @property
    def trained(self) -> bool:
        return bool(self._state)

    @property
    def _members(self) -> int:
        return 1

    def _counts(self, rows: int, generator: torch.Generator) -> Float[Tensor, "members rows"]:
        """How often each member counts each row."""
        return torch.ones(1, rows)

    def fit(self, rows: LoggedDecisions, weights: Weights = None) -> NetworkOracle:
        weights = check_rows(self.schema, rows, weights)
        self._state, self.calibration = {}, None
        if nothing_in(rows, weights):
            return self
        choices, feature = rows.choices, rows.chosen_feature
        scale = Scale.of(choices.number, feature, weights)
        units = {
            "centre": torch.from_numpy(scale.centre).float(),
            "deviation": torch.from_numpy(scale.deviation).float(),
            "size": torch.from_numpy(scale.size).float(),
        }
        weight = np.ones(len(rows)) if weights is None else weights / weights.mean()
        rate = (rows.reward @ weight + 0.5) / (weight.sum() + 1.0)
        parameters = self._initial(float(np.log(rate / (1 - rate))))
        generator = torch.Generator().manual_seed(self.seed)
        counts = self._counts(len(rows), generator)
        inputs = _Inputs.of(choices, rows.action[:, None], feature[:, None], units)
        reward = torch.from_numpy(rows.reward).float()
        each = torch.from_numpy(weight).float()
        learned = self._train(parameters, inputs, reward, each, counts * each, generator)
        seen = {"action": torch.from_numpy(rows.action)}
        for at in range(len(self.schema.categories)):
            seen[f"category{at}"] = torch.from_numpy(choices.category[:, at])
        for name, code in seen.items():
            _fill_unseen(learned[name], code)
        self._state = learned | units
        return self

    def write(self, path: Path) -> None:
        save_file({name: of.contiguous() for name, of in self._state.items()}, path)

    def read(self, path: Path) -> None:
        self._state = load_file(path)

    def _initial(self, base: float) -> dict[str, Tensor]:
        """Each member from a generator of its own, so that it is the same in a stack of any height."""
        schema = self.schema
        widths = [_width(len(known) + 1) for known in schema.categories.values()]
        context = len(schema.numbers) + sum(widths)
        action = _width(len(schema.actions)) + len(schema.action_numbers)
        sizes = {
            "context": (context, self.hidden),
            "action_in": (action, self.hidden),
            "second": (self.hidden, self.hidden),
            "last": (self.hidden, 1),
        }
        # Both parts of the first layer share its inputs.
        spread = {name: (2.0 / max(size[0], 1)) ** 0.5 for name, size in sizes.items()}
        spread |= dict.fromkeys(("context", "action_in"), (2.0 / (context + action)) ** 0.5)
        spread["last"] *= 0.1
        values = [len(known) + 1 for known in schema.categories.values()]
        sizes |= {f"category{at}": size for at, size in enumerate(zip(values, widths, strict=True))}
        sizes["action"] = (len(schema.actions), _width(len(schema.actions)))
        members = []
        for member in range(self._members):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + member)
            members.append(
                {
                    name: torch.randn(size, generator=generator) * spread.get(name, EMBEDDING)
                    for name, size in sizes.items()
                }
            )
        stacked = {name: torch.stack([of[name] for of in members]) for name in sizes}
        stacked["first_bias"] = torch.zeros(self._members, 1, self.hidden)
        stacked["second_bias"] = torch.zeros(self._members, 1, self.hidden)
        stacked["last_bias"] = torch.full((self._members, 1, 1), base)
        return stacked

    def _train(
        self,
        parameters: dict[str, Tensor],
        inputs: _Inputs,
        reward: Float[Tensor, " rows"],
        weight: Float[Tensor, " rows"],
        counts: Float[Tensor, "members rows"],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        parameters = {name: of.requires_grad_() for name, of in parameters.items()}
        # Biases are not drawn toward 0: the last one is the mean reward.
        biases = [of for name, of in parameters.items() if name.endswith("bias")]
        others = [of for name, of in parameters.items() if not name.endswith("bias")]
        groups = [{"params": others}, {"params": biases, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay)
        order = torch.randperm(len(reward), generator=generator)
        held_out = order[: len(reward) // 10 if self.patience else 0]
        training = order[len(held_out) :]
        best, since, kept = torch.inf, 0, parameters
        for _ in range(self.epochs):
            shuffled = training[torch.randperm(len(training), generator=generator)]
            for batch in shuffled.split(self.batch_size):
                logit = _logits(parameters, inputs.take(batch))[:, :, 0]
                loss = functional.binary_cross_entropy_with_logits(
                    logit, reward[batch].expand_as(logit), weight=counts[:, batch], reduction="sum"
                ) / len(batch)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            if not len(held_out):
                continue
            with torch.no_grad():
                logit = _logits(parameters, inputs.take(held_out))[:, :, 0]
                loss = functional.binary_cross_entropy_with_logits(
                    logit, reward[held_out].expand_as(logit), weight=weight[held_out]
                ).item()
            if loss < best:
                best, since = loss, 0
                kept = {name: of.detach().clone() for name, of in parameters.items()}
            else:
                since += 1
                if since >= self.patience:
                    break
        return {name: of.detach() for name, of in kept.items()}

    @torch.no_grad()
    def _probabilities(self, choices: Choices) -> Float[np.ndarray, "members rows columns"]:
        columns = choices.action.shape[1]
        step = max(1, PAIRS // (columns * self._members))
        found = np.empty((self._members, *choices.action.shape))
        for low in range(0, len(choices), step):
            part = choices.take(slice(low, low + step))
            # Padded columns are computed as if they were the first action, and then left out.
            inputs = _Inputs.of(part, np.maximum(part.action, 0), part.feature, self._state)
            found[:, low : low + step] = torch.sigmoid(_logits(self._state, inputs)).numpy()
        return found

    def _mean(self, choices: Choices) -> Scores:
        return self._probabilities(choices).mean(0)


@dataclass(eq=False)
class MLPOracle(NetworkOracle):
    """One network; see `NetworkOracle`."""

    name: ClassVar[str] = "mlp"


@dataclass(eq=False)
class EnsembleOracle(NetworkOracle):
    """Networks that differ in their initial weights and in the bootstrap sample of the rows that each learns from.

    Every member counts row i as often as it comes up in n draws with replacement. `predict` is the members' mean. The
    members' parameters are one stack, so that a training step is one batched product for all of them. Source:
    Osband et al. 2016 (bootstrapped DQN), for networks with one output.
    """

    name: ClassVar[str] = "ensemble"

    members: int = field(default=8, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.members < 1:
            raise ValueError(f"members: expected at least 1, got {self.members}")

    def predict_members(self, choices: Choices) -> Float[np.ndarray, "members rows columns"]:
        """What every member predicts, [members, n, K]; 0.5 before the first row.

        Corrected, calibrated and clipped like `predict`, whose value is their mean before that.
        """
        if not self.trained:
            return np.tile(self.predict(choices), (self.members, 1, 1))
        check_choices(self.schema, choices)
        return self._finish(self._probabilities(choices), choices, self.calibration)

    @property
    def _members(self) -> int:
        return self.members

    def _counts(self, rows: int, generator: torch.Generator) -> Float[Tensor, "members rows"]:
        drawn = torch.randint(rows, (self.members, rows), generator=generator)
        return torch.zeros(self.members, rows).scatter_add_(1, drawn, torch.ones(1, 1).expand_as(drawn))


@dataclass(frozen=True)
class _Inputs:
    """Standardised numbers, codes of categories, codes and sized features of actions, as tensors."""

    number: Float[Tensor, "rows numbers"]
    category: Int[Tensor, "rows categories"]
    action: Int[Tensor, "rows columns"]
    feature: Float[Tensor, "rows columns features"]

    @classmethod
    def of(
        cls, choices: Choices, action: np.ndarray, feature: np.ndarray, units: dict[str, Tensor]
    ) -> _Inputs:
        return cls(
            (torch.from_numpy(choices.number) - units["centre"]) / units["deviation"],
            torch.from_numpy(choices.category),
            torch.from_numpy(action),
            torch.from_numpy(feature) / units["size"],
        )

    def take(self, rows: Int[Tensor, " taken"]) -> _Inputs:
        return _Inputs(self.number[rows], self.category[rows], self.action[rows], self.feature[rows])


def _logits(of: dict[str, Tensor], inputs: _Inputs) -> Float[Tensor, "members rows columns"]:
    members, hidden = of["second"].shape[:2]
    rows, columns = inputs.action.shape
    embedded = [of[f"category{at}"][:, inputs.category[:, at]] for at in range(inputs.category.shape[1])]
    context = torch.cat([inputs.number.expand(members, -1, -1), *embedded], 2)
    first = torch.baddbmm(of["first_bias"], context, of["context"])[:, :, None]
    # Embedding and layer in one table [members, actions, hidden].
    width = of["action"].shape[2]
    table = torch.bmm(of["action"], of["action_in"][:, :width])
    first = first + table[:, inputs.action]
    if inputs.feature.shape[2]:
        sized = inputs.feature.reshape(1, rows * columns, -1).expand(members, -1, -1)
        first = first + torch.bmm(sized, of["action_in"][:, width:]).view(members, rows, columns, hidden)
    second = torch.baddbmm(of["second_bias"], first.relu().view(members, -1, hidden), of["second"]).relu()
    return torch.baddbmm(of["last_bias"], second, of["last"]).view(members, rows, columns)


def _fill_unseen(embedding: Float[Tensor, "members values width"], code: Int[Tensor, " rows"]) -> None:
    seen = torch.bincount(code, minlength=embedding.shape[1]) > 0
    embedding[:, ~seen] = embedding[:, seen].mean(1, keepdim=True)


def _width(values: int) -> int:
    return min(WIDEST, int(np.ceil(values**0.5)) + 1)
