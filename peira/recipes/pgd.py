"""Policy-guided diffusion: a log, and windows invented from it for the current policy, in front of an offline learner.

Jackson et al., "Policy-Guided Diffusion", arXiv 2404.06356. One diffusion model learns whole windows (s, a, r, done) of
the log. When experience for the current policy is wanted, windows are sampled from it while the gradient of log π moves
their actions at every denoising step; the denoiser keeps states, rewards and ends plausible. Batches are 240 synthetic
rows and 16 real ones, renewed every `refresh` updates; the learner (TD3+BC or IQL) is as it was.

Departures from the official code, each for a reason in ``pgd.md``: churn begins the step it belongs to (6.1), a zero
gradient is no NaN (6.2), a pad step lets terminals reach the learner (2.2), windows are as long as the model's (2.7),
the last layer begins at 0, the averaged weights soon forget where they began, and networks are small enough for a CPU.
`--data` gives the comparisons: the log alone (real), the same model without guidance (unguided), SynthER, and a
one-step ensemble rolled out under the policy.

    peira run pgd --env Pendulum-v1 --log runs/pendulum-log --learner td3bc --updates 100000
    peira run pgd --env HalfCheetah-v5 --log runs/cheetah --learner iql --data unguided

The figures to expect are in docs/pgd.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from peira.evaluation.episodes import evaluate
from peira.learners.offline import OfflineLearner, Settings, standardisation
from peira.policies.continuous import ContinuousPolicy
from peira.recipes.ppo import check_ranges
from peira.recipes.td3bc import BUDGET_RANGES, check, check_budget
from peira.runs.run import Run
from peira.sources.diffusion.sampler import SamplerConfig
from peira.sources.diffusion.tuning import tuned_strength
from peira.sources.dynamics_ensemble import EnsembleConfig, EnsembleFit, EnsembleSource, termination_of
from peira.sources.guided_diffusion import DiffusionFit, DiffusionSource, FitConfig, TrajectoryDiffusion
from peira.sources.logged import LogOfWorld, read_log
from peira.sources.synther import SYNTHER_SAMPLER, SyntherConfig, SyntherFit, SyntherSource
from peira.sources.synthetic import ExperienceModel, MixedBuffer, SyntheticSet


@dataclass(frozen=True)
class Config:
    env: str = "Pendulum-v1"
    """Environment the log comes from; the policy is evaluated there."""
    log: str = ""
    """A store, a run's folder, a Parquet or JSON-lines file, or a Minari data set."""
    updates: int = 100_000
    """Budget of updates of the learner; no real step is taken to learn."""
    seed: int = 0
    """Seed of everything random."""
    learner: Literal["td3bc", "iql"] = "td3bc"
    """Who learns from the batches."""
    data: Literal["real", "unguided", "guided", "synther", "ensemble"] = "guided"
    """Where the synthetic rows come from; real for none."""
    batch: int = 256
    """Rows of an update."""
    synthetic: int = 240
    """Of them synthetic, where there are any."""
    refresh: int = 10_000
    """Updates of the learner between new synthetic sets."""
    lifetime: int = 1
    """Synthetic sets that live at a time."""
    model: str | None = None
    """Folder of a fitted diffusion model, such as RUN/diffusion of another run on this log; None to fit one."""
    windows: int = 2048
    """Windows of a set; SynthER and the ensemble make as many transitions."""
    length: int = 32
    """T: steps of a window."""
    stride: int = 8
    """Every stride-th window is learned from, besides those at an episode's start or terminal."""
    terminal_pad: bool = True
    """Follow a terminal by one absorbing step, so that terminals reach the learner."""
    network: Literal["unet", "transformer"] = "unet"
    """Of the denoiser."""
    features: int = 64
    """f: width of the denoiser's first block."""
    blocks: int = 3
    """B: blocks of the denoiser."""
    fit_updates: int = 10_000
    """Updates of the model: denoiser, SynthER's or ensemble."""
    fit_batch: int = 128
    """Windows of an update of the denoiser."""
    fit_learning_rate: float = 1e-3
    """Of the denoiser, at its peak."""
    denoising_steps: int = 64
    """N: noise levels."""
    churn: float = 0.3
    """γ: how far noise is raised before each step."""
    guidance: Literal["recipe", "dps-after", "dps-before", "dps-full", "stopgrad"] = "recipe"
    """How the gradient enters the sampler."""
    strength: float = 2.0
    """λ: strength of guidance; in 64 steps on windows of 32 as much as the paper's 1 in 256 steps on 129."""
    tune_strength: bool = False
    """iql: before each guided set move λ until actions are as spread as the policy's; `strength` is the start."""
    negative_behaviour: float = 0.0
    """κ: how much of the behaviour policy's gradient is subtracted; a Gaussian is fitted to the log for it."""
    horizon: int = 5
    """Steps of the ensemble's rollouts."""
    penalty: float = 0.0
    """Reward taken off for each unit of the ensemble's uncertainty (MOPO)."""
    cloning_weight: float = 1.0
    """td3bc: weight of (μ − a)² in the actor's loss."""
    expectile: float = 0.7
    """iql: τ."""
    inverse_temperature: float = 3.0
    """iql: β."""
    learning_rate: float = 3e-4
    """Of the learner."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the learner's hidden layers."""
    discount: float = 0.99
    """γ of the return."""
    clip_actions: bool = False
    """Logged actions outside the bounds are taken as the environment executed them: clipped."""
    timeouts: Literal["refuse", "truncate", "keep"] = "refuse"
    """What to do with ends that were the clock's but were logged as terminated."""
    chunk: int = 500
    """Updates, of the learner or the model, between lines of the metrics."""
    evaluations: int = 10
    """Evaluations of the policy over the budget."""
    evaluation_episodes: int = 10
    """Fresh episodes in each evaluation."""
    store: bool = True
    """Write every synthetic set to experience.lance."""
    compiled: bool = True
    """Compile updates and denoiser to native code (needs a C++ compiler); the result differs in the last bits."""

    def __post_init__(self) -> None:
        check_ranges(self, {**BUDGET_RANGES, **_RANGES})
        check_budget(self)
        if self.refresh % self.chunk:
            raise ValueError(f"refresh: expected a multiple of chunk={self.chunk}, got {self.refresh}")
        if self.synthetic > self.batch:
            raise ValueError(f"synthetic: expected at most batch={self.batch}, got {self.synthetic}")
        if self.model is not None and self.data not in ("guided", "unguided"):
            raise ValueError(f"model: a diffusion model has no part in data {self.data}; leave it out")
        if self.tune_strength and self.learner == "td3bc":
            raise ValueError(
                "tune_strength: a deterministic actor (td3bc) has no spread to tune to; leave it out and set strength"
            )
        if self.data == "guided" and self.strength == 0:
            raise ValueError("strength: guided data need a strength above 0; data unguided is what 0 means")


