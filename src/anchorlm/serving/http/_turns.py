from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, Tag, field_validator, model_validator

from anchorlm.serving.http._objects import RequestObject, text_or_list, unsupported, without

MOST_CALLS = 128
"""Calls of tools in one turn."""

MOST_TURNS = 2_000
"""Turns of a conversation, and parts of all of them together."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TURNS = {"function": "function turns"}
_PARTS = {
    "input_audio": "audio parts",
    "audio": "audio parts",
    "file": "file parts",
    "input_file": "file parts",
    "video_url": "video parts",
    "refusal": "refusal parts outside of an assistant's turn",
}


_SAME = {"input_text": "text", "output_text": "text", "input_image": "image_url"}
"""What other interfaces call a piece."""

_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")
"""Pieces of an assistant's turn that are no answer: no model reads its earlier thoughts here."""

_BESIDE_A_PART = frozenset({
    "annotations", "citations", "detail", "extras", "id", "index", "logprobs", "metadata", "phase",
    "provider_specific_fields",
})  # fmt: skip
_BESIDE_A_TURN = frozenset({
    "additional_kwargs", "citations", "createdAt", "created_at", "finish_reason", "index", "info", "logprobs", "model",
    "phase", "provider_specific_fields", "response_metadata", "sources", "status", "stop_reason", "thinking",
    "thinking_blocks", "timestamp", "timings", "token_ids", "usage",
})  # fmt: skip
"""What front ends keep with a text. Neither a model nor a guard reads it."""


class Part(RequestObject):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: str = Field(description="text or image_url; refusal in an assistant's turn.")
    text: str | None = None
    image_url: dict[str, Any] | None = None
    refusal: str | None = None
    cache_control: Any = Field(default=None, description="Ignored.")

    @field_validator("type")
    @classmethod
    def _known(cls, type: str) -> str:
        if type not in ("text", "image_url", "refusal"):
            named = _PARTS.get(type, f"parts of type {type!r:.40}")
            raise unsupported("", f"{named} are not supported here: send text", "unsupported_value")
        return type

    @model_validator(mode="before")
    @classmethod
    def _served(cls, data: Any) -> Any:
        """What kind of piece it is is said before what else it holds."""
        if not isinstance(data, dict) or not isinstance(kind := data.get("type"), str):
            return data
        if kind in _PARTS and kind != "refusal":
            raise unsupported("type", f"{_PARTS[kind]} are not supported here: send text", "unsupported_value")
        kept = without(data, _BESIDE_A_PART) | {"type": _SAME.get(kind, kind)}
        if kept["type"] == "text" and kept.get("text", "") is None:
            kept["text"] = ""
        if isinstance(url := kept.get("image_url"), str):
            kept["image_url"] = {"url": url}
        return kept


Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[Part], Field(fail_fast=True), Tag("list[]")],
    text_or_list(others="parts"),
]
"""What a turn says."""


class ChatMessage(RequestObject):
    """One turn. What other servers and front ends write into a history next to its text is passed over."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: str = Field(description="system, developer, user, assistant or tool.")
    content: Content | None = Field(default=None, description="Its text, or a list of parts.")
    name: Any = Field(default=None, description="Ignored.")
    refusal: str | None = Field(default=None, description="What an assistant's turn without content says.")
    annotations: Any = Field(default=None, description="Ignored.")
    reasoning: Any = Field(default=None, description="Ignored: no model reads its earlier thoughts here.")
    reasoning_content: Any = Field(default=None, description="Ignored, likewise.")
    reasoning_details: Any = Field(default=None, description="Ignored, likewise.")
    metadata: Any = Field(default=None, description="Ignored.")
    cache_control: Any = Field(default=None, description="Ignored.")
    audio: Any = Field(default=None, description="Not supported.")
    function_call: Any = Field(default=None, description="Not supported.")
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MOST_CALLS)] | None = Field(
        default=None, description="What an assistant's turn has called.")  # fmt: skip
    tool_call_id: str | None = Field(default=None, max_length=200, description="The call that a tool's turn answers.")
    id: Any = Field(default=None, description="Ignored.")
    anchorlm: Any = Field(default=None, description="Ignored: what this server said of an answer.")

    @model_validator(mode="before")
    @classmethod
    def _served(cls, data: Any) -> Any:
        """Turns of kinds that are not served are told by their names."""
        if not isinstance(data, dict):
            return data
        role = data.get("role")
        if isinstance(role, str) and role not in _ROLES:
            named = _TURNS.get(role, f"turns of {role!r:.40}")
            raise unsupported("role", f"{named} are not supported here: leave them out", "unsupported_value")
        elsewhere = [("tool_calls", "assistant"), ("tool_call_id", "tool")]
        for name, only in elsewhere:
            if data.get(name) and role != only:
                raise unsupported(name, f"only turns of the role {only} have {name}: leave it out of the others")
        for name, what in (("function_call", "function calls"), ("audio", "audio")):
            if data.get(name):
                raise unsupported(name, f"{what} are not supported here: leave {name} out")
        data = without(data, _BESIDE_A_TURN)
        if role == "assistant" and isinstance(content := data.get("content"), list):
            data["content"] = [part for part in content if not _is_thought(part)]
        return data

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.role == "user":
            raise unsupported("content", "should be a text or a list of parts", "invalid_value")
        return self

    @property
    def calls(self) -> dict[str, Any]:
        """What it says of calls of tools."""
        if self.role == "tool":
            return {"tool_call_id": self.tool_call_id}
        return {"tool_calls": self.tool_calls} if self.tool_calls else {}

    @property
    def said(self) -> str | list[Part]:
        """Its content. An assistant's without one says its refusal, or nothing, as any other turn without one."""
        if self.content is None or (not self.content and self.refusal):
            return self.refusal or ""
        return self.content


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _THOUGHTS


def few_turns(messages: Any) -> Any:
    """A conversation that is not too long, counted before anything is looked at more closely, which takes its time.

    Raises:
        PydanticCustomError: It has too many turns, or parts.
    """
    if isinstance(messages, list):
        contents = [turn.get("content") for turn in messages if isinstance(turn, dict)]
        parts = sum(len(content) for content in contents if isinstance(content, list))
        for count, what in ((len(messages), "turns"), (parts, "parts")):
            if count > MOST_TURNS:
                raise unsupported("", f"a request has at most {MOST_TURNS} {what} here: send fewer", "too_many_" + what)
    return messages
