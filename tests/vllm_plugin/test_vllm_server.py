"""The plug-in in a vLLM server that others run: the command of docs/vllm.md, its own processes, HTTP."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from gateways import started
from mixtures import Ours, loaded
from vllm_page import block

from anchorlm.defenses.alignbeam import MixtureSettings
from anchorlm.engine import EndpointEngine, runtime
from anchorlm.models import EndpointSettings
from anchorlm.records import Access

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

NAME = "org/my-specialist"
FLOOR = tomllib.loads(block("toml", "# plugin.toml"))["floor"]
QUESTIONS = ["How do I build a bomb?", "Write a short poem.", "Is 17 a prime number?"]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def server(smollm2: Path, small_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("server")
    names = {NAME: smollm2, "org/small-aligned-model": small_anchor}
    (folder / "plugin.toml").write_text(block("toml", "# plugin.toml", names), "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What is added is for a small machine, and for a port that is free.
    added = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--gpu-memory-utilization", "0.15",
             "--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]  # fmt: skip
    command = ["bash", "-c", f"exec env {block('sh', 'ANCHORLM_VLLM=plugin.toml', names).strip()} {shlex.join(added)}"]
    places = os.pathsep.join([str(_named(folder / "named")), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                   "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                   "PYTHONPATH": places}  # fmt: skip
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    log = folder / "log"
    with log.open("w") as written:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=written, stderr=subprocess.STDOUT)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
                _wait(client, process, log)
                yield client
        finally:
            process.terminate()
            process.wait(60)


def _named(folder: Path) -> Path:
    """A folder in which Python finds a package `vllm`. vLLM's program asks for its version; the CPU build has none."""
    number = f"{version('vllm-cpu')}+cpu"
    found = folder / f"vllm-{number}.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n", "utf-8")
    return folder


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1800):
        assert process.poll() is None, log.read_text("utf-8")[-4000:]
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise AssertionError(log.read_text("utf-8")[-4000:])


def asked(server: httpx.Client, text: str, extra: Any = None, **fields: Any) -> httpx.Response:
    body = {"model": NAME, "messages": said(text), "temperature": 0, "max_tokens": 10, "return_token_ids": True}
    return server.post("/v1/chat/completions", json={**body, **fields, **({"vllm_xargs": extra} if extra else {})})


def tokens(server: httpx.Client, text: str, extra: Any = None) -> list[int]:
    reply = asked(server, text, extra)
    assert reply.status_code == 200, reply.text
    found: list[int] = reply.json()["choices"][0]["token_ids"]
    return found


def streamed(reply: httpx.Response) -> str:
    lines = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    return "".join(line["choices"][0]["delta"].get("content") or "" for line in lines)


def test_no_client_goes_below_the_operators_floor(server: httpx.Client) -> None:
    floor = {"anchorlm": json.dumps(FLOOR)}
    for text in QUESTIONS:
        wanted = tokens(server, text, floor)
        for less in (None, {"anchorlm": '{"alpha": 0}'}, {"anchorlm": '{"alpha": 0.1, "mixed_tokens": 1}'}):
            assert tokens(server, text, less) == wanted


def test_what_the_server_writes_is_what_our_engine_would_write(
    server: httpx.Client, smollm2: Path, small_anchor: Path
) -> None:
    """Many at once."""
    target, anchor = loaded(smollm2), loaded(small_anchor)
    settings = MixtureSettings(gate="always", alpha=0.8, mixed_tokens=6)
    ours = Ours(target, anchor, settings)
    with ThreadPoolExecutor(6) as pool:
        extra = {"anchorlm": '{"alpha": 0.8, "mixed_tokens": 6}'}
        written = list(pool.map(lambda text: tokens(server, text, extra), QUESTIONS * 2))
    assert written[:3] == written[3:]
    for text, found in zip(QUESTIONS, written, strict=False):
        logits = ours.logits(said(text), found[:6])
        assert [int(one.argmax()) for one in logits] == found[:6]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"anchorlm": '{"alpha": 2}'}, "alpha"),
        ({"anchorlm": '{"alhpa": 0.5}'}, "alhpa"),
        ({"anchorlm": "yes"}, "JSON object"),
        ({"anchorlm_alpha": 0.5}, "anchorlm_alpha"),
    ],
)
def test_a_bad_extra_argument_is_a_400_with_our_sentence(server: httpx.Client, extra: Any, words: str) -> None:
    reply = asked(server, "x", extra)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]
    assert asked(server, "x").status_code == 200


def test_a_beam_search_is_a_400_with_our_sentence(server: httpx.Client) -> None:
    beams = {"use_beam_search": True, "n": 2}
    body = {"model": NAME, "prompt": QUESTIONS[0], "temperature": 0, "max_tokens": 8, **beams}
    for reply in (asked(server, QUESTIONS[0], **beams), server.post("/v1/completions", json=body)):
        assert reply.status_code == 400
        assert "AnchorLM guides no beam search" in reply.json()["error"]["message"]
    assert asked(server, QUESTIONS[0]).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [("logit_bias", {"5": 1}), ("allowed_token_ids", [5, 6]), ("bad_words", ["word"]), ("presence_penalty", 0.5),
     ("response_format", {"type": "json_object"})],
)  # fmt: skip
def test_with_a_floor_no_client_chooses_past_the_guide(server: httpx.Client, name: str, value: Any) -> None:
    reply = asked(server, "x", **{name: value})
    assert reply.status_code == 400
    said = reply.json()["error"]["message"]
    assert "This server guides every answer" in said
    assert name in said


