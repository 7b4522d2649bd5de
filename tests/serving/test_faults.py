from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import torch
from factories import tiny_model
from serving.servers import SECRET, Live

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import RubricJudge
from anchorlm.records import TextDelta, UserError
from anchorlm.serving import ModelServing, ServedModel, ServerSettings
from anchorlm.serving._state import ServerState
from anchorlm.serving.ops._audit import Audit
from anchorlm.serving.session._answers import Answer
from anchorlm.serving.session._session import RequestSession

TURN = [{"role": "user", "content": f"Where is the {SECRET}?"}]
REFUSAL = "I'm sorry, but I can't help with that."


def raising(messages: Any, response: str) -> float:
    raise OSError(f"no model at /secret/place for {messages}")


async def hanging(messages: Any, response: str) -> float:
    await asyncio.sleep(3_600)
    return 0.0


async def slow(messages: Any, response: str) -> float:
    await asyncio.sleep(0.5)
    return 0.0


@pytest.fixture(scope="module")
def faulty(start_live: Callable[..., Live], make_guard: Callable[..., Guard], plain: Guard) -> Live:
    nan_target = tiny_model("llama", seed=1)
    with torch.no_grad():
        nan_target.model.get_output_embeddings().weight[3] = float("nan")
    served = {
        "raises": make_guard(raising),
        "nan": make_guard(lambda messages, response: float("nan")),
        "hangs": make_guard(hanging),
        "broken-anchor": Guard(
            plain.defense.target, "alignbeam", anchor=LocalEngine(nan_target), judge=lambda messages, response: 0.0
        ),
        "broken-target": Guard(LocalEngine(nan_target)),
    }
    return start_live([ServedModel.of(id, guard, judge_timeout=0.3) for id, guard in served.items()])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["raises", "nan", "hangs", "broken-anchor", "broken-target"])
def test_what_cannot_be_defended_is_refused(
    faulty: Live, model: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    defense = faulty.state.models[model].guard.defense.name
    before = faulty.value("fail_closed_total", model=model, defense=defense)
    with caplog.at_level(logging.INFO):
        answer = faulty.client().chat.completions.create(model=model, messages=TURN, stream=stream)
        if stream:
            chunks = list(answer)
            text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            told = next(chunk.model_dump()["anchorlm"] for chunk in chunks if chunk.choices[0].finish_reason)
        else:
            text, told = answer.choices[0].message.content, answer.model_dump()["anchorlm"]
    assert text == REFUSAL
    assert told["decision"] == "fail_closed"
    assert faulty.value("fail_closed_total", model=model, defense=defense) == before + 1
    assert "failed closed" in caplog.text
    assert SECRET not in caplog.text + json.dumps(told)
    assert "/secret/place" not in caplog.text + json.dumps(told)


def halting(guard: Guard) -> Guard:
    """The same guard, whose defense speaks, and then fails."""

    async def respond(request: Any) -> Any:
        yield TextDelta("Once upon ", (1,))
        await asyncio.sleep(0)
        raise RuntimeError("the hook is gone")

    own, defense = copy(guard), copy(guard.defense)
    defense.respond = respond  # type: ignore[method-assign]
    own.defense = defense
    return own


def test_an_answer_that_fails_halfway_goes_on_no_further(start_live: Callable[..., Live], plain: Guard) -> None:
    live = start_live([ServedModel.of("halting", halting(plain))])
    whole = live.client().chat.completions.create(model="halting", messages=TURN)
    assert whole.choices[0].message.content == REFUSAL
    chunks = list(live.client().chat.completions.create(model="halting", messages=TURN, stream=True))
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == "Once upon "
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert chunks[-1].model_dump()["anchorlm"]["decision"] == "fail_closed"


def test_a_full_queue_says_when_to_come_back_and_loses_nobody(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard]
) -> None:
    live = start_live([ServedModel.of("slow", make_guard(slow))], concurrency=1, queue=2)

    told: list[tuple[str, int]] = []

    def ask(_: int) -> str | None:
        try:
            answer = live.client().chat.completions.create(model="slow", messages=TURN)
        except openai.RateLimitError as error:
            body: Any = error.body
            told.append((body["code"], int(error.response.headers["retry-after"])))
            return None
        return str(answer.choices[0].message.content)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(ask, range(8)))
    answered = [text for text in outcomes if text is not None]
    assert 3 <= len(answered) < 8
    assert len(set(answered)) == 1
    assert len(told) == 8 - len(answered)
    assert all(code == "queue_full" and seconds >= 1 for code, seconds in told)
    assert (live.state.admission.running, live.state.admission.waiting) == (0, 0)