_RANGES = {
    **dict.fromkeys(("batch", "refresh", "lifetime", "windows", "stride", "blocks"), (1, math.inf)),
    **dict.fromkeys(("fit_updates", "fit_batch", "horizon"), (1, math.inf)),
    **dict.fromkeys(("length", "denoising_steps"), (2, math.inf)),
    **dict.fromkeys(("features",), (8, math.inf)),
    **dict.fromkeys(
        ("synthetic", "strength", "negative_behaviour", "penalty", "cloning_weight"), (0, math.inf)
    ),
    **dict.fromkeys(("fit_learning_rate", "learning_rate", "inverse_temperature"), (0, math.inf)),
    **dict.fromkeys(("churn", "discount", "expectile"), (0, 1)),
}


def preset(env: str) -> Config:
    """The settings to begin from in this environment."""
    return Config(env=env)


class Maker:
    """Fits the model of the log and makes sets of synthetic experience, a piece at a time; resumes bit for bit.

    The first set is unguided, as the policy is still random (``pgd.md`` 2.7). A diffusion model that was fitted here is
    saved to `folder`.
    """

    def __init__(self, config: Config, given: LogOfWorld, seed: int, folder: Path):
        self._config, self._log, self._folder = config, given.log, folder
        self._generator = torch.Generator().manual_seed(seed)
        bounds = {"low": tuple(given.low.tolist()), "high": tuple(given.high.tolist())}
        self._fit = self._fitted_by(bounds, seed)
        self._behaviour = None
        if config.data == "guided" and config.negative_behaviour:
            cloning = Settings(
                method="iql",
                inverse_temperature=0.0,
                critic_updates=1,
                hidden=config.hidden,
                batch=config.batch,
            )
            self._behaviour = OfflineLearner(
                cloning,
                given.log.observation_size,
                given.log.action_size,
                **bounds,
                seeds=[seed],
                compiled=config.compiled,
            )
            self._behaviour.standardise(*standardisation(given.log.observation))
        self._source: ExperienceModel | None = None
        self._model = None if config.model is None else model_for(config, given)
        self._parts: list[torch.Tensor] = []
        self._strength, self._tuned, self._sets, self._seed = config.strength, False, 0, 0

    @property
    def is_fitting(self) -> bool:
        """Whether there is still something to be learned from the log."""
        return (self._fit is not None and not self._fit.is_over) or self._cloning

    def doing(self, due: bool) -> tuple[str, int, int]:
        """What stands before the policy's updates, how much of it is done, and of how much: for people who wait."""
        updates = self._config.fit_updates
        if self._fit is not None and not self._fit.is_over:
            return "compiling, then fitting the source to the log", self._fit.step, updates
        if self._cloning:
            return "cloning the behaviour policy", self._behaviour.updates, updates
        return ("inventing experience" if due else ""), 0, 0

    @property
    def remarks(self) -> list[str]:
        """What people should know about how the log was cut into windows."""
        if not isinstance(self._fit, DiffusionFit):
            return []
        windows = self._fit.windows
        found = []
        if windows.too_short:
            found.append(
                f"{windows.too_short} of {self._log.episodes} episodes hold no window of {windows.length} steps; the "
                "model does not learn from them"
            )
        if len(windows.held_out) == 0:
            found.append("only one episode holds windows: none is held out, and there is no validation loss")
        return found

    def fit(self) -> dict[str, float]:
        """The next `chunk` updates of the model, or of the behaviour policy after it."""
        if self._fit is None or self._fit.is_over:
            packed = self._behaviour.pack(self._log)
            ranges = [(0, self._log.rows, self._behaviour.settings.batch)]
            self._behaviour.update(packed, self._behaviour.draw_rows(self._config.chunk, ranges))
            return {"behaviour_updates": float(self._behaviour.updates)}
        measures = {"fit_loss": self._fit.advance(self._config.chunk), "fit_updates": float(self._fit.step)}
        if isinstance(self._fit, DiffusionFit) and (held := self._fit.validation_loss()) is not None:
            measures["fit_validation_loss"] = held
        if isinstance(self._fit, DiffusionFit) and self._fit.is_over:
            self._fit.model().save(self._folder)
        return measures

    def make(self, policy: ContinuousPolicy) -> SyntheticSet | None:
        """The next piece of a set for this policy; the set, when it is whole. λ is tuned first where that is asked."""
        guided = self._config.data == "guided" and self._sets > 0
        if not self._parts and not self._tuned:
            self._seed = int(torch.randint(2**31 - 1, (1,), generator=self._generator))
            self._generator.manual_seed(self._seed)
            if guided and self._config.tune_strength:
                self._strength, _ = tuned_strength(
                    self._model_once(),
                    policy,
                    self._sampler(True),
                    self._generator,
                    behaviour=self._behaviour_policy,
                )
                self._tuned = True
                return None
        source = self._source_for(guided)
        target = policy if guided or self._config.data == "ensemble" else None
        size = source.parts[len(self._parts)]
        self._parts.append(source.part(size, target, self._generator))
        if len(self._parts) < len(source.parts):
            return None
        made = source.assemble(self._parts, target, self._seed)
        self._parts, self._tuned = [], False
        self._sets += 1
        return made

    def state_dict(self) -> dict:
        return {
            "fit": None if self._fit is None else self._fit.state_dict(),
            "behaviour": None if self._behaviour is None else self._behaviour.state_dict(),
            "generator": self._generator.get_state(),
            "parts": list(self._parts),
            "strength": self._strength,
            "tuned": self._tuned,
            "sets": self._sets,
            "seed": self._seed,
        }

    def load_state_dict(self, state: dict) -> None:
        if self._fit is not None:
            self._fit.load_state_dict(state["fit"])
        if self._behaviour is not None:
            self._behaviour.load_state_dict(state["behaviour"])
        self._generator.set_state(state["generator"])
        self._parts = list(state["parts"])
        self._strength, self._tuned = state["strength"], state["tuned"]
        self._sets, self._seed = state["sets"], state["seed"]

    @property
    def _cloning(self) -> bool:
        return self._behaviour is not None and self._behaviour.updates < self._config.fit_updates

    @property
    def _behaviour_policy(self) -> ContinuousPolicy | None:
        return None if self._behaviour is None else self._behaviour.policies[0]

    def _fitted_by(
        self, bounds: dict[str, tuple], seed: int
    ) -> DiffusionFit | SyntherFit | EnsembleFit | None:
        config = self._config
        if config.model is not None:
            return None
        shared = {**bounds, "updates": config.fit_updates, "compiled": config.compiled}
        if config.data == "synther":
            return SyntherFit(self._log, SyntherConfig(**shared), seed)
        if config.data == "ensemble":
            return EnsembleFit(self._log, EnsembleConfig(**shared), seed)
        settings = FitConfig(
            **shared,
            length=config.length,
            stride=config.stride,
            terminal_pad=config.terminal_pad,
            network=config.network,
            features=config.features,
            blocks=config.blocks,
            batch_size=config.fit_batch,
            learning_rate=config.fit_learning_rate,
        )
        return DiffusionFit(self._log, settings, seed)

    def _sampler(self, guided: bool) -> SamplerConfig:
        config = self._config
        return SamplerConfig(
            steps=config.denoising_steps,
            churn=config.churn * config.denoising_steps,
            guidance=config.guidance,
            strength=self._strength if guided else 0.0,
            negative_behaviour=config.negative_behaviour if guided else 0.0,
        )

    def _model_once(self) -> TrajectoryDiffusion:
        """The fitted model: one object, whose compiled denoiser serves every set."""
        self._model = self._model or self._fit.model()
        return self._model

    def _source_for(self, guided: bool) -> ExperienceModel:
        """The fitted model as a source of sets."""
        config, rows = self._config, self._config.windows * (self._config.length - 1)
        if self._model is not None or isinstance(self._fit, DiffusionFit):
            sampler = self._sampler(guided)
            return DiffusionSource(self._model_once(), sampler, config.windows, self._behaviour_policy)
        if self._source is None and isinstance(self._fit, SyntherFit):
            sampler = replace(
                SYNTHER_SAMPLER,
                steps=config.denoising_steps,
                churn=config.churn * config.denoising_steps,
                churn_noise=1.0,
            )
            self._source = SyntherSource(self._fit, transitions=rows, sampler=sampler)
        elif self._source is None:
            self._source = EnsembleSource(
                self._fit,
                self._log,
                horizon=config.horizon,
                starts=math.ceil(rows / config.horizon),
                penalty=config.penalty,
                terminates=termination_of(config.env, self._log),
            )
        return self._source


