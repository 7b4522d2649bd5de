"""Calls of tools that are held to a grammar: required ones, those of one tool, and those of strict tools."""

from __future__ import annotations

import json
from typing import Any

import pytest
from callers import ASKED, HERMES, MISTRAL, REFUSAL, TAGGED, THINKS, call, caller, judge
from factories import tiny_model

from anchorlm.engine import LocalEngine
from anchorlm.judging import CallableScorer
from anchorlm.records import Decision, TextDelta, ToolCall, UserError

CITIES = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
          "additionalProperties": False}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": CITIES, "strict": strict}}
    for name, strict in (("weather", True), ("mail", False))
]
LISTED = HERMES.replace('<tool_call>\n{"name"', '[TOOL_CALLS][{"name"').replace(
    "}}}\n</tool_call>{% endfor %}", "}}}]{% endfor %}"
)
"""A template in the manner of Mistral's: its calls stand in a list."""
NAMED = HERMES.replace(
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>',
    "<function={{ c.function.name }}>{{ c.function.arguments | tojson }}</function>",
)
"""Its calls have the name in a mark."""
BARE = HERMES.replace("\n<tool_call>\n", "").replace("\n</tool_call>", "")
"""Its calls have no mark."""
LABELS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}### {{ m.role | capitalize }}:\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}\n'
    "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""Its turns are marked by text."""
NAMES_MAIL: dict[str, Any] = {"type": "function", "function": {"name": "mail"}}
SUN = {"type": "object", "properties": {"sun": {"type": "boolean"}}, "required": ["sun"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SUN}}


def guarded(write: str | list[str], template: str = HERMES, **options: Any) -> Any:
    return caller(write, template, tools=TOOLS, **options)


def made(response: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(one.name, json.loads(one.arguments)) for one in response.calls]


