from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from typer.testing import Result

from anchorlm import Guard
from anchorlm.cli._serve import described, floored, run
from anchorlm.serving import ApiError, ModelServing, Served, ServerSettings, new_key

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
    (tmp_path / "server.toml").write_text(config)
    (tmp_path / "my.toml").write_text(f"{plain_recipe.read_text()}\n{serve}\n")
    result = invoke("serve", tmp_path / "my.toml", "--config", tmp_path / "server.toml")
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


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
    served = Served.of("wide", guard, ModelServing(limits=limits))
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
    keys, made = tmp_path / "keys.toml", []
    new_key(keys, "alice")
    monkeypatch.setattr("anchorlm.cli._serve.Server", lambda served, *_, **__: made.extend(served) or _Ended())
    run((), None, {"keys": keys})
    [served] = made
    assert served.id == "a-medicine"
    assert served.serving.limits["alpha"][0] == served.guard.defense.settings.alpha
    with pytest.raises(ApiError, match="temperature = 2 is beyond"):
        served.check_sampling(temperature=2.0, top_p=None)


class _Ended:
    """A server that has served."""

    application = SimpleNamespace(state=SimpleNamespace(desk=SimpleNamespace(wrong=[])))

    def serve_forever(self) -> None:
        """At once."""
