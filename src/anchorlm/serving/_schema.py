from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

_MOST = 100
"""Names in one object of a request."""

MOST_TURNS = 2_000
"""Turns of a conversation, and parts of all of them together."""

Stop = Annotated[str, Field(max_length=200)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Name = Annotated[str, Field(max_length=100)]
TokenIds = Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(fail_fast=True, min_length=1)]
_UNSERVED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "tools": ("tool calls are not supported", ([],)),
    "tool_choice": ("tool calls are not supported", ("none", "auto")),
    "functions": ("tool calls are not supported", ([],)),
    "function_call": ("tool calls are not supported", ("none", "auto")),
    "logit_bias": ("it could undo the defense", ({},)),
    "modalities": ("answers are text", (["text"],)),
    "audio": ("answers are text", ()),
    "prediction": ("predicted outputs are not supported", ()),
    "web_search_options": ("this server searches nothing", ()),
    "suffix": ("insertion is not supported", ("",)),
    "best_of": ("candidates are the defense's matter; use n", (1,)),
    "echo": ("the prompt is not repeated", (False,)),
    "presence_penalty": ("it would change what the defense has settled on; leave it out", (0, 0.0)),
    "frequency_penalty": ("it would change what the defense has settled on; leave it out", (0, 0.0)),
    "response_format": ("answers are plain text; leave it out", ({"type": "text"},)),
}
"""Why a setting is not served, and which of its values ask for nothing."""

_ROLES = ("system", "developer", "user", "assistant")
_TURNS = {"tool": "tool turns", "function": "function turns"}
_PARTS = {
    "input_audio": "audio parts",
    "audio": "audio parts",
    "file": "file parts",
    "input_file": "file parts",
    "video_url": "video parts",
    "refusal": "refusal parts outside of an assistant's turn",
}


def unsupported(param: str, message: str, code: str = "unsupported_parameter") -> PydanticCustomError:
    """What a client is told of something that this server does not do, and where in the request it stands.

    Args:
        param: Its place below the object that is being looked at.
        message: One sentence.
        code: For machines.
    """
    # Braces would be taken for places to fill in.
    return PydanticCustomError(
        "unsupported", "{said}", {"said": message, "param": param, "code": code}
    )  # fmt: skip


def _kind(*, others: str = "") -> Discriminator:
    """Tells a text from a list, for a message about what was meant and not about what was not."""

    def kind(value: Any) -> str | None:
        if isinstance(value, str):
            return "str"
        return "list[]" if isinstance(value, list) else None

    return Discriminator(
        kind, custom_error_type="text_or_list", custom_error_message=f"should be a text or a list of {others}"
    )


def _few_names(data: Any) -> Any:
    if isinstance(data, dict) and len(data) > _MOST:
        raise ValueError(f"an object has at most {_MOST} names here")
    return data


class _Object(BaseModel):
    """A part of a request. Only the first thing that does not fit is looked for: a list may have half a million."""

    @model_validator(mode="before")
    @classmethod
    def _limited(cls, data: Any) -> Any:
        """Of few names; those that are not known and say null ask for nothing."""
        if not isinstance(_few_names(data), dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name in cls.model_fields}


class StreamOptions(_Object):
    """How a stream is to be."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    include_usage: Flag | None = Field(default=None, description="Send a last chunk that says what the answer cost.")


class Ask(_Object):
    """What both kinds of completions take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(default=None, max_length=200, description="One of /v1/models; by default the first.")
    stream: Flag | None = Field(default=None, description="Send the answer as it is released.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    n: Annotated[Count, Field(ge=1, le=128)] | None = Field(
        default=None, description="Answers to each prompt; the i-th has the seed + i."
    )
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True)] | None = Field(
        default=None, description="Texts before which the answer ends; empty ones end nothing."
    )
    seed: Count | None = Field(default=None, ge=-(2**63), lt=2**63, description="Of the sampling.")
    temperature: Number | None = Field(default=None, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: Number | None = Field(default=None, gt=0, le=1, description="Sample from the smallest set with this mass.")
    max_tokens: Count | None = Field(default=None, ge=1, le=2**31, description="Longest answer, in tokens.")
    presence_penalty: Number | None = Field(default=None, description="Not supported: must be 0.")
    frequency_penalty: Number | None = Field(default=None, description="Not supported: must be 0.")
    logit_bias: dict[str, float] | None = Field(default=None, description="Not supported.")
    anchorlm: dict[Name, Any] | None = Field(default=None, description="Knobs of the defense, within the limits that "
                                     "/v1/models shows; and trace = true for the operator.")  # fmt: skip
    user: Any = Field(default=None, description="Ignored.")
    metadata: Any = Field(default=None, description="Ignored.")
    store: Any = Field(default=None, description="Ignored.")
    service_tier: Any = Field(default=None, description="Ignored.")

    @field_validator("stop", mode="before")
    @classmethod
    def _few(cls, stop: Any) -> Any:
        if isinstance(stop, list) and len(stop) > 16:
            raise ValueError("at most 16 texts can stop an answer")
        return stop

    _few_knobs = field_validator("anchorlm", mode="before")(_few_names)

    @model_validator(mode="before")
    @classmethod
    def _served(cls, data: Any) -> Any:
        """A setting that cannot be honored is refused, not passed over."""
        if isinstance(data, dict):
            for name, (why, harmless) in _UNSERVED.items():
                value = data.get(name)
                if value is not None and not any(type(value) is type(one) and value == one for one in harmless):
                    raise unsupported(name, f"{name} is not supported here: {why}")
        return data

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def own(self) -> dict[str, Any]:
        """What is said to AnchorLM alone."""
        return self.anchorlm or {}

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop or ()))

    def generation(self) -> dict[str, Any]:
        """The sampling under AnchorLM's names; what is not said is the recipe's."""
        chosen: dict[str, Any] = {}
        if self.max_tokens is not None:
            chosen["max_new_tokens"] = self.max_tokens
        if self.seed is not None:
            chosen["seed"] = self.seed % 2**63
        if self.temperature is not None:
            chosen["do_sample"] = self.temperature > 0
            if self.temperature > 0:
                chosen["temperature"] = self.temperature
        if self.top_p is not None:
            chosen["top_p"] = self.top_p
            if self.top_p < 1:
                chosen.setdefault("do_sample", True)
        return chosen


