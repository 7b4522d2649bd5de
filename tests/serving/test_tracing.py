from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from serving.servers import Live

from anchorlm.guard import Guard
from anchorlm.serving import ServedModel

trace = pytest.importorskip("opentelemetry.trace", reason="opentelemetry-api is not installed")


class Tracer:
    """Keeps what was told of each span."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []

    def get_tracer(self, name: str) -> Tracer:
        return self

    def start_span(self, name: str, *, kind: Any, attributes: dict[str, Any]) -> Any:
        told = {"name": name, **attributes}

        class Span:
            def set_attribute(self, name: str, value: Any) -> None:
                told[name] = value

            def end(_) -> None:
                self.spans.append(told)

        return Span()


def test_a_request_is_one_span_without_its_text(
    start_live: Callable[..., Live], make_guard: Callable[..., Guard], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer = Tracer()
    monkeypatch.setattr(trace, "get_tracer", tracer.get_tracer)
    live = start_live([ServedModel.of("strict", make_guard(lambda messages, response: 1.0))])
    answer = live.client().chat.completions.create(
        model="strict", messages=[{"role": "user", "content": "Where is the zeppelin?"}]
    )
    live.wait(lambda: tracer.spans)
    [span] = tracer.spans
    assert span["name"] == "chat strict"
    assert span["gen_ai.operation.name"] == "chat"
    assert span["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert span["anchorlm.decision"] == ["refusal"]
    assert span["http.response.status_code"] == 200
    assert "zeppelin" not in str(span)
