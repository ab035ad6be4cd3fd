"""Make a log: let a policy of known quality act, and keep what it did with provenance and propensities.

A random, medium or expert policy acts (SAC trained here, or a policy's folder), or the training of the medium one is
kept as it went (medium-replay), as the D4RL benchmark has them (arXiv 2004.07219). Medium is the policy whose return
came nearest to a third of the final one (`--share`), measured from a random policy's. Every step is stored as `logged`,
with the id and version of the policy that chose it and the log-density of the action it drew.

    peira store make-log runs/hopper-medium --env Hopper-v5 --policy medium --steps 100000
    peira store make-log runs/pendulum --env Pendulum-v1 --policy scripted --steps 60000

In a text world the scripted expert acts, or a language model: one from a folder, whose tokens and log-probabilities are
kept, or one behind an OpenAI-compatible server, which shows text alone, so that its steps have no log-probabilities.

    peira store make-log runs/house --env texthouse --model http://localhost:8000/v1 --model-name Qwen3-8B --steps 2000
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from peira.environments.control import ControlEnv, make_control
from peira.environments.pendulum_policies import ID as PENDULUM
from peira.environments.pendulum_policies import pendulum_log
from peira.environments.text import is_text
from peira.environments.u_maze import ID as U_MAZE
from peira.environments.u_maze import u_maze_log
from peira.evaluation.episodes import evaluate
from peira.experience.assemble import EpisodeAssembler
from peira.experience.batch import Batch
from peira.experience.episode import episode_ids
from peira.experience.store import Store
from peira.learners.offline import OfflineLearner, Settings
from peira.policies.continuous import ContinuousPolicy, UniformActor
from peira.policies.files import load_policy, save_policy
from peira.policies.protocol import Acts
from peira.recipes.make_text_log import TextLogOptions, text_log
from peira.recipes.ppo import check_ranges
from peira.sources.rollout import rollout

KINDS = ("random", "medium", "expert", "medium-replay", "scripted")
SCRIPTED = {PENDULUM: pendulum_log, U_MAZE: u_maze_log}
_WIDTH = 8


@dataclass(frozen=True)
class Options:
    """Let a policy act and keep what it did as a log.

    example: peira store make-log runs/hopper-medium --env Hopper-v5 --policy medium --steps 100000
    """

    env: str = "Hopper-v5"
    """Environment id, with continuous actions."""
    policy: Literal["random", "medium", "expert", "medium-replay", "scripted"] = "medium"
    """Who acts."""
    steps: int = 100_000
    """Steps of the log."""
    seed: int = 0
    """Seed of everything random."""
    load: str | None = None
    """Folder of a saved policy that acts instead of one trained here."""
    model: str | None = None
    """In a text world: the language model that acts, a folder or the url of a server; None for the scripted expert."""
    model_name: str = ""
    """The model's name at that server, where PEIRA_API_KEY holds the key."""
    temperature: float = 1.0
    """Sampling temperature of the model."""
    action_tokens: int = 64
    """Tokens that an action of the model may have, reasoning included."""
    num_envs: int = 16
    """Text worlds side by side."""
    train_steps: int = 200_000
    """Real steps of training; what counts as final is the return after them."""
    final_return: float | None = None
    """The final return, where it is known: training then stops as soon as the policy is medium."""
    share: float = 1 / 3
    """How far medium is on the way from a random policy's return to the final one."""
    updates_per_step: float = 1.0
    """Updates of the policy in training for each real step."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers of the policy trained here."""
    evaluations: int = 40
    """Evaluations over the training: as many policies to choose the medium one from."""
    evaluation_episodes: int = 10
    """Episodes of each."""
    compiled: bool = True
    """Compile updates to native code (needs a C++ compiler)."""

    def __post_init__(self) -> None:
        if self.policy not in KINDS:
            raise ValueError(f"policy: expected one of {', '.join(KINDS)}, got {self.policy!r}")
        at_least_one = dict.fromkeys(
            ("steps", "train_steps", "evaluations", "evaluation_episodes", "action_tokens", "num_envs"),
            (1, math.inf),
        )
        at_least_zero = dict.fromkeys(("updates_per_step", "temperature"), (0, math.inf))
        check_ranges(self, {**at_least_one, **at_least_zero, "share": (0, 1)})
        if self.model is not None and not is_text(self.env):
            raise ValueError(f"model: a language model acts in a text world, not in {self.env}; leave it out")
        self.text()
        if is_text(self.env) and self.policy != "scripted" and self.model is None:
            raise ValueError(
                f"policy: in a text world scripted acts, its expert, or a --model, got {self.policy!r}"
            )
        if self.load is not None and self.policy not in ("medium", "expert"):
            raise ValueError(
                f"load: a {self.policy} log has no policy to load; leave it out, or say medium or expert"
            )
        if self.policy == "scripted" and self.env not in SCRIPTED and not is_text(self.env):
            raise ValueError(f"policy: scripted ones are known for {', '.join(SCRIPTED)}, not for {self.env}")

    def text(self) -> TextLogOptions:
        """Who acts in a text world, and how."""
        names = [field.name for field in fields(TextLogOptions)]
        return TextLogOptions(**{name: getattr(self, name) for name in names})