class Part(_Object):
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
        if isinstance(data, dict) and data.get("type") in _PARTS and data["type"] != "refusal":
            raise unsupported("type", f"{_PARTS[data['type']]} are not supported here: send text", "unsupported_value")
        return data


Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[Part], Field(fail_fast=True), Tag("list[]")],
    _kind(others="parts"),
]
"""What a turn says."""


class ChatMessage(_Object):
    """One turn. What other servers and front ends write into a history beside its text is passed over."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: str = Field(description="system, developer, user or assistant.")
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
    tool_calls: Any = Field(default=None, description="Not supported, but for an empty list.")
    tool_call_id: Any = Field(default=None, description="Not supported, but for an empty one.")
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
        for name, what in (("tool_calls", "tool calls"), ("function_call", "function calls"), ("audio", "audio"),
                           ("tool_call_id", "tool calls")):  # fmt: skip
            if data.get(name):
                raise unsupported(name, f"{what} are not supported here: leave {name} out")
        return data

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.role != "assistant":
            raise unsupported("content", "should be a text or a list of parts", "invalid_value")
        return self

    @property
    def said(self) -> str | list[Part]:
        """Its content; an assistant's without one says its refusal, or nothing."""
        if self.content is None or (self.content == "" and self.refusal):
            return self.refusal or ""
        return self.content


def _few_turns(messages: Any) -> Any:
    """Counted before anything is looked at more closely, which takes its time."""
    if isinstance(messages, list):
        contents = [turn.get("content") for turn in messages if isinstance(turn, dict)]
        parts = sum(len(content) for content in contents if isinstance(content, list))
        for count, what in ((len(messages), "turns"), (parts, "parts")):
            if count > MOST_TURNS:
                raise unsupported("", f"a request has at most {MOST_TURNS} {what} here: send fewer", "too_many_" + what)
    return messages


class ChatAsk(Ask):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(
        min_length=1, description="The conversation, oldest first."
    )
    max_completion_tokens: Count | None = Field(default=None, ge=1, le=2**31, description="As max_tokens.")
    logprobs: Flag | None = Field(
        default=None, description="Say how likely each token was in the distribution that the defense emits from."
    )
    top_logprobs: Count | None = Field(default=None, ge=0, le=20, description="Likeliest tokens named with each one.")
    _few_turns = field_validator("messages", mode="before")(_few_turns)

    response_format: Any = Field(default=None, description="Not supported, but for plain text.")
    tools: Any = Field(default=None, description="Not supported.")
    tool_choice: Any = Field(default=None, description="Not supported.")
    parallel_tool_calls: Any = Field(default=None, description="Ignored.")
    functions: Any = Field(default=None, description="Not supported.")
    function_call: Any = Field(default=None, description="Not supported.")
    modalities: Any = Field(default=None, description="Only text.")
    audio: Any = Field(default=None, description="Not supported.")
    prediction: Any = Field(default=None, description="Not supported.")
    web_search_options: Any = Field(default=None, description="Not supported.")
    reasoning_effort: Any = Field(default=None, description="Ignored.")
    verbosity: Any = Field(default=None, description="Ignored.")
    safety_identifier: Any = Field(default=None, description="Ignored.")
    prompt_cache_key: Any = Field(default=None, description="Ignored.")

    def generation(self) -> dict[str, Any]:
        """See `Ask`."""
        chosen = super().generation()
        if self.max_completion_tokens is not None:
            chosen["max_new_tokens"] = self.max_completion_tokens
        if self.logprobs:
            chosen["logprobs"] = self.top_logprobs or 0
        return chosen

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise unsupported("top_logprobs", "top_logprobs needs logprobs: set logprobs to true", "invalid_value")
        return self


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "str"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    kinds: dict[type, str] = {str: "list[str]", int: "list[int]", list: "list[list[int]]"}
    return kinds.get(type(first))


class CompletionAsk(Ask):
    """The body of /v1/completions."""

    prompt: Annotated[
        Annotated[str, Tag("str")]
        | Annotated[list[str], Field(fail_fast=True, min_length=1), Tag("list[str]")]
        | Annotated[TokenIds, Tag("list[int]")]
        | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1), Tag("list[list[int]]")],
        Discriminator(
            _prompt_kind,
            custom_error_type="text_or_list",
            custom_error_message="should be a text, a list of texts, token ids, or a list of lists of them",
        ),
    ] = Field(
        description="One text, or several, that go to the model without a chat template; also as token ids of the "
        "target, which stand for their text."
    )
    logprobs: Count | None = Field(default=None, ge=0, le=5, description="Likeliest tokens named with each one.")
    suffix: Any = Field(default=None, description="Not supported.")
    echo: Any = Field(default=None, description="Not supported.")
    best_of: Any = Field(default=None, description="Not supported.")

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt: a text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def generation(self) -> dict[str, Any]:
        """See `Ask`."""
        return super().generation() | ({} if self.logprobs is None else {"logprobs": self.logprobs})
