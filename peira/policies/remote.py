"""Language models that are asked for replies: behind an OpenAI-compatible server, or in vLLM.

A dialogue is a list of messages `{"role": …, "content": …}`; every dialogue gets one `Reply`. A server shows text only;
vLLM shows the tokens and their log-probabilities as well.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import openai

Dialogue = Sequence[Mapping[str, str]]

PASSING = (408, 409, 425, 429)  # client errors that may pass; like those from 500 on
OVERFLOW = re.compile("context_length_exceeded|maximum context length|exceed_context_size_error")
LONGEST_BACKOFF = 30.0  # s
LONGEST_WAIT = 300.0  # s; a server that asks for more is given up


@dataclass(frozen=True)
class Reply:
    """What a model wrote, or why it wrote nothing.

    `finish_reason` is the server's: "stop" at the end of a message or a stop string, "length" when there was no more
    room, "error" when no reply came. With an `error` there is no usable text: the episode is to be left out, not
    scored. The error begins with "context overflow" when the dialogue was too long. Token counts are 0 where the server
    does not tell. `token_ids` and `log_probs` (natural logarithms, under the distribution sampled from; one for each
    token, the closing one included) are None where only text is shown.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    error: str | None = None
    token_ids: tuple[int, ...] | None = None
    log_probs: tuple[float, ...] | None = None


@runtime_checkable
class ChatModel(Protocol):
    """Whatever answers dialogues, in their order."""

    def reply(
        self,
        dialogues: Sequence[Dialogue],
        *,
        temperature: float,
        max_tokens: int,
        stop: Sequence[str] = (),
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]: ...


