from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import heard, tiny_model, trusted

from anchorlm.defenses.inferaligner import fit_inferaligner
from anchorlm.engine import LocalEngine, runtime
from anchorlm.guard import Guard
from anchorlm.records import Artifact, DefenseError, Response, UserError
from anchorlm.steering import cosine_scores

HARMFUL = [f"Burn down {n} houses!" for n in ("one", "my", "some", "all", "the", "five", "big", "old")]
HARMLESS = [f"How do I bake {n} bread?" for n in ("one", "my", "some", "all", "the", "five", "big", "old")]
PROMPTS = [*HARMFUL[:3], "x", *HARMLESS[:3], "Ünïcode, 12 + 30 = ?"]
NAMES = ["caa", "cast", "alphasteer"]
STRONG = {"alpha": 3.0, "layers": [0, 1], "positions": "all"}


@pytest.fixture(scope="module")
def folder(target: LocalEngine, sibling: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = trusted(fit_inferaligner(target, sibling, HARMFUL, HARMLESS))
    return made.save(tmp_path_factory.mktemp("steered"))


def guard(target: LocalEngine, name: str, folder: Path, **knobs: Any) -> Guard:
    return Guard(target, name, artifact=str(folder), generation={"max_new_tokens": 12}, **knobs)


def said(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def texts(one: Guard, **knobs: Any) -> list[tuple[int, ...]]:
    return [one.chat(said(prompt), knobs=knobs).token_ids for prompt in PROMPTS]


def decision(response: Response, kind: str) -> Mapping[str, Any]:
    [found] = [each.data for each in response.trace if each.kind == kind]
    return found


@pytest.mark.parametrize("knobs", [{}, STRONG, {**STRONG, "layers": [1], "positions": "prompt"}])
def test_caa_is_inferaligner_with_its_gate_held_open(target: LocalEngine, folder: Path, knobs: dict[str, Any]) -> None:
    always = texts(guard(target, "caa", folder, **knobs))
    assert always == texts(guard(target, "inferaligner", folder, gate="open", **knobs))


def test_cast_steers_always_at_threshold_minus_one_and_never_at_one(target: LocalEngine, folder: Path) -> None:
    plain = texts(Guard(target, generation={"max_new_tokens": 12}))
    always = texts(guard(target, "caa", folder, **STRONG))
    cast = guard(target, "cast", folder, **STRONG)
    assert plain != always
    assert texts(cast, threshold=-1) == always
    assert texts(cast, threshold=1) == plain


def test_cast_decides_by_the_cosine_at_its_layer_and_the_fitted_threshold(target: LocalEngine, folder: Path) -> None:
    artifact = Artifact.load(folder, "inferaligner")
    layer, condition = artifact.settings["cast_layer"], artifact.tensors["own.unit"]
    plain = texts(Guard(target, generation={"max_new_tokens": 12}))
    always = texts(guard(target, "caa", folder, **STRONG))
    cast = guard(target, "cast", folder, **STRONG)

    async def last(prompt: str) -> torch.Tensor:
        async with target.open(target.model.encode(said(prompt))) as row:
            return (await row.activations((-1,)))[:, 0]

    for prompt, quiet, steered in zip(PROMPTS, plain, always, strict=True):
        response = cast.chat(said(prompt))
        gate = decision(response, "gate")
        want = cosine_scores(runtime().run(last(prompt)), condition)
        assert gate["scores"] == pytest.approx(want.tolist(), abs=2e-3)
        assert gate["score"] == gate["scores"][layer]
        assert gate["threshold"] == pytest.approx(float(artifact.tensors["cast.threshold"][layer]), abs=1e-3)
        assert gate["open"] == (float(want[layer]) > float(artifact.tensors["cast.threshold"][layer]))
        assert response.token_ids == (steered if gate["open"] else quiet)


def test_alphasteer_is_its_matrix_in_plain_hooks_and_full_forwards(target: LocalEngine, folder: Path) -> None:
    t, model = Artifact.load(folder, "inferaligner").tensors, target.model
    steered = guard(target, "alphasteer", folder, **STRONG)
    plain = Guard(target, generation={"max_new_tokens": 12})

    def change(layer: int) -> Any:
        matrix = torch.outer(t["alphasteer.read"][layer], t["shift.length"][layer] * t["shift.unit"][layer])
        return lambda module, inputs, output: output + 3.0 * (output @ matrix)

    for prompt in PROMPTS[:3]:
        ids = list(model.encode(said(prompt)))
        start = len(ids)
        handles = [model.blocks[layer].register_forward_hook(change(layer)) for layer in (0, 1)]
        try:
            while len(ids) < start + 12 and not model.stop_ids & set(ids[start:]):
                with torch.inference_mode():
                    ids.append(
                        int(heard(model, model.model(torch.tensor([ids]), use_cache=False).logits[0, -1]).argmax())
                    )
        finally:
            for handle in handles:
                handle.remove()
        response = steered.chat(said(prompt))
        assert list(response.token_ids) == [token for token in ids[start:] if token not in model.stop_ids]
        assert response.token_ids != plain.chat(said(prompt)).token_ids
        assert decision(response, "steer") == {"layers": [0, 1], "alpha": 3.0}


@pytest.mark.parametrize("name", NAMES)
def test_no_strength_is_the_undefended_target(target: LocalEngine, folder: Path, name: str) -> None:
    plain = texts(Guard(target, generation={"max_new_tokens": 12}))
    assert texts(guard(target, name, folder, **{**STRONG, "alpha": 0})) == plain


@pytest.mark.parametrize("name", NAMES)
def test_batched_is_one_at_a_time_and_streamed_is_whole(target: LocalEngine, folder: Path, name: str) -> None:
    one = guard(target, name, folder, **STRONG)
    together = one.generate(PROMPTS)
    assert [response.token_ids for response in together] == texts(one)
    for prompt, response in zip(PROMPTS[:3], together, strict=False):
        pieces = [event.text for event in one.stream(said(prompt)) if hasattr(event, "text")]
        assert "".join(pieces) == response.text


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_are_one_sentence(target: LocalEngine, folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="not all among 0 to 1"):
        guard(target, name, folder, layers=[2])
    with pytest.raises(UserError, match="not all among 0 to 1"):
        guard(target, name, folder).request(said("x"), {"layers": [0, 7]})
    with pytest.raises(UserError, match="other weights"):
        guard(LocalEngine(tiny_model(seed=3)), name, folder)
    with pytest.raises(UserError, match="anchorlm fit inferaligner"):
        guard(target, name, folder / "nowhere")
    if name == "cast":
        for threshold in (-1.1, 1.1, float("nan")):
            with pytest.raises(UserError, match="threshold"):
                guard(target, name, folder, threshold=threshold)


def test_cast_never_answers_where_the_activations_are_no_numbers(folder: Path) -> None:
    target = LocalEngine(tiny_model())
    safe, strict = (guard(target, "cast", folder, refusal="No.", on_error=on_error) for on_error in ("refuse", "raise"))
    handles = [
        target.model.blocks[-1].register_forward_hook(lambda module, inputs, output: output * float("nan")),
        target.model.model.model.norm.register_forward_pre_hook(lambda module, inputs: (inputs[0].nan_to_num(),)),
    ]
    try:
        assert safe.chat(said("x")).text == "No."
        with pytest.raises(DefenseError, match="not numbers"):
            strict.chat(said("x"))
    finally:
        for handle in handles:
            handle.remove()
