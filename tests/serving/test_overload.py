"""Nobody holds everybody else up: `/health` answers within a fifth of a second whatever somebody sends."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import httpx
import pytest
from factories import CHAT_TEMPLATE, tiny_model, tiny_tokenizer
from serving.servers import Live

from anchorlm.guard import Guard
from anchorlm.serving import ServedModel

T = TypeVar("T")

BAR = 0.2
"""Seconds."""

TURN = {"role": "user", "content": "x"}
PART = {"type": "text", "text": "x"}


def chat(**body: Any) -> bytes:
    return json.dumps({"model": "plain", "max_tokens": 1, **body}).encode()


BODIES = {
    "28,000 messages": chat(messages=[TURN] * 28_000),
    "25,000 parts in one turn": chat(messages=[{"role": "user", "content": [PART] * 25_000}]),
    "25,000 parts in 500 turns": chat(messages=[{"role": "user", "content": [PART] * 50}] * 500),
    "2,000 messages": chat(messages=[TURN] * 2_000),
    "2,000 parts": chat(messages=[{"role": "user", "content": [PART] * 2_000}]),
    "deep lists": b'{"messages":' + b"[" * 490_000 + b"]" * 490_000 + b"}",
    "deep objects": b'{"anchorlm":' + b'{"a":' * 160_000 + b"1" + b"}" * 160_000 + b"}",
    "a deep knob": chat(messages=[TURN], anchorlm={"alpha": eval("[" * 90 + "]" * 90)}),
    "a huge number": b'{"temperature": ' + b"9" * 900_000 + b"}",
    "one long word": chat(messages=[{"role": "user", "content": "a" * 900_000}]),
    "many words": chat(messages=[{"role": "user", "content": "word " * 190_000}]),
    "many control tokens": chat(messages=[{"role": "user", "content": "<|user|>" * 120_000}]),
    "many stops": chat(messages=[TURN], stop=["x"] * 150_000),
    "many knobs": chat(messages=[TURN], anchorlm={f"k{number}": 1 for number in range(60_000)}),
    "many names": chat(messages=[TURN], **{f"k{number}": 1 for number in range(60_000)}),
    "no json": b"{" * 990_000,
}


ENDLESS = {
    "loops": "{% if size > 9 %}{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
    "{% endif %}",
    "product": "{% if size > 9 %}{{ ('a' * (10 ** 9 + size)) * 100 }}{% endif %}",
    "power": "{% if size > 9 %}{{ (7 ** (90000000 + size)) % 3 }}{% endif %}",
}
"""What a template may do with a longer text."""


class Health:
    """Asks for `/health` again and again, on a connection of its own, and keeps the longest time that it took."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Health:
        self._thread.start()
        Live.wait(lambda: self.times)
        return self

    def __exit__(self, *_: object) -> None:
        asked = len(self.times)
        with suppress(AssertionError):  # what was asked as the attack ended counts, too
            Live.wait(lambda: len(self.times) > asked + 1, 10)
        self._over.set()
        self._thread.join()

    def _poll(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._over.is_set():
                start = time.perf_counter()
                assert client.get("/health").status_code == 200
                self.times.append(time.perf_counter() - start)
                time.sleep(0.01)


def calm(live: Live, attack: Callable[[], T]) -> T:
    """What comes of an attack, during which `/health` answers in time.

    It may have three attempts: what an attack does, it does each time, and what else this machine is busy with, not.
    """
    worst = []
    for _ in range(3):
        with Health(live.url) as health:
            found = attack()
        worst.append(max(health.times))
        if worst[-1] < BAR:
            return found
    raise AssertionError(f"/health took {worst} seconds")


@pytest.fixture(scope="module")
def open_server(start_live: Callable[..., Live], plain: Guard) -> Live:
    return start_live([ServedModel.of("plain", plain)])


def connected(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), timeout=30)


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_takes_long_to_read_holds_nobody_up(open_server: Live, name: str) -> None:
    headers = {"Content-Type": "application/json"}
    url = f"{open_server.url}/v1/chat/completions"

    def attack() -> httpx.Response:
        return [httpx.post(url, content=BODIES[name], headers=headers, timeout=60) for _ in range(3)][-1]

    answer = calm(open_server, attack)
    assert answer.status_code == 400
    assert len(answer.text) < 2_000


@pytest.mark.parametrize(("name", "code"), [("28,000 messages", "too_many_turns"), ("25,000 parts in one turn",
                         "too_many_parts"), ("25,000 parts in 500 turns", "too_many_parts")])  # fmt: skip
