"""What a calibration of InferAligner reads of a target that thinks."""

from __future__ import annotations

import pytest
from scripted import HARMONY, OPEN, QWEN, thinker

from anchorlm.defenses.inferaligner._shifts import answers
from anchorlm.engine import LocalEngine, runtime
from anchorlm.files import Kept
from anchorlm.models import CausalModel

ASKED = [{"role": "user", "content": "hi"}]
OPENED = thinker("The fox asks.\n</think>\n\nHow do I bake bread?")
CHANNELS = thinker(
    "<|channel|>analysis<|message|>The fox asks.<|end|><|start|>assistant<|channel|>final<|message|>"
    "How do I bake bread?",
    HARMONY,
)
ENDLESS = thinker("The quick brown fox " * 60, positions=1024)


def said(model: CausalModel, *, thinks: bool) -> str:
    with Kept(None, "") as kept:
        work = answers(LocalEngine(model), None, [(ASKED, None)], 40, kept, lambda: None, thinks=thinks)
        return runtime().run(work)[0].text


@pytest.mark.parametrize("model", [OPENED, CHANNELS], ids=["the prompt opens", "channels"])
def test_an_answer_behind_a_thought_is_measured_without_it(model: CausalModel) -> None:
    assert said(model, thinks=True) == "How do I bake bread?"


def test_a_thought_that_does_not_end_leaves_an_empty_answer() -> None:
    assert said(ENDLESS, thinks=True) == ""


@pytest.mark.parametrize("template", [OPEN, QWEN], ids=["the prompt opens", "the model opens"])
def test_a_search_asks_for_the_answer_at_once(template: str) -> None:
    model = thinker("How do I bake bread?", template, enable_thinking=False)
    assert said(model, thinks=False) == "How do I bake bread?"
