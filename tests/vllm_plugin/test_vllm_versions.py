"""What our own lower bounds must admit: the versions that vLLM wants."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WANTED = {"torch": "2.13.0", "transformers": "5.19.0", "fastapi": "0.136.0", "llguidance": "1.7.6"}
"""The newest that vLLM 0.32 takes."""


def ours() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(one) for one in [*PROJECT["dependencies"], *extras["serve"], *extras["endpoint"]]]


@pytest.mark.parametrize("name", WANTED)
def test_our_bounds_admit_what_vllm_wants(name: str) -> None:
    found = [one for one in ours() if one.name == name]
    assert found
    assert all(one.specifier.contains(Version(WANTED[name])) for one in found)


def test_the_environment_of_the_plugin_has_what_we_need_and_the_torch_that_we_pin() -> None:
    lines = [re.sub(r"#.*", "", line).strip() for line in
             (ROOT / "tests/vllm_plugin/requirements.txt").read_text("utf-8").splitlines()]  # fmt: skip
    wanted = {one.name: one.specifier for line in lines if line for one in [Requirement(line)]}
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line
    )
    assert wanted["torch"].contains(pinned["torch"])
    assert all(wanted[name].contains(version) for name, version in WANTED.items())
    brought = {"torch", "transformers", "huggingface_hub", "pydantic"}  # by vLLM
    assert {Requirement(one).name for one in PROJECT["dependencies"]} <= set(wanted) | brought
