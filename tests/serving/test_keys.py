from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving.servers import Live

from anchorlm.guard import Guard
from anchorlm.records import UserError
from anchorlm.serving import ApiError, Keys, KeySettings, ServedModel, Server, ServerSettings, new_key
from anchorlm.serving.ops._keys import Caller, KeyFile

TURN = [{"role": "user", "content": "bread"}]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    made = {name: new_key(file, name, operator=name == "operator") for name in ("client", "operator", "slow", "wrong")}
    text = file.read_text()
    for name in ("slow", "wrong"):
        text = text.replace(f"[{name}]", f"[{name}]\nrequests_per_minute = 2")
    file.write_text(text)
    return file, made


@pytest.fixture(scope="module")
def locked(start_live: Callable[..., Live], plain: Guard, keys: tuple[Path, dict[str, str]]) -> Live:
    return start_live([ServedModel.of("plain", plain)], keys=keys[0], max_body_bytes=5_000)


def test_only_hashes_are_kept_and_only_the_owner_may_read_them(keys: tuple[Path, dict[str, str]]) -> None:
    file, made = keys
    assert not any(key in file.read_text() for key in made.values())
    assert file.stat().st_mode & 0o077 == 0
    assert Keys.load(file).caller(f"Bearer {made['client']}").name == "client"


