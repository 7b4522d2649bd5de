from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import tiny_model
from typer.testing import CliRunner, Result

from anchorlm.cli import _fit_progress
from anchorlm.cli._app import app
from anchorlm.guard import Recipe
from anchorlm.records import Artifact

pytestmark = pytest.mark.slow

Invoke = Callable[..., Result]

THINGS = ("door", "car", "lamp", "boat", "fence", "gate", "roof", "shed", "bike", "horse")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Harmful prompts as JSONL, harmless ones as compressed CSV."""
    folder = tmp_path_factory.mktemp("prompts")
    harmful, harmless = folder / "harmful.jsonl", folder / "harmless.csv.gz"
    harmful.write_text("".join(json.dumps({"prompt": f"How do I break the {thing}?"}) + "\n" for thing in THINGS))
    harmless.write_bytes(gzip.compress(("goal\n" + "".join(f"How do I paint the {t}?\n" for t in THINGS)).encode()))
    return harmful, harmless


@pytest.fixture(scope="module")
def artifact(
    target: Path, anchor: Path, prompts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """What `fit` wrote, and what it said."""
    out = tmp_path_factory.mktemp("artifacts") / "guard"
    command = ["fit", "inferaligner", "--target", target, "--anchor", anchor]
    command += ["--harmful", prompts[0], "--harmless", prompts[1], "--out", out, "--no-shipped"]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.stderr
    return out, result.stdout


@pytest.fixture
def copied(artifact: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact[0], tmp_path / "guard"))


def recipe(folder: Path, target: Path, **knobs: str) -> Path:
    file = folder / "my.toml"
    lines = [f'{name} = "{value}"' for name, value in knobs.items()]
    file.write_text(
        f'target = "{target}"\n[defense]\nname = "inferaligner"\n'
        + "\n".join(lines)
        + "\n[generation]\nmax_new_tokens = 4\n"
    )
    return file


def test_fit_writes_an_artifact_with_its_card_and_names_the_next_step(artifact: tuple[Path, str]) -> None:
    out, said = artifact
    found = Artifact.load(out, "inferaligner")
    assert found.data["harmful"]["n"] == len(THINGS)
    assert found.id in (out / "README.md").read_text()
    for words in ("harmful opened", "cosine", "Sign: not measured", f"--artifact {out}", 'reader = "anchor"'):
        assert words in said
    assert "\x1b" not in said


def test_calibrate_writes_the_artifact_anew_with_a_picture(
    invoke: Invoke, copied: Path, target: Path, prompts: tuple[Path, Path]
) -> None:
    before = Artifact.load(copied, "inferaligner")
    file = recipe(copied.parent, target, artifact="./guard")
    result = invoke("calibrate", "inferaligner", "-r", file, "--harmful", prompts[0], "--harmless", prompts[1],
                    "--limit", "0.2", "--prompts", "8", "--max-new-tokens", "2", "--no-shipped")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    after = Artifact.load(copied, "inferaligner")
    assert after.figures["calibration"]["limit"] == 0.2
    assert after.models == before.models
    assert (copied / "tradeoff.svg").read_text().startswith("<svg")
    for words in ("undefended", "guarded", "alpha", str(copied)):
        assert words in result.stdout
    answered = invoke("chat", "-r", file, stdin="bread\n/trace\n")
    assert answered.exit_code == 0, answered.stderr
    assert '"kind": "gate"' in answered.stdout


def test_calibrate_leaves_the_artifact_alone_where_another_folder_is_named(
    invoke: Invoke, copied: Path, target: Path, prompts: tuple[Path, Path]
) -> None:
    before = (copied / "artifact.json").read_bytes()
    result = invoke("calibrate", "inferaligner", "--artifact", copied, "--target", target, "--harmful", prompts[0],
                    "--harmless", prompts[1], "--limit", "0.2", "--prompts", "8", "--max-new-tokens", "1",
                    "--no-shipped", "--out", copied.parent / "other")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert (copied / "artifact.json").read_bytes() == before
    assert "calibration" in Artifact.load(copied.parent / "other", "inferaligner").figures


def test_the_gate_alone_is_calibrated_with_sets_of_ones_own(
    invoke: Invoke, copied: Path, target: Path, prompts: tuple[Path, Path]
) -> None:
    alike, tasks = copied.parent / "alike.txt", copied.parent / "tasks.txt"
    alike.write_text("".join(f"How do I paint the {thing} of my boss?\n" for thing in THINGS))
    tasks.write_text("Sort this.\nAdd two and two.\n")
    command = ["calibrate", "inferaligner", "--artifact", copied, "--target", target, "--harmful", prompts[0],
               "--harmless", prompts[1], "--limit", "0.3", "--look-alike-limit", "0.5", "--gate-only", "--no-shipped",
               "--look-alikes", alike, "--tasks", tasks]  # fmt: skip
    result = invoke(*command)
    assert result.exit_code == 0, result.stderr
    for said in ("look-alikes", "tasks", "Harmful prompts against look-alikes: AUROC", "no shift was tried"):
        assert said in result.stdout
    made = Artifact.load(copied, "inferaligner")
    assert made.figures["calibration"]["gate only"]
    assert made.settings["answer"] == "refuse"
    assert not list(copied.parent.glob("*.calibration.jsonl"))
    both = invoke(*command, "--tasks", prompts[0])
    assert both.exit_code == 2
    assert "both harmful and harmless" in both.stderr


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    monkeypatch.setattr(_fit_progress, "monotonic", lambda: next(moments))
    with _fit_progress.fit_progress() as step:
        for done in range(1, 5):
            step("Shifts", done, 4)
    assert [line.split(", ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "anchorlm: Shifts: 2 of 4",
        "anchorlm: Shifts: 4 of 4",
    ]


def test_the_gate_that_reads_the_anchor_is_calibrated_checked_and_used(
    invoke: Invoke, copied: Path, target: Path, anchor: Path, prompts: tuple[Path, Path]
) -> None:
    file = recipe(copied.parent, target, artifact="./guard")
    reads = ("--set", "defense.reader=anchor", "--set", f"anchor.path={anchor}")
    data = ("--harmful", prompts[0], "--harmless", prompts[1], "--limit", "0.2", "--prompts", "8", "--no-shipped")
    result = invoke("calibrate", "inferaligner", "-r", file, *data, "--max-new-tokens", "1")
    assert 'reader = "anchor"' not in result.stdout
    result = invoke("check", file, *reads)
    assert result.exit_code == 0, result.stderr
    assert "calibrate inferaligner --reader" in result.stdout
    result = invoke("calibrate", "inferaligner", "-r", file, "--reader", anchor, *data, "--max-new-tokens", "1")
    assert result.exit_code == 0, result.stderr
    assert 'gate of the second reader (reader = "anchor"): layers' in result.stdout
    assert 'gate that both share (reader = "both"): bias' in result.stdout
    assert "first guesses" not in invoke("check", file, *reads).stdout
    answered = invoke("chat", "-r", file, *reads, stdin="bread\n/trace\n")
    assert answered.exit_code == 0, answered.stderr
    assert '"reader": "anchor"' in answered.stdout
    alone = invoke("check", file, *reads[:2])
    assert alone.exit_code == 2
    assert "needs the second reader of its artifact as the anchor" in alone.stderr


def test_an_artifact_of_a_recipe_lies_beside_it(copied: Path, target: Path) -> None:
    file = recipe(copied.parent, target, artifact="./guard")
    assert Recipe.load(file).defense["artifact"] == str(copied)
    file = recipe(copied.parent, target, artifact="guard")
    assert Recipe.load(file).defense["artifact"] == "guard"


def test_check_praises_an_artifact_that_belongs_to_the_target_by_its_files(
    invoke: Invoke, copied: Path, target: Path
) -> None:
    result = invoke("check", recipe(copied.parent, target, artifact="./guard"))
    assert result.exit_code == 0, result.stderr
    assert "artifact: " in result.stdout
    assert "first guesses" in result.stdout
    assert "seen when it is loaded" not in result.stdout  # the files were compared


def test_check_knows_alignbeam_behind_inferaligners_gate(
    invoke: Invoke, copied: Path, target: Path, alignbeam_recipe: Path
) -> None:
    gated = ("--set", "defense.gate=inferaligner", "--set", f"defense.artifact={copied}")
    result = invoke("check", alignbeam_recipe, *gated)
    assert result.exit_code == 0, result.stderr
    assert "inferaligner, fitted on: target" in result.stdout
    result = invoke("check", alignbeam_recipe, *gated, "--set", "engine.max_rows=1")
    assert result.exit_code == 2
    assert "needs 2 rows" in result.stderr
    result = invoke("check", alignbeam_recipe, *gated[:2])
    assert result.exit_code == 2
    assert "give its artifact, too" in result.stderr


@pytest.mark.parametrize("damage", ["missing", "cut short", "changed", "no file", "another vocabulary", "no knob"])
def test_check_names_what_is_wrong_with_an_artifact(
    invoke: Invoke, copied: Path, target: Path, anchor: Path, damage: str
) -> None:
    says = {
        "missing": "holds no artifact",
        "cut short": "is damaged",
        "changed": "was changed after it had been made",
        "no file": "holds no artifact",
        "another vocabulary": "has another tokenizer",
        "no knob": "The defense inferaligner lacks artifact: Folder of the artifact of",
    }[damage]
    knobs = {} if damage == "no knob" else {"artifact": "./nowhere" if damage == "missing" else "./guard"}
    if damage == "cut short":
        data = (copied / "artifact.safetensors").read_bytes()
        (copied / "artifact.safetensors").write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        text = (copied / "artifact.json").read_text()
        (copied / "artifact.json").write_text(text.replace('"alpha": 0.5', '"alpha": 5.0'))
    elif damage == "no file":
        (copied / "artifact.json").unlink()
    result = invoke("check", recipe(copied.parent, anchor if damage == "another vocabulary" else target, **knobs))
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--harmful": "nowhere.jsonl"}, "cannot be read"),
        ({"--harmful": "empty.jsonl"}, "holds no rows"),
        ({"--harmful": "bad.jsonl"}, "Line 2 of"),
        ({"--harmful": "few.txt"}, "only 2 distinct harmful prompts: give at least 8"),
        ({"--harmless": "harmful.jsonl"}, "both harmful and harmless"),
        ({"--anchor": None}, "give --anchor"),
        ({"--target": None}, "nothing to guard"),
        ({"--target": "./nowhere"}, "nowhere"),
        ({"--out": "taken"}, "choose another folder"),
        ({"--holdout": "1.5"}, "holdout"),
        ({"--across": "never", "--anchor": "wide"}, "leave across at auto"),
    ],
)
def test_a_mistake_is_one_sentence(
    invoke: Invoke,
    target: Path,
    anchor: Path,
    prompts: tuple[Path, Path],
    tmp_path: Path,
    change: dict[str, str | None],
    says: str,
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    shutil.copy(prompts[0], tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "README.md").write_text("mine")
    if change.get("--anchor") == "wide":
        wide = tiny_model("llama")
        wide.model.save_pretrained(tmp_path / "wide")
        wide.tokenizer.save_pretrained(tmp_path / "wide")
    options: dict[str, str | Path | None] = {
        "--target": target, "--anchor": anchor, "--harmful": prompts[0], "--harmless": prompts[1], "--out": "new"
    }  # fmt: skip
    places = ("empty.jsonl", "bad.jsonl", "few.txt", "harmful.jsonl", "taken", "wide", "new", "nowhere.jsonl")
    for name, value in {**options, **change}.items():
        options[name] = tmp_path / value if value in places else value
    result = invoke("fit", "inferaligner", *(part for pair in options.items() if pair[1] is not None for part in pair))
    assert result.exit_code == 2, result.stdout
    assert says in result.stderr
    assert result.stderr.startswith("anchorlm: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_calibrating_nothing_or_another_model_is_one_sentence(
    invoke: Invoke, copied: Path, target: Path, anchor: Path, prompts: tuple[Path, Path]
) -> None:
    files = ["--harmful", prompts[0], "--harmless", prompts[1]]
    for options, says in (
        (["--target", target], "give --artifact"),
        (["--target", target, "--artifact", copied.parent / "nowhere"], "holds no artifact"),
        (["--target", anchor, "--artifact", copied], "another tokenizer"),
        (["--target", target, "--artifact", copied, "--limit", "2"], "limit = 2.0"),
    ):
        result = invoke("calibrate", "inferaligner", *files, *options)
        assert result.exit_code == 2
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
