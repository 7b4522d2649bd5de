"""Tools of Inspect's tasks: they reach the guard, and its calls come back as Inspect's."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from callers import ASKED, call, caller

from anchorlm.records import UserError

pytest.importorskip("inspect_ai", reason="it comes with pip install 'anchorlm[eval]'")

from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageTool,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
)
from inspect_ai.tool import ToolCallError, ToolChoice, ToolFunction, ToolInfo, ToolParams
from inspect_ai.util import JSONSchema

from anchorlm.evaluation._inspect import GuardedModel
from anchorlm.evaluation._inspect_tools import offered, turn_of

CITY = ToolParams(properties={"city": JSONSchema(type="string", description="Where.")}, required=["city"])
TOOLS = [ToolInfo(name=name, description="Does it.", parameters=CITY) for name in ("weather", "mail")]


def answer(guard: Any, messages: list[Any], choice: Any = "auto", **config: Any) -> ModelOutput:
    model = GuardedModel.__new__(GuardedModel)
    model.model_name, model.guard, model._asked = "x", guard, Counter()
    return asyncio.run(model.generate(messages, TOOLS, choice, GenerateConfig(max_tokens=200, **config)))


def test_a_call_comes_back_as_inspects_and_its_result_is_read() -> None:
    guard = caller(
        f"Let me see.\n{call(city='Oslo')}\n{call('mail', city='Rome')}", tools=offered(TOOLS, "auto", None)["tools"]
    )
    first = answer(guard, [ChatMessageUser(content=ASKED[0]["content"])])
    assert (first.completion, first.stop_reason) == ("Let me see.", "tool_calls")
    made = first.message.tool_calls or []
    assert [(one.function, one.arguments) for one in made] == [
        ("weather", {"city": "Oslo"}),
        ("mail", {"city": "Rome"}),
    ]
    result = ChatMessageTool(content="Rain.", tool_call_id=made[0].id, function="weather")
    turns = [turn_of(one) for one in (ChatMessageUser(content="hi"), first.message, result)]
    request = guard.request(turns, **offered(TOOLS, "auto", None))
    model = guard.defense.target.model
    text = model.tokenizer.decode(model.encode(request.prompt, request.options))
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in text
    assert "<tool_response>\nRain.\n</tool_response>" in text
    alone = answer(guard, [ChatMessageUser(content="hi")], parallel_tool_calls=False)
    assert [one.function for one in alone.message.tool_calls or []] == ["weather"]


def test_a_choice_of_inspects_is_the_same_choice_of_the_guards() -> None:
    guard = caller("It is sunny.", tools=offered(TOOLS, "auto", None)["tools"])
    choices: list[tuple[ToolChoice, tuple[str, ...]]] = [
        ("auto", ()), ("any", ("weather", "mail")), (ToolFunction(name="mail"), ("mail",)),
    ]  # fmt: skip
    for choice, must in choices:
        use = guard.request(ASKED, **offered(TOOLS, choice, None)).tools
        assert use is not None
        assert use.must == must
    assert offered([], "auto", None) == {}
    assert guard.request(ASKED, **offered(TOOLS, "none", None)).tools is None


def test_a_tool_that_failed_and_a_turn_without_calls_are_texts() -> None:
    failed = ChatMessageTool(content="", tool_call_id="a", error=ToolCallError("timeout", "It took too long."))
    assert turn_of(failed) == {"role": "tool", "content": "Error: It took too long.", "tool_call_id": "a"}
    assert turn_of(ChatMessageAssistant(content="Yes.")) == {"role": "assistant", "content": "Yes."}


def test_a_defense_that_vouches_for_no_call_refuses_the_task() -> None:
    with pytest.raises(UserError, match="self_reminder cannot vouch for calls of tools"):
        answer(caller("x", defense="self_reminder"), [ChatMessageUser(content="hi")])
