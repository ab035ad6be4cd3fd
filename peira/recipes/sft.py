"""SFT: a language policy learns to write what a scripted expert writes; the warm start of the other text recipes.

Fresh demonstrations come in a few at a time, and updates draw from all that have come so far: what makes a small model
copy names from what it read is the number of updates and of different episodes, not of passes over a few
(``dreamgym.md`` 7.4). The loss is −log π over the expert's own tokens, nothing else.

    peira run sft --env texthouse-brief --steps 16000 --out runs/warm
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from peira.environments.text import TextEnvs, make_text
from peira.evaluation.text import evaluate_text
from peira.experience.dialogue import TextEpisode, Tokens, total_steps
from peira.learners.grpo import token_weights
from peira.learners.language import LanguageLearner, supervised_loss
from peira.policies.compiled import can_compile
from peira.policies.dom import DomPolicy
from peira.policies.lm.model import LanguagePolicy, is_tiny, load_language_policy, make_tiny
from peira.policies.lm.sampler import Sampler
from peira.recipes.ppo import check_ranges
from peira.runs.run import Run
from peira.sources.choice_rollout import choice_rollout
from peira.sources.text_rollout import Attempt, Attempts, expert_rollout, text_rollout

EPISODES_FOR_THE_VOCABULARY = 256
DOM = "dom:"


@dataclass(frozen=True)
class TextConfig:
    """What all recipes for text worlds share."""

    env: str = "texthouse-brief"
    """Text world: texthouse, texthouse-brief, textworld/KIND/LEVEL, miniwob/PAGE."""
    steps: int = 16_000
    """Budget of real environment steps (actions); an iteration that might pass it does not begin."""
    seed: int = 0
    """Seed of everything random."""
    model: str = "tiny:"
    """Model: folder or hub id of a transformers causal LM, RUN/policy, tiny:WIDTHxLAYERS, or dom: (web pages)."""
    lora_rank: int = 0
    """Rank of LoRA adapters; 0 to train all parameters."""
    context: int = 512
    """Tokens that an episode may have, where the model is made from nothing."""
    num_envs: int = 64
    """Worlds side by side, and rows of the sampler."""
    action_tokens: int = 16
    """Tokens that an action may have, reasoning included."""
    system: bool = False
    """Show the world's manual as the system message."""
    tasks: int | None = None
    """How many of the world's training tasks are used; None for all."""
    evaluations: int = 10
    """Evaluations on held-out tasks over the budget."""
    evaluation_episodes: int = 128
    """Held-out tasks in each evaluation."""
    evaluation_temperature: float = 1.0
    """Sampling temperature in evaluations; 0 for the most likely token."""
    micro_tokens: int = 8192
    """Tokens that go through the model at a time when learning; bounds memory only."""
    store: bool = True
    """Write every episode to experience.lance."""
    compiled: bool = True
    """Compile the sampler's step to native code (on a CPU, with a C++ compiler)."""

    def __post_init__(self) -> None:
        check_ranges(self, _TEXT_RANGES)


_TEXT_RANGES = {
    **dict.fromkeys(("steps", "num_envs", "action_tokens", "tasks", "evaluations"), (1, math.inf)),
    **dict.fromkeys(("evaluation_episodes", "micro_tokens", "context"), (1, math.inf)),
    **dict.fromkeys(("evaluation_temperature", "lora_rank"), (0, math.inf)),
}


@dataclass(frozen=True)
class Config(TextConfig):
    learning_rate: float = 2e-3
    """AdamW's step size after warm-up; 1e-5 suits a model of billions."""
    warmup: int = 20
    """Updates over which the step size rises; it then falls linearly to 0 over the budget."""
    batch: int = 16
    """Demonstrations in an update."""
    updates: int = 24
    """Updates after each iteration's fresh demonstrations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, dict.fromkeys(("batch", "updates"), (1, math.inf)))
        check_ranges(self, dict.fromkeys(("learning_rate", "warmup"), (0, math.inf)))


def preset(env: str) -> Config:
    """The settings to begin from in this world."""
    return Config(env=env)


def language_policy(config: TextConfig, envs: TextEnvs, run: Run) -> LanguagePolicy:
    """The model that the settings name; one made from nothing gets its vocabulary from the world's own text."""
    if is_dom(config.model):
        if not config.env.startswith("miniwob/"):
            raise ValueError(f"model: {config.model} acts on web pages, env miniwob/PAGE; got {config.env}")
        seed = run.derived_seed("policy")
        return DomPolicy(seed=seed) if config.model == DOM else DomPolicy.load(Path(config.model))
    if not is_tiny(config.model):
        return load_language_policy(
            config.model, lora_rank=config.lora_rank, seed=run.derived_seed("adapters")
        )
    return make_tiny(config.model, texts_of(envs), context=config.context, seed=run.derived_seed("policy"))


def is_dom(model: str) -> bool:
    """Whether this names a policy over page elements: "dom:", or the folder of one."""
    about = Path(model) / "policy.json"
    return model == DOM or (about.exists() and json.loads(about.read_text())["class"] == "DomPolicy")


