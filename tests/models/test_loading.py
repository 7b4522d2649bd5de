from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from factories import tiny_model, tiny_tokenizer, tiny_weights
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from anchorlm.engine import LocalEngine, runtime
from anchorlm.models import CausalModel, ModelSettings, load_tokenizer
from anchorlm.records import GenerationSettings, UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_weights("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    ids = torch.randint(3, 300, (4, 16))
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    folder = base.parent / "adapter"
    model.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    settings["base_model_name_or_path"] = "../base"
    (folder / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


IDS = torch.tensor([[5, 6, 7, 8, 9, 200, 201]])


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("tokenizer_config.json", "[1]", "No tokenizer could be loaded .*: download all of its files again"),
        ("tokenizer.json", '{"version": "1.0", ', "No tokenizer could be loaded .*: download all of its files again"),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}', "download all of its files again"),
    ],
)
def test_damaged_files_are_one_sentence_with_the_remedy(file: str, content: str, sentence: str, tmp_path: Path) -> None:
    tiny_weights().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        CausalModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_width_are_one_sentence(tmp_path: Path) -> None:
    tiny_weights().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))
    with pytest.raises(UserError, match="other shapes than its config.json says; download all"):
        CausalModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("template", ["{{ messages[0]['content'] + 3 }}", "{% for message in messages %}"])
def test_a_template_that_fails_is_one_sentence(template: str) -> None:
    tokenizer = tiny_tokenizer(chat_template=template)
    with pytest.raises(UserError, match="chat template fails .*: fix it, or give another one"):
        CausalModel.wrap(tiny_weights(), tokenizer, name="x").encode([{"role": "user", "content": "bread"}])


def test_positions_that_depend_on_the_longest_row_are_not_offered() -> None:
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": 24, "rope_theta": 10_000.0,
               "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}  # fmt: skip
    assert tiny_model("phi3", rope_parameters=scaling, original_max_position_embeddings=24).context_length == 24
    assert tiny_model("phi3").context_length == 256


def test_a_folder_loads_as_transformers_loads_it(base: Path) -> None:
    model = CausalModel.from_pretrained(base)
    with torch.inference_mode():
        assert torch.equal(model.model(IDS).logits, AutoModelForCausalLM.from_pretrained(base)(IDS).logits)
    assert not model.model.training
    assert CausalModel.from_pretrained(base, dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("how", ["folder", "setting"])
def test_an_adapter_is_merged_into_its_base(base: Path, adapter: Path, how: str) -> None:
    loaded = (
        CausalModel.from_pretrained(adapter)
        if how == "folder"
        else CausalModel.from_pretrained(base, adapter=str(adapter))
    )
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.inference_mode():
        expected = reference(input_ids=IDS).logits
        assert torch.allclose(loaded.model(IDS).logits, expected, atol=1e-4)
        assert not torch.allclose(CausalModel.from_pretrained(base).model(IDS).logits, expected, atol=1e-2)
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())


def test_a_chat_template_may_be_given_as_text_or_file(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("T {{ messages[0]['content'] }}", "utf-8")
    for template in (str(file), file.read_text("utf-8")):
        model = CausalModel.from_pretrained(base, chat_template=template)
        assert model.tokenizer.decode(model.encode([{"role": "user", "content": "x"}])) == "T x"


def broken(base: Path, target: Path, kind: str) -> Path:
    shutil.copytree(base, target)
    weights = target / "model.safetensors"
    if kind == "no weights":
        weights.unlink()
    elif kind == "pickled":
        torch.save(load_file(weights), target / "pytorch_model.bin")
        weights.unlink()
    elif kind == "no config":
        (target / "config.json").unlink()
    elif kind == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "incomplete":
        tensors = load_file(weights)
        tensors.pop("model.layers.1.mlp.up_proj.weight")
        save_file(tensors, weights, metadata={"format": "pt"})
    elif kind == "no tokenizer":
        (target / "tokenizer.json").unlink()
    elif kind == "adapter without base":
        (target / "adapter_config.json").write_text("{}", "utf-8")
    elif kind == "adapter of nothing":
        (target / "adapter_config.json").write_text('{"base_model_name_or_path": "./gone"}', "utf-8")
    elif kind == "adapter without sense":
        (target / "adapter_config.json").write_text("{", "utf-8")
    elif kind == "file":
        return weights
    return target


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no weights", "holds no weights: download"),
        ("pickled", "only pickled weights, which can run code: convert them"),
        ("no config", "holds no config.json"),
        ("cut", "could not be loaded"),
        ("incomplete", r"lacks 1 weights \(model.layers.1.mlp.up_proj.weight\): download all"),
        ("no tokenizer", "No tokenizer could be loaded"),
        ("adapter without base", "does not name its base model"),
        ("adapter of nothing", "There is no folder './gone'"),
        ("adapter without sense", "is no JSON"),
        ("file", "is a file: give the folder"),
    ],
)
def test_a_folder_that_holds_no_whole_model_is_a_sentence(base: Path, tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        CausalModel.from_pretrained(broken(base, tmp_path / "model", kind))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_part_of_an_adapter_is_not_put_on_as_if_it_were_the_whole(base: Path, adapter: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(adapter, part)
    weights = load_file(part / "adapter_model.safetensors")
    save_file({name: value for name, value in weights.items() if ".1." not in name}, part / "adapter_model.safetensors")
    with pytest.raises(UserError, match="does not fit .*missing adapter keys.*give the base model") as caught:
        CausalModel.from_pretrained(base, adapter=str(part))
    assert "\n" not in str(caught.value)


def test_paths_and_settings_that_do_not_exist_are_sentences(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        CausalModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(
        UserError,
        match="dtype = 'float12' does not fit a model: input should be 'auto', 'float32'",
    ):
        CausalModel.from_pretrained(base, dtype="float12")
    with pytest.raises(UserError, match="has no setting 'colour'"):
        CausalModel.from_pretrained(base, colour="red")
    monkeypatch.setenv("HOME", str(base.parent))
    assert CausalModel.from_pretrained("~/base").name == str(base)


def test_a_tokenizer_with_more_entries_than_the_model_has_rows_is_a_sentence() -> None:
    with pytest.raises(UserError, match="has 300 entries but the model only 290 embedding rows"):
        CausalModel.wrap(tiny_weights("llama", vocab_size=290), tiny_tokenizer(300))


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
"""The beginning of stories260K's greedy text as its author publishes it."""


def test_real_models_load_and_tell_their_published_stories(shared_data: Path) -> None:
    model = CausalModel.from_pretrained(shared_data / "models" / "stories260K")

    async def tell(prompt: str, new: int, told: CausalModel) -> str:
        async with LocalEngine(told).open(told.encode(prompt), room=new) as sequence:
            return (await sequence.generate(GenerationSettings(max_new_tokens=new))).text

    begin = str(model.tokenizer.bos_token)
    assert STORY in runtime().run(tell(begin, 100, model))
    chat = CausalModel.from_pretrained(shared_data / "models" / "tinytalk-chat")
    assert runtime().run(tell("User: Hello, how are you?\nBot:", 20, chat)).strip()


def test_the_empty_tokenizer_that_stands_for_missing_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"No tokenizer could be loaded .*: download all of its files again"):
        load_tokenizer(ModelSettings.parse({"path": str(tmp_path)}, where="a model"))
