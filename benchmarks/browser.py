"""Episodes of MiniWoB++ a second: 16 frames of one browser beside the package's own environment, stepped one by one.

python benchmarks/browser.py [--out FILE]. Both play the same seeds of the same page by the same scripted expert, which
reads the DOM that each gives, until every episode has ended in success; theirs without screenshots, which would halve
it. The arms run in turn, round after round; the figures are medians over the rounds.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import miniwob
from miniwob.reward import get_binary_reward

from peira.environments.miniwob import Element, MiniWoBEnvs, Snapshot
from peira.environments.miniwob.driver import VARIABLES, find_programs
from peira.environments.miniwob.pages import PAGES, parse

SIDES = ("left", "top", "width", "height")


def play_peira(worlds: MiniWoBEnvs, tasks: list[str]) -> None:
    """One episode of each task; a world begins the next as soon as all have ended the last."""
    for start in range(0, len(tasks), worlds.num_envs):
        batch = tasks[start : start + worlds.num_envs]
        live = list(range(len(batch)))
        worlds.reset(live, batch)
        while live:
            outcomes = worlds.step(live, worlds.expert(live))
            assert all(outcome.reward == 1.0 for outcome in outcomes if outcome.over)
            live = [place for place, outcome in zip(live, outcomes, strict=True) if not outcome.over]


def play_stock(environment: gymnasium.Env, page: str, tasks: list[str]) -> None:
    """The same with the package's environment."""
    bare = environment.unwrapped
    types = bare.action_space_config.action_types
    for task in tasks:
        observation, _ = environment.reset(
            seed=int(task.partition("/")[2]), options={"record_screenshots": False}
        )
        done = False
        while not done:
            kind, ref, *text = parse(PAGES[page].expert(snapshot(observation)))
            name = "CLICK_ELEMENT" if kind == "click" else "FOCUS_ELEMENT_AND_TYPE_TEXT"
            action = {**bare.create_action(types.index(name), ref=ref), "text": "".join(text)}
            observation, reward, done, _, _ = environment.step(action)
        assert reward == 1.0


def snapshot(observation: dict) -> Snapshot:
    """What the package shows, in the form that the experts read."""
    return Snapshot(
        observation["utterance"],
        tuple(
            Element(
                **{name: each[name] for name in ("ref", "parent", "id", "classes", "text", "value")},
                **{side: float(each[side][0]) for side in SIDES},
                tag=each["tag"].lower(),
                focused=bool(each["flags"][0]),
            )
            for each in observation["dom_elements"]
        ),
    )


def rate(play: Callable[[list[str]], None], tasks: list[str]) -> float:
    start = time.perf_counter()
    play(tasks)
    return len(tasks) / (time.perf_counter() - start)


def measure(page: str, rounds: int, frames: int, episodes: dict[str, int]) -> dict[str, list[float]]:
    """Episodes a second of both arms in each round."""
    worlds = MiniWoBEnvs(page, frames, num_tasks=max(episodes.values()))
    environment = gymnasium.make(
        f"miniwob/{page}-v1", reward_processor=get_binary_reward, disable_env_checker=True
    )
    tasks = list(worlds.tasks)
    arms = {
        "Peira": lambda tasks: play_peira(worlds, tasks),
        "stock miniwob": lambda tasks: play_stock(environment, page, tasks),
    }
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    try:
        for turn in range(rounds + 1):
            for arm, play in arms.items():
                figure = rate(play, tasks[: episodes[arm]])
                if turn:  # The first round loads pages and warms caches.
                    rates[arm].append(figure)
    finally:
        worlds.close()
        environment.close()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    parser.add_argument("--pages", nargs="+", default=["click-test-2", "click-button", "enter-password"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=16)
    arguments = parser.parse_args()
    # So that Selenium asks no server on the net for a driver.
    os.environ.update(zip(VARIABLES, find_programs(), strict=True))
    gymnasium.register_envs(miniwob)
    episodes = {"Peira": 16 * arguments.frames, "stock miniwob": 32}
    figures = {}
    print(f"{'episodes a second':24}{'Peira':>10}{'stock':>10}{'ratio':>8}   of single rounds")
    for page in arguments.pages:
        rates = measure(page, arguments.rounds, arguments.frames, episodes)
        ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        medians = {arm: statistics.median(values) for arm, values in rates.items()}
        figures[page] = {"median": medians, "ratio": statistics.median(ratios), "rounds": rates}
        ours, theirs = medians.values()
        print(
            f"{page:24}{ours:10.1f}{theirs:10.1f}{statistics.median(ratios):8.1f}"
            f"   {min(ratios):.1f} to {max(ratios):.1f}"
        )
    if arguments.out:
        chromium = subprocess.run(
            [shutil.which(find_programs()[0]), "--version"], capture_output=True, text=True, check=True
        )
        arguments.out.write_text(
            json.dumps(
                {
                    "command": " ".join(["python", *sys.argv]),
                    "figures": figures,
                    "frames": arguments.frames,
                    "rounds": arguments.rounds,
                    "episodes a round": episodes,
                    "versions": {
                        **{
                            name: importlib.metadata.version(name)
                            for name in ("miniwob", "selenium", "gymnasium")
                        },
                        "chromium": chromium.stdout.strip(),
                    },
                    "machine": {
                        "python": platform.python_version(),
                        "system": platform.platform(),
                        "cores": os.cpu_count(),
                    },
                },
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
