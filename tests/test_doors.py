"""Nobody waits for torch to be told that an argument is wrong."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from anchorlm.cli._app import app

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src/anchorlm"

HEAVY = ("torch", "transformers")

_TOLD = """
import json, os, sys
sys.argv[0] = "anchorlm"
def leave(code):
    sys.stdout.flush()
    loaded = [name for name in {heavy} if name in sys.modules]
    print(json.dumps({{"code": code, "loaded": loaded}}))
    sys.stdout.flush()
    os.kill(os.getpid(), 9) if os.name == "nt" else _exit(0)
_exit, os._exit = os._exit, leave
{code}
leave(0)
"""


def told(code: str, *args: str, cwd: Path | None = None) -> dict[str, Any]:
    """What became of a script in a process of its own, and which heavy libraries it loaded."""
    script = _TOLD.format(heavy=HEAVY, code=code)
    found = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, cwd=cwd)
    *printed, last = found.stdout.strip().splitlines() or [""]
    return {**json.loads(last or "{}"), "stdout": "\n".join(printed), "stderr": found.stderr}


def command(*args: str, cwd: Path) -> dict[str, Any]:
    return told("from anchorlm.cli import main; main()", *args, cwd=cwd)


def commands(group: Any = None, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and group of the command line."""
    group = group or typer.main.get_command(app)
    found = [path]
    for name, inner in sorted(getattr(group, "commands", {}).items()):
        found += commands(inner, (*path, name))
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with prompts, recipes and a folder that could be a model."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "How do I bake bread?"}\n')
    for name in ("bread", "bomb"):
        (tmp_path / f"{name}.txt").write_text("".join(f"Number {i}: {name}?\n" for i in range(8)))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    (tmp_path / "good.toml").write_text('target = "./model"\n[defense]\nname = "undefended"\n')
    (tmp_path / "section.toml").write_text('target = "./model"\ndefense = "undefended"\n[defence]\nalpha = 1\n')
    (tmp_path / "broken.toml").write_text("target = \n")
    (tmp_path / "knob.toml").write_text('target = "./model"\n[defense]\nname = "alignbeam"\nalpha = 7\n')
    (tmp_path / "name.toml").write_text('target = "./model"\n[defense]\nname = "alinbeam"\n')
    (tmp_path / "anchorless.toml").write_text('target = "./model"\n[defense]\nname = "safe_decoding"\n')
    (tmp_path / "unfitted.toml").write_text(
        'target = "./model"\n[defense]\nname = "inferaligner"\nartifact = "./nowhere"\n'
    )
    (tmp_path / "folder.toml").write_text('target = "./nowhere"\n[defense]\nname = "undefended"\n')
    return tmp_path


IMPORTS = (
    "import anchorlm",
    "import anchorlm.guard",
    "from anchorlm import Guard, Recipe, Defense, Request, UserError",
    "from anchorlm.defenses import AlignBeam, InferAligner, InferenceGuard, Team",
    "from anchorlm.judging import Judge, Scorer, Grade, CallableJudge",
    "from anchorlm.evaluation import CompareRecipe, compare, figures",
    "from anchorlm.serving import ServerSettings, listen",
)


@pytest.mark.parametrize("code", IMPORTS)
def test_an_import_waits_for_no_model(code: str) -> None:
    found = told(code)
    assert (found.get("code"), found.get("loaded")) == (0, []), found["stderr"]


def test_a_knob_that_does_not_fit_a_guard_is_told_before_any_model(home: Path) -> None:
    code = (
        "from anchorlm import Guard, UserError\n"
        "try:\n    Guard('./model', 'alignbeam', alpha=7)\nexcept UserError as error:\n    print(error)"
    )
    found = told(code, cwd=home)
    assert "alpha = 7" in found["stdout"]
    assert found["loaded"] == []


