"""How fast do language agents sample and learn? Beside TRL's GRPOTrainer and transformers' generate, in one process.

One GRPO iteration is generation and learning: 8 prompts of 64 tokens, 8 completions of 64 tokens each, one optimiser
step, the same tiny Qwen3-type model (4 layers, width 128), rewards at random; nothing is written. The sampler is
compared on episodes of many turns, for which `generate` is called with the whole history at every turn. Rounds
alternate, so that a machine whose speed drifts slows both; figures are sampled tokens a wall second, medians over the
rounds. The peers get the same weights as `AutoModelForCausalLM` loads them, without our attention or layers.

    python benchmarks/language.py                 # some 3 minutes on two cores
    python benchmarks/language.py --out results/speed/language.json

Needs `pip install 'peira[bench]'` (`make bench` does it).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from peira.environments.text import Outcome, TextEnvs
from peira.environments.texthouse import TextHouse
from peira.learners.language import LanguageLearner
from peira.policies.lm.model import LanguagePolicy, make_tiny
from peira.policies.lm.sampler import Sampler
from peira.policies.onednn import onednn_is_faster, product
from peira.recipes import grpo
from peira.sources.text_rollout import Attempt, text_rollout
from peira.versions import machine, versions

WIDTH, LAYERS, WORDS = 128, 4, 900
PROMPTS, GROUP, PROMPT, COMPLETION = 8, 8, 64, 64
ROWS, READ, WRITTEN = 64, 12, 8
TURNS = (8, 16)
ITERATIONS = 6  # of a round, the first of which is not counted


class Once(TextEnvs):
    """One prompt, one completion, a reward at random."""

    id, manual, max_steps = "once", "", 1

    def __init__(self, prompts: list[str], num_envs: int):
        self.tasks, self.held_out, self.num_envs = tuple(prompts), (), num_envs
        self._rng = np.random.default_rng(0)

    def reset(self, which, tasks):
        return [Outcome(task) for task in tasks]

    def step(self, which, actions):
        return [Outcome("", reward=float(self._rng.random()), terminated=True) for _ in actions]

    def expert(self, which):
        raise ValueError("there is no expert")

    def close(self):
        pass


class Quiet:
    """A run that keeps no books."""

    def log(self, measures):
        pass

    def book(self, columns, *, replayed_steps):
        pass


def tiny() -> LanguagePolicy:
    """The model, from whose generation no token is the last one."""
    policy = make_tiny(
        f"tiny:{WIDTH}x{LAYERS}", [" ".join(f"w{i}" for i in range(WORDS))], context=512, seed=0
    )
    policy.renderer.stops = ()
    return policy


def stock(policy: LanguagePolicy) -> nn.Module:
    """The same model as `transformers` loads it from the folder that the policy is saved to."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder))
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def prompts() -> list[str]:
    rng = np.random.default_rng(0)
    # <bos> and <act> are put around it.
    return [" ".join(f"w{i}" for i in rng.integers(0, WORDS, PROMPT - 2)) for _ in range(PROMPTS)]


class OurIteration:
    def __init__(self, policy: LanguagePolicy):
        self.policy = policy
        self.envs = Once(prompts(), PROMPTS * GROUP)
        self.sampler = Sampler(policy, PROMPTS * GROUP, compiled=True)
        self.learner = LanguageLearner(policy, learning_rate=1e-6, micro_tokens=1 << 16)
        self.config = grpo.Config(groups=PROMPTS, group_size=GROUP, minibatches=1)
        self.count = 0
        self.shares = {"generation": 0.0, "learning": 0.0}

    def __call__(self) -> None:
        wanted = [
            Attempt("", task, task, 1000 * self.count + place)
            for place, task in enumerate(task for task in self.envs.tasks for _ in range(GROUP))
        ]
        self.count += 1
        began = time.perf_counter()
        episodes = text_rollout(self.envs, self.sampler, wanted, action_tokens=COMPLETION)
        generated = time.perf_counter()
        groups = [episodes[place : place + GROUP] for place in range(0, len(episodes), GROUP)]
        grpo.learn(self.config, Quiet(), self.learner, groups, None)
        self.shares["generation"] += generated - began
        self.shares["learning"] += time.perf_counter() - generated


