from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import Any

import httpx
import openai
import pytest
from serving.servers import Live
from timing import at_once

from anchorlm.guard import Guard
from anchorlm.serving import ModelServing, ServedModel

TURN = [{"role": "user", "content": "bread"}]
TRACED = {"model": "plain", "messages": TURN, "max_tokens": 1, "anchorlm": {"trace": True}}


@pytest.mark.parametrize("request_line", ["POST /health", "GET /v1/models", "PUT /v1/chat/completions", "POST /v2/x"])
def test_a_body_is_waited_for_only_where_one_is_asked_for(live: Live, request_line: str) -> None:
    with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), timeout=10) as connection:
        head = f"{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        connection.sendall(head.encode())
        status = int(connection.recv(100).split()[1])
    assert status in (200, 404, 405), "an answer, without a byte of the body that was announced"


def test_where_a_body_is_asked_for_one_that_is_too_large_is_not_waited_for(live: Live) -> None:
    with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        assert connection.recv(100).split()[1] == b"413"


def test_connections_that_ask_for_nothing_keep_nobody_out(
    start_live: Callable[..., Live], plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchorlm.serving.http._protocol.HEAD_PATIENCE", 0.5)
    live = start_live([ServedModel.of("plain", plain)], concurrency=1, queue=0)
    address = ("127.0.0.1", int(live.url.rpartition(":")[2]))
    with ExitStack() as stack:
        for _ in range(260):
            connection = stack.enter_context(socket.create_connection(address, timeout=10))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        live.wait(lambda: httpx.get(f"{live.url}/health").status_code == 200, 10)
        assert connection.recv(100) == b"", "it is closed"


def test_a_connection_is_kept_between_requests_and_during_a_long_answer(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(messages: object, response: str) -> float:
        await asyncio.sleep(0.6)
        return 0.0

    monkeypatch.setattr("anchorlm.serving.http._protocol.HEAD_PATIENCE", 0.4)
    live = start_live([ServedModel.of("slow", make_guard(slow))])
    with httpx.Client(base_url=live.url, timeout=60) as client:
        for _ in range(2):
            answer = client.post("/v1/chat/completions", json={"model": "slow", "messages": TURN})
            assert answer.status_code == 200


def test_a_connection_that_is_busy_is_not_taken_for_an_idle_one(
    start_live: Callable[..., Live], plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchorlm.serving.http._protocol.HEAD_PATIENCE", 0.3)
    live = start_live([ServedModel.of("plain", plain)])
    connection = HTTPConnection("localhost", int(live.url.rpartition(":")[2]), timeout=10)
    connection.connect()
    connection.auto_open = 0  # whoever is closed is not opened again
    end, count = time.monotonic() + 1.5, 0
    while time.monotonic() < end:
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        count += 1
        time.sleep(0.05)
    connection.close()
    assert count > 10


MANY = 150_000
"""Things in a list, within the size of a request."""


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [1] * MANY},
        {"messages": [{}] * MANY},
        {"messages": [{"role": "user", "content": [1] * MANY}]},
        {"messages": TURN, "stop": [1] * MANY},
        {"messages": TURN, "anchorlm": {f"{'x' * 101}{place}": 1 for place in range(MANY // 20)}},
        {"messages": TURN, **{f"x{place}": 1 for place in range(MANY // 3)}},
        {"messages": [{**TURN[0], **{f"x{place}": 1 for place in range(MANY // 3)}}]},
    ],
)
def test_a_request_with_a_hundred_thousand_mistakes_is_told_one_at_once(live: Live, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    url, headers = f"{live.url}/v1/chat/completions", {"content-type": "application/json"}
    answer = at_once(lambda: httpx.post(url, content=data, headers=headers))
    assert answer.status_code == 400
    assert len(answer.text) < 300


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "assistant", "content": None}, "messages.0.content: input should be a valid string."),
        (1, "messages.0: should be an object."),
    ],
)
def test_a_turn_that_does_not_fit_is_named_as_the_client_knows_it(live: Live, turn: object, said: str) -> None:
    answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": [turn]}).json()["error"]
    assert (answer["message"], answer["param"]) == (said, said.partition(":")[0])


def test_an_assistants_turn_without_calls_is_one_of_text(client: Any) -> None:
    turns = [*TURN, {"role": "assistant", "content": "Flour.", "tool_calls": []}, *TURN]
    assert client.chat.completions.create(model="plain", messages=turns).choices


def test_a_value_out_of_bounds_is_not_sent_back_whole(live: Live) -> None:
    ask = {"model": "guarded", "messages": TURN, "anchorlm": {"alpha": "x" * 100_000}}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=ask)
    assert answer.json()["error"]["code"] == "knob_out_of_bounds"
    assert len(answer.text) < 400


def test_only_requests_to_the_api_are_counted(start_live: Callable[..., Live], plain: Guard) -> None:
    live = start_live([ServedModel.of("plain", plain)])
    for path in ("/health", "/ready", "/metrics", "/", "/nowhere", "/v1/models", "/v1/nowhere"):
        httpx.get(live.url + path)
    live.wait(lambda: live.value("requests_total", status="404") == 1)
    assert live.value("requests_total", status="200") == 1


def test_an_operator_bounds_how_wildly_is_sampled(start_live: Callable[..., Live], plain: Guard) -> None:
    sampling = {"temperature": (0.0, 0.7)}
    client = start_live([ServedModel.of("plain", plain, ModelServing(sampling=sampling))]).client()
    for temperature in (0, 0.7):
        assert client.chat.completions.create(model="plain", messages=TURN, temperature=temperature).choices
    with pytest.raises(openai.BadRequestError, match="temperature = 0.71 is beyond .* from 0 to 0.7"):
        client.chat.completions.create(model="plain", messages=TURN, temperature=0.71)
    assert client.chat.completions.create(model="plain", messages=TURN, top_p=0.5).choices


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/models", "/v1/models/nobody"])
def test_every_response_has_an_id_of_its_own(live: Live, path: str) -> None:
    ids = [httpx.get(live.url + path).headers["x-request-id"] for _ in range(2)]
    assert len(set(ids)) == 2


def test_an_errors_id_is_that_of_the_audit_log(live: Live) -> None:
    answer = httpx.post(f"{live.url}/v1/chat/completions", json={"model": "strict", "messages": TURN}, timeout=60)
    assert answer.headers["x-request-id"] == answer.json()["anchorlm"]["request_id"]


NULL = {"n": None, "stream": None, "stream_options": None, "seed": None, "temperature": None, "anchorlm": None}


def test_null_is_as_good_as_nothing(live: Live) -> None:
    body = {"model": "plain", "messages": TURN, "max_tokens": 2, "top_p": None, "logprobs": None, "stop": None}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=body | NULL, timeout=60)
    assert (answer.status_code, len(answer.json()["choices"])) == (200, 1)


@pytest.mark.parametrize(
    "sent", [{"n": True}, {"n": "2"}, {"stream": "yes"}, {"stream": 1}, {"temperature": True}, {"seed": 1.5}]
)
def test_a_value_of_another_type_is_not_guessed_at(live: Live, sent: dict[str, Any]) -> None:
    answer = httpx.post(f"{live.url}/v1/chat/completions", json={"model": "plain", "messages": TURN} | sent, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(sent)))


@pytest.mark.parametrize("name", ["\\ud800", "x" * 500, "\\u0000"])
def test_a_knob_of_any_name_is_told_to_be_unknown(live: Live, name: str) -> None:
    body = f'{{"model":"guarded","messages":[{{"role":"user","content":"x"}}],"anchorlm":{{"{name}":1}}}}'
    answer = httpx.post(f"{live.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_an_operator_bounds_the_length_of_answers(start_live: Callable[..., Live], plain: Guard) -> None:
    client = start_live([ServedModel.of("plain", plain)], max_tokens=3).client()
    assert client.chat.completions.create(model="plain", messages=TURN, max_tokens=3).usage.completion_tokens <= 3
    with pytest.raises(openai.BadRequestError, match="at most 3 tokens"):
        client.chat.completions.create(model="plain", messages=TURN, max_completion_tokens=4)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "x-forwarded-proto", "Forwarded"])
def test_whoever_comes_through_a_proxy_without_a_key_is_not_the_operator(live: Live, header: str) -> None:
    through = {header: "for=203.0.113.7"}
    url = f"{live.url}/v1/chat/completions"
    assert httpx.post(url, json=TRACED, timeout=60).status_code == 200
    assert httpx.post(url, json=TRACED, headers=through, timeout=60).status_code == 403
    assert httpx.post(url, json=TRACED | {"anchorlm": {}}, headers=through, timeout=60).status_code == 200
    assert not httpx.get(f"{live.url}/v1/models", headers=through).json()["anchorlm"]["operator"]


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost.evil.example", "http://10.0.0.1", "null"])
def test_a_page_elsewhere_cannot_post_to_the_loopback(live: Live, origin: str) -> None:
    asked: dict[str, Any] = {"content": httpx.Request("POST", live.url, json={"messages": TURN}).content}
    answer = httpx.post(f"{live.url}/v1/chat/completions", headers={"Origin": origin}, **asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_host")


@pytest.mark.parametrize("origin", ["http://localhost:8000", "http://127.0.0.1", "http://[::1]:8000"])
def test_a_page_of_this_machine_may_ask_the_loopback(live: Live, origin: str) -> None:
    assert httpx.get(f"{live.url}/v1/models", headers={"Origin": origin}).status_code == 200


@pytest.mark.parametrize("sent", [{"echo": True}, {"suffix": "none"}, {"best_of": 2}, {"best_of": True}])
def test_what_a_completion_cannot_honor_is_refused(client: Any, sent: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{next(iter(sent))} is not supported"):
        client.completions.create(model="plain", prompt="bread", max_tokens=1, extra_body=sent)


@pytest.mark.parametrize("sent", [{"tools": True}, {"tools": "none"}, {"tool_choice": 1}, {"modalities": "auto"}])
def test_what_a_chat_cannot_honor_is_refused(client: Any, sent: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(sent))):
        client.chat.completions.create(model="plain", messages=TURN, max_tokens=1, extra_body=sent)


def test_what_asks_for_nothing_is_let_through(client: Any) -> None:
    nothing = {"echo": False, "best_of": 1, "suffix": "", "logit_bias": {}}
    assert client.completions.create(model="plain", prompt="bread", max_tokens=1, extra_body=nothing).choices
    nothing = {"tool_choice": "none", "tools": [], "function_call": "auto", "modalities": ["text"], "logit_bias": {}}
    asked: dict[str, Any] = {"model": "plain", "messages": TURN, "max_tokens": 1}
    assert client.chat.completions.create(**asked, extra_body=nothing).choices


def test_the_whole_distribution_is_no_choice_of_how_to_sample(start_live: Callable[..., Live], plain: Guard) -> None:
    sampling = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5, "seed": 3}
    guard = Guard(plain.defense.target, generation=sampling)
    client = start_live([ServedModel.of("sampling", guard), ServedModel.of("plain", plain)]).client()

    def said(model: str, **asked: Any) -> str:
        return str(client.chat.completions.create(model=model, messages=TURN, **asked).choices[0].message.content)

    assert guard.chat(TURN).text != plain.chat(TURN).text
    assert said("sampling", top_p=1) == guard.chat(TURN).text
    assert said("plain", top_p=1) == plain.chat(TURN).text
    assert said("plain", top_p=0.5, seed=3) == plain.chat(TURN, do_sample=True, top_p=0.5, seed=3).text
