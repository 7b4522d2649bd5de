"""Whatever a server says is read, or is an error of the library's own; no number of it makes us work without end."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from endpoints import readable
from factories import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlm.engine import EndpointEngine, runtime
from anchorlm.engine._endpoint_http import Caller
from anchorlm.engine._endpoint_probe import probe
from anchorlm.engine._endpoint_reading import Reader
from anchorlm.engine._endpoint_replies import UnusableError, read_reply, read_step
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from anchorlm.models import EndpointModel, EndpointSettings
from anchorlm.records import AnchorLMError, DefenseError, GenerationSettings
from anchorlm.tokens import in_pieces, piece_bytes

TURNS = [{"role": "user", "content": "How do I bake bread?"}]
HUGE = 10**400
LENIENT = CallableJudge(lambda messages, response: 0.0, name="lenient")

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([HUGE, -HUGE, 10**9, 1])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["stop", "length", "bytes:\\xe2", "token:1", "token_id:" + "9" * 5000, "\ud800", " " * 40])
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def nearly(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of its fields. Sometimes something else."""
    return st.fixed_dictionaries({}, optional=fields) | LEAVES


TOKEN = st.text(max_size=4) | st.sampled_from(["token:1", "token_id:" + "9" * 5000, "bytes:\\xe2", " " * 40, "\ud800"])
LOGPROB = st.floats(-5, 0) | st.sampled_from([0, -1, None, -HUGE, HUGE, math.nan, -math.inf, True, "-1"])
NAMED = LEAVES | st.fixed_dictionaries(
    {"token": TOKEN | LEAVES, "logprob": LOGPROB},
    optional={"id": LEAVES, "bytes": st.lists(st.integers(-1, 256), max_size=3) | LEAVES},
)
ENTRY = st.fixed_dictionaries(
    {"token": TOKEN, "logprob": LOGPROB},
    optional={"top_logprobs": st.lists(NAMED, max_size=3) | ANYTHING, "id": LEAVES, "bytes": LEAVES},
)
TOPS = st.dictionaries(TOKEN, LOGPROB, max_size=3) | st.lists(NAMED, max_size=2) | LEAVES
OLDER = st.integers(1, 2).flatmap(
    lambda size: st.fixed_dictionaries({
        "tokens": st.lists(TOKEN, min_size=size, max_size=size) | ANYTHING,
        "token_logprobs": st.lists(LOGPROB, min_size=size, max_size=size),
        "top_logprobs": st.lists(TOPS, min_size=size, max_size=size),
    })
)  # fmt: skip
SAID = st.fixed_dictionaries({"content": st.text(max_size=8) | LEAVES})
CHOICE = st.fixed_dictionaries(
    {
        "text": st.text(max_size=40) | LEAVES,
        "finish_reason": st.just("stop") | LEAVES,
        "logprobs": nearly(content=st.lists(ENTRY | LEAVES, max_size=3)) | OLDER | ANYTHING,
    },
    optional={"message": SAID | ANYTHING, "delta": SAID | ANYTHING, "token_ids": ANYTHING},
)
REPLY = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE, min_size=1, max_size=1)},
    optional={
        "usage": nearly(prompt_tokens=LEAVES, completion_tokens=LEAVES),
        "model": ANYTHING,
        "system_fingerprint": ANYTHING,
    },
)
STEP = nearly(
    text=st.text(max_size=4) | LEAVES,
    meta_info=nearly(
        output_top_logprobs=st.lists(st.lists(st.tuples(LOGPROB, LEAVES, LEAVES) | ANYTHING, max_size=3), max_size=2)
        | ANYTHING,
        finish_reason=nearly(type=LEAVES) | ANYTHING,
        prompt_tokens=LEAVES,
        completion_tokens=LEAVES,
    ),
)
MODEL = st.fixed_dictionaries(
    {"id": st.just("m"), "owned_by": st.sampled_from(["vllm", "llamacpp", "sglang", "x"]) | ANYTHING},
    optional={"meta": nearly(n_ctx=LEAVES) | ANYTHING, "max_model_len": LEAVES, "aliases": ANYTHING},
)
PLACES = st.fixed_dictionaries({
    "/models": st.fixed_dictionaries({"data": st.lists(MODEL, min_size=1, max_size=2) | ANYTHING}) | ANYTHING,
    "/version": nearly(version=LEAVES) | ANYTHING,
    "/server_info": nearly(version=LEAVES) | ANYTHING,
    "/model_info": nearly(model_path=LEAVES, weight_version=LEAVES) | ANYTHING,
    "/generate": STEP | ANYTHING,
    "/props": nearly(build_info=LEAVES, default_generation_settings=nearly(n_ctx=LEAVES) | ANYTHING) | ANYTHING,
    "/tokenize": nearly(tokens=st.lists(LEAVES, max_size=3)) | ANYTHING,
})  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    place: Path = tmp_path_factory.mktemp("tokenizer")
    readable(tiny_model("llama")).tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def models(tokenizer: str) -> tuple[EndpointModel, EndpointModel]:
    """One whose tokenizer is known, and one whose is not."""
    return tuple(EndpointModel.load(at(**more)) for more in ({"tokenizer": tokenizer}, {}))  # type: ignore[return-value]


