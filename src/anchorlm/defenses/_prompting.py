from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from anchorlm.defenses._base import Defense, DefenseSettings, refuse
from anchorlm.defenses._thinking import Thinking, said
from anchorlm.records import Decision, Event, Finished, FormatSupport, Messages, Request, TextDelta

SELF_REMINDER = (
    "You should be a responsible assistant and should not generate harmful or misleading content! "
    "Please answer the following user query in a responsible way.\n"
    "{prompt}\n"
    "Remember, you should be a responsible assistant and should not generate harmful or misleading content!"
)
"""After Xie et al., Defending ChatGPT against jailbreak attack via self-reminders (Nature Mach. Intell., 2023)."""

GOAL_PRIORITY = (
    "You are a good assistant that should prioritize being harmless before being helpful. Before answering the user "
    "query, think about whether answering it is safe. Start with [Internal thoughts], where you note which goal comes "
    "first and whether the query is harmful; then write [Final response] with an answer that follows from the "
    "thoughts. Refuse to answer a harmful query; answer any other as well as you can.\n"
    "User query: {prompt}"
)
"""After Zhang et al., Defending large language models against jailbreaking attacks through goal prioritization (2023),
the variant without training, shortened."""

_THOUGHTS = "[Internal thoughts]"
_FINAL = "[Final response]"


class PromptSettings(DefenseSettings):
    """A prompt defense's one knob."""

    template: str = Field(
        default="{prompt}", description="What the user's last turn becomes. `{prompt}` stands for the turn."
    )

    @field_validator("template")
    @classmethod
    def _has_place(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError("the template has no place for {prompt}")
        return template


class SelfReminderSettings(PromptSettings):
    """The reminder around the user's turn."""

    template: str = Field(
        default=SELF_REMINDER, description="What the user's last turn becomes. `{prompt}` stands for the turn."
    )


class GoalPrioritySettings(PromptSettings):
    """The instruction before the user's turn."""

    template: str = Field(
        default=GOAL_PRIORITY, description="What the user's last turn becomes. `{prompt}` stands for the turn."
    )


def wrap_last_turn(messages: Messages | str, template: str) -> Messages | str:
    """The conversation with its last turn of the user put into `template`; someone else's may come after it."""
    if isinstance(messages, str):
        return template.replace("{prompt}", messages)
    users = [index for index, turn in enumerate(messages) if turn["role"] == "user"]
    place = users[-1] if users else len(messages) - 1
    before, last, after = messages[:place], messages[place], messages[place + 1 :]
    if isinstance(last["content"], str):
        return [*before, {**last, "content": template.replace("{prompt}", last["content"])}, *after]
    head, _, tail = template.partition("{prompt}")
    around = [[{"type": "text", "text": text}] if text else [] for text in (head, tail)]
    return [*before, {**last, "content": [*around[0], *last["content"], *around[1]]}, *after]


def wrapped(request: Request, template: str) -> Request:
    """A request whose prompt is wrapped; the operator's system prompt is a part of it."""
    return replace(request, messages=wrap_last_turn(request.prompt, template), system=None)


class SelfReminder(Defense):
    """Asks the target, before and after the user's words, to be responsible."""

    name: ClassVar[str] = "self_reminder"
    thinks: ClassVar[bool] = True
    formats: ClassVar[FormatSupport] = "any"
    settings_type: ClassVar[type[DefenseSettings]] = SelfReminderSettings

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Answers the wrapped prompt."""
        template = self.settings_for(request).template
        thinking = Thinking(self.target, wrapped(request, template))
        yield Decision("prompt", {"template": template})
        room = request.generation.max_new_tokens + thinking.room
        async with self.target.open(thinking.prompt, room=room) as row:
            async for event in said(thinking, row, self.target, self.settings_for(request).refusal):
                yield event


class GoalPriority(Defense):
    """Asks the target to think about safety first, and passes on only what it calls its final response."""

    name: ClassVar[str] = "goal_priority"
    thinks: ClassVar[bool] = True
    streams: ClassVar[Literal["tokens", "blocks", "whole"]] = "whole"
    settings_type: ClassVar[type[DefenseSettings]] = GoalPrioritySettings

    async def respond(self, request: Request) -> AsyncIterator[Event]:
        """Answers the wrapped prompt, without the thoughts."""
        settings: GoalPrioritySettings = self.settings_for(request)
        thinking = Thinking(self.target, wrapped(request, settings.template))
        pieces: list[TextDelta] = []
        finished: Finished | None = None
        room = request.generation.max_new_tokens + thinking.room
        async with self.target.open(thinking.prompt, room=room) as row:
            async for event in said(thinking, row, self.target, settings.refusal):
                if isinstance(event, TextDelta):
                    pieces.append(event)
                elif isinstance(event, Finished):
                    finished = event
                else:
                    yield event
        thoughts, answer = divide(pieces)
        yield Decision("prompt", {"template": settings.template, "thoughts": thoughts})
        if answer is None:
            why = "the response ended among the thoughts: raise max_new_tokens"
            for end in refuse(settings.refusal, why, prompt_tokens=len(thinking.prompt)):
                yield end
            return
        yield answer
        if finished is not None:
            yield finished


def divide(pieces: Sequence[TextDelta]) -> tuple[str | None, TextDelta | None]:
    """The thoughts and the final response; None where there are none.

    A model that ignores the format has simply answered. Thoughts that never end are thoughts, not an answer.
    """
    text = "".join(piece.text for piece in pieces)
    thoughts, marker, answer = text.partition(_FINAL)
    if marker:
        begin, at = len(thoughts) + len(marker), 0
        kept: list[TextDelta] = []
        for piece in pieces:
            kept += [piece] if at >= begin else []
            at += len(piece.text)
        return thoughts, _joined(kept, answer.strip())
    if _THOUGHTS in text:
        return text, None
    return None, _joined(pieces, text)


def _joined(pieces: Sequence[TextDelta], text: str) -> TextDelta:
    """Their tokens and scores under one text."""
    return TextDelta(
        text,
        tuple(token for piece in pieces for token in piece.token_ids),
        tuple(score for piece in pieces for score in piece.scores),
    )
