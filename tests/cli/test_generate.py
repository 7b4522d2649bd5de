from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from anchorlm.cli._offers import offer
from anchorlm.cli._output import Output
from anchorlm.cli._recipes import digest
from anchorlm.files import PromptRow, read_rows
from anchorlm.guard import Recipe
from anchorlm.records import DefenseError, Response, Usage, UserError

Invoke = Callable[..., Result]
Start = Callable[..., subprocess.Popen[str]]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": f"p{n}", "prompt": f"Bake cake {n}"}) + "\n" for n in range(6)))
    return file


def test_a_row_says_what_was_asked_answered_and_by_what(
    invoke: Invoke, prompts: Path, alignbeam_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out.jsonl"
    result = invoke("generate", prompts, "-r", alignbeam_recipe, "-o", out, "--trace", "--concurrency", 2)
    assert result.exit_code == 0, result.stderr
    rows = lines(out)
    assert sorted(row["index"] for row in rows) == list(range(6))
    for row in rows:
        assert row["id"] == f"p{row['index']}"
        assert row["prompt"] == f"Bake cake {row['index']}"
        assert isinstance(row["response"], str)
        assert row["finish_reason"] in ("stop", "length", "refusal")
        assert {"candidates", "chosen"} <= {decision["kind"] for decision in row["trace"]}
    assert not result.stdout
    assert "6 rows written" in result.stderr


def test_stdin_to_stdout(invoke: Invoke, plain_recipe: Path) -> None:
    result = invoke(
        "generate", "-", "-r", plain_recipe, stdin='{"messages": [{"role": "user", "content": "Hi"}]}\n"Yo"\n'
    )
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["index"] for row in rows} == {0, 1}
    assert next(row for row in rows if row["index"] == 0)["messages"] == [{"role": "user", "content": "Hi"}]


def test_models_may_be_given_without_a_recipe(invoke: Invoke, target: Path, anchor: Path) -> None:
    command = ["generate", "-", "--target", target, "--anchor", anchor, "--judge", "refusal", "--trace"]
    changes = ["--set", "defense.candidates=2", "--set", "generation.max_new_tokens=3"]
    result = invoke(*command, *changes, stdin="Hi\n")
    assert result.exit_code == 0, result.stderr
    decisions = {decision["kind"]: decision for decision in json.loads(result.stdout)["trace"]}
    assert len(decisions["candidates"]["candidates"]) == 2


