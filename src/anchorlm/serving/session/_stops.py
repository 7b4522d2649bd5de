from __future__ import annotations

from collections.abc import Sequence

from anchorlm.records import first_stop


class StopText:
    """Lets text through up to the first of some texts. What may be the beginning of one is held back.

    Attributes:
        hit: Whether one of them came. Nothing is let through afterwards.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def off(self) -> None:
        """From here on everything is let through: a configured refusal is said to its end."""
        self._stops = ()

    def feed(self, text: str) -> str:
        """What may go out now that `text` has come."""
        if self.hit:
            return ""
        text = self._held + text
        if (place := first_stop(text, self._stops)) is not None:
            self.hit, self._held = True, ""
            return text[:place]
        # A stop that has begun is at most one character short of its length.
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        keep = next(
            (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops)), 0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end."""
        rest, self._held = self._held, ""
        return rest
