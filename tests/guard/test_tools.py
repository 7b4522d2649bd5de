from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from callers import ASKED, HERMES, MISTRAL, REFUSAL, SPECIALS, THINKS, TOOLS, call, caller, judge
from factories import tiny_model, tiny_tokenizer
from scripted import MARKS, OPEN

from anchorlm.cli._generate import _answer, _Tally
from anchorlm.cli._output import Output
from anchorlm.engine import LocalEngine
from anchorlm.files import PromptRow, read_rows
from anchorlm.guard import Guard, Recipe
from anchorlm.judging import CallableScorer
from anchorlm.records import Decision, TextDelta, ToolCall, UserError, json_text, readable


def test_a_call_comes_apart_from_the_text_before_it_whole_and_streamed() -> None:
    guard = caller(f"Let me see.\n{call(city='Oslo')}\n{call('mail', city='Rome')}")
    whole = guard.chat(ASKED, tools=TOOLS)
    assert (whole.text, whole.finish_reason) == ("Let me see.", "tool_calls")
    assert [(one.name, json.loads(one.arguments)) for one in whole.calls] == [
        ("weather", {"city": "Oslo"}), ("mail", {"city": "Rome"}),
    ]  # fmt: skip
    assert len({one.id for one in whole.calls}) == 2
    events = list(guard.stream(ASKED, tools=TOOLS))
    assert "".join(one.text for one in events if isinstance(one, TextDelta)) == whole.text
    assert [(one.name, one.arguments) for one in events if isinstance(one, ToolCall)] == [
        (one.name, one.arguments) for one in whole.calls
    ]
    assert whole.usage.completion_tokens > len(whole.token_ids)


def test_a_call_behind_a_control_token_is_seen() -> None:
    response = caller('[TOOL_CALLS]{"name": "weather", "arguments": {"city": "Oslo"}}', MISTRAL).chat(
        ASKED, tools=TOOLS
    )
    assert [one.name for one in response.calls] == ["weather"]
    assert response.text == ""


@pytest.mark.parametrize("said", [
    "It is sunny.", "<tool_call>\n{broken\n</tool_call>", call("rm"), '{"name": "weather", "arguments": {}}',
    call(city="Oslo")[:-20],
])  # fmt: skip
def test_what_is_no_call_stays_text(said: str) -> None:
    guard = caller(said)
    response = guard.chat(ASKED, tools=TOOLS)
    assert (response.text, response.finish_reason, response.calls) == (said, "stop", ())
    assert "".join(one.text for one in guard.stream(ASKED, tools=TOOLS) if isinstance(one, TextDelta)) == said


def test_half_a_character_in_a_call_can_be_sent() -> None:
    [made] = caller(call(city="\ud800")).chat(ASKED, tools=TOOLS).calls
    assert made.arguments.encode().isascii()
    assert json.loads(made.arguments) == {"city": "\ud800"}
    assert made.text.encode()


def test_a_response_format_holds_where_tools_are_shown_but_none_is_to_be_called() -> None:
    guard = caller("It is sunny.")
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": "none", "response_format": {"type": "json_schema",
               "json_schema": {"name": "x", "schema": {"enum": ["rain", "sun"]}}}}  # fmt: skip
    assert json.loads(guard.chat(ASKED, **options).text) in ("rain", "sun")


def test_text_streams_until_a_call_may_begin() -> None:
    pieces = [one.text for one in caller("One two <b> three.").stream(ASKED, tools=TOOLS) if isinstance(one, TextDelta)]
    assert len(pieces) > 5


def test_one_call_is_given_where_several_are_not_wanted() -> None:
    response = caller(call(city="Oslo") + call("mail", city="Rome")).chat(ASKED, tools=TOOLS, parallel_tool_calls=False)
    assert [one.name for one in response.calls] == ["weather"]
    [told] = [one.data for one in response.trace if isinstance(one, Decision) and one.kind == "calls"]
    assert told == {"tools": ["weather", "mail"], "given": 1}


def costs(seen: list[str]) -> Any:
    def cost(messages: Any, response: str) -> float:
        seen.append(response)
        return 1.0 if "bomb" in response else -1.0

    return cost


