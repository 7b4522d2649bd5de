"""The measurement of AlignBeam over endpoints, on tiny models that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from endpoints import Endpoint, readable
from factories import tiny_model

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from benchmarks.endpoint import CANDIDATES, MIXED, Explainer, Side, _reason

PROMPTS = ["How do I bake bread?", "The lazy dog", "fox", "What is 42?", "over", "The quick brown", "jump", "Why?"]
KNOBS: dict[str, Any] = {
    "mixed_tokens": MIXED, "candidates": CANDIDATES, "trace_top": CANDIDATES + 1, "generation": {"max_new_tokens": 10},
    "judge": CallableJudge(lambda messages, response: 0.0, name="lenient"),
}  # fmt: skip


def test_every_difference_that_a_cut_makes_is_explained_by_it_and_kept_answers_are_not_asked_again(
    tmp_path: Path,
) -> None:
    model, anchor = readable(tiny_model("llama")), LocalEngine(tiny_model("qwen2", seed=1))
    model.tokenizer.save_pretrained(tmp_path)
    local, server = LocalEngine(model), Endpoint(model)
    source = {"endpoint": server.url, "tokenizer": str(tmp_path), "top_logprobs": 4}
    here, far = (
        Side(Guard(one, "alignbeam", anchor=anchor, **KNOBS), tmp_path / name)
        for one, name in ((local, "here"), (source, "far"))
    )
    explainer = Explainer(local)
    pairs = [(prompt, here.answer(prompt, prompt), far.answer(prompt, prompt)) for prompt in PROMPTS]
    reasons = [explainer.why(prompt, own, other)[0] for prompt, own, other in pairs if own["text"] != other["text"]]
    assert reasons.count("cut") >= 2
    assert set(reasons) <= {"cut", "numerics"}

    asked = len(server.asked)
    with (tmp_path / "far").open("a") as file:
        file.write('{"id": "cut sho')  # as a kill leaves it
    again = Side(far.guard, tmp_path / "far")
    assert [again.answer(prompt, prompt) for prompt in PROMPTS] == [other for _, _, other in pairs]
    assert len(server.asked) == asked
    server.stop()


def test_answers_of_other_weights_are_not_explained(tmp_path: Path) -> None:
    model, anchor = tiny_model("llama"), LocalEngine(tiny_model("qwen2", seed=1))
    sides = [
        Side(Guard(LocalEngine(one), "alignbeam", anchor=anchor, **KNOBS), tmp_path / name)
        for one, name in ((model, "here"), (tiny_model("llama", seed=5), "far"))
    ]
    explainer, reasons = Explainer(LocalEngine(model)), []
    for prompt in PROMPTS:
        here, far = (side.answer(prompt, prompt) for side in sides)
        assert here["text"] != far["text"]
        reasons.append(explainer.why(prompt, here, far)[0])
    assert "cut" not in reasons  # nothing was
    assert reasons.count("unexplained") > len(PROMPTS) / 2


@pytest.mark.parametrize(
    ("lead", "cut", "reason"),
    [
        (5e-4, 0.0, "numerics"),
        (5e-4, 8e-4, "numerics"),
        (0.1, 0.2, "cut"),
        (5e-4, 0.2, "cut"),
        (0.1, 0.05, "unexplained"),
    ],
)
def test_a_difference_comes_of_the_cut_where_that_is_more_than_numerics(lead: float, cut: float, reason: str) -> None:
    assert _reason(lead, cut, 1e-3) == reason
