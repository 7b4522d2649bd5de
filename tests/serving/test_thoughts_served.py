from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from scripted import OPEN, thinker
from serving.servers import Live

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.serving import ModelServing, ServedModel

THOUGHT, ANSWER = "The fox asks.", "How do I bake bread?"
ASKED = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def thinking(start_live: Callable[..., Live]) -> Live:
    """One model that thinks, with thoughts shown and hidden."""
    engine = LocalEngine(thinker(f"{THOUGHT}\n</think>\n\n{ANSWER}", OPEN))
    serving = ModelServing(template={"enable_thinking": (True, False), "reasoning_effort": ("low",)})
    generation = {"max_new_tokens": 40}
    return start_live(
        [
            ServedModel.of("shown", Guard(engine, thoughts="show", generation=generation), serving),
            ServedModel.of("hidden", Guard(engine, thoughts="hide", generation=generation)),
        ]
    )


def post(live: Live, **body: Any) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/chat/completions", json={"messages": ASKED, **body}, timeout=60)


def chunks(live: Live, **body: Any) -> Iterator[dict[str, Any]]:
    for line in post(live, stream=True, stream_options={"include_usage": True}, **body).text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def test_shown_thoughts_are_reasoning_content_streamed_as_whole(thinking: Live) -> None:
    body = post(thinking, model="shown").json()
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)
    reasoned = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < reasoned < body["usage"]["completion_tokens"]
    found = list(chunks(thinking, model="shown"))
    deltas = [choice["delta"] for chunk in found for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == THOUGHT
    assert "".join(delta.get("content", "") for delta in deltas) == ANSWER
    assert found[-1]["usage"] == body["usage"]


@pytest.mark.parametrize("body", [{"model": "hidden"}, {"model": "shown", "include_reasoning": False}])
def test_hidden_thoughts_are_counted_and_never_sent(thinking: Live, body: dict[str, Any]) -> None:
    whole = post(thinking, **body)
    assert whole.json()["choices"][0]["message"]["content"] == ANSWER
    assert whole.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    sent = json.dumps(list(chunks(thinking, **body)))
    for text in (whole.text, sent):
        assert "reasoning_content" not in text
        assert "fox" not in text


def test_clients_set_variables_of_the_template_within_the_operators_limits(thinking: Live) -> None:
    off = post(thinking, model="shown", chat_template_kwargs={"enable_thinking": False})
    assert off.status_code == 200
    assert "completion_tokens_details" not in off.json()["usage"]
    for body, code in (
        ({"model": "shown", "chat_template_kwargs": {"enable_thinking": "no"}}, "variable_out_of_bounds"),
        ({"model": "shown", "reasoning_effort": "high"}, "variable_out_of_bounds"),
        ({"model": "hidden", "chat_template_kwargs": {"enable_thinking": False}}, "variable_not_allowed"),
    ):
        answer = post(thinking, **body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert post(thinking, model="hidden", reasoning_effort="high").status_code == 200
