"""The processes of a vLLM that a guard has started, on the command line as users start it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm.config", reason="vLLM has an environment of its own: make test-vllm")
openai: Any = pytest.importorskip("openai", reason="vLLM brings openai: make test-vllm")
psutil: Any = pytest.importorskip("psutil", reason="vLLM brings psutil: make test-vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

RECIPE = """
[target]
path = "{target}"
engine = "vllm"
dtype = "float32"
options = {{ max_model_len = 512, gpu_memory_utilization = 0.15, enforce_eager = true }}

[defense]
name = "self_reminder"
"""

SCRIPT = """
from anchorlm import Guard

if __name__ == "__main__":
    guard = Guard.from_recipe("{recipe}")
    print(guard.chat([{{"role": "user", "content": "Hello"}}], max_new_tokens=8).text)
"""


@pytest.fixture
def recipe(smollm2: Path, tmp_path: Path) -> Path:
    file = tmp_path / "guard.toml"
    file.write_text(RECIPE.format(target=smollm2), "utf-8")
    return file


def command(*words: str, **more: str) -> dict[str, Any]:
    """How `anchorlm` is started, with some more environment variables."""
    program = Path(sys.executable).with_name("anchorlm")
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", **more}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    return {"args": [str(program), *words], "env": environment}


def below(process: subprocess.Popen[Any]) -> list[Any]:
    """The processes that a process has started, and theirs."""
    found: list[Any] = psutil.Process(process.pid).children(recursive=True)
    return found


def gone(processes: list[Any]) -> bool:
    """Whether processes have ended, or end soon. One that waits for its parent to ask after it has ended."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes):
            return True
        time.sleep(0.5)
    return False


class Terminal:
    """A command in a terminal, where Ctrl-C goes to all of its processes."""

    def __init__(self, started: dict[str, Any]) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            **started,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._read = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def until(self, words: str) -> str:
        """What comes up to some words."""
        end = time.monotonic() + 600
        while words not in self._read:
            assert time.monotonic() < end, self._read
            assert self.process.poll() is None, self._read
            if select.select([self._ours], [], [], 1)[0]:
                self._read += os.read(self._ours, 4096).decode(errors="replace")
        before, _, self._read = self._read.partition(words)
        return before


@contextmanager
def terminal(*words: str, **more: str) -> Iterator[Terminal]:
    found = Terminal(command(*words, **more))
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def test_ctrl_c_stops_an_answer_and_not_vllm_which_ends_with_the_guard_even_if_that_is_killed(recipe: Path) -> None:
    with terminal("chat", "--no-probe", "--recipe", str(recipe), "--set", "generation.max_new_tokens=300") as chat:
        chat.until("> ")
        chat.type("Write a very long story about a cat, with names and places.\n")
        chat.until("\n")
        time.sleep(1)
        chat.type("\x03")
        chat.until("(stopped)")
        chat.until("> ")
        chat.type("Say hello.\n")
        chat.until("\n")
        answer = chat.until("> ")
        assert answer.strip()
        assert "can't help" not in answer
        processes = below(chat.process)
        assert any("EngineCore" in one.name() or "EngineCore" in " ".join(one.cmdline()) for one in processes)
    assert gone(processes)


def test_ctrl_c_while_vllm_starts_ends_all_of_it_at_once(recipe: Path) -> None:
    with terminal("chat", "--no-probe", "--recipe", str(recipe)) as chat:
        end = time.monotonic() + 300
        while not (processes := below(chat.process)) or "EngineCore" not in str([one.cmdline() for one in processes]):
            assert time.monotonic() < end
            assert chat.process.poll() is None
            time.sleep(0.2)
        chat.type("\x03")
        assert chat.process.wait(20) == 130
    assert gone(processes)


@pytest.mark.parametrize("named", ["", "another"])
def test_a_list_of_plugins_without_ours_does_not_part_vllm_from_its_guard(recipe: Path, named: str) -> None:
    with terminal("chat", "--no-probe", "--recipe", str(recipe), VLLM_PLUGINS=named) as chat:
        chat.until("> ")
        processes = below(chat.process)
        (core,) = (one for one in processes if "EngineCore" in one.name() or "EngineCore" in " ".join(one.cmdline()))
        assert os.getpgid(core.pid) == core.pid  # a group of its own, which Ctrl-C does not reach
    assert gone(processes)


def test_a_script_ends_without_complaints(recipe: Path) -> None:
    script = recipe.with_name("script.py")
    script.write_text(SCRIPT.format(recipe=recipe), "utf-8")
    started = {**command(), "args": [sys.executable, str(script)]}
    ended = subprocess.run(**started, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
    for complaint in ("Traceback", "leaked", "force killing"):
        assert complaint not in ended.stderr


def test_nothing_of_vllm_is_left_and_nothing_of_it_stands_among_answers(recipe: Path) -> None:
    """Who reads our output waits until all have closed it."""
    asked = "\n".join(["What is the capital of France?", "Is 17 a prime number?"])
    words = ["generate", "-", "-o", "-", "--no-probe", "--recipe", str(recipe), "--set", "generation.max_new_tokens=8"]
    ended = subprocess.run(**command(*words), input=asked, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert sorted(row["index"] for row in rows) == [0, 1]
    assert all(row["response"].strip() and "failed" not in row for row in rows)
    assert "Traceback" not in ended.stderr
    assert "leaked" not in ended.stderr


def test_a_server_answers_with_it_and_ends_with_all_of_it_when_it_is_told_to(recipe: Path) -> None:
    errors = recipe.with_name("errors")
    words = ["serve", str(recipe), "--port", "0", "--no-probe"]
    with errors.open("w") as log:
        process = subprocess.Popen(**command(*words), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[1].split("/v1")[0]
        end = time.monotonic() + 300
        while httpx.get(f"{url}/ready").status_code != 200:  # it listens while vLLM starts
            assert time.monotonic() < end, errors.read_text("utf-8")
            assert process.poll() is None, errors.read_text("utf-8")
            time.sleep(0.5)
        assert httpx.get(f"{url}/health").status_code == 200
        ask: Any = {"model": "guard", "messages": [{"role": "user", "content": "What is a cat?"}], "max_tokens": 24,
                    "temperature": 0}  # fmt: skip
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
            whole = client.chat.completions.create(**ask).choices[0]
            pieces = [one.choices[0] for one in client.chat.completions.create(**ask, stream=True) if one.choices]
        said = [one.delta.content for one in pieces if one.delta.content]
        assert len(said) > 3
        assert "".join(said) == whole.message.content
        assert pieces[-1].finish_reason == whole.finish_reason == "length"
        processes = below(process)
        assert any("EngineCore" in " ".join(one.cmdline()) for one in processes)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert gone(processes)
    assert "Traceback" not in errors.read_text("utf-8")
