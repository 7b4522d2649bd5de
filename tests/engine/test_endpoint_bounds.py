"""A server gets no more connections than it should, and is not asked again more often, or sooner, than it should."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from endpoints import Endpoint, readable
from factories import tiny_model

from anchorlm.engine import EndpointEngine, _endpoint_http, runtime
from anchorlm.engine._endpoint_http import Caller, client
from anchorlm.models import CausalModel, EndpointSettings
from anchorlm.records import DefenseError, GenerationSettings

TURNS = [{"role": "user", "content": "How do I bake bread?"}]
REQUESTS, CONNECTIONS = 32, 4
GREEDY = GenerationSettings(max_new_tokens=4)


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return readable(tiny_model("llama"))


@pytest.fixture
def endpoint(model: CausalModel) -> Iterator[Endpoint]:
    found = Endpoint(model)
    yield found
    found.stop()


def settings(url: str, **more: Any) -> EndpointSettings:
    return EndpointSettings.parse({"endpoint": url, **more}, where="a test")


async def whole(far: EndpointEngine, ids: list[int]) -> str:
    async with far.open(ids, room=4) as row:
        answer = await row.generate(GREEDY)
    return answer.text


async def in_pieces(far: EndpointEngine, ids: list[int]) -> str:
    async with far.open(ids, room=4) as row:
        written: bytes = far.model.vocabulary.decode([token async for token in row.stream(GREEDY)])
    return written.decode()


@pytest.mark.parametrize("write", [whole, in_pieces])
def test_requests_at_once_share_a_few_connections_that_are_kept(
    write: Callable[[EndpointEngine, list[int]], Coroutine[Any, Any, str]],
    endpoint: Endpoint,
    model: CausalModel,
    tmp_path: Path,
) -> None:
    model.tokenizer.save_pretrained(tmp_path)
    far = EndpointEngine.start(settings(endpoint.url, connections=CONNECTIONS, tokenizer=str(tmp_path)))
    before = len(endpoint.asked)

    async def all_at_once() -> Sequence[str]:
        return await asyncio.gather(*(write(far, model.encode(TURNS)) for _ in range(REQUESTS)))

    answers = runtime().run(all_at_once())
    assert len(answers) == REQUESTS
    assert len(set(answers)) == 1
    assert answers[0]
    assert len(endpoint.asked) - before == REQUESTS
    assert endpoint.most_open == CONNECTIONS
    assert endpoint.connects == CONNECTIONS


def test_as_many_connections_as_the_setting_says_are_open_at_once_and_are_all_kept() -> None:
    """More than an HTTP client would keep by itself."""
    most, connects, left, waiting = 140, 0, 0, 0
    goes_on = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connects, left, waiting
        connects += 1
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                waiting += 1
                assert waiting <= most
                await goes_on.wait()
                waiting -= 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()
        left += 1

    async def ask() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=most)
        caller = Caller(settings(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", connections=most))
        for _ in range(2):
            goes_on.clear()
            calls = [asyncio.ensure_future(caller.get("/models")) for _ in range(most + 8)]
            async with asyncio.timeout(60):
                while waiting < most:
                    await asyncio.sleep(0.05)
            goes_on.set()
            assert await asyncio.gather(*calls) == [{}] * len(calls)
        await client().aclose()
        while left < connects:
            await asyncio.sleep(0.05)
        server.close()

    asyncio.run(ask())
    assert connects == most


class Failing:
    """A server that always fails, and notes when it was asked.

    Args:
        headers: Of its answers.
    """

    def __init__(self, **headers: str) -> None:
        self.times: list[float] = []
        noted = self.times

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                noted.append(monotonic())
                self.send_response(503)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def asked(self, **given: Any) -> tuple[str, float]:
        """What is said at last, and after how many seconds."""
        before = monotonic()
        with pytest.raises(DefenseError) as raised:
            runtime().run(Caller(settings(self.url, **given)).get("/models"))
        took = monotonic() - before
        self._server.shutdown()
        self._server.server_close()
        return str(raised.value), took

    @property
    def pauses(self) -> list[float]:
        """Between two times."""
        return [after - before for before, after in pairwise(self.times)]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_call_is_sent_again_as_often_as_the_setting_says_with_growing_pauses(retries: int) -> None:
    server = Failing()
    said, _ = server.asked(retries=retries)
    assert "fails (HTTP status 503)" in said
    assert len(server.times) == 1 + retries
    for number, pause in enumerate(server.pauses):
        assert pause >= 0.125 * 2**number


def test_a_server_is_given_the_time_that_it_asks_for() -> None:
    server = Failing(**{"Retry-After": "1"})
    server.asked(retries=1)
    assert len(server.times) == 2
    assert server.pauses[0] >= 1


@pytest.mark.parametrize("asked", ["nan", "inf", "-inf", "-5", "1e999", "soon"])
def test_a_wait_that_is_no_time_is_passed_over(asked: str) -> None:
    server = Failing(**{"Retry-After": asked})
    said, took = server.asked(retries=2, timeout=20)
    assert "fails (HTTP status 503)" in said
    assert len(server.times) == 3
    assert took < 15


def test_the_timeout_holds_for_all_tries_together() -> None:
    """A pause that would last longer is not waited for."""
    server = Failing(**{"Retry-After": "50"})
    said, took = server.asked(retries=20, timeout=20)
    assert "fails (HTTP status 503)" in said
    assert len(server.times) == 1
    assert took < 20
    growing = Failing()
    _, took = growing.asked(retries=20, timeout=2)
    assert 1 < len(growing.times) <= 5
    assert took < 20  # all tries would take minutes


def test_a_stream_has_all_of_its_time_when_its_turn_comes(
    endpoint: Endpoint, model: CausalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a whole answer has: the time in which others hold the connections is not the server's."""
    model.tokenizer.save_pretrained(tmp_path)
    far = EndpointEngine.start(settings(endpoint.url, connections=1, tokenizer=str(tmp_path)))
    late = 0.0
    monkeypatch.setattr(_endpoint_http, "monotonic", lambda: monotonic() + late)

    async def wait() -> tuple[str, str]:
        nonlocal late
        async with far._caller._place():
            waiting = [asyncio.ensure_future(write(far, model.encode(TURNS))) for write in (whole, in_pieces)]
            for _ in range(50):
                await asyncio.sleep(0)
            late = 1000.0
        one, other = await asyncio.gather(*waiting)
        return one, other

    one, other = runtime().run(wait())
    assert one == other != ""
