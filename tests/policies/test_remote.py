"""Replies over HTTP: in order, asked for again after what passes, errors after what does not; and what vLLM is told."""

import importlib.machinery
import inspect
import socket
import sys
import time
import types
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import openai
import pytest
from chat_server import Fault, ReferenceServer

from peira.policies.remote import ChatServer, Reply, VLLMSampler

SECRET = "sk-secret-of-the-tests"


def said(messages, temperature, seed):
    return f"heard {messages[-1]['content']} at {temperature:g} with {seed}"


def dialogue(text):
    return [{"role": "system", "content": "Answer."}, {"role": "user", "content": text}]


def client(url, **settings):
    settings = {
        "timeout": 0.5,
        "attempts": 3,
        "first_pause": 0.01,
        "generator": np.random.default_rng(0),
    } | settings
    return ChatServer(url, "scripted", api_key=SECRET, **settings)


def ask(chat, *texts, temperature=0.7, max_tokens=50, **settings):
    return chat.reply(
        [dialogue(text) for text in texts], temperature=temperature, max_tokens=max_tokens, **settings
    )


def test_replies_keep_their_order_whoever_answers_first():
    def slow_first(messages, temperature, seed):
        time.sleep(0.002 * (12 - int(messages[-1]["content"])))
        return messages[-1]["content"]

    with ReferenceServer(slow_first) as server:
        chat = client(server.url, concurrency=4)
        replies = ask(chat, *map(str, range(12)))
        assert [reply.text for reply in replies] == [str(i) for i in range(12)]
        assert server.busiest == 4
        assert chat.reply([], temperature=1.0, max_tokens=1) == []
        assert len(server.requests) == 12


def test_what_is_asked_for_arrives_and_what_is_used_is_counted():
    with ReferenceServer(said) as server:
        chat = client(server.url)
        replies = ask(chat, "one", "two", temperature=0.25, max_tokens=4, stop=[" with"], seeds=[7, 8])
        bodies = sorted((request.body for request in server.requests), key=lambda body: body["seed"])
        headers = server.requests[0].headers
    assert replies == [
        Reply("heard one at 0.25", "stop", 2, 4),
        Reply("heard two at 0.25", "stop", 2, 4),
    ]
    assert (chat.prompt_tokens, chat.completion_tokens) == (4, 8)
    assert bodies == [
        {
            "model": "scripted",
            "messages": dialogue(text),
            "temperature": 0.25,
            "max_tokens": 4,
            "stop": [" with"],
            "seed": seed,
        }
        for text, seed in (("one", 7), ("two", 8))
    ]
    assert headers["authorization"] == f"Bearer {SECRET}"


def test_no_room_left_is_length_and_no_error():
    with ReferenceServer(said) as server:
        (reply,) = ask(client(server.url), "one", max_tokens=2)
    assert reply == Reply("heard one", "length", 2, 2)


TRANSIENT = {
    "429": Fault("status", status=429),
    "500": Fault("status", status=500),
    "503": Fault("status", status=503),
    "408": Fault("status", status=408),
    "hang": Fault("hang"),
    "empty": Fault("empty"),
    "truncated": Fault("truncated"),
    "cut": Fault("cut"),
    "closed": Fault("closed"),
}


def patience(fault):
    return 0.5 if fault.kind == "hang" else 20.0


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_after_a_passing_fault_the_same_request_is_sent_again(fault):
    with ReferenceServer(said, [fault, fault]) as server:
        (reply,) = ask(client(server.url, timeout=patience(fault)), "one", seeds=[3])
        bodies = [request.body for request in server.requests]
    assert reply == Reply("heard one at 0.7 with 3", "stop", 2, 6)
    assert len(bodies) == 3
    assert bodies[0] == bodies[1] == bodies[2]


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_a_lasting_fault_is_an_error_and_the_others_go_on(fault):
    with ReferenceServer(said, [None, fault, fault, None]) as server:
        chat = client(server.url, timeout=patience(fault), attempts=2, concurrency=1)
        first, failed, last = ask(chat, "one", "two", "three")
        assert len(server.requests) == 4
    assert (first.text, last.text) == ("heard one at 0.7 with None", "heard three at 0.7 with None")
    assert (failed.text, failed.finish_reason, failed.completion_tokens) == ("", "error", 0)
    assert server.url in failed.error
    assert failed.error.endswith("(attempt 2 of 2)")


def test_no_server_is_an_error_that_names_the_url():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    (reply,) = ask(client(url, attempts=2), "one")
    assert reply.error.startswith(f"{url} is not reachable or broke off: ")
    assert "Connection refused" in reply.error


def pauses(server):
    return np.diff([request.at for request in server.requests])


def test_retry_after_in_seconds_is_honoured():
    with ReferenceServer(said, [Fault("status", status=429, headers={"Retry-After": "0.3"})]) as server:
        (reply,) = ask(client(server.url), "one")
        (pause,) = pauses(server)
    assert reply.error is None
    assert 0.3 <= pause < 5.0