@pytest.mark.parametrize("template", [HERMES, MISTRAL, LISTED, NAMED, BARE])
@pytest.mark.parametrize("choice", ["required", NAMES_MAIL])
def test_a_required_call_is_made_whatever_the_model_would_rather_say(template: str, choice: Any) -> None:
    response = guarded("It is sunny.", template).chat(ASKED, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    assert (response.text, response.finish_reason) == ("", "tool_calls")
    [(name, arguments)] = made(response)
    assert name in (("mail",) if choice is NAMES_MAIL else ("weather", "mail"))
    assert arguments["city"] in ("Oslo", "Rome")


def test_a_model_that_would_call_makes_the_calls_that_it_would() -> None:
    text = [call(city="Oslo"), "\n", call("mail", city="Rome")]
    response = guarded(text).chat(ASKED, tools=TOOLS, tool_choice="required")
    assert made(response) == [("weather", {"city": "Oslo"}), ("mail", {"city": "Rome"})]
    events = list(guarded(text).stream(ASKED, tools=TOOLS, tool_choice="required"))
    assert [one.name for one in events if isinstance(one, ToolCall)] == ["weather", "mail"]


@pytest.mark.parametrize("template", [HERMES, MISTRAL, NAMED])
def test_the_calls_of_strict_tools_fit_their_schemas_and_texts_stay_free(template: str) -> None:
    begins = {HERMES: '<tool_call>\n{"name": "weather", "arguments": ', NAMED: "<function=weather>",
              MISTRAL: '[TOOL_CALLS]{"name": "weather", "arguments": '}[template]  # fmt: skip
    loose = guarded(f'Let me see.\n{begins}{{"city": "Oslo", "x": 1}}', template).chat(ASKED, tools=TOOLS[1:])
    assert made(loose) == []
    response = guarded(f'Let me see.\n{begins}{{"town": "Oslo"}}', template).chat(
        ASKED, tools=TOOLS, parallel_tool_calls=False
    )
    assert response.text.strip() == "Let me see."
    [(name, arguments)] = made(response)
    assert name == "weather"
    assert arguments["city"] in ("Oslo", "Rome")
    said = "It is sunny, {so} <b>far</b>."
    assert guarded(said, template).chat(ASKED, tools=TOOLS).text == said


def test_a_free_text_next_to_strict_tools_streams() -> None:
    pieces = [
        one.text for one in guarded("One two <b> three.").stream(ASKED, tools=TOOLS) if isinstance(one, TextDelta)
    ]
    assert len(pieces) > 5


def test_a_free_text_next_to_strict_tools_ends_where_another_turn_begins() -> None:
    write = "It is sunny.\n### User:\nAnd now?"
    for tools in (TOOLS, TOOLS[1:]):
        assert caller(write, LABELS, tools=tools).chat(ASKED, tools=tools).text.strip() == "It is sunny."


@pytest.mark.parametrize("write", ["It is sunny.", '{"sun": true}', call(city="Oslo")])
def test_with_a_response_format_an_answer_is_a_call_or_fits_it(write: str) -> None:
    response = guarded(write).chat(ASKED, tools=TOOLS, response_format=FORMAT, parallel_tool_calls=False)
    if response.calls:
        assert response.text == ""
        assert made(response)[0][1]["city"] in ("Oslo", "Rome")
    else:
        assert set(json.loads(response.text)) == {"sun"}
    assert bool(response.calls) or "tool_call" not in write


def test_a_thought_before_a_required_call_is_free() -> None:
    guard = guarded("I look it up.\n</think>\n\nIt is sunny.", THINKS, thoughts="show")
    response = guard.chat(ASKED, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert response.thought == "I look it up."
    assert len(response.calls) == 1


@pytest.mark.parametrize(
    "defense", ["best_of_n", "best_of_n in blocks", "alignbeam", "alignbeam in blocks", "inferenceguard"]
)
@pytest.mark.parametrize("harmful", [False, True])
def test_a_required_call_is_judged_and_a_refusal_calls_nothing(defense: str, harmful: bool) -> None:
    seen: list[str] = []
    name, _, blocks = defense.partition(" ")
    team: dict[str, Any] = {"judge": judge(seen, bad="city" if harmful else "bomb")}
    if name == "alignbeam":
        team |= {"anchor": LocalEngine(tiny_model()), "candidates": 2}
    team |= {"release": "blocks", "block": 8} if blocks else {}
    if name == "inferenceguard":
        team |= {
            "cost": CallableScorer(lambda messages, response: -1.0),
            "reward": CallableScorer(lambda messages, response: 1.0),
        }
    guard = guarded("It is sunny.", defense=name, **team)
    response = guard.chat(ASKED, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert any("city" in one for one in seen)
    if harmful:
        assert (response.text.strip(), response.finish_reason, response.calls) == (REFUSAL, "refusal", ())
    else:
        assert len(response.calls) == 1


def test_gates_read_what_a_schema_writes_into_a_call() -> None:
    bad = {**CITIES, "properties": {"city": {"enum": ["how to build a bomb"]}}}
    tools = [{"type": "function", "function": {"name": "mail", "parameters": bad}}]
    guard = guarded("x")
    [turn] = guard.request(ASKED, tools=tools, tool_choice="required").schema_turn
    assert "how to build a bomb" in turn["content"].split("\n")
    assert "mail" in turn["content"].split("\n")
    assert guard.request(ASKED, tools=tools).schema_turn == []


@pytest.mark.parametrize(("template", "options", "words"), [
    (TAGGED, {"tool_choice": "required"}, "only be auto or none here, because the arguments"),
    (TAGGED, {"tool_choice": NAMES_MAIL}, "only be auto or none here, because the arguments"),
    (TAGGED, {"response_format": FORMAT}, "do not go together here, because the arguments"),
    (BARE, {"response_format": FORMAT}, "do not go together here, because this model's calls have no mark"),
    (HERMES, {"tool_choice": {"type": "function", "function": {"name": "rm"}}}, "none of the tools"),
    (HERMES, {"tool_choice": "any"}, "tool_choice is auto, none, required or"),
    (HERMES, {"tool_choice": {"type": "allowed_tools"}}, "tool_choice is auto, none, required or"),
    (HERMES, {"tool_choice": "required", "tools": []}, "there are no tools"),
    (HERMES, {"tool_choice": "required", "tools": [
        {"function": {"name": "x", "parameters": {"properties": {"a": {"not": {}}}}}}]}, "schema of a tool cannot be"),
])  # fmt: skip
def test_what_cannot_be_held_is_one_sentence(template: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        guarded("x", template).chat(ASKED, **{"tools": TOOLS, **options})
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", [TAGGED, BARE])
def test_strict_tools_are_taken_where_no_grammar_can_hold_them(template: str) -> None:
    request = guarded("x", template).request(ASKED, tools=TOOLS)
    assert request.generation.response_format is None
    assert request.tools is not None


def test_the_trace_says_what_was_called() -> None:
    response = guarded("x").chat(ASKED, tools=TOOLS, tool_choice=NAMES_MAIL)
    [told] = [one.data for one in response.trace if isinstance(one, Decision) and one.kind == "calls"]
    assert told == {"tools": ["mail"], "given": 1}
