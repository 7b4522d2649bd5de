"""What the extras ask for fits together and fits what is pinned, and a missing one is told with its command."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import tiny_model
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
APART = "vllm"
"""Wants older versions of what the others use: tests/vllm_plugin/test_vllm_versions.py."""

HIDDEN = """
import sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] == {module!r} else found(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""
"""As if a package were not installed."""


def needs(extra: str | None) -> Iterator[Requirement]:
    """What is asked for by an extra, and by those that it names; without one, by the library itself."""
    for one in map(Requirement, PROJECT["dependencies"] if extra is None else EXTRAS[extra]):
        if one.name == PROJECT["name"]:
            for inner in one.extras:
                yield from needs(inner)
        else:
            yield one


def pins(*files: str) -> dict[str, Version]:
    """The versions that files of requirements name."""
    lines = [line.partition("#")[0].strip() for file in files for line in (ROOT / file).read_text("utf-8").splitlines()]
    parts = [(one.name, part) for one in map(Requirement, filter(None, lines)) for part in one.specifier]
    return {name: Version(part.version) for name, part in parts if part.operator == "=="}


@pytest.mark.parametrize("extra", [None, *(name for name in EXTRAS if name != APART)])
def test_the_pinned_versions_fit_every_extra_and_so_all_of_them_at_once(extra: str | None) -> None:
    pinned = pins("constraints.txt", "tests/ray_cluster/requirements.txt")
    asked = list(needs(extra))
    assert asked
    for one in asked:
        assert one.name in pinned, f"{one.name} is pinned nowhere"
        assert one.specifier.contains(pinned[one.name]), str(one)


def test_the_table_of_the_readme_has_every_extra_and_no_other() -> None:
    table = re.search(r"\| extra \|.*\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / "README.md").read_text("utf-8"))
    assert table is not None
    named = re.findall(r"^\| `([\w-]+)` \|", table[1], re.MULTILINE)
    assert sorted(named) == sorted(EXTRAS.keys() - {"docs", "dev"})


def test_what_the_tests_on_ray_run_with_fits_what_is_pinned() -> None:
    pinned = pins("constraints.txt")
    lines = (ROOT / "tests/ray_cluster/requirements.txt").read_text("utf-8").splitlines()
    asked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {"ray", "httpx"} <= {one.name for one in asked}
    assert all(one.specifier.contains(pinned[one.name]) for one in asked if one.name != "ray")
    assert {part for one in asked if one.name == "ray" for part in one.extras} == {
        part for one in needs("ray") if one.name == "ray" for part in one.extras
    }


def ended(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    """The command, where a package is not installed."""
    code = f"{HIDDEN.format(module=module)}\nfrom anchorlm.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], input="How are you?\n", capture_output=True,
                          text=True, timeout=240)  # fmt: skip


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe for each way to reach a model."""
    folder = tmp_path_factory.mktemp("recipes")
    tiny_model("llama").model.save_pretrained(folder / "tiny")
    tiny_model("llama").tokenizer.save_pretrained(folder / "tiny")
    local = f'path = "{folder / "tiny"}"\n'
    targets = {"endpoint": 'endpoint = "http://127.0.0.1:9/v1"\n', "vllm": f'{local}engine = "vllm"\n', "here": local}
    for name, target in targets.items():
        (folder / f"{name}.toml").write_text(f'[target]\n{target}\n[defense]\nname = "undefended"\n', "utf-8")
    scorer = 'kind = "remote"\nurl = "http://127.0.0.1:9/score"\n'
    (folder / "remote.toml").write_text(
        f'[target]\n{local}\n[cost]\n{scorer}\n[reward]\n{scorer}\n[defense]\nname = "inferenceguard"\n', "utf-8"
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "recipe", "more", "extra"),
    [
        ("httpx", "endpoint", [], "endpoint"),
        ("httpx", "remote", [], "endpoint"),
        ("vllm", "vllm", [], "vllm"),
        ("ray", "here", ["--ray"], "ray"),
    ],
)
def test_a_missing_extra_is_one_sentence_with_its_command(
    module: str, recipe: str, more: list[str], extra: str, recipes: Path
) -> None:
    done = ended(module, "generate", "-", "-o", "-", "--no-probe", "--recipe", recipes / f"{recipe}.toml", *more)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'anchorlm[{extra}]'." in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_the_application_on_ray_names_its_command_too() -> None:
    code = f"{HIDDEN.format(module='ray')}\nimport anchorlm.ray\nanchorlm.ray.app({{}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("Ray is not installed, and this needs it: pip install 'anchorlm[ray]'.")