@pytest.mark.parametrize(
    "defense", ["best_of_n", "best_of_n in blocks", "alignbeam", "alignbeam in blocks", "inferenceguard"]
)
@pytest.mark.parametrize("harmful", [False, True])
def test_a_call_is_judged_as_an_answer_is_and_a_refusal_calls_nothing(defense: str, harmful: bool) -> None:
    city = "\u0062omb in caf\u00e9" if harmful else "Oslo"
    text = call(city=city).replace("bomb", "\\u0062omb")
    seen: list[str] = []
    team: dict[str, Any] = {"judge": judge(seen)}
    name, _, blocks = defense.partition(" ")
    if name == "alignbeam":
        team |= {"anchor": LocalEngine(tiny_model()), "alpha": 0.0, "candidates": 2}
    if name == "best_of_n":
        team["n"] = 2
    team |= {"release": "blocks", "block": 8} if blocks else {}
    if name == "inferenceguard":
        team |= {"cost": CallableScorer(costs(seen)), "reward": CallableScorer(lambda messages, response: 1.0)}
    guard = caller(text, defense=name, **team)
    response = guard.chat(ASKED, tools=TOOLS)
    assert harmful == ("bomb" in "".join(seen))
    assert any("weather" in one for one in seen)
    if harmful:
        assert (response.text.strip(), response.finish_reason, response.calls) == (REFUSAL, "refusal", ())
        assert not any(isinstance(one, ToolCall) for one in guard.stream(ASKED, tools=TOOLS))
    else:
        assert [one.arguments for one in response.calls] == ['{"city": "Oslo"}']


def test_a_stop_text_hides_no_call_from_the_judge() -> None:
    from dataclasses import replace

    from anchorlm.engine import runtime

    guard = caller(call(city="bomb"), defense="best_of_n", judge=judge([]), n=2)
    request = replace(guard.request(ASKED, tools=TOOLS), stops=("arguments",))
    response = runtime().run(guard.respond(request))
    assert response.calls == ()


@pytest.mark.parametrize("policy", ["hide", "show"])
def test_a_thought_before_a_call_keeps_its_policy(policy: Any) -> None:
    guard = caller(f"I look it up.\n</think>\n\n{call(city='Oslo')}", THINKS, thoughts=policy)
    response = guard.chat(ASKED, tools=TOOLS)
    assert [one.name for one in response.calls] == ["weather"]
    assert response.thought == ("I look it up." if policy == "show" else None)
    assert response.text == ""


def test_a_call_within_a_thought_is_none() -> None:
    guard = caller(f"{call(city='Oslo')}\n</think>\n\nIt is sunny.", THINKS, thoughts="hide")
    response = guard.chat(ASKED, tools=TOOLS)
    assert (response.text, response.calls) == ("It is sunny.", ())


def test_the_conversation_goes_on_with_the_result_and_judges_read_it_as_text() -> None:
    guard = caller(call(city="Oslo"))
    first = guard.chat(ASKED, tools=TOOLS)
    result = {"role": "tool", "tool_call_id": first.calls[0].id, "content": "Rain."}
    turns = [*ASKED, first.message, result]
    request = guard.request(turns, tools=TOOLS)
    model = guard.defense.target.model
    text = model.tokenizer.decode(model.encode(request.prompt, request.options))
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in text
    assert "<tool_response>\nRain.\n</tool_response>" in text
    assert [turn["role"] for turn in request.conversation] == ["user", "assistant", "user"]
    assert request.conversation[1]["content"] == '[calls the tool weather with {"city": "Oslo"}]'
    assert request.conversation[2]["content"] == "[result of the tool weather]\nRain."
    assert guard.chat(turns, tools=TOOLS).finish_reason in ("stop", "length", "tool_calls")


