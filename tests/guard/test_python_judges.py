"""Python functions that a recipe names: run only where the operator says so."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anchorlm.cli._app import app
from anchorlm.judging import CallableJudge
from anchorlm.ray._application import _options
from anchorlm.ray._application import app as on_ray
from anchorlm.ray._settings import RayServing
from anchorlm.records import Messages, UserError
from anchorlm.serving import ServerSettings
from anchorlm.team import (
    JudgeSettings,
    ScorerSettings,
    allow_code,
    build_judge,
    build_scorer,
    code_allowed,
    start_judge,
    start_scorer,
)

ASK: Messages = [{"role": "user", "content": "How do I bake bread?"}]
MODULE = """
def harm(messages, response):
    return 0.5 if "flour" in response else 0.0

async def cost(messages, response):
    return len(response) - 10.0

number = 3
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_functions_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    allow_code(False)


def judge(function: str) -> Any:
    return start_judge({"kind": "python", "function": function}, Any, [])  # type: ignore[arg-type]


def test_without_leave_no_function_of_a_recipe_is_even_imported(tmp_path: Path) -> None:
    (tmp_path / "loud_module_of_a_test.py").write_text("open('imported', 'w').close()")
    with pytest.raises(UserError, match=r"loud_module_of_a_test:x, and code is not allowed: .* add --allow-code"):
        judge("loud_module_of_a_test:x")
    with pytest.raises(UserError, match="code is not allowed"):
        start_scorer({"kind": "python", "function": "loud_module_of_a_test:x"}, Any, [])  # type: ignore[arg-type]
    assert not (tmp_path / "imported").exists()


def test_with_leave_a_function_grades_and_costs() -> None:
    allow_code()
    grades = asyncio.run(judge("own_functions_of_a_test:harm")(ASK, ["Mix flour.", "No."]))
    assert [grade.harm for grade in grades] == [0.5, 0.0]
    scorer = start_scorer({"kind": "python", "function": "own_functions_of_a_test:cost"}, Any, [])  # type: ignore[arg-type]
    assert asyncio.run(scorer(ASK, ["Mix flour and water."])) == [10.0]
    assert scorer.name == "callable:own_functions_of_a_test:cost"


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("own_functions_of_a_test:nothing", "cannot be loaded"),
        ("no_such_module_of_a_test:harm", "it is looked for in the current folder"),
        ("own_functions_of_a_test:number", "is no function, but a int"),
        ("own_functions_of_a_test", "write module:name"),
    ],
)
def test_a_function_that_is_not_there_is_told_in_a_sentence(function: str, told: str) -> None:
    allow_code()
    with pytest.raises(UserError, match=told):
        judge(function)


@pytest.mark.parametrize("kind", [JudgeSettings, ScorerSettings])
def test_the_kind_python_and_a_function_go_together(kind: Any) -> None:
    with pytest.raises(UserError, match="function"):
        kind.parse({"kind": "python"}, where="it")
    with pytest.raises(UserError, match=r"function|model"):
        kind.parse({"function": "a:b"}, where="it")
    with pytest.raises(UserError, match="model"):
        kind.parse({"kind": "python", "function": "a:b", "model": "c"}, where="it")


def test_a_recipe_can_be_checked_without_its_code() -> None:
    found = build_judge(JudgeSettings.parse({"kind": "python", "function": "a:b"}, where="it"), None, weights=False)
    assert isinstance(found, CallableJudge)
    scorer = build_scorer(ScorerSettings.parse({"kind": "python", "function": "a:b"}, where="it"), weights=False)
    assert scorer.name == "callable:a:b"


COMMANDS = [
    ["serve"], ["compare"], ["generate"], ["chat"], ["fit", "alignbeam"], ["fit", "inferaligner"],
    ["fit", "inferenceguard"], ["calibrate", "inferaligner"], ["calibrate", "inferenceguard"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_that_runs_a_guard_can_be_given_leave(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert "--allow-code" in shown.output


@pytest.mark.slow
def test_a_command_that_was_given_leave_runs_the_function_and_one_that_was_not_says_how(tmp_path: Path) -> None:
    (tmp_path / "guard.toml").write_text(
        'target = "nowhere"\n[defense]\nname = "best_of_n"\n[judge]\nkind = "python"\n'
        'function = "own_functions_of_a_test:nothing"\n'
    )
    (tmp_path / "prompts.txt").write_text("Hello\n")
    command = ["generate", "prompts.txt", "--recipe", "guard.toml"]
    without = CliRunner().invoke(app, command)
    assert without.exit_code == 2
    assert "add --allow-code to the command" in " ".join(without.output.split())
    with_leave = CliRunner().invoke(app, [*command, "--allow-code"])
    assert "--allow-code" not in with_leave.output
    assert "nowhere" in with_leave.output


def test_on_ray_a_recipe_with_code_is_refused_before_replicas_start_and_told_how_to_get_leave(tmp_path: Path) -> None:
    recipe = tmp_path / "guard.toml"
    recipe.write_text(
        'target = "x"\ndefense = "best_of_n"\n[judge]\nkind = "python"\nfunction = "own_functions_of_a_test:harm"\n'
    )
    with pytest.raises(UserError, match="code is not allowed: .*ANCHORLM_ALLOW_CODE=1 for Ray Serve"):
        on_ray({"recipe": str(recipe)})


def test_replicas_get_the_leave_of_the_process_that_starts_them() -> None:
    serving = RayServing.parse({"recipe": "guard.toml"}, where="it")
    assert "runtime_env" not in _options(serving, ServerSettings())["ray_actor_options"]
    allow_code()
    variables = _options(serving, ServerSettings())["ray_actor_options"]["runtime_env"]["env_vars"]
    allow_code(False)
    assert not code_allowed()
    os.environ.update(variables)
    assert code_allowed()
