from __future__ import annotations

from anchorlm.records import ToolCall


class ThoughtPiece(str):
    """A piece of the thought before an answer, among the pieces of its text."""

    __slots__ = ()


class RefusalPiece(str):
    """A piece of the refusal that is given in place of an answer in a response format: it fits no schema."""

    __slots__ = ()


class CallPiece(str):
    """A call of a tool among the pieces of an answer's text.

    Attributes:
        call: The call.
        place: Its place among the calls.
    """

    __slots__ = ("call", "place")
    call: ToolCall
    place: int

    @classmethod
    def of(cls, call: ToolCall, place: int) -> CallPiece:
        """The piece of one call."""
        piece = cls(call.text)
        piece.call, piece.place = call, place
        return piece