def test_a_deadline_is_kept_and_frees_its_rows(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], target: LocalEngine
) -> None:
    live = start_live([ServedModel.of("hangs", make_guard(hanging))], deadline=2.0, keep_alive=0.1)
    with pytest.raises(openai.APIStatusError) as caught:
        live.client().chat.completions.create(model="hangs", messages=TURN)
    assert caught.value.status_code == 504
    with live.client() as client, pytest.raises(openai.APIError, match="deadline"):
        list(client.chat.completions.create(model="hangs", messages=TURN, stream=True))
    with httpx.stream(
        "POST", f"{live.url}/v1/chat/completions", json={"messages": TURN, "stream": True}, timeout=20
    ) as response:
        lines = list(response.iter_lines())
    assert ": deciding" in lines, "a client that waits for a decision hears that somebody is there"
    events = [line for line in lines if line and not line.startswith(":")]
    assert events[-1] == "data: [DONE]"  # a comment may still follow it, which every client of such streams leaves out
    live.wait(lambda: not target._scheduler.taken and not live.state.admission.running)


def test_a_client_that_does_not_read_holds_no_row(
    start_live: Callable[..., Live], plain: Guard, target: LocalEngine
) -> None:
    live = start_live([ServedModel.of("plain", plain)])
    body = json.dumps({"messages": TURN, "stream": True, "max_tokens": 200}).encode()
    port = int(live.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        connection.recv(10)
        live.wait(lambda: not target._scheduler.taken)


@pytest.mark.parametrize("on_error", ["refuse", "go on"])
def test_a_full_disk_refuses_or_goes_on_as_told(
    start_live: Callable[..., Live], plain: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    live = start_live([ServedModel.of("plain", plain)], audit={"file": tmp_path / "audit.jsonl", "on_error": on_error})

    def ask() -> Any:
        return live.client().chat.completions.create(model="plain", messages=TURN)

    text = ask().choices[0].message.content
    written = (tmp_path / "audit.jsonl").read_bytes()

    def full(self: Audit, data: bytes) -> None:
        assert self._out is not None
        self._out.write(data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Audit, "_write", full)
        if on_error == "refuse":
            with pytest.raises(openai.InternalServerError) as caught:
                ask()
            assert caught.value.status_code == 503
        else:
            assert ask().choices[0].message.content == text
        assert live.value("audit_failures_total") >= 1
    assert (tmp_path / "audit.jsonl").read_bytes() == written, "no half line stays"
    assert ask().choices[0].message.content == text
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["request", "response"] * 2


def test_a_guard_that_fails_its_self_test_never_gets_ready(
    start_live: Callable[..., Live],
    make_guard: Callable[..., Guard],
    plain: Guard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strict, lenient = make_guard(lambda messages, response: 1.0), make_guard()
    for guard, why in ((strict, "does not answer its harmless probe"), (lenient, "does not refuse its harmful probe")):
        live = start_live([ServedModel.of("model", guard)], probe=True)
        answer = httpx.get(f"{live.url}/ready")
        assert answer.status_code == 503
        assert why in answer.json()["wrong"][0]
        assert httpx.get(f"{live.url}/health").status_code == 200
        with pytest.raises(openai.InternalServerError, match="self-test"):
            live.client().chat.completions.create(model="model", messages=TURN)

    with monkeypatch.context() as patch:

        async def failing(served: ServedModel) -> float:
            raise RuntimeError("/secret/place")

        patch.setattr("anchorlm.serving._state.bare_seconds_per_token", failing)
        live = start_live([ServedModel.of("plain", plain)], probe=True)
        assert httpx.get(f"{live.url}/ready").json() == {"status": "failed", "wrong": live.state.wrong}
        assert "RuntimeError" in live.state.wrong[0]
        assert "/secret/place" not in live.state.wrong[0]

    async def hanging(messages: Any, response: str) -> float:
        await asyncio.sleep(60)
        return 0.0

    live = start_live([ServedModel.of("model", make_guard(hanging))], probe=True, deadline=0.5)
    assert "not done with its self-test after 0.5 s" in httpx.get(f"{live.url}/ready").json()["wrong"][0]

    def sensitive(messages: Any, response: str) -> float:
        return 1.0 if "bomb" in str(messages) else 0.0

    good = start_live([ServedModel.of("model", make_guard(sensitive)), ServedModel.of("plain", plain)], probe=True)
    assert httpx.get(f"{good.url}/ready").json() == {"status": "ready"}
    assert set(good.state.metrics.bare) == {"model", "plain"}


def test_a_guard_that_fails_a_later_self_test_gets_no_more_requests_until_it_passes_one(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard]
) -> None:
    broken = False

    def judge(messages: Any, response: str) -> float:
        return 1.0 if broken or "bomb" in str(messages) else 0.0

    live = start_live([ServedModel.of("model", make_guard(judge))], probe=True)

    def ask() -> Any:
        return live.client().chat.completions.create(model="model", messages=TURN)

    assert ask().choices[0].message.content
    broken = True
    asyncio.run(live.state.test_again())
    assert httpx.get(f"{live.url}/ready").json()["status"] == "failed"
    with pytest.raises(openai.InternalServerError, match="self-test"):
        ask()
    broken = False
    asyncio.run(live.state.test_again())
    assert httpx.get(f"{live.url}/ready").json() == {"status": "ready"}
    assert ask().choices[0].message.content


def test_what_a_judge_raises_in_the_self_test_is_told_nowhere(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], caplog: pytest.LogCaptureFixture
) -> None:
    guard = make_guard(raising, probes={"harmless": f"Where is the {SECRET}?"})
    with caplog.at_level(logging.DEBUG):
        live = start_live([ServedModel.of("raises", guard)], probe=True)
        told = httpx.get(f"{live.url}/ready")
    assert (told.status_code, "failed its self-test with OSError" in told.text) == (503, True)
    for text in (told.text, caplog.text):
        assert "OSError" in text
        assert SECRET not in text
        assert "/secret/place" not in text


def test_a_judge_that_hangs_closes_the_answer_before_the_deadline(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard]
) -> None:
    settings = ServerSettings(deadline=3.0)
    assert settings.patience < settings.deadline
    assert ServerSettings().patience == ServerSettings().judge_timeout
    served = ServedModel.of("hangs", make_guard(hanging), judge_timeout=settings.patience)
    answer = start_live([served], deadline=settings.deadline).client().chat.completions.create(
        model="hangs", messages=TURN
    )  # fmt: skip
    assert answer.model_dump()["anchorlm"]["decision"] == "fail_closed"


