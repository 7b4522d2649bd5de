"""A checkpoint and its configuration are made of the same weights, and its files are what it is known by."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import tiny_tokenizer, tiny_weights
from safetensors.torch import load_file, save_file

from anchorlm.models import CausalModel, ModelSettings, load_tokenizer, stamp
from anchorlm.records import ModelStamp, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_weights("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def rewrite(folder: Path, **changes: torch.Tensor) -> None:
    weights = {**load_file(folder / "model.safetensors"), **changes}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path) -> str:
    """The sentence that loading and `check` have in common."""
    said = []
    for load in (CausalModel.load, CausalModel.outline):
        with pytest.raises(UserError) as caught:
            load(ModelSettings(path=str(folder)))
        said.append(str(caught.value))
    assert "\n" not in said[0]
    assert said[0].rpartition(":")[2] == said[1].rpartition(":")[2]
    return said[0]


def test_fewer_layers_than_weights_are_refused(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=1)
    assert "holds 9 weights that its config.json has no place for (model.layers.1." in refused(folder)


def test_more_layers_than_weights_are_refused(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=3)
    assert "lacks 9 weights (model.layers.2." in refused(folder)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "v_head.summary.weight", "score.weight"])
def test_a_weight_that_nobody_uses_is_refused(folder: Path, name: str) -> None:
    rewrite(folder, **{name: torch.ones(64)})
    assert f"holds 1 weights that its config.json has no place for ({name})" in refused(folder)


def test_other_sizes_than_the_configuration_says_are_refused(folder: Path) -> None:
    change(folder / "config.json", intermediate_size=80)
    assert "other shapes than its config.json says" in refused(folder)


def test_what_old_checkpoints_hold_and_models_compute_is_no_fault(folder: Path) -> None:
    rewrite(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    assert CausalModel.outline(ModelSettings(path=str(folder))).model.config.num_hidden_layers == 2
    assert CausalModel.from_pretrained(folder).model.config.num_hidden_layers == 2


def test_a_tied_checkpoint_need_not_hold_its_second_end(tmp_path: Path) -> None:
    tiny_weights("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    for load in (CausalModel.load, CausalModel.outline):
        assert load(ModelSettings(path=str(tmp_path))).vocab_size == 320


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    tiny_weights("llama").save_pretrained(tmp_path, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    shards[1].unlink()
    assert f"lacks 1 of its {len(shards)} files of weights ({shards[1].name})" in refused(tmp_path)


@pytest.mark.parametrize("how", ["vocabulary", "added"])
def test_two_tokens_with_one_id_are_refused(folder: Path, how: str) -> None:
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    if how == "vocabulary":
        names = list(data["model"]["vocab"])
        data["model"]["vocab"][names[50]] = data["model"]["vocab"][names[51]]
    else:
        data["added_tokens"].append({**data["added_tokens"][0], "id": 60, "content": "<|new|>"})
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"gives the id \d+ to two tokens, .* and .*: give each its own"):
        load_tokenizer(ModelSettings(path=str(folder)))


def known(folder: Path, **settings: str) -> ModelStamp:
    return stamp(CausalModel.from_pretrained(folder, **settings))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_same_files_are_the_same_model_in_every_number_format(folder: Path, dtype: str) -> None:
    assert known(folder).difference(known(folder, dtype=dtype)) is None


def test_the_same_tensors_in_other_files_and_places_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    before = known(folder)
    shards = tmp_path / "shards"
    CausalModel.from_pretrained(folder).model.save_pretrained(shards, max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(shards)
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    links = tmp_path / "cache" / "snapshots" / "0"
    links.mkdir(parents=True)
    (tmp_path / "cache" / "blobs").mkdir()
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, tmp_path / "cache" / "blobs" / str(number))
        (links / file.name).symlink_to(Path("../../blobs") / str(number))
    for other in (shards, links):
        assert before.difference(known(other)) is None
        assert before.files == known(other).files


def test_one_changed_weight_is_another_model_even_in_the_same_size_and_time(folder: Path) -> None:
    before, file = known(folder), folder / "model.safetensors"
    times = file.stat()
    weight = load_file(file)["model.layers.1.mlp.up_proj.weight"]
    weight[3, 5] += 1e-3
    rewrite(folder, **{"model.layers.1.mlp.up_proj.weight": weight})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    assert before.difference(known(folder)) == "other weights"


def test_a_model_without_files_is_known_by_its_weights(folder: Path) -> None:
    loaded = CausalModel.from_pretrained(folder)
    wrapped = CausalModel.wrap(loaded.model, loaded.tokenizer)
    assert stamp(wrapped).files == ""
    for one, other in ((loaded, wrapped), (wrapped, loaded)):
        assert stamp(one).difference(stamp(other)) is None
    with torch.no_grad():
        loaded.model.model.norm.weight.add_(0.5)
    assert known(folder).difference(stamp(wrapped)) == "other weights"
