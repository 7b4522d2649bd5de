"""What clients are told of a decision, and what they are not where figures are kept back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from serving.servers import Live

from anchorlm.guard import Guard
from anchorlm.records import Decision
from anchorlm.serving import ServedModel, new_key
from anchorlm.serving.session._answers import Answer

BODY: dict[str, Any] = {"model": "guarded", "messages": [{"role": "user", "content": "bread"}]}
HARM = 0.123456789
DIGITS = ("0.123", "0.375", "7.654")


def uneven(messages: Any, response: str) -> float:
    return HARM


def told(live: Live, stream: bool, model: str = "guarded", **more: Any) -> tuple[str, dict[str, Any]]:
    """Everything that a client gets, headers too, and the object `anchorlm` in it."""
    url = f"{live.url}/v1/chat/completions"
    answer = httpx.post(url, json=BODY | {"model": model, "stream": stream} | more, timeout=60)
    if not stream:
        return f"{answer.headers}{answer.text}", answer.json()["anchorlm"]
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return f"{answer.headers}{answer.text}", next(event["anchorlm"] for event in events if "anchorlm" in event)


@pytest.fixture(scope="module")
def silent(start_live: Callable[..., Live], make_guard: Callable[..., Guard]) -> Live:
    served = [
        ServedModel.of("guarded", make_guard(uneven)),
        ServedModel.of("strict", make_guard(lambda m, r: 0.7654321)),
    ]
    return start_live(served, scores=False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["guarded", "strict"])
def test_without_figures_a_client_learns_what_was_decided_and_by_no_way_how_nearly(
    silent: Live, stream: bool, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = Answer.__init__

    def with_gate(self: Answer, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.trace.append(Decision("gate", {"open": True, "score": 7.654, "threshold": 7.6545}))

    monkeypatch.setattr(Answer, "__init__", with_gate)
    everything, found = told(silent, stream, model, **({"stream_options": {"include_usage": True}} if stream else {}))
    assert not any(digits in everything for digits in (*DIGITS, "0.765", "generated_tokens"))
    assert found["gate"] == {"open": True}
    assert (found["scores"], found["chosen"]) == (None, None)
    assert found["refused"] is (model == "strict")
    assert found["decision"] == ("refusal" if model == "strict" else "answer")
    assert not re.search(r"\d", found["fallback"] or "")


COUNTS = {"created", "index", "prompt_tokens", "completion_tokens", "total_tokens"}
"""Numbers that tell nothing of what was decided."""

LIKELY = {"logprobs", "top_logprobs"}


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """The numbers of a response by their names, without those of the tokens that went out."""
    if isinstance(value, dict):
        return {key: one for k, v in value.items() if k not in LIKELY for key, one in numbers(v, k).items()}
    if isinstance(value, list):
        return {key: one for each in value for key, one in numbers(each, name).items()}
    return {name: value} if isinstance(value, int | float) and not isinstance(value, bool) else {}


@pytest.mark.parametrize("model", ["guarded", "strict"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 2},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": ["e"]},
        {"max_tokens": 1},
        {"temperature": 1.5, "seed": 3},
        {"anchorlm": {"trace": True}},
        {"anchorlm": {"max_harm": 0.1}},
        {"anchorlm": {"trace": 1}},
        {"messages": [{"role": "user", "content": "a " * 3_000}]},
        {"messages": []},
    ],
    ids=str,
)
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_without_figures_no_route_and_no_error_holds_a_number_of_a_decision(
    silent: Live, model: str, more: dict[str, Any], raw: bool, stream: bool
) -> None:
    headers = {"X-AnchorLM-Trace": "true", "Trace": "1", "traceparent": "00-" + "1" * 32 + "-" + "1" * 16 + "-01"}
    body = BODY | {"model": model, "stream": stream} | more
    if raw:
        messages = body.pop("messages")
        body["prompt"] = messages[0]["content"] if messages else []
        if "top_logprobs" in body:
            body |= {"logprobs": body.pop("top_logprobs")}
    path = "completions" if raw else "chat/completions"
    answer = httpx.post(f"{silent.url}/v1/{path}", json=body, headers=headers, timeout=60)
    parts = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.endswith("}")]
    assert parts, answer.text
    assert set(numbers(parts)) <= COUNTS
    assert not any(digits in f"{answer.headers}{answer.text}" for digits in (*DIGITS, "0.765"))
    assert '"trace"' not in answer.text


def test_without_figures_and_keys_metrics_do_not_tell_what_was_turned_down(
    silent: Live, start_live: Callable[..., Live], make_guard: Callable[..., Guard], tmp_path: Any
) -> None:
    told(silent, stream=False)
    text = httpx.get(f"{silent.url}/metrics").text
    assert 'anchorlm_tokens_total{kind="completion"' in text
    assert "generated" not in "".join(line for line in text.splitlines() if not line.startswith("#"))
    key = new_key(tmp_path / "keys.toml", "boss", operator=True)
    live = start_live([ServedModel.of("guarded", make_guard(uneven))], scores=False, keys=tmp_path / "keys.toml")
    headers = {"Authorization": f"Bearer {key}"}
    httpx.post(f"{live.url}/v1/chat/completions", json=BODY, headers=headers, timeout=60)
    assert 'kind="generated"' in httpx.get(f"{live.url}/metrics", headers=headers).text


def test_with_figures_a_client_gets_them(start_live: Callable[..., Live], make_guard: Callable[..., Guard]) -> None:
    live = start_live([ServedModel.of("guarded", make_guard(uneven))])
    _, found = told(live, stream=False)
    assert found["scores"] == [HARM, HARM]
    assert found["chosen"] in (0, 1)


def test_where_figures_are_kept_back_a_trace_takes_an_operators_key(
    silent: Live, start_live: Callable[..., Live], make_guard: Callable[..., Guard], tmp_path: Any
) -> None:
    body = BODY | {"anchorlm": {"trace": True}}
    assert httpx.post(f"{silent.url}/v1/chat/completions", json=body, timeout=60).status_code == 403
    assert httpx.get(f"{silent.url}/v1/models").json()["anchorlm"]["operator"] is False
    key = new_key(tmp_path / "keys.toml", "boss", operator=True)
    live = start_live([ServedModel.of("guarded", make_guard(uneven))], scores=False, keys=tmp_path / "keys.toml")
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=body, headers=headers, timeout=60).json()["anchorlm"]
    assert answer["scores"] is None
    assert str(HARM)[:6] in json.dumps(answer["trace"])


def test_a_refusal_that_a_candidate_won_is_told_as_one_whole_and_streamed(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start_live([ServedModel.of("guarded", make_guard())])
    monkeypatch.setattr("anchorlm.serving.session._answers.RefusalMatcher.is_refusal", lambda self, text: bool(text))
    url = f"{live.url}/v1/chat/completions"
    whole = httpx.post(url, json=BODY, timeout=60).json()
    message = whole["choices"][0]["message"]
    assert (whole["anchorlm"]["decision"], whole["anchorlm"]["refused"]) == ("answer", True)
    assert message["refusal"] is None
    lines = httpx.post(url, json=BODY | {"stream": True}, timeout=60).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert message["content"]
    assert not any("refusal" in delta for delta in deltas)


def test_a_refusal_stands_in_one_place_whole_and_streamed(live: Live) -> None:
    url = f"{live.url}/v1/chat/completions"
    message = httpx.post(url, json=BODY | {"model": "strict"}, timeout=60).json()["choices"][0]["message"]
    assert (bool(message["content"]), message["refusal"]) == (True, None)
    lines = httpx.post(url, json=BODY | {"model": "strict", "stream": True}, timeout=60).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    said = "".join((delta.get("content") or "") + (delta.get("refusal") or "") for delta in deltas)
    assert said == message["content"]


def test_an_answer_is_no_refusal_and_the_configured_refusal_is(live: Live) -> None:
    url = f"{live.url}/v1/chat/completions"
    for model, refused in (("guarded", False), ("plain", False), ("strict", True)):
        answer = httpx.post(url, json=BODY | {"model": model}, timeout=60).json()
        assert answer["anchorlm"]["refused"] is refused
    text = httpx.post(f"{live.url}/v1/completions", json={"model": "plain", "prompt": "bread"}, timeout=60).json()
    assert text["anchorlm"]["refused"] is False
