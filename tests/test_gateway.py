"""The gateway of docs/vllm.md, started as the page says, in front of a server that shows what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from gateways import started
from vllm_page import PAGE

from anchorlm.vllm._settings import Asked

pytestmark = pytest.mark.slow

ASKED = {
    "model": "m",
    "messages": [{"role": "user", "content": "How do I bake bread?"}],
    "temperature": 0.5,
    "max_tokens": 8,
}


class Upstream:
    """Notes what comes, and answers in two pieces: the second when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.go_on, self.left = threading.Event(), threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                upstream.asked.append((self.path, body, self.headers["Authorization"]))
                if body["model"] != "m":
                    return self._head(404, "application/json", b'{"error": {"message": "no such model"}}')
                if not body.get("stream"):
                    return self._head(200, "application/json", b'{"choices": []}')
                self._head(200, "text/event-stream", b"data: 1\n\n")
                if body["max_tokens"] > 8:
                    if self.connection.recv(1) == b"":  # who asked has gone
                        upstream.left.set()
                    return None
                upstream.go_on.wait(20)
                self.wfile.write(b"data: [DONE]\n\n")
                return None

            def _head(self, status: int, kind: str, data: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    found = Upstream()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[httpx.Client]:
    with started(upstream.server.server_port) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_gateway_takes_the_clients_wish_away_and_adds_its_own(
    path: str, gateway: httpx.Client, upstream: Upstream
) -> None:
    wish = {"vllm_xargs": {"anchorlm": '{"alpha": 0}'}, "logit_bias": {"1": 100}, "logprob_token_ids": [1], "top_k": 1}
    answer = gateway.post(path, json=ASKED | wish, headers={"Authorization": "Bearer mine"})
    assert (answer.status_code, answer.json()) == (200, {"choices": []})
    came, body, key = upstream.asked[-1]
    own = body.pop("vllm_xargs")
    assert (came, body, key) == (path, ASKED, "Bearer mine")
    asked = Asked.read(own)
    assert asked is not None
    assert (asked.alpha, asked.mixed_tokens) == (0.5, 6)
    assert f"\"anchorlm\": '{own['anchorlm']}'" in PAGE.read_text("utf-8")


def test_a_field_that_is_written_twice_is_still_removed(gateway: httpx.Client, upstream: Upstream) -> None:
    twice = '{"vllm_xargs": {"anchorlm": "{}"}, "vllm_xargs": {"anchorlm": "no"}, ' + json.dumps(ASKED)[1:]
    assert gateway.post("/v1/completions", content=twice).status_code == 200
    assert upstream.asked[-1][1].keys() == ASKED.keys() | {"vllm_xargs"}
    assert "0.5" in upstream.asked[-1][1]["vllm_xargs"]["anchorlm"]


def test_a_stream_comes_through_piece_by_piece(gateway: httpx.Client, upstream: Upstream) -> None:
    upstream.go_on.clear()
    with gateway.stream("POST", "/v1/chat/completions", json=ASKED | {"stream": True}) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        parts = answer.iter_bytes()
        assert next(parts) == b"data: 1\n\n"
        upstream.go_on.set()
        assert b"".join(parts) == b"data: [DONE]\n\n"


def test_as_many_streams_as_come_go_through_at_once(gateway: httpx.Client, upstream: Upstream) -> None:
    upstream.go_on.clear()
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=gateway.base_url, limits=limits, timeout=10) as client, ExitStack() as open_streams:
        streams = []
        for _ in range(110):
            asked = client.stream("POST", "/v1/completions", json=ASKED | {"stream": True})
            streams.append(open_streams.enter_context(asked).iter_bytes())
            assert next(streams[-1]) == b"data: 1\n\n"
        upstream.go_on.set()
        assert {b"".join(stream) for stream in streams} == {b"data: [DONE]\n\n"}


def test_a_client_that_leaves_ends_the_servers_work(gateway: httpx.Client, upstream: Upstream) -> None:
    with gateway.stream("POST", "/v1/completions", json=ASKED | {"stream": True, "max_tokens": 9}) as answer:
        parts = answer.iter_bytes()  # kept: httpx ends the request as soon as it is dropped
        assert next(parts) == b"data: 1\n\n"
        assert not upstream.left.wait(0.2)
    assert upstream.left.wait(10)


def test_an_error_of_the_server_comes_through(gateway: httpx.Client) -> None:
    answer = gateway.post("/v1/completions", json=ASKED | {"model": "other"})
    assert (answer.status_code, answer.json()) == (404, {"error": {"message": "no such model"}})


@pytest.mark.parametrize("body", ["", "[]", "1", "{", "[" * 100_000, '{"seed": NaN}', '{"model": "\\ud800"}'])
def test_a_body_that_is_no_object_does_not_reach_the_server(
    body: str, gateway: httpx.Client, upstream: Upstream
) -> None:
    before = len(upstream.asked)
    assert gateway.post("/v1/completions", content=body).status_code == 400
    assert len(upstream.asked) == before


@pytest.mark.parametrize("path", ["/v1/responses", "/inference/v1/generate", "/tokenize", "/v1/models"])
def test_other_paths_of_the_server_are_shut(path: str, gateway: httpx.Client, upstream: Upstream) -> None:
    before = len(upstream.asked)
    assert gateway.post(path, json=ASKED).status_code == 404
    assert len(upstream.asked) == before