def model_for(config: Config, given: LogOfWorld) -> TrajectoryDiffusion:
    """The model that the settings name; ValueError unless it is one of such a log."""
    model = TrajectoryDiffusion.load(config.model)
    channels = model.channels
    alike = (
        channels.observation_size == given.log.observation_size
        and torch.equal(channels.bounds.low, given.low)
        and torch.equal(channels.bounds.high, given.high)
    )
    if not alike:
        raise ValueError(
            f"model: {config.model} was fitted to {channels.observation_size} observations and actions within "
            f"{channels.bounds.low.tolist()} to {channels.bounds.high.tolist()}, which the log does not have; name one "
            "fitted to it"
        )
    return model


def learner_of(config: Config, given: LogOfWorld, seed: int) -> OfflineLearner:
    """TD3+BC or IQL with the constants of ``pgd.md`` 2.7, its observations z-scored on the log."""
    shared = {
        "hidden": config.hidden,
        "batch": config.batch,
        "discount": config.discount,
        "learning_rate": config.learning_rate,
    }
    if config.learner == "td3bc":
        settings = Settings(method="td3", cloning_weight=config.cloning_weight, **shared)
    else:
        settings = Settings(
            method="iql",
            critic_updates=1,
            expectile=config.expectile,
            inverse_temperature=config.inverse_temperature,
            **shared,
        )
    learner = OfflineLearner(
        settings,
        given.log.observation_size,
        given.log.action_size,
        low=given.low.tolist(),
        high=given.high.tolist(),
        seeds=[seed],
        compiled=config.compiled,
    )
    learner.standardise(*standardisation(given.log.observation))
    return learner