def test_a_name_is_given_once_and_a_bad_file_is_one_sentence(keys: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    for name, sentence in (("client", "already"), ("a b", "no name for a key")):
        with pytest.raises(UserError, match=sentence):
            new_key(keys[0], name)
    (tmp_path / "bad").write_text("[broken")
    for file in (tmp_path / "bad", tmp_path / "none"):
        with pytest.raises(UserError, match="cannot be read"):
            Keys.load(file)
    for broken in (b"[broken", b"\xff"):
        (tmp_path / "bad").write_bytes(broken)
        with pytest.raises(UserError, match="cannot be read"):
            new_key(tmp_path / "bad", "alice")
        assert (tmp_path / "bad").read_bytes() == broken


def test_a_file_that_ends_without_a_new_line_takes_another_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    first = new_key(file, "first")
    file.write_text(file.read_text().rstrip() + "  # mine")
    second = new_key(file, "second")
    assert [Keys.load(file).caller(f"Bearer {key}").name for key in (first, second)] == ["first", "second"]


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer nonsense", "Basic {client}", "Bearer {client}x"])
def test_without_a_valid_key_nothing_is_told(locked: Live, keys: tuple[Path, dict[str, str]], key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key.format(**keys[1])}
    for path in ("/v1/models", "/v1/chat/completions", "/metrics"):
        answer = httpx.request("POST" if "chat" in path else "GET", f"{locked.url}{path}", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{locked.url}/health").status_code == 200


def test_traces_and_metrics_are_the_operators(locked: Live, keys: tuple[Path, dict[str, str]]) -> None:
    ask = {"model": "plain", "messages": TURN, "extra_body": {"anchorlm": {"trace": True}}}
    with pytest.raises(openai.PermissionDeniedError, match="operator"):
        locked.client(keys[1]["client"]).chat.completions.create(**ask)
    answer = locked.client(keys[1]["operator"]).chat.completions.create(**ask)
    assert answer.model_dump()["anchorlm"]["trace"] == []
    assert locked.client(keys[1]["client"]).chat.completions.create(model="plain", messages=TURN).choices
    for name, status in (("client", 403), ("operator", 200)):
        answer = httpx.get(f"{locked.url}/metrics", headers={"Authorization": f"Bearer {keys[1][name]}"})
        assert answer.status_code == status


def test_a_key_has_its_rate(locked: Live, keys: tuple[Path, dict[str, str]]) -> None:
    client = locked.client(keys[1]["slow"])
    assert client.chat.completions.create(model="plain", messages=TURN).choices
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="plain", messages=TURN)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30


def test_a_request_that_is_wrong_counts_for_the_rate(locked: Live, keys: tuple[Path, dict[str, str]]) -> None:
    headers = {"Authorization": f"Bearer {keys[1]['wrong']}"}
    assert httpx.post(f"{locked.url}/v1/completions", json={}, headers=headers).status_code == 400
    assert httpx.post(f"{locked.url}/v1/completions", json={}, headers=headers).status_code == 429
    assert httpx.get(f"{locked.url}/v1/models", headers=headers).status_code == 200


def test_a_key_has_its_concurrency_and_gets_it_back() -> None:
    caller = Caller("x", KeySettings(sha256="0" * 64, concurrency=1))
    for _ in range(3):
        with caller.request(), pytest.raises(ApiError, match="under way"), caller.request():
            pass


def test_a_rate_fills_up_again() -> None:
    caller = Caller("x", KeySettings(sha256="0" * 64, requests_per_minute=600))
    for _ in range(100):
        caller.draw()
    with pytest.raises(ApiError, match="slow down"):
        caller.draw()
    time.sleep(0.15)
    caller.draw()


def test_many_answers_count_as_often_for_the_rate() -> None:
    caller = Caller("x", KeySettings(sha256="0" * 64, requests_per_minute=60))
    for _ in range(2):  # after the first, two of the ten are left: it is let in, and the next one waits for all of it
        caller.draw()
        with caller.request(8):
            pass
    with pytest.raises(ApiError, match="slow down") as caught:
        caller.draw()
    assert int(caught.value.headers["Retry-After"]) in (6, 7)


def test_a_request_that_is_too_large_is_not_read(locked: Live, keys: tuple[Path, dict[str, str]]) -> None:
    headers = {"Authorization": f"Bearer {keys[1]['client']}"}
    url = f"{locked.url}/v1/chat/completions"
    for content in (b"x" * 6_000, (b"x" * 100 for _ in range(100))):
        answer = httpx.post(url, content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_page_elsewhere_cannot_reach_the_loopback_by_a_name_of_its_own(live: Live) -> None:
    answer = httpx.get(f"{live.url}/v1/models", headers={"Host": "evil.example:8000"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_host")


def test_an_open_server_trusts_nobody_with_traces() -> None:
    assert not Keys({}).caller(None).operator
    assert Keys({}, trusted=True).caller(None).operator


def test_a_server_that_anybody_can_reach_says_so(plain: Guard, caplog: pytest.LogCaptureFixture) -> None:
    open_ = Server([ServedModel.of("plain", plain)], ServerSettings(host="0.0.0.0"))
    assert "--new-key" in caplog.text
    assert not open_.application.state.server.keys.caller(None).operator
    caplog.clear()
    Server([ServedModel.of("plain", plain)], ServerSettings())
    assert not caplog.text


def test_a_key_that_is_revoked_ends_at_once_and_what_goes_on_under_it_too(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], tmp_path: Path
) -> None:
    async def slow(messages: object, response: str) -> float:
        await asyncio.sleep(20)
        return 0.0

    file = tmp_path / "keys.toml"
    made = {name: new_key(file, name) for name in ("stays", "goes")}
    live = start_live([ServedModel.of("slow", make_guard(slow))], keys=file, keep_alive=0.1)
    url = f"{live.url}/v1/chat/completions"
    said: list[Any] = []

    def stream() -> None:
        headers = {"Authorization": f"Bearer {made['goes']}"}
        with httpx.stream("POST", url, json={"messages": TURN, "stream": True}, headers=headers, timeout=30) as found:
            said.extend(found.iter_lines())

    def status(name: str) -> int:
        return httpx.get(f"{live.url}/v1/models", headers={"Authorization": f"Bearer {made[name]}"}).status_code

    asking = threading.Thread(target=stream)
    asking.start()
    live.wait(lambda: live.state.admission.running == 1)
    assert (status("stays"), status("goes")) == (200, 200)
    text = file.read_text()
    file.write_text(text[: text.index("[goes]")])
    start = time.monotonic()
    live.wait(lambda: status("goes") == 401, 10)
    asking.join(10)
    assert time.monotonic() - start < 5
    assert not asking.is_alive()
    assert any("invalid_api_key" in line for line in said)
    assert status("stays") == 200
    file.write_text("")
    live.wait(lambda: status("stays") == 401, 10)


def test_limits_are_read_again_and_what_is_used_up_stays_so(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key = new_key(file, "alice")
    keys = Keys.load(file)
    watch, caller = KeyFile(file, keys), keys.caller(f"Bearer {key}")
    with caller.request():
        file.write_text(file.read_text() + "concurrency = 1\nrequests_per_minute = 6\n")
        for _ in range(3):
            assert watch.look() == []
        assert keys.caller(f"Bearer {key}") is caller
        with pytest.raises(ApiError, match="under way"), caller.request():
            pass


def test_a_file_of_keys_that_is_broken_or_gone_changes_nothing_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.toml"
    key = new_key(file, "alice")
    keys = Keys.load(file)
    watch = KeyFile(file, keys)
    for change in (lambda: file.write_text("[broken"), file.unlink):
        caplog.clear()
        change()
        for _ in range(4):
            watch.look()
        assert [record.getMessage().count("stay as they were") for record in caplog.records] == [1]
        assert keys.caller(f"Bearer {key}").name == "alice"


def test_a_file_that_is_still_changing_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key = new_key(file, "alice")
    text, keys = file.read_text(), Keys.load(file)
    watch = KeyFile(file, keys)
    file.write_text("")
    watch.look()
    file.write_text(f"{text}\n")
    for _ in range(3):
        assert watch.look() == []
    assert keys.caller(f"Bearer {key}").name == "alice"


def test_who_is_turned_away_stands_in_the_log_and_with_an_address_in_the_audit(
    start_live: Callable[..., Live], plain: Guard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, audit = tmp_path / "keys.toml", tmp_path / "audit.jsonl"
    key = new_key(keys, "alice")
    keys.write_text(keys.read_text() + "requests_per_minute = 6\n")
    live = start_live([ServedModel.of("plain", plain)], keys=keys, audit={"file": audit})
    url, headers = f"{live.url}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
    assert httpx.post(url, json={}).status_code == 401
    statuses = [httpx.post(url, json={"messages": TURN}, headers=headers, timeout=60).status_code for _ in range(2)]
    assert statuses == [200, 429]
    live.wait(lambda: audit.read_text().count("turned_away") == 2)
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    noted = [line for line in lines if line["event"] == "turned_away"]
    assert [(line["status"], line["key"], line["client"]) for line in noted] == [
        (401, None, "127.0.0.1"),
        (429, "alice", "127.0.0.1"),
    ]
    assert sum("was turned away: 401" in text for text in caplog.messages) == 1
    assert sum("was turned away: 429" in text for text in caplog.messages) == 1
    assert key not in caplog.text + audit.read_text()


def test_a_flood_of_wrong_keys_does_not_fill_the_audit_log(
    start_live: Callable[..., Live], plain: Guard, tmp_path: Path
) -> None:
    keys, audit = tmp_path / "keys.toml", tmp_path / "audit.jsonl"
    new_key(keys, "alice")
    live = start_live([ServedModel.of("plain", plain)], keys=keys, audit={"file": audit})
    with httpx.Client(base_url=live.url) as client:
        start = time.monotonic()
        for _ in range(300):
            assert client.get("/v1/models").status_code == 401
        seconds = time.monotonic() - start
    live.wait(lambda: audit.read_text().count("\n") >= 100)
    time.sleep(0.3)
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert len(lines) <= 101 + 10 * seconds
    assert len(lines) + sum(line.get("not_noted_before", 0) for line in lines) <= 300