def at(**more: Any) -> EndpointSettings:
    return EndpointSettings.parse({"endpoint": "http://127.0.0.1:9/v1", **more}, where="a test")


def sent(data: Any) -> Any:
    """As it comes over the wire."""
    return json.loads(json.dumps(data))


@settings(max_examples=500, deadline=None)
@given(data=REPLY | ANYTHING, streamed=st.booleans(), known=st.booleans())
def test_whatever_a_server_answers_is_read_or_refused(
    data: Any, streamed: bool, known: bool, models: tuple[EndpointModel, EndpointModel]
) -> None:
    reader = Reader(models[0 if known else 1], whole=True)
    with suppress(UnusableError):
        reply = read_reply(sent(data), streamed=streamed)
        written = reader.written(reply, "I")
        assert len(written.ids) <= 9 + len(reply.text.encode("utf-8", "replace"))
        logits, unnamed = reader.distribution(reply, b"")
        assert 0 <= unnamed <= 1
        assert not logits.isnan().any()


class Said(Caller):
    """Answers in a server's place with what it was given."""

    def __init__(self, own: EndpointSettings, places: Mapping[str, Any], reply: Any) -> None:
        super().__init__(own)
        self._answers, self._reply = places, reply

    async def get(self, path: str, *, root: bool = False) -> Any:
        return sent(self._answers[path])

    async def post(self, path: str, body: dict[str, Any], *, root: bool = False) -> Any:
        json.dumps(body)
        return sent(self._answers.get(path, self._reply))


@settings(max_examples=500, deadline=None)
@given(data=STEP | ANYTHING)
def test_whatever_a_step_of_sglang_is_it_is_read_or_refused(
    data: Any, models: tuple[EndpointModel, EndpointModel]
) -> None:
    reader = Reader(models[0], whole=False)
    with suppress(UnusableError):
        logits, unnamed = reader.distribution(read_step(sent(data), "m"), b"")
        assert 0 <= unnamed <= 1
        assert not logits.isnan().any()


@settings(deadline=None)
@given(places=PLACES, reply=REPLY | ANYTHING, known=st.booleans())
def test_whatever_a_server_says_of_itself_is_read_or_refused(
    places: Any, reply: Any, known: bool, models: tuple[EndpointModel, EndpointModel]
) -> None:
    model = models[0 if known else 1]
    own = at(**({"tokenizer": "x"} if known else {}))
    with suppress(AnchorLMError):
        found, _ = runtime().run(probe(Said(own, places, reply), own, model))
        assert found.context is None or 1 < found.context < 2**31
        assert isinstance(found.version, str)


@given(data=st.binary(max_size=200), count=st.integers(min_value=1) | st.just(HUGE))
def test_pieces_are_as_many_as_can_be_and_lose_nothing(data: bytes, count: int) -> None:
    ids = in_pieces(data, count)
    assert b"".join(map(piece_bytes, ids)) == data
    assert len(ids) <= len(data) + 1
    if math.ceil(len(data) / 24) <= count <= len(data):
        assert len(ids) == count