def test_retry_after_as_a_date_is_honoured():
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2)
    then = time.monotonic() + (moment - datetime.now(UTC)).total_seconds()
    fault = Fault("status", status=503, headers={"Retry-After": format_datetime(moment, usegmt=True)})
    with ReferenceServer(said, [fault]) as server:
        (reply,) = ask(client(server.url), "one")
        first, second = server.requests
    assert reply.error is None
    assert first.at < then <= second.at + 0.01


def test_a_server_that_asks_for_an_hour_is_given_up_at_once():
    with ReferenceServer(said, [Fault("status", status=503, headers={"Retry-After": "3600"})]) as server:
        (reply,) = ask(client(server.url), "one")
        assert len(server.requests) == 1
    assert reply.error.endswith("(attempt 1 of 3)")


def test_pauses_double_and_jitter_comes_from_the_generator():
    with ReferenceServer(said, [Fault("status")] * 4) as server:
        ask(client(server.url, attempts=4, first_pause=0.05, generator=np.random.default_rng(5)), "one")
        measured = pauses(server)
    jitter = np.random.default_rng(5).random(3)
    expected = 0.05 * np.array([1, 2, 4]) * (1 + jitter)
    assert (measured >= expected).all()
    assert measured.sum() < 2.0


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "change the setting it names"),
        (401, "set PEIRA_API_KEY to a key that it takes"),
        (403, "set PEIRA_API_KEY to a key that may use this model"),
        (404, r"does the url end in /v1, and does the server have the model 'scripted'\?"),
        (422, "change the setting it names"),
    ],
)
def test_a_refusal_is_raised_at_once_in_one_line_without_the_key(status, remedy):
    fault = Fault("status", status=status, message=f"no use:\n{SECRET}")
    with ReferenceServer(said, [fault]) as server:
        with pytest.raises(
            ValueError, match=rf"/v1 answered with status {status}: no use: …; {remedy}$"
        ) as caught:
            ask(client(server.url), "one")
        assert len(server.requests) == 1
    assert caught.value.__cause__ is None
    assert SECRET not in str(caught.value)


def test_a_refusal_stops_the_requests_that_wait():
    faults = [Fault("status", status=429, headers={"Retry-After": "60"}), Fault("status", status=401)]
    with ReferenceServer(said, faults) as server:
        start = time.monotonic()
        with pytest.raises(ValueError, match="status 401"):
            ask(client(server.url, concurrency=2), "one", "two")
        assert time.monotonic() - start < 5.0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("context_length_exceeded", "too long"),
        (None, "This model's maximum context length is 128 tokens. However, you requested 300 tokens."),
    ],
)
def test_a_dialogue_that_is_too_long_is_told_apart(code, message):
    with ReferenceServer(said, [None, Fault("status", status=400, code=code, message=message)]) as server:
        first, second = ask(client(server.url, concurrency=1), "one", "two")
        assert len(server.requests) == 2
    assert first.error is None
    assert second == Reply("", "length", 0, 0, error=f"context overflow: {message}")


def test_no_text_before_the_limit_is_an_error_at_once():
    with ReferenceServer(said, [Fault("empty", finish_reason="length")]) as server:
        (reply,) = ask(client(server.url), "one", max_tokens=9)
        assert len(server.requests) == 1
    assert (reply.text, reply.finish_reason) == ("", "length")
    assert reply.error == "no text, finish_reason 'length' (max_tokens=9)"


