"""How conversations and responses are put before a judge: all of them, in order, as text and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from anchorlm.models import without_specials
from anchorlm.records import DefenseError, Message, Messages, turn_text

_WORD = re.compile(r"\w+")
_ROUNDS = 8
"""How often control tokens are broken up that only a broken one has made."""


def request_text(messages: Messages) -> str:
    """The conversation as one text: what the user asked, or all turns under their speakers' names.

    System and developer turns are there, too: in an API the client writes them. The operator's own system prompt is
    no part of a request's conversation.

    Raises:
        DefenseError: No one asked anything.
    """
    require_user(messages)
    if len(messages) == 1:
        return turn_text(messages[0])
    return "\n\n".join(f"{_role(turn).capitalize()}: {turn_text(turn)}" for turn in messages)


def plain_turns(messages: Messages) -> list[Message]:
    """The turns as texts of the three roles that chat templates know: a developer's is a system turn."""
    return [{"role": _role(turn), "content": turn_text(turn)} for turn in messages]


def _role(turn: Message) -> str:
    return "system" if turn["role"] == "developer" else str(turn["role"])


def require_user(messages: Messages) -> None:
    """Refuses to judge a conversation in which no one asked anything.

    Raises:
        DefenseError: It has no turn of the user.
    """
    if all(turn["role"] != "user" for turn in messages):
        raise DefenseError("A judge was given a conversation without a turn of the user: give it the request too.")


def in_first_turn(messages: Messages) -> Messages:
    """The conversation for a template without a system role: such texts stand at the head of the next user's turn."""
    turns: list[Message] = []
    waiting: list[str] = []
    for turn in messages:
        if turn["role"] == "system":
            waiting.append(turn["content"])
        elif turn["role"] == "user":
            turns.append({**turn, "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            turns.append(turn)
    return turns


def in_one_turn(messages: Messages) -> Messages:
    """The conversation for a template that takes no other order of speakers: all of it in one turn of the user."""
    return [{"role": "user", "content": request_text(messages)}]


class Breaker:
    """Breaks up what a model would read as a control token, so it is text like any other.

    A space goes into each one. Nothing is taken out, because what stands in a text reaches the user, too.

    Args:
        specials: The control tokens.
    """

    def __init__(self, specials: Sequence[str]) -> None:
        self._specials = tuple(filter(None, specials))
        listed = "|".join(map(re.escape, sorted(self._specials, key=len, reverse=True)))
        self._any = re.compile(listed or "(?!)")

    def __call__(self, text: str) -> str:
        """`text` without any control token."""
        for _ in range(_ROUNDS):
            broken = self._any.sub(_broken, text)
            if broken == text:
                return text
            text = broken
        return without_specials(text, self._specials)


def _broken(found: re.Match[str]) -> str:
    """A control token with a space in it, between two words if there is such a place."""
    token = found[0]
    places = range(1, len(token))
    place = next((at for at in places if not (_is_word(token[at - 1]) and _is_word(token[at]))), 1)
    return f"{token[:place]} {token[place:]}" if len(token) > 1 else " "


def _is_word(char: str) -> bool:
    return _WORD.match(char) is not None


def holds(text: str, parts: Iterable[str]) -> bool:
    """Whether every word of some texts stands in `text`, one after the other."""
    place = 0
    for part in parts:
        for word in _WORD.findall(part):
            if (found := text.find(word, place)) < 0:
                return False
            place = found + len(word)
    return True
