"""A policy over page elements remembers how likely its choices were, and learns a page in a real browser."""

import numpy as np
import pytest
import torch

from peira.environments.miniwob import Element, MiniWoBEnvs, Snapshot
from peira.experience.success_replay import SuccessReplay
from peira.learners.language import LanguageLearner
from peira.policies.dom import DomPolicy, read_page
from peira.recipes import grpo
from peira.sources.choice_rollout import ChoiceEpisode, choice_rollout
from peira.sources.text_rollout import Attempt

FIELD = Element(2, 1, "input_text", "tt", "", "", "", 2.0, 60.0, 100.0, 20.0, False)
LABEL = Element(-1, 3, "t", "", "", "Submit", None, 4.0, 90.0, 40.0, 10.0, False)
BUTTON = Element(3, 1, "button", "go", "big", "", None, 2.0, 88.0, 50.0, 20.0, False)
PAGE = Snapshot('Enter "Ann" and press Submit, not "Bob".', (FIELD, BUTTON, LABEL))


@pytest.fixture(scope="module")
def envs():
    envs = MiniWoBEnvs("click-test-2", 4, num_tasks=4)
    yield envs
    envs.close()


def wanted(envs, number=10):
    return [Attempt(f"e{i}", envs.tasks[i % 4], f"g{i % 4}", 70 + i) for i in range(number)]


def test_candidates_are_clicks_and_quoted_strings_typed_into_fields():
    page, actions = read_page(PAGE)
    assert actions == ["click 2", 'type 2 "Ann"', 'type 2 "Bob"', "click 3"]
    assert page.element.tolist() == [0, 0, 0, 1]
    assert page.string.tolist() == [0, 1, 2, 0]
    assert page.typed[0].sum() == 0
    assert (page.typed[1] != page.typed[2]).any()
    assert page.texts[1].any()  # The text beside other elements belongs to the button around it.


def test_pages_of_different_size_are_scored_together_as_alone():
    policy = DomPolicy(seed=1)
    small = Snapshot("Click Submit.", (BUTTON,))
    pages = [read_page(PAGE)[0], read_page(small)[0]]
    both = policy.logits(pages)
    assert torch.isinf(both[1, 1:]).all()
    for row, page in enumerate(pages):
        torch.testing.assert_close(both[row, : page.candidates], policy.logits([page])[0], atol=1e-5, rtol=0)


def test_a_policy_comes_back_from_its_folder(tmp_path):
    policy = DomPolicy(seed=2)
    policy.id, policy.version = "p", 4
    policy.save(tmp_path)
    again = DomPolicy.load(tmp_path)
    page = [read_page(PAGE)[0]]
    assert torch.equal(again.logits(page), policy.logits(page))
    assert (again.id, again.version) == ("p", 4)
    assert 300_000 < sum(parameter.numel() for parameter in policy.parameters()) < 500_000


def test_episodes_remember_what_was_chosen_and_how_likely_it_was(envs):
    policy = DomPolicy(seed=0)
    episodes = choice_rollout(envs, policy, wanted(envs), temperature=0.8)
    assert [episode.id for episode in episodes] == [f"e{i}" for i in range(10)]
    assert {episode.ending for episode in episodes} <= {"finished", "max_steps"}
    choices = [episode.tokens for episode in episodes]
    with torch.no_grad():
        scored = policy.log_prob(choices, temperature=0.8)
    sampled = torch.from_numpy(np.concatenate([entry.log_probs for entry in choices]))
    torch.testing.assert_close(scored, sampled, atol=1e-5, rtol=0)
    rows = episodes[0].to_episode("p").to_table()
    assert rows["action"].to_pylist() == episodes[0].actions
    assert rows["behaviour_log_prob"].to_pylist() == [[p] for [p] in episodes[0].log_probs]


def test_the_same_seed_chooses_the_same_whatever_frames_there_are(envs):
    policy = DomPolicy(seed=0)
    first = choice_rollout(envs, policy, wanted(envs))
    again = choice_rollout(envs, policy, wanted(envs, 3))
    for one, other in zip(first, again, strict=False):
        assert one.actions == other.actions
        assert one.score == other.score


def test_replay_keeps_such_episodes_over_a_restart(envs):
    policy = DomPolicy(seed=0)
    episodes = choice_rollout(envs, policy, wanted(envs))
    episodes[0].score = 1.0
    replay, other = SuccessReplay(kind=ChoiceEpisode), SuccessReplay(kind=ChoiceEpisode)
    replay.store(episodes)
    other.load_state_dict(replay.state_dict())
    task = episodes[0].task
    with torch.no_grad():
        ours, theirs = (policy.log_prob([e.tokens for e in of.of_task(task)]) for of in (replay, other))
    assert torch.equal(ours, theirs)


def test_it_learns_a_page(envs):
    """Click the button that the goal names, one of two: from a coin's success to nearly always in 15 updates."""
    from laid_batches import SilentRun

    policy = DomPolicy(seed=0)
    learner = LanguageLearner(policy, learning_rate=1e-3)
    config = grpo.Config(groups=4, group_size=8, minibatches=2)
    success = []
    for iteration in range(15):
        attempts = [
            Attempt("", task, task, 1000 * iteration + place)
            for place, task in enumerate(task for task in envs.tasks for _ in range(8))
        ]
        episodes = choice_rollout(envs, policy, attempts)
        success.append(np.mean([episode.score for episode in episodes]))
        groups = [episodes[place : place + 8] for place in range(0, 32, 8)]
        grpo.learn(config, SilentRun(), learner, groups, None)
    assert success[0] < 0.8
    assert np.mean(success[-3:]) > 0.9
