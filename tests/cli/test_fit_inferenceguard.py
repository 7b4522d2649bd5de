from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification
from typer.testing import CliRunner, Result

from anchorlm.cli._app import app
from anchorlm.cli._recipes import digest
from anchorlm.guard import Guard, Recipe
from anchorlm.records import Artifact

pytestmark = pytest.mark.slow

Invoke = Callable[..., Result]
THINGS = ("door", "car", "lamp", "boat", "fence", "gate", "roof", "shed", "bike", "horse")


def _tell_refusals(model: LlamaForSequenceClassification) -> None:
    """Turns the head so that a refusal costs less than the babble of a random target."""
    tokenizer, states = tiny_tokenizer(), []
    for texts in (["I'm sorry, but I can't help with that."], ["x7!kQ o", "the brown 42 ju", "z z\u00fc \u00fc", "qq"]):
        rows = []
        for thing in THINGS:
            for text in texts:
                ask = [
                    {"role": "user", "content": f"How do I break the {thing}?"},
                    {"role": "assistant", "content": text},
                ]
                ids = tokenizer.apply_chat_template(ask, return_tensors="pt", return_dict=True)["input_ids"]
                with torch.no_grad():
                    rows.append(model.model(ids).last_hidden_state[0, -1])
        states.append(torch.stack(rows).mean(dim=0))
    with torch.no_grad():
        model.score.weight.copy_((states[1] - states[0])[None])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, target: Path) -> Path:
    """Prompts, two scorers and a recipe of them."""
    place = tmp_path_factory.mktemp("guard")
    for name, verb in (("harmful", "break"), ("harmless", "paint")):
        rows = "".join(json.dumps({"prompt": f"How do I {verb} the {thing}?"}) + "\n" for thing in THINGS)
        (place / f"{name}.jsonl").write_text(rows)
    for seed, name in enumerate(("cost", "reward")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=256, num_labels=1, pad_token_id=0, bos_token_id=None, initializer_range=0.3,
        )  # fmt: skip
        model = LlamaForSequenceClassification(config).eval()
        if name == "cost":
            _tell_refusals(model)
        model.save_pretrained(place / name)
        tiny_tokenizer(pad_token="<|endoftext|>").save_pretrained(place / name)
    (place / "my.toml").write_text(
        f'target = "{target}"\ncost = "./cost"\nreward = "./reward"\n'
        '[defense]\nname = "inferenceguard"\nbudget = 1000.0\nblock = 3\nbeams = [2]\n'
        "[generation]\nmax_new_tokens = 7\n"
    )
    return place


def chat(invoke: Invoke, result: Result) -> Result:
    """Runs the command that a result names as the next one."""
    [line] = [line for line in result.stdout.splitlines() if line.startswith("  anchorlm chat ")]
    return invoke(*shlex.split(line)[1:], stdin="Hello?\n")


