from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchorlm.records import Artifact, ModelStamp, UserError, data_digest

STAMP = ModelStamp("org/model", "llama", 2, 64, "abc", "def", "ghi", "float32", (0.5, -0.25, 1e-3))
JSON, TENSORS = "artifact.json", "artifact.safetensors"


def artifact(**changes: Any) -> Artifact:
    made: dict[str, Any] = {
        "kind": "inferaligner",
        "models": {"target": STAMP, "anchor": replace(STAMP, name="org/anchor")},
        "data": {"harmful": {"n": 64, "digest": "0123"}},
        "settings": {"layers": [0, 1], "alpha": 0.5, "positions": "prompt"},
        "figures": {"gate": [{"layer": 0, "balanced": 1.0}]},
        "tensors": {"unit": torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), "length": torch.ones(2)},
    }
    return Artifact(**{**made, **changes})


def refused(folder: Path, kind: str = "inferaligner") -> str:
    """The sentence with which the folder is refused."""
    with pytest.raises(UserError) as error:
        Artifact.load(folder, kind)
    sentence = str(error.value)
    assert repr(str(folder)) in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "None" not in sentence
    return sentence


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    made = artifact()
    folder = made.save(tmp_path / "deep" / "folder")
    found = Artifact.load(folder, "inferaligner")
    for name in ("kind", "models", "data", "settings", "figures", "library", "id"):
        assert getattr(found, name) == getattr(made, name)
    assert found.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in made.tensors.items())
    assert {path.name for path in folder.iterdir()} == {JSON, TENSORS}


def test_a_model_is_the_same_whatever_commit_its_weights_came_with() -> None:
    other = replace(STAMP, name="mirror/model", revision="0123abc")
    assert STAMP.difference(other) is None
    assert STAMP.identity == other.identity


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    artifact().save(tmp_path)
    other = artifact(settings={"layers": [1]}, tensors={"unit": torch.zeros(1)})
    other.save(tmp_path)
    assert Artifact.load(tmp_path, "inferaligner").id == other.id


def test_one_tensor_under_two_names_and_views_are_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    made = artifact(tensors={"one": base, "same": base, "row": base[1], "turned": base.T})
    found = Artifact.load(made.save(tmp_path), "inferaligner").tensors
    assert torch.equal(found["one"], found["same"])
    assert torch.equal(found["turned"], base.T)
    assert torch.equal(found["row"], base[1])


def test_the_id_follows_kind_settings_and_tensors_and_nothing_else() -> None:
    made = artifact()
    tensors = dict(made.tensors)
    nudged = tensors["unit"].clone()
    nudged[1, 2] = torch.nextafter(nudged[1, 2], torch.tensor(9.0))
    others = [
        artifact(kind="other"),
        artifact(settings={**made.settings, "alpha": 0.25}),
        artifact(settings={name: value for name, value in made.settings.items() if name != "alpha"}),
        artifact(tensors={**tensors, "unit": nudged}),
        artifact(tensors={**tensors, "unit": tensors["unit"].reshape(4, 2)}),
        artifact(tensors={"unit": tensors["unit"], "size": tensors["length"]}),
        artifact(tensors={"unit": tensors["unit"]}),
    ]
    assert len({one.id for one in [made, *others]}) == len(others) + 1
    alike = [
        artifact(figures={}),
        artifact(data={}),
        artifact(settings=dict(reversed(list(made.settings.items())))),
        artifact(tensors=dict(reversed(tensors.items()))),
    ]
    assert {one.id for one in alike} == {made.id}


def test_a_folder_without_an_artifact_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        assert "anchorlm fit inferaligner" in refused(folder)
    folder = artifact().save(tmp_path / "half")
    (folder / TENSORS).unlink()
    assert "anchorlm fit inferaligner" in refused(folder)