class ChatServer:
    """A model behind an OpenAI-compatible server, asked over HTTP with `concurrency` requests at once.

    A request is tried up to `attempts` times: again after status 408, 409, 425, 429 or 5xx, a lost connection, no
    answer in `timeout` seconds, an answer that is no chat completion, or an empty message. Attempt k + 1 comes after

        max(Retry-After, b) + u b,   b = min(first_pause · 2^(k-1), 30 s),   u uniform in [0, 1) from `generator`.

    What still fails becomes a `Reply` with an `error`. Any other status (a wrong key, model or setting) raises
    ValueError. `prompt_tokens` and `completion_tokens` add up what all requests used.

    `url` is the server's base, as in `http://localhost:8000/v1`. The key is `api_key`, else the environment's
    PEIRA_API_KEY, else OPENAI_API_KEY, else "none"; it goes into the request's header and nowhere else.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        attempts: int = 6,
        concurrency: int = 8,
        first_pause: float = 1.0,
        generator: np.random.Generator | None = None,
    ):
        if importlib.util.find_spec("openai") is None:
            raise ValueError("ChatServer needs the package openai: pip install 'peira[language]'")
        if not re.match("https?://[^/]", url):
            raise ValueError(f"url: expected something like http://localhost:8000/v1, got {url!r}")
        for name, number in (("attempts", attempts), ("concurrency", concurrency)):
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        if timeout <= 0:
            raise ValueError(f"timeout: expected seconds above 0, got {timeout:g}")
        import openai

        environment = os.environ.get("PEIRA_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self._key = api_key or environment or "none"
        self._client = openai.OpenAI(base_url=url, api_key=self._key, timeout=timeout, max_retries=0)
        self.url, self.model = url, model
        self.prompt_tokens = self.completion_tokens = 0
        self._timeout, self._attempts, self._concurrency = timeout, attempts, concurrency
        self._first_pause = first_pause
        self._generator = generator or np.random.default_rng()
        self._counting = threading.Lock()

    def reply(
        self,
        dialogues: Sequence[Dialogue],
        *,
        temperature: float,
        max_tokens: int,
        stop: Sequence[str] = (),
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """One reply a dialogue, in order. A repeated attempt sends the same seed again.

        Raises ValueError when the server refuses a request for a reason that waiting does not mend.
        """
        settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        if stop:
            settings["stop"] = list(stop)
        requests = [{"messages": list(dialogue), **settings} for dialogue in dialogues]
        for request, seed in zip(requests, _one_each(seeds, dialogues), strict=True):
            if seed is not None:
                request["seed"] = seed
        given_up = threading.Event()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="chat-server")
        try:
            return list(pool.map(lambda request: self._insist(request, given_up), requests))
        finally:
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _insist(self, request: dict[str, Any], given_up: threading.Event) -> Reply:
        for attempt in range(1, self._attempts + 1):
            try:
                answer = self._ask(request)
            except ValueError:
                given_up.set()
                raise
            if isinstance(answer, Reply):
                return answer
            if attempt == self._attempts or answer.wait > LONGEST_WAIT:
                break
            pause = min(self._first_pause * 2 ** (attempt - 1), LONGEST_BACKOFF)
            if given_up.wait(max(answer.wait, pause) + self._generator.random() * pause):
                break
        return Reply("", "error", 0, 0, error=f"{answer.reason} (attempt {attempt} of {self._attempts})")

    def _ask(self, request: dict[str, Any]) -> Reply | _Fault:
        import openai

        try:
            response = self._client.chat.completions.with_raw_response.create(model=self.model, **request)
        except openai.APITimeoutError:
            return _Fault(f"{self.url} did not answer within {self._timeout:g} s")
        except openai.APIConnectionError as fault:
            return _Fault(f"{self.url} is not reachable or broke off: {fault.__cause__ or fault}")
        except openai.APIStatusError as fault:
            return self._refused(fault)
        return self._read(response.http_response.text, request["max_tokens"])

    def _read(self, text: str, max_tokens: int) -> Reply | _Fault:
        try:
            answer = json.loads(text)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            content, reason = choice["message"].get("content") or "", choice.get("finish_reason") or "stop"
            if not isinstance(content, str):
                raise TypeError("content is no text")
            read, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return _Fault(f"{self.url} answered with no chat completion: {self._shown(text)}")
        with self._counting:
            self.prompt_tokens += read
            self.completion_tokens += written
        if content:
            return Reply(content, reason, read, written)
        if reason == "stop":
            return _Fault(f"{self.url} answered with an empty message")
        error = f"no text, finish_reason {reason!r} (max_tokens={max_tokens})"
        return Reply("", reason, read, written, error=error)

    def _refused(self, fault: openai.APIStatusError) -> Reply | _Fault:
        status = fault.status_code
        said = fault.body.get("message") if isinstance(fault.body, dict) else None
        said = self._shown(str(said or fault.response.text or "no reason given"))
        if status == 400 and OVERFLOW.search(f"{fault.code} {fault.type} {said}"):
            return Reply("", "length", 0, 0, error=f"context overflow: {said}")
        if status in PASSING or status >= 500:
            wait = _seconds(fault.response.headers.get("retry-after", ""))
            return _Fault(f"{self.url} answered with status {status}: {said}", wait)
        remedy = {
            401: "set PEIRA_API_KEY to a key that it takes",
            403: "set PEIRA_API_KEY to a key that may use this model",
            404: f"does the url end in /v1, and does the server have the model {self.model!r}?",
        }.get(status, "change the setting it names")
        raise ValueError(f"{self.url} answered with status {status}: {said}; {remedy}") from None

    def _shown(self, text: str) -> str:
        """What a server wrote, on one line, without the key that it may have repeated."""
        return " ".join(text.split()).replace(self._key if self._key != "none" else "\0", "…")[:300]


@dataclass(frozen=True)
class _Fault:
    """What went wrong in one attempt, and for how many seconds the server asked to be left alone."""

    reason: str
    wait: float = 0.0


def _seconds(retry_after: str) -> float:
    """Seconds from now that a Retry-After header (a number or a date) asks for; 0 when it says nothing."""
    if re.fullmatch(r"\d+(\.\d+)?", retry_after):
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _one_each(seeds: Sequence[int] | None, dialogues: Sequence[Dialogue]) -> Sequence[int | None]:
    if seeds is None:
        return [None] * len(dialogues)
    if len(seeds) != len(dialogues):
        raise ValueError(f"seeds: expected one for each of {len(dialogues)} dialogues, got {len(seeds)}")
    return seeds


class VLLMSampler:
    """A model in vLLM, in this process, with the tokens it sampled and their log-probabilities.

    The engine is asked for `processed_logprobs`: log-probabilities at the sampling temperature, which is what an
    importance ratio needs (vLLM's default is those at temperature 1). At temperature 0 they are those at temperature 1.
    With a stop string, `token_ids` goes up to and into it while `text` ends before it. What `engine` holds goes to
    `vllm.LLM` as it is, such as `tensor_parallel_size=2`.

    Written for vLLM's documented interface (0.15) and not run on this project's machines: the tests use a stand-in with
    its signatures.
    """

    def __init__(self, model: str, *, max_model_len: int, seed: int = 0, **engine: Any):
        if importlib.util.find_spec("vllm") is None:
            raise ValueError("VLLMSampler needs vLLM, which needs a GPU: pip install vllm")
        import vllm

        self._vllm = vllm
        self._engine = vllm.LLM(
            model=model, max_model_len=max_model_len, seed=seed, logprobs_mode="processed_logprobs", **engine
        )
        self._max_model_len = max_model_len

    def reply(
        self,
        dialogues: Sequence[Dialogue],
        *,
        temperature: float,
        max_tokens: int,
        stop: Sequence[str] = (),
        seeds: Sequence[int] | None = None,
    ) -> list[Reply]:
        """One reply a dialogue, in order."""
        tokenizer = self._engine.get_tokenizer()
        prompts = [
            tokenizer.apply_chat_template(
                list(dialogue), tokenize=True, add_generation_prompt=True, return_dict=False
            )
            for dialogue in dialogues
        ]
        settings = {"temperature": temperature, "max_tokens": max_tokens, "stop": list(stop) or None}
        parameters = [
            self._vllm.SamplingParams(seed=seed, logprobs=1, **settings)
            for seed in _one_each(seeds, dialogues)
        ]
        # One prompt that is too long would make `generate` refuse them all.
        short = [place for place, prompt in enumerate(prompts) if len(prompt) < self._max_model_len]
        tokens = [{"prompt_token_ids": prompts[place]} for place in short]
        chosen = [parameters[place] for place in short]
        answers = self._engine.generate(tokens, chosen, use_tqdm=False) if short else []
        replies = {place: _reply_of(answer) for place, answer in zip(short, answers, strict=True)}
        return [replies.get(place) or self._overflow(prompt) for place, prompt in enumerate(prompts)]

    def _overflow(self, prompt: Sequence[int]) -> Reply:
        error = f"context overflow: {len(prompt)} tokens, max_model_len is {self._max_model_len}"
        return Reply("", "length", len(prompt), 0, error=error)


def _reply_of(answer: Any) -> Reply:
    """Reply from a `vllm.RequestOutput`."""
    output = answer.outputs[0]
    token_ids = tuple(output.token_ids)
    log_probs = tuple(
        choices[token].logprob for token, choices in zip(token_ids, output.logprobs, strict=True)
    )
    ended = output.finish_reason in ("stop", "length")
    return Reply(
        output.text,
        output.finish_reason or "error",
        len(answer.prompt_token_ids),
        len(token_ids),
        error=None if ended else f"vLLM ended with {output.finish_reason!r}",
        token_ids=token_ids,
        log_probs=log_probs,
    )