def test_who_is_not_answered_when_the_server_ends_can_tell(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    live = start_live([ServedModel.of("hangs", make_guard(hanging))], drain=1, keep_alive=0.1, audit={"file": audit})
    url, ask = f"{live.url}/v1/chat/completions", {"messages": TURN}
    said: list[str] = []

    def stream() -> None:
        with httpx.stream("POST", url, json={**ask, "stream": True}, timeout=30) as response:
            said.extend(response.iter_lines())

    with ThreadPoolExecutor(2) as pool:
        whole, streamed = pool.submit(httpx.post, url, json=ask, timeout=30), pool.submit(stream)
        live.wait(lambda: ": deciding" in said and live.state.admission.running == 2)
        live.server.should_exit = True
        assert whole.result().status_code == 500
        with pytest.raises(httpx.RemoteProtocolError):
            streamed.result()
    assert "data: [DONE]" not in said
    live.stop()
    ended = [line for line in map(json.loads, audit.read_text().splitlines()) if line["event"] == "response"]
    assert [line["status"] for line in ended] == [499, 499]


def test_an_error_of_ours_tells_nothing(
    start_live: Callable[..., Live],
    plain: Guard,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    live = start_live([ServedModel.of("plain", plain)])

    def failing(*_: object) -> None:
        raise RuntimeError(f"/secret/place {SECRET}")

    monkeypatch.setattr(live.state, "model", failing)
    with pytest.raises(openai.InternalServerError) as caught:
        live.client().chat.completions.create(model="plain", messages=TURN)
    id = caught.value.response.headers["x-request-id"]
    [logged] = [one.getMessage() for one in caplog.records if id in one.getMessage()]
    assert "RuntimeError at line" in logged
    assert "test_faults.py" in logged
    logged += capsys.readouterr().err
    live.wait(lambda: live.value("requests_total", status="500") == 1)
    assert live.value("requests_total", status="499") == 0
    for text in (json.dumps(caught.value.body), logged):
        assert SECRET not in text
        assert "/secret/place" not in text
        assert "Traceback" not in text


def test_a_body_that_breaks_off_is_not_taken_for_a_request(start_live: Callable[..., Live], plain: Guard) -> None:
    live = start_live([ServedModel.of("plain", plain)])
    whole = json.dumps({"messages": TURN, "max_tokens": 1}).encode()
    with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2]))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(whole) + 1}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + whole)
    live.wait(lambda: live.value("requests_total", status="499") == 1)
    assert live.value("answers_total", model="plain", defense="undefended", decision="answer") == 0


