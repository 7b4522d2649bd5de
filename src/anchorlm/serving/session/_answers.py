from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from time import monotonic
from typing import Any, Literal

from anchorlm.engine import TextStream
from anchorlm.judging import RefusalMatcher
from anchorlm.records import (
    Decision,
    Finished,
    ModelError,
    Request,
    TextDelta,
    ThoughtDelta,
    TokenScore,
    ToolCall,
    Usage,
    UserError,
    first_stop,
    is_json,
)
from anchorlm.serving._errors import ApiError
from anchorlm.serving.session._logprobs import LogProbs
from anchorlm.serving.session._model import ServedModel
from anchorlm.serving.session._pieces import CallPiece, RefusalPiece, ThoughtPiece
from anchorlm.serving.session._runs import Run
from anchorlm.serving.session._stops import StopText
from anchorlm.serving.session._told import candidate_scores, plain_json

Verdict = Literal["answer", "refusal", "fail_closed"]
"""`refusal`: the configured refusal was given. `fail_closed`: the same, because the defense could not do its work."""

_log = logging.getLogger("anchorlm")


class Answer:
    """One answer in the making: its text as it may go out, and what was decided about it.

    Attributes:
        text: What has gone out.
        thought: What has gone out of the thought before it; empty where thoughts are hidden.
        refusal: The configured refusal, where it came in place of an answer in a response format.
        calls: The tools that it calls.
        finish: Why it ended, in OpenAI's words; None while it has not.
        decision: What became of it.
        usage: What it cost.
        trace: Everything that the defense decided.
        first: Seconds from the start to the first text; None without any.
        seconds: From the start to the end.
        logprobs: How likely its tokens were, if that was asked for.
    """

    def __init__(
        self,
        served: ServedModel,
        request: Request,
        request_id: str,
        deadline: float,
        *,
        streamed: bool,
    ) -> None:
        self._served = served
        self._request = request
        self._id = request_id
        self._stops = StopText(request.stops)
        self._start = monotonic()
        self._tokens = 0
        self._refuses: bool | None = None
        self._reasoned = 0
        self.text = ""
        self.thought = ""
        self.calls: list[ToolCall] = []
        self.refusal = ""
        self._formed = is_json(request.generation.response_format)
        self._fell = self._declines = False
        self.finish: Literal["stop", "length", "content_filter", "tool_calls"] | None = None
        self.decision: Verdict = "answer"
        self.usage = Usage(0, 0, 0)
        self.trace: list[Decision] = []
        self.first: float | None = None
        self.seconds = 0.0
        wanted = request.generation.logprobs is not None
        self.logprobs = LogProbs(served.guard.defense.target.model.vocabulary) if wanted else None
        # A stop sequence ends the work, so someone has to look for it as the text comes.
        self._run = Run(served.guard, request, deadline, together=not streamed and not request.stops)

    async def begin(self, seconds: float) -> None:
        """Waits a moment, so a request that cannot be answered is told so by its status.

        Raises:
            ApiError: 400.
        """
        try:
            await self._run.begin(seconds)
        except ModelError:
            pass  # comes again with the events
        except UserError as error:
            raise self._served.unfit(error, self._request.messages) from None
        except Exception:  # comes again with the events, where it closes the answer
            pass

    async def pieces(self) -> AsyncIterator[str]:
        """Text as it becomes final; where the defense fails, the refusal, and never what the target would have said.

        Raises:
            ApiError: 400 for a request that cannot be answered, 504 at the deadline.
        """
        try:
            async for event in self._run.events():
                if isinstance(event, ThoughtDelta):
                    yield self._think(event.text)
                    continue
                if isinstance(event, ToolCall):
                    if text := self._stops.flush():
                        yield self._out(text)
                    yield self._call(event)
                    continue
                if text := self._take(event):
                    yield self._out(text)
                if self._stops.hit and self.finish is None:
                    self.finish = "stop"
                    tokens, own = self._tokens + self._reasoned, self._reasoned
                    self.usage = Usage(await self.prompt_tokens(), tokens, tokens, own)
                    if not self._at_once:
                        break  # what is not written yet need not be
        except ApiError:
            raise
        except Exception as error:  # whatever a model, a judge or a hook raised: the answer ends here
            if isinstance(error, UserError) and not isinstance(error, ModelError) and not self.text:
                raise self._served.unfit(error, self._request.messages) from None
            if rest := self._fail(error):
                yield self._out(rest)
        finally:
            self._run.stop()
            self.seconds = monotonic() - self._start

    async def whole(self) -> None:
        """The same for those who want all at once: a text that was not ended properly is taken back."""
        async for _ in self.pieces():
            pass
        if self.decision == "fail_closed":
            self.text = self._served.refusal
        if self.decision != "answer":
            self.thought, self.calls = "", []
            if self._formed:
                self.text, self.refusal = "", self.refusal or self.text

    def due(self) -> list[TokenScore] | None:
        """How likely the tokens were that went out since the last call; None where no one asked."""
        if self.logprobs is None:
            return None
        if self.decision == "fail_closed":
            return []
        ended = self.finish is not None and not self._stops.hit
        return self.logprobs.due(self.text, last=ended)

    def end(self, error: ApiError) -> None:
        """Ends it before its time."""
        self._run.end(error)

    def stop(self) -> None:
        """Frees the rows."""
        self._run.stop()

    def _take(self, event: Any) -> str:
        if isinstance(event, Decision):
            self.trace.append(event)
            if event.kind == "thought":
                self._reasoned += int(event.data["tokens"])
            if event.kind == "fallback":
                self._stops.off()
                self._fell = self._formed
                return self._stops.flush() if self._formed else ""
            return ""
        if isinstance(event, TextDelta):
            self._declines = self._fell
            self._tokens += self._counted(event)
            if self.logprobs is not None:
                self.logprobs.add(event.scores)
            return self._stops.feed(event.text)
        if isinstance(event, Finished):
            refused = event.reason == "refusal"
            self.decision = "refusal" if refused else self.decision
            if self._stops.hit:  # all was written before it was known that it would be cut
                self.usage = replace(event.usage, completion_tokens=self._tokens + event.usage.reasoning_tokens)
                return ""
            self.finish = self._filtered if event.reason == "refusal" else event.reason
            self.usage = event.usage
            return self._stops.flush()
        return ""

    @property
    def _filtered(self) -> Literal["stop", "content_filter"]:
        """How a refusal ends. With a schema clients look for `refusal` in an answer that has ended as others do."""
        return "stop" if self._formed and not self.text else "content_filter"

    @property
    def _at_once(self) -> bool:
        """Whether text comes only when all of it is written."""
        defense = self._served.guard.defense
        return defense.streams == "whole" or getattr(defense.settings_for(self._request), "release", None) == "whole"

    def _counted(self, delta: TextDelta) -> int:
        """Tokens up to the end of the text that ends the answer, or all."""
        place = first_stop(self.text + delta.text, self._request.stops)
        if place is None or len(delta.token_ids) < 2:
            return len(delta.token_ids)
        stream = TextStream(self._served.guard.defense.target.model.vocabulary)
        length, wanted = 0, place - len(self.text)
        for count, token in enumerate(delta.token_ids, start=1):
            length += len(stream.feed(token))
            if length > wanted:
                return count
        return len(delta.token_ids)

    def _think(self, text: str) -> ThoughtPiece:
        if self.first is None:
            self.first = self._run.at - self._start
        self.thought += text
        return ThoughtPiece(text)

    def _call(self, call: ToolCall) -> CallPiece:
        if self.first is None:
            self.first = self._run.at - self._start
        self.calls.append(call)
        return CallPiece.of(call, len(self.calls) - 1)

    @property
    def said(self) -> str:
        """All that went out but the thought, for those who read texts: the calls, too."""
        return "\n".join(filter(None, [self.text + self.refusal, *(call.text for call in self.calls)]))

    def _out(self, text: str) -> str:
        if self.first is None:
            self.first = self._run.at - self._start
        if self._declines:
            text = text if self.refusal else text.lstrip()  # it stands apart from what came before
            self.refusal += text
            return RefusalPiece(text)
        self.text += text
        return text

    def _fail(self, error: Exception) -> str:
        # Only the kind is logged: what a third party's error says may hold a prompt or a path.
        kind = type(error.__cause__ or error).__name__
        _log.error("request %s failed closed: %s in the defense %s", self._id, kind, self._served.guard.defense.name)
        self.decision, self.finish = "fail_closed", self._filtered
        self._declines = self._formed
        self.trace.append(Decision("fail_closed", {"why": self._served.public(str(error)), "error": kind}))
        return "" if self.text else self._served.refusal

    @property
    def tokens_so_far(self) -> int:
        """Tokens of the thought and of the text up to now."""
        return self._tokens + self._reasoned if self.finish is None else self.usage.completion_tokens

    async def prompt_tokens(self) -> int:
        """Those of the prompt."""
        model, request = self._served.guard.defense.target.model, self._request
        return len(await asyncio.to_thread(model.encode, request.prompt, request.options))

    @property
    def refused(self) -> bool:
        """Whether what went out is a refusal: the configured one, or in the words of the model itself."""
        if self.decision != "answer" or self._formed:
            return self.decision != "answer"
        if self._refuses is None or self.finish is None:
            self._refuses = RefusalMatcher().is_refusal(self.said)
        return self._refuses

    def summary(self, *, scores: bool = True) -> dict[str, Any]:
        """What a client is told: no text that was not released.

        Args:
            scores: With figures; without them no one can feel their way towards an answer that just passes.
        """
        by_kind = {decision.kind: decision.data for decision in self.trace}
        gate = by_kind.get("gate")
        why = by_kind["fallback"].get("why") if "fallback" in by_kind else None
        why = self._served.public(why) if isinstance(why, str) else None
        if why is not None and not scores:
            why = _NOTHING_SAFE
        failed = self.decision == "fail_closed"
        told: dict[str, Any] = {
            "defense": self._served.guard.defense.name,
            "decision": self.decision,
            "refused": self.refused,
            "gate": None if gate is None else {name: gate[name] for name in _GATE if name in gate},
            "scores": candidate_scores(self.trace),
            "chosen": by_kind.get("chosen", {}).get("index"),
            "fallback": "the defense could not do its work" if failed else why,
            "request_id": self._id,
        }
        if not scores:
            told |= {"gate": gate and {"open": bool(gate.get("open"))}, "scores": None, "chosen": None}
        return {name: plain_json(value) for name, value in told.items()}

    def full_trace(self) -> list[dict[str, Any]]:
        """Everything that was decided, for the operator."""
        return [{"kind": decision.kind, **plain_json(decision.data)} for decision in self.trace]


_GATE = ("open", "score", "threshold")

_NOTHING_SAFE = "the defense found nothing safe to say"
"""Stands for a reason that may hold figures."""
