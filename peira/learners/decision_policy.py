"""A policy of decisions: predicted rewards, an explorer on top, and the γ that was fixed when it was deployed."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from peira.experience.decision_records import draw_column
from peira.experience.decisions import Choices
from peira.experience.disk import sync
from peira.learners import explorers
from peira.learners.explorer_budget import gamma_for_cost, gamma_for_mass
from peira.learners.explorers import Cells, Mask, Members
from peira.policies.oracles.files import load_oracle, save_oracle
from peira.policies.oracles.protocol import RewardOracle

Kind = Literal[
    "uniform",
    "greedy",
    "epsilon",
    "softmax",
    "squarecb",
    "fastcb",
    "regcb",
    "squarecb-elim",
    "thompson",
    "falcon",
]

CHOSEN_GAMMA = ("squarecb", "fastcb", "squarecb-elim")
"""Kinds whose γ the configuration chooses; FALCON's follows from its epochs."""
WITH_GAMMA = (*CHOSEN_GAMMA, "falcon")
WITH_MEMBERS = ("regcb", "squarecb-elim", "thompson")
"""Kinds that need an oracle of several members."""

USED_BY = {
    "epsilon": ("epsilon",),
    "temperature": ("softmax",),
    **dict.fromkeys(("gamma", "explore_mass", "explore_cost", "gamma_scale", "gamma_exponent"), CHOSEN_GAMMA),
    "coverage": ("regcb", "squarecb-elim"),
    "optimistic": ("regcb",),
    **dict.fromkeys(("class_size", "delta", "falcon_scale", "horizon"), ("falcon",)),
}
"""The settings that only some kinds use."""

Test = Callable[[float], bool]
SHARE: tuple[Test, str] = (lambda value: 0 <= value <= 1, "a share in [0, 1]")
POSITIVE: tuple[Test, str] = (lambda value: 0 < value < math.inf, "a finite number above 0")
NOT_NEGATIVE: tuple[Test, str] = (lambda value: 0 <= value < math.inf, "a finite number of at least 0")
INSIDE: tuple[Test, str] = (lambda value: 0 < value < 1, "a share in (0, 1)")
RANGES = {
    **dict.fromkeys(("epsilon", "floor", "uniform_slice"), SHARE),
    **dict.fromkeys(("temperature", "explore_cost", "falcon_scale", "horizon"), POSITIVE),
    **dict.fromkeys(("gamma_scale", "gamma_exponent"), NOT_NEGATIVE),
    **dict.fromkeys(("explore_mass", "delta"), INSIDE),
    "gamma": (lambda value: value >= 0, "at least 0"),
    "coverage": (lambda value: 0 < value <= 1, "a share in (0, 1]"),
    "class_size": (lambda value: 1 <= value < math.inf, "a finite number of at least 1"),
}


