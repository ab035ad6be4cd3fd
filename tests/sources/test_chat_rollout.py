"""Episodes of a model that is asked for replies: in a real text world over HTTP, and what becomes of faults."""

import numpy as np
import pytest
from chat_server import Fault, ReferenceServer

from peira.environments.text import Outcome, TextEnvs, make_text
from peira.policies.remote import ChatServer, Reply
from peira.sources.chat_rollout import chat_rollout, dialogue_of
from peira.sources.text_rollout import Attempt, expert_rollout


def attempts(tasks):
    return [Attempt(f"{place:026d}", task, "", 100 * place) for place, task in enumerate(tasks)]


def client(server):
    return ChatServer(
        server.url, "scripted", attempts=1, timeout=5.0, first_pause=0.01, generator=np.random.default_rng(0)
    )


def test_a_served_model_that_does_what_the_expert_does_solves_the_tasks():
    envs = make_text("texthouse-brief", 3)
    wanted = attempts(envs.tasks[:5])
    expected = expert_rollout(envs, None, wanted)
    # What the expert did after having read and written just this.
    known = {}
    for episode in expected:
        for step, action in enumerate(episode.actions):
            texts = [message["content"] for message in dialogue_of(episode)[: 2 * step + 1]]
            known["\n".join(texts)] = action

    def expert(messages, temperature, seed):
        assert messages[0] == {"role": "system", "content": envs.manual}
        return "I think.\nAction: " + known["\n".join(bare(message["content"]) for message in messages[1:])]

    def bare(text):
        return text.rpartition("Action: ")[2]

    with ReferenceServer(expert) as server:
        found = chat_rollout(
            envs, client(server), wanted, temperature=0.5, action_tokens=50, system=envs.manual
        )
        first = server.requests[0].body
    assert (first["temperature"], first["max_tokens"], first["model"]) == (0.5, 50, "scripted")
    assert {request.body["seed"] for request in server.requests} >= {0, 1, 100, 101, 400}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.observations == theirs.observations
        assert [bare(text) for text in ours.actions] == theirs.actions
        assert (ours.score, ours.ending, ours.error) == (1.0, "finished", None)
        assert not ours.action_tokens and not ours.log_probs
    envs.close()


class Echo(TextEnvs):
    """Says back what was done; "end" ends the episode."""

    num_envs, tasks, held_out, max_steps, manual = 2, ("a",), ("a",), 9, ""

    def reset(self, which, tasks):
        return [Outcome(f"begin {task}") for task in tasks]

    def step(self, which, actions):
        return [Outcome(action, float(action == "end"), action == "end") for action in actions]

    def expert(self, which):
        raise ValueError("there is no expert")

    def close(self):
        pass


class Scripted:
    """Replies by what was last read."""

    def __init__(self, replies):
        self.replies, self.most = replies, 0

    def reply(self, dialogues, *, temperature, max_tokens, stop=(), seeds=None):
        self.most = max(self.most, len(dialogues))
        assert len(seeds) == len(dialogues)
        return [self.replies[dialogue[-1]["content"]] for dialogue in dialogues]


def said(text, error=None):
    return Reply(text, "stop", 1, 1, error=error)


def test_each_kind_of_end_is_booked_as_what_it_is():
    model = Scripted(
        {
            "begin good": said("go"),
            "go": said("end"),
            "begin lost": said("", "the server broke off"),
            "begin babbles": said("one\ntwo"),
            "begin long": said("on"),
            "on": said("", "context overflow: too long"),
            "begin longer": said("", "context overflow: too long"),
        }
    )
    wanted = attempts(["good", "lost", "babbles", "long", "longer"])
    found = chat_rollout(Echo(), model, wanted, temperature=1.0, action_tokens=8)
    assert model.most == 2, "both worlds were answered in one call"
    assert [(e.ending, e.score, e.error) for e in found] == [
        ("finished", 1.0, None),
        ("model_error", 0.0, "the server broke off"),
        ("parse_error", 0.0, None),
        ("context_overflow", 0.0, None),
        ("model_error", 0.0, "context overflow: too long"),
    ]
    assert [e.actions for e in found] == [["go", "end"], [], ["one\ntwo"], ["on"], []]


def test_what_is_no_action_can_be_a_step_without_effect():
    model = Scripted({"begin a": said("one\ntwo"), "": said("end")})
    (found,) = chat_rollout(
        Echo(), model, attempts(["a"]), temperature=1.0, action_tokens=8, parse_failure_ends=False
    )
    assert (found.actions, found.ending) == (["one\ntwo", "end"], "finished")


def test_a_fault_of_the_server_ends_one_episode_as_an_error_with_no_reward():
    faults = [None, Fault("status", 500)]
    with ReferenceServer(lambda messages, temperature, seed: "end", faults) as server:
        found = chat_rollout(Echo(), client(server), attempts("aaa"), temperature=1.0, action_tokens=8)
    assert sorted(episode.ending for episode in found) == ["finished", "finished", "model_error"]
    assert "status 500" in next(episode.error for episode in found if episode.error)


def test_a_wrong_key_stops_the_rollout():
    faults = [Fault("status", 401), Fault("status", 401)]
    with (
        ReferenceServer(lambda *_: "end", faults) as server,
        pytest.raises(ValueError, match="set PEIRA_API_KEY"),
    ):
        chat_rollout(Echo(), client(server), attempts("aa"), temperature=1.0, action_tokens=8)
