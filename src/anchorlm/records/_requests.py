from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from anchorlm.records._errors import UserError

if TYPE_CHECKING:
    from anchorlm.records._thoughts import ThoughtSettings

Message = Mapping[str, Any]
"""One turn of a conversation: `{"role": "system" | "user" | "assistant", "content": text}`.

As in transformers, content may also be a list of parts: `{"type": "text", "text": ...}`, and for models that see,
`{"type": "image", "image": ...}` with a PIL image, a file, or base64.
"""

Messages = Sequence[Message]

IMAGE = "[image]"
"""Stands for an image where only text is read."""


class Settings(BaseModel):
    """A frozen set of named values; an unknown name or a value out of range is a `UserError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Validates `values`.

        Args:
            values: The fields by name.
            where: What the values belong to, for the error ("the defense alignbeam").

        Raises:
            UserError: One sentence that names the field, what is wrong, and the allowed names.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError(_one_sentence(cls, error, where)) from None

    def replace(self, values: Mapping[str, Any], *, where: str) -> Self:
        """The same settings with some `values` changed, validated as a whole."""
        return self.parse({**self.model_dump(exclude_unset=True), **values}, where=where) if values else self


Folder = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""A folder in settings: a text, as in a recipe, or a `Path`."""


def _one_sentence(cls: type[Settings], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "the settings"
    if first["type"] == "extra_forbidden":
        place = ".".join(str(part) for part in first["loc"][:-1]) or "it"
        return f"{where} has no setting {name!r}; {place} has: {', '.join(keys_beside(cls, first['loc'])) or 'none'}."
    if first["type"] == "missing":
        field = cls.model_fields.get(name)
        told = f": {field.description.rstrip('.')}" if field is not None and field.description else ""
        return f"{where[:1].upper()}{where[1:]} lacks {name}{told or ': give it'}."
    message = first["msg"].removeprefix("Value error, ")
    return f"{name} = {first['input']!r} does not fit {where}: {message[:1].lower()}{message[1:].rstrip('.')}."


def keys_beside(cls: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The names that a section of some settings takes, in which an error of pydantic's has found another one.

    Args:
        cls: The settings as a whole.
        place: Where the name stands, from the outside in, as pydantic says it.
    """
    inner: list[type[BaseModel]] = [cls]
    for part in place[:-1]:
        fields = [one.model_fields[part] for one in inner if isinstance(part, str) and part in one.model_fields]
        if fields:
            inner = [found for field in fields for found in _models_in(field.annotation)]
        elif named := [one for one in inner if one.__name__ == part]:  # which of several it was taken for
            inner = named
    return sorted({name for one in inner for name in one.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


class GenerationSettings(Settings):
    """How tokens are chosen, under the Hugging Face names."""

    max_new_tokens: int = Field(default=256, ge=1, description="Longest response, in tokens of the target.")
    do_sample: bool = Field(default=False, description="Sample; otherwise the most likely token is taken.")
    temperature: float = Field(default=1.0, gt=0, description="Divides the logits before sampling.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Sample from the smallest set with this mass.")
    top_k: int | None = Field(default=None, ge=1, description="Sample from this many most likely tokens.")
    repetition_penalty: float = Field(default=1.0, gt=0, description="Above 1: tokens seen before become less likely.")
    logprobs: int | None = Field(
        default=None, ge=0, le=20, description="Report each token's log-probability, and those of so many likeliest."
    )
    seed: int = Field(default=0, ge=0, description="Of the sampling; a request's sample depends on nothing else.")


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to answer.

    Attributes:
        messages: The conversation, oldest first, or one raw prompt that goes to the model without a chat template.
        generation: How tokens are chosen.
        knobs: Settings of the defense that differ for this request only.
        stops: Texts at the first of which whoever asks will cut the response: what follows is nobody's, so that judges
            and scorers must not see it either.
        system: The operator's own system prompt, which `messages` do not hold: models that answer read it first, and
            judges, scorers and gates, which look for harm in what the client wrote, never do.
        template: Variables of the target's chat template for this request only.
        thoughts: What becomes of the target's thought; None: as `ThoughtSettings` has it.
        thought: What the target has thought before its answer, once that is known.
    """

    messages: Messages | str
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    system: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    thoughts: ThoughtSettings | None = None
    thought: str | None = None

    def cut(self, text: str) -> str:
        """What is left of a response."""
        return text[: first_stop(text, self.stops)]

    @property
    def conversation(self) -> Messages:
        """All that the client wrote, as text, a raw prompt being one turn of the user: what judges and gates read."""
        return _as_text(self.messages)

    @property
    def readings(self) -> list[tuple[Messages, str]]:
        """The ways in which judges and cost models read a response, of which the worst counts: each a conversation, and
        the beginning of the answer that the client has written.

        An assistant's turn at the end is such a beginning, and a raw text may be one.
        """
        talk = self.conversation
        if isinstance(self.messages, str):
            return [(talk, ""), (talk, self.messages)]
        if len(talk) > 1 and talk[-1]["role"] == "assistant":
            return [(talk, ""), (talk[:-1], f"{talk[-1]['content']} ")]
        return [(talk, "")]

    @property
    def prompt(self) -> Messages | str:
        """What a model that answers reads: the messages, the operator's system prompt first.

        A system turn of the client's goes on where the operator's ends. A raw prompt stays as it stands.
        """
        if self.system is None or isinstance(self.messages, str):
            return self.messages
        own = {"role": "system", "content": self.system}
        if not self.messages or self.messages[0]["role"] != "system":
            return [own, *self.messages]
        theirs = self.messages[0]["content"]
        if isinstance(theirs, str):
            joined: Any = f"{self.system}\n\n{theirs}" if theirs.strip() else self.system
        else:
            joined = [{"type": "text", "text": self.system}, *theirs]
        return [{**own, "content": joined}, *self.messages[1:]]

    @property
    def prompt_text(self) -> Messages:
        """`prompt` as text, for a model that answers without seeing images."""
        return _as_text(self.prompt)


def _as_text(prompt: Messages | str) -> Messages:
    return [
        turn if isinstance(turn["content"], str) else {**turn, "content": turn_text(turn)}
        for turn in as_messages(prompt)
    ]


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of some texts to be complete begins: the same in whatever pieces a text comes."""
    ends = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    return min(ends)[1] if ends else None


def as_messages(prompt: Messages | str) -> Messages:
    """A conversation; a text is one turn of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def turn_text(turn: Message) -> str:
    """What a turn says, with `[image]` in an image's place; its parts on lines of their own."""
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "\n".join(str(part["text"]) if part["type"] == "text" else IMAGE for part in content)


def prompt_key(prompt: Messages | str) -> str:
    """A text that tells one prompt from another: the prompt itself, or a conversation as JSON."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([dict(turn) for turn in prompt], sort_keys=True, default=_image_key)


def _image_key(value: Any) -> str:
    pixels = value.tobytes() if hasattr(value, "tobytes") else str(value).encode()
    return f"{getattr(value, 'size', '')} {hashlib.sha256(pixels).hexdigest()}"
