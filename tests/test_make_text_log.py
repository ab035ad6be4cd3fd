"""A text world's log: the expert, a model from a folder, a model behind a server; and who cannot act."""

import re

import pytest
from chat_server import Fault, ReferenceServer

from peira.environments.text import make_text
from peira.experience.store import Store
from peira.policies.lm.model import make_tiny
from peira.recipes.make_log import Options, make_log

ENV = "texthouse-brief"
QUIET = {"say": lambda line: None}


def options(**changes) -> Options:
    settings = {"env": ENV, "policy": "scripted", "steps": 20, "num_envs": 4, "action_tokens": 6, **changes}
    return Options(**settings)


def test_the_expert_solves_every_task_and_shows_no_tokens(tmp_path):
    result = make_log(tmp_path / "log", options(steps=80), **QUIET)
    table = Store.open(tmp_path / "log").read()
    assert (result["mean_return"], result["errors"]) == (1.0, 0)
    assert result["successes"] == result["episodes"] == len(set(table["task_id"].to_pylist())) >= 8
    assert set(table["source"].to_pylist()) == {"logged"} and set(table["policy_id"].to_pylist()) == {
        "expert"
    }
    assert not {"action_tokens", "behaviour_log_prob"} & set(table.column_names)
    with pytest.raises(ValueError, match=r"path: .* steps already; name a new folder"):
        make_log(tmp_path / "log", options(), **QUIET)


def test_a_model_from_a_folder_shows_tokens_and_log_probabilities(tmp_path):
    envs = make_text(ENV, 1)
    make_tiny("tiny:16x1", [envs.manual], context=512, seed=0).save(tmp_path / "model")
    envs.close()
    result = make_log(tmp_path / "log", options(model=str(tmp_path / "model")), **QUIET)
    table = Store.open(tmp_path / "log").read()
    assert result["steps"] >= 20
    lengths = [len(tokens) for tokens in table["action_tokens"].to_pylist()]
    assert lengths == [len(numbers) for numbers in table["behaviour_log_prob"].to_pylist()]
    assert max(lengths) <= 6


def test_a_served_model_shows_text_alone_and_a_refusal_stops_it(tmp_path):
    refusing = ReferenceServer(lambda *_: "look", [None, Fault("status", 400)])
    with refusing as server, pytest.raises(ValueError, match="status 400"):
        make_log(tmp_path / "refused", options(model=server.url, model_name="scripted"), **QUIET)
    with ReferenceServer(lambda *_: "look") as server:
        result = make_log(tmp_path / "log", options(model=server.url, model_name="scripted"), **QUIET)
    table = Store.open(tmp_path / "log").read()
    assert (result["mean_return"], result["policy_id"]) == (0.0, "scripted")
    assert set(table["action"].to_pylist()) == {"look"}
    assert not {"action_tokens", "behaviour_log_prob", "propensity"} & set(table.column_names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"policy": "medium"},
            "policy: in a text world scripted acts, its expert, or a --model, got 'medium'",
        ),
        (
            {"model": "here", "model_name": "x"},
            "model_name: names a model of a server, got 'x' with model here",
        ),
        (
            {"model": "http://127.0.0.1:1/v1"},
            "model_name: say which model of http://127.0.0.1:1/v1 is to act",
        ),
        (
            {"env": "Hopper-v5", "policy": "medium", "model": "here"},
            "model: a language model acts in a text world",
        ),
        (
            {"env": "Hopper-v5", "policy": "medium", "model_name": "x"},
            "model_name: names a model of a server",
        ),
    ],
)
def test_who_cannot_act_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        options(**changes)
