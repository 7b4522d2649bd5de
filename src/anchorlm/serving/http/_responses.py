from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from anchorlm.records import TokenScore
from anchorlm.serving._errors import ApiError
from anchorlm.serving.http._response_items import call_events, call_item, offered, refusal_part, text_part
from anchorlm.serving.http._shapes import failure
from anchorlm.serving.session._answers import Answer
from anchorlm.serving.session._pieces import CallPiece, RefusalPiece, ThoughtPiece
from anchorlm.serving.session._session import RequestSession

_NAMES = {"messages": "input", "max_tokens": "max_output_tokens"}
"""What parameters of a chat are called here."""

Event = dict[str, str]


class ResponseShape:
    """A session as a response of OpenAI's interface of that name. Nothing of it is kept.

    A refusal of the guard is a piece of type `refusal`. One in the model's own words is a text.

    Args:
        session: The session, with one answer.
        metadata: What the client wants back.
        offer: The tools that it offers.
    """

    def __init__(self, session: RequestSession, metadata: Any = None, offer: Mapping[str, Any] | None = None) -> None:
        self._offer = offer or {}
        self._session = session
        self._metadata = metadata if isinstance(metadata, Mapping) else {}
        self._number = 0
        self._items: list[dict[str, Any]] = []

    def whole(self) -> dict[str, Any]:
        """The body of a response that came at once."""
        answer = self._session.answers[0]
        if answer.thought:
            self._items.append(self._thought(answer.thought))
        refuses = answer.decision != "answer"
        scores = answer.logprobs.chat(answer.due() or [])["content"] if answer.logprobs is not None else []
        if answer.text or not answer.calls:
            self._items.append(self._message(refusal_part(answer.said) if refuses else text_part(answer.text, scores)))
        self._items += map(call_item, answer.calls)
        return self._ended(answer, refuses=refuses)

    async def events(self) -> AsyncIterator[Event]:
        """The same piece by piece, as server-sent events."""
        status = 200
        try:
            for kind in ("created", "in_progress"):
                yield self._event(f"response.{kind}", {"response": self._frame("in_progress")})
            async for event in self._pieces():
                yield event
        except Exception as error:
            wrong = failure(self._session.id, error)
            status = wrong.status
            for event in self._failed(wrong):
                yield event
        try:
            await self._session.end(status)
        except Exception as error:
            for event in self._failed(failure(self._session.id, error)):
                yield event

    async def _pieces(self) -> AsyncIterator[Event]:
        answer, thinks, text, refuses = self._session.answers[0], False, "", False
        held: list[tuple[str, list[TokenScore]]] = []
        told: list[Any] = []
        async for _, piece, scores in self._session.pieces():
            if isinstance(piece, ThoughtPiece):
                for event in self._thinks(str(piece), begins=not thinks):
                    yield event
                thinks = True
                continue
            if thinks and len(self._items) == 0:
                for event in self._thought_ended(answer.thought):
                    yield event
            if isinstance(piece, RefusalPiece):
                continue  # is told whole, at the end
            if isinstance(piece, CallPiece):
                for event in self._calls(piece, held, text, told):
                    yield event
                held = []
                continue
            if piece is not None or scores:
                held.append((piece or "", scores or []))
            refuses = piece is None and not text and answer.decision != "answer"
            # What may be the whole of a refusal waits for the end, which tells whether it is one.
            if piece is not None and self._session.served.refusal.startswith(answer.text):
                continue
            if refuses:
                continue
            for part, likely in held:
                known = answer.logprobs.chat(likely)["content"] if answer.logprobs is not None else []
                for event in self._says(part, known, begins=not told):
                    yield event
                told.append(known)
                text += part
            held = []
        if not answer.calls:
            whole = answer.said if refuses else text
            for event in self._said(whole, refuses, [one for each in told for one in each]):
                yield event
        body = self._ended(answer, refuses=refuses)
        yield self._event(f"response.{body['status']}", {"response": body})

    def _calls(
        self, piece: CallPiece, held: Sequence[tuple[str, list[TokenScore]]], text: str, told: list[Any]
    ) -> Iterator[Event]:
        """A call, and before the first one the end of the text."""
        if piece.place == 0 and (text or any(part for part, _ in held)):
            for part, _ in held:
                yield from self._says(part, [], begins=not told)
                told.append([])
            text += "".join(part for part, _ in held)
            yield from self._said(text, refuses=False, scores=[one for each in told for one in each])
        item = call_item(piece.call)
        for kind, data in call_events(item, len(self._items)):
            yield self._event(kind, data)
        self._items.append(item)

    def _thinks(self, text: str, *, begins: bool) -> Iterator[Event]:
        place = {"item_id": self._id("rs"), "output_index": 0}
        if begins:
            item = {**self._thought(""), "content": [], "status": "in_progress"}
            yield self._event("response.output_item.added", {"output_index": 0, "item": item})
            part = {"type": "reasoning_text", "text": ""}
            yield self._event("response.content_part.added", place | {"content_index": 0, "part": part})
        yield self._event("response.reasoning_text.delta", place | {"content_index": 0, "delta": text})

    def _thought_ended(self, text: str) -> Iterator[Event]:
        place = {"item_id": self._id("rs"), "output_index": 0, "content_index": 0}
        self._items.append(self._thought(text))
        yield self._event("response.reasoning_text.done", place | {"text": text})
        yield self._event("response.content_part.done", place | {"part": {"type": "reasoning_text", "text": text}})
        yield self._event("response.output_item.done", {"output_index": 0, "item": self._items[0]})

    def _says(self, text: str, scores: Sequence[Any], *, begins: bool) -> Iterator[Event]:
        if begins:
            yield from self._begins(text_part("", []))
        yield self._event("response.output_text.delta", self._place | {"delta": text, "logprobs": list(scores)})

    def _said(self, text: str, refuses: bool, scores: Sequence[Any]) -> Iterator[Event]:
        """The end of the answer, with its beginning if nothing of it is out yet."""
        part = refusal_part(text) if refuses else text_part(text, scores)
        if refuses or not text:
            yield from self._begins(refusal_part("") if refuses else part)
        if refuses:
            yield self._event("response.refusal.delta", self._place | {"delta": text})
            yield self._event("response.refusal.done", self._place | {"refusal": text})
        else:
            yield self._event("response.output_text.done", self._place | {"text": text, "logprobs": list(scores)})
        place, item = self._place, self._message(part)
        yield self._event("response.content_part.done", place | {"part": part})
        self._items.append(item)
        yield self._event("response.output_item.done", {"output_index": place["output_index"], "item": item})

    def _begins(self, part: dict[str, Any]) -> Iterator[Event]:
        item = {**self._message(part), "content": [], "status": "in_progress"}
        yield self._event("response.output_item.added", {"output_index": len(self._items), "item": item})
        yield self._event("response.content_part.added", self._place | {"part": part})

    def _failed(self, error: ApiError) -> Iterator[Event]:
        told = renamed(error).body()["error"]
        yield self._event("error", {name: told[name] for name in ("message", "code", "param")})
        why = {"code": "server_error", "message": told["message"]}
        yield self._event("response.failed", {"response": self._frame("failed") | {"error": why}})

    @property
    def _place(self) -> dict[str, Any]:
        """Where the answer stands among the items."""
        return {"item_id": self._id("msg"), "output_index": len(self._items), "content_index": 0}

    def _event(self, kind: str, data: dict[str, Any]) -> Event:
        number, self._number = self._number, self._number + 1
        # ASCII: some clients take U+2028 and its like for the end of a line.
        body = json.dumps({"type": kind, "sequence_number": number, **data}, separators=(",", ":"))
        return {"event": kind, "data": body}

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._session.id}"

    def _thought(self, text: str) -> dict[str, Any]:
        content = [{"type": "reasoning_text", "text": text}]
        return {"id": self._id("rs"), "type": "reasoning", "summary": [], "content": content, "status": "completed"}

    def _message(self, part: dict[str, Any]) -> dict[str, Any]:
        own = {"id": self._id("msg"), "type": "message", "role": "assistant", "status": "completed"}
        return own | {"content": [part]}

    def _ended(self, answer: Answer, *, refuses: bool) -> dict[str, Any]:
        """The whole body, once the answer has ended."""
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(answer.finish or "")
        whole = refuses or cut is None
        return self._frame("completed" if whole else "incomplete") | {
            "incomplete_details": None if whole else {"reason": cut},
            "output": self._items,
            "usage": self._usage(),
            "anchorlm": self._session.told(0),
        }

    def _usage(self) -> dict[str, Any]:
        cost = self._session.usage()
        reasoned = cost.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
        told = {
            "input_tokens": cost["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": cost["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": reasoned},
            "total_tokens": cost["total_tokens"],
        }
        return told | {name: cost[name] for name in ("generated_tokens",) if name in cost}

    def _frame(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id("resp"),
            "object": "response",
            "created_at": self._session.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._session.served.id,
            "output": [],
            **offered(self._offer, held=self._session.holds_calls),
            "store": False,
            "metadata": dict(self._metadata),
        }


def renamed(error: ApiError) -> ApiError:
    """An error with the names that parameters have here."""
    first, dot, rest = (error.param or "").partition(".")
    if first in _NAMES:
        message = error.message.replace(error.param or "", f"{_NAMES[first]}{dot}{rest}")
        error.message, error.param = message, f"{_NAMES[first]}{dot}{rest}"
    return error