def test_what_is_done_is_not_done_again(invoke: Invoke, prompts: Path, plain_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert invoke("generate", prompts, "-r", plain_recipe, "-o", out, "--limit", 4).exit_code == 0
    first = out.read_bytes()
    result = invoke("generate", prompts, "-r", plain_recipe, "-o", out)
    assert "2 rows written" in result.stderr
    assert out.read_bytes().startswith(first)
    assert sorted(row["index"] for row in lines(out)) == list(range(6))
    whole = out.read_bytes()
    assert invoke("generate", prompts, "-r", plain_recipe, "-o", out, "--limit", 2).exit_code == 0
    assert out.read_bytes() == whole


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_row_that_a_kill_cut_short_is_written_anew(
    invoke: Invoke, prompts: Path, plain_recipe: Path, tmp_path: Path, cut: int
) -> None:
    out = tmp_path / "out.jsonl"
    assert invoke("generate", prompts, "-r", plain_recipe, "-o", out).exit_code == 0
    whole = lines(out)
    data = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(data[:3]) + data[3][:cut])
    result = invoke("generate", prompts, "-r", plain_recipe, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "3 were there already" in result.stderr
    assert sorted(lines(out), key=lambda row: row["index"]) == sorted(whole, key=lambda row: row["index"])


def test_rows_that_a_failure_refused_are_answered_anew(
    invoke: Invoke, prompts: Path, plain_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert invoke("generate", prompts, "-r", plain_recipe, "-o", out).exit_code == 0
    whole = lines(out)
    failed = [row | ({"response": "No.", "failed": True} if row["index"] in (1, 4) else {}) for row in whole]
    out.write_text("".join(json.dumps(row) + "\n" for row in failed))
    result = invoke("generate", prompts, "-r", plain_recipe, "-o", out)
    assert result.exit_code == 0, result.stderr
    assert "2 rows written" in result.stderr
    assert "4 were there already" in result.stderr
    assert sorted(lines(out), key=lambda row: row["index"]) == sorted(whole, key=lambda row: row["index"])
    assert [file.name for file in tmp_path.glob("out*")] == ["out.jsonl"]


def test_a_run_in_which_a_model_fails_says_so_at_its_end(
    invoke: Invoke, prompts: Path, alignbeam_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: object, messages: object, responses: object) -> object:
        raise DefenseError("The judge is out.")

    with monkeypatch.context() as patch:
        patch.setattr("anchorlm.judging.RubricJudge.__call__", broken)
        patch.setattr("anchorlm.judging.RefusalMatcher.__call__", broken)
        result = invoke("generate", prompts, "-r", alignbeam_recipe, "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert "6 rows were refused because a model or the judge failed" in result.stderr
    assert all(row["failed"] for row in lines(tmp_path / "out.jsonl"))
    assert invoke("generate", prompts, "-r", alignbeam_recipe, "-o", tmp_path / "out.jsonl").exit_code == 0
    assert not any("failed" in row for row in lines(tmp_path / "out.jsonl"))


def test_weights_that_were_tuned_anew_in_their_place_are_another_recipe(
    invoke: Invoke, prompts: Path, plain_recipe: Path, target: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(target, copy)
    out, change = tmp_path / "out.jsonl", ["--set", f"target.path={copy}"]
    assert invoke("generate", prompts, "-r", plain_recipe, "-o", out, *change).exit_code == 0
    os.utime(copy / "model.safetensors", (1, 1))
    again = invoke("generate", prompts, "-r", plain_recipe, "-o", out, *change)
    assert again.exit_code == 2
    assert "was written with another recipe or other settings" in again.stderr


def test_an_output_of_something_else_is_refused_and_left_alone(
    invoke: Invoke, prompts: Path, plain_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert invoke("generate", prompts, "-r", plain_recipe, "-o", out).exit_code == 0
    other = tmp_path / "other.jsonl"
    other.write_text(prompts.read_text().replace("cake 2", "bread 2"))
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes, without a line end")
    changed = ("--set", "generation.max_new_tokens=9")
    for source, place, more, said in (
        (other, out, (), "answers another prompt"),
        (prompts, out, changed, "another recipe"),
        (prompts, notes, (), "not written by this command"),
        (prompts, prompts, (), "is the input"),
    ):
        before = place.read_bytes()
        result = invoke("generate", source, "-r", plain_recipe, "-o", place, *more)
        assert result.exit_code == 2
        assert said in result.stderr
        assert place.read_bytes() == before
    result = invoke("generate", prompts, "-r", plain_recipe, "-o", out, *changed, "--overwrite")
    assert result.exit_code == 0
    assert sorted(row["index"] for row in lines(out)) == list(range(6))


def test_malformed_rows_stop_the_command_or_are_skipped_and_named(
    invoke: Invoke, plain_recipe: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n{oops\n{"prompt": ""}\n{"prompt": "b"}\n')
    result = invoke("generate", source, "-r", plain_recipe, "-o", out)
    assert result.exit_code == 2
    assert "Line 2" in result.stderr
    assert "--skip-bad" in result.stderr
    result = invoke("generate", source, "-r", plain_recipe, "-o", out, "--skip-bad")
    assert result.exit_code == 0
    assert {row["index"] for row in lines(out)} == {0, 3}
    assert "2 rows skipped" in result.stderr
    assert "line 2" in result.stderr
    assert "line 3" in result.stderr


def test_a_prompt_beyond_the_context_stops_the_command_or_is_skipped(
    invoke: Invoke, plain_recipe: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("short\n" + "too long " * 400 + "\nshort again\n")
    result = invoke("generate", source, "-r", plain_recipe, "-o", out, "--concurrency", 1)
    assert result.exit_code == 2
    assert "Line 2" in result.stderr
    assert [row["index"] for row in lines(out)] == [0]
    result = invoke("generate", source, "-r", plain_recipe, "-o", out, "--skip-bad")
    assert result.exit_code == 0
    assert sorted(row["index"] for row in lines(out)) == [0, 2]
    assert "line 2" in result.stderr


def test_what_is_there_stays_until_a_new_answer_is_ready(
    invoke: Invoke, prompts: Path, plain_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    command = ("generate", prompts, "-r", plain_recipe, "-o", out)
    assert invoke(*command).exit_code == 0
    whole = out.read_bytes()
    failing = ("--overwrite", "--set", "target=./no/such/folder")
    assert invoke(*command, *failing).exit_code == 2
    assert out.read_bytes() == whole
    assert invoke(*command, "--overwrite", "--limit", 2).exit_code == 0
    assert {row["index"] for row in lines(out)} == {0, 1}
    prompts.write_text(json.dumps({"prompt": ""}))
    assert invoke(*command, "--overwrite", "--skip-bad").exit_code == 0
    assert lines(out) == []


def test_two_runs_never_write_into_one_file(invoke: Invoke, prompts: Path, plain_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ("generate", prompts, "-r", plain_recipe, "-o", out)
    assert invoke(*command, "--limit", 1).exit_code == 0
    first = out.read_bytes()
    with Output(str(out), read_rows(str(prompts)), digest(Recipe.load(plain_recipe))) as other:
        for more in ((), ("--overwrite",)):
            result = invoke(*command, *more)
            assert result.exit_code == 2
            assert "Another run is writing" in result.stderr
            assert out.read_bytes() == first
        assert other.done == {0}
    assert invoke(*command).exit_code == 0
    assert sorted(row["index"] for row in lines(out)) == list(range(6))


def test_an_output_that_cannot_be_written_is_one_sentence(
    invoke: Invoke, prompts: Path, plain_recipe: Path, tmp_path: Path
) -> None:
    result = invoke("generate", prompts, "-r", plain_recipe, "-o", tmp_path)
    assert result.exit_code == 2
    assert "choose another output" in result.stderr
    assert invoke("generate", prompts, "-r", plain_recipe, "-o", "/dev/null").exit_code == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_advbench_killed_half_way_and_run_again_loses_and_doubles_nothing(
    start: Start, shared_data: Path, alignbeam_recipe: Path, tmp_path: Path
) -> None:
    source, out = shared_data / "datasets/advbench/advbench.csv.gz", tmp_path / "out.jsonl"
    command = ("generate", source, "-r", alignbeam_recipe, "-o", out, "--trace")
    process = start(*command, "--concurrency", "8")
    while not (out.exists() and out.read_bytes().count(b"\n") >= 150):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    before = out.read_bytes().count(b"\n")
    assert 150 <= before < 520
    process = start(*command)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert f"{520 - before} rows written" in said
    rows = lines(out)
    assert sorted(row["index"] for row in rows) == list(range(520))
    assert {row["prompt"] for row in rows} == {
        row.prompt for row in read_rows(str(source)) if isinstance(row, PromptRow)
    }
    assert all(row["trace"][0]["kind"] == "mix" and row["trace"][-1]["kind"] == "chosen" for row in rows)


def test_a_guard_that_fails_its_probe_answers_nothing_unless_it_is_told_to(
    invoke: Invoke, prompts: Path, alignbeam_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    recipe = ["-r", alignbeam_recipe, "--set", "probe.harmful=bomb", "--set", "probe.harmless=bread"]
    guarded = ["generate", prompts, *recipe, "-o", out]
    result = invoke(*guarded, "--probe", probe=True)
    assert result.exit_code == 2
    assert "does not refuse its harmful probe" in result.stderr
    assert result.stderr.strip().endswith("or go on all the same with --no-probe.")
    assert not out.exists() or not out.read_text()
    assert invoke(*guarded, "--set", "probe.run=true", probe=True).exit_code == 2
    assert invoke(*guarded, "--set", "probe.run=true").exit_code == 0, "the command line has the last word"
    assert invoke("chat", *recipe, "--probe", probe=True).exit_code == 2


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_that_names_the_file_and_leaves_no_half_line(
    plain_recipe: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("".join(f"bake {number} cakes\n" for number in range(40)))
    command = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    command += "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000)); from anchorlm.cli import main; main()"
    args = ["generate", str(source), "--recipe", str(plain_recipe), "-o", str(out), "--no-probe"]
    result = subprocess.run([sys.executable, "-c", command, *args], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith(f"anchorlm: {str(out)!r} cannot be written")
    assert "Traceback" not in result.stderr
    written = out.read_bytes()
    assert written.endswith(b"\n")
    assert 0 < len([json.loads(line) for line in written.splitlines()]) < 40


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("place", ["/dev/full", "-"])
def test_a_device_that_takes_nothing_is_told_by_its_name(plain_recipe: Path, tmp_path: Path, place: str) -> None:
    source = tmp_path / "in.txt"
    source.write_text("bake a cake\n")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "anchorlm", "generate", str(source), "--recipe", str(plain_recipe)]
        result = subprocess.run(
            [*command, "-o", place, "--no-probe"],
            stdout=full if place == "-" else None,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 2
    assert ("Standard output" if place == "-" else "/dev/full") in result.stderr
    assert "Traceback" not in result.stderr


def test_a_row_whose_tools_do_not_fit_stops_the_command_or_is_skipped_and_named(
    invoke: Invoke, plain_recipe: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": "b", "tools": [{"bad": 1}]}\n{"prompt": "c"}\n')
    result = invoke("generate", source, "-r", plain_recipe, "-o", out)
    assert result.exit_code == 2
    assert "Line 2: A tool is" in result.stderr
    result = invoke("generate", source, "-r", plain_recipe, "-o", out, "--skip-bad")
    assert result.exit_code == 0, result.stderr
    assert {row["index"]: row["prompt"] for row in lines(out)} == {0: "a", 2: "c"}
    assert "1 rows skipped: line 2: A tool is" in result.stderr


def test_a_row_alone_may_be_one_whose_tools_do_not_fit(invoke: Invoke, plain_recipe: Path) -> None:
    result = invoke("generate", "-", "-r", plain_recipe, "--skip-bad", stdin='{"prompt": "b", "tools": [{"bad": 1}]}\n')
    assert result.exit_code == 0, result.stderr
    assert "line 1: A tool is" in result.stderr


def test_a_row_says_of_tools_what_a_request_may_say() -> None:
    said = {"tools": [{"type": "function"}], "tool_choice": "auto", "parallel_tool_calls": False}
    assert offer(PromptRow(0, 1, "a", fields={"prompt": "a", **said})) == said
    assert offer(PromptRow(0, 1, "a", fields={"tools": None, "tool_choice": "", "parallel_tool_calls": None})) == {}


def test_an_answer_with_other_tools_than_the_input_has_is_not_taken_for_done(tmp_path: Path) -> None:
    def row(**fields: Any) -> PromptRow:
        return PromptRow(0, 1, "a", fields={"prompt": "a", **fields})

    out, tools = tmp_path / "out.jsonl", [{"type": "function", "function": {"name": "bake"}}]
    with Output(str(out), [row(tools=tools)], "r") as output:
        output.write(row(tools=tools), Response("b", (), "stop", Usage(1, 1, 1), ()))
    with Output(str(out), [row(tools=tools)], "r") as output:
        assert output.done == {0}
    for other in (row(), row(tools=tools, parallel_tool_calls=False)):
        with pytest.raises(UserError, match="Row 0 of .* was answered with other tools"):
            Output(str(out), [other], "r")


def test_a_row_without_tools_is_written_without_a_word_of_them(tmp_path: Path) -> None:
    row, out = PromptRow(0, 1, "a", fields={"prompt": "a", "tools": None}), tmp_path / "out.jsonl"
    with Output(str(out), [row], "r") as output:
        output.write(row, Response("b", (), "stop", Usage(1, 1, 1), ()))
    assert list(lines(out)[0]) == ["index", "prompt", "response", "finish_reason", "usage", "recipe"]