def run(config: Config, run: Run) -> ContinuousPolicy:
    check(config)
    given = read_log(config.log, config.env, clip_actions=config.clip_actions, timeouts=config.timeouts)
    learner = learner_of(config, given, run.derived_seed("learner"))
    policy = learner.policies[0]
    policy.id = run.policy_id
    buffer = MixedBuffer(
        given.log,
        batch_size=config.batch,
        synthetic=0 if config.data == "real" else config.synthetic,
        refresh_every=config.refresh,
        lifetime=config.lifetime,
    )
    maker = None
    if config.data != "real":
        maker = Maker(config, given, run.derived_seed("source"), run.folder / "diffusion")
    run.keep(learner=learner, buffer=buffer, **({} if maker is None else {"maker": maker}))
    run.remark([*given.remarks, *([] if maker is None else maker.remarks)])

    # Asked for before the loop: what a resumed run has not asked for by its first checkpoint is lost.
    drawing, packed = run.generator("batches"), None
    for _ in run.iterations(config.chunk, budget="updates"):
        if maker is not None:
            run.doing(*maker.doing(buffer.due(learner.updates)))
        if maker is not None and maker.is_fitting:
            run.log(maker.fit())
        elif buffer.due(learner.updates):
            if (made := maker.make(policy)) is not None:
                buffer.refresh(made, learner.updates)
                packed = None
                run.invented(made)
                if (told := made.about.get("mean_log_pi")) is not None:
                    run.log({"strength": made.about["strength"], "synthetic_log_pi": told})
        else:
            if packed is None:
                packed = learner.pack(buffer.log())
            rows = buffer.rows(config.chunk, drawing)
            measures = learner.update(packed, rows[:, None, None])
            run.costs["updates"] += config.chunk
            book(run, buffer, learner.updates, config.chunk)
            run.log(dict(zip(learner.measures, measures.mean((0, 1)).tolist(), strict=True)))
            if run.evaluation_due:
                run.evaluated(evaluate(policy, config.env, config.evaluation_episodes, run.evaluation_seed))
    return policy


def book(run: Run, buffer: MixedBuffer, update: int, updates: int) -> None:
    """The ledger's columns: how old the sets are in versions of the policy, and whence the rows of a batch are."""
    versions = [version for version in buffer.versions() if version >= 0]
    columns = {"share_real": 0.0, **buffer.shares()}
    if versions:
        columns["staleness"] = float(update - sum(versions) / len(versions))
    run.costs["logged_steps"] += updates * (buffer.batch_size - buffer.synthetic)
    run.book(columns, replayed_steps=0)