@dataclass
class _Training:
    """What came of training: policies along the way with their returns, the steps it took, and these steps."""

    snapshots: list[ContinuousPolicy]
    returns: list[float]
    steps: list[int]
    batches: list[Batch]


def make_log(path: str | Path, options: Options, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Write the log to a new store at `path` and return what it holds; `say` is told how it goes.

    The policy that acted is saved to `path`/policy. Raises ValueError where the store exists already, for discrete
    actions, a policy that does not fit, or a training that never became medium.
    """
    store = Store.open(path, mode="a")
    if len(store):
        raise ValueError(f"path: {store.path} holds {len(store)} steps already; name a new folder")
    run_id = episode_ids(f"make-log {options}", 0, 1, 0)[0]
    if is_text(options.env):
        about = text_log(store, options.text(), options.steps, options.seed, run_id, say=say)
        return _result(store, options, about)
    if options.policy == "scripted":
        rng = np.random.default_rng(options.seed)
        table = SCRIPTED[options.env](math.ceil(options.steps / 200), rng, run_id=run_id)
        store.append(table)
        return _result(store, options, {"policy_id": table["policy_id"][0].as_py()})
    env = make_control(options.env, _WIDTH, options.seed)
    if env.discrete:
        raise ValueError(
            f"env: {options.env} has {env.action_size} discrete actions; the policies of make-log act in continuous "
            "spaces"
        )
    generator = torch.Generator().manual_seed(options.seed)
    about: dict[str, Any] = {}
    if options.policy == "random":
        space = env.single_action_space
        policy = UniformActor(env.action_size, low=space.low.tolist(), high=space.high.tolist())
        policy.id = "uniform"
    elif options.load is not None:
        policy = _loaded(options.load, env)
    else:
        training = train_sac(options, env, generator, say=say)
        place = chosen(options, training, _random_return(options))
        about = {"return": training.returns[place], "trained_steps": training.steps[place]}
        about["final_return"] = training.returns[-1] if options.final_return is None else options.final_return
        policy = training.snapshots[place]
        policy.id = f"sac-{run_id}"
        say(f"{options.policy}: the policy of step {about['trained_steps']:,}, return {about['return']:.4g}")
    if options.policy == "medium-replay":
        ends = np.cumsum([batch.steps for batch in training.batches])
        kept = training.batches[: int((ends <= about["trained_steps"]).sum())]
        whole = Batch.concatenate(kept)
        batch = whole.between(max(0, len(whole.reward) - math.ceil(options.steps / _WIDTH)))
    else:
        env.reset(seed=options.seed + 1_000_003)
        batch = rollout(
            env, policy, math.ceil(options.steps / _WIDTH), generator, gathered_for=policy.version
        )
    env.close()
    store.append(steps_of(batch, policy.id, options.env, run_id))
    save_policy(policy, Path(path) / "policy")
    return _result(store, options, {"policy_id": policy.id, **about})


def steps_of(batch: Batch, policy_id: str, env_id: str, run_id: str) -> pa.Table:
    """The batch as rows of whole episodes; those still running at its end are truncated there."""
    truncated = batch.truncated.clone()
    truncated[-1] |= ~batch.terminated[-1]
    names = ("observation", "action", "reward", "terminated", "behaviour_log_prob", "policy_version")
    columns = {name: getattr(batch, name).numpy() for name in names}
    columns |= {"truncated": truncated.numpy(), "final_observation": batch.next_observation.numpy()}
    assembler = EpisodeAssembler(batch.reward.shape[1], run_id, 0)
    return assembler.add(columns, source="logged", policy_id=policy_id, task_id=env_id)


def train_sac(
    options: Options, env: ControlEnv, generator: torch.Generator, *, say: Callable[[str], None]
) -> _Training:
    """SAC after 5 % of random steps; stops early where the final return is known and the policy is medium."""
    space = env.single_action_space
    low, high = space.low.tolist(), space.high.tolist()
    learner = OfflineLearner(
        Settings(method="sac", hidden=options.hidden, critic_updates=1),
        env.observation_size,
        env.action_size,
        low=low,
        high=high,
        seeds=[options.seed],
        compiled=options.compiled,
    )
    policy, uniform = learner.policies[0], UniformActor(env.action_size, low=low, high=high)
    rows = torch.zeros(options.train_steps + _WIDTH, 2 * (env.observation_size + env.action_size) + 3)
    training = _Training([], [], [], [])
    filled, owed, judged = 0, 0.0, 0
    random_return = _random_return(options) if options.final_return is not None else 0.0
    env.reset()
    while filled < options.train_steps:
        warm = filled < max(options.train_steps // 20, learner.settings.batch)
        batch = rollout(
            env, uniform if warm else policy, 1, generator, gathered_for=0 if warm else policy.version
        )
        training.batches.append(batch)
        columns = ("observation", "action", "reward", "next_observation", "terminated")
        rows[filled : filled + _WIDTH] = learner.pack_steps(*map(batch.rows, columns))
        filled += _WIDTH
        if not warm:
            owed += _WIDTH * options.updates_per_step
        if number := int(owed):
            learner.update(rows, learner.draw_rows(number, [(0, filled, learner.settings.batch)]))
            owed -= number
        due = filled * options.evaluations // options.train_steps
        if due == judged:
            continue
        judged = due
        found = evaluate(
            policy, options.env, options.evaluation_episodes, options.seed + 2_000_003 + due
        ).mean
        training.snapshots.append(copy.deepcopy(policy))
        training.returns.append(found)
        training.steps.append(filled)
        say(f"training: {filled:,}/{options.train_steps:,} steps, return {found:.4g}")
        if options.final_return is not None and options.policy != "expert":
            wanted = random_return + options.share * (options.final_return - random_return)
            if found >= wanted:
                break
    return training


def chosen(options: Options, training: _Training, random_return: float) -> int:
    """Which of the policies along the way acts: the best for expert, else the nearest to `share` of the final return.

    Raises ValueError where training did not come above a random policy, or medium is out of its reach.
    """
    returns = np.array(training.returns)
    if options.policy == "expert":
        return int(returns.argmax())
    final = returns[-1] if options.final_return is None else options.final_return
    if final <= random_return:
        raise ValueError(
            f"train_steps: the final return is {final:.4g} after {options.train_steps}, a random policy's "
            f"{random_return:.4g}; train for longer"
        )
    wanted = random_return + options.share * (final - random_return)
    if returns.max() < wanted:
        raise ValueError(
            f"train_steps: after {options.train_steps} the best return is {returns.max():.4g}, medium means "
            f"{wanted:.4g}; train for longer"
        )
    return int(np.abs(returns - wanted).argmin())


def _random_return(options: Options) -> float:
    env = make_control(options.env, 1, 0)
    space = env.single_action_space
    uniform = UniformActor(env.action_size, low=space.low.tolist(), high=space.high.tolist())
    env.close()
    return evaluate(
        uniform,
        options.env,
        max(10, options.evaluation_episodes),
        options.seed + 3_000_003,
        deterministic=False,
    ).mean


def _loaded(folder: str, env: ControlEnv) -> Acts:
    policy = load_policy(folder)
    for name in ("observation_size", "action_size"):
        if (found := getattr(policy, name, None)) != (expected := getattr(env, name)):
            raise ValueError(f"load: the policy in {folder} has {name} {found}, {env.id} needs {expected}")
    return policy


def _result(store: Store, options: Options, about: dict[str, Any]) -> dict[str, Any]:
    store.refresh()
    rows = store.read(columns=["episode_id", "reward"])
    reward = rows["reward"].to_numpy()
    ids = rows["episode_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    returns = np.bincount(ids, weights=reward)  # NaN where the world or the model failed.
    return {
        "path": store.path,
        "env": options.env,
        "policy": options.policy,
        "episodes": len(returns),
        "steps": len(store),
        "mean_return": None if np.isnan(returns).all() else float(np.nanmean(returns)),
        **about,
    }
