"""Replay pays in R1, but what unmasks an imitation are its counts, not its curve (``arpo.md`` 8, test 8)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

STUDY = Path(__file__).parents[2] / "results" / "arpo" / "r1_combination.py"
SEEDS = 4


@pytest.fixture(scope="module")
def study():
    specification = importlib.util.spec_from_file_location("r1_combination", STUDY)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(study):
    setting = study.SETTINGS["T=5"]
    arms = ("grpo", "arpo recompute", "every group")
    return {arm: [study.simulate(arm, seed, **setting) for seed in range(SEEDS)] for arm in arms}


def area(runs):
    return np.mean([np.mean(run["curve"]) for run in runs])


def test_replay_raises_the_area_under_the_curve(runs):
    assert area(runs["arpo recompute"]) > area(runs["grpo"]) + 0.1


def test_few_groups_are_revived_and_ever_fewer(study, runs):
    shares = np.array([run["revived"] for run in runs["arpo recompute"]]) / study.GROUPS
    assert 0.02 < shares.mean() < 0.15
    assert shares[:, -40:].mean() < 0.3 * shares[:, 40:120].mean()


def test_an_imitation_that_adds_to_every_group_gains_as_much_and_shows_in_the_counts(study, runs):
    shares = np.array([run["revived"] for run in runs["every group"]]) / study.GROUPS
    assert area(runs["every group"]) > area(runs["grpo"]) + 0.1
    assert shares.mean() > 0.4
    assert shares[:, -40:].mean() > shares[:, :40].mean()


def test_one_entry_of_the_groups_own_task_for_each_dead_group(study):
    import torch

    replay = study.SuccessReplay()
    attempt = study.LockAttempt("a", "g", torch.zeros(5), torch.zeros(5), 1.0, 0)
    replay.store([attempt])
    dead = [
        [study.LockAttempt(task, str(place), torch.ones(5), torch.zeros(5), 0.0, 1) for _ in range(8)]
        for place, task in enumerate("aabc")
    ]
    spliced = replay.splice(dead, torch.Generator(), version=1)
    assert spliced.dead_before == 4
    assert [entry.task for entry in spliced.injected] == ["a", "a"]
    for group in spliced.groups:
        assert {member.task for member in group} == {group[0].task}
        assert {member.group for member in group} == {group[0].group}
        assert sum(member.source == "replayed" for member in group) <= 1