def test_another_kind_is_named(tmp_path: Path) -> None:
    folder = artifact(kind="other").save(tmp_path)
    assert Artifact.load(folder).kind == "other"
    assert "an artifact of other, not of inferaligner" in refused(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"x"', "null", "{}", '{"kind": "inferaligner"}', "\x00\xff"])
def test_a_damaged_description_is_refused(tmp_path: Path, content: str) -> None:
    folder = artifact().save(tmp_path)
    (folder / JSON).write_bytes(content.encode("latin-1"))
    assert "make it again" in refused(folder)


@pytest.mark.parametrize("name", ["kind", "id", "library", "models", "data", "settings", "figures"])
def test_a_description_that_lacks_a_part_or_has_another_type_there_is_refused(tmp_path: Path, name: str) -> None:
    folder = artifact().save(tmp_path)
    data = json.loads((folder / JSON).read_text())
    (folder / JSON).write_text(json.dumps({key: value for key, value in data.items() if key != name}))
    assert "make it again" in refused(folder)
    if name in ("id", "models", "settings"):
        (folder / JSON).write_text(json.dumps({**data, name: 3}))
        assert "make it again" in refused(folder)


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    folder = artifact().save(tmp_path)
    whole = (folder / TENSORS).read_bytes()
    for broken in (b"", whole[:20], whole[:-4], b"\x80\x04pickle."):
        (folder / TENSORS).write_bytes(broken)
        assert "make it again" in refused(folder)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    folder = artifact().save(tmp_path)
    tensors = load_file(folder / TENSORS)
    save_file({**tensors, "length": tensors["length"] * 2}, folder / TENSORS)
    assert "was changed after it had been made" in refused(folder)
    artifact().save(folder)
    text = (folder / JSON).read_text()
    (folder / JSON).write_text(text.replace('"alpha": 0.5', '"alpha": 50'))
    assert "was changed after it had been made" in refused(folder)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(UserError, match="cannot be made.*give another folder"):
            artifact().save(folder)


def test_only_the_model_that_it_was_fitted_on_is_let_through() -> None:
    made = artifact()
    made.require("target", replace(STAMP, name="elsewhere/same"))
    with pytest.raises(UserError, match="fitted on the target org/model, but org/other has layers 3, not 2: fit one"):
        made.require("target", replace(STAMP, name="org/other", layers=3))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"architecture": "gpt2"}, "architecture gpt2, not llama"),
        ({"layers": 3}, "layers 3, not 2"),
        ({"hidden_size": 32}, "hidden_size 32, not 64"),
        ({"tokenizer": "xyz"}, "another tokenizer"),
        ({"template": "xyz"}, "another chat template"),
        ({"shapes": "xyz"}, "weights of other shapes"),
        ({"shapes": ""}, None),
        ({"sample": (0.5, -0.25)}, "other weights"),
        ({"sample": (0.5, -0.25, 1.01e-3)}, "other weights"),
        ({"sample": (0.5, -0.25, 1.01e-3), "dtype": "bfloat16"}, "other weights"),
        ({"sample": (0.5, -0.25, float("nan"))}, "other weights"),
        ({"sample": (0.501, -0.25, 1e-3)}, "other weights"),
        ({"sample": (0.501, -0.25, 1e-3), "dtype": "bfloat16"}, None),
        ({"name": "other", "dtype": "float16"}, None),
    ],
)
def test_a_stamp_tells_in_what_another_model_differs(changes: dict[str, Any], difference: str | None) -> None:
    other = replace(STAMP, **changes)
    assert STAMP.difference(other) == difference
    assert (other.difference(STAMP) is None) == (difference is None)


def test_weights_that_were_not_read_are_not_compared_but_an_artifact_without_them_fits_no_model() -> None:
    unread = replace(STAMP, sample=())
    assert STAMP.difference(unread) is None
    assert unread.difference(STAMP) == "other weights"


def test_the_digest_of_data_follows_texts_order_and_bounds() -> None:
    texts = [["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], [], ["ä", "b"]]
    assert len({data_digest(each) for each in texts}) == len(texts)
    assert data_digest(iter(["a", "b"])) == data_digest(["a", "b"])
