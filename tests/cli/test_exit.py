"""Ctrl-C ends the command line with 130 and one sentence, whatever it is at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

INTERRUPT = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(0.01)"
"""Python hears of a signal between two of its steps."""


def ended(command: str, *args: str, within: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of a process that runs a command of its own as the command line does."""
    script = f"from anchorlm.cli._exit import run_and_exit\n{command}\nrun_and_exit(command)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(within), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(f"def command():\n {INTERRUPT}", id="the command lets it through"),
        pytest.param(f"def command():\n try:\n  {INTERRUPT}\n except BaseException: pass", id="somebody swallows it"),
        pytest.param(
            f"def command():\n try:\n  {INTERRUPT}\n except BaseException: raise RuntimeError('lost')",
            id="somebody makes another error of it",
        ),
        pytest.param(
            f"def command():\n try:\n  {INTERRUPT}\n except BaseException: raise SystemExit(1)",
            id="somebody ends with another code",
        ),
        pytest.param(
            f"class Late:\n def __del__(self):\n  {INTERRUPT}\ndef command():\n Late(); print('not reached')",
            id="Python is clearing up",
        ),
        pytest.param(f"def command():\n try:\n  {INTERRUPT}\n finally:\n  {INTERRUPT}", id="it comes twice"),
        pytest.param("def command():\n import library", id="a library is imported"),
    ],
)
def test_an_interrupt_is_130_and_no_traceback_wherever_it_comes(command: str, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(f"try:\n {INTERRUPT}\nexcept BaseException: raise ImportError('broken')\n")
    process = ended(command, within=tmp_path)
    assert process.returncode == 130
    assert "Traceback" not in process.stderr
    assert process.stdout == ""


def test_an_interrupt_within_an_import_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(INTERRUPT)
    assert ended("def command(): import library", within=tmp_path).stderr == "anchorlm: Interrupted.\n"


def test_other_codes_stay_what_they_are(tmp_path: Path) -> None:
    for command, code in (
        ("def command(): pass", 0),
        ("def command(): raise SystemExit(2)", 2),
        ("def command(): raise SystemExit(None)", 0),
        ("def command(): raise SystemExit('a sentence')", 1),
        ("def command(): raise ValueError('seen with --debug')", 1),
    ):
        process = ended(command, within=tmp_path)
        assert process.returncode == code
        assert ("Traceback" in process.stderr) is ("ValueError" in command)


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3, 0.6, 1.0])
def test_an_interrupt_while_the_command_line_is_imported_is_130_and_one_sentence(seconds: float) -> None:
    command = "import anchorlm.cli; print('here', flush=True); anchorlm.cli.main()"
    arguments = ["serve", "--port", "0", "--no-probe"]
    with subprocess.Popen(
        [sys.executable, "-c", command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err in ("anchorlm: Interrupted.\n", "Aborted.\n"), "the second is typer's word"


def test_what_is_imported_before_an_interrupt_is_heard_is_little() -> None:
    show = "import sys; from anchorlm.cli import main; print(len(sys.modules), *sys.modules)"
    count, *modules = subprocess.check_output([sys.executable, "-c", show], text=True).split()
    bare = subprocess.check_output([sys.executable, "-c", "import sys; print(len(sys.modules))"], text=True)
    assert int(count) < int(bare) + 40
    assert not {"typer", "rich", "pydantic", "torch", "typing", "logging"} & set(modules)