def test_an_error_of_ours_within_a_stream_ends_it(
    start_live: Callable[..., Live], plain: Guard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    live = start_live([ServedModel.of("plain", plain)])

    def failing(*_: object) -> None:
        raise RuntimeError(f"/secret/place {SECRET}")

    for name in ("_out", "summary"):
        with monkeypatch.context() as patch:
            patch.setattr(Answer, name, failing)
            with httpx.stream(
                "POST", f"{live.url}/v1/chat/completions", json={"messages": TURN, "stream": True}, timeout=20
            ) as response:
                said = [line for line in response.iter_lines() if line.startswith("data")]
        assert json.loads(said[-2].removeprefix("data: "))["error"]["type"] == "api_error"
        assert said[-1] == "data: [DONE]"
        assert SECRET not in "".join(said) + caplog.text
    live.wait(lambda: not live.state.admission.running)


def test_a_client_that_does_not_read_keeps_its_turn_only_until_its_answer_is_there(plain: Guard) -> None:
    async def ask() -> tuple[int, int]:
        state = ServerState([ServedModel.of("plain", plain)], ServerSettings())
        request = state.models["plain"].request(TURN, {}, {})
        caller = state.keys.caller(None)
        session = RequestSession(
            "1", state, state.models["plain"], caller, [request], operation="chat", streamed=True, trace=False
        )
        await session.begin()
        pieces = session.pieces()
        await anext(pieces)
        before = state.admission.running
        async with asyncio.timeout(20):
            while state.admission.running:
                await asyncio.sleep(0.01)
        rest = [piece async for piece in pieces]
        assert rest[-1] == (0, None, None)
        await session.end(200)
        return before, state.admission.running

    assert asyncio.run(ask()) == (1, 0)


def test_a_judge_whose_process_is_killed_closes_the_answers(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard]
) -> None:
    judging = (
        "from http.server import *\n"
        "class H(BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b'0.0')\n"
        "    def log_message(self, *_): pass\n"
        "s = HTTPServer(('127.0.0.1', 0), H); print(s.server_port, flush=True); s.serve_forever()"
    )
    with subprocess.Popen([sys.executable, "-c", judging], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        live = start_live(
            [ServedModel.of("judged", make_guard(lambda messages, response: float(httpx.get(url, timeout=10).text)))]
        )

        def ask() -> Any:
            return live.client().chat.completions.create(model="judged", messages=TURN).model_dump()

        assert ask()["anchorlm"]["decision"] == "answer"
        process.kill()
    told = ask()
    assert (told["anchorlm"]["decision"], told["choices"][0]["message"]["content"]) == ("fail_closed", REFUSAL)


def test_an_anchor_that_says_nothing_closes_the_answer(start_live: Callable[..., Live], target: LocalEngine) -> None:
    class Silent:
        """Every sequence of it waits for ever."""

        def __getattr__(self, name: str) -> Any:
            return getattr(target, name)

        @asynccontextmanager
        async def open(self, ids: Any, **sizes: Any) -> AsyncIterator[Any]:
            async def logits() -> None:
                await asyncio.sleep(3_600)

            async with target.open(ids, **sizes) as sequence:
                yield SimpleNamespace(
                    logits=logits, ids=sequence.ids, prompt_length=sequence.prompt_length, crop=sequence.crop,
                    append=sequence.append, fork=sequence.fork, close=sequence.close,
                )  # fmt: skip

    guard = Guard(target, "alignbeam", anchor=Silent(), judge=lambda messages, response: 0.0)
    live = start_live([ServedModel.of("silent", guard, judge_timeout=0.3)])
    told = live.client().chat.completions.create(model="silent", messages=TURN).model_dump()
    assert (told["anchorlm"]["decision"], told["choices"][0]["message"]["content"]) == ("fail_closed", REFUSAL)


def test_a_prompt_that_is_far_too_long_holds_nobody_up(start_live: Callable[..., Live], plain: Guard) -> None:
    live = start_live([ServedModel.of("plain", plain)])
    client = live.client()
    small = {"model": "plain", "messages": TURN, "max_tokens": 1}
    client.chat.completions.create(**small)
    huge = {"model": "plain", "messages": [{"role": "user", "content": "word " * 190_000}], "n": 8}

    def seconds_of_the_small_one() -> float:
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(client.chat.completions.create, **huge)
            time.sleep(0.05)
            start = time.monotonic()
            client.chat.completions.create(**small)
            took = time.monotonic() - start
            with pytest.raises(openai.BadRequestError, match="shorten it") as caught:
                sent.result()
        assert caught.value.code == "context_length_exceeded"
        return took

    assert any(seconds_of_the_small_one() < 1 for _ in range(3)), "this machine may stand still once, not each time"


def test_a_prompt_that_the_judge_has_no_room_for_is_told_so_and_is_no_alarm(
    start_live: Callable[..., Live], target: LocalEngine
) -> None:
    small = LocalEngine(tiny_model("llama", max_position_embeddings=48))
    judge = RubricJudge(small, template="{prompt}|{response}", max_new_tokens=1)
    live = start_live([ServedModel.of("judged", Guard(target, "best_of_n", judge=judge))])
    with pytest.raises(openai.BadRequestError, match="which reads 48 with an answer: shorten it") as caught:
        live.client().chat.completions.create(model="judged", messages=[{"role": "user", "content": "a b " * 20}])
    assert caught.value.code == "context_length_exceeded"


def test_a_prompt_that_is_a_little_too_long_is_told_so(client: Any, plain: Guard) -> None:
    limit = plain.defense.target.model.context_length
    with pytest.raises(openai.BadRequestError, match=rf"reads {limit} with its answer: shorten it"):
        client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "a b " * 2_000}])


