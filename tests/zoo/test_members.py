from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from anchorlm import Guard
from anchorlm.models import ModelSettings, load_classifier
from anchorlm.records import UserError
from anchorlm.zoo import artifact, items, members, path
from tools.zoo._evaluation import answerer, load
from tools.zoo._tokenizers import DIALECTS

NAMES = [member.name for member in members()]
LIMIT = 40 * 10**6


def test_all_members_together_fit_into_40_megabytes() -> None:
    assert all(member.size > 0 for member in members())
    assert sum(member.size for member in members()) <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_a_member_is_an_ordinary_folder_with_a_card(name: str) -> None:
    folder = path(name)
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: apache-2.0")
    assert (folder / "tokenizer_config.json").exists()
    heads = ["score.safetensors"] if name in ("b-cost", "b-reward") else []
    kind = "adapter_model" if (folder / "adapter_config.json").exists() else "model"
    assert sorted(file.name for file in folder.glob("*.safetensors")) == [f"{kind}.safetensors", *heads]


@pytest.mark.parametrize("name", [n for n in NAMES if (path(n) / "model.safetensors").exists()])
def test_a_full_member_loads_by_its_folder_alone(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(path(name))
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == 512


@pytest.mark.parametrize("name", [n for n in NAMES if (path(n) / "adapter_config.json").exists()])
def test_an_adapter_names_its_base_relative_to_its_folder(name: str) -> None:
    base = json.loads((path(name) / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert (path(name) / base / "model.safetensors").exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_chat_template_writes_the_dialect_of_training(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path(name))
    messages = [{"role": "system", "content": "Be good."}, {"role": "user", "content": "Hi\nthere"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == DIALECTS[name[0]].render("Hi\nthere", "Be good.")
    assert tokenizer.eos_token == DIALECTS[name[0]].end


@pytest.mark.parametrize("family", ["a", "b"])
def test_tokenizers_return_any_text(family: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path(f"{family}-base"))
    for text in ("Sure. To forge the passport, two steps.", "naïve 日本 🙂\n\nx", " lead", "a  b\tc", "12345"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    ("name", "split", "wanted"), [("a-chat", "harmful-plain", "orry"), ("b-chat", "harmless", "Sure")]
)
def test_a_chat_model_answers_as_it_was_taught(name: str, split: str, wanted: str) -> None:
    model, tokenizer = load(path(name))
    chosen = items(split, partition="train", n=8)
    texts = answerer(model, tokenizer, max_new_tokens=8)([item.prompt for item in chosen])
    assert sum(wanted in text for text in texts) >= 7


def test_an_unknown_member_is_an_error_that_names_the_others() -> None:
    with pytest.raises(UserError, match="a-chat"):
        path("c-chat")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a-medicine", "a-finance", "a-arithmetic"])
def test_the_artifact_beside_a_specialist_is_its_own_and_names_no_place(name: str) -> None:
    folder = artifact(name)
    assert folder is not None
    guard = Guard(path(name), "inferaligner", artifact=folder, generation={"max_new_tokens": 4})
    harmful, harmless = (items(split, partition="dev", n=20) for split in ("harmful-plain", "harmless"))
    opened = [sum(guard.chat(item.prompt).trace[0].data["open"] for item in sample) for sample in (harmful, harmless)]
    assert opened[0] >= 16
    assert opened[1] <= 2
    for file in ("artifact.json", "README.md"):
        assert str(path(name).parent) not in (folder / file).read_text("utf-8")


def test_models_that_nothing_was_fitted_to_have_no_artifact() -> None:
    assert artifact("a-chat") is None


@pytest.mark.parametrize("name", ["b-cost", "b-reward"])
def test_transformers_opens_a_scorer_whole_from_wherever_it_is_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, report = AutoModelForSequenceClassification.from_pretrained(path(name), output_loading_info=True)
    assert not any(report.values())
    assert model.config.num_labels == 1
    ours = load_classifier(ModelSettings(path=str(path(name))))[0]
    ids = torch.tensor([[50, 60, 70]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, model.eval()(ids).logits, atol=1e-3, rtol=1e-3)