@pytest.mark.parametrize("wrong", ["generation={'top_p': 3}", "engine={'rows': 1}", "system=' '", "probes={'x': 1}"])
def test_an_argument_that_does_not_fit_a_guard_is_told_before_any_model(wrong: str, home: Path) -> None:
    tried = f"try:\n    Guard('./model', {wrong})\nexcept UserError:\n    print('told')"
    code = f"from anchorlm import Guard, UserError\n{tried}"
    found = told(code, cwd=home)
    assert (found["stdout"], found["loaded"]) == ("told", []), found["stderr"]


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_waits_for_no_model(path: tuple[str, ...], tmp_path: Path) -> None:
    found = command(*path, "--help", cwd=tmp_path)
    assert "Usage" in found["stdout"]
    assert (found["code"], found["loaded"]) == (0, [])


PROMPTS = ("--harmful", "bomb.txt", "--harmless", "bread.txt")
NOWHERE = ("--target", "./no/such", "--anchor", "./no/such", "--out", "o")

MISTAKES: dict[str, tuple[Sequence[str], str]] = {
    "rows that are not there": (("generate", "nowhere.jsonl", "--target", "./model"), "nowhere.jsonl"),
    "rows that are not there, before a target": (("generate", "nowhere.jsonl", "--target", "./no/such"), "nowhere"),
    "a target that is not there": (("generate", "rows.jsonl", "--target", "./no/such"), "no folder './no/such'"),
    "nothing to guard": (("generate", "rows.jsonl"), "nothing to guard"),
    "a recipe that is not there": (("generate", "rows.jsonl", "-r", "nowhere.toml"), "nowhere.toml"),
    "a recipe that is no TOML": (("generate", "rows.jsonl", "-r", "broken.toml"), "broken.toml"),
    "an unknown section": (("chat", "-r", "section.toml"), "defence"),
    "a knob that does not fit": (("generate", "rows.jsonl", "-r", "knob.toml"), "alpha = 7"),
    "a knob that does not fit a chat": (("chat", "-r", "knob.toml"), "alpha = 7"),
    "an unknown defense": (("chat", "-r", "name.toml"), "no defense 'alinbeam'"),
    "a missing anchor": (("chat", "-r", "anchorless.toml"), "anchor"),
    "an artifact that is not there": (("generate", "rows.jsonl", "-r", "unfitted.toml"), "holds no artifact"),
    "an artifact that is not there, in a chat": (("chat", "-r", "unfitted.toml"), "holds no artifact"),
    "an artifact that is not there, on a server": (("serve", "unfitted.toml", "--port", "0"), "holds no artifact"),
    "check: an artifact that is not there": (("check", "unfitted.toml"), "holds no artifact"),
    "a missing option": (("grade", "rows.jsonl"), "--text"),
    "answers that are not there": (
        ("grade", "nowhere.csv", "--text", "answer", "--output", "out.jsonl"),
        "nowhere.csv",
    ),
    "an unknown grader": (
        ("grade", "rows.jsonl", "--text", "prompt", "--output", "o.jsonl", "--grader", "mood"),
        "mood",
    ),
    "check: no such recipe": (("check", "nowhere.toml"), "nowhere.toml"),
    "check: an unknown section": (("check", "section.toml"), "defence"),
    "check: an unknown defense": (("check", "name.toml"), "no defense 'alinbeam'"),
    "check: a knob that does not fit": (("check", "knob.toml"), "alpha = 7"),
    "check: a missing anchor": (("check", "anchorless.toml"), "anchor"),
    "check: a folder that is not there": (("check", "folder.toml"), "no folder"),
    "convert: no such file": (("convert", "nowhere.gguf", "out"), "nowhere.gguf"),
    "convert: an unknown format": (("convert", "nowhere.gguf", "out", "--dtype", "int3"), "int3"),
    "an unknown recipe": (("recipe", "nothing"), "nothing"),
    "compare: nowhere to write": (("compare", "good.toml"), "--out"),
    "compare: no such recipe": (("compare", "nowhere.toml", "--out", "run"), "nowhere.toml"),
    "compare: another kind of recipe": (("compare", "good.toml", "--out", "run"), "good.toml"),
    "report: no such run": (("report", "nowhere"), "nowhere"),
    "serve: no such recipe": (("serve", "nowhere.toml", "--port", "0"), "nowhere.toml"),
    "serve: no such settings": (("serve", "--config", "nowhere.toml"), "nowhere.toml"),
    "serve: a knob that does not fit": (("serve", "knob.toml", "--port", "0"), "alpha = 7"),
    "demo: an unknown defense": (("demo", "--defenses", "magic"), "magic"),
    "fit: no such prompts": (
        ("fit", "inferaligner", "--harmful", "nowhere.txt", "--harmless", "rows.jsonl", "--out", "o"),
        "nowhere",
    ),
    "fit: no anchor": (("fit", "inferaligner", *PROMPTS, "--out", "o", "--target", "./model"), "--anchor"),
    "fit: no scorers": (("fit", "inferenceguard", *PROMPTS, "--out", "o", "--target", "./model"), "--cost"),
    "fit: nobody to guide": (("fit", "alignbeam", "--out", "o", "--target", "./model"), "--anchor"),
    "fit: too few prompts": (
        ("fit", "inferaligner", "--harmful", "rows.jsonl", "--harmless", "bread.txt", *NOWHERE),
        "only 1 distinct harmful",
    ),
    "fit: a target that is not there": (("fit", "inferaligner", *PROMPTS, *NOWHERE), "no folder './no/such'"),
    "fit: an anchor's target that is not there": (("fit", "alignbeam", *NOWHERE), "no folder './no/such'"),
    "fit: scorers that are not there": (
        ("fit", "inferenceguard", *PROMPTS, "--out", "o", "--target", "./model", "--cost", "./no/c", "--reward", "./m"),
        "no folder './no/c'",
    ),
    "calibrate: an artifact that is not there": (
        ("calibrate", "inferaligner", *PROMPTS, "--target", "./model", "--artifact", "./nowhere"),
        "holds no artifact",
    ),
    "calibrate: nothing to calibrate": (("calibrate", "inferaligner", *PROMPTS, "--target", "./model"), "--artifact"),
    "calibrate: no such labels": (
        ("calibrate", "inferenceguard", "--labels", "nowhere.jsonl", "--out", "o"),
        "nowhere",
    ),
    "zoo path: no such model": (("zoo", "path", "a-nothing"), "a-nothing"),
    "zoo recipe: no such model": (("zoo", "recipe", "a-nothing"), "a-nothing"),
}


