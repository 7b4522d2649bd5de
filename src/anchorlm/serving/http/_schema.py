from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from anchorlm.records import MOST_STOP_IDS, PAST_THE_END
from anchorlm.serving._settings import Sampled
from anchorlm.serving.http._formats import ResponseFormat, as_chosen
from anchorlm.serving.http._objects import Count, Flag, Number, RequestObject, few_names, unsupported
from anchorlm.serving.http._tool_fields import TOOL_FIELDS, ToolFields
from anchorlm.serving.http._turns import ChatMessage, few_turns

Stop = Annotated[str, Field(max_length=200)]
Name = Annotated[str, Field(max_length=100)]
TokenId = Annotated[int, Field(strict=True, ge=0)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]
_UNSERVED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "tools": ("a raw text offers no tools; use /v1/chat/completions", ([],)),
    "tool_choice": ("a raw text offers no tools; use /v1/chat/completions", ("none", "auto", "")),
    "functions": ("this is the old form of tools; use tools", ([],)),
    "function_call": ("this is the old form of tools; use tools", ("none", "auto", "", {})),
    "logit_bias": ("it could undo the defense", ({},)),
    "modalities": ("answers are text", (["text"], [])),
    "audio": ("answers are text", ({},)),
    "prediction": ("predicted outputs are not supported", ()),
    "web_search_options": ("this server searches nothing", ()),
    "suffix": ("insertion is not supported", ("",)),
    "best_of": ("candidates are the defense's matter; use n", (1,)),
    "echo": ("the prompt is not repeated", (False,)),
    "ignore_eos": (f"{PAST_THE_END}; leave it out", (False,)),
    "min_tokens": (f"{PAST_THE_END}; leave it out", (0,)),
    "add_generation_prompt": ("an answer is always a turn of its own; leave it out", (True,)),
    "include_stop_str_in_output": ("an answer ends before what stops it; leave it out", (False,)),
    "skip_special_tokens": ("control tokens are never a part of an answer; leave it out", (True,)),
}
"""Why a setting is not served, and which of its values ask for nothing."""


def refuse_unserved(data: Any, unserved: Mapping[str, tuple[str, tuple[Any, ...]]]) -> None:
    """Looks for what a request may not ask.

    Args:
        data: The request.
        unserved: What it may not ask, as `_UNSERVED`.

    Raises:
        PydanticCustomError: It asks for something of that.
    """
    for name, (why, harmless) in unserved.items() if isinstance(data, dict) else ():
        value = data.get(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in harmless):
            raise unsupported(name, f"{name} is not supported here: {why}")


class StreamOptions(RequestObject):
    """How a stream is to be."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    include_usage: Flag | None = Field(default=None, description="Send a last chunk that says what the answer cost.")
    continuous_usage_stats: Flag | None = Field(
        default=None, description="With include_usage: every chunk says what the answer has cost so far."
    )


class Ask(RequestObject):
    """What both kinds of completions take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(default=None, max_length=200, description="One of /v1/models. By default the first.")
    stream: Flag | None = Field(default=None, description="Send the answer as it is released.")
    stream_options: StreamOptions | None = Field(default=None, description="Only with stream.")
    n: Annotated[Count, Field(ge=1, le=128)] | None = Field(
        default=None, description="Answers to each prompt. The i-th has the seed + i."
    )
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True)] | None = Field(
        default=None, description="Texts before which the answer ends. Empty ones end nothing."
    )
    seed: Count | None = Field(default=None, ge=-(2**63), lt=2**63, description="Seed of the sampling.")
    temperature: Number | None = Field(default=None, ge=0, le=2, description="0 takes the most likely token.")
    top_p: Number | None = Field(default=None, gt=0, le=1, description="Sample from the smallest set with this mass.")
    max_tokens: Count | None = Field(default=None, ge=1, le=2**31, description="Longest answer, in tokens.")
    top_k: Count | None = Field(default=None, ge=-1, le=2**31, description="Sample from this many likeliest tokens; "
                                "0 and -1: from all.")  # fmt: skip
    min_p: Number | None = Field(default=None, ge=0, le=1, description="Sample only from tokens with this share of the "
                                 "likeliest one's probability.")  # fmt: skip
    repetition_penalty: Number | None = Field(default=None, gt=0, le=100, description="Above 1: tokens seen before, "
                                              "in the prompt too, become less likely.")  # fmt: skip
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2, description="Taken from the logit of every "
                                            "token that the answer has already.")  # fmt: skip
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2, description="The same, once for each time that "
                                             "the answer has the token.")  # fmt: skip
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MOST_STOP_IDS)] | None = Field(
        default=None, description="Tokens of the target that end the answer; they are no part of it."
    )
    ignore_eos: Any = Field(default=None, description="Not supported: must be false.")
    min_tokens: Any = Field(default=None, description="Not supported: must be 0.")
    skip_special_tokens: Any = Field(default=None, description="Must be true.")
    include_stop_str_in_output: Any = Field(default=None, description="Not supported: must be false.")
    add_generation_prompt: Any = Field(default=None, description="Must be true.")
    cache_prompt: Any = Field(default=None, description="Ignored.")
    timings_per_token: Any = Field(default=None, description="Ignored.")
    reasoning_format: Any = Field(default=None, description="Ignored.")
    priority: Any = Field(default=None, description="Ignored.")
    request_id: Any = Field(default=None, description="Ignored: the server gives its own.")
    logit_bias: dict[str, float] | None = Field(default=None, description="Not supported.")
    anchorlm: dict[Name, Any] | None = Field(default=None, description="Knobs of the defense, within the limits that "
                                     "/v1/models shows. The operator may add trace = true.")  # fmt: skip
    user: Any = Field(default=None, description="Ignored.")
    metadata: Any = Field(default=None, description="Ignored.")
    store: Any = Field(default=None, description="Ignored.")
    service_tier: Any = Field(default=None, description="Ignored.")

    @field_validator("stop", mode="before")
    @classmethod
    def _few(cls, stop: Any) -> Any:
        if isinstance(stop, list) and len(stop) > 16:
            raise ValueError("at most 16 texts can stop an answer")
        return [text for text in stop if text is not None] if isinstance(stop, list) else stop

    _few_knobs = field_validator("anchorlm", mode="before")(few_names)

    @model_validator(mode="before")
    @classmethod
    def _served(cls, data: Any) -> Any:
        """A setting that cannot be honored is refused, not passed over."""
        served = cls.model_fields.keys() & TOOL_FIELDS
        refuse_unserved(data, {name: why for name, why in _UNSERVED.items() if name not in served})
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

    @property
    def template(self) -> dict[str, Any]:
        """Variables of the chat template."""
        return {}

    @property
    def offer(self) -> dict[str, Any]:
        """The tools as a guard takes them; empty where there are none."""
        return {}

    @property
    def silent(self) -> bool:
        """Whether thoughts are not wanted."""
        return False

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
        if self.top_k is not None:
            chosen["top_k"] = self.top_k if self.top_k > 0 else None
        same = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop_token_ids")
        return chosen | {name: value for name in same if (value := getattr(self, name)) is not None}

    def sampling(self) -> dict[str, float | None]:
        """What the operator may bound, as it was sent."""
        return {name: getattr(self, name) for name in get_args(Sampled)}


