"""Tools over HTTP, with the `openai` package."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import httpx
import openai
import pytest
from callers import ASKED, MISTRAL, REFUSAL, TAGGED, THINKS, TOOLS, call, caller, judge
from serving.servers import Live

from anchorlm.guard import Guard
from anchorlm.serving import ServedModel

FLAT: list[Any] = [{"type": "function", **cast("dict[str, Any]", tool["function"]), "strict": True} for tool in TOOLS]
TEXT = f"Let me see.\n{call(city='Oslo')}\n{call('mail', city='Rome')}"
NAMES_MAIL: Any = {"type": "function", "function": {"name": "mail"}}
HELD: list[Any] = [
    {"type": "function", "function": {"name": name, "strict": True, "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        "additionalProperties": False}}}
    for name in ("weather", "mail")
]  # fmt: skip
CALLS = [("weather", {"city": "Oslo"}), ("mail", {"city": "Rome"})]


@pytest.fixture(scope="module")
def served(start_live: Callable[..., Live], plain: Guard) -> Live:
    """Models that call tools: bare, judged, and with marks and thoughts of their own; and one that takes none."""
    guards = {
        "calls": caller(TEXT),
        "judged": caller(call(city="Oslo"), defense="best_of_n", judge=judge([]), n=2),
        "refused": caller(call(city="a bomb"), defense="best_of_n", judge=judge([]), n=2),
        "control": caller('[TOOL_CALLS]{"name": "weather", "arguments": {"city": "Oslo"}}', MISTRAL),
        "thinks": caller(f"I look.\n</think>\n\n{call(city='Oslo')}", THINKS, thoughts="show"),
        "reminded": caller("x", defense="self_reminder"),
        "says": caller("It is sunny.", tools=HELD),
        "declines": caller("It is sunny.", defense="best_of_n", judge=judge([], bad="city"), n=2, tools=HELD),
        "tagged": caller("x", TAGGED),
        "plain": plain,
    }
    return start_live([ServedModel.of(name, guard) for name, guard in guards.items()])


@pytest.fixture(scope="module")
def tools(served: Live) -> Any:
    return served.client()


def test_a_call_comes_as_tool_calls(tools: Any) -> None:
    choice = tools.chat.completions.create(model="calls", messages=ASKED, tools=TOOLS).choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.refusal) == ("tool_calls", "Let me see.", None)
    assert [(one.function.name, json.loads(one.function.arguments)) for one in choice.message.tool_calls] == CALLS
    assert all(one.type == "function" for one in choice.message.tool_calls)
    assert len({one.id for one in choice.message.tool_calls}) == 2
    one = tools.chat.completions.create(model="calls", messages=ASKED, tools=TOOLS, parallel_tool_calls=False)
    assert len(one.choices[0].message.tool_calls) == 1


@pytest.mark.parametrize("model", ["calls", "judged", "control", "thinks"])
def test_streamed_calls_are_those_of_the_whole_answer(tools: Any, model: str) -> None:
    whole = tools.chat.completions.create(model=model, messages=ASKED, tools=TOOLS)
    stream = tools.chat.completions.create(
        model=model, messages=ASKED, tools=TOOLS, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    found: dict[int, dict[str, str]] = {}
    for part in (part for delta in deltas for part in delta.tool_calls or []):
        made = found.setdefault(part.index, {"name": part.function.name, "arguments": "", "id": part.id})
        made["arguments"] += part.function.arguments
    message = whole.choices[0].message
    assert [(one["name"], one["arguments"]) for one in found.values()] == [
        (one.function.name, one.function.arguments) for one in message.tool_calls
    ]
    assert all(one["id"] for one in found.values())
    assert "".join(delta.content or "" for delta in deltas) == (message.content or "")
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("choice", ["required", NAMES_MAIL])
def test_a_required_call_is_made_whole_and_streamed(tools: Any, choice: Any) -> None:
    asked = {"model": "says", "messages": ASKED, "tools": HELD, "tool_choice": choice, "parallel_tool_calls": False}
    choice_made = tools.chat.completions.create(**asked).choices[0]
    [made] = choice_made.message.tool_calls
    assert (choice_made.finish_reason, choice_made.message.content) == ("tool_calls", None)
    assert made.function.name in (("mail",) if choice is NAMES_MAIL else ("weather", "mail"))
    assert json.loads(made.function.arguments)["city"] in ("Oslo", "Rome")
    with tools.chat.completions.stream(**asked) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (made.function.name, made.function.arguments)


def test_a_required_call_that_is_refused_is_a_refusal_and_no_call(tools: Any) -> None:
    asked = {"model": "declines", "messages": ASKED, "tools": HELD, "tool_choice": "required"}
    choice = tools.chat.completions.create(**asked).choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == (
        "content_filter", REFUSAL, None,
    )  # fmt: skip


def test_with_a_response_format_a_refusal_stands_apart_from_json_and_calls(tools: Any) -> None:
    asked = {"messages": ASKED, "tools": HELD, "response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "schema": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"],
                                "additionalProperties": False}}}}  # fmt: skip
    message = tools.chat.completions.create(model="says", parallel_tool_calls=False, **asked).choices[0].message
    assert message.tool_calls or json.loads(message.content) == {"city": "Oslo"}
    refused = tools.chat.completions.create(model="declines", **asked).choices[0]
    assert (refused.finish_reason, refused.message.content, refused.message.refusal) == ("stop", None, REFUSAL)


def test_responses_make_the_call_that_is_required(tools: Any) -> None:
    flat = [{"type": "function", **tool["function"]} for tool in HELD]
    asked = {"model": "says", "input": "hi", "tools": flat, "tool_choice": {"type": "function", "name": "mail"}}
    whole = tools.responses.create(**asked)
    assert [(item.type, item.name) for item in whole.output] == [("function_call", "mail")]
    assert whole.tool_choice.name == "mail"
    assert all(tool.strict for tool in whole.tools)
    events = list(tools.responses.create(**asked, stream=True))
    assert events[-1].response.output[0].arguments == whole.output[0].arguments


def test_the_packages_own_reader_of_streams_takes_the_calls(tools: Any) -> None:
    with tools.chat.completions.stream(model="calls", messages=ASKED, tools=TOOLS) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [one.function.name for one in message.tool_calls] == [name for name, _ in CALLS]


def test_a_refusal_stays_a_refusal(tools: Any) -> None:
    choice = tools.chat.completions.create(model="refused", messages=ASKED, tools=TOOLS).choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == (
        "content_filter", REFUSAL, None,
    )  # fmt: skip
    stream = tools.chat.completions.create(model="refused", messages=ASKED, tools=TOOLS, stream=True)
    assert not any(choice.delta.tool_calls for chunk in stream for choice in chunk.choices)


def test_the_conversation_goes_on_with_results(tools: Any) -> None:
    first = tools.chat.completions.create(model="calls", messages=ASKED, tools=TOOLS).choices[0].message
    results = [{"role": "tool", "tool_call_id": one.id, "content": "Rain."} for one in first.tool_calls]
    answer = tools.chat.completions.create(
        model="calls", messages=[*ASKED, first.model_dump(exclude_none=True), *results], tools=TOOLS, max_tokens=5
    )
    assert answer.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError, match="ends with a call of a tool"):
        tools.chat.completions.create(
            model="calls", messages=[*ASKED, first.model_dump(exclude_none=True)], tools=TOOLS
        )


def test_responses_give_function_calls_whole_and_streamed(tools: Any) -> None:
    whole = tools.responses.create(model="calls", input="hi", tools=FLAT)
    assert whole.status == "completed"
    assert whole.output_text == "Let me see."
    made = [item for item in whole.output if item.type == "function_call"]
    assert [(one.name, json.loads(one.arguments)) for one in made] == CALLS
    assert [tool.name for tool in whole.tools] == ["weather", "mail"]
    events = list(tools.responses.create(model="calls", input="hi", tools=FLAT, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [json.loads(event.arguments) for event in done] == [arguments for _, arguments in CALLS]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert [json.loads(delta) for delta in deltas] == [arguments for _, arguments in CALLS]
    last = events[-1].response
    assert [item.type for item in last.output] == [item.type for item in whole.output]
    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.model_dump() for item in items] == [item.model_dump() for item in last.output]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text


@pytest.mark.parametrize("model", ["judged", "thinks", "control"])
def test_responses_that_call_at_once_have_no_message(tools: Any, model: str) -> None:
    kinds = ["reasoning", "function_call"] if model == "thinks" else ["function_call"]
    whole = tools.responses.create(model=model, input="hi", tools=FLAT)
    assert [item.type for item in whole.output] == kinds
    events = list(tools.responses.create(model=model, input="hi", tools=FLAT, stream=True))
    assert [item.type for item in events[-1].response.output] == kinds


def test_responses_go_on_with_outputs(tools: Any) -> None:
    first = tools.responses.create(model="calls", input="hi", tools=FLAT)
    turns: list[Any] = [{"role": "user", "content": "hi"}, *first.output]
    turns += [{"type": "function_call_output", "call_id": item.call_id, "output": "Rain."}
              for item in first.output if item.type == "function_call"]  # fmt: skip
    assert tools.responses.create(model="calls", input=turns, tools=FLAT, max_output_tokens=20).output


@pytest.mark.parametrize(("model", "asked", "words"), [
    ("tagged", {"tools": TOOLS, "tool_choice": "required"}, "only be auto or none"),
    ("tagged", {"tools": TOOLS, "tool_choice": NAMES_MAIL}, "auto or none"),
    ("calls", {"tools": TOOLS, "tool_choice": "any"}, "choose one of these"),
    ("calls", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "rm"}}}, "none of the tools"),
    ("calls", {"tool_choice": "required"}, "there are no tools"),
    ("calls", {"tools": [{"type": "web_search"}]}, "tools of type 'web_search' are not called here"),
    ("calls", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "letters, digits"),
    ("plain", {"tools": TOOLS}, "takes no tools"),
    ("reminded", {"tools": TOOLS}, "self_reminder cannot vouch for calls of tools"),
    ("tagged", {"tools": TOOLS, "response_format": {"type": "json_object"}}, "do not go together"),
    ("calls", {"functions": [{"name": "f"}]}, "use tools"),
    ("calls", {"messages": [*ASKED, {"role": "tool", "tool_call_id": "x", "content": "y"}]}, "answers no call"),
    ("calls", {"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"x": 1}]}, *ASKED]}, "A call is"),
    ("calls", {"messages": [{"role": "user", "content": "hi", "tool_calls": [{}]}]}, "only turns of the role"),
])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_one_sentence(
    tools: Any, model: str, asked: dict[str, Any], words: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        tools.chat.completions.create(**{"model": model, "messages": ASKED, "stream": stream, **asked})
    error: Any = caught.value.body
    assert words in error["message"]
    assert error["message"].count("\n") == 0


def test_half_a_character_in_a_call_is_a_sentence(served: Live) -> None:
    calls = [{"id": "x", "type": "function", "function": {"name": "mail", "arguments": '{"a": "\\ud800"}'}}]
    turns = [*ASKED, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "tool_call_id": "x", "content": "y"}]
    body = {"model": "calls", "messages": turns, "tools": TOOLS}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "Unicode" in answer.json()["error"]["message"]
