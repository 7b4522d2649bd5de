from __future__ import annotations

from collections.abc import Mapping

from anchorlm.records import Messages, UserError, as_messages, turn_text

_LONG = 4_000
"""Characters of a conversation that are written down on the engines' thread: a millisecond."""

_MANY = 16
"""Turns, likewise: a template may take time for each pair of them."""


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


def is_long(messages: Messages) -> bool:
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
