"""What clients are told of a decision, and what they are not where figures are kept back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from servers import Live

from anchorlm.guard import Guard
from anchorlm.records import Decision
from anchorlm.serving import Served, new_key
from anchorlm.serving._answers import Answer

BODY = {"model": "guarded", "messages": [{"role": "user", "content": "bread"}]}
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
    served = [Served.of("guarded", make_guard(uneven)), Served.of("strict", make_guard(lambda m, r: 0.7654321))]
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


def test_with_figures_a_client_gets_them(start_live: Callable[..., Live], make_guard: Callable[..., Guard]) -> None:
    live = start_live([Served.of("guarded", make_guard(uneven))])
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
    live = start_live([Served.of("guarded", make_guard(uneven))], scores=False, keys=tmp_path / "keys.toml")
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=body, headers=headers, timeout=60).json()["anchorlm"]
    assert answer["scores"] is None
    assert str(HARM)[:6] in json.dumps(answer["trace"])


def test_a_refusal_that_a_candidate_won_is_told_as_one_whole_and_streamed(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start_live([Served.of("guarded", make_guard())])
    monkeypatch.setattr("anchorlm.serving._answers.RefusalMatcher.is_refusal", lambda self, text: bool(text))
    url = f"{live.url}/v1/chat/completions"
    whole = httpx.post(url, json=BODY, timeout=60).json()
    message = whole["choices"][0]["message"]
    assert (whole["anchorlm"]["decision"], whole["anchorlm"]["refused"]) == ("answer", True)
    assert message["refusal"] == message["content"] != ""
    lines = httpx.post(url, json=BODY | {"stream": True}, timeout=60).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert [delta["refusal"] for delta in deltas if "refusal" in delta] == [message["content"]]


def test_an_answer_is_no_refusal_and_the_configured_refusal_is(live: Live) -> None:
    url = f"{live.url}/v1/chat/completions"
    for model, refused in (("guarded", False), ("plain", False), ("strict", True)):
        answer = httpx.post(url, json=BODY | {"model": model}, timeout=60).json()
        assert answer["anchorlm"]["refused"] is refused
        content = answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["message"]["refusal"] == (content if refused else None)
    text = httpx.post(f"{live.url}/v1/completions", json={"model": "plain", "prompt": "bread"}, timeout=60).json()
    assert text["anchorlm"]["refused"] is False
