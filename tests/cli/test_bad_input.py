from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast
from typer.testing import Result

Invoke = Callable[..., Result]
Save = Callable[..., Path]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, target: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("broken")
    found = {name: folder / name for name in ("weightless", "nan", "latin", "chinese", "file")}
    for name in ("weightless", "nan", "latin", "chinese"):
        shutil.copytree(target, found[name])
    (found["weightless"] / "model.safetensors").unlink()
    weights = {
        name: torch.full_like(value, torch.nan) for name, value in load_file(target / "model.safetensors").items()
    }
    save_file(weights, found["nan"] / "model.safetensors", metadata={"format": "pt"})
    for name, words in (("latin", ("hello", "you")), ("chinese", ("你", "好"))):
        backend = Tokenizer(WordPiece({word: n for n, word in enumerate(("[UNK]", *words))}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[UNK]")
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        tokenizer.save_pretrained(found[name])
    found["file"].write_text("no folder")
    return found


CASES = {
    "an unknown model path": (["--target", "./no/such/folder", "--defense", "undefended"], "no folder"),
    "a folder without weights": (["--target", "{weightless}", "--defense", "undefended"], "safetensors"),
    "a file as a model": (["--target", "{file}", "--defense", "undefended"], "is a file"),
    "weights that are no numbers": (
        ["--target", "{nan}", "--defense", "undefended"],
        "logits that are not numbers: check its weights",
    ),
    "tokenizers that share nothing": (
        ["--target", "{latin}", "--anchor", "{chinese}", "--judge", "refusal"],
        "they share nothing; choose an anchor",
    ),
    "an anchor for nothing": (["--target", "{target}", "--defense", "undefended", "--anchor", "{anchor}"], "anchor"),
    "a missing anchor": (["--target", "{target}", "--judge", "refusal"], "anchor"),
    "a missing judge": (["--target", "{target}", "--anchor", "{anchor}"], "judge"),
    "an unknown defense": (["--target", "{target}", "--defense", "prayer"], "installed are"),
    "a knob out of range": (
        ["--target", "{target}", "--anchor", "{anchor}", "--judge", "refusal", "--set", "defense.alpha=1.4"],
        "alpha = 1.4",
    ),
    "an unknown knob": (["--target", "{target}", "--defense", "undefended", "--set", "defense.x=1"], "no setting"),
    "a change without a value": (["--target", "{target}", "--set", "defense.alpha"], "name=value"),
    "a section that is none": (["--target", "{target}", "--set", "target.path.x=1"], "section"),
    "nothing to guard": ([], "--recipe"),
    "no such recipe": (["--recipe", "no.toml"], "no.toml"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence_and_exit_code_two(
    invoke: Invoke, target: Path, anchor: Path, broken: dict[str, Path], tmp_path: Path, case: str
) -> None:
    options, said = CASES[case]
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("Hi\n")
    places = {name: str(path) for name, path in {**broken, "target": target, "anchor": anchor}.items()}
    result = invoke("generate", source, *(option.format(**places) for option in options), "-o", out)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    spoken = result.stderr.strip().splitlines()
    assert said in spoken[-1]
    assert len(spoken) == 1
    assert "Traceback" not in result.stderr
    assert not out.exists() or not out.read_bytes()


FILES = {
    "in.txt": b"Hi\n",
    "empty.jsonl": b"",
    "bad.jsonl": b'{"prompt": "a"}\n{oops\n',
    "table.csv": b"a,b\n1,2\n",
    "list.json": b"[1, 2",
    "bytes.txt": b"\xff\xfe",
    "cut.jsonl.gz": b"\x1f\x8b\x08",
    "recipe.json": b'{"target": "x"}',
    "key.toml": b'target = "x"\ndefense = "undefended"\ncolour = "red"\n',
    "dtype.toml": b'defense = "undefended"\n[target]\npath = "x"\ndtype = "float12"\n',
    "folder/file": b"",
}
ALOUD = {
    "generate": "Missing argument 'INPUT' (see",
    "generate nothing.toml": "--recipe FILE",
    "generate nothing.jsonl -r {plain}": "(No such file or directory): give a file of prompts",
    "generate folder -r {plain}": "(Is a directory): give a file of prompts",
    "generate empty.jsonl -r {plain}": "give at least one prompt",
    "generate bad.jsonl -r {plain}": "Line 2 cannot be answered: it is not valid JSON",
    "generate table.csv -r {plain}": "name one of these with --column",
    "generate list.json -r {plain}": "fix it, or give a JSON object on each line",
    "generate bytes.txt -r {plain}": "give JSONL, CSV, JSON or text lines",
    "generate cut.jsonl.gz -r {plain}": "make it again",
    "generate in.txt -r nothing.toml": "(No such file or directory): give a TOML file",
    "generate in.txt -r folder": "(Is a directory): give a TOML file",
    "generate in.txt -r recipe.json": "is not valid TOML",
    "generate in.txt -r key.toml": "has no setting 'colour'; it has: anchor",
    "generate in.txt -r {plain} --set defense.alpha=0.5": "has no setting 'alpha'; it has: refusal",
    "generate in.txt -r {plain} --colour red": "No such option: --colour",
    "generate in.txt -r {plain} --limit many": "Invalid value for '--limit'",
    "generate in.txt -r {plain} --concurrency 0": "Invalid value for '--concurrency'",
    "generate in.txt -r": "requires an argument (see",
    "generate in.txt -r {plain} -o folder": "choose another output",
    "generat in.txt": "Did you mean 'generate'?",
    "--colour": "No such option: --colour (see",
    "chat": "--recipe FILE",
    "check nothing.toml": "give a TOML file",
    "check recipe.json": "start from what the command anchorlm zoo recipe",
    "check dtype.toml": "target.dtype = 'float12' does not fit the recipe dtype.toml: input should be 'auto'",
    "demo --limit 0": "Invalid value for '--limit'",
    "zoo path nothing": "choose one of",
    "zoo recipe a-finance --defense prayer": "installed are",
}


@pytest.mark.parametrize("line", ALOUD)
def test_what_the_command_line_says_of_a_mistake_is_one_sentence_with_the_remedy(
    invoke: Invoke, plain_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "folder").mkdir()
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    result = invoke(*line.format(plain=plain_recipe).split())
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert not result.stdout
    [said] = result.stderr.splitlines()
    assert said.startswith("anchorlm: ")
    assert said.endswith(".")
    assert ALOUD[line] in said


def test_a_tokenizer_without_a_template_is_announced_and_served(
    invoke: Invoke, save_model: Save, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "plain", vocabulary=300, seed=0, template=None)
    result = invoke("generate", "-", "--target", model, "--defense", "undefended", stdin="Hi\n")
    assert result.exit_code == 0
    assert "no chat template" in result.stderr


def test_a_judge_without_sense_leads_to_the_refusal(
    invoke: Invoke, save_model: Save, target: Path, anchor: Path, tmp_path: Path
) -> None:
    judge = save_model(tmp_path / "judge", vocabulary=300, seed=3, context=2048)
    short = ["--set", "generation.max_new_tokens=4", "--set", "judge.options.max_new_tokens=2", "--trace"]
    result = invoke("generate", "-", "--target", target, "--anchor", anchor, "--judge", judge, *short, stdin="Hi\n")
    assert result.exit_code == 0, result.stderr
    assert '"finish_reason": "refusal"' in result.stdout
    assert '"kind": "fallback"' in result.stdout


def test_a_real_process_shows_a_traceback_only_for_debug(start: Start) -> None:
    plain = start("generate", "nowhere.jsonl", "--target", "./no/such")
    debug = start("generate", "nowhere.jsonl", "--target", "./no/such", "--debug")
    said, debugged = plain.communicate()[1], debug.communicate()[1]
    assert (plain.returncode, len(said.strip().splitlines())) == (2, 1)
    assert said.startswith("anchorlm: ")
    assert "Traceback" in debugged
    assert "UserError" in debugged
