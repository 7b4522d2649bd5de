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
from benchmarks.endpoint import CANDIDATES, MIXED, NAMED, Explainer, Side, _led, _parted, _reason

PROMPTS = ["How do I bake bread?", "The lazy dog", "fox", "What is 42?", "over", "The quick brown", "jump", "Why?"]
KNOBS: dict[str, Any] = {
    "mixed_tokens": MIXED, "candidates": CANDIDATES, "trace_top": NAMED, "generation": {"max_new_tokens": 10},
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
    differ = [prompt for prompt, own, other in pairs if own["text"] != other["text"]]
    reasons = [explainer.why(one, here.whole(one, one), far.whole(one, one))[0] for one in differ]
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
        here, far = (side.whole(prompt, prompt) for side in sides)
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


def test_two_tokens_are_explained_by_their_own_lead_and_one_that_is_not_shown_by_all_that_the_other_has() -> None:
    shares = {" the": 0.3, " a": 0.28, " one": 0.1}
    reason, how = _led(1, shares, " the", " a", 0.02)
    assert reason == "cut"
    assert "led ' a' by 0.0200, 0.0690 in log-probability, unnamed 0.0200" in how
    assert _led(1, shares, " the", " one", 0.02)[0] == "unexplained"
    assert _led(1, shares, " one", " not shown", 0.04)[0] == "unexplained"


def test_first_tokens_part_at_the_pair_that_is_furthest_apart() -> None:
    mixture = [("a", 0.4), ("b", 0.3), ("c", 0.2), ("d", 0.05)]
    assert _parted(mixture, {"b", "c"}, {"d", "not shown"}) == ("b", "not shown")


def test_the_same_candidates_in_another_order_are_explained_by_their_likelihoods() -> None:
    def row(chosen: str, *likely: float, unnamed: float = 0.0) -> dict[str, Any]:
        texts = [{"text": text, "log_probability": one} for text, one in zip("xyz", likely, strict=True)]
        steps = [{"mixture": [("x", 0.4), ("y", 0.3), ("z", 0.2)], "unnamed": unnamed}]
        return {"text": chosen, "candidates": texts, "steps": {str(place): steps for place in range(3)}}

    explainer = Explainer(LocalEngine(tiny_model("llama")))
    here = row("x", -1.0, -1.2, -2.0)
    assert explainer.why("", here, row("y", -1.2, -1.1, -2.0, unnamed=0.05))[0] == "cut"
    assert explainer.why("", here, row("y", -1.2, -1.1, -2.0, unnamed=0.01))[0] == "unexplained"
    assert explainer.why("", row("x", -1.0, -1.0005, -2.0), row("y", -1.0, -1.0, -2.0))[0] == "numerics"
    assert explainer.why("", here, row("a refusal", -1.0, -1.2, -2.0))[0] == "unexplained"
    assert explainer.why("", here, here)[0] == "unexplained"
