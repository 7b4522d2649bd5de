from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories import tiny_tokenizer, tiny_weights

from anchorlm.models import CausalModel, ModelSettings, accelerator, default_place
from anchorlm.models._devices import device_map


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "base"
    tiny_weights("llama").bfloat16().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("found", "given", "place"),
    [
        (None, {}, None),
        ("cuda", {}, "auto"),
        ("mps", {}, {"": "mps"}),
        ("cuda", {"device_map": "cpu"}, "cpu"),
        ("cuda", {"device_map": {"": 1}}, {"": 1}),
        ("cuda", {"dtype": "float16"}, "auto"),
        ("cuda", {"dtype": "int8"}, None),
    ],
)
def test_a_model_goes_where_it_says_and_else_to_the_accelerator(
    found: str | None, given: dict[str, object], place: object
) -> None:
    assert device_map(ModelSettings.parse({"path": "x", **given}, where="a model"), found) == place


def test_without_an_accelerator_a_model_that_says_nothing_is_read_in_float32_and_tells_so(folder: Path) -> None:
    if accelerator() is not None:
        pytest.skip("this machine has an accelerator")
    assert default_place(None) == "cpu, in float32"
    for given, place in ({}, "cpu, in float32"), ({"dtype": "auto"}, "cpu, in bfloat16"):
        assert CausalModel.from_pretrained(folder, **given).place == place


def test_with_an_accelerator_a_model_that_says_nothing_is_there_in_its_own_dtype(folder: Path) -> None:
    if accelerator() is None:
        pytest.skip("this machine has no accelerator")
    model = CausalModel.from_pretrained(folder)
    assert (model.device.type, model.model.dtype) == (accelerator(), torch.bfloat16)
    assert CausalModel.from_pretrained(folder, device_map="cpu").place.startswith("cpu")
