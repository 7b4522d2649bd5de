"""GGUF files as users of llama.cpp have them, written here with random weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import tiny_tokenizer, tiny_weights
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

gguf = pytest.importorskip("gguf", reason="pip install 'anchorlm[gguf]'")

from anchorlm.cli._app import app  # noqa: E402
from anchorlm.engine import LocalEngine  # noqa: E402
from anchorlm.guard import Guard  # noqa: E402
from anchorlm.models import CausalModel, ModelSettings, convert, load_classifier, stamp  # noqa: E402
from anchorlm.models._gguf import load_weights, read_header  # noqa: E402
from anchorlm.records import UserError  # noqa: E402

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TURN = [{"role": "user", "content": "The quick brown fox,\n\n1. how?"}]


def tensor_name(name: str) -> str:
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole or not name.startswith("model.layers."):
        return whole.get(name, "output.weight")
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def write(path: Path, change: Callable[[Any], None] = lambda writer: None, *, architecture: str = "llama") -> Path:
    """A Llama of two layers with the tests' tokenizer, as llama.cpp's own converter lays it out."""
    model, tokenizer = tiny_weights("llama"), tiny_tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    backend = tokenizer.backend_tokenizer
    tokens = [backend.id_to_token(index) or f"<|unused_{index}|>" for index in range(config.vocab_size)]
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [3 if index in special else 5 if index >= len(tokenizer) else 1 for index in range(len(tokens))]
    )
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_eot_token_id(backend.token_to_id("<|end|>"))
    writer.add_chat_template(tokenizer.chat_template)
    change(writer)
    for name, weight in model.state_dict().items():
        values = weight.float()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:  # llama.cpp turns pairs of neighbors, transformers the two halves
                values = values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(tensor_name(name), values.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def loaded(file: Path) -> CausalModel:
    return CausalModel.from_pretrained(file)


def logits(model: CausalModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.model(input_ids=torch.tensor([ids])).logits[0]
        return found


def test_weights_and_tokens_are_those_that_were_written(loaded: CausalModel) -> None:
    own = CausalModel.wrap(tiny_weights("llama"), tiny_tokenizer())
    ids = own.encode(TURN)
    assert loaded.encode(TURN) == ids
    assert loaded.encode("Raw text\n\n2. x") == own.encode("Raw text\n\n2. x")
    torch.testing.assert_close(logits(loaded, ids), logits(own, ids), atol=1e-5, rtol=1e-5)
    assert loaded.stop_ids == own.stop_ids
    assert loaded.context_length == own.context_length


def test_a_guard_answers_from_a_file_and_from_a_folder_with_a_file(file: Path, loaded: CausalModel) -> None:
    answers = [
        Guard(target, generation={"max_new_tokens": 6}).chat(TURN).token_ids
        for target in ({"path": str(file)}, {"path": str(file.parent), "gguf_file": file.name})
    ]
    own = LocalEngine(CausalModel.wrap(tiny_weights("llama"), loaded.tokenizer))
    assert answers == [Guard(own, generation={"max_new_tokens": 6}).chat(TURN).token_ids] * 2


def test_bfloat16_is_what_is_asked_for(file: Path) -> None:
    assert CausalModel.from_pretrained(file, dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_outline_knows_everything_but_the_weights(file: Path, loaded: CausalModel) -> None:
    outline = CausalModel.outline(ModelSettings(path=str(file)))
    assert all(parameter.is_meta for parameter in outline.model.parameters())
    one, other = stamp(outline), stamp(loaded)
    assert (one.shapes, one.tokenizer, one.template) == (other.shapes, other.tokenizer, other.template)


def test_artifacts_bind_to_the_file(file: Path, loaded: CausalModel, tmp_path: Path) -> None:
    outline = stamp(CausalModel.outline(ModelSettings(path=str(file))))
    assert outline.files
    assert stamp(loaded).files == outline.files
    assert stamp(CausalModel.from_pretrained(file, dtype="bfloat16")).difference(outline) is None
    other = bytearray(file.read_bytes())
    other[-1] ^= 1
    (tmp_path / "tiny.gguf").write_bytes(other)
    assert stamp(CausalModel.outline(ModelSettings(path=str(tmp_path / "tiny.gguf")))).difference(outline) is not None


def test_an_adapter_may_name_a_file_next_to_it(file: Path, loaded: CausalModel, tmp_path: Path) -> None:
    lora = get_peft_model(
        CausalModel.from_pretrained(file).model,
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    lora.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    saved = tmp_path / "adapter" / "adapter_config.json"
    saved.write_text(
        json.dumps(json.loads(saved.read_text("utf-8")) | {"base_model_name_or_path": "../tiny.gguf"}), "utf-8"
    )
    (tmp_path / "tiny.gguf").write_bytes(file.read_bytes())
    ids = loaded.encode(TURN)
    with torch.inference_mode():
        want = lora(input_ids=torch.tensor([ids])).logits[0]
    for settings in ({"path": str(tmp_path / "adapter")}, {"path": str(file), "adapter": str(tmp_path / "adapter")}):
        torch.testing.assert_close(logits(CausalModel.load(ModelSettings(**settings)), ids), want, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(want, logits(loaded, ids), atol=1e-3)


def test_a_converted_folder_is_the_same_model(file: Path, loaded: CausalModel, tmp_path: Path) -> None:
    convert(ModelSettings(path=str(file)), tmp_path / "folder")
    again = CausalModel.from_pretrained(tmp_path / "folder")
    ids = loaded.encode(TURN)
    assert again.encode(TURN) == ids
    assert again.encode("Raw\n\n1. text  with   spaces") == loaded.encode("Raw\n\n1. text  with   spaces")
    assert torch.equal(logits(again, ids), logits(loaded, ids))
    assert again.stop_ids == loaded.stop_ids
    assert again.vocabulary.digest == loaded.vocabulary.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    with pytest.raises(UserError, match="is there already"):
        convert(ModelSettings(path=str(file)), tmp_path / "folder")
    with pytest.raises(UserError, match="is no GGUF file"):
        convert(ModelSettings(path=str(tmp_path / "folder")), tmp_path / "other")


def test_the_command_converts(file: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["convert", str(file), str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert "parameters in bfloat16" in said.output.replace("\n", " ")
    assert "it/s" not in said.output
    assert (tmp_path / "out" / "model.safetensors").is_file()


def refused(path: Path, **settings: Any) -> str:
    """What is said, by everything that reads the file, before a weight is read and then."""
    told = set()
    for load in (CausalModel.outline, CausalModel.load):
        with pytest.raises(UserError) as error:
            load(ModelSettings(path=str(path), **settings))
        told.add(str(error.value))
    (sentence,) = told
    assert sentence.count("\n") == 0
    return sentence


def test_a_file_that_is_cut_short_is_one_sentence_wherever_it_ends(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (0, 3, 4, 11, 23, 24, 100, 2_000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        assert any(words in refused(cut) for words in ("cut short", "ends early", "four bytes")), length
    assert f"of {len(whole):,} bytes" in refused(cut)


def test_a_damaged_header_is_one_sentence(file: Path, tmp_path: Path) -> None:
    whole, bad = bytearray(file.read_bytes()), tmp_path / "bad.gguf"
    for place, value in ((8, 1 << 60), (16, 1 << 60), (24, 1 << 60), (16, 1 << 20)):
        changed = bytearray(whole)
        struct.pack_into("<Q", changed, place, value)
        bad.write_bytes(changed)
        assert "damaged" in refused(bad)
    for version, words in ((1, "version 1"), (9, "version 9"), (3 << 24, "big-endian")):
        changed = bytearray(whole)
        struct.pack_into("<I", changed, 4, version)
        bad.write_bytes(changed)
        assert words in refused(bad)
    bad.write_bytes(b"PK\x03\x04" + bytes(whole[4:]))
    assert "is no GGUF file" in refused(bad)


@pytest.mark.parametrize(
    ("change", "architecture", "sentence"),
    [
        (lambda one: one.add_uint16("split.count", 3), "llama", "is one of 3 parts .* `llama-gguf-split --merge`"),
        (lambda one: None, "mamba9", "architecture 'mamba9', which transformers does not read"),
        (lambda one: one.add_rope_scaling_type(gguf.RopeScalingType.YARN), "llama", "scales its positions .yarn."),
        (lambda one: one.add_tensor("rope_freqs.weight", np.ones(8, np.float32)), "llama", "positions .rope_freqs."),
    ],
)
def test_what_would_load_as_another_model_or_not_at_all_is_one_sentence(
    change: Any, architecture: str, sentence: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "odd.gguf", change, architecture=architecture)
    with pytest.raises(UserError, match=sentence):
        CausalModel.load(ModelSettings(path=str(path)))
    refused(path)


def test_settings_that_do_not_suit_a_file_say_so(file: Path, tmp_path: Path) -> None:
    for settings, words in (
        ({"dtype": "float16"}, "float32 or bfloat16"),
        ({"quantization": {"quant_method": "bitsandbytes"}}, "leave quantization out"),
        ({"gguf_file": "tiny.gguf"}, "is a file already"),
    ):
        assert words in refused(file, **settings)
    assert "say which with gguf_file" in refused(file.parent)
    assert "There is no file 'other.gguf'" in refused(file.parent, gguf_file="other.gguf")
    assert "There is no file '../tiny.gguf'" in refused(file.parent, gguf_file="../tiny.gguf")
    assert "There is no file" in refused(tmp_path / "none.gguf")
    assert "gguf_file names a file in a folder" in refused(Path("org/name"), gguf_file="a.gguf")


def test_the_header_is_read_without_the_weights(file: Path) -> None:
    header = read_header(file)
    assert header.architecture == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.tensors["token_embd.weight"] == (64, len(header.metadata["tokenizer.ggml.tokens"]))
    assert header.size == file.stat().st_size


def test_a_classifier_with_its_head_lies_in_an_adapter_on_a_file(file: Path, tmp_path: Path) -> None:
    settings = ModelSettings.parse({"path": str(file), "dtype": "float32"}, where="a model")
    model, _ = load_weights(file, AutoModelForSequenceClassification, {"dtype": torch.float32, "num_labels": 1})
    lora = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if weight.requires_grad:
                torch.manual_seed(len(name))
                weight.copy_(torch.randn_like(weight) / 10)
    lora.save_pretrained(str(tmp_path / "head"), save_embedding_layers=False)
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = lora.eval()(input_ids=ids).logits
    loaded, tokenizer = load_classifier(settings.model_copy(update={"adapter": str(tmp_path / "head")}))
    loaded.config.pad_token_id = tokenizer.eos_token_id
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert loaded.config.num_labels == 1
