"""Appends and random reads of the durable store beside Minari and TorchRL, and the replay's sample time.

python benchmarks/store.py [--json FILE]. All arms take the same numpy episodes and run in turn, round after
round; the figures are medians over the rounds. Only Peira's appends are on disk (fsync) when they return.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import torch
from minari.data_collector import EpisodeBuffer
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer

from peira.experience.episode import Episode, episode_ids
from peira.experience.replay import ReplayRing
from peira.experience.store import Store

EPISODES, LENGTH, OBSERVATION, ACTION = 96, 1000, 17, 6
BATCH, READS, SAMPLES, CHUNK = 256, 20, 300, 16


def make_episodes() -> list[dict[str, np.ndarray]]:
    """HalfCheetah-shaped episodes; each also knows its last observation."""
    rng = np.random.default_rng(0)
    return [
        {
            "observation": rng.normal(size=(LENGTH + 1, OBSERVATION)).astype(np.float32),
            "action": rng.normal(size=(LENGTH, ACTION)).astype(np.float32),
            "reward": rng.normal(size=LENGTH).astype(np.float32),
            "terminated": np.zeros(LENGTH, bool),
            "truncated": np.arange(LENGTH) == LENGTH - 1,
            "behaviour_log_prob": rng.normal(size=LENGTH).astype(np.float32),
        }
        for _ in range(EPISODES)
    ]


def append_peira(episodes: list[dict], folder: Path) -> Store:
    store = Store.open(folder / "peira", mode="a")
    ids = episode_ids("benchmark", 0, EPISODES, 0)
    for start in range(0, EPISODES, CHUNK):
        store.append(
            [
                Episode(
                    id=ids[number],
                    columns={**episodes[number], "observation": episodes[number]["observation"][:-1]},
                    policy_id="ppo",
                    policy_version=start,
                )
                for number in range(start, start + CHUNK)
            ]
        )
    return store


def append_minari(episodes: list[dict], folder: Path, data_format: str) -> minari.MinariDataset:
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=steps["observation"],
            actions=steps["action"],
            rewards=steps["reward"],
            terminations=steps["terminated"],
            truncations=steps["truncated"],
            # One more info than steps, as Minari wants it; its Arrow format reads no one-dimensional array.
            infos={"behaviour_log_prob": np.append(steps["behaviour_log_prob"], np.float32(0))[:, None]},
        )
        for number, steps in enumerate(episodes)
    ]
    return minari.create_dataset_from_buffers(
        f"{data_format}-v0",
        buffers,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32),
        action_space=gym.spaces.Box(-np.inf, np.inf, (ACTION,), np.float32),
        data_format=data_format,
    )


def append_torchrl(episodes: list[dict], folder: Path) -> ReplayBuffer:
    storage = LazyMemmapStorage(EPISODES * LENGTH, scratch_dir=folder / "torchrl")
    buffer = ReplayBuffer(storage=storage, batch_size=BATCH)
    for start in range(0, EPISODES, CHUNK):
        chunk = episodes[start : start + CHUNK]
        rows = {
            name: torch.from_numpy(np.concatenate([steps[name][:LENGTH] for steps in chunk]))
            for name in chunk[0]
        }
        buffer.extend(TensorDict(rows, batch_size=[CHUNK * LENGTH]))
    return buffer


def read_batches_minari(dataset: minari.MinariDataset, rng: np.random.Generator) -> None:
    """Minari reads whole episodes: those that hold the drawn steps, each once."""
    rows = np.sort(rng.integers(EPISODES * LENGTH, size=BATCH))
    numbers, first = np.unique(rows // LENGTH, return_index=True)
    parts = np.split(rows % LENGTH, first[1:])
    for steps, episode in zip(parts, dataset.iterate_episodes(numbers), strict=True):
        _ = episode.observations[steps], episode.actions[steps], episode.rewards[steps]


def read_batch_peira(store: Store, rng: np.random.Generator) -> None:
    rows = store.take(rng.integers(EPISODES * LENGTH, size=BATCH), ["observation", "action", "reward"])
    for name in ("observation", "action", "reward"):
        column = rows[name].combine_chunks()
        _ = (column.flatten() if name != "reward" else column).to_numpy()


def read_episodes_peira(store: Store, ids: list[str], rng: np.random.Generator) -> None:
    chosen = [ids[number] for number in rng.choice(EPISODES, 8, replace=False)]
    columns = ["observation", "action", "reward", "terminated", "truncated", "behaviour_log_prob"]
    assert len(list(store.episodes(episode_ids=chosen, columns=columns))) == 8


def seconds(act: Callable[[], object], times: int) -> float:
    """Median over the calls: on shared cores a mean mostly tells of the neighbours."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def one_round(
    episodes: list[dict], ring: ReplayRing, tensors: ReplayBuffer, folder: Path, seed: int
) -> dict[str, dict[str, float]]:
    """Rates of each arm, by what is measured, on fresh files."""
    rng = np.random.default_rng(seed)
    ids = episode_ids("benchmark", 0, EPISODES, 0)
    appends, made = {}, {}
    for arm, make in (
        ("Peira", append_peira),
        ("Minari HDF5", lambda *given: append_minari(*given, "hdf5")),
        ("Minari Arrow", lambda *given: append_minari(*given, "arrow")),
        ("TorchRL memmap", append_torchrl),
    ):
        start = time.perf_counter()
        made[arm] = make(episodes, folder)
        appends[arm] = EPISODES * LENGTH / (time.perf_counter() - start)
    store, hdf5, arrow, memmap = made.values()
    steps = {
        "Peira": seconds(lambda: read_batch_peira(store, rng), READS),
        "Minari HDF5": seconds(lambda: read_batches_minari(hdf5, rng), 1),
        "Minari Arrow": seconds(lambda: read_batches_minari(arrow, rng), 1),
        "TorchRL memmap": seconds(memmap.sample, READS),
    }
    whole = {
        "Peira": seconds(lambda: read_episodes_peira(store, ids, rng), 5),
        "Minari HDF5": seconds(lambda: list(hdf5.sample_episodes(8)), 5),
        "Minari Arrow": seconds(lambda: list(arrow.sample_episodes(8)), 5),
    }
    store.compact()
    steps["Peira compacted"] = seconds(lambda: read_batch_peira(store, rng), READS)
    whole["Peira compacted"] = seconds(lambda: read_episodes_peira(store, ids, rng), 5)
    generator = torch.Generator().manual_seed(seed)
    held = {
        "Peira ReplayRing": seconds(lambda: ring.sample(BATCH, generator), SAMPLES),
        "TorchRL LazyTensorStorage": seconds(tensors.sample, SAMPLES),
    }
    return {
        "appended steps per second": appends,
        f"batches of {BATCH} random steps read per second": {arm: 1 / value for arm, value in steps.items()},
        "random episodes read per second": {arm: 8 / value for arm, value in whole.items()},
        f"in-memory batches of {BATCH} steps per second": {arm: 1 / value for arm, value in held.items()},
    }


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Median rate of each arm, by what is measured."""
    episodes = make_episodes()
    rows = {
        name: torch.from_numpy(np.stack([steps[name][:LENGTH] for steps in episodes], axis=1))
        for name in episodes[0]
    }
    ring = ReplayRing(EPISODES * LENGTH)
    ring.add(rows)
    tensors = ReplayBuffer(storage=LazyTensorStorage(EPISODES * LENGTH), batch_size=BATCH)
    flat = {name: values.flatten(0, 1) for name, values in rows.items()}
    tensors.extend(TensorDict(flat, [EPISODES * LENGTH]))
    rates = []
    for turn in range(rounds + 1):
        folder = Path(tempfile.mkdtemp(prefix="peira-benchmark-"))
        try:
            rates.append(one_round(episodes, ring, tensors, folder, turn))
        finally:
            shutil.rmtree(folder)
    # The first round warms imports, files and caches.
    return {
        what: {arm: statistics.median(rate[what][arm] for rate in rates[1:]) for arm in arms}
        for what, arms in rates[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    # Gathering 256 rows gains nothing from a second thread, and on shared cores waits for it up to 8 ms.
    torch.set_num_threads(1)
    figures = measure(arguments.rounds)
    print(f"{'':46}{'rate':>14}{'Peira / peer':>14}")
    for what, arms in figures.items():
        print(what)
        ours = next(iter(arms.values()))
        for arm, rate in arms.items():
            print(f"  {arm:44}{rate:14,.0f}{ours / rate:14.2f}")
    if arguments.json:
        packages = ("pylance", "pyarrow", "minari", "h5py", "torch", "torchrl", "tensordict", "numpy")
        arguments.json.write_text(
            json.dumps(
                {
                    "command": " ".join(["python", *sys.argv]),
                    "figures": figures,
                    "rounds": arguments.rounds,
                    "data": {
                        "episodes": EPISODES,
                        "steps": LENGTH,
                        "observation": OBSERVATION,
                        "action": ACTION,
                    },
                    "versions": {name: importlib.metadata.version(name) for name in packages},
                    "machine": {
                        "python": platform.python_version(),
                        "system": platform.platform(),
                        "cores": os.cpu_count(),
                        "torch_threads": torch.get_num_threads(),
                    },
                },
                indent=2,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
