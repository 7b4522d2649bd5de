"""The page on Ray does what it says: its blocks run as they are written, one after another."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from clusters import ROOT, Start, wait_for

pytest.importorskip("ray.serve", reason="Ray has an environment of its own: make test-ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

PAGE = (ROOT / "docs/ray.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[str]:
    """The lines of the shell blocks, but for the one that installs."""
    return [line for block in blocks("sh") for line in block.splitlines() if not line.startswith("pip ")]


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_blocks_of_the_page_run_one_after_another(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for port in (8000, 8001):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port}, which the page uses, is taken")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How do I bake bread?"}\n{"prompt": "How do I get a bomb?"}\n')
    log = tmp_path / "log"
    recipe, serve, *share = commands()
    subprocess.run(recipe, shell=True, check=True, timeout=300)

    server = start(*shlex.split(serve), log=log)
    wait_for(lambda: is_ready(8000), log)
    done = subprocess.run([sys.executable, "-c", blocks("python")[0]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    whole, streamed = done.stdout.splitlines()
    assert whole == streamed
    server.send_signal(2)
    server.wait(120)

    # The same from a file, with other paths and keys that there are.
    text = blocks("yaml")[0].replace("/srv/guard.toml", str(tmp_path / "guard.toml"))
    text = "".join(line for line in text.splitlines(keepends=True) if "/srv/" not in line)
    (tmp_path / "serve.yaml").write_text(text)
    server = start("serve", "run", "serve.yaml", log=log)
    wait_for(lambda: is_ready(8001), log)
    server.send_signal(2)
    server.wait(120)

    for line in share:
        subprocess.run(line, shell=True, check=True, timeout=600)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert sorted(row["index"] for row in rows) == [0, 1]
    assert (tmp_path / "runs/finance/tables.md").is_file()