def test_fit_trains_a_critic_that_the_recipe_can_use(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "critic"
    result = invoke("fit", "inferenceguard", "-r", folder / "my.toml", "--harmful", folder / "harmful.jsonl",
                    "--harmless", folder / "harmless.jsonl", "--out", out, "--rollouts", "1", "--epochs", "2",
                    "--hidden", "8")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert Artifact.load(out, "inferenceguard").settings["block"] == 3
    assert not list(tmp_path.glob("*.jsonl"))
    for words in ("AUROC", "harmless rollouts are within budget", "defense.critic="):
        assert words in result.stdout
    told = chat(invoke, result)
    assert told.exit_code == 0, told.stderr
    recipe = Recipe.load(folder / "my.toml", {"defense.critic": str(out)})
    moved = shutil.copytree(folder, tmp_path / "another machine")  # scorers are known by their weights
    changes = ["--set", f"defense.critic={out}"]
    answered = invoke("chat", "-r", moved / "my.toml", *changes, stdin="Hello?\n")
    assert (answered.exit_code, answered.stdout) == (0, told.stdout), answered.stderr
    control = tmp_path / "control.toml"
    control.write_text(
        f'target = "{recipe.target.path}"\n[defense]\nname = "re_control"\n[generation]\nmax_new_tokens = 7\n'
    )
    assert "critic" in invoke("check", control).stderr
    checked = invoke("check", control, *changes)
    assert checked.exit_code == 0, checked.stderr
    assert invoke("chat", "-r", control, *changes, stdin="Hello?\n").exit_code == 0
    refused = invoke("calibrate", "inferenceguard", "-r", folder / "my.toml", "--labels", folder / "harmful.jsonl",
                     "--out", out)  # fmt: skip
    assert "write unsafe as true or false" in refused.stderr
    refused = invoke("calibrate", "inferenceguard", "-r", folder / "my.toml", "--labels",
                     labeled(folder, tmp_path / "labels.jsonl", 1), "--out", out)  # fmt: skip
    assert "holds an artifact of inferenceguard: choose another folder" in refused.stderr
    recipe = Recipe.load(folder / "my.toml", {"defense.critic": str(out)})
    assert Guard.from_recipe(recipe).chat([{"role": "user", "content": "Hello?"}]).finish_reason != "refusal"


def labeled(folder: Path, file: Path, n: int, **fields: Any) -> Path:
    guard = Guard.from_recipe(folder / "my.toml")
    prompts = [f"Tell me of {index}." for index in range(n)]
    rows = [
        {"prompt": prompt, "response": one.text, "finish_reason": one.finish_reason, "unsafe": False, **fields}
        for prompt, one in zip(prompts, guard.generate(prompts), strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_fit_without_a_recipe_names_a_next_command_that_runs(
    invoke: Invoke, folder: Path, target: Path, tmp_path: Path
) -> None:
    changes = ["defense.budget=1000.0", "defense.block=3", "generation.max_new_tokens=7"]
    result = invoke("fit", "inferenceguard", "--target", target, "--cost", folder / "cost", "--reward",
                    folder / "reward", "--harmful", folder / "harmful.jsonl", "--harmless", folder / "harmless.jsonl",
                    "--out", tmp_path / "critic", "--rollouts", "1", "--epochs", "1", "--hidden", "8",
                    *(word for change in changes for word in ("--set", change)))  # fmt: skip
    assert result.exit_code == 0, result.stderr
    told = chat(invoke, result)
    assert told.exit_code == 0, told.stderr


def test_every_label_counts_whatever_the_file_and_its_last_line(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in labeled(folder, tmp_path / "labels.jsonl", 9).read_text().splitlines()]
    rows[-1]["unsafe"] = True
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "cut.jsonl").write_text(lines)
    (tmp_path / "whole.jsonl").write_text(lines.replace("\n", "\n\n") + "\n")
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    said = []
    for name in ("cut.jsonl", "whole.jsonl", "table.csv"):
        command = ["calibrate", "inferenceguard", "-r", folder / "my.toml", "--labels", tmp_path / name]
        result = invoke(*command, "--out", tmp_path / name.partition(".")[0], "--risk", "0.1")
        assert result.exit_code == 0, result.stderr
        assert "By 9 labels" in result.stdout
        assert "unsafe: 1 and 0" in result.stdout
        assert "note: 1 of 9 prompts got an unsafe response" in result.stdout
        assert "has to refuse 1 more of them (11 %)" in result.stdout
        said.append(result.stdout.partition(" ")[2].partition(" (")[0])
    assert len(set(said)) == 1
    assert "budget alone" not in said[0]
    (tmp_path / "bad.jsonl").write_text(json.dumps({"messages": ["x"], "response": "Yes.", "unsafe": False}))
    bad = invoke(*command[:-1], tmp_path / "bad.jsonl", "--out", tmp_path / "bad")
    assert bad.exit_code == 2
    assert "Line 1 of" in bad.stderr
    assert bad.stderr.count("\n") == 1
    gone = invoke(*command[:-1], tmp_path / "gone.jsonl", "--out", tmp_path / "bad")
    assert "cannot be read" in gone.stderr


def test_calibrate_prints_its_statement_and_refuses_what_another_recipe_answered(
    invoke: Invoke, folder: Path, tmp_path: Path
) -> None:
    recipe = folder / "my.toml"
    labels = labeled(folder, tmp_path / "labels.jsonl", 9, recipe=digest(Recipe.load(recipe)))
    command = ["calibrate", "inferenceguard", "-r", recipe, "--labels", labels, "--out", tmp_path / "limit"]
    result = invoke(*command, "--risk", "0.1", "--labeler", "two annotators")
    assert result.exit_code == 0, result.stderr
    assert "By 9 labels of two annotators" in result.stdout
    assert "It does not hold under attack" in result.stdout
    guard = Guard.from_recipe(Recipe.load(recipe, {"defense.calibration": str(tmp_path / "limit")}))
    assert guard.chat("Tell me of 1.").text
    told = chat(invoke, result)
    assert told.exit_code == 0, told.stderr

    few = invoke(*command, "--risk", "0.05", "--method", "ltt")
    assert few.exit_code == 2
    assert "give at least 59" in few.stderr
    command[5] = labeled(folder, tmp_path / "outage.jsonl", 9, failed=True)
    assert "was refused because a model failed" in invoke(*command, "--risk", "0.1").stderr
    command[5] = labeled(folder, tmp_path / "stale.jsonl", 9, pipeline="0123456789abcdef")
    assert "was answered by other weights, scorers or a critic" in invoke(*command, "--risk", "0.1").stderr
    command[5] = labels
    other = invoke(*command, "--risk", "0.1", "--set", "defense.retries=1")
    assert other.exit_code == 2
    assert "answered with another recipe" in other.stderr
    (tmp_path / "bare.jsonl").write_text(json.dumps({"prompt": "Hello?", "response": "Yes."}) + "\n")
    bare = invoke(
        "calibrate", "inferenceguard", "-r", recipe, "--labels", tmp_path / "bare.jsonl", "--out", tmp_path / "x"
    )
    assert bare.exit_code == 2
    assert "Line 1 of" in bare.stderr
    assert "write unsafe as true or false" in bare.stderr


def test_answers_say_which_pipeline_gave_them_and_which_came_of_a_failure(
    invoke: Invoke, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("Tell me of 1.\n")
    command = ["generate", tmp_path / "in.txt", "-r", folder / "my.toml", "-o"]
    result = invoke(*command, tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.stderr
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["pipeline"] == Guard.from_recipe(folder / "my.toml").defense.pipeline  # type: ignore[attr-defined]
    assert "failed" not in row


def test_what_is_missing_is_said_at_once(invoke: Invoke, folder: Path, target: Path, tmp_path: Path) -> None:
    files = ["--harmful", folder / "harmful.jsonl", "--harmless", folder / "harmless.jsonl", "--out", tmp_path / "x"]
    result = invoke("fit", "inferenceguard", "--target", target, *files)
    assert result.exit_code == 2
    assert "give --cost MODEL and --reward MODEL" in result.stderr
    assert CliRunner().invoke(app, ["fit", "--help"]).stdout.count("inferenceguard") == 1


def test_check_looks_at_the_scorers_too(invoke: Invoke, folder: Path) -> None:
    fine = invoke("check", folder / "my.toml")
    assert fine.exit_code == 0, fine.stderr
    for change, said in (("cost.model.path=./nowhere", "cost:"), ("defense.critic=./none", "critic:")):
        missing = invoke("check", folder / "my.toml", "--set", change)
        assert missing.exit_code == 2
        assert said in missing.stderr