def test_where_the_key_comes_from_and_that_it_is_not_shown(monkeypatch):
    def sent(api_key):
        with ReferenceServer(said) as server:
            chat = ChatServer(server.url, "scripted", api_key=api_key)
            ask(chat, "one")
            assert "sk-" not in repr(chat) + str(server.requests[0].body)
            return server.requests[0].headers["authorization"].removeprefix("Bearer ")

    monkeypatch.delenv("PEIRA_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert sent(None) == "none"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    assert sent(None) == "sk-openai"
    monkeypatch.setenv("PEIRA_API_KEY", "sk-peira")
    assert sent(None) == "sk-peira"
    assert sent("sk-given") == "sk-given"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"url": "localhost:8000"},
            r"url: expected something like http://localhost:8000/v1, got 'localhost:8000'",
        ),
        ({"attempts": 0}, r"attempts: expected at least 1, got 0"),
        ({"concurrency": 0}, r"concurrency: expected at least 1, got 0"),
        ({"timeout": 0.0}, r"timeout: expected seconds above 0, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ChatServer(**{"url": "http://127.0.0.1:1/v1", "model": "m", **settings})


def test_seeds_must_be_as_many_as_dialogues():
    with pytest.raises(ValueError, match=r"seeds: expected one for each of 2 dialogues, got 1"):
        ask(client("http://127.0.0.1:1/v1"), "one", "two", seeds=[1])


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package openai: pip install 'peira\[language\]'"):
        ChatServer("http://127.0.0.1:1/v1", "m")
    with pytest.raises(ValueError, match=r"pip install vllm"):
        VLLMSampler("m", max_model_len=8)


def test_the_reference_server_itself():
    with ReferenceServer(said) as server:
        direct = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        assert [model.id for model in direct.models.list()] == ["scripted"]
        choices = direct.chat.completions.create(model="m", messages=dialogue("one"), n=3, seed=5).choices
        assert [choice.message.content for choice in choices] == [
            f"heard one at 1 with {seed}" for seed in (5, 6, 7)
        ]
        vectors = direct.embeddings.create(model="m", input=["abba", "c"], encoding_format="float").data
        assert [vector.embedding[:3] for vector in vectors] == [[2.0, 2.0, 0.0], [0.0, 0.0, 1.0]]
        with pytest.raises(openai.NotFoundError):
            direct.files.list()
        with pytest.raises(
            ValueError, match=r"/v2 answered with status 404: no such path; does the url end in /v1"
        ):
            ask(client(server.url.replace("/v1", "/v2")), "one")


# vLLM 0.15, as far as it is used: names, order and defaults of the real signatures.


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    routed_experts: object | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: object | None
    outputs: list[CompletionOutput]
    finished: bool


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None


class Tokenizer:
    """A token is a letter, as its code point; every message ends with a 0."""

    def apply_chat_template(
        self, conversation, *, tokenize=True, add_generation_prompt=False, return_dict=True
    ):
        assert tokenize and add_generation_prompt and not return_dict
        return [code for message in conversation for code in [*message["content"].encode(), 0]]


class LLM:
    """Writes the last message back and ends with token 0; the log-prob of a token is minus its place."""

    def __init__(self, model, *, seed=0, max_model_len=None, logprobs_mode="raw_logprobs", dtype="auto"):
        self.settings = (model, seed, max_model_len, logprobs_mode, dtype)
        self.max_model_len, self.asked = max_model_len, []

    def get_tokenizer(self):
        return Tokenizer()

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        assert len(prompts) == len(sampling_params) > 0
        self.asked += sampling_params
        answers = []
        for place, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            ids = prompt["prompt_token_ids"]
            if len(ids) >= self.max_model_len:
                raise ValueError("the prompt is longer than the maximum model length")
            message = bytes(ids[:-1]).split(b"\0")[-1]
            tokens = [*message, 0][: params.max_tokens]
            logprobs = [{1: Logprob(-0.5, 1), token: Logprob(-float(i), 2)} for i, token in enumerate(tokens)]
            reason = "stop" if tokens[-1] == 0 else "length"
            text = bytes(token for token in tokens if token).decode()
            total = sum(-float(i) for i in range(len(tokens)))
            output = CompletionOutput(0, text, tokens, total, logprobs, finish_reason=reason)
            answers.append(RequestOutput(str(place), None, ids, None, [output], True))
        return answers


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_vllm_gets_its_settings_and_gives_tokens_with_log_probs(vllm):
    sampler = VLLMSampler("folder", max_model_len=20, seed=3, dtype="bfloat16")
    assert sampler._engine.settings == ("folder", 3, 20, "processed_logprobs", "bfloat16")
    dialogues = [[{"role": "user", "content": text}] for text in ("ab", "x" * 19, "abcdef")]
    replies = sampler.reply(dialogues, temperature=0.6, max_tokens=4, stop=["!"], seeds=[1, 2, 3])
    assert replies == [
        Reply("ab", "stop", 3, 3, token_ids=(97, 98, 0), log_probs=(0.0, -1.0, -2.0)),
        Reply("", "length", 20, 0, error="context overflow: 20 tokens, max_model_len is 20"),
        Reply("abcd", "length", 7, 4, token_ids=(97, 98, 99, 100), log_probs=(0.0, -1.0, -2.0, -3.0)),
    ]
    common = {"temperature": 0.6, "max_tokens": 4, "stop": ["!"], "logprobs": 1}
    assert sampler._engine.asked == [SamplingParams(seed=1, **common), SamplingParams(seed=3, **common)]


def test_vllm_without_seeds_or_without_a_dialogue_that_fits(vllm):
    sampler = VLLMSampler("folder", max_model_len=4)
    (reply,) = sampler.reply([[{"role": "user", "content": "abcd"}]], temperature=1.0, max_tokens=4)
    assert reply.error.startswith("context overflow")
    (reply,) = sampler.reply([[{"role": "user", "content": "a"}]], temperature=1.0, max_tokens=4)
    assert reply.text == "a"
    assert sampler._engine.asked == [SamplingParams(temperature=1.0, max_tokens=4, logprobs=1)]


def test_both_answer_in_the_same_way():
    assert inspect.signature(ChatServer.reply) == inspect.signature(VLLMSampler.reply)
