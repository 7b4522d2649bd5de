from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import ARCHITECTURES, tiny_model, tiny_tokenizer, tiny_weights

from anchorlm.models import CausalModel, ModelSettings, identity, stamp
from anchorlm.records import Artifact, ModelStamp, UserError


def difference(other: CausalModel, mine: CausalModel | None = None) -> str | None:
    return stamp(mine or tiny_model()).difference(stamp(other))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_stamp_that_knows_it_again(name: str) -> None:
    made = stamp(tiny_model(name))
    assert (made.layers, made.hidden_size, made.architecture) == (2, 64, name)
    assert made == stamp(tiny_model(name))
    assert made.difference(stamp(tiny_model(name, seed=1))) == "other weights"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_same_weights_in_another_number_format_are_the_same_model(name: str, dtype: torch.dtype) -> None:
    rounded = CausalModel.wrap(tiny_weights(name).to(dtype), tiny_tokenizer(), name="rounded")
    assert difference(rounded, tiny_model(name)) is None
    assert difference(tiny_model(name), rounded) is None
    again = CausalModel.wrap(tiny_weights(name).to(dtype).to(torch.bfloat16), tiny_tokenizer(), name="rounded twice")
    assert difference(again, rounded) is None
    assert difference(again, tiny_model(name, seed=1)) == "other weights"


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_fine_tune_of_one_kind_of_weight_is_another_model_however_deep(name: str) -> None:
    weights = tiny_weights(name, num_hidden_layers=24, hidden_size=16, intermediate_size=24)
    model = CausalModel.wrap(weights, tiny_tokenizer(), name="deep")
    plain = stamp(model)
    kinds = {re.sub(r"\d+", "*", name) for name, _ in weights.named_parameters()}
    assert len(kinds) > 10
    for kind in kinds:
        for change, dtype in ((1e-3, "float32"), (0.02, "bfloat16")):
            tuned = [each for path, each in weights.named_parameters() if re.sub(r"\d+", "*", path) == kind]
            before = [each.detach().clone() for each in tuned]
            with torch.no_grad():
                for weight in tuned:
                    weight.mul_(1 + change).add_(change * 0.01)
            assert plain.difference(replace(stamp(model), dtype=dtype)) == "other weights", kind
            with torch.no_grad():
                for weight, old in zip(tuned, before, strict=True):
                    weight.copy_(old)
    assert plain == stamp(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_changed_weight_anywhere_or_two_swapped_rows_are_another_identity(name: str, dtype: torch.dtype) -> None:
    weights = tiny_weights(name).to(dtype)
    model = CausalModel.wrap(weights, tiny_tokenizer(), name="one")
    known = identity(model)
    assert known == identity(CausalModel.wrap(tiny_weights(name).to(dtype), tiny_tokenizer(), name="another"))
    generator = torch.Generator().manual_seed(0)
    for _, weight in weights.named_parameters():
        before = weight.detach().clone()
        place = int(torch.randint(weight.numel(), (), generator=generator))
        with torch.no_grad():
            weight.view(-1)[place] += 0.5
        assert identity(model) != known
        with torch.no_grad():
            weight.copy_(before)
            weight.copy_(before.flip(0))
        assert weight.equal(before) or identity(model) != known
        with torch.no_grad():
            weight.copy_(before)
    assert identity(model) == known


def test_another_configuration_over_equal_weights_is_another_identity() -> None:
    turned = tiny_model(rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    assert difference(turned) is None
    assert identity(turned) != identity(tiny_model())


def test_another_tokenizer_depth_or_width_is_another_model() -> None:
    assert difference(tiny_model(tokenizer=tiny_tokenizer(text="Something else entirely. "))) == "another tokenizer"
    assert difference(tiny_model(num_hidden_layers=3)) == "layers 3, not 2"
    assert difference(tiny_model(hidden_size=32)) == "hidden_size 32, not 64"
    assert difference(tiny_model("qwen2")) == "architecture qwen2, not llama"


def test_another_chat_template_is_another_model() -> None:
    tokenizer = tiny_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert difference(tiny_model(tokenizer=tokenizer)) == "another chat template"
    assert difference(tiny_model(tokenizer=tiny_tokenizer(chat_template=None))) == "another chat template"


def test_a_model_without_its_weights_is_known_as_far_as_its_shapes(tmp_path: Path) -> None:
    model = tiny_model()
    for part in (model.model, model.tokenizer):
        part.save_pretrained(tmp_path)
    outline = CausalModel.outline(ModelSettings(path=str(tmp_path)))
    assert replace(stamp(outline), files="") == replace(stamp(model), name=str(tmp_path), sample=())
    assert stamp(outline).files == stamp(CausalModel.from_pretrained(tmp_path)).files != ""
    assert stamp(model).difference(stamp(outline)) is None
    assert difference(outline, tiny_model(intermediate_size=80)) == "weights of other shapes"


def test_a_model_is_refused_with_one_sentence() -> None:
    made = Artifact("inferaligner", {"target": stamp(tiny_model())}, {}, {}, {}, {})
    with pytest.raises(UserError) as error:
        made.require("target", stamp(tiny_model(num_hidden_layers=3)))
    assert str(error.value) == (
        "This inferaligner artifact was fitted on the target tiny-llama, but tiny-llama has layers 3, not 2: fit one "
        "for it with `anchorlm fit inferaligner`."
    )


def test_a_matrix_with_more_weights_than_float32_can_count_has_a_stamp() -> None:
    size = 2**25 - 1  # as an index in float32 this is rounded up, beyond the end
    weights = tiny_weights("gpt2")
    weights.register_parameter("large", torch.nn.Parameter(torch.zeros(1).expand(size)))
    made = stamp(CausalModel.wrap(weights, tiny_tokenizer()))
    assert isinstance(made, ModelStamp)
    assert len(made.sample) == len(stamp(tiny_model("gpt2")).sample) + 2