class Clock(TrainerCallback):
    """When each optimiser step of TRL's trainer ended."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, *arguments, **options):
        self.ends.append(time.perf_counter())


def their_seconds(policy: LanguagePolicy, folder: str) -> float:
    """Median seconds of an iteration of GRPOTrainer, the first left out."""
    rng = np.random.default_rng(0)
    clock = Clock()
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.padding_side = "left"
    # As text, which is not put through the chat template: with its two special tokens it has as many tokens as ours.
    texts = [f"<bos> {prompt} <act>" for prompt in prompts()]
    trainer = GRPOTrainer(
        model=stock(policy),
        reward_funcs=lambda completions, **_: rng.random(len(completions)).tolist(),
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=COMPLETION,
            generation_kwargs={"min_new_tokens": COMPLETION},
            max_steps=ITERATIONS,
            learning_rate=1e-6,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return statistics.median(np.diff(clock.ends))


class Turns:
    """Episodes of so many turns: READ tokens to read, WRITTEN tokens to write, in every one."""

    def __init__(self, policy: LanguagePolicy, turns: int):
        self.stock, self.tokens = stock(policy), ROWS * turns * WRITTEN
        self.sampler = Sampler(policy, ROWS, compiled=True)
        self.read = np.random.default_rng(1).integers(5, WORDS, (turns, ROWS, READ))
        self.settings = GenerationConfig(
            max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=True, top_k=0, pad_token_id=0
        )

    def ours(self) -> None:
        rows = list(range(ROWS))
        for row in rows:
            self.sampler.begin(row, row)
        tokens = None
        for chunk in self.read:
            chunks = chunk.tolist()
            if tokens is not None:
                chunks = [[last, *more] for last, more in zip(tokens.tolist(), chunks, strict=True)]
            tokens, _ = self.sampler.feed(rows, chunks)
            for _ in range(WRITTEN - 1):
                tokens, _ = self.sampler.step(rows, tokens)

    @torch.no_grad()
    def theirs(self) -> None:
        history = torch.zeros(ROWS, 0, dtype=torch.long)
        for chunk in self.read:
            history = torch.cat([history, torch.from_numpy(chunk)], 1)
            history = self.stock.generate(
                history, attention_mask=torch.ones_like(history), generation_config=self.settings
            )


def texthouse_rate(*, brief: bool, actions: str) -> float:
    """Steps a second of one TextHouse in this process, resets included; the expert acts, or chance among admissible."""
    house, rng = TextHouse(brief=brief), np.random.default_rng(0)
    steps, began = 0, time.perf_counter()
    for task in house.tasks:
        house.reset(options={"task": task})
        over = False
        while not over:
            choices = house.admissible() if actions == "random" else None
            action = choices[rng.integers(len(choices))] if choices else house.expert_action()
            *_, terminated, truncated, _ = house.step(action)
            over = terminated or truncated
            steps += 1
    return steps / (time.perf_counter() - began)


def product_ratio(rows: int, fan_in: int, fan_out: int) -> float:
    """Time of torch's own product (MKL's) over that of oneDNN's, medians of 40 alternating ones."""
    x, weight = torch.randn(rows, fan_in), torch.randn(fan_out, fan_in)
    pairs = [(seconds(lambda: x @ weight.t()), seconds(lambda: product(x, weight))) for _ in range(41)]
    theirs, ours = (statistics.median(times) for times in zip(*pairs[1:], strict=True))
    return theirs / ours


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    policy = tiny()
    iteration, dialogues = OurIteration(policy), {turns: Turns(policy, turns) for turns in TURNS}
    iteration()  # Compiles, and warms up.
    for dialogue in dialogues.values():
        dialogue.ours(), dialogue.theirs()
    iteration.shares = dict.fromkeys(iteration.shares, 0.0)
    sampled = PROMPTS * GROUP * COMPLETION
    rates: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            rates["TRL's GRPO"].append(sampled / their_seconds(policy, folder))
            ours = [seconds(iteration) for _ in range(ITERATIONS - 1)]
            rates["GRPO"].append(sampled / statistics.median(ours))
            for turns, dialogue in dialogues.items():
                rates[f"generate, {turns} turns"].append(dialogue.tokens / seconds(dialogue.theirs))
                ours = statistics.median(seconds(dialogue.ours) for _ in range(3))
                rates[f"sampler, {turns} turns"].append(dialogue.tokens / ours)
    ratios = {
        "GRPO over TRL's": [a / b for a, b in zip(rates["GRPO"], rates["TRL's GRPO"], strict=True)],
    }
    for turns in TURNS:
        pairs = zip(rates[f"sampler, {turns} turns"], rates[f"generate, {turns} turns"], strict=True)
        ratios[f"sampler over generate, {turns} turns"] = [a / b for a, b in pairs]
    houses = {
        f"{'texthouse-brief' if brief else 'texthouse'}, {actions} actions": texthouse_rate(
            brief=brief, actions=actions
        )
        for brief in (False, True)
        for actions in ("expert", "random")
    }
    rows = PROMPTS * (PROMPT + GROUP * COMPLETION)
    shapes = ((WIDTH, WIDTH), (WIDTH, 3 * WIDTH), (3 * WIDTH, WIDTH), (WIDTH, WORDS))
    products = [product_ratio(rows, *shape) for shape in shapes]
    total = sum(iteration.shares.values())
    result = {
        "sizes": {
            "model": {
                "width": WIDTH,
                "layers": LAYERS,
                "parameters": sum(p.numel() for p in policy.parameters()),
            },
            "iteration": {"prompts": PROMPTS, "group": GROUP, "prompt": PROMPT, "completion": COMPLETION},
            "turns": {"rows": ROWS, "turns": list(TURNS), "read": READ, "written": WRITTEN},
            "threads": options.threads,
        },
        "tokens_per_second": {name: spread(values) for name, values in rates.items()},
        "ratios": {name: spread(values) for name, values in ratios.items()},
        "share_of_iteration": {name: value / total for name, value in iteration.shares.items()},
        "texthouse_steps_per_second": houses,
        "onednn_over_mkl": {"used": onednn_is_faster(), "ratios": products},
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none at hand",
        "versions": versions(),
        "machine": machine(),
    }
    page = Table("", "sampled tokens a second", "lowest", "highest", box=None)
    for name, found in result["tokens_per_second"].items():
        page.add_row(name, *(f"{found[key]:,.0f}" for key in ("median", "min", "max")))
    for name, found in result["ratios"].items():
        page.add_row(name, *(f"{found[key]:.1f}×" for key in ("median", "min", "max")))
    for name, rate in houses.items():
        page.add_row(f"{name}, steps a second", f"{rate:,.0f}")
    Console().print(page)
    Console().print({name: f"{share:.0%}" for name, share in result["share_of_iteration"].items()})
    used = "used" if onednn_is_faster() else "not used here"
    Console().print(f"oneDNN's products over MKL's: {min(products):.1f} to {max(products):.1f}, {used}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