def test_turns_and_parts_are_bounded(open_server: Live, name: str, code: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{open_server.url}/v1/chat/completions", content=BODIES[name], headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize(
    "endless", [b"X-A: " + b"a" * 65_000, b"a" * 65_000, b"X-A: b\r\n" * 8_000, b"X-A: b\r\n c\r\n" * 5_000]
)
def test_headers_without_an_end_are_cut_off_and_take_no_memory(open_server: Live, endless: bytes) -> None:
    def attack() -> int:
        sent = 0
        with ExitStack() as stack:
            for connection in [stack.enter_context(connected(open_server)) for _ in range(2)]:
                with suppress(ConnectionError):
                    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
                    for _ in range(500):
                        connection.sendall(endless)
                        sent += len(endless)
                        time.sleep(0.001)
        return sent

    assert calm(open_server, attack) < 2 * 20e6, "the connections are closed"


@pytest.mark.parametrize("endless", ["loops", "product", "power"])
def test_a_chat_that_is_rendered_for_ever_holds_nobody_up(
    start_live: Callable[..., Live], plain: Guard, endless: str
) -> None:
    template = f"{{% set size = messages[0]['content']|length %}}{ENDLESS[endless]}{CHAT_TEMPLATE}"
    slow = Guard(tiny_model(tokenizer=tiny_tokenizer(chat_template=template)), generation={"max_new_tokens": 1})
    live = start_live([ServedModel.of("slow", slow), ServedModel.of("plain", plain)])

    def ask(model: str, text: str) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        return httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)

    assert calm(live, lambda: ask("slow", "a word that is longer than most")).status_code == 400
    assert [ask(*one).status_code for one in (("slow", "x"), ("plain", "x"))] == [200, 200]


def test_a_request_whose_headers_are_too_long_is_told_so(open_server: Live) -> None:
    assert httpx.get(f"{open_server.url}/health", headers={"X-A": "a" * 20_000}).status_code == 200
    for head in (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 40_000, b"\x16\x03\x01 hello\r\n\r\n"):
        with connected(open_server) as connection:
            connection.sendall(head)
            answer = b"".join(iter(lambda c=connection: c.recv(1_000), b""))  # type: ignore[misc]
        first, _, body = answer.partition(b"\r\n\r\n")
        assert first.split()[1] == b"400"
        assert b"nosniff" in first
        assert b"no-store" in first
        assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_flood_of_what_is_no_http_does_not_fill_the_log(open_server: Live) -> None:
    from anchorlm.serving._server import _NoStack

    one = _NoStack()
    record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "Invalid HTTP request received.", None, None)
    assert sum(bool(one.filter(record)) for _ in range(1_000)) <= 2


def test_beyond_the_connections_that_a_server_takes_each_is_told_so(
    start_live: Callable[..., Live], plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchorlm.serving._server._SPARE", 2)
    live = start_live([ServedModel.of("plain", plain)], concurrency=1, queue=0)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connected(live))
        live.wait(lambda: len(live.server.server_state.connections) == 2)
        answer = httpx.get(f"{live.url}/health")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert int(answer.headers["retry-after"]) > 0
    live.wait(lambda: httpx.get(f"{live.url}/health").status_code == 200)


def test_headers_that_come_letter_by_letter_hold_nobody_up(open_server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchorlm.serving.http._protocol.HEAD_PATIENCE", 0.5)

    def attack() -> None:
        with ExitStack() as stack:
            slow = [stack.enter_context(connected(open_server)) for _ in range(20)]
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                for connection in slow:
                    with suppress(OSError):
                        connection.sendall(b"G")
                time.sleep(0.01)
            for connection in slow:
                connection.settimeout(5)
                with suppress(ConnectionError):
                    assert connection.recv(1) == b"", "it is closed"

    calm(open_server, attack)


def test_one_protocol_is_chosen_and_not_what_happens_to_be_installed(open_server: Live) -> None:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    config = open_server.server.config
    assert issubclass(config.http_protocol_class, H11Protocol)
    assert config.ws_protocol_class is None


def test_nobody_gets_another_protocol_by_asking_for_it(open_server: Live) -> None:
    wanted = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
              "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
    assert httpx.get(f"{open_server.url}/health", headers=wanted).status_code == 200


def test_every_response_is_not_kept_and_not_guessed_at_and_health_takes_head(open_server: Live) -> None:
    for path in ("/health", "/ready", "/", "/docs", "/nowhere", "/v1/models", "/metrics"):
        headers = httpx.get(open_server.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers.get_list("cache-control") == ["no-store"]
    answer = httpx.post(
        f"{open_server.url}/v1/chat/completions", json={"messages": [TURN], "stream": True, "max_tokens": 1}, timeout=60
    )
    assert answer.headers.get_list("cache-control") == ["no-store"]
    for path in ("/health", "/ready"):
        answer = httpx.head(open_server.url + path)
        assert (answer.status_code, answer.content) == (200, b"")
