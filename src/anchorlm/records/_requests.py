from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anchorlm.records._formats import forced_words
from anchorlm.records._settings import GenerationSettings
from anchorlm.records._tools import ToolUse, readable, told, uses_tools

if TYPE_CHECKING:
    from anchorlm.records._thoughts import ThoughtSettings

Message = Mapping[str, Any]
"""One turn of a conversation: `{"role": "system" | "user" | "assistant" | "tool", "content": text}`.

As in OpenAI's interface, a turn of the assistant may hold `tool_calls`, and one of a tool its `tool_call_id`.

As in transformers, content may also be a list of parts: `{"type": "text", "text": ...}`, and for models that see,
`{"type": "image", "image": ...}` with a PIL image, a file, or base64.
"""

Messages = Sequence[Message]

IMAGE = "[image]"
"""Stands for an image where only text is read."""


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to answer.

    Attributes:
        messages: The conversation, oldest first, or one raw prompt that goes to the model without a chat template.
        generation: How tokens are chosen.
        knobs: Settings of the defense that differ for this request only.
        stops: Texts at the first of which the one who asks will cut the response: what follows is no one's, so judges
            and scorers must not see it either.
        system: The operator's own system prompt, which `messages` do not hold: models that answer read it first, and
            judges, scorers and gates, which look for harm in what the client wrote, never do.
        patience: Seconds after which an anchor, a judge or a scorer that says nothing has failed; None: never.
        parsed: What a defense has made of `knobs`: these, its own settings, and the settings of this request. They are
            parsed once, and taken again while both are the same.
        template: Variables of the target's chat template for this request only.
        thoughts: What becomes of the target's thought; None: as `ThoughtSettings` has it.
        thought: What the target has thought before its answer, once that is known.
        tools: The tools that the target may call; None: none.
    """

    messages: Messages | str
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    system: str | None = None
    patience: float | None = None
    parsed: tuple[object, object, Any] | None = field(default=None, repr=False, compare=False)
    template: Mapping[str, Any] = field(default_factory=dict)
    thoughts: ThoughtSettings | None = None
    thought: str | None = None
    tools: ToolUse | None = None

    def cut(self, text: str) -> str:
        """What is left of a response."""
        return text[: first_stop(text, self.stops)]

    def judged(self, text: str) -> str:
        """What judges and cost models read of a response: where tools may be called, no word hides in an escape."""
        text = self.cut(text)
        return text if self.tools is None else readable(text)

    @property
    def options(self) -> Mapping[str, Any]:
        """Variables of the target's chat template, the tools among them."""
        return self.template if self.tools is None else {**self.template, "tools": list(self.tools.tools)}

    @property
    def with_tools(self) -> bool:
        """Whether tools are offered, or were called."""
        return self.tools is not None or uses_tools(self.messages)

    @property
    def plain(self) -> Messages | str:
        """The messages, in which calls of tools and their results are texts: what gates read."""
        return self.messages if isinstance(self.messages, str) or not uses_tools(self.messages) else told(self.messages)

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
    def schema_turn(self) -> Messages:
        """What the client writes into the answer by a schema, as a user's turn; nothing where it writes nothing."""
        words = forced_words(self.generation.response_format)
        return [{"role": "user", "content": words}] if words else []

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
    turns = as_messages(prompt)
    return [
        turn if isinstance(turn["content"], str) else {**turn, "content": turn_text(turn)}
        for turn in (told(turns) if uses_tools(turns) else turns)
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
