from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)
from typer.testing import Result

from anchorlm.guard import Guard, Recipe, examine
from anchorlm.records import UserError

Invoke = Callable[..., Result]
Save = Callable[..., Path]


def recipe(**sections: Any) -> Recipe:
    defaults = {"defense": {"name": "undefended"}, "generation": {"max_new_tokens": 8}}
    return Recipe.parse({**defaults, **sections}, where="a test")


@pytest.fixture(scope="module")
def bulky(tmp_path_factory: pytest.TempPathFactory, target: Path) -> Path:
    """A folder whose weights take 48 GB behind a true header, without a byte on the disk, so that nobody reads them."""
    folder = tmp_path_factory.mktemp("bulky") / "model"
    shutil.copytree(target, folder)
    hollow(folder, LlamaForCausalLM, intermediate_size=2**26)
    return folder


def hollow(folder: Path, kind: type[PreTrainedModel], **changes: Any) -> None:
    """Puts a header without contents in place of a folder's weights, for its configuration with `changes`."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with torch.device("meta"):
        model = kind(LlamaConfig.from_pretrained(folder))
    header, size = {}, 0
    for name, weight in model.state_dict().items():
        last = size + 4 * weight.numel()
        header[name] = {"dtype": "F32", "shape": list(weight.shape), "data_offsets": [size, last]}
        size = last
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + size)


def test_a_recipe_that_works_is_praised_without_reading_a_weight(
    invoke: Invoke, alignbeam_recipe: Path, bulky: Path
) -> None:
    result = invoke("check", alignbeam_recipe, "--set", f"target={bulky}")
    assert result.exit_code == 0, result.stderr
    assert "works" in result.stdout
    assert "llama" in result.stdout


def test_python_finds_what_the_command_prints(invoke: Invoke, alignbeam_recipe: Path, bulky: Path) -> None:
    printed = invoke("check", alignbeam_recipe, "--set", f"target={bulky}").stdout
    found = Guard.check(alignbeam_recipe, target=str(bulky))
    assert found.passed
    assert str(found) == printed.rpartition("\n")[0].rpartition("\n")[0]
    assert not Guard.check(alignbeam_recipe, target=str(bulky), **{"defense.alpha": 7}).passed


def test_all_faults_of_a_recipe_are_named_at_once_and_before_its_models(
    invoke: Invoke, tmp_path: Path, target: Path
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        f'target = "{target}"\nanchor = "./nowhere"\n[defense]\nname = "alignbeam"\nalpha = 1.4\n'
        "[generation]\nmax_new_tokens = 1000\n"
    )
    result = invoke("check", file)
    assert result.exit_code == 2
    for said in ("no folder", "give a judge", "alpha = 1.4"):
        assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 3
    assert "models: not looked at yet" in result.stdout


def test_all_gaps_of_the_models_are_named_at_once(target: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(target, bare)
    for file in bare.glob("*token*"):
        file.unlink()
    found = examine(recipe(target=str(target), anchor=str(bare), judge={"kind": "refusal"},
                           defense={"name": "alignbeam"}, generation={"max_new_tokens": 1000}))  # fmt: skip
    assert [gap.partition(":")[0] for gap in found.gaps] == ["anchor", "generation"]


def test_what_is_superfluous_is_named(target: Path, anchor: Path) -> None:
    found = examine(recipe(target=str(target), anchor=str(anchor), judge={"kind": "refusal"}))
    assert [("anchor" in gap, "judge" in gap) for gap in found.gaps] == [(True, False), (False, True)]


def test_vocabularies_that_must_be_one_are_compared(target: Path, anchor: Path) -> None:
    other = examine(recipe(target=str(target), anchor=str(anchor), defense={"name": "safe_decoding"}))
    assert len(other.gaps) == 1
    assert "one vocabulary" in other.gaps[0]
    same = examine(recipe(target=str(target), anchor=str(target), defense={"name": "safe_decoding"}))
    assert same.gaps == []


def test_a_judge_without_room_for_rubric_and_answer_is_a_gap(target: Path, anchor: Path) -> None:
    found = examine(
        recipe(
            target=str(target),
            anchor=str(anchor),
            judge={"model": str(target)},
            defense={"name": "alignbeam"},
            generation={"max_new_tokens": 40},
        )
    )
    assert len(found.gaps) == 1
    assert "the rubric and an answer" in found.gaps[0]


def test_an_anchor_that_reads_less_is_a_note(save_model: Save, target: Path, tmp_path: Path) -> None:
    short = save_model(tmp_path / "short", vocabulary=320, seed=2, context=128)
    found = examine(
        recipe(
            target=str(target),
            anchor=str(short),
            judge={"kind": "refusal"},
            defense={"name": "alignbeam"},
            generation={"max_new_tokens": 8},
        )
    )
    assert found.gaps == []
    assert len(found.notes) == 1


def test_a_model_that_keeps_a_state_is_a_gap(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mamba"
    shutil.copytree(target, folder)
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder)
    found = examine(recipe(target=str(folder)))
    assert len(found.gaps) == 1
    assert "mamba" in found.gaps[0]
    assert "choose a decoder" in found.gaps[0]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, target: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    wide = LlamaConfig(vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    deep = LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    bases = {
        "fitting": AutoModelForCausalLM.from_pretrained(target),
        "wide": LlamaForCausalLM(wide),
        "deep": LlamaForCausalLM(deep),
    }
    for name, base in bases.items():
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(base, lora).save_pretrained(root / name)
    for name in ("pickled", "cut", "headless"):
        shutil.copytree(root / "fitting", root / name)
    weights = root / "pickled" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    (root / "cut" / "adapter_model.safetensors").write_bytes(b"cut")
    (root / "headless" / "adapter_config.json").unlink()
    shutil.copy(target / "config.json", root / "headless")
    return {name: root / name for name in (*bases, "pickled", "cut", "headless", "missing")}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "There is no folder"),
        ("pickled", "only pickled weights"),
        ("cut", "download it again"),
        ("headless", "is no PEFT adapter: give"),
        ("wide", "q_proj is 32 x 32 there, and not 48 wide): give the base model that it was trained on"),
        ("deep", "which has no model.layers.2.self_attn.q_proj): give the base model"),
    ],
)
def test_an_adapter_that_cannot_be_put_on_is_a_gap_and_an_error(
    bulky: Path, target: Path, adapters: dict[str, Path], name: str, said: str
) -> None:
    found = examine(recipe(target={"path": str(bulky), "adapter": str(adapters[name])}))
    assert len(found.gaps) == 1
    assert said in found.gaps[0]
    with pytest.raises(UserError) as raised:
        Guard.from_recipe(recipe(target={"path": str(target), "adapter": str(adapters[name])}))
    assert said in str(raised.value)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_that_fits_is_no_gap_and_another_name_of_its_base_is_announced(
    invoke: Invoke, bulky: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder, file = tmp_path / "adapter", tmp_path / "adapter.toml"
    shutil.copytree(adapters["fitting"], folder)
    file.write_text(f'defense = "undefended"\n[target]\npath = "{bulky}"\nadapter = "{folder}"\n')
    settings = json.loads((folder / "adapter_config.json").read_text())
    for base, announced in (("org/MODEL", False), ("org/another", True)):
        (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
        result = invoke("check", file, "--set", "generation.max_new_tokens=8")
        assert result.exit_code == 0, result.stderr
        assert ("names 'org/another' as its base model" in result.stderr) == announced


ALIGNBEAM: dict[str, Any] = {"name": "alignbeam", "candidates": 5}
LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "more candidates than rows": (ALIGNBEAM, {"max_rows": 4}),
    "more tokens than there is room for": (ALIGNBEAM, {"max_tokens": 40}),
    "an anchor that looks ahead": ({**ALIGNBEAM, "projection": "lookahead"}, {"max_rows": 12}),
    "many samples": ({"name": "best_of_n", "n": 9}, {"max_rows": 8}),
    "one long answer": ({"name": "undefended"}, {"max_tokens": 8}),
}


@pytest.mark.parametrize("case", LIMITS)
def test_an_engine_that_cannot_hold_the_defense_is_named_as_the_engine_would(
    target: Path, anchor: Path, case: str
) -> None:
    defense, engine = LIMITS[case]
    sections: dict[str, Any] = {"target": str(target), "defense": defense}
    if defense["name"] != "undefended":
        sections["judge"] = {"kind": "refusal"}
    if defense["name"] == "alignbeam":
        sections["anchor"] = str(anchor)
    assert examine(recipe(**sections)).gaps == []
    tight = recipe(**sections, engine=engine)
    with pytest.raises(UserError) as raised:
        Guard.from_recipe(tight).chat([{"role": "user", "content": "?"}])
    assert examine(tight).gaps == [f"engine: {raised.value}"]


def test_an_engine_that_cannot_hold_the_judge_s_candidates_is_a_gap(
    target: Path, save_model: Save, tmp_path: Path
) -> None:
    judge = save_model(tmp_path / "judge", vocabulary=300, seed=3, context=4096)
    sections = {"target": str(target), "judge": {"model": str(judge)}, "defense": {"name": "best_of_n", "n": 4}}
    assert examine(recipe(**sections)).gaps == []
    [gap] = examine(recipe(**sections, engine={"max_tokens": 1000})).gaps
    assert f"on {judge}" in gap
    assert "raise max_rows or max_tokens" in gap


def test_a_classifier_is_examined_without_reading_a_weight(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "classifier"
    shutil.copytree(target, folder)
    hollow(folder, LlamaForSequenceClassification, intermediate_size=2**26)

    def gaps(options: dict[str, Any] | None = None, **model: Any) -> list[str]:
        judge = {
            "kind": "classifier",
            "model": {"path": str(folder), **model},
            "options": {"harm_label": 1, **(options or {})},
        }
        return examine(recipe(target=str(target), judge=judge, defense={"name": "best_of_n", "n": 2})).gaps

    assert gaps() == []
    for found, said in (
        (gaps({"harm_label": "toxic"}), "its labels are"),
        (gaps({"device": "cpu"}), "has no option 'device'"),
        (gaps({"layout": "triple"}), "it is pair or chat"),
        (gaps(adapter=str(tmp_path / "none")), "There is no folder"),
        (gaps(chat_template="{{ raise_exception('no') }}"), "use layout = 'pair'"),
    ):
        assert len(found) == 1
        assert said in found[0]
    torch.save(load_file(target / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    [gap] = gaps()
    assert "only pickled weights" in gap


def test_whether_a_template_knows_thoughts_is_said_to_people_and_machines(
    invoke: Invoke, tmp_path: Path, target: Path
) -> None:
    from scripted import OPEN

    (tmp_path / "chat.jinja").write_text(OPEN)
    file = tmp_path / "thinks.toml"
    file.write_text(
        f'[target]\npath = "{target}"\nchat_template = "./chat.jinja"\ntemplate = {{ colour = "red" }}\n'
        '[defense]\nname = "undefended"\n[generation]\nmax_new_tokens = 8\n'
    )
    said = invoke("check", file).stdout
    assert "thoughts are optional (<think> to </think>; the prompt opens it; off with enable_thinking = false)" in said
    assert "does not read colour" in said
    template = json.loads(invoke("check", file, "--json").stdout)["template"]
    assert (template["thoughts"], template["off"]) == ("optional", {"enable_thinking": False})
    assert template["prompt"] == "inside a thought"
    plain = tmp_path / "plain.toml"
    plain.write_text(f'target = "{target}"\n[defense]\nname = "undefended"\n[generation]\nmax_new_tokens = 8\n')
    assert json.loads(invoke("check", plain, "--json").stdout)["template"] == {"thoughts": "none", "tools": "none"}
