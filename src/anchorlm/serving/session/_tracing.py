from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anchorlm.serving.session._answers import Answer
from anchorlm.serving.session._model import ServedModel


class Span:
    """An OpenTelemetry span with the GenAI names around one request. Nothing where OpenTelemetry is not installed.

    Prompts and answers are never attributes.
    """

    def __init__(self, operation: str, served: ServedModel, request_id: str) -> None:
        self._span: Any = None
        try:
            from opentelemetry import trace
        except ImportError:
            return
        self._span = trace.get_tracer("anchorlm.serving").start_span(
            f"{operation} {served.id}",
            kind=trace.SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "anchorlm",
                "gen_ai.request.model": served.id,
                "gen_ai.response.id": request_id,
                "anchorlm.defense": served.guard.defense.name,
            },
        )

    def end(self, status: int, answers: Sequence[Answer]) -> None:
        """Ends the span with what the answers cost and what was decided."""
        if self._span is None:
            return
        if answers:
            self._span.set_attribute("gen_ai.usage.input_tokens", sum(one.usage.prompt_tokens for one in answers))
            self._span.set_attribute("gen_ai.usage.output_tokens", sum(one.usage.completion_tokens for one in answers))
            self._span.set_attribute("gen_ai.response.finish_reasons", [str(one.finish) for one in answers])
            self._span.set_attribute("anchorlm.decision", [one.decision for one in answers])
        self._span.set_attribute("http.response.status_code", status)
        self._span.end()
