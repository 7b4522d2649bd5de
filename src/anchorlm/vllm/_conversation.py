from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from anchorlm.models import CausalModel, TemplateFailedError, TemplateRefusedError, rendered
from anchorlm.records import Message, Messages, UserError

_WORDS = ("Xq0zv", "Xq1zv", "Xq2zv", "Xq3zv")
_ROLES = ("system", "user", "assistant", "user")


class ConversationReader:
    """The conversation behind a prompt's token ids: a logits processor sees nothing else of it.

    What is found is written again with the template. Only where that gives the same ids it is believed: then the anchor
    reads the same turns as the target. Any other prompt is one turn of the user, all of it.

    Args:
        model: The target, for its tokenizer and template.
    """

    def __init__(self, model: CausalModel) -> None:
        self._model = model

    def read(self, ids: Sequence[int]) -> Messages:
        """The turns of a prompt."""
        text = self._model.marks.text(list(ids))
        for turns in self._guesses(text):
            try:
                if self._model.encode(turns) == list(ids):
                    return turns
            except UserError:
                continue
        return [{"role": "user", "content": text}]

    def _guesses(self, text: str) -> list[list[Message]]:
        turns = self._turns(text)
        if turns is None:
            return []
        # A template may write a system turn that no one gave.
        rest = [turn for index, turn in enumerate(turns) if index or turn["role"] != "system"]
        return [rest, turns] if rest and len(rest) < len(turns) else [turns]

    def _turns(self, text: str) -> list[Message] | None:
        """The text cut where the template puts turns; None where it does not begin or end like a conversation."""
        if self._pattern is None:
            return None
        opened, tail = self._pattern
        if not text.endswith(tail):
            return None
        cuts = list(opened.finditer(text[: len(text) - len(tail)]))
        ends = [match.start() for match in cuts[1:]] + [len(text) - len(tail)]
        turns: list[Message] = []
        for match, end in zip(cuts, ends, strict=True):
            role = next(name for name, value in match.groupdict().items() if value is not None)
            turns.append({"role": role, "content": text[match.end() : end]})
        return turns or None

    @cached_property
    def _pattern(self) -> tuple[re.Pattern[str], str] | None:
        """What opens a turn, with what ends the one before it, by role; and what stands behind the last turn."""
        pieces = self._pieces(_ROLES) or self._pieces(_ROLES[1:])
        if pieces is None:
            return None
        first, roles, seams, tail = pieces
        ways = {role: {seam} for role, seam in zip(roles[1:], seams, strict=True)}
        ways.setdefault(roles[0], set()).add(first)
        if (alone := self._pieces(("user",))) is not None:
            ways["user"].add(alone[0])
        parts = [
            f"(?P<{role}>{'|'.join(re.escape(one) for one in sorted(found, key=len, reverse=True))})"
            for role, found in ways.items()
        ]
        if any(not one.strip() for found in ways.values() for one in found):
            return None
        return re.compile("|".join(parts)), tail

    def _pieces(self, roles: tuple[str, ...]) -> tuple[str, tuple[str, ...], list[str], str] | None:
        turns = [{"role": role, "content": word} for role, word in zip(roles, _WORDS, strict=False)]
        try:
            text = rendered(self._model.tokenizer, turns, options=self._model.options)
        except (TemplateFailedError, TemplateRefusedError):
            return None
        parts = re.split("|".join(_WORDS[: len(roles)]), text)
        if len(parts) != len(roles) + 1:
            return None
        return parts[0], roles, parts[1:-1], parts[-1]
