from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from anchorlm.records import Decision, Usage
from anchorlm.serving.ops._admission import Admission

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Ended(Protocol):
    """What is counted of an answer that has ended."""

    @property
    def decision(self) -> str:
        """What became of it: `answer`, `refusal` or `fail_closed`."""
        ...

    @property
    def trace(self) -> Sequence[Decision]:
        """What its defense decided."""
        ...

    @property
    def usage(self) -> Usage:
        """What it cost."""
        ...

    @property
    def first(self) -> float | None:
        """Seconds to the first text."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds to the end."""
        ...


class Metrics:
    """What Prometheus may ask a server for. Rates are counters, to be divided by `anchorlm_answers_total`.

    Args:
        admission: Who waits, and who is answered.
        generated: Whether generated tokens are counted: they tell how many candidates were turned down.
    """

    def __init__(self, admission: Admission, *, generated: bool = True) -> None:
        self.registry = CollectorRegistry()
        self._generated = generated

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"anchorlm_{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"anchorlm_{name}", help, labels, buckets=buckets, registry=self.registry)

        self._requests = counter("requests_total", "Requests by their HTTP status; 499: the client left.", "status")
        self._answers = counter("answers_total", "Answers by what became of them.", "model", "defense", "decision")
        self._refused = counter("refused_total", "Answers that are the configured refusal.", "model", "defense")
        self._fallbacks = counter("fallback_total", "Answers whose defense found nothing safe.", "model", "defense")
        self._failed = counter("fail_closed_total", "Answers whose defense could not do its work: alert on any.",
                               "model", "defense")  # fmt: skip
        self._gates = counter("gate_total", "Decisions of gates.", "model", "defense", "open")
        self._tokens = counter("tokens_total", "Tokens.", "model", "kind")
        self._first = histogram("time_to_first_text_seconds", "From admission to the first text.", _SECONDS, "model")
        self._per_token = histogram("time_per_token_seconds", "Seconds of an answer, by token.", _PER_TOKEN, "model")
        self._added = histogram("added_milliseconds_per_token", "Time per token beyond that of the bare target, which "
                                "is measured alone at the start.", (0.1, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 1000),
                                "defense")  # fmt: skip
        self._waited = histogram("queue_seconds", "From arrival to admission.", _SECONDS)
        self.audit_failures = counter("audit_failures_total", "Lines of the audit log that could not be written.")
        for name, read in (("waiting", lambda: admission.waiting), ("running", lambda: admission.running)):
            gauge = Gauge(f"anchorlm_requests_{name}", f"Requests that are {name}.", registry=self.registry)
            gauge.set_function(read)
        self.bare: dict[str, float] = {}
        """Seconds per token of each model's target alone."""

    def know(self, model: str, defense: str) -> None:
        """Shows a model's counters from the start, so an alert on a first failure can see it rise."""
        for metric in (self._refused, self._fallbacks, self._failed):
            metric.labels(model, defense)

    def request(self, status: int) -> None:
        """Counts a request by what it was told."""
        self._requests.labels(str(status)).inc()

    def admitted(self, waited: float) -> None:
        """Counts the seconds that a request has waited for its turn."""
        self._waited.observe(waited)

    def left(self, model: str, defense: str) -> None:
        """Counts an answer that no one waited for, or that was not ready in time."""
        self._answers.labels(model, defense, "abandoned").inc()

    def answer(self, model: str, defense: str, answer: Ended) -> None:
        """Counts an answer that has ended."""
        names = (model, defense)
        self._answers.labels(*names, answer.decision).inc()
        if answer.decision == "refusal":
            self._refused.labels(*names).inc()
        if answer.decision == "fail_closed":
            self._failed.labels(*names).inc()
        for decision in answer.trace:
            if decision.kind == "gate" and "open" in decision.data:
                self._gates.labels(*names, str(bool(decision.data["open"])).lower()).inc()
            if decision.kind == "fallback":
                self._fallbacks.labels(*names).inc()
        self._tokens.labels(model, "prompt").inc(answer.usage.prompt_tokens)
        self._tokens.labels(model, "completion").inc(answer.usage.completion_tokens)
        if self._generated:
            self._tokens.labels(model, "generated").inc(answer.usage.generated_tokens)
        if answer.first is not None:
            self._first.labels(model).observe(answer.first)
        if tokens := answer.usage.completion_tokens:
            self._per_token.labels(model).observe(answer.seconds / tokens)
            if model in self.bare:
                added = max(0.0, answer.seconds / tokens - self.bare[model])
                self._added.labels(defense).observe(1_000 * added)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)