class ChatAsk(ToolFields, Ask):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(
        min_length=1, description="The conversation, oldest first."
    )
    max_completion_tokens: Count | None = Field(default=None, ge=1, le=2**31, description="The same as max_tokens.")
    logprobs: Flag | None = Field(
        default=None, description="Say how likely each token was in the distribution that the defense emits from."
    )
    top_logprobs: Count | None = Field(
        default=None, ge=0, le=20, description="How many of the most likely tokens to name with each one."
    )
    _few_turns = field_validator("messages", mode="before")(few_turns)

    response_format: ResponseFormat = Field(default=None, description="Hold the answer to JSON: of type json_object, "
        "or json_schema with a schema.")  # fmt: skip
    functions: Any = Field(default=None, description="Not supported.")
    function_call: Any = Field(default=None, description="Not supported.")
    modalities: Any = Field(default=None, description="Only text.")
    audio: Any = Field(default=None, description="Not supported.")
    prediction: Any = Field(default=None, description="Not supported.")
    web_search_options: Any = Field(default=None, description="Not supported.")
    chat_template_kwargs: dict[Name, Any] | None = Field(default=None, description="Variables of the chat template, "
        "such as enable_thinking, within the limits that /v1/models shows.")  # fmt: skip
    reasoning_effort: str | None = Field(default=None, max_length=100, description="A variable of the chat template, "
        "too. Ignored if the operator allows none.")  # fmt: skip
    include_reasoning: Flag | None = Field(default=None, description="false: no reasoning_content, even if thoughts "
        "are shown.")  # fmt: skip
    verbosity: Any = Field(default=None, description="Ignored.")
    safety_identifier: Any = Field(default=None, description="Ignored.")
    prompt_cache_key: Any = Field(default=None, description="Ignored.")

    _few_variables = field_validator("chat_template_kwargs", mode="before")(few_names)

    @property
    def template(self) -> dict[str, Any]:
        """See `Ask`."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return {**effort, **(self.chat_template_kwargs or {})}

    @property
    def silent(self) -> bool:
        """See `Ask`."""
        return self.include_reasoning is False

    def generation(self) -> dict[str, Any]:
        """See `Ask`."""
        chosen = super().generation()
        if self.max_completion_tokens is not None:
            chosen["max_new_tokens"] = self.max_completion_tokens
        if self.logprobs:
            chosen["logprobs"] = self.top_logprobs or 0
        return chosen | as_chosen(self, "response_format", self.response_format)

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
        description="One text, or several, that go to the model without a chat template. Also as token ids of the "
        "target, which stand for their text."
    )
    logprobs: Count | None = Field(
        default=None, ge=0, le=5, description="How many of the most likely tokens to name with each one."
    )
    suffix: Any = Field(default=None, description="Not supported.")
    echo: Any = Field(default=None, description="Not supported.")
    best_of: Any = Field(default=None, description="Not supported.")

    @field_validator("logprobs", mode="before")
    @classmethod
    def _none(cls, logprobs: Any) -> Any:
        return None if logprobs is False else logprobs

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
