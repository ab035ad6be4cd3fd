"""With w_off = 0 a log that is attached changes nothing: bit for bit the parameters of TRPO."""

from dataclasses import replace

import pytest
import torch
from quiet_run import QuietRun

from peira.recipes import hnpg

ITERATIONS = 5


class BookedRun(QuietRun):
    def __init__(self, config):
        super().__init__(config)
        self.costs = {"logged_steps": 0}

    def book(self, columns, *, replayed_steps):
        pass


def trained(config):
    config = replace(config, steps=ITERATIONS * 250, batch_steps=250, log_trajectories=500, critic_steps=3)
    run = BookedRun(config)
    return hnpg.run(config, run).flat, run


def test_a_log_of_no_weight_leaves_trpo_bit_for_bit():
    plain, _ = trained(replace(hnpg.preset_trpo("lock-h5"), log="no/such/file"))
    attached, run = trained(replace(hnpg.preset("lock-h5"), log="mixed", w_off=0.0))
    assert torch.equal(plain, attached)
    assert run.costs["logged_steps"] == 0


@pytest.mark.parametrize("options", [{"w_off": 1e-9}, {"actor_offline": "none"}, {"critic_offline": "none"}])
def test_the_least_weight_of_the_log_shows(options):
    plain, _ = trained(hnpg.preset_trpo("lock-h5"))
    hybrid, run = trained(replace(hnpg.preset("lock-h5"), **options))
    assert not torch.equal(plain, hybrid)
    assert run.costs["logged_steps"] > 0
