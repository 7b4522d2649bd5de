"""The scripts of `examples/clients`. `make test-clients` runs those whose packages are not installed here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from serving.servers import Live

from anchorlm.guard import Guard
from anchorlm.serving import ServedModel

ROOT = Path(__file__).resolve().parent.parent.parent
CLIENTS = ROOT / "examples" / "clients"
SCRIPTS = sorted(CLIENTS.glob("with_*.*"))
CAPABILITIES = ["chat", "stream", "tools", "schema", "reasoning", "refusal"]


def ask(live: Live) -> subprocess.CompletedProcess[str]:
    """Runs the script of `openai` for Python."""
    return subprocess.run(
        [sys.executable, str(CLIENTS / "with_openai.py")], env={**os.environ, "ANCHORLM_URL": f"{live.url}/v1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def came(found: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return dict(re.findall(r"(?m)^(\w+) +(ok|FAILED) ", found.stdout))


@pytest.mark.slow
def test_all_that_the_openai_package_can_do_works(start_live: Callable[..., Live]) -> None:
    guards = {name: Guard.from_recipe(CLIENTS / f"{name}.toml") for name in ("thinker", "strict")}
    found = ask(start_live([ServedModel.of(name, guard) for name, guard in guards.items()]))
    assert came(found) == dict.fromkeys([*CAPABILITIES, "responses"], "ok"), found.stdout + found.stderr
    assert found.returncode == 0


@pytest.mark.slow
def test_a_script_ends_with_an_error_where_a_capability_is_missing(
    start_live: Callable[..., Live], plain: Guard
) -> None:
    found = ask(start_live([ServedModel.of(name, plain) for name in ("thinker", "strict")]))
    assert came(found)["stream"] == "ok"
    assert [came(found)[name] for name in ("tools", "reasoning", "refusal")] == ["FAILED"] * 3
    assert found.returncode == 1


def test_every_client_is_tried_for_everything_and_is_short() -> None:
    assert len(SCRIPTS) == 6
    for script in SCRIPTS:
        text = script.read_text("utf-8")
        assert re.search(rf"(?m)^ *(await )?run\(.*{', '.join(CAPABILITIES)}", text), script.name
        assert text.count("\n") <= 100, script.name


def test_the_page_names_the_versions_that_are_tried() -> None:
    wanted = (CLIENTS / "requirements.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in wanted if "==" in line)
    packages = json.loads((CLIENTS / "package.json").read_text("utf-8"))["dependencies"]
    page = (ROOT / "docs" / "clients.md").read_text("utf-8")
    found = re.findall(r"(?m)^\| [^|]+ \| ([^|]+) \|.*`(with_\w+\.\w+)` \|$", page)
    shown = {script: version for version, script in found}
    assert shown.keys() == {script.name for script in SCRIPTS}
    named = {"with_langchain.py": pinned["langchain-openai"], "with_litellm.py": pinned["litellm"],
             "with_llm.py": pinned["llm"], "with_openai.py": pinned["openai"],
             "with_ai.mjs": packages["ai"], "with_openai.mjs": packages["openai"]}  # fmt: skip
    assert shown == named
