"""`anchorlm convert` on adapters: vLLM wants an ordinary folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import tiny_model
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from anchorlm.cli._app import app
from anchorlm.models import CausalModel, ModelSettings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")  # of an adapter on tied embeddings
ASK = [{"role": "user", "content": "How do I bake bread?"}]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = tiny_model("llama", tie_word_embeddings=True)
    model.model.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj", "embed_tokens"], init_lora_weights=False)
    peft = get_peft_model(CausalModel.from_pretrained(base, dtype="float32").model, config)
    peft.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model: CausalModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.model(input_ids=torch.tensor([model.encode(ASK)])).logits
    return found


@pytest.mark.parametrize("way", ["the adapter", "the base with the adapter"])
def test_a_converted_adapter_is_the_model_with_the_adapter(way: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    words = [str(adapter)] if way == "the adapter" else [str(base), "--adapter", str(adapter)]
    said = CliRunner().invoke(app, ["convert", words[0], str(tmp_path / "out"), "--dtype", "float32", *words[1:]])
    assert said.exit_code == 0, said.output
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    wanted = CausalModel.load(ModelSettings(path=str(base), adapter=str(adapter), dtype="float32"))
    got = CausalModel.from_pretrained(tmp_path / "out", dtype="float32")
    assert torch.allclose(logits(got), logits(wanted), atol=1e-5)
    assert not torch.allclose(logits(got), logits(CausalModel.from_pretrained(base, dtype="float32")), atol=1e-2)
    assert got.encode(ASK) == wanted.encode(ASK)


def test_an_ordinary_folder_is_not_converted(base: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["convert", str(base), str(tmp_path / "out")])
    assert said.exit_code
    assert "is no GGUF file and no adapter" in said.output.replace("\n", " ")
