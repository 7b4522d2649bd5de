"""The gateway of docs/vllm.md, started as the page says."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from vllm_page import block

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def started(port: int) -> Iterator[httpx.Client]:
    """A client of the gateway in front of the server on `port`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    variable, *words = shlex.split(block("sh", "gateway:app", {"8080": own, "8000": port}))
    assert words[0] == "python"
    name, value = variable.split("=")
    process = subprocess.Popen([sys.executable, *words[1:]], cwd=ROOT, env={**os.environ, name: value},
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{own}", timeout=60) as client:
            for _ in range(600):
                try:
                    client.get("/")
                    break
                except httpx.ConnectError:
                    assert process.poll() is None, process.stderr.read() if process.stderr else ""
                    time.sleep(0.05)
            yield client
    finally:
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert "Traceback" not in said