def test_a_prompt_counts_though_one_of_its_answers_fails(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], client: Any
) -> None:
    graded: list[str] = []

    def once(messages: Any, response: str) -> float:
        graded.append(response)
        if len(graded) > 2:  # the first answer has two candidates
            raise OSError("gone")
        return 0.0

    live = start_live([ServedModel.of("once", make_guard(once))])
    one = client.chat.completions.create(model="plain", messages=TURN, max_tokens=1)
    two = live.client().chat.completions.create(model="once", messages=TURN, n=2)
    decisions = [choice["anchorlm"]["decision"] for choice in two.model_dump()["choices"]]
    assert sorted(decisions) == ["answer", "fail_closed"]
    assert two.usage.prompt_tokens == one.usage.prompt_tokens > 0


def test_what_a_plug_in_says_of_its_files_is_told_nobody(
    start_live: Callable[..., Live], plain: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def careless(self: Any, request: Any) -> AsyncIterator[Any]:
        raise UserError("The lists at /srv/secret/place.txt cannot be read: mend them.")
        yield

    live = start_live([ServedModel.of("plain", plain)])
    monkeypatch.setattr(type(plain.defense), "respond", careless)
    with pytest.raises(openai.BadRequestError, match="The lists at a path cannot be read: mend them"):
        live.client().chat.completions.create(model="plain", messages=TURN)


def test_limits_that_cannot_be_are_refused_before_serving(make_guard: Callable[..., Guard]) -> None:
    for limits, sentence in (
        ({"alhpa": [0, 1]}, "no knob of alignbeam"),
        ({"alpha": [0.6, 1]}, "recipe's own alpha is 0.5"),
    ):
        with pytest.raises(UserError, match=sentence):
            ServedModel.of("model", make_guard(), ModelServing(limits=limits))
    with pytest.raises(UserError, match="lower to the higher"):
        ModelServing.parse({"limits": {"alpha": [1, 0.5]}}, where="serve")


def test_serving_leaves_the_guard_as_it_was(make_guard: Callable[..., Guard]) -> None:
    guard = make_guard(raising)
    served = ServedModel.of("model", guard)
    assert guard.on_error == "refuse"
    assert served.guard.on_error == "raise"
    assert guard.chat(TURN).text == REFUSAL


def test_ending_lets_a_stream_finish(start_live: Callable[..., Live], make_guard: Callable[..., Guard]) -> None:
    live = start_live([ServedModel.of("slow", make_guard(slow))])
    stream = live.client().chat.completions.create(model="slow", messages=TURN, stream=True)
    next(iter(stream))
    live.server.should_exit = True
    text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert text == make_guard(slow).chat(TURN).text
    live.stop()
    with pytest.raises(openai.APIConnectionError):
        live.client().chat.completions.create(model="slow", messages=TURN)
