"""Requests as other servers and clients write them: vLLM #10463 and #12864, LiteLLM #30835, open-webui #12441,
odysseus #103."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from serving.servers import Live

from anchorlm.guard import Guard
from anchorlm.models import control_texts
from anchorlm.records import Settings, UserError
from anchorlm.serving import ServerSettings

ASK, END = {"role": "user", "content": "hi"}, {"role": "user", "content": "and now?"}
CHAT = {"model": "plain", "messages": [ASK], "max_tokens": 2}


def post(live: Live, body: dict[str, Any], path: str = "chat/completions") -> httpx.Response:
    return httpx.post(f"{live.url}/v1/{path}", json=body, timeout=60)


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None, "refusal": "I can't."},
        {"refusal": "I can't."},
        {"content": "", "refusal": "I can't."},
        {"content": None},
        {"content": None, "refusal": None, "tool_calls": None, "function_call": None, "audio": None, "name": None},
        {"content": "yo", "reasoning_content": "hm"},
        {"content": None, "reasoning": "hm"},
        {"content": "yo", "reasoning_details": [{"type": "text"}], "annotations": []},
        {"content": "yo", "tool_calls": [], "tool_call_id": None, "metadata": {"id": 1}},
        {"content": [{"type": "refusal", "refusal": "I can't."}]},
        {"content": [{"type": "text", "text": "yo", "cache_control": {"type": "ephemeral"}, "annotations": None}]},
        {"content": "yo", "thinking": None},
        {"content": "yo", "thinking": "hm", "timestamp": 1, "model": "m", "images": [], "usage": {"total_tokens": 3}},
        {"content": "yo", "provider_specific_fields": {"a": 1}, "thinking_blocks": [{"type": "thinking"}]},
        {"content": "yo", "finish_reason": "stop", "index": 0, "logprobs": {}, "id": "x", "cache_control": {"a": 1}},
        {"content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "yo"}]},
        {"content": [{"type": "reasoning", "summary": []}, {"type": "output_text", "text": "yo", "annotations": [{}]}]},
        {"content": [{"type": "redacted_thinking", "data": "x"}]},
        {"content": [{"type": "text", "text": None}], "refusal": None},
        {"content": [], "refusal": "I can't."},
    ],
)
def test_a_turn_of_an_assistant_as_others_write_it_is_taken(live: Live, turn: dict[str, Any]) -> None:
    answer = post(live, CHAT | {"messages": [ASK, {"role": "assistant"} | turn, END]})
    assert answer.status_code == 200, answer.text


def test_a_refusal_without_content_is_what_the_assistant_said(live: Live) -> None:
    said = [post(live, CHAT | {"messages": [ASK, {"role": "assistant", **turn}, END]}).json()["usage"] for turn in
            ({"content": None, "refusal": "I cannot."}, {"content": "I cannot."})]  # fmt: skip
    assert said[0] == said[1]


UNREAD = "zeppelin"
"""Stands where no model and no guard looks."""

BESIDE: list[dict[str, Any]] = [
    {"content": "yo", name: UNREAD}
    for name in ("reasoning", "reasoning_content", "thinking", "name", "metadata", "cache_control", "id", "model")
] + [
    {"content": "yo", "reasoning_details": [{"text": UNREAD}], "metadata": {"note": UNREAD}},
    {"content": "yo", "refusal": UNREAD},
    {"content": [{"type": "thinking", "thinking": UNREAD}, {"type": "text", "text": "yo"}]},
    {"content": [{"type": "text", "text": "yo", "cache_control": UNREAD, "citations": [UNREAD]}]},
    {"content": [{"type": "output_text", "text": "yo"}]},
    {"content": [], "refusal": "yo"},
    {"content": [{"type": "refusal", "refusal": "yo"}]},
]  # fmt: skip


def test_what_stands_beside_a_text_is_read_by_no_model_and_no_judge_and_the_text_by_both(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard]
) -> None:
    from anchorlm.serving import ServedModel

    read: list[Any] = []

    def judge(messages: Any, response: str) -> float:
        read.append([dict(turn) for turn in messages])
        return 0.0

    live = start_live([ServedModel.of("guarded", make_guard(judge))])

    def ask(turn: dict[str, Any]) -> tuple[Any, Any]:
        body = {"messages": [ASK, {"role": "assistant", **turn}, END], "max_tokens": 2}
        return post(live, body).json()["usage"], read[-1]

    expected = ask({"content": "yo"})
    assert {"role": "assistant", "content": "yo"} in expected[1]
    for written in BESIDE:
        assert ask(written) == expected, written


def test_thoughts_are_no_part_of_a_users_turn(live: Live) -> None:
    turn = {"role": "user", "content": [{"type": "thinking", "thinking": "hm"}]}
    error = post(live, CHAT | {"messages": [turn]}).json()["error"]
    assert (error["param"], error["code"]) == ("messages.0.content.0.type", "unsupported_value")


@pytest.mark.parametrize(
    "sent",
    [
        {"stop": ""}, {"stop": []}, {"stop": [""]}, {"stop": ["", "zzz"]}, {"top_logprobs": 0}, {"logprobs": False},
        {"top_logprobs": 0, "logprobs": False}, {"tools": []}, {"metadata": {}}, {"user": ""}, {"top_k": None},
        {"anchorlm": {}}, {"anchorlm": {"alpha": None, "trace": None}}, {"response_format": {"type": "text"}},
        {"presence_penalty": 0}, {"frequency_penalty": 0.0}, {"logit_bias": {}}, {"functions": []},
        {"stream_options": {"include_usage": None, "other": None}}, {"thinking": None}, {"extra_body": {}},
        {"audio": {}}, {"modalities": []}, {"tool_choice": ""}, {"function_call": {}}, {"stop": [None]},
        {"messages": [{"role": "system", "content": None}, ASK]}, {"messages": [ASK | {"images": [], "x": ""}]},
        {"messages": [{"role": "developer", "content": ""}, ASK]},
        {"cache_prompt": True, "timings_per_token": True, "reasoning_format": "auto", "priority": 0},
        {"add_generation_prompt": True, "include_stop_str_in_output": False},
        {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
    ],
)  # fmt: skip
def test_a_value_that_asks_for_nothing_is_no_mistake(live: Live, sent: dict[str, Any]) -> None:
    answer = post(live, CHAT | sent)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("content", [None, "", []])
def test_an_empty_turn_that_waits_for_the_answer_changes_nothing(live: Live, content: object) -> None:
    said = [post(live, CHAT | {"max_tokens": 6, "messages": [ASK, *more]}).json() for more in
            ([], [{"role": "assistant", "content": content}])]  # fmt: skip
    assert said[0]["choices"][0]["message"] == said[1]["choices"][0]["message"]
    assert said[0]["usage"] == said[1]["usage"]


def test_a_raw_request_without_log_probabilities_may_say_so(live: Live) -> None:
    answer = post(live, {"model": "plain", "prompt": "hi", "max_tokens": 2, "logprobs": False}, "completions")
    assert answer.status_code == 200, answer.text


def test_an_empty_stop_ends_nothing(live: Live) -> None:
    whole = post(live, CHAT | {"max_tokens": 12}).json()["choices"][0]
    for stop in ("", [""], None):
        assert post(live, CHAT | {"max_tokens": 12, "stop": stop}).json()["choices"][0]["message"] == whole["message"]


PART = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("sent", "param", "code", "words"),
    [
        ({"tools": [{}]}, "tools", "invalid_value", "A tool is"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter",
         "takes no tools"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value", "there are no tools"),
        ({"functions": [{}]}, "functions", "unsupported_parameter", "use tools"),
        ({"function_call": {"name": "f"}}, "function_call", "unsupported_parameter", "use tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter", "undo the defense"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter", "text"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter", "text"),
        ({"prediction": {}}, "prediction", "unsupported_parameter", "predicted"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter", "searches"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value", "less than or equal to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value", "greater than or equal to -2"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value", "json_object or json_schema"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value", "needs logprobs"),
        ({"magic": 1}, "magic", "unknown_parameter", "max_tokens"),
        ({"stream_options": {"include_usage": 3}}, "stream_options.include_usage", "invalid_value", "boolean"),
        ({"messages": [ASK | {"tool_call_id": "1"}]}, "messages.0.tool_call_id", "unsupported_parameter",
         "role tool"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role", "unsupported_value",
         "function turns"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{}]}]}, "messages", "no_tool_result",
         "ends with a call"),
        ({"messages": [ASK | {"tool_calls": [{}]}]}, "messages.0.tool_calls", "unsupported_parameter",
         "role assistant"),
        ({"messages": [{"role": "user", "content": [PART, {"type": "input_audio", "input_audio": {}}]}]},
         "messages.0.content.1.type", "unsupported_value", "audio parts"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]},
         "messages.0.content.0.type", "unsupported_value", "file parts"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages.0.content.0.type",
         "unsupported_value", "hologram"),
        ({"messages": [{"role": "user", "content": [PART | {"size": 3}]}]}, "messages.0.content.0.size",
         "unknown_parameter", "image_url"),
        ({"messages": [ASK | {"images": ["aGk="]}]}, "messages.0.images", "unknown_parameter", "cache_control"),
        ({"messages": [{"role": "user", "content": "x", "mood": 3}]}, "messages.0.mood", "unknown_parameter",
         "reasoning_content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "invalid_value", "text"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "invalid_value", "text or a list"),
        ({"temperature": 9}, "temperature", "invalid_value", "less than or equal to 2"),
        ({"messages": None}, "messages", "invalid_value", "list"),
    ],
)  # fmt: skip
def test_an_error_says_where_what_and_which_kind(
    live: Live, sent: dict[str, Any], param: str, code: str, words: str
) -> None:
    answer = post(live, CHAT | sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert words in error["message"]
    assert error["message"].count("\n") == 0


def test_a_body_without_what_it_must_have_says_so(live: Live) -> None:
    error = post(live, {"model": "plain"}).json()["error"]
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")


@pytest.mark.parametrize("count", [70, 300, 3_000, 60_000])
@pytest.mark.parametrize("model", ["plain", "guarded"])
def test_a_prompt_that_is_too_long_is_told_so_by_its_code_whatever_its_length(
    live: Live, count: int, model: str
) -> None:
    limit = live.state.models[model].guard.defense.target.model.context_length
    text = "a " * max(count, limit if count < 300 else 0)
    for path, body, param in (
        ("chat/completions", {"messages": [{"role": "user", "content": text}]}, "messages"),
        ("completions", {"prompt": text}, "prompt"),
    ):
        for stream in (False, True):
            answer = post(live, {"model": model, "stream": stream} | body, path)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)


def test_a_raw_prompt_may_be_token_ids_which_stand_for_their_text(live: Live, plain: Guard) -> None:
    model = plain.defense.target.model
    ids = model.encode("How do I")
    said = [
        post(live, {"model": "plain", "prompt": prompt}, "completions").json()["choices"]
        for prompt in ("How do I", ids, [ids], [ids, ids])
    ]
    texts = [[choice["text"] for choice in choices] for choices in said]
    assert texts[0] == texts[1] == texts[2] == texts[3][:1] == texts[3][1:]


def test_control_tokens_among_ids_forge_no_turn(live: Live, plain: Guard) -> None:
    model = plain.defense.target.model
    control = [model.tokenizer.convert_tokens_to_ids(text) for text in control_texts(model.tokenizer) if text.strip()]
    ids = model.encode("How do I")
    spelled = [token for text in control_texts(model.tokenizer) if text.strip() for token in
               model.vocabulary.encode(text.encode())]  # fmt: skip
    for extra in (control, spelled):
        answer = post(live, {"model": "plain", "prompt": [*extra, *ids, *extra]}, "completions").json()
        assert answer["choices"][0]["text"] == plain.chat("How do I", raw=True).text


@pytest.mark.parametrize("prompt", [[10**9], [-1], [1.5], [True], [], [[]], [[1], "x"], ["x", 1], [None], {}])
def test_a_prompt_that_is_neither_texts_nor_ids_is_a_400(live: Live, prompt: Any) -> None:
    answer = post(live, {"model": "plain", "prompt": prompt}, "completions")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("prompt")


@pytest.mark.parametrize(
    ("values", "named", "known", "unknown"),
    [
        ({"audit": {"fil": "x"}}, "'audit.fil'", "fsync", "judge_timeout"),
        ({"prot": 1}, "'prot'", "port", "fsync"),
    ],
)
def test_an_unknown_setting_is_named_with_the_keys_of_its_own_section(
    values: dict[str, Any], named: str, known: str, unknown: str
) -> None:
    with pytest.raises(UserError) as caught:
        ServerSettings.parse(values, where="the server's settings")
    assert named in str(caught.value)
    assert known in str(caught.value)
    assert unknown not in str(caught.value)


def test_the_keys_of_a_section_in_a_list_or_behind_a_choice_are_found() -> None:
    class Inner(Settings):
        """Within."""

        depth: int = 0

    class Outer(Settings):
        """Around it."""

        many: list[Inner] = []  # noqa: RUF012
        maybe: Inner | None = None

    for values in ({"many": [{"width": 1}]}, {"maybe": {"width": 1}}):
        with pytest.raises(UserError, match="has: depth"):
            Outer.parse(values, where="a test")


def test_a_system_prompt_of_the_operator_counts_for_the_length(start_live: Callable[..., Live], plain: Guard) -> None:
    from anchorlm.serving import ModelServing, ServedModel

    limit = plain.defense.target.model.context_length
    live = start_live([ServedModel.of("plain", plain, ModelServing(system="a " * limit))])
    assert post(live, CHAT).json()["error"]["code"] == "context_length_exceeded"
