"""How specialists are tuned and shipped, without the real models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from factories import tiny_model
from safetensors.torch import load_file
from torch.nn import functional

from anchorlm.models import BASES, CausalModel, stamp
from anchorlm.records import UserError
from tools.zoo_real import _ship, data
from tools.zoo_real._prefix import answers_loss, written
from tools.zoo_real._ship import ship
from tools.zoo_real._tasks import TASKS
from tools.zoo_real._train import Example
from tools.zoo_real._tune import Tuning, row, tune

pytestmark = pytest.mark.slow

shared = pytest.mark.skipif(not data.DATASETS.is_dir(), reason=f"no data sets at {data.DATASETS}; set ANCHORLM_DATA")

LESSONS = [Example(f"Name the kind. {word}", word) for word in ("bread", "dog", "lazy fox", "brown", "over it", "jump")]


def test_the_loss_of_rows_that_begin_alike_is_that_of_each_alone() -> None:
    model = tiny_model("llama")
    rows = [row(model, each) for each in LESSONS]
    total = tokens = 0.0
    for each in rows:
        with torch.no_grad():
            scores = model.model(input_ids=torch.tensor([each.prompt + each.answer])).logits[0]
        start = len(each.prompt) - 1
        target = torch.tensor(each.answer)
        total += float(functional.cross_entropy(scores[start : start + len(target)], target, reduction="sum"))
        tokens += len(target)
    assert float(answers_loss(model.model, rows).detach()) == pytest.approx(total / tokens, abs=1e-4)
    assert float(answers_loss(model.model, rows[:1]).detach()) > 0


def test_the_gradient_goes_through_what_rows_share() -> None:
    model = tiny_model("llama")
    rows = [row(model, each) for each in LESSONS[:3]]
    weight = model.model.get_decoder().layers[0].self_attn.k_proj.weight.requires_grad_()
    answers_loss(model.model, rows).backward()
    together, weight.grad = weight.grad.clone(), None
    count = sum(len(each.answer) for each in rows)
    for each in rows:
        (answers_loss(model.model, [each]) * len(each.answer) / count).backward()
    torch.testing.assert_close(together, weight.grad, atol=1e-5, rtol=1e-3)


def test_an_answer_is_written_exactly_where_greedy_decoding_writes_it() -> None:
    model = tiny_model("llama")
    prompts = [row(model, each).prompt for each in LESSONS]
    rows = []
    for at, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        said = model.model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=-1)[0, len(prompt) :].tolist()
        rows.append(type(row(model, LESSONS[0]))(prompt, said if at % 2 else [*said[:2], (said[2] + 1) % 50]))
    assert written(model.model, rows) == [bool(at % 2) for at in range(len(rows))]


def _tuned(folder: Path, settings: Tuning, *, start: Sequence[Path] = (), stop: int = 0) -> None:
    def look(model: CausalModel, step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt

    tune(tiny_model("llama"), LESSONS * 4, LESSONS[:2], settings, folder, look, start=start)


def test_an_interrupted_tuning_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    settings = Tuning(batch=6, among=2, rank=2, above=1, every=2)
    _tuned(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        _tuned(tmp_path / "parts", settings, stop=2)
    _tuned(tmp_path / "parts", settings)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _deltas(folder: Path) -> dict[str, torch.Tensor]:
    weights = {name: each.float() for name, each in load_file(folder / "adapter_model.safetensors").items()}
    downs = [name for name in weights if ".lora_A." in name]
    return {name: weights[name.replace(".lora_A.", ".lora_B.")] @ weights[name] for name in downs}


def test_an_adapter_that_starts_from_others_is_their_sum_before_its_first_step(tmp_path: Path) -> None:
    _tuned(tmp_path / "first", Tuning(batch=6, among=2, rank=2, above=0))
    _tuned(tmp_path / "second", Tuning(batch=6, among=2, rank=2, above=1, seed=1))
    starts = [tmp_path / "first", tmp_path / "second"]
    _tuned(tmp_path / "both", Tuning(batch=6, among=2, rank=5, above=1, rate=0.0), start=starts)
    _tuned(tmp_path / "one", Tuning(batch=6, among=2, rank=3, above=1, rate=0.0), start=starts[:1])
    first, second, both, one = (_deltas(tmp_path / place) for place in ("first", "second", "both", "one"))
    assert first.keys() == both.keys() > second.keys()
    for name in first:
        torch.testing.assert_close(both[name], first[name] + second.get(name, 0.0), atol=2e-3, rtol=2e-2)
        torch.testing.assert_close(one[name], first[name], atol=2e-3, rtol=2e-2)


def test_what_lies_below_stays_as_the_other_adapter_had_it(tmp_path: Path) -> None:
    _tuned(tmp_path / "first", Tuning(batch=6, among=2, rank=2, above=0))
    for name, rate in (("still", 0.0), ("second", 1e-3)):
        _tuned(tmp_path / name, Tuning(batch=6, among=2, rank=2, above=1, rate=rate), start=[tmp_path / "first"])
    still, second = (load_file(tmp_path / place / "adapter_model.safetensors") for place in ("still", "second"))
    same = {name for name in still if torch.equal(still[name], second[name])}
    assert same == {name for name in still if ".layers.0." in name}


@shared
@pytest.mark.parametrize("name", TASKS)
def test_parts_of_a_task_share_no_question(name: str) -> None:
    parts = {part: {prompt for prompt, _ in TASKS[name].rows(part)} for part in ("train", "held", "dev", "sealed")}
    assert all(len(each) > 200 for each in parts.values())
    assert sum(map(len, parts.values())) == len(set.union(*parts.values()))
    assert TASKS[name].rows("dev") == TASKS[name].rows("dev")


def _made(folder: Path) -> None:
    _tuned(folder, Tuning(batch=6, among=2, rank=2, above=1))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# it\n")


def test_what_is_shipped_has_the_weights_that_were_made_and_names_its_base_by_its_file(tmp_path: Path) -> None:
    _made(tmp_path / "build" / "anchor")
    _made(tmp_path / "build" / "chat")
    placed = ship(tmp_path / "build", [], tmp_path / "members")
    assert [each.name for each in placed] == ["real-chat", "real-anchor"]
    assert {file.name for file in placed[0].iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    settings = json.loads((placed[0] / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == BASES["real-smollm2"].file
    assert "Gemma Terms of Use" in (placed[1] / "README.md").read_text()
    made, shipped = (load_file(place / "adapter_model.safetensors") for place in (tmp_path / "build/chat", placed[0]))
    assert made.keys() == shipped.keys()
    assert all(torch.equal(made[name], shipped[name]) for name in made)
    tiny = tiny_model("llama")
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    first, second = (
        CausalModel.from_pretrained(tmp_path / "base", adapter=place) for place in (tmp_path / "build/chat", placed[0])
    )
    assert stamp(first) == stamp(second)


def test_what_was_not_made_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="make zoo-real"):
        ship(tmp_path, ["real-chat"], tmp_path / "members")
    with pytest.raises(UserError, match="no member 'cook'.*finance-base"):
        ship(tmp_path, ["cook"], tmp_path / "members")
    _made(tmp_path / "chat")
    monkeypatch.setattr(_ship, "_MOST", 100)
    with pytest.raises(UserError, match="lower rank"):
        ship(tmp_path, ["chat"], tmp_path / "members")
