"""Logs small enough for tests, and runs of recipes that learn from them."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from peira.experience.episode import Episode, episodes_to_table
from peira.runs.run import Run, create_folder


def pendulum_like_log(path: Path, *, episodes: int = 12, steps: int = 30, seed: int = 0) -> Path:
    """Episodes of shape and scale of Pendulum's, cut by the clock."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(episodes):
        angle = rng.uniform(-np.pi, np.pi) + 0.1 * np.cumsum(rng.normal(size=steps + 1))
        speed = np.diff(angle, append=angle[-1]) / 0.05
        state = np.stack([np.cos(angle), np.sin(angle), speed], 1).astype(np.float32)
        action = rng.uniform(-2, 2, (steps, 1)).astype(np.float32)
        columns = {
            "observation": state[:-1],
            "action": action,
            "reward": -(angle[:-1] ** 2).astype(np.float32),
            "terminated": np.zeros(steps, bool),
            "truncated": np.arange(steps) == steps - 1,
            "final_observation": np.ma.MaskedArray(
                state[1:], np.repeat((np.arange(steps) < steps - 1)[:, None], 3, 1)
            ),
        }
        made.append(Episode(f"{number:026d}", columns, source="logged"))
    pq.write_table(episodes_to_table(made), path)
    return path


def started(folder: Path, recipe: str, config) -> Run:
    """A run in this folder: begun, or taken up again where it stands; a checkpoint after every iteration."""
    resumed = (folder / "config.yaml").exists()
    if not resumed:
        create_folder(folder, recipe, config)
    quiet = Console(file=io.StringIO())
    return Run(folder, recipe, config, console=quiet, resumed=resumed, checkpoint_seconds=0)
