"""Small episodes with every kind of column, for the tests of the store."""

from datetime import UTC, datetime, timedelta

import numpy as np

from peira.experience.episode import Episode, episode_ids

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def make_episode(number: int, length: int = 12, synthetic: bool = False, **provenance) -> Episode:
    """Episode `number` of run "test": the same arguments give the same floats."""
    rng = np.random.default_rng(number)
    terminated = np.zeros(length, bool)
    terminated[-1] = True
    columns = {
        "observation": rng.normal(size=(length, 5)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
        "reward": rng.normal(size=length).astype(np.float32),
        "terminated": terminated,
        "truncated": np.zeros(length, bool),
    }
    if not synthetic:
        columns["behaviour_log_prob"] = rng.normal(size=length).astype(np.float32)
    provenance = {"policy_id": "ppo", "policy_version": 0, "task_id": "reach", **provenance}
    return Episode(
        id=episode_ids("test", number, 1, 1_700_000_000_000)[0],
        columns=columns,
        created_at=START + timedelta(hours=number),
        **provenance,
    )
