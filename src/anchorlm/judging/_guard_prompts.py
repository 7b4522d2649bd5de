from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from anchorlm.judging._conversation import (
    Breaker,
    holds,
    in_first_turn,
    in_one_turn,
    plain_turns,
    request_text,
    require_user,
)
from anchorlm.judging._guard_formats import GuardFormat
from anchorlm.judging._rubric import tags
from anchorlm.models import (
    CausalModel,
    TemplateFailedError,
    TemplateRefusedError,
    TurnMarkers,
    control_texts,
    encode_text,
    rendered,
)
from anchorlm.records import DefenseError, Message, Messages, UserError

_FIELDS = re.compile(r"\{(prompt|response|policy|category)\}")


class GuardWriter:
    """Writes down what a guard model reads: in its own chat template where that has the form, else as the format says.

    All words of conversation and response are in it. What clients wrote is text and nothing else: control tokens get a
    space inside, the opening bracket of the format's own tags becomes `[`, and a speaker's name at the start of a line
    is quoted, so no one ends the response and begins another one.

    Args:
        model: The guard.
        form: Its format.

    Raises:
        UserError: The model brings no template of this form, and the format has none either, or it leaves texts out.
    """

    def __init__(self, model: CausalModel, form: GuardFormat) -> None:
        self._model = model
        self._form = form
        self._break = Breaker((*form.tokens, *control_texts(model.tokenizer)))
        self._tags = tags({tag.replace(" ", "") for tag in form.tags})  # which may stand in any place of a tag
        self._speakers = TurnMarkers(labels=frozenset(f"{role}:" for role in form.roles))
        self._template = self._chosen()
        try:
            self.prompt([{"role": "user", "content": "mountain"}], "river", "", "forest")
        except DefenseError as error:
            raise UserError(str(error)) from None

    def prompt(self, messages: Messages, response: str, category: str, policy: str) -> list[int]:
        """The token ids of one question to the guard, up to where it begins to answer.

        Args:
            messages: The conversation.
            response: What is judged.
            category: Its name, for a format that asks for one at a time.
            policy: The text of it, or the operator's own.

        Raises:
            DefenseError: The template takes no such conversation.
        """
        require_user(messages)
        turns: list[Message] = [{**turn, "content": self.neutral(turn["content"])} for turn in plain_turns(messages)]
        answer = self.neutral(response)
        given = {"category": category, "policy": policy}
        if not self._form.frame:
            text = self._written(turns, answer, given)
            return list(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])
        texts = {**given, "prompt": request_text(turns), "response": answer}
        if self._form.raw:
            return encode_text(self._model.tokenizer, _filled(self._form.frame, texts))
        system: list[Message] = [{"role": "system", "content": _filled(self._form.system, texts)}]
        asked: Message = {"role": "user", "content": _filled(self._form.frame, texts)}
        return self._model.encode([*(system if self._form.system else []), asked])

    def neutral(self, text: str) -> str:
        """A text with which no one can say anything but what it says. Every word of it stays."""
        return self._break(self._speakers.neutral(self._tags.sub("[", text)))

    def _chosen(self) -> str | None:
        """The chat template that writes the conversation. None for a format with a frame."""
        own = self._model.chat_template
        if self._form.frame:
            return None
        if isinstance(own, str) and (self._form.marked(own) or self._form.after):
            return own
        if self._form.template is None:
            raise UserError(
                f"The guard model {self._model.name} brings no chat template of its own form: give it as chat_template."
            )
        return self._form.template

    def _written(self, turns: list[Message], answer: str, given: Mapping[str, str]) -> str:
        """The first way to write the conversation that leaves no word out.

        No turn stays a system turn: in an API the client writes it, and a guard would take it for its own.
        """
        said: Exception | None = None
        ways: tuple[Callable[[Messages], Messages], ...] = (in_first_turn, in_one_turn)
        for way in ways:
            whole: list[Message] = [*way(turns), {"role": "assistant", "content": answer}]
            try:
                text = self._rendered(whole, given)
            except (TemplateRefusedError, TemplateFailedError) as error:
                said = said or error
                continue
            if holds(text, [*(turn["content"] for turn in turns), answer]):
                return text
        raise DefenseError(
            f"The chat template of the judge {self._model.name} "
            + (f"refuses the conversation ({said})" if said else "leaves a part of the conversation out")
            + ": give another chat_template."
        )

    def _rendered(self, turns: list[Message], given: Mapping[str, str]) -> str:
        if self._form.after:
            turns = [*turns, {"role": "user", "content": _filled(self._form.after, given)}]
        if self._form.parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        own = self._form.with_policy if given["policy"] and not given["category"] else self._form.further
        return rendered(self._model.tokenizer, turns, template=self._template, options=_deep(own, given))


def _filled(text: str, texts: Mapping[str, str]) -> str:
    """In one pass: a prompt that holds "{response}" must not be filled in itself."""
    return _FIELDS.sub(lambda match: texts.get(match[1], match[0]), text)


def _deep(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _deep(one, texts) for name, one in value.items()}
    return _filled(value, texts) if isinstance(value, str) else value
