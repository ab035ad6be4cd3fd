"""Rollouts of text: every attempt is made, in order, and its tokens are those that were read and sampled."""

import numpy as np
import pytest
import torch
from text_worlds import Corridor, Failing

from peira.environments.text import SeparateTextEnvs
from peira.policies.lm.model import make_tiny
from peira.policies.lm.sampler import ContextOverflow, Sampler
from peira.sources.text_rollout import Attempt, action_of, expert_rollout, text_rollout

TEXT = ["at 0 go to 1", "at 1", "at 2 3 4 5 6", "left", "right"]


@pytest.fixture(scope="module")
def policy():
    policy = make_tiny("tiny:32x1", TEXT, context=64, seed=1)
    policy.version = 7
    return policy


def wanted(number=11):
    return [Attempt(f"e{i}", f"to {i % 3 + 1}", f"g{i % 3}", 50 + i) for i in range(number)]


def rolled(policy, number=11, *, rows=4, envs=None, **options):
    envs = envs or SeparateTextEnvs("corridor", Corridor, rows)
    return text_rollout(envs, Sampler(policy, rows), wanted(number), action_tokens=3, **options)


def test_every_attempt_is_made_in_order(policy):
    episodes = rolled(policy)
    assert [(e.id, e.task, e.group) for e in episodes] == [(a.id, a.task, a.group) for a in wanted()]
    assert {e.policy_version for e in episodes} == {7}
    for episode in episodes:
        assert episode.ending in ("finished", "max_steps", "parse_error")
        assert 1 <= episode.steps <= 6
        assert (
            len(episode.observations) == len(episode.context) == len(episode.action_tokens) == episode.steps
        )


def test_rows_beside_it_do_not_change_an_episode(policy):
    """With one row, and with four that are refilled: the same episodes."""
    one, four = rolled(policy, rows=1), rolled(policy, rows=4)
    for a, b in zip(one, four, strict=True):
        assert a.action_tokens == b.action_tokens
        np.testing.assert_allclose(np.concatenate(a.log_probs), np.concatenate(b.log_probs), atol=1e-5)


@pytest.mark.parametrize("ends", [True, False])
def test_log_probs_are_those_of_a_pass_over_whole_episodes(policy, ends):
    episodes = rolled(policy, parse_failure_ends=ends)
    tokens = [episode.tokens for episode in episodes]
    with torch.no_grad():
        scored = policy.log_prob(tokens)
    sampled = torch.from_numpy(np.concatenate([entry.log_probs for entry in tokens]))
    torch.testing.assert_close(scored, sampled, atol=1e-5, rtol=0)


def test_what_was_read_is_the_rendered_text(policy):
    episodes = rolled(policy, parse_failure_ends=False)
    episode = max(episodes, key=lambda e: e.steps)
    render = policy.renderer
    assert episode.context[0] == render.first([{"role": "user", "content": episode.observations[0]}])
    for turn in range(1, episode.steps):
        last = episode.action_tokens[turn - 1][-1]
        assert episode.context[turn] == render.next(episode.observations[turn], last)
    for action, text in zip(episode.action_tokens, episode.actions, strict=True):
        assert render.text(action) == text


def test_what_is_no_action_ends_the_episode_or_is_a_step_without_effect(policy):
    ended, going = rolled(policy), rolled(policy, parse_failure_ends=False)
    assert any(episode.failed_to_parse for episode in ended)
    assert all(episode.score == 0 for episode in ended if episode.failed_to_parse)
    assert {episode.ending for episode in going} <= {"finished", "max_steps"}


def test_a_world_that_fails_marks_its_episode_and_no_other(policy):
    made = []

    def make():
        made.append(Failing("raises") if len(made) == 1 else Corridor())
        return made[-1]

    envs = SeparateTextEnvs("corridor", make, 2)
    episodes = rolled(policy, 12, rows=2, envs=envs, parse_failure_ends=False)
    lost = [episode for episode in episodes if episode.error]
    assert len(lost) == 1
    assert lost[0].ending == "env_error"
    assert lost[0].score == 0
    table = lost[0].to_episode("p").to_table()
    assert table["reward"].null_count == 1
    assert not any(table["terminated"].to_pylist())


def test_a_full_context_ends_the_episode(policy):
    short = make_tiny("tiny:32x1", TEXT, context=24, seed=1)
    episodes = rolled(short, 20, parse_failure_ends=False)
    full = [episode for episode in episodes if episode.ending == "context_overflow"]
    assert full
    for episode in full:
        assert episode.score == 0
        assert len(episode.tokens) <= 24
        rows = episode.to_episode("p").to_table()
        assert rows["truncated"].to_pylist()[-1]


def test_a_first_observation_that_does_not_fit_is_refused():
    tiny = make_tiny("tiny:32x1", TEXT, context=8, seed=1)
    with pytest.raises(ContextOverflow, match="the first observation of to 1 is 7 tokens long"):
        rolled(tiny)


def test_the_expert_writes_what_a_model_would_read_and_write(policy):
    envs = SeparateTextEnvs("corridor", Corridor, 2)
    episodes = expert_rollout(envs, policy.renderer, wanted(5))
    assert [episode.score for episode in episodes] == [1.0] * 5
    assert [episode.steps for episode in episodes] == [1, 2, 3, 1, 2]
    assert {episode.source for episode in episodes} == {"human"}
    text = policy.tokenizer.decode(episodes[1].tokens.ids)
    assert " ".join(text.split()) == "<bos> at 0 go to 2 <act> right <end> at 1 <act> right <end>"
    assert not episodes[1].log_probs


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("go left", "go left"),
        ("I think.\nAction: go left\n", "go left"),
        ("Action: a\nmore\nAction: b", "b"),
        ("one\ntwo", None),
        ("  ", None),
        ("Action:", None),
    ],
)
def test_the_action_in_what_was_written(text, action):
    assert action_of(text) == action
