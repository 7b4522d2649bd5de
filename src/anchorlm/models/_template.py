from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from anchorlm.models._channel import Channel
from anchorlm.models._find_calls import ToolTemplate, find_tools
from anchorlm.models._find_channel import find_channel
from anchorlm.models._markers import TurnMarkers, find_markers
from anchorlm.models._rendering import EndlessTemplateError, TemplateFailedError, TemplateRefusedError, rendered
from anchorlm.models._specials import control_texts, without_specials
from anchorlm.models._tool_turns import cleaned, no_tools, rendered_turn, turn_shape, written
from anchorlm.models._turn_forms import Turns, forms_of, holds, in_quotes
from anchorlm.records import Messages, UserError, turn_text, uses_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""What a conversation looks like to a model whose tokenizer brings no chat template."""

_ROLES = ("system", "user", "assistant", "tool")

_SHAPES = 64
"""Sequences of roles of which is known how the template takes them."""


class ChatWriter:
    """Writes conversations as a model reads them, and keeps what the template writes between turns out of the turns.

    Attributes:
        template: By which it writes.
        options: Variables of the template.
        key: Tells these variables from others.

    Args:
        tokenizer: With its special tokens.
        template: A chat template. None for `PLAIN_TEMPLATE`.
        options: Variables of the template, such as `enable_thinking`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str | None, options: Mapping[str, Any] | None = None
    ) -> None:
        self.template = template
        self.options = dict(options or {})
        self.key = json.dumps(self.options, sort_keys=True, default=str)
        self._tokenizer = tokenizer
        self._shapes: dict[tuple[Any, ...], Callable[[Turns], Turns]] = {}

    @cached_property
    def markers(self) -> TurnMarkers:
        """What the template writes between turns."""
        return find_markers(self._tokenizer, self.template or PLAIN_TEMPLATE)

    def like(self, options: Mapping[str, Any]) -> ChatWriter:
        """The same with other variables. What the template writes between turns, and around a thought, stays known."""
        other = ChatWriter(self._tokenizer, self.template, {**self.options, **options})
        other.__dict__["markers"], other.__dict__["channel"] = self.markers, self.channel
        if "tools" in self.__dict__:
            other.__dict__["tools"] = self.tools
        return other

    @cached_property
    def tools(self) -> ToolTemplate:
        """What the template does with tools."""
        return ToolTemplate() if self.template is None else find_tools(self._tokenizer, self.template, self.options)

    @cached_property
    def channel(self) -> Channel | None:
        """Where thoughts stand. None where the template knows none."""
        return None if self.template is None else find_channel(self._tokenizer, self.template, self.options)

    @cached_property
    def _specials(self) -> tuple[str, ...]:
        return tuple(sorted({*control_texts(self._tokenizer), *self.markers.removed}, key=len, reverse=True))

    def clean(self, text: str, *further: str) -> str:
        """A text with which no one can write a turn in another's name: without control tokens, and with the words of
        what else the template writes between turns in quotation marks.

        Args:
            text: Of a turn, or a raw prompt.
            *further: More control tokens.
        """
        return self.markers.neutral(without_specials(text, (*further, *self._specials)))

    def turns(self, messages: Messages) -> Turns:
        """The turns of a conversation of texts, cleaned.

        Raises:
            UserError: A message without a known role or text, no message at all, or an empty last turn. Or calls of
                tools that the template does not write.
        """
        turns = [self._turn(message) for message in messages]
        if (with_tools := uses_tools(messages)) or self.options.get("tools"):
            if self.tools.form is None:
                raise no_tools(self.tools)
            turns = [self._with_calls(turn, message) for turn, message in zip(turns, messages, strict=True)]
        if not turns or not (turns[-1]["content"].strip() or (with_tools and turns[-1]["role"] == "tool")):
            raise UserError("The prompt is empty: give at least one message with some text.")
        return turns

    def _turn(self, message: Any) -> dict[str, str]:
        parts = message_parts(message, images=False)
        # Joined first: no one makes a marker out of two parts.
        return {"role": message["role"], "content": self.clean(turn_text({"content": parts}))}

    def _with_calls(self, turn: dict[str, Any], message: Any) -> dict[str, Any]:
        return rendered_turn({**turn, "content": self._plain(turn["content"])}, message, self.tools, self._plain)

    def _plain(self, text: str) -> str:
        """A text of a conversation with tools: nobody writes a call, or the end of a result, in it."""
        return self._around_calls.neutral(self.clean(text))

    @cached_property
    def _around_calls(self) -> TurnMarkers:
        return TurnMarkers(tags=self.tools.marks - self.markers.tags - self.markers.controls)

    def encode(self, turns: Turns, *, closed: bool = False) -> list[int]:
        """The token ids of clean turns, ready for the model's answer.

        Args:
            turns: The conversation.
            closed: Whether the answer follows at once, without a thought.

        Raises:
            UserError: The template refuses the conversation, leaves something of it out, fails, or does not end.
        """
        text = self.write(turns)
        if closed and self.channel is not None:
            text = self.channel.closed(text)
        if self.template is None:
            # A plain text has no begin-of-text of its own: the tokenizer adds what the model was trained with.
            return encode_text(self._tokenizer, text)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def write(self, turns: Turns) -> str:
        """The text of a conversation: every word of every turn is in it.

        A template without a system role gets the system text at the head of the next turn, or as a turn of the user
        where there is none. One that knows contents as lists of parts gets those.

        Raises:
            UserError: See `encode`.
        """
        form = self._form(turns)
        try:
            text = self._rendered(form(turns))
            if holds(text, turns):
                return text
            # A template that reads tags in a text (of a thought, say) and leaves out what is in them.
            quoted = in_quotes(turns)
            text = self._rendered(form(quoted))
        except (TemplateRefusedError, TemplateFailedError) as error:
            raise _sentence(error) from None
        if not holds(text, quoted):
            raise _left_out()
        return text

    def _form(self, turns: Turns) -> Callable[[Turns], Turns]:
        """In which form the template writes all turns of such a conversation, tried with words that no one writes."""
        shape = tuple(map(turn_shape, turns))
        if (known := self._shapes.get(shape)) is not None:
            return known
        words = [{**turn, "content": f"Xq{index}zv"} for index, turn in enumerate(turns)]
        first: Exception | None = None
        for form in forms_of(tuple(turn["role"] for turn in turns)):
            try:
                text = self._rendered(form(words))
            except EndlessTemplateError as error:
                raise _sentence(error) from None
            except (TemplateRefusedError, TemplateFailedError) as error:
                first = first or error
                continue
            if all(word in text for turn in words for word in written(turn)):
                if len(self._shapes) >= _SHAPES:
                    self._shapes.clear()
                self._shapes[shape] = form
                return form
        raise _left_out() if first is None else _sentence(first)

    def _rendered(self, turns: Turns) -> str:
        return rendered(self._tokenizer, turns, template=self.template or PLAIN_TEMPLATE, options=self._variables)

    @cached_property
    def _variables(self) -> dict[str, Any]:
        tools = self.options.get("tools")
        return {**self.options, "tools": cleaned(tools, self._plain)} if tools else self.options