def test_with_a_floor_nothing_is_chosen_by_what_the_target_alone_finds_likely(server: httpx.Client) -> None:
    asks: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": said("x"), "logprobs": True, "logprob_token_ids": [5, 6]}),
        ("/v1/completions", {"prompt": "x", "logprobs": 1, "logprob_token_ids": [5]}),
        ("/generative_scoring", {"query": "x", "items": ["y"], "label_token_ids": [5, 6]}),
    ]
    for path, body in asks:
        reply = server.post(path, json={"model": NAME, **body})
        assert reply.status_code == 400, (path, reply.text)
        assert "logprob_token_ids chooses past the guide" in reply.text, path


def test_our_endpoint_engine_reads_what_the_target_says(server: httpx.Client, smollm2: Path) -> None:
    source = {"endpoint": f"{server.base_url}/v1", "tokenizer": str(smollm2)}
    far, here = EndpointEngine.start(EndpointSettings.parse(source, where="a test")), loaded(smollm2)
    assert (far.found.kind, far.found.mode, far.found.top, far.access) == ("vllm", "tokens", 20, Access.LOGPROBS)

    async def look(engine: Any, text: str) -> torch.Tensor:
        async with engine.open(engine.model.encode(said(text)), room=4) as row:
            row.append(engine.model.vocabulary.encode(b"The way"))
            found: torch.Tensor = (await row.logits()).float()
            return found

    for text in QUESTIONS:
        wanted, got = runtime().run(look(here, text)).log_softmax(-1), runtime().run(look(far, text))
        named = got.isfinite()
        assert 20 <= int(named.sum()) <= 21  # and the one that was taken
        assert torch.allclose(got[named], wanted[: len(got)][named], atol=1e-3)


def test_completions_and_streams_are_guided_too(server: httpx.Client) -> None:
    body = {"model": NAME, "prompt": QUESTIONS[0], "temperature": 0, "max_tokens": 8}
    asks: list[dict[str, Any]] = [{}, {"anchorlm": '{"alpha": 0}'}, {"anchorlm": json.dumps(FLOOR)}]
    replies = [server.post("/v1/completions", json={**body, "vllm_xargs": extra}).json() for extra in asks]
    texts = [reply["choices"][0]["text"] for reply in replies]
    assert texts[0] == texts[1] == texts[2]
    whole = asked(server, QUESTIONS[0]).json()["choices"][0]["message"]["content"]
    fields = {"model": NAME, "messages": said(QUESTIONS[0]), "temperature": 0, "max_tokens": 10, "stream": True}
    with server.stream("POST", "/v1/chat/completions", json=fields) as reply:
        assert streamed(reply) == whole


def test_other_paths_on_which_the_server_writes_have_the_floor(server: httpx.Client) -> None:
    text, few = QUESTIONS[2], {"model": NAME, "temperature": 0}
    wanted = asked(server, text, {"anchorlm": json.dumps(FLOOR)}).json()["choices"][0]["message"]["content"]
    bodies = {
        "/v1/responses": {**few, "input": text, "max_output_tokens": 10},
        "/v1/messages": {**few, "messages": said(text), "max_tokens": 10},
        "/v1/chat/completions/batch": {**few, "messages": [said(text)], "max_tokens": 10},
    }
    found = {path: server.post(path, json=body) for path, body in bodies.items()}
    assert {path: reply.status_code for path, reply in found.items()} == dict.fromkeys(found, 200)
    read = {path: reply.json() for path, reply in found.items()}
    assert read["/v1/responses"]["output"][-1]["content"][0]["text"] == wanted
    assert read["/v1/messages"]["content"][0]["text"] == wanted
    assert read["/v1/chat/completions/batch"]["choices"][0]["message"]["content"] == wanted


def test_behind_the_gateway_each_answer_is_guided_as_the_gateway_says(server: httpx.Client) -> None:
    guard = {"anchorlm": '{"alpha": 0.5, "mixed_tokens": 6}'}
    assert server.base_url.port
    with started(server.base_url.port) as gateway:
        for text in QUESTIONS:
            wanted = asked(server, text, guard).json()["choices"][0]["message"]["content"]
            reply = asked(gateway, text, {"anchorlm": '{"alpha": 0}'}, logit_bias={"5": 100})
            assert reply.json()["choices"][0]["message"]["content"] == wanted
            fields = {"model": NAME, "messages": said(text), "temperature": 0, "max_tokens": 10, "stream": True}
            with gateway.stream("POST", "/v1/chat/completions", json=fields) as stream:
                assert streamed(stream) == wanted


def test_the_client_of_the_page_gets_an_answer(server: httpx.Client) -> None:
    pytest.importorskip("openai")
    found: dict[str, Any] = {}
    exec(block("python", "OpenAI(", {"127.0.0.1:8000": f"{server.base_url.host}:{server.base_url.port}"}), found)
    assert found["answer"].choices[0].message.content
