from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a Hub with the repositories that lie in the folder `hub`."""
    root = tmp_path / "hub"

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            repository, found, name = self.path.lstrip("/").partition("/resolve/main/")
            file = root / repository / name
            data = file.read_bytes() if found and file.is_file() else None
            self.send_response(404 if data is None else 200)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{len(data)}"')
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if data and self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_repository_with_pickled_weights_alone_is_a_gap_before_they_are_fetched(
    hub: str,
    start: Callable[..., subprocess.Popen[str]],
    target: Path,
    anchor: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, model, weights in (
        ("org/pickled", target, "pytorch_model.bin"),
        ("org/sound", anchor, "model.safetensors"),
    ):
        (tmp_path / "hub" / name).mkdir(parents=True)
        for file in model.iterdir():
            if file.suffix != ".safetensors":
                (tmp_path / "hub" / name / file.name).write_bytes(file.read_bytes())
        (tmp_path / "hub" / name / weights).write_bytes(b"fetched by nobody")
    recipe = tmp_path / "hub.toml"
    recipe.write_text(
        'target = "org/pickled"\nanchor = "org/sound"\ndefense = "alignbeam"\n[judge]\nkind = "refusal"\n'
        "[generation]\nmax_new_tokens = 8\n"
    )
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    process = start("check", recipe)
    facts, said = process.communicate()
    assert process.returncode == 2, said
    assert said.splitlines() == [
        "anchorlm: target: 'org/pickled' holds only pickled weights, which can run code: convert them once with "
        "save_pretrained, or name a revision of it that has safetensors."
    ]
    assert "anchor: org/sound" in facts
    cached = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert "config.json" in cached
    assert not cached & {"pytorch_model.bin", "model.safetensors"}
