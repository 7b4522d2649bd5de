from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from anchorlm.records import TokenScore
from anchorlm.serving._errors import ApiError, unexpected
from anchorlm.serving.session._answers import Answer
from anchorlm.serving.session._pieces import CallPiece, RefusalPiece, ThoughtPiece
from anchorlm.serving.session._session import RequestSession

_log = logging.getLogger("anchorlm")

_OBJECTS = {"chat": ("chat.completion", "chatcmpl"), "text_completion": ("text_completion", "cmpl")}


class Shape:
    """A session in OpenAI's form.

    Args:
        session: The session.
        kind: `chat` or `text_completion`.
    """

    def __init__(self, session: RequestSession, kind: str) -> None:
        self._exchange = session
        self._chat = kind == "chat"
        self._object, prefix = _OBJECTS[kind]
        self._id = f"{prefix}-{session.id}"

    def whole(self) -> dict[str, Any]:
        """The body of an answer that came at once."""
        choices = []
        for index, answer in enumerate(self._exchange.answers):
            # A refusal stands in the content, since most clients show nothing else, and not in both: Vercel's SDK joins
            # them. With a schema clients take the content for JSON.
            content: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
            if answer.refusal:
                content |= {"content": None, "refusal": answer.refusal}
            if answer.calls:
                content["tool_calls"] = [call.data for call in answer.calls]
                content["content"] = answer.text or None
            if answer.thought:
                content["reasoning_content"] = answer.thought
            said = {"message": content} if self._chat else {"text": answer.said}
            choices.append(
                {"index": index, **said, "logprobs": self._logprobs(answer, answer.due())}
                | {"finish_reason": answer.finish}
                | {"anchorlm": self._exchange.told(index)}
            )
        return self._frame(self._object) | {
            "choices": choices,
            "usage": self._exchange.usage(),
            "anchorlm": choices[0]["anchorlm"],
        }

    async def events(self, *, usage: bool, continuous: bool = False) -> AsyncIterator[dict[str, str]]:
        """The same piece by piece, as server-sent events, up to `[DONE]`.

        Args:
            usage: Whether a last chunk says what it cost.
            continuous: Whether every chunk says what it has cost so far; only with `usage`.
        """
        status = 200
        try:
            prompt = await self._exchange.prompt_tokens() if usage and continuous else None

            def cost() -> dict[str, Any]:
                if prompt is not None:
                    return {"usage": self._exchange.usage_so_far(prompt)}
                return {"usage": None} if usage else {}

            if self._chat:
                for index in range(len(self._exchange.answers)):
                    yield self._chunk(index, {"role": "assistant", "content": ""}, None, cost())
            async for index, piece, scores in self._exchange.pieces():
                answer = self._exchange.answers[index]
                known = cost() | {"logprobs": self._logprobs(answer, scores)}
                if isinstance(piece, ThoughtPiece):
                    if self._chat:
                        yield self._chunk(index, {"reasoning_content": str(piece)}, None, cost())
                    continue
                if isinstance(piece, CallPiece):
                    call = {"index": piece.place, **piece.call.data}
                    yield self._chunk(index, {"tool_calls": [call]}, None, known)
                    continue
                if piece is not None:
                    part = "refusal" if self._chat and isinstance(piece, RefusalPiece) else "content"
                    yield self._chunk(index, {part: str(piece)}, None, known)
                    continue
                told = {"anchorlm": self._exchange.told(index)}
                yield self._chunk(index, {}, answer.finish, known | told)
            if usage:
                yield _event(self._frame(self._chunk_object) | {"choices": [], "usage": self._exchange.usage()})
        except Exception as error:
            wrong = failure(self._exchange.id, error)
            status = wrong.status
            yield _event(wrong.body())
        try:
            await self._exchange.end(status)
        except Exception as error:
            yield _event(failure(self._exchange.id, error).body())
        yield {"data": "[DONE]"}

    @property
    def _chunk_object(self) -> str:
        return f"{self._object}.chunk" if self._chat else self._object

    def _logprobs(self, answer: Answer, scores: Sequence[TokenScore] | None) -> dict[str, Any] | None:
        """How likely tokens were; None where that is not known."""
        if answer.logprobs is None or not scores:
            return None
        return answer.logprobs.chat(scores) if self._chat else answer.logprobs.text(scores)

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None, more: dict[str, Any]) -> dict[str, str]:
        said = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        choice = {"index": index, **said, "logprobs": more.pop("logprobs", None), "finish_reason": finish}
        return _event(self._frame(self._chunk_object) | {"choices": [choice]} | more)

    def _frame(self, object_: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": object_,
            "created": self._exchange.created,
            "model": self._exchange.served.id,
        }


def failure(request_id: str, error: Exception) -> ApiError:
    """What a client is told whose stream cannot go on."""
    if isinstance(error, ApiError):
        return error
    # Only the kind is logged: what it says may hold a prompt.
    _log.error("request %s failed unexpectedly: %s", request_id, type(error).__name__)
    return unexpected()


def _event(data: dict[str, Any]) -> dict[str, str]:
    # ASCII: some clients take U+2028 and its like for the end of a line.
    return {"data": json.dumps(data, separators=(",", ":"))}
