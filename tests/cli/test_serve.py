from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from typer.testing import Result

from anchorlm import Guard
from anchorlm.cli._serve import described, floored, run
from anchorlm.serving import ApiError, ModelServing, ServedModel, Server, ServerSettings, new_key

Invoke = Callable[..., Result]


def test_a_key_is_shown_once_and_kept_as_a_hash(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    result = invoke("serve", "--new-key", "alice", "--keys", file, "--operator")
    assert result.exit_code == 0, result.stderr
    key = result.stdout.strip()
    assert key.startswith("alm-")
    assert key not in file.read_text()
    assert "operator = true" in file.read_text()
    assert invoke("serve", "--new-key", "alice", "--keys", file).exit_code == 2
    assert "--keys FILE" in invoke("serve", "--new-key", "bob").stderr


@pytest.mark.parametrize(
    ("config", "serve", "sentence"),
    [
        ("prot = 1", "", "has no setting 'prot'"),
        ("port = 70000", "", "port"),
        ("[broken", "", "is not valid TOML"),
        ('keys = "none.toml"', "", "--new-key"),
        ("", "[serve.limits]\nalpha = [0, 1]", "no knob of undefended"),
        ("", "[serve]\nnames = 1", "section serve"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_sentence(
    invoke: Invoke, plain_recipe: Path, tmp_path: Path, config: str, serve: str, sentence: str
) -> None:
    port = "" if "port" in config else "port = 0\n"  # whatever else listens on this machine
    (tmp_path / "server.toml").write_text(port + config)
    (tmp_path / "my.toml").write_text(f"{plain_recipe.read_text()}\n{serve}\n")
    result = invoke("serve", tmp_path / "my.toml", "--config", tmp_path / "server.toml")
    assert result.exit_code == 2
    assert sentence in result.stderr
    said = [line for line in result.stderr.strip().splitlines() if not line.startswith("Loading the models.")]
    assert len(said) == 1


def test_two_recipes_with_one_name_are_told_before_a_model_is_loaded(
    invoke: Invoke, plain_recipe: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / plain_recipe.name
    other.parent.mkdir()
    other.write_text(plain_recipe.read_text().replace('target = "', 'target = "./nowhere'))
    result = invoke("serve", plain_recipe, other, "--port", 0)
    assert result.exit_code == 2
    assert result.stderr == (
        f"anchorlm: Two recipes are served as {plain_recipe.stem!r}: give one of them another id in its [serve].\n"
    )


def test_an_address_that_is_taken_is_one_sentence(invoke: Invoke, plain_recipe: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = invoke("serve", plain_recipe, "--port", taken.getsockname()[1], "--no-probe")
    assert result.exit_code == 2
    assert "choose another --port" in result.stderr


def test_several_recipes_are_served_and_sigterm_lets_a_stream_finish(
    start: Callable[..., subprocess.Popen[str]], plain_recipe: Path, alignbeam_recipe: Path, tmp_path: Path
) -> None:
    long = tmp_path / "long.toml"
    long.write_text(plain_recipe.read_text().replace("max_new_tokens = 8", "max_new_tokens = 150"))
    process = start("serve", long, alignbeam_recipe, "--port", "0", "--no-probe", "--audit", tmp_path / "audit.jsonl")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Serving long, alignbeam at http://127.0.0.1:"), line
    url = line.split(" at ")[1].split("/v1")[0]
    while httpx.get(f"{url}/ready").status_code != 200:
        time.sleep(0.2)
    assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == ["long", "alignbeam"]
    ask = {"model": "long", "messages": [{"role": "user", "content": "Bake a cake"}]}
    whole = httpx.post(f"{url}/v1/chat/completions", json=ask, timeout=60).json()["choices"][0]["message"]["content"]
    said, ended = "", False
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**ask, "stream": True}, timeout=60) as response:
        for event in response.iter_lines():
            if event.startswith("data: {"):
                delta = httpx.Response(200, text=event[6:]).json()["choices"][0]["delta"]
                if delta.get("content") and not said:
                    process.send_signal(signal.SIGTERM)
                said += delta.get("content") or ""
            ended = ended or event == "data: [DONE]"
    assert ended
    assert said == whole
    assert process.wait(60) in (0, -signal.SIGTERM)
    events = [line for line in (tmp_path / "audit.jsonl").read_text().splitlines() if '"status": 200' in line]
    assert len(events) == 2


def test_without_a_recipe_nobody_from_elsewhere_goes_below_the_floor() -> None:
    local, wide = (described((), bare=bare) for bare in (True, False))
    assert [name for name, _ in local] == ["a-medicine", "a-medicine-undefended"]
    ((_, recipe),) = wide
    guard = Guard.from_recipe(recipe)
    own = guard.defense.settings
    limits = floored(ModelServing.parse(recipe.serve, where="a test"), guard).limits
    assert limits["max_harm"] == (0.0, own.max_harm)
    for name in ("alpha", "candidates", "mixed_tokens"):
        assert limits[name][0] == getattr(own, name)
    served = ServedModel.of("wide", guard, ModelServing(limits=limits))
    with pytest.raises(ApiError, match="beyond what this server allows"):
        served.request("x", {"alpha": 0.0}, {})


@pytest.mark.parametrize(
    ("settings", "private"),
    [({}, True), ({"host": "0.0.0.0"}, False), ({"keys": "keys.toml"}, False), ({"host": "::1"}, True)],
)
def test_only_a_server_for_whoever_is_at_this_machine_is_private(settings: dict[str, str], private: bool) -> None:
    assert ServerSettings.parse(settings, where="a test").private == private


def test_with_keys_nobody_gets_the_bare_model_or_goes_below_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.toml"
    made: list[Any] = []
    new_key(keys, "alice")

    def ended(served: Iterable[ServedModel], *_: object, **__: Any) -> _Ended:
        made.extend(served)
        return _Ended()

    monkeypatch.setattr("anchorlm.cli._serve._server", lambda: ended)
    run((), None, {"keys": keys})
    [served] = made
    assert served.id == "a-medicine"
    assert served.serving.limits["alpha"][0] == served.guard.defense.settings.alpha
    with pytest.raises(ApiError, match="temperature = 2 is beyond"):
        served.check_sampling(temperature=2.0, top_p=None)


class _Ended:
    """A server that has served."""

    application = SimpleNamespace(state=SimpleNamespace(server=SimpleNamespace(wrong=[])))

    def serve_forever(self) -> None:
        """At once."""


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "none.toml").write_text(f'target = "{tmp_path}/none"\ndefense = "undefended"\n')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start("serve", tmp_path / "none.toml", "--port", str(taken.getsockname()[1]))
        out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (2, "")
    assert "choose another --port" in err
    assert len(err.strip().splitlines()) == 1


def test_keys_that_do_not_fit_are_told_before_a_port_that_is_taken(
    invoke: Invoke, plain_recipe: Path, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = invoke("serve", plain_recipe, "--port", taken.getsockname()[1], "--keys", tmp_path / "none.toml")
    assert result.exit_code == 2
    assert "--new-key" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_sentence(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "none.toml").write_text(f'target = "{tmp_path}/none"\ndefense = "undefended"\n')
    process = start("serve", tmp_path / "none.toml", "--port", "0")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_health_answers_and_ready_does_not_while_models_are_loaded(plain_recipe: Path) -> None:
    go_on = threading.Event()

    def loading() -> Iterator[ServedModel]:
        go_on.wait(60)
        yield ServedModel.of("late", Guard.from_recipe(plain_recipe))

    server = Server(loading(), ServerSettings(port=0, probe=False))
    serving = threading.Thread(target=server.run, daemon=True)
    serving.start()
    while not server.started:
        time.sleep(0.01)
    try:
        assert httpx.get(f"{server.address}/health").status_code == 200
        ready = httpx.get(f"{server.address}/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "loading")
        ask = {"messages": [{"role": "user", "content": "x"}]}
        early = httpx.post(f"{server.address}/v1/chat/completions", json=ask)
        assert (early.status_code, early.json()["error"]["code"]) == (503, "not_ready")
        go_on.set()
        while httpx.get(f"{server.address}/ready").status_code != 200:
            time.sleep(0.05)
        assert httpx.post(f"{server.address}/v1/chat/completions", json=ask, timeout=60).status_code == 200
    finally:
        go_on.set()
        server.should_exit = True
        serving.join(30)


@pytest.mark.parametrize("gap", [0.0, 0.05])
@pytest.mark.parametrize("when", ["loading", "serving", "answering"])
def test_two_interrupts_end_a_server_with_130_and_no_traceback(
    start: Callable[..., subprocess.Popen[str]], plain_recipe: Path, when: str, gap: float
) -> None:
    process = start("serve", plain_recipe, "--port", "0", "--no-probe")
    assert process.stdout is not None
    if when == "loading":
        time.sleep(1.5)  # wherever it is by then
    else:
        url = process.stdout.readline().split(" at ")[1].split("/v1")[0]
    with ThreadPoolExecutor(4) as pool:
        if when == "answering":
            ask = {"messages": [{"role": "user", "content": "Bake"}], "max_tokens": 200, "stream": True}
            for _ in range(4):
                pool.submit(httpx.post, f"{url}/v1/chat/completions", json=ask, timeout=30)
            time.sleep(0.3)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(gap)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().endswith("anchorlm: Interrupted.")
    assert not any(word in err for word in ("Traceback", "Fatal", "terminate called", "failed unexpectedly"))


@pytest.mark.slow
def test_a_hang_up_that_nohup_ignores_ends_no_server(plain_recipe: Path) -> None:
    command = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from anchorlm.cli import main; main()"
    options = ["serve", str(plain_recipe), "--port", "0", "--no-probe"]
    with subprocess.Popen([sys.executable, "-c", command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split(" at ")[1].split("/v1")[0]
            process.send_signal(signal.SIGHUP)
            time.sleep(1)
            assert httpx.get(f"{url}/health").status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.fixture
def hang_ups() -> Iterator[None]:
    """Programs that are started take them, also where nohup runs the tests: a server leaves them alone there."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_ups")
def test_a_hang_up_ends_a_server_as_sigterm_does_and_with_keys_reads_them_again(
    start: Callable[..., subprocess.Popen[str]], plain_recipe: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    old = new_key(keys, "old")
    locked = start("serve", plain_recipe, "--port", "0", "--no-probe", "--keys", keys)
    ended = [start("serve", plain_recipe, "--port", "0", "--no-probe") for _ in range(2)]
    for process, number in zip(ended, (signal.SIGHUP, signal.SIGTERM), strict=True):
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
    assert [process.wait(60) for process in ended] == [0, 0]
    assert locked.stdout is not None
    url = locked.stdout.readline().split(" at ")[1].split("/v1")[0]
    headers = {"Authorization": f"Bearer {old}"}
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
    keys.write_text("")
    locked.send_signal(signal.SIGHUP)
    end = time.monotonic() + 10
    while httpx.get(f"{url}/v1/models", headers=headers).status_code != 401:
        assert time.monotonic() < end
        time.sleep(0.02)
    locked.send_signal(signal.SIGTERM)
    assert locked.wait(60) == 0
