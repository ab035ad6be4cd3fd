"""Payment bandits: explore by inverse gaps, retrain on a short memory, watch what that does to the next generation.

Vangara & Egg, "Contextual Bandits in Payment Processing: Non-uniform Exploration and Supervised Learning (at Adyen)",
arXiv 2412.00569. A supervised model of success scores the actions that are eligible for this payment, an explorer turns
scores into probabilities (inverse gap weighting: 1/(K + γ·gap)), and every period a new model is fitted to the last W
periods of the policy's own log. Good policies write poor logs: with W = 1 later generations get worse.

The paper gives no numbers, code or data; world, constants and figures to expect are those of ``adyen.md`` 7. Where we
depart: rows are learned from once they are older than the attribution window, since fast successes would bias the
newest ones; γ may be given as the share of traffic off the greedy action; there are a uniform slice and a gate.

    peira run bandit --env payment --steps 192000 --explorer squarecb --oracle lightgbm --window 4 --gate on
    peira compare short=bandit long=bandit --env payment --steps 144000 --seeds 5 --short.window 1 --long.window 4

The figures to expect are in docs/bandit.md.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from peira.environments.decision_world import DecisionWorld
from peira.environments.logged_stream import LoggedStream
from peira.evaluation.decisions import gate
from peira.evaluation.episodes import Evaluation
from peira.evaluation.generations import flip_rate, log_columns, model_columns, verdict
from peira.experience.decision_memory import DecisionMemory
from peira.experience.decisions import LoggedDecisions
from peira.learners.decision_policy import (
    WITH_MEMBERS,
    DecisionPolicy,
    Deployed,
    ExplorerConfig,
    Kind,
)
from peira.policies.oracles.calibration import importance_weights
from peira.policies.oracles.make import make_oracle
from peira.policies.oracles.protocol import RewardOracle
from peira.recipes.ppo import check_ranges
from peira.runs.ledger import decision_columns
from peira.runs.run import Run
from peira.sources.decision_rollout import decide, make_world

BUDGET_ROWS = 10_000
"""Newest decisions that a budget of exploration is solved on."""


@dataclass(frozen=True)
class Config:
    env: str = "payment"
    """payment (and its variants), a scikit-learn data set such as digits, or the path of logged decisions."""
    steps: int = 192_000
    """Budget of real decisions."""
    seed: int = 0
    """Seed of everything random, the world's coefficients included."""
    period: int = 12_000
    """Decisions between two generations of the policy."""
    window: int = 1
    """W: periods whose rows a generation is trained on; 1 is the paper's short memory."""
    oracle: Literal["ridge", "logistic", "lightgbm", "mlp", "ensemble"] = "lightgbm"
    """Supervised model of the reward."""
    calibration: Literal["none", "isotonic", "platt"] = "none"
    """How the model's scores are calibrated, on a fifth of the window that it was not fitted to."""
    importance_cap: float | None = None
    """Train with weights min(1/p, cap); None for plain supervised learning."""
    explorer: Kind = "squarecb"
    """How scores become probabilities."""
    epsilon: float = 0.05
    """ε of the epsilon explorer."""
    temperature: float = 0.01
    """τ of the softmax explorer, in units of the reward."""
    gamma: float | None = None
    """γ of inverse gap weighting; None for the schedule 10·√(labelled rows), or for one of the budgets."""
    explore_mass: float | None = None
    """Instead of γ: the share of traffic that leaves the greedy action."""
    explore_cost: float | None = None
    """Instead of γ: the reward a decision may cost by exploration, as the model predicts it."""
    floor: float = 0.0
    """u: no eligible action gets less than u/K."""
    floor_mode: Literal["project", "mix"] = "project"
    """Raise small probabilities as little as possible, or mix with the uniform distribution."""
    uniform_slice: float = 0.01
    """Share of traffic that is always decided uniformly."""
    gate: Literal["on", "off"] = "off"
    """Whether a generation must pass the off-policy gate to be deployed."""
    gate_share: float = 0.3
    """Newest part of a period that the gate judges on and training leaves out, if the gate is on."""
    tolerance: float = 0.02
    """How much worse than the incumbent a candidate may possibly be, in units of the reward."""
    confidence: float = 0.975
    """One-sided confidence of the gate."""
    attribution_window: int = 0
    """H: decisions that an outcome may take; later ones count as the default reward. 0 where they come at once."""
    default_reward: float = 0.0
    """Reward of a decision without an outcome within H."""
    from_log: Literal["learn", "replay"] = "learn"
    """Of a log: learn from all rows, or from those that the policy would have decided alike, as if it had run."""
    evaluations: int = 100
    """Evaluations over the budget, at most one a period."""
    evaluation_episodes: int = 10_000
    """Fresh decisions in each evaluation; data sets and logs are judged by what they pay before it is learned from."""
    store: bool = True
    """Write every decision to experience.lance once its outcome is known."""

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        if self.steps < self.period:
            raise ValueError(
                f"steps: a budget of {self.steps} holds no period of {self.period}; raise it or lower period"
            )
        if self.gate == "on" and not 0 < self.gate_share < 1:
            raise ValueError(f"gate_share: expected a number between 0 and 1, got {self.gate_share:g}")
        if self.explorer in WITH_MEMBERS and self.oracle != "ensemble":
            raise ValueError(
                f"oracle: {self.explorer} needs the predictions of an ensemble, got {self.oracle}"
            )
        self.explores_by()

    def explores_by(self) -> ExplorerConfig:
        """The explorer's settings among these; ValueError where they contradict one another."""
        own = {of.name for of in fields(ExplorerConfig)} & {of.name for of in fields(self)}
        return ExplorerConfig(kind=self.explorer, **{name: getattr(self, name) for name in own})


