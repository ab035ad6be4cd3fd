"""Bad input: a status and one line of JSON each, and the service goes on."""

import json
import socket

import pytest
from live_service import CALLER, CONTEXT, Caller, calling, make_folder, serving

from peira.serving.options import Options


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    options = Options(most_actions=4, largest_body=8192)
    with serving(make_folder(tmp_path_factory.mktemp("served")), options) as running:
        yield running


@pytest.fixture
def caller(service):
    with calling(service) as one:
        yield one


def decide(**changed):
    return json.dumps({"context": CONTEXT, "actions": ["a", "b"], **changed}).encode()


GOOD = decide()
DEEP = b'{"context":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"
BAD_DECISIONS = {
    "no JSON": (b"amount=3", 400, "body: expected JSON, got something else: "),
    "no object": (b"[1]", 400, "body: expected a JSON object, got a list of 1"),
    "empty": (b"", 400, "body: expected JSON"),
    "too deep": (DEEP, 422, "actions: expected a value, got nothing"),
    "too deep for any reader": (b'{"a":' * 1500, 400, "body: expected JSON"),
    "nested context": (
        decide(context={"amount": [1]}),
        422,
        "context feature 'amount': expected a number or a text",
    ),
    "no context": (b'{"actions":["a"]}', 422, "context: expected a value, got nothing"),
    "context of a list": (
        decide(context=[1]),
        422,
        "context: expected an object of features, got a list of 1",
    ),
    "missing feature": (
        decide(context={"country": "NL"}),
        422,
        "context feature 'amount': expected a number, got",
    ),
    "text for a number": (
        decide(context={"amount": "12", "country": "NL"}),
        422,
        "context feature 'amount': expected a number, got '12'",
    ),
    "number for a text": (
        decide(context={"amount": 12, "country": 31}),
        422,
        "context feature 'country': expected a text, got 31",
    ),
    "true for a number": (decide(context={"amount": True, "country": "NL"}), 422, "context feature 'amount'"),
    "NaN feature": (
        decide(context={"amount": float("nan"), "country": "NL"}),
        422,
        "context.amount: expected a finite number, got nan",
    ),
    "NaN that nothing reads": (
        decide(context={**CONTEXT, "x": float("inf")}),
        422,
        "context.x: expected a finite",
    ),
    "larger than float32": (
        decide(context={"amount": 1e200, "country": "NL"}),
        422,
        "context feature 'amount'",
    ),
    "no eligible action": (decide(actions=[]), 422, "actions: none is eligible; name at least one"),
    "no list of actions": (decide(actions="a"), 422, "actions: expected a list, got 'a'"),
    "action twice": (
        decide(actions=["a", "b", "a"]),
        422,
        "actions: 'a' comes twice; name each eligible action once",
    ),
    "unknown action": (decide(actions=["a", "z"]), 422, "actions: 'z' is not known; the policy has a, b, c"),
    "too many actions": (decide(actions=list("abcde")), 422, "actions: expected at most 4, got 5"),
    "mixed actions": (decide(actions=["a", {"id": "b"}]), 422, "actions: expected all as"),
    "action of a number": (decide(actions=[1]), 422, "actions: expected a printable text"),
    "unknown field": (
        decide(contexts={}),
        422,
        "'contexts': there is no such field; there are context, actions",
    ),
    "empty event id": (
        decide(event_id=""),
        422,
        "event_id: expected a printable text of 1 to 128 characters",
    ),
    "control character": (decide(event_id="a\x00"), 422, "event_id: expected a printable text"),
    "long event id": (decide(event_id="x" * 129), 422, "event_id: expected a printable text"),
    "attempt of nothing": (decide(attempt=2), 422, "attempt: expected 1 without and 2 or more with a parent"),
    "attempt of a text": (decide(attempt="2"), 422, "attempt: expected a whole number from 1, got '2'"),
    "attempt below 1": (decide(attempt=0), 422, "attempt: expected a whole number from 1, got 0"),
    "override that is not eligible": (
        decide(override="c"),
        422,
        "override: expected one of the actions, got 'c'",
    ),
}
BAD_OUTCOMES = {
    "unknown event": (b'{"event_id":"nobody","reward":1}', 404, "event_id: 'nobody' was not decided here"),
    "reward NaN": (b'{"event_id":"e","reward":NaN}', 422, "reward: expected a finite number, got nan"),
    "reward infinite": (
        b'{"event_id":"e","reward":-Infinity}',
        422,
        "reward: expected a finite number, got -inf",
    ),
    "reward above 1": (
        b'{"event_id":"e","reward":1.5}',
        422,
        "reward: expected a number from 0 to 1, got 1.5",
    ),
    "reward below 0": (
        b'{"event_id":"e","reward":-0.1}',
        422,
        "reward: expected a number from 0 to 1, got -0.1",
    ),
    "reward of a text": (
        b'{"event_id":"e","reward":"1"}',
        422,
        "reward: expected a number from 0 to 1, got '1'",
    ),
    "reward true": (
        b'{"event_id":"e","reward":true}',
        422,
        "reward: expected a number from 0 to 1, got True",
    ),
    "no reward": (b'{"event_id":"e"}', 422, "reward: expected a number from 0 to 1, got nothing"),
    "reward of what was not done": (
        b'{"event_id":"e","reward":1,"applied":false}',
        422,
        "reward: expected none for a decision that was not applied, got 1",
    ),
    "no event": (b'{"reward":1}', 422, "event_id: expected a value, got nothing"),
    "time of a text": (b'{"event_id":"e","reward":1,"time":"now"}', 422, "time: expected seconds since 1970"),
    "time before 1970": (b'{"event_id":"e","reward":1,"time":-1}', 422, "time: expected seconds since 1970"),
}


