"""response_format and text.format, as the openai package uses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import httpx
import pytest
from pydantic import BaseModel, Field
from scripted import OPEN, thinker
from serving.servers import Live

from anchorlm.engine import LocalEngine
from anchorlm.guard import Guard
from anchorlm.serving import ServedModel

TURN: Any = [{"role": "user", "content": "How do I bake bread?"}]
REFUSAL = "I'm sorry, but I can't help with that."
ROOM = 150


class Loaf(BaseModel):
    kind: Literal["rye", "white"]
    grams: int = Field(ge=0, le=999)
    name: str = Field(max_length=5)


FORMAT = {"type": "json_schema", "json_schema": {"name": "loaf", "schema": Loaf.model_json_schema() | {
    "additionalProperties": False}}}  # fmt: skip
FLAT = {"type": "json_schema", **FORMAT["json_schema"], "strict": True}  # type: ignore[dict-item]


def post(live: Live, path: str = "chat/completions", **body: Any) -> httpx.Response:
    said = {"input": TURN} if path == "responses" else {"messages": TURN}
    return httpx.post(f"{live.url}/v1/{path}", json={"model": "plain", **said, **body}, timeout=120)


@pytest.mark.parametrize("model", ["plain", "guarded"])
def test_parse_gives_an_object_of_the_class(client: Any, model: str) -> None:
    parsed = client.chat.completions.parse(model=model, messages=TURN, response_format=Loaf, max_tokens=ROOM)
    message = parsed.choices[0].message
    assert isinstance(message.parsed, Loaf)
    assert message.refusal is None
    assert Loaf.model_validate_json(message.content) == message.parsed
    assert list(json.loads(message.content)) == ["kind", "grams", "name"]


@pytest.mark.parametrize("model", ["plain", "guarded"])
def test_a_response_is_parsed_too(client: Any, model: str) -> None:
    answer = client.responses.parse(model=model, input=TURN, text_format=Loaf, max_output_tokens=ROOM)
    chat = client.chat.completions.parse(model=model, messages=TURN, response_format=Loaf, max_tokens=ROOM)
    assert isinstance(answer.output_parsed, Loaf)
    assert answer.output_parsed == chat.choices[0].message.parsed


def test_the_server_says_what_the_guard_says_in_python(live: Live, plain: Guard) -> None:
    expected = plain.chat(TURN, response_format=FORMAT, max_new_tokens=ROOM).text
    sent: dict[str, Any] = {"response_format": FORMAT, "max_tokens": ROOM}
    assert post(live, **sent).json()["choices"][0]["message"]["content"] == expected
    text: dict[str, Any] = {"text": {"format": FLAT}, "max_output_tokens": ROOM}
    assert post(live, "responses", **text).json()["output"][0]["content"][0]["text"] == expected


@pytest.mark.parametrize("model", ["plain", "guarded"])
def test_a_stream_comes_to_the_same_object(client: Any, model: str) -> None:
    ask = {"model": model, "messages": TURN, "response_format": Loaf, "max_tokens": ROOM}
    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == client.chat.completions.parse(**ask).choices[0].message.parsed


def test_any_object(client: Any) -> None:
    answer = client.chat.completions.create(
        model="plain", messages=TURN, response_format={"type": "json_object"}, max_tokens=30
    ).choices[0]
    assert answer.message.content.startswith("{")
    assert answer.finish_reason in ("stop", "length")


def test_an_object_that_is_cut_has_the_reason_length(live: Live) -> None:
    choice = post(live, response_format=FORMAT, max_tokens=4).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith('{"')
    answer = post(live, "responses", text={"format": FLAT}, max_output_tokens=4).json()
    assert (answer["status"], answer["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")


def test_a_refusal_stands_apart_and_fits_no_schema(client: Any, live: Live) -> None:
    parsed = client.chat.completions.parse(model="strict", messages=TURN, response_format=Loaf, max_tokens=ROOM)
    message, told = parsed.choices[0].message, parsed.choices[0].model_dump()["anchorlm"]
    assert (message.refusal, message.content, message.parsed) == (REFUSAL, None, None)
    assert (parsed.choices[0].finish_reason, told["decision"], told["refused"]) == ("stop", "refusal", True)
    chunks = list(client.chat.completions.create(
        model="strict", messages=TURN, response_format=FORMAT, stream=True, max_tokens=ROOM))  # fmt: skip
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == ""
    assert "".join(delta.refusal or "" for delta in deltas) == REFUSAL
    [item] = client.responses.parse(model="strict", input=TURN, text_format=Loaf).output
    assert [(part.type, part.refusal) for part in item.content] == [("refusal", REFUSAL)]
    events = list(client.responses.create(model="strict", input=TURN, text={"format": FLAT}, stream=True))
    assert [event.delta for event in events if event.type == "response.refusal.delta"] == [REFUSAL]
    assert not any(event.type.startswith("response.output_text") for event in events)
    # Without a schema nothing has changed.
    plain = post(live, model="strict").json()["choices"][0]
    assert (plain["message"]["content"], plain["finish_reason"]) == (REFUSAL, "content_filter")


def test_a_refusal_behind_the_first_blocks_stands_apart_too(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard]
) -> None:
    def judge(messages: object, response: str) -> float:
        return float(len(response) > 40)

    guard = make_guard(judge, release="blocks", block=3, max_new_tokens=ROOM, candidates=1)
    live = start_live([ServedModel.of("flowing", guard)])
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 60}}, "required": ["a"]}
    long = {"type": "json_schema", "json_schema": {"name": "long", "schema": schema}}
    sent: dict[str, Any] = {"model": "flowing", "response_format": long, "max_tokens": ROOM}
    whole = post(live, **sent).json()["choices"][0]
    assert (whole["message"]["content"], whole["message"]["refusal"]) == (None, REFUSAL)
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in post(live, stream=True, **sent).text.splitlines()
        if line.startswith("data: {")
    ]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text
    assert REFUSAL not in text
    assert "".join(delta.get("refusal", "") for delta in deltas) == REFUSAL
    assert chunks[-1]["choices"][0]["finish_reason"] == "content_filter"


def test_a_defense_that_fails_refuses_apart_as_well(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard]
) -> None:
    def judge(messages: object, response: str) -> float:
        raise RuntimeError("broken")

    live = start_live([ServedModel.of("broken", make_guard(judge))])
    choice = post(live, model="broken", response_format=FORMAT, max_tokens=ROOM).json()["choices"][0]
    assert (choice["message"]["content"], choice["message"]["refusal"]) == (None, REFUSAL)
    assert choice["anchorlm"]["decision"] == "fail_closed"


def test_a_thought_is_free_and_the_answer_behind_it_is_held(start_live: Callable[..., Live]) -> None:
    engine = LocalEngine(thinker("The fox asks.\n</think>\n\nHow do I bake bread?", OPEN, asked="hi"))
    live = start_live([ServedModel.of("shown", Guard(engine, thoughts="show", generation={"max_new_tokens": 40}))])
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    sent = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    message = post(live, model="shown", messages=[{"role": "user", "content": "hi"}], response_format=sent).json()[
        "choices"
    ][0]["message"]
    assert message["reasoning_content"] == "The fox asks."
    assert json.loads(message["content"])["a"] in (1, 2)


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}, "cannot be used"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}, "cannot be used"),
        ({"type": "json_schema"}, "needs json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["x" * 70_000]}}}, "at most 64,000"),
        ({"type": "grammar"}, "json_object or json_schema"),
        ("json", "json_object or json_schema"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_used_is_a_400_with_one_sentence(
    live: Live, format: Any, words: str, stream: bool
) -> None:
    answer = post(live, response_format=format, stream=stream)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "response_format", "invalid_value")
    assert words in error["message"]
    assert error["message"].count("\n") == 0


def test_a_defense_that_cannot_hold_a_format_is_a_400(start_live: Callable[..., Live], target: LocalEngine) -> None:
    live = start_live([ServedModel.of("goal", Guard(target, "goal_priority"))])
    answer = post(live, model="goal", response_format={"type": "json_object"})
    assert answer.status_code == 400
    assert "choose another defense" in answer.json()["error"]["message"]


def test_a_format_of_the_recipe_holds_until_a_client_asks_for_text(
    start_live: Callable[..., Live], target: LocalEngine
) -> None:
    guard = Guard(target, generation={"max_new_tokens": ROOM, "response_format": FORMAT})
    live = start_live([ServedModel.of("loaves", guard)])
    ways: list[dict[str, Any]] = [{}, {"response_format": {"type": "text"}}]
    said = [post(live, model="loaves", **more).json()["choices"][0]["message"]["content"] for more in ways]
    assert Loaf.model_validate_json(said[0])
    assert said[1] == Guard(target, generation={"max_new_tokens": ROOM}).chat(TURN).text