_RANGES = {
    **dict.fromkeys(("steps", "period", "window", "evaluations", "evaluation_episodes"), (1, math.inf)),
    **dict.fromkeys(("importance_cap", "tolerance", "attribution_window"), (0, math.inf)),
    "confidence": (0.5, 1),
}


def preset(env: str) -> Config:
    """The settings to begin from: for payments long enough to wait for failures, for data sets small periods."""
    if env == "payment-delay":
        return Config(env=env, attribution_window=40_000)
    if env.startswith("payment"):
        return Config(env=env, attribution_window=1_000)
    return Config(env=env, steps=1_700, period=100, window=1_000_000, oracle="ridge", uniform_slice=0.0)


def fit(
    config: Config, rows: LoggedDecisions, world: DecisionWorld | LoggedStream, seed: int
) -> RewardOracle:
    """An ordinary supervised fit to logged rows, weighted and calibrated where the settings ask for it."""
    oracle = make_oracle(config.oracle, world.schema, seed)
    held_out = np.zeros(len(rows), bool)
    if config.calibration != "none":
        held_out = np.arange(len(rows)) % 5 == 0
    train = rows.take(~held_out)
    cap = config.importance_cap
    oracle.fit(train, None if cap is None else importance_weights(train.propensity, cap))
    return oracle.calibrate(rows.take(held_out), config.calibration) if held_out.any() else oracle


def succeed(
    config: Config,
    run: Run,
    world: DecisionWorld | LoggedStream,
    policy: DecisionPolicy,
    memory: DecisionMemory,
    matured: LoggedDecisions,
    generation: int,
) -> DecisionPolicy:
    """Train a candidate on the window and deploy it, unless the gate refuses; book what the generation was like."""
    held = round(len(matured) * config.gate_share) if config.gate == "on" else 0
    newest, judged = (
        matured.take(slice(0, len(matured) - held)),
        matured.take(slice(len(matured) - held, None)),
    )
    rows = LoggedDecisions.concatenate([*memory.periods[:-1], newest])
    oracle = fit(config, rows, world, run.derived_seed(f"oracle {generation}"))
    candidate = DecisionPolicy.deploy(
        oracle,
        config.explores_by(),
        rows.choices.take(slice(-BUDGET_ROWS, None)),
        labelled=memory.labelled,
        id=run.policy_id,
        version=generation,
    )
    columns = log_columns(matured, world.schema, next(iter(world.schema.categories), None))
    if policy.oracle is not None:
        before = policy.oracle.predict(matured.choices)
        columns |= model_columns(matured, before)
        columns["flip_rate"] = flip_rate(before, oracle.predict(matured.choices))
    probability = candidate.pmf(rows.choices)[np.arange(len(rows)), rows.column]
    replayed = len(rows) - len(newest)
    source = "logged" if isinstance(world, LoggedStream) else "real"
    run.book(decision_columns(probability, rows, generation, replayed, source), replayed_steps=replayed)
    deployed = True
    if config.gate == "on":
        said = gate(
            candidate,
            policy,
            judged,
            world.schema,
            tolerance=config.tolerance,
            confidence=config.confidence,
            seed=run.derived_seed(f"gate {generation}"),
        )
        deployed = said.passed
        columns["gate_difference"] = said.report["difference"]["dr"]["value"]
        columns["gate_low"] = said.report["difference"]["dr"]["low"]
        columns["gate_effective_rows"] = said.report["effective_rows"]
    columns["deployed"] = float(deployed)
    if candidate.gamma is not None:
        columns["gamma"] = candidate.gamma
    memory.history.append(columns)
    return candidate if deployed else policy