@pytest.mark.parametrize(("body", "status", "error"), BAD_DECISIONS.values(), ids=BAD_DECISIONS)
def test_a_bad_decision_is_refused(caller, body, status, error):
    refused = caller.ask("POST", "/decide", body)
    assert refused.status == status
    assert list(refused.body) == ["error"] and refused.body["error"].startswith(error)
    assert "\n" not in refused.body["error"] and len(refused.body["error"]) < 300
    assert caller.ask("POST", "/decide", GOOD).status == 200


@pytest.mark.parametrize(("body", "status", "error"), BAD_OUTCOMES.values(), ids=BAD_OUTCOMES)
def test_a_bad_outcome_is_refused(caller, body, status, error):
    refused = caller.ask("POST", "/outcome", body)
    assert refused.status == status
    assert list(refused.body) == ["error"] and refused.body["error"].startswith(error)
    assert caller.ask("POST", "/decide", GOOD).status == 200


def test_of_requests_that_are_decided_together_only_the_bad_one_is_refused(service):
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> int:
        with calling(service) as one:
            context = CONTEXT if number % 3 else {"amount": "?", "country": "NL"}
            return one.decide(context=context, actions=["a", "b", "c"][: 1 + number % 2]).status

    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(ask, range(48)))
    assert statuses == [200 if number % 3 else 422 for number in range(48)]


@pytest.mark.parametrize("token", [None, "", "wrong", CALLER[:-1], CALLER + "x"])
def test_a_wrong_token_is_refused(service, token):
    with calling(service, token) as one:
        for method, path in (
            ("POST", "/decide"),
            ("POST", "/outcome"),
            ("GET", "/policy"),
            ("GET", "/metrics"),
        ):
            refused = one.ask(method, path, GOOD if method == "POST" else None)
            assert refused.status == 401 and refused.body["error"].startswith("token: expected a known one")
        assert one.ask("GET", "/health").body == {"status": "ok"}


def test_a_caller_may_decide_but_not_put_a_policy_in_force(service):
    with calling(service, CALLER) as one:
        assert one.decide().status == 200
        refused = one.ask("POST", "/policy", {"candidate": "x", "force": True})
        assert refused == (403, {"error": "token: expected an operator's for this, got one of a caller"})


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_are_refused_without_being_kept(service, chunked):
    """The length that a request claims is not believed: a body in chunks has none."""
    size = 10_000_000
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        head = b"POST /decide HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n%b\r\n\r\n"
        connection.sendall(head % (CALLER.encode(), length))
        part = b" " * 65_536
        sent, answer = 0, b""
        connection.settimeout(0.05)
        # It is answered long before the body is whole.
        while not answer and sent < size // 2:
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            sent += len(part)
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b'{"error":"body: expected at most 8192 bytes, got more"}')
    with calling(service) as one:
        assert one.ask("POST", "/decide", b" " * size).status == 413
        assert one.decide().status == 200


def test_a_body_that_does_not_come_is_given_up(service, monkeypatch):
    monkeypatch.setattr("peira.serving.app.BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        head = b"POST /decide HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: 100\r\n\r\n{"
        connection.sendall(head % CALLER.encode())
        connection.settimeout(10)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"error":"body: it did not come within' in answer


def test_other_paths_and_methods_say_what_there_is(caller: Caller):
    assert caller.ask("GET", "/nothing").status == 404
    refused = caller.ask("GET", "/decide")
    assert refused.status == 405 and refused.body["error"].startswith(
        "GET /decide: Method Not Allowed; there are"
    )


def test_the_api_is_described(caller: Caller):
    described = caller.ask("GET", "/openapi.json").body["paths"]
    assert set(described) == {"/decide", "/outcome", "/policy", "/metrics", "/health"}
    assert (
        "context"
        in described["/decide"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    )
