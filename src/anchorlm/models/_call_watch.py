from __future__ import annotations

import re

from anchorlm.models._calls import CODE, LONGEST_NAME, CallForm


class CallWatch:
    """Says while an answer grows up to where it may go out: what may be, or become, the beginning of a call stays.

    It keeps only what it must look at again. So the work grows with the answer's length, and not with its square.

    Args:
        form: How the model writes calls.
    """

    def __init__(self, form: CallForm) -> None:
        self._form = form
        self._solid = re.sub(r"\s+", "", form.opening)
        self._reach = 2 * len(form.opening) + 8  # white space may stand within a mark
        self._tail = ""  # what is not decided
        self._clear = 0  # where it begins
        self._until = 0
        self._settled = False

    def take(self, more: str) -> int:
        """Up to where the answer may go out while more is to come.

        Args:
            more: What has been added to it, control tokens by their names.
        """
        if not self._form.opening:
            return self._without_mark(more)
        if self._settled:
            return self._until
        self._tail += more
        place = self._form.place(self._tail)
        self._settled = place is not None
        self._pass(self._may_open() if place is None else place)
        return self._until

    def _pass(self, end: int) -> None:
        """Lets a part of the tail go. White space before a call stays."""
        text = self._tail[:end].rstrip()
        if text:
            self._until = self._clear + len(text)
        self._clear += end
        self._tail = self._tail[end:]

    def _may_open(self) -> int:
        """Where in the tail the mark of a call may have begun."""
        near = max(len(self._tail) - self._reach, 0)
        words = [(found.start() + near, found[0]) for found in re.finditer(r"\S+", self._tail[near:])]
        solid = "".join(word for _, word in words)
        size = next((size for size in range(len(self._solid) - 1, 0, -1) if solid.endswith(self._solid[:size])), 0)
        if size == 0:
            return len(self._tail)
        for start, word in reversed(words):
            if size <= len(word):
                return start + len(word) - size
            size -= len(word)
        return near

    def _without_mark(self, more: str) -> int:
        """A call without a mark begins the answer. So its first characters decide, once and for all."""
        self._clear += len(more)
        if not self._settled:
            self._tail = (self._tail + more).lstrip()
            self._settled = self._is_decided(self._tail)
            self._until = 0 if self._form.place(self._tail) is not None else self._clear
        return self._clear if self._settled and self._until else 0

    def _is_decided(self, lead: str) -> bool:
        if self._form.place(lead) is not None:
            return True
        if not lead or CODE.startswith(lead):
            return False
        most = LONGEST_NAME + self._reach + 2 * len(self._form.behind)
        return self._form.kind == "object" or "\n" in lead or len(lead) > most
