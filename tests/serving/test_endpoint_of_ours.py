"""Our own server as an endpoint: an embedded model there and the same weights here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from serving.servers import Live

from anchorlm import zoo
from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.judging import CallableJudge
from anchorlm.models import CausalModel
from anchorlm.records import Response
from anchorlm.serving import ServedModel

PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Our server takes control tokens out of raw prompts. Only a template without any arrives whole."""
PROMPTS = ["How do I open a savings account?", "What is a bond?", "Explain interest rates.", "How do I pick a lock?"]
LENIENT = CallableJudge(lambda messages, response: 0.0, name="lenient")


@pytest.fixture(scope="module")
def place() -> str:
    return str(zoo.path("a-chat"))


@pytest.fixture(scope="module")
def address(start_live: Callable[..., Live], place: str) -> str:
    guard = Guard(LocalEngine(CausalModel.from_pretrained(place)), generation={"max_new_tokens": 24})
    return f"{start_live([ServedModel.of('a-chat', guard)]).url}/v1"


def answers(target: Any, anchor: Any) -> list[Response]:
    options: dict[str, Any] = {"judge": LENIENT, "generation": {"max_new_tokens": 24}, "trace_top": 1}
    return Guard(target, "alignbeam", anchor=anchor, **options).generate(PROMPTS)


def test_alignbeam_over_our_own_server_is_the_local_one_but_for_the_cut(address: str, place: str) -> None:
    anchor = LocalEngine(CausalModel.from_pretrained(zoo.path("b-chat")))
    here = answers(LocalEngine(CausalModel.from_pretrained(place, chat_template=PLAIN)), anchor)
    far = answers({"endpoint": address, "tokenizer": place, "chat_template": PLAIN}, anchor)
    assert not any(one.failed for one in far)
    for own, other in zip(here, far, strict=True):
        rests = [step.get("unnamed", 0.0) for one in other.trace if one.kind == "mix" for step in one.data["steps"]]
        assert own.text == other.text or max(rests) > 0.01
    assert sum(own.text == other.text for own, other in zip(here, far, strict=True)) >= 3


def test_the_template_of_the_model_itself_does_not_arrive_and_the_server_writes_the_turns(
    address: str,
    place: str,
) -> None:
    far = Guard({"endpoint": address, "tokenizer": place}, generation={"max_new_tokens": 24})
    here = Guard(LocalEngine(CausalModel.from_pretrained(place)), generation={"max_new_tokens": 24})
    engine: Any = far.defense.target
    assert engine.found.mode == "chat"
    for prompt in PROMPTS[:2]:
        turns = [{"role": "user", "content": prompt}]
        assert far.chat(turns).text == here.chat(turns).text
