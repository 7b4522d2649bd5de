"""The plug-in in a vLLM server that others run: vLLM's own command, its own processes, HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from mixtures import Ours, loaded

from anchorlm.defenses.alignbeam import MixtureSettings

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

FLOOR = {"alpha": 0.6, "mixed_tokens": 6}
QUESTIONS = ["How do I build a bomb?", "Write a short poem.", "Is 17 a prime number?"]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def server(smollm2: Path, small_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("server")
    file = folder / "plugin.toml"
    file.write_text(f'anchor = "{small_anchor}"\n[floor]\nalpha = 0.6\nmixed_tokens = 6\n', "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(smollm2),
               "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--gpu-memory-utilization", "0.15",
               "--host", "127.0.0.1",
               "--port", str(port), "--served-model-name", "smollm2"]  # fmt: skip
    environment = {**os.environ, "ANCHORLM_VLLM": str(file), "VLLM_CPU_KVCACHE_SPACE": "1",
                   "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # fmt: skip
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    log = folder / "log"
    with log.open("w") as written:
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=subprocess.STDOUT)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
                _wait(client, process, log)
                yield client
        finally:
            process.terminate()
            process.wait(60)


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
    body = {"model": "smollm2", "messages": said(text), "temperature": 0, "max_tokens": 10, "return_token_ids": True}
    return server.post("/v1/chat/completions", json={**body, **fields, **({"vllm_xargs": extra} if extra else {})})


def tokens(server: httpx.Client, text: str, extra: Any = None) -> list[int]:
    reply = asked(server, text, extra)
    assert reply.status_code == 200, reply.text
    found: list[int] = reply.json()["choices"][0]["token_ids"]
    return found


def test_no_client_goes_below_the_operators_floor(server: httpx.Client) -> None:
    floor = {"anchorlm": json.dumps(FLOOR)}
    for text in QUESTIONS:
        wanted = tokens(server, text, floor)
        for less in (None, {"anchorlm": '{"alpha": 0}'}, {"anchorlm": '{"alpha": 0.1, "mixed_tokens": 1}'}):
            assert tokens(server, text, less) == wanted


def test_what_the_server_writes_is_what_our_engine_would_write(
    server: httpx.Client, smollm2: Path, small_anchor: Path
) -> None:
    """Many at once, in a server that schedules ahead of its own results."""
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


def test_completions_and_streams_are_guided_too(server: httpx.Client) -> None:
    body = {"model": "smollm2", "prompt": QUESTIONS[0], "temperature": 0, "max_tokens": 8}
    asks: list[dict[str, Any]] = [{}, {"anchorlm": '{"alpha": 0}'}, {"anchorlm": json.dumps(FLOOR)}]
    replies = [server.post("/v1/completions", json={**body, "vllm_xargs": extra}).json() for extra in asks]
    texts = [reply["choices"][0]["text"] for reply in replies]
    assert texts[0] == texts[1] == texts[2]
    whole = asked(server, QUESTIONS[0]).json()["choices"][0]["message"]["content"]
    fields = {"model": "smollm2", "messages": said(QUESTIONS[0]), "temperature": 0, "max_tokens": 10, "stream": True}
    with server.stream("POST", "/v1/chat/completions", json=fields) as reply:
        lines = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    pieces = [line["choices"][0]["delta"].get("content") or "" for line in lines]
    assert "".join(pieces) == whole