@pytest.mark.parametrize(("args", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_any_model_is_imported(args: Sequence[str], said: str, home: Path) -> None:
    found = command(*args, cwd=home)
    assert said in found["stderr"]
    assert (found["code"], found["loaded"]) == (2, []), found["stderr"]


def lazy_packages() -> list[Path]:
    return [file for file in sorted(SOURCES.rglob("__init__.py")) if "lazily(" in file.read_text("utf-8")]


@pytest.mark.parametrize("file", lazy_packages(), ids=lambda file: file.parent.name)
def test_a_lazy_package_gives_what_its_imports_say(file: Path) -> None:
    """What a type checker reads, what is imported when it is asked for, and `__all__` are one list."""
    name = ".".join(("anchorlm", *file.parent.relative_to(SOURCES).parts))
    tree = ast.parse(file.read_text("utf-8"))
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    read = {one.name: node.module for node in branch.body if isinstance(node, ast.ImportFrom) for one in node.names}
    given = next(ast.literal_eval(node) for node in ast.walk(branch) if isinstance(node, ast.Dict))
    found = {
        one: module if module.startswith("anchorlm.") else f"{name}.{module}"
        for module, names in given.items()
        for one in names.split()
    }
    package = import_module(name)
    if name == "anchorlm.ray":
        pytest.importorskip("ray.data", reason="without Ray, it gives an error that says so")
    assert found == read
    assert sorted(found) == sorted(package.__all__) == dir(package)
    assert all(getattr(package, one) is getattr(import_module(module), one) for one, module in found.items())