@dataclass(frozen=True)
class ExplorerConfig:
    """How a policy explores. Of `gamma`, `explore_mass`, `explore_cost` at most one; by default γ = scale·t^exponent.

    Raises ValueError for an unknown kind, a value out of range, and a setting that the kind does not use.
    """

    kind: str = "squarecb"  # One of `Kind`.
    epsilon: float = 0.05  # Share of decisions made uniformly.
    temperature: float = 0.01  # Softmax's τ, in units of the reward; payments' gaps are 0.01 to 0.03.
    gamma: float | None = None  # Fixed γ, per unit of reward.
    explore_mass: float | None = None  # γ such that this share of decisions leaves the greedy action.
    explore_cost: float | None = None  # γ such that exploring gives up this much predicted reward a decision.
    gamma_scale: float = 10.0  # γ = gamma_scale·t^gamma_exponent, t = labelled rows learned from.
    gamma_exponent: float = 0.5
    coverage: float = 0.9  # Share of an ensemble's predictions inside an action's interval.
    optimistic: bool = False  # RegCB plays the highest upper bound instead of all that may be best.
    class_size: float = 1000.0  # FALCON's |F|: how many functions the model chooses among.
    delta: float = 0.05  # FALCON's bound fails with this probability.
    falcon_scale: float = 1 / 30  # FALCON's constant before the root.
    horizon: int | None = None  # Total number of decisions, where FALCON may know it.
    floor: float = 0.0  # Every eligible action keeps at least floor/K(x).
    floor_mode: str = "project"  # "project" to the nearest pmf, or "mix" with the uniform one.
    uniform_slice: float = 0.01  # Share of traffic that is always decided uniformly, to measure on.

    def __post_init__(self) -> None:
        for name, known in (("kind", get_args(Kind)), ("floor_mode", ("project", "mix"))):
            if (got := getattr(self, name)) not in known:
                raise ValueError(f"explorer: {name} is one of {', '.join(known)}, got {got!r}")
        for name, (fits, expected) in RANGES.items():
            if (got := getattr(self, name)) is not None and not fits(got):
                raise ValueError(f"explorer: {name}: expected {expected}, got {got:g}")
        changed = [of.name for of in fields(self) if getattr(self, of.name) != of.default]
        for name in changed:
            if name in USED_BY and self.kind not in USED_BY[name]:
                raise ValueError(
                    f"explorer: {name}={getattr(self, name)} means nothing to {self.kind}; leave it out or take "
                    f"{' or '.join(USED_BY[name])}"
                )
        budgets = [name for name in changed if name in ("gamma", "explore_mass", "explore_cost")]
        schedule = [name for name in changed if name in ("gamma_scale", "gamma_exponent")]
        if len(budgets) + bool(schedule) > 1:
            raise ValueError(
                f"explorer: γ follows from {' and from '.join(budgets + schedule)}; give one of them"
            )

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that tell configurations apart: the `config_hash` of a logged decision."""
        return _digest(json.dumps(asdict(self), sort_keys=True).encode())[:16]


class Decided(NamedTuple):
    """Decisions made.

    column         [n] the column of `choices` that was drawn
    pmf            [n, columns] the probabilities it was drawn from, after floors and slice: what is to be logged
    propensity     [n] that of the chosen column
    uniform_slice  [n] whether the row belongs to the slice that is always decided uniformly
    members        how many members the pmf counts the votes of (a Monte-Carlo estimate); None where it is exact
    """

    column: Int[np.ndarray, " rows"]
    pmf: Float[np.ndarray, "rows columns"]
    propensity: Float[np.ndarray, " rows"]
    uniform_slice: Bool[np.ndarray, " rows"]
    members: int | None


class Predicted(NamedTuple):
    """What the explorer asked the oracle for; None is what it does not look at."""

    scores: Cells | None = None
    members: Members | None = None
    low: Cells | None = None
    high: Cells | None = None


@dataclass(frozen=True)
class DecisionPolicy:
    """Probabilities of the eligible actions: the explorer on the oracle's predictions, then the floor.

    oracle    predicts the rewards; None before there is a model: every decision is uniform
    gamma     γ of this version, fixed; None for explorers without one. `deploy` works it out
    labelled  rows with an outcome that the oracle has learned from, in all; it is saved, so that schedules go on
    reached   the mass or cost that γ has on the window it was solved on, where the configuration gives a budget

    Raises ValueError for an explorer that needs γ or the members of an ensemble and does not get them.
    """

    oracle: RewardOracle | None
    explorer: ExplorerConfig
    id: str = field(kw_only=True)
    version: int = field(kw_only=True)
    gamma: float | None = field(default=None, kw_only=True)
    labelled: int = field(default=0, kw_only=True)
    reached: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        kind = self.explorer.kind
        if self.labelled < 0:
            raise ValueError(f"labelled: expected at least 0 rows, got {self.labelled}")
        if self.gamma is not None and not self.gamma >= 0:
            raise ValueError(f"gamma: expected at least 0, got {self.gamma:g}")
        if self.oracle is None:
            return
        if (self.gamma is None) == (kind in WITH_GAMMA):
            need = (
                "needs a γ; make the policy with DecisionPolicy.deploy" if self.gamma is None else "has no γ"
            )
            raise ValueError(f"gamma: {kind} {need}, got {self.gamma}")
        if kind in WITH_MEMBERS and not hasattr(self.oracle, "predict_members"):
            raise ValueError(
                f"explorer: {kind} needs an oracle of several members, got {type(self.oracle).__name__}; "
                "take the oracle 'ensemble'"
            )

    @classmethod
    def deploy(
        cls,
        oracle: RewardOracle | None,
        explorer: ExplorerConfig,
        window: Choices,
        labelled: int,
        id: str,
        version: int,
    ) -> DecisionPolicy:
        """The policy, with a copy of the oracle and γ fixed: as given, by schedule from `labelled`, or by budget.

        A budget is measured on recent decisions, `window`, as they are outside of the uniform slice, floors included.
        One that cannot be reached there (ties keep their mass at any γ) gives the nearest that can, as `gamma_for_mass`
        defines it; `reached` says which. FALCON's γ is that of the last epoch that ended by `labelled`, with K the mean
        K(x) of the window: the sum of the bounds 2K(x)/γ + (γ/4)·error depends on K(x) by its mean. Raises ValueError
        for a budget or FALCON with an empty window. Some ten thousand decisions are window enough.
        """
        gamma, reached = None, None
        if oracle is not None and explorer.kind in WITH_GAMMA:
            budgeted = explorer.explore_mass is not None or explorer.explore_cost is not None
            if not len(window) and (budgeted or explorer.kind == "falcon"):
                raise ValueError("window: expected the decisions to choose γ on, got none")
            if explorer.kind == "falcon":
                ends = explorers.falcon_epochs(labelled, explorer.horizon)
                gamma = explorers.falcon_gamma(
                    float(window.count.mean()),
                    int(ends[-1]) if len(ends) else 0,
                    class_size=explorer.class_size,
                    delta=explorer.delta,
                    scale=explorer.falcon_scale,
                )
            elif budgeted:
                gamma, reached = _solve_budget(oracle, explorer, window)
            elif explorer.gamma is not None:
                gamma = explorer.gamma
            else:
                gamma = explorers.vw_gamma(labelled, explorer.gamma_scale, explorer.gamma_exponent)
        # A copy: fitting the oracle again for the next version must not change this one, which may have to stay.
        own = copy.deepcopy(oracle)
        return cls(own, explorer, id=id, version=version, gamma=gamma, labelled=labelled, reached=reached)

    def pmf(self, choices: Choices) -> Float[np.ndarray, "rows columns"]:
        """Probability of every eligible action, 0 where padded, outside of the uniform slice."""
        return self._pmf(choices)[0]

    def decide(self, choices: Choices, generator: np.random.Generator) -> Decided:
        """Draw one action a row: first who is in the uniform slice, then the actions.

        Two numbers a row are taken from `generator`, whatever the configuration. The slice is drawn without a look at
        the context, so that the uniform pmf of its rows and the policy's of the others are their true propensities.
        """
        in_slice = generator.random(len(choices)) < self.explorer.uniform_slice
        number = generator.random(len(choices))
        pmf, members = self._pmf(choices)
        pmf[in_slice] = explorers.uniform(choices.eligible[in_slice])
        column = draw_column(pmf, number)
        return Decided(column, pmf, pmf[np.arange(len(column)), column], in_slice, members)

    def _pmf(self, choices: Choices) -> tuple[Cells, int | None]:
        if self.oracle is None:
            return explorers.uniform(choices.eligible), None
        seen = _predict(self.oracle, self.explorer, choices)
        pmf = _explore(self.explorer, seen, choices.eligible, self.gamma)
        voting = self.explorer.kind == "thompson"
        return pmf, len(seen.members) if voting else None

    def content_hash(self) -> str:
        """SHA-256 of what decides: explorer, γ and the oracle's files; id and version are not part of it."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if self.oracle is not None:
                save_oracle(self.oracle, folder / "oracle")
            return _digest(_canonical([asdict(self.explorer), self.gamma, _file_digests(folder)]))

    def save(self, folder: Path) -> None:
        """Write `folder`: policy.json and, with a model, oracle/; never half of them, also after a power cut.

        An older policy of that name stays until the new one is on disk.
        """
        written, replaced = (folder.with_name(f".{folder.name}.{state}") for state in ("part", "old"))
        shutil.rmtree(written, ignore_errors=True)
        try:
            written.mkdir(parents=True)
            if self.oracle is not None:
                save_oracle(self.oracle, written / "oracle")
            about = {
                "id": self.id,
                "version": self.version,
                "explorer": asdict(self.explorer),
                "config_hash": self.explorer.hash,
                "gamma": self.gamma,
                "labelled": self.labelled,
                "reached": self.reached,
                "schema": None if self.oracle is None else self.oracle.schema.hash,
                "files": _file_digests(written),
            }
            about["digest"] = _digest(_canonical(about))
            (written / "policy.json").write_text(json.dumps(about, indent=2) + "\n")
            for path in (*written.rglob("*"), written):
                sync(path)
        except BaseException:
            shutil.rmtree(written, ignore_errors=True)
            raise
        if folder.exists():
            # Out of the way first: a folder being removed bit by bit would be there half.
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        written.rename(folder)
        sync(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def load_policy(folder: Path) -> DecisionPolicy:
    """The policy that `save` wrote.

    Raises ValueError, in one line, where policy.json is missing or cannot be read, where a file of the oracle is
    missing, added or changed, and where the oracle was fitted to another schema than the policy says.
    """
    path = folder / "policy.json"
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as fault:
        raise ValueError(
            f"policy: {path} cannot be read ({type(fault).__name__}); name a folder that a policy was saved to"
        ) from fault
    digest = about.pop("digest", None) if isinstance(about, dict) else None
    if digest != _digest(_canonical(about)):
        raise ValueError(
            f"policy: {path} was changed or is not whole: its digest differs; save the policy again"
        )
    try:
        files, schema, explorer = about["files"], about["schema"], ExplorerConfig(**about["explorer"])
        own = {name: about[name] for name in ("id", "version", "gamma", "labelled", "reached")}
    except (KeyError, TypeError) as fault:
        raise ValueError(f"policy: {path} was written by another version of the code: {fault}") from fault
    if files != (found := _file_digests(folder)):
        differs = min(name for name, _ in files.items() ^ found.items())
        raise ValueError(
            f"policy: {folder / differs} is missing, added or changed since the policy was saved; save it again"
        )
    oracle = None if schema is None else load_oracle(folder / "oracle")
    if oracle is not None and oracle.schema.hash != schema:
        raise ValueError(
            f"policy: {folder / 'oracle'} has schema {oracle.schema.hash}, the policy {schema}; save it again"
        )
    return DecisionPolicy(oracle, explorer, **own)


@dataclass
class Deployed:
    """The policy that decides now, as a part of a run."""

    now: DecisionPolicy

    def state_dict(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "policy")
            self.now.save(folder)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            return {
                path.relative_to(folder).as_posix(): np.frombuffer(path.read_bytes(), np.uint8).copy()
                for path in files
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as name:
            for path, content in state.items():
                file = Path(name, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.tobytes())
            self.now = load_policy(Path(name))


def _predict(oracle: RewardOracle, explorer: ExplorerConfig, choices: Choices) -> Predicted:
    if explorer.kind == "uniform":
        return Predicted()
    if explorer.kind not in WITH_MEMBERS:
        return Predicted(oracle.predict(choices))
    members = oracle.predict_members(choices)
    if explorer.kind == "thompson":
        return Predicted(members=members)
    low, high = explorers.member_intervals(members, explorer.coverage)
    return Predicted(
        oracle.predict(choices) if explorer.kind == "squarecb-elim" else None, low=low, high=high
    )


def _explore(explorer: ExplorerConfig, seen: Predicted, eligible: Mask, gamma: float | None) -> Cells:
    """The explorer's pmf on what it saw, floor included."""
    match explorer.kind:
        case "uniform":
            pmf = explorers.uniform(eligible)
        case "greedy":
            pmf = explorers.greedy(seen.scores, eligible)
        case "epsilon":
            pmf = explorers.epsilon_greedy(seen.scores, eligible, explorer.epsilon)
        case "softmax":
            pmf = explorers.softmax(seen.scores, eligible, explorer.temperature)
        case "fastcb":
            pmf = explorers.fastcb(seen.scores, eligible, gamma)
        case "regcb":
            pmf = explorers.regcb_from_intervals(seen.low, seen.high, eligible, explorer.optimistic)
        case "squarecb-elim":
            pmf = explorers.squarecb_elim(seen.scores, seen.low, seen.high, eligible, gamma)
        case "thompson":
            pmf = explorers.thompson(seen.members, eligible)
        case _:
            pmf = explorers.squarecb(seen.scores, eligible, gamma)
    if explorer.floor == 0:
        return pmf
    raised = explorers.project_floor if explorer.floor_mode == "project" else explorers.mix_floor
    return raised(pmf, eligible, explorer.floor)


def _solve_budget(oracle: RewardOracle, explorer: ExplorerConfig, window: Choices) -> tuple[float, float]:
    eligible, seen = window.eligible, _predict(oracle, explorer, window)

    def pmf(gamma: float) -> Cells:
        return _explore(explorer, seen, eligible, gamma)

    if explorer.explore_mass is not None:
        return gamma_for_mass(pmf, seen.scores, eligible, explorer.explore_mass, nearest=True)
    return gamma_for_cost(pmf, seen.scores, eligible, explorer.explore_cost, nearest=True)


def _file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the oracle, by its path within the policy's folder."""
    paths = sorted(path for path in (folder / "oracle").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path.read_bytes()) for path in paths}


def _canonical(about: Any) -> bytes:
    return json.dumps(about, sort_keys=True).encode()


def _digest(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()
