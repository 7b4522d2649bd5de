from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from serving.servers import SECRET, Live

from anchorlm.guard import Guard
from anchorlm.records import UserError
from anchorlm.serving import ApiError, AuditSettings, ServedModel, ServerSettings
from anchorlm.serving._state import ServerState
from anchorlm.serving.ops._audit import Audit

TURN = [{"role": "user", "content": f"Where is the {SECRET}?"}]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("text", [False, True])
def test_a_request_and_its_end_are_written_down_without_its_text(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], tmp_path: Path, text: bool
) -> None:
    file = tmp_path / "audit.jsonl"
    live = start_live([ServedModel.of("strict", make_guard(lambda m, r: 1.0))], audit={"file": file, "text": text})
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
    client = start_live([ServedModel.of("plain", plain)], audit={"file": file}).client()
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
        state = ServerState([ServedModel.of("plain", plain)], ServerSettings(audit=AuditSettings(file=file)))
        loop = asyncio.get_running_loop()
        # The thread is busy, so that the write has not begun when its waiter is cancelled.
        go_on = threading.Event()
        busy = loop.run_in_executor(state._scribe, go_on.wait, 30)
        waiting = asyncio.ensure_future(state.note("response", {"number": 1}, loop.time() + 30))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        assert await busy
        await state.close()

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

            def again(before: int = before) -> bool:
                return len(synced) > before

            for number in range(20):
                audit.write("request", {"number": number})
            Live.wait(again, 5)
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


@pytest.mark.parametrize("fate", ["deleted", "moved"])
def test_a_log_that_is_taken_away_begins_anew_and_loses_no_line(tmp_path: Path, fate: str) -> None:
    file, old = tmp_path / "audit.jsonl", tmp_path / "old.jsonl"
    with closing(Audit(AuditSettings(file=file))) as audit:
        audit.write("request", {"number": 1})
        file.rename(old) if fate == "moved" else file.unlink()
        audit.write("request", {"number": 2})
        audit.write("request", {"number": 3})
    assert [line["number"] for line in lines(file)] == [2, 3]
    assert not old.exists() or [line["number"] for line in lines(old)] == [1]


def test_two_servers_cannot_write_to_one_log(tmp_path: Path) -> None:
    settings = AuditSettings(file=tmp_path / "audit.jsonl", max_bytes=1_000)
    with closing(Audit(settings)) as audit:
        for number in range(30):  # also after it was rotated
            audit.write("request", {"number": number})
        with pytest.raises(UserError, match="give each a file of its own"):
            Audit(settings)
    Audit(settings).close()


def test_a_line_that_a_crash_cut_off_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_text('{"event":"request","number":1}\n{"event":"request","cut":')
    with closing(Audit(AuditSettings(file=file))) as audit:
        audit.write("request", {"number": 2})
    first, cut, last = file.read_text().splitlines()
    assert (json.loads(first)["number"], json.loads(last)["number"]) == (1, 2)
    assert cut == '{"event":"request","cut":'


@pytest.mark.parametrize("on_error", ["refuse", "go on"])
def test_a_disk_that_hangs_is_waited_for_until_the_deadline_or_hardly_at_all(
    start_live: Callable[..., Live], plain: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    settings = {"file": tmp_path / "audit.jsonl", "on_error": on_error}
    live = start_live([ServedModel.of("plain", plain)], audit=settings, deadline=1.0 if on_error == "refuse" else 20.0)
    monkeypatch.setattr("anchorlm.serving.session._session._LAST_LINE", 0.5)
    go_on = threading.Event()
    write = Audit._write
    monkeypatch.setattr(Audit, "_write", lambda self, data: (go_on.wait(30), write(self, data))[1])
    start = time.monotonic()
    if on_error == "refuse":
        with pytest.raises(openai.InternalServerError) as caught:
            live.client().chat.completions.create(model="plain", messages=TURN)
        assert caught.value.status_code == 503
    else:
        assert live.client().chat.completions.create(model="plain", messages=TURN).choices
    assert time.monotonic() - start < 4
    assert live.client().models.list().data, "the rest of the server does not hang"
    go_on.set()
    live.wait(lambda: len(file_lines(tmp_path / "audit.jsonl")) >= 2)


def file_lines(file: Path) -> list[str]:
    return file.read_text("utf-8").splitlines()


def test_an_answer_that_nobody_waited_for_is_no_answer_in_the_log(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], tmp_path: Path
) -> None:
    async def late(messages: object, response: str) -> float:
        await asyncio.sleep(5)
        return 0.0

    file = tmp_path / "audit.jsonl"
    live = start_live([ServedModel.of("slow", make_guard(late))], audit={"file": file}, deadline=0.5)
    with pytest.raises(openai.InternalServerError):
        live.client().chat.completions.create(model="slow", messages=TURN)
    ended = lines(file)[-1]
    assert (ended["status"], ended["answers"][0]["decision"]) == (504, "abandoned")


def test_a_log_that_cannot_be_written_is_told_before_serving(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        Audit(AuditSettings(file=tmp_path / "none" / "audit.jsonl"))


def test_a_pipe_takes_the_lines_and_a_reader_that_has_gone_is_an_outage(tmp_path: Path) -> None:
    pipe = tmp_path / "audit"
    os.mkfifo(pipe)
    settings = AuditSettings(file=pipe, max_bytes=1_000, fsync="always")
    with pytest.raises(UserError, match="start its reader first"):
        Audit(settings)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    failures: list[int] = []
    with closing(Audit(settings, lambda: failures.append(1))) as audit:
        for number in range(30):  # more than a file of this size would hold
            audit.write("request", {"number": number})
        told = [json.loads(line)["number"] for line in os.read(reader, 65_536).splitlines()]
        assert told == list(range(30))
        os.close(reader)
        for _ in range(2):
            with pytest.raises(ApiError, match="cannot be written"):
                audit.write("request", {"number": 30})
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        audit.write("request", {"number": 31})
        assert json.loads(os.read(reader, 65_536).splitlines()[-1])["number"] == 31
        os.close(reader)
    assert len(failures) == 2


@pytest.mark.slow
@pytest.mark.parametrize("place", ["/dev/stdout", "-"])
def test_the_processs_own_output_takes_the_lines(place: str, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from anchorlm.serving import AuditSettings\n"
        "from anchorlm.serving.ops._audit import Audit\n"
        "audit = Audit(AuditSettings(file=Path(sys.argv[1]), fsync='second'))\n"
        "for number in range(3): audit.write('request', {'number': number})\n"
        "audit.close(); print('still open', file=sys.stderr); print('{}', flush=True)"
    )
    command = [sys.executable, "-c", script, place]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [json.loads(line).get("number") for line in piped.stdout.splitlines()] == [0, 1, 2, None]
    with (tmp_path / "out").open("w") as out:
        subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, check=True)
    assert len(lines(tmp_path / "out")) == 4
