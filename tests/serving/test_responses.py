"""/v1/responses, as the openai package uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai.types.responses import Response
from scripted import OPEN, thinker
from serving.servers import Live

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.serving import ModelServing, ServedModel

ASKED = "How do I bake bread?"
TURN = [{"role": "user", "content": ASKED}]
REFUSAL = "I'm sorry, but I can't help with that."
THOUGHT, ANSWER = "The fox asks.", "How do I bake bread?"


def post(live: Live, **body: Any) -> httpx.Response:
    return httpx.post(f"{live.url}/v1/responses", json={"model": "plain", "input": ASKED, **body}, timeout=60)


def same(response: Response) -> dict[str, Any]:
    """A response without what differs from request to request."""
    data = response.model_dump()
    told = {name: value for name, value in data["anchorlm"].items() if name != "request_id"}
    items = [{name: value for name, value in item.items() if name != "id"} for item in data["output"]]
    return {name: data[name] for name in ("status", "incomplete_details", "usage")} | {"output": items, "told": told}


@pytest.fixture(scope="module")
def thinking(start_live: Callable[..., Live]) -> Live:
    engine = LocalEngine(thinker(f"{THOUGHT}\n</think>\n\n{ANSWER}", OPEN, asked="hi"))
    serving = ModelServing(template={"enable_thinking": (True, False), "reasoning_effort": ("low",)})
    guard = Guard(engine, thoughts="show", generation={"max_new_tokens": 40})
    return start_live([ServedModel.of("shown", guard, serving)])


@pytest.mark.parametrize("sent", [ASKED, TURN, [{"type": "message", "role": "user", "content": [
    {"type": "input_text", "text": ASKED}]}]])  # fmt: skip
def test_a_response_says_what_a_chat_says(client: Any, make_guard: Callable[..., Guard], sent: Any) -> None:
    answer = client.responses.create(model="guarded", input=sent)
    expected = make_guard().chat(TURN)
    assert answer.output_text == expected.text
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        expected.usage.prompt_tokens,
        expected.usage.completion_tokens,
    )
    assert answer.model_dump()["anchorlm"]["decision"] == "answer"
    assert Response.model_validate(answer.model_dump(), strict=True).id == answer.id
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize("model", ["guarded", "plain", "strict"])
def test_streamed_is_whole(client: Any, model: str) -> None:
    whole = client.responses.create(model=model, input=ASKED)
    events = list(client.responses.create(model=model, input=ASKED, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == f"response.{whole.status}"
    assert same(events[-1].response) == same(whole)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == events[-1].response.output


def test_the_streams_of_the_package_come_to_the_same_response(client: Any) -> None:
    text = client.responses.create(model="plain", input=ASKED).output_text
    stop = {"stop": text[len(text) // 2 :][:3]}  # the package takes nothing but a whole response
    with client.responses.stream(model="plain", input=ASKED, extra_body=stop) as stream:
        final = stream.get_final_response()
    assert final.output_text == client.responses.create(model="plain", input=ASKED, extra_body=stop).output_text
    assert final.status == "completed"


def test_a_refusal_of_the_guard_is_a_refusal_and_no_text(client: Any) -> None:
    answer = client.responses.create(model="strict", input=ASKED)
    [item] = answer.output
    assert [(part.type, part.refusal) for part in item.content] == [("refusal", REFUSAL)]
    assert (answer.status, answer.output_text) == ("completed", "")
    events = list(client.responses.create(model="strict", input=ASKED, stream=True))
    assert not any(event.type.startswith("response.output_text") for event in events)
    assert [event.delta for event in events if event.type == "response.refusal.delta"] == [REFUSAL]
    assert [event.refusal for event in events if event.type == "response.refusal.done"] == [REFUSAL]


def test_a_defense_that_fails_is_a_refusal_too(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard]
) -> None:
    def judge(messages: object, response: str) -> float:
        raise RuntimeError("broken")

    client: Any = start_live([ServedModel.of("broken", make_guard(judge))]).client()
    whole = client.responses.create(model="broken", input=ASKED)
    streamed = list(client.responses.create(model="broken", input=ASKED, stream=True))[-1].response
    for answer in (whole, streamed):
        assert answer.output[0].content[0].refusal == REFUSAL
        assert answer.model_dump()["anchorlm"]["decision"] == "fail_closed"


def test_instructions_and_the_history_of_other_responses_reach_the_model(client: Any, plain: Guard) -> None:
    first = client.responses.create(model="plain", input="One")
    history = [{"role": "user", "content": "One"}, *(item.model_dump() for item in first.output)]
    history.insert(1, {"type": "reasoning", "id": "rs_1", "summary": []})
    answer = client.responses.create(
        model="plain", instructions="Be brief.", input=[*history, {"role": "user", "content": "Two"}]
    )
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Two"},
    ]
    assert answer.output_text == plain.chat(turns).text


def test_sampling_is_that_of_a_chat(client: Any, plain: Guard) -> None:
    answer = client.responses.create(
        model="plain", input=ASKED, temperature=0.9, top_p=0.9, max_output_tokens=7, metadata={"a": "b"},
        extra_body={"seed": 3, "min_p": 0.01, "frequency_penalty": 0.5},
    )  # fmt: skip
    expected = plain.chat(TURN, do_sample=True, temperature=0.9, top_p=0.9, seed=3, min_p=0.01, frequency_penalty=0.5,
                          max_new_tokens=7)  # fmt: skip
    assert answer.output_text == expected.text
    assert answer.metadata == {"a": "b"}


@pytest.mark.parametrize("model", ["plain", "guarded"])
def test_log_probabilities_come_with_the_text(client: Any, model: str) -> None:
    asked: dict[str, Any] = {
        "model": model,
        "input": ASKED,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    whole = client.responses.create(**asked).output[0].content[0].logprobs
    chat = client.chat.completions.create(model=model, messages=TURN, logprobs=True, top_logprobs=2)
    assert [one.logprob for one in whole] == [one.logprob for one in chat.choices[0].logprobs.content]
    streamed = list(client.responses.create(**asked, stream=True))[-1].response
    assert streamed.output[0].content[0].logprobs == whole


def test_a_shown_thought_is_an_item_before_the_message(thinking: Live) -> None:
    client: Any = thinking.client()
    whole = client.responses.create(model="shown", input="hi")
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.output[0].content[0].text == THOUGHT
    assert whole.output_text == ANSWER
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
    events = list(client.responses.create(model="shown", input="hi", stream=True))
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == THOUGHT
    assert same(events[-1].response) == same(whole)
    kinds = [event.type for event in events]
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")
    bad = post(thinking, model="shown", reasoning={"effort": "high"}).json()["error"]
    assert bad["code"] == "variable_out_of_bounds"
    off = post(thinking, model="shown", input="hi", chat_template_kwargs={"enable_thinking": False}).json()
    assert [item["type"] for item in off["output"]] == ["message"]


@pytest.mark.parametrize(
    ("sent", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "conv_1"}, "conversation", "whole conversation"),
        ({"background": True}, "background", "at once"),
        ({"truncation": "auto"}, "truncation", "never shortened"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "offer functions"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "json_object or json_schema"),
        ({"n": 2}, "n", "one answer"),
        ({"input": [{"type": "computer_call", "call_id": "x"}]}, "input.0.type", "other tools than functions"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "{}"}]}, "input",
         "ends with a call"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "whole conversation"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input.0.content.0.type",
         "file parts"),
        ({"input": [{"role": "system", "content": "x"}]}, "input", "no turn of the user"),
        ({"input": []}, "input", "at least 1"),
        ({"input": 3}, "input", "text or a list"),
        ({"input": "a " * 5000}, "input", "tokens"),
        ({"ignore_eos": True}, "ignore_eos", "defeat the guard"),
        ({"stop_everything": 1}, "stop_everything", "max_output_tokens"),
    ],
)  # fmt: skip
def test_an_error_says_where_and_what(live: Live, sent: dict[str, Any], param: str, words: str) -> None:
    for stream in (False, True):
        answer = post(live, stream=stream, **sent)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param)
        assert words in error["message"]


def test_what_asks_for_nothing_passes(live: Live) -> None:
    body = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "store": True, "truncation": "disabled",
            "text": {"format": {"type": "text"}, "verbosity": "low"}, "include": ["reasoning.encrypted_content"],
            "reasoning": {"effort": "high", "summary": "auto"}, "background": False, "service_tier": "auto",
            "previous_response_id": None, "user": "x"}  # fmt: skip
    answer = post(live, **body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["store"] is False
