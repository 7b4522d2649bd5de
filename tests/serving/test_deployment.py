from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from anchorlm.serving import AuditSettings, ServerSettings

ROOT = Path(__file__).resolve().parents[2]


def test_every_setting_of_a_server_stands_in_the_shipped_file_and_differs_only_where_it_says_so() -> None:
    text = (ROOT / "recipes" / "serve.toml").read_text("utf-8")
    data = tomllib.loads(text)
    assert set(data) == set(ServerSettings.model_fields)
    assert set(data["audit"]) == set(AuditSettings.model_fields)
    given = ServerSettings.parse(data, where="serve.toml").model_dump()
    differing = {name for name, value in ServerSettings().model_dump().items() if given[name] != value} - {"audit"}
    usual = AuditSettings().model_dump()
    differing |= {f"audit.{name}" for name in usual if given["audit"][name] != usual[name]}
    assert differing == {"keys", "playground", "max_tokens", "scores", "raw_completions", "audit.file"}
    assert all(name in text.partition(":\n#\n")[0] for name in differing)


def test_an_image_is_built_from_what_it_copies_and_nothing_else() -> None:
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "deploy" / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert [line[1:] for line in lines if line.startswith("!")] == " ".join(copied).split()
    assert all((ROOT / name).exists() for name in " ".join(copied).split())


@pytest.mark.parametrize(
    ("file", "seconds"), [("compose.yaml", r"stop_grace_period: (\d+)s"), ("anchorlm.service", r"TimeoutStopSec=(\d+)")]
)
def test_whoever_stops_a_server_waits_for_its_drain_and_its_audit_log(file: str, seconds: str) -> None:
    found = re.search(seconds, (ROOT / "deploy" / file).read_text("utf-8"))
    assert found
    assert int(found[1]) > ServerSettings().drain + 10


def test_a_users_mistake_does_not_start_a_server_for_ever() -> None:
    assert "RestartPreventExitStatus=2\n" in (ROOT / "deploy" / "anchorlm.service").read_text("utf-8")
    assert re.search(r"restart: on-failure:\d+\n", (ROOT / "deploy" / "compose.yaml").read_text("utf-8"))
