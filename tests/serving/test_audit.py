from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from servers import SECRET, Live

from anchorlm.guard import Guard
from anchorlm.records import UserError
from anchorlm.serving import AuditSettings, Served, ServerSettings
from anchorlm.serving._audit import Audit
from anchorlm.serving._desk import Desk

TURN = [{"role": "user", "content": f"Where is the {SECRET}?"}]


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("text", [False, True])
def test_a_request_and_its_end_are_written_down_without_its_text(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], tmp_path: Path, text: bool
) -> None:
    file = tmp_path / "audit.jsonl"
    live = start_live([Served.of("strict", make_guard(lambda m, r: 1.0))], audit={"file": file, "text": text})
    answer = live.client().chat.completions.create(model="strict", messages=TURN)
    asked, ended = lines(file)
    assert asked["request_id"] == ended["request_id"] == answer.model_dump()["anchorlm"]["request_id"]
    assert (asked["event"], asked["key"], asked["model"]) == ("request", "anonymous", "strict")
    assert (ended["event"], ended["status"]) == ("response", 200)
    assert ended["answers"][0]["decision"] == "refusal"
    said = str(answer.choices[0].message.content)
    assert ended["answers"][0]["response_sha256"] == hashlib.sha256(said.encode()).hexdigest()
    assert (SECRET in file.read_text()) == text
    assert file.stat().st_mode & 0o077 == 0


def test_a_prompts_hash_does_not_depend_on_how_many_answers_it_gets(
    start_live: Callable[..., Live], plain: Guard, tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    client = start_live([Served.of("plain", plain)], audit={"file": file}).client()
    for n, prompt in ((1, "bread"), (3, "bread"), (1, ["bread", "bread"]), (1, ["bread", "butter"])):
        client.completions.create(model="plain", prompt=prompt, n=n, max_tokens=2, seed=7, temperature=0.5)
    asked = [line for line in lines(file) if line["event"] == "request"]
    one, three, twice, other = [line["prompt_sha256"] for line in asked]
    assert one == three == twice == hashlib.sha256(b"bread").hexdigest()
    assert other != one
    assert [line["choices"] for line in asked] == [1, 3, 2, 2]
    generation = asked[0]["generation"]
    assert isinstance(generation, dict)
    assert {name: generation[name] for name in ("max_new_tokens", "temperature", "seed", "do_sample")} == {
        "max_new_tokens": 2,
        "temperature": 0.5,
        "seed": 7,
        "do_sample": True,
    }


def test_a_line_is_written_although_whoever_waits_for_it_is_gone(plain: Guard, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"

    async def leave() -> None:
        desk = Desk([Served.of("plain", plain)], ServerSettings(audit=AuditSettings(file=file)))
        # All threads are busy, so that the write has not begun when its waiter is cancelled.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        go_on = threading.Event()
        busy = asyncio.ensure_future(asyncio.to_thread(go_on.wait, 30))
        waiting = asyncio.ensure_future(desk.note("response", {"number": 1}))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        assert await busy
        await desk.close()

    asyncio.run(leave())
    assert [line["number"] for line in lines(file)] == [1]


def test_files_are_rotated_and_nothing_is_lost_but_the_oldest(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = Audit(AuditSettings(file=file, max_bytes=1_000, keep=2, fsync="always"))
    for number in range(60):
        audit.write("request", {"number": number})
    audit.close()
    files = [tmp_path / "audit.jsonl.2", tmp_path / "audit.jsonl.1", file]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    numbers = [line["number"] for each in files for line in lines(each)]
    assert numbers == list(range(60 - len(numbers), 60))
    assert all(each.stat().st_size <= 1_000 for each in files)


def test_a_line_reaches_the_disk_within_a_second_although_none_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[float] = []
    fsync, file = os.fsync, tmp_path / "audit.jsonl"

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        if os.path.samestat(os.fstat(descriptor), file.stat()):  # other servers of these tests have logs, too
            synced.append(time.monotonic())

    monkeypatch.setattr(os, "fsync", watched)
    with closing(Audit(AuditSettings(file=file, fsync="second"))) as audit:
        for _ in range(2):
            before, start = len(synced), time.monotonic()
            for number in range(20):
                audit.write("request", {"number": number})
            Live.wait(lambda before=before: len(synced) > before, 5)
            time.sleep(0.3)
            assert len(synced) == before + 1, "once for all twenty"
            assert synced[-1] - start < 3, "a second, and whatever the machine is busy with"


def test_what_was_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    for number in range(2):
        audit = Audit(AuditSettings(file=file))
        audit.write("request", {"number": number})
        audit.close()
    assert [line["number"] for line in lines(file)] == [0, 1]


def test_a_log_that_cannot_be_written_is_told_before_serving(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        Audit(AuditSettings(file=tmp_path / "none" / "audit.jsonl"))