def _left_out() -> UserError:
    return UserError(
        "The model's chat template leaves out a part of this conversation: give its turns in another order, or give "
        "another chat_template."
    )


def _sentence(error: Exception) -> UserError:
    why = str(error).rstrip(".")
    if isinstance(error, TemplateRefusedError):
        return UserError(f"The model's chat template refuses this conversation: {why}.")  # in its author's words
    return UserError(f"The model's chat template fails ({why}): fix it, or give another one as chat_template.")


def response_lead(tokenizer: PreTrainedTokenizerBase, text_of: Callable[[list[int]], bytes]) -> bytes:
    """The white space with which this model's responses open: b" " for many SentencePiece models, else b"".

    It is what stands between the opened turn and the words of an answer that the template has written itself.

    Args:
        tokenizer: With its template.
        text_of: The bytes of token ids.
    """
    turns, answer = [{"role": "user", "content": "x"}], "Sure"
    whole = [*turns, {"role": "assistant", "content": answer}]
    if tokenizer.chat_template is None:
        return b" "  # PLAIN_TEMPLATE ends in a colon
    try:
        texts = rendered(tokenizer, turns), rendered(tokenizer, whole, opens=False)
    except (TemplateRefusedError, TemplateFailedError):  # which is said where the template is used
        return b""
    opened, closed = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    written = text_of(closed[len(opened) :]) if closed[: len(opened)] == opened else b""
    lead, word, _ = written.partition(answer.encode())
    return lead if word and not lead.strip() else b""


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of a text that is to be continued: begun as the tokenizer begins a text, and not ended.

    Raises:
        UserError: The text is empty.
    """
    if not text.strip():
        raise UserError("The prompt is empty: give some text.")
    ids: list[int] = list(tokenizer(text)["input_ids"])
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        del ids[0]  # the text brought its own
    if ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        del ids[-1]  # a tokenizer of a fine-tune that ends every text
    return ids


def message_parts(message: Any, *, images: bool) -> list[dict[str, Any]]:
    """The parts of one message.

    Args:
        message: `{"role": ..., "content": text}`, or with a list of parts of type text or image as its content.
        images: Whether the model reads any.

    Raises:
        UserError: It is no such message, or has an image that no one would look at.
    """
    role = message.get("role") if isinstance(message, Mapping) else None
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if role not in _ROLES or not isinstance(parts, list) or not all(map(_is_part, parts)):
        raise UserError(
            f'A message is {{"role": "system", "user" or "assistant", "content": text}}, but one is {message!r:.80}.'
        )
    if not images and any(part["type"] == "image" for part in parts):
        raise UserError("The model reads no images, but the conversation has one: leave it out, or take another model.")
    return [dict(part) for part in parts]


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def chosen_template(tokenizer: PreTrainedTokenizerBase, where: str, name: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer with one chat template: of named ones `name`, or the only one, or the one that is called default.

    Args:
        tokenizer: It stays as it is.
        where: What it belongs to, for the error.
        name: Of the template.

    Raises:
        UserError: There are several, and none is called so.
    """
    named = tokenizer.chat_template
    if not isinstance(named, dict):
        return tokenizer
    chosen = name or (next(iter(named)) if len(named) == 1 else "default")
    if chosen not in named:
        which = f"none is called {name!r}" if name else "none of them is called default"
        raise UserError(
            f"{where} has several chat templates ({', '.join(sorted(named))}) and {which}: give one of these names as "
            "chat_template."
        )
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = named[chosen]
    return tokenizer