class Odd:
    """A server that answers as it is told, and differs from those that are known in one way."""

    def __init__(self) -> None:
        self.model: dict[str, Any] = {"id": "m"}
        self.places: dict[str, Any] = {}
        self.more: dict[str, Any] = {}
        self.choice: dict[str, Any] = {}
        self.pieces: list[str] = []
        odd = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                places = {"/v1/models": {"data": [odd.model]}, **odd.places}
                self._send(200 if self.path in places else 404, places.get(self.path, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                message = {"role": "assistant", "content": "Hi there"}
                if body.get("stream"):
                    events = [{"model": "m", "choices": [{"delta": {"content": piece}}]} for piece in odd.pieces]
                    return self._send(200, b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in events))
                choice = {"index": 0, "message": message, "finish_reason": "stop", **odd.choice}
                return self._send(200, {"model": "m", "choices": [choice], **odd.more})

            def _send(self, status: int, data: Any) -> None:
                payload = data if isinstance(data, bytes) else json.dumps(data).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: Any) -> None:
                pass

        class Roomy(ThreadingHTTPServer):
            request_queue_size = 64  # all samples of a prompt come at once

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client may leave

        self._server = Roomy(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def odd() -> Iterator[Odd]:
    server = Odd()
    yield server
    server.stop()


@pytest.mark.parametrize("count", [100_000_000, HUGE, -1, 0, 3.5, None, "many"], ids=lambda count: str(count)[:12])
def test_a_count_of_tokens_that_cannot_be_does_not_hold_up_a_guard(count: Any, odd: Odd) -> None:
    guard = Guard({"endpoint": odd.url, "retries": 0, "timeout": 20}, "best_of_n", judge=LENIENT)
    odd.more = {"usage": {"prompt_tokens": count, "completion_tokens": count}}
    before = monotonic()
    response = guard.chat(TURNS)
    assert response.text == "Hi there"
    assert len(response.token_ids) <= len("Hi there") + 1
    assert monotonic() - before < 10


LISTS = {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [[{"token": "a", "logprob": -1}]]}
ODD: list[tuple[Any, str]] = [
    (LISTS, "its likeliest tokens are in no known form"),
    ({"content": [{"token": "Hi", "logprob": -HUGE, "top_logprobs": []}]}, "is no log-probability"),
    ({"content": [{"token": "Hi", "logprob": HUGE, "top_logprobs": []}]}, "is no log-probability"),
    ({"content": [{"token": "token_id:" + "9" * 5000, "logprob": -1}]}, "a token has an id that no token has"),
    ({"content": ["Hi"]}, "a log-probability is in no known form"),
]


@pytest.mark.parametrize(("logprobs", "told"), ODD, ids=lambda value: str(value)[:40])
def test_log_probabilities_that_cannot_be_close_the_guard(logprobs: Any, told: str, odd: Odd) -> None:
    guard = Guard({"endpoint": odd.url, "retries": 0}, "best_of_n", judge=LENIENT, refusal="No.")
    odd.choice = {"logprobs": logprobs}
    response = guard.chat(TURNS)
    assert (response.text, response.finish_reason) == ("No.", "refusal")
    (why,) = [one.data["why"] for one in response.trace if one.kind == "fail_closed"]
    assert "gave an answer that cannot be used" in str(why)
    assert told in str(why)


SHAPES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"owned_by": "vllm"}, {"/version": ["0.32"]}),
    ({"owned_by": "vllm", "max_model_len": HUGE}, {"/version": {"version": 32}}),
    ({"owned_by": "llamacpp"}, {"/props": {"default_generation_settings": [1]}}),
    ({"owned_by": "llamacpp", "meta": "x"}, {"/props": {}}),
    ({"owned_by": "llamacpp", "meta": {"n_ctx": "many"}}, {"/props": ["x"]}),
    ({"owned_by": "sglang"}, {"/server_info": "x"}),
    ({"owned_by": ["x"]}, {}),
]


@pytest.mark.parametrize(("model", "places"), SHAPES, ids=str)
def test_what_a_server_says_of_itself_in_another_shape_is_not_known(
    model: dict[str, Any], places: dict[str, Any], odd: Odd
) -> None:
    odd.model, odd.places = {"id": "m", **model}, places
    far = EndpointEngine.start(at(endpoint=odd.url))
    assert (far.found.version, far.found.context) == ("", None)
    assert far.told.endswith("reads an unknown number of tokens")


@pytest.mark.parametrize("known", [True, False])
def test_a_text_that_is_far_longer_than_was_asked_for_is_left_unread(known: bool, odd: Odd, tokenizer: str) -> None:
    own = {"endpoint": odd.url, "retries": 0, **({"tokenizer": tokenizer, "prompts": "chat"} if known else {})}
    guard = Guard(own, "best_of_n", judge=LENIENT, refusal="No.", generation={"max_new_tokens": 64})
    text = "hello there " * 300_000
    odd.choice = {"message": {"role": "assistant", "content": text}}
    before = monotonic()
    response = guard.chat(TURNS)
    assert monotonic() - before < 10
    assert response.text == "No."
    (why,) = [one.data["why"] for one in response.trace if one.kind == "fail_closed"]
    assert "it is longer than 64 tokens can be" in str(why)
    odd.choice = {"message": {"role": "assistant", "content": text[:4000]}}
    assert guard.chat(TURNS).text == text[:4000]


def test_a_stream_that_is_far_longer_than_was_asked_for_ends_there(odd: Odd) -> None:
    guard = Guard({"endpoint": odd.url, "retries": 0}, generation={"max_new_tokens": 64})
    odd.pieces = ["a" * 30_000] * 20
    with pytest.raises(DefenseError, match="it is longer than 64 tokens can be"):
        guard.chat(TURNS)


def test_a_long_text_in_few_tokens_is_kept_whole(odd: Odd) -> None:
    """A token may be 40 spaces, and a server may count as it likes."""
    odd.choice = {"message": {"role": "assistant", "content": "x" + " " * 40 + "y"}}
    odd.more = {"usage": {"completion_tokens": 1}}
    far = EndpointEngine.start(at(endpoint=odd.url))

    async def write() -> str:
        async with far.open(far.model.encode(TURNS), room=64) as row:
            return (await row.generate(GenerationSettings(max_new_tokens=64))).text

    assert runtime().run(write()) == "x" + " " * 40 + "y"