def worth(policy: DecisionPolicy, rows: LoggedDecisions) -> np.ndarray:
    """w r / mean(w), w = π/p: what rows of another policy would have paid this one; their mean is SNIPS' estimate."""
    weight = policy.pmf(rows.choices)[np.arange(len(rows)), rows.column] / rows.propensity
    return rows.reward * weight / max(weight.mean(), 1e-300)


def judge(
    config: Config,
    run: Run,
    world: DecisionWorld | LoggedStream,
    policy: DecisionPolicy,
    memory: DecisionMemory,
) -> dict[str, float]:
    """Book what the policy earns on fresh decisions, as it is deployed; more columns where the world knows its truth.

    A data set or a log has no fresh decisions: its score is progressive, the mean of what all decisions so far paid (an
    off-policy estimate where another policy drew them) before anyone learned from them. Of a simulator: value,
    E[Σ_a π f*]; value_greedy; regret against the best eligible action; model_error, the root mean square of f̂ − f*
    over all eligible actions.
    """
    if not run.evaluation_due:
        return {}
    if isinstance(world, Sized):
        paid = np.array(memory.paid)
        run.evaluated(Evaluation(paid, np.zeros(len(paid), np.int64)))
        return {"value": float(paid[-config.period :].mean())}
    at, rng = run.real_steps, np.random.default_rng(run.evaluation_seed)
    fresh, _ = decide(world, policy, config.evaluation_episodes, at, rng)
    run.evaluated(Evaluation(fresh.reward, np.ones(len(fresh), np.int64)))
    expected = world.expected_reward(fresh.choices, at)
    value = np.nansum(fresh.pmf * expected, 1)
    measures = {"value": float(value.mean()), "regret": float((np.nanmax(expected, 1) - value).mean())}
    if policy.oracle is not None:
        scores = policy.oracle.predict(fresh.choices)
        greedy = np.nanargmax(scores, 1)
        measures["value_greedy"] = float(expected[np.arange(len(fresh)), greedy].mean())
        measures["model_error"] = float(np.sqrt(np.nanmean((scores - expected) ** 2)))
    return measures


def run(config: Config, run: Run) -> DecisionPolicy:
    world = make_world(config.env, run.derived_seed("world"))
    if isinstance(world, Sized) and len(world) < config.steps:
        raise ValueError(f"steps: {config.env} holds {len(world)} decisions, got {config.steps}")
    is_log = isinstance(world, LoggedStream)
    policy = Deployed(DecisionPolicy(None, config.explores_by(), id=run.policy_id, version=0))
    memory = DecisionMemory(config.window)
    run.keep(policy=policy, memory=memory)

    for generation in run.iterations(config.period):
        at, rng = run.real_steps, np.random.default_rng(run.derived_seed(f"decisions {generation}"))
        rows, delay = decide(world, policy.now, config.period, at, rng, replayed=config.from_log == "replay")
        run.gathered_decisions(config.period)
        if isinstance(world, Sized):
            drawn_by_others = is_log and config.from_log == "learn"
            memory.paid += (worth(policy.now, rows) if drawn_by_others else rows.reward).tolist()
        matured = memory.add(
            rows, delay, at + config.period, config.attribution_window, config.default_reward
        )
        if len(matured):
            run.keep_decisions(matured, world.schema, source="logged" if is_log else "real")
            policy.now = succeed(config, run, world, policy.now, memory, matured, generation)
            run.log(memory.history[-1])
        measures = judge(config, run, world, policy.now, memory)
        run.log(measures)
        if len(matured):
            memory.history[-1].update(measures)
    run.remark(verdict(memory.history))
    return policy.now
