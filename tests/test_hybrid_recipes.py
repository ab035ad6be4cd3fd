"""HNPG, TRPO and RLPD as runs: what they write, how they are taken up again, and what they refuse."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from peira.recipes import hnpg, rlpd
from peira.runs.run import Run, create_folder

HNPG = hnpg.Config(steps=1000, batch_steps=250, log_trajectories=200, evaluation_episodes=20, critic_steps=3)
PENDULUM = replace(
    hnpg.preset_trpo("Pendulum-v1"),
    steps=1600,
    batch_steps=400,
    num_envs=2,
    critic_steps=2,
    fits=2,
    evaluation_episodes=2,
)
RLPD = rlpd.Config(
    steps=80,
    batch_steps=20,
    warm_up=20,
    log_trajectories=200,
    batch=16,
    hidden=(8,),
    evaluation_episodes=5,
    compiled=False,
)


def started(module, config, folder, *, resumed=False):
    if not resumed:
        create_folder(folder, module.__name__.split(".")[-1], config)
    return Run(folder, "test", config, console=Console(quiet=True), resumed=resumed, checkpoint_seconds=0)


def whole(module, config, folder):
    run = started(module, config, folder)
    policy = module.run(config, run)
    run.close()
    return policy


class Killed(Exception):
    pass


def broken_off(module, config, folder, after):
    """A run that ends in the middle of an iteration, as by a signal that nobody can catch."""
    run = started(module, config, folder)
    gathered = run.gathered

    def gathered_or_killed(policy, batch):
        gathered(policy, batch)
        if run.iteration == after:
            raise Killed

    run.gathered = gathered_or_killed
    with pytest.raises(Killed):
        module.run(config, run)
    # The last checkpoint is of the iteration before: no more is written on the way out.
    run._checkpointed = run.iteration
    run.close()


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "wall_seconds"} for row in rows]


def parameters(policy):
    return {name: value for name, value in policy.state_dict().items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize(
    ("module", "config"),
    [(hnpg, HNPG), (hnpg, PENDULUM), (rlpd, RLPD)],
    ids=["hnpg at a lock", "trpo on pendulum", "rlpd at a lock"],
)
def test_a_run_taken_up_again_ends_bit_for_bit_as_one_never_stopped(tmp_path, module, config):
    straight = whole(module, config, tmp_path / "straight")
    broken_off(module, config, tmp_path / "broken", after=3)
    run = started(module, config, tmp_path / "broken", resumed=True)
    again = module.run(config, run)
    run.close()
    for name, value in parameters(straight).items():
        assert torch.equal(value, parameters(again)[name]), name
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "broken")


def test_metrics_say_where_rows_came_from_and_how_far_the_lock_was_opened(tmp_path):
    whole(hnpg, HNPG, tmp_path)
    rows = metrics(tmp_path)
    assert len(rows) == 4
    for row in rows:
        assert row["share_real"] == row["share_logged"] == 0.5
        assert {"critic_loss/on", "critic_loss/off", "kl", "step_fraction", "std", "success"} <= row.keys()
        assert row["good/0"] == 1
        assert 0 <= row["good/4"] <= row["good/1"] <= 1
        assert row["returns_cut"] == 0
    assert rows[-1]["logged_steps"] == rows[-1]["real_steps"] == 1000
    # Sampled and mean actions are both judged.
    assert rows[-1]["evaluation_steps"] == 2 * 4 * 20 * 5


def test_one_policy_for_all_steps_learns_at_a_lock_too(tmp_path):
    policy = whole(hnpg, replace(HNPG, time_mode="stationary", fits=2), tmp_path)
    assert policy.steps == 1
    assert metrics(tmp_path)[-1]["returns_cut"] == 0


@pytest.mark.parametrize(
    "options", [{"actor_offline": "logged_regression"}, {"w_on": 0.0}, {"critic_offline": "none"}]
)
def test_each_part_of_the_log_can_be_left_out(tmp_path, options):
    whole(hnpg, replace(HNPG, **options), tmp_path)
    rows = metrics(tmp_path)
    assert ("critic_loss/off" in rows[0]) == ("critic_offline" not in options)
    assert all(row["kl"] <= 0.015 for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w_on": 0.0, "w_off": 0.0}, "w_on: is 0 and so is w_off"),
        ({"w_on": 0.0, "actor_offline": "none"}, "w_on: is 0, so"),
        ({"w_on": 0.0, "actor_offline": "logged_regression"}, "w_on: logged_regression checks"),
        ({"w_off": -1.0}, "w_off: expected at least 0, got -1.0"),
        ({"steps": 100}, "steps: a budget of 100 holds no batch of batch_steps=250"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(HNPG, **options)


def test_steps_of_their_own_need_a_world_that_has_a_fixed_number(tmp_path):
    config = replace(PENDULUM, time_mode="per_step")
    with pytest.raises(ValueError, match="time_mode: per_step needs a world of a fixed number of steps"):
        whole(hnpg, config, tmp_path)


def test_rlpd_draws_its_batches_half_from_the_log(tmp_path):
    whole(rlpd, RLPD, tmp_path)
    rows = metrics(tmp_path)
    assert rows[0]["logged_steps"] == 0
    assert rows[-1]["logged_steps"] == rows[-1]["replayed_steps"] == 60 * 8
    assert rows[-1]["share_logged"] == 0.5
    assert {"critic_loss/on", "critic_loss/off", "q", "temperature"} <= rows[-1].keys()


def test_replay_forgets_its_oldest_steps_and_never_the_log():
    replay = rlpd.MixedReplay(torch.full((3, 1), -1.0), 4)
    assert replay.ranges(10, 4) == [(0, 3, 4), (3, 3, 6)]
    replay.add(torch.arange(3.0)[:, None])
    assert replay.ranges(10, 4) == [(0, 3, 4), (3, 6, 6)]
    replay.add(torch.arange(3.0, 6.0)[:, None])
    assert replay.rows[:, 0].tolist() == [-1, -1, -1, 4, 5, 2, 3]
    again = rlpd.MixedReplay(torch.full((3, 1), -1.0), 4)
    again.load_state_dict(replay.state_dict())
    again.add(torch.tensor([[9.0]]))
    replay.add(torch.tensor([[9.0]]))
    assert torch.equal(again.rows, replay.rows)
    assert again.own == 4
