from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from anchorlm.records import Messages, Request, UserError, as_messages, turn_text
from anchorlm.team import Team

_LONG = 4_000
"""Characters of a conversation that are written down on the engines' thread: a millisecond."""

_MANY = 16
"""Turns, in the same way: a template may take time for each pair of them."""


def checked_system(system: str | None) -> str | None:
    """An operator's system prompt.

    Raises:
        UserError: It is no text, or holds none.
    """
    if system is not None and (not isinstance(system, str) or not system.strip()):
        raise UserError("system is your own system prompt: give a text, or leave it out.")
    return system


def asked(messages: Messages | str, raw: bool) -> Messages | str:
    """What goes to the model: a conversation, or a text as it stands.

    Raises:
        UserError: `raw` with something else than a text.
    """
    if raw and not isinstance(messages, str):
        raise UserError("raw = True takes a text that goes to the model as it stands: give a text, or leave raw out.")
    return messages if raw else as_messages(messages)


def several(prompts: Sequence[Messages | str]) -> list[Messages | str]:
    """The conversations of one call. A text alone is a list of one.

    Raises:
        UserError: It is no list of conversations.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise UserError("generate takes a list of texts or conversations: give one, or call chat for one of them.")
    prompts = list(prompts)
    if prompts and all(isinstance(turn, Mapping) for turn in prompts):
        raise UserError("generate takes several conversations, and this is one: call chat, or put it into a list.")
    return prompts


async def prepare(team: Team, request: Request) -> None:
    """Finds the tokens of a long conversation, which the models remember, on a thread: others go on meanwhile."""
    if isinstance(request.messages, str) or not _is_long(request.messages):
        return
    closed = request.thoughts is not None and request.thoughts.policy == "off"
    await asyncio.to_thread(team.target.model.encode, request.prompt, request.options, closed=closed)
    if team.anchor is not None:
        with suppress(UserError):  # which the defense tells, if it asks its anchor at all
            await asyncio.to_thread(team.anchor.model.encode, request.prompt_text, closed=True)


def _is_long(messages: Messages) -> bool:
    """Whether it may take a while to write a conversation down: images take a forward, and so are left to the loop."""
    texts = all(isinstance(turn["content"], str) for turn in messages)
    return texts and (len(messages) > _MANY or sum(len(turn["content"]) for turn in messages) > _LONG)


def check_conversation(messages: Messages | str, *, images: bool) -> None:
    """Looks at a prompt before any defense wraps it into something that looks like one.

    Raises:
        UserError: It is none, is empty, or has images that the model does not read.
    """
    from anchorlm.models import message_parts

    if not isinstance(messages, str) and not (
        messages and all(isinstance(turn, Mapping) and isinstance(turn.get("content"), str | list) for turn in messages)
    ):
        raise UserError('Messages are a list of {"role": ..., "content": text}: give at least one with some text.')
    for turn in () if isinstance(messages, str) else messages:
        message_parts(turn, images=images)
    if not (messages if isinstance(messages, str) else turn_text(messages[-1])).strip():
        raise UserError("The prompt is empty: give some text.")
    if not isinstance(messages, str) and not any(
        turn["role"] == "user" and turn_text(turn).strip() for turn in messages
    ):
        raise UserError("The conversation has no turn of the user: give at least one message of the role user.")
