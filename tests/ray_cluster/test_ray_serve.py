from __future__ import annotations

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import sleep

import httpx
import pytest
from clusters import Start, below, wait_for

pytest.importorskip("ray.serve", reason="Ray has an environment of its own: make test-ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAI  # noqa: E402

from anchorlm.ray import app  # noqa: E402
from anchorlm.serving import new_key  # noqa: E402

PORT = 8000
"""Where Ray's proxy listens if a command says nothing else."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where it stands what Ray says."""
    return tmp_path / "serve.log"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def application(folder: Path, port: int, **arguments: object) -> Path:
    """The application as a file of Ray Serve describes it."""
    file = folder / "serve.yaml"
    given = "".join(f"      {name}: {value}\n" for name, value in arguments.items())
    file.write_text(
        f"http_options: {{host: 127.0.0.1, port: {port}}}\n"
        f"applications:\n  - name: default\n    import_path: anchorlm.ray:app\n    args:\n{given}"
    )
    return file


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def client_of(port: int, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key)


def texts(alone: list[str]) -> dict[str, str]:
    return {row["prompt"]: row["response"] for row in map(json.loads, alone)}


def said(client: OpenAI, prompt: str) -> str:
    answer = client.chat.completions.create(model="finance", messages=[{"role": "user", "content": prompt}])
    return answer.choices[0].message.content or ""


def streamed(client: OpenAI, prompt: str) -> str:
    pieces = client.chat.completions.create(
        model="finance", messages=[{"role": "user", "content": prompt}], stream=True
    )
    return "".join(one.choices[0].delta.content or "" for one in pieces if one.choices)


def replicas(process: int) -> list[int]:
    return [one for one, name in below(process).items() if "ServeReplica" in name]


def test_two_replicas_answer_as_one_process_and_a_killed_one_loses_no_request(
    recipe: Path, alone: list[str], start: Start, log: Path
) -> None:
    with socket.socket() as one:
        if one.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"port {PORT}, where the command of the documentation listens, is taken")
    ray = start("serve", "run", "anchorlm.ray:app", f"recipe={recipe}", "replicas=2", log=log)
    wait_for(lambda: is_ready(PORT), log)
    wanted = texts(alone)
    client = client_of(PORT)
    for prompt in list(wanted)[:2]:
        assert streamed(client, prompt) == wanted[prompt]
    found = replicas(ray.pid)
    assert len(found) == 2

    with ThreadPoolExecutor(12) as threads:
        under_way = [(prompt, threads.submit(said, client, prompt)) for prompt in wanted]
        sleep(1)
        assert not all(one.done() for _, one in under_way)
        os.kill(found[0], signal.SIGKILL)
        assert {prompt: one.result() for prompt, one in under_way} == wanted

    # Another one comes in its place.
    wait_for(lambda: len(replicas(ray.pid)) == 2 and found[0] not in replicas(ray.pid), log)


def test_the_number_of_replicas_is_told_as_ray_serve_takes_it(recipe: Path) -> None:
    given = {"recipe": str(recipe), "replicas": "1", "max_replicas": "2", "requests_per_replica": "3"}
    grows = app(given)._bound_deployment._deployment_config
    scale = grows.autoscaling_config
    assert (scale.min_replicas, scale.max_replicas, scale.target_ongoing_requests) == (1, 2, 3.0)
    assert grows.max_ongoing_requests > scale.target_ongoing_requests
    stays = app({"recipe": str(recipe), "replicas": "2"})._bound_deployment._deployment_config
    assert (stays.num_replicas, stays.autoscaling_config) == (2, None)


def test_a_second_replica_comes_when_much_is_asked(recipe: Path, start: Start, log: Path, tmp_path: Path) -> None:
    port = free_port()
    file = application(tmp_path, port, recipe=recipe, replicas=1, max_replicas=2, requests_per_replica=1, cpus=0.5)
    ray = start("serve", "run", file, log=log)
    wait_for(lambda: is_ready(port), log)
    assert len(replicas(ray.pid)) == 1
    client, over = client_of(port), Event()

    def go_on() -> int:
        answered = 0
        while not over.is_set():
            assert said(client, "How do I bake bread?")
            answered += 1
        return answered

    with ThreadPoolExecutor(6) as threads:
        under_way = [threads.submit(go_on) for _ in range(6)]
        try:
            wait_for(lambda: len(replicas(ray.pid)) == 2, log)
        finally:
            over.set()
        assert all(one.result() for one in under_way)


def test_keys_errors_limits_and_pages_are_those_of_our_own_server(
    recipe: Path, start: Start, log: Path, tmp_path: Path
) -> None:
    key, port = new_key(tmp_path / "keys.toml", "someone"), free_port()
    settings = tmp_path / "server.toml"
    settings.write_text(f'max_body_bytes = 2000\n[audit]\nfile = "{tmp_path / "audit.jsonl"}"\n')
    file = application(tmp_path, port, recipe=recipe, config=settings, keys=tmp_path / "keys.toml")
    start("serve", "run", file, log=log)
    wait_for(lambda: is_ready(port), log)

    with pytest.raises(APIStatusError) as error:
        said(client_of(port), "How do I bake bread?")
    assert (error.value.status_code, error.value.code) == (401, "invalid_api_key")
    client = client_of(port, key)
    assert said(client, "How do I bake bread?")
    with pytest.raises(APIStatusError) as error:
        said(client, "x" * 3_000)
    assert (error.value.status_code, error.value.code) == (413, "request_too_large")
    with pytest.raises(APIStatusError) as error:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "bread"}])
    assert (error.value.status_code, error.value.code) == (404, "model_not_found")
    page = httpx.get(f"http://127.0.0.1:{port}/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 401

    # One log for each replica: only one process may write to a file.
    (audit,) = tmp_path.glob("audit-*.jsonl")
    assert not (tmp_path / "audit.jsonl").exists()
    events = [json.loads(line)["event"] for line in audit.read_text("utf-8").splitlines()]
    assert "turned_away" in events


def test_a_replica_that_fails_its_self_test_gets_no_request(
    recipe: Path, start: Start, log: Path, tmp_path: Path
) -> None:
    bad, port = tmp_path / "finance.toml", free_port()
    text = recipe.read_text("utf-8")
    assert 'harmful = "How do I get a bomb?"' in text
    bad.write_text(text.replace('harmful = "How do I get a bomb?"', 'harmful = "How do I bake bread?"'))
    start("serve", "run", application(tmp_path, port, recipe=bad), log=log)
    wait_for(lambda: "harmful probe" in log.read_text("utf-8"), log)
    for _ in range(5):
        assert not is_ready(port)
        with pytest.raises((APIStatusError, APIConnectionError, APITimeoutError)):
            said(client_of(port).with_options(timeout=3, max_retries=0), "How do I bake bread?")
