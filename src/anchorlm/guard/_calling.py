from __future__ import annotations

import secrets
import string
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from anchorlm.models import CallForm, CallWatch
from anchorlm.records import Decision, Event, Finished, TextDelta, ToolCall, ToolUse, first_stop, json_text

_SIGNS = string.ascii_letters + string.digits


class Calls:
    """Tells the calls of tools in a response from its text: what may be a call is held until the response has ended.

    Args:
        form: How the model writes calls.
        marks: The model's tokens as text, control tokens by their names.
        use: The tools that the request offers.
        stops: Texts at which the answer is cut. No one has judged what stands behind them, so it holds no call.
    """

    def __init__(self, form: CallForm, marks: Any, use: ToolUse, stops: Sequence[str] = ()) -> None:
        self._form, self._marks, self._use, self._stops = form, marks, use, stops
        self._watch = CallWatch(form)
        self._bytes = getincrementaldecoder("utf-8")("replace")
        self._plain_text: list[str] = []
        self._held: deque[tuple[TextDelta, str]] = deque()  # each with what it adds to the text
        self._ends: deque[int] = deque()  # where in the text each of them ends
        self._length = 0
        self._out = 0  # of the text, control tokens by their names

    def take(self, piece: TextDelta) -> Iterator[TextDelta]:
        """A piece of the response, and what may go out now."""
        said = self._said(piece)
        self._plain_text.append(piece.text)
        self._held.append((piece, said))
        self._length += len(said)
        half = bool(self._bytes.getstate()[0])  # of a character, which the next piece makes whole
        self._ends.append(self._length + half)
        until = self._watch.take(said)
        if not piece.token_ids:
            return
        while self._ends and self._ends[0] <= until:
            self._out = self._ends.popleft()
            yield self._held.popleft()[0]

    def ended(self, finished: Finished) -> Iterator[Event]:
        """What is left, and the calls, if there are any. A refusal is no call, whatever was begun before it."""
        held = [piece for piece, _ in self._held]
        if finished.reason == "refusal":
            refusal = [piece for piece in held if not piece.token_ids]
            yield from refusal or held
            yield finished
            return
        text = "".join(said for _, said in self._held) + self._bytes.decode(b"", True)
        content, found = self._form.parse(text, self._use.schemas) if self._whole else (text, [])
        if not found:
            yield from held
            yield finished
            return
        given = found if self._use.several else found[:1]
        if content:
            lead = text[: len(text) - len(text.lstrip())] if self._out else ""
            yield TextDelta(lead + self._plain(content))
        yield Decision("calls", {"tools": [name for name, _ in found], "given": len(given)})
        for name, arguments in given:
            yield ToolCall(new_id(), name, json_text(arguments))
        yield replace(finished, reason="tool_calls")

    @property
    def _whole(self) -> bool:
        """Whether a call may be in what is left: it is not cut, and a call without a mark has no text before it."""
        return first_stop("".join(self._plain_text), self._stops) is None and not (self._out and not self._form.opening)

    def _said(self, piece: TextDelta) -> str:
        """What a piece adds to the text. Its tokens are decoded once: a character may need several of them."""
        if not piece.token_ids:
            half = self._bytes.decode(b"", True)
            told = bool(half) and piece.text.startswith(half)  # a cut answer ends with a piece that says so
            return piece.text if told else half + piece.text
        return self._bytes.decode(b"".join(map(self._marks.data, piece.token_ids)))

    def _plain(self, content: str) -> str:
        """A text without the names of control tokens."""
        return str(self._marks.plain(content))


def new_id() -> str:
    """The id of a call: nine letters and digits, because some templates take no others."""
    return "".join(secrets.choice(_SIGNS) for _ in range(9))
