from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from anchorlm.vllm._mixer import Guided


@dataclass(frozen=True, slots=True)
class Held:
    """What a slot holds.

    Attributes:
        guided: The request.
        output: The tokens of its response, a list that the server goes on writing; None where they are elsewhere.
    """

    guided: Guided
    output: list[int] | None = None


class Slots:
    """Which request is in which slot of a server, as far as requests are guided.

    A server reuses slots without notice, and moves requests between them. So a request that comes to a slot puts out
    the one that was there before.

    Args:
        close: What is done with a request that is gone.
    """

    def __init__(self, close: Callable[[Guided], None]) -> None:
        self._held: dict[int, Held] = {}
        self._close = close

    def put(self, slot: int, held: Held | None) -> None:
        """A request comes into a slot; None: one that is not guided."""
        self.remove(slot)
        if held is not None:
            self._held[slot] = held

    def remove(self, slot: int) -> None:
        """The request of a slot is gone."""
        if (old := self._held.pop(slot, None)) is not None:
            self._close(old.guided)

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """The request of one slot goes to another, whose own comes back or is gone."""
        first, second = self._held.pop(source, None), self._held.pop(target, None)
        if first is not None:
            self._held[target] = first
        if second is not None and swap:
            self._held[source] = second
        elif second is not None:
            self._close(second.guided)

    def rows(self, slots: Iterable[int] | None = None) -> list[tuple[int, Held]]:
        """The guided requests, each with its row: the slot itself, or its place among `slots`."""
        if slots is None:
            return sorted(self._held.items())
        return [(row, held) for row, slot in enumerate(slots) if (held := self._held.get(slot)) is not None]

    def __bool__(self) -> bool:
        return bool(self._held)
