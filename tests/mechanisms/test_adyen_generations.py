"""A policy that learns from its own log alone gets worse; one that remembers, or logs uniformly, does not.

``adyen.md`` 8, test 8: payments whose outcomes come at once, ridge oracles, six generations of 6 000, six worlds.
A loop that secretly trained on fresh uniform data would show no degradation.
"""

import numpy as np

from peira.environments.payment import WORLDS, PaymentConfig
from peira.recipes import bandit

WORLD_SEEDS, GENERATIONS, PERIOD = 6, 6, 6_000


class CountingRun:
    """What the recipe needs of a run; the columns of every generation are kept in memory."""

    policy_id, evaluation_due = "policy", True

    def __init__(self, config):
        self.config, self.real_steps, self.rows = config, 0, []

    @property
    def evaluation_seed(self):
        return self.derived_seed(f"evaluation {len(self.rows)}")

    def derived_seed(self, name):
        return int(np.random.SeedSequence([self.config.seed, *name.encode()]).generate_state(1)[0] >> 1)

    def keep(self, **parts):
        return False

    def iterations(self, batch_steps):
        for iteration in range(self.config.steps // batch_steps):
            self.rows.append({})
            yield iteration + 1

    def gathered_decisions(self, number):
        self.real_steps += number

    def log(self, measures):
        self.rows[-1].update(measures)

    def keep_decisions(self, rows, schema, *, source):
        pass

    def book(self, columns, *, replayed_steps):
        pass

    def evaluated(self, evaluation):
        pass

    def remark(self, lines):
        pass


def regret_of_generations(monkeypatch, **settings):
    """[worlds, generations] in 10⁻⁴; under uniform traffic, of the greedy policy that could have been deployed."""
    monkeypatch.setitem(WORLDS, "payment", PaymentConfig(delay_success=0, delay_failure=0))
    regret = []
    for seed in range(WORLD_SEEDS):
        config = bandit.Config(
            steps=GENERATIONS * PERIOD,
            period=PERIOD,
            seed=seed,
            oracle="ridge",
            uniform_slice=0.0,
            evaluation_episodes=4_000,
            **settings,
        )
        run = CountingRun(config)
        bandit.run(config, run)
        uniform = config.explorer == "uniform"
        regret.append(
            [row["regret"] + (row["value"] - row["value_greedy"] if uniform else 0.0) for row in run.rows]
        )
    return 1e4 * np.array(regret)


def change(regret):
    """Mean over worlds of (generations 2 to 6) − (generation 1), and its 95 % interval's half-width."""
    of_world = regret[:, 1:].mean(1) - regret[:, 0]
    return of_world.mean(), 2.57 * of_world.std(ddof=1) / np.sqrt(len(of_world))  # t of 5 degrees of freedom.


SQUARECB = {"explorer": "squarecb", "gamma": 2000.0}


def test_generations_decay_with_short_memory_and_feedback_only(monkeypatch):
    mean, half = change(regret_of_generations(monkeypatch, explorer="uniform"))
    assert abs(mean) < half + 10, f"{mean:.0f} ± {half:.0f}"
    short = regret_of_generations(monkeypatch, **SQUARECB)
    mean, half = change(short)
    assert mean - half > 0, f"{mean:.0f} ± {half:.0f}"
    long = regret_of_generations(monkeypatch, **SQUARECB, window=4)
    mean, half = change(long)
    assert mean + half < 0, f"{mean:.0f} ± {half:.0f}"
    np.testing.assert_array_equal(short[:, 0], long[:, 0])
    saved = (short - long)[:, 1:].mean(1)
    assert saved.mean() - 2.57 * saved.std(ddof=1) / np.sqrt(WORLD_SEEDS) > 50