def texts_of(envs: TextEnvs) -> list[str]:
    """What is read and written in the world's own tasks, by a scripted expert."""
    texts, every = [], max(1, len(envs.tasks) // EPISODES_FOR_THE_VOCABULARY)
    tasks = envs.tasks[::every]
    for start in range(0, len(tasks), envs.num_envs):
        running = list(range(min(envs.num_envs, len(tasks) - start)))
        outcomes = envs.reset(running, tasks[start : start + len(running)])
        while running:
            running = [row for row, outcome in zip(running, outcomes, strict=True) if not outcome.over]
            texts += [outcome.observation for outcome in outcomes]
            actions = envs.expert(running) if running else []
            texts += actions
            outcomes = envs.step(running, actions) if running else []
    return texts


def acting(
    config: TextConfig,
    envs: TextEnvs,
    policy: LanguagePolicy,
    *,
    temperature: float,
    parse_failure_ends: bool = True,
) -> Attempts:
    """How the policy, as it is at every call, makes attempts in these worlds."""
    if isinstance(policy, DomPolicy):
        return partial(choice_rollout, envs, policy, temperature=temperature)
    compiled = config.compiled and can_compile() and policy.device.type == "cpu"
    return partial(
        text_rollout,
        envs,
        Sampler(policy, config.num_envs, temperature=temperature, compiled=compiled),
        action_tokens=config.action_tokens,
        system=envs.manual if config.system else None,
        parse_failure_ends=parse_failure_ends,
    )


def training_tasks(config: TextConfig, envs: TextEnvs) -> Sequence[str]:
    return envs.tasks if config.tasks is None else envs.tasks[: config.tasks]


def evaluate_when_due(config: TextConfig, run: Run, envs: TextEnvs, attempts: Attempts) -> None:
    """Judge the policy on held-out tasks, `config.evaluations` times over the budget."""
    if run.evaluation_due:
        tasks = envs.held_out[: config.evaluation_episodes]
        run.evaluated(evaluate_text(attempts, tasks, run.evaluation_seed))


class Demonstrations:
    """Token sequences of demonstrated episodes, in the order in which they came."""

    def __init__(self):
        self.tokens: list[Tokens] = []

    def add(self, episodes: Sequence[TextEpisode]) -> None:
        self.tokens += [episode.tokens for episode in episodes]

    def state_dict(self) -> dict:
        return {
            "lengths": np.array([len(tokens) for tokens in self.tokens], np.int64),
            "ids": np.concatenate([np.zeros(0, np.int64), *(tokens.ids for tokens in self.tokens)]),
            "sampled": np.concatenate([np.zeros(0, bool), *(tokens.sampled for tokens in self.tokens)]),
        }

    def load_state_dict(self, state: dict) -> None:
        ends = np.cumsum(state["lengths"])[:-1]
        parts = zip(np.split(state["ids"], ends), np.split(state["sampled"], ends), strict=True)
        self.tokens = [Tokens(ids, sampled, np.zeros(0, np.float32)) for ids, sampled in parts if len(ids)]


def imitate(
    learner: LanguageLearner, demonstrations: Sequence[Tokens], generator: torch.Generator, *, batch: int
) -> dict[str, float]:
    """One update on `batch` demonstrations drawn at random."""
    chosen = torch.randint(len(demonstrations), (batch,), generator=generator).tolist()
    episodes = [demonstrations[place] for place in chosen]
    lengths = torch.tensor([int(episode.sampled.sum()) for episode in episodes])
    weight = token_weights(lengths, lengths > 0, aggregation="token")
    total = 0.0

    def loss(log_prob, which):
        nonlocal total
        value = supervised_loss(weight)(log_prob, which)
        total += value.item()
        return value

    norm = learner.step(episodes, loss)
    return {"loss": total, "gradient_norm": norm}


def run(config: Config, run: Run) -> LanguagePolicy:
    envs = make_text(config.env, config.num_envs)
    policy = language_policy(config, envs, run)
    if isinstance(policy, DomPolicy):
        raise ValueError(f"model: {config.model} writes no words to imitate; grpo and arpo train it")
    learner = LanguageLearner(policy, learning_rate=config.learning_rate, micro_tokens=config.micro_tokens)
    demonstrations = Demonstrations()
    run.keep(policy=policy, learner=learner, demonstrations=demonstrations)
    judged = acting(config, envs, policy, temperature=config.evaluation_temperature)
    tasks = training_tasks(config, envs)

    for iteration in run.iterations(config.num_envs * envs.max_steps):
        order = torch.randperm(len(tasks), generator=run.generator("tasks"))[: config.num_envs]
        names = run.episode_ids(len(order))
        wanted = [Attempt(name, tasks[place], "", 0) for name, place in zip(names, order, strict=True)]
        system = envs.manual if config.system else None
        shown = expert_rollout(envs, policy.renderer, wanted, system=system)
        run.gathered_episodes(shown)
        demonstrations.add([episode for episode in shown if episode.ending == "finished"])

        for update in range(config.updates):
            warm = min(1.0, ((iteration - 1) * config.updates + update + 1) / max(1, config.warmup))
            left = 1 - (run.real_steps - total_steps(shown)) / config.steps
            learner.learning_rate = config.learning_rate * warm * max(left, 0.02)
            measures = imitate(
                learner, demonstrations.tokens, run.generator("demonstrations"), batch=config.batch
            )
        run.log({**measures, "demonstrations": len(demonstrations.tokens)})
        evaluate_when_due(config, run, envs, judged)
    envs.close()
    return policy