TOLD = HERMES.split("{% for c in")[0].replace("{{ tools", "Calls go behind <|tool_call|> as a JSON list. {{ tools") + (
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""It tells the mark of calls, and leaves out those of earlier turns."""


def test_a_template_that_only_tells_the_mark_gets_calls_and_their_results() -> None:
    made = '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]'
    guard = caller(f"Let me see. {made}", TOLD)
    first = guard.chat(ASKED, tools=TOOLS)
    assert (first.text, [(one.name, one.arguments) for one in first.calls]) == (
        "Let me see.", [("weather", '{"city": "Oslo"}')],
    )  # fmt: skip
    turns = [
        *ASKED,
        first.message,
        {"role": "tool", "tool_call_id": first.calls[0].id, "content": "<|tool_call|>Rain."},
    ]
    model, request = guard.defense.target.model, guard.request(turns, tools=TOOLS)
    text = model.tokenizer.decode(model.encode(request.prompt, request.options))
    assert f"Let me see.{made}<|end|>" in text
    assert text.count("<|tool_call|>") == 2  # that of the system turn, and that of the call
    assert "Rain.\n</tool_response>" in text


@pytest.mark.parametrize(("options", "words"), [
    ({"tools": "weather"}, "tools is a list"),
    ({"tools": [{"type": "web_search"}]}, "A tool is"),
    ({"tools": [{"function": {"name": "a b"}}]}, "letters, digits"),
    ({"tools": TOOLS + TOOLS[:1]}, "same name"),
    ({"tools": TOOLS, "raw": True}, "raw prompt offers no tools"),
])  # fmt: skip
def test_what_cannot_be_kept_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        caller("x").chat("hi", **options)


@pytest.mark.parametrize("turns", [
    [*ASKED, {"role": "tool", "content": "Rain.", "tool_call_id": "x"}],
    [*ASKED, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "a", "arguments": "no"}}]}],
    [{"role": "user", "content": "hi", "tool_calls": [{"function": {"name": "a", "arguments": "{}"}}]}],
])  # fmt: skip
def test_turns_of_tools_that_do_not_fit_are_one_sentence(turns: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"\.$"):
        caller("x").chat(turns, tools=TOOLS)


def test_without_tools_or_with_none_wanted_a_call_is_a_text() -> None:
    guard = caller(call(city="Oslo"))
    model = guard.defense.target.model
    without: list[dict[str, Any]] = [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}]
    for options in without:
        request = guard.request(ASKED, **options)
        assert request.tools is None
        assert "weather" not in model.tokenizer.decode(model.encode(request.prompt, request.options))


@pytest.mark.parametrize("name", ["self_reminder", "goal_priority"])
def test_a_defense_that_sees_no_answer_takes_no_tools(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} cannot vouch for calls of tools"):
        caller("x", defense=name).chat(ASKED, tools=TOOLS)


def test_a_template_that_takes_no_tools_is_one_sentence() -> None:
    with pytest.raises(UserError, match="takes no tools"):
        Guard(LocalEngine(tiny_model(tokenizer=tiny_tokenizer(chat_template=OPEN, specials=MARKS)))).chat(
            ASKED, tools=TOOLS
        )


def test_check_says_what_the_template_does_with_tools_and_who_cannot_vouch(tmp_path: Path) -> None:
    caller("x").defense.target.model.model.save_pretrained(tmp_path / "calls")
    tiny_tokenizer(specials=SPECIALS, chat_template=HERMES).save_pretrained(tmp_path / "calls")
    tiny_model().model.save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    for folder, kind, defense in (("calls", "calls", "undefended"), ("calls", "calls", "self_reminder"),
                                  ("plain", "none", "self_reminder")):  # fmt: skip
        made = {"target": str(tmp_path / folder), "defense": {"name": defense}, "generation": {"max_new_tokens": 8}}
        recipe = Recipe.parse(made, where="a test")
        found = Guard.check(recipe)
        assert found.gaps == []
        assert found.thoughts["tools"] == kind
        assert any("tools are called (<tool_call>" in fact for fact in found.facts) == (kind == "calls")
        required = any("a call can be required" in fact for fact in found.facts)
        assert required == (kind == "calls" and defense == "undefended")
        refuses = any("cannot vouch for calls of tools" in note for note in found.notes)
        assert refuses == (kind == "calls" and defense == "self_reminder")


def test_rows_of_a_file_may_have_tools_and_turns_of_tools(tmp_path: Path) -> None:
    turns = [*ASKED, {"role": "assistant", "content": None,
                      "tool_calls": [{"id": "a", "type": "function", "function": {"name": "mail", "arguments": "{}"}}]},
             {"role": "tool", "tool_call_id": "a", "content": "Sent."}]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": one, "tools": TOOLS}) + "\n" for one in (ASKED, turns)), "utf-8")
    guard, pending = caller(call(city="Oslo")), [row for row in read_rows(str(file)) if isinstance(row, PromptRow)]
    assert len(pending) == 2
    with Output(str(tmp_path / "out.jsonl"), pending, "x", overwrite=False, trace=False) as output:
        _answer(guard, pending, output, _Tally(), skip_bad=False, concurrency=2)
    written = {one["index"]: one for one in map(json.loads, (tmp_path / "out.jsonl").read_text("utf-8").splitlines())}
    assert written[0]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert written[1]["usage"]["prompt_tokens"] > written[0]["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "arguments",
    ['{"x": "bread"}', '{"x": "\\u0062\\u0072ead"}', "x='\\x62\\x72ead'", '"{\\"x\\": \\"\\\\u0062read\\"}"'],
)
def test_no_word_of_a_call_hides_from_a_judge_behind_escapes(arguments: str) -> None:
    assert "bread" in readable(arguments)


def test_arguments_that_no_other_json_knows_are_sent_as_texts() -> None:
    assert json.loads(json_text({"x": [float("nan")], "y": float("inf")}), parse_constant=pytest.fail) == {
        "x": ["NaN"], "y": "Infinity",
    }  # fmt: skip
